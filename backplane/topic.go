package backplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-ws/holdfast/replay"
)

// A topic is what a Hub knows of one topic that has subscribers, or had some until
// a while ago.
//
//	cold ── watch confirmed, first page read ──▶ joined (log follows the backplane)
//
// Hints go through log.Insert, which alone decides by identity what they are. All
// else is one operation, refresh: a read that begins after somebody wanted one. It
// is wanted by subscribers whose position the log does not explain, hints that do
// not fit, doorbells, interruptions and heads that differ; and one refresh serves
// all who wanted it before it began.
type topic struct {
	hub    *Hub
	name   string
	limits replay.Limits
	log    *replay.Log // means nothing until joined

	subs int       // guarded by Hub.mu
	idle time.Time // since when subs is 0; guarded by Hub.mu

	addFailed  atomic.Bool   // the last call of Add for it has failed
	ephemerals atomic.Uint64 // ever received; more than 0 means that recent is in use

	slow int // reads in a row that took too long; only the goroutine that reads uses it

	mu       sync.Mutex // guards all below; the log's lock and Hub.workMu may be taken under it
	ended    bool
	watched  bool            // confirmed
	joined   bool            // log follows the backplane
	deep     bool            // log has all that the backplane had, or as much as it has room for
	start    replay.Position // where the log began when it was last filled; it still does if nothing was dropped
	wanted   bool            // a refresh has to begin
	busy     bool            // one is queued, running, or waits for its next try
	failures int             // of refreshes, in a row
	retry    *time.Timer     // of a refresh that failed
	waiting  []*want         // served by the next refresh
	early    []early         // hints that came before what they follow
	round    uint32          // counts refreshes
	distrust time.Time       // until then a hint may be of a history that is gone
	rung     bool            // a hint is to lead to a refresh in a moment
	odd      int             // pages in a row that did not fit
	grace    *time.Timer     // runs while early may still resolve itself
	recent   []ephemeral     // the newest, in order
	snap     *snapshot       // being made
}

// A want is a subscriber that waits for the log to reach its start.
type want struct {
	after replay.Position // if not zero
	last  int             // else; negative for all
	done  chan struct{}   // closed when served
	gone  bool            // it waits no longer
}

// An early hint came before that refresh began which follows its round.
type early struct {
	replay.Entry
	round uint32
}

// distrust is for how long, after it has turned out that a topic's history is
// another than before, hints only ring: those of the old history may be late, and
// one of them may even seem to follow the new head.
const distrust = 5 * time.Second

type ephemeral struct {
	n    uint64 // the first is 1
	at   time.Time
	data []byte
}

// What is kept of ephemeral messages, of a topic.
const (
	maxRecent      = 64
	maxRecentBytes = 64 << 10
	recentAge      = 5 * time.Second
)

// sink is what the Hub's watcher tells.
type sink struct{ h *Hub }

func (s sink) topic(name string) *topic {
	s.h.mu.RLock()
	defer s.h.mu.RUnlock()
	return s.h.topics[name]
}

func (s sink) Entry(name string, e replay.Entry) {
	s.h.count.hints.Add(1)
	if t := s.topic(name); t != nil {
		t.mu.Lock()
		t.hint(e)
		t.mu.Unlock()
	}
}

func (s sink) Doorbell(name string) {
	s.h.count.hints.Add(1)
	if t := s.topic(name); t != nil {
		t.mu.Lock()
		t.refreshSoon()
		t.mu.Unlock()
	}
}

func (s sink) Ephemeral(name string, data []byte) {
	if t := s.topic(name); t != nil {
		t.mu.Lock()
		n := t.ephemerals.Load() + 1
		t.recent = append(t.recent, ephemeral{n, time.Now(), data})
		t.pruneRecent()
		t.ephemerals.Store(n)
		t.mu.Unlock()
		t.log.Wake()
	}
}

