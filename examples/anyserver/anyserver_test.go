package main

import (
	"context"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/internal/leak"
	"github.com/holdfast-ws/holdfast/internal/memnet"
)

func TestMain(m *testing.M) { leak.Main(m) }

// A host is where a server may listen again and again.
type host struct {
	mu      sync.Mutex // guards network
	network *memnet.Network
	dials   []time.Time
}

func (h *host) listen() (net.Listener, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.network = memnet.New(memnet.Settings{Latency: time.Millisecond})
	return h.network, nil
}

func (h *host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	h.mu.Lock()
	to := h.network
	h.dials = append(h.dials, time.Now())
	h.mu.Unlock()
	if to == nil {
		return nil, syscall.ECONNREFUSED
	}
	return to.DialContext(ctx, network, address)
}

func TestAllThatTheServerDoesIsSurvived(t *testing.T) {
	for range 10 {
		synctest.Test(t, func(t *testing.T) {
			var text strings.Builder
			out := &lines{to: &text}
			h := &host{}
			s := &server{out: out, listen: h.listen}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			served := make(chan error, 1)
			go func() { served <- s.run(ctx) }()
			synctest.Wait() // it listens
			o := impatient()
			o.HTTPClient = &http.Client{Transport: &http.Transport{DialContext: h.DialContext}}
			err := follow(ctx, out, "ws://server.test/ticks", o)
			if websocket.CloseStatus(err) != websocket.StatusNormalClosure {
				t.Errorf("the end was %v", err)
			}
			cancel()
			if err := <-served; err != nil {
				t.Error(err)
			}
			if d := h.dials[2].Sub(h.dials[1]); d < 2*time.Second || d > 5*time.Second {
				t.Errorf("dialled %v after the server had asked for 2s", d)
			}
			// Whatever chance has made of the waits.
			clean := text.String()
			for _, r := range []struct{ from, to string }{
				{`; next (dial|attempt) in [0-9.a-zµ]+`, "; next soon"},
				{`(?m)^client: dial ws://server.test/ticks \(attempt [0-9]+\): .*(refused|EOF|reset).*\n`, ""},
				{`dial [0-9]+`, "dial N"},
				{`lost: .*(EOF|reset|closed).*;`, "lost: broken;"},
			} {
				clean = regexp.MustCompile(r.from).ReplaceAllString(clean, r.to)
			}
			want := `--- the server: will break the connection
dial N: connected
session 1: "tick 1"
session 1: "tick 2"
session 1: lost: broken; next soon
--- the server: is busy, and says so
client: dial ws://server.test/ticks (attempt 1): the server answered 503 Service Unavailable: busy; next soon
--- the server: will close with 1001, as proxies do when they restart
dial N: connected
session 2: "tick 1"
session 2: lost: failed to get reader: received close frame: status = StatusGoingAway and reason = ""; next soon
--- the server: accepts and breaks the connection at once
dial N: connected
session 3: lost: broken; next soon
--- the server: once more, and restarts
`
			if !strings.HasPrefix(clean, want) {
				t.Errorf("got\n%s\nwant\n%s", clean, want)
			}
			_, end, _ := strings.Cut(clean, "--- the server: up again\n")
			want = `dial N: connected
session 5: "tick 1"
session 5: "tick 2"
session 5: "tick 3"
`
			if end != want {
				t.Errorf("got\n%s\nwant\n%s\nin\n%s", end, want, text.String())
			}
		})
	}
}

func TestItEndsOnAnInterrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text strings.Builder
		out := &lines{to: &text}
		o := impatient()
		h := &host{} // nobody listens
		o.HTTPClient = &http.Client{Transport: &http.Transport{DialContext: h.DialContext}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := follow(ctx, out, "ws://server.test/", o); err != context.DeadlineExceeded {
			t.Error(err)
		}
		if n := len(h.dials); n < 20 || n > 150 {
			t.Errorf("%d dials in a minute", n)
		}
	})
}
