package gateway

import (
	"sync"
	"sync/atomic"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// A feed makes the frames of one topic, for all connections that subscribe to it: each
// message is encoded once, and a frame that several connections need alike is made
// once.
type feed struct {
	topic string
	kind  wire.Kind
	g     *Gateway
	refs  int // subscriptions; guarded by Gateway.mu

	shared atomic.Bool // there was more than one at a time; else nothing is kept

	mu       sync.Mutex // guards all below
	frames   [4]made    // the last ones
	next     int        // in frames, to be overwritten
	passing  [4]passed  // the last ephemeral ones
	pass     int
	fragment map[replay.Position][]byte // encoded messages
	bytes    int                        // in fragment
}

// Bounds on what a feed keeps. Beyond them it begins anew, so that a message is encoded
// a second time only for those who are far behind.
const (
	maxFragments = 512
	maxKept      = 256 << 10
)

// A made frame is one for entries from prev to to, not conflated.
type made struct {
	prev, to replay.Position
	frame    []byte // with the header of WebSocket
}

type passed struct {
	data  *byte // the first byte of the message; it is not empty
	frame []byte
}

// enterFeed returns the feed of a topic, with one more reference.
func (g *Gateway) enterFeed(topic string) *feed {
	kind := wire.Kind(g.opts.Payload(topic))
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.feeds[topic]
	if f == nil {
		f = &feed{topic: topic, kind: kind, g: g}
		g.feeds[topic] = f
	}
	if f.refs++; f.refs > 1 {
		f.shared.Store(true)
	}
	return f
}

func (g *Gateway) leaveFeed(f *feed) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f.refs--; f.refs == 0 {
		delete(g.feeds, f.topic)
	}
}

// entries returns the frame for the entries of b, which follow prev, with its header.
// It is shared, or in w.text.
func (f *feed) entries(prev replay.Position, b *backplane.Batch, w *scratch) []byte {
	keep := f.shared.Load()
	// Where messages were left out, by a lag or a floor, the frame is of this
	// subscriber alone.
	whole := keep && isWhole(prev, b)
	if keep {
		f.mu.Lock()
		defer f.mu.Unlock()
		for i := 0; whole && i < len(f.frames); i++ {
			if m := &f.frames[i]; m.to == b.To && m.prev == prev {
				return m.frame
			}
		}
	}
	w.parts = w.parts[:0]
	for i := range b.Entries {
		w.parts = append(w.parts, f.entry(&b.Entries[i], keep))
	}
	var to replay.Position
	if n := len(b.Entries); n == 0 || b.Entries[n-1].Pos != b.To {
		to = b.To
	}
	w.text = wire.AppendEntries(w.text[:0], f.topic, prev, w.parts, to, b.Conflated)
	clear(w.parts)
	if !whole {
		return appendMessage(nil, w.text)
	}
	frame := appendMessage(make([]byte, 0, len(w.text)+longHeader), w.text)
	if len(frame) <= maxKept {
		f.frames[f.next] = made{prev, b.To, frame}
		f.next = (f.next + 1) % len(f.frames)
	}
	return frame
}

// isWhole reports whether b has all there is from prev to b.To.
func isWhole(prev replay.Position, b *backplane.Batch) bool {
	n := len(b.Entries)
	if n == 0 || b.Conflated > 0 {
		return false
	}
	first, last := &b.Entries[0], &b.Entries[n-1]
	return last.Pos == b.To && first.Pos.Epoch == prev.Epoch && first.Prev == prev.Tag &&
		first.Pos.Seq == prev.Seq+1 && last.Pos.Seq == prev.Seq+uint64(n)
}

// entry returns an encoded message. With keep, f.mu is held.
func (f *feed) entry(e *replay.Entry, keep bool) []byte {
	if keep {
		if text, ok := f.fragment[e.Pos]; ok {
			return text
		}
	}
	f.g.count.encoded.Add(1)
	text := wire.AppendEntry(make([]byte, 0, len(e.Data)+len(e.Key)+64), e, f.kind)
	if keep && len(text) <= maxKept/4 {
		if f.bytes += len(text); f.fragment == nil || len(f.fragment) == maxFragments || f.bytes > maxKept {
			f.fragment = map[replay.Position][]byte{}
			f.bytes = len(text)
		}
		f.fragment[e.Pos] = text
	}
	return text
}

// ephemeral returns the frame for an ephemeral message.
func (f *feed) ephemeral(data []byte, w *scratch) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(data) > 0 {
		for i := range f.passing {
			if f.passing[i].data == &data[0] {
				return f.passing[i].frame
			}
		}
	}
	e := wire.Frame{Type: wire.Ephemeral, Topic: f.topic, Payload: wire.Fit(f.kind, data)}
	w.text = e.Append(w.text[:0])
	frame := appendMessage(nil, w.text)
	if len(data) > 0 && len(frame) <= maxKept/4 {
		f.passing[f.pass] = passed{&data[0], frame}
		f.pass = (f.pass + 1) % len(f.passing)
	}
	return frame
}
