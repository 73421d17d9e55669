package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/internal/memnet"
)

// A rig is a server of a test, on a network in memory, and what its clients ask of it.
type rig struct {
	network *memnet.Network

	mu    sync.Mutex // guards asked
	asked []request
}

type request struct {
	at     time.Time
	host   string
	query  string
	header http.Header
}

// newRig returns a rig with a server, within a bubble. The handler gets the number of the
// request, from 1.
func newRig(t *testing.T, handler func(n int, w http.ResponseWriter, req *http.Request)) *rig {
	t.Helper()
	r := &rig{network: memnet.New(memnet.Settings{Latency: time.Millisecond})}
	ctx, cancel := context.WithCancel(context.Background())
	server := &http.Server{
		ErrorLog:    log.New(io.Discard, "", 0),
		BaseContext: func(net.Listener) context.Context { return ctx },
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			r.mu.Lock()
			r.asked = append(r.asked, request{time.Now(), req.Host, req.URL.RawQuery, req.Header})
			n := len(r.asked)
			r.mu.Unlock()
			handler(n, w, req)
		}),
	}
	go server.Serve(r.network)
	t.Cleanup(func() {
		server.Close()
		cancel()                              // for those who wait at the end of a link that leads nowhere
		for _, l := range r.network.Links() { // those that the server has handed over
			l.Reset()
		}
		time.Sleep(time.Minute) // for those who wait that long for an answer to their close frame
	})
	return r
}

// options returns options with which clients reach the rig.
func (r *rig) options() *Options {
	return &Options{HTTPClient: &http.Client{Transport: &http.Transport{DialContext: r.network.DialContext}}}
}

// requests returns what has reached the server so far.
func (r *rig) requests() []request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked[:len(r.asked):len(r.asked)]
}

// expectQuiet fails if a connection is left, or if there is a dial within a day.
func (r *rig) expectQuiet(t *testing.T) {
	t.Helper()
	synctest.Wait()
	dials := r.network.Dials()
	if n := len(r.network.Links()); n != 0 {
		t.Errorf("%d connections are left", n)
	}
	time.Sleep(24 * time.Hour)
	if n := r.network.Dials() - dials; n != 0 {
		t.Errorf("%d dials after the end of the loop", n)
	}
}

// accept accepts a WebSocket and lets f speak on it, until the end of the test at most.
func accept(f func(ctx context.Context, c *websocket.Conn)) func(int, http.ResponseWriter, *http.Request) {
	return func(_ int, w http.ResponseWriter, req *http.Request) {
		c, err := websocket.Accept(w, req, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		f(req.Context(), c)
	}
}

// echo echoes until the client goes.
var echo = accept(func(ctx context.Context, c *websocket.Conn) {
	for {
		kind, data, err := c.Read(ctx)
		if err != nil || c.Write(ctx, kind, data) != nil {
			return
		}
	}
})

// drop accepts and drops at once.
var drop = accept(func(context.Context, *websocket.Conn) {})

// hold accepts and drops after a while.
func hold(d time.Duration) func(int, http.ResponseWriter, *http.Request) {
	return accept(func(ctx context.Context, c *websocket.Conn) {
		c.CloseRead(ctx) // answers pings
		backoff.Sleep(ctx, d)
	})
}

// mute accepts and then does nothing at all.
var mute = accept(func(ctx context.Context, _ *websocket.Conn) { <-ctx.Done() })

// closeWith accepts and closes with a code and a reason.
func closeWith(code websocket.StatusCode, reason string) func(int, http.ResponseWriter, *http.Request) {
	return accept(func(ctx context.Context, c *websocket.Conn) { c.Close(code, reason) })
}

// answer refuses with a status.
func answer(status int, header ...string) func(int, http.ResponseWriter, *http.Request) {
	return func(_ int, w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
	}
}

// read reads until there is an error, and tells it to the session.
func read(s *Session) error {
	for {
		if _, _, err := s.Read(s.Context()); err != nil {
			s.End(err)
			return err
		}
	}
}

// loop reads in every session, and returns how many there were and all errors.
func loop(ctx context.Context, url string, o *Options) (sessions int, errs []error) {
	for s, err := range Sessions(ctx, url, o) {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		sessions++
		read(s)
	}
	return sessions, errs
}

// longest is a source of chance that makes all delays as long as they can be.
func longest(n uint64) uint64 { return n - 1 }

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
		if got := r.requests(); len(got) != 3 || got[2].query != "secret=1" {
			t.Errorf("the server was asked %+v", got)
		}
		r.expectQuiet(t)
	})
}

func TestTheLastErrorIsTheCauseOfTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, echo)
		enough := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		start := time.Now()
		time.AfterFunc(time.Minute, func() { cancel(enough) })
		sessions, errs := loop(ctx, "ws://server.test", r.options())
		if sessions != 1 || len(errs) != 1 || errs[0] != enough || time.Since(start) != time.Minute {
			t.Errorf("%d sessions, errors %v after %v; want 1, that of the context, after 1m", sessions, errs, time.Since(start))
		}
		r.expectQuiet(t)
	})
}

// A client that reset its backoff on every connection did 2,124 dials a second here.
func TestAServerThatAcceptsAndClosesIsDialledAsTheBackoffSays(t *testing.T) {
	for seed := range uint64(10) {
		synctest.Test(t, func(t *testing.T) {
			source := func() func(uint64) uint64 { return rand.New(rand.NewPCG(seed, 1)).Uint64N }
			// What the backoff alone would do, with as long a handshake.
			want := 0
			pace := backoff.Loop{Policy: backoff.Policy{Rand: source()}}
			end := time.Now().Add(time.Minute)
			for time.Now().Before(end) {
				want++
				time.Sleep(4 * time.Millisecond) // connecting, and asking
				pace.Up()
				time.Sleep(pace.Down())
			}

			r := newRig(t, drop)
			o := r.options()
			o.Backoff.Rand = source()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			sessions, errs := loop(ctx, "ws://server.test", o)
			if got := len(r.requests()); got > want || got < want-1 || sessions != got || len(errs) != 1 || got > 20 {
				t.Errorf("seed %d: %d dials in a minute, the backoff alone makes %d; %d sessions, errors %v", seed, got, want, sessions, errs)
			}
			t.Logf("seed %d: %d dials in a minute", seed, len(r.requests()))
			r.expectQuiet(t)
		})
	}
}

// A client that dialled before it had a token had 50 sockets open here.
func TestNothingIsDialledWithoutAToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, echo)
		o := r.options()
		calls := 0
		away := errors.New("the token service is away")
		o.Prepare = func(_ context.Context, d *Dial) error {
			if calls++; calls != d.Attempt {
				t.Errorf("call %d for attempt %d", calls, d.Attempt)
			}
			return away
		}
		start := time.Now()
		for _, err := range Sessions(t.Context(), "ws://server.test", o) {
			var failed *DialError
			if !errors.As(err, &failed) || !errors.Is(err, away) || failed.Final || failed.Status != 0 || failed.Wait <= 0 {
				t.Fatalf("%#v", err)
			}
			if calls == 50 {
				break
			}
		}
		if n := r.network.Dials(); n != 0 {
			t.Errorf("%d dials", n)
		}
		if d := time.Since(start); d < 5*time.Minute {
			t.Errorf("50 calls in %v", d)
		}
		r.expectQuiet(t)
	})
}

type limiter func(context.Context) error

func (l limiter) Wait(ctx context.Context) error { return l(ctx) }

