package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/heartbeat"
	"github.com/holdfast-ws/holdfast/internal/memnet"
	"github.com/holdfast-ws/holdfast/internal/verify"
)

const tick = 50 * time.Millisecond // of the heartbeat

func TestAServerThatIsGoneIsFoundAndDialledAgain(t *testing.T) {
	for _, config := range []heartbeat.Config{{}, {Interval: 4 * time.Second, Timeout: time.Second}} {
		bound := 35 * time.Second
		if config.Interval != 0 {
			bound = config.Interval + config.Timeout
		}
		bound += 2*tick + 10*time.Millisecond
		for i := range 5 {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, echo)
				o := r.options()
				o.Heartbeat = config
				told := make(chan *Session, 1)
				o.Heartbeat.OnDead = func(p *heartbeat.Peer, _ heartbeat.Verdict) { told <- p.Value.(*Session) }
				var down error
				o.Trace = &Trace{Down: func(s *Session, err error, wait time.Duration) { down = errors.Join(down, err) }}
				for s, err := range Sessions(t.Context(), "ws://server.test", o) {
					if err != nil {
						t.Fatal(err)
					}
					if s.Number == 2 {
						break
					}
					start := time.Now().Add(time.Duration(i) * 7 * time.Second)
					time.AfterFunc(time.Until(start), func() { r.network.Links()[0].Blackhole(memnet.Both) })
					read(s)
					if d := time.Since(start); d > bound {
						t.Errorf("%+v: found after %v", config, d)
					}
					var dead *HeartbeatError
					if cause := context.Cause(s.Context()); !errors.As(cause, &dead) || dead.Verdict.Reason != heartbeat.NoAnswer {
						t.Errorf("the cause is %v", cause)
					}
					if got := <-told; got != s {
						t.Error("OnDead has another session")
					}
				}
				var dead *HeartbeatError
				if !errors.As(down, &dead) || !strings.Contains(dead.Error(), "client: connection found dead: no answer, silent for ") {
					t.Errorf("the trace says %v", down)
				}
				r.expectQuiet(t)
			})
		}
	}
}

func TestTheHeartbeatLeavesLivingServersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, echo)
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
		defer cancel()
		if sessions, _ := loop(ctx, "ws://server.test", r.options()); sessions != 1 {
			t.Errorf("%d sessions in a day", sessions)
		}
	})
}

func TestTheHeartbeatCanBeSwitchedOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, echo)
		o := r.options()
		o.Heartbeat.Interval = -1
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
		defer cancel()
		for s := range Sessions(ctx, "ws://server.test", o) {
			if s != nil {
				r.network.Links()[0].Blackhole(memnet.Both)
				read(s)
			}
		}
		if n := len(r.requests()); n != 1 {
			t.Errorf("%d sessions", n)
		}
	})
}

// A body that does not read cannot keep its session: nobody would see a close frame.
func TestABodyThatDoesNotReadIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, echo)
		for s := range Sessions(t.Context(), "ws://server.test", r.options()) {
			start := time.Now()
			<-s.Context().Done()
			var dead *HeartbeatError
			if !errors.As(context.Cause(s.Context()), &dead) || dead.Verdict.Reason != heartbeat.ReaderStuck || time.Since(start) > 70*time.Second {
				t.Errorf("%v after %v", context.Cause(s.Context()), time.Since(start))
			}
			break
		}
	})
}

func TestAServerThatFloodsWithPingsIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, accept(func(ctx context.Context, c *websocket.Conn) {
			c.CloseRead(ctx)
			for c.Ping(ctx) == nil {
			}
		}))
		for s := range Sessions(t.Context(), "ws://server.test", r.options()) {
			read(s)
			var dead *HeartbeatError
			if !errors.As(context.Cause(s.Context()), &dead) || dead.Verdict.Reason != heartbeat.PingFlood {
				t.Error(context.Cause(s.Context()))
			}
			if want := "client: connection dropped by the heartbeat: ping flood"; dead != nil && dead.Error() != want {
				t.Error(dead)
			}
			break
		}
	})
}

