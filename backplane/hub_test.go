package backplane

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-ws/holdfast/internal/leak"
	"github.com/holdfast-ws/holdfast/internal/verify"
	"github.com/holdfast-ws/holdfast/replay"
)

func TestMain(m *testing.M) { leak.Main(m) }

// hub returns a Hub that is closed when the test ends.
func hub(t testing.TB, bp Backplane, opts *Options) *Hub {
	h := New(bp, opts)
	t.Cleanup(func() { h.Close(context.Background()) })
	return h
}

func memory(t testing.TB, opts *MemoryOptions) *Memory {
	m := NewMemory(opts)
	t.Cleanup(func() { m.Close() })
	return m
}

func publish(t testing.TB, h *Hub, topic, text string) Receipt {
	t.Helper()
	r, err := h.Publish(context.Background(), topic, Message{Data: []byte(text)})
	if err != nil {
		t.Fatalf("publish %q: %v", text, err)
	}
	return r
}

func subscribe(t testing.TB, h *Hub, topic string, opts *SubscribeOptions) *Subscription {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s, err := h.Subscribe(ctx, topic, opts)
	if err != nil {
		t.Fatalf("subscribe to %q: %v", topic, err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// next returns the next batch as text: "reset(trimmed 3) a b ~c", where ~c is
// ephemeral.
func next(t testing.TB, s *Subscription) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var b Batch
	if err := s.Next(ctx, &b, replay.Budget{}); err != nil {
		return "error: " + err.Error()
	}
	return text(&b)
}

func text(b *Batch) string {
	out := ""
	if r := b.Reset; r != nil {
		out += fmt.Sprintf(" reset(%s %d)", r.Reason, r.Missed)
		if r.Snapshot != nil {
			out += fmt.Sprintf(" snapshot(%s)", r.Snapshot)
		}
	}
	for _, e := range b.Entries {
		out += " " + string(e.Data)
	}
	for _, data := range b.Ephemeral {
		out += " ~" + string(data)
	}
	if out == "" {
		return ""
	}
	return out[1:]
}

// read returns, when all is quiet, what the next Read does, as next would.
func read(t testing.TB, s *Subscription) string {
	t.Helper()
	synctest.Wait()
	var b Batch
	if err := s.Read(&b, replay.Budget{}); err != nil {
		return "error: " + err.Error()
	}
	return text(&b)
}

// gets fails the test if the next Read, when all is quiet, is not what is wanted.
func gets(t testing.TB, s *Subscription, want string) {
	t.Helper()
	if got := read(t, s); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// quiet are options of a Hub that learns by itself of nothing.
func quiet() *Options { return &Options{Sweep: -1} }

// A tap is a Memory whose calls and hints a test counts, changes and holds up. The
// functions, if not nil, are called in place of what they are named for, which is
// their last argument.
type tap struct {
	*Memory

	mu       sync.Mutex // guards all below
	onAppend func(ctx context.Context, topic string, m Message, do func() (Receipt, error)) (Receipt, error)
	onRead   func(ctx context.Context, topic string, after replay.Position, do func() (Page, error)) (Page, error)
	onAdd    func(ctx context.Context, topics []string, do func() error) error
	onHeads  func(ctx context.Context, do func() ([]replay.Position, error)) ([]replay.Position, error)
	onHint   func(topic string, e replay.Entry, do func())
	onRemove func()
	sinks    []Sink // of the Hubs, in order
	reads    int
	heads    int
	added    []string // topics, and those removed with a minus
}

func newTap(t testing.TB, opts *MemoryOptions) *tap { return &tap{Memory: memory(t, opts)} }

// plain is a Backplane that can do no more than it must.
type plain struct{ Backplane }

func (b *tap) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func (b *tap) Append(ctx context.Context, topic string, m Message) (Receipt, error) {
	b.mu.Lock()
	on := b.onAppend
	b.mu.Unlock()
	do := func() (Receipt, error) { return b.Memory.Append(ctx, topic, m) }
	if on == nil {
		return do()
	}
	return on(ctx, topic, m, do)
}

func (b *tap) Read(ctx context.Context, topic string, after replay.Position, max replay.Budget) (Page, error) {
	b.mu.Lock()
	b.reads++
	on := b.onRead
	b.mu.Unlock()
	do := func() (Page, error) { return b.Memory.Read(ctx, topic, after, max) }
	if on == nil {
		return do()
	}
	return on(ctx, topic, after, do)
}

func (b *tap) Heads(ctx context.Context, topics []string) ([]replay.Position, error) {
	b.mu.Lock()
	b.heads++
	on := b.onHeads
	b.mu.Unlock()
	do := func() ([]replay.Position, error) { return b.Memory.Heads(ctx, topics) }
	if on == nil {
		return do()
	}
	return on(ctx, do)
}

func (b *tap) Watch(s Sink) Watcher {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sinks = append(b.sinks, s)
	return &tapWatcher{b.Memory.Watch(tapSink{s, b}), b}
}

type tapWatcher struct {
	Watcher
	b *tap
}

func (w *tapWatcher) Add(ctx context.Context, topics ...string) error {
	w.b.mu.Lock()
	w.b.added = append(w.b.added, topics...)
	on := w.b.onAdd
	w.b.mu.Unlock()
	do := func() error { return w.Watcher.Add(ctx, topics...) }
	if on == nil {
		return do()
	}
	return on(ctx, topics, do)
}

func (w *tapWatcher) Remove(topics ...string) {
	w.b.mu.Lock()
	for _, name := range topics {
		w.b.added = append(w.b.added, "-"+name)
	}
	on := w.b.onRemove
	w.b.mu.Unlock()
	if on != nil {
		on()
	}
	w.Watcher.Remove(topics...)
}

type tapSink struct {
	Sink
	b *tap
}

func (s tapSink) Entry(topic string, e replay.Entry) {
	s.b.mu.Lock()
	on := s.b.onHint
	s.b.mu.Unlock()
	do := func() { s.Sink.Entry(topic, e) }
	if on == nil {
		do()
		return
	}
	on(topic, e, do)
}

// deaf runs f while all hints are lost.
func (b *tap) deaf(f func()) {
	b.set(func() { b.onHint = func(string, replay.Entry, func()) {} })
	f()
	b.set(func() { b.onHint = nil })
}

// watches returns which topics were watched, and dropped, so far.
func (b *tap) watches() string {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.added, " ")
}

// sweeps returns how often heads were asked for.
func (b *tap) sweeps() int {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.heads
}

// readsOf returns how many calls of Read there are until all is quiet after f.
func (b *tap) readsOf(f func()) int {
	synctest.Wait()
	b.mu.Lock()
	before := b.reads
	b.mu.Unlock()
	f()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reads - before
}

// entry returns a stored entry.
func (b *tap) entry(topic string, seq uint64) replay.Entry {
	page, _ := b.Memory.Read(context.Background(), topic, replay.Position{}, replay.Budget{Entries: -1, Bytes: -1})
	for _, e := range page.Entries {
		if e.Pos.Seq == seq {
			return e
		}
	}
	panic("no such entry")
}

// rewind undoes the newest n messages of a topic, as a failover to a replica does
// that had not got them.
func (b *tap) rewind(topic string, n int) {
	b.Memory.mu.RLock()
	mt := b.Memory.topics[topic]
	b.Memory.mu.RUnlock()
	mt.mu.Lock()
	defer mt.mu.Unlock()
	var all replay.Batch
	oldest, _ := mt.log.Bounds()
	mt.log.After(oldest, &all, replay.Budget{Entries: -1, Bytes: -1})
	mt.log.Reset(oldest, all.Entries[:len(all.Entries)-n]...)
	clear(mt.ids)
	mt.order = nil
}

// lose has a topic begin a new epoch.
func (b *tap) lose(topic string) {
	b.Memory.mu.RLock()
	mt := b.Memory.topics[topic]
	b.Memory.mu.RUnlock()
	mt.mu.Lock()
	defer mt.mu.Unlock()
	mt.log.Reset(replay.Position{})
	clear(mt.ids)
	mt.order = nil
}

// hang is a call that does not return before it has to.
func hang(ctx context.Context) error {
	<-ctx.Done()
	return fmt.Errorf("no answer: %w", context.Cause(ctx))
}

// away is the error of a backplane that is away.
var errAway = fmt.Errorf("connection refused: %w", ErrUnavailable)

// A crowd is many subscribers, served by a few goroutines.
type crowd struct {
	poller  *replay.Poller
	members []*member
}

type member struct {
	sub *Subscription

	mu    sync.Mutex // guards all below
	got   []string   // batches
	empty int        // batches without anything
}

func (m *member) seen() (text string, empty int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.got, " "), m.empty
}

func (m *member) read(b *Batch) error {
	err := m.sub.Read(b, replay.Budget{})
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err != nil:
		m.got = append(m.got, err.Error())
	case b.Empty():
		m.empty++
	default:
		m.got = append(m.got, text(b))
	}
	return err
}

