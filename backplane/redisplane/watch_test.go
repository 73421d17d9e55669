package redisplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/faultproxy"
	"github.com/holdfast-ws/holdfast/internal/redistest"
	"github.com/holdfast-ws/holdfast/replay"
)

// A spy is a sink that remembers.
type spy struct {
	mu         sync.Mutex
	entries    map[string][]replay.Entry
	bells      map[string]int
	ephemerals map[string][]string
	interrupts [][]string // the topics
}

func newSpy() *spy {
	return &spy{entries: map[string][]replay.Entry{}, bells: map[string]int{}, ephemerals: map[string][]string{}}
}

func (s *spy) Entry(topic string, e replay.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[topic] = append(s.entries[topic], e)
}

func (s *spy) Doorbell(topic string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bells[topic]++
}

func (s *spy) Ephemeral(topic string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ephemerals[topic] = append(s.ephemerals[topic], string(data))
}

func (s *spy) Interrupted(err error, topics ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.interrupts = append(s.interrupts, topics)
}

// has reports whether the sink was told of an entry.
func (s *spy) has(topic, data string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.entries[topic], func(e replay.Entry) bool { return string(e.Data) == data })
}

func (s *spy) count(topic string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.entries[topic])
}

func (s *spy) rung(topic string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bells[topic]
}

// interrupted returns how often.
func (s *spy) interrupted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.interrupts)
}

// watch returns a spy that watches topics.
func watch(t testing.TB, p *Plane, topics ...string) (*spy, *watcher) {
	t.Helper()
	s := newSpy()
	w := p.Watch(s).(*watcher)
	t.Cleanup(func() { w.Close() })
	if err := w.Add(bounded(t), topics...); err != nil {
		t.Fatal(err)
	}
	return s, w
}

// heard waits until the sink is told of what is appended.
func heard(t testing.TB, p *Plane, s *spy, topic, data string) {
	t.Helper()
	until(t, "the append of "+data, func() bool {
		_, err := p.Append(bounded(t), topic, backplane.Message{ID: data, Data: []byte(data)})
		return err == nil
	})
	until(t, data+" is announced", func() bool { return s.has(topic, data) })
}

// A subscriber reads a topic through a Hub, and remembers texts and Resets.
type subscriber struct {
	t    testing.TB
	sub  *backplane.Subscription
	seen []string
}

// subscribe makes a Hub that repairs nothing by itself: that is for the backplane to ask for.
func subscribe(t testing.TB, p *Plane, topic string, o *backplane.SubscribeOptions) *subscriber {
	t.Helper()
	hub := backplane.New(p, &backplane.Options{Sweep: -1, Limits: func(string) replay.Limits {
		return replay.Limits{Entries: 100_000, Bytes: -1}
	}})
	t.Cleanup(func() { hub.Close(context.Background()) })
	sub, err := hub.Subscribe(bounded(t), topic, o)
	if err != nil {
		t.Fatal(err)
	}
	return &subscriber{t: t, sub: sub}
}

// expect reads until the last of these, and fails if anything else is there.
func (s *subscriber) expect(want ...string) {
	s.t.Helper()
	ctx := bounded(s.t)
	var b backplane.Batch
	for len(s.seen) == 0 || s.seen[len(s.seen)-1] != want[len(want)-1] {
		if err := s.sub.Next(ctx, &b, replay.Budget{}); err != nil {
			s.t.Fatalf("the subscriber waits in vain for %.50q, and has seen %d, the last of them %.100q", want[len(want)-1], len(s.seen), s.seen[max(0, len(s.seen)-3):])
		}
		if b.Reset != nil {
			s.seen = append(s.seen, "reset: "+string(b.Reset.Reason))
		}
		for _, e := range b.Entries {
			s.seen = append(s.seen, string(e.Data))
		}
	}
	if diff := cmp.Diff(want, s.seen); diff != "" {
		s.t.Fatalf("the subscriber saw (-want +got):\n%s", diff)
	}
	s.seen = nil
}

// A record is a log handler that keeps what it is told, each record as a line.
type record struct {
	slog.Handler
	mu    sync.Mutex
	lines []string
}

