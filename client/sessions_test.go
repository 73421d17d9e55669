package client

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/internal/memnet"
)

// A rig is a server of a test, on a network in memory, and the client that reaches it.
type rig struct {
	t        *testing.T
	network  *memnet.Network
	accepted atomic.Int32

	mu    sync.Mutex
	times []time.Time   // of requests
	heads []http.Header // of requests
}

// newRig returns a rig with a server, within a bubble.
func newRig(t *testing.T, handler http.HandlerFunc) *rig {
	t.Helper()
	r := &rig{t: t, network: memnet.New(memnet.Settings{Latency: time.Millisecond})}
	var running sync.WaitGroup
	server := &http.Server{
		ErrorLog: log.New(io.Discard, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			running.Add(1)
			defer running.Done()
			r.mu.Lock()
			r.times = append(r.times, time.Now())
			r.heads = append(r.heads, req.Header)
			r.mu.Unlock()
			handler(w, req)
		}),
	}
	running.Go(func() { server.Serve(r.network) })
	t.Cleanup(func() {
		server.Close()
		for _, l := range r.network.Links() { // those that were taken over
			l.Reset()
		}
		running.Wait()
	})
	return r
}

// options returns options for the rig.
func (r *rig) options() *SessionOptions {
	return &SessionOptions{HTTPClient: &http.Client{Transport: &http.Transport{DialContext: r.network.DialContext}}}
}

// asked returns how many requests have reached the server.
func (r *rig) asked() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.times)
}

// echo accepts and echoes until the client goes.
func echo(w http.ResponseWriter, req *http.Request) {
	c, err := websocket.Accept(w, req, nil)
	if err != nil {
		return
	}
	defer c.CloseNow()
	for {
		kind, data, err := c.Read(context.Background())
		if err != nil {
			return
		}
		if c.Write(context.Background(), kind, data) != nil {
			return
		}
	}
}

// read reads until there is an error, and gives that to End.
func read(s *Session) error {
	for {
		if _, _, err := s.Read(s.Context()); err != nil {
			s.End(err)
			return err
		}
	}
}

func TestTheBodyIsTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, echo)
		n := 0
		for s, err := range Sessions(t.Context(), "ws://server.test/path?secret=1", r.options()) {
			if err != nil {
				t.Fatal(err)
			}
			n++
			if s.Number != n || s.Attempt != 1 || s.URL != "ws://server.test/path" || s.Header.Get("Upgrade") != "websocket" {
				t.Errorf("session %d is number %d, attempt %d of %s, with %v", n, s.Number, s.Attempt, s.URL, s.Header)
			}
			if err := s.Write(s.Context(), websocket.MessageText, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			if _, data, err := s.Read(s.Context()); err != nil || string(data) != "hello" {
				t.Fatalf("%q, %v", data, err)
			}
			if n == 3 {
				break
			}
		}
		synctest.Wait()
		if links := len(r.network.Links()); links != 0 || r.asked() != 3 {
			t.Errorf("%d connections are left after %d dials", links, r.asked())
		}
	})
}

func TestTheLastErrorIsTheCauseOfTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, echo)
		enough := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Minute, func() { cancel(enough) })
		var got []error
		for s, err := range Sessions(ctx, "ws://server.test", r.options()) {
			if err != nil {
				got = append(got, err)
				continue
			}
			if err := read(s); !errors.Is(err, context.Canceled) && !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
		if len(got) != 1 || got[0] != enough {
			t.Errorf("errors %v, want the one of the context", got)
		}
	})
}
