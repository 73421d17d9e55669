package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/holdfast-ws/holdfast/replay"
)

func TestErrorsSayWhatIsWrong(t *testing.T) {
	tests := []struct{ text, want string }{
		{``, "the frame is not a JSON object"},
		{`[]`, "the frame is not a JSON object"},
		{"{\"t\":\"\xff\"}", "the frame is not UTF-8"},
		{`{"t":"ping"`, "the frame is not JSON"},
		{`{"t":"ping"}}`, "the frame has something after the object"},
		{`{"t":"ping","x":` + strings.Repeat("[", 64), "the frame is nested too deep"},
		{`{}`, "t is missing"},
		{`{"t":7}`, "t is not a string"},
		{`{"t":"auth","token":"` + strings.Repeat("x", MaxToken+1) + `"}`, "token has 8193 bytes, more than 8192"},
		{`{"t":"hello","v":-1}`, "v is not a whole number of 0 or more"},
		{`{"t":"hello","beats":1}`, "beats is not true or false"},
		{`{"t":"subscribe","floor":"x"}`, "floor is not a position"},
		{`{"t":"subscribe","from":7}`, "from is not an array"},
		{`{"t":"subscribe","from":[` + strings.Repeat(`"",`, MaxFrom) + `""]}`, "from has more than 64 elements"},
		{`{"t":"welcome","limits":7}`, "limits is not what it should be"},
		{`{"t":"entries","entries":[7]}`, "entries is not what it should be"},
		{`{"t":"entries","entries":[{}]}`, "pos is missing"},
		{`{"t":"publish","bin":"A"}`, "bin is not base64"},
		{`{"t":"publish","text":"","data":1}`, "data stands beside another payload"},
	}
	for _, tt := range tests {
		var f Frame
		err := Decode([]byte(tt.text), &f)
		if err == nil || err.Error() != tt.want {
			t.Errorf("the error for %.80q is %v, want %s", tt.text, err, tt.want)
		}
	}
}

// What is right can be used to answer what is wrong.
func TestFieldsThatAreRightAreReadBesideOneThatIsNot(t *testing.T) {
	for _, text := range []string{
		`{"t":"subscribe","from":"x","topic":"a","ref":7}`,
		`{"ref":7,"topic":"a","from":["x"],"t":"subscribe"}`,
		`{"t":"subscribe","ref":7,"last":"x","topic":"a"}`,
	} {
		var f Frame
		err := Decode([]byte(text), &f)
		var bad *FrameError
		if !errors.As(err, &bad) || bad.Field == "" || f.Type != Subscribe || f.Topic != "a" || f.Ref != 7 {
			t.Errorf("%s is decoded as %+v, %v", text, f, err)
		}
	}
}

