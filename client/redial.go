package client

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/heartbeat"
)

const (
	// nudgeSpread spreads the dials that a nudge brings forward: what nudges one client, a
	// network that is back, nudges its neighbours as well.
	nudgeSpread = 100 * time.Millisecond

	// nudgeEvery is the shortest time between two dials that were brought forward, so that
	// whoever nudges all the time makes no hot loop; and how old a dial must be for a nudge
	// to mean another.
	nudgeEvery = time.Second
)

// redial is one run of a loop. Its fields belong to the goroutine that runs it; during a
// session pace is guarded by the session's mutex.
type redial struct {
	*sessions
	monitor *heartbeat.Monitor // nil without heartbeat

	endpoints []*endpoint
	out       []*endpoint // those whose answer was final, until there has been a session
	round     []*endpoint // those to be tried before the next wait
	pace      backoff.Loop

	attempt, number int  // as in Dial and Session
	refresh         bool // as in Dial

	failures int // as in pace, for the window
	everUp   bool
	window   time.Duration // of the last wait

	forward time.Time // of the last dial that was brought forward
}

// An endpoint is one of the servers.
type endpoint struct {
	url   string
	until time.Time // not to be dialled before, as it said itself
}

// all returns the loop.
func (l *sessions) all(ctx context.Context) iter.Seq2[*Session, error] {
	return func(yield func(*Session, error) bool) {
		r := &redial{sessions: l, pace: backoff.Loop{Policy: l.Backoff, First: l.First, Stable: l.Stable}}
		for _, u := range l.urls {
			r.endpoints = append(r.endpoints, &endpoint{url: u})
		}
		r.newRound(nil)
		if l.Heartbeat.Interval >= 0 {
			m, err := heartbeat.New(l.Heartbeat)
			if err != nil {
				yield(nil, err) // cannot be: it was checked
				return
			}
			r.monitor = m
			defer m.Close()
		}
		if last := r.run(ctx, yield); last != nil {
			yield(nil, last)
		}
	}
}

// run dials, yields and waits. It returns the last error, or nil if the loop was left.
func (r *redial) run(ctx context.Context, yield func(*Session, error) bool) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e := r.next()
		s, err := r.dial(ctx, e)
		var at time.Time
		if err != nil {
			var failed *DialError
			if !errors.As(err, &failed) || ctx.Err() != nil {
				r.Trace.dialDone(redact(e.url), r.attempt, context.Cause(ctx))
				return context.Cause(ctx)
			}
			at = r.failed(ctx, e, failed)
			r.Trace.dialDone(failed.URL, failed.Attempt, failed)
			if failed.Final {
				return failed
			}
			if !yield(nil, failed) {
				return nil
			}
		} else {
			var last error
			if at, last = r.serve(ctx, e, s, yield); last != nil || at.IsZero() {
				return last
			}
		}
		if err := r.wait(ctx, at); err != nil {
			return err
		}
	}
}

// failed decides what a failed attempt means, and returns when to make the next.
func (r *redial) failed(ctx context.Context, e *endpoint, err *DialError) time.Time {
	now := time.Now()
	nudged := errors.Is(err.Err, errNudged) || errors.Is(err.Err, errWoke)
	verdict := Retry
	if !nudged {
		err.everUp = r.everUp
		verdict = r.Decide(err)
	}
	switch {
	case verdict == Refresh && r.Prepare != nil && !err.refreshed:
		r.refresh = true
	case verdict == Final && err.Status != 0 && len(r.endpoints) > 1:
		r.endpoints = slices.DeleteFunc(r.endpoints, func(other *endpoint) bool { return other == e })
		r.out = append(r.out, e)
	case verdict != Retry:
		err.Final = true
		r.log(ctx, slog.LevelError, "websocket: dial failed for good", err.attrs()...)
		return now
	}
	if err.retryAfter > 0 {
		e.until = now.Add(r.Backoff.After(0, err.retryAfter))
	}
	at := now
	switch {
	case nudged:
		r.down(0)
		r.newRound(nil)
		at = r.sooner(now, nudgeSpread)
		r.forward = at
	case err.ours || !r.anyNow(r.round, now):
		// An attempt that failed before the server was asked would do so with any other.
		at = now.Add(r.down(0))
		r.newRound(nil)
	}
	at = r.notBefore(at)
	err.Wait = at.Sub(now)
	r.log(ctx, slog.LevelWarn, "websocket: dial failed", err.attrs()...)
	return at
}

