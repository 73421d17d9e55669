package main

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/lxzan/gws"

	"github.com/holdfast-ws/holdfast/heartbeat"
	"github.com/holdfast-ws/holdfast/internal/wsrig"
)

// rigModes are the servers that the rig measures.
var rigModes = []struct {
	name, module string
	mode         wsrig.Mode
}{
	{"holdfast heartbeat, coder/websocket", "github.com/coder/websocket", holdfastRig},
	{"gorilla chat pattern: two pumps, read deadline", "github.com/gorilla/websocket", gorillaRig},
	{"gws README pattern: read deadline, ticker", "github.com/lxzan/gws", gwsRig},
}

func rigMain() {
	modes := map[string]wsrig.Mode{}
	for _, m := range rigModes {
		modes[m.name] = m.mode
	}
	wsrig.Main(modes)
}

// zombies is targets P7 to P9.
func zombies(conns int) (table, error) {
	s := wsrig.Setting{Conns: conns, Interval: 5 * time.Second, Timeout: 3 * time.Second, RTT: 200 * time.Millisecond, Pause: 6 * time.Second}
	t := table{
		title: fmt.Sprintf("P7, P8, P9: %d idle connections, ping every %v, timeout %v, round trip %v, server stopped for %v",
			s.Conns, s.Interval, s.Timeout, s.RTT, s.Pause),
		header: []string{"", "version", "bytes/conn", "goroutines/conn", "cpu µs/ping", "healthy lost by the pause", "silent found", "mean s", "max s", "max s, all at once"},
	}
	for _, m := range rigModes {
		s.Mode = m.name
		r, err := wsrig.Run(s)
		if err != nil {
			return t, fmt.Errorf("%s: %w", m.name, err)
		}
		t.rows = append(t.rows, []string{
			m.name, version(m.module), fmt.Sprintf("%.0f", r.Bytes), fmt.Sprintf("%.2f", r.Goroutines),
			fmt.Sprintf("%.0f", float64(r.CPU.Nanoseconds())/1000), fmt.Sprintf("%d (%.0f %%)", r.Lost, 100*float64(r.Lost)/float64(s.Conns)),
			fmt.Sprintf("%d of %d", r.Found+r.AllFound, r.Silent+r.All), fmt.Sprintf("%.2f", r.Mean.Seconds()),
			fmt.Sprintf("%.2f", r.Max.Seconds()), fmt.Sprintf("%.2f", r.AllMax.Seconds()),
		})
	}
	return t, nil
}

func holdfastRig(interval, timeout time.Duration) (http.Handler, func() int) {
	m, err := heartbeat.New(heartbeat.Config{Interval: interval, Timeout: timeout})
	if err != nil {
		panic(err)
	}
	return coderHandler(m), func() int { return m.Stats().Probes }
}

// gorillaRig is gorilla's example chat: one goroutine reads, under a deadline that
// each pong moves on, and one pings with a ticker.
func gorillaRig(interval, timeout time.Duration) (http.Handler, func() int) {
	var pings atomic.Int64
	upgrader := websocket.Upgrader{ReadBufferSize: 1024, WriteBufferSize: 1024}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		done := make(chan struct{})
		go func() {
			tick := time.NewTicker(interval)
			defer tick.Stop()
			defer c.Close()
			for {
				select {
				case <-tick.C:
				case <-done:
					return
				}
				pings.Add(1)
				c.SetWriteDeadline(time.Now().Add(timeout))
				if c.WriteMessage(websocket.PingMessage, nil) != nil {
					return
				}
			}
		}()
		go func() {
			defer close(done)
			defer c.Close()
			c.SetReadDeadline(time.Now().Add(interval + timeout))
			c.SetPongHandler(func(string) error {
				return c.SetReadDeadline(time.Now().Add(interval + timeout))
			})
			for {
				if _, _, err := c.ReadMessage(); err != nil {
					return
				}
			}
		}()
	}), func() int { return int(pings.Load()) }
}

// gwsRig is the pattern of gws's README, with the server pinging: a deadline that
// each pong moves on.
func gwsRig(interval, timeout time.Duration) (http.Handler, func() int) {
	h := &gwsHandler{interval: interval, timeout: timeout}
	upgrader := gws.NewUpgrader(h, nil)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := upgrader.Upgrade(w, r)
		if err != nil {
			return
		}
		done := make(chan struct{})
		go func() {
			tick := time.NewTicker(interval)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
				case <-done:
					return
				}
				h.pings.Add(1)
				if c.WritePing(nil) != nil {
					return
				}
			}
		}()
		go func() {
			c.ReadLoop()
			close(done)
		}()
	}), func() int { return int(h.pings.Load()) }
}

type gwsHandler struct {
	gws.BuiltinEventHandler
	interval, timeout time.Duration
	pings             atomic.Int64
}

func (h *gwsHandler) OnOpen(c *gws.Conn) { c.SetDeadline(time.Now().Add(h.interval + h.timeout)) }
func (h *gwsHandler) OnPong(c *gws.Conn, _ []byte) {
	c.SetDeadline(time.Now().Add(h.interval + h.timeout))
}
