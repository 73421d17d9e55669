package redisplane

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/redistest"
	"github.com/holdfast-ws/holdfast/replay"
)

// cpu returns how long the server has worked on commands, in microseconds: the sum
// of what INFO commandstats says, in which a script counts for all that it calls.
func cpu(b *testing.B, c redis.UniversalClient) float64 {
	info, err := c.Info(context.Background(), "commandstats").Result()
	if err != nil {
		b.Fatal(err)
	}
	total := 0.0
	for _, m := range regexp.MustCompile(`cmdstat_(evalsha|eval|publish|spublish|xadd):calls=\d+,usec=(\d+)`).FindAllStringSubmatch(info, -1) {
		us, _ := strconv.ParseFloat(m[2], 64)
		if (m[1] == "publish" || m[1] == "spublish") && regexp.MustCompile(`cmdstat_eval`).MatchString(info) {
			continue // within the script
		}
		total += us
	}
	return total
}

func benchClient(b *testing.B, addr string) *redis.Client {
	o := options(addr)
	o.PoolSize = 128
	c := redis.NewClient(o)
	b.Cleanup(func() { c.Close() })
	return c
}

// parallel has n goroutines share b.N calls of f, which gets the number of its
// goroutine.
func parallel(b *testing.B, n int, f func(g, i int) error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for g := range n {
		wg.Go(func() {
			for {
				i := int(next.Add(1))
				if i > b.N {
					return
				}
				if err := f(g, i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkAppend is P10 and P11: acknowledged appends of 128 bytes with history,
// beside PUBLISH, which keeps nothing. redis-us/op is what the server says it has
// worked on commands.
func BenchmarkAppend(b *testing.B) {
	data := make([]byte, 128)
	for _, publishers := range []int{1, 64} {
		for _, topics := range []int{1, 64} {
			if topics > publishers {
				continue
			}
			name := fmt.Sprintf("publishers=%d/topics=%d/", publishers, topics)
			b.Run(name+"PUBLISH", func(b *testing.B) {
				server := redistest.Start(b)
				c := benchClient(b, server.Addr())
				must(b, server, "PING")
				b.ResetTimer()
				parallel(b, publishers, func(g, i int) error {
					return c.Publish(context.Background(), fmt.Sprint("t", g%topics), data).Err()
				})
				b.ReportMetric(cpu(b, c)/float64(b.N), "redis-us/op")
			})
			for _, kind := range []string{"Append", "Append+cancellable", "script"} {
				b.Run(name+kind, func(b *testing.B) {
					server := redistest.Start(b)
					c := benchClient(b, server.Addr())
					p, err := New(c, &Options{Timeout: 30 * time.Second})
					if err != nil {
						b.Fatal(err)
					}
					defer p.Close()
					ctx := context.Background()
					if kind == "Append+cancellable" {
						var cancel context.CancelFunc
						ctx, cancel = context.WithCancel(ctx)
						defer cancel()
					}
					if _, err := p.Append(ctx, "warm", backplane.Message{}); err != nil {
						b.Fatal(err)
					}
					must(b, server, "CONFIG RESETSTAT")
					before := p.Stats()
					b.ResetTimer()
					parallel(b, publishers, func(g, i int) error {
						m := backplane.Message{ID: fmt.Sprint("some-id-of-twenty-", i), Data: data}
						if kind != "script" {
							_, err := p.Append(ctx, fmt.Sprint("t", g%topics), m)
							return err
						}
						// One call for each message, without coalescing.
						entries, room, age, _ := p.limits("")
						call := &appendCall{topic: fmt.Sprint("t", g%topics), id: m.ID, entries: entries, room: room, age: age, body: string(appendBody(nil, 1, m))}
						p.parts[0].exec([]*appendCall{call})
						return call.err
					})
					b.StopTimer()
					b.ReportMetric(cpu(b, c)/float64(b.N), "redis-us/op")
					b.ReportMetric(float64(b.N)/float64(p.Stats().Batches-before.Batches), "msgs/batch")
				})
			}
		}
	}
}

// BenchmarkDelivery is P12: from Publish on one node to a subscriber on another, one
// message at a time, beside the bare script and Receive, and PUBLISH and Receive.
func BenchmarkDelivery(b *testing.B) {
	b.Run("PUBLISH-Receive", func(b *testing.B) {
		server := redistest.Start(b)
		c := benchClient(b, server.Addr())
		ctx := context.Background()
		sub := c.Subscribe(ctx, "t")
		defer sub.Close()
		if _, err := sub.Receive(ctx); err != nil {
			b.Fatal(err)
		}
		b.ResetTimer()
		for range b.N {
			if err := c.Publish(ctx, "t", "x").Err(); err != nil {
				b.Fatal(err)
			}
			if _, err := sub.ReceiveMessage(ctx); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("script-Receive", func(b *testing.B) {
		server := redistest.Start(b)
		p, c := connectB(b, server.Addr())
		ctx := context.Background()
		sub := c.Subscribe(ctx, channelKey(p.parts[0].prefix, 0, "t"))
		defer sub.Close()
		if _, err := sub.Receive(ctx); err != nil {
			b.Fatal(err)
		}
		entries, room, age, _ := p.limits("t")
		b.ResetTimer()
		for i := range b.N {
			m := backplane.Message{ID: fmt.Sprint("some-id-of-twenty-", i), Data: []byte("x")}
			call := &appendCall{topic: "t", id: m.ID, entries: entries, room: room, age: age, body: string(appendBody(nil, 1, m))}
			if p.parts[0].exec([]*appendCall{call}); call.err != nil {
				b.Fatal(call.err)
			}
			if _, err := sub.ReceiveMessage(ctx); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Hub-Hub", func(b *testing.B) {
		server := redistest.Start(b)
		ctx := context.Background()
		var hubs [2]*backplane.Hub
		for i := range hubs {
			p, _ := connectB(b, server.Addr())
			hubs[i] = backplane.New(p, nil)
			defer hubs[i].Close(ctx)
		}
		sub, err := hubs[1].Subscribe(ctx, "t", nil)
		if err != nil {
			b.Fatal(err)
		}
		defer sub.Close()
		var batch backplane.Batch
		b.ResetTimer()
		for range b.N {
			if _, err := hubs[0].Publish(ctx, "t", backplane.Message{Data: []byte("x")}); err != nil {
				b.Fatal(err)
			}
			if err := sub.Next(ctx, &batch, replay.Budget{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func connectB(b *testing.B, addr string) (*Plane, *redis.Client) {
	c := benchClient(b, addr)
	p, err := New(c, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	return p, c
}
