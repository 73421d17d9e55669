package backoff

import "time"

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

	failures int           // failed attempts and short connections since the last stable one
	goodbyes int           // hints since the last stable connection
	since    time.Time     // of the last Up; zero when not connected
	everUp   bool          // from the first Up on, First counts
	hint     time.Duration // the server's window since the last Up; 0 = none
	hinted   bool          // the next Down is to use hint itself
}

// keptHints is how many hints in a row count as they are. A client that has bad luck in a
// rolling restart meets several nodes that are about to restart, one after the other.
const keptHints = 4

// Up says that a connection has been made, and usable: after the handshake, and
// after the first message of the server where a protocol has one. Its duration
// counts from here. A hint that has not been used is forgotten.
func (l *Loop) Up() {
	l.since = time.Now()
	l.everUp = true
	l.hint, l.hinted = 0, false
}

// Down says that the connection was lost, or that an attempt to connect has
// failed, and returns how long to wait before the next attempt. Without a hint
// that is at most Policy.Cap.
//
// When the answer to a failed attempt carried a Retry-After, wait for the longer
// of Down and Policy.After(0, hint).
func (l *Loop) Down() time.Duration {
	if !l.since.IsZero() {
		if time.Since(l.since) >= l.stable() {
			l.failures, l.goodbyes = 0, 0
		}
		l.since = time.Time{}
	}
	p := l.Policy
	if l.everUp {
		p.Base = max(p.base(), l.first())
	}
	if l.hinted {
		l.hinted = false
		window := l.hint
		if l.goodbyes++; l.goodbyes > keptHints {
			_, usual := p.window(l.goodbyes - keptHints - 1)
			window = max(window, usual)
		}
		return p.drawOver(p.floor(), window)
	}
	p.Base = max(p.base(), l.hint)
	n := l.failures
	l.failures++
	return p.Delay(n)
}

// Hint says that the server has asked its clients to come back spread over
// window, as in the goodbye of a server that shuts down. Call it before the Down
// for that connection: that Down, and only that, is then a delay between Floor
// and Floor+window, drawn with full jitter in place of First, and does not count
// as a failure. A server that knows how many clients it has and how many its
// neighbours can take makes a better choice than any client can. Should that
// attempt fail, the windows of those that follow are not narrower, as far as Cap
// allows.
//
// The server's word counts, however short the connection was: in a rolling
// restart a client may come to a server that is the next to restart. But a server
// that accepts, says goodbye and closes cannot make its clients dial it all the
// time: the fifth hint without a stable connection since the first, and all that
// follow, widen windows and never narrow them, to those of a connection lost for the
// first time, the second time, and so on.
//
// Zero or negative withdraws the hint. A window beyond [MaxHint], or beyond
// Policy.Cap if that is longer, counts as that maximum.
func (l *Loop) Hint(window time.Duration) {
	l.hint = min(max(0, window), max(l.Policy.limit(), MaxHint))
	l.hinted = l.hint > 0
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