// gather has n subscribers subscribe at the same time, and serves them with two
// goroutines.
func gather(t testing.TB, h *Hub, n int, topic func(i int) string, opts func(i int) SubscribeOptions) *crowd {
	t.Helper()
	c := &crowd{poller: replay.NewPoller(), members: make([]*member, n)}
	var wg sync.WaitGroup
	for i := range c.members {
		m := &member{}
		c.members[i] = m
		wg.Go(func() {
			o := SubscribeOptions{}
			if opts != nil {
				o = opts(i)
			}
			o.Value = m
			var err error
			if m.sub, err = h.Subscribe(context.Background(), topic(i), &o); err != nil {
				t.Error(err)
				return
			}
			Arm(c.poller, m.sub)
		})
	}
	wg.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	for range 2 {
		wg.Go(func() { c.work(ctx) })
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	return c
}

func (c *crowd) work(ctx context.Context) {
	ready, subs := make([]*replay.Cursor, 64), make([]*Subscription, 64)
	var b Batch
	for {
		n, err := c.poller.Wait(ctx, ready)
		if err != nil {
			return
		}
		subs = subs[:0]
		for _, cursor := range ready[:n] {
			if m := cursor.Value.(*member); m.read(&b) == nil {
				subs = append(subs, m.sub)
			}
		}
		Arm(c.poller, subs...)
	}
}

// all fails the test unless every member has got the same by now.
func (c *crowd) all(t testing.TB, want string) {
	t.Helper()
	synctest.Wait()
	for i, m := range c.members {
		if got, empty := m.seen(); got != want || empty > 0 {
			t.Fatalf("member %d got %q and %d empty batches, want %q", i, got, empty, want)
		}
	}
}

func same(topic string) func(int) string { return func(int) string { return topic } }

// P14, and recovery.md section 8: centrifuge would disconnect or recover each of
// the subscribers by itself, in 10 000 reads of the history.
func TestALostHintCostsOneReadHoweverManySubscribersThereAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		c := gather(t, h, 10_000, same("x"), nil)
		publish(t, h, "x", "1")
		c.all(t, "1")
		n := b.readsOf(func() {
			b.deaf(func() { publish(t, h, "x", "2") })
			publish(t, h, "x", "3")
			synctest.Wait()
			c.all(t, "1")
			time.Sleep(grace)
		})
		if n != 1 {
			t.Errorf("%d reads, want 1", n)
		}
		c.all(t, "1 2 3")
		if s := h.Stats(); s.Resets != 0 || s.Repairs != 1 || s.Subscribers != 10_000 {
			t.Errorf("stats: %+v", s)
		}
	})
}

// #13: nothing follows that would tell.
func TestALostLastHintIsFoundByTheSweep(t *testing.T) {
	for _, header := range []bool{true, false} {
		t.Run(fmt.Sprintf("header=%v", header), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTap(t, nil)
				var bp Backplane = b
				if !header {
					bp = plain{b}
				}
				h := hub(t, bp, nil)
				s := subscribe(t, h, "x", nil)
				other := subscribe(t, h, "y", nil)
				b.deaf(func() { publish(t, h, "x", "1") })
				gets(t, s, "")
				n := b.readsOf(func() { time.Sleep(DefaultSweep * 5 / 4) })
				gets(t, s, "1")
				gets(t, other, "")
				if want := map[bool]int{true: 1, false: 2}[header]; n != want {
					t.Errorf("%d reads, want %d", n, want)
				}
				if header && b.sweeps() != 1 {
					t.Errorf("Heads was called %d times in one sweep of two topics", b.sweeps())
				}
			})
		})
	}
}

func TestASweepThatFindsNothingReadsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, nil)
		s := subscribe(t, h, "x", nil)
		subscribe(t, h, "empty", nil)
		publish(t, h, "x", "1")
		n := b.readsOf(func() { time.Sleep(time.Minute) })
		gets(t, s, "1")
		if n != 0 || b.sweeps() < 9 {
			t.Errorf("%d reads in %d sweeps, want none in a dozen", n, b.sweeps())
		}
	})
}

func TestWithoutSweepsTheBackplaneIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		subscribe(t, h, "x", nil)
		n := b.readsOf(func() { time.Sleep(time.Hour) })
		if n != 0 || b.sweeps() != 0 {
			t.Errorf("%d reads and %d Heads, want none", n, b.sweeps())
		}
	})
}

// recovery.md section 8, row 1.
func TestThousandsResumeWithTwoReadsATopicAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		topic := func(i int) string { return "t" + strconv.Itoa(i%10) }
		writer := hub(t, b, quiet())
		pos := make([][]replay.Position, 10)
		for k := range pos {
			for j := range 100 {
				pos[k] = append(pos[k], publish(t, writer, topic(k), strconv.Itoa(j)).Pos)
			}
		}
		after := func(i int) SubscribeOptions { return SubscribeOptions{After: pos[i%10][i/10%100]} }
		want := func(i int) string {
			var out []string
			for j := i/10%100 + 1; j < 100; j++ {
				out = append(out, strconv.Itoa(j))
			}
			return strings.Join(out, " ")
		}
		check := func(c *crowd) {
			t.Helper()
			synctest.Wait()
			for i, m := range c.members {
				if got, _ := m.seen(); got != want(i) {
					t.Fatalf("subscriber %d got %q, want %q", i, got, want(i))
				}
			}
		}
		// Nobody confirms a watch in no time.
		b.set(func() {
			b.onAdd = func(_ context.Context, _ []string, do func() error) error {
				time.Sleep(time.Millisecond)
				return do()
			}
		})
		h := hub(t, b, quiet())
		var cold, warm *crowd
		if n := b.readsOf(func() { cold = gather(t, h, 10_000, topic, after) }); n > 20 {
			t.Errorf("cold: %d reads for 10 topics, want 20 at most", n)
		}
		check(cold)
		if n := b.readsOf(func() { warm = gather(t, h, 10_000, topic, after) }); n != 0 {
			t.Errorf("warm: %d reads, want none", n)
		}
		check(warm)
		if s := h.Stats(); s.Resets != 0 {
			t.Errorf("%d Resets", s.Resets)
		}
	})
}

func TestOneWatchAndOneReadServeAllWhoJoinMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		b.set(func() {
			b.onRead = func(_ context.Context, _ string, _ replay.Position, do func() (Page, error)) (Page, error) {
				time.Sleep(time.Millisecond)
				return do()
			}
		})
		n := b.readsOf(func() { gather(t, h, 1000, same("x"), nil) })
		if n > 2 || b.watches() != "x" {
			t.Errorf("%d reads and the watches %q", n, b.watches())
		}
	})
}

