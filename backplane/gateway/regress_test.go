package gateway

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// Who was refused and came back when it was told to was refused again, for ever: it had
// been told to wait until the bucket was not below empty, and then took from an empty one.
func TestWhoWaitsAsLongAsItIsToldToIsLetThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, Options{Limits: Limits{Publishes: 10, Frames: 20}})
		defer r.stop()
		p := r.connect("anna")
		defer p.ws.CloseNow()
		refused := 0
		for i := range 100 {
			p.send(fmt.Sprintf(`{"t":"publish","id":"%d","topic":"a","data":1}`, i))
			f, err := p.read()
			if err != nil {
				t.Fatal(err)
			}
			if f.Type == wire.Ack {
				if refused > 0 {
					return
				}
				continue
			}
			if f.Code != wire.TooFast || refused > 0 {
				t.Fatalf("after waiting %d times: %s", refused, f.Append(nil))
			}
			refused++
			time.Sleep(time.Duration(f.Retry) * time.Millisecond)
		}
		t.Error("never refused")
	})
}

// A logout while Authorize was asked about a connection of that user missed it: it was
// nobody's yet, and lived on for ever.
func TestALogoutWhileAuthorizeIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(guard)
		g.set(func(_ context.Context, a Access) (Grant, error) {
			if a.Token == "anna" {
				time.Sleep(2 * time.Second)
			}
			return Grant{User: a.Token}, nil
		})
		r := startWith(t, setup{Options: Options{Authorize: g.authorize}})
		bert := r.welcome("bert")
		s := r.socket()
		s.send(`{"t":"hello","v":1,"token":"anna"}`)
		time.Sleep(time.Second)
		if n := r.gw.Disconnect("anna"); n != 0 {
			t.Errorf("%d connections of somebody who has none yet", n)
		}
		if f := s.expect(wire.Error); f.Code != wire.Unauthenticated {
			t.Errorf("%s", f.Append(nil))
		}
		if end := s.end(); end.code != wire.CloseUnauthorized {
			t.Error(end)
		}
		time.Sleep(2 * lingering)
		if st := r.gw.Stats(); st.Connections != 1 {
			t.Errorf("%+v", st)
		}
		bert.alive()
		r.welcome("anna").alive() // afterwards she may come back
	})
}

// Disconnect of nobody, "", took connections that had not said yet whose they are.
func TestDisconnectNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		s := r.socket() // has not said hello
		time.Sleep(time.Second)
		if n := r.gw.Disconnect(""); n != 0 {
			t.Errorf("%d", n)
		}
		s.hello("anna")
		s.alive()
	})
}

// A panic in a callback that was called for one client ended the process.
func TestAPanicInACallbackIsOneClientsAlone(t *testing.T) {
	boom := func() { panic("boom") }
	for name, o := range map[string]Options{
		"Payload":      {Payload: func(string) Payload { boom(); return JSON }},
		"Lag":          {Lag: func(string) *replay.Lag { boom(); return nil }},
		"Connected":    {Trace: &Trace{Connected: func(Info) { boom() }}},
		"Disconnected": {Trace: &Trace{Disconnected: func(Info, error) { boom() }}},
		"Subscribed":   {Trace: &Trace{Subscribed: func(Info, string, bool) { boom() }}},
		"Reset":        {Trace: &Trace{Reset: func(Info, string, replay.Reason, uint64) { boom() }}},
		"Published":    {Trace: &Trace{Published: func(Info, string, backplane.Receipt, error) { boom() }}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startWith(t, setup{Options: o})
				s := r.welcome("")
				s.ask(`{"t":"subscribe","topic":"x","from":`+pos(replay.Position{Epoch: 1, Seq: 1, Tag: 1})+`}`, wire.Subscribed)
				s.expect(wire.Reset)
				s.send(`{"t":"publish","id":"1","topic":"y","data":1}`)
				s.expect(wire.Ack)
				s.alive()
			})
		})
	}
}

// Each auth frame had a question of its own under way, without a bound, and which token
// counted in the end was a matter of chance.
func TestOneTokenAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(guard)
		var mu sync.Mutex
		now, most := 0, 0
		var asked []string
		g.set(func(_ context.Context, a Access) (Grant, error) {
			if a.Action != Renew {
				return Grant{User: a.Token}, nil
			}
			mu.Lock()
			now++
			most = max(most, now)
			asked = append(asked, a.Token)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			now--
			mu.Unlock()
			return Grant{}, nil
		})
		r := startWith(t, setup{Options: Options{Authorize: g.authorize}})
		s := r.welcome("anna")
		for i := range 20 {
			s.send(fmt.Sprintf(`{"t":"auth","token":"%d","ref":%d}`, i, i+1))
		}
		for i := 1; i < 19; i++ { // all but the first and the last
			if f := s.expect(wire.Error); f.Ref != uint64(i+1) || f.Code != wire.OutOfState {
				t.Errorf("%d: %s", i, f.Append(nil))
			}
		}
		for _, ref := range []uint64{1, 20} {
			if f := s.expect(wire.OK); f.Ref != ref {
				t.Errorf("%s", f.Append(nil))
			}
		}
		if most != 1 || fmt.Sprint(asked) != "[0 19]" {
			t.Errorf("%d at a time, of %v", most, asked)
		}
	})
}

