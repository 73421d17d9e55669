package redisplane

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/redis/go-redis/v9"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/faultproxy"
	"github.com/holdfast-ws/holdfast/internal/redistest"
	"github.com/holdfast-ws/holdfast/internal/verify"
	"github.com/holdfast-ws/holdfast/replay"
)

const plenty = 1 << 26

// keep returns quick options with these limits.
func keep(l replay.Limits) *Options {
	o := quick(0)
	o.Limits = func(string) replay.Limits { return l }
	return o
}

// put appends a message that must be stored now.
func put(t testing.TB, p *Plane, topic, id, data string) replay.Position {
	t.Helper()
	r, err := p.Append(bounded(t), topic, backplane.Message{ID: id, Data: []byte(data)})
	if err != nil || r.Outcome != backplane.Committed {
		t.Fatalf("the append of %q to %q is %v, %v", id, topic, r.Outcome, err)
	}
	return r.Pos
}

// read reads what follows a position, or returns the gap.
func read(t testing.TB, p *Plane, topic string, after replay.Position) (string, *replay.GapError) {
	t.Helper()
	page, err := p.Read(bounded(t), topic, after, replay.Budget{Entries: -1, Bytes: -1})
	var gap *replay.GapError
	if err != nil && !errors.As(err, &gap) {
		t.Fatal(err)
	}
	return texts(page.Entries), gap
}

func texts(entries []replay.Entry) string {
	var all []string
	for _, e := range entries {
		all = append(all, string(e.Data))
	}
	return strings.Join(all, " ")
}

// through returns a Plane that reaches the server through a proxy.
func through(t testing.TB, server *redistest.Server, opts *Options) (*Plane, *faultproxy.Proxy) {
	t.Helper()
	proxy, err := faultproxy.New(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	p, _ := connect(t, proxy.Addr(), opts)
	return p, proxy
}

// connectPatient is connect with a client that waits for as long as a test does, so
// that a test which pauses the server need not hurry.
func connectPatient(t testing.TB, addr string, opts *Options) *Plane {
	t.Helper()
	o := options(addr)
	o.ReadTimeout = patience
	client := redis.NewClient(o)
	p, err := New(client, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(); client.Close() })
	return p
}

// hold makes all appends wait until the first returned function is called, as if
// somebody's call was under way; the second tells how many wait.
func hold(p *Plane, topic string) (release func(), waiting func() int) {
	part := p.part(topic)
	part.mu.Lock()
	part.busy = true
	part.mu.Unlock()
	return part.pass, func() int {
		part.mu.Lock()
		defer part.mu.Unlock()
		return len(part.queue)
	}
}

// A result is what an append on another goroutine returned.
type result struct {
	receipt backplane.Receipt
	err     error
}

// later appends on another goroutine.
func later(p *Plane, ctx context.Context, topic string, m backplane.Message) <-chan result {
	c := make(chan result, 1)
	go func() {
		r, err := p.Append(ctx, topic, m)
		c <- result{r, err}
	}()
	return c
}

// outcome waits for the result.
func outcome(t testing.TB, c <-chan result) result {
	t.Helper()
	select {
	case r := <-c:
		return r
	case <-time.After(patience):
		t.Fatal("an append does not return")
		panic("")
	}
}

// keysOf returns the names of the keys of one kind.
func keysOf(t testing.TB, c redis.UniversalClient, kind string) []string {
	t.Helper()
	keys, err := c.Keys(context.Background(), DefaultPrefix+"{0}"+kind+"*").Result()
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// expires fails the test if a key has no time to live.
func expires(t testing.TB, c redis.UniversalClient) {
	t.Helper()
	keys, err := c.Keys(context.Background(), "*").Result()
	if err != nil || len(keys) == 0 {
		t.Fatalf("%q, %v", keys, err)
	}
	for _, key := range keys {
		// It may go between the two calls: then the answer is -2.
		if ttl := c.PTTL(context.Background(), key).Val(); ttl == -1 {
			t.Errorf("%q stays for ever", key)
		}
	}
}

func TestTheNumberOfEntriesIsBounded(t *testing.T) {
	server := redistest.Start(t)
	for _, n := range []int{1, 2, 16, 17, 100} {
		p, client := connect(t, server.Addr(), keep(replay.Limits{Entries: n, Bytes: plenty}))
		topic := fmt.Sprint(n)
		for i := range 3*n + 5 {
			pos := put(t, p, topic, "", "x")
			if stored := len(readAll(t, p, topic)); stored < min(n, i+1) || stored > n+(n+15)/16 {
				t.Fatalf("%d entries are stored of %d, with a limit of %d", stored, pos.Seq, n)
			}
		}
		count := 0
		for _, key := range keysOf(t, client, "s") {
			if strings.HasSuffix(key, ":"+topic) {
				count++
			}
		}
		if count > 64 {
			t.Errorf("%d segments with a limit of %d", count, n)
		}
	}
}

// Bytes are those of Data and Key, and 30 more for each entry.
func TestTheNumberOfBytesIsBounded(t *testing.T) {
	server := redistest.Start(t)
	const limit = 2000
	p, client := connect(t, server.Addr(), keep(replay.Limits{Entries: plenty, Bytes: limit}))
	for _, size := range []int{0, 10, 300, 1970, 1971, 5000} {
		topic := fmt.Sprint(size)
		counts := size + entryHeader + bodyHeader
		for i := range 3*limit/counts + 5 {
			put(t, p, topic, "", strings.Repeat("x", size))
			stored := len(readAll(t, p, topic)) * counts
			if stored < min(limit, (i+1)*counts) || stored > limit+limit/16+2*counts {
				t.Fatalf("%d bytes are stored of %d, in entries of %d, with a limit of %d", stored, (i+1)*counts, size, limit)
			}
		}
		if n := len(keysOf(t, client, "s")); n > 64+2 {
			t.Errorf("%d segments", n)
		}
		client.FlushAll(context.Background())
	}
}

// An entry is gone a sixteenth and a second after its age at the latest, and the
// numbers go on all the same (#4).
func TestTheAgeOfEntriesIsBounded(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), keep(replay.Limits{Age: 300 * time.Millisecond}))
	p.opts.IDWindow = time.Second
	first := put(t, p, "t", "id", "a")
	last := put(t, p, "t", "", "b")
	began := time.Now()
	if got, gap := read(t, p, "t", first); got != "b" || gap != nil {
		t.Fatalf("%q, %v", got, gap)
	}
	for _, key := range keysOf(t, client, "s") {
		// What Redis counts down needs no test that waits.
		if ttl := client.PTTL(bounded(t), key).Val(); ttl > 300*time.Millisecond*17/16+time.Second+time.Millisecond {
			t.Errorf("%q lives for %v", key, ttl)
		}
	}
	until(t, "the entries are gone", func() bool { return len(readAll(t, p, "t")) == 0 })
	if time.Since(began) < 300*time.Millisecond {
		t.Error("the entries went too early")
	}
	until(t, "all keys but the head are gone", func() bool { return client.DBSize(bounded(t)).Val() == 1 })
	_, gap := read(t, p, "t", first)
	if gap == nil || gap.Reason != replay.ReasonTrimmed || gap.Missed != 1 || gap.Oldest != last {
		t.Errorf("who has not read everything gets %+v", gap)
	}
	if got, gap := read(t, p, "t", last); got != "" || gap != nil {
		t.Errorf("who has read everything gets %q, %v", got, gap)
	}
	if pos := put(t, p, "t", "", "c"); pos.Epoch != last.Epoch || pos.Seq != 3 {
		t.Errorf("the next is %v", pos)
	}
	if got, gap := read(t, p, "t", last); got != "c" || gap != nil {
		t.Errorf("then who had read everything gets %q, %v", got, gap)
	}
	expires(t, client)
}

// A busy topic must not keep old segments alive by appending to them.
func TestASegmentThatIsWrittenToDoesNotLiveLonger(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), keep(replay.Limits{Entries: plenty, Bytes: plenty, Age: 300 * time.Millisecond}))
	first := put(t, p, "t", "", "x")
	until(t, "the first entry is gone while others are appended", func() bool {
		put(t, p, "t", "", "x")
		_, gap := read(t, p, "t", first)
		expires(t, client)
		return gap != nil
	})
	if n := len(keysOf(t, client, "s")); n < 2 || n > 60 {
		t.Errorf("there are %d segments", n) // 1.3 s of such as take 19 ms each
	}
}

