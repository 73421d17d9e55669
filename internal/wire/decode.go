package wire

import (
	"bytes"
	b64 "encoding/base64"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/holdfast-ws/holdfast/replay"
)

var base64 = b64.StdEncoding.Strict()

// Fit returns data as a payload of that kind if it can be one, and else of the next
// that it can be: JSON that is not becomes text, and text that is not becomes
// binary.
//
// White space around JSON is left out, as whoever reads the frame could not tell it
// from the frame's own. With None every byte is kept, and it is JSON only where there
// is no such white space.
func Fit(kind Kind, data []byte) Payload {
	if kind <= JSON {
		if text := jsonText(data); text != nil && (kind == JSON || len(text) == len(data)) {
			return Payload{JSON, text}
		}
	}
	if kind <= Text && utf8.Valid(data) {
		return Payload{Text, data}
	}
	return Payload{Binary, data}
}

// frames is what PROTOCOL.md lists for each type, besides t.
var frames = [...]struct {
	typ     string
	members []string
}{
	{Hello, []string{"v", "token", "beats"}},
	{Auth, []string{"token", "ref"}},
	{Subscribe, []string{"topic", "ref", "from", "last", "floor"}},
	{Unsubscribe, []string{"topic", "ref"}},
	{Publish, []string{"id", "topic", "key", "data", "text", "bin"}},
	{Ping, nil},
	{Ephemeral, []string{"topic", "data", "text", "bin"}},
	{Beat, nil},
	{Welcome, []string{"v", "conn", "node", "beat", "timeout", "limits"}},
	{OK, []string{"ref"}},
	{Subscribed, []string{"topic", "ref", "base", "head", "late"}},
	{Unsubscribed, []string{"topic", "ref", "code", "message"}},
	{Entries, []string{"topic", "prev", "entries", "to", "conflated"}},
	{Reset, []string{"topic", "reason", "missed", "base", "data", "text", "bin"}},
	{Ack, []string{"id", "pos", "outcome"}},
	{Nack, []string{"id", "outcome", "code", "field", "message", "retry"}},
	{Error, []string{"topic", "ref", "code", "field", "message", "retry"}},
	{Pong, nil},
	{Goodbye, []string{"reason", "window"}},
}

// Decode reads a frame into f, which is overwritten; its slices are used again. The
// error is a *FrameError. Fields that are not listed for the frame's type are passed
// over, whatever their value, and so are all fields of a type that is not known; of
// a field that stands there twice the last counts, as in JavaScript.
//
// After an error with a Field, the fields that are right are in f, so that an answer
// can say what it is about. After one without, it was no frame, and f is of no use.
//
// What is required of a frame, by its Type, is for those who act on it.
func Decode(b []byte, f *Frame) error {
	clear(f.Entries) // lest it keeps messages of long ago
	topic := f.Topic
	*f = Frame{From: f.From[:0], Late: f.Late[:0], Entries: f.Entries[:0]}
	if !utf8.Valid(b) {
		return &FrameError{Code: BadFrame, Reason: "is not UTF-8"}
	}
	d := decoder{r: reader{b: b}, f: f, topic: topic}
	if d.r.space() != '{' {
		return &FrameError{Code: BadFrame, Reason: "is not a JSON object"}
	}
	d.frame()
	if d.r.err == "" && (d.r.space() != 0 || d.r.i < len(b)) {
		d.r.fail("has something after the object")
	}
	if d.r.err != "" {
		return &FrameError{Code: BadFrame, Reason: d.r.err}
	}
	if d.again {
		*f = Frame{Type: f.Type, From: f.From[:0], Late: f.Late[:0], Entries: f.Entries[:0]}
		d = decoder{r: reader{b: b}, f: f, topic: topic, members: d.members, fixed: true}
		d.frame()
	}
	if d.err != nil {
		return d.err
	}
	if f.Type == "" {
		return &FrameError{Code: BadFrame, Field: "t", Reason: "is missing"}
	}
	return nil
}

// A decoder reads a frame. It has to know the type to know which members there are.
// Nearly always that comes first; where it does not, all is read once more.
type decoder struct {
	r       reader
	f       *Frame
	err     *FrameError // the first field that is wrong; the frame is JSON all the same
	topic   string      // of the frame before, which nearly always is this one's
	members []string    // of f.Type
	depth   int         // of objects and arrays around the value that is next
	some    bool        // a member other than t was read
	again   bool        // and the type was another one then
	fixed   bool        // the type is known from a first reading
}

func (d *decoder) wrong(code string, name []byte, reason string) {
	if d.err == nil {
		d.err = &FrameError{Code: code, Field: string(name), Reason: reason}
	}
}

