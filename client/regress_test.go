package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/backplane/gateway"
	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/internal/memnet"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// Where a server could not go on after a position when it answered, it may be able to when
// it comes to read: the history was set back for a moment, and then it was not. What
// follows where the client stands follows; and without a place to follow, nothing does.
func TestEntriesThatFollowNeedNoReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			p.send(subscribed(p.expect(wire.Subscribe), replay.Position{}), entries("a", 4, 5))
			nowhere := entries("b", 1, 1)
			nowhere.Prev = replay.Position{}
			p.send(subscribed(p.expect(wire.Subscribe), replay.Position{}), nowhere)
			p.send(subscribed(p.expect(wire.Subscribe), at(1)), entries("b", 2, 2))
			p.drain()
		})
		c := g.client()
		gets(t, subscribe(t, c, "a", &client.SubscribeOptions{From: at(3)}), "4 5")
		if st := c.Stats(); st.Repairs != 0 {
			t.Errorf("%+v", st)
		}
		gets(t, subscribe(t, c, "b", nil), "2")
		if st := c.Stats(); st.Repairs != 1 {
			t.Errorf("%+v", st)
		}
	})
}

// The memory of a message that had been written was used for the frames after it. When it
// was sent again after the connection was lost it was no frame any more, and the server
// ended the client for good; or it was another one, and the message lost.
func TestAMessageThatIsSentAgainIsWhatItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := strings.Repeat("x", 300)
		g := newFake(t, func(p *peer) {
			p.welcome()
			f := p.expect(wire.Publish)
			if string(f.Data) != data || f.Topic != "a" {
				t.Errorf("connection %d: the client sent %s", p.n, f.Append(nil))
			}
			if p.n == 1 {
				p.send(wire.Frame{Type: wire.Beat})
				p.expect(wire.Beat)
				return
			}
			p.send(ack(f.ID, 1))
			p.next()
		})
		c := g.client()
		if got := outcome(send(t, c, "a", data)); got != client.Committed.String() {
			t.Error(got)
		}
	})
}

// A server could have the client remember any number of topics, of any length, by saying
// that it was asked too fast for what it was never asked for.
func TestTooFastForWhatWasNotAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 2000
		unasked := make(chan bool)
		g := newFake(t, func(p *peer) {
			p.welcome()
			p.accept(at(0))
			f := p.expect(wire.Unsubscribe)
			tooFast := wire.Frame{Type: wire.Error, Code: wire.TooFast, Topic: f.Topic, Ref: f.Ref, Retry: 1}
			p.send(tooFast)
			if again := p.expect(wire.Unsubscribe); again.Topic != "a" || again.Ref == f.Ref {
				t.Errorf("%s", again.Append(nil))
			} else {
				p.send(wire.Frame{Type: wire.Unsubscribed, Topic: "a", Ref: again.Ref})
			}
			p.send(tooFast) // nothing of the kind is under way
			for i := range n {
				tooFast.Topic, tooFast.Ref = fmt.Sprint(i), 1<<40
				if i%2 == 0 {
					tooFast.Ref = 1
				}
				p.send(tooFast)
			}
			close(unasked)
			p.hears(time.Minute)
		})
		c := g.client()
		s := subscribe(t, c, "a", nil)
		if err := s.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Close()
		<-unasked
		time.Sleep(30 * time.Second)
		if st := c.Stats(); st.Complaints != n/2 {
			t.Errorf("%+v", st)
		}
	})
}

// What a server sent that was no frame was in the log, passwords and all.
func TestGarbageIsNotInTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var out strings.Builder
		g := newFake(t, func(p *peer) {
			p.welcome()
			switch p.n {
			case 1:
				p.raw(`{"t":"entries","topic":"a","entries":[{"text":"my password is hunter2"}`)
			case 2:
				p.raw(`{"t":"my password is hunter2","my password is hunter2":`)
			case 3:
				p.Write(t.Context(), websocket.MessageBinary, []byte("my password is hunter2"))
			}
			p.drain()
		})
		g.client(func(o *client.Options) {
			o.Logger = slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
				mu.Lock()
				defer mu.Unlock()
				return out.Write(b)
			}), nil))
		})
		time.Sleep(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		got := out.String()
		if strings.Contains(got, "password") || !strings.Contains(got, "no frame (text, 71 bytes)") || !strings.Contains(got, "no frame (binary, 22 bytes)") {
			t.Error(got)
		}
	})
}

