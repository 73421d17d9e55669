// Package wire reads and writes the frames of the protocol holdfast.v1, which
// client/PROTOCOL.md specifies: one JSON object for each WebSocket message.
//
// A [Frame] is any of them. [Decode] is strict with what it reads, and takes no
// more memory than a small multiple of the message; the message's length is for
// the WebSocket library to bound. Payloads may refer to the message: who keeps one and
// uses the message's memory again makes a copy. Strings and positions are copies.
package wire

import (
	"fmt"
	"strconv"

	"github.com/holdfast-ws/holdfast/replay"
)

// Subprotocol is what both sides ask for in the WebSocket handshake, and Version
// the greatest version of hello that this package knows.
const (
	Subprotocol = "holdfast.v1"
	Version     = 1
)

// Bounds on what stands in a frame. Those of topics, keys and IDs are the
// backplane's.
const (
	MaxFrom  = 64   // positions in a subscribe
	MaxToken = 8192 // bytes
)

// Types of frames.
const (
	Hello       = "hello"       // to the server
	Auth        = "auth"        //
	Subscribe   = "subscribe"   //
	Unsubscribe = "unsubscribe" //
	Publish     = "publish"     //
	Ping        = "ping"        //

	Ephemeral = "ephemeral" // both ways
	Beat      = "beat"      //

	Welcome      = "welcome" // to the client
	OK           = "ok"
	Subscribed   = "subscribed"
	Unsubscribed = "unsubscribed"
	Entries      = "entries"
	Reset        = "reset"
	Ack          = "ack"
	Nack         = "nack"
	Error        = "error"
	Pong         = "pong"
	Goodbye      = "goodbye"
)

// Codes of errors, in error, nack and unsubscribed frames.
const (
	BadFrame        = "bad_frame"        // not JSON, not an object, or a field is missing or wrong
	UnknownType     = "unknown_type"     // of frame
	OutOfState      = "out_of_state"     // a frame that cannot be sent now
	BadTopic        = "bad_topic"        //
	BadPosition     = "bad_position"     //
	TooLarge        = "too_large"        // a message
	Unauthenticated = "unauthenticated"  // no token, or a bad or expired one
	Forbidden       = "forbidden"        // or it does not exist: these are not told apart
	TooManyTopics   = "too_many_topics"  // on this connection
	NotSubscribed   = "not_subscribed"   //
	TooFast         = "too_fast"         // wait and try again
	TooManyPending  = "too_many_pending" // publishes that wait for an answer
	Unavailable     = "unavailable"      // the server cannot do that now: try again
	Unsupported     = "unsupported"      // the server cannot do that at all
	Internal        = "internal"         // a fault of the server
)

// Close codes. Those of 4000 and above are the protocol's own.
const (
	CloseNormal        = 1000
	CloseNoStatus      = 1005 // for a close frame without a code; is never in one
	CloseUnsupported   = 1003 // a binary message
	CloseInvalidUTF8   = 1007
	ClosePolicy        = 1008
	CloseTooBig        = 1009
	CloseInternal      = 1011
	CloseRestart       = 1012 // after goodbye
	CloseTryLater      = 1013
	CloseHelloTimeout  = 4000 // no hello, or a message that did not end, in time
	CloseSlow          = 4001 // the client does not read, and can resume
	CloseBadFrame      = 4400 // final
	CloseUnauthorized  = 4401 // with a new token the client may come back
	CloseForbidden     = 4403 // final
	CloseVersion       = 4406 // final
	CloseTooFast       = 4429 // far too many frames
	CloseTooManyOfUser = 4430 // connections of one user
)

// Outcomes of a publish, in ack and nack frames.
const (
	Committed = "committed"
	Duplicate = "duplicate"
	Queued    = "queued"
	NotStored = "not_stored"
	Unknown   = "unknown"
)

// A Kind is how a payload stands in a frame.
type Kind uint8

const (
	None   Kind = iota
	JSON        // any value, as "data"
	Text        // a string, as "text"
	Binary      // in base64, as "bin"
)

