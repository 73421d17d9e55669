package client_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/heartbeat"
	"github.com/holdfast-ws/holdfast/internal/memnet"
	"github.com/holdfast-ws/holdfast/internal/wire"
)

func TestReadyMeansWelcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.expect(wire.Hello)
			if p.n < 3 {
				p.drain() // never welcomes
			}
			time.Sleep(5 * time.Second)
			p.send(wire.Frame{Type: wire.Welcome, Version: 1, Limits: limits})
			p.drain()
		})
		began := time.Now()
		c := g.client()
		time.Sleep(4 * time.Second)
		if c.State() != client.Connecting || g.connections() != 1 {
			t.Errorf("%v after %d connections without a welcome", c.State(), g.connections())
		}
		time.Sleep(time.Until(began.Add(10*time.Second + 100*time.Millisecond)))
		synctest.Wait()
		if err := c.Err(); err == nil || !strings.Contains(err.Error(), "does not welcome") {
			t.Errorf("after the server was silent for 10 s: %v", err)
		}
		wait(t, c, client.Ready)
		if g.connections() != 3 || c.Err() != nil {
			t.Errorf("ready after %d connections, %v", g.connections(), c.Err())
		}
	})
}

// A server that accepts and never welcomes is dialled more and more seldom: a session
// without a welcome is a failed attempt.
func TestAServerThatNeverWelcomesIsNoHotLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) { p.expect(wire.Hello) }) // and closes
		g.client()
		time.Sleep(time.Hour)
		if n := g.connections(); n < 100 || n > 500 { // 240 with a mean of 15 s
			t.Errorf("%d dials in an hour", n)
		}
	})
}

// It counts as such also if it is only noticed after as long as a stable session lasts.
func TestAServerThatIsSilentIsNoHotLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) { p.drain() })
		g.client()
		time.Sleep(2 * time.Hour)
		if n := g.connections(); n < 230 || n > 360 { // 288 with 10 s each and a mean of 15 s between them
			t.Errorf("%d dials in two hours", n)
		}
	})
}

func TestCloseOfAQuietClientIsQuick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) { p.welcome(); p.drain() })
		c := g.client()
		wait(t, c, client.Ready)
		began := time.Now()
		if err := c.Close(context.Background()); err != nil || time.Since(began) > 10*time.Millisecond {
			t.Errorf("%v, %v", time.Since(began), err)
		}
		began = time.Now()
		if err := g.client().Close(context.Background()); err != nil || time.Since(began) != 0 {
			t.Errorf("without a connection: %v, %v", time.Since(began), err)
		}
	})
}

func TestAServerThatSpeaksSomethingElse(t *testing.T) {
	for name, handle := range map[string]func(p *peer){
		"another version": func(p *peer) {
			p.expect(wire.Hello)
			p.send(wire.Frame{Type: wire.Welcome, Version: 2})
			p.drain()
		},
		"garbage":   func(p *peer) { p.expect(wire.Hello); p.raw(`{"t":`); p.drain() },
		"no object": func(p *peer) { p.expect(wire.Hello); p.raw(`[]`); p.drain() },
		"binary": func(p *peer) {
			p.expect(wire.Hello)
			p.Write(context.Background(), websocket.MessageBinary, []byte(`{"t":"welcome","v":1}`))
			p.drain()
		},
		"late garbage":   func(p *peer) { p.welcome(); p.raw("\x00\n" + strings.Repeat("x", 1000)); p.drain() },
		"a bad position": func(p *peer) { p.welcome(); p.raw(`{"t":"ack","id":"1","pos":"!"}`); p.drain() },
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newFake(t, handle)
				c := g.client()
				time.Sleep(time.Hour)
				synctest.Wait()
				if n := g.connections(); n < 100 || n > 500 {
					t.Errorf("%d connections in an hour", n)
				}
				s := c.Stats()
				if name != "another version" && (s.Garbage < 100 || int(s.Garbage) > g.connections()) {
					t.Errorf("%d times garbage in %d connections", s.Garbage, g.connections())
				}
				err := c.Err()
				if err == nil || len(err.Error()) > 250 || strings.ContainsAny(err.Error(), "\x00\n") || strings.Contains(err.Error(), strings.Repeat("x", 65)) {
					t.Errorf("error %q", err)
				}
			})
		})
	}
}

