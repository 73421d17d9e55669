package client_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/internal/wire"
)

func TestAPublishIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			f := p.expect(wire.Publish)
			if f.Topic != "room/7" || f.ID != "my id" || f.Key != "k" || string(f.Data) != `{"a":1}` || f.Kind != wire.JSON {
				t.Errorf("%s", f.Append(nil))
			}
			p.send(ack(f.ID, 7))
			f = p.expect(wire.Publish)
			p.send(wire.Frame{Type: wire.Ack, ID: f.ID, Outcome: wire.Duplicate, Pos: at(3)})
			f = p.expect(wire.Publish)
			p.send(wire.Frame{Type: wire.Ack, ID: f.ID, Outcome: wire.Queued})
			p.drain()
		})
		c := g.client()
		r, err := c.Publish(t.Context(), "room/7", client.Message{ID: "my id", Key: "k", Data: []byte(`{"a":1}`)})
		if err != nil || r != (client.Receipt{Outcome: client.Committed, ID: "my id", Pos: at(7)}) {
			t.Errorf("%+v, %v", r, err)
		}
		r, err = c.Publish(t.Context(), "a", client.Message{})
		if err != nil || r.Outcome != client.Duplicate || r.Pos != at(3) || r.ID == "" {
			t.Errorf("%+v, %v", r, err)
		}
		p := send(t, c, "a", "3")
		if p.Progress() != client.Waiting && p.Progress() != client.Written || p.ID() == r.ID || p.ID() == "" {
			t.Errorf("%v, ID %s after %s", p.Progress(), p.ID(), r.ID)
		}
		<-p.Done()
		if r, err := p.Wait(t.Context()); err != nil || r.Outcome != client.Queued || p.Progress() != client.Answered {
			t.Errorf("%+v, %v, %v", r, err, p.Progress())
		}
		if st := c.Stats(); st.Published != 3 || st.Failed != 0 || st.Resent != 0 || st.Queued != 0 || st.QueuedBytes != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestDataTravelsAsWhatItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		g := newFake(t, func(p *peer) {
			p.welcome()
			for {
				f := p.next()
				j.add("%s:%v:%q", f.Type, f.Kind, f.Data)
				if f.Type == wire.Publish {
					p.send(ack(f.ID, 1))
				}
			}
		})
		c := g.client()
		for _, data := range []string{`{"a":[1]}`, "null", `"x"`, "hello", "", "a\x00\"b", "\xff\x00"} {
			mine := []byte(data)
			if _, err := c.Publish(t.Context(), "a", client.Message{Data: mine}); err != nil {
				t.Error(err)
			}
			clear(mine) // it was copied
			if err := c.PublishEphemeral("a", []byte(data)); err != nil {
				t.Error(err)
			}
			synctest.Wait()
		}
		time.Sleep(time.Second)
		var want []string
		for _, s := range []string{`JSON:"{\"a\":[1]}"`, `JSON:"null"`, `JSON:"\"x\""`, `text:"hello"`, `text:""`, `text:"a\x00\"b"`, `binary:"\xff\x00"`} {
			want = append(want, "publish:"+s, "ephemeral:"+s)
		}
		same(t, "the server got", want, j.all())
	})
}