func (r *record) Enabled(context.Context, slog.Level) bool { return true }
func (r *record) Handle(_ context.Context, x slog.Record) error {
	line := x.Level.String() + " " + x.Message
	x.Attrs(func(a slog.Attr) bool {
		line += fmt.Sprintf(" %s=%v", a.Key, a.Value)
		return true
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, line)
	return nil
}

// count returns how many lines contain all of these.
func (r *record) count(texts ...string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, line := range r.lines {
		if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
			n++
		}
	}
	return n
}

func (r *record) has(texts ...string) bool { return r.count(texts...) > 0 }

// slow returns options with probes so rare that it is not they who find something.
func slow() *Options {
	o := quick(0)
	o.Limits = func(string) replay.Limits { return replay.Limits{Entries: plenty, Bytes: plenty} }
	o.Probe = time.Hour
	return o
}

func TestASinkIsToldOfWhatItsTopicsGet(t *testing.T) {
	server := redistest.Start(t)
	p, _ := connect(t, server.Addr(), quick(entries))
	other, _ := connect(t, server.Addr(), quick(entries))
	s, w := watch(t, p, "a", "b")
	heard(t, other, s, "a", "one")
	heard(t, p, s, "b", "two")
	put(t, other, "c", "", "three")
	if err := other.PublishEphemeral(bounded(t), "b", []byte("typing")); err != nil {
		t.Fatal(err)
	}
	heard(t, other, s, "b", "four")
	s.mu.Lock()
	if got := s.ephemerals["b"]; !slices.Equal(got, []string{"typing"}) || len(s.entries) != 2 || len(s.bells) != 0 || len(s.interrupts) != 0 {
		t.Errorf("the sink was told %q, %+v", got, s.entries)
	}
	s.mu.Unlock()
	w.Remove("a", "never")
	until(t, "nobody listens to a", func() bool {
		return strings.HasSuffix(must(t, server, "PUBSUB NUMSUB "+channelKey(DefaultPrefix+"{0}", 0, "a")), "0")
	})
	had := s.count("a")
	put(t, other, "a", "", "five")
	heard(t, other, s, "b", "six")
	if s.count("a") != had {
		t.Error("the sink is told of a topic that was removed")
	}
	if err := w.Add(bounded(t), "a"); err != nil {
		t.Fatal(err)
	}
	heard(t, other, s, "a", "seven")
}

// #12
func TestALinkThatIsKilledLosesNothing(t *testing.T) {
	server := redistest.Start(t)
	opts := slow()
	p, _ := connect(t, server.Addr(), opts)
	publisher, _ := connect(t, server.Addr(), opts)
	sub := subscribe(t, p, "t", nil)
	var want []string
	for round := range 4 {
		for i := range 50 {
			text := fmt.Sprintf("%d-%d", round, i)
			put(t, publisher, "t", "", text)
			want = append(want, text)
			if i == 20 {
				must(t, server, "CLIENT KILL TYPE pubsub")
			}
		}
		had := uint64(round + 1)
		until(t, "it is noticed", func() bool { return p.Stats().Interruptions >= had })
		put(t, publisher, "t", "", fmt.Sprint("end", round))
		want = append(want, fmt.Sprint("end", round))
		sub.expect(want...)
		want = nil
	}
}

// #14: the kernel acknowledges everything, and nothing comes.
func TestALinkThatCarriesNothingIsReplaced(t *testing.T) {
	server := redistest.Start(t)
	log := &record{}
	opts := quick(entries)
	opts.Probe = 100 * time.Millisecond
	opts.Logger = slog.New(log)
	p, proxy := through(t, server, opts)
	publisher, _ := connect(t, server.Addr(), quick(entries))
	s, _ := watch(t, p, "t")
	sub := subscribe(t, p, "t", nil)
	heard(t, publisher, s, "t", "before")
	sub.expect("before")
	proxy.HoleDown.Store(true)
	put(t, publisher, "t", "", "meanwhile")
	until(t, "it is noticed", func() bool { return p.Stats().Interruptions >= 2 }) // of both watchers
	if s.interrupted() != 0 {
		t.Error("the sink is told before anything flows again")
	}
	if !log.has(errSilent.Error()) {
		t.Errorf("the reasons were %v", log.lines)
	}
	proxy.Heal()
	proxy.ResetAll()
	until(t, "the sink is told", func() bool { return s.interrupted() > 0 })
	heard(t, publisher, s, "t", "after")
	sub.expect("meanwhile", "after")
}