// What the server said at the end counts for more than what the heartbeat found.
func TestACloseFrameIsBetterThanAVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, closeWith(1008, "no"))
		var last error
		for s, err := range Sessions(t.Context(), "ws://server.test", r.options()) {
			if last = err; s != nil {
				read(s)
				s.End(errors.New("the first counts"))
				time.Sleep(time.Hour) // the heartbeat finds that it is closed
			}
		}
		if websocket.CloseStatus(last) != 1008 {
			t.Error(last)
		}
	})
}

// nudged returns a loop that can be nudged.
func nudged(t *testing.T, r *rig, o *Options) (*sessions, chan struct{}) {
	t.Helper()
	l, err := newSessions("ws://server.test", o)
	if err != nil {
		t.Fatal(err)
	}
	nudge := make(chan struct{}, 1)
	l.nudge = nudge
	return l, nudge
}

func poke(nudge chan struct{}) {
	select {
	case nudge <- struct{}{}:
	default:
	}
}

func TestANudgeMakesAFreshConnection(t *testing.T) {
	slow := backoff.Policy{Base: time.Hour, Cap: time.Hour, Fixed: 1}
	t.Run("while waiting", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, answer(500))
			o := r.options()
			o.Backoff = slow
			var cut []time.Duration
			o.Trace = &Trace{Cut: func(left time.Duration) { cut = append(cut, left) }}
			l, nudge := nudged(t, r, o)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
			defer cancel()
			time.AfterFunc(10*time.Minute, func() { poke(nudge) })
			for range l.all(ctx) {
			}
			got := r.requests()
			if len(got) != 2 {
				t.Fatalf("%d dials", len(got))
			}
			if d := got[1].at.Sub(got[0].at) - 10*time.Minute; d < 0 || d > nudgeSpread+10*time.Millisecond {
				t.Errorf("dialled %v after the nudge", d)
			}
			if len(cut) != 1 || cut[0] < 49*time.Minute || cut[0] > 50*time.Minute+10*time.Millisecond {
				t.Errorf("cut %v", cut)
			}
		})
	})
	t.Run("in a session", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, echo)
			o := r.options()
			o.Backoff = slow
			o.Heartbeat.Interval = -1
			o.Decide = func(err error) Verdict { t.Errorf("asked about %v", err); return Final }
			l, nudge := nudged(t, r, o)
			time.AfterFunc(10*time.Minute, func() { poke(nudge) })
			for s, err := range l.all(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				if s.Number == 2 {
					break
				}
				r.network.Links()[0].Blackhole(memnet.Both) // no help from the server
				start := time.Now()
				read(s)
				if err := context.Cause(s.Context()); err != errNudged || time.Since(start) > 10*time.Minute {
					t.Errorf("%v after %v", err, time.Since(start))
				}
			}
		})
	})
	t.Run("in a dial", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, echo)
			r.network.Set(memnet.Settings{Swallow: true})
			o := r.options()
			o.Backoff = slow
			l, nudge := nudged(t, r, o)
			start := time.Now()
			time.AfterFunc(500*time.Millisecond, func() { poke(nudge) }) // the dial is new: no need
			time.AfterFunc(5*time.Second, func() {
				r.network.Set(memnet.Settings{})
				poke(nudge)
			})
			for s, err := range l.all(t.Context()) {
				var failed *DialError
				switch {
				case errors.As(err, &failed):
					if time.Since(start) != 5*time.Second || !errors.Is(err, errNudged) || failed.Final || failed.Wait > nudgeSpread {
						t.Errorf("%v after %v", err, time.Since(start))
					}
					continue
				case s != nil:
					if d := time.Since(start); d > 5*time.Second+nudgeSpread+10*time.Millisecond {
						t.Errorf("connected after %v", d)
					}
				}
				break
			}
		})
	})
}

func TestNudgesAreNoHotLoop(t *testing.T) {
	for name, handler := range map[string]func(int, http.ResponseWriter, *http.Request){
		"refused": answer(500), "dropped": drop, "connected": echo,
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, handler)
			o := r.options()
			o.Backoff = backoff.Policy{Base: time.Hour, Cap: time.Hour, Fixed: 1}
			l, nudge := nudged(t, r, o)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			go func() {
				for ctx.Err() == nil {
					poke(nudge)
					time.Sleep(time.Millisecond)
				}
			}()
			for s := range l.all(ctx) {
				if s != nil {
					read(s)
				}
			}
			if n := len(r.requests()); n < 50 || n > 61 {
				t.Errorf("%s: %d dials in a minute of nudges, want about 60", name, n)
			}
			r.expectQuiet(t)
		})
	}
}

