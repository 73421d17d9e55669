package heartbeat

import (
	"context"
	"fmt"
	"time"
)

// What zero fields of [Config] stand for.
const (
	DefaultInterval = 25 * time.Second
	DefaultTimeout  = 10 * time.Second
	DefaultMaxPings = 100
)

// Bounds of what can be configured.
const (
	tick        = 50 * time.Millisecond
	minInterval = 20 * tick // a second
	maxInterval = time.Hour
	minTimeout  = 5 * tick

	// maxSleep is how long the scheduler may sleep: a timer does not run while
	// the machine is suspended, and that it was is to be noticed soon.
	maxSleep = 5 * time.Second

	// minAge is how long a peer is left alone at first: a ping that arrives in
	// one segment with the answer to the handshake confuses some clients.
	minAge = 4 * tick

	// excuses is how often in a row a probe is sent again, instead of a verdict,
	// while our own side is the reason that no answer could be seen.
	excuses = 3
)

// A Conn is a connection that can be probed and dropped. *websocket.Conn of
// github.com/coder/websocket is one; for all others there is [Funcs].
type Conn interface {
	// Ping sends something that a living peer answers, and may wait for the
	// answer. A nil error means that the answer has come. An error that wraps
	// [net.ErrClosed] means that the connection is closed on our side; any other
	// is only a hint, because a ping also fails behind a slow write or while
	// nobody reads. It must return when ctx is done. It is called on a goroutine
	// of its own, and never twice at a time for one connection.
	Ping(ctx context.Context) error

	// CloseNow closes the connection without a farewell and without waiting for
	// the peer. It is called on a goroutine of its own.
	CloseNow() error
}

// Funcs is a [Conn] made of two functions, for libraries without such methods and
// for connections that are no WebSockets: a heartbeat that JavaScript can see, a
// comment in an event stream, a line of a protocol of your own. A ping that is
// only sent, and whose answer arrives elsewhere, should wait until ctx is done
// and return its error; whoever sees the answer calls [Peer.Touch], and then ctx
// is cancelled within a tick. Both functions are required.
type Funcs struct {
	PingFunc  func(ctx context.Context) error
	CloseFunc func() error
}

// Ping calls PingFunc.
func (f Funcs) Ping(ctx context.Context) error { return f.PingFunc(ctx) }

// CloseNow calls CloseFunc.
func (f Funcs) CloseNow() error { return f.CloseFunc() }

// Config says when a peer counts as dead. The zero Config is a good one for
// servers: with 25 s it stays below the idle timeouts of the usual proxies (60 s)
// and mobile networks even if one ping is lost.
type Config struct {
	// Interval is the longest time for which nothing is heard from a peer, or
	// sent to it, without a probe. Zero means DefaultInterval. From 1 s to 1 h.
	Interval time.Duration

	// Timeout is how long after a probe the peer has to show life, by any byte.
	// Zero means DefaultTimeout, or three quarters of Interval if that is
	// shorter. From 250 ms to three quarters of Interval.
	Timeout time.Duration

	// MaxAge is how long a connection may live, give or take a tenth so that
	// they do not all end together: at least the Interval. Zero means for ever.
	MaxAge time.Duration

	// MaxPings is how many pings of its own a peer may send us within one
	// Interval, see [Peer.Pinged]. Zero means DefaultMaxPings, negative any.
	MaxPings int

	// OnDead, if not nil, is told of each verdict, after the connection was
	// dropped. It runs on a goroutine of its own; it may block and may call
	// anything but [Monitor.Close].
	OnDead func(*Peer, Verdict)

	// OnWake, if not nil, is told that the machine was suspended, and for how
	// long about. All peers are being probed then. It runs as OnDead does.
	OnWake func(away time.Duration)
}

// A ConfigError says which field of a [Config] or of [Options] cannot be used: its
// name, what it is, and why not.
type ConfigError struct {
	Field  string
	Value  any
	Reason string
}

func (e *ConfigError) Error() string {
	return fmt.Sprintf("heartbeat: %s %v: %s", e.Field, e.Value, e.Reason)
}

// check fills zero fields in, or says what is wrong.
func (c *Config) check() error {
	if c.Interval == 0 {
		c.Interval = DefaultInterval
	}
	if c.Interval < minInterval || c.Interval > maxInterval {
		return &ConfigError{"Interval", c.Interval, fmt.Sprintf("not between %v and %v", minInterval, maxInterval)}
	}
	longest := c.Interval * 3 / 4
	if c.Timeout == 0 {
		c.Timeout = min(DefaultTimeout, longest)
	}
	if c.Timeout < minTimeout || c.Timeout > longest {
		return &ConfigError{"Timeout", c.Timeout, fmt.Sprintf("not between %v and three quarters of the Interval, %v", minTimeout, longest)}
	}
	if c.MaxAge < 0 || c.MaxAge > 0 && c.MaxAge < c.Interval {
		return &ConfigError{"MaxAge", c.MaxAge, "neither 0 nor at least the Interval"}
	}
	if c.MaxPings == 0 {
		c.MaxPings = DefaultMaxPings
	}
	return nil
}

// A Reason says why a peer was dropped.
type Reason string

const (
	// NoAnswer: nothing was heard from the peer after a probe.
	NoAnswer Reason = "no answer"
	// WriteBlocked: a write of ours made no progress; the peer does not read.
	WriteBlocked Reason = "write blocked"
	// ReaderStuck: our side has not read from the connection for very long, so
	// that an answer could not be seen. Look for a handler that blocks.
	ReaderStuck Reason = "reader stuck"
	// Closed: the connection was closed on our side and the peer not stopped.
	Closed Reason = "closed"
	// TooOld: the connection has reached MaxAge.
	TooOld Reason = "too old"
	// PingFlood: the peer sent more pings than MaxPings.
	PingFlood Reason = "ping flood"
)

// A Verdict is the end of a peer.
type Verdict struct {
	Reason Reason
	Silent time.Duration // since the last sign of life, own stalls left out
	Probes int           // sent in vain since then
	RTT    time.Duration // of the last ping that was answered; 0 if none was
}
