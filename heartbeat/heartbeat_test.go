package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"io"
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

const (
	interval = 25 * time.Second
	timeout  = 10 * time.Second
	latency  = 10 * time.Millisecond
)

// A rig is a real WebSocket server whose connections are watched, and a client,
// on a network in memory.
type rig struct {
	t       *testing.T
	monitor *Monitor
	net     *memnet.Network
	client  *websocket.Conn // nil until dial
	link    *memnet.Link
	start   time.Time // when the connection was made

	mu      sync.Mutex // guards below
	verdict []Verdict
	at      []time.Duration // since start
}

// newRig starts a server whose handler runs with each connection and its peer,
// after the peer is being watched.
func newRig(t *testing.T, config Config, wrap bool, handler func(*websocket.Conn, *Peer)) *rig {
	r := &rig{t: t, net: memnet.New(memnet.Settings{Latency: latency})}
	config.OnDead = func(_ *Peer, v Verdict) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.verdict = append(r.verdict, v)
		r.at = append(r.at, time.Since(r.start))
	}
	var err error
	if r.monitor, err = New(config); err != nil {
		t.Fatal(err)
	}
	var handlers sync.WaitGroup
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		handlers.Add(1)
		defer handlers.Done()
		peer, err := r.monitor.NewPeer(nil)
		if err != nil {
			t.Error(err)
			return
		}
		options := &websocket.AcceptOptions{}
		if wrap {
			w = peer.WrapWriter(w)
		} else {
			options.OnPongReceived = func(context.Context, []byte) { peer.Touch() }
		}
		c, err := websocket.Accept(w, req, options)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		if err := peer.Watch(c); err != nil {
			t.Error(err)
			return
		}
		defer peer.Stop()
		handler(c, peer)
	})}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(r.net) })
	t.Cleanup(func() {
		if r.client != nil {
			r.client.CloseNow()
		}
		server.Close()
		time.Sleep(10 * time.Second) // what is on its way arrives, handlers end
		handlers.Wait()
		serving.Wait()
		r.monitor.Close()
	})
	return r
}

// dial connects the client.
func (r *rig) dial() {
	r.t.Helper()
	transport := &http.Transport{DialContext: r.net.DialContext, DisableKeepAlives: true}
	c, _, err := websocket.Dial(r.t.Context(), "ws://server/", &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		r.t.Fatal(err)
	}
	synctest.Wait()
	r.client, r.start = c, time.Now()
	r.link = r.net.Links()[len(r.net.Links())-1]
}

// expect checks that there was exactly one verdict, of that reason and within a
// span of time; or none, with an empty reason.
func (r *rig) expect(reason Reason, from, to time.Duration) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if reason == "" {
		if len(r.verdict) > 0 {
			r.t.Errorf("verdicts %+v at %v, want none; %+v", r.verdict, r.at, r.monitor.Stats())
		}
		return
	}
	if len(r.verdict) != 1 || r.verdict[0].Reason != reason {
		r.t.Errorf("verdicts %+v at %v, want one: %s", r.verdict, r.at, reason)
		return
	}
	if r.at[0] < from || r.at[0] > to {
		r.t.Errorf("%s after %v, want %v to %v", reason, r.at[0], from, to)
	}
}

// readAll is a handler that reads until the connection ends.
func readAll(c *websocket.Conn, _ *Peer) {
	for {
		if _, _, err := c.Read(context.Background()); err != nil {
			return
		}
	}
}

// both runs a test with and without the wrapped connection.
func both(t *testing.T, test func(t *testing.T, wrap bool)) {
	for _, wrap := range []bool{true, false} {
		t.Run(fmt.Sprintf("wrap=%v", wrap), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, wrap) })
		})
	}
}

func TestAHealthyPeerIsLeftAlone(t *testing.T) {
	both(t, func(t *testing.T, wrap bool) {
		r := newRig(t, Config{}, wrap, readAll)
		r.dial()
		r.client.CloseRead(context.Background())
		time.Sleep(time.Hour)
		r.expect("", 0, 0)
		s := r.monitor.Stats()
		if s.Probes < 3600/25 || s.Probes > 3600/15 || s.Watched != 1 {
			t.Errorf("%+v", s)
		}
		for p := range r.monitor.Peers() {
			if rtt := p.RTT(); rtt != 2*latency {
				t.Errorf("round trip %v, want %v", rtt, 2*latency)
			}
			if idle := p.Idle(); idle > interval+tick {
				t.Errorf("idle for %v", idle)
			}
		}
	})
}