// A nudge does not overrule what the server has asked for.
func TestANudgeDoesNotOverruleRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, answer(503, "Retry-After", "600"))
		l, nudge := nudged(t, r, r.options())
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
		defer cancel()
		go func() {
			for backoff.Sleep(ctx, time.Second) == nil {
				poke(nudge)
			}
		}()
		for range l.all(ctx) {
		}
		got := r.requests()
		if len(got) < 2 || len(got) > 3 {
			t.Errorf("%d dials", len(got))
		}
		for i := 1; i < len(got); i++ {
			if d := got[i].at.Sub(got[i-1].at); d < 10*time.Minute {
				t.Errorf("dialled after %v", d)
			}
		}
	})
}

// A suspended machine: the wall clock is ahead by what the timers have missed.
func TestAWaitEndsSoonAfterAWakeUp(t *testing.T) {
	for _, tt := range []struct {
		name        string
		answer      []string // headers
		away        time.Duration
		least, most time.Duration // of the wait, as the monotonic clock sees it
	}{
		{"no suspension", nil, 0, time.Hour, time.Hour},
		{"a clock that is set", nil, time.Second, time.Hour, time.Hour},
		{"a clock that is set back", nil, -time.Hour, time.Hour, time.Hour},
		{"an hour", nil, time.Hour, 10 * time.Minute, 10*time.Minute + wakeEvery + wakeSpread},
		{"less than what is left", nil, 3 * time.Second, 10 * time.Minute, 10*time.Minute + wakeEvery + wakeSpread},
		// Time asleep counts for what the server has asked for, and no more.
		{"an hour of a Retry-After", []string{"Retry-After", "3600"}, 20 * time.Minute, 40 * time.Minute, 42 * time.Minute},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, answer(503, tt.answer...))
			o := r.options()
			o.Backoff = backoff.Policy{Base: time.Hour, Cap: time.Hour, Fixed: 1}
			if tt.answer != nil {
				o.Backoff = backoff.Policy{Rand: func(uint64) uint64 { return 0 }}
			}
			l, err := newSessions("ws://server.test", o)
			if err != nil {
				t.Fatal(err)
			}
			var jump atomic.Int64
			l.wall = func() time.Time { return time.Now().Round(0).Add(time.Duration(jump.Load())) }
			time.AfterFunc(10*time.Minute, func() { jump.Store(int64(tt.away)) })
			var first time.Time
			for range l.all(t.Context()) {
				if !first.IsZero() {
					break
				}
				first = time.Now()
			}
			got := r.requests()
			if d := got[1].at.Sub(first); d < tt.least || d > tt.most+10*time.Millisecond {
				t.Errorf("%s: waited for %v, want from %v to %v", tt.name, d, tt.least, tt.most)
			}
		})
	}
}

func TestADialEndsAfterAWakeUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, echo)
		r.network.Set(memnet.Settings{Swallow: true})
		l, err := newSessions("ws://server.test", r.options())
		if err != nil {
			t.Fatal(err)
		}
		var jump atomic.Int64
		l.wall = func() time.Time { return time.Now().Round(0).Add(time.Duration(jump.Load())) }
		time.AfterFunc(time.Second, func() {
			r.network.Set(memnet.Settings{})
			jump.Store(int64(time.Hour))
		})
		start := time.Now()
		for s, err := range l.all(t.Context()) {
			if err != nil {
				if !errors.Is(err, errWoke) {
					t.Error(err)
				}
				continue
			}
			if d := time.Since(start); d > wakeEvery+wakeSpread+10*time.Millisecond || s == nil {
				t.Errorf("connected after %v", d)
			}
			break
		}
	})
}

