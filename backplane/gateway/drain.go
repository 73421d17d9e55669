package gateway

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/internal/wire"
)

// farewell is how long a Shutdown whose context is done still waits.
const farewell = 100 * time.Millisecond

// prompt is the window of a client that is told when its turn has come: the others' turns
// spread them. hurry is the least for one that is told before, with many others.
const (
	prompt = 100 * time.Millisecond
	hurry  = time.Second
)

// drainWindow returns over how long so many clients come back.
func (g *Gateway) drainWindow(clients int) time.Duration {
	if g.opts.Drain > 0 {
		return g.opts.Drain
	}
	return min(max(time.Duration(clients)*time.Second/200, time.Second), 30*time.Second)
}

// Shutdown drains the gateway: new connections are refused with 503 and a Retry-After,
// and the clients are told one after the other to go to another server, so that they
// come back there spread over Options.Drain and not all at once. It needs most of that
// time if ctx allows it. If ctx has a deadline before, they are told all the sooner, and each
// to wait a random part of the rest. If ctx is cancelled, those not yet told are told at
// once, and each to wait a random part of what is left of the drain, but of a second at least, or
// of the whole drain if that is shorter.
//
// It returns when all connections are closed and nothing of the gateway runs any more.
// When ctx is done those that are left are cut, and context.Cause(ctx) is returned. It
// may be called again, and then waits for the same end.
//
// Have the load balancer stop sending clients here before, and call the http.Server's
// own Shutdown after it: that knows nothing of WebSockets. Then close the Hub.
func (g *Gateway) Shutdown(ctx context.Context) error {
	g.mu.Lock()
	first := !g.draining
	if first {
		g.draining, g.drainSince = true, time.Now()
		g.window = g.drainWindow(len(g.conns))
		if len(g.conns) == 0 {
			close(g.drained)
		}
	}
	since, window := g.drainSince, g.window
	g.mu.Unlock()
	conns := g.list("", true)
	if first {
		g.log.Info("draining", "connections", len(conns), "window", window)
	}

	// Telling them takes most of the window, or of the time that there is.
	over := window
	if deadline, ok := ctx.Deadline(); ok {
		over = max(0, min(window, time.Until(deadline)/5*4))
	}
	start := time.Now()
	for i, c := range conns {
		due := start.Add(time.Duration(float64(over) * float64(i) / float64(len(conns))))
		rest := max(window-over, prompt)
		if backoff.Sleep(ctx, time.Until(due)) != nil { // all the others now
			rest = max(rest, window-time.Since(since), min(window, hurry))
		}
		c.dismiss(wire.CloseRestart, "drain", &wire.Frame{Type: wire.Goodbye, Reason: "drain", Window: rest.Milliseconds()})
	}
	var err error
	cut := 0
	select {
	case <-g.drained:
	case <-ctx.Done():
		select { // a moment for what is just being written
		case <-g.drained:
		case <-time.After(farewell):
			err = context.Cause(ctx)
		}
		rest := g.list("", true)
		cut = len(rest)
		for _, c := range rest {
			c.kill(err)
		}
		g.cancel() // whoever waits for Authorize
		<-g.drained
	}
	g.cancel()
	g.pool.stop()
	g.wg.Wait()
	g.monitor.Close()
	if first {
		g.log.Info("drained", "took", time.Since(since).Round(time.Millisecond), "cut", cut)
	}
	return err
}

