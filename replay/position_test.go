package replay

import (
	"encoding/json"
	"errors"
	"math"
	"net/url"
	"regexp"
	"strings"
	"testing"
)

func TestPositionTextIsShortAndRoundTrips(t *testing.T) {
	safe := regexp.MustCompile(`^[A-Za-z0-9_-]*$`)
	tests := []struct {
		reason string
		pos    Position
		length int
	}{
		{"no position", Position{}, 0},
		{"the start of an epoch", Position{Epoch: 1}, 18},
		{"a small number", Position{Epoch: math.MaxUint64, Seq: 127, Tag: 1}, 18},
		{"a usual number", Position{Epoch: 0x123456789abcdef0, Seq: 1_000_000, Tag: 0xdeadbeef}, 20},
		{"a large number", Position{Epoch: 1, Seq: 1 << 30, Tag: 1}, 23},
		{"above what a JavaScript number holds", Position{Epoch: 1, Seq: 1<<53 + 1, Tag: 1}, 27},
		{"the largest", Position{math.MaxUint64, math.MaxUint64, math.MaxUint32}, 30},
		{"no epoch, which no log has", Position{Seq: 1}, 18},
		{"only a tag", Position{Tag: 1}, 18},
	}
	seen := map[string]bool{}
	for _, tt := range tests {
		text := tt.pos.String()
		if len(text) != tt.length || !safe.MatchString(text) || url.QueryEscape(text) != text {
			t.Errorf("%s: %+v is %q, want %d safe characters", tt.reason, tt.pos, text, tt.length)
		}
		if seen[text] {
			t.Errorf("%s: %q stands for two positions", tt.reason, text)
		}
		seen[text] = true
		if got, err := ParsePosition(text); got != tt.pos || err != nil {
			t.Errorf("%s: ParsePosition(%q) = %+v, %v, want %+v", tt.reason, text, got, err, tt.pos)
		}
		encoded, err := json.Marshal(struct{ P Position }{tt.pos})
		if err != nil || string(encoded) != `{"P":"`+text+`"}` {
			t.Errorf("%s: as JSON %s, %v", tt.reason, encoded, err)
		}
		decoded := struct{ P Position }{Position{9, 9, 9}}
		if err := json.Unmarshal(encoded, &decoded); decoded.P != tt.pos || err != nil {
			t.Errorf("%s: back from JSON %+v, %v", tt.reason, decoded.P, err)
		}
	}
	if !(Position{}).IsZero() || (Position{Tag: 1}).IsZero() {
		t.Error("IsZero")
	}
	if text, err := (Position{Epoch: 1}).AppendText([]byte("at ")); string(text) != "at AAAAAAAAAAABAAAAAA" || err != nil {
		t.Errorf("AppendText = %q, %v", text, err)
	}
}

func TestMalformedPositionsAreRefusedWithTheReason(t *testing.T) {
	good := Position{Epoch: 0x0123456789abcdef, Seq: 300, Tag: 0xfedcba98}.String()
	tests := []struct{ text, want string }{
		{" ", "alphabet"},
		{"null", "too short"},
		{"undefined", "base64"},
		{"0", "base64"},
		{"42", "base64"},
		{good[:len(good)-1], "canonical"},
		{good[:len(good)-3], "too short"},
		{good + "A", "1 bytes too many"},
		{good + "AA", "base64"},
		{good + "AAAA", "3 bytes too many"},
		{good + "=", `'='`},
		{good[:5] + "\n" + good[5:], `'\n'`},
		{good[:5] + "+" + good[6:], `'+'`},
		{good[:5] + "/" + good[6:], `'/'`},
		{good + "\x00", `'\x00'`},
		{"ж" + good, "alphabet"},
		{"AAAAAAAAAAAAAAAAAA", "empty text"},
		{encoding.EncodeToString(append([]byte{0x80, 0x00}, make([]byte, 11)...)), "too short"},
		{encoding.EncodeToString(append([]byte{0x81, 0x00}, make([]byte, 12)...)), "shortest form"},
		{encoding.EncodeToString(append(append([]byte{}, strings.Repeat("\xff", 9)...), append([]byte{2}, make([]byte, 12)...)...)), "64 bits"},
		{strings.Repeat("A", 31), "too long"},
		{strings.Repeat("\n", 1<<20), "too long"},
	}
	for _, tt := range tests {
		p, err := ParsePosition(tt.text)
		var bad *PositionError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), tt.want) || !p.IsZero() {
			t.Errorf("ParsePosition(%.40q) = %+v, %v; want an error that says %q", tt.text, p, err, tt.want)
			continue
		}
		if len(bad.Error()) > 300 || strings.ContainsAny(bad.Error(), "\n\x00") {
			t.Errorf("the error for %.40q is not fit for a log: %q", tt.text, bad.Error())
		}
		q := Position{1, 2, 3}
		if err := q.UnmarshalText([]byte(tt.text)); err == nil || q != (Position{1, 2, 3}) {
			t.Errorf("UnmarshalText(%.40q) = %v and leaves %+v", tt.text, err, q)
		}
	}
	var p Position
	if err := json.Unmarshal([]byte(`12345`), &p); err == nil {
		t.Error("a JSON number is taken for a position")
	}
}

func FuzzPosition(f *testing.F) {
	f.Add("", uint64(0), uint64(0), uint32(0))
	f.Add("rAIBI0VniavN7_7cupg", uint64(1), uint64(1)<<63, uint32(1))
	f.Add("AAAAAAAAAAAAAAAAAA", uint64(math.MaxUint64), uint64(math.MaxUint64), uint32(math.MaxUint32))
	safe := regexp.MustCompile(`^[A-Za-z0-9_-]{0,30}$`)
	f.Fuzz(func(t *testing.T, text string, epoch, seq uint64, tag uint32) {
		// A text is either refused or the one text of its position.
		if p, err := ParsePosition(text); err == nil {
			if got := p.String(); got != text {
				t.Errorf("%q is parsed as %+v, whose text is %q", text, p, got)
			}
		} else if !p.IsZero() {
			t.Errorf("ParsePosition(%q) = %+v beside the error %v", text, p, err)
		}
		p := Position{epoch, seq, tag}
		encoded := p.String()
		if !safe.MatchString(encoded) {
			t.Errorf("the text of %+v is %q", p, encoded)
		}
		if got, err := ParsePosition(encoded); got != p || err != nil {
			t.Errorf("%+v has the text %q, which is parsed as %+v, %v", p, encoded, got, err)
		}
	})
}

func BenchmarkPosition(b *testing.B) {
	p := Position{Epoch: 0x123456789abcdef0, Seq: 1_000_000, Tag: 0xdeadbeef}
	b.Run("AppendText", func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		for b.Loop() {
			buf, _ = p.AppendText(buf[:0])
		}
	})
	b.Run("Parse", func(b *testing.B) {
		b.ReportAllocs()
		text := p.String()
		for b.Loop() {
			ParsePosition(text)
		}
	})
}