// #22: what tells how far the numbers have got outlives what is numbered.
func TestEveryKeyExpiresAndTheHeadLast(t *testing.T) {
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), &Options{MaxAnnouncement: 100, Limits: func(string) replay.Limits { return replay.Limits{Entries: 32} }})
	ctx := bounded(t)
	step := func(what string) {
		t.Helper()
		t.Log(what)
		expires(t, client)
		for _, head := range keysOf(t, client, "m") {
			_, topic, _ := strings.Cut(head, "m:")
			live := client.PTTL(ctx, head).Val()
			for _, key := range keysOf(t, client, "s") {
				if ttl := client.PTTL(ctx, key).Val(); strings.HasSuffix(key, ":"+topic) && ttl >= live {
					t.Errorf("%s: %q lives for %v, and its head for %v", what, key, ttl, live)
				}
			}
		}
	}
	readAll(t, p, "read")
	step("a read of a topic that does not exist")
	at := put(t, p, "t", "id", "x")
	step("an append")
	if r, err := p.Append(ctx, "t", backplane.Message{ID: "id"}); r.Outcome != backplane.Duplicate || err != nil {
		t.Fatal(r, err)
	}
	step("a duplicate")
	put(t, p, "t", "", strings.Repeat("x", 1000))
	step("a large one")
	for range 100 {
		put(t, p, "t", "", "x")
	}
	step("many")
	read(t, p, "t", at)
	p.Heads(ctx, []string{"t", "read", "never"})
	step("reads")
	evict(t, client, DefaultPrefix+"{0}", "s", "t")
	put(t, p, "t", "", "x")
	step("an append after all segments were evicted")
	for range 10 {
		put(t, p, "t", "", "x")
	}
	step("and some more")
	evict(t, client, DefaultPrefix+"{0}", "m", "t")
	put(t, p, "t", "id", "x")
	step("an append after the head was evicted")
	evict(t, client, DefaultPrefix+"{0}", "m", "t")
	readAll(t, p, "t")
	step("a read after the head was evicted")
	if err := p.PublishEphemeral(ctx, "t", []byte("x")); err != nil {
		t.Fatal(err)
	}
	step("an ephemeral message")
}

// The contract: a topic whose head is asked for, or that is read, is not forgotten
// for a minute at least.
func TestATopicThatIsAskedForIsNotForgotten(t *testing.T) {
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), &Options{Identity: 10 * time.Minute})
	for _, test := range []struct {
		what string
		ask  func(topic string)
	}{
		{"Read", func(topic string) { readAll(t, p, topic) }},
		{"Heads", func(topic string) {
			if _, err := p.Heads(bounded(t), []string{topic}); err != nil {
				t.Fatal(err)
			}
		}},
		{"Append", func(topic string) { put(t, p, topic, "", "y") }},
	} {
		for i := range 10 {
			topic := fmt.Sprint(test.what, i)
			put(t, p, topic, "", "x")
			head := headKey(DefaultPrefix+"{0}", topic)
			if !client.PExpire(bounded(t), head, 30*time.Second).Val() {
				t.Fatal("there is no head")
			}
			test.ask(topic)
			if ttl := client.PTTL(bounded(t), head).Val(); ttl < time.Minute {
				t.Errorf("after %s the head lives for %v", test.what, ttl)
			}
		}
	}
}

func TestALargeEntryOnlyRings(t *testing.T) {
	server := redistest.Start(t)
	opts := quick(entries)
	opts.MaxAnnouncement = 100
	p, _ := connect(t, server.Addr(), opts)
	s := newSpy()
	w := p.Watch(s)
	defer w.Close()
	if err := w.Add(bounded(t), "t"); err != nil {
		t.Fatal(err)
	}
	hub := backplane.New(p, nil)
	defer hub.Close(context.Background())
	sub, err := hub.Subscribe(bounded(t), "t", nil)
	if err != nil {
		t.Fatal(err)
	}
	large := strings.Repeat("x", 71) // and 30 beside
	put(t, p, "t", "", large)
	put(t, p, "t", "", large[1:])
	until(t, "the small one arrives", func() bool { return s.has("t", large[1:]) })
	if s.has("t", large) || s.rung("t") != 1 {
		t.Errorf("the large one arrived, or the bell rang %d times", s.rung("t"))
	}
	var got []string
	for len(got) < 2 {
		var b backplane.Batch
		if err := sub.Next(bounded(t), &b, replay.Budget{}); err != nil || b.Reset != nil {
			t.Fatalf("%v, %+v", err, b.Reset)
		}
		for _, e := range b.Entries {
			got = append(got, string(e.Data))
		}
	}
	if diff := cmp.Diff([]string{large, large[1:]}, got); diff != "" {
		t.Errorf("the subscriber got (-want +got):\n%s", diff)
	}
}

func TestAnIDIsRememberedForItsWindow(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p, _ := connect(t, server.Addr(), quick(entries))
	p.opts.IDWindow = time.Second
	at := put(t, p, "t", "id", "one")
	r, err := p.Append(bounded(t), "t", backplane.Message{ID: "id", Data: []byte("other")})
	if r.Outcome != backplane.Duplicate || r.Pos != at || err != nil {
		t.Fatalf("%+v, %v", r, err)
	}
	// It is its topic's.
	put(t, p, "u", "id", "one")
	until(t, "the ID is forgotten", func() bool {
		r, err = p.Append(bounded(t), "t", backplane.Message{ID: "id", Data: []byte("two")})
		return r.Outcome == backplane.Committed && err == nil
	})
	if got, _ := read(t, p, "t", replay.Position{}); got != "one two" {
		t.Errorf("stored is %q", got)
	}
}