// serve yields a session and returns when to dial again, or the last error. Neither means
// that the loop was left.
func (r *redial) serve(ctx context.Context, e *endpoint, s *Session, yield func(*Session, error) bool) (time.Time, error) {
	r.number++
	s.Number = r.number
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.workers.Add(1)
	context.AfterFunc(s.ctx, func() {
		defer s.workers.Done()
		s.raw.Close() // whatever context the body reads with
	})
	done := false
	defer func() {
		if !done {
			s.release(false) // the body, or a callback, has panicked or called runtime.Goexit
		}
	}()
	r.Trace.dialDone(s.URL, s.Attempt, nil)
	s.up = r.up
	if !r.needReady {
		s.since = time.Now()
		r.up()
	}
	if s.peer != nil {
		s.peer.Watch(watched{s})
	}
	if r.nudge != nil {
		s.workers.Add(1)
		go func() {
			defer s.workers.Done()
			select {
			case <-r.nudge:
				s.cancel(errNudged)
			case <-s.ctx.Done():
			}
		}()
	}
	r.Trace.up(s)
	r.log(ctx, slog.LevelInfo, "websocket: connected",
		slog.String("url", s.URL), slog.Int("session", s.Number), slog.Int("attempt", s.Attempt))

	goOn := yield(s, nil)
	s.mu.Lock()
	politely := s.err == nil
	s.mu.Unlock()
	err := s.end()
	s.release(politely)
	done = true
	if !s.since.IsZero() {
		r.attempt = 0
		r.endpoints, r.out = append(r.endpoints, r.out...), nil
	}
	now := time.Now()
	var lasted time.Duration
	if !s.since.IsZero() {
		lasted = now.Sub(s.since)
	}
	if !goOn || ctx.Err() != nil {
		cause := context.Cause(ctx)
		r.Trace.down(s, cause, 0)
		r.log(ctx, slog.LevelInfo, "websocket: closed", s.attrs(lasted, nil)...)
		if !goOn {
			return time.Time{}, nil
		}
		return time.Time{}, cause
	}

	stable := !s.since.IsZero() && lasted >= r.stable()
	verdict := Retry
	if err != errNudged {
		verdict = r.Decide(err)
	}
	taken := r.needReady && !s.since.IsZero() // the server has taken the credentials, and ended the session later
	switch {
	case verdict == Refresh && r.Prepare != nil && (stable || taken || !s.refresh):
		r.refresh = true
	case verdict != Retry:
		r.Trace.down(s, err, 0)
		last := &EndError{URL: s.URL, Err: err}
		r.log(ctx, slog.LevelError, "websocket: session ended for good", s.attrs(lasted, err)...)
		return time.Time{}, last
	}
	if stable {
		r.failures = 0
	}
	wait := r.down(s.hint)
	at := now.Add(wait)
	r.newRound(e)
	// After 4401 the server lives, and no other is about to be fallen upon by all its
	// clients, which is what First is for; and a user waits who has to log in again.
	soon := verdict == Refresh && s.hint <= 0 && (stable || taken && !s.refresh)
	if err == errNudged || soon {
		at = r.sooner(now, nudgeSpread)
		r.forward = at
	}
	at = r.notBefore(at)
	r.Trace.down(s, err, at.Sub(now))
	level := slog.LevelWarn
	if s.hint > 0 || err == errNudged {
		level = slog.LevelInfo // as it should be
	}
	r.log(ctx, level, "websocket: connection lost", append(s.attrs(lasted, err), slog.Duration("wait", at.Sub(now).Round(time.Millisecond)))...)
	return at, nil
}

// watched is a session in the eyes of the heartbeat.
type watched struct{ s *Session }

func (w watched) Ping(ctx context.Context) error { return w.s.Conn.Ping(ctx) }

// CloseNow ends the session: cancelling closes what is below the connection, and unlike
// the connection's own CloseNow that never waits.
func (w watched) CloseNow() error {
	v, _ := w.s.peer.Verdict()
	w.s.cancel(&HeartbeatError{v})
	return nil
}

// up tells the pace that there is a session that can be used.
func (r *redial) up() {
	r.pace.Up()
	r.everUp = true
	r.refresh = false
}

// down tells the pace that there is none any more, and returns how long to wait. The
// hint is what the server has asked for, 0 if nothing: then an earlier one goes on to
// count, until there is a session.
func (r *redial) down(hint time.Duration) time.Duration {
	if hint > 0 {
		r.pace.Hint(hint)
	}
	p := r.Backoff
	if r.everUp {
		base := p.Base
		if base <= 0 {
			base = backoff.DefaultBase
		}
		p.Base = max(base, r.first())
	}
	_, r.window = p.Window(r.failures)
	if hint <= 0 { // a goodbye is no failure
		r.failures++
	}
	return r.pace.Down()
}

