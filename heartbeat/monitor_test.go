package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/holdfast-ws/holdfast/internal/verify"
)

func newMonitor(t *testing.T, config Config) *Monitor {
	t.Helper()
	m, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

// counting counts the pings and closes of a connection that answers at once.
type counting struct{ pings, closes atomic.Int32 }

func (c *counting) Ping(context.Context) error { c.pings.Add(1); return nil }
func (c *counting) CloseNow() error            { c.closes.Add(1); return nil }

func TestNothingRunsWhileNothingIsWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		running := func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			return m.running
		}
		if running() {
			t.Error("a new monitor runs")
		}
		for range 3 {
			p := watch(t, m, nil, &counting{})
			time.Sleep(time.Minute)
			if !running() {
				t.Error("it does not run though a peer is watched")
			}
			p.Stop()
			time.Sleep(time.Hour)
			if running() {
				t.Error("it runs on after the last peer was stopped")
			}
		}
	})
}

func TestStopEndsWatchingWithoutAVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{OnDead: func(_ *Peer, v Verdict) { t.Errorf("verdict %+v", v) }})
		p := watch(t, m, nil, silent())
		time.Sleep(30 * time.Second) // a probe is out
		p.Stop()
		p.Stop()
		time.Sleep(time.Minute)
		if _, dead := p.Verdict(); dead || p.Idle() != 0 {
			t.Errorf("dead %v, idle for %v", dead, p.Idle())
		}
		if err := p.Watch(silent()); err != ErrWatched {
			t.Errorf("Watch again: %v", err)
		}
		m.Close()
		fresh, err := m.NewPeer(nil)
		if err != nil {
			t.Fatal(err)
		}
		fresh.Stop() // never watched
		if err := fresh.Watch(silent()); err != ErrMonitorClosed {
			t.Errorf("Watch after Close: %v", err)
		}
	})
}

func TestCloseWaitsForAllItStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended atomic.Int32
		m := newMonitor(t, Config{OnDead: func(*Peer, Verdict) {
			time.Sleep(time.Hour) // a slow callback
			ended.Add(1)
		}})
		watch(t, m, nil, silent())
		time.Sleep(interval + timeout + time.Second) // the callback runs
		p := watch(t, m, nil, Funcs{
			PingFunc: func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(time.Second) // slow to notice
				ended.Add(1)
				return ctx.Err()
			},
			CloseFunc: func() error { return nil },
		})
		p.Probe()
		synctest.Wait() // the ping waits
		m.Close()
		if ended.Load() != 2 {
			t.Errorf("Close returned with %d of 2 ended", ended.Load())
		}
		if n := m.Stats().Watched; n != 0 {
			t.Errorf("%d watched", n)
		}
		m.Close()
	})
}

func TestAConnectionClosedOnOurSideIsNoZombie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		p := watch(t, m, nil, Funcs{
			PingFunc:  func(context.Context) error { return fmt.Errorf("ping: %w", net.ErrClosed) },
			CloseFunc: func() error { return nil },
		})
		time.Sleep(interval + 2*tick)
		if v, dead := p.Verdict(); !dead || v.Reason != Closed {
			t.Errorf("verdict %+v, %v", v, dead)
		}
	})
}

// A ping that fails at once, for a reason of its own, says little: it is sent
// again, for a while.
func TestAPingThatFailsIsOnlyAHint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		fails := atomic.Int32{}
		fails.Store(2)
		var p *Peer
		c := Funcs{
			PingFunc: func(context.Context) error {
				if fails.Add(-1) >= 0 {
					return errors.New("queue full")
				}
				return nil
			},
			CloseFunc: func() error { return nil },
		}
		p = watch(t, m, nil, c)
		time.Sleep(10 * time.Minute)
		if v, dead := p.Verdict(); dead {
			t.Errorf("verdict %+v", v)
		}
		if n := m.Stats().FailedPing; n != 2 {
			t.Errorf("%d excused, want 2", n)
		}
		fails.Store(1 << 30)
		time.Sleep(interval + 4*timeout + 4*tick)
		if v, dead := p.Verdict(); !dead || v.Reason != NoAnswer || v.Probes != 1+excuses {
			t.Errorf("verdict %+v, %v", v, dead)
		}
	})
}

