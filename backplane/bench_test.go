package backplane

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-ws/holdfast/internal/cputime"
	"github.com/holdfast-ws/holdfast/replay"
)

var payload = make([]byte, 128)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// P4: one message, published with Memory, reaches n subscribers. cpu-ns/subscriber is
// processor time, all goroutines together. Its floors are in package replay.
func BenchmarkFanOut(b *testing.B) {
	for _, n := range []int{1, 1000, 10_000} {
		b.Run(fmt.Sprintf("Next/subscribers=%d", n), func(b *testing.B) {
			h := hub(b, memory(b, nil), nil)
			got := newCounter(n)
			var wg sync.WaitGroup
			ctx, cancel := context.WithCancel(b.Context())
			for range n {
				s := must(h.Subscribe(ctx, "x", nil))
				wg.Go(func() {
					var batch Batch
					for s.Next(ctx, &batch, replay.Budget{}) == nil {
						got.add(len(batch.Entries))
					}
				})
			}
			fan(b, h, n, got)
			cancel()
			wg.Wait()
		})
		b.Run(fmt.Sprintf("Arm/subscribers=%d", n), func(b *testing.B) {
			h := hub(b, memory(b, nil), nil)
			p := replay.NewPoller()
			ctx, cancel := context.WithCancel(b.Context())
			type client struct{ sub *Subscription }
			for range n {
				c := &client{}
				c.sub = must(h.Subscribe(ctx, "x", &SubscribeOptions{Value: c}))
				Arm(p, c.sub)
			}
			got := newCounter(n)
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					var batch Batch
					ready, subs := make([]*replay.Cursor, 64), make([]*Subscription, 64)
					for {
						k, err := p.Wait(ctx, ready)
						if err != nil {
							return
						}
						entries := 0
						for i, cursor := range ready[:k] {
							subs[i] = cursor.Value.(*client).sub
							if err := subs[i].Read(&batch, replay.Budget{}); err != nil {
								panic(err)
							}
							entries += len(batch.Entries)
						}
						Arm(p, subs[:k]...)
						got.add(entries)
					}
				})
			}
			fan(b, h, n, got)
			cancel()
			wg.Wait()
		})
	}
}

// fan measures how long it takes until a message has reached n subscribers.
func fan(b *testing.B, h *Hub, n int, got *counter) {
	b.ReportAllocs()
	publish := func() {
		must(h.Publish(b.Context(), "x", Message{ID: "", Data: payload}))
		got.wait()
	}
	publish()
	b.ResetTimer()
	start := cputime.Used()
	for range b.N {
		publish()
	}
	b.StopTimer()
	b.ReportMetric(float64(cputime.Used()-start)/float64(b.N)/float64(n), "cpu-ns/subscriber")
}

// A counter tells when n messages have been counted.
type counter struct {
	n    int64
	got  atomic.Int64
	done chan struct{}
}

func newCounter(n int) *counter { return &counter{n: int64(n), done: make(chan struct{})} }

func (c *counter) add(k int) {
	if k > 0 && c.got.Add(int64(k)) == c.n {
		c.got.Store(0)
		c.done <- struct{}{}
	}
}

func (c *counter) wait() { <-c.done }

// What a subscriber costs that waits.
func BenchmarkIdleSubscription(b *testing.B) {
	const n = 100_000
	for b.Loop() {
		h := New(memory(b, nil), nil)
		p := replay.NewPoller()
		must(h.Subscribe(b.Context(), "x", nil))
		subs := make([]*Subscription, n)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for i := range subs {
			subs[i] = must(h.Subscribe(b.Context(), "x", nil))
			Arm(p, subs[i])
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/subscription")
		runtime.KeepAlive(subs)
		h.Close(b.Context())
	}
}

// The floor is Memory by itself. An ID costs the room and time to remember it.
func BenchmarkPublish(b *testing.B) {
	for _, subscribers := range []int{0, 1} {
		for _, id := range []string{"random", "given", "forgotten"} {
			b.Run(fmt.Sprintf("subscribers=%d/id=%s", subscribers, id), func(b *testing.B) {
				opts := &MemoryOptions{}
				if id == "forgotten" {
					opts.IDWindow = -1
				}
				h := hub(b, memory(b, opts), nil)
				for range subscribers {
					must(h.Subscribe(b.Context(), "x", nil))
				}
				b.ReportAllocs()
				n := 0
				for b.Loop() {
					m := Message{Data: payload}
					if id == "given" {
						n++
						m.ID = strconv.Itoa(n)
					}
					must(h.Publish(b.Context(), "x", m))
				}
			})
		}
	}
	b.Run("floor=Memory", func(b *testing.B) {
		m := memory(b, nil)
		b.ReportAllocs()
		for b.Loop() {
			must(m.Append(b.Context(), "x", Message{Data: payload}))
		}
	})
}

// A client comes back after a while and has missed ten messages that the Hub has at
// hand.
func BenchmarkResume(b *testing.B) {
	h := hub(b, memory(b, nil), nil)
	must(h.Subscribe(b.Context(), "x", nil))
	var after replay.Position
	for i := range 1000 {
		if r := must(h.Publish(b.Context(), "x", Message{Data: payload})); i == 989 {
			after = r.Pos
		}
	}
	before := h.Stats().Reads
	b.ReportAllocs()
	var batch Batch
	for b.Loop() {
		s := must(h.Subscribe(b.Context(), "x", &SubscribeOptions{After: after}))
		if err := s.Read(&batch, replay.Budget{}); err != nil || len(batch.Entries) != 10 {
			b.Fatal(err, len(batch.Entries))
		}
		s.Close()
	}
	if n := h.Stats().Reads - before; n != 0 {
		b.Errorf("%d reads", n)
	}
}
