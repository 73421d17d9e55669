package redisplane

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/redistest"
	"github.com/holdfast-ws/holdfast/replay"
)

// encode is what append.lua makes of entries.
func encode(entries []replay.Entry) string {
	var b []byte
	for _, e := range entries {
		b = binary.BigEndian.AppendUint64(b, e.Pos.Seq)
		b = binary.BigEndian.AppendUint32(b, e.Pos.Tag)
		b = binary.BigEndian.AppendUint32(b, e.Prev)
		b = binary.BigEndian.AppendUint64(b, uint64(e.At.UnixMicro()))
		b = append(b, appendBody(nil, e.Pos.Tag, backplane.Message{Key: e.Key, Data: e.Data})[4:]...)
	}
	return string(b)
}

func example(seq uint64, key, data string) replay.Entry {
	return replay.Entry{
		Pos: replay.Position{Epoch: 1<<63 + 5, Seq: seq, Tag: uint32(seq) * 3}, Prev: uint32(seq-1) * 3,
		At: time.UnixMicro(1_700_000_000_123_456), Key: key, Data: []byte(data),
	}
}

func FuzzEntries(f *testing.F) {
	f.Add("")
	f.Add(encode([]replay.Entry{example(1, "", "")}))
	f.Add(encode([]replay.Entry{example(1, "k", "d"), example(2, strings.Repeat("k", 255), strings.Repeat("d", 1000))}))
	f.Add(encode([]replay.Entry{example(0, "no", "number")}))
	f.Add(encode([]replay.Entry{example(1, "", "cut")})[:31])
	f.Add(strings.Repeat("\xff", 30)) // lengths that overflow where an int has 32 bits
	f.Add(strings.Repeat("\xff", 26) + "\x00\x00\xff\xff\xff\xff")
	f.Add(strings.Repeat("\x7f", 64))
	f.Fuzz(func(t *testing.T, s string) {
		entries, err := parseEntries(nil, 7, s)
		if err != nil {
			return
		}
		if got := encode(entries); got != s {
			t.Errorf("%q came back as %q", s, got)
		}
		for i, e := range entries {
			if e.Pos.Epoch != 7 || e.Pos.Seq == 0 {
				t.Errorf("entry %d has position %+v", i, e.Pos)
			}
			// Who appends to the data of one entry must not write into the next.
			if cap(e.Data) != len(e.Data) {
				t.Errorf("entry %d has room for %d bytes more", i, cap(e.Data)-len(e.Data))
			}
		}
	})
}

func FuzzAnnouncement(f *testing.F) {
	epoch := epochText(1<<63 + 5)
	f.Add("1e" + epoch)
	f.Add("1e" + epoch + encode([]replay.Entry{example(3, "k", "d"), example(4, "", "")}))
	f.Add("1e" + epochText(0))
	f.Add("1e" + epoch[:15])
	f.Add("1e" + strings.ToUpper(epoch))
	f.Add("1e+123456789012345")
	f.Add("1e" + epoch + "rest")
	f.Add("1m")
	f.Add("1mhello")
	f.Add("2mhello")
	f.Add("1x")
	f.Add("1")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseAnnouncement(s)
		if err != nil {
			return
		}
		if a.ephemeral {
			if got := "1m" + string(a.data); got != s {
				t.Errorf("%q came back as %q", s, got)
			}
			return
		}
		epoch, err := parseEpoch(s[2:18])
		if err != nil || !strings.EqualFold("1e"+epochText(epoch), s[:18]) || encode(a.entries) != s[18:] {
			t.Errorf("%q came back as %v, %q", s, epoch, encode(a.entries))
		}
	})
}

func FuzzHead(f *testing.F) {
	begin := epochText(9) + "\x00\x00\x00\x00\x00\x00\x00\x05" + "tag!" + "\x00\x00\x00\x00\x00\x00\x01\x00"
	segment := "\x00\x00\x00\x00\x00\x00\x00\x02" + "prev" + "\x00\x00\x00\x00\x00\x00\x00\x40" + "\x00\x00\x01\x90\x00\x00\x00\x00"
	f.Add("")
	f.Add(begin)
	f.Add(begin + segment)
	f.Add(begin + segment + segment)
	f.Add(begin + segment[1:])
	f.Add(begin[:35])
	f.Add(strings.Repeat("0", 36))
	f.Fuzz(func(t *testing.T, s string) {
		pos, err := parsePosition(s)
		h, herr := parseHead(s)
		if herr != nil {
			return
		}
		if err != nil || h.pos != pos || h.pos.Epoch == 0 {
			t.Errorf("parseHead returns %+v, and parsePosition %+v, %v", h.pos, pos, err)
		}
		b := []byte(epochText(h.pos.Epoch))
		b = binary.BigEndian.AppendUint64(b, h.pos.Seq)
		b = binary.BigEndian.AppendUint32(b, h.pos.Tag)
		if !strings.EqualFold(string(b), s[:28]) || len(h.segments) != (len(s)-headSize)/recordSize {
			t.Errorf("%q came back as %q with %d segments", s, b, len(h.segments))
		}
		for i, x := range h.segments {
			b := binary.BigEndian.AppendUint64(nil, x.first)
			b = binary.BigEndian.AppendUint32(b, x.prev)
			b = binary.BigEndian.AppendUint64(b, x.bytes)
			if from := s[headSize+i*recordSize:]; !bytes.Equal(b, []byte(from[:20])) {
				t.Errorf("segment %d is %q, want %q", i, b, from[:20])
			}
			if got, want := h.before(i), (replay.Position{Epoch: h.pos.Epoch, Seq: x.first - 1, Tag: x.prev}); got != want {
				t.Errorf("before(%d) is %v, want %v", i, got, want)
			}
		}
		if h.before(len(h.segments)) != h.pos {
			t.Errorf("after the last segment is %v", h.before(len(h.segments)))
		}
	})
}

