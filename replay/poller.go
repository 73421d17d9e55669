package replay

import (
	"context"
	"slices"
	"sync"
)

// A Poller tells which of very many cursors have something to read, so that a few
// goroutines can serve them all: an idle cursor costs no goroutine, no channel
// and no work, and an append makes all cursors of its log that had caught up
// ready in one step, however many they are.
//
//	for {
//		n, err := poller.Wait(ctx, ready)
//		if err != nil {
//			return err
//		}
//		for _, c := range ready[:n] {
//			if err := c.Read(&batch, replay.Budget{}); err != nil {
//				// tell c.Value that there is a gap, and c.Seek
//			}
//			// send the batch to c.Value
//		}
//		poller.Arm(ready[:n]...)
//	}
//
// A cursor that Wait has returned belongs to the caller and is not returned again
// until the caller arms it. So no two workers ever have the same cursor, and one
// that is busy writing to a slow connection simply arms it later.
//
// A cursor that is armed must not be read or moved. One whose reader leaves is to
// be closed, see [Cursor.Close].
//
// A Poller is safe for concurrent use. Make one with [NewPoller] for all cursors
// of a process, not one for each connection: an append goes through the pollers.
type Poller struct {
	wake chan struct{} // holds a token if there may be ready cursors and nobody looks

	mu    sync.Mutex // guards ready and the links of the cursors in it
	ready Cursor     // list of ready cursors, the longest ready first
}

// NewPoller returns a Poller without cursors.
func NewPoller() *Poller {
	p := &Poller{wake: make(chan struct{}, 1)}
	initList(&p.ready)
	return p
}

// Arm asks p to return each of the cursors from Wait, once, as soon as there is
// something for it to read, or a GapError, which may be now. (After a [Log.Reset]
// it may also turn out that there is nothing.) It passes over cursors that were
// closed, and panics if one of them is armed already. Several cursors of one log,
// one after the other, are cheaper to arm in one call.
func (p *Poller) Arm(cursors ...*Cursor) {
	ready := false
	defer func() {
		if ready {
			p.signal()
		}
	}()
	for len(cursors) > 0 {
		l := cursors[0].log
		l.mu.Lock()
		for len(cursors) > 0 && cursors[0].log == l {
			ready = p.arm(cursors[0]) || ready
			cursors = cursors[1:]
		}
		l.mu.Unlock()
	}
}

// arm parks c, or else puts it among the ready and returns true. The lock of c's
// log is held.
func (p *Poller) arm(c *Cursor) bool {
	switch {
	case c.park == &closed:
		return false
	case c.next != nil:
		c.log.mu.Unlock()
		panic("replay: Arm of a cursor that is armed")
	}
	if c.park == nil || c.park.poller != p || !c.park.listed {
		c.park = c.log.parking(p)
	}
	if c.pos == c.log.head {
		push(&c.park.cursors, c)
		return false
	}
	p.mu.Lock()
	push(&p.ready, c)
	p.mu.Unlock()
	return true
}

// Close takes the cursor out of its [Poller] for good: from now on it is not
// returned by Wait, and Arm passes over it. Close reports whether it was armed; if
// not, a worker may be busy with it, for the last time. A cursor that was armed,
// is no longer wanted and is not closed stays in memory until its log is written
// to. Without a Poller there is no need to close a cursor.
//
// Unlike all else that is done to a cursor, Close may be called from any
// goroutine at any time, and again.
func (c *Cursor) Close() bool {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	park := c.park
	c.park = &closed
	if park == nil || park == &closed {
		return false
	}
	park.poller.mu.Lock()
	defer park.poller.mu.Unlock()
	if c.next == nil {
		return false
	}
	unlink(c)
	return true
}

// Wake makes the cursor ready now if it is armed, though there is nothing to read,
// so that its worker looks at something else that has changed. It does nothing if
// the cursor is not armed: change what the worker is to see first, and have it
// look after it has armed the cursor.
//
// Like Close, Wake may be called from any goroutine at any time.
func (c *Cursor) Wake() {
	c.log.mu.Lock()
	park := c.park
	if park == nil || park == &closed {
		c.log.mu.Unlock()
		return
	}
	p := park.poller
	p.mu.Lock()
	armed := c.next != nil
	if armed && c.pos == c.log.head { // else it is ready anyway
		unlink(c)
		push(&p.ready, c)
	}
	p.mu.Unlock()
	c.log.mu.Unlock()
	if armed {
		p.signal()
	}
}