func TestTheIDOfADeadEpochIsNoReceipt(t *testing.T) {
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), quick(entries))
	old := put(t, p, "t", "id", "x")
	evict(t, client, DefaultPrefix+"{0}", "m", "t")
	at := put(t, p, "t", "id", "x")
	if at.Epoch == old.Epoch || at.Seq != 1 {
		t.Errorf("it was %v, and is %v", old, at)
	}
	if r, err := p.Append(bounded(t), "t", backplane.Message{ID: "id"}); r.Outcome != backplane.Duplicate || r.Pos != at || err != nil {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestDuplicatesWithinOneBatchAreFound(t *testing.T) {
	server := redistest.Start(t)
	p, _ := connect(t, server.Addr(), quick(entries))
	release, waiting := hold(p, "t")
	var all []<-chan result
	for i := range 9 {
		all = append(all, later(p, bounded(t), "t", backplane.Message{ID: fmt.Sprint(i % 3), Data: []byte(fmt.Sprint(i))}))
		until(t, "it waits", func() bool { return waiting() == i+1 })
	}
	release()
	for i, c := range all {
		r := outcome(t, c)
		want := backplane.Committed
		if i >= 3 {
			want = backplane.Duplicate
		}
		if r.err != nil || r.receipt.Outcome != want || r.receipt.Pos.Seq != uint64(i%3+1) {
			t.Errorf("append %d is %+v", i, r)
		}
	}
	if got, _ := read(t, p, "t", replay.Position{}); got != "0 1 2" {
		t.Errorf("stored is %q", got)
	}
	if b := p.Stats().Batches; b != 1 {
		t.Errorf("%d calls", b)
	}
}

// #30: the script runs, and its answer is lost.
func TestATimeoutAfterTheCommitIsUnknownAndTheRetryADuplicate(t *testing.T) {
	server := redistest.Start(t)
	direct, _ := connect(t, server.Addr(), quick(entries))
	proxy, err := faultproxy.New(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	o := options(proxy.Addr())
	o.ReadTimeout = 100 * time.Millisecond
	o.MaxRetries = 3 // of its own, which must not run the script again
	client := redis.NewClient(o)
	defer client.Close()
	p, err := New(client, quick(entries))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	put(t, p, "t", "first", "first") // and there is a connection
	calls := func() string {
		for line := range strings.Lines(must(t, server, "INFO commandstats")) {
			if strings.HasPrefix(line, "cmdstat_evalsha:") {
				calls, _, _ := strings.Cut(line, ",")
				return calls
			}
		}
		return ""
	}
	before := calls()
	proxy.HoleDown.Store(true)
	r, err := p.Append(bounded(t), "t", backplane.Message{ID: "id", Data: []byte("x")})
	if r.Outcome != backplane.Unknown || !errors.Is(err, backplane.ErrUnavailable) {
		t.Errorf("no answer is %v, %v", r.Outcome, err)
	}
	if now := calls(); now == before {
		t.Fatalf("the script did not run: %s", now)
	}
	if got, _ := read(t, direct, "t", replay.Position{}); got != "first x" {
		t.Errorf("stored is %q", got)
	}
	if _, n, _ := strings.Cut(calls(), "="); n != "3" { // two appends, one read
		t.Errorf("scripts were called %s times", n)
	}
	proxy.Heal()
	proxy.ResetAll()
	for range 3 {
		r, err = p.Append(bounded(t), "t", backplane.Message{ID: "id", Data: []byte("x")})
		if r.Outcome != backplane.Duplicate || r.Pos.Seq != 2 || err != nil {
			t.Errorf("the retry is %+v, %v", r, err)
		}
	}
	if got, _ := read(t, p, "t", replay.Position{}); got != "first x" {
		t.Errorf("stored is %q", got)
	}
}

func TestAContextThatEndsDuringTheCallLeavesTheOutcomeUnknown(t *testing.T) {
	server := redistest.Start(t)
	p, proxy := through(t, server, quick(entries))
	put(t, p, "t", "", "first")
	proxy.HoleDown.Store(true)
	ctx, cancel := context.WithTimeoutCause(context.Background(), 50*time.Millisecond, errors.New("enough"))
	defer cancel()
	r, err := p.Append(ctx, "t", backplane.Message{Data: []byte("x")})
	if r.Outcome != backplane.Unknown || err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("%v, %v", r.Outcome, err)
	}
	proxy.Heal()
	proxy.ResetAll()
	// The others are not held up for good.
	until(t, "others can append", func() bool {
		_, err := p.Append(bounded(t), "t", backplane.Message{Data: []byte("y")})
		return err == nil
	})
}

// The connection breaks when the message is stored already: the same call tries
// again, with or without an ID of the caller's.
func TestAnAnswerThatIsCutIsAskedForAgain(t *testing.T) {
	server := redistest.Start(t)
	p, proxy := through(t, server, quick(4*entries))
	for i, cut := range []int64{1, 2, 5, 20, 27} {
		for _, id := range []string{"", fmt.Sprint("id", i)} {
			before := put(t, p, "t", "", "before")
			proxy.CutDown.Store(cut)
			r, err := p.Append(bounded(t), "t", backplane.Message{ID: id, Data: []byte("x")})
			if err != nil || r.Outcome != backplane.Committed && r.Outcome != backplane.Duplicate || r.Pos.Seq != before.Seq+1 {
				t.Errorf("with %d bytes of an answer: %+v, %v", cut, r, err)
			}
			proxy.CutDown.Store(0)
			if got, _ := read(t, p, "t", before); got != "x" {
				t.Errorf("stored is %q", got)
			}
		}
	}
}

// A failure whose outcome is unknown, and then one that is known to be harmless: the
// first counts.
func TestARetryThatFailsDoesNotHideAnUnknownOutcome(t *testing.T) {
	server := redistest.Start(t)
	direct, _ := connect(t, server.Addr(), quick(entries))
	proxy, err := faultproxy.New(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	var refuse sync.Map
	o := options(proxy.Addr())
	o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if _, no := refuse.Load("now"); no {
			return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	client := redis.NewClient(o)
	defer client.Close()
	p, err := New(client, quick(entries))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	put(t, p, "t", "", "first")
	refuse.Store("now", true)
	proxy.CutDown.Store(1)
	r, err := p.Append(bounded(t), "t", backplane.Message{ID: "id", Data: []byte("x")})
	if r.Outcome != backplane.Unknown || !errors.Is(err, backplane.ErrUnavailable) {
		t.Errorf("%v, %v", r.Outcome, err)
	}
	if got, _ := read(t, direct, "t", replay.Position{}); got != "first x" {
		t.Errorf("stored is %q", got)
	}
	// Now there is no connection to begin with.
	r, err = p.Append(bounded(t), "t", backplane.Message{ID: "id2", Data: []byte("y")})
	if r.Outcome != backplane.NotStored || !errors.Is(err, backplane.ErrUnavailable) {
		t.Errorf("%v, %v", r.Outcome, err)
	}
}

// #31: Redis forgets its scripts at each restart and failover.
func TestAScriptThatRedisHasForgottenIsSentAgain(t *testing.T) {
	server := redistest.Start(t)
	p, _ := connect(t, server.Addr(), quick(entries))
	put(t, p, "t", "", "a")
	must(t, server, "SCRIPT FLUSH")
	put(t, p, "t", "", "b")
	must(t, server, "SCRIPT FLUSH")
	if got, _ := read(t, p, "t", replay.Position{}); got != "a b" {
		t.Errorf("stored is %q", got)
	}
	release, waiting := hold(p, "t")
	var all []<-chan result
	for i := range 30 {
		all = append(all, later(p, bounded(t), fmt.Sprint("t", i%3), backplane.Message{Data: []byte("x")}))
	}
	until(t, "all wait", func() bool { return waiting() == len(all) })
	must(t, server, "SCRIPT FLUSH")
	before := p.Stats().Batches
	release()
	for i, c := range all {
		if r := outcome(t, c); r.err != nil || r.receipt.Outcome != backplane.Committed {
			t.Errorf("append %d is %+v", i, r)
		}
	}
	if n := p.Stats().Batches - before; n != 1 {
		t.Errorf("%d calls for all", n)
	}
	for i := range 3 {
		if got, _ := read(t, p, fmt.Sprint("t", i), replay.Position{}); len(got) != 19 {
			t.Errorf("stored in t%d is %q", i, got)
		}
	}
}

func TestRedisWithoutMemoryStoresNothing(t *testing.T) {
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), quick(entries))
	put(t, p, "t", "", "before")
	must(t, server, "CONFIG SET maxmemory-policy noeviction")
	must(t, server, "CONFIG SET maxmemory 1mb")
	before := client.DBSize(bounded(t)).Val()
	r, err := p.Append(bounded(t), "t", backplane.Message{ID: "id", Data: []byte("x")})
	if r.Outcome != backplane.NotStored || !errors.Is(err, backplane.ErrUnavailable) || !strings.Contains(err.Error(), "OOM") {
		t.Errorf("%v, %v", r.Outcome, err)
	}
	if now := client.DBSize(bounded(t)).Val(); now != before {
		t.Errorf("there were %d keys, and are %d", before, now)
	}
	if got, _ := read(t, p, "t", replay.Position{}); got != "before" {
		t.Errorf("readable is %q", got)
	}
	// The first Read of a topic is a write.
	if _, err := p.Read(bounded(t), "never seen", replay.Position{}, replay.Budget{}); !errors.Is(err, backplane.ErrUnavailable) || !strings.Contains(err.Error(), "OOM") {
		t.Errorf("a topic that was never seen: %v", err)
	}
	must(t, server, "CONFIG SET maxmemory 0")
	put(t, p, "t", "id", "x")
}

func TestAReplicaStoresNothing(t *testing.T) {
	master := redistest.Start(t)
	replica := redistest.Replica(t, master.Addr())
	p, _ := connect(t, replica.Addr(), quick(entries))
	r, err := p.Append(bounded(t), "t", backplane.Message{Data: []byte("x")})
	if r.Outcome != backplane.NotStored || !errors.Is(err, backplane.ErrUnavailable) || !strings.Contains(err.Error(), "READONLY") {
		t.Errorf("%v, %v", r.Outcome, err)
	}
	if _, err := p.Read(bounded(t), "t", replay.Position{}, replay.Budget{}); !errors.Is(err, backplane.ErrUnavailable) {
		t.Errorf("a read that would begin an epoch: %v", err)
	}
}

func TestWithoutPermissionNothingIsStored(t *testing.T) {
	server := redistest.Start(t)
	p, _ := connect(t, server.Addr(), quick(entries))
	must(t, server, "ACL SETUSER default -evalsha -eval")
	r, err := p.Append(bounded(t), "t", backplane.Message{Data: []byte("x")})
	if r.Outcome != backplane.NotStored || !errors.Is(err, backplane.ErrUnavailable) || !strings.Contains(err.Error(), "NOPERM") {
		t.Errorf("%v, %v", r.Outcome, err)
	}
}

// Redis aborts a script that it does not let use a command, and undoes nothing. What
// was not stored must not be taken for a duplicate later: the IDs were written first,
// and the retry was told that its message was there.
func TestAScriptThatIsAbortedLeavesNoReceiptsForWhatItHasNotStored(t *testing.T) {
	server := redistest.Start(t)
	for _, command := range []string{"append", "del", "publish", "set", "get", "time", "evalsha", "eval"} {
		t.Run(command, func(t *testing.T) {
			must(t, server, "FLUSHALL") // and the scripts stay
			p, _ := connect(t, server.Addr(), quick(32))
			put(t, p, "t", "", "before") // the next goes into the same segment
			for i := range 40 {
				put(t, p, "full", "", fmt.Sprint(i)) // the next drops a segment
			}
			must(t, server, "ACL SETUSER default -"+command)
			for _, topic := range []string{"t", "full"} {
				r, err := p.Append(bounded(t), topic, backplane.Message{ID: "id", Data: []byte("x")})
				if (err == nil) != (r.Outcome == backplane.Committed) || r.Outcome == backplane.Duplicate {
					t.Errorf("%v, %v", r.Outcome, err)
				}
				if got, _ := read2(p, topic); r.Outcome == backplane.NotStored && strings.Contains(got, "x") {
					t.Errorf("it is not stored, and stored: %q", got)
				}
			}
			must(t, server, "ACL SETUSER default +"+command)
			for _, topic := range []string{"t", "full"} {
				put(t, p, topic, "", "another")
				r, err := p.Append(bounded(t), topic, backplane.Message{ID: "id", Data: []byte("x")})
				if err != nil {
					t.Errorf("the retry is %+v, %v", r, err)
				}
				got, _ := read(t, p, topic, replay.Position{})
				if strings.Count(got, "x") != 1 || strings.Count(got, "another") != 1 {
					t.Errorf("stored is %q", got)
				}
				if topic == "t" && !strings.HasPrefix(got, "before ") {
					t.Errorf("what was there is gone: %q", got)
				}
			}
		})
	}
}

// read2 is read for when that may fail.
func read2(p *Plane, topic string) (string, error) {
	page, err := p.Read(context.Background(), topic, replay.Position{}, replay.Budget{Entries: -1, Bytes: -1})
	return texts(page.Entries), err
}

// Each answer is that of a Redis which has not begun, in its own words.
func TestWhatIsRefusedIsNotStored(t *testing.T) {
	for _, answer := range []string{
		"LOADING Redis is loading the dataset in memory",
		"BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
		"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
		"NOAUTH Authentication required.",
	} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					defer c.Close()
					r := bufio.NewReader(c)
					for {
						// An array of strings, two lines each: enough of the protocol.
						line, err := r.ReadString('\n')
						n, _ := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "*")))
						for i := 0; i < n && err == nil; i++ {
							line, err = r.ReadString('\n')
							size, _ := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "$")))
							r.Discard(size + 2)
						}
						if err != nil {
							return
						}
						io.WriteString(c, "-"+answer+"\r\n")
					}
				})
			}
		})
		func() {
			defer wg.Wait()
			defer ln.Close()
			client := redis.NewClient(options(ln.Addr().String()))
			defer client.Close()
			p, err := New(client, quick(entries))
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			r, err := p.Append(bounded(t), "t", backplane.Message{})
			if r.Outcome != backplane.NotStored || !errors.Is(err, backplane.ErrUnavailable) {
				t.Errorf("%s: %v, %v", answer, r.Outcome, err)
			}
		}()
	}
}

