package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// begin says where a subscribe wants to begin, as text.
func begin(f wire.Frame) string {
	out := f.Topic
	for _, p := range f.From {
		out += fmt.Sprintf(" from %d", p.Seq)
		if p != at(int(p.Seq)) {
			out += "?"
		}
	}
	if f.Last != 0 {
		out += fmt.Sprintf(" last %d", f.Last)
	}
	if !f.Floor.IsZero() {
		out += fmt.Sprintf(" floor %d", f.Floor.Seq)
	}
	return out
}

func TestASubscriptionGoesOnWhereItStood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		g := newFake(t, func(p *peer) {
			p.welcome()
			f := p.expect(wire.Subscribe)
			j.add("%s,", begin(f))
			switch p.n {
			case 1:
				return // before subscribed: it begins in the same way
			case 2:
				p.send(subscribed(f, at(3)))
				time.Sleep(time.Second)
				return // before the first message: nothing may be missed
			case 3:
				p.send(subscribed(f, at(3)), entries("a", 4, 5), entries("a", 6, 6))
				time.Sleep(time.Second)
				return
			case 4:
				p.send(subscribed(f, at(6)))
				last := entries("a", 7, 8)
				last.To = at(10) // the last two were conflated
				p.send(last)
				time.Sleep(time.Second)
				return
			}
			p.send(subscribed(f, at(10)), entries("a", 11, 11))
			p.drain()
		})
		c := g.client()
		s := subscribe(t, c, "a", &client.SubscribeOptions{Last: 2, Floor: at(1)})
		if !s.Position().IsZero() {
			t.Error("a position before there is one")
		}
		if err := s.Ready(t.Context()); err != nil || s.Position() != at(3) {
			t.Errorf("ready with %v at %v", err, s.Position())
		}
		gets(t, s, "4 5 6 7 8 11")
		same(t, "subscribes", []string{
			"a last 2 floor 1,", "a last 2 floor 1,", "a from 3 floor 1,", "a from 6 floor 1,", "a from 10 floor 1,",
		}, j.all())
		if st := c.Stats(); st.Received != 6 || st.Repairs != 0 || s.Position() != at(11) {
			t.Errorf("%+v at %v", st, s.Position())
		}
	})
}

// Position is what the application has been given, not what has been received; and with
// it another process goes on exactly there.
func TestPositionIsOfTheLastEventThatWasReturned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &store{}
		for n := 1; n <= 100; n++ {
			st.add("a", "", fmt.Append(nil, n))
		}
		g := newFake(t, st.serve)
		var kept replay.Position
		for n := 1; n <= 100; n += 7 {
			c := g.client() // a new process
			s := subscribe(t, c, "a", &client.SubscribeOptions{From: kept, Last: 1000})
			if s.Position() != kept {
				t.Errorf("begins at %v, want %v", s.Position(), kept)
			}
			gets(t, s, numbers(n, min(100, n+6)))
			kept = s.Position()
			if kept != at(min(100, n+6)) {
				t.Errorf("stands at %v after %d", kept, n+6)
			}
			c.Close(t.Context())
			if s.Position() != kept {
				t.Errorf("stands at %v after Close", s.Position())
			}
		}
	})
}

func TestAResetIsGivenOnceAndInItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		g := newFake(t, func(p *peer) {
			p.welcome()
			f := p.expect(wire.Subscribe)
			j.add("%s,", begin(f))
			switch p.n {
			case 1: // the connection is lost before the reset comes
				p.send(subscribed(f, replay.Position{}))
				time.Sleep(time.Second)
				return
			case 2:
				p.send(subscribed(f, replay.Position{}), reset("a", "trimmed", 4, 9), entries("a", 10, 11))
				full := reset("a", "epoch", 0, 12)
				full.Payload = wire.Payload{Kind: wire.JSON, Data: []byte(`{"state":1}`)}
				p.send(full) // in the midst of it
				time.Sleep(time.Second)
				return
			case 3:
				p.send(subscribed(f, at(12)), reset("a", "lagging", 1, 14), reset("a", "floor", 0, 15), entries("a", 16, 16))
			}
			p.drain()
		})
		c := g.client()
		s := subscribe(t, c, "a", &client.SubscribeOptions{From: at(5)})
		var out []string
		for range 7 {
			e, err := s.Next(t.Context())
			line := text(e, err)
			if e.Reset != nil {
				if e.Data != nil || e.Pos.IsZero() || s.Position() != e.Pos {
					t.Errorf("%+v, and the position is %v", e, s.Position())
				}
				line += fmt.Sprintf("@%d %v", e.Pos.Seq, e.Reset.Void())
			}
			out = append(out, line)
		}
		same(t, "events", []string{
			"reset(trimmed 4)@9 false", "10", "11", `reset(epoch 0)={"state":1}@12 true`, "reset(lagging 1)@14 false", "reset(floor 0)@15 false", "16",
		}, out)
		same(t, "subscribes", []string{"a from 5,", "a from 5,", "a from 12,"}, j.all())
		if st := c.Stats(); st.Resets != 4 || st.Repairs != 0 {
			t.Errorf("%+v", st)
		}
		time.Sleep(time.Minute)
	})
}

// What does not follow is not believed: the client asks again from where it stands.
func TestWhatDoesNotFollowIsAskedForAgain(t *testing.T) {
	for name, wrong := range map[string]func(f wire.Frame) []wire.Frame{
		"a gap": func(f wire.Frame) []wire.Frame {
			return []wire.Frame{subscribed(f, at(0)), entries("a", 1, 2), entries("a", 4, 5)}
		},
		"a repetition": func(f wire.Frame) []wire.Frame {
			return []wire.Frame{subscribed(f, at(0)), entries("a", 1, 2), entries("a", 1, 2)}
		},
		"another message of that number": func(f wire.Frame) []wire.Frame {
			bad := entries("a", 3, 3)
			bad.Prev.Tag++
			return []wire.Frame{subscribed(f, at(0)), entries("a", 1, 2), bad}
		},
		"no prev": func(f wire.Frame) []wire.Frame {
			bad := entries("a", 3, 3)
			bad.Prev = replay.Position{}
			return []wire.Frame{subscribed(f, at(0)), entries("a", 1, 2), bad}
		},
		"a reset without a base": func(f wire.Frame) []wire.Frame {
			bad := reset("a", "trimmed", 1, 1)
			bad.Base = replay.Position{}
			return []wire.Frame{subscribed(f, at(0)), entries("a", 1, 2), bad, entries("a", 2, 2)}
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var j journal
				g := newFake(t, func(p *peer) {
					p.welcome()
					p.send(wrong(p.expect(wire.Subscribe))...)
					f := p.expect(wire.Subscribe)
					j.add("%s", begin(f))
					p.send(entries("a", 3, 3)) // of the old one: not for us
					p.send(subscribed(f, at(2)), entries("a", 3, 4))
					p.drain()
				})
				c := g.client()
				gets(t, subscribe(t, c, "a", nil), "1 2 3 4")
				if st := c.Stats(); j.String() != "a from 2" || st.Repairs != 1 || st.Resets != 0 || g.connections() != 1 {
					t.Errorf("%s, %+v, %d connections", j.String(), st, g.connections())
				}
			})
		})
	}
}

func TestASubscribedElsewhereIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			f := p.expect(wire.Subscribe)
			p.send(subscribed(f, at(4)))
			f = p.expect(wire.Subscribe)
			p.send(subscribed(f, replay.Position{}), entries("a", 5, 5)) // instead of a reset
			f = p.expect(wire.Subscribe)
			p.send(subscribed(f, at(3)), entries("a", 4, 4))
			p.drain()
		})
		c := g.client()
		gets(t, subscribe(t, c, "a", &client.SubscribeOptions{From: at(3)}), "4")
		if st := c.Stats(); st.Repairs != 2 {
			t.Errorf("%+v", st)
		}
	})
}