func TestAServerWithoutTheSubprotocol(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) { p.drain() })
		g.speaks = nil
		c := g.client()
		time.Sleep(time.Minute)
		if err := c.Err(); err == nil || !strings.Contains(err.Error(), "does not speak holdfast.v1") || c.State() != client.Connecting {
			t.Errorf("%v, %v", c.State(), err)
		}
	})
}

// What is logged is on one line each, and has nothing of what messages contain.
func TestTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder // written by one goroutine at a time: the loop's
		g := newFake(t, func(p *peer) {
			p.expect(wire.Hello)
			p.send(wire.Frame{Type: wire.Welcome, Version: 1, Conn: "one\ntwo", Node: strings.Repeat("n", 200)})
			p.accept(at(0))
			e := entries("a", 1, 1)
			e.Entries[0].Data = []byte(`"S3CR3T"`)
			p.send(e, wire.Frame{Type: wire.Error, Code: "x\ny", Message: "m\x1b[31m" + strings.Repeat("m", 1000)})
			p.send(wire.Frame{Type: wire.Goodbye, Reason: "r\nr", Window: 1 << 62})
			p.expect(wire.Publish)
		})
		c := g.client(func(o *client.Options) { o.Logger = slog.New(slog.NewTextHandler(&out, nil)) })
		s := subscribe(t, c, "a", nil)
		send(t, c, "a", `"S3CR3T"`)
		gets(t, s, `"S3CR3T"`)
		time.Sleep(100 * time.Millisecond) // the next connection is drawn from half an hour
		synctest.Wait()
		text := out.String()
		for _, want := range []string{"client: welcome", "client: the server complains", "client: goodbye"} {
			if strings.Count(text, want) != 1 {
				t.Errorf("%q is not there once", want)
			}
		}
		for _, bad := range []string{"S3CR3T", "\x1b", strings.Repeat("m", 257)} {
			if strings.Contains(text, bad) {
				t.Errorf("%q is there", bad)
			}
		}
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "time=") {
				t.Errorf("a line that was made up: %q", line)
			}
		}
		if t.Failed() {
			t.Log(text)
		}
	})
}

func TestWhatAClientDoesNotKnowIsIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.expect(wire.Hello)
			p.raw(`{"t":"brand-new","v":"x"}`)
			p.raw(`{"t":"entries","topic":"a","entries":[]}`) // before the welcome
			p.raw(`{"new":[1,{}],"t":"welcome","v":1,"conn":"1","limits":{"pending":3,"new":1}}`)
			p.raw(`{"t":"brand-new"}`)
			p.raw(`{"t":"welcome","v":1,"limits":{"pending":1}}`) // again
			p.raw(`{"t":"pong"}`)
			p.raw(`{"t":"ok","ref":1}`)
			p.raw(`{"t":"ack","id":"of somebody else"}`)
			p.raw(`{"t":"nack","id":"of somebody else","code":"unavailable"}`)
			time.Sleep(6 * time.Second)
			p.send(entries("unknown", 1, 1))
			p.expect(wire.Unsubscribe) // it seems to believe that we want that
			p.raw(`{"t":"error","code":"forbidden","message":"an ephemeral\nmessage","topic":"a"}`)
			p.drain()
		})
		c := g.client()
		time.Sleep(time.Minute)
		if c.State() != client.Ready || g.connections() != 1 {
			t.Errorf("%v after %d connections: %v", c.State(), g.connections(), c.Err())
		}
		if s := c.Stats(); s.Complaints != 1 || s.Garbage != 0 || s.Sessions != 1 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestABeatIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answered atomic.Int32
		g := newFake(t, func(p *peer) {
			p.welcome()
			for {
				p.send(wire.Frame{Type: wire.Beat})
				p.expect(wire.Beat)
				answered.Add(1)
				time.Sleep(time.Second)
			}
		})
		g.client()
		time.Sleep(9*time.Second + 500*time.Millisecond)
		if n := answered.Load(); n != 10 {
			t.Errorf("%d beats answered in 9.5 s", n)
		}
	})
}

