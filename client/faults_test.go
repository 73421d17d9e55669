package client_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/backplane/gateway"
	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/internal/memnet"
	"github.com/holdfast-ws/holdfast/internal/wire"
)

// Faults that a review has found, each with what it did.

// An ID was used for two topics, which is allowed, and the answer for one was taken for that
// of the other: a message was Committed that was not stored.
func TestOneIDForTwoTopics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := false
		o := gateway.Options{Limits: gateway.Limits{Publishes: 1}}
		o.Authorize = func(ctx context.Context, a gateway.Access) (gateway.Grant, error) {
			if a.Action == gateway.Publish && a.Topic == "a" && !slow {
				slow = true
				time.Sleep(2 * time.Second)
			}
			return gateway.Grant{User: "u"}, nil
		}
		s := newSite(t, o, nil, nil, "a")
		c, reader := s.client("a"), s.client("a")
		b := subscribe(t, reader, "b", nil)
		ready(t, b)
		for i := range 3 { // burst of 4, the 4th token is for A
			if _, err := c.Publish(t.Context(), "x", client.Message{Data: fmt.Append(nil, i)}); err != nil {
				t.Fatal(err)
			}
		}
		pa, _ := c.Send(t.Context(), "a", client.Message{ID: "event-1", Data: []byte(`"A"`)})
		pb, _ := c.Send(t.Context(), "b", client.Message{ID: "event-1", Data: []byte(`"B"`)})
		if _, err := pa.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		rb, eb := pb.Wait(t.Context())
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		_, err := b.Next(ctx)
		if err != nil && eb == nil {
			t.Errorf("b was answered %v, and is not stored", rb.Outcome)
		}
	})
}

// All subscribes were written at once, and the server closed the connection because they
// were far too many frames; and again, after each reconnect.
func TestManySubscriptionsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, gateway.Options{Limits: gateway.Limits{Topics: 1000}}, nil, nil, "a")
		c := s.client("a")
		var subs []*client.Subscription
		for i := range 600 {
			subs = append(subs, subscribe(t, c, fmt.Sprint("t", i), nil))
		}
		time.Sleep(10 * time.Minute)
		n := 0
		for _, s := range subs {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Millisecond, cancel)
			if s.Ready(ctx) == nil {
				n++
			}
			cancel()
		}
		if n < 600 || c.Stats().Sessions > 1 {
			t.Error("no")
		}
	})
}

// The welcome took away the deadline that the goodbye had set, and the session, in which
// nothing is written any more, lasted for ever.
func TestAGoodbyeBeforeTheWelcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.expect(wire.Hello)
			if p.n == 1 {
				p.send(wire.Frame{Type: wire.Goodbye})
			}
			p.send(wire.Frame{Type: wire.Welcome, Version: 1, Limits: limits})
			for {
				if f := p.next(); f.Type == wire.Publish {
					p.send(ack(f.ID, 1))
				}
			}
		})
		c := g.client()
		pend := send(t, c, "a", "1")
		outcome(pend)
		time.Sleep(time.Hour)
		if g.connections() != 2 {
			t.Error("stuck in a session that is nothing for an hour")
		}
	})
}

// A session whose reader was done waited for its writer, which waited for the server.
func TestASessionEndsAlthoughItsWriterIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		g := newFake(t, func(p *peer) {
			p.welcome()
			if p.n == 1 {
				time.Sleep(time.Second)
				p.raw("garbage")
				<-stop
				return
			}
			p.drain()
		})
		g.network.Set(memnet.Settings{Latency: time.Millisecond, Buffer: 400})
		c := g.client(func(o *client.Options) { o.Heartbeat.Interval = -1 })
		wait(t, c, client.Ready)
		send(t, c, "a", `"`+strings.Repeat("x", 20000)+`"`)
		time.Sleep(time.Hour)
		if g.connections() < 2 {
			t.Error("an hour after garbage the session is still not over")
		}
		close(stop)
	})
}