// What was not answered when the connection was lost is sent again, with the same ids, in
// the same order, before what is new.
func TestWhatIsNotAnsweredIsSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		ids := map[string]string{}
		g := newFake(t, func(p *peer) {
			p.welcome()
			for n := 1; ; n++ {
				f := p.expect(wire.Publish)
				data := string(f.Data)
				j.add("%s", data)
				if ids[data] == "" {
					ids[data] = f.ID
				}
				if ids[data] != f.ID {
					t.Errorf("message %s with id %s and %s", data, ids[data], f.ID)
				}
				switch {
				case p.n == 1 && n == 5:
					p.send(ack(ids["1"], 1), ack(ids["2"], 2))
					time.Sleep(time.Second)
					j.add("|")
					return
				case p.n == 2:
					p.send(wire.Frame{Type: wire.Ack, ID: f.ID, Outcome: wire.Duplicate, Pos: at(n)})
				}
			}
		})
		c := g.client()
		var all []*client.Pending
		for n := 1; n <= 5; n++ {
			all = append(all, send(t, c, fmt.Sprint("topic", n%2), fmt.Sprint(n)))
		}
		wait(t, c, client.Ready)
		time.Sleep(500 * time.Millisecond)
		for i, p := range all {
			if want := map[bool]client.Progress{true: client.Answered, false: client.Written}[i < 2]; p.Progress() != want {
				t.Errorf("message %d is %v", i+1, p.Progress())
			}
		}
		wait(t, c, client.Connecting)
		if all[3].Progress() != client.Waiting {
			t.Errorf("after the loss message 4 is %v", all[3].Progress())
		}
		all = append(all, send(t, c, "topic0", "6"))
		var got []string
		for _, p := range all {
			got = append(got, outcome(p))
		}
		same(t, "outcomes", strings.Fields("committed committed duplicate duplicate duplicate duplicate"), got)
		same(t, "the server got", strings.Fields("1 2 3 4 5 | 3 4 5 6"), j.all())
		if st := c.Stats(); st.Resent != 3 || st.Published != 6 {
			t.Errorf("%+v", st)
		}
	})
}

func TestNotMoreThanPendingWait(t *testing.T) {
	for _, pending := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			most := 0
			g := newFake(t, func(p *peer) {
				p.welcomeWith(wire.Limits{Pending: pending})
				var mu sync.Mutex
				var open []string
				go func() {
					for n := 1; n <= 20; n++ {
						time.Sleep(time.Second)
						mu.Lock()
						f := ack(open[0], n)
						open = open[1:] // before it is told
						mu.Unlock()
						p.Write(context.Background(), 1, f.Append(nil))
					}
				}()
				for {
					f := p.expect(wire.Publish)
					mu.Lock()
					open = append(open, f.ID)
					most = max(most, len(open))
					mu.Unlock()
				}
			})
			c := g.client()
			var all []*client.Pending
			for n := range 20 {
				all = append(all, send(t, c, "a", fmt.Sprint(n)))
			}
			for _, p := range all {
				if got := outcome(p); got != "committed" {
					t.Error(got)
				}
			}
			if most != pending {
				t.Errorf("%d were open, want %d", most, pending)
			}
		})
	}
}

// A server without limits gets no more than 256 messages that it has not answered.
func TestAServerWithoutLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got atomic.Int32
		g := newFake(t, func(p *peer) {
			p.welcomeWith(wire.Limits{})
			for ; ; got.Add(1) {
				p.expect(wire.Publish)
			}
		})
		c := g.client()
		for range 300 {
			send(t, c, "a", strings.Repeat("1", 1000))
		}
		time.Sleep(time.Minute - time.Second)
		if got.Load() != 256 {
			t.Errorf("%d", got.Load())
		}
	})
}