// Trap 4.1: what is appended after the read and before the watch would be lost.
func TestHistoryIsReadOnlyWhenTheWatchIsConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		first := publish(t, h, "x", "1")
		b.set(func() {
			b.onAdd = func(_ context.Context, _ []string, do func() error) error {
				time.Sleep(10 * time.Millisecond) // for a read that does not wait
				publish(t, h, "x", "2")
				return do()
			}
		})
		s := subscribe(t, h, "x", &SubscribeOptions{After: first.Pos})
		gets(t, s, "2")
		publish(t, h, "x", "3")
		gets(t, s, "3")
	})
}

func TestHintsThatComeDuringTheJoinAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		first := publish(t, h, "x", "1")
		during(b, func() {
			publish(t, h, "x", "2")
			publish(t, h, "x", "3")
		})
		var s *Subscription
		n := b.readsOf(func() { s = subscribe(t, h, "x", &SubscribeOptions{After: first.Pos}) })
		gets(t, s, "2 3")
		if n != 1 {
			t.Errorf("%d reads, want 1: the hints had all that was missing", n)
		}
	})
}

// during has f run once, after the backplane has done the next Read and before
// that returns.
func during(b *tap, f func()) {
	var once sync.Once
	b.set(func() {
		b.onRead = func(_ context.Context, _ string, _ replay.Position, do func() (Page, error)) (Page, error) {
			page, err := do()
			once.Do(f)
			return page, err
		}
	})
}

func TestMoreHintsThanAreKeptDuringTheJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		var want []string
		first := publish(t, h, "x", "first")
		during(b, func() {
			for i := range 3 * maxEarly {
				want = append(want, strconv.Itoa(i))
				publish(t, h, "x", want[i])
			}
		})
		s := subscribe(t, h, "x", &SubscribeOptions{After: first.Pos})
		synctest.Wait()
		var got []string
		for range 10 {
			if out := read(t, s); out != "" {
				got = append(got, out)
			}
		}
		if out := strings.Join(got, " "); out != strings.Join(want, " ") {
			t.Errorf("got %q", out)
		}
	})
}

// #7: centrifuge's MergePublications checks the messages that came meanwhile
// against each other, but not the first against the position.
func TestTheFirstLiveMessageAfterAnEmptyReplayMustFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		first := publish(t, h, "x", "1")
		lostThenHint := func() {
			b.deaf(func() { publish(t, h, "x", "2") })
			publish(t, h, "x", "3")
		}
		during(b, lostThenHint)
		s := subscribe(t, h, "x", &SubscribeOptions{After: first.Pos})
		time.Sleep(grace)
		gets(t, s, "2 3")

		s = subscribe(t, h, "new", nil)
		b.deaf(func() { publish(t, h, "new", "1") })
		publish(t, h, "new", "2")
		gets(t, s, "")
		time.Sleep(grace)
		gets(t, s, "1 2")
	})
}

// #17: the ways to say "caught up" that pad #1177 lists.
func TestCaughtUpIsNotSaidOfWhatWasNeverReceived(t *testing.T) {
	t.Run("cold buffer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newTap(t, nil)
			h, other := hub(t, b, quiet()), hub(t, b, quiet())
			first := publish(t, other, "x", "1")
			publish(t, other, "x", "2")
			gets(t, subscribe(t, h, "x", &SubscribeOptions{After: first.Pos}), "2")
		})
	})
	t.Run("late joiner", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newTap(t, nil)
			h, other := hub(t, b, quiet()), hub(t, b, quiet())
			first := publish(t, other, "x", "1")
			publish(t, other, "x", "2")
			publish(t, other, "x", "3")
			live := subscribe(t, h, "x", nil) // the ring begins here
			publish(t, other, "x", "4")
			s := subscribe(t, h, "x", &SubscribeOptions{After: first.Pos})
			gets(t, s, "2 3 4")
			gets(t, live, "4")
			if h.Stats().Resets != 0 {
				t.Error("a Reset, but nothing was missed")
			}
		})
	})
	t.Run("kept buffer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newTap(t, nil)
			h, other := hub(t, b, &Options{Sweep: -1, Linger: -1}), hub(t, b, quiet())
			s := subscribe(t, h, "x", nil)
			first := publish(t, other, "x", "1")
			s.Close()
			time.Sleep(2 * time.Second) // dropped
			publish(t, other, "x", "2")
			gets(t, subscribe(t, h, "x", &SubscribeOptions{After: first.Pos}), "2")
		})
	})
	t.Run("straggler", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newTap(t, nil)
			h, other := hub(t, b, &Options{Sweep: -1, Linger: -1}), hub(t, b, quiet())
			s := subscribe(t, h, "x", nil)
			publish(t, other, "x", "1")
			second := publish(t, other, "x", "2")
			s.Close()
			time.Sleep(2 * time.Second)
			b.sinks[0].Entry("x", b.entry("x", 1)) // nobody knows the topic now
			if n := h.Stats().Topics; n != 0 {
				t.Fatalf("a hint made a topic")
			}
			publish(t, other, "x", "3")
			during(b, func() {
				b.sinks[0].Entry("x", b.entry("x", 1))
				b.sinks[0].Entry("x", b.entry("x", 2))
			})
			s = subscribe(t, h, "x", &SubscribeOptions{After: second.Pos})
			b.sinks[0].Entry("x", b.entry("x", 2))
			publish(t, other, "x", "4")
			gets(t, s, "3 4")
		})
	})
}

// A hint that is in what was read twice over must not be delivered twice, and one
// that comes before a Read that includes it costs no other.
func TestRepeatedHintsCostNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		s := subscribe(t, h, "x", nil)
		publish(t, h, "x", "1")
		publish(t, h, "x", "2")
		n := b.readsOf(func() {
			for range 3 {
				b.sinks[0].Entry("x", b.entry("x", 1))
				b.sinks[0].Entry("x", b.entry("x", 2))
			}
			time.Sleep(time.Second)
		})
		gets(t, s, "1 2")
		if n != 0 || h.Stats().Duplicates != 6 {
			t.Errorf("%d reads, %d duplicates, want 0 and 6", n, h.Stats().Duplicates)
		}
	})
}

func TestHintsInAnotherOrderCostNothingWithinTheGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		s := subscribe(t, h, "x", nil)
		var held []func()
		b.set(func() { b.onHint = func(_ string, _ replay.Entry, do func()) { held = append(held, do) } })
		for i := range 4 {
			publish(t, h, "x", strconv.Itoa(i+1))
		}
		n := b.readsOf(func() {
			for _, i := range []int{3, 1, 2} {
				held[i]()
			}
			time.Sleep(grace / 2)
			held[0]()
			time.Sleep(time.Second)
		})
		gets(t, s, "1 2 3 4")
		if n != 0 {
			t.Errorf("%d reads, want none", n)
		}
	})
}

// A hint of something that does not exist leads to one read, and is then forgotten.
func TestAHintThatNeverFitsIsReadForOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		s := subscribe(t, h, "x", nil)
		e := replay.Entry{Pos: publish(t, h, "x", "1").Pos, Data: []byte("false")}
		e.Pos.Seq += 100
		n := b.readsOf(func() {
			b.sinks[0].Entry("x", e)
			time.Sleep(10 * time.Second)
		})
		if n != 1 {
			t.Errorf("%d reads, want 1", n)
		}
		gets(t, s, "1")
	})
}

func TestADoorbellIsAnsweredByARead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		s := subscribe(t, h, "x", nil)
		b.deaf(func() { publish(t, h, "x", "1") })
		n := b.readsOf(func() {
			b.sinks[0].Doorbell("unknown")
			b.sinks[0].Doorbell("x")
		})
		gets(t, s, "1")
		if n != 1 {
			t.Errorf("%d reads, want 1", n)
		}
	})
}

// One read serves all who rang before it began, and those who ring while it runs
// get one more: what they rang for may not be in it.
func TestADoorbellDuringAReadMeansAnotherRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		s := subscribe(t, h, "x", nil)
		during(b, func() {
			b.deaf(func() { publish(t, h, "x", "late") })
			for range 10 {
				b.sinks[0].Doorbell("x")
			}
		})
		n := b.readsOf(func() { b.sinks[0].Doorbell("x") })
		gets(t, s, "late")
		if n != 2 {
			t.Errorf("%d reads, want 2", n)
		}
	})
}