func TestTheDistanceOfTheClocks(t *testing.T) {
	var w wakeWatch
	mono, wall := time.Now(), time.Now().Round(0)
	for i, tt := range []struct{ mono, wall, want time.Duration }{
		{0, 0, 0}, // the first look
		{5 * time.Second, 5 * time.Second, 0},
		{5 * time.Second, 7 * time.Second, 0}, // not more than 2 s
		{5 * time.Second, 7*time.Second + 1, 2*time.Second + 1},
		{5 * time.Second, 5 * time.Second, 0}, // once
		{5 * time.Second, -time.Hour, 0},
		{0, time.Hour, time.Hour},
	} {
		mono, wall = mono.Add(tt.mono), wall.Add(tt.wall)
		if got := w.away(mono, wall); got != tt.want {
			t.Errorf("look %d: %v, want %v", i, got, tt.want)
		}
	}
}

func TestADayWithANetworkThatFailsEveryHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, echo)
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
		defer cancel()
		go func() {
			for i := 0; backoff.Sleep(ctx, time.Hour) == nil; i++ {
				for _, l := range r.network.Links() {
					if i%2 == 0 {
						l.Reset()
					} else {
						l.Blackhole(memnet.Both)
					}
				}
				r.network.Set(memnet.Settings{Refuse: i%4 < 2, Swallow: i%4 == 2})
				backoff.Sleep(ctx, time.Duration(i)*10*time.Second)
				r.network.Set(memnet.Settings{Latency: 20 * time.Millisecond})
			}
		}()
		sessions, errs := 0, 0
		for s, err := range Sessions(ctx, "ws://server.test", r.options()) {
			if err != nil {
				errs++
				continue
			}
			sessions++
			if s.Number != sessions {
				t.Errorf("session %d is number %d", sessions, s.Number)
			}
			if n := len(r.network.Links()); n > 1 {
				t.Errorf("%d connections at once", n)
			}
			read(s)
		}
		if sessions != 24 || errs < 24 {
			t.Errorf("%d sessions, %d errors", sessions, errs)
		}
		t.Logf("%d sessions, %d failed dials in a day", sessions, errs-1)
		r.expectQuiet(t)
	})
}

// Random servers, faults, bodies, nudges and ends: nothing is left, and nothing is dialled
// more often than nudges and backoff allow.
func TestRandomActions(t *testing.T) {
	seeds := uint64(60)
	if !verify.On() {
		seeds = 20
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			chance := rand.New(rand.NewPCG(seed, 2))
			answers := make([]int, 500)
			for i := range answers {
				answers[i] = chance.IntN(9)
			}
			r := newRig(t, func(n int, w http.ResponseWriter, req *http.Request) {
				[]func(int, http.ResponseWriter, *http.Request){
					echo, echo, drop, answer(503, "Retry-After", "7"), answer(500), mute, closeWith(1012, "restart"),
					hold(7 * time.Second), answer(200),
				}[answers[n%len(answers)]](n, w, req)
			})
			o := r.options()
			o.Prepare = func(ctx context.Context, d *Dial) error {
				if d.Attempt%5 == 4 {
					return fmt.Errorf("attempt %d", d.Attempt)
				}
				return backoff.Sleep(ctx, time.Duration(d.Attempt)*time.Millisecond)
			}
			o.URLs = []string{"ws://other.test"}[:chance.IntN(2)]
			l, nudge := nudged(t, r, o)
			l.needReady = chance.IntN(2) == 0
			life := time.Duration(chance.Int64N(int64(20 * time.Minute)))
			ctx, cancel := context.WithTimeout(t.Context(), life)
			defer cancel()
			faults := rand.New(rand.NewPCG(seed, 3))
			var nudges atomic.Int32
			go func() {
				for backoff.Sleep(ctx, time.Duration(faults.Int64N(int64(time.Minute)))) == nil {
					switch faults.IntN(6) {
					case 0:
						nudges.Add(1)
						poke(nudge)
					case 1:
						r.network.Set(memnet.Settings{Refuse: true})
					case 2:
						r.network.Set(memnet.Settings{Swallow: true})
					case 3:
						r.network.Set(memnet.Settings{Latency: time.Duration(faults.IntN(300)) * time.Millisecond})
					case 4:
						for _, l := range r.network.Links() {
							l.Blackhole(memnet.Both)
						}
					case 5:
						for _, l := range r.network.Links() {
							l.CutAfter(memnet.Both, faults.IntN(100))
						}
					}
				}
			}()
			start := time.Now()
			dials := 0
			for s, err := range l.all(ctx) {
				dials++
				if err != nil {
					continue
				}
				switch chance.IntN(4) {
				case 0: // does not read, and says nothing
					backoff.Sleep(s.Context(), time.Second)
				case 1:
					go s.Ready()
					go s.Hint(time.Duration(chance.IntN(60)) * time.Second)
					read(s)
				default:
					s.Ready()
					read(s)
				}
				if chance.IntN(50) == 0 {
					break
				}
			}
			lived := time.Since(start)
			if lived > life {
				t.Errorf("seed %d: it lived for %v, its context for %v", seed, lived, life)
			}
			// Two servers, and windows that soon are seconds wide.
			if most := 25 + int(nudges.Load()) + int(lived/time.Second); dials > most {
				t.Errorf("seed %d: %d attempts in %v", seed, dials, lived)
			}
			r.expectQuiet(t)
		})
	}
}