// Wherever the end of the context finds the loop, it ends there and then.
func TestTheContextEndsTheLoopAtEveryPoint(t *testing.T) {
	const moment = 1500 * time.Millisecond
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	tests := []struct {
		name    string
		handler func(int, http.ResponseWriter, *http.Request)
		change  func(*rig, *Options)
	}{
		{name: "in a session that reads", handler: echo},
		{"waiting for the limiter", echo, func(_ *rig, o *Options) { o.Limiter = limiter(hang) }},
		{"in Prepare", echo, func(_ *rig, o *Options) {
			o.Prepare = func(ctx context.Context, _ *Dial) error { return hang(ctx) }
		}},
		{"in a Prepare that has no error for it", echo, func(_ *rig, o *Options) {
			o.Prepare = func(ctx context.Context, _ *Dial) error { hang(ctx); return nil }
		}},
		{"dialling what swallows all", echo, func(r *rig, _ *Options) { r.network.Set(memnet.Settings{Swallow: true}) }},
		{"dialling what is far away", echo, func(r *rig, _ *Options) { r.network.Set(memnet.Settings{Latency: moment - time.Millisecond}) }},
		{"while the server thinks", func(_ int, _ http.ResponseWriter, req *http.Request) { hang(req.Context()) }, nil},
		{"after half of an answer", func(_ int, w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(http.StatusOK)
			http.NewResponseController(w).Flush()
			hang(req.Context())
		}, nil},
		// coder/websocket reads on for three seconds then, whatever its context says.
		{"after an answer that is wrong", func(_ int, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "websocket")
			w.WriteHeader(http.StatusSwitchingProtocols)
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			io.Copy(io.Discard, c)
			c.Close()
		}, nil},
		{"in a TLS handshake", echo, nil},
		{"in the wait after a refusal", answer(503), func(_ *rig, o *Options) {
			o.Backoff = backoff.Policy{Base: time.Hour, Cap: time.Hour, Fixed: 1}
		}},
		{"in the wait after a loss", drop, func(_ *rig, o *Options) {
			o.Backoff = backoff.Policy{Base: time.Hour, Cap: time.Hour, Fixed: 1}
		}},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, tt.handler)
			o := r.options()
			url := "ws://server.test"
			if tt.change != nil {
				tt.change(r, o)
			}
			if strings.Contains(tt.name, "TLS") {
				r.network.Close() // nobody will answer
				r.network = memnet.New(memnet.Settings{})
				defer r.network.Close()
				o = r.options()
				url = "wss://server.test"
			}
			cause := errors.New("that was it")
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			start := time.Now()
			time.AfterFunc(moment, func() { cancel(cause) })
			_, errs := loop(ctx, url, o)
			if d := time.Since(start); d != moment {
				t.Errorf("%s: the loop ended after %v, the context after %v", tt.name, d, moment)
			}
			if len(errs) == 0 || errs[len(errs)-1] != cause {
				t.Errorf("%s: errors %v, the last should be the cause", tt.name, errs)
			}
			for _, err := range errs[:max(0, len(errs)-1)] {
				if errors.Is(err, context.Canceled) || errors.Is(err, cause) {
					t.Errorf("%s: the end of the context was taken for a failure: %v", tt.name, err)
				}
			}
			if strings.Contains(tt.name, "TLS") {
				for _, l := range r.network.Links() {
					t.Errorf("%s: a connection is left: %v", tt.name, l)
				}
				return
			}
			r.expectQuiet(t)
		})
	}
}

// And in between: every twentieth of a millisecond from the beginning into the session.
func TestTheContextEndsTheLoopAtEveryMoment(t *testing.T) {
	for moment := time.Duration(0); moment < 8*time.Millisecond; moment += 50 * time.Microsecond {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, echo)
			ctx, cancel := context.WithTimeout(t.Context(), moment)
			defer cancel()
			start := time.Now()
			_, errs := loop(ctx, "ws://server.test", r.options())
			if len(errs) != 1 || errs[0] != context.DeadlineExceeded || time.Since(start) != moment {
				t.Errorf("at %v: it ended after %v with %v", moment, time.Since(start), errs)
			}
			r.expectQuiet(t)
		})
	}
}

func TestAContextThatHasEndedDialsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, echo)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		sessions, errs := loop(ctx, "ws://server.test", r.options())
		if sessions != 0 || len(errs) != 1 || errs[0] != context.Canceled || r.network.Dials() != 0 {
			t.Errorf("%d sessions, errors %v, %d dials", sessions, errs, r.network.Dials())
		}
	})
}

