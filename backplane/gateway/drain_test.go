package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/internal/leak"
	"github.com/holdfast-ws/holdfast/internal/memnet"
	"github.com/holdfast-ws/holdfast/internal/wire"
)

func TestShutdownSendsClientsAwayOneAfterTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Drain: 10 * time.Second}})
		type farewell struct {
			goodbye *wire.Frame
			at      time.Duration
			end     *closed
		}
		const n = 100
		ch := make(chan farewell, n)
		var begin time.Time
		for i := range n {
			s := r.welcome("user" + strconv.Itoa(i))
			go func() {
				f, err := s.next()
				if err != nil {
					ch <- farewell{end: err.(*closed)}
					return
				}
				at := time.Since(begin)
				end := s.end()
				s.conn.Write(masked(final|opClose, []byte{byte(end.code >> 8), byte(end.code & 0xff)}))
				s.conn.Close()
				ch <- farewell{f, at, end}
			}()
		}
		begin = time.Now()
		done := make(chan time.Duration)
		go func() {
			if err := r.gw.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
			done <- time.Since(begin)
		}()
		time.Sleep(time.Second)
		s := r.dialRaw() // meanwhile
		s.write([]byte(handshake + "\r\n"))
		resp, err := http.ReadResponse(s.br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if after, err := strconv.Atoi(resp.Header.Get("Retry-After")); resp.StatusCode != 503 || err != nil || after < 1 || after > 11 {
			t.Errorf("%d, %d", resp.StatusCode, after)
		}
		var spread [10]int
		for range n {
			f := <-ch
			if f.end.code != wire.CloseRestart || f.goodbye == nil || f.goodbye.Type != wire.Goodbye || f.goodbye.Reason != "drain" ||
				f.goodbye.Window < 1 || f.goodbye.Window > 10_000 || f.at > 11*time.Second {
				t.Fatalf("%+v", f)
			}
			spread[min(9, f.at/time.Second)]++
		}
		for second, n := range spread {
			if n < 8 || n > 12 {
				t.Errorf("%d were sent away in second %d", n, second)
			}
		}
		if d := <-done; d < 9*time.Second || d > 11*time.Second {
			t.Errorf("Shutdown took %v", d)
		}
		if st := r.gw.Stats(); st.Connections != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestShutdownKeepsToItsContext(t *testing.T) {
	// All are told within the time that there is, and to come back over the rest.
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Drain: 20 * time.Second}})
		var ends []<-chan *closed
		for range 20 {
			s := r.welcome("")
			f := make(chan *closed, 1)
			go func() {
				g, _ := s.next()
				if g == nil || g.Window < 14_000 || g.Window > 20_000 {
					t.Errorf("%s", g.Append(nil))
				}
				f <- s.end()
				s.conn.Close()
			}()
			ends = append(ends, f)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		begin := time.Now()
		if err := r.gw.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d > 5*time.Second || d < 3*time.Second {
			t.Errorf("took %v", d)
		}
		for _, end := range ends {
			if c := <-end; c.code != wire.CloseRestart {
				t.Error(c)
			}
		}
	})
}