// #12
func TestAfterAnInterruptionWhatWasMissedIsRead(t *testing.T) {
	for _, header := range []bool{true, false} {
		t.Run(fmt.Sprintf("header=%v", header), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTap(t, nil)
				var bp Backplane = b
				if !header {
					bp = plain{b}
				}
				h := hub(t, bp, quiet())
				x, y, z := subscribe(t, h, "x", nil), subscribe(t, h, "y", nil), subscribe(t, h, "z", nil)
				b.deaf(func() {
					publish(t, h, "x", "1")
					publish(t, h, "y", "1")
				})
				n := b.readsOf(func() { b.sinks[0].Interrupted(errors.New("link lost")) })
				gets(t, x, "1")
				gets(t, y, "1")
				gets(t, z, "")
				if want := map[bool]int{true: 2, false: 3}[header]; n != want {
					t.Errorf("%d reads, want %d", n, want)
				}
				if s := h.Stats(); s.Interruptions != 1 || s.Resets != 0 {
					t.Errorf("stats: %+v", s)
				}
			})
		})
	}
}

func TestAfterAnInterruptionOfSomeTopicsOnlyTheyAreRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		x, y := subscribe(t, h, "x", nil), subscribe(t, h, "y", nil)
		b.deaf(func() {
			publish(t, h, "x", "1")
			publish(t, h, "y", "1")
		})
		n := b.readsOf(func() { b.sinks[0].Interrupted(errors.New("slot moved"), "x", "unknown") })
		gets(t, x, "1")
		gets(t, y, "")
		if n != 1 || b.sweeps() != 0 {
			t.Errorf("%d reads and %d Heads, want 1 and 0", n, b.sweeps())
		}
	})
}

// The broker may be barely back when it says that hints flow again.
func TestWhatHasToBeReadAfterAnInterruptionIsTriedUntilItSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		s := subscribe(t, h, "x", nil)
		b.deaf(func() { publish(t, h, "x", "1") })
		up := time.Now().Add(10 * time.Second)
		b.set(func() {
			b.onHeads = func(_ context.Context, do func() ([]replay.Position, error)) ([]replay.Position, error) {
				if time.Now().Before(up) {
					return nil, errAway
				}
				return do()
			}
			b.onRead = func(_ context.Context, _ string, _ replay.Position, do func() (Page, error)) (Page, error) {
				if time.Now().Before(up.Add(10 * time.Second)) {
					return Page{}, errAway
				}
				return do()
			}
		})
		b.sinks[0].Interrupted(errors.New("link lost"))
		time.Sleep(26 * time.Second)
		gets(t, s, "1")
		if n := h.Stats().Errors; n < 4 || n > 40 {
			t.Errorf("%d failed calls in 20 s, want a few: neither none nor a busy loop", n)
		}
	})
}

// An interruption while the first page is under way: it may have come too early.
func TestAnInterruptionDuringTheJoinMeansAnotherRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		first := publish(t, h, "x", "1")
		during(b, func() {
			b.deaf(func() { publish(t, h, "x", "2") })
			b.sinks[0].Interrupted(errors.New("link lost"))
			time.Sleep(time.Millisecond)
		})
		s := subscribe(t, h, "x", &SubscribeOptions{After: first.Pos})
		gets(t, s, "2")
	})
}

func TestAHintOfAnotherEpochIsNotBelievedButChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		s := subscribe(t, h, "x", nil)
		publish(t, h, "x", "1")
		e := b.entry("x", 1)
		e.Pos.Epoch++
		n := b.readsOf(func() { b.sinks[0].Entry("x", e) })
		gets(t, s, "1")
		if n != 1 || h.Stats().Resets != 0 {
			t.Errorf("%d reads and %d Resets, want 1 and none", n, h.Stats().Resets)
		}
		publish(t, h, "x", "2")
		gets(t, s, "2")
	})
}

// #10, #8: to a reader whose last entry is one of those that were undone, what
// follows may look perfect.
func TestAForkIsNoticedOnALiveLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		first := publish(t, h, "x", "1")
		s := subscribe(t, h, "x", &SubscribeOptions{After: first.Pos})
		slow := subscribe(t, h, "x", &SubscribeOptions{After: first.Pos})
		publish(t, h, "x", "2")
		publish(t, h, "x", "3")
		gets(t, s, "2 3")
		b.rewind("x", 2)
		publish(t, h, "x", "2'")
		publish(t, h, "x", "3'")
		gets(t, s, "reset(forked 0) 1 2' 3'")
		gets(t, slow, "2' 3'")
		gets(t, s, "")
		if st := h.Stats(); st.Rewinds != 1 || st.Resets != 1 {
			t.Errorf("stats: %+v", st)
		}
		publish(t, h, "x", "4'")
		time.Sleep(grace) // hints only ring, for a while
		gets(t, s, "4'")
		gets(t, slow, "4'")
	})
}

// The new history may be longer than the old before its first hint arrives, so that
// number and order seem right.
func TestAForkIsNoticedWhenOnlyALaterHintArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		s := subscribe(t, h, "x", nil)
		publish(t, h, "x", "1")
		publish(t, h, "x", "2")
		gets(t, s, "1 2")
		b.deaf(func() {
			b.rewind("x", 1)
			publish(t, h, "x", "2'")
		})
		publish(t, h, "x", "3'")
		gets(t, s, "reset(forked 0) 1 2' 3'")
	})
}

func TestANewEpochIsNoticedOnALiveLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		s := subscribe(t, h, "x", nil)
		publish(t, h, "x", "1")
		gets(t, s, "1")
		b.lose("x")
		publish(t, h, "x", "one")
		gets(t, s, "reset(epoch 0) one")
		gets(t, s, "")
	})
}

func TestARewindWhileAllIsQuietIsFoundByTheSweep(t *testing.T) {
	for _, way := range []string{"rewind", "new epoch", "as many new ones"} {
		t.Run(way, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTap(t, nil)
				h := hub(t, b, nil)
				s := subscribe(t, h, "x", nil)
				publish(t, h, "x", "1")
				publish(t, h, "x", "2")
				gets(t, s, "1 2")
				want := "reset(ahead 0) 1"
				b.rewind("x", 1)
				switch way {
				case "new epoch":
					b.lose("x")
					want = "reset(epoch 0)"
				case "as many new ones":
					b.deaf(func() { publish(t, h, "x", "2'") })
					want = "reset(forked 0) 1 2'"
				}
				time.Sleep(DefaultSweep * 5 / 4)
				gets(t, s, want)
			})
		})
	}
}

// A hint of the history that is gone can fit the new head exactly, as long as that
// is where the two part.
func TestHintsOfAHistoryThatIsGoneAreNotDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		s := subscribe(t, h, "x", nil)
		publish(t, h, "x", "1")
		publish(t, h, "x", "2")
		gets(t, s, "1 2")
		old := b.entry("x", 2)
		b.rewind("x", 1)
		b.sinks[0].Doorbell("x")
		gets(t, s, "reset(ahead 0) 1")
		b.sinks[0].Entry("x", old)
		gets(t, s, "")
		publish(t, h, "x", "2'") // nevertheless no new one waits for the end of the distrust
		time.Sleep(grace)
		gets(t, s, "2'")
		time.Sleep(distrust)
		n := b.readsOf(func() { publish(t, h, "x", "3'") })
		gets(t, s, "3'")
		if n != 0 || h.Stats().Resets != 1 {
			t.Errorf("%d reads and %d Resets, want 0 and 1", n, h.Stats().Resets)
		}
	})
}