func TestLeavingTheLoopEndsEverything(t *testing.T) {
	tests := []struct {
		name    string
		handler func(int, http.ResponseWriter, *http.Request)
		leave   func(*Session, error) bool // or panic
	}{
		{"with break in a session", echo, func(*Session, error) bool { return false }},
		{"with break after the session's end", drop, func(s *Session, _ error) bool { read(s); return false }},
		{"with break at an error", answer(503), func(*Session, error) bool { return false }},
		{"with a panic in a session", echo, func(*Session, error) bool { panic("at will") }},
		{"with a panic at an error", answer(503), func(*Session, error) bool { panic("at will") }},
		{"with Goexit in a session", echo, func(*Session, error) bool { runtime.Goexit(); return true }},
		{"while others read and write", echo, func(s *Session, _ error) bool {
			go read(s)
			go func() {
				for s.Write(context.Background(), websocket.MessageBinary, make([]byte, 1000)) == nil {
				}
			}()
			time.Sleep(20 * time.Millisecond)
			return false
		}},
		{"while the connection is being closed", mute, func(s *Session, _ error) bool {
			go s.Close(websocket.StatusNormalClosure, "") // takes five seconds by itself
			time.Sleep(time.Second)
			return false
		}},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, tt.handler)
			o := r.options()
			o.Heartbeat.Interval = time.Second // let there be pings
			done := make(chan struct{})
			var session *Session
			var left time.Time
			go func() {
				defer close(done)
				defer func() { recover() }()
				for s, err := range Sessions(t.Context(), "ws://server.test", o) {
					session = s
					left = time.Now()
					if !tt.leave(s, err) {
						left = time.Now()
						break
					}
				}
			}()
			<-done
			if d := time.Since(left); d > closeGrace {
				t.Errorf("%s: it took %v", tt.name, d)
			}
			if session != nil {
				if session.Context().Err() == nil {
					t.Errorf("%s: the context of the session lives on", tt.name)
				}
				if err := session.Ping(t.Context()); err == nil {
					t.Errorf("%s: the connection lives on", tt.name)
				}
			}
			r.expectQuiet(t)
		})
	}
}

// A server that is there is told; one that is not is not waited for.
func TestTheFarewell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		codes := make(chan websocket.StatusCode, 3)
		r := newRig(t, accept(func(ctx context.Context, c *websocket.Conn) {
			_, _, err := c.Read(ctx)
			codes <- websocket.CloseStatus(err)
		}))
		start := time.Now()
		for range Sessions(t.Context(), "ws://server.test", r.options()) {
			break
		}
		d := time.Since(start)
		if code := <-codes; code != websocket.StatusNormalClosure || d > 20*time.Millisecond {
			t.Errorf("the server was told %d, after %v", code, d)
		}
		for range Sessions(t.Context(), "ws://server.test", r.options()) {
			r.network.Links()[0].Blackhole(memnet.Both)
			start = time.Now()
			break
		}
		if d := time.Since(start); d != closeGrace {
			t.Errorf("a server that is gone was waited for for %v, want %v", d, closeGrace)
		}
		// Nor is one that has ended the session itself.
		for s := range Sessions(t.Context(), "ws://server.test", r.options()) {
			r.network.Links()[0].Blackhole(memnet.Both)
			s.End(errors.New("broken"))
			start = time.Now()
			break
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("a broken connection was waited for for %v", d)
		}
	})
}

func TestASessionContextEndsWithTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		r := newRig(t, echo)
		ctx, cancel := context.WithCancelCause(context.WithValue(t.Context(), key{}, "value"))
		defer cancel(nil)
		var first *Session
		for s, err := range Sessions(ctx, "ws://server.test", r.options()) {
			if err != nil {
				break
			}
			if s.Context().Value(key{}) != "value" {
				t.Error("the values are lost")
			}
			if first == nil {
				first = s
				if s.Context().Err() != nil {
					t.Error(context.Cause(s.Context()))
				}
				continue
			}
			if err := context.Cause(first.Context()); err != errOver {
				t.Errorf("the first session ended with %v", err)
			}
			// Too late: that must neither panic nor change the next delay.
			first.Ready()
			first.Hint(time.Hour)
			first.End(errors.New("late"))
			cause := errors.New("cause")
			cancel(cause)
			synctest.Wait()
			if err := context.Cause(s.Context()); err != cause {
				t.Errorf("the session ended with %v", err)
			}
			// Also a body that reads with another context gets back.
			if _, _, err := s.Read(context.Background()); err == nil {
				t.Error("Read goes on")
			}
		}
	})
}

func TestALostSessionIsDialledAgainAfterFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, hold(20*time.Second))
		o := r.options()
		o.Backoff.Rand = longest
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute+2*time.Second)
		defer cancel()
		loop(ctx, "ws://server.test", o)
		// 20 s of a session and 5 s of a wait, and a few milliseconds.
		got := r.requests()
		if len(got) != 3 {
			t.Fatalf("%d requests", len(got))
		}
		for i := 1; i < len(got); i++ {
			if d := got[i].at.Sub(got[i-1].at).Truncate(100 * time.Millisecond); d != 25*time.Second {
				t.Errorf("request %d after %v, want 25s", i+1, d)
			}
		}
	})
}

// Uptime that counts begins at Ready: a server whose first message never comes, or only
// just before the end, has not had a stable session.
func TestUptimeCountsFromReady(t *testing.T) {
	for _, tt := range []struct {
		name      string
		ready     time.Duration // negative = never
		needReady bool
		wait      time.Duration // before the third dial
	}{
		{"never, and need not", -1, false, 5 * time.Second},
		{"at once", 0, true, 5 * time.Second},
		{"shortly before the end", 15 * time.Second, false, 10 * time.Second},
		{"early, and late once more", 2 * time.Second, true, 5 * time.Second},
		{"never, and should have been", -1, true, time.Second}, // no Up at all: as failed attempts
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, hold(20*time.Second))
			o := r.options()
			o.Backoff.Fixed = 1
			l, err := newSessions("ws://server.test", o)
			if err != nil {
				t.Fatal(err)
			}
			l.needReady = tt.needReady
			for s := range l.all(t.Context()) {
				if tt.ready >= 0 {
					time.AfterFunc(tt.ready, s.Ready)
					time.AfterFunc(18*time.Second, s.Ready) // which says nothing new
				}
				if s.Number == 3 {
					break
				}
				read(s)
			}
			got := r.requests()
			if d := got[2].at.Sub(got[1].at).Truncate(100*time.Millisecond) - 20*time.Second; d != tt.wait {
				t.Errorf("%s: waited for %v, want %v", tt.name, d, tt.wait)
			}
		})
	}
}

func TestAHintIsTheNextWindow(t *testing.T) {
	for _, tt := range []struct {
		hints []time.Duration
		want  time.Duration
	}{
		{nil, 5 * time.Second},
		{[]time.Duration{40 * time.Second}, 40 * time.Second},
		{[]time.Duration{100 * 365 * 24 * time.Hour}, time.Hour},
		{[]time.Duration{time.Minute, -1}, 5 * time.Second},
		{[]time.Duration{time.Second}, time.Second}, // after a stable session
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, hold(20*time.Second))
			o := r.options()
			o.Backoff.Rand = longest
			var lost, again time.Time
			for s := range Sessions(t.Context(), "ws://server.test", o) {
				if again = time.Now(); s.Number == 2 {
					break
				}
				for _, h := range tt.hints {
					s.Hint(h)
				}
				read(s)
				lost = time.Now()
			}
			if d := again.Sub(lost).Truncate(100 * time.Millisecond); d != tt.want {
				t.Errorf("after hints %v: %v, want %v", tt.hints, d, tt.want)
			}
		})
	}
}

func TestTooBigAMessageIsFinalAndSaysSo(t *testing.T) {
	const limit = DefaultReadLimit
	for _, tt := range []struct {
		name    string
		limit   int64
		size    int
		refused bool
	}{
		{"of just the default limit", 0, limit, false},
		{"of one byte more", 0, limit + 1, true},
		{"within a limit", 1000, 1000, false},
		{"over a limit", 1000, 1001, true},
		{"without a limit", -1, 10 << 20, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, accept(func(ctx context.Context, c *websocket.Conn) {
				c.Write(ctx, websocket.MessageBinary, make([]byte, tt.size))
				c.Read(ctx)
			}))
			o := r.options()
			o.ReadLimit = tt.limit
			var last error
			got := 0
			for s, err := range Sessions(t.Context(), "ws://server.test", o) {
				if last = err; err != nil {
					continue
				}
				_, data, err := s.Read(s.Context())
				if err == nil {
					got = len(data)
					break
				}
				s.End(err)
			}
			if !tt.refused {
				if got != tt.size {
					t.Errorf("a message %s: %d bytes, want %d; %v", tt.name, got, tt.size, last)
				}
				return
			}
			var end *EndError
			if !errors.As(last, &end) || !errors.Is(last, websocket.ErrMessageTooBig) || len(r.requests()) != 1 {
				t.Errorf("a message %s: error %v after %d dials", tt.name, last, len(r.requests()))
			}
			if want := "client: session with ws://server.test ended for good"; !strings.HasPrefix(last.Error(), want) || !strings.Contains(last.Error(), "read limited") {
				t.Errorf("a message %s: %v", tt.name, last)
			}
			r.expectQuiet(t)
		})
	}
	synctest.Test(t, func(t *testing.T) { // ours was
		r := newRig(t, closeWith(websocket.StatusMessageTooBig, "more than 8 bytes"))
		sessions, errs := loop(t.Context(), "ws://server.test", r.options())
		if sessions != 1 || len(errs) != 1 || websocket.CloseStatus(errs[0]) != websocket.StatusMessageTooBig {
			t.Errorf("%d sessions, %v", sessions, errs)
		}
		if want := "more than 8 bytes"; !strings.Contains(errs[0].Error(), want) {
			t.Errorf("%v does not say %q", errs[0], want)
		}
		r.expectQuiet(t)
	})
}

