package wire

import (
	"bytes"
	b64 "encoding/base64"
	"math"
	"unicode/utf8"

	"github.com/holdfast-ws/holdfast/replay"
)

var base64 = b64.StdEncoding.Strict()

// Fit returns data as a payload of that kind if it can be one, and else of the next
// that it can be: JSON that is not becomes text, and text that is not becomes
// binary. With None it is JSON if it can be.
func Fit(kind Kind, data []byte) Payload {
	switch {
	case kind <= JSON && isJSON(data):
		return Payload{JSON, data}
	case kind <= Text && utf8.Valid(data):
		return Payload{Text, data}
	}
	return Payload{Binary, data}
}

// Decode reads a frame into f, which is overwritten; its slices are used again. The
// error is a *FrameError. Fields that are not known are passed over; of a field that
// stands there twice the last counts, as in JavaScript.
//
// What is required of a frame, by its Type, is for those who act on it.
func Decode(b []byte, f *Frame) error {
	*f = Frame{From: f.From[:0], Late: f.Late[:0], Entries: f.Entries[:0], Topic: f.Topic}
	d := decoder{r: reader{b: b}, f: f, topic: f.Topic}
	f.Topic = ""
	if !utf8.Valid(b) {
		return &FrameError{Code: BadFrame, Reason: "is not UTF-8"}
	}
	if d.r.space() != '{' {
		return &FrameError{Code: BadFrame, Reason: "is not a JSON object"}
	}
	d.r.object(0, d.member)
	if d.r.err == "" && (d.r.space() != 0 || d.r.i < len(b)) {
		d.r.fail("has something after the object")
	}
	if d.r.err != "" {
		return &FrameError{Code: BadFrame, Reason: d.r.err}
	}
	if d.err != nil {
		return d.err
	}
	if f.Type == "" {
		return &FrameError{Code: BadFrame, Field: "t", Reason: "is missing"}
	}
	return nil
}

type decoder struct {
	r     reader
	f     *Frame
	err   *FrameError // the first field that is wrong; the frame is JSON all the same
	topic string      // of the frame before, which nearly always is this one's
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
		d.r.value(1)
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
		d.wrong(BadFrame, name, "is too long")
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
	text := d.r.value(1)
	if d.r.err != "" {
		return 0
	}
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
	switch kind {
	case JSON:
		*p = Payload{JSON, d.r.value(2)} // as deep as in an entry, whichever it is in
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

// member reads the value of a member of the frame.
func (d *decoder) member(name []byte) {
	f := d.f
	switch string(name) {
	case "t":
		f.Type = d.str(name, maxShort)
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
		text := d.r.value(1)
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
	default:
		d.r.value(1)
	}
}

// list reads an array of at most max elements.
func (d *decoder) list(name []byte, max int, element func()) {
	if d.null() {
		return
	}
	if d.r.space() != '[' {
		d.r.value(1)
		d.wrong(BadFrame, name, "is not an array")
		return
	}
	n := 0
	d.r.array(1, func() {
		if n++; n > max {
			d.wrong(BadFrame, name, "has too many elements")
			d.r.value(2)
			return
		}
		element()
	})
}

// members reads an object within the frame.
func (d *decoder) members(of []byte, depth int, member func(name []byte)) {
	if d.r.space() != '{' {
		d.r.value(depth)
		d.wrong(BadFrame, of, "is not what it should be")
		return
	}
	d.r.object(depth, member)
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
	if d.null() {
		return
	}
	l := &d.f.Limits
	d.members(of, 1, func(name []byte) {
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
			d.r.value(2)
		}
	})
}

func (d *decoder) late(of []byte, l *Late) {
	d.members(of, 2, func(name []byte) {
		switch string(name) {
		case "pos":
			l.Pos = d.pos(name)
		case "reason":
			l.Reason = d.str(name, maxShort)
		case "missed":
			l.Missed = d.uint(name, math.MaxUint64)
		default:
			d.r.value(3)
		}
	})
}

func (d *decoder) entry(of []byte, e *Entry) {
	d.members(of, 2, func(name []byte) {
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
			d.r.value(3)
		}
	})
}