// What was closed before it could be subscribed was kept.
func TestSubscribingAndClosingWithoutAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {})
		g.network.Set(memnet.Settings{Refuse: true})
		c := g.client()
		heap := func() int64 {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		before := heap()
		for range 100_000 {
			s, err := c.Subscribe("a", nil)
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
		}
		after := heap()
		if after-before > 1<<20 {
			t.Error("memory grows")
		}
		runtime.KeepAlive(c)
	})
}

// What the server said of an older subscription, before it had the new one, ended that.
func TestTheEndOfAnOlderSubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			p.accept(at(1))
			f := p.next()
			for f.Type != wire.Subscribe {
				f = p.next()
			}
			// what crossed with it
			p.send(wire.Frame{Type: wire.Unsubscribed, Topic: "a", Code: wire.Forbidden})
			p.send(subscribed(f, at(1)), entries("a", 2, 3))
			p.drain()
		})
		c := g.client()
		s := subscribe(t, c, "a", nil)
		ready(t, s)
		s.Close()
		s = subscribe(t, c, "a", &client.SubscribeOptions{From: at(1)})
		gets(t, s, "2 3")
	})
}

// Ephemeral messages beyond the rate were sent on and on, until the server closed.
func TestTooManyEphemeralMessagesCostNoConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, gateway.Options{}, nil, nil, "a")
		c := s.client("a")
		wait(t, c, client.Ready)
		for range 6000 {
			c.PublishEphemeral("a", []byte("1"))
			time.Sleep(10 * time.Millisecond)
		}
		if c.Stats().Sessions > 1 {
			t.Error("connections were lost for it")
		}
	})
}

// An unsubscribe that was refused for its rate was forgotten, and the topic kept its place.
func TestAnUnsubscribeThatIsTooFast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, gateway.Options{Limits: gateway.Limits{Topics: 1, Frames: 1}}, nil, nil, "a")
		c := s.client("a")
		a := subscribe(t, c, "a", nil)
		ready(t, a)
		for range 3 {
			c.PublishEphemeral("x", []byte("1"))
		}
		time.Sleep(100 * time.Millisecond)
		a.Close()
		time.Sleep(10 * time.Minute)
		b := subscribe(t, c, "b", nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := b.Ready(ctx); err != nil {
			t.Errorf("ten minutes after the only other one was closed: %v; server has %d", err, s.nodes["a"].gw.Stats().Subscriptions)
		}
	})
}

// Each complaint and each goodbye of the server was a line in the log.
func TestAServerDoesNotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		g := newFake(t, func(p *peer) {
			p.welcome()
			for range 5000 {
				p.send(wire.Frame{Type: wire.Error, Code: "x", Message: strings.Repeat("m", 256)}, wire.Frame{Type: wire.Goodbye})
			}
			p.drain()
		})
		c := g.client(func(o *client.Options) { o.Logger = slog.New(slog.NewTextHandler(&out, nil)) })
		wait(t, c, client.Ready)
		time.Sleep(4 * time.Second)
		c.Close(t.Context())
		if n := strings.Count(out.String(), "\n"); n > 100 {
			t.Errorf("%d lines, %d KiB from one session in 4 s", n, out.Len()>>10)
		}
	})
}

// Close returned nil although messages were left, if that was not because of its context.
func TestCloseTellsOfAFinalError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			p.expect(wire.Publish)
			time.Sleep(time.Second)
			p.Close(4403, "")
		})
		c := g.client()
		p := send(t, c, "a", "1")
		time.Sleep(100 * time.Millisecond)
		if err := c.Close(context.Background()); err == nil {
			t.Errorf("Close says nil; the message: %s", outcome(p))
		}
	})
}

// A second Close that gave up had the first one return nil.
func TestTwoClosesBothTellWhatWasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) { p.welcome(); p.drain() })
		c := g.client()
		p := send(t, c, "a", "1")
		wait(t, c, client.Ready)
		done := make(chan error)
		go func() { done <- c.Close(context.Background()) }()
		time.Sleep(time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err2 := c.Close(ctx)
		if err := <-done; err == nil {
			t.Errorf("first Close: %v, second: %v; the message: %s", err, err2, outcome(p))
		}
	})
}
