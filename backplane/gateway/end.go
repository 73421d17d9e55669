package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/heartbeat"
	"github.com/holdfast-ws/holdfast/internal/wire"
)

// A cause is why a connection ends. There is one for each connection: the first, because
// what happens afterwards mostly follows from it.
type cause struct {
	how    how
	code   int    // of the close frame, or that would say it; or 0
	reason string // goes with the code
	err    error  // what a call has returned, if that says more
}

// A how is which of Stats counts an end.
type how int

const (
	endClosed how = iota // by the server: a logout, a drain, a frame that is none
	endLeft              // the client has closed it
	endLost              // the network has ended it
	endSlow              // the client took nothing more
	endDead              // the heartbeat has ended it
	ways
)

func (h how) String() string {
	return [...]string{"closed by the server", "closed by the client", "lost", "slow", "found dead"}[h]
}

// Error is what Trace.Disconnected is told.
func (e *cause) Error() string { return "gateway: " + e.how.String() + ": " + e.detail() }

func (e *cause) Unwrap() error {
	if e.code != 0 {
		return websocket.CloseError{Code: websocket.StatusCode(e.code), Reason: e.reason}
	}
	return e.err
}

func (e *cause) detail() string {
	switch {
	case e.err != nil:
		return e.err.Error()
	case e.code != 0:
		return strings.TrimSpace(fmt.Sprintf("%d %s", e.code, e.reason))
	}
	return e.reason
}

// blame notes a cause, unless there was one before.
func (c *conn) blame(e cause) {
	if v, ok := c.verdict(); ok { // the heartbeat closes the connection, and others find out by that
		e = cause{how: endDead, reason: string(v.Reason)}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause == nil {
		c.cause = &e
	}
}

func (c *conn) tooSlow() cause {
	return cause{how: endSlow, code: wire.CloseSlow, reason: fmt.Sprintf("took nothing more for %v (gateway.Limits.Write)", c.g.opts.Limits.Write)}
}

func (c *conn) verdict() (heartbeat.Verdict, bool) {
	if c.peer == nil {
		return heartbeat.Verdict{}, false
	}
	return c.peer.Verdict()
}

// kill ends a connection that cannot be written to.
func (c *conn) kill(err error) {
	if c.dead.Swap(true) {
		return
	}
	if isTimeout(err) {
		c.blame(c.tooSlow())
	} else {
		c.blame(cause{how: endLost, err: err})
	}
	c.mu.Lock()
	n := c.net
	c.mu.Unlock()
	if n != nil {
		n.Close()
	}
}

// finish ends a connection for good: it is called by the goroutine that reads, when it
// does so no longer.
func (c *conn) finish(err error) {
	g := c.g
	e := cause{how: endLost, err: err}
	var frame websocket.CloseError
	switch {
	case errors.As(err, &frame):
		e = cause{how: endLeft, code: int(frame.Code), reason: frame.Reason}
	case errors.Is(err, errPanic):
		e.how = endClosed
	case c.net != nil && c.net.late.Load(): // with a pong
		e = c.tooSlow()
	case errors.Is(err, context.DeadlineExceeded):
		e = cause{how: endSlow, code: wire.CloseSlow, reason: "a ping could not be read and answered within 5s"} // the library's
	case c.net != nil && c.net.goodbye() != 0: // the library's, which does not like what has come
		e = cause{how: endClosed, code: c.net.goodbye(), reason: err.Error()}
	}
	c.blame(e)
	c.mu.Lock()
	c.ended = true
	subs, closing, why := c.subs, c.closing, c.cause
	c.subs, c.ready = nil, nil
	c.forget()
	c.calm()
	c.mu.Unlock()
	for _, s := range subs {
		s.close()
	}
	if c.peer != nil {
		c.peer.Stop()
	}
	if c.ws != nil {
		if (closing != 0 || c.net.goodbye() != 0) && !c.dead.Load() {
			c.linger()
		}
		c.dead.Store(true)
		c.ws.CloseNow()
		g.count.ends[why.how].Add(1)
		c.report(why)
	}
	g.remove(c)
	if c.greeted {
		g.trace.Disconnected(c.info(), why)
	}
}

// report writes a connection's end to the log.
func (c *conn) report(e *cause) {
	args := []any{"conn", c.id, "user", clean(c.user), "how", e.how.String()}
	if e.code != 0 {
		args = append(args, "code", e.code)
	}
	if e.reason != "" {
		args = append(args, "reason", quoted(e.reason, 123)) // as long as that of a close frame
	}
	if !c.since.IsZero() {
		args = append(args, "lasted", time.Since(c.since).Round(time.Millisecond))
	}
	if v, ok := c.verdict(); ok {
		args = append(args, "silent", v.Silent.Round(time.Millisecond), "rtt", v.RTT.Round(time.Millisecond))
	}
	if e.err != nil {
		args = append(args, "err", quoted(e.err.Error(), maxError))
	}
	switch {
	case e.how == endSlow || e.how == endDead:
		c.g.note(info, "connection dropped", args...)
	case !c.greeted:
		c.g.log.Debug("not welcomed", args...)
	default:
		c.g.log.Debug("disconnected", args...)
	}
}

// limit tells the log that a limit is in a client's way, the first time on this connection,
// and returns what names it, for the client. It is for the goroutine that reads.
func (c *conn) limit(option string, limit any) string {
	option = "gateway.Limits." + option
	c.hold(option, "limit", limit, "option", option)
	return fmt.Sprintf("%v, %s", limit, option)
}

// hold tells the log of a limit, what names it, once on this connection. It is for the goroutine
// that reads.
func (c *conn) hold(name string, args ...any) {
	if c.hit[name] {
		return
	}
	if c.hit == nil {
		c.hit = map[string]bool{}
	}
	c.hit[name] = true
	c.g.note(info, "a limit holds up a client", append(args, "conn", c.id, "user", clean(c.user))...)
}

// lingering is how long a connection that we have closed waits for the client to close
// it, too.
const lingering = time.Second

// linger reads what is still coming, for nothing: closing a connection that has unread
// data resets it, and the client might then never see what it was closed for.
func (c *conn) linger() {
	c.net.SetReadDeadline(time.Now().Add(lingering))
	b := make([]byte, 512)
	for {
		n, err := c.net.Read(b)
		if err != nil || n > 0 && b[0] == final|opClose {
			return
		}
	}
}
