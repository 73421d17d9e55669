package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/holdfast-ws/holdfast/replay"
)

// A vector is one of testdata/vectors.json, which PROTOCOL.md, section 10,
// describes: it is for implementations in all languages.
type vector struct {
	Name, Why, Loose string
	Text             *string
	Bytes            []byte `json:"bytes_base64"`
	Decode           *neutral
	Error            *FrameError
	Canonical        string
}

func (v *vector) message() []byte {
	if v.Text != nil {
		return []byte(*v.Text)
	}
	return v.Bytes
}

// canonical is v.Canonical, with the biggest int that there is here in place of that of 64 bits.
func (v *vector) canonical() string {
	own := strconv.Itoa(math.MaxInt)
	return strings.NewReplacer(`"last":9223372036854775807`, `"last":`+own, `"v":9223372036854775807`, `"v":`+own).Replace(v.Canonical)
}

// A neutral says what is in a frame in a way that any language can.
type neutral struct {
	T, Topic, ID, Key, Token, Conn, Node, Reason, Outcome, Code, Field, Message string
	V, Ref, Last, Beat, Timeout, Conflated, Missed, Retry, Window               number

	Beats                            bool
	From                             []replay.Position
	Floor, Base, Head, Prev, To, Pos replay.Position

	Limits  struct{ Message, Topics, Pending, History number }
	Late    []neutral
	Entries []neutral
	At      number
	Payload struct {
		Kind   string
		UTF8   *string
		Base64 []byte
	}
}

// A number is one, or where that may not be exact, a string of digits.
type number uint64

func (n *number) UnmarshalJSON(text []byte) error {
	u, err := strconv.ParseUint(string(bytes.Trim(text, `"`)), 10, 64)
	*n = number(u)
	return err
}

func (n number) int() int { return int(min(uint64(n), math.MaxInt)) }

func (n *neutral) payload() (p Payload) {
	p.Kind = Kind(slices.Index([]string{"", "data", "text", "bin"}, n.Payload.Kind))
	p.Data = n.Payload.Base64
	if s := n.Payload.UTF8; s != nil {
		p.Data = []byte(*s)
	}
	return p
}

func (n *neutral) frame() Frame {
	f := Frame{
		Type: n.T, Version: n.V.int(), Ref: uint64(n.Ref), Topic: n.Topic, ID: n.ID, Key: n.Key,
		Token: n.Token, Beats: n.Beats, From: n.From, Last: n.Last.int(), Floor: n.Floor,
		Conn: n.Conn, Node: n.Node, Beat: int64(n.Beat), Timeout: int64(n.Timeout),
		Limits: Limits{n.Limits.Message.int(), n.Limits.Topics.int(), n.Limits.Pending.int(), n.Limits.History.int()},
		Base:   n.Base, Head: n.Head, Prev: n.Prev, To: n.To, Conflated: n.Conflated.int(),
		Reason: n.Reason, Missed: uint64(n.Missed), Pos: n.Pos, Outcome: n.Outcome, Retry: int64(n.Retry),
		Code: n.Code, Field: n.Field, Message: n.Message, Window: int64(n.Window), Payload: n.payload(),
	}
	for _, l := range n.Late {
		f.Late = append(f.Late, Late{l.Pos, l.Reason, uint64(l.Missed)})
	}
	for _, e := range n.Entries {
		f.Entries = append(f.Entries, Entry{e.Pos, int64(e.At), e.Key, e.payload()})
	}
	return f
}

func readVectors(t testing.TB) []vector {
	file, err := os.Open("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	d := json.NewDecoder(file)
	d.DisallowUnknownFields()
	var vectors []vector
	if err := d.Decode(&vectors); err != nil {
		t.Fatal(err)
	}
	return vectors
}

// diff says how two frames differ. It does not matter whether what is empty is nil.
func diff(want, got Frame) string { return cmp.Diff(want, got, cmpopts.EquateEmpty()) }

// full returns a frame with something in every field, and more of it in the memory
// that its slices have beyond their ends.
func full() Frame {
	p := replay.Position{Epoch: 1, Seq: 2, Tag: 3}
	payload := Payload{Binary, []byte("of before")}
	f := Frame{
		Type: "before", Version: 1, Ref: 1, Topic: "before", ID: "before", Key: "before", Token: "before", Beats: true,
		From: []replay.Position{p, p, p}, Last: 1, Floor: p, Conn: "before", Node: "before", Beat: 1, Timeout: 1,
		Limits: Limits{1, 1, 1, 1}, Base: p, Head: p, Late: []Late{{p, "before", 1}, {p, "before", 1}, {p, "before", 1}},
		Prev: p, Entries: []Entry{{p, 1, "before", payload}, {p, 1, "before", payload}, {p, 1, "before", payload}}, To: p, Conflated: 1,
		Reason: "before", Missed: 1, Pos: p, Outcome: "before", Retry: 1, Code: "before", Field: "before", Message: "before",
		Window: 1, Payload: payload,
	}
	f.From, f.Late, f.Entries = f.From[:1], f.Late[:2], f.Entries[:2]
	return f
}

func TestFullIsFull(t *testing.T) {
	v := reflect.ValueOf(full())
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("full leaves %s empty, and so the tests do not see whether that is kept from frame to frame", v.Type().Field(i).Name)
		}
	}
}

