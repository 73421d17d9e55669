package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/holdfast-ws/holdfast/replay"
)

// A model reads frames with encoding/json, slowly, and with no regard for order: it
// collects all that is wrong instead of the first.
type model struct {
	f     Frame
	none  bool            // it is no frame
	twice bool            // some name stands there twice in an object
	wrong map[string]bool // what may be in the error, as "code field"
}

const jsonSpace = " \t\r\n"

func (m *model) bad(code, field string) { m.wrong[code+" "+field] = true }

// deep returns how deep the objects and arrays in a JSON text are nested.
func deep(text []byte) (deepest int) {
	depth, in := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			in = !in
		case in && c == '\\':
			i++
		case !in && (c == '{' || c == '['):
			depth++
			deepest = max(deepest, depth)
		case !in && (c == '}' || c == ']'):
			depth--
		}
	}
	return deepest
}

// object returns the members of an object that is known to be one.
func (m *model) object(text []byte) map[string]json.RawMessage {
	d := json.NewDecoder(bytes.NewReader(text))
	if _, err := d.Token(); err != nil {
		panic(err)
	}
	members := map[string]json.RawMessage{}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			panic(err)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			panic(err)
		}
		if _, ok := members[name.(string)]; ok {
			m.twice = true
		}
		members[name.(string)] = value
	}
	return members
}

func isNull(value json.RawMessage) bool { return value == nil || string(value) == "null" }

func (m *model) str(of map[string]json.RawMessage, name string, max int) (s string) {
	value := of[name]
	if isNull(value) {
		return ""
	}
	if value[0] != '"' || json.Unmarshal(value, &s) != nil || len(s) > max {
		m.bad(BadFrame, name)
		return ""
	}
	return s
}

// noBound is for strings of any length.
const noBound = math.MaxInt

func (m *model) num(of map[string]json.RawMessage, name string, max uint64) uint64 {
	value := of[name]
	if isNull(value) {
		return 0
	}
	if strings.Trim(string(value), "0123456789") != "" {
		m.bad(BadFrame, name)
		return 0
	}
	n, _ := new(big.Int).SetString(string(value), 10)
	if n.IsUint64() {
		return min(n.Uint64(), max)
	}
	return max
}

func (m *model) pos(of map[string]json.RawMessage, name string) replay.Position {
	p, err := replay.ParsePosition(m.str(of, name, noBound))
	if err != nil {
		m.bad(BadPosition, name)
	}
	return p
}

func (m *model) list(of map[string]json.RawMessage, name string, max int) (list []json.RawMessage) {
	value := of[name]
	if isNull(value) {
		return nil
	}
	if value[0] != '[' || json.Unmarshal(value, &list) != nil || len(list) > max {
		m.bad(BadFrame, name)
		return nil
	}
	return list
}

func (m *model) payload(of map[string]json.RawMessage) (p Payload) {
	n := 0
	if value, ok := of["data"]; ok {
		n++
		p = Payload{JSON, value}
		m.none = m.none || deep(value) > maxDepth-payloadDepth
	}
	if !isNull(of["text"]) {
		n++
		p = Payload{Text, []byte(m.str(of, "text", noBound))}
	}
	if !isNull(of["bin"]) {
		n++
		text := m.str(of, "bin", noBound)
		data, err := base64.DecodeString(text)
		// What is decoded and encoded again must be the same: no line ends, no bits
		// left over.
		if err != nil || base64.EncodeToString(data) != text {
			m.bad(BadFrame, "bin")
		}
		p = Payload{Binary, data}
	}
	if n > 1 {
		for _, name := range []string{"data", "text", "bin"} {
			m.bad(BadFrame, name)
		}
	}
	return p
}