func TestWords(t *testing.T) {
	for got, want := range map[fmt.Stringer]string{
		client.Unknown: "unknown", client.NotStored: "not stored", client.Committed: "committed", client.Duplicate: "duplicate",
		client.Queued: "queued", client.Outcome(9): "Outcome(9)",
		client.Waiting: "Waiting", client.Written: "Written", client.Answered: "Answered", client.Failed: "Failed", client.Progress(9): "Progress(9)",
		client.Connecting: "Connecting", client.Ready: "Ready", client.Closing: "Closing", client.Closed: "Closed", client.State(9): "State(9)",
	} {
		if got.String() != want {
			t.Errorf("%v, want %s", got, want)
		}
	}
	for err, want := range map[error]string{
		&client.InputError{Field: "topic", Reason: "is empty"}:                     "client: topic is empty",
		&client.ServerError{Code: "forbidden"}:                                     "client: the server says forbidden",
		&client.ServerError{Code: "bad_frame", Field: "id", Message: "is missing"}: "client: the server says bad_frame (id): is missing",
	} {
		if err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestMessagesThatAreTooLargeAreNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		g := newFake(t, func(p *peer) {
			p.welcomeWith(wire.Limits{Message: 1000, Pending: 64})
			for {
				f := p.next()
				j.add("%d", len(f.Data))
				if f.Type == wire.Publish {
					p.send(ack(f.ID, 1))
				}
			}
		})
		c := g.client(func(o *client.Options) { o.QueueBytes = 5000 })
		big := make([]byte, 800) // more than 1000 as it travels
		before := send(t, c, "a", string(big))
		small := send(t, c, "a", "12345")
		if r, err := before.Wait(t.Context()); !errors.Is(err, client.ErrTooLarge) || r.Outcome != client.NotStored {
			t.Errorf("before the limit was known: %v, %v", r, err)
		}
		if got := outcome(small); got != "committed" {
			t.Error(got)
		}
		if r, err := c.Publish(t.Context(), "a", client.Message{Data: big}); !errors.Is(err, client.ErrTooLarge) || r.Outcome != client.NotStored || !strings.Contains(err.Error(), "1000") {
			t.Errorf("%v, %v", r, err)
		}
		if _, err := c.Send(t.Context(), "a", client.Message{Data: big}); !errors.Is(err, client.ErrTooLarge) {
			t.Errorf("Send, when the limit is known: %v", err)
		}
		if err := c.PublishEphemeral("a", big); !errors.Is(err, client.ErrTooLarge) {
			t.Error(err)
		}
		// The greatest that goes.
		n := 1000 - len(`{"t":"publish","topic":"a","id":"x","text":""}`)
		for _, more := range []int{0, 1} {
			_, err := c.Publish(t.Context(), "a", client.Message{ID: "x", Data: []byte(strings.Repeat("x", n+more))})
			if (err == nil) != (more == 0) {
				t.Errorf("%d bytes more than 1000: %v", more, err)
			}
		}
		if j.String() != fmt.Sprint("5 ", n) {
			t.Error(j.String())
		}
		c2 := g.client(func(o *client.Options) { o.QueueBytes = 100 })
		if _, err := c2.Send(t.Context(), "a", client.Message{Data: make([]byte, 100)}); !errors.Is(err, client.ErrTooLarge) {
			t.Errorf("more than the queue: %v", err)
		}
	})
}

func TestNacks(t *testing.T) {
	for _, test := range []struct {
		code, outcome string
		want          string // "" if it is tried again
	}{
		{wire.Forbidden, wire.NotStored, "not stored"},
		{wire.BadFrame, wire.NotStored, "not stored"},
		{wire.TooLarge, wire.NotStored, "not stored"},
		{wire.Unsupported, wire.Unknown, "unknown"},
		{"something new", "something new", "unknown"},
		{wire.TooFast, wire.NotStored, ""},
		{wire.TooManyPending, wire.NotStored, ""},
		{wire.Unavailable, wire.NotStored, ""},
		{wire.Unavailable, wire.Unknown, ""},
		{wire.Internal, wire.Unknown, ""},
	} {
		t.Run(test.code+"_"+test.outcome, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var tries []time.Time
				var ids []string
				g := newFake(t, func(p *peer) {
					p.welcome()
					for {
						f := p.expect(wire.Publish)
						if f.Topic == "other" {
							p.send(ack(f.ID, 1))
							continue
						}
						tries, ids = append(tries, time.Now()), append(ids, f.ID)
						if len(tries) < 3 {
							p.send(wire.Frame{Type: wire.Nack, ID: f.ID, Code: test.code, Outcome: test.outcome, Field: "data", Message: "no", Retry: 4000})
							continue
						}
						p.send(ack(f.ID, 2))
					}
				})
				c := g.client()
				wait(t, c, client.Ready)
				p := send(t, c, "a", "1")
				time.Sleep(time.Second)
				other := send(t, c, "other", "2")
				synctest.Wait()
				time.Sleep(10 * time.Millisecond)
				// A topic that cannot be stored in holds up no other; a rate is the
				// connection's.
				held := test.code == wire.TooFast || test.code == wire.TooManyPending
				if (other.Progress() == client.Answered) == held {
					t.Errorf("the message to another topic is %v", other.Progress())
				}
				r, err := p.Wait(t.Context())
				if test.want != "" {
					var refused *client.ServerError
					if !errors.As(err, &refused) || refused.Code != test.code || refused.Field != "data" || refused.Message != "no" || r.Outcome.String() != test.want || len(tries) != 1 {
						t.Errorf("%v, %v after %d tries", r, err, len(tries))
					}
					return
				}
				if err != nil || r.Outcome != client.Committed || len(tries) != 3 || ids[0] != ids[1] || ids[1] != ids[2] {
					t.Fatalf("%v, %v after %d tries", r, err, len(tries))
				}
				for i := 1; i < 3; i++ {
					if d := tries[i].Sub(tries[i-1]); d < 4*time.Second || d > 6*time.Second {
						t.Errorf("tried again after %v, the server said 4 s", d)
					}
				}
				if g.connections() != 1 {
					t.Errorf("%d connections", g.connections())
				}
			})
		})
	}
}