func (s sink) Interrupted(err error, topics ...string) {
	s.h.count.interruptions.Add(1)
	s.h.log.say(slog.LevelInfo, "hints were interrupted", fmt.Sprint(err), "err", err, "topics", len(topics))
	if len(topics) == 0 {
		s.h.sweepSoon()
		return
	}
	for _, name := range topics {
		s.Doorbell(name)
	}
}

// pruneRecent drops ephemeral messages that are old, or too many or too large, but the
// newest only if it is old. The lock is held.
func (t *topic) pruneRecent() {
	keep, bytes := 0, 0
	for keep < min(len(t.recent), maxRecent) {
		e := &t.recent[len(t.recent)-1-keep]
		if bytes += len(e.data); keep > 0 && bytes > maxRecentBytes || time.Since(e.at) >= recentAge {
			break
		}
		keep++
	}
	if t.recent = slices.Delete(t.recent, 0, len(t.recent)-keep); keep == 0 {
		t.recent = nil
	}
}

// hint takes an entry that was announced. The lock is held.
func (t *topic) hint(e replay.Entry) {
	switch {
	case !t.joined:
		t.keep(e)
		return
	case !t.distrust.IsZero():
		if time.Now().Before(t.distrust) {
			if t.has(e.Pos) {
				t.hub.count.duplicates.Add(1)
			} else {
				t.rung = true
				t.armGrace()
			}
			return
		}
		t.distrust = time.Time{}
	}
	switch t.log.Insert(e) {
	case replay.Appended:
		if len(t.early) > 0 {
			t.insertEarly()
		}
	case replay.Duplicate:
		t.hub.count.duplicates.Add(1)
	case replay.Missing:
		t.keep(e)
		t.armGrace()
	default: // Forked, NewEpoch, TooOld: old hints are like that too; the truth is in a Read
		t.refreshSoon()
	}
}

// keep puts a hint aside. The lock is held.
func (t *topic) keep(e replay.Entry) {
	bytes := len(e.Data)
	for i := range t.early {
		bytes += len(t.early[i].Data)
	}
	if len(t.early) >= maxEarly || bytes > maxEarlyBytes {
		t.refreshSoon()
		return
	}
	t.early = append(t.early, early{e, t.round})
}

// insertEarly inserts those hints that were too early and no longer are. The lock
// is held, and the topic joined.
func (t *topic) insertEarly() {
	slices.SortFunc(t.early, func(a, b early) int { return cmp.Compare(a.Pos.Seq, b.Pos.Seq) })
	left := t.early[:0]
	for _, e := range t.early {
		switch t.log.Insert(e.Entry) {
		case replay.Missing:
			left = append(left, e)
		case replay.Appended, replay.Duplicate:
		default:
			t.refreshSoon() // as in hint
		}
	}
	clear(t.early[len(left):])
	if t.early = left; len(left) == 0 {
		t.early = nil
	}
}

// armGrace gives hints that were overtaken a moment to arrive. The lock is held.
func (t *topic) armGrace() {
	if t.grace != nil || t.busy || t.ended {
		return
	}
	t.grace = time.AfterFunc(grace, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.grace = nil
		if len(t.early) > 0 || t.rung {
			t.refreshSoon()
		}
	})
}

// refreshSoon has a refresh begin after now. The lock is held.
func (t *topic) refreshSoon() {
	t.wanted = true
	if t.busy || t.ended {
		return
	}
	t.busy = true
	t.again()
}

// hurry has a refresh that waits for its next try begin now. The lock is held.
func (t *topic) hurry() {
	if t.retry != nil && t.retry.Stop() {
		t.retry = nil
		t.again()
	}
}

// again queues the refresh. The lock is held.
func (t *topic) again() {
	if t.watched {
		t.hub.readSoon(t)
	} else {
		t.hub.watchSoon(t)
	}
}

// retryLater has a failed refresh tried again. The lock is held.
func (t *topic) retryLater() {
	if t.ended {
		return
	}
	t.failures++
	t.retry = time.AfterFunc(pause(t.failures), func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.retry = nil; !t.ended {
			t.again()
		}
	})
}