type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// Messages gave way to one for which there was no room even then.
func TestNoneIsDroppedInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) { p.welcomeWith(wire.Limits{Pending: 1}); p.drain() })
		c := g.client(func(o *client.Options) { o.Full, o.QueueBytes = client.DropOldest, 2000 })
		wait(t, c, client.Ready)
		long := `"` + strings.Repeat("x", 1500) + `"`
		send(t, c, "a", long) // on its way
		synctest.Wait()
		var small []*client.Pending
		for range 5 {
			small = append(small, send(t, c, "a", "1"))
		}
		if _, err := c.Send(t.Context(), "a", client.Message{Data: []byte(long)}); err != client.ErrQueueFull {
			t.Error(err)
		}
		for i, p := range small {
			if p.Progress() != client.Waiting {
				t.Errorf("message %d is %v", i, p.Progress())
			}
		}
		send(t, c, "a", `"`+strings.Repeat("x", 200)+`"`) // for which some are enough
		if small[0].Progress() != client.Failed || small[4].Progress() != client.Waiting {
			t.Error(small[0].Progress(), small[4].Progress())
		}
	})
}

// Whoever was logged out twice within ten seconds, as by two other devices of the user that
// were, was ended for good, though the server had welcomed the credentials in between.
func TestLoggedOutTwiceAndWelcomedInBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			if p.n <= 5 {
				time.Sleep(time.Second)
				p.Close(4401, "logged out")
				return
			}
			p.drain()
		})
		c := g.client(func(o *client.Options) {
			o.Prepare = func(context.Context, *client.Dial) error { return nil }
		})
		time.Sleep(10 * time.Minute)
		if state := c.State(); state != client.Ready || g.connections() != 6 {
			t.Errorf("%v, %d connections", state, g.connections())
		}
	})
}

// In a rolling restart most clients come to a node that restarts next. Because their
// connection had been short they did not keep to the window of its goodbye: of 200 clients
// the last was back after 7 s where the window was 1 s.
func TestARollingRestartIsOverWithinTheWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients, window = 200, time.Second
		o := gateway.Options{Drain: window, Authorize: func(context.Context, gateway.Access) (gateway.Grant, error) {
			return gateway.Grant{}, nil // a connection of its own for everybody
		}}
		s := newSite(t, o, nil, nil, "a0", "b0", "a1", "b1")
		lives := map[string]*atomic.Int32{"a:80": {}, "b:80": {}}
		dial := func(ctx context.Context, network, address string) (net.Conn, error) {
			return s.DialContext(ctx, network, fmt.Sprint(address[:1], lives[address].Load()))
		}
		var all []*client.Client
		for i := range clients {
			all = append(all, s.client([]string{"a b", "b a"}[i%2], func(o *client.Options) {
				o.HTTPClient = &http.Client{Transport: &http.Transport{DialContext: dial}}
			}))
		}
		for _, c := range all {
			wait(t, c, client.Ready)
		}
		time.Sleep(2 * time.Second) // none of them is stable
		restart := func(host string) {
			old := s.nodes[host+"0"]
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if err := old.gw.Shutdown(ctx); err != nil {
				t.Error(err)
			}
			old.network.Close()
			time.Sleep(50 * time.Millisecond)
			lives[host+":80"].Store(1)
		}
		began := time.Now()
		var restarts sync.WaitGroup
		restarts.Go(func() { restart("a") })
		time.Sleep(window / 2)
		restarts.Go(func() { restart("b") })
		restarts.Wait()
		for time.Since(began) < window/2+window+100*time.Millisecond {
			time.Sleep(10 * time.Millisecond)
		}
		away, goodbyes := 0, uint64(0)
		for _, c := range all {
			if c.State() != client.Ready {
				away++
			}
			goodbyes += c.Stats().Sessions - 1
		}
		if away > 0 {
			t.Errorf("%d of %d clients are not back when both windows are over", away, clients)
		}
		if goodbyes <= clients {
			t.Errorf("%d goodbyes for %d clients: none was sent away twice", goodbyes, clients)
		}
	})
}