// A server that is about to close answers what it has got, and gets nothing new.
func TestGoodbye(t *testing.T) {
	for _, closes := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			left := make(chan time.Time, 1)
			back := make(chan time.Time, 1)
			g := newFake(t, func(p *peer) {
				if p.n == 2 {
					back <- time.Now()
					p.welcome()
					f := p.expect(wire.Publish)
					p.send(ack(f.ID, 2))
					p.drain()
				}
				p.welcome()
				first := p.expect(wire.Publish)
				p.send(wire.Frame{Type: wire.Goodbye, Reason: "drain", Window: 100_000})
				time.Sleep(2 * time.Second)
				p.send(ack(first.ID, 1))
				time.Sleep(time.Second)
				if closes {
					left <- time.Now()
					p.Close(1012, "restart")
					return
				}
				go func() { // nothing else may come
					kind, b, err := p.Read(context.Background())
					if err == nil {
						t.Errorf("after the goodbye the client sent %v %s", kind, b)
					}
					left <- time.Now()
				}()
				time.Sleep(time.Minute)
			})
			c := g.client(func(o *client.Options) { o.Backoff.Rand = func(n uint64) uint64 { return n / 2 } })
			one := send(t, c, "a", "1")
			time.Sleep(time.Second)
			two := send(t, c, "a", "2")
			if got := outcome(one) + ", " + outcome(two); got != "committed, committed" {
				t.Error(got)
			}
			if d := (<-back).Sub(<-left); d < 49*time.Second || d > 51*time.Second {
				t.Errorf("came back after %v, half of the window of 100 s was drawn", d)
			}
			if g.connections() != 2 {
				t.Errorf("%d connections", g.connections())
			}
		})
	}
}

func TestFinalClosesEndTheClient(t *testing.T) {
	for _, code := range []websocket.StatusCode{1002, 1003, 1007, 1008, 1009, 4400, 4401, 4403, 4406} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				subscribed := make(chan bool)
				g := newFake(t, func(p *peer) {
					p.welcome()
					p.accept(at(0))
					p.send(entries("a", 1, 2))
					<-subscribed
					p.expect(wire.Publish)
					p.Close(code, "no")
				})
				c := g.client()
				s := subscribe(t, c, "a", nil)
				if err := s.Ready(t.Context()); err != nil {
					t.Fatal(err)
				}
				close(subscribed)
				p := send(t, c, "a", "1")
				got := outcome(p)
				wait(t, c, client.Closed)
				final := c.Err()
				var end *client.EndError
				if !errors.As(final, &end) || websocket.CloseStatus(final) != code {
					t.Errorf("final error %v", final)
				}
				if got != "unknown: "+final.Error() {
					t.Errorf("the message is %s", got)
				}
				gets(t, s, "1 2")
				for range 2 {
					if _, err := s.Next(t.Context()); err != final {
						t.Errorf("Next: %v", err)
					}
				}
				if _, err := c.Subscribe("b", nil); err != final {
					t.Errorf("Subscribe: %v", err)
				}
				if r, err := c.Publish(t.Context(), "b", client.Message{}); err != final || r.Outcome != client.NotStored {
					t.Errorf("Publish: %v, %v", r, err)
				}
				if err := c.PublishEphemeral("b", nil); err != final {
					t.Errorf("PublishEphemeral: %v", err)
				}
				if err := c.Wait(t.Context(), client.Ready); err != final {
					t.Errorf("Wait: %v", err)
				}
				time.Sleep(time.Hour)
				if g.network.Dials() != 1 {
					t.Errorf("%d dials", g.network.Dials())
				}
				if err := c.Close(t.Context()); err != nil || c.Err() != final {
					t.Errorf("Close: %v, and then the error is %v", err, c.Err())
				}
			})
		})
	}
}

// What the server says before it closes is part of the error.
func TestARefusalIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.expect(wire.Hello)
			p.send(wire.Frame{Type: wire.Error, Code: wire.Forbidden, Message: "not on\nMondays"})
			p.Close(4403, "forbidden")
		})
		c := g.client()
		wait(t, c, client.Closed)
		var refusal *client.ServerError
		if err := c.Err(); !errors.As(err, &refusal) || refusal.Code != wire.Forbidden || refusal.Message != `not on\nMondays` || websocket.CloseStatus(err) != 4403 {
			t.Errorf("%v", err)
		}
	})
}