// A link goes dark at many moments; each time the verdict comes within interval
// and timeout and a tick.
func TestAHalfOpenLinkIsFoundInTime(t *testing.T) {
	both(t, func(t *testing.T, wrap bool) {
		for dark := time.Second; dark < 2*interval; dark += 7 * time.Second {
			for _, direction := range []memnet.Direction{memnet.Up, memnet.Down, memnet.Both} {
				r := newRig(t, Config{}, wrap, readAll)
				r.dial()
				r.client.CloseRead(context.Background())
				time.Sleep(dark)
				r.link.Blackhole(direction)
				time.Sleep(2 * interval)
				r.expect(NoAnswer, dark+timeout-interval, dark+interval+timeout+tick)
				if v := r.verdict[0]; v.Probes != 1 || v.Silent < timeout || v.Silent > interval+timeout+tick {
					t.Errorf("%+v", v)
				}
				if s := r.monitor.Stats(); s.Watched != 0 || s.Dead[NoAnswer] != 1 {
					t.Errorf("%+v", s)
				}
				r.client.CloseNow()
			}
		}
	})
}

// The exact instant: the only peer of a monitor sits in the first slot, and is
// looked at four times an interval.
func TestTheInstantOfAVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		peer := watch(t, m, nil, Funcs{
			PingFunc:  func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
			CloseFunc: func() error { return nil },
		})
		start := time.Now()
		var at time.Duration
		for {
			if _, dead := peer.Verdict(); dead {
				at = time.Since(start)
				break
			}
			time.Sleep(time.Millisecond)
		}
		// 124 slots: looks at 6.2, 12.4, 18.6 and 24.8 s, the last of which finds
		// 18.8 s of silence or more; judged 10 s later.
		if at != 24800*time.Millisecond+timeout && at != 24801*time.Millisecond+timeout {
			t.Errorf("verdict after %v", at)
		}
	})
}

func TestAPeerThatStopsReadingIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// It neither reads nor answers, while the server writes to it.
		r := newRig(t, Config{}, true, func(c *websocket.Conn, _ *Peer) {
			c.CloseRead(context.Background())
			for c.Write(context.Background(), websocket.MessageBinary, make([]byte, 4<<10)) == nil {
				time.Sleep(time.Second)
			}
		})
		r.dial() // the client never reads
		time.Sleep(5 * time.Minute)
		// 64 KiB of buffer are full after about 16 s.
		r.expect(WriteBlocked, timeout, 16*time.Second+interval+timeout+tick)
	})
}

func TestABusyHandlerIsExcusedForAWhile(t *testing.T) {
	for _, tt := range []struct {
		busy time.Duration
		want Reason
	}{{10 * time.Second, ""}, {30 * time.Second, ""}, {5 * time.Minute, ReaderStuck}} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, Config{}, true, func(c *websocket.Conn, _ *Peer) {
				for {
					if _, _, err := c.Read(context.Background()); err != nil {
						return
					}
					time.Sleep(tt.busy) // works on the message
				}
			})
			r.dial()
			r.client.CloseRead(context.Background())
			if err := r.client.Write(t.Context(), websocket.MessageText, []byte("work")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Minute)
			r.expect(tt.want, interval+timeout, interval+4*timeout+4*tick)
			if s := r.monitor.Stats(); tt.want != "" && s.BusyReader != excuses {
				t.Errorf("%v busy: %+v", tt.busy, s)
			}
		})
	}
}