func TestAPeerWithTrafficBothWaysIsNotPinged(t *testing.T) {
	for _, tt := range []struct {
		name        string
		heard, sent bool
		pinged      bool
	}{{"both", true, true, false}, {"only heard from", true, false, true}, {"only sent to", false, true, true}} {
		synctest.Test(t, func(t *testing.T) {
			m := newMonitor(t, Config{})
			c := &counting{}
			p := watch(t, m, nil, c)
			for range 100 {
				if tt.heard {
					p.Touch()
				}
				if tt.sent {
					p.Sent()
				}
				time.Sleep(6 * time.Second)
			}
			if pinged := c.pings.Load() > 1; pinged != tt.pinged { // the first may come early
				t.Errorf("%s: %d pings in 10 minutes", tt.name, c.pings.Load())
			}
			if n := m.Stats().Suppressed; n == 0 && !tt.pinged {
				t.Errorf("%s: nothing suppressed", tt.name)
			}
		})
	}
}

func TestPeersMayHaveTimesOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		start := time.Now()
		for _, o := range []Options{
			{Interval: time.Second, Timeout: 250 * time.Millisecond},
			{Interval: time.Minute, Timeout: time.Second},
			{Interval: time.Hour},
			{},
		} {
			watch(t, m, &o, silent())
		}
		for _, tt := range []struct {
			at   time.Duration
			left int
		}{{1350 * time.Millisecond, 3}, {36 * time.Second, 2}, {62 * time.Second, 1}, {time.Hour + 11*time.Second, 0}} {
			time.Sleep(tt.at - time.Since(start))
			if n := m.Stats().Watched; n != tt.left {
				t.Errorf("after %v %d peers are left, want %d", tt.at, n, tt.left)
			}
		}
		if len(m.classes) != 0 {
			t.Errorf("%d classes are left", len(m.classes))
		}
	})
}

func TestProbeAsksNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		good, bad := &counting{}, watch(t, m, nil, silent())
		p := watch(t, m, nil, good)
		time.Sleep(2 * time.Second)
		p.Touch()
		p.Sent()
		p.Probe()
		bad.Probe()
		bad.Probe() // one is enough
		synctest.Wait()
		if n := good.pings.Load(); n != 1 {
			t.Errorf("%d pings", n)
		}
		time.Sleep(timeout + 2*tick)
		if _, dead := p.Verdict(); dead {
			t.Error("the peer that answered is dead")
		}
		if v, dead := bad.Verdict(); !dead || v.Probes != 1 {
			t.Errorf("%+v, %v", v, dead)
		}
		p.Stop()
		p.Probe() // does nothing
	})
}

func TestMaxAgeEndsConnectionsNotAllAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{MaxAge: time.Hour})
		for range 100 {
			watch(t, m, nil, &counting{})
		}
		time.Sleep(54 * time.Minute)
		if n := m.Stats().Watched; n != 100 {
			t.Errorf("%d of 100 are left after 54 minutes", n)
		}
		time.Sleep(6 * time.Minute)
		if n := m.Stats().Watched; n < 20 || n > 80 {
			t.Errorf("%d of 100 are left after an hour", n)
		}
		time.Sleep(6*time.Minute + 10*time.Second)
		if s := m.Stats(); s.Watched != 0 || s.Dead[TooOld] != 100 {
			t.Errorf("%+v", s)
		}
	})
}

func TestAPeerThatFloodsUsWithPingsIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{MaxPings: 20})
		flood, calm := watch(t, m, nil, &counting{}), watch(t, m, nil, &counting{})
		for range 5 * 60 {
			calm.Pinged()
			time.Sleep(2 * time.Second) // 12 or 13 an interval
		}
		answered := 0
		for range 1000 {
			if flood.Pinged() {
				answered++
			}
		}
		if answered > 20 {
			t.Errorf("%d of 1000 pings are answered", answered)
		}
		time.Sleep(interval)
		if v, dead := flood.Verdict(); !dead || v.Reason != PingFlood {
			t.Errorf("%+v, %v", v, dead)
		}
		if v, dead := calm.Verdict(); dead {
			t.Errorf("the calm peer: %+v", v)
		}
	})
}

// Ten thousand peers come within a second, and are not pinged within a second.
func TestProbesAreSpreadByConstruction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const peers = 10_000
		m := newMonitor(t, Config{})
		for i := range peers {
			watch(t, m, nil, &counting{})
			if i%100 == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		last, most := 0, 0
		for second := range 100 {
			time.Sleep(time.Second)
			n := m.Stats().Probes
			if second > 1 {
				most = max(most, n-last)
			}
			last = n
		}
		if mean := peers / 25; most > mean*11/10 {
			t.Errorf("up to %d probes in a second, the mean is %d", most, mean)
		}
		if last < peers*3 {
			t.Errorf("only %d probes of %d peers in 100 s", last, peers)
		}
	})
}

