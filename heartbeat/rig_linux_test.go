package heartbeat

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/internal/leak"
	"github.com/holdfast-ws/holdfast/internal/wsrig"
)

func TestMain(m *testing.M) {
	wsrig.Main(map[string]wsrig.Mode{"holdfast": watched, "ticker": ticking})
	leak.Main(m)
}

func drain(c *websocket.Conn) {
	for {
		if _, _, err := c.Read(context.Background()); err != nil {
			return
		}
	}
}

// watched is a server with a Monitor and wrapped connections.
func watched(interval, timeout time.Duration) (http.Handler, func() int) {
	m, err := New(Config{Interval: interval, Timeout: timeout})
	if err != nil {
		panic(err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, err := m.NewPeer(nil)
		if err != nil {
			panic(err)
		}
		c, err := websocket.Accept(p.WrapWriter(w), r, nil)
		if err != nil {
			return
		}
		if err := p.Watch(c); err != nil {
			panic(err)
		}
		go func() { // the handler returns: its request and buffers are memory
			drain(c)
			p.Stop()
			c.CloseNow()
		}()
	}), func() int { return m.Stats().Probes }
}

// ticking is a server as it is usually written with coder/websocket: the handler
// reads, and a goroutine with a ticker pings.
func ticking(interval, timeout time.Duration) (http.Handler, func() int) {
	var pings atomic.Int64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() {
			tick := time.NewTicker(interval)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				pings.Add(1)
				ping, cancel := context.WithTimeout(ctx, timeout)
				err := c.Ping(ping)
				cancel()
				if err != nil {
					c.CloseNow()
					return
				}
			}
		}()
		drain(c)
	}), func() int { return int(pings.Load()) }
}

// BenchmarkRig is targets P7, P8 and P9 on real sockets, for a Monitor and for the
// usual ticker per connection. With -short it only shows that the rig runs.
func BenchmarkRig(b *testing.B) {
	s := wsrig.Setting{Conns: 10_000, Interval: 5 * time.Second, Timeout: 3 * time.Second, RTT: 200 * time.Millisecond, Pause: 6 * time.Second}
	if testing.Short() {
		s = wsrig.Setting{Conns: 200, Interval: time.Second, Timeout: 500 * time.Millisecond, RTT: 50 * time.Millisecond, Pause: time.Second}
	}
	for _, s.Mode = range []string{"holdfast", "ticker"} {
		b.Run(fmt.Sprintf("%s/conns=%d/interval=%v/timeout=%v", s.Mode, s.Conns, s.Interval, s.Timeout), func(b *testing.B) {
			if b.N > 1 {
				b.Skip("once is enough, and takes a minute: use -benchtime 1x")
			}
			r, err := wsrig.Run(s)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(r.Bytes, "B/conn")
			b.ReportMetric(r.Goroutines, "goroutines/conn")
			b.ReportMetric(float64(r.CPU.Nanoseconds())/1000, "cpu-µs/ping")
			b.ReportMetric(float64(r.Lost), "lost-by-pause")
			b.ReportMetric(r.Mean.Seconds(), "mean-s-to-find")
			b.ReportMetric(r.Max.Seconds(), "max-s-to-find")
			b.ReportMetric(r.AllMax.Seconds(), "max-s-to-find-all")
			if s.Mode == "holdfast" && !testing.Short() && (r.Bytes > 11_000 || r.Goroutines > 1.1) {
				b.Errorf("targets missed: %.0f bytes and %.2f goroutines for a connection", r.Bytes, r.Goroutines)
			}
			if r.Found != r.Silent || r.AllFound != r.All {
				b.Errorf("not all silent connections were found: %+v", r)
			}
			if s.Mode == "holdfast" && r.Lost > 0 {
				b.Errorf("%d healthy connections lost by a pause of %v", r.Lost, s.Pause)
			}
		})
	}
}