// A Payload is what users send each other. Its bytes are the same whichever way it
// travels: those of the JSON text, of the string in UTF-8, or what base64 encodes.
// JSON is written as it is, so it has to be that: ask [Fit].
type Payload struct {
	Kind Kind
	Data []byte
}

// An Entry is one message of a topic.
type Entry struct {
	Pos replay.Position
	At  int64 // milliseconds since 1970
	Key string
	Payload
}

// A Late is one of the positions of a subscribe, after which the subscription does
// not go on.
type Late struct {
	Pos    replay.Position
	Reason string
	Missed uint64
}

// Limits are what a welcome says about what the server takes.
type Limits struct {
	Message int // bytes of a WebSocket message
	Topics  int // of a connection
	Pending int // publishes that wait for an answer
	History int // messages that a subscribe without a position gets at most
}

// A Frame is a message of the protocol. Fields that its Type has no use for, or that
// are absent, are zero. Zero fields are not written, nor are negative numbers, which
// the protocol does not have.
type Frame struct {
	Type string // "t"

	Version int    // "v"
	Ref     uint64 // "ref": the client's number of a request, in its answer
	Topic   string // "topic"
	ID      string // "id"
	Key     string // "key"

	Token string // "token"
	Beats bool   // "beats": the client answers beats, its pongs prove nothing

	From  []replay.Position // "from": a string or an array of strings
	Last  int               // "last": saturates
	Floor replay.Position   // "floor"

	Conn    string // "conn"
	Node    string // "node"
	Beat    int64  // "beat": milliseconds
	Timeout int64  // "timeout": milliseconds
	Limits  Limits // "limits"

	Base replay.Position // "base"
	Head replay.Position // "head"
	Late []Late          // "late"

	Prev      replay.Position // "prev"
	Entries   []Entry         // "entries"
	To        replay.Position // "to"
	Conflated int             // "conflated"

	Reason string // "reason"
	Missed uint64 // "missed"

	Pos     replay.Position // "pos"
	Outcome string          // "outcome"
	Retry   int64           // "retry": milliseconds

	Code    string // "code"
	Field   string // "field"
	Message string // "message"

	Window int64 // "window": milliseconds

	Payload // "data", "text" or "bin"
}

// A FrameError says why a message is not a frame, or a frame not a good one.
type FrameError struct {
	Code   string // of an error frame
	Field  string // empty if it is the whole frame
	Reason string // goes on after the field, or "the frame"
}

func (e *FrameError) Error() string {
	if e.Field == "" {
		return "the frame " + e.Reason
	}
	return e.Field + " " + e.Reason
}

// Append appends the frame's text to b.
func (f *Frame) Append(b []byte) []byte {
	w := writer{b: append(b, '{')}
	w.str("t", f.Type)
	w.num("v", int64(f.Version))
	w.uint("ref", f.Ref)
	w.str("topic", f.Topic)
	w.str("id", f.ID)
	w.str("key", f.Key)
	w.str("token", f.Token)
	if f.Beats {
		w.name("beats")
		w.b = append(w.b, "true"...)
	}
	switch len(f.From) {
	case 0:
	case 1:
		w.pos("from", f.From[0])
	default:
		w.name("from")
		for i, p := range f.From {
			w.b = append(w.b, "[,"[min(i, 1)])
			w.b = appendPosition(w.b, p)
		}
		w.b = append(w.b, ']')
	}
	w.num("last", int64(f.Last))
	w.pos("floor", f.Floor)
	w.str("conn", f.Conn)
	w.str("node", f.Node)
	w.num("beat", f.Beat)
	w.num("timeout", f.Timeout)
	if f.Limits != (Limits{}) {
		w.name("limits")
		l := writer{b: append(w.b, '{')}
		l.num("message", int64(f.Limits.Message))
		l.num("topics", int64(f.Limits.Topics))
		l.num("pending", int64(f.Limits.Pending))
		l.num("history", int64(f.Limits.History))
		w.b = append(l.b, '}')
	}
	w.pos("base", f.Base)
	w.pos("head", f.Head)
	if len(f.Late) > 0 {
		w.name("late")
		for i, late := range f.Late {
			l := writer{b: append(w.b, "[,"[min(i, 1)], '{')}
			l.pos("pos", late.Pos)
			l.str("reason", late.Reason)
			l.uint("missed", late.Missed)
			w.b = append(l.b, '}')
		}
		w.b = append(w.b, ']')
	}
	w.pos("prev", f.Prev)
	if len(f.Entries) > 0 {
		w.name("entries")
		for i := range f.Entries {
			w.b = append(w.b, "[,"[min(i, 1)])
			w.b = f.Entries[i].append(w.b)
		}
		w.b = append(w.b, ']')
	}
	w.pos("to", f.To)
	w.num("conflated", int64(f.Conflated))
	w.str("reason", f.Reason)
	w.uint("missed", f.Missed)
	w.pos("pos", f.Pos)
	w.str("outcome", f.Outcome)
	w.num("retry", f.Retry)
	w.str("code", f.Code)
	w.str("field", f.Field)
	w.str("message", f.Message)
	w.num("window", f.Window)
	w.payload(f.Payload)
	return append(w.b, '}')
}