func read(b []byte) *model {
	m := &model{wrong: map[string]bool{}}
	trimmed := bytes.TrimLeft(b, jsonSpace)
	if !utf8.Valid(b) || len(trimmed) == 0 || trimmed[0] != '{' || !json.Valid(b) || deep(b) > maxDepth {
		m.none = true
		return m
	}
	all := m.object(b)
	f := &m.f
	f.Type = m.str(all, "t", maxShort)
	if f.Type == "" {
		m.bad(BadFrame, "t")
	}
	of := map[string]json.RawMessage{}
	for _, frame := range frames {
		for name, value := range all {
			if frame.typ == f.Type && slices.Contains(frame.members, name) {
				of[name] = value
			}
		}
	}
	f.Version = int(m.num(of, "v", maxInt))
	f.Ref = m.num(of, "ref", 1<<53)
	f.Topic = m.str(of, "topic", noBound)
	f.ID = m.str(of, "id", noBound)
	f.Key = m.str(of, "key", noBound)
	f.Token = m.str(of, "token", MaxToken)
	if beats := string(of["beats"]); beats == "true" {
		f.Beats = true
	} else if beats != "" && beats != "false" && beats != "null" {
		m.bad(BadFrame, "beats")
	}
	from := map[string]json.RawMessage{"from": of["from"]}
	if !isNull(of["from"]) && of["from"][0] == '"' {
		from["from"] = slices.Concat([]byte("["), of["from"], []byte("]"))
	}
	for _, value := range m.list(from, "from", MaxFrom) {
		if p := m.pos(map[string]json.RawMessage{"from": value}, "from"); !p.IsZero() {
			f.From = append(f.From, p)
		}
	}
	f.Last = int(m.num(of, "last", maxInt))
	f.Floor = m.pos(of, "floor")
	f.Conn = m.str(of, "conn", maxShort)
	f.Node = m.str(of, "node", maxShort)
	f.Beat = int64(m.num(of, "beat", maxInt64))
	f.Timeout = int64(m.num(of, "timeout", maxInt64))
	if limits := of["limits"]; !isNull(limits) {
		if limits[0] == '{' {
			of := m.object(limits)
			f.Limits = Limits{int(m.num(of, "message", maxInt)), int(m.num(of, "topics", maxInt)), int(m.num(of, "pending", maxInt)), int(m.num(of, "history", maxInt))}
		} else {
			m.bad(BadFrame, "limits")
		}
	}
	f.Base = m.pos(of, "base")
	f.Head = m.pos(of, "head")
	for _, value := range m.list(of, "late", MaxFrom) {
		if value[0] != '{' {
			m.bad(BadFrame, "late")
			continue
		}
		of := m.object(value)
		f.Late = append(f.Late, Late{m.pos(of, "pos"), m.str(of, "reason", maxShort), m.num(of, "missed", 1<<64-1)})
	}
	f.Prev = m.pos(of, "prev")
	for _, value := range m.list(of, "entries", maxInt) {
		if value[0] != '{' {
			m.bad(BadFrame, "entries")
			continue
		}
		of := m.object(value)
		e := Entry{m.pos(of, "pos"), int64(m.num(of, "at", maxInt64)), m.str(of, "key", noBound), m.payload(of)}
		if e.Pos.IsZero() {
			m.bad(BadFrame, "pos")
		}
		f.Entries = append(f.Entries, e)
	}
	f.To = m.pos(of, "to")
	f.Conflated = int(m.num(of, "conflated", maxInt))
	f.Reason = m.str(of, "reason", maxShort)
	f.Missed = m.num(of, "missed", 1<<64-1)
	f.Pos = m.pos(of, "pos")
	f.Outcome = m.str(of, "outcome", maxShort)
	f.Retry = int64(m.num(of, "retry", maxInt64))
	f.Code = m.str(of, "code", maxShort)
	f.Field = m.str(of, "field", maxShort)
	f.Message = m.str(of, "message", noBound)
	f.Window = int64(m.num(of, "window", maxInt64))
	f.Payload = m.payload(of)
	return m
}

