package replay

import (
	"maps"
	"math/bits"
	"math/rand/v2"
	"sort"
	"sync"
	"time"
	"weak"
)

// A Log holds the newest entries of one topic, numbered without gaps, for any
// number of readers. Either it gives the numbers itself, in [Log.Append], or it
// follows a log whose numbers are given elsewhere, with [Log.Insert] and
// [Log.Reset]; a log is used in one of these ways, not in both.
//
// Make one with [New]. A Log is safe for concurrent use. It runs no goroutine and
// need not be closed: drop it when it is no longer wanted.
type Log struct {
	limits Limits
	born   time.Time

	// mu guards all below. It is held while a batch is copied, never while
	// somebody waits or is woken. A poller's lock may be taken under it.
	mu     sync.Mutex
	head   Position          // of the newest entry, stored or not
	n      int               // entries stored: those numbered head.Seq-n+1 to head.Seq
	ring   []Entry           // entry s is at s&(len-1); len is a power of two, or 0
	meta   []meta            // the same for what only the log needs to know
	bytes  int64             // sum of the sizes of the entries stored
	total  int64             // sum of the sizes of all entries ever added; may wrap
	newest map[string]uint64 // key to the number of the newest stored entry that has it
	timer  *time.Timer       // calls expire; nil until first needed
	armed  bool              // the timer is running
	clock  time.Time         // a recent time, see now
	wake   chan struct{}     // closed for those that wait in Next; nil if nobody does
	parked []*parking        // cursors that have caught up, by poller
}

// meta is what a log remembers of an entry beside the entry.
type meta struct {
	got    time.Duration // when, since the log was born
	before int64         // the log's total before it was added
	newer  uint64        // number of the next stored entry with the same key, or 0
}

// New returns an empty log with a random epoch.
func New(limits Limits) *Log {
	if limits.Entries == 0 {
		limits.Entries = DefaultEntries
	}
	if limits.Bytes == 0 {
		limits.Bytes = DefaultBytes
	}
	if limits.Age == 0 {
		limits.Age = DefaultAge
	}
	now := time.Now()
	return &Log{limits: limits, born: now, clock: now, head: newEpoch()}
}

// newEpoch returns the start of an epoch that nobody has seen before.
func newEpoch() Position {
	for {
		if e := rand.Uint64(); e != 0 {
			return Position{Epoch: e}
		}
	}
}

// Append gives a message the next number and a random tag and makes it the head.
// It returns the entry. The log keeps data as it is, without a copy: do not change
// it afterwards. Key may be empty.
//
// The only error is [ErrExhausted].
func (l *Log) Append(key string, data []byte) (e Entry, err error) {
	tag := rand.Uint32()
	l.mu.Lock()
	if l.head.Seq+1 == 0 {
		l.mu.Unlock()
		return e, ErrExhausted
	}
	e.At = l.now()
	e.Pos = Position{Epoch: l.head.Epoch, Seq: l.head.Seq + 1, Tag: tag}
	e.Prev, e.Key, e.Data = l.head.Tag, key, data
	l.add(&e, e.At.Sub(l.born))
	l.unlockAndWake()
	return e, nil
}

// Insert adds an entry that got its number elsewhere, if it is the next, and
// otherwise says how it stands to what the log has. Only with the verdict
// [Appended] has the log changed. The log keeps the data without a copy.
//
// Several entries, as from one page of the source, are inserted in one step, in
// which duplicates are passed over: readers are woken once. Insert stops at the
// first that is neither appended nor a duplicate, and returns its verdict; or else
// that of the last.
//
// A new log knows no epoch but its own: call [Log.Reset] first, with the position
// that the entries to be inserted will follow.
func (l *Log) Insert(entries ...Entry) (v Verdict) {
	l.mu.Lock()
	head := l.head
	v = l.insert(entries)
	if l.head == head {
		l.mu.Unlock()
	} else {
		l.unlockAndWake()
	}
	return v
}

