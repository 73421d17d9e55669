package backplane

import (
	"math/rand/v2"
	"time"

	"github.com/holdfast-ws/holdfast/replay"
)

// What the Hub does at the backplane, it does on these goroutines: up to maxWorkers
// that refresh topics, one that watches new topics and drops old ones, both only
// while there is something to do, and one that sweeps.

// readSoon has a worker refresh t. Its lock may be held.
func (h *Hub) readSoon(t *topic) {
	h.workMu.Lock()
	defer h.workMu.Unlock()
	h.work = append(h.work, t)
	if h.workers < maxWorkers && !h.ended {
		h.workers++
		h.spawn(h.worker)
	}
}

func (h *Hub) worker() {
	for {
		h.workMu.Lock()
		if len(h.work) == 0 || h.ended {
			h.work = nil
			h.workers--
			h.workMu.Unlock()
			return
		}
		t := h.work[0]
		h.work[0] = nil
		h.work = h.work[1:]
		h.workMu.Unlock()
		t.refresh()
	}
}

// watchSoon has t watched and then refreshed. Its lock may be held. Those that come
// while a call of Add is under way go together into the next.
func (h *Hub) watchSoon(t *topic) {
	h.workMu.Lock()
	defer h.workMu.Unlock()
	h.toWatch = append(h.toWatch, t)
	h.watchNow()
}

// dropSoon has a topic no longer watched.
func (h *Hub) dropSoon(name string) {
	h.workMu.Lock()
	defer h.workMu.Unlock()
	h.toDrop = append(h.toDrop, name)
	h.watchNow()
}

func (h *Hub) watchNow() {
	if !h.watches && !h.ended {
		h.watches = true
		h.spawn(h.watchLoop)
	}
}

func (h *Hub) watchLoop() {
	for {
		h.workMu.Lock()
		drop := h.toDrop
		h.toDrop = nil
		n := min(len(h.toWatch), maxWatch)
		add := h.toWatch[:n:n]
		if h.toWatch = h.toWatch[n:]; len(h.toWatch) == 0 {
			h.toWatch = nil
		}
		if n == 0 && len(drop) == 0 || h.ended {
			h.watches = false
			h.workMu.Unlock()
			return
		}
		h.workMu.Unlock()
		// In this order: a topic may have been dropped and wanted again.
		if len(drop) > 0 {
			h.watcher.Remove(drop...)
		}
		if n > 0 {
			h.watch(add)
		}
	}
}

func (h *Hub) watch(topics []*topic) {
	var names []string
	for _, t := range topics {
		t.mu.Lock()
		if !t.ended { // else it may have been removed already
			names = append(names, t.name)
		}
		t.mu.Unlock()
	}
	if len(names) == 0 {
		return
	}
	ctx, cancel := h.call()
	err := h.watcher.Add(ctx, names...)
	cancel()
	if err != nil {
		h.count.errors.Add(1)
		if h.ctx.Err() == nil {
			h.log.Warn("cannot watch topics", "topics", len(names), "first", names[0], "error", err)
		}
	}
	for _, t := range topics {
		t.mu.Lock()
		switch {
		case err != nil:
			t.retryLater()
		case !t.ended:
			t.watched = true
			t.failures = 0
			h.readSoon(t)
		}
		t.mu.Unlock()
	}
}

// sweepSoon has the sweeper begin anew.
func (h *Hub) sweepSoon() {
	select {
	case h.dirty <- struct{}{}:
	default:
	}
}

func (h *Hub) sweepLoop() {
	every := h.opts.Sweep
	spread := func() time.Duration {
		if every < 0 {
			return 1<<63 - 1
		}
		return every*3/4 + rand.N(every/2+1)
	}
	next := time.NewTimer(spread())
	defer next.Stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	failures, again := 0, false
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-tick.C:
			h.dropIdle()
			continue
		case <-next.C:
		case <-h.dirty:
			again = true // until it has succeeded
		}
		if err := h.sweep(); err != nil {
			h.count.errors.Add(1)
			if h.ctx.Err() == nil {
				h.log.Warn("cannot compare heads", "error", err, "failures", failures)
			}
			if failures++; again {
				next.Reset(min(pause(failures), spread()))
				continue
			}
		} else {
			failures, again = 0, false
		}
		next.Reset(spread())
	}
}

// sweep has those topics refreshed whose head is not that of the backplane.
func (h *Hub) sweep() error {
	var joined []*topic
	h.mu.RLock()
	for _, t := range h.topics {
		joined = append(joined, t)
	}
	h.mu.RUnlock()
	n := 0
	for _, t := range joined {
		t.mu.Lock()
		switch {
		case !t.joined:
			t.wanted = t.wanted || t.busy // the read under way may have come too early
		case h.header == nil:
			t.refreshSoon()
		default:
			joined[n] = t
			n++
		}
		t.mu.Unlock()
	}
	joined = joined[:n]
	for len(joined) > 0 {
		n := min(len(joined), maxHeads)
		if err := h.compare(joined[:n]); err != nil {
			return err
		}
		joined = joined[n:]
	}
	return nil
}

func (h *Hub) compare(topics []*topic) error {
	names := make([]string, len(topics))
	had := make([]replay.Position, len(topics)) // before asking: a backplane that is behind it has gone back
	for i, t := range topics {
		names[i] = t.name
		_, had[i] = t.log.Bounds()
	}
	ctx, cancel := h.call()
	defer cancel()
	heads, err := h.header.Heads(ctx, names)
	if err != nil {
		return err
	}
	for i, t := range topics {
		if i < len(heads) && !t.differs(had[i], heads[i]) {
			continue
		}
		t.mu.Lock()
		t.refreshSoon()
		t.mu.Unlock()
	}
	return nil
}

// differs reports whether the log has to be refreshed, that had one head before
// that of the backplane was found to be another.
func (t *topic) differs(had, head replay.Position) bool {
	switch {
	case head == had:
		return false
	case head.Epoch != had.Epoch || head.Seq <= had.Seq:
		return true
	}
	return t.gap(head) != nil // nil if it has arrived meanwhile
}

// dropIdle ends topics that nobody has wanted for a while.
func (h *Hub) dropIdle() {
	var idle []*topic
	h.mu.Lock()
	for name, t := range h.topics {
		if t.subs == 0 && time.Since(t.idle) >= h.opts.Linger {
			delete(h.topics, name)
			h.dropSoon(name)
			idle = append(idle, t)
		}
	}
	h.mu.Unlock()
	for _, t := range idle {
		t.end()
	}
}