// A server that is always wrong is asked more and more seldom.
func TestABrokenServerIsNoHotLoop(t *testing.T) {
	for name, answer := range map[string]func(p *peer, f wire.Frame){
		"never follows": func(p *peer, f wire.Frame) { p.send(subscribed(f, at(0)), entries("a", 2, 2)) },
		"follows once": func(p *peer, f wire.Frame) {
			n := 0
			if len(f.From) > 0 {
				n = int(f.From[0].Seq)
			}
			p.send(subscribed(f, at(n)), entries("a", n+1, n+1), entries("a", n+1, n+1))
		},
		"unavailable": func(p *peer, f wire.Frame) {
			p.send(wire.Frame{Type: wire.Error, Code: wire.Unavailable, Ref: f.Ref, Topic: f.Topic})
		},
		"ended by the server": func(p *peer, f wire.Frame) {
			p.send(subscribed(f, at(0)), wire.Frame{Type: wire.Unsubscribed, Topic: f.Topic, Code: wire.Internal})
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked atomic.Int32
				g := newFake(t, func(p *peer) {
					p.welcome()
					for {
						f := p.expect(wire.Subscribe)
						asked.Add(1)
						answer(p, f)
					}
				})
				c := g.client()
				subscribe(t, c, "a", nil)
				time.Sleep(time.Hour)
				if n := asked.Load(); n < 100 || n > 500 || g.connections() != 1 {
					t.Errorf("asked %d times in an hour, over %d connections", n, g.connections())
				}
			})
		})
	}
}

func TestTheServersErrorsOfASubscription(t *testing.T) {
	for _, test := range []struct {
		code  string
		final bool
	}{
		{wire.Forbidden, true}, {wire.BadTopic, true}, {wire.BadPosition, true}, {wire.TooManyTopics, true},
		{wire.Unsupported, true}, {wire.BadFrame, true}, {"something new", true}, {wire.Unauthenticated, true},
		{wire.Unavailable, false}, {wire.Internal, false}, {wire.TooFast, false}, {wire.TooManyPending, false},
	} {
		for _, later := range []bool{false, true} {
			t.Run(fmt.Sprint(test.code, later), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var second time.Time
					g := newFake(t, func(p *peer) {
						p.welcome()
						f := p.expect(wire.Subscribe)
						if later {
							p.send(subscribed(f, at(1)), entries("a", 2, 3))
							p.send(wire.Frame{Type: wire.Unsubscribed, Topic: "a", Code: test.code, Message: "why"})
						} else {
							p.send(wire.Frame{Type: wire.Error, Ref: f.Ref, Code: test.code, Field: "topic", Message: "why", Retry: 3000})
						}
						began := time.Now()
						f = p.expect(wire.Subscribe)
						second = began.Add(time.Since(began))
						p.send(subscribed(f, at(1)), entries("a", 2, 4))
						if later {
							f = p.expect(wire.Subscribe) // the base was wrong on purpose
							p.send(subscribed(f, at(3)), entries("a", 4, 4))
						}
						p.drain()
					})
					c := g.client()
					began := time.Now()
					s := subscribe(t, c, "a", nil)
					if later {
						gets(t, s, "2 3")
					}
					if !test.final {
						if gets(t, s, map[bool]string{false: "2 3 4", true: "4"}[later]); !later && second.Sub(began) < 3*time.Second {
							t.Errorf("asked again after %v, the server said 3 s", second.Sub(began))
						}
						return
					}
					_, err := s.Next(t.Context())
					var refused *client.ServerError
					if !errors.As(err, &refused) || refused.Code != test.code || refused.Message != "why" || (refused.Field == "topic") == later {
						t.Errorf("Next: %v", err)
					}
					if err := s.Ready(t.Context()); err == nil {
						t.Error("ready")
					}
					again := subscribe(t, c, "a", nil) // may be, and is another one
					if later {
						if err := again.Ready(t.Context()); err != nil {
							t.Error(err)
						}
						return
					}
					gets(t, again, "2 3 4")
				})
			})
		}
	}
}

func TestOneSubscriptionForATopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		g := newFake(t, func(p *peer) {
			p.welcome()
			old := p.accept(at(0))
			p.send(entries("a", 1, 1))
			for {
				switch f := p.next(); f.Type {
				case wire.Unsubscribe:
					j.add("unsubscribe")
					p.send(wire.Frame{Type: wire.Unsubscribed, Topic: f.Topic, Ref: f.Ref})
				case wire.Subscribe:
					j.add("%s", begin(f))
					if f.Ref == old.Ref {
						t.Error("the same ref again")
					}
					// What is under way of the old one.
					p.send(entries("a", 2, 2), wire.Frame{Type: wire.Ephemeral, Topic: "a", Payload: wire.Payload{Kind: wire.JSON, Data: []byte("0")}},
						reset("a", "epoch", 0, 9), subscribed(old, at(2)), entries("a", 3, 3),
						wire.Frame{Type: wire.Unsubscribed, Topic: "a", Ref: old.Ref}, wire.Frame{Type: wire.Error, Code: wire.Forbidden, Ref: old.Ref})
					p.send(subscribed(f, at(20)), entries("a", 21, 21))
				}
			}
		})
		c := g.client()
		s := subscribe(t, c, "a", nil)
		gets(t, s, "1")
		if _, err := c.Subscribe("a", nil); err != client.ErrSubscribed {
			t.Errorf("the second: %v", err)
		}
		var waiting = make(chan error)
		go func() {
			_, err := s.Next(context.Background())
			waiting <- err
		}()
		synctest.Wait()
		s.Close()
		s.Close()
		if err := <-waiting; err != client.ErrClosed {
			t.Errorf("Next during Close: %v", err)
		}
		s = subscribe(t, c, "a", nil)
		gets(t, s, "21")
		if st := c.Stats(); st.Repairs != 0 || st.Complaints != 0 || st.Subscriptions != 1 {
			t.Errorf("%+v", st)
		}
		s.Close()
		time.Sleep(time.Second)
		if got := j.String(); got != "a unsubscribe" && got != "unsubscribe a unsubscribe" {
			t.Error(got)
		}
	})
}

func TestCloseDropsWhatIsBuffered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			p.accept(at(0))
			p.send(entries("a", 1, 5))
			p.drain()
		})
		c := g.client()
		s := subscribe(t, c, "a", nil)
		gets(t, s, "1 2")
		s.Close()
		for range 2 {
			if _, err := s.Next(t.Context()); err != client.ErrClosed {
				t.Error(err)
			}
		}
		if s.Position() != at(2) {
			t.Errorf("stands at %v", s.Position())
		}
	})
}

