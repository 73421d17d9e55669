package replay

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/internal/cputime"
)

var (
	payload = make([]byte, 128)
	sink    []byte
)

// P2. The floor is a ring of slices under a mutex: no positions, no time, no
// bounds in bytes or age.
func BenchmarkAppend(b *testing.B) {
	b.Run("floor=ring+mutex", func(b *testing.B) {
		b.ReportAllocs()
		var mu sync.Mutex
		ring := make([][]byte, 1024)
		n := 0
		for b.Loop() {
			mu.Lock()
			ring[n&1023] = payload
			n++
			mu.Unlock()
		}
	})
	b.Run("floor=time.Now", func(b *testing.B) {
		for b.Loop() {
			_ = time.Now()
		}
	})
	b.Run("log", func(b *testing.B) {
		b.ReportAllocs()
		l := New(Limits{})
		for b.Loop() {
			l.Append("", payload)
		}
	})
	// With a reader that has caught up each time, and so has to be woken.
	b.Run("log/parked", func(b *testing.B) {
		b.ReportAllocs()
		l := New(Limits{})
		p := NewPoller()
		ready := []*Cursor{l.Cursor(l.Last(0), nil)}
		for b.Loop() {
			ready[0].Seek(l.Last(0))
			p.Arm(ready...)
			l.Append("", payload)
			if _, err := p.Wait(b.Context(), ready); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("log/key", func(b *testing.B) {
		b.ReportAllocs()
		l := New(Limits{})
		keys := make([]string, 100)
		for i := range keys {
			keys[i] = fmt.Sprintf("key %d", i)
		}
		for n := 0; b.Loop(); n++ {
			l.Append(keys[n%100], payload)
		}
	})
}

// P3. The floor copies a hundred entries out of a ring under a mutex.
func BenchmarkRead100(b *testing.B) {
	b.Run("floor=copy+mutex", func(b *testing.B) {
		b.ReportAllocs()
		var mu sync.Mutex
		ring := make([]Entry, 1024)
		buf := make([]Entry, 100)
		for b.Loop() {
			mu.Lock()
			copy(buf, ring[300:400])
			mu.Unlock()
		}
	})
	l := New(Limits{})
	for range 1500 {
		l.Append("", payload)
	}
	p := l.Last(600)
	b.Run("log", func(b *testing.B) {
		b.ReportAllocs()
		var batch Batch
		for b.Loop() {
			if err := l.After(p, &batch, Budget{Entries: 100}); err != nil || len(batch.Entries) != 100 {
				b.Fatal(err)
			}
		}
	})
}

// P4, the part of this package: one message reaches n readers. ns/reader is
// processor time, all goroutines together.
func BenchmarkFanOut(b *testing.B) {
	for _, n := range []int{1, 1000, 10_000} {
		// A ring, and two workers that each own half of the readers: no positions
		// to check, no reader that is late, none that comes or goes.
		b.Run(fmt.Sprintf("floor=ring+2workers/readers=%d", n), func(b *testing.B) {
			var mu sync.RWMutex
			ring := make([][]byte, 1024)
			head := 0
			seen := make([]int, n)
			got := newCounter(n)
			var wg sync.WaitGroup
			var wake [2]chan struct{}
			for w := range wake {
				wake[w] = make(chan struct{}, 1)
				mine := seen[w*n/2 : (w+1)*n/2]
				wg.Go(func() {
					for range wake[w] {
						mu.RLock()
						for i := range mine {
							for mine[i] < head {
								sink = ring[mine[i]&1023]
								mine[i]++
							}
						}
						mu.RUnlock()
						got.add(len(mine))
					}
				})
			}
			fan(b, n, func() {
				mu.Lock()
				ring[head&1023] = payload
				head++
				mu.Unlock()
				wake[0] <- struct{}{}
				wake[1] <- struct{}{}
				got.wait()
			})
			close(wake[0])
			close(wake[1])
			wg.Wait()
		})
		b.Run(fmt.Sprintf("channels/readers=%d", n), func(b *testing.B) {
			got := newCounter(n)
			var wg sync.WaitGroup
			channels := make([]chan []byte, n)
			for i := range channels {
				channels[i] = make(chan []byte, 256)
				wg.Go(func() {
					for range channels[i] {
						got.add(1)
					}
				})
			}
			fan(b, n, func() {
				for _, c := range channels {
					c <- payload
				}
				got.wait()
			})
			for _, c := range channels {
				close(c)
			}
			wg.Wait()
		})
		b.Run(fmt.Sprintf("cond/readers=%d", n), func(b *testing.B) {
			got := newCounter(n)
			var wg sync.WaitGroup
			var mu sync.Mutex
			cond := sync.NewCond(&mu)
			head, closed := 0, false
			for range n {
				wg.Go(func() {
					mu.Lock()
					for seen := 0; !closed; {
						if seen == head {
							cond.Wait()
							continue
						}
						seen++
						got.add(1)
					}
					mu.Unlock()
				})
			}
			fan(b, n, func() {
				mu.Lock()
				head++
				mu.Unlock()
				cond.Broadcast()
				got.wait()
			})
			mu.Lock()
			closed = true
			mu.Unlock()
			cond.Broadcast()
			wg.Wait()
		})
		b.Run(fmt.Sprintf("Next/readers=%d", n), func(b *testing.B) {
			l := New(Limits{})
			got := newCounter(n)
			var wg sync.WaitGroup
			ctx, cancel := context.WithCancel(b.Context())
			for range n {
				c := l.Cursor(l.Last(0), nil)
				wg.Go(func() {
					var batch Batch
					for c.Next(ctx, &batch, Budget{}) == nil {
						got.add(len(batch.Entries))
					}
				})
			}
			fan(b, n, func() {
				l.Append("", payload)
				got.wait()
			})
			cancel()
			wg.Wait()
		})
		b.Run(fmt.Sprintf("Poller/readers=%d", n), func(b *testing.B) {
			l := New(Limits{})
			p := NewPoller()
			for range n {
				p.Arm(l.Cursor(l.Last(0), nil))
			}
			got := newCounter(n)
			var wg sync.WaitGroup
			ctx, cancel := context.WithCancel(b.Context())
			for range 2 {
				wg.Go(func() {
					var batch Batch
					ready := make([]*Cursor, 64)
					for {
						k, err := p.Wait(ctx, ready)
						if err != nil {
							return
						}
						entries := 0
						for _, c := range ready[:k] {
							if err := c.Read(&batch, Budget{}); err != nil {
								panic(err)
							}
							entries += len(batch.Entries)
						}
						p.Arm(ready[:k]...)
						got.add(entries)
					}
				})
			}
			fan(b, n, func() {
				l.Append("", payload)
				got.wait()
			})
			cancel()
			wg.Wait()
		})
	}
}

// fan measures publish, which ends when one message has reached n readers.
func fan(b *testing.B, n int, publish func()) {
	b.ReportAllocs()
	publish()
	b.ResetTimer()
	start := cputime.Used()
	for range b.N {
		publish()
	}
	b.StopTimer()
	b.ReportMetric(float64(cputime.Used()-start)/float64(b.N)/float64(n), "cpu-ns/reader")
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

func BenchmarkIdleCursor(b *testing.B) {
	const n = 100_000
	for b.Loop() {
		l := New(Limits{})
		p := NewPoller()
		cursors := make([]*Cursor, n)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for i := range cursors {
			cursors[i] = l.Cursor(l.Last(0), nil)
			p.Arm(cursors[i])
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/cursor")
		runtime.KeepAlive(cursors)
	}
}