// insert is Insert with the lock held.
func (l *Log) insert(entries []Entry) (v Verdict) {
	for i := range entries {
		if v = l.verdict(&entries[i]); v == Appended {
			l.add(&entries[i], l.now().Sub(l.born))
		} else if v != Duplicate {
			break
		}
	}
	return v
}

// verdict says what is to become of e.
func (l *Log) verdict(e *Entry) Verdict {
	switch {
	case e.Pos.Epoch != l.head.Epoch:
		return NewEpoch
	case e.Pos.Seq <= l.head.Seq:
		tag, ok := l.tag(e.Pos.Seq)
		switch {
		case !ok:
			return TooOld
		case tag == e.Pos.Tag:
			return Duplicate
		}
		return Forked
	case e.Pos.Seq != l.head.Seq+1:
		return Missing
	case e.Prev != l.head.Tag:
		return Forked
	}
	return Appended
}

// Reset drops all entries, and then inserts those given, which follow after. No
// reader sees a state in between: so a log that follows another is repaired, when
// that went back to an older state, without disturbing readers that this does not
// concern.
//
// Each reader finds out by its own position what the reset means for it: one that
// stands at after, or at an entry given, goes on without a gap, the others get a
// [GapError] when they next read. Reset returns the verdict of [Log.Insert] for
// the entries given, and Appended for none.
//
// A zero Epoch, as in the zero Position, stands for a new random epoch, which
// begins at number 0.
func (l *Log) Reset(after Position, entries ...Entry) Verdict {
	switch {
	case after.Epoch == 0:
		after = newEpoch()
	case after.Seq == 0:
		after.Tag = 0
	}
	l.mu.Lock()
	l.drop(l.n)
	l.head = after
	v := Appended
	if len(entries) > 0 {
		v = l.insert(entries)
	}
	l.shrink()
	l.unlockAndWake()
	return v
}

// Bounds returns the first and the last position that can be read after: oldest
// is the place before the oldest entry stored, and head the newest entry. They
// are equal when no entry is stored. The head stays known when its entry has been
// dropped.
func (l *Log) Bounds() (oldest, head Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last(l.n), l.head
}

// Last returns the position after which the newest n entries can be read, or as
// many as are stored. Last(0) is the head: reading after it gives only what is
// new. A negative n counts as 0.
func (l *Log) Last(n int) Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last(min(max(0, n), l.n))
}

// At returns the position of the entry with number seq of the current epoch, or
// false if it is neither stored nor the place before the oldest that is.
func (l *Log) At(seq uint64) (Position, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	tag, ok := l.tag(seq)
	if !ok {
		return Position{}, false
	}
	return Position{Epoch: l.head.Epoch, Seq: seq, Tag: tag}, true
}

// Wake wakes all readers as an append does, though there is nothing for them to
// read: so that they look at something else that has changed. See [Cursor.Ready];
// [Cursor.Next] goes on waiting.
func (l *Log) Wake() {
	l.mu.Lock()
	l.unlockAndWake()
}

// After reads the entries after p into b, as many as there are within the budget,
// and does not wait. When p is the head it reads none and returns nil.
//
// The only error is a [*GapError]; then b has no entries.
func (l *Log) After(p Position, b *Batch, max Budget) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.read(p, b, max, false)
}

// Tail reads the newest entries into b, as many as there are within the budget.
func (l *Log) Tail(b *Batch, max Budget) {
	l.mu.Lock()
	defer l.mu.Unlock()
	entries, bytes := max.limits()
	n := int(min(entries, uint64(l.n)))
	if bytes >= 0 && n > 1 { // one, and those before it that fit as well
		n = 1 + sort.Search(n-1, func(k int) bool {
			return l.total-l.meta[l.at(l.head.Seq-uint64(k)-1)].before > bytes
		})
	}
	held := b.reset(l.last(n), l.head)
	if n > 0 {
		l.readAll(b.To.Seq, b, entries, -1)
	}
	b.release(held)
}

