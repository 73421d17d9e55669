package gateway

import (
	"context"
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
// takes over what it had in hand. If all get stuck at once, twice as many are started,
// and so on. When one comes back it ends, if it is no longer needed.
type pool struct {
	g     *Gateway
	base  int
	timer *time.Timer
	armed atomic.Bool // the timer runs, or its function

	mu      sync.Mutex // guards all below, and the workers' seen and stuck
	workers map[*worker]struct{}
	want    int             // that many are to be free
	calm    int             // looks since one has got stuck
	idle    context.Context // of those that wait for work; renewed to have them look whether they are needed
	recall  context.CancelFunc
}

// maxFree bounds how many workers there are that are not stuck.
const maxFree = 256

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
	p.want = p.base
	p.idle, p.recall = context.WithCancel(g.ctx)
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
	p.recall()
}

// run is what a worker does.
func (p *pool) run(w *worker) {
	s := new(scratch)
	for {
		c := w.take()
		if c == nil {
			idle := p.needed(w)
			if idle == nil {
				return
			}
			var ready [len(w.storage)]*replay.Cursor
			n, err := p.g.poller.Wait(idle, ready[:])
			if err != nil {
				continue
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
		s.trim()
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

// needed returns the context for a worker to wait with that has nothing in hand, or nil if
// it is to end.
func (p *pool) needed(w *worker) context.Context {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.stuck = false
	free := 0
	for other := range p.workers {
		if !other.stuck {
			free++
		}
	}
	if free <= p.want && p.g.ctx.Err() == nil {
		return p.idle
	}
	delete(p.workers, w)
	return nil
}

// check looks for workers that are stuck, and starts others.
func (p *pool) check() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.g.ctx.Err() != nil {
		return
	}
	busy, free, fresh := false, 0, 0
	var loose []*replay.Cursor
	for w := range p.workers {
		turn := w.turn.Load()
		writing := turn%2 == 1
		busy = busy || writing
		if !writing || turn != w.seen {
			w.seen, w.stuck = turn, false
			free++
			continue
		}
		if !w.stuck {
			w.stuck = true
			fresh++
		}
		loose = append(loose, w.drop()...)
	}
	// When all that were free have got stuck, very many connections may be so, each of
	// which holds up one more: they are looked for twice as fast.
	p.calm++
	if fresh > 0 {
		p.calm = 0
	}
	if free == 0 && fresh > 0 {
		p.want = min(2*p.want, maxFree)
	}
	start := max(0, p.want-free)
	if start == 0 && len(loose) > 0 {
		start = 1
	}
	for ; start > 0; start-- {
		share := (len(loose) + start - 1) / start
		p.add(loose[:share:share])
		loose = loose[share:]
	}
	if p.calm >= 20 {
		p.shrink()
	}
	if busy {
		p.timer.Reset(look)
		return
	}
	p.armed.Store(false)
	// Somebody may have begun since, and have found the timer armed.
	for w := range p.workers {
		busy = busy || w.turn.Load()%2 == 1
	}
	if busy && p.armed.CompareAndSwap(false, true) {
		p.timer.Reset(look)
	}
	if !busy {
		p.shrink()
	}
}

// shrink has workers end that are no longer needed. The lock is held.
func (p *pool) shrink() {
	p.calm, p.want = 0, p.base
	free := 0
	for w := range p.workers {
		if !w.stuck {
			free++
		}
	}
	if free > p.base {
		p.recall()
		p.idle, p.recall = context.WithCancel(p.g.ctx)
	}
}

// drop takes all out of the worker's hand.
func (w *worker) drop() []*replay.Cursor {
	w.mu.Lock()
	defer w.mu.Unlock()
	hand := append([]*replay.Cursor(nil), w.hand...)
	clear(w.hand)
	w.hand = nil
	return hand
}
