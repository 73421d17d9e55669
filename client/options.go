package client

import (
	"strings"
	"time"

	"github.com/holdfast-ws/holdfast/internal/wire"
)

// Defaults of [Options].
const (
	DefaultQueueMessages  = 1024
	DefaultQueueBytes     = 1 << 20
	DefaultAge            = time.Minute
	DefaultBufferMessages = 1024
	DefaultBufferBytes    = 1 << 20
	DefaultHello          = 10 * time.Second
	DefaultClientRead     = 8 << 20
)

// Options are the choices for a [Client]. Nil means all defaults.
type Options struct {
	// SessionOptions say how to connect. Subprotocols has to be empty: New asks for that of
	// the gateway. A ReadLimit of zero means DefaultClientRead (8 MiB), which holds a message
	// of 1 MiB however it has to be written in JSON; what the server sends beyond it is a
	// final error. Let it be greater if snapshots are.
	SessionOptions

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
	// the last. It may call everything; for Close see there.
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

func fill[T int | time.Duration](wrong *[]string, name string, field *T, value T) {
	switch {
	case *field < 0:
		*wrong = append(*wrong, name)
	case *field == 0:
		*field = value
	}
}