// A deploy, in which the proxy knows no server for a moment and answers 404, ended clients
// for good.
func TestA404IsNoEndOnceThereWasASession(t *testing.T) {
	for _, status := range []int{404, 410, 421} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, func(n int, w http.ResponseWriter, req *http.Request) {
				switch n {
				case 1:
					hold(time.Hour)(n, w, req)
				case 2, 3, 4:
					answer(status)(n, w, req)
				default:
					answer(400)(n, w, req)
				}
			})
			sessions, errs := loop(t.Context(), "ws://server.test", r.options())
			var last *DialError
			if sessions != 1 || len(errs) != 4 || !errors.As(errs[3], &last) || last.Status != 400 || !last.Final {
				t.Errorf("%d: %d sessions, %v", status, sessions, errs)
			}
		})
	}
}

// One server of two that answered 404, or with another refusal, ended clients that the other
// would have taken.
func TestAServerThatRefusesForGoodIsLeftOut(t *testing.T) {
	for range 5 { // the order of servers is random
		synctest.Test(t, func(t *testing.T) {
			down := false
			r := newRig(t, func(n int, w http.ResponseWriter, req *http.Request) {
				switch {
				case req.Host == "bad.test":
					answer(400)(n, w, req)
				case down:
					answer(503)(n, w, req)
				default:
					hold(time.Hour)(n, w, req)
				}
			})
			asked := func(host string) (n int) {
				for _, a := range r.requests() {
					if a.host == host {
						n++
					}
				}
				return n
			}
			o := r.options()
			o.URLs = []string{"ws://bad.test"}
			sessions := 0
			var last error
			for s, err := range Sessions(t.Context(), "ws://good.test", o) {
				if last = err; s == nil {
					if asked("good.test") == 20 {
						break
					}
					continue
				}
				read(s)
				if sessions++; sessions == 3 {
					down = true
				}
			}
			// Once before the first session or none, and once after each: it may have got better.
			if n := asked("bad.test"); sessions != 3 || n < 2 || n > 4 || asked("good.test") != 20 {
				t.Errorf("%d sessions, %d times of %d in vain; %v", sessions, n, len(r.requests()), last)
			}
		})
	}
	// Those that are left may refuse as well.
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, answer(404))
		o := r.options()
		o.URLs = []string{"ws://b.test", "ws://c.test"}
		_, errs := loop(t.Context(), "ws://a.test", o)
		var last *DialError
		if len(errs) != 3 || len(r.requests()) != 3 || !errors.As(errs[2], &last) || !last.Final {
			t.Errorf("%v", errs)
		}
	})
}

