package backplane

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/holdfast-ws/holdfast/replay"
)

// What the Hub does at the backplane, it does on these goroutines: up to maxWorkers
// that refresh topics, up to maxAdds that watch new topics and drop old ones, both
// only while there is something to do, and one that sweeps.

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
// while all calls of Add are under way go together into the next.
func (h *Hub) watchSoon(t *topic) {
	h.workMu.Lock()
	h.toWatch = append(h.toWatch, t)
	h.workMu.Unlock()
	h.watchNow()
}

// dropSoon has a topic no longer watched.
func (h *Hub) dropSoon(name string) {
	h.workMu.Lock()
	h.toDrop = append(h.toDrop, name)
	h.workMu.Unlock()
	h.watchNow()
}

// watchNow takes what is to be watched and dropped as far as that is possible: for
// one name, one thing after the other, in the order in which it was wanted. A topic
// whose Add has failed goes into a call of its own, so that it cannot fail others, and
// of these there are fewer at a time, so that they cannot hold up others.
func (h *Hub) watchNow() {
	h.workMu.Lock()
	defer h.workMu.Unlock()
	if h.ended {
		return
	}
	var drop []string
	h.toDrop = slices.DeleteFunc(h.toDrop, func(name string) bool {
		if !h.adding[name] {
			drop = append(drop, name)
		}
		return !h.adding[name]
	})
	for h.adds < maxAdds || len(drop) > 0 {
		var add []*topic
		alone := false
		if h.adds < maxAdds {
			h.toWatch = slices.DeleteFunc(h.toWatch, func(t *topic) bool {
				failed := t.addFailed.Load()
				if alone || h.adding[t.name] || len(add) >= maxWatch || failed && (len(add) > 0 || h.alone >= maxAdds/2) {
					return false
				}
				if alone = failed; failed {
					h.alone++
				}
				add = append(add, t)
				h.adding[t.name] = true
				return true
			})
		}
		if len(add) == 0 && len(drop) == 0 {
			return
		}
		h.adds++
		first := drop
		drop = nil
		for _, name := range first {
			h.adding[name] = true
		}
		h.spawn(func() { h.watch(first, add, alone) })
	}
}

// watch drops names and then adds topics.
func (h *Hub) watch(drop []string, topics []*topic, alone bool) {
	if len(drop) > 0 {
		h.watcher.Remove(drop...)
	}
	done := make([]string, 0, len(topics))
	var names []string
	for _, t := range topics {
		done = append(done, t.name)
		t.mu.Lock()
		if !t.ended {
			names = append(names, t.name)
		}
		t.mu.Unlock()
	}
	if len(names) > 0 {
		ctx, cancel := h.call()
		err := h.watcher.Add(ctx, names...)
		cancel()
		h.watched(topics, err)
	}
	h.workMu.Lock()
	h.adds--
	if alone {
		h.alone--
	}
	for _, name := range append(done, drop...) {
		delete(h.adding, name)
	}
	h.workMu.Unlock()
	h.watchNow()
}

// watched goes on with topics after a call of Add.
func (h *Hub) watched(topics []*topic, err error) {
	if err != nil {
		h.count.errors.Add(1)
		if h.ctx.Err() == nil {
			h.log.say(slog.LevelWarn, cannotWatch, err.Error(), "topic", topics[0].name, "topics", len(topics), "err", err)
		}
	}
	for _, t := range topics {
		t.mu.Lock()
		t.addFailed.Store(err != nil)
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
	var last time.Time
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
		case <-h.doubt:
			if h.header != nil && every > 0 { // else a sweep is a read of each topic, and that may be what has raised doubts
				next.Reset(max(0, time.Second-time.Since(last)))
			}
			continue
		}
		last = time.Now()
		if err := h.sweep(again); err != nil {
			h.count.errors.Add(1)
			if h.ctx.Err() == nil {
				h.log.say(slog.LevelWarn, cannotCompare, err.Error(), "err", err)
			}
			if failures++; again {
				next.Reset(min(pause(failures), spread()))
				continue
			}
		} else {
			if failures > 0 {
				h.log.over(cannotCompare)
				h.log.log.Info("heads can be compared again", "failures", failures)
			}
			failures, again = 0, false
		}
		next.Reset(spread())
	}
}

// sweep has those topics refreshed whose head is not that of the backplane; and at
// once, if it may have come back just now.
func (h *Hub) sweep(back bool) (err error) {
	if back && h.outbox != nil {
		h.outbox.hurry()
	}
	var joined []*topic
	h.mu.RLock()
	for _, t := range h.topics {
		joined = append(joined, t)
	}
	h.mu.RUnlock()
	n := 0
	for _, t := range joined {
		t.mu.Lock()
		t.pruneRecent()
		if back {
			t.hurry()
		}
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
		err = errors.Join(err, h.compare(joined[:n]))
		joined = joined[n:]
	}
	return err
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
	return !t.has(head) // it may have arrived meanwhile
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