func TestAllPeersFreezeAtOnceAndAllAreFoundInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const peers = 10_000
		var frozen atomic.Bool
		var closes atomic.Int32
		m := newMonitor(t, Config{})
		c := Funcs{
			PingFunc: func(ctx context.Context) error {
				if frozen.Load() {
					<-ctx.Done()
					return ctx.Err()
				}
				return nil
			},
			CloseFunc: func() error { closes.Add(1); return nil },
		}
		for range peers {
			watch(t, m, nil, c)
		}
		time.Sleep(40 * time.Second)
		frozen.Store(true)
		time.Sleep(interval + timeout + tick)
		synctest.Wait()
		if s := m.Stats(); s.Watched != 0 || s.Dead[NoAnswer] != peers || closes.Load() != peers {
			t.Errorf("%+v, %d closed", s, closes.Load())
		}
	})
}

func TestSweepVisitsAllOverTheGivenTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		var peers []*Peer
		for i := range 100 {
			peers = append(peers, watch(t, m, &Options{Value: i}, &counting{}))
		}
		start := time.Now()
		seen := map[any]time.Duration{}
		err := m.Sweep(t.Context(), 100*time.Second, func(p *Peer) {
			seen[p.Value] = time.Since(start)
			if p != peers[7] {
				peers[7].Stop()
			}
		})
		if err != nil || len(seen) < 99 {
			t.Errorf("%v, %d visited", err, len(seen))
		}
		early := 0
		for _, at := range seen {
			if at < 50*time.Second {
				early++
			}
		}
		if early < 48 || early > 52 || time.Since(start) != 99*time.Second {
			t.Errorf("%d of 100 in the first half, all within %v", early, time.Since(start))
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("enough")
		visited := 0
		err = m.Sweep(ctx, time.Hour, func(*Peer) {
			if visited++; visited == 3 {
				cancel(cause)
			}
		})
		if err != cause || visited != 3 {
			t.Errorf("%v after %d visits", err, visited)
		}
	})
}

// A day in the life of 200 peers, some of which die.
func TestADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		const peers = 200
		hours := 24
		if !verify.On() {
			hours = 1
		}
		var die [peers]atomic.Bool
		for i := range peers {
			good := healthy(time.Duration(i) * time.Millisecond)
			watch(t, m, nil, Funcs{
				PingFunc: func(ctx context.Context) error {
					if die[i].Load() {
						<-ctx.Done()
						return ctx.Err()
					}
					return good.Ping(ctx)
				},
				CloseFunc: func() error { return nil },
			})
		}
		for hour := range hours {
			time.Sleep(time.Hour)
			if n := m.Stats().Watched; n != peers-hour {
				t.Fatalf("hour %d: %d watched, want %d", hour, n, peers-hour)
			}
			die[hour].Store(true)
		}
		time.Sleep(time.Minute)
		if s := m.Stats(); s.Watched != peers-hours || s.Dead[NoAnswer] != hours || len(s.Dead) != 1 || s.Stalls != 0 || s.Wakes != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Everything at once, from many goroutines: exactly one verdict for each peer that
// was not stopped in time, and none for the others.
func TestRandomActions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var verdicts sync.Map
		m := newMonitor(t, Config{Interval: time.Second, OnDead: func(p *Peer, v Verdict) {
			if _, again := verdicts.LoadOrStore(p, v); again {
				t.Errorf("a second verdict: %+v", v)
			}
		}})
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(i), 1))
				for range 50 {
					c := Conn(&counting{})
					if rnd.IntN(2) == 0 {
						c = silent()
					}
					p, err := m.NewPeer(&Options{Interval: time.Duration(1+rnd.IntN(3)) * time.Second})
					if err != nil {
						t.Error(err)
						return
					}
					if p.Watch(c) != nil {
						t.Error("cannot watch")
					}
					for range rnd.IntN(20) {
						switch rnd.IntN(7) {
						case 0:
							p.Touch()
						case 1:
							p.Sent()
						case 2:
							p.Probe()
						case 3:
							p.Idle()
							m.Stats()
						case 4:
							for range m.Peers() {
								break
							}
						default:
							time.Sleep(time.Duration(rnd.IntN(400)) * time.Millisecond)
						}
					}
					p.Stop()
					_, dead := p.Verdict()
					time.Sleep(time.Millisecond)
					if _, told := verdicts.Load(p); told != dead {
						t.Errorf("dead %v, told %v", dead, told)
					}
				}
			})
		}
		wg.Wait()
		if s := m.Stats(); s.Watched != 0 || s.Dead[NoAnswer] == 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestTouchAllocatesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		p := watch(t, m, nil, &counting{})
		if n := testing.AllocsPerRun(100, func() { p.Touch(); p.Sent() }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
	if size := unsafe.Sizeof(Peer{}); size > 320 {
		t.Errorf("a peer takes %d bytes", size)
	}
}