// A Shutdown that was cancelled told all who were left to come back within 100 ms.
func TestACancelledShutdownSpreadsTheRest(t *testing.T) {
	const drain, n = 20 * time.Second, 20
	for after, want := range map[time.Duration]time.Duration{0: drain, 2100 * time.Millisecond: drain - 2100*time.Millisecond, 18900 * time.Millisecond: 1100 * time.Millisecond, 18990 * time.Millisecond: hurry + 10*time.Millisecond} {
		for _, deadline := range []time.Duration{0, time.Minute} {
			synctest.Test(t, func(t *testing.T) {
				r := startWith(t, setup{Options: Options{Drain: drain}})
				type told struct{ at, window time.Duration }
				ch := make(chan told, n)
				var begin time.Time
				for range n {
					s := r.welcome("")
					go func() {
						f, err := s.next()
						if err != nil || f.Type != wire.Goodbye {
							t.Errorf("%v, %v", f, err)
							f = new(wire.Frame)
						}
						ch <- told{time.Since(begin), time.Duration(f.Window) * time.Millisecond}
						s.end()
						s.conn.Close()
					}()
				}
				begin = time.Now()
				ctx, cancel := context.WithCancel(context.Background())
				if deadline > 0 {
					ctx, cancel = context.WithTimeout(context.Background(), deadline)
				}
				if after == 0 {
					cancel()
				}
				time.AfterFunc(after, cancel)
				if err := r.gw.Shutdown(ctx); err != nil && err != context.Canceled {
					t.Error(err)
				}
				for range n {
					got := <-ch
					switch early := got.at < after; {
					case early && got.window != prompt:
						t.Errorf("told in its turn, after %v, to come back within %v", got.at, got.window)
					case !early && (got.window > want || got.window < want-10*time.Millisecond):
						t.Errorf("told after %v of %v to come back within %v, want %v", after, drain, got.window, want)
					}
				}
			})
		}
	}
	synctest.Test(t, func(t *testing.T) { // at the last moment
		r := startWith(t, setup{Options: Options{Drain: drain}})
		var all []<-chan *closed
		windows := make(chan int64, n)
		for range n {
			s := r.welcome("")
			end := make(chan *closed, 1)
			all = append(all, end)
			go func() {
				if f, err := s.next(); err == nil {
					windows <- f.Window
				}
				end <- s.end()
				s.conn.Close()
			}()
		}
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(drain*(n-1)/n-time.Millisecond, cancel)
		r.gw.Shutdown(ctx)
		for _, end := range all {
			<-end
		}
		var last int64
		for range n {
			last = max(last, <-windows)
		}
		if last < hurry.Milliseconds() {
			t.Errorf("who was told last has %d ms", last)
		}
	})
}

// After a rolling restart one server has no clients, and others have too many: there was no way
// to send some of them away but all.
func TestShedSendsSomeAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Drain: 10 * time.Second, Limits: Limits{PerUser: -1, Hello: time.Hour}}})
		const n, away = 50, 20
		type told struct {
			f   *wire.Frame
			at  time.Time
			end *closed
		}
		ch := make(chan told, n)
		for range n {
			s := r.welcome("anna")
			go func() {
				f, _ := s.next()
				at := time.Now()
				end := s.end()
				s.conn.Close()
				ch <- told{f, at, end}
			}()
		}
		r.socket() // has not said hello, and is left alone
		begin := time.Now()
		if got, err := r.gw.Shed(context.Background(), away); got != away || err != nil {
			t.Errorf("%d, %v", got, err)
		}
		if d := time.Since(begin); d < 9*time.Second || d > 10*time.Second {
			t.Errorf("took %v", d)
		}
		time.Sleep(time.Second)
		var spread [10]int
		for range away {
			got := <-ch
			if got.f == nil || got.f.Type != wire.Goodbye || got.f.Window != prompt.Milliseconds() || got.end.code != wire.CloseRestart {
				t.Errorf("%+v", got)
			}
			spread[min(9, got.at.Sub(begin)/time.Second)]++
		}
		for second, n := range spread {
			if n < 1 || n > 3 {
				t.Errorf("%d were sent away in second %d", n, second)
			}
		}
		if st := r.gw.Stats(); len(ch) > 0 || st.Connections != n-away+1 {
			t.Errorf("%+v", st)
		}
		// Only as many as there is time for, and as there are.
		why := errors.New("why")
		ctx, cancel := context.WithTimeoutCause(context.Background(), 2*time.Second, why)
		defer cancel()
		if got, err := r.gw.Shed(ctx, 20); got < 4 || got > 5 || err != why {
			t.Errorf("%d, %v", got, err)
		}
		if got, err := r.gw.Shed(context.Background(), -1); got != 0 || err != nil {
			t.Errorf("%d, %v", got, err)
		}
		time.Sleep(2 * time.Second)
		left := r.gw.Stats().Connections - 1 // but for who has not said hello
		if got, err := r.gw.Shed(context.Background(), 1000); got != left || err != nil {
			t.Errorf("%d of %d, %v", got, left, err)
		}
		if got, err := r.gw.Shed(context.Background(), 1000); got != 0 || err != nil { // they are just leaving
			t.Errorf("%d again, %v", got, err)
		}
		r.gw.Shutdown(context.Background())
		if got, err := r.gw.Shed(context.Background(), 10); got != 0 || err != nil {
			t.Errorf("after Shutdown: %d, %v", got, err)
		}
	})
}

