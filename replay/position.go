package replay

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
)

// A Position names an entry of a log, and so the place just after it: who has
// read that entry continues with the next. It names the entry by identity and
// not only by number. The Epoch says which life of the log the number belongs to
// (a log that was lost and began again numbers from 1 again), and the Tag says
// which of two entries that were given the same number in the same epoch is
// meant (a broker that fails over to a replica which had missed some writes
// hands out their numbers a second time).
//
// The zero Position means "no position", which is not the same as the start of
// a log: {Epoch: e} is the place before the first entry of epoch e.
//
// Positions are compared with ==. To users they are opaque: their text form is
// what travels.
type Position struct {
	Epoch uint64 // never 0 in a position of a log
	Seq   uint64 // 1 for the first entry of an epoch, then dense
	Tag   uint32 // random; 0 where Seq is 0
}

// maxRaw and maxPosition are the lengths of the longest position, before and
// after base64.
const (
	maxRaw      = binary.MaxVarintLen64 + 8 + 4
	maxPosition = (maxRaw*4 + 2) / 3
)

// encoding is strict: no padding, and no stray bits at the end, so that each
// position has one text.
var encoding = base64.RawURLEncoding.Strict()

// IsZero reports whether p is the zero Position, "no position".
func (p Position) IsZero() bool { return p == Position{} }

// String returns the text form of p: empty for the zero Position, and otherwise
// 18 to 30 characters out of A-Z a-z 0-9 - _, about 20 for most. It can stand in a URL,
// in JSON, in an HTTP header and in a JavaScript string as it is. Each position
// has exactly one text and each text at most one position.
func (p Position) String() string {
	text, _ := p.AppendText(nil)
	return string(text)
}

// AppendText appends what [Position.String] returns to b. It implements
// [encoding.TextAppender]; the error is always nil.
func (p Position) AppendText(b []byte) ([]byte, error) {
	if p.IsZero() {
		return b, nil
	}
	// The number comes first and says where it ends; what follows has a fixed
	// length. So a text that was cut off or added to cannot be mistaken.
	var raw [maxRaw]byte
	n := binary.PutUvarint(raw[:], p.Seq)
	binary.BigEndian.PutUint64(raw[n:], p.Epoch)
	binary.BigEndian.PutUint32(raw[n+8:], p.Tag)
	return encoding.AppendEncode(b, raw[:n+12]), nil
}

// MarshalText implements [encoding.TextMarshaler] with [Position.String].
func (p Position) MarshalText() ([]byte, error) { return p.AppendText(nil) }

// UnmarshalText implements [encoding.TextUnmarshaler] with [ParsePosition]. After
// an error p is unchanged.
func (p *Position) UnmarshalText(text []byte) error {
	q, err := parsePosition(text[:min(len(text), maxPosition+1)])
	if err == nil {
		*p = q
	}
	return err
}

// ParsePosition returns the position whose text form s is. The empty string is
// the zero Position. Any other text that [Position.String] does not return is
// refused with a [*PositionError]: it can only be the client's mistake, and
// guessing what was meant would lose messages in silence. A gateway answers it as
// bad input; one that prefers to carry on treats it as no position.
//
// A well-formed position proves nothing: everybody can make one up. Ask whether
// its bearer may read the topic, as for any other request.
func ParsePosition(s string) (Position, error) {
	return parsePosition([]byte(s[:min(len(s), maxPosition+1)]))
}

func parsePosition(text []byte) (p Position, err error) {
	bad := func(format string, args ...any) (Position, error) {
		return Position{}, &PositionError{string(text), fmt.Sprintf(format, args...)}
	}
	if len(text) == 0 {
		return Position{}, nil
	}
	if len(text) > maxPosition {
		return bad("too long")
	}
	for i, c := range text { // the decoder would skip line ends
		switch {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return bad("character %q at %d is not of the URL-safe base64 alphabet", rune(c), i)
		}
	}
	var buf [maxRaw]byte
	size, err := encoding.Decode(buf[:], text)
	if err != nil {
		return bad("not canonical base64")
	}
	raw := buf[:size]
	seq, n := binary.Uvarint(raw)
	switch {
	case n < 0:
		return bad("its number does not fit 64 bits")
	case n == 0 || size < n+12:
		return bad("too short")
	case size > n+12:
		return bad("%d bytes too many", size-n-12)
	case n > 1 && raw[n-1] == 0:
		return bad("its number is not in the shortest form")
	}
	p = Position{
		Seq:   seq,
		Epoch: binary.BigEndian.Uint64(raw[n:]),
		Tag:   binary.BigEndian.Uint32(raw[n+8:]),
	}
	if p.IsZero() {
		return bad("no position has the empty text")
	}
	return p, nil
}

// A PositionError says why a text is not a position.
type PositionError struct {
	Text   string // the text, cut off where it is too long
	Reason string // in words
}

// Error quotes the text, so that it cannot forge lines of a log.
func (e *PositionError) Error() string {
	return fmt.Sprintf("replay: position %q: %s", e.Text, e.Reason)
}