// A token that expires under a connection kept its client away for as long as a server that
// has restarted does.
func TestAfterATokenHasExpiredTheClientIsSoonBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ends []time.Time
		r := newRig(t, func(n int, w http.ResponseWriter, req *http.Request) {
			accept(func(ctx context.Context, c *websocket.Conn) {
				switch n {
				case 1, 2:
					c.CloseRead(ctx)
					backoff.Sleep(ctx, time.Duration(n)*time.Minute)
					ends = append(ends, time.Now())
					c.Close(4401, "expired")
				case 3: // the new token lasts for a moment
					ends = append(ends, time.Now())
					c.Close(4000, "")
				default:
					ends = append(ends, time.Now())
					c.Close(4403, "enough")
				}
			})(n, w, req)
		})
		o := r.options()
		o.Prepare = func(_ context.Context, d *Dial) error { return nil }
		o.Backoff.Rand = longest
		loop(t.Context(), "ws://server.test", o)
		got := r.requests()
		if len(got) != 4 {
			t.Fatalf("%d requests", len(got))
		}
		for i := range 3 {
			away := got[i+1].at.Sub(ends[i])
			if soon := away < backoff.DefaultBase+100*time.Millisecond; soon != (i < 2) {
				t.Errorf("away for %v after session %d", away, i+1)
			}
		}
	})
}

// The window that a server had asked for was forgotten after one failed dial: after a hint
// of 25 s the waits were 25 s, 10 s and 20 s.
func TestTheWindowOfAServerIsKeptAfterAFailedDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(n int, w http.ResponseWriter, req *http.Request) {
			if n == 1 {
				hold(time.Second)(n, w, req)
				return
			}
			answer(500)(n, w, req)
		})
		o := r.options()
		o.Backoff.Rand = longest
		var waits []time.Duration
		o.Trace = &Trace{Down: func(_ *Session, _ error, wait time.Duration) { waits = append(waits, wait) }}
		for s, err := range Sessions(t.Context(), "ws://server.test", o) {
			var failed *DialError
			switch {
			case s != nil:
				s.Hint(25 * time.Second)
				read(s)
				continue
			case errors.As(err, &failed):
				waits = append(waits, failed.Wait)
			}
			if len(waits) == 4 {
				break
			}
		}
		s := time.Second
		if diff := cmp.Diff([]time.Duration{25 * s, 25 * s, 30 * s, 30 * s}, waits); diff != "" {
			t.Errorf("waits (-want +got):\n%s", diff)
		}
	})
}

// Whoever was logged out soon after connecting waited as long as after a lost connection,
// and the page showed for seconds what it should not.
func TestTheFirstAttemptAfterALogoutIsImmediate(t *testing.T) {
	for _, lasted := range []time.Duration{time.Second, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, func(n int, w http.ResponseWriter, req *http.Request) {
				accept(func(ctx context.Context, c *websocket.Conn) {
					c.CloseRead(ctx)
					if n > 1 {
						c.Close(4403, "enough")
						return
					}
					c.Write(ctx, websocket.MessageText, []byte("welcome"))
					backoff.Sleep(ctx, lasted)
					c.Close(4401, "logged out")
				})(n, w, req)
			})
			o := r.options()
			o.Backoff.Rand = longest
			o.Prepare = func(_ context.Context, d *Dial) error { return nil }
			l, err := newSessions("ws://server.test", o)
			if err != nil {
				t.Fatal(err)
			}
			l.needReady = true
			var away time.Duration
			l.Trace = &Trace{Down: func(_ *Session, err error, wait time.Duration) { away = max(away, wait) }}
			for s := range l.all(t.Context()) {
				if s != nil && s.Number == 1 {
					s.Read(s.Context())
					s.Ready()
				}
				if s != nil {
					read(s)
				}
			}
			if away > nudgeSpread || len(r.requests()) != 2 {
				t.Errorf("after a connection of %v: the next attempt after %v; %d requests", lasted, away, len(r.requests()))
			}
		})
	}
}

func TestALogoutAfterEachLoginIsNoHotLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, accept(func(ctx context.Context, c *websocket.Conn) {
			c.CloseRead(ctx)
			c.Write(ctx, websocket.MessageText, []byte("welcome"))
			c.Close(4401, "logged out")
		}))
		o := r.options()
		o.Prepare = func(_ context.Context, d *Dial) error { return nil }
		l, err := newSessions("ws://server.test", o)
		if err != nil {
			t.Fatal(err)
		}
		l.needReady = true
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		for s := range l.all(ctx) {
			if s != nil {
				s.Read(s.Context())
				s.Ready()
				read(s)
			}
		}
		if n := len(r.requests()); n > 80 {
			t.Errorf("%d requests in 10 minutes", n)
		}
	})
}
