package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"time"

	"github.com/holdfast-ws/holdfast/heartbeat"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// Options are the choices for a Gateway. Authorize is required.
type Options struct {
	// Authorize answers whether something is allowed, and who somebody is. It is
	// called on goroutines of its own or the request's, by many at a time, may
	// block until ctx is done (see Limits.Authorize), and must not call Shutdown.
	// With an error the answer is no: [ErrForbidden], [ErrUnauthenticated], or any
	// other for "not now".
	Authorize func(ctx context.Context, a Access) (Grant, error)

	// Recheck is how often Authorize is asked again for each living subscription,
	// spread evenly. One that is no longer allowed ends. Zero means DefaultRecheck,
	// negative never. See also [Gateway.Recheck].
	Recheck time.Duration

	// Origins are those whose pages may connect besides the server's own:
	// "https://example.com", "http://localhost:8080", "https://*.example.com". The
	// server's own is what the request says, the scheme included: behind a proxy
	// that ends TLS, have it set X-Forwarded-Proto and keep the Host, or list the
	// origin here. "null" are the frames in a sandbox, of any site, and "file://" are
	// pages that are files, as in a desktop shell: only for gateways that ask for a
	// token. Programs that send no Origin are not pages, and are let
	// through to Authorize.
	Origins []string

	// Payload returns how a topic's messages are shown to clients. Nil means JSON
	// for all.
	Payload func(topic string) Payload

	// Lag returns how far a subscriber of a topic may fall behind before it gets a
	// reset, or only the newest message of each key, see [replay.Lag]. Nil, or a
	// nil result, means as far as the Hub keeps messages. It is called for each
	// subscription and may return the same again and again.
	Lag func(topic string) *replay.Lag

	// Limits bound what a client can do to the server. Leave them on.
	Limits Limits

	// Heartbeat says when a connection counts as dead. Its zero value is a good one.
	// OnDead has to be nil: who was found dead, Trace.Disconnected tells.
	Heartbeat heartbeat.Config

	// Drain is over how long the clients of a server that shuts down, or that Shed
	// sends away, come back. Zero
	// means a second for each 200 connections, between 1 s and 30 s; negative is an
	// error.
	Drain time.Duration

	// Node is a name of this server, shown to clients. At most 64 bytes.
	Node string

	// Compress lets clients negotiate compression (RFC 7692), without context
	// takeover. It costs CPU and memory, frames are no longer shared, a client that
	// pings while a write to it is stuck for 5 s is dropped whatever Limits.Write says,
	// and secrets beside text of an attacker's choice can be guessed from lengths
	// (CRIME).
	Compress bool

	// Trace, if not nil, is told what happens.
	Trace *Trace

	// Logger gets what an operator wants to know. Warn: handshakes that cannot be
	// completed, Authorize or a publish that fails, no room. Info: refused pages, the
	// first time that a limit holds up a connection, those dropped because they were
	// slow or dead, a drain. Debug: each connection's begin and end. What clients can
	// cause is written at most ten times at once and once a second for each message,
	// but for Debug; "hidden" says how many were left out. There are never messages or
	// tokens in it, and what clients say in their own words is quoted and cut. Nil
	// means no log.
	Logger *slog.Logger
}

// A Payload is how messages of a topic stand in frames for clients. Their bytes are the
// same in any case, but for white space around JSON. What cannot be shown so, because it
// is not JSON, or not UTF-8, is shown as text, or else binary.
type Payload uint8

const (
	JSON   Payload = Payload(wire.JSON)   // a value within the frame's JSON
	Text   Payload = Payload(wire.Text)   // a string
	Binary Payload = Payload(wire.Binary) // base64
)