func TestOtherClosesAreReconnected(t *testing.T) {
	for _, code := range []websocket.StatusCode{1000, 1001, 1011, 1012, 1013, 1014, 3000, 4000, 4001, 4429, 4430, 4999} {
		synctest.Test(t, func(t *testing.T) {
			g := newFake(t, func(p *peer) {
				p.welcome()
				if p.n == 1 {
					p.Close(code, "")
					return
				}
				p.drain()
			})
			c := g.client()
			time.Sleep(time.Minute)
			if c.State() != client.Ready || g.connections() != 2 {
				t.Errorf("%d: %v after %d connections", code, c.State(), g.connections())
			}
		})
	}
}

func TestTooLargeAMessageIsFinal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			p.accept(at(0))
			f := entries("a", 1, 1)
			f.Entries[0].Payload = wire.Payload{Kind: wire.Text, Data: make([]byte, 1<<20)} // six times as long as it travels
			p.send(f)
			f = entries("a", 2, 2)
			f.Entries[0].Data = []byte(strings.Repeat("1", client.DefaultClientRead))
			p.send(f)
			p.drain()
		})
		c := g.client()
		s := subscribe(t, c, "a", nil)
		if e, err := s.Next(t.Context()); err != nil || len(e.Data) != 1<<20 {
			t.Errorf("a message of 1 MiB: %d bytes, %v", len(e.Data), err)
		}
		wait(t, c, client.Closed)
		if !errors.Is(c.Err(), websocket.ErrMessageTooBig) {
			t.Error(c.Err())
		}
	})
}

func TestCloseWaitsForAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			first := p.expect(wire.Publish)
			time.Sleep(time.Second)
			if p.n == 1 {
				return // Close does not mind a reconnect
			}
			p.send(ack(first.ID, 1))
			second := p.expect(wire.Publish)
			p.send(ack(second.ID, 2))
			p.drain()
		})
		c := g.client()
		one, two := send(t, c, "a", "1"), send(t, c, "a", "2")
		s := subscribe(t, c, "never", nil)
		s.Close()
		time.Sleep(time.Second / 2)
		var closers sync.WaitGroup
		for range 3 {
			closers.Go(func() {
				if err := c.Close(context.Background()); err != nil {
					t.Errorf("Close: %v", err)
				}
				if c.State() != client.Closed || c.Err() != client.ErrClosed {
					t.Errorf("after Close: %v, %v", c.State(), c.Err())
				}
			})
		}
		synctest.Wait()
		if _, err := c.Send(t.Context(), "a", client.Message{}); err != client.ErrClosed || c.State() != client.Closing {
			t.Errorf("Send in %v: %v", c.State(), err)
		}
		if _, err := c.Subscribe("a", nil); err != client.ErrClosed {
			t.Errorf("Subscribe: %v", err)
		}
		closers.Wait()
		if got := outcome(one) + ", " + outcome(two); got != "committed, committed" {
			t.Error(got)
		}
		synctest.Wait()
		if n := g.connections(); n != 2 || websocket.CloseStatus(g.peer(n).end()) != 1000 {
			t.Errorf("connection %d ended with %v", n, g.peer(n).end())
		}
		dials := g.network.Dials()
		time.Sleep(time.Hour)
		if g.network.Dials() != dials || len(g.network.Links()) != 0 {
			t.Errorf("%d dials after Close, %d links", g.network.Dials()-dials, len(g.network.Links()))
		}
	})
}