// A frame that was cut between its header and its payload counted as garbage.
func TestAFrameThatIsCutIsNoGarbage(t *testing.T) {
	for cut := range 5 {
		synctest.Test(t, func(t *testing.T) {
			g := newFake(t, func(p *peer) {
				p.welcome()
				if p.n == 1 {
					p.expect(wire.Publish)
					p.g.network.Links()[0].EndAfter(memnet.Down, cut)
					p.send(wire.Frame{Type: wire.Beat})
				}
				p.drain()
			})
			var lost error
			c := g.client(func(o *client.Options) {
				o.Trace = &client.Trace{Down: func(_ *client.Session, err error, _ time.Duration) {
					if lost == nil {
						lost = err
					}
				}}
			})
			send(t, c, "a", "1")
			time.Sleep(time.Minute)
			if st := c.Stats(); st.Garbage != 0 || st.Sessions != 2 {
				t.Errorf("cut after %d bytes: %+v", cut, st)
			}
			c.Close(t.Context())
			if !errors.Is(lost, io.ErrUnexpectedEOF) {
				t.Errorf("cut after %d bytes: %v", cut, lost)
			}
		})
	}
}

// Close waited for the callback that it was called from, whatever its context said.
func TestCloseFromACallbackDoesNotOutlastItsContext(t *testing.T) {
	for _, tt := range []struct {
		reason string
		change func(o *client.Options, from func())
		most   time.Duration // after the context
	}{
		{"OnState", func(o *client.Options, from func()) { o.OnState = func(client.State) { from() } }, 0},
		{"Trace", func(o *client.Options, from func()) { o.Trace = &client.Trace{Up: func(*client.Session) { from() }} }, 250 * time.Millisecond},
		{"Prepare", func(o *client.Options, from func()) {
			o.Prepare = func(context.Context, *client.Dial) error { from(); return nil }
		}, 250 * time.Millisecond},
		{"Logger", func(o *client.Options, from func()) {
			o.Logger = slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) { from(); return len(b), nil }), nil))
		}, 250 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := newFake(t, func(p *peer) { p.welcome(); p.drain() })
			var c *client.Client
			made, closed := make(chan struct{}), make(chan time.Duration, 9)
			c = g.client(func(o *client.Options) {
				tt.change(o, func() {
					<-made
					ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
					defer cancel()
					began := time.Now()
					c.Close(ctx)
					closed <- time.Since(began)
				})
			})
			send(t, c, "a", "1") // and is not answered
			close(made)
			time.Sleep(time.Hour)
			select {
			case d := <-closed:
				if d > 3*time.Second+tt.most {
					t.Errorf("%s: it took %v", tt.reason, d)
				}
			default:
				t.Errorf("%s: Close has not returned after an hour", tt.reason)
			}
			if c.State() != client.Closed {
				t.Errorf("%s: %v", tt.reason, c.State())
			}
		})
	}
}

// Each Close that did not wait for a callback left a goroutine that did.
func TestACloseThatIsOverLeavesNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) { p.welcome(); p.drain() })
		hang := make(chan struct{})
		c := g.client(func(o *client.Options) { o.OnState = func(client.State) { <-hang } })
		wait(t, c, client.Ready)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		c.Close(ctx)
		synctest.Wait()
		before := runtime.NumGoroutine()
		for range 20 {
			c.Close(ctx)
		}
		synctest.Wait()
		if after := runtime.NumGoroutine(); after >= before+20 {
			t.Errorf("%d goroutines, %d before", after, before)
		}
		close(hang)
	})
}

// logged returns a client's option and what is logged with it, one line for each event.
func logged(lines *journal) func(*client.Options) {
	return func(o *client.Options) {
		o.Logger = slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
			_, text, _ := strings.Cut(strings.TrimSpace(string(b)), "level=") // without the time
			lines.add("%s", text)
			return len(b), nil
		}), nil))
	}
}