// first and stable are the effective First and Stable of the pace.
func (r *redial) first() time.Duration {
	if r.First == 0 {
		return backoff.DefaultFirst
	}
	return r.First
}

func (r *redial) stable() time.Duration {
	if r.Stable == 0 {
		return backoff.DefaultStable
	}
	return r.Stable
}

// newRound has all endpoints tried again, last at the end.
func (r *redial) newRound(last *endpoint) {
	r.round = r.round[:0]
	for _, i := range rand.Perm(len(r.endpoints)) {
		if e := r.endpoints[i]; e != last {
			r.round = append(r.round, e)
		}
	}
	if last != nil {
		r.round = append(r.round, last)
	}
}

// next takes the next endpoint out of the round: the first that may be dialled now, or
// else the one that may be soonest, though that should not happen.
func (r *redial) next() *endpoint {
	now := time.Now()
	best := 0
	for i, e := range r.round {
		if !e.until.After(now) {
			best = i
			break
		}
		if e.until.Before(r.round[best].until) {
			best = i
		}
	}
	e := r.round[best]
	r.round = append(r.round[:best:best], r.round[best+1:]...)
	return e
}

// anyNow reports whether one of the endpoints may be dialled now.
func (r *redial) anyNow(endpoints []*endpoint, now time.Time) bool {
	for _, e := range endpoints {
		if !e.until.After(now) {
			return true
		}
	}
	return false
}

// notBefore returns at, or the time from which on one of the endpoints of the round may be
// dialled, if that is later. What a server has asked for holds also for dials that are
// brought forward.
func (r *redial) notBefore(at time.Time) time.Time {
	var first time.Time
	for i, e := range r.round {
		if i == 0 || e.until.Before(first) {
			first = e.until
		}
	}
	if first.After(at) {
		return first
	}
	return at
}

// sooner returns when to make a dial that is brought forward.
func (r *redial) sooner(now time.Time, spread time.Duration) time.Time {
	at := now.Add(rand.N(spread))
	if next := r.forward.Add(nudgeEvery); next.After(at) {
		at = next
	}
	return at
}

// wait waits until at, or less if the machine was suspended meanwhile or a nudge comes.
// The error is the cause of ctx.
func (r *redial) wait(ctx context.Context, at time.Time) error {
	var wake wakeWatch
	wake.away(time.Now(), r.wall())
	var timer *time.Timer
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		left := time.Until(at)
		if left <= 0 {
			return nil
		}
		if timer == nil {
			timer = time.NewTimer(min(left, wakeEvery))
			defer timer.Stop()
		} else {
			timer.Reset(min(left, wakeEvery))
		}
		spread := time.Duration(0)
		select {
		case <-timer.C:
		case <-r.nudge:
			spread = nudgeSpread
		case <-ctx.Done():
		}
		now := time.Now()
		if away := wake.away(now, r.wall()); away > 0 {
			spread = wakeSpread
			for _, e := range r.endpoints { // what servers asked for has been waited for asleep
				e.until = e.until.Add(-away)
			}
		}
		if spread > 0 {
			if sooner := r.notBefore(r.sooner(now, spread)); sooner.Before(at) {
				r.forward = sooner
				r.Trace.cut(at.Sub(sooner))
				at = sooner
			}
		}
	}
}

// watchDial cancels a dial when it has become pointless: the machine was suspended, or a
// nudge comes when it has already taken a while. The function that it returns ends that, and
// waits.
func (r *redial) watchDial(ctx context.Context, cancel context.CancelCauseFunc) (stop func()) {
	quit := make(chan struct{})
	var worker sync.WaitGroup
	worker.Add(1)
	go func() {
		defer worker.Done()
		began := time.Now()
		var wake wakeWatch
		wake.away(began, r.wall())
		ticker := time.NewTicker(wakeEvery)
		defer ticker.Stop()
		for {
			select {
			case <-quit:
				return
			case <-ctx.Done():
				return
			case <-r.nudge:
				if time.Since(began) >= nudgeEvery {
					cancel(errNudged)
				}
			case <-ticker.C:
				if wake.away(time.Now(), r.wall()) > 0 {
					cancel(errWoke)
				}
			}
		}
	}()
	return func() {
		close(quit)
		worker.Wait()
	}
}