// Limits bound what clients can do. Zero fields mean the default named beside each, a
// negative one means no limit. Message (at least 512), Hello, Incoming, Write and
// Authorize cannot be without: there a negative one is an error.
type Limits struct {
	Connections int // in total: 50 000. Beyond it 503 with Retry-After
	PerUser     int // connections of one user: 64

	Message int // bytes of one WebSocket message from a client: 32 KiB; at most 64 MiB
	Topics  int // subscriptions of one connection: 128
	Pending int // publishes of one connection that wait for their answer: 64
	History int // messages that a subscribe without a position may ask for: 1000

	Frames    int // from one connection a second, four times that at once: 50
	Publishes int // among them, likewise: 20

	Hello     time.Duration // from the handshake to the hello: 10 s
	Incoming  time.Duration // from the first to the last byte of a message: 10 s
	Write     time.Duration // without any progress of a write, or a quarter longer; over TLS for 32 KiB; for all that is left once a connection is to end: 10 s
	Authorize time.Duration // for an answer of Authorize: 10 s
}

// DefaultRecheck is what a zero Options.Recheck stands for.
const DefaultRecheck = 15 * time.Minute

// An OptionError says which field of Options cannot be used.
type OptionError struct {
	Field  string
	Reason string // goes on after the field: "is missing"
}

func (e *OptionError) Error() string { return "gateway: " + e.Field + " " + e.Reason }

// fill puts in defaults.
func (o *Options) fill() error {
	if o.Authorize == nil {
		return &OptionError{"Authorize", "is missing: nothing is allowed without it"}
	}
	if o.Heartbeat.OnDead != nil {
		return &OptionError{"Heartbeat.OnDead", "is not for you to set: see Trace.Disconnected"}
	}
	if len(o.Node) > 64 {
		return &OptionError{"Node", "is longer than 64 bytes"}
	}
	if o.Drain < 0 {
		return &OptionError{"Drain", "is negative"}
	}
	if o.Recheck == 0 {
		o.Recheck = DefaultRecheck
	}
	if o.Payload == nil {
		o.Payload = func(string) Payload { return JSON }
	}
	if o.Lag == nil {
		o.Lag = func(string) *replay.Lag { return nil }
	}
	l := &o.Limits
	for _, f := range []struct {
		name string
		n    *int
		zero int
	}{
		{"Connections", &l.Connections, 50_000}, {"PerUser", &l.PerUser, 64},
		{"Topics", &l.Topics, 128}, {"Pending", &l.Pending, 64}, {"History", &l.History, 1000},
		{"Frames", &l.Frames, 50}, {"Publishes", &l.Publishes, 20},
	} {
		if *f.n == 0 {
			*f.n = f.zero
		}
	}
	if l.Message == 0 {
		l.Message = 32 << 10
	}
	if l.Message < 512 || l.Message > 64<<20 {
		return &OptionError{"Limits.Message", fmt.Sprintf("is %d: it must be from 512 to 64 MiB", l.Message)}
	}
	for _, f := range []struct {
		name string
		d    *time.Duration
	}{{"Hello", &l.Hello}, {"Incoming", &l.Incoming}, {"Write", &l.Write}, {"Authorize", &l.Authorize}} {
		if *f.d == 0 {
			*f.d = 10 * time.Second
		}
		if *f.d < 0 {
			return &OptionError{"Limits." + f.name, "is negative"}
		}
	}
	return nil
}

// A bucket lets through so many things a second, and four times as many at once. It
// goes below empty, so that it knows who does not stop.
type bucket struct {
	level float64
	at    time.Time
}

// take takes one thing out of the bucket and returns how full that leaves it: not below
// 0 if it was let through, and at most burst below.
func (b *bucket) take(rate int) (level float64) {
	if rate < 0 {
		return 0
	}
	burst := 4 * float64(rate)
	now := time.Now()
	if b.at.IsZero() {
		b.level = burst
	} else {
		b.level = min(burst, b.level+now.Sub(b.at).Seconds()*float64(rate))
	}
	b.at = now
	b.level = max(b.level-1, -burst)
	return b.level
}

// perSecond is how a rate stands in texts.
func perSecond(rate int) string { return strconv.Itoa(rate) + " a second" }

// refill returns after how many milliseconds a bucket lets through the next thing, that
// is when there is one in it, if taking the last has left it at level.
func refill(level float64, rate int) int64 {
	return int64(math.Ceil((1 - level) / float64(rate) * 1000))
}