// Only the link for live messages is dead: publishing works.
func TestALinkThatCarriesNothingIsFoundThoughPublishingWorks(t *testing.T) {
	server := redistest.Start(t)
	opts := quick(entries)
	opts.Probe = 100 * time.Millisecond
	p, proxy := through(t, server, opts)
	publisher, _ := connect(t, server.Addr(), quick(entries))
	s, w := watch(t, p, "t")
	// Something vanishes in the hole, so that this connection remains silent. It
	// is the only one that gets anything but answers.
	for range 3 {
		proxy.HoleDown.Store(true)
		for range 20 {
			put(t, publisher, "t", "", "lost")
		}
		proxy.HoleDown.Store(false)
	}
	_ = w
	until(t, "the sink is told", func() bool { return s.interrupted() > 0 })
	heard(t, p, s, "t", "after")
}

func TestARedisThatHangsIsNoticed(t *testing.T) {
	server := redistest.Start(t)
	opts := quick(entries)
	opts.Probe = 100 * time.Millisecond
	p, _ := connect(t, server.Addr(), opts)
	sub := subscribe(t, p, "t", nil)
	s, _ := watch(t, p, "t")
	put(t, p, "t", "", "one")
	sub.expect("one")
	server.Pause()
	defer server.Resume()
	until(t, "it is noticed", func() bool { return p.Stats().Interruptions >= 2 })
	server.Resume()
	until(t, "the sink is told", func() bool { return s.interrupted() > 0 })
	heard(t, p, s, "t", "two")
	sub.expect("two")
}