// Shed went on during a Shutdown, and counted connections that it had not sent away.
func TestShedCountsWhomItHasSentAway(t *testing.T) {
	const n, drain = 20, 20 * time.Second
	for name, c := range map[string]struct {
		shutdown time.Duration // of ctx; 0 = none
		leave    int           // clients that leave after 5.5 s
		told     int
		least    time.Duration
	}{
		"a Shutdown":                {shutdown: drain, told: 6, least: 5 * time.Second},
		"a Shutdown that is short":  {shutdown: time.Second, told: 6, least: 5 * time.Second},
		"all others leave":          {leave: n, told: 6, least: 19 * time.Second},
		"nothing happens meanwhile": {told: n, least: 19 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startWith(t, setup{Options: Options{Drain: drain, Limits: Limits{PerUser: -1}}})
				var reasons [2]atomic.Int64
				var sockets []*socket
				for range n {
					s := r.welcome("anna")
					sockets = append(sockets, s)
					go func() {
						f, err := s.next()
						if err != nil {
							return
						}
						if f.Reason == "rebalance" {
							reasons[0].Add(1)
						} else {
							reasons[1].Add(1)
						}
						s.end()
						s.conn.Close()
					}()
				}
				begin := time.Now()
				time.AfterFunc(5500*time.Millisecond, func() {
					for _, s := range sockets[:c.leave] {
						s.conn.Close()
					}
					if c.shutdown > 0 {
						ctx, cancel := context.WithTimeout(context.Background(), c.shutdown)
						defer cancel()
						r.gw.Shutdown(ctx)
					}
				})
				got, err := r.gw.Shed(context.Background(), n)
				took := time.Since(begin)
				time.Sleep(2 * drain)
				told, drained := int(reasons[0].Load()), int(reasons[1].Load())
				if got != c.told || err != nil || told != got || c.shutdown > 0 && told+drained != n {
					t.Errorf("%d, %v; %d were told, %d drained", got, err, told, drained)
				}
				if took < c.least || c.shutdown > 0 && took > 6*time.Second {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

func TestShutdownCutsWhoStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{net: memnet.Settings{Buffer: 1400}, Options: Options{Drain: time.Second, Limits: Limits{Write: time.Minute}}})
		s := r.welcome("")
		s.link.Stall(memnet.Down, true)
		for range 120 {
			s.send(`{"t":"ping"}`)
		}
		time.Sleep(time.Second)
		why := errors.New("why")
		ctx, cancel := context.WithTimeoutCause(context.Background(), 4*time.Second, why)
		defer cancel()
		begin := time.Now()
		if err := r.gw.Shutdown(ctx); err != why {
			t.Error(err)
		}
		if d := time.Since(begin); d != 4*time.Second+farewell {
			t.Errorf("took %v", d)
		}
	})
}

// What Shutdown waits for ends with its context: an Authorize that hangs, too.
func TestShutdownDoesNotWaitForAuthorize(t *testing.T) {
	for _, frame := range []string{
		`{"t":"subscribe","topic":"x"}`, `{"t":"publish","id":"1","topic":"x","data":1}`, `{"t":"auth","token":"x"}`, `{"t":"ephemeral","topic":"x","data":1}`, ``,
	} {
		synctest.Test(t, func(t *testing.T) {
			g := new(guard)
			r := startWith(t, setup{Options: Options{Authorize: g.authorize, Limits: Limits{Authorize: time.Minute}}})
			hang := func(ctx context.Context, a Access) (Grant, error) { <-ctx.Done(); return Grant{}, context.Cause(ctx) }
			if frame == "" {
				g.set(hang)
				r.socket().send(`{"t":"hello","v":1}`)
			} else {
				s := r.welcome("")
				g.set(hang)
				s.send(frame)
			}
			time.Sleep(time.Second)
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
			defer cancel()
			begin := time.Now()
			r.gw.Shutdown(ctx)
			if d := time.Since(begin); d > 4*time.Second+farewell {
				t.Errorf("%s: took %v", frame, d)
			}
		})
	}
}

