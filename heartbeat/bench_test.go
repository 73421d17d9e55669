package heartbeat

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

type nothing struct{}

func (nothing) Ping(context.Context) error { return nil }
func (nothing) CloseNow() error            { return nil }

func benchMonitor(b *testing.B, peers int) (*Monitor, []*Peer) {
	m, err := New(Config{})
	if err != nil {
		b.Fatal(err)
	}
	m.running = true // the benchmark is the scheduler
	now := time.Now()
	m.mono, m.wall, m.sleep = now, now, tick
	m.clock.Store(0)
	all := make([]*Peer, peers)
	for i := range all {
		if all[i], err = m.NewPeer(nil); err != nil {
			b.Fatal(err)
		}
		if err := all[i].Watch(nothing{}); err != nil {
			b.Fatal(err)
		}
	}
	return m, all
}

func BenchmarkTouch(b *testing.B) {
	_, peers := benchMonitor(b, 1)
	b.ReportAllocs()
	for b.Loop() {
		peers[0].Touch()
	}
}

// What a peer costs the scheduler, with so many others around. The ping itself is
// the connection's and not measured.
func BenchmarkScheduler(b *testing.B) {
	for _, n := range []int{1000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("watch+stop/peers=%d", n), func(b *testing.B) {
			m, _ := benchMonitor(b, n)
			b.ReportAllocs()
			for b.Loop() {
				p, _ := m.NewPeer(nil)
				p.Watch(nothing{})
				p.Stop()
			}
		})
		b.Run(fmt.Sprintf("stop,random/peers=%d", n), func(b *testing.B) {
			m, peers := benchMonitor(b, n)
			rnd := rand.New(rand.NewPCG(1, 2))
			b.ReportAllocs()
			for b.Loop() {
				i := rnd.IntN(n)
				peers[i].Stop()
				peers[i], _ = m.NewPeer(nil)
				peers[i].Watch(nothing{})
			}
		})
		// One round of an interval in which all peers are active: four looks each.
		b.Run(fmt.Sprintf("look,active/peers=%d", n), func(b *testing.B) {
			m, peers := benchMonitor(b, n)
			v := int64(0)
			rounds := 0
			b.ResetTimer()
			for b.Loop() {
				b.StopTimer()
				for _, p := range peers {
					p.heard.Store(v)
					p.sent.Store(v)
				}
				b.StartTimer()
				for range 124 { // one look at everybody
					m.mu.Lock()
					v = m.advance(v, m.mono.Add(tick), m.wall.Add(tick))
					m.mu.Unlock()
				}
				rounds++
			}
			b.ReportMetric(float64(b.Elapsed())/float64(rounds)/float64(n), "ns/peer")
		})
		// The same, all quiet: a probe is marked, queued, answered, and taken out.
		b.Run(fmt.Sprintf("probe/peers=%d", n), func(b *testing.B) {
			m, peers := benchMonitor(b, n)
			for _, p := range peers {
				p.pinging = true // so that no ping is sent
			}
			v := int64(0)
			probes := m.stats.Probes
			b.ResetTimer()
			for b.Loop() {
				for range 496 { // an interval
					m.mu.Lock()
					v = m.advance(v, m.mono.Add(tick), m.wall.Add(tick))
					m.mu.Unlock()
					b.StopTimer()
					for _, c := range m.classes {
						for _, d := range c.probes {
							d.peer.heard.Store(v)
							d.peer.again = false
						}
					}
					b.StartTimer()
				}
			}
			b.ReportMetric(float64(b.Elapsed())/float64(m.stats.Probes-probes), "ns/probe")
		})
	}
}