// An address may lead somewhere else from one moment to the next, and connections
// that exist stay where they are: to a master that is none any more, for one.
func TestALinkToAnotherServerThanIsPublishedToIsReplaced(t *testing.T) {
	for _, listened := range []bool{false, true} {
		t.Run(fmt.Sprintf("somebody else listens there %t", listened), func(t *testing.T) {
			a, b := redistest.Start(t), redistest.Start(t)
			proxy, err := faultproxy.New(a.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer proxy.Close()
			o := options(proxy.Addr())
			o.ConnMaxLifetime = time.Millisecond // each call on another
			client := redis.NewClient(o)
			defer client.Close()
			log := &record{}
			opts := quick(entries)
			opts.Logger = slog.New(log)
			p, err := New(client, opts)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			s, _ := watch(t, p, "t")
			heard(t, p, s, "t", "one")
			if listened {
				there := redis.NewClient(options(b.Addr()))
				defer there.Close()
				ps := there.Subscribe(context.Background(), probeKey(DefaultPrefix+"{0}", p.node))
				defer ps.Close()
				if _, err := ps.Receive(bounded(t)); err != nil {
					t.Fatal(err)
				}
			}
			proxy.SetTarget(b.Addr())
			until(t, "the sink is told", func() bool { return s.interrupted() > 0 })
			if !log.has(errElsewhere.Error()) {
				t.Errorf("the reasons were %v", log.lines)
			}
			heard(t, p, s, "t", "two")
		})
	}
}

// go-redis makes a new connection by itself, and subscribes again. What came in
// between is lost.
func TestASubscriptionThatIsConfirmedAgainIsAnInterruption(t *testing.T) {
	server := redistest.Start(t)
	for _, test := range []struct {
		what string
		want error
		do   func(ctx context.Context, conn *redis.PubSub, channel string) error
	}{
		{"confirmed again", errRepeated, func(ctx context.Context, conn *redis.PubSub, channel string) error {
			return conn.Subscribe(ctx, channel)
		}},
		{"ended", errUnsolicited, func(ctx context.Context, conn *redis.PubSub, channel string) error {
			return conn.Unsubscribe(ctx, channel)
		}},
	} {
		log := &record{}
		opts := slow()
		opts.Logger = slog.New(log)
		p, _ := connect(t, server.Addr(), opts)
		s, w := watch(t, p, "t", "u")
		f := w.parts[0]
		f.mu.Lock()
		conn := f.session.conn
		f.mu.Unlock()
		if err := test.do(bounded(t), conn, channelKey(f.prefix, 0, "t")); err != nil {
			t.Fatal(err)
		}
		until(t, "the sink is told when one is "+test.what, func() bool { return s.interrupted() > 0 })
		if !log.has(test.want.Error()) {
			t.Errorf("the reasons were %v", log.lines)
		}
		heard(t, p, s, "t", "after "+test.what)
		heard(t, p, s, "u", "after "+test.what)
		if n := p.Stats().Interruptions; n != 1 {
			t.Errorf("%d interruptions", n)
		}
	}
}

// The sink reads what it has missed when it is told, so all topics must be subscribed
// to again by then, also if some that were wanted are not wanted any more.
func TestTheSinkIsToldOfAnInterruptionWhenEverythingIsConfirmed(t *testing.T) {
	p, err := New(nowhere(t), slow())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	s := newSpy()
	w := &watcher{plane: p, sink: s, parts: map[int]*feed{}}
	f := &feed{w: w, wake: make(chan struct{}, 1), prefix: p.parts[0].prefix, topics: map[string]bool{"a": false, "b": false, "new": false}, missing: 3, waiting: map[string][]*addition{}}
	probe := probeKey(f.prefix, p.node)
	x := &session{asked: map[string]bool{}, subs: map[string]int{}, unsubs: map[string]int{}, again: true}
	f.session = x
	confirm := func(channel string) {
		t.Helper()
		x.asked[channel] = true
		x.subs[channel]++
		if err := f.notice(x, &redis.Subscription{Kind: "subscribe", Channel: channel}); err != nil {
			t.Fatal(err)
		}
	}
	confirm(probe)
	confirm(channelKey(f.prefix, 0, "a"))
	confirm(channelKey(f.prefix, 0, "b"))
	if s.interrupted() != 0 {
		t.Fatal("the sink is told though a topic is not asked for yet")
	}
	f.unwant("a") // and is still subscribed to
	confirm(channelKey(f.prefix, 0, "stranger"))
	if s.interrupted() != 0 {
		t.Fatal("the sink is told though a topic is not asked for yet, as one that is not wanted any more was counted for it")
	}
	confirm(channelKey(f.prefix, 0, "new"))
	if s.interrupted() != 1 {
		t.Fatalf("the sink is told %d times", s.interrupted())
	}
	confirm(channelKey(f.prefix, 0, "new2"))
	f.unwant("b")
	if s.interrupted() != 1 {
		t.Fatalf("the sink is told %d times", s.interrupted())
	}
	// Or the last that is missing is not wanted any more.
	x.again, f.missing, f.topics["c"] = true, 1, false
	f.unwant("c")
	if s.interrupted() != 2 {
		t.Fatalf("the sink is told %d times", s.interrupted())
	}
}

// #33: Redis closes a connection that does not read.
func TestAReaderThatIsTooSlowForRedisIsRepaired(t *testing.T) {
	server := redistest.Start(t)
	must(t, server, `CONFIG SET client-output-buffer-limit "pubsub 1mb 1mb 1"`)
	p, proxy := through(t, server, slow())
	publisher, _ := connect(t, server.Addr(), slow())
	sub := subscribe(t, p, "t", nil)
	put(t, publisher, "t", "", "first")
	sub.expect("first")
	proxy.Stall.Store(true)
	filler := strings.Repeat("x", 15<<10)
	var want []string
	listeners := "PUBSUB NUMSUB " + channelKey(DefaultPrefix+"{0}", 0, "t")
	until(t, "Redis closes the connection", func() bool {
		for range 20 {
			text := fmt.Sprint(len(want), filler)
			put(t, publisher, "t", "", text)
			want = append(want, text)
		}
		return strings.HasSuffix(must(t, server, listeners), "\n0")
	})
	t.Logf("after %d messages", len(want))
	proxy.Stall.Store(false)
	until(t, "it is noticed", func() bool { return p.Stats().Interruptions > 0 })
	put(t, publisher, "t", "", "last")
	sub.expect(append(want, "last")...)
	if n := p.Stats().Malformed; n != 0 {
		t.Errorf("%d malformed", n)
	}
}

// #34: half a message is no message, and the next connection begins anew.
func TestAMessageThatIsCutBreaksNothing(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p, proxy := through(t, server, slow())
	publisher, _ := connect(t, server.Addr(), slow())
	sub := subscribe(t, p, "t", nil)
	s, _ := watch(t, p, "t")
	filler := strings.Repeat("\r\n$5\r\n*3\r\n", 300)
	for round, cut := range []int64{1, 3, 40, 100, 1500, 3000, 3100} {
		proxy.CutDown.Store(cut)
		var want []string
		for i := range 3 {
			text := fmt.Sprint(round, "-", i, filler)
			put(t, publisher, "t", "", text)
			want = append(want, text)
		}
		until(t, "a connection is cut", func() bool { return proxy.CutDown.Load() == 0 })
		sub.expect(want...)
	}
	// Now and then it was the answer to a Read.
	if n := p.Stats().Interruptions; n < 1 {
		t.Errorf("%d interruptions", n)
	}
	if n := p.Stats().Malformed; n != 0 {
		t.Errorf("%d malformed", n)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries["t"] {
		if !strings.HasSuffix(string(e.Data), filler) {
			t.Errorf("the sink was told of %.50q", e.Data)
		}
	}
}

// #32: numbers begin at 1 again, and nobody may wait for an old one.
func TestSubscribersAreToldThatRedisHasComeBackEmpty(t *testing.T) {
	server := redistest.Start(t)
	p, _ := connect(t, server.Addr(), quick(entries))
	publisher, _ := connect(t, server.Addr(), quick(entries))
	sub := subscribe(t, p, "t", nil)
	quiet := subscribe(t, p, "quiet", nil)
	for i := range 5 {
		put(t, publisher, "t", "", fmt.Sprint("old", i))
	}
	at := put(t, publisher, "quiet", "", "old")
	sub.expect("old0", "old1", "old2", "old3", "old4")
	quiet.expect("old")
	server.Kill()
	server.Restart(t)
	heard := func(topic, text string) {
		t.Helper()
		until(t, "it is published", func() bool {
			_, err := publisher.Append(bounded(t), topic, backplane.Message{ID: text, Data: []byte(text)})
			return err == nil
		})
	}
	heard("t", "new0")
	heard("t", "new1")
	heard("quiet", "new")
	sub.expect("reset: epoch", "new0", "new1")
	quiet.expect("reset: epoch", "new")
	resumed := subscribe(t, p, "quiet", &backplane.SubscribeOptions{After: at})
	resumed.expect("reset: epoch", "new")
	heard("t", "new2")
	sub.expect("new2")
}

// commands returns how often Redis was called with one.
func commands(t testing.TB, server *redistest.Server, name string) int {
	t.Helper()
	m := regexp.MustCompile(`cmdstat_` + name + `:calls=(\d+),`).FindStringSubmatch(must(t, server, "INFO commandstats"))
	if m == nil {
		return 0
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestManyTopicsAreWatchedWithFewCommands(t *testing.T) {
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), slow())
	var topics []string
	for i := range 10_000 {
		topics = append(topics, fmt.Sprint("topic", i))
	}
	s, w := watch(t, p, topics...)
	if n := commands(t, server, "subscribe"); n > 20 {
		t.Errorf("%d calls of SUBSCRIBE", n)
	}
	channels := func() int {
		all, err := client.PubSubChannels(bounded(t), DefaultPrefix+"{0}c0:*").Result()
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if n := channels(); n != len(topics) {
		t.Errorf("there are %d channels", n)
	}
	heard(t, p, s, topics[0], "x")
	heard(t, p, s, topics[9999], "x")
	w.Remove(topics[1:]...)
	until(t, "all but one are gone", func() bool { return channels() == 1 })
	if n := commands(t, server, "unsubscribe"); n > 1000 {
		t.Errorf("%d calls of UNSUBSCRIBE", n)
	}
	heard(t, p, s, topics[0], "y")
	// After an interruption the same.
	if err := w.Add(bounded(t), topics...); err != nil {
		t.Fatal(err)
	}
	before := commands(t, server, "subscribe")
	must(t, server, "CLIENT KILL TYPE pubsub")
	until(t, "the sink is told", func() bool { return s.interrupted() > 0 })
	if n := commands(t, server, "subscribe") - before; n > 40 {
		t.Errorf("%d calls of SUBSCRIBE after an interruption", n)
	}
	if n := channels(); n != len(topics) {
		t.Errorf("there are %d channels when the sink is told", n)
	}
	heard(t, p, s, topics[5000], "z")
	if s.interrupted() != 1 {
		t.Errorf("it is told %d times", s.interrupted())
	}
}

func TestTopicsThatComeAndGoAtTheSameTimeAreWatchedInTheEnd(t *testing.T) {
	server := redistest.Start(t)
	p, _ := connect(t, server.Addr(), slow())
	s, w := watch(t, p)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				topic := fmt.Sprint(g, "-", i%5)
				if err := w.Add(bounded(t), topic, "all"); err != nil {
					t.Error(err)
				}
				if i < 45 {
					w.Remove(topic)
				}
			}
		})
	}
	wg.Wait()
	for g := range 8 {
		heard(t, p, s, fmt.Sprint(g, "-", g%5), "x")
	}
	heard(t, p, s, "all", "x")
	if n := p.Stats().Interruptions; n != 0 {
		t.Errorf("%d interruptions", n)
	}
}

