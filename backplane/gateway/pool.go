package gateway

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-ws/holdfast/replay"
)

// A pool is the goroutines that write to connections whose subscriptions have got
// something: as many as there are processors, and one more for each that is stuck in a
// write to a connection that takes nothing more at the moment.
//
// A write blocks its goroutine, and one cannot know before which will. So while any
// of them writes, a timer looks every few milliseconds who still writes what it wrote
// the last time. Such a one counts as stuck: another is started in its place, which
// also takes over what it had in hand. When it comes back it ends, if it is no
// longer needed.
type pool struct {
	g     *Gateway
	base  int
	timer *time.Timer
	armed atomic.Bool // the timer runs, or its function

	mu      sync.Mutex // guards workers and their seen and stuck
	workers map[*worker]struct{}
}

// look is how often it is looked whether a worker is stuck.
const look = 5 * time.Millisecond

type worker struct {
	turn atomic.Uint64 // counts connections begun and ended: odd while it writes to one

	seen  uint64 // turn at the last look
	stuck bool   // another was started in its place

	mu      sync.Mutex // guards hand
	hand    []*replay.Cursor
	storage [32]*replay.Cursor
}

func (p *pool) start(g *Gateway) {
	p.g, p.base, p.workers = g, runtime.GOMAXPROCS(0), map[*worker]struct{}{}
	p.timer = time.AfterFunc(time.Hour, p.check)
	p.timer.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for range p.base {
		p.add(nil)
	}
}

// add starts a worker that begins with what another had in hand. The lock is held.
func (p *pool) add(hand []*replay.Cursor) {
	w := &worker{hand: hand}
	p.workers[w] = struct{}{}
	p.g.wg.Go(func() { p.run(w) })
}

func (p *pool) size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.workers)
}

// stop makes sure that no worker is started any more, once the gateway's context is done.
func (p *pool) stop() {
	p.timer.Stop()
	p.mu.Lock() // a check that runs has not seen the context yet
	defer p.mu.Unlock()
}

// run is what a worker does.
func (p *pool) run(w *worker) {
	s := new(scratch)
	for {
		c := w.take()
		if c == nil {
			if !p.needed(w) {
				return
			}
			var ready [len(w.storage)]*replay.Cursor
			n, err := p.g.poller.Wait(p.g.ctx, ready[:])
			if err != nil {
				p.mu.Lock()
				delete(p.workers, w)
				p.mu.Unlock()
				return
			}
			w.mu.Lock()
			w.hand = append(w.storage[:0], ready[:n]...)
			w.mu.Unlock()
			continue
		}
		sub := c.Value.(*sub)
		if !sub.c.offer(sub) {
			continue
		}
		w.turn.Add(1)
		if !p.armed.Load() && p.armed.CompareAndSwap(false, true) {
			p.timer.Reset(look)
		}
		sub.c.flush(s, true)
		w.turn.Add(1)
	}
}

// take takes a cursor out of the worker's hand.
func (w *worker) take() *replay.Cursor {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.hand) == 0 {
		return nil
	}
	c := w.hand[0]
	w.hand[0] = nil
	w.hand = w.hand[1:]
	return c
}

// needed reports whether a worker that has nothing in hand is to go on.
func (p *pool) needed(w *worker) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.stuck = false
	free := 0
	for other := range p.workers {
		if !other.stuck {
			free++
		}
	}
	if free <= p.base {
		return true
	}
	delete(p.workers, w)
	return false
}

// check looks for workers that are stuck.
func (p *pool) check() {
	busy := false
	p.mu.Lock()
	if p.g.ctx.Err() != nil {
		p.mu.Unlock()
		return
	}
	var stuck []*worker
	free := 0
	for w := range p.workers {
		turn := w.turn.Load()
		writing := turn%2 == 1
		busy = busy || writing
		if writing && turn == w.seen {
			if !w.stuck {
				w.stuck = true
			}
			stuck = append(stuck, w)
		} else {
			w.stuck = false
			free++
		}
		w.seen = turn
	}
	for _, w := range stuck {
		w.mu.Lock()
		hand := append([]*replay.Cursor(nil), w.hand...)
		clear(w.hand)
		w.hand = nil
		w.mu.Unlock()
		if free < p.base || len(hand) > 0 {
			free++
			p.add(hand)
		}
	}
	p.mu.Unlock()
	if busy {
		p.timer.Reset(look)
		return
	}
	p.armed.Store(false)
	// Somebody may have begun since, and have found the timer armed.
	p.mu.Lock()
	for w := range p.workers {
		busy = busy || w.turn.Load()%2 == 1
	}
	p.mu.Unlock()
	if busy && p.armed.CompareAndSwap(false, true) {
		p.timer.Reset(look)
	}
}
