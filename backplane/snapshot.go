package backplane

import (
	"context"
	"log/slog"
	"sync/atomic"

	"github.com/holdfast-ws/holdfast/replay"
)

// A snapshot is one call of Options.Snapshot, for all who need one meanwhile.
type snapshot struct {
	head replay.Position // of the topic before the call: nothing can fall in between
	done atomic.Bool     // what follows is set
	data []byte
	asOf replay.Position
	err  error
}

// maxSnapshots is how many are made for one Reset, if the topic moves on so fast
// that what follows a snapshot is gone before it is there.
const maxSnapshots = 3

// waitForSnapshot has a subscriber wait for a snapshot that is being made, or one
// that is made for it.
func (s *Subscription) waitForSnapshot(t *topic, x *extra, b *Batch, max replay.Budget) error {
	x.tries++
	t.mu.Lock()
	snap := t.snap
	if snap == nil {
		_, head := t.log.Bounds()
		snap = &snapshot{head: head}
		t.snap = snap
		t.hub.workMu.Lock()
		t.hub.spawn(func() { t.take(snap) })
		t.hub.workMu.Unlock()
	}
	t.mu.Unlock()
	x.snapshot.Store(snap)
	return s.readSnapshot(t, x, snap, b, max)
}

func (t *topic) take(snap *snapshot) {
	ctx, cancel := context.WithTimeout(t.hub.ctx, callTimeout)
	defer cancel()
	snap.data, snap.asOf, snap.err = t.hub.opts.Snapshot(ctx, t.name, snap.head)
	if snap.err != nil {
		t.hub.log.say(slog.LevelWarn, "no snapshot", snap.err.Error(), "topic", t.name, "err", snap.err)
	}
	if snap.asOf.IsZero() {
		snap.asOf = snap.head
	}
	if snap.err == nil {
		t.reach(ctx, snap.asOf)
	}
	t.mu.Lock()
	t.snap = nil // who needs one from now on gets another
	t.mu.Unlock()
	snap.done.Store(true)
	t.log.Wake()
}

// reach waits for a read if p is ahead of the log: this node may not have been told
// yet of a message that is in the snapshot.
func (t *topic) reach(ctx context.Context, p replay.Position) {
	w := &want{after: p, done: make(chan struct{})}
	t.mu.Lock()
	if gap := t.gap(p); gap == nil || gap.Reason != replay.ReasonAhead {
		t.mu.Unlock()
		return
	}
	t.waiting = append(t.waiting, w)
	t.refreshSoon()
	t.mu.Unlock()
	select {
	case <-w.done:
	case <-ctx.Done():
		t.forget(w)
	}
}

// readSnapshot gives the subscriber the snapshot it waits for, and what follows.
func (s *Subscription) readSnapshot(t *topic, x *extra, snap *snapshot, b *Batch, max replay.Budget) error {
	if !snap.done.Load() {
		_, head := t.log.Bounds()
		s.cursor.Seek(head) // not to be woken for nothing
		b.clearEntries(x.want)
		return nil
	}
	if snap.err != nil {
		s.cross(t, b, max, x.want, nil)
	} else if !s.cross(t, b, max, x.want, snap) {
		if x.tries < maxSnapshots {
			return s.waitForSnapshot(t, x, b, max)
		}
		t.hub.log.say(slog.LevelWarn, "a snapshot is of a state that the topic's messages do not follow", "", "topic", t.name)
		s.cross(t, b, max, x.want, nil)
	}
	x.snapshot.Store(nil)
	return s.crossed(t, b, x.want)
}