// Who takes a topic away and adds it again at once, as one whose last reader goes and
// next one comes, waited for a confirmation that Redis had no reason to send, and
// interruptions were not told any more.
func TestATopicThatIsAddedAgainAtOnceIsConfirmed(t *testing.T) {
	server := redistest.Start(t)
	p, _ := connect(t, server.Addr(), slow())
	s, w := watch(t, p, "t", "u")
	for i := range 50 {
		f := w.parts[0]
		f.mu.Lock() // so that nothing is sent in between
		f.changed = append(f.changed, "t")
		delete(f.topics, "t")
		f.mu.Unlock()
		if i%2 == 0 {
			w.Remove("u")
		}
		if err := w.Add(bounded(t), "t", "u"); err != nil {
			t.Fatal(err)
		}
	}
	f := w.parts[0]
	f.mu.Lock()
	if f.missing != 0 || len(f.waiting) != 0 || len(f.topics) != 2 {
		t.Errorf("%d are missing, and %d wait, of %v", f.missing, len(f.waiting), f.topics)
	}
	f.mu.Unlock()
	heard(t, p, s, "t", "x")
	heard(t, p, s, "u", "x")
	must(t, server, "CLIENT KILL TYPE pubsub")
	until(t, "the sink is told", func() bool { return s.interrupted() > 0 })
	heard(t, p, s, "t", "y")
}