// A peer reads a large message slowly. Its answers to pings come only after that,
// but it makes progress.
func TestASlowLargeWriteIsNotDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 48 << 20
		done := make(chan error, 1)
		r := newRig(t, Config{}, true, func(c *websocket.Conn, _ *Peer) {
			gone := c.CloseRead(context.Background())
			done <- c.Write(context.Background(), websocket.MessageBinary, make([]byte, size))
			<-gone.Done()
		})
		r.dial()
		r.client.SetReadLimit(-1)
		_, reader, err := r.client.Reader(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64<<10)
		got := 0
		for got < size { // 640 kB/s: 78 s
			n, err := io.ReadFull(reader, buf)
			if got += n; err != nil {
				t.Fatalf("after %d bytes: %v", got, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if err := <-done; err != nil {
			t.Errorf("the write ends with %v", err)
		}
		if took := time.Since(r.start); took < 70*time.Second {
			t.Errorf("the write took only %v", took)
		}
		r.client.CloseRead(context.Background())
		time.Sleep(time.Minute)
		r.expect("", 0, 0)
	})
}

// raw connects a client that is no library, and returns its connection after the
// handshake.
func (r *rig) raw() net.Conn {
	r.t.Helper()
	c, err := r.net.DialContext(r.t.Context(), "tcp", "")
	if err != nil {
		r.t.Fatal(err)
	}
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	resp := make([]byte, 4096)
	if n, err := c.Read(resp); err != nil || string(resp[9:12]) != "101" {
		r.t.Fatalf("%v: %s", err, resp[:n])
	}
	synctest.Wait()
	r.start = time.Now()
	return c
}

// Peers that do not echo the payload of a ping live all the same.
func TestEmptyAndLatePongsCount(t *testing.T) {
	for _, pong := range []struct {
		reason string
		frame  string // masked with a key of zeros
		delay  time.Duration
	}{
		{"empty", "\x8a\x80\x00\x00\x00\x00", 0},
		{"wrong payload", "\x8a\x82\x00\x00\x00\x00hi", 0},
		{"late", "\x8a\x80\x00\x00\x00\x00", timeout - time.Second},
		{"not a pong at all", "\x81\x82\x00\x00\x00\x00hi", 0},
	} {
		both(t, func(t *testing.T, wrap bool) {
			if !wrap && pong.reason == "not a pong at all" {
				return // needs a Touch per message, which this handler does not do
			}
			r := newRig(t, Config{}, wrap, readAll)
			c := r.raw()
			var pings atomic.Int32
			go func() {
				frame := make([]byte, 100)
				for {
					if _, err := c.Read(frame); err != nil {
						return
					}
					pings.Add(1)
					time.Sleep(pong.delay)
					io.WriteString(c, pong.frame)
				}
			}()
			time.Sleep(10 * time.Minute)
			r.expect("", 0, 0)
			if n := pings.Load(); n < 15 || n > 40 {
				t.Errorf("%d pings in 10 minutes", n)
			}
			c.Close()
		})
	}
}

// watch watches c with options and fails the test if it cannot.
func watch(t *testing.T, m *Monitor, o *Options, c Conn) *Peer {
	t.Helper()
	p, err := m.NewPeer(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Watch(c); err != nil {
		t.Fatal(err)
	}
	return p
}

// healthy answers each ping after a time.
func healthy(rtt time.Duration) Funcs {
	return Funcs{
		PingFunc: func(ctx context.Context) error {
			t := time.NewTimer(rtt)
			defer t.Stop()
			select {
			case <-t.C:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
		CloseFunc: func() error { return nil },
	}
}

// silent never answers.
func silent() Funcs {
	return Funcs{
		PingFunc:  func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		CloseFunc: func() error { return nil },
	}
}

// This process stands still, for longer than any timeout. The scheduler finds out
// before it looks at anybody, and nobody is dropped. A stalled bubble cannot be
// made, so the scheduler's step is called with the times that it would see.
func TestOurOwnPauseKillsNobody(t *testing.T) {
	for _, pause := range []time.Duration{time.Second, 6 * time.Second, 10 * time.Second, time.Minute, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			m, err := New(Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			s := newStepper(m)
			var peers []*Peer
			for range 500 {
				peers = append(peers, s.add(healthy(200*time.Millisecond)))
			}
			// Pings whose answers came in during the pause are read after it: the
			// scheduler runs first, as it does in reality.
			s.run(40 * time.Second)
			before := m.Stats()
			s.pause(pause)
			s.run(time.Minute)
			after := m.Stats()
			if after.Watched != len(peers) || len(after.Dead) != 0 {
				t.Errorf("pause of %v: %+v", pause, after)
			}
			if after.Stalls != before.Stalls+1 || after.StallTime < pause-4*tick || after.StallTime > pause {
				t.Errorf("pause of %v is seen as %d stalls of %v", pause, after.Stalls, after.StallTime)
			}
		})
	}
}

func TestAWakeUpProbesEverybodySoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		woken := make(chan time.Duration, 1)
		m, err := New(Config{OnWake: func(away time.Duration) { woken <- away }})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		s := newStepper(m)
		for range 500 {
			s.add(healthy(200 * time.Millisecond))
		}
		s.add(silent())
		s.run(time.Second)
		before := m.Stats().Probes
		s.wall = s.wall.Add(8 * time.Hour) // the lid was closed
		s.run(25 * tick)
		if got := <-woken; got < 8*time.Hour-time.Second || got > 8*time.Hour+time.Second {
			t.Errorf("away for %v", got)
		}
		if n := m.Stats().Probes - before; n < 501 {
			t.Errorf("%d of 501 probed within %v after a wake-up", n, 25*tick)
		}
		s.run(timeout)
		if st := m.Stats(); st.Dead[NoAnswer] != 1 || st.Watched != 500 || st.Wakes != 1 {
			t.Errorf("%+v", st)
		}
	})
}