func (e *Entry) append(b []byte) []byte {
	w := writer{b: append(b, '{')}
	w.pos("pos", e.Pos)
	w.num("at", e.At)
	w.str("key", e.Key)
	w.payload(e.Payload)
	return append(w.b, '}')
}

// AppendEntry appends what stands for e in an entries frame, with a payload of that
// kind, or if its data cannot be that, of one that they can be: JSON that is not
// becomes text, and text that is not becomes binary.
func AppendEntry(b []byte, e *replay.Entry, kind Kind) []byte {
	out := Entry{Pos: e.Pos, Key: e.Key, Payload: Fit(kind, e.Data)}
	if !e.At.IsZero() {
		out.At = e.At.UnixMilli()
	}
	return out.append(b)
}

// AppendEntries appends an entries frame of entries that AppendEntry has made.
func AppendEntries(b []byte, topic string, prev replay.Position, entries [][]byte, to replay.Position, conflated int) []byte {
	w := writer{b: append(b, '{')}
	w.str("t", Entries)
	w.str("topic", topic)
	w.pos("prev", prev)
	if len(entries) > 0 {
		w.name("entries")
		for i, e := range entries {
			w.b = append(w.b, "[,"[min(i, 1)])
			w.b = append(w.b, e...)
		}
		w.b = append(w.b, ']')
	}
	w.pos("to", to)
	w.num("conflated", int64(conflated))
	return append(w.b, '}')
}

// writer appends the members of an object.
type writer struct {
	b    []byte
	some bool
}

func (w *writer) name(name string) {
	if w.some {
		w.b = append(w.b, ',')
	}
	w.some = true
	w.b = append(w.b, '"')
	w.b = append(w.b, name...)
	w.b = append(w.b, '"', ':')
}

func (w *writer) str(name, s string) {
	if s != "" {
		w.name(name)
		w.b = appendString(w.b, s)
	}
}

func (w *writer) uint(name string, n uint64) {
	if n != 0 {
		w.name(name)
		w.b = strconv.AppendUint(w.b, n, 10)
	}
}

func (w *writer) num(name string, n int64) { w.uint(name, uint64(max(n, 0))) }

func (w *writer) pos(name string, p replay.Position) {
	if !p.IsZero() {
		w.name(name)
		w.b = appendPosition(w.b, p)
	}
}

func appendPosition(b []byte, p replay.Position) []byte {
	b = append(b, '"')
	b, _ = p.AppendText(b) // never fails
	return append(b, '"')
}

func (w *writer) payload(p Payload) {
	switch p.Kind {
	case JSON:
		w.name("data")
		w.b = append(w.b, p.Data...)
	case Text:
		w.name("text")
		w.b = appendString(w.b, p.Data)
	case Binary:
		w.name("bin")
		w.b = append(w.b, '"')
		w.b = base64.AppendEncode(w.b, p.Data)
		w.b = append(w.b, '"')
	}
}

// String names a kind.
func (k Kind) String() string {
	switch k {
	case None:
		return "none"
	case JSON:
		return "JSON"
	case Text:
		return "text"
	case Binary:
		return "binary"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}
