package client

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/heartbeat"
	"github.com/holdfast-ws/holdfast/internal/wire"
)

// Defaults of [Options] for [New] alone.
const (
	DefaultQueueMessages  = 1024
	DefaultQueueBytes     = 1 << 20
	DefaultAge            = time.Minute
	DefaultBufferMessages = 1024
	DefaultBufferBytes    = 1 << 20
	DefaultHello          = 10 * time.Second
	DefaultClientRead     = 8 << 20
)

// Options are the choices for [Sessions] and for [New]. Those from QueueMessages on are for
// New alone: with Sessions they are an error. Nil, and every zero field, stand for good
// defaults. They are copied.
type Options struct {
	// URLs are further servers that do as well, like the one given to Sessions. They are
	// all tried, in random order, before there is a wait; after a connection is lost the
	// other servers are tried before the one that it was lost to. (The first dial after a
	// loss is delayed all the same: a server's clients should not fall upon its
	// neighbours at once.) One that answers with a final status is left out, see [Final].
	URLs []string

	// Prepare, if not nil, is called before every dial, and may change the URL, the headers
	// and the token. Its error is a failed attempt, and nothing is dialled. It has as much
	// time as a dial, see DialTimeout, and must return when ctx is done.
	Prepare func(ctx context.Context, d *Dial) error

	// Subprotocols are offered to the server, by Sessions. Ask [websocket.Conn.Subprotocol]
	// which one it has taken: a server that takes none is no error here. For New it has to
	// be empty: that asks for the one of the gateway.
	Subprotocols []string

	// HTTPClient makes the handshake: for TLS settings, a proxy, cookies. Nil means one with
	// the proxy of the environment. If its Transport is nil or an *http.Transport, a copy is
	// used for each dial, which keeps no connections, and HTTP proxies are asked for a tunnel
	// (CONNECT) also without TLS, as RFC 6455 wants it. With any other Transport both, and the
	// promise that nothing is left behind, are that Transport's to keep.
	HTTPClient *http.Client

	// Backoff, First and Stable are those of [backoff.Loop], and pace the dials.
	Backoff       backoff.Policy
	First, Stable time.Duration

	// DialTimeout is how long Prepare and the dial may take together: zero means
	// DefaultDialTimeout. While attempts fail it grows with the window of the backoff, up to
	// two minutes, because with a shorter one a server that is overloaded spends its time on
	// clients that have already given up. Negative is an error.
	DialTimeout time.Duration

	// Limiter, if not nil, is waited for before every attempt, for as long as that takes: a
	// *rate.Limiter of golang.org/x/time/rate that all loops of a process share bounds what
	// they dial together. Its error is a failed attempt.
	Limiter interface{ Wait(context.Context) error }

	// Heartbeat finds servers that are gone. Its zero value is the default of package
	// heartbeat; a negative Interval means no heartbeat. Value of a [heartbeat.Peer] is the
	// *Session. Callbacks must return before the loop can end.
	Heartbeat heartbeat.Config

	// ReadLimit is the size of the largest message that is read, in bytes. Zero means
	// DefaultReadLimit, and for New DefaultClientRead (8 MiB), which holds a message of 1 MiB
	// however it has to be written in JSON: let it be greater if snapshots are. Negative
	// means that there is no limit, so that the server decides how much memory this process
	// needs. A message that is larger is a final error: after reconnecting it would probably
	// come again.
	ReadLimit int64

	// Decide says what to do about an error; nil means [Decide]. It gets a [*DialError], what
	// the body gave to [Session.End], a [*HeartbeatError], or an error that says that the body
	// gave nothing. An override decides what it knows, such as an error of its own Prepare,
	// and calls Decide for the rest. It is called by the goroutine that runs the loop, which
	// waits for it.
	Decide func(err error) Verdict

	// Trace, if not nil, is told what happens.
	Trace *Trace

	// Logger, if not nil, is told what happens: losses and failures at level Warn, the last
	// error at Error, the rest at Info; among it, once for each session and limit, that the
	// server has refused something for one of its limits, and which. Why a session has ended
	// stands in the attributes code and reason if the server has said it, and else in err. There
	// are no queries, tokens or messages in it.
	Logger *slog.Logger

	// The second group is for New. Sessions refuses it.

	// QueueMessages and QueueBytes are the most that waits to be sent or answered: messages,
	// and bytes as they travel. Zero means DefaultQueueMessages and DefaultQueueBytes;
	// negative is an error.
	QueueMessages int
	QueueBytes    int

	// Full is what Send and Publish do when the queue is full. Zero is Block.
	Full Full

	// Age is how long a message is tried for: one that is not answered by then fails with
	// ErrExpired. It has to be less than the time for which the server remembers IDs, two
	// minutes or more: a message that is sent again after that may be stored twice. Zero means
	// DefaultAge; negative is an error.
	Age time.Duration

	// BufferMessages and BufferBytes (of data and keys) are the most that is held of a
	// subscription for an application that has not yet asked for it, see [Subscription]. One
	// message is held whatever its size. Zero means DefaultBufferMessages and
	// DefaultBufferBytes; negative is an error.
	BufferMessages int
	BufferBytes    int

	// Hello is how long the server may take to welcome the client once it has accepted the
	// connection. Zero means DefaultHello; negative is an error.
	Hello time.Duration

	// OnState, if not nil, is told of each change of the state, in order, on a goroutine of
	// its own. It may block: if the state changes several times meanwhile, it is told only of
	// the last. It may call everything; but Close waits for it until the ctx of Close is done.
	// So it must not call Close with a ctx that does not end, nor hand over to whoever calls
	// Close, without a buffer.
	OnState func(State)
}