// What is refused for the moment goes on before what follows it, and the server is not
// asked in a hot loop.
func TestARefusalForTheMomentKeepsTheOrder(t *testing.T) {
	for _, code := range []string{wire.TooFast, wire.Unavailable} {
		synctest.Test(t, func(t *testing.T) {
			var stored []string
			frames := 0
			began := time.Now()
			g := newFake(t, func(p *peer) {
				p.welcome()
				for {
					f := p.expect(wire.Publish)
					frames++
					if time.Since(began) < 20*time.Second {
						p.send(wire.Frame{Type: wire.Nack, ID: f.ID, Code: code, Outcome: wire.NotStored})
						continue
					}
					stored = append(stored, string(f.Data))
					p.send(ack(f.ID, len(stored)))
				}
			})
			c := g.client()
			var all []*client.Pending
			for n := 1; n <= 100; n++ {
				all = append(all, send(t, c, "a", fmt.Sprint(n)))
			}
			for _, p := range all {
				if got := outcome(p); got != "committed" {
					t.Error(got)
				}
			}
			same(t, code+": stored", strings.Fields(numbers(1, 100)), stored)
			if frames > 100+64+25 { // one at a time is tried
				t.Errorf("%s: %d frames", code, frames)
			}
			t.Logf("%s: %d frames, %v", code, frames, time.Since(began))
		})
	}
}

func TestMessagesExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcomeWith(wire.Limits{Pending: 1})
			p.drain()
		})
		c := g.client(func(o *client.Options) { o.Age = 30 * time.Second })
		wait(t, c, client.Ready)
		one := send(t, c, "a", "1")
		time.Sleep(10 * time.Second)
		two := send(t, c, "a", "2")
		time.Sleep(19 * time.Second)
		if one.Progress() != client.Written || two.Progress() != client.Waiting {
			t.Errorf("%v, %v", one.Progress(), two.Progress())
		}
		time.Sleep(2 * time.Second)
		if one.Progress() != client.Failed || two.Progress() == client.Failed {
			t.Errorf("after 31 s: %v, %v", one.Progress(), two.Progress())
		}
		// The server may not be sent a second one before it has answered the first; but it
		// does not answer at all, and another connection may be better.
		time.Sleep(6 * time.Second)
		if two.Progress() != client.Written || g.connections() != 2 {
			t.Errorf("after 37 s: %v, %d connections", two.Progress(), g.connections())
		}
		three := send(t, c, "a", "3")
		if got := outcome(one); got != "unknown: "+client.ErrExpired.Error() {
			t.Error(got)
		}
		if got := outcome(two); got != "unknown: "+client.ErrExpired.Error() {
			t.Error(got)
		}
		if got := outcome(three); got != "unknown: "+client.ErrExpired.Error() {
			t.Error(got) // it was written when the second had expired
		}
	})
	synctest.Test(t, func(t *testing.T) { // offline
		g := newFake(t, nil)
		g.network.Set(memnetRefuse)
		c := g.client()
		p := send(t, c, "a", "1")
		began := time.Now()
		if got := outcome(p); got != "not stored: "+client.ErrExpired.Error() || time.Since(began) != client.DefaultAge {
			t.Error(got, time.Since(began))
		}
	})
}