// Whatever the client is about, Close takes no longer than its context.
func TestCloseIsBounded(t *testing.T) {
	const patience = 200 * time.Millisecond
	silent := func(p *peer) { // reads nothing any more
		p.welcome()
		p.g.network.Links()[0].Blackhole(memnet.Both)
		time.Sleep(time.Hour)
	}
	for _, test := range []struct {
		why    string
		handle func(p *peer)
		net    memnet.Settings
		after  time.Duration
		queued bool
	}{
		{"a silent peer", silent, memnet.Settings{}, time.Second, false},
		{"a silent peer and a message", silent, memnet.Settings{}, time.Second, true},
		{"a peer that reads and does not answer", func(p *peer) { p.welcome(); p.drain() }, memnet.Settings{}, time.Second, true},
		{"no welcome", func(p *peer) { p.drain() }, memnet.Settings{}, time.Second, true},
		{"a dial that hangs", nil, memnet.Settings{Swallow: true}, time.Second, true},
		{"a dial that hangs, nothing queued", nil, memnet.Settings{Swallow: true}, time.Second, false},
		{"waiting for the next dial", nil, memnet.Settings{Refuse: true}, time.Minute, true},
		{"waiting, nothing queued", nil, memnet.Settings{Refuse: true}, time.Minute, false},
		{"at once", func(p *peer) { p.welcome(); p.drain() }, memnet.Settings{}, 0, true},
		{"a full pipe", func(p *peer) { p.welcome(); time.Sleep(time.Hour) }, memnet.Settings{Buffer: 100}, time.Second, true},
	} {
		t.Run(strings.ReplaceAll(test.why, " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newFake(t, test.handle)
				g.network.Set(test.net)
				c := g.client()
				time.Sleep(test.after)
				synctest.Wait()
				var p *client.Pending
				if test.queued {
					p = send(t, c, "a", strings.Repeat("1", 10_000))
				}
				s := subscribe(t, c, "a", nil)
				enough := errors.New("enough")
				ctx, cancel := context.WithTimeoutCause(t.Context(), patience, enough)
				defer cancel()
				began := time.Now()
				err := c.Close(ctx)
				if d := time.Since(began); d > patience {
					t.Errorf("Close took %v", d)
				}
				if p == nil && err != nil || p != nil && err != enough {
					t.Errorf("Close: %v", err)
				}
				if p != nil {
					if r, err := p.Wait(t.Context()); err != client.ErrClosed || (r.Outcome == client.NotStored) != (p.Progress() == client.Failed && g.connections() == 0 || test.why == "no welcome" || test.why == "at once" && r.Outcome == client.NotStored) {
						t.Errorf("the message: %v, %v", r, err)
					}
				}
				if _, err := s.Next(t.Context()); err != client.ErrClosed {
					t.Errorf("Next: %v", err)
				}
				dials := g.network.Dials()
				time.Sleep(time.Hour)
				if g.network.Dials() != dials {
					t.Errorf("%d dials after Close", g.network.Dials()-dials)
				}
			})
		})
	}
}

func TestACancelledContextNeverTouchesTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stall := make(chan bool)
		g := newFake(t, func(p *peer) {
			p.welcome()
			p.accept(at(0))
			<-stall
			n := 0
			for {
				f := p.expect(wire.Publish)
				n++
				p.send(ack(f.ID, n))
			}
		})
		g.network.Set(memnet.Settings{Latency: time.Millisecond, Buffer: 300}) // writes block
		c := g.client(func(o *client.Options) { o.QueueMessages = 5000; o.QueueBytes = 10 << 20; o.Age = time.Hour })
		s := subscribe(t, c, "a", nil)
		if err := s.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		enough := errors.New("enough")
		var callers sync.WaitGroup
		var cancelled, withdrawn atomic.Int32
		for i := range 1000 {
			callers.Go(func() {
				ctx, cancel := context.WithCancelCause(t.Context())
				if i%2 == 0 {
					cancel(enough) // before
				}
				time.AfterFunc(time.Duration(i)*time.Millisecond, func() { cancel(enough) })
				r, err := c.Publish(ctx, "a", client.Message{Data: make([]byte, 200)})
				switch {
				case err == enough && r.Outcome == client.NotStored:
					withdrawn.Add(1)
				case err == enough && r.Outcome == client.Unknown && r.ID != "":
					cancelled.Add(1)
				default:
					t.Errorf("%v, %v", r, err)
				}
				ctx, cancel2 := context.WithCancelCause(t.Context())
				cancel2(enough)
				if _, err := s.Next(ctx); err != enough {
					t.Errorf("Next: %v", err)
				}
			})
		}
		callers.Wait()
		close(stall)
		time.Sleep(time.Minute)
		synctest.Wait()
		if cancelled.Load() == 0 || withdrawn.Load() < 500 || cancelled.Load()+withdrawn.Load() != 1000 {
			t.Errorf("%d cancelled, %d withdrawn", cancelled.Load(), withdrawn.Load())
		}
		if st := c.Stats(); g.connections() != 1 || c.State() != client.Ready || st.Queued != 0 || int32(st.Published) != cancelled.Load() {
			t.Errorf("%d connections, %v, %+v", g.connections(), c.State(), st)
		}
	})
}

func TestReconnectMakesAFreshConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) { p.welcome(); p.drain() })
		c := g.client()
		wait(t, c, client.Ready)
		time.Sleep(time.Minute)
		began := time.Now()
		c.Reconnect()
		c.Reconnect()
		synctest.Wait()
		if c.State() != client.Connecting {
			t.Error(c.State())
		}
		wait(t, c, client.Ready)
		if d := time.Since(began); d > 200*time.Millisecond || g.connections() != 2 {
			t.Errorf("%d connections, ready after %v", g.connections(), d)
		}
		time.Sleep(time.Minute)
		g.network.Set(memnet.Settings{Refuse: true})
		g.network.Links()[0].Reset()
		time.Sleep(10 * time.Minute) // the delays are long now
		g.network.Set(memnet.Settings{})
		began = time.Now()
		c.Reconnect()
		wait(t, c, client.Ready)
		if d := time.Since(began); d > 200*time.Millisecond {
			t.Errorf("ready after %v", d)
		}
	})
}

func TestADeadConnectionIsFoundByTheHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) { p.welcome(); p.drain() })
		c := g.client(func(o *client.Options) {
			o.Heartbeat = heartbeat.Config{Interval: 10 * time.Second, Timeout: 5 * time.Second}
		})
		wait(t, c, client.Ready)
		g.network.Links()[0].Blackhole(memnet.Both)
		g.network.Set(memnet.Settings{Swallow: true})
		time.Sleep(16 * time.Second)
		var dead *client.HeartbeatError
		if err := c.Err(); !errors.As(err, &dead) || dead.Verdict.Reason != heartbeat.NoAnswer {
			t.Errorf("after 16 s: %v, %v", c.State(), err)
		}
		g.network.Set(memnet.Settings{})
		wait(t, c, client.Ready)
	})
}

func TestOnStateIsToldInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			if p.n <= 2 {
				time.Sleep(time.Minute)
				return
			}
			p.drain()
		})
		var j journal
		c := g.client(func(o *client.Options) { o.OnState = func(s client.State) { j.add("%v", s) } })
		time.Sleep(5 * time.Minute)
		c.Close(t.Context())
		same(t, "states", strings.Fields("Ready Connecting Ready Connecting Ready Closing Closed"), j.all())
	})
}

func TestASlowOnStateIsToldOfTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			if p.n < 10 {
				time.Sleep(time.Minute)
				return
			}
			p.drain()
		})
		var j journal
		c := g.client(func(o *client.Options) {
			o.OnState = func(s client.State) { j.add("%v", s); time.Sleep(time.Hour) }
		})
		time.Sleep(30 * time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		c.Close(ctx) // waits for the callback no longer than that
		took := time.Since(began)
		time.Sleep(3 * time.Hour)
		if took > time.Second || j.String() != "Ready Closed" {
			t.Error(took, j.String())
		}
	})
}