// refusing accepts only requests whose token is the one of the moment.
func refusing(status int, good func() string) func(int, http.ResponseWriter, *http.Request) {
	return func(n int, w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Authorization") != "Bearer "+good() {
			w.WriteHeader(status)
			return
		}
		drop(n, w, req)
	}
}

func TestCredentialsAreRefreshedOnce(t *testing.T) {
	for _, status := range []int{401, 403} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, refusing(status, func() string { return "good" }))
			o := r.options()
			var refresh []bool
			o.Prepare = func(_ context.Context, d *Dial) error {
				refresh = append(refresh, d.Refresh)
				d.Token = "bad"
				return nil
			}
			_, errs := loop(t.Context(), "ws://server.test", o)
			if fmt.Sprint(refresh) != "[false true]" || len(r.requests()) != 2 {
				t.Errorf("%d: Refresh was %v, want false, true", status, refresh)
			}
			var first, last *DialError
			if len(errs) != 2 || !errors.As(errs[0], &first) || !errors.As(errs[1], &last) {
				t.Fatalf("%d: errors %v", status, errs)
			}
			if first.Final || first.Wait <= 0 || first.Status != status || !last.Final || last.Wait != 0 || last.Status != status {
				t.Errorf("%d: %+v, %+v", status, first, last)
			}
			if want := fmt.Sprintf("(attempt 2): the server answered %d %s; not tried again", status, http.StatusText(status)); !strings.HasSuffix(last.Error(), want) {
				t.Errorf("%d: %v", status, last)
			}
		})
		synctest.Test(t, func(t *testing.T) { // nobody could get new ones
			r := newRig(t, answer(status))
			if _, errs := loop(t.Context(), "ws://server.test", r.options()); len(errs) != 1 || len(r.requests()) != 1 {
				t.Errorf("%d without Prepare: %v", status, errs)
			}
		})
	}
}

// A token that expires again and again is refreshed again and again; and Refresh stays set
// while attempts fail for other reasons, or an hour without the server would make an
// expired token look like one that was refused twice.
func TestEachExpiryMayBeRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := "0"
		r := newRig(t, func(n int, w http.ResponseWriter, req *http.Request) {
			if n == 2 {
				w.WriteHeader(503)
				return
			}
			refusing(401, func() string { return now })(n, w, req)
		})
		o := r.options()
		token := "expired"
		var refresh strings.Builder
		o.Prepare = func(_ context.Context, d *Dial) error {
			if d.Refresh {
				token = now
				refresh.WriteByte('r')
			} else {
				refresh.WriteByte('-')
			}
			d.Token = token
			return nil
		}
		sessions := 0
		for s, err := range Sessions(t.Context(), "ws://server.test", o) {
			var failed *DialError
			if err != nil && (!errors.As(err, &failed) || failed.Final) {
				t.Fatal(err)
			}
			if err == nil {
				if sessions++; sessions == 3 {
					break
				}
				read(s)
				now += "0" // and the one that was good no longer is
			}
		}
		if got := refresh.String(); got != "-rr-r-r" {
			t.Errorf("Refresh was %s, want -rr-r-r", got)
		}
	})
}

