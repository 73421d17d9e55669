package redisplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/replay"
)

// What goes to Redis and comes back. The scripts say what the formats are; all
// numbers are big-endian.

const (
	headSize    = 36
	recordSize  = 28
	entryHeader = 24
	bodyHeader  = 6
)

var errFormat = errors.New("redisplane: malformed data in Redis")

// appendBody appends a tag and the body of an entry: length of key, length of data,
// key, data.
func appendBody(b []byte, tag uint32, m backplane.Message) []byte {
	b = binary.BigEndian.AppendUint32(b, tag)
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Key)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.Data)))
	b = append(b, m.Key...)
	return append(b, m.Data...)
}

// epochText is how an epoch stands in Redis: 16 hexadecimal digits.
func epochText(epoch uint64) string { return fmt.Sprintf("%016x", epoch) }

func parseEpoch(s string) (uint64, error) {
	e, err := strconv.ParseUint(s, 16, 64)
	if err != nil || len(s) != 16 || e == 0 {
		return 0, errFormat
	}
	return e, nil
}

// parseEntries takes a segment or an announcement apart. The data of the entries is
// that of s, without a copy.
func parseEntries(entries []replay.Entry, epoch uint64, s string) ([]replay.Entry, error) {
	b := []byte(s)
	for len(b) > 0 {
		if len(b) < entryHeader+bodyHeader {
			return nil, errFormat
		}
		key := int(binary.BigEndian.Uint16(b[24:]))
		size := entryHeader + bodyHeader + uint64(key) + uint64(binary.BigEndian.Uint32(b[26:]))
		if uint64(len(b)) < size {
			return nil, errFormat
		}
		end := int(size)
		e := replay.Entry{
			Pos:  replay.Position{Epoch: epoch, Seq: binary.BigEndian.Uint64(b), Tag: binary.BigEndian.Uint32(b[8:])},
			Prev: binary.BigEndian.Uint32(b[12:]),
			At:   time.UnixMicro(int64(binary.BigEndian.Uint64(b[16:]))),
			Key:  string(b[30 : 30+key]),
			Data: b[30+key : end : end],
		}
		if e.Pos.Seq == 0 {
			return nil, errFormat
		}
		entries = append(entries, e)
		b = b[end:]
	}
	return entries, nil
}

// A head is what Redis knows of a topic beside its entries.
type head struct {
	pos      replay.Position
	segments []segment
}

type segment struct {
	first uint64
	prev  uint32 // tag of the entry before
	bytes uint64
}

func parsePosition(s string) (p replay.Position, err error) {
	if len(s) < 28 {
		return p, errFormat
	}
	if p.Epoch, err = parseEpoch(s[:16]); err != nil {
		return p, err
	}
	p.Seq = binary.BigEndian.Uint64([]byte(s[16:24]))
	p.Tag = binary.BigEndian.Uint32([]byte(s[24:28]))
	return p, nil
}

func parseHead(s string) (h head, err error) {
	if len(s) < headSize || (len(s)-headSize)%recordSize != 0 {
		return h, errFormat
	}
	if h.pos, err = parsePosition(s); err != nil {
		return h, err
	}
	for b := []byte(s[headSize:]); len(b) > 0; b = b[recordSize:] {
		h.segments = append(h.segments, segment{
			first: binary.BigEndian.Uint64(b), prev: binary.BigEndian.Uint32(b[8:]), bytes: binary.BigEndian.Uint64(b[12:]),
		})
	}
	return h, nil
}

// before returns the place before segment i, or the head if there is none.
func (h *head) before(i int) replay.Position {
	if i >= len(h.segments) {
		return h.pos
	}
	s := h.segments[i]
	return replay.Position{Epoch: h.pos.Epoch, Seq: s.first - 1, Tag: s.prev}
}

// An announcement is "1" for the version, a letter for the kind, and what follows:
// e for entries: the epoch, and the entries, or none of them if they are large.
// m for an ephemeral message.
type announcement struct {
	ephemeral bool
	entries   []replay.Entry // none: a doorbell
	data      []byte
}

func parseAnnouncement(s string) (a announcement, err error) {
	if len(s) < 2 || s[0] != '1' {
		return a, errFormat
	}
	switch s[1] {
	case 'm':
		return announcement{ephemeral: true, data: []byte(s[2:])}, nil
	case 'e':
		if len(s) < 18 {
			return a, errFormat
		}
		epoch, err := parseEpoch(s[2:18])
		if err != nil {
			return a, err
		}
		a.entries, err = parseEntries(nil, epoch, s[18:])
		return a, err
	}
	return a, errFormat
}