func TestNumbersThatTheProtocolDoesNotHaveAreNotWritten(t *testing.T) {
	p := replay.Position{Epoch: 1}
	f := Frame{
		Type: "x", Version: -1, Last: -1, Beat: -1, Timeout: -1, Conflated: -1, Retry: math.MinInt64, Window: -1,
		Limits:  Limits{-1, -1, -1, -1},
		Entries: []Entry{{Pos: p, At: -1}},
	}
	if got, want := string(f.Append(nil)), `{"t":"x","limits":{},"entries":[{"pos":"`+p.String()+`"}]}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	f = Frame{Ref: math.MaxUint64, Missed: math.MaxUint64, Late: []Late{{Missed: math.MaxInt64 + 1}}}
	if got, want := string(f.Append(nil)), `{"ref":18446744073709551615,"late":[{"missed":9223372036854775808}],"missed":18446744073709551615}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for _, at := range []time.Time{{}, time.UnixMilli(0), time.UnixMilli(-5), time.Date(1, 2, 3, 4, 5, 6, 7, time.UTC)} {
		e := replay.Entry{Pos: p, At: at, Data: []byte("1")}
		if got, want := string(AppendEntry(nil, &e, JSON)), `{"pos":"`+p.String()+`","data":1}`; got != want {
			t.Errorf("an entry of %v\ngot  %s\nwant %s", at, got, want)
		}
	}
	if got, want := string(AppendEntries(nil, "a", p, nil, p, -1)), `{"t":"entries","topic":"a","prev":"`+p.String()+`","to":"`+p.String()+`"}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestAppendEntriesWritesWhatAppendDoes(t *testing.T) {
	pos := func(n uint64) replay.Position { return replay.Position{Epoch: 1, Seq: n, Tag: 5} }
	f := Frame{Type: Entries, Topic: "a\"b", Prev: pos(1)}
	var shared [][]byte
	for n, e := range []replay.Entry{
		{Pos: pos(2), At: time.UnixMilli(7), Data: []byte(`{"a":1}`)},
		{Pos: pos(3), Key: "k\n", Data: []byte(`"`)},
		{Pos: pos(4), Data: []byte{0xff}},
	} {
		shared = append(shared, AppendEntry(nil, &e, JSON))
		f.Entries = append(f.Entries, Entry{Pos: e.Pos, Key: e.Key, Payload: Payload{Kind(n + 1), e.Data}})
	}
	f.Entries[0].At = 7
	for n := range len(shared) + 1 {
		f := f
		f.Entries, f.To, f.Conflated = f.Entries[:n], pos(uint64(9*n)), n
		got := AppendEntries([]byte("before"), f.Topic, f.Prev, shared[:n], f.To, f.Conflated)
		if want := f.Append([]byte("before")); !bytes.Equal(got, want) {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestFit(t *testing.T) {
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	tests := []struct {
		reason, data string
		ask, want    Kind
	}{
		{"JSON", `{"a":1}`, JSON, JSON},
		{"None prefers JSON", `1`, None, JSON},
		{"None keeps every byte", "1\n", None, Text},
		{"None keeps every byte", " 1", None, Text},
		{"null is JSON", `null`, JSON, JSON},
		{"text is not looked into", `1`, Text, Text},
		{"nor is binary", `1`, Binary, Binary},
		{"nor what is beyond", `1`, Binary + 1, Binary},
		{"nothing is not JSON", ``, JSON, Text},
		{"nothing as binary", ``, Binary, Binary},
		{"white space alone is not JSON", " \n", JSON, Text},
		{"two values are not JSON", `1 2`, JSON, Text},
		{"what is cut off is not JSON", `{"a":`, JSON, Text},
		{"a word that is cut off", `tru`, JSON, Text},
		{"NUL after it", "1\x00", JSON, Text},
		{"not UTF-8", "\"\xff\"", JSON, Binary},
		{"not UTF-8, as text", "\xff", Text, Binary},
		{"NUL is text", "\x00", JSON, Text},
		{"as deep as may be", deep(61), JSON, JSON},
		{"too deep to stand in a frame", deep(62), JSON, Text},
	}
	for _, tt := range tests {
		got := Fit(tt.ask, []byte(tt.data))
		if got.Kind != tt.want || string(got.Data) != tt.data {
			t.Errorf("%s: Fit(%v, %.20q) is %v %q, want %v", tt.reason, tt.ask, tt.data, got.Kind, got.Data, tt.want)
		}
	}
	if got := Fit(JSON, []byte("\n\t {\"a\": 1}\r\n")); got.Kind != JSON || string(got.Data) != `{"a": 1}` {
		t.Errorf("white space around JSON is kept: %v %q", got.Kind, got.Data)
	}
}

func TestKindsHaveNames(t *testing.T) {
	for kind, want := range map[Kind]string{None: "none", JSON: "JSON", Text: "text", Binary: "binary", 9: "Kind(9)"} {
		if got := kind.String(); got != want {
			t.Errorf("%d is %q, want %q", kind, got, want)
		}
	}
}

// Strings that are not UTF-8 come from applications: topics, keys. Wherever the bad
// bytes stand, the frame is UTF-8, and what is around them is kept.
func TestStringsThatAreNotUTF8AreMended(t *testing.T) {
	bad := []string{"\xff", "\x80", "\xc0\xaf", "\xe2\x82", "\xf0\x9f\x98", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\"", "\xf0\x9f\n"}
	for _, around := range []string{"", "a", "é", "€", "😀", "\"", "\\", "\n", "\x01", "\uFFFD"} {
		for _, bad := range bad {
			for _, s := range []string{bad, around + bad, bad + around, around + bad + around, bad + around + bad} {
				want := string([]rune(s))
				got := appendString(nil, s)
				if fromBytes := appendString(nil, []byte(s)); !bytes.Equal(got, fromBytes) {
					t.Errorf("%q is written as %s, and as bytes as %s", s, got, fromBytes)
				}
				var back string
				if err := json.Unmarshal(got, &back); err != nil || back != want || !utf8.Valid(got) {
					t.Errorf("%q is written as %q, which says %q, %v; want %q", s, got, back, err, want)
				}
			}
		}
	}
}

// A server reads frames of strangers, and keeps the memory of a Frame for the next.
func TestABadFrameTakesLittleMemory(t *testing.T) {
	const n = 10000
	for _, text := range []string{
		`{"t":"entries","entries":[` + strings.Repeat(`{},`, n) + `{}]}`,
		`{"t":"entries","entries":[` + strings.Repeat(`null,`, n) + `{}]}`,
		`{"t":"subscribed","late":[` + strings.Repeat(`{},`, n) + `{}]}`,
		`{"t":"subscribe","from":[` + strings.Repeat(`"",`, n) + `""]}`,
	} {
		var f Frame
		if err := Decode([]byte(text), &f); err == nil {
			t.Errorf("%.40s is taken for a frame", text)
		}
		if len(f.Entries) > 1 || cap(f.Entries) > 16 || cap(f.From) > 2*MaxFrom || cap(f.Late) > 2*MaxFrom {
			t.Errorf("%.40s leaves room for %d entries, %d from, %d late", text, cap(f.Entries), cap(f.From), cap(f.Late))
		}
	}
}

// What was in a frame can be collected, although its slices are used again.
func TestAFrameDoesNotHoldWhatWasInItBefore(t *testing.T) {
	var f Frame
	if err := Decode(entriesFrame(3), &f); err != nil {
		t.Fatal(err)
	}
	if err := Decode([]byte(`{"t":"ping"}`), &f); err != nil {
		t.Fatal(err)
	}
	for _, e := range f.Entries[:3] {
		if e.Data != nil || e.Key != "" {
			t.Errorf("an entry of before is still there: %+v", e)
		}
	}
}

func TestAllocations(t *testing.T) {
	one, many := entriesFrame(1), entriesFrame(64)
	shared := [][]byte{one, one}
	e := entry(1)
	ack := Frame{Type: Ack, ID: "1", Outcome: Committed, Pos: e.Pos}
	buf := make([]byte, 0, 4096)
	var f Frame
	decode := func(message []byte) func() {
		return func() {
			if err := Decode(message, &f); err != nil {
				t.Error(err)
			}
		}
	}
	decode(many)()
	tests := []struct {
		what string
		max  float64
		do   func()
	}{
		{"Decode of an entry of the same topic", 0, decode(one)},
		{"Decode of 64 entries of the same topic", 0, decode(many)},
		{"Decode of a beat", 0, decode([]byte(`{"t":"beat"}`))},
		{"Decode of a publish: its id and its topic", 2, decode([]byte(`{"t":"publish","id":"1234","topic":"room/7","data":{"a":"b"}}`))},
		{"AppendEntry of JSON", 0, func() { AppendEntry(buf, &e, JSON) }},
		{"AppendEntry of text", 0, func() { AppendEntry(buf, &e, Text) }},
		{"AppendEntry of bytes", 0, func() { AppendEntry(buf, &e, Binary) }},
		{"AppendEntries", 0, func() { AppendEntries(buf, "room/7", e.Pos, shared, e.Pos, 1) }},
		{"Append of an ack", 0, func() { ack.Append(buf) }},
	}
	for _, tt := range tests {
		if n := testing.AllocsPerRun(100, tt.do); n > tt.max {
			t.Errorf("%s allocates %v times, want at most %v", tt.what, n, tt.max)
		}
	}
}