// The hint is of the new history, but was thrown away with those of the old one.
func TestAHintThatComesWhileTheNewHistoryIsReadIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, &MemoryOptions{Limits: func(string) replay.Limits { return replay.Limits{Entries: 4} }})
		h := hub(t, b, quiet())
		s := subscribe(t, h, "x", nil)
		publish(t, h, "x", "1")
		gets(t, s, "1")
		b.deaf(func() {
			for i := 2; i <= 10; i++ {
				publish(t, h, "x", strconv.Itoa(i))
			}
		})
		var once sync.Once
		b.set(func() {
			b.onRead = func(_ context.Context, _ string, after replay.Position, do func() (Page, error)) (Page, error) {
				page, err := do()
				if after.IsZero() {
					once.Do(func() { publish(t, h, "x", "11") })
				}
				return page, err
			}
		})
		b.sinks[0].Doorbell("x")
		synctest.Wait()
		gets(t, s, "reset(trimmed 5) 7 8 9 10 11")
	})
}

// The page was read before the history went back, the hint is of after that.
func TestAHintDuringTheJoinThatContradictsThePageIsLookedInto(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		first := publish(t, h, "x", "1")
		publish(t, h, "x", "2")
		during(b, func() {
			b.rewind("x", 1)
			publish(t, h, "x", "2'")
		})
		s := subscribe(t, h, "x", &SubscribeOptions{After: first.Pos})
		gets(t, s, "2'")
	})
}

// The log must not go back to the page that was read when it has moved on so far
// meanwhile that nothing of the page is left.
func TestALiveReaderIsNotResetWhenAnotherNeedsOlderMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := func(string) replay.Limits { return replay.Limits{Entries: 4} }
		b := newTap(t, &MemoryOptions{Limits: limits})
		h := hub(t, b, &Options{Sweep: -1, Limits: limits})
		first := publish(t, h, "x", "1")
		publish(t, h, "x", "2")
		publish(t, h, "x", "3")
		live := subscribe(t, h, "x", nil)
		var once sync.Once
		b.set(func() {
			b.onRead = func(_ context.Context, _ string, after replay.Position, do func() (Page, error)) (Page, error) {
				page, err := do()
				if after.IsZero() {
					once.Do(func() {
						for i := 4; i <= 9; i++ {
							publish(t, h, "x", strconv.Itoa(i))
							var got Batch
							if live.Read(&got, replay.Budget{}); text(&got) != strconv.Itoa(i) {
								t.Errorf("got %q, want %d", text(&got), i)
							}
						}
					})
				}
				return page, err
			}
		})
		s := subscribe(t, h, "x", &SubscribeOptions{After: first.Pos})
		gets(t, live, "")
		gets(t, s, "reset(trimmed 4) 6 7 8 9")
		publish(t, h, "x", "10")
		gets(t, live, "10")
	})
}

// Nor must it lose what came while the page was read.
func TestWhatComesWhileOlderMessagesAreReadIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		first := publish(t, h, "x", "1")
		publish(t, h, "x", "2")
		publish(t, h, "x", "3")
		live := subscribe(t, h, "x", nil)
		var once sync.Once
		b.set(func() {
			b.onRead = func(_ context.Context, _ string, after replay.Position, do func() (Page, error)) (Page, error) {
				page, err := do()
				if after.IsZero() {
					once.Do(func() {
						publish(t, h, "x", "4")
						var got Batch
						live.Read(&got, replay.Budget{})
					})
				}
				return page, err
			}
		})
		s := subscribe(t, h, "x", &SubscribeOptions{After: first.Pos})
		gets(t, live, "")
		gets(t, s, "2 3 4")
		if h.Stats().Resets != 0 {
			t.Error("a Reset, but nothing was missed")
		}
	})
}

// Nor what came, however much that is: more than a page.
func TestManyThatComeWhileOlderMessagesAreReadAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		first := publish(t, h, "x", "1")
		publish(t, h, "x", "2")
		publish(t, h, "x", "3")
		live := subscribe(t, h, "x", nil)
		const more = 2 * replay.DefaultBatchEntries
		var once sync.Once
		b.set(func() {
			b.onRead = func(_ context.Context, _ string, after replay.Position, do func() (Page, error)) (Page, error) {
				page, err := do()
				if after.IsZero() {
					once.Do(func() {
						for range more {
							publish(t, h, "x", "more")
						}
						var got Batch
						live.Read(&got, replay.Budget{Entries: -1, Bytes: -1})
						if len(got.Entries) != more {
							t.Errorf("%d entries", len(got.Entries))
						}
					})
				}
				return page, err
			}
		})
		s := subscribe(t, h, "x", &SubscribeOptions{After: first.Pos})
		gets(t, live, "")
		var got Batch
		s.Read(&got, replay.Budget{Entries: -1, Bytes: -1})
		if len(got.Entries) != 2+more || h.Stats().Resets != 0 {
			t.Errorf("%d entries and %d Resets", len(got.Entries), h.Stats().Resets)
		}
	})
}

// After a failover that breaks no connection, a message in one topic shows that the history
// has changed. The same is then true of topics in which nothing happens.
func TestARewindInOneTopicMakesTheHubLookAtTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, &Options{Sweep: time.Hour})
		other := hub(t, b, quiet())
		var quietOnes []*Subscription
		for _, topic := range []string{"busy", "a", "b", "c"} {
			quietOnes = append(quietOnes, subscribe(t, h, topic, nil))
			ten(t, h, topic)
		}
		for _, s := range quietOnes {
			gets(t, s, "1 2 3 4 5 6 7 8 9 10")
		}
		for _, topic := range []string{"busy", "a", "b", "c"} {
			b.rewind(topic, 3)
		}
		publish(t, other, "busy", "new")
		time.Sleep(time.Second + 100*time.Millisecond)
		for i, s := range quietOnes {
			want := "reset(ahead 0) 1 2 3 4 5 6 7"
			if i == 0 {
				want += " new"
			}
			gets(t, s, want)
		}
		if n := b.sweeps(); n < 1 || n > 3 {
			t.Errorf("%d calls of Heads", n)
		}
		time.Sleep(time.Minute)
		if n := b.sweeps(); n > 3 {
			t.Errorf("%d calls of Heads, which find nothing", n)
		}
	})
}

// A client that was told of a loss elsewhere comes with a position that this node cannot
// know, because it has not noticed yet. It reads before it answers, and so does not hand
// out what is lost.
func TestAPositionThatTheNodeCannotKnowMakesItReadFirst(t *testing.T) {
	for _, c := range []struct {
		name  string
		loses func(b *tap)
	}{
		{"another entry of that number", func(b *tap) { b.rewind("x", 3) }},
		{"another epoch", func(b *tap) { b.lose("x") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTap(t, nil)
				h := hub(t, b, quiet())
				other := hub(t, b, quiet())
				live := subscribe(t, h, "x", nil)
				ten(t, h, "x")
				gets(t, live, "1 2 3 4 5 6 7 8 9 10")
				c.loses(b)
				var after replay.Position
				b.deaf(func() { // h is not told of it
					after = publish(t, other, "x", "new").Pos
					publish(t, other, "x", "next")
				})
				var s *Subscription
				if n := b.readsOf(func() { s = subscribe(t, h, "x", &SubscribeOptions{After: after}) }); n == 0 || n > 3 {
					t.Errorf("%d reads", n)
				}
				gets(t, s, "next")
				if n := h.Stats().Resets; n != 0 {
					t.Errorf("%d Resets", n)
				}
			})
		})
	}
}

// A client that comes from another node may be ahead of this one.
func TestAPositionThatAnotherNodeSawFirstIsNoReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		live := subscribe(t, h, "x", nil)
		var second Receipt
		b.deaf(func() {
			publish(t, h, "x", "1")
			second = publish(t, h, "x", "2")
			publish(t, h, "x", "3")
		})
		var s *Subscription
		n := b.readsOf(func() { s = subscribe(t, h, "x", &SubscribeOptions{After: second.Pos}) })
		gets(t, s, "3")
		gets(t, live, "1 2 3")
		if n != 1 || h.Stats().Resets != 0 {
			t.Errorf("%d reads and %d Resets, want 1 and none", n, h.Stats().Resets)
		}
	})
}