// null skips a null, which is as good as nothing.
func (d *decoder) null() bool {
	if d.r.space() != 'n' {
		return false
	}
	d.r.word("null")
	return true
}

// text reads a string of at most max bytes; negative for any.
func (d *decoder) text(name []byte, max int) []byte {
	if d.null() {
		return nil
	}
	if d.r.space() != '"' {
		d.r.value(d.depth)
		d.wrong(BadFrame, name, "is not a string")
		return nil
	}
	s, escaped := d.r.str()
	if d.r.err != "" {
		return nil
	}
	if escaped {
		s = []byte(unquote(s))
	} else {
		s = s[1 : len(s)-1]
	}
	if max >= 0 && len(s) > max {
		d.wrong(BadFrame, name, "has "+strconv.Itoa(len(s))+" bytes, more than "+strconv.Itoa(max))
		return nil
	}
	return s
}

func (d *decoder) str(name []byte, max int) string { return string(d.text(name, max)) }

// uint reads an integer, not negative; one that is too big counts as max.
func (d *decoder) uint(name []byte, max uint64) (n uint64) {
	if d.null() {
		return 0
	}
	text := d.r.value(d.depth)
	for _, c := range text {
		if c -= '0'; c > 9 {
			d.wrong(BadFrame, name, "is not a whole number of 0 or more")
			return 0
		}
		if n > (max-uint64(c))/10 || uint64(c) > max {
			n = max
		} else {
			n = 10*n + uint64(c)
		}
	}
	return n
}

func (d *decoder) pos(name []byte) (p replay.Position) {
	text := d.text(name, -1)
	if len(text) > 64 || p.UnmarshalText(text) != nil {
		d.wrong(BadPosition, name, "is not a position")
		return replay.Position{}
	}
	return p
}

func (d *decoder) payload(name []byte, kind Kind, p *Payload) {
	// A null is JSON like any other, but no text.
	if kind != JSON && d.null() {
		if p.Kind == kind {
			*p = Payload{}
		}
		return
	}
	if p.Kind != None && p.Kind != kind {
		d.wrong(BadFrame, name, "stands beside another payload")
	}
	switch kind {
	case JSON:
		*p = Payload{JSON, d.r.value(max(d.depth, payloadDepth))}
	case Text:
		*p = Payload{Text, d.text(name, -1)}
	case Binary:
		text := d.text(name, -1)
		data := make([]byte, base64.DecodedLen(len(text)))
		n, err := base64.Decode(data, text)
		if err != nil || bytes.ContainsAny(text, "\r\n") { // which package base64 skips
			d.wrong(BadFrame, name, "is not base64")
		}
		*p = Payload{Binary, data[:n]}
	}
}

const (
	maxInt   = math.MaxInt
	maxInt64 = math.MaxInt64
	maxShort = 256 // of names, codes and the like
)

func (d *decoder) frame() { d.object(d.member) }

// typ reads the type.
func (d *decoder) typ(name []byte) {
	if d.fixed {
		d.r.value(d.depth)
		return
	}
	text := d.text(name, maxShort)
	was := d.f.Type
	d.f.Type, d.members = "", nil
	for i := range frames {
		if f := &frames[i]; f.typ == string(text) {
			d.f.Type, d.members = f.typ, f.members
			break
		}
	}
	if d.f.Type == "" {
		d.f.Type = string(text)
	}
	if d.some && d.f.Type != was {
		d.again = true
	}
}

func (d *decoder) listed(name []byte) bool {
	for _, m := range d.members {
		if m == string(name) {
			return true
		}
	}
	return false
}