// checkDecode compares Decode with the model, and what it reads with what Append
// makes of that.
func checkDecode(t *testing.T, b []byte) {
	m := read(b)
	var f Frame
	err := Decode(b, &f)
	var bad *FrameError
	if errors.As(err, &bad) != (err != nil) {
		t.Fatalf("%q: the error %v is no FrameError", b, err)
	}
	if size := uintptr(cap(f.Entries))*unsafe.Sizeof(Entry{}) + uintptr(cap(f.Late))*unsafe.Sizeof(Late{}) + uintptr(cap(f.From))*unsafe.Sizeof(replay.Position{}); size > uintptr(10*len(b))+16<<10 {
		t.Errorf("%d bytes take %d bytes of memory", len(b), size)
	}
	switch {
	case m.twice && err != nil:
		// An earlier one of the same name may have been wrong.
	case m.none != (bad != nil && bad.Field == ""):
		t.Fatalf("%q: the error is %v, but for the model it is %v that this is no frame", b, err, m.none)
	case m.none:
	case bad == nil && len(m.wrong) > 0:
		t.Fatalf("%q: is taken for a frame, but for the model it is wrong: %v", b, m.wrong)
	case bad != nil && !m.wrong[bad.Code+" "+bad.Field]:
		t.Fatalf("%q: the error is %#v, for the model it is one of %v", b, bad, m.wrong)
	case bad == nil:
		if d := diff(m.f, f); d != "" {
			t.Fatalf("%q: decoded (-by the model +by Decode):\n%s", b, d)
		}
	}
	used := full()
	if again := Decode(b, &used); (again == nil) != (err == nil) || again != nil && again.Error() != err.Error() {
		t.Fatalf("%q: decoded into a full frame the error is %v, else %v", b, again, err)
	}
	if err != nil {
		return
	}
	if d := diff(f, used); d != "" {
		t.Fatalf("%q: decoded (-into a new frame +into a full one):\n%s", b, d)
	}
	checkPayload(t, f.Payload)
	for _, e := range f.Entries {
		checkPayload(t, e.Payload)
	}
	text := f.Append(nil)
	if !json.Valid(text) || !utf8.Valid(text) {
		t.Fatalf("%q: is appended as %q, which is not JSON", b, text)
	}
	var again Frame
	if err := Decode(text, &again); err != nil {
		t.Fatalf("%q: is appended as %q, which is no frame: %v", b, text, err)
	}
	if d := diff(f, again); d != "" {
		t.Fatalf("%q: is appended as %q and decoded again (-before +after):\n%s", b, text, d)
	}
	if twice := again.Append(nil); !bytes.Equal(twice, text) {
		t.Fatalf("%q: is appended as %q, and then as %q", b, text, twice)
	}
}

func checkPayload(t *testing.T, p Payload) {
	switch {
	case p.Kind == None && p.Data != nil,
		p.Kind == JSON && (!json.Valid(p.Data) || !utf8.Valid(p.Data) || len(bytes.Trim(p.Data, jsonSpace)) < len(p.Data)),
		p.Kind == Text && !utf8.Valid(p.Data),
		p.Kind > Binary:
		t.Fatalf("%q is no payload of kind %v", p.Data, p.Kind)
	}
}

func FuzzDecode(f *testing.F) {
	for _, v := range readVectors(f) {
		if message := v.message(); len(message) < 1000 {
			f.Add(message)
		}
	}
	f.Fuzz(checkDecode)
}

// The model reads what the vectors, which were not made with it, say. And it agrees
// with Decode on what they are with a byte more, less or changed.
func TestTheModelAgreesWithTheVectors(t *testing.T) {
	for n, v := range readVectors(t) {
		message := v.message()
		m := read(message)
		if v.Decode != nil {
			if m.none || len(m.wrong) > 0 {
				t.Errorf("%s: the model reads none %v, wrong %v", v.Name, m.none, m.wrong)
			} else if d := diff(v.Decode.frame(), m.f); d != "" {
				t.Errorf("%s: the model reads (-want +got):\n%s", v.Name, d)
			}
		}
		if v.Error != nil && !m.twice && m.none != (v.Error.Field == "") {
			t.Errorf("%s: the model reads none %v, wrong %v", v.Name, m.none, m.wrong)
		}
		if len(message) > 100 {
			continue
		}
		for i := range message {
			const some = "\x00\x1f 0e-\",:{}[]\\nu\xff"
			c := some[(n+i)%len(some)]
			changed := bytes.Clone(message)
			switch (n + i) % 3 {
			case 0:
				changed[i] = c
			case 1:
				changed = slices.Insert(changed, i, c)
			case 2:
				changed = slices.Delete(changed, i, i+1)
			}
			checkDecode(t, changed)
		}
	}
}

