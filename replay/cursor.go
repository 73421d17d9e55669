package replay

import (
	"context"
	"sort"
)

// A Lag is how far a cursor may fall behind the head of its log. It counts
// entries that are still stored; what the log drops is a [GapError] in any case.
type Lag struct {
	// Entries is the greatest number of unread entries. Zero and negative mean
	// no limit.
	Entries int

	// Bytes is the greatest sum of the lengths of unread Data and Keys. Zero and
	// negative mean no limit.
	Bytes int64

	// Conflate chooses what happens to a cursor over the limit. By default it
	// gets a GapError with ReasonLagging, until it is moved by [Cursor.Seek]; the
	// error's Oldest is then the furthest place back that the limit allows. With
	// Conflate it reads on, but is not given entries for which a newer one with
	// the same Key is stored: a reader of prices that cannot follow each change
	// gets the latest price of everything. Entries with an empty Key are all
	// given. Batch.Conflated counts those left out.
	Conflate bool
}

// over reports whether the limit is exceeded.
func (lag *Lag) over(entries uint64, bytes int64) bool {
	return lag != nil && (lag.Entries > 0 && entries > uint64(lag.Entries) || lag.Bytes > 0 && bytes > lag.Bytes)
}

// A Cursor is one reader of a log. It is a position and little more: a slow
// reader costs nothing but the entries that the log stores anyway.
//
// A cursor belongs to one goroutine at a time; different cursors of a log may be
// used at the same time. It need not be closed, but with a [Poller].
type Cursor struct {
	// Value is the caller's, to find what belongs to a cursor that
	// [Poller.Wait] returns.
	Value any

	log *Log
	pos Position
	lag *Lag

	park       *parking // of the poller it was last armed with; &closed for good
	next, prev *Cursor  // in a list of parked or ready cursors; nil while not armed
}

// Cursor returns a reader that goes on after from: with what is stored if that is
// in the past, and then with what is appended, by the same call. See [Log.Last]
// and [Log.Bounds] for where to begin without a position. Whether from can be
// read after is not checked here, but by the first read.
//
// Lag may be nil for no limit. It may be shared by many cursors, and must not be
// changed afterwards.
func (l *Log) Cursor(from Position, lag *Lag) *Cursor {
	return &Cursor{log: l, pos: from, lag: lag}
}

// Next waits until there is something to read and reads it into b, as much as
// there is within the budget.
//
// It returns a [*GapError] if the reader cannot go on where it stands; again and
// again, until [Cursor.Seek] moves it. It returns the [context.Cause] of ctx
// when ctx is done. Then b has no entries and the cursor has not moved.
func (c *Cursor) Next(ctx context.Context, b *Batch, max Budget) error {
	for {
		if ctx.Err() != nil {
			_, head := c.log.Bounds()
			b.release(b.reset(c.pos, head))
			return context.Cause(ctx)
		}
		c.log.mu.Lock()
		if err := c.read(b, max); err != nil || len(b.Entries) > 0 {
			c.log.mu.Unlock()
			return err
		}
		if b.To != b.Head { // it got past obsolete entries only
			c.log.mu.Unlock()
			continue
		}
		if c.log.wake == nil {
			c.log.wake = make(chan struct{})
		}
		wake := c.log.wake
		c.log.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
		}
	}
}

// Ready returns a channel that is closed as soon as there may be something to
// read: at once if there is, and else at the next change of the log or call of
// [Log.Wake]. It is for waiting for a cursor and for something else in one select:
// call Ready, then Read, and wait only if that had nothing.
func (c *Cursor) Ready() <-chan struct{} {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	if c.pos != c.log.head {
		return readyNow
	}
	if c.log.wake == nil {
		c.log.wake = make(chan struct{})
	}
	return c.log.wake
}

// readyNow is closed.
var readyNow = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Read is [Cursor.Next] without waiting: b has no entries, and To is equal to
// Head, if there is nothing to read. A read that conflates may also return without
// entries when it has only got past some that are obsolete; then To differs from
// Head.
func (c *Cursor) Read(b *Batch, max Budget) error {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	return c.read(b, max)
}

// read reads with the log's lock held.
func (c *Cursor) read(b *Batch, max Budget) error {
	over := false
	if c.lag != nil {
		over = c.lag.over(c.log.lag(c.pos))
	}
	if over && !c.lag.Conflate {
		b.release(b.reset(c.pos, c.log.head))
		return c.within(&GapError{Reason: ReasonLagging, Want: c.pos, Oldest: c.pos, Head: c.log.head})
	}
	err := c.log.read(c.pos, b, max, over)
	c.pos = b.To
	if gap, ok := err.(*GapError); ok && c.lag != nil && !c.lag.Conflate {
		return c.within(gap)
	}
	return err
}

// within moves the Oldest of a gap to where the limit of the lag allows, so that
// a reader that goes on from there can go on.
func (c *Cursor) within(gap *GapError) error {
	l := c.log
	oldest := l.head.Seq - uint64(l.n)
	if gap.Oldest.Epoch == l.head.Epoch {
		oldest = max(oldest, gap.Oldest.Seq)
	}
	behind := int(l.head.Seq - oldest)
	allowed := sort.Search(behind+1, func(k int) bool { // the first k that is too far behind
		p := l.last(k)
		return c.lag.over(l.lag(p))
	})
	if allowed--; allowed < behind {
		gap.Oldest = l.last(allowed)
		if gap.Reason == ReasonTrimmed || gap.Reason == ReasonLagging {
			gap.Missed = gap.Oldest.Seq - gap.Want.Seq
		}
	}
	return gap
}

// Position returns where the cursor stands: after the last entry it has read.
func (c *Cursor) Position() Position { return c.pos }

// Seek moves the cursor, so that it goes on after p.
func (c *Cursor) Seek(p Position) { c.pos = p }

// Lag returns how many entries that are stored the cursor has not read, and the
// sum of the lengths of their Data and Keys. Both are 0 while it stands where it
// cannot be read.
func (c *Cursor) Lag() (entries uint64, bytes int64) {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	return c.log.lag(c.pos)
}

// lag returns the entries stored after p, and their size.
func (l *Log) lag(p Position) (entries uint64, bytes int64) {
	if p == l.head || l.check(p) != nil {
		return 0, 0
	}
	return l.head.Seq - p.Seq, l.total - l.meta[l.at(p.Seq+1)].before
}