// closed is where closed cursors are parked: nowhere. It saves them a field.
var closed parking

// Wait waits until there are ready cursors, moves some of them into cursors, as
// many as there are and fit, and returns their number. Those that have been ready
// for longest come first. It returns 0 and the [context.Cause] of ctx when ctx is
// done. It panics if there is no room in cursors at all.
func (p *Poller) Wait(ctx context.Context, cursors []*Cursor) (int, error) {
	if len(cursors) == 0 {
		panic("replay: Wait without room for a cursor")
	}
	for {
		n := 0
		p.mu.Lock()
		if ctx.Err() != nil {
			// It may have been woken for a cursor, which another is to serve then.
			ready := p.ready.next != &p.ready
			p.mu.Unlock()
			if ready {
				p.signal()
			}
			return 0, context.Cause(ctx)
		}
		for n < len(cursors) && p.ready.next != &p.ready {
			cursors[n] = p.ready.next
			unlink(cursors[n])
			n++
		}
		more := p.ready.next != &p.ready
		p.mu.Unlock()
		if more {
			p.signal() // for the next worker
		}
		if n > 0 {
			return n, nil
		}
		select {
		case <-p.wake:
		case <-ctx.Done():
		}
	}
}

// signal wakes one goroutine that waits.
func (p *Poller) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// A parking holds the cursors of one log and one poller that have caught up. The
// log's lock guards it.
type parking struct {
	poller  *Poller
	cursors Cursor // a list
	listed  bool   // in the log's list; there is one at most for a poller
}

func (k *parking) empty() bool { return k.cursors.next == &k.cursors }

// parking returns where p's cursors are parked.
func (l *Log) parking(p *Poller) *parking {
	for _, k := range l.parked {
		if k.poller == p {
			return k
		}
	}
	k := &parking{poller: p, listed: true}
	initList(&k.cursors)
	l.parked = append(l.parked, k)
	return k
}

// unlockAndWake gives up the lock after a change that readers wait for, and wakes
// all of them.
func (l *Log) unlockAndWake() {
	if l.wake == nil && len(l.parked) == 0 {
		l.mu.Unlock()
		return
	}
	wake := l.wake
	l.wake = nil
	var room [4]*Poller
	pollers := room[:0]
	unused := false
	for _, k := range l.parked {
		if k.empty() {
			k.listed, unused = false, true
			continue
		}
		k.poller.mu.Lock()
		take(&k.poller.ready, &k.cursors)
		k.poller.mu.Unlock()
		pollers = append(pollers, k.poller)
	}
	if unused { // since the last wake; the poller may be gone
		l.parked = slices.DeleteFunc(l.parked, func(k *parking) bool { return !k.listed })
	}
	l.mu.Unlock()
	for _, p := range pollers {
		p.signal()
	}
	if wake != nil {
		close(wake)
	}
}

// Lists of cursors are rings with a cursor that is no reader as their ends, so
// that a cursor can be taken out without knowing which list it is in, and a whole
// list can be appended to another in one step. Package container/list can do
// neither without a separate element for each cursor.

// initList makes list the ends of an empty list.
func initList(list *Cursor) { list.next, list.prev = list, list }

// push appends c.
func push(list, c *Cursor) {
	c.prev, c.next = list.prev, list
	c.prev.next, c.next.prev = c, c
}

// unlink takes c out of its list.
func unlink(c *Cursor) {
	c.prev.next, c.next.prev = c.next, c.prev
	c.prev, c.next = nil, nil
}

// take appends all of other, which is not empty, and leaves it empty.
func take(list, other *Cursor) {
	first, last := other.next, other.prev
	first.prev, last.next = list.prev, list
	first.prev.next, list.prev = first, last
	initList(other)
}
