package heartbeat

import (
	"context"
	"errors"
	"net"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/internal/verify"
)

// Faults that a review found in earlier states of this package, each with what it
// did.

// slowWriter is a connection whose writes take a time.
type slowWriter struct {
	net.Conn
	takes time.Duration
}

func (w slowWriter) Write(b []byte) (int, error) {
	time.Sleep(w.takes)
	return len(b), nil
}

// A write of ours was in flight when a round of probes began: no ping was sent, and
// the peer was dropped for not answering it.
func TestAPingIsSentThoughAWriteIsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		p, err := m.NewPeer(nil)
		if err != nil {
			t.Fatal(err)
		}
		c := p.WrapConn(slowWriter{takes: 20 * time.Millisecond})
		p.reading.Store(true)
		err = p.Watch(Funcs{
			PingFunc: func(ctx context.Context) error {
				p.Touch() // it answers at once
				<-ctx.Done()
				return ctx.Err()
			},
			CloseFunc: func() error { return nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		for start := time.Now(); time.Since(start) < 5*time.Minute; time.Sleep(time.Millisecond) {
			if _, err := c.Write([]byte("x")); err != nil { // nearly always one in flight
				t.Fatal(err)
			}
		}
		if v, dead := p.Verdict(); dead {
			t.Errorf("%+v", v)
		}
	})
}

// The clock jumps by a tick: short writes that a tick fell into were taken for
// progress, and a silent peer was never found while it was written to.
func TestShortWritesAreNoEvidence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		p, err := m.NewPeer(nil)
		if err != nil {
			t.Fatal(err)
		}
		c := p.WrapConn(slowWriter{takes: time.Millisecond})
		p.reading.Store(true)
		if err := p.Watch(silent()); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for time.Since(start) < 10*time.Minute {
			if _, dead := p.Verdict(); dead {
				break
			}
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(37*time.Millisecond + 123*time.Microsecond)
		}
		if took := time.Since(start); took > interval+4*timeout+4*tick {
			t.Errorf("found after %v", took)
		}
	})
}

// A Probe was ignored, also that after a wake-up, while an answered probe waited
// in the queue behind one that was not.
func TestAnAnsweredPeerCanBeAskedAgainAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		dead, good := watch(t, m, nil, silent()), &counting{}
		p := watch(t, m, nil, good)
		time.Sleep(time.Second)
		dead.Probe()
		p.Probe()
		time.Sleep(3 * time.Second)
		before := good.pings.Load()
		p.Probe()
		synctest.Wait()
		if good.pings.Load() == before {
			t.Error("Probe sent nothing")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		s := newStepper(m)
		dead, good := s.add(silent()), &counting{}
		p := s.add(good)
		s.run(time.Second)
		dead.Probe()
		p.Probe()
		s.run(time.Second)
		before := good.pings.Load()
		s.wall = s.wall.Add(8 * time.Hour)
		s.run(25 * tick)
		if good.pings.Load() == before {
			t.Error("a wake-up sent nothing")
		}
	})
}

// What was heard in the same tick, but before a Probe, was taken for its answer.
func TestWhatWasHeardBeforeAProbeIsNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		s := newStepper(m)
		p := s.add(silent())
		s.run(time.Second)
		p.Touch()
		p.Probe()
		s.run(timeout + 3*tick)
		if _, dead := p.Verdict(); !dead {
			t.Error("a silent peer is not found after a Probe")
		}
	})
}

// Somebody else runs before the scheduler after a pause, while that slept: what
// they did bore a time in the future, for as long as the pause had been.
func TestAPauseWhileTheSchedulerSleeps(t *testing.T) {
	for name, act := range map[string]func(s *stepper, p *Peer) *Peer{
		"Probe": func(_ *stepper, p *Peer) *Peer { p.Probe(); return nil },
		"Watch": func(s *stepper, _ *Peer) *Peer { return s.add(silent()) },
		"Sent":  func(_ *stepper, p *Peer) *Peer { p.Sent(); return nil },
		"Touch": func(_ *stepper, p *Peer) *Peer { p.Touch(); return nil },
	} {
		synctest.Test(t, func(t *testing.T) {
			m := newMonitor(t, Config{})
			s := newStepper(m)
			good, bad := s.add(healthy(20*time.Millisecond)), s.add(silent())
			s.run(2 * time.Second)
			m.sleep = 3 * time.Second
			m.anchor.Store(&anchor{time.Now(), s.v, s.v + int64(m.sleep)})
			m.clock.Store(-1)
			time.Sleep(10 * time.Minute) // nobody runs
			newborn := act(s, good)
			s.step(10 * time.Minute)
			m.sleep = tick
			s.run(interval + timeout + time.Second)
			for _, p := range []*Peer{bad, newborn} {
				if p == nil {
					continue
				}
				if _, dead := p.Verdict(); !dead {
					t.Errorf("%s: a silent peer is not found", name)
				}
			}
			s.run(15 * time.Minute)
			if v, dead := good.Verdict(); dead {
				t.Errorf("%s: the healthy peer: %+v", name, v)
			}
		})
	}
}

// A Probe that takes the lock just before the scheduler does, in real time: peers
// were asked at a time after that of the answer.
func TestProbesWhileTheSchedulerSleepsKillNobody(t *testing.T) {
	m := newMonitor(t, Config{Interval: time.Hour, Timeout: minTimeout})
	for range 500 {
		watch(t, m, nil, &counting{})
	}
	rounds := 200
	if !verify.On() {
		rounds = 20
	}
	for range rounds {
		for p := range m.Peers() {
			p.Probe()
		}
		runtime.Gosched()
	}
	if s := m.Stats(); len(s.Dead) > 0 {
		t.Errorf("%+v", s)
	}
}