func TestAddEndsWithItsContext(t *testing.T) {
	server := redistest.Start(t)
	add := func(w backplane.Watcher) {
		t.Helper()
		ctx, cancel := context.WithTimeoutCause(context.Background(), 30*time.Millisecond, errors.New("enough"))
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- w.Add(ctx, "t", "u") }()
		select {
		case err := <-done:
			if !errors.Is(err, backplane.ErrUnavailable) || !strings.Contains(err.Error(), "enough") {
				t.Errorf("Add returns %v", err)
			}
		case <-time.After(patience):
			t.Fatal("Add does not return")
		}
	}
	p, _ := connect(t, server.Addr(), quick(entries))
	s := newSpy()
	w := p.Watch(s)
	defer w.Close()
	server.Pause()
	add(w)
	add(w)
	server.Resume()
	if err := w.Add(bounded(t), "t"); err != nil {
		t.Error(err)
	}
	heard(t, p, s, "t", "x")
	heard(t, p, s, "u", "x")
	server.Kill()
	w2 := p.Watch(newSpy())
	defer w2.Close()
	add(w2)
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("at once"))
	if err := w2.Add(ctx, "t"); err == nil || err.Error() != "at once" {
		t.Errorf("with a context that is done Add returns %v", err)
	}
}

func TestCloseDoesNotWaitForAConnection(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	for name, fault := range map[string]func(proxy *faultproxy.Proxy){
		"refused":   func(proxy *faultproxy.Proxy) { proxy.Refuse.Store(true); proxy.ResetAll() },
		"swallowed": func(proxy *faultproxy.Proxy) { proxy.Swallow.Store(true); proxy.ResetAll() },
		"half open": func(proxy *faultproxy.Proxy) { proxy.HoleUp.Store(true); proxy.HoleDown.Store(true) },
		"stalled":   func(proxy *faultproxy.Proxy) { proxy.Stall.Store(true) },
		"none":      func(proxy *faultproxy.Proxy) {},
	} {
		for _, wait := range []bool{false, true} {
			p, proxy := through(t, server, quick(entries))
			_, w := watch(t, p, "t")
			fault(proxy)
			if wait && name != "none" {
				until(t, name+" is noticed", func() bool { return p.Stats().Interruptions > 0 })
			}
			adding := make(chan error, 1)
			go func() { adding <- w.Add(context.Background(), "another") }()
			done := make(chan struct{})
			go func() { w.Close(); p.Close(); close(done) }()
			select {
			case <-done:
			case <-time.After(patience):
				t.Fatalf("%s: Close does not return", name)
			}
			select {
			case err := <-adding:
				if err != nil && !errors.Is(err, backplane.ErrClosed) {
					t.Errorf("%s: Add returned %v", name, err)
				}
			case <-time.After(patience):
				t.Fatalf("%s: Add does not return", name)
			}
			if err := w.Add(bounded(t), "t"); !errors.Is(err, backplane.ErrClosed) {
				t.Errorf("%s: after Close Add returns %v", name, err)
			}
			if err := p.Watch(newSpy()).Add(bounded(t), "t"); !errors.Is(err, backplane.ErrClosed) {
				t.Errorf("%s: after Close of the Plane Add returns %v", name, err)
			}
			proxy.Close()
		}
	}
}