func TestWhereNobodyListensNothingIsStored(t *testing.T) {
	server := redistest.Start(t)
	p, _ := connect(t, server.Addr(), quick(entries))
	server.Kill()
	r, err := p.Append(bounded(t), "t", backplane.Message{})
	if r.Outcome != backplane.NotStored || !errors.Is(err, backplane.ErrUnavailable) {
		t.Errorf("%v, %v", r.Outcome, err)
	}
}

// said is an error answer of Redis.
type said string

func (e said) Error() string { return string(e) }
func (said) RedisError()     {}

// from62 is how Redis 6.2 passes on an error that a script has not caught.
func from62(text string) string {
	return "ERR Error running script (call to f_1f): @user_script:47: @user_script: 47: " + text
}

func TestErrorsAreClassifiedByWhatTheySayOfTheMessage(t *testing.T) {
	const no, unknown = backplane.NotStored, backplane.Unknown
	for _, test := range []struct {
		err  error
		want backplane.Outcome
		why  string
	}{
		{said("READONLY You can't write against a read only replica."), no, "a replica does not run it"},
		{said("READONLY You can't write against a read only replica. script: 1f, on @user_script:47."), no, "the first write is refused"},
		{said("LOADING Redis is loading the dataset in memory"), no, "it is not ready"},
		{said("CLUSTERDOWN The cluster is down"), no, "nobody has the slot"},
		{said("MASTERDOWN Link with MASTER is down"), no, "a replica does not run it"},
		{said("TRYAGAIN Multiple keys request during rehashing of slot"), no, "it is not begun"},
		{said("MOVED 3999 127.0.0.1:6381"), no, "it is for another node"},
		{said("ASK 3999 127.0.0.1:6381"), no, "it is for another node"},
		{said("OOM command not allowed when used memory > 'maxmemory'. script: 1f, on @user_script:47."), no, "only the first write is refused for that"},
		{said("NOREPLICAS Not enough good replicas to write."), no, "only the first write is refused for that"},
		{said("MISCONF Redis is configured to save RDB snapshots"), no, "only the first write is refused for that"},
		{said("BUSY Redis is busy running a script"), no, "another script runs"},
		{said("NOAUTH Authentication required."), no, "nothing is run"},
		{said("WRONGPASS invalid username-password pair"), no, "nothing is run"},
		{said("NOPERM this user has no permissions to run the 'evalsha' command"), no, "it is not begun"},
		{said("NOPERM this user has no permissions to run the 'publish' command script: 1f, on @user_script:107."), unknown, "the entry was stored by then"},
		{said("NOSCRIPT No matching script. Please use EVAL."), no, "there is nothing to run"},
		{said("ERR max number of clients reached"), no, "the connection is refused"},
		{said("ERR Error running script (call to f_1f): @user_script:1: wrong"), unknown, "it may have stored something"},
		// Redis 6.2 says what 7 does in other words.
		{said(from62("-OOM command not allowed when used memory > 'maxmemory'.")), no, "only the first write is refused for that"},
		{said(from62("-READONLY You can't write against a read only replica.")), no, "the first write is refused"},
		{said(from62("-MISCONF Redis is configured to save RDB snapshots: OOM")), no, "only the first write is refused for that"},
		{said(from62("-NOREPLICAS Not enough good replicas to write.")), no, "only the first write is refused for that"},
		{said(from62("The user executing the script can't run this command or subcommand")), unknown, "the entry may be stored"},
		{said(from62("-NOPERM this user has no permissions to run the 'publish' command")), unknown, "the entry was stored by then"},
		{said(from62("-WRONGTYPE Operation against a key holding the wrong kind of value")), unknown, "other topics came before"},
		{said("ERR Error running script (call to f_1f): @user_script:47: @user_script: 47"), unknown, "there is nothing behind it"},
		{said("WRONGTYPE Operation against a key holding the wrong kind of value script: 1f"), unknown, "other topics came before"},
		{said("UNKILLABLE Sorry the script already executed write commands"), unknown, "it says so"},
		{said("EXECABORT"), unknown, "nobody knows what that is here"},
		{fmt.Errorf("wrapped: %w", said("OOM command not allowed")), no, "wrapping changes nothing"},
		{errors.New("OOM is only a word here"), unknown, "Redis did not say it"},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, no, "there is no connection"},
		{&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, no, "there is no connection yet"},
		{fmt.Errorf("wrapped: %w", &net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}), no, "wrapping changes nothing"},
		{redis.ErrPoolTimeout, no, "it had no connection to go out on"},
		{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, unknown, "it was sent"},
		{&net.OpError{Op: "read", Err: syscall.ECONNRESET}, unknown, "it was sent"},
		{&net.OpError{Op: "write", Err: syscall.EPIPE}, unknown, "some of it, or all, was sent"},
		{io.EOF, unknown, "it was sent"},
		{io.ErrUnexpectedEOF, unknown, "there was the beginning of an answer"},
		{context.DeadlineExceeded, unknown, "it may have been sent"},
		{context.Canceled, unknown, "it may have been sent"},
		{errors.New("anything"), unknown, "what is not known is unknown"},
	} {
		if got := classify(test.err); got != test.want {
			t.Errorf("%v is %v, want %v: %s", test.err, got, test.want, test.why)
		}
	}
}