func TestAPositionThatCannotBeResumedIsOneResetWithItsReason(t *testing.T) {
	for _, warm := range []bool{false, true} {
		for _, c := range []struct {
			name  string
			after func(replay.Position) replay.Position // made of that of number 3 of 10
			want  string
		}{
			{"ahead", func(p replay.Position) replay.Position { p.Seq = 99; return p }, "reset(ahead 0) 7 8 9 10"},
			{"forked", func(p replay.Position) replay.Position { p.Seq = 8; return p }, "reset(forked 0) 7 8 9 10"},
			{"forked just before the oldest", func(p replay.Position) replay.Position { p.Seq = 6; return p }, "reset(forked 0) 7 8 9 10"},
			{"epoch", func(p replay.Position) replay.Position { p.Epoch++; return p }, "reset(epoch 0) 7 8 9 10"},
			{"trimmed", func(p replay.Position) replay.Position { return p }, "reset(trimmed 3) 7 8 9 10"},
			{"the start", func(p replay.Position) replay.Position { return replay.Position{Epoch: p.Epoch} }, "reset(trimmed 6) 7 8 9 10"},
		} {
			t.Run(fmt.Sprintf("%s/warm=%v", c.name, warm), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := newTap(t, &MemoryOptions{Limits: func(string) replay.Limits { return replay.Limits{Entries: 4} }})
					h := hub(t, b, quiet())
					if warm {
						defer subscribe(t, h, "x", nil).Close()
					}
					var third replay.Position
					for i := 1; i <= 10; i++ {
						if r := publish(t, h, "x", strconv.Itoa(i)); i == 3 {
							third = r.Pos
						}
					}
					// A ring of the Hub is larger than that of the backplane here, and
					// so a warm one has everything.
					want := c.want
					switch {
					case warm && c.name == "trimmed":
						want = "4 5 6 7 8 9 10"
					case warm && c.name == "the start":
						want = "1 2 3 4 5 6 7 8 9 10"
					case warm:
						want = strings.Replace(want, ") 7", ") 1 2 3 4 5 6 7", 1)
					}
					s := subscribe(t, h, "x", &SubscribeOptions{After: c.after(third)})
					gets(t, s, want)
					gets(t, s, "")
					publish(t, h, "x", "11")
					gets(t, s, "11")
				})
			})
		}
	}
}

// #3
func TestToResumeTwiceRepeatsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		first := publish(t, h, "x", "1")
		after := first.Pos
		for i := 2; i < 6; i++ {
			publish(t, h, "x", strconv.Itoa(i))
			s := subscribe(t, h, "x", &SubscribeOptions{After: after})
			gets(t, s, strconv.Itoa(i))
			after = s.Position()
			s.Close()
		}
		gets(t, subscribe(t, h, "x", &SubscribeOptions{After: after}), "")
	})
}

// Who has read nothing has a position all the same.
func TestToResumeFromBeforeTheFirstMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h, other := hub(t, b, quiet()), hub(t, b, quiet())
		s := subscribe(t, h, "x", nil)
		gets(t, s, "")
		at := s.Position()
		if at.IsZero() {
			t.Fatal("no position")
		}
		publish(t, h, "x", "1")
		gets(t, subscribe(t, other, "x", &SubscribeOptions{After: at}), "1")
	})
}

var errPatience = errors.New("out of patience")

// #20, pad #1197
func TestNoWaitIsLongerThanItsContext(t *testing.T) {
	calls := map[string]func(b *tap){
		"Add": func(b *tap) {
			b.onAdd = func(ctx context.Context, topics []string, do func() error) error {
				if strings.HasPrefix(topics[0], "slow") {
					return hang(ctx)
				}
				return do()
			}
		},
		"Read": func(b *tap) {
			b.onRead = func(ctx context.Context, topic string, _ replay.Position, do func() (Page, error)) (Page, error) {
				if topic == "slow" {
					return Page{}, hang(ctx)
				}
				return do()
			}
		},
	}
	for name, set := range calls {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTap(t, nil)
				h := hub(t, b, quiet())
				other := subscribe(t, h, "x", nil)
				b.set(func() { set(b) })
				// One call of the backplane ends after 10 s. Ours after 3 and 25.
				for _, patience := range []time.Duration{3 * time.Second, 25 * time.Second} {
					ctx, cancel := context.WithTimeoutCause(t.Context(), patience, errPatience)
					start := time.Now()
					s, err := h.Subscribe(ctx, "slow", nil)
					cancel()
					if s != nil || err != errPatience || time.Since(start) != patience {
						t.Errorf("%v, %v after %v, want the cause after %v", s, err, time.Since(start), patience)
					}
					publish(t, h, "x", "1")
					gets(t, other, "1")
				}
				if n := h.Stats().Subscribers; n != 1 {
					t.Errorf("%d subscribers are left, want 1", n)
				}
				b.set(func() { b.onAdd, b.onRead = nil, nil })
				s := subscribe(t, h, "slow", nil) // and it goes on as soon as it can
				publish(t, h, "slow", "1")
				gets(t, s, "1")
			})
		})
	}
	t.Run("Append", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newTap(t, nil)
			h := hub(t, b, quiet())
			b.set(func() {
				b.onAppend = func(ctx context.Context, _ string, _ Message, _ func() (Receipt, error)) (Receipt, error) {
					return Receipt{}, hang(ctx)
				}
			})
			ctx, cancel := context.WithTimeoutCause(t.Context(), 3*time.Second, errPatience)
			defer cancel()
			start := time.Now()
			r, err := h.Publish(ctx, "x", Message{})
			if !errors.Is(err, errPatience) || time.Since(start) != 3*time.Second || r.Outcome != Unknown || r.ID == "" {
				t.Errorf("%+v, %v after %v", r, err, time.Since(start))
			}
		})
	})
	t.Run("done before", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := hub(t, newTap(t, nil), quiet())
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(errPatience)
			if _, err := h.Subscribe(ctx, "x", nil); err != errPatience {
				t.Error(err)
			}
		})
	})
}

func TestSubscribeWaitsForABackplaneThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		start := time.Now()
		b.set(func() {
			b.onAdd = func(_ context.Context, _ []string, do func() error) error {
				if time.Since(start) < 10*time.Second {
					return errAway
				}
				return do()
			}
			b.onRead = func(_ context.Context, _ string, _ replay.Position, do func() (Page, error)) (Page, error) {
				if time.Since(start) < 20*time.Second {
					return Page{}, errAway
				}
				return do()
			}
		})
		s := subscribe(t, h, "x", nil)
		if d := time.Since(start); d < 20*time.Second || d > 25*time.Second {
			t.Errorf("subscribed after %v", d)
		}
		publish(t, h, "x", "1")
		gets(t, s, "1")
		if n := h.Stats().Errors; n < 5 || n > 60 {
			t.Errorf("%d failed calls in 20 s", n)
		}
	})
}

// A topic that nobody wants any more by the time it can be watched must not be.
func TestATopicIsNotWatchedWhenNobodyWantsItAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, &Options{Sweep: -1, Linger: -1})
		b.set(func() {
			b.onAdd = func(_ context.Context, topics []string, do func() error) error {
				if strings.HasPrefix(topics[0], "slow") {
					time.Sleep(5 * time.Second)
				}
				return do()
			}
		})
		for i := range maxAdds { // all calls at a time are under way
			go func() {
				if s, err := h.Subscribe(context.Background(), "slow"+strconv.Itoa(i), nil); err == nil {
					defer s.Close()
				}
			}()
			synctest.Wait()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := h.Subscribe(ctx, "x", nil); err == nil {
			t.Fatal("subscribed")
		}
		time.Sleep(10 * time.Second)
		got := " " + b.watches() + " "
		if strings.LastIndex(got, " x ") > strings.LastIndex(got, " -x ") {
			t.Errorf("x is still watched: %s", got)
		}
	})
}

