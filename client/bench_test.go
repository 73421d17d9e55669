package client

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// What a client does under its lock to subscribe to everything again after a reconnect, for
// each subscription. It must not grow with their number.
func BenchmarkResubscribing(b *testing.B) {
	for _, n := range []int{1000, 8000, 64000} {
		b.Run(fmt.Sprintf("subscriptions=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			c := &Client{
				wake: make(chan struct{}, 1), subs: map[string]*Subscription{}, asked: map[uint64]*Subscription{}, leaving: map[string]struct{}{},
			}
			for i := range n {
				if _, err := c.Subscribe(fmt.Sprint("topic ", i), nil); err != nil {
					b.Fatal(err)
				}
			}
			now := time.Now()
			at := replay.Position{Epoch: 1, Seq: 1, Tag: 1}
			for b.Loop() {
				for range n {
					s, _ := c.nextSubscribe(now)
					c.onSubscribed(&wire.Frame{Type: wire.Subscribed, Topic: s.topic, Ref: s.ref, Base: at})
				}
				for _, s := range c.subs { // as when a session ends
					s.phase, s.ref = following, 0
					c.want(s, time.Time{})
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/subscription")
		})
	}
}
