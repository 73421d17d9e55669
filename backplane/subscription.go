package backplane

import (
	"context"
	"iter"
	"slices"
	"sync/atomic"
	"time"

	"github.com/holdfast-ws/holdfast/replay"
)

// SubscribeOptions say where a subscription begins, and what it may cost. Nil means
// from now on.
type SubscribeOptions struct {
	// After is where to go on: the position after which this subscriber has seen
	// nothing yet, from an earlier Batch. It is data, not a credential.
	After replay.Position

	// Last is how many of the newest messages to begin with, if After is the zero
	// Position. Zero means none, negative all that the Hub has room for.
	Last int

	// Floor is a position up to which the subscriber may see nothing, such as the
	// head when it was let in. Where it would otherwise have got something
	// earlier, it is told that there was something (ReasonFloor), or for Last is
	// just not given it. Only its number counts, and only while the topic is of
	// its epoch: what comes after a new beginning came after the floor, and what
	// comes with a number up to it, after the topic has gone back to before it, is
	// withheld too. A subscriber with a floor gets no snapshots. Zero means none.
	Floor replay.Position

	// Lag is how far the subscriber may fall behind before it gets a Reset with
	// ReasonLagging, or conflated messages, see replay.Lag. What the Hub no longer
	// has room for is a Reset in any case. It may be shared, and must not be
	// changed afterwards. Nil means no other limit.
	Lag *replay.Lag

	// Value is for a subscription that is served with [Arm]: the Value of the
	// cursor that the poller's Wait returns.
	Value any
}

// ReasonFloor says that there are messages between the position of the subscriber and
// its Floor. Missed is their number.
const ReasonFloor replay.Reason = "floor"

// A Reset stands between what a subscriber has got before and what it gets next, if
// these do not follow each other: one for each time that they do not. There is no other
// way in which messages are missed.
//
// With ReasonTrimmed, ReasonLagging and ReasonFloor the subscriber missed some
// messages. With the other reasons the history is another than the one the
// subscriber knows: what follows is all that is left of it, which may contain what
// it has seen before, and lack what it has seen. So take the state that was built
// from earlier messages for void, unless the reason is one of those three.
//
// A Reset says what is true when the subscriber is given it, also if it had to wait for
// a Snapshot.
type Reset struct {
	Reason replay.Reason
	Missed uint64          // how many messages are no longer there, 0 if that is not known
	Want   replay.Position // after which the subscriber wanted to read
	Head   replay.Position // of the topic

	// Snapshot is what [Options.Snapshot] has returned, a state that replaces all
	// that the subscriber had, and which the next messages follow. It is nil if
	// there is no such function, or it has failed.
	Snapshot []byte
}

// A Batch is what a subscriber is given. The zero value can be read into; it may be
// used again for the next read, which overwrites Entries and Ephemeral.
type Batch struct {
	// Reset comes before all else in the batch. It is nil if this batch follows
	// the one before, as it nearly always does.
	Reset *Reset

	// The messages, and To, which is what to remember for After, once they have
	// been dealt with.
	replay.Batch

	// Ephemeral are messages without a position, the newest last: at most 64 and
	// about 64 KiB, and of the last five seconds.
	Ephemeral [][]byte
}

// Empty reports whether there is nothing in the batch. Its To may have moved all
// the same, past messages that were conflated.
func (b *Batch) Empty() bool {
	return b.Reset == nil && len(b.Entries) == 0 && len(b.Ephemeral) == 0
}

// A Subscription is one reader of one topic. It gets every message once, in the one
// order that all share, or a [Reset]. It has no queue: one that is slow costs
// nothing and holds up nobody.
//
// A Subscription is read by one goroutine at a time. Close may be called by any.
type Subscription struct {
	cursor replay.Cursor
	topic  atomic.Pointer[topic] // nil when closed
	more   atomic.Pointer[extra] // nil as long as nothing of it is needed; made by the reader only
}

// extra is what few subscriptions need: the others have not got it.
type extra struct {
	done    chan struct{} // closed by Close; for Next
	ended   atomic.Bool   // done is closed
	floor   replay.Position
	resumed replay.Position // After
	tell    bool            // that something was withheld, when it is
	want    replay.Position // where it stands while it waits for a snapshot
	tries   int             // of snapshots for this gap

	// Set by the reader only, but looked at by Arm when it is no longer that.
	seen     atomic.Uint64            // number of the newest ephemeral message seen
	snapshot atomic.Pointer[snapshot] // that it waits for
}

func (x *extra) end() {
	if !x.ended.Swap(true) {
		close(x.done)
	}
}