// A slow application costs no more than its buffer, holds up nobody, and loses nothing.
func TestASlowApplicationLosesNothing(t *testing.T) {
	for _, test := range []struct {
		messages, bytes int
		size            int
		most            int // events held
	}{
		{messages: 20, size: 10, most: 20},
		{messages: 1, size: 10, most: 1},
		{messages: 3, size: 10, most: 3},
		{bytes: 1000, size: 100, most: 10},
		{bytes: 1000, size: 5000, most: 1}, // one is held whatever its size
		{messages: 1000, bytes: 1050, size: 100, most: 10},
	} {
		t.Run(fmt.Sprintf("%d_messages_%d_bytes_of_%d", test.messages, test.bytes, test.size), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := &store{}
				pad := strings.Repeat("x", test.size-6)
				for n := 1; n <= 200; n++ {
					st.add("slow", "", fmt.Appendf(nil, "%06d%s", n, pad))
				}
				g := newFake(t, st.serve)
				c := g.client(func(o *client.Options) { o.BufferMessages, o.BufferBytes = test.messages, test.bytes })
				slow := subscribe(t, c, "slow", &client.SubscribeOptions{Last: 1000})
				fast := subscribe(t, c, "fast", nil)
				if err := fast.Ready(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if held := c.Stats().Buffered; held != test.most {
					t.Errorf("%d events are held, want %d", held, test.most)
				}
				for n := 1; n <= 50; n++ {
					st.add("fast", "", fmt.Append(nil, n))
					gets(t, fast, fmt.Sprint(n))
				}
				fast.Close()
				for n := 1; n <= 200; n++ {
					e, err := slow.Next(t.Context())
					if err != nil || string(e.Data) != fmt.Sprintf("%06d%s", n, pad) || e.Pos != at(n) {
						t.Fatalf("message %d: %.10q at %v, %v", n, e.Data, e.Pos, err)
					}
					if n%10 == 0 {
						time.Sleep(time.Second)
						if held := c.Stats().Buffered; held > test.most {
							t.Fatalf("%d events are held, want at most %d", held, test.most)
						}
					}
					if n == 77 {
						g.network.Links()[0].Reset() // paused or not
						time.Sleep(time.Second)
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if e, err := slow.Next(ctx); err != context.DeadlineExceeded {
					t.Errorf("one too many: %v, %v", e, err)
				}
				s := c.Stats()
				if s.Pauses == 0 || s.Repairs+s.Resets != 0 || s.Buffered != 0 || s.Received != 250 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

func TestPauseAndResumeOnTheWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		g := newFake(t, func(p *peer) {
			p.welcome()
			p.accept(at(0))
			p.send(entries("a", 1, 3), entries("a", 4, 9)) // only 8 fit
			typing := wire.Frame{Type: wire.Ephemeral, Topic: "a", Payload: wire.Payload{Kind: wire.JSON, Data: []byte("0")}}
			p.send(typing, entries("a", 10, 10), reset("a", "epoch", 0, 99)) // under way
			for {
				f := p.next()
				j.add("%d:%s %s", time.Since(epoch)/time.Second, f.Type, begin(f))
				switch f.Type {
				case wire.Unsubscribe:
					p.send(wire.Frame{Type: wire.Unsubscribed, Topic: f.Topic, Ref: f.Ref})
				case wire.Subscribe:
					p.send(typing)
					p.send(subscribed(f, f.From[0]), typing, entries("a", 9, 10))
				}
			}
		})
		c := g.client(func(o *client.Options) { o.BufferMessages = 8 })
		s := subscribe(t, c, "a", nil)
		time.Sleep(time.Until(epoch.Add(10 * time.Second)))
		gets(t, s, "1 2 3")
		time.Sleep(10 * time.Second)
		gets(t, s, "4 5") // the first is half of it; it may take one more
		time.Sleep(10 * time.Second)
		gets(t, s, "6 7 8 ~0 9 10")
		same(t, "the server got", []string{"0:unsubscribe a", "20:subscribe a from 8"}, j.all())
		if st := c.Stats(); st.Pauses != 1 || st.Repairs != 0 || st.Resets != 0 || st.Ephemeral != 3 || st.EphemeralDropped != 2 {
			t.Errorf("%+v", st)
		}
	})
}

// epoch is when the time of a bubble begins.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// A reset for which there is no room is not lost, and not given twice.
func TestAResetWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			p.accept(at(0))
			p.send(entries("a", 1, 2), reset("a", "lagging", 7, 9), entries("a", 10, 10))
			p.expect(wire.Unsubscribe)
			f := p.expect(wire.Subscribe)
			if begin(f) != "a from 2" {
				t.Error(begin(f))
			}
			p.send(subscribed(f, replay.Position{}), reset("a", "trimmed", 7, 9), entries("a", 10, 10))
			p.drain()
		})
		c := g.client(func(o *client.Options) { o.BufferMessages = 2 })
		s := subscribe(t, c, "a", nil)
		time.Sleep(time.Second)
		var got []string
		for range 4 {
			got = append(got, next(s))
		}
		if strings.Join(got, ", ") != "1, 2, reset(trimmed 7), 10" {
			t.Error(got)
		}
	})
}

// An unsubscribe that the server has refused is told again when what nobody wants goes on.
func TestAnUnsubscribeThatGotLostIsToldAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told atomic.Int32
		g := newFake(t, func(p *peer) {
			p.welcome()
			f := p.accept(at(0))
			go func() {
				for n := 1; told.Load() < 3; n++ {
					e := entries("a", n, n)
					p.Write(context.Background(), 1, e.Append(nil))
					time.Sleep(time.Second)
				}
			}()
			for {
				f = p.expect(wire.Unsubscribe)
				told.Add(1)
				p.send(wire.Frame{Type: wire.Error, Code: wire.TooFast, Ref: f.Ref})
			}
		})
		c := g.client()
		s := subscribe(t, c, "a", nil)
		gets(t, s, "1 2 3")
		s.Close()
		time.Sleep(time.Minute)
		if n := told.Load(); n != 3 || c.Stats().Complaints != 0 {
			t.Errorf("told %d times, %+v", n, c.Stats())
		}
	})
}

func TestAfterAReconnectSubscriptionsComeFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		g := newFake(t, func(p *peer) {
			p.welcome()
			refs := map[uint64]bool{}
			for range 10 {
				f := p.next()
				j.add("%s", f.Topic)
				if f.Type == wire.Subscribe {
					if f.Ref == 0 || refs[f.Ref] {
						t.Errorf("ref %d", f.Ref)
					}
					refs[f.Ref] = true
					p.send(subscribed(f, at(0)))
				}
			}
			j.add("|")
			if p.n == 2 {
				p.drain()
			}
		})
		c := g.client()
		send(t, c, "x", "1")
		send(t, c, "y", "2")
		for _, topic := range strings.Fields("c b a d h e f g") { // before there is a connection
			subscribe(t, c, topic, nil)
		}
		time.Sleep(time.Minute)
		if got := j.String(); got != "c b a d h e f g x y | c b a d h e f g x y |" {
			t.Error(got)
		}
	})
}

func TestAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			p.accept(at(0))
			p.send(entries("a", 1, 5))
			p.drain()
		})
		c := g.client()
		s := subscribe(t, c, "a", nil)
		enough := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, enough)
		defer cancel()
		var out []string
		for e, err := range s.All(ctx) {
			out = append(out, text(e, err))
			if len(out) == 2 {
				break
			}
		}
		for e, err := range s.All(ctx) {
			out = append(out, text(e, err))
		}
		if strings.Join(out, " ") != "1 2 3 4 5 error: enough" {
			t.Error(out)
		}
	})
}

// All kinds of payloads come out as the bytes that they are, and what is kept is not
// overwritten by what comes later.
func TestPayloadsAreTheApplications(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var want []string
		kinds := []wire.Kind{wire.JSON, wire.Text, wire.Binary}
		g := newFake(t, func(p *peer) {
			p.welcome()
			p.accept(at(0))
			n := 0
			for _, sizes := range [][]int{{1}, {10, 20, 30}, {3000, 5, 3000, 5}, make([]int, 100), {70_000}, {1, 2, 3}} {
				f := wire.Frame{Type: wire.Entries, Topic: "a", Prev: at(n)}
				for i, size := range sizes {
					n++
					data := []byte(`"` + strings.Repeat(string(rune('a'+n%26)), size) + `"`)
					want = append(want, string(data))
					f.Entries = append(f.Entries, wire.Entry{Pos: at(n), Key: fmt.Sprint(n), Payload: wire.Payload{Kind: kinds[i%3], Data: data}})
				}
				p.send(f)
			}
			p.drain()
		})
		c := g.client()
		s := subscribe(t, c, "a", nil)
		time.Sleep(time.Second)
		var kept []client.Event
		for range 112 {
			e, err := s.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			e.Data = append(e.Data, "!"...) // may not reach into others
			kept = append(kept, e)
		}
		for i, e := range kept {
			if string(e.Data) != want[i]+"!" || e.Key != fmt.Sprint(i+1) || e.Pos != at(i+1) || !e.At.IsZero() {
				t.Errorf("%d: %.20q %+v, want %.20q", i+1, e.Data, e.Pos, want[i])
			}
		}
	})
}

func TestTopicsThatCannotBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFake(t, func(p *peer) { p.welcome(); p.drain() }).client()
		for topic, reason := range map[string]string{"": "is empty", strings.Repeat("x", 256): "has 256 bytes, more than 255", "\xff": "is not valid UTF-8"} {
			var bad *client.InputError
			if _, err := c.Subscribe(topic, nil); !errors.As(err, &bad) || bad.Field != "topic" || bad.Reason != reason {
				t.Errorf("Subscribe %q: %v", topic, err)
			}
			if _, err := c.Send(t.Context(), topic, client.Message{}); !errors.As(err, &bad) || bad.Field != "topic" || bad.Reason != reason {
				t.Errorf("Send %q: %v", topic, err)
			}
			if err := c.PublishEphemeral(topic, nil); !errors.As(err, &bad) || bad.Field != "topic" || bad.Reason != reason {
				t.Errorf("PublishEphemeral %q: %v", topic, err)
			}
		}
		subscribe(t, c, strings.Repeat("x", 255), nil)
	})
}
