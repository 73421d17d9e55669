package wire

import (
	"encoding/json"
	"unicode/utf8"
)

// maxDepth is how deep objects and arrays may be nested in a frame. JSON does not
// bound it, and recursive readers, ours among them, have to. Around a payload there
// are at most three of them: the frame, its entries, and the entry. So that what was
// published can always be shown, a payload counts as within three wherever it stands.
const (
	maxDepth     = 64
	payloadDepth = 3
)

// A reader reads one JSON text (RFC 8259) from left to right. Package encoding/json
// would do, but for three things that matter here: it takes "T" for "t", it is five
// times as slow, and where a frame is mostly a payload that is passed on as it came
// it would look at that twice.
//
// After the first error i no longer moves, and everything returns nothing.
type reader struct {
	b   []byte
	i   int
	err string // what is wrong, empty if nothing is
}

func (r *reader) fail(what string) {
	if r.err == "" {
		r.err = what
	}
}

// space skips white space and returns the byte that follows, 0 at the end.
func (r *reader) space() byte {
	for r.i < len(r.b) {
		switch c := r.b[r.i]; c {
		case ' ', '\t', '\n', '\r':
			r.i++
		default:
			return c
		}
	}
	return 0
}

// next skips white space and the byte c, which has to follow.
func (r *reader) next(c byte) {
	if r.err != "" {
		return
	}
	if r.space() != c {
		r.fail("is not JSON")
		return
	}
	r.i++
}

// value skips a value of any kind and returns its text.
func (r *reader) value(depth int) []byte {
	if r.err != "" {
		return nil
	}
	c := r.space()
	start := r.i
	switch {
	case c == '"':
		r.str()
	case c == '{':
		r.object(depth, nil)
	case c == '[':
		r.array(depth, nil)
	case c == 't':
		r.word("true")
	case c == 'f':
		r.word("false")
	case c == 'n':
		r.word("null")
	default:
		r.number()
	}
	if r.err != "" {
		return nil
	}
	return r.b[start:r.i]
}

func (r *reader) word(w string) {
	if len(r.b)-r.i < len(w) || string(r.b[r.i:r.i+len(w)]) != w {
		r.fail("is not JSON")
		return
	}
	r.i += len(w)
}

// number skips what RFC 8259, section 6, calls a number.
func (r *reader) number() {
	digits := func() {
		start := r.i
		for r.i < len(r.b) && r.b[r.i]-'0' <= 9 {
			r.i++
		}
		if r.i == start {
			r.fail("is not JSON")
		}
	}
	at := func() byte {
		if r.i < len(r.b) {
			return r.b[r.i]
		}
		return 0
	}
	if at() == '-' {
		r.i++
	}
	if at() == '0' {
		r.i++
	} else {
		digits()
	}
	if at() == '.' {
		r.i++
		digits()
	}
	if at()|0x20 == 'e' {
		r.i++
		if c := at(); c == '+' || c == '-' {
			r.i++
		}
		digits()
	}
}

// str skips a string and returns its text with the quotes, and whether there is an
// escape in it.
func (r *reader) str() (text []byte, escaped bool) {
	if r.err != "" {
		return nil, false
	}
	if r.space() != '"' {
		r.fail("is not JSON")
		return nil, false
	}
	start := r.i
	for i := start + 1; i < len(r.b); i++ {
		c := r.b[i]
		if !special[c] {
			continue
		}
		switch {
		case c == '"':
			r.i = i + 1
			return r.b[start:r.i], escaped
		case c < 0x20:
			r.fail("is not JSON")
			return nil, false
		case c == '\\':
			escaped = true
			if i++; i == len(r.b) {
				break
			}
			switch r.b[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				for range 4 {
					if i++; i == len(r.b) || !isHex(r.b[i]) {
						r.fail("is not JSON")
						return nil, false
					}
				}
			default:
				r.fail("is not JSON")
				return nil, false
			}
		}
	}
	r.fail("is not JSON")
	return nil, false
}

// special are the bytes of a string that are more than themselves or cannot stand
// there.
var special = func() (t [256]bool) {
	for c := range 0x20 {
		t[c] = true
	}
	t['"'], t['\\'] = true, true
	return t
}()

func isHex(c byte) bool { return c-'0' <= 9 || c|0x20-'a' <= 5 && c|0x20 >= 'a' }

// object reads an object and calls member for each of its members, to read the
// value; nil skips all.
func (r *reader) object(depth int, member func(name []byte)) {
	r.next('{')
	if depth == maxDepth {
		r.fail("is nested too deep")
	}
	if r.err == "" && r.space() == '}' {
		r.i++
		return
	}
	for r.err == "" {
		name, escaped := r.str()
		r.next(':')
		if r.err != "" {
			return
		}
		if member == nil {
			r.value(depth + 1)
		} else {
			if escaped {
				name = []byte(`"` + unquote(name) + `"`)
			}
			member(name[1 : len(name)-1])
		}
		if r.err != "" {
			return
		}
		if r.space() == ',' {
			r.i++
			continue
		}
		r.next('}')
		return
	}
}

// array reads an array and calls element for each of its elements.
func (r *reader) array(depth int, element func()) {
	r.next('[')
	if depth == maxDepth {
		r.fail("is nested too deep")
	}
	if r.err == "" && r.space() == ']' {
		r.i++
		return
	}
	for r.err == "" {
		if element == nil {
			r.value(depth + 1)
		} else {
			element()
		}
		if r.err != "" {
			return
		}
		if r.space() == ',' {
			r.i++
			continue
		}
		r.next(']')
		return
	}
}

// unquote returns what a string of JSON says that is known to be one. Halves of
// surrogate pairs become U+FFFD.
func unquote(text []byte) string {
	var s string
	if json.Unmarshal(text, &s) != nil {
		return ""
	}
	return s
}

// jsonText returns the JSON value that b is, if it is one in UTF-8 that may stand in
// a frame as a payload, without white space around it, and else nil.
func jsonText(b []byte) []byte {
	r := reader{b: b}
	text := r.value(payloadDepth)
	r.space()
	if r.err != "" || r.i < len(b) || !utf8.Valid(b) {
		return nil
	}
	return text
}

const hex = "0123456789abcdef"

// appendString appends s as a JSON string. What is not UTF-8 becomes U+FFFD.
func appendString[T string | []byte](b []byte, s T) []byte {
	b = append(b, '"')
	done := 0
	for i := 0; i < len(s); {
		c := s[i]
		if !special[c] && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, n := decodeRune(s[i:])
			if r != utf8.RuneError || n != 1 {
				i += n
				continue
			}
		}
		b = append(b, s[done:i]...)
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, '\\', 'n')
		case c >= utf8.RuneSelf:
			b = append(b, "\uFFFD"...)
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		done = i
	}
	b = append(b, s[done:]...)
	return append(b, '"')
}

func decodeRune[T string | []byte](s T) (rune, int) {
	return utf8.DecodeRuneInString(string(s[:min(len(s), utf8.UTFMax)]))
}
