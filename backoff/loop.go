package backoff

import (
	"math"
	"time"
)

// A Loop paces the reconnects of one connection, over its whole life: call
// [Loop.Up] whenever a connection has been made, and [Loop.Down] whenever one
// was lost or an attempt to make one failed, then wait as long as Down says.
//
//	var pace backoff.Loop
//	for {
//		conn, err := dial(ctx)
//		if err == nil {
//			pace.Up()
//			err = serve(ctx, conn) // until the connection is lost
//		}
//		if err := backoff.Sleep(ctx, pace.Down()); err != nil {
//			return err
//		}
//	}
//
// The first dial is not delayed: nothing has been lost yet.
//
// The zero value is ready to use. A Loop is not safe for concurrent use: it
// belongs to the goroutine that reconnects. Do not copy one that is in use.
type Loop struct {
	// Policy gives the windows of the attempts. Its zero value is a good one.
	Policy Policy

	// First takes the place of Policy.Base, if it is longer, once there has been
	// an Up: it is the window of the first reconnect after a loss, and the
	// windows of further attempts grow from it. When one server restarts, another
	// is often up at once, and then this window alone decides how fast all its N
	// clients dial that one: N/First per second. Attempts before the first Up,
	// which no lost server has put in step, start from Policy.Base.
	//
	// Zero means DefaultFirst, negative none: then all windows are those of
	// Policy. A First above Policy.Cap counts as Cap.
	First time.Duration

	// Stable is how long a connection must have lasted for its loss to count as
	// the first failure again. A shorter one goes on where the attempts before
	// it stood, so that a server that accepts and then closes meets a growing
	// delay and not a hot loop. Zero means DefaultStable, negative that any
	// connection will do.
	Stable time.Duration

	failures int           // attempts and short connections since the last stable one
	since    time.Time     // of the last Up; zero when not connected
	everUp   bool          // from the first Up on, First counts
	hint     time.Duration // window for the next Down; 0 = none
}

// Up says that a connection has been made, and usable: after the handshake, and
// after the first message of the server where a protocol has one. Its duration
// counts from here.
func (l *Loop) Up() {
	l.since = time.Now()
	l.everUp = true
}

// Down says that the connection was lost, or that an attempt to connect has
// failed, and returns how long to wait before the next attempt. Without a hint
// that is at most Policy.Cap.
//
// When the answer to a failed attempt carried a Retry-After, wait for the longer
// of Down and [Policy.After].
func (l *Loop) Down() time.Duration {
	if !l.since.IsZero() {
		if time.Since(l.since) >= l.stable() {
			l.failures = 0
		}
		l.since = time.Time{}
	}
	n := l.failures
	l.failures++
	p := l.Policy
	if w := l.hint; w > 0 {
		l.hint = 0
		floor := max(0, min(p.Floor, p.limit()))
		return p.draw(floor, floor+min(w, math.MaxInt64-floor))
	}
	if l.everUp {
		p.Base = max(p.base(), l.first())
	}
	return p.Delay(n)
}

// Hint says that the server has asked its clients to come back spread over
// window, as in the goodbye of a server that shuts down. The next Down, and only
// that, is then a delay between 0 (or Policy.Floor) and window, drawn with full
// jitter in place of First. A server that knows how many clients it has and how
// many its neighbours can take makes a better choice than any client can.
//
// Zero or negative withdraws the hint. A window beyond [MaxHint], or beyond
// Policy.Cap if that is longer, counts as that maximum.
func (l *Loop) Hint(window time.Duration) {
	l.hint = min(max(0, window), max(l.Policy.limit(), MaxHint))
}

// first returns the effective First: 0 for none.
func (l *Loop) first() time.Duration {
	if l.First == 0 {
		return DefaultFirst
	}
	return max(0, l.First)
}

// stable returns the effective Stable.
func (l *Loop) stable() time.Duration {
	if l.Stable == 0 {
		return DefaultStable
	}
	return l.Stable
}