// ahead and behind are two readers of a topic whose last two messages, though
// acknowledged, were lost in a failover. It returns the promoted server, to which the
// proxy leads, and all positions.
func loseTwo(t *testing.T, opts *Options) (p *Plane, at []replay.Position) {
	t.Helper()
	master := redistest.Start(t)
	link, err := faultproxy.New(master.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(link.Close)
	replica := redistest.Replica(t, link.Addr())
	p, proxy := through(t, master, opts)
	before := subscribe(t, p, "t", nil)
	for i := range 5 {
		at = append(at, put(t, p, "t", fmt.Sprint("id", i), fmt.Sprint("a", i)))
	}
	// WAIT is of no use on a connection that has written nothing itself.
	offset := func(s *redistest.Server, field string) string {
		_, after, _ := strings.Cut(must(t, s, "INFO replication"), field+":")
		number, _, _ := strings.Cut(after, "\r\n")
		return number
	}
	until(t, "the replica has all", func() bool {
		return offset(replica, "slave_repl_offset") == offset(master, "master_repl_offset")
	})
	link.HoleDown.Store(true) // the replica hears nothing more
	for i := 5; i < 7; i++ {
		at = append(at, put(t, p, "t", fmt.Sprint("id", i), fmt.Sprint("a", i)))
	}
	before.expect("a0", "a1", "a2", "a3", "a4", "a5", "a6")
	master.Kill()
	replica.Promote(t)
	proxy.SetTarget(replica.Addr())
	proxy.ResetAll()
	until(t, "the promoted one is reached", func() bool { return p.Ping(bounded(t)) == nil })
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		// Whoever was there all the time (#10).
		before.expect("reset: forked", "a0", "a1", "a2", "a3", "a4", "b5", "b6", "b7")
	})
	return p, at
}