// An answer that comes after all is not taken for another's.
func TestALateAnswerIsIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			f := p.expect(wire.Publish)
			time.Sleep(31 * time.Second)
			p.send(ack(f.ID, 1))
			f = p.expect(wire.Publish)
			p.send(ack(f.ID, 2))
			p.drain()
		})
		c := g.client(func(o *client.Options) { o.Age = 30 * time.Second })
		one := send(t, c, "a", "1")
		if got := outcome(one); got != "unknown: "+client.ErrExpired.Error() {
			t.Error(got)
		}
		time.Sleep(10 * time.Second)
		r, err := c.Publish(t.Context(), "a", client.Message{})
		if err != nil || r.Pos != at(2) {
			t.Errorf("%v, %v", r, err)
		}
	})
}

// Two messages of one id, the second sent because the first was given up by its caller,
// get an answer each.
func TestTheSameIDTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			one, two := p.expect(wire.Publish), p.expect(wire.Publish)
			p.send(ack(one.ID, 1), wire.Frame{Type: wire.Ack, ID: two.ID, Outcome: wire.Duplicate, Pos: at(1)})
			p.drain()
		})
		c := g.client()
		wait(t, c, client.Ready)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r, err := c.Publish(ctx, "a", client.Message{ID: "x"})
		if err != context.DeadlineExceeded || r != (client.Receipt{Outcome: client.Unknown, ID: "x"}) {
			t.Errorf("%v, %v", r, err)
		}
		r, err = c.Publish(t.Context(), "a", client.Message{ID: r.ID})
		if err != nil || r != (client.Receipt{Outcome: client.Duplicate, ID: "x", Pos: at(1)}) {
			t.Errorf("%v, %v", r, err)
		}
	})
}

// offline returns a client that has no connection.
func offline(t *testing.T, change func(o *client.Options)) *client.Client {
	g := newFake(t, nil)
	g.network.Set(memnetRefuse)
	return g.client(change)
}

func TestAQueueThatRejects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := offline(t, func(o *client.Options) { o.Full, o.QueueMessages = client.Reject, 3 })
		for range 3 {
			send(t, c, "a", "1")
		}
		if _, err := c.Send(t.Context(), "a", client.Message{}); err != client.ErrQueueFull {
			t.Error(err)
		}
		if st := c.Stats(); st.Queued != 3 {
			t.Errorf("%+v", st)
		}
		time.Sleep(client.DefaultAge)
		synctest.Wait()
		send(t, c, "a", "1") // there is room again
	})
	synctest.Test(t, func(t *testing.T) { // by bytes
		frame := len(`{"t":"publish","topic":"a","id":"x","data":1}`)
		c := offline(t, func(o *client.Options) { o.Full, o.QueueBytes = client.Reject, 2*frame })
		m := client.Message{ID: "x", Data: []byte("1")}
		for range 2 {
			if _, err := c.Send(t.Context(), "a", m); err != nil {
				t.Error(err)
			}
		}
		if _, err := c.Send(t.Context(), "a", m); err != client.ErrQueueFull || c.Stats().QueuedBytes != 2*frame {
			t.Errorf("%v, %+v", err, c.Stats())
		}
		c = offline(t, func(o *client.Options) { o.Full, o.QueueBytes = client.Reject, 2*frame-1 })
		c.Send(t.Context(), "a", m)
		if _, err := c.Send(t.Context(), "a", m); err != client.ErrQueueFull {
			t.Errorf("%v, %+v", err, c.Stats())
		}
	})
}

func TestDefaultsOfTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := offline(t, func(o *client.Options) { o.Full = client.Reject })
		for range client.DefaultQueueMessages {
			send(t, c, "a", "1")
		}
		if _, err := c.Send(t.Context(), "a", client.Message{}); err != client.ErrQueueFull {
			t.Error(err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		c := offline(t, func(o *client.Options) { o.Full = client.Reject })
		sent, err := 0, error(nil)
		for data := strings.Repeat("x", 64<<10); err == nil; sent++ {
			_, err = c.Send(t.Context(), "a", client.Message{Data: []byte(data)})
		}
		if st := c.Stats(); err != client.ErrQueueFull || sent != 16 || st.QueuedBytes > client.DefaultQueueBytes {
			t.Errorf("%d messages of 64 KiB, %v, %+v", sent, err, st)
		}
	})
	synctest.Test(t, func(t *testing.T) { // the zero Full is Block
		c := offline(t, func(o *client.Options) { o.QueueMessages = 1 })
		send(t, c, "a", "1")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Send(ctx, "a", client.Message{}); err != context.DeadlineExceeded {
			t.Error(err)
		}
	})
}

func TestAQueueThatDropsTheOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := offline(t, func(o *client.Options) { o.Full, o.QueueMessages = client.DropOldest, 3 })
		var all []*client.Pending
		for n := range 5 {
			all = append(all, send(t, c, "a", fmt.Sprint(n)))
		}
		for i, p := range all {
			if want := map[bool]client.Progress{true: client.Failed, false: client.Waiting}[i < 2]; p.Progress() != want {
				t.Errorf("message %d is %v", i, p.Progress())
			}
		}
		if got := outcome(all[0]); got != "not stored: "+client.ErrDropped.Error() {
			t.Error(got)
		}
		if st := c.Stats(); st.Queued != 3 || st.Failed != 2 {
			t.Errorf("%+v", st)
		}
	})
	synctest.Test(t, func(t *testing.T) { // what is on its way is not dropped
		g := newFake(t, func(p *peer) { p.welcomeWith(wire.Limits{Pending: 2}); p.drain() })
		c := g.client(func(o *client.Options) { o.Full, o.QueueMessages = client.DropOldest, 2 })
		wait(t, c, client.Ready)
		one, two := send(t, c, "a", "1"), send(t, c, "a", "2")
		synctest.Wait()
		if _, err := c.Send(t.Context(), "a", client.Message{}); err != client.ErrQueueFull {
			t.Error(err)
		}
		if one.Progress() != client.Written || two.Progress() != client.Written {
			t.Error(one.Progress(), two.Progress())
		}
	})
}

// Those who wait for room get it in the order in which they came.
func TestAQueueThatBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stored []string
		start := make(chan bool)
		g := newFake(t, func(p *peer) {
			p.welcome()
			<-start
			for {
				f := p.expect(wire.Publish)
				stored = append(stored, string(f.Data))
				p.send(ack(f.ID, len(stored)))
			}
		})
		c := g.client(func(o *client.Options) { o.QueueMessages = 3 })
		for n := 1; n <= 3; n++ {
			send(t, c, "a", fmt.Sprint(n))
		}
		enough := errors.New("enough")
		var callers sync.WaitGroup
		for n := 4; n <= 20; n++ {
			callers.Go(func() {
				ctx := t.Context()
				if n%5 == 0 {
					var cancel func()
					ctx, cancel = context.WithTimeoutCause(ctx, time.Second, enough)
					defer cancel()
				}
				p, err := c.Send(ctx, "a", client.Message{Data: fmt.Append(nil, n)})
				if n%5 == 0 {
					if err != enough || p != nil {
						t.Errorf("message %d: %v, %v", n, p, err)
					}
					return
				}
				if err != nil {
					t.Errorf("message %d: %v", n, err)
				} else if got := outcome(p); got != "committed" {
					t.Errorf("message %d: %s", n, got)
				}
			})
			synctest.Wait()
		}
		if st := c.Stats(); st.Queued != 3 {
			t.Errorf("%+v", st)
		}
		time.Sleep(10 * time.Second)
		close(start)
		callers.Wait()
		same(t, "stored", strings.Fields("1 2 3 4 6 7 8 9 11 12 13 14 16 17 18 19"), stored)
	})
}