// Whatever an application publishes can be shown, and is what it was.
func FuzzAppendEntry(f *testing.F) {
	for _, data := range []string{``, `{"a":[1]}`, ` 1 `, "\"\xff\"", `"é`, "\x00", `{"a":1}}`, strings.Repeat("[", 61) + strings.Repeat("]", 61), strings.Repeat("[", 62) + strings.Repeat("]", 62)} {
		for kind := range byte(5) {
			f.Add([]byte(data), kind, "key", int64(1), "topic")
		}
	}
	f.Add([]byte("1"), byte(1), "\xff\"\\\n\u2028", int64(-1), "\xe2\x82")
	f.Fuzz(func(t *testing.T, data []byte, kind byte, key string, at int64, topic string) {
		before := bytes.Clone(data)
		e := replay.Entry{Pos: replay.Position{Epoch: 1, Seq: 1, Tag: 1}, At: time.UnixMilli(at), Key: key, Data: data}
		text := AppendEntry(nil, &e, Kind(kind))
		if !bytes.Equal(data, before) {
			t.Fatal("AppendEntry has changed the data")
		}
		if !json.Valid(text) || !utf8.Valid(text) {
			t.Fatalf("%q, not JSON", text)
		}
		message := AppendEntries(nil, topic, replay.Position{}, [][]byte{text, text}, replay.Position{}, 0)
		var got Frame
		if err := Decode(message, &got); err != nil {
			t.Fatalf("%q: %v", message, err)
		}
		want := Entry{e.Pos, max(at, 0), string([]rune(key)), Payload{Binary, data}}
		switch {
		case kind == byte(None) && len(bytes.Trim(data, jsonSpace)) < len(data) && utf8.Valid(data):
			want.Kind = Text
		case kind <= byte(JSON) && json.Valid(data) && utf8.Valid(data) && deep(data) <= maxDepth-payloadDepth:
			want.Payload = Payload{JSON, bytes.Trim(data, jsonSpace)}
		case kind <= byte(Text) && utf8.Valid(data):
			want.Kind = Text
		}
		if d := diff(Frame{Type: Entries, Topic: string([]rune(topic)), Entries: []Entry{want, want}}, got); d != "" {
			t.Fatalf("%q is decoded as (-want +got):\n%s", message, d)
		}
	})
}

func FuzzString(f *testing.F) {
	for _, s := range []string{"", "a", "\"\\/\b\f\n\r\t\x00\x1f\x7f", "é€😀\u2028\uFFFD", "\xff", "\xe2\x82", "a\xe2\x82\"", "\xf0\x9f\x98a", "\xed\xa0\x80", `\u0041\ud83d\ude00\ud83d`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		text := appendString(nil, s)
		if fromBytes := appendString(nil, []byte(s)); !bytes.Equal(fromBytes, text) {
			t.Fatalf("%q is written as %q, and as bytes as %q", s, text, fromBytes)
		}
		want := string([]rune(s)) // each bad byte becomes U+FFFD
		var got string
		if err := json.Unmarshal(text, &got); err != nil || got != want || !utf8.Valid(text) {
			t.Fatalf("%q is written as %q, which says %q, %v", s, text, got, err)
		}
		// And s as what stands between quotes.
		quoted := []byte(`"` + s + `"`)
		r := reader{b: quoted}
		_, escaped := r.str()
		whole := r.err == "" && r.i == len(quoted)
		if whole != json.Valid(quoted) {
			t.Fatalf("%q is a string: %v, for encoding/json: %v", quoted, whole, !whole)
		}
		if whole && escaped != bytes.ContainsRune(quoted, '\\') {
			t.Fatalf("%q has escapes: %v", quoted, escaped)
		}
	})
}