// member reads the value of a member of the frame.
func (d *decoder) member(name []byte) {
	if string(name) == "t" {
		d.typ(name)
		return
	}
	d.some = true
	if !d.listed(name) {
		d.r.value(d.depth)
		return
	}
	f := d.f
	switch string(name) {
	case "v":
		f.Version = int(d.uint(name, maxInt))
	case "ref":
		f.Ref = d.uint(name, 1<<53)
	case "topic":
		text := d.text(name, -1)
		if string(text) == d.topic {
			f.Topic = d.topic
		} else {
			f.Topic = string(text)
		}
	case "id":
		f.ID = d.str(name, -1)
	case "key":
		f.Key = d.str(name, -1)
	case "token":
		f.Token = d.str(name, MaxToken)
	case "beats":
		text := d.r.value(d.depth)
		if f.Beats = string(text) == "true"; !f.Beats && string(text) != "false" && string(text) != "null" {
			d.wrong(BadFrame, name, "is not true or false")
		}
	case "from":
		d.from(name)
	case "last":
		f.Last = int(d.uint(name, maxInt))
	case "floor":
		f.Floor = d.pos(name)
	case "conn":
		f.Conn = d.str(name, maxShort)
	case "node":
		f.Node = d.str(name, maxShort)
	case "beat":
		f.Beat = int64(d.uint(name, maxInt64))
	case "timeout":
		f.Timeout = int64(d.uint(name, maxInt64))
	case "limits":
		d.limits(name)
	case "base":
		f.Base = d.pos(name)
	case "head":
		f.Head = d.pos(name)
	case "late":
		f.Late = f.Late[:0]
		d.list(name, MaxFrom, func() {
			f.Late = append(f.Late, Late{})
			d.late(name, &f.Late[len(f.Late)-1])
		})
	case "prev":
		f.Prev = d.pos(name)
	case "entries":
		f.Entries = f.Entries[:0]
		d.list(name, maxInt, func() {
			f.Entries = append(f.Entries, Entry{})
			d.entry(name, &f.Entries[len(f.Entries)-1])
		})
	case "to":
		f.To = d.pos(name)
	case "conflated":
		f.Conflated = int(d.uint(name, maxInt))
	case "reason":
		f.Reason = d.str(name, maxShort)
	case "missed":
		f.Missed = d.uint(name, math.MaxUint64)
	case "pos":
		f.Pos = d.pos(name)
	case "outcome":
		f.Outcome = d.str(name, maxShort)
	case "retry":
		f.Retry = int64(d.uint(name, maxInt64))
	case "code":
		f.Code = d.str(name, maxShort)
	case "field":
		f.Field = d.str(name, maxShort)
	case "message":
		f.Message = d.str(name, -1)
	case "window":
		f.Window = int64(d.uint(name, maxInt64))
	case "data":
		d.payload(name, JSON, &f.Payload)
	case "text":
		d.payload(name, Text, &f.Payload)
	case "bin":
		d.payload(name, Binary, &f.Payload)
	}
}

// list reads an array of at most max elements.
func (d *decoder) list(name []byte, max int, element func()) {
	if d.null() {
		return
	}
	if d.r.space() != '[' {
		d.r.value(d.depth)
		d.wrong(BadFrame, name, "is not an array")
		return
	}
	n := 0
	d.depth++
	d.r.array(d.depth-1, func() {
		if n++; n > max {
			d.wrong(BadFrame, name, "has more than "+strconv.Itoa(max)+" elements")
		}
		if d.err != nil { // so that a bad frame cannot take much memory
			d.r.value(d.depth)
			return
		}
		element()
	})
	d.depth--
}

// object reads an object.
func (d *decoder) object(member func(name []byte)) {
	d.depth++
	d.r.object(d.depth-1, member)
	d.depth--
}

// part reads an object within the frame.
func (d *decoder) part(of []byte, member func(name []byte)) {
	if d.r.space() != '{' {
		d.r.value(d.depth)
		d.wrong(BadFrame, of, "is not what it should be")
		return
	}
	d.object(member)
}

func (d *decoder) from(name []byte) {
	d.f.From = d.f.From[:0]
	add := func() {
		if p := d.pos(name); !p.IsZero() {
			d.f.From = append(d.f.From, p)
		}
	}
	if d.r.space() == '"' {
		add()
		return
	}
	d.list(name, MaxFrom, add)
}

func (d *decoder) limits(of []byte) {
	d.f.Limits = Limits{}
	if d.null() {
		return
	}
	l := &d.f.Limits
	d.part(of, func(name []byte) {
		switch string(name) {
		case "message":
			l.Message = int(d.uint(name, maxInt))
		case "topics":
			l.Topics = int(d.uint(name, maxInt))
		case "pending":
			l.Pending = int(d.uint(name, maxInt))
		case "history":
			l.History = int(d.uint(name, maxInt))
		default:
			d.r.value(d.depth)
		}
	})
}

func (d *decoder) late(of []byte, l *Late) {
	d.part(of, func(name []byte) {
		switch string(name) {
		case "pos":
			l.Pos = d.pos(name)
		case "reason":
			l.Reason = d.str(name, maxShort)
		case "missed":
			l.Missed = d.uint(name, math.MaxUint64)
		default:
			d.r.value(d.depth)
		}
	})
}

func (d *decoder) entry(of []byte, e *Entry) {
	d.part(of, func(name []byte) {
		switch string(name) {
		case "pos":
			e.Pos = d.pos(name)
		case "at":
			e.At = int64(d.uint(name, maxInt64))
		case "key":
			e.Key = d.str(name, -1)
		case "data":
			d.payload(name, JSON, &e.Payload)
		case "text":
			d.payload(name, Text, &e.Payload)
		case "bin":
			d.payload(name, Binary, &e.Payload)
		default:
			d.r.value(d.depth)
		}
	})
	if d.r.err == "" && e.Pos.IsZero() {
		d.wrong(BadFrame, []byte("pos"), "is missing")
	}
}