// Shed sends n connections away, chosen at random, or all if there are not so many. Their
// clients come back at once, each to the server that the load balancer chooses now. They are
// told one after the other, as in a Shutdown: over Options.Drain, or if that is zero, over a
// second for each 200 of them, between 1 s and 30 s. Use it where one server has many more
// connections than another, as after a rolling restart.
//
// It returns when all of them were told, and how many: connections that end meanwhile by
// themselves are not counted. If ctx is done before, it returns its cause and how many were told
// by then. A Shutdown ends it, without an error, and during one it does nothing.
func (g *Gateway) Shed(ctx context.Context, n int) (told int, err error) {
	var conns []*conn
	g.mu.Lock()
	for c := range g.conns {
		if c.known && !g.draining {
			conns = append(conns, c)
		}
	}
	g.mu.Unlock()
	conns = slices.DeleteFunc(conns, func(c *conn) bool { // some are on their way out already
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.closing != 0 || c.ended
	})
	rand.Shuffle(len(conns), func(i, k int) { conns[i], conns[k] = conns[k], conns[i] })
	conns = conns[:min(max(n, 0), len(conns))]
	over := g.drainWindow(len(conns))
	g.log.Info("shedding", "connections", len(conns), "window", over)
	sleep, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(g.ctx, cancel)()
	for i, c := range conns {
		due := time.Duration(min(i, 1)) * over / time.Duration(len(conns))
		if backoff.Sleep(sleep, due) != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			break
		}
		g.mu.Lock()
		draining := g.draining
		g.mu.Unlock()
		if draining { // which looks after the rest
			break
		}
		if c.dismiss(wire.CloseRestart, "rebalance", &wire.Frame{Type: wire.Goodbye, Reason: "rebalance", Window: prompt.Milliseconds()}) {
			told++
		}
	}
	return told, err
}

// janitor ends connections whose grant has expired, and has subscriptions asked about
// again.
func (g *Gateway) janitor() {
	var wg sync.WaitGroup
	defer wg.Wait()
	var asking atomic.Bool
	for backoff.Sleep(g.ctx, time.Second) == nil {
		now := time.Now()
		var due []*sub
		for _, c := range g.list("", true) {
			c.mu.Lock()
			expired := !c.expires.IsZero() && now.After(c.expires)
			for _, s := range c.subs {
				if at := s.checked.Load(); g.opts.Recheck > 0 && at > 0 && now.Unix()-at >= int64(g.opts.Recheck/time.Second) {
					due = append(due, s)
				}
			}
			c.mu.Unlock()
			if expired {
				c.dismiss(wire.CloseUnauthorized, "expired", &wire.Frame{Type: wire.Error, Code: wire.Unauthenticated, Message: "the credentials have expired"})
			}
		}
		// Authorize may take long. What expires does not wait for that.
		if len(due) > 0 && asking.CompareAndSwap(false, true) {
			wg.Go(func() {
				g.recheck(due)
				asking.Store(false)
			})
		}
	}
}

// recheck asks about subscriptions, some at a time.
func (g *Gateway) recheck(due []*sub) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range min(8, len(due)) {
		wg.Go(func() {
			for g.ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(due) {
					return
				}
				if s := due[i]; !s.ended.Load() {
					s.recheck(g.ctx)
				}
			}
		})
	}
	wg.Wait()
}

// recheck asks whether a living subscription is still allowed. The error is that there was
// no answer; then it is asked again in a minute.
func (s *sub) recheck(ctx context.Context) error {
	c := s.c
	_, err := c.g.ask(ctx, Access{Action: Subscribe, User: c.user, Value: c.value, Topic: s.topic, Resume: true})
	if ctx.Err() != nil {
		return context.Cause(ctx) // it may have been in a hurry
	}
	if err == nil {
		s.checked.Store(time.Now().Unix())
		return nil
	}
	if code, message := refusal(err); code != wire.Unavailable {
		c.g.count.revoked.Add(1)
		c.drop(s, code, message)
		return nil
	}
	s.checked.Store(time.Now().Add(min(time.Minute, c.g.opts.Recheck) - c.g.opts.Recheck).Unix())
	return err
}

// Recheck asks Authorize again, now, for each subscription of a user here, and
// ends those that are no longer allowed: call it when permissions were withdrawn. It
// returns when that is done, or the cause of ctx. Any other error is that of Authorize
// where it has said neither yes nor no; these subscriptions live on, and are asked about
// again within a minute, or never if Options.Recheck is negative: then call this again.
func (g *Gateway) Recheck(ctx context.Context, user string) error {
	var mu sync.Mutex // guards errs
	var errs []error
	var wg sync.WaitGroup
	for _, c := range g.list(user, false) {
		c.mu.Lock()
		subs := slices.Clone(c.subs)
		c.mu.Unlock()
		wg.Go(func() { // Authorize may be slow
			for _, s := range subs {
				// Also one that waits: it was asked for with the old permissions.
				if err := s.recheck(ctx); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(errs...)
}