func TestClosesBecauseOfCredentials(t *testing.T) {
	// uptime of each session, and what comes of it
	for _, tt := range []struct {
		name    string
		uptime  time.Duration
		prepare bool
		want    int // sessions; 0 = no end
	}{
		{"twice at once", 0, true, 2},
		{"every hour", time.Hour, true, 0},
		{"nobody can refresh", time.Hour, false, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, accept(func(ctx context.Context, c *websocket.Conn) {
				go c.Read(ctx) // answers pings
				backoff.Sleep(ctx, tt.uptime)
				c.Close(4401, "expired")
			}))
			o := r.options()
			var refresh []bool
			if tt.prepare {
				o.Prepare = func(_ context.Context, d *Dial) error {
					refresh = append(refresh, d.Refresh)
					return nil
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
			defer cancel()
			sessions, errs := loop(ctx, "ws://server.test", o)
			last := errs[len(errs)-1]
			if tt.want == 0 {
				if sessions < 20 || last != context.DeadlineExceeded {
					t.Errorf("%s: %d sessions, %v", tt.name, sessions, last)
				}
				return
			}
			var end *EndError
			if sessions != tt.want || !errors.As(last, &end) || websocket.CloseStatus(last) != 4401 {
				t.Errorf("%s: %d sessions, %v", tt.name, sessions, last)
			}
			if tt.prepare && fmt.Sprint(refresh) != "[false true]" {
				t.Errorf("%s: Refresh was %v", tt.name, refresh)
			}
		})
	}
}

func TestRetryAfterIsObeyedSpreadAndClamped(t *testing.T) {
	date := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(http.TimeFormat) }
	for _, tt := range []struct {
		name        string
		status      int
		header      func() []string
		least, most time.Duration
	}{
		{"seconds", 503, func() []string { return []string{"Retry-After", "20"} }, 20 * time.Second, 40 * time.Second},
		{"of a 429", 429, func() []string { return []string{"Retry-After", "20"} }, 20 * time.Second, 40 * time.Second},
		{"a date", 503, func() []string { return []string{"Retry-After", date(20 * time.Second)} }, 19 * time.Second, 40 * time.Second},
		{"a date, and our clock is wrong by a day", 503, func() []string {
			return []string{"Date", date(-24 * time.Hour), "Retry-After", date(20*time.Second - 24*time.Hour)}
		}, 20 * time.Second, 40 * time.Second},
		{"ten years", 503, func() []string { return []string{"Retry-After", "315360000"} }, time.Hour, time.Hour + 30*time.Second},
		{"what would wrap", 503, func() []string { return []string{"Retry-After", "18446744074"} }, time.Hour, time.Hour + 30*time.Second},
		{"nonsense", 503, func() []string { return []string{"Retry-After", "soon"} }, 0, 500 * time.Millisecond},
		{"of another status", 500, func() []string { return []string{"Retry-After", "20"} }, 0, 500 * time.Millisecond},
	} {
		seen := map[time.Duration]bool{}
		for range 20 {
			synctest.Test(t, func(t *testing.T) {
				busy := answer(tt.status, tt.header()...)
				r := newRig(t, func(n int, w http.ResponseWriter, req *http.Request) {
					if n == 1 {
						busy(n, w, req)
						return
					}
					drop(n, w, req)
				})
				for _, err := range Sessions(t.Context(), "ws://server.test", r.options()) {
					if err == nil {
						break
					}
					var failed *DialError
					if !errors.As(err, &failed) || failed.Status != tt.status || failed.Final {
						t.Errorf("%s: %v", tt.name, err)
					} else if failed.Wait < tt.least || failed.Wait > tt.most {
						t.Errorf("%s: %v, want from %v to %v", tt.name, failed.Wait, tt.least, tt.most)
					}
					seen[failed.Wait] = true
				}
				got := r.requests()
				if d := got[1].at.Sub(got[0].at); d < tt.least || d > tt.most+10*time.Millisecond {
					t.Errorf("%s: dialled again after %v", tt.name, d)
				}
			})
		}
		if len(seen) < 15 {
			t.Errorf("%s: only %d different delays of 20", tt.name, len(seen))
		}
	}
}