// #8
func TestAFailoverThatLosesMessagesIsToldToThoseWhoHadThem(t *testing.T) {
	p, at := loseTwo(t, quick(entries))
	// Nothing is published yet: who had them is ahead.
	for i := range at {
		got, gap := read(t, p, "t", at[i])
		switch {
		case i > 4 && (gap == nil || gap.Reason != replay.ReasonAhead):
			t.Errorf("after number %d: %q, %+v", i+1, got, gap)
		case i <= 4 && gap != nil:
			t.Errorf("after number %d: %+v", i+1, gap)
		}
	}
	// What was lost is no duplicate, and what was not is.
	r, err := p.Append(bounded(t), "t", backplane.Message{ID: "id4", Data: []byte("a4")})
	if r.Outcome != backplane.Duplicate || r.Pos != at[4] || err != nil {
		t.Errorf("%+v, %v", r, err)
	}
	b5 := put(t, p, "t", "id5", "b5")
	put(t, p, "t", "", "b6")
	b7 := put(t, p, "t", "", "b7")
	if b5.Epoch != at[5].Epoch || b5.Seq != at[5].Seq || b5.Tag == at[5].Tag {
		t.Fatalf("number 6 was %v, and is %v", at[5], b5)
	}
	for i := range at {
		got, gap := read(t, p, "t", at[i])
		switch {
		case i > 4 && (gap == nil || gap.Reason != replay.ReasonForked || gap.Head != b7):
			t.Errorf("after number %d: %q, %+v", i+1, got, gap)
		case i <= 4 && (gap != nil || !strings.HasSuffix(got, "b5 b6 b7")):
			t.Errorf("after number %d: %q, %+v", i+1, got, gap)
		}
	}
	ahead := subscribe(t, p, "t", &backplane.SubscribeOptions{After: at[6]})
	ahead.expect("reset: forked", "a0", "a1", "a2", "a3", "a4", "b5", "b6", "b7")
	behind := subscribe(t, p, "t", &backplane.SubscribeOptions{After: at[3]})
	behind.expect("a4", "b5", "b6", "b7")

	// The same with positions that are an epoch and a number, as elsewhere: the
	// epoch is the same, number 7 is there, and b5 and b6 are never seen.
	naive := func(after replay.Position) (got []string) {
		for _, e := range readAll(t, p, "t") {
			if e.Pos.Epoch == after.Epoch && e.Pos.Seq > after.Seq {
				got = append(got, string(e.Data))
			}
		}
		return got
	}
	if diff := cmp.Diff([]string{"b7"}, naive(at[6])); diff != "" {
		t.Errorf("without tags there would be (-want +got):\n%s", diff)
	}
}

func TestAFeedStopsWhenItsServerNeverComesBack(t *testing.T) {
	t.Parallel()
	// A listener that nobody serves: connections are made, and hang.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p, _ := connect(t, ln.Addr().String(), quick(entries))
	w := p.Watch(newSpy())
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := w.Add(ctx, "t"); !errors.Is(err, backplane.ErrUnavailable) {
		t.Errorf("Add returns %v", err)
	}
	done := make(chan struct{})
	go func() { p.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("Close does not return")
	}
}

// While the error changed, from EOF to NOPERM say, the log went on being silent.
func TestAFailureWhoseTextIsNewIsLogged(t *testing.T) {
	port := 0
	read := func() error { // as the one that was before, but for a port
		port++
		return &net.OpError{Op: "read", Source: &net.TCPAddr{Port: port}, Err: errors.New("connection reset by peer")}
	}
	var s series
	var told []int
	fail := func(n int, err func() error) {
		for range n {
			if s.tell(err()) {
				told = append(told, s.n)
			}
		}
	}
	fail(5, func() error { return io.EOF })
	fail(1, func() error { return said("NOPERM this user has no permissions to access one of the channels") })
	fail(6, read)
	fail(5, func() error { return io.EOF })
	if diff := cmp.Diff([]int{1, 2, 4, 6, 7, 8, 16}, told); diff != "" {
		t.Errorf("those that were logged are (-want +got):\n%s", diff)
	}
	s, told = series{}, nil
	fail(1000, func() error { port++; return fmt.Errorf("number %d", port) })
	if len(told) > maxTexts+10 {
		t.Errorf("of 1000 that are all new %d are logged", len(told))
	}
}

func TestALinkThatIsLostForAnotherReasonIsLoggedAgain(t *testing.T) {
	server := redistest.Start(t)
	log := &record{}
	opts := quick(entries)
	opts.Logger = slog.New(log)
	p, proxy := through(t, server, opts)
	watch(t, p, "t")
	proxy.Refuse.Store(true)
	proxy.ResetAll()
	until(t, "it has failed some times", func() bool { return p.Stats().Interruptions >= 3 })
	must(t, server, "ACL SETUSER default resetchannels")
	proxy.Heal()
	until(t, "the log says why", func() bool { return log.has("WARN", "live messages", "err=NOPERM", "failures=") })
}