// Subscribe subscribes to a topic. It returns when the topic is followed and it is
// known what a reader who begins there is to get: at once if the Hub follows the
// topic already and the messages after opts.After are at hand, and else after a
// call or two of the backplane; if that is away, when it is back. The wait is
// bounded by ctx, whose cause is then returned; ctx does not matter afterwards.
//
// Whether the subscriber gets a Reset is found out by the first read. The other
// errors are [*InputError] and [ErrClosed]. Close the subscription when it is no
// longer wanted.
func (h *Hub) Subscribe(ctx context.Context, topic string, opts *SubscribeOptions) (*Subscription, error) {
	if err := CheckTopic(topic); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if opts == nil {
		opts = &SubscribeOptions{}
	}
	t := h.enter(topic)
	if t == nil {
		return nil, ErrClosed
	}
	w := &want{after: opts.After, last: opts.Last}
	t.mu.Lock()
	if !t.covers(w) {
		w.done = make(chan struct{})
		t.waiting = append(t.waiting, w)
		t.refreshSoon()
		t.mu.Unlock()
		select {
		case <-w.done:
		case <-h.ctx.Done():
			h.leave(t)
			return nil, ErrClosed
		case <-ctx.Done():
			t.forget(w)
			h.leave(t)
			return nil, context.Cause(ctx)
		}
		t.mu.Lock()
	}
	defer t.mu.Unlock()
	start := opts.After
	if start.IsZero() {
		start = t.last(opts.Last)
	}
	s := &Subscription{cursor: *t.log.Cursor(start, opts.Lag)}
	s.cursor.Value = opts.Value
	if opts.After.IsZero() && opts.Lag != nil {
		var none replay.Batch
		if err := s.cursor.Read(&none, replay.Budget{Entries: 1}); err != nil {
			start = err.(*replay.GapError).Oldest // Last is more than Lag
		}
		s.cursor.Seek(start)
	}
	s.topic.Store(t)
	if n := t.ephemerals.Load(); n > 0 || !opts.Floor.IsZero() {
		x := &extra{done: make(chan struct{}), floor: opts.Floor, resumed: opts.After, tell: !opts.After.IsZero()}
		x.seen.Store(n)
		s.more.Store(x)
	}
	return s, nil
}

// enter returns the topic with one more subscriber, or nil if the Hub is closed.
func (h *Hub) enter(name string) *topic {
	for {
		h.mu.Lock()
		if h.closed.Load() || h.topics == nil {
			h.mu.Unlock()
			return nil
		}
		if t := h.topics[name]; t != nil {
			t.subs++
			h.count.subscribers.Add(1)
			h.mu.Unlock()
			return t
		}
		h.mu.Unlock()
		limits := h.opts.Limits(name) // without a lock
		t := &topic{hub: h, name: name, limits: limits, log: replay.New(limits)}
		h.mu.Lock()
		if h.topics != nil && h.topics[name] == nil {
			h.topics[name] = t
		}
		h.mu.Unlock()
	}
}

// leave undoes enter.
func (h *Hub) leave(t *topic) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count.subscribers.Add(-1)
	if t.subs--; t.subs == 0 {
		t.idle = time.Now()
	}
}

// forget undoes that w waits.
func (t *topic) forget(w *want) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w.gone = true // a refresh that fails would bring it back
	for i, x := range t.waiting {
		if x == w {
			t.waiting = append(t.waiting[:i:i], t.waiting[i+1:]...)
			return
		}
	}
}

// last returns where the newest n entries begin, all if n is negative.
func (t *topic) last(n int) replay.Position {
	if n < 0 {
		oldest, _ := t.log.Bounds()
		return oldest
	}
	return t.log.Last(n)
}

// Next waits until there is something for the subscriber and reads it into b, as
// many messages as there are within the budget. It returns the cause of ctx when
// ctx is done, and [ErrClosed] after Close of the subscription or the Hub, with an
// empty batch.
func (s *Subscription) Next(ctx context.Context, b *Batch, max replay.Budget) error {
	x := s.extra()
	for {
		if ctx.Err() != nil {
			b.clear(s.Position())
			return context.Cause(ctx)
		}
		ready := s.cursor.Ready()
		if err := s.Read(b, max); err != nil || !b.Empty() {
			return err
		}
		if b.To != b.Head {
			continue // past conflated messages only
		}
		select {
		case <-ready:
		case <-x.done:
		case <-ctx.Done():
		}
	}
}

// All returns what Next does, one batch after the other, until ctx is done or the
// subscription is closed: then there is one more pair, with an error. The batch is
// overwritten in the next iteration.
func (s *Subscription) All(ctx context.Context) iter.Seq2[*Batch, error] {
	return func(yield func(*Batch, error) bool) {
		var b Batch
		for {
			err := s.Next(ctx, &b, replay.Budget{})
			if !yield(&b, err) || err != nil {
				return
			}
		}
	}
}