func TestOnlyABrokenConnectionIsTriedAgain(t *testing.T) {
	for _, err := range []error{io.EOF, io.ErrUnexpectedEOF, &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, syscall.EPIPE} {
		if !broken(err) {
			t.Errorf("%v is not broken", err)
		}
	}
	// A Redis that is slow must not get the same work again.
	for _, err := range []error{os.ErrDeadlineExceeded, context.DeadlineExceeded, said("OOM"), redis.ErrPoolTimeout, syscall.ECONNREFUSED} {
		if broken(err) {
			t.Errorf("%v is broken", err)
		}
	}
}

// What is in the way of one topic's keys is in the way of that topic only.
func TestATopicThatFailsDoesNotFailTheOthersOfItsBatch(t *testing.T) {
	server := redistest.Start(t)
	ctx := context.Background()
	const no, unknown = backplane.NotStored, backplane.Unknown
	for name, test := range map[string]struct {
		want  backplane.Outcome
		spoil func(c *redis.Client, head string) error
	}{
		"a list":          {no, func(c *redis.Client, head string) error { c.Del(ctx, head); return c.LPush(ctx, head, "x").Err() }},
		"a hash":          {no, func(c *redis.Client, head string) error { c.Del(ctx, head); return c.HSet(ctx, head, "x", "y").Err() }},
		"an empty string": {no, func(c *redis.Client, head string) error { return c.Set(ctx, head, "", 0).Err() }},
		"a short string":  {no, func(c *redis.Client, head string) error { return c.Set(ctx, head, "hello", 0).Err() }},
		"a long string": {no, func(c *redis.Client, head string) error {
			return c.Set(ctx, head, strings.Repeat("hello", 20), 0).Err()
		}},
		"half a segment": {no, func(c *redis.Client, head string) error { return c.Append(ctx, head, "hello").Err() }},
		// The script does not look at the epoch, and stores something.
		"no epoch": {unknown, func(c *redis.Client, head string) error {
			return c.Set(ctx, head, strings.Repeat("x", headSize), 0).Err()
		}},
		"a bad epoch": {unknown, func(c *redis.Client, head string) error { return c.SetRange(ctx, head, 0, "Z").Err() }},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, server, "FLUSHALL")
			p, client := connect(t, server.Addr(), quick(entries))
			for _, topic := range []string{"a", "bad", "c"} {
				put(t, p, topic, "", "before")
			}
			if err := test.spoil(client, headKey(DefaultPrefix+"{0}", "bad")); err != nil {
				t.Fatal(err)
			}
			release, waiting := hold(p, "")
			var all []<-chan result
			topics := []string{"a", "bad", "c", "bad", "a", "c"}
			for i, topic := range topics {
				all = append(all, later(p, bounded(t), topic, backplane.Message{ID: fmt.Sprint(i), Data: []byte(fmt.Sprint(i))}))
				until(t, "it waits", func() bool { return waiting() == i+1 })
			}
			before := p.Stats()
			release()
			for i, c := range all {
				r := outcome(t, c)
				if topics[i] != "bad" {
					if r.err != nil || r.receipt.Outcome != backplane.Committed {
						t.Errorf("append %d, to %s, is %+v", i, topics[i], r)
					}
				} else if r.err == nil || r.receipt.Outcome != test.want || r.receipt.Pos != (replay.Position{}) {
					t.Errorf("append %d, to the bad topic, is %+v", i, r)
				}
			}
			now := p.Stats()
			if now.Batches-before.Batches != 1 || now.Appends-before.Appends != 4 || now.Failed-before.Failed != 2 {
				t.Errorf("%+v, before %+v", now, before)
			}
			for topic, want := range map[string]string{"a": "before 0 4", "c": "before 2 5"} {
				if got, _ := read(t, p, topic, replay.Position{}); got != want {
					t.Errorf("stored in %s is %q", topic, got)
				}
			}
			if _, err := p.Read(bounded(t), "bad", replay.Position{}, replay.Budget{}); err == nil {
				t.Error("the bad topic can be read")
			}
			// And when it is out of the way:
			must(t, server, "FLUSHALL")
			put(t, p, "bad", "1", "again")
		})
	}
}

func TestTwoEpochsAreNeverEqual(t *testing.T) {
	seen := map[string]bool{}
	for range 100_000 {
		e := newEpoch()
		if n, err := parseEpoch(e); err != nil || n == 0 || seen[e] {
			t.Fatalf("epoch %q: %v", e, err)
		}
		seen[e] = true
	}
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), quick(entries))
	epochs := map[uint64]bool{}
	for i := range 20 {
		if i%2 == 0 {
			readAll(t, p, "t") // begins one too
		}
		e := put(t, p, "t", "", "x").Epoch
		if epochs[e] {
			t.Errorf("epoch %x is there again", e)
		}
		epochs[e] = true
		evict(t, client, DefaultPrefix+"{0}", "m", "t")
	}
}

func TestKeysAndDataAreAnyBytes(t *testing.T) {
	server := redistest.Start(t)
	p, _ := connect(t, server.Addr(), quick(entries))
	s := newSpy()
	w := p.Watch(s)
	defer w.Close()
	if err := w.Add(bounded(t), "t"); err != nil {
		t.Fatal(err)
	}
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	var want []backplane.Message
	for i, data := range [][]byte{nil, {0}, every, []byte("\r\n"), bytes.Repeat([]byte{0xff}, 40_000)} {
		for _, key := range []string{"", "\x00", "ключ\r\n", strings.Repeat("k", backplane.MaxKey)} {
			m := backplane.Message{ID: fmt.Sprintf("\x00%d:%s", i, key[:min(len(key), 100)]), Key: key, Data: data}
			want = append(want, m)
			if r, err := p.Append(bounded(t), "t", m); err != nil || r.Outcome != backplane.Committed {
				t.Fatalf("%q: %v, %v", m.ID, r, err)
			}
		}
	}
	same := func(all []replay.Entry) {
		t.Helper()
		var got []backplane.Message
		for _, e := range all {
			got = append(got, backplane.Message{Key: e.Key, Data: e.Data})
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(backplane.Message{}, "ID"), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("the messages are (-want +got):\n%s", diff)
		}
	}
	same(readAll(t, p, "t"))
	until(t, "all are announced", func() bool { return s.count("t")+s.rung("t") == len(want) })
	want = want[:len(want)-4] // but for the large ones
	s.mu.Lock()
	defer s.mu.Unlock()
	same(s.entries["t"])
}

// Redis hangs: nobody waits for longer than they want, and it is known of each what
// became of its message.
func TestAppendsToARedisThatHangsEndWithTheirContexts(t *testing.T) {
	server := redistest.Start(t)
	p := connectPatient(t, server.Addr(), quick(entries))
	put(t, p, "t", "", "before")
	_, waiting := hold(p, "") // for waiting
	p.part("").pass()
	server.Pause()
	defer server.Resume()
	leads, cancel1 := context.WithCancelCause(bounded(t))
	leader := later(p, leads, "t", backplane.Message{ID: "leader", Data: []byte("leader")})
	until(t, "somebody leads", func() bool {
		p.part("").mu.Lock()
		defer p.part("").mu.Unlock()
		return p.part("").busy
	})
	leaves, cancel2 := context.WithCancelCause(bounded(t))
	var left, stay []<-chan result
	for i := range 3 {
		left = append(left, later(p, leaves, "t", backplane.Message{Data: []byte("left")}))
		until(t, "it waits", func() bool { return waiting() == 2*i+1 })
		stay = append(stay, later(p, bounded(t), "t", backplane.Message{Data: []byte(fmt.Sprint("stay", i))}))
		until(t, "it waits", func() bool { return waiting() == 2*i+2 })
	}
	cancel2(errors.New("enough"))
	for _, c := range left {
		if r := outcome(t, c); r.receipt.Outcome != backplane.NotStored || r.err == nil || r.err.Error() != "enough" {
			t.Errorf("who leaves the queue gets %+v", r)
		}
	}
	cancel1(errors.New("too long"))
	if r := outcome(t, leader); r.receipt.Outcome != backplane.Unknown || r.err == nil || r.err.Error() != "too long" {
		t.Errorf("who leads gets %+v", r)
	}
	server.Resume()
	for _, c := range stay {
		if r := outcome(t, c); r.receipt.Outcome != backplane.Committed || r.err != nil {
			t.Errorf("who stays gets %+v", r)
		}
	}
	got, _ := read(t, p, "t", replay.Position{})
	if got = strings.Replace(got, "leader ", "", 1); got != "before stay0 stay1 stay2" {
		t.Errorf("stored is %q", got)
	}
}