// A small message does not overtake a great one that waits for room.
func TestASmallMessageWaitsBehindAGreatOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stored []string
		g := newFake(t, func(p *peer) {
			p.welcome()
			time.Sleep(10 * time.Second)
			for {
				f := p.expect(wire.Publish)
				stored = append(stored, f.ID)
				p.send(ack(f.ID, len(stored)))
			}
		})
		c := g.client(func(o *client.Options) { o.QueueBytes = 1000 })
		var callers sync.WaitGroup
		for _, m := range []struct {
			id   string
			size int
		}{{"first", 500}, {"great", 800}, {"small", 1}} {
			callers.Go(func() {
				if _, err := c.Publish(t.Context(), "a", client.Message{ID: m.id, Data: []byte(strings.Repeat("1", m.size))}); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		if st := c.Stats(); st.Queued != 1 {
			t.Errorf("%+v", st)
		}
		callers.Wait()
		same(t, "stored", []string{"first", "great", "small"}, stored)
	})
}

// What may have been stored once is not certain not to be, whatever is said of later tries.
func TestADoubtRemains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			for _, answer := range [][2]string{{wire.Unavailable, wire.Unknown}, {wire.Unavailable, wire.NotStored}, {wire.Forbidden, wire.NotStored}} {
				f := p.expect(wire.Publish)
				p.send(wire.Frame{Type: wire.Nack, ID: f.ID, Code: answer[0], Outcome: answer[1]})
			}
			p.drain()
		})
		c := g.client()
		if got := outcome(send(t, c, "a", "1")); got != "unknown: client: the server says forbidden" {
			t.Error(got)
		}
	})
}

func TestADoneContextQueuesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := offline(t, func(o *client.Options) {})
		enough := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(enough)
		for range 100 {
			if p, err := c.Send(ctx, "a", client.Message{}); p != nil || err != enough || c.Stats().Queued != 0 {
				t.Fatalf("%v, %v, %+v", p, err, c.Stats())
			}
		}
	})
}

func TestCloseTellsThoseWhoWaitForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := offline(t, func(o *client.Options) { o.QueueMessages = 1 })
		send(t, c, "a", "1")
		var callers sync.WaitGroup
		for range 10 {
			callers.Go(func() {
				if p, err := c.Send(context.Background(), "a", client.Message{}); err != client.ErrClosed || p != nil {
					t.Errorf("%v, %v", p, err)
				}
			})
		}
		synctest.Wait()
		go c.Close(t.Context()) // which waits for the first message
		callers.Wait()
	})
}

// A caller that gives up withdraws what was not yet sent.
func TestAMessageIsWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := offline(t, func(o *client.Options) {})
		enough := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, enough)
		defer cancel()
		r, err := c.Publish(ctx, "a", client.Message{ID: "x"})
		if err != enough || r != (client.Receipt{Outcome: client.NotStored, ID: "x"}) || c.Stats().Queued != 0 {
			t.Errorf("%v, %v, %+v", r, err, c.Stats())
		}
		// With Send it stays.
		p := send(t, c, "a", "1")
		ctx, cancel = context.WithTimeoutCause(t.Context(), time.Second, enough)
		defer cancel()
		if r, err := p.Wait(ctx); err != enough || r.Outcome != client.Unknown || c.Stats().Queued != 1 {
			t.Errorf("%v, %v, %+v", r, err, c.Stats())
		}
	})
}

func TestMessagesThatCannotBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := offline(t, func(o *client.Options) {})
		for _, test := range []struct {
			m     client.Message
			field string
		}{
			{client.Message{ID: strings.Repeat("x", 129)}, "ID"},
			{client.Message{ID: "\xff"}, "ID"},
			{client.Message{Key: strings.Repeat("x", 256)}, "Key"},
			{client.Message{Key: "\xff"}, "Key"},
		} {
			var bad *client.InputError
			r, err := c.Publish(t.Context(), "a", test.m)
			if !errors.As(err, &bad) || bad.Field != test.field || r.Outcome != client.NotStored {
				t.Errorf("%.20q %.20q: %v, %v", test.m.ID, test.m.Key, r, err)
			}
		}
		if _, err := c.Send(t.Context(), "a", client.Message{ID: strings.Repeat("x", 128), Key: strings.Repeat("x", 255)}); err != nil {
			t.Error(err)
		}
	})
}

func TestEphemeralMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		read := make(chan bool)
		g := newFake(t, func(p *peer) {
			p.welcome()
			p.accept(at(0))
			p.send(wire.Frame{Type: wire.Ephemeral, Topic: "a", Payload: wire.Payload{Kind: wire.Text, Data: []byte("typing")}})
			p.send(entries("a", 1, 1))
			<-read
			for {
				f := p.next()
				j.add("%s", f.Type)
				if f.Type == wire.Publish {
					p.send(ack(f.ID, 1))
				}
			}
		})
		g.network.Set(memnetSmall)
		c := g.client()
		if err := c.PublishEphemeral("a", []byte("1")); err != client.ErrNotReady {
			t.Errorf("before there is a connection: %v", err)
		}
		s := subscribe(t, c, "a", nil)
		gets(t, s, "~typing 1")
		if s.Position() != at(1) {
			t.Errorf("stands at %v", s.Position())
		}
		// A writer that is stuck.
		var sent int
		var err error
		for err == nil {
			synctest.Wait()
			if err = c.PublishEphemeral("a", []byte("1")); err == nil {
				sent++
			}
		}
		if err != client.ErrQueueFull || sent < 64 || sent > 80 {
			t.Errorf("%v after %d", err, sent)
		}
		var all []*client.Pending
		for range 5 {
			all = append(all, send(t, c, "a", "1"))
		}
		close(read)
		for _, p := range all {
			if got := outcome(p); got != "committed" {
				t.Error(got)
			}
		}
		time.Sleep(time.Second)
		lines := j.all()
		first := slices.Index(lines, wire.Publish)
		if len(lines) != sent+5 || first > sent-50 || lines[first+1] != wire.Ephemeral || lines[first+2] != wire.Publish {
			t.Errorf("they take turns: %v", lines)
		}
		g.network.Links()[0].Reset()
		time.Sleep(time.Microsecond)
		if err := c.PublishEphemeral("a", []byte("1")); err != client.ErrNotReady {
			t.Errorf("after the connection was lost: %v", err)
		}
	})
}

func TestEphemeralMessagesDoNotOutliveTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			if p.n == 1 {
				time.Sleep(time.Minute)
				return
			}
			p.hears(time.Minute)
		})
		g.network.Set(memnetSmall)
		c := g.client()
		wait(t, c, client.Ready)
		for c.PublishEphemeral("a", make([]byte, 100)) == nil {
			synctest.Wait()
		}
		time.Sleep(2 * time.Minute)
		if st := c.Stats(); st.EphemeralDropped < 60 || st.Sessions < 2 {
			t.Errorf("%+v", st)
		}
	})
}

func TestEphemeralMessagesOfManyBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) { p.welcome(); time.Sleep(time.Hour) })
		g.network.Set(memnetSmall)
		c := g.client()
		wait(t, c, client.Ready)
		var sent int
		for c.PublishEphemeral("a", make([]byte, 1000)) == nil { // six times as long as they travel
			sent++
			synctest.Wait()
		}
		if sent != 11 { // one is being written
			t.Errorf("%d", sent)
		}
	})
}

// A message that was refused for the moment is sent again, behind younger ones. Only the
// first of what was sent was looked at, and the message expired with that, long after its
// time.
func TestAMessageThatIsSentAgainExpiresInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const age = 6 * time.Second
		g := newFake(t, func(p *peer) {
			p.welcome()
			p.expect(wire.Publish) // and is not answered
			f := p.expect(wire.Publish)
			p.send(wire.Frame{Type: wire.Nack, ID: f.ID, Outcome: wire.NotStored, Code: wire.Unavailable, Retry: 4000})
			p.drain()
		})
		c := g.client(func(o *client.Options) { o.Age = age })
		wait(t, c, client.Ready)
		began := time.Now()
		var all []*client.Pending
		for i, after := range []time.Duration{0, time.Second, 3 * time.Second} { // since the one before
			time.Sleep(after)
			all = append(all, send(t, c, fmt.Sprint("topic ", i), "1"))
		}
		var got []time.Duration
		for _, p := range all {
			<-p.Done()
			got = append(got, time.Since(began))
		}
		same(t, "they expire after", []time.Duration{age, time.Second + age, 4*time.Second + age}, got)
		if got := outcome(all[1]); got != "unknown: client: no answer in time" {
			t.Error(got)
		}
	})
}
