package client

import "time"

// A Trace has functions that are called at the events of a [Sessions] loop; those that are
// nil are not. They are called by the goroutine that runs the loop, one at a time, and the
// loop waits for them: they must not block. URLs have no query and no user information.
type Trace struct {
	// DialStart is called at the beginning of an attempt, before Limiter and Prepare.
	DialStart func(url string, attempt int)

	// DialDone is called at the end of an attempt. The error is nil, a [*DialError], or the
	// cause of the loop's context if that ended it.
	DialDone func(url string, attempt int, err error)

	// Up is called after the handshake, before the body of the loop.
	Up func(s *Session)

	// Down is called after a session. The error is why it ended: as it was given to Decide,
	// with whatever text the server has put into it, the cause of the loop's context if that
	// ended it, or nil if the loop was left. wait is the delay before the next dial; it is 0
	// also if there will be none.
	Down func(s *Session, err error, wait time.Duration)

	// Cut is called when a wait is cut short, by left, because the machine was suspended or
	// because a fresh connection was asked for.
	Cut func(left time.Duration)
}

func (t *Trace) dialStart(url string, attempt int) {
	if t.DialStart != nil {
		t.DialStart(url, attempt)
	}
}

func (t *Trace) dialDone(url string, attempt int, err error) {
	if t.DialDone != nil {
		t.DialDone(url, attempt, err)
	}
}

func (t *Trace) up(s *Session) {
	if t.Up != nil {
		t.Up(s)
	}
}

func (t *Trace) down(s *Session, err error, wait time.Duration) {
	if t.Down != nil {
		t.Down(s, err, wait)
	}
}

func (t *Trace) cut(left time.Duration) {
	if t.Cut != nil {
		t.Cut(left)
	}
}