// The one whose turn it is to lead leaves in that moment: somebody else must.
func TestWhoLeavesPassesTheLeadOn(t *testing.T) {
	server := redistest.Start(t)
	p, _ := connect(t, server.Addr(), quick(0))
	for round := range 200 {
		release, waiting := hold(p, "t")
		ctx, cancel := context.WithCancel(context.Background())
		leaves := later(p, ctx, "t", backplane.Message{Data: []byte("leaves")})
		until(t, "it waits", func() bool { return waiting() == 1 })
		stays := later(p, bounded(t), "t", backplane.Message{Data: []byte("stays")})
		until(t, "it waits", func() bool { return waiting() == 2 })
		if round%2 == 0 {
			go cancel()
			release()
		} else {
			go release()
			cancel()
		}
		if r := outcome(t, leaves); r.receipt.Outcome == backplane.Duplicate || (r.err == nil) != (r.receipt.Outcome == backplane.Committed) {
			t.Errorf("who leaves gets %+v", r)
		}
		if r := outcome(t, stays); r.receipt.Outcome != backplane.Committed {
			t.Fatalf("who stays gets %+v", r)
		}
		cancel()
		// The goroutine of a leader that left ends after that.
		until(t, "nobody leads", func() bool {
			p.part("t").mu.Lock()
			defer p.part("t").mu.Unlock()
			return !p.part("t").busy
		})
	}
}

func TestAppendsThatWaitShareCalls(t *testing.T) {
	server := redistest.Start(t)
	for _, topics := range []int{1, 100} {
		p := connectPatient(t, server.Addr(), quick(0))
		put(t, p, "warm", "", "x")
		server.Pause()
		first := later(p, bounded(t), "first", backplane.Message{})
		part := p.part("")
		queued := func() int {
			part.mu.Lock()
			defer part.mu.Unlock()
			if !part.busy {
				return -1
			}
			return len(part.queue)
		}
		until(t, "the first has begun", func() bool { return queued() == 0 })
		var all []<-chan result
		for i := range 100 {
			all = append(all, later(p, bounded(t), fmt.Sprint(topics, "-", i%topics), backplane.Message{Data: []byte("x")}))
			until(t, "it waits", func() bool { return queued() == i+1 })
		}
		before := p.Stats().Batches
		server.Resume()
		for _, c := range append(all, first) {
			if r := outcome(t, c); r.err != nil || r.receipt.Outcome != backplane.Committed {
				t.Errorf("%+v", r)
			}
		}
		if n := p.Stats().Batches - before; n > 2 {
			t.Errorf("%d calls for 100 messages in %d topics", n, topics)
		}
	}
}

// Those of one topic go in the order in which they came.
func TestAppendsThatWaitKeepTheirOrder(t *testing.T) {
	server := redistest.Start(t)
	p, _ := connect(t, server.Addr(), quick(0))
	release, waiting := hold(p, "")
	var all []<-chan result
	var want []string
	for i := range 20 {
		all = append(all, later(p, bounded(t), fmt.Sprint(i%2), backplane.Message{Data: []byte(fmt.Sprint(i))}))
		until(t, "it waits", func() bool { return waiting() == i+1 })
		if i%2 == 0 {
			want = append(want, fmt.Sprint(i))
		}
	}
	release()
	for i, c := range all {
		if r := outcome(t, c); r.receipt.Pos.Seq != uint64(i/2+1) {
			t.Errorf("append %d is %+v", i, r)
		}
	}
	if got, _ := read(t, p, "0", replay.Position{}); got != strings.Join(want, " ") {
		t.Errorf("stored is %q", got)
	}
}

// A call that is too large would hold up Redis, and everybody else with it.
func TestACallOfTheScriptIsBounded(t *testing.T) {
	server := redistest.Start(t)
	for _, test := range []struct {
		appends, topics, size int
		calls                 uint64
	}{{2 * maxMessages, 1, 10, 2}, {maxTopics + 1, maxTopics + 1, 10, 2}, {5, 1, maxBytes / 3, 3}} { // three are more than maxBytes, with what belongs to each
		p, _ := connect(t, server.Addr(), quick(0))
		release, waiting := hold(p, "")
		var all []<-chan result
		for i := range test.appends {
			all = append(all, later(p, bounded(t), fmt.Sprint(i%test.topics), backplane.Message{Data: make([]byte, test.size)}))
		}
		until(t, "all wait", func() bool { return waiting() == test.appends })
		release()
		for _, c := range all {
			if r := outcome(t, c); r.err != nil {
				t.Errorf("%+v", r)
			}
		}
		if n := p.Stats().Batches; n != test.calls {
			t.Errorf("%d calls for %+v", n, test)
		}
	}
}

func TestManyWhoAppendAndGiveUpAtRandomGetReceiptsThatAreTrue(t *testing.T) {
	server := redistest.Start(t)
	p, _ := connect(t, server.Addr(), keep(replay.Limits{Entries: plenty, Bytes: plenty}))
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const publishers, topics = 64, 3
	messages := 100
	if !verify.On() {
		messages = 40
	}
	outcomes := make([][]backplane.Receipt, publishers)
	var wg sync.WaitGroup
	for g := range publishers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(g)))
			for i := range messages {
				ctx, cancel := context.WithCancel(context.Background())
				switch rnd.IntN(4) {
				case 0:
					// About as long as it takes.
					ctx, cancel = context.WithTimeout(ctx, time.Duration(rnd.IntN(3000))*time.Microsecond)
				case 1:
					ctx, cancel = context.WithTimeout(ctx, patience)
				}
				r, err := p.Append(ctx, fmt.Sprint(g%topics), backplane.Message{Data: fmt.Appendf(nil, "%d-%d", g, i)})
				cancel()
				if (err == nil) != (r.Outcome == backplane.Committed) {
					t.Errorf("%v, %v", r.Outcome, err)
				}
				outcomes[g] = append(outcomes[g], r)
			}
		})
	}
	wg.Wait()
	p.Close() // waits for the calls whose callers have left
	p2, _ := connect(t, server.Addr(), keep(replay.Limits{Entries: plenty, Bytes: plenty}))
	stored := map[string]replay.Position{}
	for i := range topics {
		for _, e := range readAll(t, p2, fmt.Sprint(i)) {
			if _, ok := stored[string(e.Data)]; ok {
				t.Errorf("%q is stored twice", e.Data)
			}
			stored[string(e.Data)] = e.Pos
		}
	}
	count := map[backplane.Outcome]int{}
	for g, all := range outcomes {
		last := uint64(0)
		for i, r := range all {
			count[r.Outcome]++
			pos, ok := stored[fmt.Sprintf("%d-%d", g, i)]
			switch r.Outcome {
			case backplane.Committed:
				if !ok || pos != r.Pos {
					t.Errorf("%d-%d is committed at %v, and stored at %v", g, i, r.Pos, pos)
				}
				if pos.Seq <= last {
					t.Errorf("%d-%d is at %v, after %d", g, i, pos, last)
				}
				last = pos.Seq
			case backplane.NotStored:
				if ok {
					t.Errorf("%d-%d is not stored, and stored at %v", g, i, pos)
				}
			}
		}
	}
	t.Logf("outcomes: %v", count)
	if count[backplane.Committed] == 0 {
		t.Error("nothing was committed")
	}
}

func TestAfterCloseNothingIsStored(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p, _ := connect(t, server.Addr(), quick(entries))
	put(t, p, "t", "", "x")
	release, waiting := hold(p, "t")
	first := later(p, context.Background(), "t", backplane.Message{})
	second := later(p, bounded(t), "t", backplane.Message{})
	until(t, "both wait", func() bool { return waiting() == 2 })
	server.Pause()
	defer server.Resume()
	release()
	closed := make(chan struct{})
	go func() { p.Close(); close(closed) }()
	for _, c := range []<-chan result{first, second} {
		if r := outcome(t, c); !errors.Is(r.err, backplane.ErrClosed) || r.receipt.Outcome != backplane.Unknown && r.receipt.Outcome != backplane.NotStored {
			t.Errorf("%+v", r)
		}
	}
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("Close does not return")
	}
	if r, err := p.Append(bounded(t), "t", backplane.Message{}); r.Outcome != backplane.NotStored || !errors.Is(err, backplane.ErrClosed) {
		t.Errorf("after Close: %v, %v", r.Outcome, err)
	}
}