// Full is what happens to a message for which the queue has no room.
type Full int

const (
	// Block: the caller waits for room, in the order of the calls.
	Block Full = iota
	// Reject: the call fails with ErrQueueFull.
	Reject
	// DropOldest: messages that wait to be sent give way, the oldest first, and fail with
	// ErrDropped. If that makes no room, because the server has to answer what is on its
	// way, the call fails with ErrQueueFull.
	DropOldest
)

// withDefaults returns a copy with the defaults filled in, or an *OptionError.
func (o *Options) withDefaults() (Options, error) {
	var c Options
	if o != nil {
		c = *o
	}
	if len(c.Subprotocols) > 0 {
		return c, &OptionError{Field: "Subprotocols", Reason: "is for New to choose"}
	}
	c.Subprotocols = []string{wire.Subprotocol}
	if c.ReadLimit == 0 {
		c.ReadLimit = DefaultClientRead
	}
	if c.Full < Block || c.Full > DropOldest {
		return c, &OptionError{Field: "Full", Reason: "is none of Block, Reject and DropOldest"}
	}
	var wrong []string
	fill(&wrong, "QueueMessages", &c.QueueMessages, DefaultQueueMessages)
	fill(&wrong, "QueueBytes", &c.QueueBytes, DefaultQueueBytes)
	fill(&wrong, "Age", &c.Age, DefaultAge)
	fill(&wrong, "BufferMessages", &c.BufferMessages, DefaultBufferMessages)
	fill(&wrong, "BufferBytes", &c.BufferBytes, DefaultBufferBytes)
	fill(&wrong, "Hello", &c.Hello, DefaultHello)
	if len(wrong) > 0 {
		return c, &OptionError{Field: strings.Join(wrong, ", "), Reason: "must not be negative"}
	}
	return c, nil
}

// onlyForNew returns an error if something is set that Sessions has no use for.
func (o *Options) onlyForNew() error {
	if o == nil {
		return nil
	}
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"QueueMessages", o.QueueMessages != 0}, {"QueueBytes", o.QueueBytes != 0}, {"Full", o.Full != Block},
		{"Age", o.Age != 0}, {"BufferMessages", o.BufferMessages != 0}, {"BufferBytes", o.BufferBytes != 0},
		{"Hello", o.Hello != 0}, {"OnState", o.OnState != nil},
	} {
		if f.set {
			return &OptionError{Field: f.name, Reason: "is for New"}
		}
	}
	return nil
}

func fill[T int | time.Duration](wrong *[]string, name string, field *T, value T) {
	switch {
	case *field < 0:
		*wrong = append(*wrong, name)
	case *field == 0:
		*field = value
	}
}
