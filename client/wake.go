package client

import "time"

const (
	// wakeEvery is how often a wait looks at the wall clock. Timers run on the monotonic
	// clock, which stops while the machine is suspended: a laptop that is opened again
	// would otherwise sit out the rest of a wait that ended hours ago.
	wakeEvery = 5 * time.Second

	// asleep is how far the wall clock must have run ahead to mean a suspension. Less
	// is a clock that is being set.
	asleep = 2 * time.Second

	// wakeSpread spreads the dials of machines that were suspended together, as virtual
	// machines are.
	wakeSpread = time.Second
)

// A wakeWatch compares the two clocks.
type wakeWatch struct {
	mono, wall time.Time
}

// away returns for how long the machine was suspended since the last call, and 0 if it was
// not. The wall clock is passed apart, and without its monotonic part.
func (w *wakeWatch) away(mono, wall time.Time) time.Duration {
	away := wall.Sub(w.wall) - mono.Sub(w.mono)
	first := w.mono.IsZero()
	w.mono, w.wall = mono, wall
	if first || away <= asleep {
		return 0
	}
	return away
}