// now returns the time, for half of what time.Now costs: it reads the wall clock
// only once a second.
func (l *Log) now() time.Time {
	d := time.Since(l.clock)
	if d > time.Second {
		l.clock = time.Now()
		return l.clock
	}
	return l.clock.Add(d)
}

// tag returns the tag of entry seq of this epoch, if it is known: that of an
// entry stored, or of the one before the oldest.
func (l *Log) tag(seq uint64) (uint32, bool) {
	switch behind := l.head.Seq - seq; {
	case behind == 0:
		return l.head.Tag, true
	case behind <= uint64(l.n):
		return l.ring[l.at(seq+1)].Prev, true
	}
	return 0, false
}

// at returns the index of entry seq in the ring.
func (l *Log) at(seq uint64) int { return int(seq & uint64(len(l.ring)-1)) }

// last returns the position before the newest n entries, where n <= l.n.
func (l *Log) last(n int) Position {
	seq := l.head.Seq - uint64(n)
	tag, _ := l.tag(seq)
	return Position{Epoch: l.head.Epoch, Seq: seq, Tag: tag}
}

// check returns nil if the entries after p can be read, and else why not.
func (l *Log) check(p Position) error {
	var reason Reason
	var missed uint64
	switch {
	case p.IsZero():
		reason = ReasonNone
	case p.Epoch != l.head.Epoch:
		reason = ReasonEpoch
	case p.Seq > l.head.Seq:
		reason = ReasonAhead
	default:
		tag, ok := l.tag(p.Seq)
		if ok && tag == p.Tag {
			return nil
		}
		reason = ReasonForked
		if !ok {
			reason = ReasonTrimmed
			missed = l.head.Seq - uint64(l.n) - p.Seq
		}
	}
	return &GapError{Reason: reason, Want: p, Oldest: l.last(l.n), Head: l.head, Missed: missed}
}

// read reads what follows p.
func (l *Log) read(p Position, b *Batch, max Budget, conflate bool) error {
	held := b.reset(p, l.head)
	if p == l.head {
		b.release(held)
		return nil
	}
	if err := l.check(p); err != nil {
		b.release(held)
		return err
	}
	entries, bytes := max.limits()
	if conflate {
		l.readNewest(p.Seq, b, entries, bytes)
	} else {
		l.readAll(p.Seq, b, entries, bytes)
	}
	b.release(held)
	return nil
}

// readAll copies entries after number seq in at most two runs.
func (l *Log) readAll(seq uint64, b *Batch, entries uint64, bytes int64) {
	n := min(entries, l.head.Seq-seq)
	from := l.at(seq + 1)
	start, end := l.meta[from].before, l.total
	if seq+n != l.head.Seq {
		end = l.meta[l.at(seq+n+1)].before
	}
	if bytes >= 0 && end-start > bytes {
		fit := uint64(1)
		for fit < n {
			i := l.at(seq + 1 + fit)
			if l.meta[i].before-start+l.ring[i].size() > bytes {
				break
			}
			fit++
		}
		n = fit
	}
	if end := from + int(n); end <= len(l.ring) {
		b.Entries = append(b.Entries, l.ring[from:end]...)
	} else {
		b.Entries = append(b.Entries, l.ring[from:]...)
		b.Entries = append(b.Entries, l.ring[:end-len(l.ring)]...)
	}
	b.To = b.Entries[n-1].Pos
}

// scanned is how many entries a conflating read looks at while it holds the lock.
const scanned = 1024

// readNewest copies entries after number seq, but none of those that a newer
// entry with the same key makes obsolete.
func (l *Log) readNewest(seq uint64, b *Batch, entries uint64, bytes int64) {
	spent := int64(0)
	end := seq + min(scanned, l.head.Seq-seq)
	for s := seq + 1; s-1 != end && uint64(len(b.Entries)) < entries; s++ {
		i := l.at(s)
		e := &l.ring[i]
		if l.meta[i].newer != 0 {
			b.Conflated++
		} else {
			spent += e.size()
			if bytes >= 0 && spent > bytes && len(b.Entries) > 0 {
				return
			}
			b.Entries = append(b.Entries, *e)
		}
		b.To = e.Pos
	}
}

