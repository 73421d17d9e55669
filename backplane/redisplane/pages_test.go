package redisplane

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/redistest"
	"github.com/holdfast-ws/holdfast/replay"
)

// A history of 750 MB was asked for in one call: nobody could join, and connections for
// live messages were taken for dead meanwhile.
func TestALargeHistoryIsReadInCallsThatAreSmall(t *testing.T) {
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), keep(replay.Limits{Entries: 1 << 20, Bytes: 64 << 20}))
	const n = 300
	text := strings.Repeat("x", 64<<10)
	var all []<-chan result
	for i := range n {
		all = append(all, later(p, bounded(t), "t", backplane.Message{Data: fmt.Appendf(nil, "%d%s", i, text)}))
	}
	for _, c := range all {
		if r := outcome(t, c); r.err != nil {
			t.Fatal(r.err)
		}
	}
	largest, calls := &atomicMax{}, 0
	client.AddHook(after(func(cmd redis.Cmder) {
		c, ok := cmd.(*redis.Cmd)
		if !ok {
			return
		}
		answer, _ := c.Slice()
		bytes := 0
		for _, x := range answer {
			if text, ok := x.(string); ok {
				bytes += len(text)
			}
		}
		largest.add(bytes)
	}))
	bound := maxReadBytes + 3*(1<<20+maxBytes) // whole segments, of a megabyte and what came in one call
	whole := func(what string, entries []replay.Entry) {
		t.Helper()
		if len(entries) != n {
			t.Errorf("%s: %d entries", what, len(entries))
		}
		got, count := largest.take()
		calls += count
		if got > bound || count < 5 {
			t.Errorf("%s: %d calls, the largest with %d bytes", what, count, got)
		}
	}
	page, err := p.Read(bounded(t), "t", replay.Position{}, replay.Budget{Entries: -1, Bytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	whole("the newest", page.Entries)
	page, err = p.Read(bounded(t), "t", replay.Position{Epoch: page.Head.Epoch}, replay.Budget{Entries: 1 << 20, Bytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	whole("from the beginning", page.Entries)
	hub := backplane.New(p, &backplane.Options{Limits: func(string) replay.Limits { return replay.Limits{Entries: 1 << 20, Bytes: 64 << 20} }})
	defer hub.Close(context.Background())
	sub, err := hub.Subscribe(bounded(t), "t", &backplane.SubscribeOptions{Last: -1})
	if err != nil {
		t.Fatal(err)
	}
	var got []replay.Entry
	for len(got) < n {
		var b backplane.Batch
		if err := sub.Next(bounded(t), &b, replay.Budget{}); err != nil || b.Reset != nil {
			t.Fatalf("%v, %+v", err, b.Reset)
		}
		got = append(got, b.Entries...)
	}
	whole("a subscriber", got)
}

// A history that goes on, is trimmed, or begins anew between two calls of one Read.
func TestAHistoryThatChangesWhileItIsReadIsReadAsItIs(t *testing.T) {
	server := redistest.Start(t)
	for _, test := range []struct {
		what   string
		change func(p *Plane, c *redis.Client)
		tail   string
		first  string // after the first one; a reason for a gap
	}{
		{"goes on", func(p *Plane, _ *redis.Client) { put(t, p, "t", "", "new") }, "0 1 2 3 4 5 6 7 8 9 new", "1 2 3 4 5 6 7 8 9 new"},
		{"is trimmed", func(_ *Plane, c *redis.Client) { trim(t, c, 7) }, "8 9", "trimmed"},
		{"is lost", func(p *Plane, c *redis.Client) {
			evict(t, c, DefaultPrefix+"{0}", "m", "t")
			put(t, p, "t", "", "new")
		}, "new", "epoch"},
	} {
		for _, tail := range []bool{true, false} {
			must(t, server, "FLUSHALL")
			p, client := connect(t, server.Addr(), quick(32)) // two entries a segment
			admin, adminClient := connect(t, server.Addr(), quick(32))
			p.pageEntries = 1
			first := put(t, p, "t", "", "0")
			for i := 1; i < 10; i++ {
				put(t, p, "t", "", fmt.Sprint(i))
			}
			calls, at := 0, 1
			if tail {
				at = 2 // the first finds out where to begin
			}
			client.AddHook(after(func(redis.Cmder) {
				if calls++; calls == at {
					test.change(admin, adminClient)
				}
			}))
			after, want := first, test.first
			if tail {
				after, want = replay.Position{}, test.tail
			}
			got, gap := read(t, p, "t", after)
			if gap != nil {
				got = string(gap.Reason)
			}
			if got != want || calls < 3 {
				t.Errorf("it %s, tail %t: %q after %d calls, want %q", test.what, tail, got, calls, want)
			}
		}
	}
}

// trim deletes the segments that begin before an entry.
func trim(t testing.TB, c *redis.Client, entry int) {
	t.Helper()
	for _, key := range keysOf(t, c, "s") {
		var first int
		fmt.Sscanf(strings.TrimPrefix(key, DefaultPrefix+"{0}s")[16:], "%d:", &first)
		if first <= entry {
			c.Del(bounded(t), key)
		}
	}
}

// An atomicMax remembers the greatest of some numbers.
type atomicMax struct {
	mu         sync.Mutex // guards all below
	max, count int
}

func (m *atomicMax) add(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.max = max(m.max, n)
	m.count++
}

func (m *atomicMax) take() (greatest, count int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	greatest, count = m.max, m.count
	m.max, m.count = 0, 0
	return greatest, count
}

// after is a hook that sees each command when it is done.
type after func(cmd redis.Cmder)

func (h after) DialHook(next redis.DialHook) redis.DialHook { return next }
func (h after) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		h(cmd)
		return err
	}
}
func (h after) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