// What the script really writes is what encode says, which the fuzz tests rely on.
func TestTheScriptWritesWhatIsParsed(t *testing.T) {
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), quick(entries))
	var want []replay.Entry
	for _, m := range []backplane.Message{{}, {Key: "k", Data: []byte("one")}, {Key: "\x00\r\n", Data: []byte("\x00\xff\r\n$-1\r\n")}} {
		r, err := p.Append(bounded(t), "t", m)
		if err != nil {
			t.Fatal(err)
		}
		e := replay.Entry{Pos: r.Pos, Key: m.Key, Data: m.Data}
		if len(want) > 0 {
			e.Prev = want[len(want)-1].Pos.Tag
		}
		want = append(want, e)
	}
	now := time.Now()
	all := readAll(t, p, "t")
	if diff := diff(want, all); diff != "" {
		t.Fatalf("the entries are (-want +got):\n%s", diff)
	}
	for i, e := range all {
		if age := now.Sub(e.At); age < -time.Minute || age > time.Minute {
			t.Errorf("entry %d is %v old", i, age)
		}
	}
	prefix := DefaultPrefix + "{0}"
	stored, err := client.Get(context.Background(), segmentKey(prefix, epochText(all[0].Pos.Epoch), 1, "t")).Result()
	if err != nil || stored != encode(all) {
		t.Errorf("Redis has %q, %v, want %q", stored, err, encode(all))
	}
}

// Somebody may publish anything on a channel, or have another version.
func TestMalformedAnnouncementsRingAndBreakNothing(t *testing.T) {
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), quick(entries))
	s := newSpy()
	w := p.Watch(s)
	defer w.Close()
	if err := w.Add(bounded(t), "t"); err != nil {
		t.Fatal(err)
	}
	channel := channelKey(DefaultPrefix+"{0}", 0, "t")
	bad := []string{"", "1", "hello", "1e", "1e" + epochText(0), "1e" + epochText(1) + "x", "2m", "1z" + epochText(1), strings.Repeat("\xff", 1000)}
	for _, payload := range bad {
		if n, err := client.Publish(context.Background(), channel, payload).Result(); n != 1 || err != nil {
			t.Fatalf("%q reached %d, %v", payload, n, err)
		}
	}
	client.Publish(context.Background(), probeKey(DefaultPrefix+"{0}", p.node), "hello")
	if _, err := p.Append(bounded(t), "t", backplane.Message{Data: []byte("good")}); err != nil {
		t.Fatal(err)
	}
	until(t, "a good one arrives after the bad ones", func() bool { return s.has("t", "good") })
	if got := p.Stats().Malformed; got != uint64(len(bad)+1) {
		t.Errorf("%d of %d were malformed", got, len(bad)+1)
	}
	if got := s.rung("t"); got != len(bad) {
		t.Errorf("%d of %d rang", got, len(bad))
	}
	if got := p.Stats().Interruptions; got != 0 {
		t.Errorf("%d interruptions", got)
	}
}

// Anybody who may publish can see the name of the channel in PUBSUB CHANNELS. An
// empty message equalled the token of no probe, and the process panicked.
func TestStrangersOnTheChannelOfProbesAreNoAnswers(t *testing.T) {
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), quick(entries))
	s := newSpy()
	w := p.Watch(s)
	defer w.Close()
	if err := w.Add(bounded(t), "t"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		for _, payload := range []string{"", "-1", "999999", "x"} {
			if err := client.Publish(context.Background(), probeKey(DefaultPrefix+"{0}", p.node), payload).Err(); err != nil {
				t.Fatal(err)
			}
		}
		had := p.Stats().Probes
		until(t, "a probe is answered", func() bool { return p.Stats().Probes > had })
	}
	if _, err := p.Append(bounded(t), "t", backplane.Message{Data: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	until(t, "an entry arrives", func() bool { return s.has("t", "x") })
	if got := p.Stats().Interruptions; got != 0 {
		t.Errorf("%d interruptions", got)
	}
}