// add makes e, which follows the head, the new head, and drops what is then
// beyond the limits.
func (l *Log) add(e *Entry, now time.Duration) {
	l.dropExpired(now)
	if l.n == l.limits.Entries {
		l.drop(1)
	}
	size := e.size()
	if limit := l.limits.Bytes; limit > 0 {
		for l.n > 0 && l.bytes+size > limit {
			l.drop(1)
		}
	}
	if l.n == len(l.ring) {
		l.resize(max(8, 2*l.n))
	}

	l.head = e.Pos
	l.n++
	i := l.at(e.Pos.Seq)
	l.ring[i] = *e
	l.meta[i] = meta{got: now, before: l.total}
	l.bytes += size
	l.total += size
	if e.Key != "" {
		if older, ok := l.newest[e.Key]; ok {
			l.meta[l.at(older)].newer = e.Pos.Seq
		} else if l.newest == nil {
			l.newest = map[string]uint64{}
		}
		l.newest[e.Key] = e.Pos.Seq
	}
	l.shrink()
	if !l.armed && l.limits.Age > 0 {
		l.arm(l.limits.Age)
	}
}

// drop drops the oldest k entries.
func (l *Log) drop(k int) {
	for range k {
		i := l.at(l.head.Seq - uint64(l.n) + 1)
		e := &l.ring[i]
		l.bytes -= e.size()
		if e.Key != "" && l.meta[i].newer == 0 {
			delete(l.newest, e.Key)
		}
		*e = Entry{} // lets go of its data
		l.n--
	}
}

// shrink gives memory back after entries were dropped.
func (l *Log) shrink() {
	switch {
	case l.n == 0:
		l.ring, l.meta, l.newest = nil, nil, nil
	case l.n <= len(l.ring)/4 && len(l.ring) > 8:
		l.resize(max(8, 2*l.n))
		if l.newest != nil { // maps do not shrink
			newest := make(map[string]uint64, len(l.newest))
			maps.Copy(newest, l.newest)
			l.newest = newest
		}
	}
}

// resize gives the ring room for the next power of two from room.
func (l *Log) resize(room int) {
	room = 1 << bits.Len(uint(room-1))
	old, oldMeta, mask := l.ring, l.meta, uint64(len(l.ring)-1)
	l.ring, l.meta = make([]Entry, room), make([]meta, room)
	for s := l.head.Seq - uint64(l.n) + 1; s-1 != l.head.Seq; s++ {
		l.ring[l.at(s)], l.meta[l.at(s)] = old[s&mask], oldMeta[s&mask]
	}
}

// dropExpired drops what is too old.
func (l *Log) dropExpired(now time.Duration) {
	if l.limits.Age < 0 {
		return
	}
	for l.n > 0 && now-l.meta[l.at(l.head.Seq-uint64(l.n)+1)].got >= l.limits.Age {
		l.drop(1)
	}
}

// arm has expire called after d.
func (l *Log) arm(d time.Duration) {
	l.armed = true
	if l.timer == nil {
		// Not the log itself: a dropped log would stay in memory until then.
		dropped := weak.Make(l)
		l.timer = time.AfterFunc(d, func() {
			if l := dropped.Value(); l != nil {
				l.expire()
			}
		})
	} else {
		l.timer.Reset(d)
	}
}

// expire runs on the timer's goroutine while entries are stored that have a
// greatest age. It does not run for each entry, but for all that have come of age
// in a 64th of that age.
func (l *Log) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now().Sub(l.born)
	l.dropExpired(now)
	l.shrink()
	l.armed = false
	if l.n > 0 {
		oldest := l.meta[l.at(l.head.Seq-uint64(l.n)+1)].got
		l.arm(max(oldest+l.limits.Age-now, l.limits.Age/64, time.Millisecond))
	}
}