func TestVectors(t *testing.T) {
	reused := full()
	for _, v := range readVectors(t) {
		message := v.message()
		before := bytes.Clone(message)
		for _, into := range []struct {
			name  string
			frame Frame
		}{{"a new frame", Frame{}}, {"a full frame", full()}, {"the frame of all vectors", reused}} {
			f := into.frame
			err := Decode(message, &f)
			if !bytes.Equal(message, before) {
				t.Fatalf("%s: Decode has changed the message", v.Name)
			}
			reused = f
			if v.Error != nil {
				var bad *FrameError
				if !errors.As(err, &bad) || bad.Code != v.Error.Code || bad.Field != v.Error.Field || bad.Reason == "" {
					t.Errorf("%s (%s): decoded into %s, the error is %#v, want code %q and field %q", v.Name, v.Why, into.name, err, v.Error.Code, v.Error.Field)
				}
				continue
			}
			want := v.Decode.frame()
			if err != nil {
				t.Errorf("%s (%s): decoded into %s: %v", v.Name, v.Why, into.name, err)
				continue
			}
			if d := diff(want, f); d != "" {
				t.Errorf("%s (%s): decoded into %s (-want +got):\n%s", v.Name, v.Why, into.name, d)
			}
			if got := string(f.Append([]byte("before"))); got != "before"+v.canonical() {
				t.Errorf("%s (%s): appended\ngot  %s\nwant %s", v.Name, v.Why, got, "before"+v.canonical())
			}
		}
		if v.Error != nil {
			continue
		}
		want := v.Decode.frame()
		if got := string(want.Append(nil)); got != v.canonical() {
			t.Errorf("%s (%s): what it should be is appended as\n     %s\nwant %s", v.Name, v.Why, got, v.canonical())
		}
		var again Frame
		if err := Decode([]byte(v.Canonical), &again); err != nil {
			t.Errorf("%s (%s): what is appended is no frame: %v", v.Name, v.Why, err)
		} else if d := diff(want, again); d != "" {
			t.Errorf("%s (%s): what is appended is decoded as (-want +got):\n%s", v.Name, v.Why, d)
		}
		// No frame is a part of another one.
		for n := range min(len(v.Canonical), 500) {
			if Decode([]byte(v.Canonical[:n]), &again) == nil {
				t.Errorf("%s: %s is cut off, and is taken for a frame", v.Name, v.Canonical[:n])
			}
		}
	}
}

// A member or a type that is new must come with vectors.
func TestVectorsAreComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, v := range readVectors(t) {
		switch {
		case seen[v.Name]:
			t.Errorf("two vectors are called %q", v.Name)
		case (v.Text == nil) == (v.Bytes == nil), (v.Decode == nil) == (v.Error == nil), (v.Decode == nil) != (v.Canonical == ""):
			t.Errorf("%q must have either text or bytes_base64, and either an error or decode and canonical", v.Name)
		}
		seen[v.Name] = true
		if v.Error != nil {
			seen["wrong "+v.Error.Field] = true
			seen["code "+v.Error.Code] = true
			continue
		}
		members := map[string]json.RawMessage{}
		if err := json.Unmarshal([]byte(v.Canonical), &members); err != nil {
			t.Errorf("%q: %v", v.Name, err)
		}
		typ := v.Decode.T
		seen[typ] = true
		for m := range members {
			seen[typ+" "+m] = true
		}
		if json.Unmarshal(v.message(), &members) == nil {
			for m, value := range members {
				if string(value) == "null" {
					seen[typ+" null "+m] = true
				}
			}
		}
	}
	for _, f := range frames {
		for _, what := range append([]string{""}, f.members...) {
			if what = strings.TrimSuffix(f.typ+" "+what, " "); !seen[what] {
				t.Errorf("there is no vector for %s", what)
			}
		}
		for _, m := range f.members {
			if m != "data" && !seen["wrong "+m] {
				t.Errorf("there is no vector with a wrong %s", m)
			}
			if m != "data" && !seen[f.typ+" null "+m] {
				t.Errorf("there is no vector of %s with a null for %s", f.typ, m)
			}
		}
	}
	for _, code := range []string{BadFrame, BadPosition} {
		if !seen["code "+code] {
			t.Errorf("there is no vector for the error %s", code)
		}
	}
}

func TestMembersOfOtherTypesAreIgnoredWhateverTheyHold(t *testing.T) {
	all := map[string]bool{}
	for _, f := range frames {
		for _, m := range f.members {
			all[m] = true
		}
	}
	for _, f := range frames {
		for m := range all {
			typ := `"t":"` + f.typ + `"`
			wrong := `"` + m + `":{"a":["b"]}` // for all of them but data and limits
			for _, text := range []string{"{" + typ + "," + wrong + "}", "{" + wrong + "," + typ + "}"} {
				var got Frame
				err := Decode([]byte(text), &got)
				if slices.Contains(f.members, m) {
					if m != "data" && m != "limits" && err == nil {
						t.Errorf("%s is taken for a frame", text)
					}
				} else if d := diff(Frame{Type: f.typ}, got); err != nil || d != "" {
					t.Errorf("%s: %v, decoded as (-want +got):\n%s", text, err, d)
				}
			}
		}
	}
}