// pause returns how long to wait after so many failures: full jitter over
// 0.05 s, and twice that for each, up to 5 s.
func pause(failures int) time.Duration {
	window := min(50*time.Millisecond<<min(failures, 10), 5*time.Second)
	return rand.N(window) + time.Millisecond
}

// refresh reads what is new, on one of the Hub's workers.
func (t *topic) refresh() {
	t.mu.Lock()
	if t.ended {
		t.mu.Unlock()
		return
	}
	t.wanted, t.rung = false, false
	t.round++
	wants := t.waiting
	t.waiting = nil
	joined := t.joined
	t.mu.Unlock()

	var err error
	if joined {
		err = t.catchUp()
	} else {
		err = t.join(wants)
	}
	if err == nil && !t.serves(wants) {
		err = t.deepen()
	}

	if err != nil && t.hub.ctx.Err() == nil {
		t.hub.log.say(slog.LevelWarn, cannotRead, err.Error(), "topic", t.name, "err", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.hub.count.errors.Add(1)
		for _, w := range wants {
			if !w.gone {
				t.waiting = append(t.waiting, w)
			}
		}
		t.wanted = true
		t.retryLater()
		return
	}
	if t.odd == 0 {
		t.failures = 0
	}
	// Hints from before the read are in what it returned, or of another history.
	t.early = slices.DeleteFunc(t.early, func(e early) bool { return e.round != t.round })
	t.insertEarly()
	for _, w := range wants {
		close(w.done)
	}
	if t.busy = false; t.wanted {
		t.refreshSoon()
	} else if len(t.early) > 0 || t.rung {
		t.armGrace()
	}
}

// errContradiction is about a backplane that breaks its contract.
var errContradiction = errors.New("backplane: what Read returns does not fit together")

// catchUp reads what follows the head of the log.
func (t *topic) catchUp() error {
	goal := replay.Position{}
	for {
		_, head := t.log.Bounds()
		page, err := t.read(head, replay.Budget{Entries: 256, Bytes: 256 << 10})
		var gap *replay.GapError
		switch {
		case errors.As(err, &gap):
			return t.readAnew(head, gap.Reason)
		case err != nil:
			return err
		case len(page.Entries) == 0:
			return nil
		}
		t.mu.Lock()
		if t.ended {
			t.mu.Unlock()
			return nil
		}
		switch t.log.Insert(page.Entries...) {
		case replay.Appended:
			t.hub.count.repairs.Add(1)
			t.odd = 0
		case replay.Duplicate:
			t.odd = 0
		default: // a hint came in between that is not of this history
			t.wanted = true
			t.odd++
		}
		odd := t.odd
		t.mu.Unlock()
		if goal.IsZero() {
			goal = page.Head // what comes later has hints of its own
		}
		switch {
		case odd > 2: // again and again: so it was no hint
			return t.readAnew(head, replay.ReasonForked)
		case odd > 0 || page.Entries[len(page.Entries)-1].Pos.Seq >= goal.Seq:
			return nil
		}
	}
}

// readAnew reads the newest entries, because the log cannot go on from its head, for a
// reason. If they were not just trimmed, then what the log has is not the history any
// more. All readers see that at once, and each finds out by its own position what it means
// for it.
func (t *topic) readAnew(was replay.Position, reason replay.Reason) error {
	page, err := t.readTail(-1)
	if err != nil {
		return err
	}
	t.mu.Lock()
	if reason == replay.ReasonTrimmed {
		reason, err = t.adopt(page)
	} else {
		t.rewound()
		err = t.replace(page)
	}
	t.mu.Unlock()
	t.logRewind(reason, was, page.Head)
	return err
}

// rewound is called when the history has turned out to be another than that of the log.
// The lock is held.
func (t *topic) rewound() {
	t.hub.count.rewinds.Add(1)
	t.distrustHints()
	select {
	case t.hub.doubt <- struct{}{}:
	default:
	}
}

// logRewind logs that the history is another, if there is a reason to think so.
func (t *topic) logRewind(reason replay.Reason, was, head replay.Position) {
	if reason != "" && t.hub.ctx.Err() == nil {
		t.hub.log.say(slog.LevelWarn, "the history has changed", string(reason),
			"topic", t.name, "reason", reason, "had", was.Seq, "head", head.Seq)
	}
}

// adopt makes the newest entries part of the log, which may have got further since
// they were read. It returns a reason if they are of another history. The lock is held.
func (t *topic) adopt(page Page) (reason replay.Reason, err error) {
	from, gap := before(page), t.gap(page.Head)
	switch {
	case gap == nil && t.has(from):
		t.deep = true
		return "", nil // it has all of them
	case gap != nil && gap.Reason == replay.ReasonTrimmed:
		if oldest, _ := t.log.Bounds(); oldest != t.start {
			t.deep = true
			return "", nil // it has only newer ones, as it had no room for more
		}
		// The log began after what is the newest now: the history has gone back meanwhile.
		reason = replay.ReasonAhead
	case gap == nil: // they go further back
		var newer replay.Batch
		if t.log.After(page.Head, &newer, replay.Budget{Entries: -1, Bytes: -1}) == nil {
			page.Entries = slices.Concat(page.Entries, newer.Entries)
		}
	case gap.Reason == replay.ReasonAhead && t.has(from):
		switch t.log.Insert(page.Entries...) {
		case replay.Appended, replay.Duplicate:
			t.deep = true
			return "", nil
		}
		return "", errContradiction
	case gap.Reason != replay.ReasonAhead:
		reason = gap.Reason
	}
	if reason != "" {
		t.rewound()
	}
	return reason, t.replace(page)
}

// replace puts a page in place of what is in the log. The lock is held.
func (t *topic) replace(page Page) error {
	if t.ended {
		return nil // it tells its readers, and must not look alive again
	}
	if t.log.Reset(before(page), page.Entries...) != replay.Appended {
		return errContradiction
	}
	t.start, _ = t.log.Bounds()
	t.deep, t.odd = true, 0
	return nil
}

// join reads the first page of a topic, as much as those need that wait for it.
func (t *topic) join(wants []*want) error {
	var oldest replay.Position // that somebody wants to resume from
	last, mixed := 0, false
	for _, w := range wants {
		switch {
		case w.after.IsZero():
			if w.last < 0 || last >= 0 && w.last > last {
				last = w.last
			}
		case oldest.IsZero():
			oldest = w.after
		case oldest.Epoch != w.after.Epoch:
			mixed = true
		case w.after.Seq < oldest.Seq:
			oldest = w.after
		}
	}
	if !oldest.IsZero() && !mixed {
		page, err := t.read(oldest, t.room())
		if err == nil {
			if n := len(page.Entries); n == 0 || page.Entries[n-1].Pos == page.Head {
				return t.begin(oldest, page, false)
			} // else there is more than the log has room for
		} else if _, ok := err.(*replay.GapError); !ok {
			return err
		}
		last = -1
	} else if mixed {
		last = -1
	}
	page, err := t.readTail(last)
	if err != nil {
		return err
	}
	return t.begin(before(page), page, last < 0)
}

// begin fills the log for the first time.
func (t *topic) begin(after replay.Position, page Page, deep bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return nil
	}
	if t.log.Reset(after, page.Entries...) != replay.Appended {
		return errContradiction
	}
	t.start, _ = t.log.Bounds()
	t.joined = true
	t.deep = deep || after.Seq == 0
	return nil
}

