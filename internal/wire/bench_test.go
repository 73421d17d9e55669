package wire

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/replay"
)

// entry returns the nth entry, with 128 bytes of JSON.
func entry(n int) replay.Entry {
	return replay.Entry{
		Pos:  replay.Position{Epoch: 0x123456789abcdef0, Seq: 1_000_000 + uint64(n), Tag: 0xdeadbeef},
		At:   time.UnixMilli(1790000000000 + int64(n)),
		Data: []byte(`{"user":"alice","text":"` + strings.Repeat("x", 128-26) + `"}`),
	}
}

// entriesFrame returns a frame of n such entries.
func entriesFrame(n int) []byte {
	var entries [][]byte
	for i := range n {
		e := entry(i + 1)
		entries = append(entries, AppendEntry(nil, &e, JSON))
	}
	return AppendEntries(nil, "room/7", entry(0).Pos, entries, replay.Position{}, 0)
}

// The floor is what package encoding/json takes for the same, without looking at
// the positions.
func BenchmarkDecodeEntries(b *testing.B) {
	for _, n := range []int{1, 64} {
		frame := entriesFrame(n)
		b.Run(fmt.Sprintf("n=%d/floor=encoding-json", n), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(frame)))
			for b.Loop() {
				var f struct {
					T       string `json:"t"`
					Topic   string `json:"topic"`
					Prev    string `json:"prev"`
					Entries []struct {
						Pos  string          `json:"pos"`
						At   int64           `json:"at"`
						Key  string          `json:"key"`
						Data json.RawMessage `json:"data"`
					} `json:"entries"`
				}
				if err := json.Unmarshal(frame, &f); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("n=%d/wire", n), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(frame)))
			var f Frame
			for b.Loop() {
				if err := Decode(frame, &f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendEntry(b *testing.B) {
	e := entry(1)
	for _, kind := range []Kind{JSON, Text, Binary} {
		b.Run(kind.String(), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(e.Data)))
			var buf []byte
			for b.Loop() {
				buf = AppendEntry(buf[:0], &e, kind)
			}
		})
	}
}

func BenchmarkAppendEntries(b *testing.B) {
	e := entry(1)
	shared := [][]byte{AppendEntry(nil, &e, JSON)}
	b.ReportAllocs()
	var buf []byte
	for b.Loop() {
		buf = AppendEntries(buf[:0], "room/7", e.Pos, shared, replay.Position{}, 0)
	}
}

func BenchmarkAppendAck(b *testing.B) {
	f := Frame{Type: Ack, ID: "9f3kq0-17", Outcome: Committed, Pos: entry(1).Pos}
	b.ReportAllocs()
	var buf []byte
	for b.Loop() {
		buf = f.Append(buf[:0])
	}
}