// For one name, what is wanted later is done later, though a call takes long: else a Remove
// that is late would undo an Add.
func TestATopicIsWatchedAndDroppedInTheOrderInWhichThatIsWanted(t *testing.T) {
	t.Run("a Remove that blocks", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newTap(t, nil)
			h := hub(t, b, &Options{Sweep: -1, Linger: -1})
			subscribe(t, h, "x", nil).Close()
			blocked := make(chan struct{})
			b.set(func() { b.onRemove = func() { <-blocked } })
			time.Sleep(2 * time.Second)
			got := make(chan *Subscription, 1)
			go func() {
				s, err := h.Subscribe(context.Background(), "x", nil)
				if err != nil {
					t.Error(err)
				}
				got <- s
			}()
			time.Sleep(2 * time.Second)
			if w := b.watches(); w != "x -x" || len(got) > 0 {
				t.Errorf("while it is removed: %s", w)
			}
			close(blocked)
			s := <-got
			defer s.Close()
			if w := b.watches(); w != "x -x x" {
				t.Errorf("then: %s", w)
			}
			publish(t, h, "x", "1")
			gets(t, s, "1")
		})
	})
	t.Run("an Add that blocks", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newTap(t, nil)
			h := hub(t, b, &Options{Sweep: -1, Linger: -1})
			blocked := make(chan struct{})
			b.set(func() {
				b.onAdd = func(_ context.Context, _ []string, do func() error) error { <-blocked; return do() }
			})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := h.Subscribe(ctx, "x", nil); err == nil {
				t.Fatal("subscribed")
			}
			time.Sleep(3 * time.Second)
			if w := b.watches(); w != "x" {
				t.Errorf("while it is added: %s", w)
			}
			close(blocked)
			if w := b.watches(); w != "x -x" {
				t.Errorf("then: %s", w)
			}
		})
	})
}

func TestATopicStaysWarmForAsLongAsItLingers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, &Options{Sweep: -1, Linger: 10 * time.Second})
		s := subscribe(t, h, "x", nil)
		publish(t, h, "x", "1")
		gets(t, s, "1")
		after := s.Position()
		s.Close()
		time.Sleep(9900 * time.Millisecond)
		publish(t, h, "x", "2")
		n := b.readsOf(func() { s = subscribe(t, h, "x", &SubscribeOptions{After: after}) })
		gets(t, s, "2")
		if n != 0 {
			t.Errorf("%d reads within the time to linger, want none", n)
		}
		time.Sleep(time.Minute) // it does not count while somebody is there
		if h.Stats().Topics != 1 {
			t.Error("a topic with a subscriber was dropped")
		}
		s.Close()
		time.Sleep(11 * time.Second)
		if n := h.Stats().Topics; n != 0 {
			t.Errorf("%d topics, want none", n)
		}
		if got := b.watches(); got != "x -x" {
			t.Errorf("watches: %q", got)
		}
		n = b.readsOf(func() { s = subscribe(t, h, "x", &SubscribeOptions{After: after}) })
		gets(t, s, "2")
		if n != 1 || b.watches() != "x -x x" {
			t.Errorf("%d reads, watches %q", n, b.watches())
		}
		publish(t, h, "x", "3")
		gets(t, s, "3")
	})
}

func TestReceiptsSayWhatBecameOfAMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		ctx := t.Context()
		first, err := h.Publish(ctx, "x", Message{ID: "a", Data: []byte("1")})
		if err != nil || first.Outcome != Committed || first.ID != "a" || first.Pos.Seq != 1 {
			t.Errorf("%+v, %v", first, err)
		}
		again, err := h.Publish(ctx, "x", Message{ID: "a", Data: []byte("1")})
		if err != nil || again.Outcome != Duplicate || again.Pos != first.Pos || again.ID != "a" {
			t.Errorf("%+v, %v", again, err)
		}
		ids := map[string]bool{}
		for range 100 {
			r := publish(t, h, "x", "same text")
			ids[r.ID] = true
			if r.Outcome != Committed || len(r.ID) < 20 || len(r.ID) > MaxID {
				t.Fatalf("%+v", r)
			}
		}
		if len(ids) != 100 {
			t.Errorf("%d different IDs of 100", len(ids))
		}
		if s := h.Stats(); s.Published != 102 || s.Failed != 0 {
			t.Errorf("stats: %+v", s)
		}
		other := errors.New("no such slot")
		for _, c := range []struct {
			from    Receipt
			err     error
			want    Outcome
			problem error
		}{
			{Receipt{}, nil, Unknown, nil}, // a backplane that forgot to say
			{Receipt{Outcome: NotStored}, nil, Unknown, nil},
			{Receipt{Outcome: Queued}, nil, Unknown, nil},
			{Receipt{}, errAway, Unknown, ErrUnavailable},
			{Receipt{Outcome: NotStored}, errAway, NotStored, ErrUnavailable},
			{Receipt{Outcome: Committed}, other, Unknown, other},
		} {
			b.set(func() {
				b.onAppend = func(context.Context, string, Message, func() (Receipt, error)) (Receipt, error) {
					return c.from, c.err
				}
			})
			r, err := h.Publish(ctx, "x", Message{ID: "b"})
			if err == nil || r.Outcome != c.want || r.ID != "b" || c.problem != nil && !errors.Is(err, c.problem) {
				t.Errorf("%+v, %v became %+v, %v", c.from, c.err, r, err)
			}
		}
		if s := h.Stats(); s.Published != 102 || s.Failed != 6 {
			t.Errorf("stats: %+v", s)
		}
	})
}

func TestWhatIsNotAllowedIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, &Options{MaxMessage: 10})
		appends := 0
		b.set(func() {
			b.onAppend = func(_ context.Context, _ string, _ Message, do func() (Receipt, error)) (Receipt, error) {
				appends++
				return do()
			}
		})
		long := strings.Repeat("é", 200)
		for _, c := range []struct {
			topic string
			m     Message
			field string
		}{
			{"", Message{}, "topic"},
			{long, Message{}, "topic"},
			{"\xff", Message{}, "topic"},
			{"x", Message{ID: long}, "ID"},
			{"x", Message{ID: "\xff"}, "ID"},
			{"x", Message{Key: long}, "Key"},
			{"x", Message{Key: "\xff"}, "Key"},
			{"x", Message{Data: make([]byte, 11)}, "Data"},
			{long[:255-1], Message{ID: long[:MaxID], Key: long[:255-1], Data: make([]byte, 10)}, ""},
			{"x", Message{}, ""},
		} {
			before := appends
			r, err := h.Publish(t.Context(), c.topic, c.m)
			var bad *InputError
			if errors.As(err, &bad); c.field == "" {
				if err != nil {
					t.Errorf("%q %+v: %v", c.topic, c.m, err)
				}
				continue
			}
			if bad == nil || bad.Field != c.field || !strings.Contains(err.Error(), c.field+" ") || r.Outcome != NotStored || appends != before {
				t.Errorf("%q %+v: %+v, %v", c.topic, c.m, r, err)
			}
		}
		var bad *InputError
		if _, err := h.Subscribe(t.Context(), "", nil); !errors.As(err, &bad) || bad.Field != "topic" {
			t.Errorf("Subscribe: %v", err)
		}
		if err := h.PublishEphemeral(t.Context(), "", nil); !errors.As(err, &bad) || bad.Field != "topic" {
			t.Errorf("PublishEphemeral: %v", err)
		}
		if err := h.PublishEphemeral(t.Context(), "x", make([]byte, 11)); !errors.As(err, &bad) || bad.Field != "Data" {
			t.Errorf("PublishEphemeral: %v", err)
		}
	})
}