// Read is Next without waiting: it returns an empty batch if there is nothing. To
// serve thousands of subscriptions with a few goroutines, see [Arm].
func (s *Subscription) Read(b *Batch, max replay.Budget) error {
	t := s.topic.Load()
	if t == nil || t.hub.closed.Load() && t.hub.ctx.Err() != nil {
		b.clear(s.Position())
		return ErrClosed
	}
	b.Reset = nil
	if len(b.Ephemeral) > 0 {
		clear(b.Ephemeral)
		b.Ephemeral = b.Ephemeral[:0]
	}
	x := s.more.Load()
	if x == nil && t.ephemerals.Load() == 0 {
		if err := s.cursor.Read(&b.Batch, max); err != nil {
			return s.reset(t, b, max, err.(*replay.GapError))
		}
		return nil
	}
	if x == nil {
		x = s.extra()
	}
	t.ephemeral(x, b)
	if snap := x.snapshot.Load(); snap != nil {
		return s.readSnapshot(t, x, snap, b, max)
	}
	if err := s.cursor.Read(&b.Batch, max); err != nil {
		return s.reset(t, b, max, err.(*replay.GapError))
	}
	x.withhold(t, b)
	return nil
}

// withhold takes out of b what is not above the floor.
func (x *extra) withhold(t *topic, b *Batch) {
	n := 0
	for n < len(b.Entries) && b.Entries[n].Pos.Epoch == x.floor.Epoch && b.Entries[n].Pos.Seq <= x.floor.Seq {
		n++
	}
	if n == 0 {
		return
	}
	first := b.Entries[0].Pos.Seq
	b.Entries = slices.Delete(b.Entries, 0, n)
	switch {
	case b.Reset != nil && b.Reset.Missed > 0:
		b.Reset.Missed = x.floor.Seq - b.Reset.Want.Seq
	case b.Reset == nil && x.tell:
		t.hub.count.resets.Add(1)
		b.Reset = &Reset{Reason: ReasonFloor, Missed: x.floor.Seq - first + 1, Want: x.resumed, Head: b.Head}
	}
	x.tell = false
}

// clear makes b empty, at p.
func (b *Batch) clear(p replay.Position) {
	b.Reset = nil
	clear(b.Ephemeral)
	b.Ephemeral = b.Ephemeral[:0]
	b.clearEntries(p)
}

func (b *Batch) clearEntries(p replay.Position) {
	clear(b.Entries)
	b.Batch = replay.Batch{Entries: b.Entries[:0], To: p, Head: p}
}

// extra returns what few subscriptions need.
func (s *Subscription) extra() *extra {
	x := s.more.Load()
	if x == nil {
		x = &extra{done: make(chan struct{})}
		s.more.Store(x)
		if s.topic.Load() == nil { // Close may not have seen it
			x.end()
		}
	}
	return x
}

// reset moves the subscriber over a gap and puts a Reset into b, with what follows
// it; or has a snapshot made first.
func (s *Subscription) reset(t *topic, b *Batch, max replay.Budget, gap *replay.GapError) error {
	if s.over(t) { // the end is no gap
		b.clear(gap.Want)
		return ErrClosed
	}
	// A snapshot has what is below a floor, too.
	if x := s.more.Load(); t.hub.opts.Snapshot != nil && (x == nil || x.floor.IsZero()) {
		x = s.extra()
		x.want, x.tries = gap.Want, 0
		return s.waitForSnapshot(t, x, b, max)
	}
	s.cross(t, b, max, gap.Want, nil)
	return s.crossed(t, b, gap.Want)
}

// over reports whether the subscription or the Hub is closed.
func (s *Subscription) over(t *topic) bool {
	return t.hub.ctx.Err() != nil || s.topic.Load() == nil
}

// crossed is what Read returns after cross. The log of a topic that has ended is another
// one, and so a gap: but the topic ends only after the Hub or the subscription is closed.
func (s *Subscription) crossed(t *topic, b *Batch, want replay.Position) error {
	if s.over(t) {
		s.cursor.Seek(want) // see Position
		b.clear(want)
		return ErrClosed
	}
	if b.Reset != nil {
		t.hub.count.resets.Add(1)
	}
	if x := s.more.Load(); x != nil {
		x.withhold(t, b)
	}
	return nil
}