// distrustHints has hints ring only, for a while. The lock is held.
func (t *topic) distrustHints() {
	t.wanted = t.wanted || len(t.early) > 0 // they ring too
	t.early = nil
	t.distrust = time.Now().Add(distrust)
}

// deepen fills the log with all that it has room for. Its readers do not notice.
func (t *topic) deepen() error {
	page, err := t.readTail(-1)
	if err != nil {
		return err
	}
	t.mu.Lock()
	_, was := t.log.Bounds()
	reason, err := t.adopt(page)
	t.mu.Unlock()
	t.logRewind(reason, was, page.Head)
	return err
}

// serves reports whether all can be told what is true for them, after a read that
// began when they were already waiting.
func (t *topic) serves(wants []*want) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, w := range wants {
		if !t.deep && !t.covers(w) { // a Reset is followed by all that is left
			return false
		}
	}
	return true
}

// covers reports whether the log has all that w wants. The lock is held.
func (t *topic) covers(w *want) bool {
	if !t.joined {
		return false
	}
	if w.after.IsZero() {
		oldest, head := t.log.Bounds()
		return t.deep || w.last >= 0 && head.Seq-oldest.Seq >= uint64(w.last)
	}
	return t.has(w.after)
}

// has reports whether the log can be read after p.
func (t *topic) has(p replay.Position) bool {
	at, ok := t.log.At(p.Seq)
	return ok && at == p
}