// A stepper is the scheduler, driven by hand.
type stepper struct {
	m          *Monitor
	v          int64
	mono, wall time.Time
}

func newStepper(m *Monitor) *stepper {
	m.running = true // so that none is started
	now := time.Now()
	m.mono, m.wall, m.sleep = now, now, tick
	m.clock.Store(0)
	return &stepper{m, 0, now, now}
}

func (s *stepper) add(c Conn) *Peer {
	p, err := s.m.NewPeer(nil)
	if err != nil {
		panic(err)
	}
	if err := p.Watch(c); err != nil {
		panic(err)
	}
	return p
}

// run lets time pass, tick by tick.
func (s *stepper) run(d time.Duration) {
	for end := s.mono.Add(d); s.mono.Before(end); {
		time.Sleep(tick)
		s.step(tick)
		synctest.Wait()
	}
}

// pause lets time pass without a tick, and without anybody else running: answers
// that come meanwhile are seen only after the next step.
func (s *stepper) pause(d time.Duration) { s.step(d) }

func (s *stepper) step(d time.Duration) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.mono, s.wall = s.mono.Add(d), s.wall.Add(d)
	s.v = s.m.advance(s.v, s.mono, s.wall)
}

func TestConfigErrorsNameTheField(t *testing.T) {
	for _, tt := range []struct {
		config Config
		field  string
	}{
		{Config{Interval: -1}, "Interval"},
		{Config{Interval: time.Millisecond}, "Interval"},
		{Config{Interval: 2 * time.Hour}, "Interval"},
		{Config{Timeout: -1}, "Timeout"},
		{Config{Timeout: time.Millisecond}, "Timeout"},
		{Config{Timeout: 20 * time.Second}, "Timeout"},
		{Config{Interval: 10 * time.Second, Timeout: 10 * time.Second}, "Timeout"},
		{Config{MaxAge: -1}, "MaxAge"},
		{Config{MaxAge: time.Second}, "MaxAge"},
	} {
		m, err := New(tt.config)
		var bad *ConfigError
		if m != nil || !errors.As(err, &bad) || bad.Field != tt.field {
			t.Errorf("New(%+v) = %v, %v, want an error for %s", tt.config, m, err, tt.field)
		}
	}
	m, err := New(Config{Interval: 4 * time.Second}) // the timeout fits itself
	if err != nil {
		t.Fatal(err)
	}
	if m.config.Timeout != 3*time.Second {
		t.Errorf("timeout %v", m.config.Timeout)
	}
	if _, err := m.NewPeer(&Options{Interval: time.Second, Timeout: time.Second}); err == nil {
		t.Error("no error for a peer's timeout that is too long")
	}
	if p, err := m.NewPeer(&Options{Interval: time.Second}); err != nil || p.timeout != 750*time.Millisecond {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestDocumentedDefaults(t *testing.T) {
	m, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if c := m.config; c.Interval != 25*time.Second || c.Timeout != 10*time.Second || c.MaxAge != 0 || c.MaxPings != 100 {
		t.Errorf("%+v", c)
	}
}
