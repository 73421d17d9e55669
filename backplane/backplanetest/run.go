// Package backplanetest checks that an implementation of backplane.Backplane keeps
// its contract, and that a backplane.Hub on it keeps its promise while the
// implementation is hurt in all ways that a [Harness] knows. It is for the tests of
// those who write one. It measures neither speed nor durability.
//
//	func TestConformance(t *testing.T) {
//		backplanetest.Run(t, func(t testing.TB) *backplanetest.Harness {
//			store := startMyStore(t)
//			return &backplanetest.Harness{
//				Open:    func() backplane.Backplane { return mine.New(store.Addr()) },
//				Entries: 64,
//			}
//		})
//	}
//
// Each rule is a subtest with a name and, when it fails, an explanation. The suite
// waits for events, up to a generous deadline, and asserts no durations: an
// implementation that is correct but slow passes.
package backplanetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/replay"
)

// A Harness is one store that is empty, and ways to hurt it. Those that are nil the
// implementation does not have: the subtests that need them are skipped, by name.
type Harness struct {
	// Open returns the Backplane of one more node on the store. It is called
	// several times. The suite closes what it returns. Required.
	Open func() backplane.Backplane

	// Entries is how many entries of a topic the store keeps, with no narrower
	// limit in bytes or age: 16 to 1024. If it may keep a few more, say how many
	// in Slack. Required.
	Entries int
	Slack   int

	// Restart ends the store's process and begins it again with its data.
	Restart func()

	// Flush loses all data, while nodes are connected.
	Flush func()

	// Save returns a function that has the store go back to the state of now, as
	// when a replica that has missed the rest becomes the master, or a snapshot is
	// restored.
	Save func() (restore func())

	// Evict loses what the store knows of how far the numbers of the topic have
	// got, but if possible not its entries.
	Evict func(topic string)

	// EvictEntries loses the entries of the topic, but not how far its numbers
	// have got.
	EvictEntries func(topic string)

	// Expire has all entries of the topic get too old.
	Expire func(topic string)

	// Cut breaks the connections of all nodes. They can be made anew at once.
	Cut func()

	// HalfOpen has the connections of all nodes carry nothing any more, without
	// an error, until heal is called. New connections may or may not work.
	HalfOpen func() (heal func())

	// Refuse breaks all connections and has the store refuse new ones until heal
	// is called.
	Refuse func() (heal func())
}

// A rule is one subtest.
type rule struct {
	name  string
	why   string // printed when it fails
	needs func(*Harness) bool
	check func(*fixture)
}

// Run runs all subtests, each on a store of its own that start returns.
func Run(t *testing.T, start func(t testing.TB) *Harness) {
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) { r.run(t, start) })
	}
}