// A naive model of a topic: all that was ever appended, of which Redis has the end.
type model []replay.Entry

// want returns those from i on, or the last ones, that a budget allows.
func (m model) want(i int, tail bool, b replay.Budget) []replay.Entry {
	if b.Entries == 0 {
		b.Entries = replay.DefaultBatchEntries
	}
	if b.Bytes == 0 {
		b.Bytes = replay.DefaultBatchBytes
	}
	n, sum := 0, int64(0)
	for n < len(m)-i && (b.Entries < 0 || n < b.Entries) {
		e := m[i+n]
		if tail {
			e = m[len(m)-1-n]
		}
		sum += int64(len(e.Key) + len(e.Data))
		if n > 0 && b.Bytes >= 0 && sum > b.Bytes {
			break
		}
		n++
	}
	if tail {
		return m[len(m)-n:]
	}
	return m[i : i+n]
}

// diff compares entries, but for their times. There are many: each is one comparison.
func diff(want, got []replay.Entry) string {
	return cmp.Diff(want, got, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b replay.Entry) bool {
		return a.Pos == b.Pos && a.Prev == b.Prev && a.Key == b.Key && bytes.Equal(a.Data, b.Data)
	}))
}

func TestReadsAgreeWithANaiveModel(t *testing.T) {
	server := redistest.Start(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	steps := 1500
	if !verify.On() {
		steps = 500
	}
	for _, limits := range []replay.Limits{
		{Entries: 5, Bytes: plenty}, {Entries: 40, Bytes: plenty}, {Entries: plenty, Bytes: 1500}, {Entries: 200, Bytes: 8000}, {Entries: 1, Bytes: 1},
	} {
		p, client := connect(t, server.Addr(), keep(limits))
		if limits.Entries != 5 { // in several calls, mostly
			p.pageEntries, p.pageBytes = 1+rnd.Int64N(20), 1+rnd.Int64N(1000)
		}
		topic := fmt.Sprint(limits.Entries, ":", limits.Bytes)
		var m model
		var epoch uint64
		var oldest replay.Position // below which nothing is certain to be there
		budget := func() (b replay.Budget) {
			b.Entries = []int{-1, 0, 1, 2, 3, 7, 20, 100}[rnd.IntN(8)]
			b.Bytes = []int64{-1, 0, 1, 30, 200, 1000}[rnd.IntN(6)]
			return b
		}
		for step := range steps {
			fail := func(format string, args ...any) {
				t.Helper()
				t.Fatalf("seed %d, %+v, step %d: %s", seed, limits, step, fmt.Sprintf(format, args...))
			}
			switch op := rnd.IntN(20); {
			case op < 8 || len(m) == 0:
				n := 1
				if rnd.IntN(10) == 0 {
					n = 2 + rnd.IntN(10)
				}
				batch := make([]*appendCall, n)
				for i := range batch {
					msg := backplane.Message{Key: strings.Repeat("k", rnd.IntN(4)), Data: make([]byte, rnd.IntN(120))}
					tag := rnd.Uint32()
					entries, room, age, err := p.limits(topic)
					if err != nil {
						t.Fatal(err)
					}
					batch[i] = &appendCall{topic: topic, id: fmt.Sprint(step, "-", i), entries: entries, room: room, age: age, body: string(appendBody(nil, tag, msg))}
					e := replay.Entry{Pos: replay.Position{Seq: uint64(len(m) + 1), Tag: tag}, Key: msg.Key, Data: msg.Data}
					if len(m) > 0 {
						e.Prev = m[len(m)-1].Pos.Tag
					}
					m = append(m, e)
				}
				p.part(topic).exec(batch)
				for i, c := range batch {
					e := &m[len(m)-n+i]
					if epoch == 0 {
						epoch = c.receipt.Pos.Epoch
					}
					e.Pos.Epoch = epoch
					if c.err != nil || c.receipt.Outcome != backplane.Committed || c.receipt.Pos != e.Pos {
						fail("append %+v, %v, want %v", c.receipt, c.err, e.Pos)
					}
				}
			case op == 8 && rnd.IntN(10) == 0: // a segment is lost, in the middle or at an end
				keys := slices.DeleteFunc(keysOf(t, client, "s"), func(key string) bool { return !strings.HasSuffix(key, ":"+topic) })
				if len(keys) > 0 {
					client.Del(bounded(t), keys[rnd.IntN(len(keys))])
					oldest = m[len(m)-1].Pos // for it may have been the last
				}
			case op < 14:
				b := budget()
				page, err := p.Read(bounded(t), topic, replay.Position{}, b)
				if err != nil || page.Head != m[len(m)-1].Pos {
					fail("%v, %v", page.Head, err)
				}
				if len(page.Entries) > 0 {
					if got := page.Entries[len(page.Entries)-1].Pos; got != page.Head {
						fail("the tail ends at %v", got)
					}
				}
				all, n := m.want(0, true, b), len(page.Entries)
				if n > len(all) {
					fail("the tail with %+v has %d entries, want %d", b, n, len(all))
				}
				if d := diff(all[len(all)-n:], page.Entries); d != "" {
					fail("the tail with %+v is (-want +got):\n%s", b, d)
				}
				if n < len(all) { // only if all that is stored was returned
					before := replay.Position{Epoch: epoch}
					if i := len(m) - n - 1; i >= 0 {
						before = m[i].Pos
					}
					if before.Seq > 0 {
						_, gap := read(t, p, topic, replay.Position{Epoch: epoch, Seq: before.Seq - 1, Tag: m[before.Seq-1].Prev})
						if gap == nil || gap.Reason != replay.ReasonTrimmed || gap.Oldest != before {
							fail("the tail with %+v ends at %v, and there is more before: %+v", b, before, gap)
						}
					}
				}
			default:
				i := rnd.IntN(len(m) + 1) // entries before
				if rnd.IntN(2) == 0 {
					i = max(0, len(m)-rnd.IntN(50))
				}
				after := replay.Position{Epoch: epoch}
				if i > 0 {
					after = m[i-1].Pos
				}
				b := budget()
				page, err := p.Read(bounded(t), topic, after, b)
				var gap *replay.GapError
				switch {
				case err == nil:
					if d := diff(m.want(i, false, b), page.Entries); page.Head != m[len(m)-1].Pos || d != "" {
						fail("after %v with %+v the head is %v, and there is (-want +got):\n%s", after, b, page.Head, d)
					}
				case !errors.As(err, &gap) || gap.Reason != replay.ReasonTrimmed || gap.Want != after || gap.Head != m[len(m)-1].Pos ||
					gap.Oldest.Seq <= after.Seq || gap.Oldest != m[gap.Oldest.Seq-1].Pos || gap.Missed != gap.Oldest.Seq-after.Seq:
					fail("after %v: %v", after, err)
				case after.Seq >= oldest.Seq && limits.Bytes == plenty && len(m)-i <= limits.Entries:
					fail("after %v, of %d, all is there, and it returns %+v", after, len(m), gap)
				}
				if err == nil && i < len(m) {
					// Any other tag is another history.
					after.Tag ^= 1 + rnd.Uint32N(1000)
					if _, err := p.Read(bounded(t), topic, after, b); !errors.As(err, &gap) || gap.Reason != replay.ReasonForked {
						fail("after a fork: %v", err)
					}
				}
			}
		}
	}
}

// #21: each key may be evicted by itself.
func TestALostSegmentTakesWhatCameBeforeWithIt(t *testing.T) {
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), quick(32)) // two entries a segment
	var at []replay.Position
	for i := range 10 {
		at = append(at, put(t, p, "t", "", fmt.Sprint(i)))
	}
	segment := func(first int) string {
		return segmentKey(DefaultPrefix+"{0}", epochText(at[0].Epoch), uint64(first), "t")
	}
	if n := client.Del(bounded(t), segment(5)).Val(); n != 1 {
		t.Fatalf("there is no such segment: %q", keysOf(t, client, "s"))
	}
	if got, _ := read(t, p, "t", replay.Position{}); got != "6 7 8 9" {
		t.Errorf("the newest are %q", got)
	}
	for i := range at {
		got, gap := read(t, p, "t", at[i])
		switch {
		case i < 5:
			if gap == nil || gap.Reason != replay.ReasonTrimmed || gap.Oldest != at[5] || gap.Missed != uint64(5-i) || gap.Head != at[9] {
				t.Errorf("after %d: %q, %+v", i, got, gap)
			}
		case gap != nil || len(got) != max(0, 2*(9-i)-1):
			t.Errorf("after %d: %q, %+v", i, got, gap)
		}
		// Also if the page would end before it: there is no reading on from there.
		_, err := p.Read(bounded(t), "t", at[i], replay.Budget{Entries: 1})
		if errors.As(err, &gap) != (i < 5) || i < 5 && gap.Oldest != at[5] {
			t.Errorf("one entry after %d: %v", i, err)
		}
	}
	// The last one, to which the next entry would have been added.
	put(t, p, "t", "", "10")
	if n := client.Del(bounded(t), segment(11)).Val(); n != 1 {
		t.Fatalf("there is no such segment: %q", keysOf(t, client, "s"))
	}
	if got, _ := read(t, p, "t", replay.Position{}); got != "" {
		t.Errorf("the newest are %q", got)
	}
	next := put(t, p, "t", "", "11")
	if next.Epoch != at[0].Epoch || next.Seq != 12 {
		t.Errorf("the next is %v", next)
	}
	if got, _ := read(t, p, "t", replay.Position{}); got != "11" {
		t.Errorf("the newest are %q", got)
	}
	if _, gap := read(t, p, "t", at[9]); gap == nil || gap.Reason != replay.ReasonTrimmed || gap.Missed != 1 {
		t.Errorf("%+v", gap)
	}
	put(t, p, "t", "", "12")
	if got, _ := read(t, p, "t", replay.Position{}); got != "11 12" {
		t.Errorf("the newest are %q", got)
	}
	expires(t, client)
}