func TestShutdownOfThoseWhoHaveNotSaidHello(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		s := r.socket()
		done := s.idle()
		time.Sleep(time.Second)
		begin := time.Now()
		if err := r.gw.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if c := <-done; c.code != wire.CloseRestart {
			t.Error(c)
		}
		if d := time.Since(begin); d > 4*time.Second {
			t.Errorf("took %v", d)
		}
	})
}

func TestShutdownAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Drain: 10 * time.Second}})
		for range 10 {
			s := r.welcome("")
			go func() { s.end(); s.conn.Close() }()
		}
		done := make(chan time.Duration, 3)
		begin := time.Now()
		for range 2 {
			go func() {
				if err := r.gw.Shutdown(context.Background()); err != nil {
					t.Error(err)
				}
				done <- time.Since(begin)
			}()
		}
		time.Sleep(time.Second)
		go func() { // and one that cannot wait so long
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if err := r.gw.Shutdown(ctx); err != context.DeadlineExceeded && err != nil {
				t.Error(err)
			}
			done <- time.Since(begin)
		}()
		for range 3 {
			if d := <-done; d > 11*time.Second {
				t.Errorf("after %v", d)
			}
		}
		begin = time.Now()
		if err := r.gw.Shutdown(context.Background()); err != nil || time.Since(begin) != 0 {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

func TestShutdownWithoutConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		begin := time.Now()
		if err := r.gw.Shutdown(context.Background()); err != nil || time.Since(begin) != 0 {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		s := r.dialRaw()
		s.write([]byte(handshake + "\r\n"))
		if status := s.response(); status != 503 {
			t.Error(status)
		}
	})
}

func TestPublishesUnderWayDuringShutdownAreAnsweredOrCanBeSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bp := newGate()
		r := startWith(t, setup{bp: bp, Options: Options{Drain: 2 * time.Second}})
		s := r.welcome("anna")
		bp.appends.close()
		for i := range 5 {
			s.send(fmt.Sprintf(`{"t":"publish","id":"%d","topic":"x","data":%d}`, i, i))
		}
		time.Sleep(100 * time.Millisecond)
		answered := map[string]bool{}
		done := make(chan bool)
		go func() {
			defer close(done)
			for {
				f, err := s.next()
				if err != nil {
					return
				}
				if f.Type == wire.Ack {
					answered[f.ID] = true
				} else if f.Type == wire.Nack && f.Outcome == wire.NotStored {
					t.Errorf("%s", f.Append(nil))
				}
			}
		}()
		time.AfterFunc(500*time.Millisecond, bp.appends.open)
		if err := r.gw.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		<-done
		// On another server, the same ids.
		gw, err := New(r.hub, &Options{Authorize: allowAll})
		if err != nil {
			t.Fatal(err)
		}
		defer gw.Shutdown(context.Background())
		net := memnet.New(memnet.Settings{Latency: latency})
		srv := &http.Server{Handler: gw}
		go srv.Serve(net)
		defer srv.Close()
		other := &rig{t: t, bp: bp, hub: r.hub, gw: gw, net: net, srv: srv}
		s = other.welcome("anna")
		for i := range 5 {
			if id := strconv.Itoa(i); !answered[id] {
				s.ask(fmt.Sprintf(`{"t":"publish","id":"%s","topic":"x","data":%s}`, id, id), wire.Ack)
			}
		}
		s.conn.Close()
		if got := strings.Join(r.stored("x"), " "); got != "0 1 2 3 4" {
			t.Errorf("stored: %s", got)
		}
	})
}

func TestNothingRunsAfterShutdown(t *testing.T) {
	// Outside of a bubble, on real sockets, with clients in all kinds of states.
	r := startTCP(t, Options{Limits: Limits{PerUser: -1}})
	for i := range 20 {
		s := r.socket(t)
		if i%4 == 0 {
			continue
		}
		s.hello("anna")
		s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
		if i%4 == 1 {
			s.conn.Close()
		}
		if i%4 == 2 {
			go s.end()
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	r.gw.Shutdown(ctx)
	for _, stack := range strings.Split(leak.Check(0), "\n\n") {
		if strings.Contains(stack, "gateway.(*") && !strings.Contains(stack, "_test.go") {
			t.Errorf("still running: %s", stack)
		}
	}
}