// run checks one rule.
func (r rule) run(t testing.TB, start func(t testing.TB) *Harness) {
	h := start(t)
	if h.Open == nil || h.Entries < 16 || h.Entries > 1024 {
		t.Fatalf("backplanetest: the Harness needs Open, and Entries from 16 to 1024")
	}
	if r.needs != nil && !r.needs(h) {
		t.Skipf("SKIPPED: the harness cannot do what %q needs", r.name)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the rule is: %s", r.why)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	f := &fixture{TB: t, h: h, ctx: ctx}
	t.Cleanup(f.running.Wait) // after all is closed, in which a call may hang
	r.check(f)
}

// deadline is how long a subtest may take before what it waits for counts as
// missing.
var deadline = 60 * time.Second

func init() {
	if d, err := time.ParseDuration(os.Getenv("BACKPLANETEST_DEADLINE")); err == nil {
		deadline = d
	}
}

// A fixture is what a rule is checked with.
type fixture struct {
	testing.TB
	h       *Harness
	ctx     context.Context // cancelled when the rule has been checked
	running sync.WaitGroup  // goroutines of the rule
}

// cancelled reports whether the rule is over, for a goroutine whose call failed.
func (f *fixture) cancelled() bool { return errors.Is(f.ctx.Err(), context.Canceled) }

func (f *fixture) open() backplane.Backplane {
	b := f.h.Open()
	f.Cleanup(func() { b.Close() })
	return b
}

// hub returns a Hub that keeps as much as the store does and compares heads often.
func (f *fixture) hub(b backplane.Backplane) *backplane.Hub {
	limits := replay.Limits{Entries: f.h.Entries, Bytes: -1, Age: -1}
	h := backplane.New(b, &backplane.Options{
		Limits: func(string) replay.Limits { return limits },
		Sweep:  50 * time.Millisecond,
	})
	f.Cleanup(func() { h.Close(context.Background()) })
	return h
}

// append appends texts and returns their positions. It tries again while the
// backplane is away, with the same ID.
func (f *fixture) append(b backplane.Backplane, topic string, texts ...string) (at []replay.Position) {
	f.Helper()
	for _, text := range texts {
		r := f.appendID(b, topic, "id of "+text, text)
		at = append(at, r.Pos)
	}
	return at
}

func (f *fixture) appendID(b backplane.Backplane, topic, id, text string) backplane.Receipt {
	f.Helper()
	for {
		ctx, cancel := context.WithTimeout(f.ctx, 5*time.Second)
		r, err := b.Append(ctx, topic, backplane.Message{ID: id, Key: "k", Data: []byte(text)})
		cancel()
		switch {
		case err == nil && r.Outcome != backplane.Committed && r.Outcome != backplane.Duplicate:
			f.Fatalf("Append of %q returned the outcome %q without an error", text, r.Outcome)
		case err == nil:
			return r
		case f.ctx.Err() != nil || errors.Is(err, backplane.ErrClosed):
			f.Fatalf("Append of %q: %v", text, err)
		case r.Outcome != backplane.NotStored && r.Outcome != backplane.Unknown:
			f.Fatalf("Append of %q returned the outcome %q with the error %v", text, r.Outcome, err)
		}
		f.pause()
	}
}

// read is Read, again while the backplane is away.
func (f *fixture) read(b backplane.Backplane, topic string, after replay.Position, max replay.Budget) (backplane.Page, *replay.GapError) {
	f.Helper()
	for {
		ctx, cancel := context.WithTimeout(f.ctx, 5*time.Second)
		p, err := b.Read(ctx, topic, after, max)
		cancel()
		var gap *replay.GapError
		if err == nil || errors.As(err, &gap) {
			if gap == nil && p.Head.Epoch == 0 {
				f.Fatalf("Read of %q returned a head without an epoch", topic)
			}
			return p, gap
		}
		if f.ctx.Err() != nil || errors.Is(err, backplane.ErrClosed) {
			f.Fatalf("Read of %q: %v", topic, err)
		}
		f.pause()
	}
}

var all = replay.Budget{Entries: -1, Bytes: -1}

// readAll reads everything after a position that can be read after, in pages.
func (f *fixture) readAll(b backplane.Backplane, topic string, after replay.Position) (entries []replay.Entry) {
	f.Helper()
	for {
		p, gap := f.read(b, topic, after, replay.Budget{})
		if gap != nil {
			f.Fatalf("Read after %v: %v", after, gap)
		}
		f.linked(after, p.Entries)
		entries = append(entries, p.Entries...)
		if len(p.Entries) == 0 {
			if after != p.Head {
				f.Fatalf("Read after %v returned nothing, but the head is %v", after, p.Head)
			}
			return entries
		}
		if after = p.Entries[len(p.Entries)-1].Pos; after == p.Head {
			return entries
		}
	}
}

// start returns the beginning of a topic's epoch.
func (f *fixture) start(b backplane.Backplane, topic string) replay.Position {
	f.Helper()
	p, gap := f.read(b, topic, replay.Position{}, all)
	if gap != nil {
		f.Fatalf("Read without a position: %v", gap)
	}
	return replay.Position{Epoch: p.Head.Epoch}
}

// linked checks that entries follow after without a gap.
func (f *fixture) linked(after replay.Position, entries []replay.Entry) {
	f.Helper()
	for _, e := range entries {
		switch {
		case e.Pos.Epoch != after.Epoch:
			f.Fatalf("entry %v follows %v: another epoch", e.Pos, after)
		case e.Pos.Seq != after.Seq+1:
			f.Fatalf("number %d follows %d", e.Pos.Seq, after.Seq)
		case e.Prev != after.Tag:
			f.Fatalf("entry %d has Prev %08x, but the Tag before is %08x", e.Pos.Seq, e.Prev, after.Tag)
		}
		after = e.Pos
	}
}

// texts returns what is in entries.
func texts(entries []replay.Entry) string {
	var out []string
	for _, e := range entries {
		out = append(out, string(e.Data))
	}
	return strings.Join(out, " ")
}

// some returns n different texts.
func some(prefix string, n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("%s%d", prefix, i+1))
	}
	return out
}

func (f *fixture) pause() {
	select {
	case <-time.After(10 * time.Millisecond):
	case <-f.ctx.Done():
	}
}

// until waits until ok, which is asked again and again.
func (f *fixture) until(what string, ok func() bool) {
	f.Helper()
	for !ok() {
		if f.ctx.Err() != nil {
			f.Fatalf("still not: %s", what)
		}
		f.pause()
	}
}

// A reader is a subscriber and what it has seen.
type reader struct {
	f      *fixture
	sub    *backplane.Subscription
	seen   []string // texts, and "reset(reason, missed)"
	resets []backplane.Reset
	at     replay.Position
}

func (f *fixture) subscribe(h *backplane.Hub, topic string, o *backplane.SubscribeOptions) *reader {
	f.Helper()
	sub, err := h.Subscribe(f.ctx, topic, o)
	if err != nil {
		f.Fatalf("Subscribe: %v", err)
	}
	f.Cleanup(func() { sub.Close() })
	return &reader{f: f, sub: sub}
}

// next reads one batch and checks that it follows.
func (r *reader) next() {
	r.f.Helper()
	var b backplane.Batch
	if err := r.sub.Next(r.f.ctx, &b, replay.Budget{}); err != nil {
		r.f.Fatalf("the subscriber waits in vain: it has seen %q", r.seen)
	}
	if b.Reset != nil {
		r.resets = append(r.resets, *b.Reset)
		r.seen = append(r.seen, fmt.Sprintf("reset(%s, %d)", b.Reset.Reason, b.Reset.Missed))
		r.at = replay.Position{}
	}
	if len(b.Entries) > 0 {
		if r.at.Epoch == 0 {
			first := b.Entries[0]
			r.at = replay.Position{Epoch: first.Pos.Epoch, Seq: first.Pos.Seq - 1, Tag: first.Prev}
		}
		r.f.linked(r.at, b.Entries)
		for _, e := range b.Entries {
			r.seen = append(r.seen, string(e.Data))
		}
	}
	r.at = b.To
}

// until reads until it has seen a text.
func (r *reader) until(text string) {
	r.f.Helper()
	for len(r.seen) == 0 || r.seen[len(r.seen)-1] != text {
		r.next()
	}
}

// expect reads until the last of the texts, and fails if there was anything else.
func (r *reader) expect(want ...string) {
	r.f.Helper()
	r.until(want[len(want)-1])
	if got := strings.Join(r.seen, " "); got != strings.Join(want, " ") {
		r.f.Fatalf("the subscriber saw\n%s\nwant\n%s", got, strings.Join(want, " "))
	}
	r.seen = nil
}