// A connection does not change hands by a new token.
func TestATokenOfSomebodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{}) // the token is the user
		s := r.welcome("anna")
		s.ask(`{"t":"auth","token":"anna"}`, wire.OK)
		s.ask(`{"t":"auth","token":"bert"}`, wire.Error)
		if end := s.end(); end.code != wire.CloseUnauthorized {
			t.Error(end)
		}
	})
}

// One subscribe with 64 positions led to 64 reads of the backplane, one after the other.
func TestManyPositionsAreAFewReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		r.publish("x", "1")
		s := r.welcome("")
		var from []string
		for i := range 64 {
			from = append(from, pos(replay.Position{Epoch: uint64(1 + i%maxEpochs), Seq: uint64(100 + i), Tag: 7}))
		}
		before := r.hub.Stats().Reads
		s.ask(`{"t":"subscribe","topic":"x","from":[`+strings.Join(from, ",")+`]}`, wire.Subscribed)
		s.expect(wire.Reset)
		s.expect(wire.Entries)
		if reads := r.hub.Stats().Reads - before; reads > 2*maxEpochs+2 {
			t.Errorf("%d reads", reads)
		}
		from[0] = pos(replay.Position{Epoch: 99, Seq: 1, Tag: 1})
		if f := s.ask(`{"t":"subscribe","topic":"x","from":[`+strings.Join(from, ",")+`]}`, wire.Error); f.Code != wire.BadPosition || f.Field != "from" {
			t.Errorf("%s", f.Append(nil))
		}
	})
}

// Of several positions one that this server had not yet been told of was said to be ahead
// of the topic, which it was not.
func TestAPositionThatThisServerDoesNotKnowYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deaf := &deaf{Memory: backplane.NewMemory(nil)}
		r := startWith(t, setup{bp: deaf})
		first := r.publish("x", "1")
		s := r.welcome("")
		s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
		deaf.on.Store(true) // now there are messages at the backplane of which nobody here is told
		receipt, err := deaf.Append(context.Background(), "x", backplane.Message{Data: []byte("2")})
		if err != nil {
			t.Fatal(err)
		}
		f := s.ask(`{"t":"subscribe","topic":"x","from":[`+pos(first)+`,`+pos(receipt.Pos)+`]}`, wire.Subscribed)
		if f.Base != first || len(f.Late) > 0 || f.Head != receipt.Pos {
			t.Errorf("%s", f.Append(nil))
		}
		if f := s.expect(wire.Entries); f.Entries[0].Pos != receipt.Pos {
			t.Errorf("%s", f.Append(nil))
		}
	})
}

// A deaf backplane does not pass on hints.
type deaf struct {
	*backplane.Memory
	on atomic.Bool
}

func (d *deaf) Watch(s backplane.Sink) backplane.Watcher { return d.Memory.Watch(deafSink{s, d}) }

type deafSink struct {
	backplane.Sink
	d *deaf
}

func (s deafSink) Entry(topic string, e replay.Entry) {
	if !s.d.on.Load() {
		s.Sink.Entry(topic, e)
	}
}

// A Shutdown whose context ended early cut those who had not been told yet without a
// goodbye, all at once: they came back as the herd that it is there to prevent.
func TestAShortShutdownSaysGoodbyeToAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Drain: 20 * time.Second}})
		var all []*socket
		for range 10 {
			all = append(all, r.welcome(""))
		}
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			time.Sleep(time.Second)
			cancel()
		}()
		done := make(chan int)
		for _, s := range all {
			go func() {
				f, err := s.next()
				if err != nil || f.Type != wire.Goodbye {
					t.Errorf("%v %v", f, err)
				}
				s.end()
				done <- 1
			}()
		}
		r.gw.Shutdown(ctx)
		for range all {
			<-done
		}
	})
}

// The time until a deadline in a hundred years, times four, was negative.
func TestAShutdownThatHasAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Drain: 10 * time.Second}})
		var all []*socket
		for range 5 {
			all = append(all, r.welcome(""))
		}
		for _, s := range all {
			s.idle()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 290*365*24*time.Hour)
		defer cancel()
		begin := time.Now()
		if err := r.gw.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d < 8*time.Second {
			t.Errorf("all were told within %v", d)
		}
	})
}