func TestTheDefaultsAreAsDocumented(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if DefaultSweep != 5*time.Second || DefaultLinger != time.Minute || DefaultMaxMessage != 1<<20 ||
			DefaultOutboxMessages != 1024 || DefaultOutboxBytes != 1<<20 || DefaultOutboxAge != time.Minute {
			t.Error("a default has changed")
		}
		given := Options{Outbox: &Outbox{}}
		h := hub(t, newTap(t, nil), &given)
		o := h.opts
		if o.Sweep != DefaultSweep || o.Linger != DefaultLinger || o.MaxMessage != DefaultMaxMessage || o.Snapshot != nil {
			t.Errorf("%+v", o)
		}
		if got := o.Limits("x"); got != (replay.Limits{}) {
			t.Errorf("limits: %+v", got)
		}
		x := h.outbox.opts
		if x.Messages != DefaultOutboxMessages || x.Bytes != DefaultOutboxBytes || x.Age != DefaultOutboxAge || x.Done != nil {
			t.Errorf("%+v", x)
		}
		if diff := cmp.Diff(Options{Outbox: &Outbox{}}, given); diff != "" {
			t.Errorf("the caller's options were changed (-want +got):\n%s", diff)
		}
		if h := hub(t, newTap(t, nil), nil); h.opts.Sweep != DefaultSweep || h.outbox != nil {
			t.Error("nil is not all defaults")
		}
		h = hub(t, newTap(t, nil), &Options{MaxMessage: -1})
		if _, err := h.Publish(t.Context(), "x", Message{Data: make([]byte, 2<<20)}); err != nil {
			t.Error(err)
		}
		h = hub(t, newTap(t, nil), nil)
		if _, err := h.Publish(t.Context(), "x", Message{Data: make([]byte, 1<<20)}); err != nil {
			t.Error(err)
		}
		if _, err := h.Publish(t.Context(), "x", Message{Data: make([]byte, 1<<20+1)}); err == nil {
			t.Error("more than DefaultMaxMessage was taken")
		}
	})
}

func TestLimitsAreAskedForOncePerTopicAndKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []string
		h := hub(t, newTap(t, nil), &Options{Limits: func(topic string) replay.Limits {
			asked = append(asked, topic)
			return replay.Limits{Entries: 3}
		}})
		s := subscribe(t, h, "x", nil)
		subscribe(t, h, "x", nil)
		for i := range 5 {
			publish(t, h, "x", strconv.Itoa(i))
		}
		gets(t, s, "reset(trimmed 2) 2 3 4")
		if diff := cmp.Diff([]string{"x"}, asked); diff != "" {
			t.Errorf("asked for (-want +got):\n%s", diff)
		}
	})
}

func TestStatsCountWhatIsThereNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		x, y := subscribe(t, h, "x", nil), subscribe(t, h, "y", nil)
		subscribe(t, h, "x", nil)
		publish(t, h, "x", "1")
		want := Stats{Topics: 2, Subscribers: 3, Published: 1, Hints: 1, Reads: 2}
		if got := h.Stats(); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		x.Close()
		x.Close()
		y.Close()
		time.Sleep(DefaultLinger + time.Second)
		if got := h.Stats(); got.Subscribers != 1 || got.Topics != 1 {
			t.Errorf("%+v", got)
		}
	})
}

func TestAClosedHubRefusesEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hub(t, newTap(t, nil), nil)
		subscribe(t, h, "x", nil)
		if err := h.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := h.Close(t.Context()); err != nil {
			t.Errorf("again: %v", err)
		}
		if r, err := h.Publish(t.Context(), "x", Message{}); err != ErrClosed || r.Outcome != NotStored {
			t.Errorf("%+v, %v", r, err)
		}
		if err := h.PublishEphemeral(t.Context(), "x", nil); err != ErrClosed {
			t.Error(err)
		}
		if _, err := h.Subscribe(t.Context(), "x", nil); err != ErrClosed {
			t.Error(err)
		}
		if h.Stats().Topics != 0 {
			t.Error("topics are left")
		}
	})
}

// Those who wait for a backplane that hangs are let go at once.
// The second call waited for the first however long that took, whatever its own context.
func TestASecondCloseIsBoundedByItsOwnContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Age: -1}})
		b.down(false)
		queue(t, h, "x", "1")
		first := make(chan error, 1)
		long, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("first"))
		defer cancel()
		go func() { first <- h.Close(long) }()
		synctest.Wait()
		start := time.Now()
		short, cancel := context.WithTimeoutCause(t.Context(), time.Second, errPatience)
		defer cancel()
		if err := h.Close(short); err != errPatience || time.Since(start) != time.Second {
			t.Errorf("the second: %v after %v", err, time.Since(start))
		}
		if err := h.Close(t.Context()); err != nil || time.Since(start) != time.Minute {
			t.Errorf("the third: %v after %v", err, time.Since(start))
		}
		if err := <-first; err == nil || err.Error() != "first" {
			t.Errorf("the first: %v", err)
		}
		if err := h.Close(short); err != nil {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestCloseEndsThoseWhoWaitToSubscribe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		b.onAdd = func(ctx context.Context, _ []string, _ func() error) error { return hang(ctx) }
		h := hub(t, b, nil)
		got := make(chan error, 1)
		go func() {
			_, err := h.Subscribe(context.Background(), "x", nil)
			got <- err
		}()
		synctest.Wait()
		start := time.Now()
		h.Close(t.Context())
		if err := <-got; err != ErrClosed || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// Everything at once, for the race detector; and each reader checks that what it
// gets is dense.
func TestManyGoroutinesDoAnythingAtAnyTime(t *testing.T) {
	b := newTap(t, nil)
	h := New(b, &Options{Sweep: 5 * time.Millisecond, Linger: -1, Outbox: &Outbox{}, Snapshot: func(_ context.Context, _ string, head replay.Position) ([]byte, replay.Position, error) {
		return []byte("s"), head, nil
	}})
	b.set(func() {
		b.onHint = func(_ string, _ replay.Entry, do func()) {
			if rand.N(4) > 0 {
				do()
			}
		}
	})
	steps := 3000
	if !verify.On() {
		steps = 500
	}
	topic := func() string { return "t" + strconv.Itoa(rand.N(4)) }
	var wg sync.WaitGroup
	var after [4]replay.Position
	var mu sync.Mutex // guards after
	for range 4 {
		wg.Go(func() {
			var batch Batch
			for range steps {
				switch name := topic(); rand.N(8) {
				case 0, 1, 2:
					publish(t, h, name, "m")
				case 3:
					h.PublishEphemeral(context.Background(), name, []byte("e"))
				case 4:
					b.sinks[0].Interrupted(errors.New("link lost"))
				case 5:
					b.sinks[0].Doorbell(name)
				case 6:
					h.Stats()
				case 7:
					i, _ := strconv.Atoi(name[1:])
					mu.Lock()
					o := &SubscribeOptions{After: after[i], Floor: after[rand.N(4)]}
					mu.Unlock()
					s, err := h.Subscribe(context.Background(), name, o)
					if err != nil {
						t.Error(err)
						return
					}
					last := s.Position()
					for range rand.N(8) {
						if err := s.Read(&batch, replay.Budget{Entries: 4}); err != nil {
							t.Error(err)
						}
						if batch.Reset != nil && len(batch.Entries) > 0 {
							e := &batch.Entries[0]
							last = replay.Position{Epoch: e.Pos.Epoch, Seq: e.Pos.Seq - 1, Tag: e.Prev}
						}
						for _, e := range batch.Entries {
							if e.Pos.Epoch != last.Epoch || e.Pos.Seq != last.Seq+1 || e.Prev != last.Tag {
								t.Errorf("%v after %v", e.Pos, last)
							}
							last = e.Pos
						}
					}
					mu.Lock()
					after[i] = s.Position()
					mu.Unlock()
					if rand.N(2) == 0 {
						other := make(chan struct{})
						go func() { s.Close(); close(other) }()
						for err := error(nil); err == nil; {
							err = s.Next(context.Background(), &batch, replay.Budget{})
						}
						<-other
					}
					s.Close()
				}
			}
		})
	}
	wg.Wait()
	if err := h.Close(context.Background()); err != nil {
		t.Error(err)
	}
	if n := h.Stats().Subscribers; n != 0 {
		t.Errorf("%d subscribers are left", n)
	}
}