// gap returns why the log cannot be read after p, or nil if it can.
func (t *topic) gap(p replay.Position) *replay.GapError {
	var b replay.Batch
	err := t.log.After(p, &b, replay.Budget{Entries: 1})
	gap, _ := err.(*replay.GapError)
	return gap
}

// room is the budget of a page that fills the log.
func (t *topic) room() replay.Budget {
	b := replay.Budget{Entries: t.limits.Entries, Bytes: t.limits.Bytes}
	if b.Entries == 0 {
		b.Entries = replay.DefaultEntries
	}
	if b.Bytes == 0 {
		b.Bytes = replay.DefaultBytes
	}
	return b
}

// readTime is how long a call of Read with this budget may take at the most: a second for
// each megabyte more than other calls, up to two minutes.
func readTime(max replay.Budget) time.Duration {
	const most = 2 * time.Minute
	if max.Bytes < 0 || max.Bytes >= int64(most/time.Second)<<20 {
		return most
	}
	return min(callTimeout+time.Duration(max.Bytes>>20)*time.Second, most)
}

// read is one call of Read.
func (t *topic) read(after replay.Position, max replay.Budget) (Page, error) {
	t.hub.count.reads.Add(1)
	ctx, cancel := context.WithTimeout(t.hub.ctx, min(callTimeout<<t.slow, readTime(max)))
	defer cancel()
	page, err := t.hub.bp.Read(ctx, t.name, after, max)
	switch {
	case err == nil:
		t.slow = 0
	case ctx.Err() != nil:
		t.slow = min(t.slow+1, 4) // it may be large; but if it hangs, the next call may not
	}
	return page, err
}

// readTail reads the newest n entries, or as many as there is room for if n is
// negative; and one at least, which costs no more than none.
func (t *topic) readTail(n int) (Page, error) {
	max := t.room()
	if n >= 0 && (max.Entries < 0 || n < max.Entries) {
		max.Entries = n
	}
	if max.Entries == 0 {
		max.Entries = 1
	}
	return t.read(replay.Position{}, max)
}

// before returns the place before the first entry of a page.
func before(p Page) replay.Position {
	if len(p.Entries) == 0 {
		return p.Head
	}
	e := &p.Entries[0]
	return replay.Position{Epoch: e.Pos.Epoch, Seq: e.Pos.Seq - 1, Tag: e.Prev}
}

// end is called once by Close or when nobody has wanted the topic for a while.
func (t *topic) end() {
	t.mu.Lock()
	t.ended = true
	for _, timer := range []*time.Timer{t.retry, t.grace} {
		if timer != nil {
			timer.Stop()
		}
	}
	t.early = nil
	t.mu.Unlock()
	t.log.Reset(replay.Position{}) // so that readers who wait later see it too
}