// The reason for which a server had closed stood somewhere in a sentence, which was cut.
func TestWhyASessionEndedIsInAttributes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := strings.Repeat("because ", 15)
		g := newFake(t, func(p *peer) {
			switch p.n {
			case 1:
				p.welcome()
				time.Sleep(62 * time.Second)
				p.Close(4401, "logged out")
			case 2:
				p.welcome()
				time.Sleep(time.Hour)
				p.send(wire.Frame{Type: wire.Goodbye, Reason: "drain", Window: 1})
				p.Close(1012, long)
			case 3:
				p.expect(wire.Hello)
				p.send(wire.Frame{Type: wire.Error, Code: wire.Forbidden, Message: "not you"})
				p.Close(4403, "forbidden")
			}
		})
		var lines journal
		c := g.client(logged(&lines), func(o *client.Options) {
			o.Prepare = func(context.Context, *client.Dial) error { return nil }
			o.Backoff.Rand = func(uint64) uint64 { return 0 }
			o.Heartbeat.Interval = -1 // the fake does not read
		})
		wait(t, c, client.Ready)
		time.Sleep(2 * time.Hour)
		var ends []string
		for _, line := range lines.all() {
			if strings.Contains(line, "lost") || strings.Contains(line, "ended") || strings.Contains(line, "goodbye") {
				line, _, _ = strings.Cut(line, " wait=")
				ends = append(ends, line)
			}
		}
		want := []string{
			`WARN msg="websocket: connection lost" url=ws://gateway.test/ws session=1 code=4401 reason="logged out" lasted=1m2s`,
			`INFO msg="client: goodbye" session=2 reason=drain window=1ms`,
			`INFO msg="websocket: connection lost" url=ws://gateway.test/ws session=2 code=1012 reason="` + long + `" lasted=1h0m0s`,
			`ERROR msg="websocket: session ended for good" url=ws://gateway.test/ws session=3 code=4403 reason=forbidden lasted=0s err="client: the server says forbidden: not you"`,
		}
		same(t, "the log", want, ends)
	})
}

// A client that was too fast for the limits of its server became slow, and nobody said why.
func TestALimitIsInTheLogOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			s := p.expect(wire.Subscribe)
			p.send(wire.Frame{Type: wire.Error, Code: wire.TooManyTopics, Topic: s.Topic, Ref: s.Ref, Message: "is one too many on this connection (128, gateway.Limits.Topics)"})
			refused := map[string]bool{}
			for {
				f := p.expect(wire.Publish)
				if !refused[f.ID] {
					refused[f.ID] = true
					p.send(wire.Frame{Type: wire.Nack, ID: f.ID, Outcome: wire.NotStored, Code: wire.TooFast, Message: "too many messages (20 a second, gateway.Limits.Publishes):\nslow down", Retry: 1})
					continue
				}
				p.send(ack(f.ID, 1))
			}
		})
		var lines journal
		c := g.client(logged(&lines))
		s := subscribe(t, c, "a", nil)
		next(s)
		for range 11 {
			send(t, c, "b", "1")
		}
		time.Sleep(time.Minute)
		var got []string
		for _, line := range lines.all() {
			if strings.Contains(line, "limit") {
				got = append(got, line)
			}
		}
		want := []string{
			`INFO msg="client: a limit of the server is reached" session=1 code=too_many_topics topic=a limit=128 option=gateway.Limits.Topics message="is one too many on this connection (128, gateway.Limits.Topics)"`,
			`INFO msg="client: a limit of the server is reached" session=1 code=too_fast limit="20 a second" option=gateway.Limits.Publishes message="too many messages (20 a second, gateway.Limits.Publishes):\\nslow down"`,
		}
		same(t, "the log", want, got)
	})
}

// The limit was empty where a gateway names a rate.
func TestLimitsOfARealGatewayAreInTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		site := newSite(t, gateway.Options{Limits: gateway.Limits{Topics: 1, Publishes: 5, Message: 1 << 10}}, nil, nil, "a")
		var lines journal
		c := site.client("a", logged(&lines))
		ready(t, subscribe(t, c, "a", nil))
		next(subscribe(t, c, "b", nil)) // is refused
		for range 30 {
			send(t, c, "a", "1")
		}
		time.Sleep(time.Minute)
		var got []string
		for _, line := range lines.all() {
			if strings.Contains(line, "limit") {
				got = append(got, line)
			}
		}
		want := []string{
			`INFO msg="client: a limit of the server is reached" session=1 code=too_many_topics topic=b limit=1 option=gateway.Limits.Topics message="is one too many on this connection (1, gateway.Limits.Topics)"`,
			`INFO msg="client: a limit of the server is reached" session=1 code=too_fast limit="5 a second" option=gateway.Limits.Publishes message="too many messages (5 a second, gateway.Limits.Publishes)"`,
		}
		same(t, "the log", want, got)
	})
}

