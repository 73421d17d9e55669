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
// A Poller is safe for concurrent use. Make one with [NewPoller] and keep it.
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
// it may also turn out that there is nothing.) It panics if one of them is armed
// already. Several cursors of one log, one after the other, are cheaper to arm in
// one call.
func (p *Poller) Arm(cursors ...*Cursor) {
	ready := false
	for len(cursors) > 0 {
		l := cursors[0].log
		l.mu.Lock()
		for len(cursors) > 0 && cursors[0].log == l {
			ready = p.arm(cursors[0]) || ready
			cursors = cursors[1:]
		}
		l.mu.Unlock()
	}
	if ready {
		p.signal()
	}
}

// arm parks c, or else puts it among the ready and returns true. The lock of c's
// log is held.
func (p *Poller) arm(c *Cursor) bool {
	if c.next != nil {
		c.log.mu.Unlock()
		panic("replay: Arm of a cursor that is armed")
	}
	c.poller = p
	if c.pos == c.log.head {
		push(&c.log.parking(p).cursors, c)
		return false
	}
	p.mu.Lock()
	push(&p.ready, c)
	p.mu.Unlock()
	return true
}

// Disarm takes back an Arm and reports whether it came in time. If not, then c is
// not armed, or Wait has already returned it to somebody. A cursor that is no
// longer wanted has to be disarmed, or else it stays in memory until its log is
// written to or dropped.
//
// Unlike all else that is done to a cursor, it may be called from any goroutine.
func (p *Poller) Disarm(c *Cursor) bool {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	if c.poller != p {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.next == nil {
		return false
	}
	unlink(c)
	return true
}

// Wait waits until there are ready cursors, moves some of them into cursors, as
// many as there are and fit, and returns their number. Those that have been ready
// for longest come first. It returns 0 and the [context.Cause] of ctx when ctx is
// done. It panics if there is no room in cursors at all.
func (p *Poller) Wait(ctx context.Context, cursors []*Cursor) (int, error) {
	if len(cursors) == 0 {
		panic("replay: Wait without room for a cursor")
	}
	for {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		n := 0
		p.mu.Lock()
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

// A parking holds the cursors of one log and one poller that have caught up.
type parking struct {
	poller  *Poller
	cursors Cursor // a list; guarded by the log's lock
}

// parking returns where p's cursors are parked.
func (l *Log) parking(p *Poller) *parking {
	for _, k := range l.parked {
		if k.poller == p {
			return k
		}
	}
	l.parked = slices.DeleteFunc(l.parked, (*parking).empty) // of pollers that are gone
	k := &parking{poller: p}
	initList(&k.cursors)
	l.parked = append(l.parked, k)
	return k
}

func (k *parking) empty() bool { return k.cursors.next == &k.cursors }

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
	for _, k := range l.parked {
		if !k.empty() {
			k.poller.mu.Lock()
			take(&k.poller.ready, &k.cursors)
			k.poller.mu.Unlock()
			pollers = append(pollers, k.poller)
		}
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