// A goroutine that was started in a callback may call Close, whichever callback that is.
func TestCloseOnBehalfOfCallbacks(t *testing.T) {
	type set func(o *client.Options, do func())
	for name, in := range map[string]set{
		"OnState":   func(o *client.Options, do func()) { o.OnState = func(client.State) { do() } },
		"DialStart": func(o *client.Options, do func()) { o.Trace = &client.Trace{DialStart: func(string, int) { do() }} },
		"DialDone": func(o *client.Options, do func()) {
			o.Trace = &client.Trace{DialDone: func(string, int, error) { do() }}
		},
		"Up": func(o *client.Options, do func()) { o.Trace = &client.Trace{Up: func(*client.Session) { do() }} },
		"Down": func(o *client.Options, do func()) {
			o.Trace = &client.Trace{Down: func(*client.Session, error, time.Duration) { do() }}
		},
		"Prepare": func(o *client.Options, do func()) {
			o.Prepare = func(context.Context, *client.Dial) error { do(); return nil }
		},
		"Decide": func(o *client.Options, do func()) {
			o.Decide = func(err error) client.Verdict { do(); return client.Decide(err) }
		},
		"OnDead": func(o *client.Options, do func()) {
			o.Heartbeat = heartbeat.Config{OnDead: func(*heartbeat.Peer, heartbeat.Verdict) { do() }}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newFake(t, func(p *peer) { p.welcome(); p.drain() })
				created := make(chan bool)
				var c *client.Client
				var once sync.Once
				o := g.options()
				in(o, func() {
					<-created
					once.Do(func() {
						go func() {
							if err := c.Close(context.Background()); err != nil {
								t.Errorf("Close for %s: %v", name, err)
							}
						}()
					})
				})
				var err error
				if c, err = client.New("ws://gateway.test", o); err != nil {
					t.Fatal(err)
				}
				close(created)
				time.Sleep(time.Minute)
				if links := g.network.Links(); len(links) > 0 {
					if name == "OnDead" {
						links[0].Blackhole(memnet.Both)
					} else {
						links[0].Reset()
					}
				}
				wait(t, c, client.Closed)
				if c.Err() != client.ErrClosed {
					t.Error(c.Err())
				}
				if err := c.Close(t.Context()); err != nil {
					t.Errorf("Close again: %v", err)
				}
			})
		})
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, nil)
		g.network.Set(memnet.Settings{Refuse: true})
		c := g.client()
		enough := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, enough)
		defer cancel()
		if err := c.Wait(ctx, client.Ready); err != enough {
			t.Error(err)
		}
		var dial *client.DialError
		if err := c.Err(); !errors.As(err, &dial) {
			t.Errorf("the reason is %v", err)
		}
		if err := c.Wait(ctx, client.Connecting); err != nil {
			t.Errorf("in that state already: %v", err)
		}
		if _, err := subscribe(t, c, "a", nil).Next(ctx); err != enough {
			t.Error(err)
		}
		if err := subscribe(t, c, "b", nil).Ready(ctx); err != enough {
			t.Error(err)
		}
	})
}

func TestBadOptions(t *testing.T) {
	for field, change := range map[string]func(o *client.Options){
		"QueueMessages":      func(o *client.Options) { o.QueueMessages = -1 },
		"QueueBytes":         func(o *client.Options) { o.QueueBytes = -1 },
		"BufferMessages":     func(o *client.Options) { o.BufferMessages = -1 },
		"BufferBytes":        func(o *client.Options) { o.BufferBytes = -1 },
		"Age, Hello":         func(o *client.Options) { o.Age, o.Hello = -1, -1 },
		"Full":               func(o *client.Options) { o.Full = 3 },
		"Subprotocols":       func(o *client.Options) { o.Subprotocols = []string{"x"} },
		"DialTimeout":        func(o *client.Options) { o.DialTimeout = -1 },
		"Heartbeat.Interval": func(o *client.Options) { o.Heartbeat.Interval = 1 },
	} {
		o := new(client.Options)
		change(o)
		_, err := client.New("ws://gateway.test", o)
		var bad *client.OptionError
		if !errors.As(err, &bad) || bad.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, err := client.New("gopher://gateway.test", nil); err == nil {
		t.Error("a URL that is none of a WebSocket is taken")
	}
}

// A day with a network that is lost every hour for a while, at any moment of the
// conversation: all messages arrive, once, in order.
func TestADayWithABadNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, (&store{}).serve)
		writer, reader := g.client(func(o *client.Options) { o.Age = time.Hour }), g.client()
		s := subscribe(t, reader, "a", nil)
		if err := s.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		const perHour, hours = 120, 24
		var work sync.WaitGroup
		work.Go(func() {
			for h := range hours {
				time.Sleep(time.Hour - time.Duration(h)*7*time.Second)
				for _, l := range g.network.Links() {
					switch h % 3 {
					case 0:
						l.Reset()
					case 1:
						l.Blackhole(memnet.Both)
					case 2:
						l.CutAfter(memnet.Both, 10*h)
					}
				}
				g.network.Set(memnet.Settings{Refuse: h%2 == 0, Swallow: h%2 == 1})
				time.Sleep(time.Duration(h) * 7 * time.Second)
				g.network.Set(memnet.Settings{Latency: 20 * time.Millisecond})
			}
		})
		work.Go(func() {
			for n := 1; n <= perHour*hours; n++ {
				p := send(t, writer, "a", fmt.Sprint(n))
				if n%5 == 0 {
					if got := outcome(p); got != "committed" && got != "duplicate" {
						t.Errorf("message %d: %s", n, got)
					}
				}
				time.Sleep(time.Hour / perHour)
			}
		})
		for n := 1; n <= perHour*hours; n++ {
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			if got := text(s.Next(ctx)); got != fmt.Sprint(n) {
				t.Fatalf("got %s, want %d", got, n)
			}
			cancel()
		}
		work.Wait()
		for name, c := range map[string]*client.Client{"writer": writer, "reader": reader} {
			st := c.Stats()
			t.Logf("%s: %+v", name, st)
			if st.Sessions < hours || st.Repairs+st.Resets+st.Failed+st.Garbage != 0 || st.Queued != 0 {
				t.Errorf("%s: %+v", name, st)
			}
			if err := c.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		if links := len(g.network.Links()); links != 0 {
			t.Errorf("%d connections are left", links)
		}
	})
}