// #21: with the head all that follows it is gone, though the segments are there.
func TestALostHeadBeginsAnEpochWithoutWhatIsLeftOfTheOld(t *testing.T) {
	server := redistest.Start(t)
	for _, first := range []string{"read", "append", "heads"} {
		must(t, server, "FLUSHALL")
		p, client := connect(t, server.Addr(), quick(32))
		var at []replay.Position
		for i := range 5 {
			at = append(at, put(t, p, "t", fmt.Sprint(i), fmt.Sprint("old", i)))
		}
		evict(t, client, DefaultPrefix+"{0}", "m", "t")
		left := len(keysOf(t, client, "s"))
		want := ""
		switch first {
		case "append":
			put(t, p, "t", "", "new")
			want = "new"
		case "heads":
			if heads, err := p.Heads(bounded(t), []string{"t"}); err != nil || heads[0] != (replay.Position{}) {
				t.Errorf("the head is %v, %v", heads, err)
			}
		}
		if got, _ := read(t, p, "t", replay.Position{}); got != want {
			t.Errorf("first a %s: the newest are %q", first, got)
		}
		if len(keysOf(t, client, "s")) < left {
			t.Error("the test is out of date: the old segments are gone")
		}
		for _, pos := range at {
			if got, gap := read(t, p, "t", pos); gap == nil || gap.Reason != replay.ReasonEpoch {
				t.Errorf("first a %s: after %v there is %q, %+v", first, pos, got, gap)
			}
		}
	}
}

// #11: the entry before the oldest one was another.
func TestAReaderBeforeTheOldestEntryIsToldOfAFork(t *testing.T) {
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), quick(32))
	var at []replay.Position
	for i := range 6 {
		at = append(at, put(t, p, "t", "", fmt.Sprint(i)))
	}
	for _, first := range []uint64{1, 3} {
		client.Del(bounded(t), segmentKey(DefaultPrefix+"{0}", epochText(at[0].Epoch), first, "t"))
	}
	if got, gap := read(t, p, "t", at[3]); got != "4 5" || gap != nil {
		t.Errorf("%q, %v", got, gap)
	}
	fork := at[3]
	fork.Tag++
	if got, gap := read(t, p, "t", fork); gap == nil || gap.Reason != replay.ReasonForked {
		t.Errorf("%q, %v", got, gap)
	}
	fork = at[5]
	fork.Tag++
	if got, gap := read(t, p, "t", fork); gap == nil || gap.Reason != replay.ReasonForked {
		t.Errorf("at the head: %q, %v", got, gap)
	}
	fork.Seq++
	if got, gap := read(t, p, "t", fork); gap == nil || gap.Reason != replay.ReasonAhead {
		t.Errorf("after the head: %q, %v", got, gap)
	}
	fork.Seq = 1<<64 - 1
	if got, gap := read(t, p, "t", fork); gap == nil || gap.Reason != replay.ReasonAhead {
		t.Errorf("far after the head: %q, %v", got, gap)
	}
}

// A hook of the client's, which anybody may add, must not leave the others waiting for
// a leader that is gone.
func TestAHookThatPanicsHoldsUpNobody(t *testing.T) {
	server := redistest.Start(t)
	log := &record{}
	opts := quick(entries)
	opts.Logger = slog.New(log)
	p, client := connect(t, server.Addr(), opts)
	put(t, p, "t", "", "before")
	var once sync.Once
	client.AddHook(hook(func() { once.Do(func() { panic("a bug") }) }))
	release, waiting := hold(p, "t")
	first := later(p, context.Background(), "t", backplane.Message{Data: []byte("first")})
	until(t, "it waits", func() bool { return waiting() == 1 })
	second := later(p, bounded(t), "t", backplane.Message{Data: []byte("second")})
	until(t, "it waits", func() bool { return waiting() == 2 })
	release()
	for i, c := range []<-chan result{first, second} {
		if r := outcome(t, c); r.receipt.Outcome != backplane.Unknown || r.err != errPanic {
			t.Errorf("number %d of the batch gets %+v", i, r)
		}
	}
	if !log.has("a bug") {
		t.Errorf("the log says %q", log.lines)
	}
	put(t, p, "t", "", "after")
	p.Close() // does not wait for ever
}

type hook func()

func (h hook) DialHook(next redis.DialHook) redis.DialHook { return next }
func (h hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { h(); return next(ctx, cmd) }
}
func (h hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// The client drops the connection to a master that is none any more only if it sees
// the error. When the script caught it, appends went there for as long as the
// connection lived, though the name led to the new master.
func TestAConnectionToAMasterThatIsNoneAnyMoreIsDropped(t *testing.T) {
	a := redistest.Start(t)
	b := redistest.Start(t)
	proxy, err := faultproxy.New(a.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	p, _ := connect(t, proxy.Addr(), quick(entries))
	put(t, p, "t", "", "one")
	proxy.SetTarget(b.Addr()) // where the name leads to
	must(t, a, "REPLICAOF 127.0.0.1 "+strings.TrimPrefix(b.Addr(), "127.0.0.1:"))
	redistest.Says(t, patience, "INFO replication", "master_link_status:up", a)
	until(t, "appends reach the new master", func() bool {
		r, err := p.Append(bounded(t), "t", backplane.Message{Data: []byte("two")})
		if err != nil && r.Outcome != backplane.NotStored {
			t.Errorf("%v, %v", r.Outcome, err)
		}
		return err == nil
	})
}

// What a call returns when its context is done, or the Plane closed, is said by the
// contract, whatever the client made of that.
func TestACallThatIsCancelledSaysWhy(t *testing.T) {
	p, err := New(nowhere(t), quick(entries))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	enough := errors.New("enough")
	for range 300 {
		ctx, cancel := context.WithCancelCause(context.Background())
		_, err := do(p, ctx, func(call context.Context) (int, error) {
			cancel(enough)
			<-call.Done()
			return 0, p.unavailable(call.Err())
		})
		if err != enough {
			t.Fatalf("a context that is done: %v", err)
		}
	}
	for range 100 {
		p, err := New(nowhere(t), quick(entries))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		_, err = do(p, bounded(t), func(call context.Context) (int, error) {
			wg.Go(func() { p.Close() })
			<-call.Done()
			return 0, p.unavailable(call.Err())
		})
		if err != backplane.ErrClosed {
			t.Fatalf("a Plane that is closed: %v", err)
		}
		wg.Wait()
	}
	// And a client that does not notice.
	p.opts.Timeout = 20 * time.Millisecond
	stuck := make(chan struct{})
	defer close(stuck)
	if _, err := do(p, bounded(t), func(context.Context) (int, error) { <-stuck; return 0, nil }); !errors.Is(err, backplane.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a call that takes too long: %v", err)
	}
}