// Short pauses are no stalls, but neither do they count against anybody.
func TestAShortPauseKillsNobodyEither(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{Interval: time.Second, Timeout: minTimeout})
		s := newStepper(m)
		for range 100 {
			s.add(healthy(20 * time.Millisecond))
		}
		for range 20 {
			s.run(3 * time.Second)
			s.pause(5*tick - 10*time.Millisecond)
		}
		if st := m.Stats(); len(st.Dead) > 0 {
			t.Errorf("%+v", st)
		}
	})
}

// A write that was just beginning when a deadline passed made a verdict of what
// was to be excused.
func TestAWriteThatJustBeganBlocksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		p, err := m.NewPeer(nil)
		if err != nil {
			t.Fatal(err)
		}
		c := p.WrapConn(slowWriter{takes: 20 * time.Millisecond})
		if err := p.Watch(silent()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(24800*time.Millisecond + timeout - 10*time.Millisecond)
		if _, err := c.Write([]byte("x")); err != nil { // over the deadline
			t.Fatal(err)
		}
		if v, dead := p.Verdict(); dead {
			t.Errorf("%+v", v)
		}
		time.Sleep(4 * timeout)
		if v, dead := p.Verdict(); !dead || v.Reason != ReaderStuck {
			t.Errorf("%+v, %v", v, dead)
		}
	})
}

// Pings that wait for ctx kept a goroutine each, for ever.
func TestAnAnsweredPingHasNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		before := runtime.NumGoroutine()
		for range 1000 {
			var p *Peer
			p, err := m.NewPeer(nil)
			if err != nil {
				t.Fatal(err)
			}
			err = p.Watch(Funcs{
				PingFunc: func(ctx context.Context) error {
					p.Touch()
					<-ctx.Done()
					return ctx.Err()
				},
				CloseFunc: func() error { return nil },
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * interval)
		if n := runtime.NumGoroutine() - before; n > 30 {
			t.Errorf("%d goroutines for 1000 idle peers", n)
		}
	})
}

// Wake-ups are paced by ticks, not by how often somebody kicks the scheduler.
func TestKicksDoNotHurryAWakeUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		s := newStepper(m)
		for range 500 {
			s.add(&counting{})
		}
		s.run(time.Second)
		before := m.Stats().Probes
		s.wall = s.wall.Add(time.Hour)
		for range 100 {
			s.step(time.Microsecond)
		}
		if n := m.Stats().Probes - before; n > 60 {
			t.Errorf("%d probes within a tenth of a millisecond", n)
		}
	})
}

// A write that made progress and then stops is blocked after all, and a connection
// given by WrapWriter has small buffers.
func TestAWriteThatStopsMakingProgressIsBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		p, err := m.NewPeer(nil)
		if err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		c := p.WrapConn(stalling{stop: stop, after: time.Now().Add(time.Minute)})
		p.reading.Store(true)
		err = p.Watch(Funcs{
			PingFunc:  silent().PingFunc,
			CloseFunc: func() error { close(stop); return nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := c.Write(make([]byte, 10<<20)); err == nil {
			t.Error("the write succeeds")
		}
		if took := time.Since(start); took < time.Minute || took > time.Minute+interval+timeout+2*tick {
			t.Errorf("the write ends after %v", took)
		}
		synctest.Wait()
		if v, dead := p.Verdict(); !dead || v.Reason != WriteBlocked {
			t.Errorf("%+v, %v", v, dead)
		}
	})
}

// stalling takes a second for a write, and stalls from a time on.
type stalling struct {
	net.Conn
	stop  chan struct{}
	after time.Time
}

func (s stalling) Write(b []byte) (int, error) {
	if time.Now().After(s.after) {
		<-s.stop
		return 0, net.ErrClosed
	}
	time.Sleep(time.Second)
	return len(b), nil
}

// The wall clock is set back, or forward by a little: nothing happens at all.
func TestTheWallClockMayBeSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		s := newStepper(m)
		for range 100 {
			s.add(healthy(200 * time.Millisecond))
		}
		for _, jump := range []time.Duration{-24 * time.Hour, -time.Second, time.Second} {
			s.wall = s.wall.Add(jump)
			s.run(2 * interval)
		}
		if st := m.Stats(); len(st.Dead) > 0 || st.Wakes > 0 || st.Stalls > 0 {
			t.Errorf("%+v", st)
		}
	})
}

// A ping that was to be cancelled ended by itself, and the one that followed it was
// cancelled in its place.
func TestOnlyThePingThatWasToBeCancelledIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		s := newStepper(m)
		pings := make(chan context.Context, 4)
		release := make(chan struct{})
		p := s.add(Funcs{
			PingFunc: func(ctx context.Context) error {
				pings <- ctx
				select {
				case <-release:
					return errors.New("no answer, and no life")
				case <-ctx.Done():
					return ctx.Err()
				}
			},
			CloseFunc: func() error { return nil },
		})
		p.wrapped.Store(true)
		p.Probe()
		first := <-pings
		p.writing.Add(1) // so that the first may not be cancelled now
		s.run(tick)
		p.Touch()
		p.Probe() // a new round, with a ping of its own when the first is through
		s.run(tick)
		release <- struct{}{}
		second := <-pings
		p.writing.Add(-1)
		s.run(3 * tick)
		if first.Err() == nil {
			t.Error("the first ping's context is not ended")
		}
		if second.Err() != nil {
			t.Error("the second ping was cancelled")
		}
	})
}