// One ephemeral message beyond its rate made the client slow in all it did, for the rest of the
// session.
func TestADroppedEphemeralSlowsNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		site := newSite(t, gateway.Options{}, nil, nil, "a")
		var lines journal
		c := site.client("a", logged(&lines))
		wait(t, c, client.Ready)
		for range 100 {
			if err := c.PublishEphemeral("a", []byte("1")); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		time.Sleep(time.Second)
		began := time.Now()
		var subs []*client.Subscription
		for i := range 64 {
			subs = append(subs, subscribe(t, c, fmt.Sprint(i), nil))
		}
		for _, s := range subs {
			ready(t, s)
		}
		if d, st := time.Since(began), c.Stats(); d > 100*time.Millisecond || st.Complaints == 0 || st.Complaints > 2 {
			t.Errorf("after %v, %d complaints", d, st.Complaints)
		}
		if got := strings.Join(lines.all(), "\n"); strings.Count(got, "code=too_fast") != 1 {
			t.Errorf("the log: %s", got)
		}
	})
}

// What planted bugs have shown that no test looked at.

// A paused subscription may find its place given away when it comes back. It is tried again.
func TestTooManyTopicsWhileResuming(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			p.accept(at(0))
			p.send(entries("a", 1, 5))
			f := p.expect(wire.Unsubscribe)
			p.send(wire.Frame{Type: wire.Unsubscribed, Topic: f.Topic, Ref: f.Ref})
			refused := p.expect(wire.Subscribe)
			p.send(wire.Frame{Type: wire.Error, Code: wire.TooManyTopics, Topic: "a", Ref: refused.Ref})
			began := time.Now()
			again := p.accept(at(2))
			if d := time.Since(began); d < time.Second || len(again.From) != 1 || again.From[0] != at(2) {
				t.Errorf("after %v: %s", d, again.Append(nil))
			}
			p.send(entries("a", 3, 4))
			p.drain()
		})
		c := g.client(func(o *client.Options) { o.BufferMessages = 2 })
		s := subscribe(t, c, "a", nil)
		ready(t, s)
		time.Sleep(time.Second)
		gets(t, s, "1 2 3 4")
	})
}

// Somebody who gives up waiting for room in the queue lets those through who stood behind.
func TestWhoStoodBehindASenderThatGaveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) { p.welcome(); p.drain() })
		c := g.client(func(o *client.Options) { o.QueueBytes = 1000 })
		wait(t, c, client.Ready)
		send(t, c, "a", `"`+strings.Repeat("x", 500)+`"`)
		began := time.Now()
		var senders sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		senders.Go(func() {
			if _, err := c.Send(ctx, "a", client.Message{Data: []byte(`"` + strings.Repeat("y", 800) + `"`)}); err != context.DeadlineExceeded {
				t.Error(err)
			}
		})
		synctest.Wait()
		send(t, c, "a", "1") // small enough, but not its turn
		if d := time.Since(began); d != 2*time.Second {
			t.Errorf("it had to wait for %v", d)
		}
		senders.Wait()
	})
}

// Close waited for the timer of messages that were answered long ago.
func TestCloseDoesNotWaitForTimers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			f := p.expect(wire.Publish)
			p.send(ack(f.ID, 1))
			p.drain()
		})
		c := g.client()
		if got := outcome(send(t, c, "a", "1")); got != "committed" {
			t.Error(got)
		}
		began := time.Now()
		if err := c.Close(t.Context()); err != nil || time.Since(began) > time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// A subscription whose buffer is full is not asked for after a reconnect, before there is room.
func TestAPausedSubscriptionStaysPaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			if p.n == 1 {
				p.accept(at(0))
				p.send(entries("a", 1, 5))
				p.expect(wire.Unsubscribe)
				return
			}
			if f := p.accept(at(2)); time.Since(p.since) < time.Minute {
				t.Errorf("asked for before there was room: %s", f.Append(nil))
			}
			p.send(entries("a", 3, 4))
			p.drain()
		})
		c := g.client(func(o *client.Options) { o.BufferMessages, o.Heartbeat.Interval = 2, -1 })
		s := subscribe(t, c, "a", nil)
		ready(t, s)
		time.Sleep(30 * time.Second)
		wait(t, c, client.Ready)
		time.Sleep(time.Hour)
		gets(t, s, "1 2 3 4")
	})
}