// cross moves the subscriber over the gap after want. It puts a Reset into b, and what
// follows it: everything that is left, or what follows the snapshot. The Reset says what is
// true now, because the history may have changed since the gap was found. If there is no
// gap any more then there is no Reset. It reports whether the snapshot can be used.
func (s *Subscription) cross(t *topic, b *Batch, max replay.Budget, want replay.Position, snap *snapshot) bool {
	for {
		s.cursor.Seek(want)
		err := s.cursor.Read(&b.Batch, max)
		if err == nil {
			return true
		}
		gap := err.(*replay.GapError)
		r := &Reset{Reason: gap.Reason, Want: gap.Want, Head: gap.Head, Missed: gap.Missed}
		from := gap.Oldest
		if snap != nil {
			from = snap.asOf
			if r.Snapshot = snap.data; r.Snapshot == nil {
				r.Snapshot = []byte{}
			}
		}
		s.cursor.Seek(from)
		if s.cursor.Read(&b.Batch, max) == nil {
			b.Reset = r
			return true
		}
		if snap != nil {
			return false
		}
		// The log has changed between the two reads.
	}
}

// ephemeral puts what x has not seen into b.
func (t *topic) ephemeral(x *extra, b *Batch) {
	n := t.ephemerals.Load()
	seen := x.seen.Load()
	if n == seen {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n = t.ephemerals.Load()
	t.pruneRecent()
	for i := range t.recent {
		if e := &t.recent[i]; e.n > seen {
			b.Ephemeral = append(b.Ephemeral, e.data)
		}
	}
	x.seen.Store(n)
}

// Arm has poller return the cursors of these subscriptions from Wait, each once, as
// soon as there is something to read, or the subscription is over: as
// [replay.Poller.Arm] does, which must not be used for them. It is known which they
// are by their [SubscribeOptions.Value]. So a few goroutines serve very many
// subscriptions, in each of which one is read, by Read, and armed again:
//
//	n, err := poller.Wait(ctx, ready)
//	for _, cursor := range ready[:n] {
//		client := cursor.Value.(*Client)
//		err := client.sub.Read(&batch, replay.Budget{})
//		// send the batch to the client
//		backplane.Arm(poller, client.sub)
//	}
//
// Those of one topic, one after the other, are cheaper to arm in one call.
func Arm(poller *replay.Poller, subs ...*Subscription) {
	var room [64]*replay.Cursor
	for len(subs) > 0 {
		n := min(len(subs), len(room))
		for i, s := range subs[:n] {
			room[i] = &s.cursor
		}
		poller.Arm(room[:n]...)
		for _, s := range subs[:n] {
			if s.news() {
				s.cursor.Wake()
			}
		}
		subs = subs[n:]
	}
}

// news reports whether there is something for the subscriber that is not in the
// log. It is called while the cursor is armed, and so possibly by another goroutine
// than the one that already reads: what it looks at is atomic.
func (s *Subscription) news() bool {
	t := s.topic.Load()
	if t == nil {
		return false
	}
	n := t.ephemerals.Load()
	x := s.more.Load()
	if x == nil {
		return n > 0 || t.hub.ctx.Err() != nil
	}
	snap := x.snapshot.Load()
	return n != x.seen.Load() || snap != nil && snap.done.Load() || t.hub.ctx.Err() != nil
}

// Position returns after which message the subscriber stands: what to remember
// for [SubscribeOptions.After]. It is for the goroutine that reads.
func (s *Subscription) Position() replay.Position {
	if x := s.more.Load(); x != nil && x.snapshot.Load() != nil {
		return x.want // the cursor waits elsewhere
	}
	return s.cursor.Position()
}

// Check reports whether the topic can be read after p as it is here and now: err is
// nil, or the [*replay.GapError] that a reader who stands there would meet. It also
// returns the topic's head. It is for whoever speaks for several readers, and does
// not read or move the subscription. After Close the error is [ErrClosed].
func (s *Subscription) Check(p replay.Position) (head replay.Position, err error) {
	t := s.topic.Load()
	if t == nil {
		return replay.Position{}, ErrClosed
	}
	var b replay.Batch
	err = t.log.After(p, &b, replay.Budget{Entries: 1})
	return b.Head, err
}

// Topic returns the name of the topic, or "" after Close.
func (s *Subscription) Topic() string {
	if t := s.topic.Load(); t != nil {
		return t.name
	}
	return ""
}

// Lag returns how many messages the subscriber has not read, and the sum of the
// lengths of their Data and Keys. It is for the goroutine that reads.
func (s *Subscription) Lag() (messages uint64, bytes int64) { return s.cursor.Lag() }

// Close ends the subscription. It may be called again, and by any goroutine: one
// that waits in Next then returns ErrClosed. It does not wait for that. It reports
// whether the subscription was armed, see [replay.Cursor.Close].
func (s *Subscription) Close() (armed bool) {
	t := s.topic.Swap(nil)
	if t == nil {
		return false
	}
	armed = s.cursor.Close()
	t.hub.leave(t)
	if x := s.more.Load(); x != nil {
		x.end()
	}
	return armed
}