// A store is a small and honest gateway: it keeps everything.
type store struct {
	mu     sync.Mutex
	topics map[string]*topic
}

type topic struct {
	data    [][]byte
	ids     map[string]int
	changed chan struct{}
}

// topic is to be called with the lock held.
func (st *store) topic(name string) *topic {
	if st.topics == nil {
		st.topics = map[string]*topic{}
	}
	if st.topics[name] == nil {
		st.topics[name] = &topic{ids: map[string]int{}, changed: make(chan struct{})}
	}
	return st.topics[name]
}

func (st *store) add(name, id string, data []byte) (n int, outcome string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	tp := st.topic(name)
	if n := tp.ids[id]; n > 0 {
		return n, wire.Duplicate
	}
	tp.data = append(tp.data, append([]byte(nil), data...))
	if id != "" {
		tp.ids[id] = len(tp.data)
	}
	close(tp.changed)
	tp.changed = make(chan struct{})
	return len(tp.data), wire.Committed
}

func (st *store) serve(p *peer) {
	ctx, cancel := context.WithCancel(context.Background())
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	type one struct {
		stop context.CancelFunc
		done chan struct{}
	}
	subs := map[string]one{}
	end := func(topic string) {
		if o, ok := subs[topic]; ok {
			o.stop()
			<-o.done
			delete(subs, topic)
		}
	}
	p.welcome()
	for {
		switch f := p.next(); f.Type {
		case wire.Publish:
			n, outcome := st.add(f.Topic, f.ID, f.Data)
			p.send(wire.Frame{Type: wire.Ack, ID: f.ID, Outcome: outcome, Pos: at(n)})
		case wire.Subscribe:
			end(f.Topic)
			st.mu.Lock()
			from := max(0, len(st.topic(f.Topic).data)-f.Last)
			st.mu.Unlock()
			if len(f.From) > 0 {
				from = int(f.From[0].Seq)
			}
			p.send(subscribed(f, at(from)))
			sub, stop := context.WithCancel(ctx)
			o := one{stop, make(chan struct{})}
			subs[f.Topic] = o
			readers.Go(func() {
				defer close(o.done)
				st.follow(sub, p, f.Topic, from)
			})
		case wire.Unsubscribe:
			end(f.Topic)
			p.send(wire.Frame{Type: wire.Unsubscribed, Topic: f.Topic, Ref: f.Ref})
		default:
			p.g.t.Errorf("the client sent %s", f.Append(nil))
		}
	}
}

// follow sends what comes after n, up to 10 messages at a time.
func (st *store) follow(ctx context.Context, p *peer, name string, n int) {
	for {
		st.mu.Lock()
		tp := st.topic(name)
		changed := tp.changed
		f := wire.Frame{Type: wire.Entries, Topic: name, Prev: at(n)}
		for i := n; i < min(len(tp.data), n+10); i++ {
			f.Entries = append(f.Entries, wire.Entry{Pos: at(i + 1), Payload: wire.Fit(wire.None, tp.data[i])})
		}
		st.mu.Unlock()
		if len(f.Entries) == 0 {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
		n += len(f.Entries)
		if err := p.Write(context.Background(), websocket.MessageText, f.Append(nil)); err != nil {
			if !errors.Is(err, net.ErrClosed) {
				p.CloseNow()
			}
			return
		}
	}
}
