package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/memnet"
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

// Who took a byte now and then was never slow: it stayed for a day after it was logged out,
// after its token had expired, and a Shutdown that had all the time waited for it.
func TestWhoReadsByteByByteDoesNotStay(t *testing.T) {
	for name, end := range map[string]func(r *rig){
		"Disconnect": func(r *rig) { r.gw.Disconnect("eve") },
		"Expires":    func(*rig) {}, // it is over by itself
		"Shutdown": func(r *rig) {
			if err := r.gw.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startWith(t, setup{net: memnet.Settings{Buffer: 4096}, Options: Options{
					Authorize: func(_ context.Context, a Access) (Grant, error) {
						grant := Grant{User: a.Token}
						if name == "Expires" {
							grant.Expires = time.Now().Add(5 * time.Second)
						}
						return grant, nil
					}}})
				s := r.welcome("eve")
				s.ask(`{"t":"subscribe","topic":"a"}`, wire.Subscribed)
				go func() {
					for b := make([]byte, 1); ; time.Sleep(2 * time.Second) {
						if _, err := s.conn.Read(b); err != nil {
							return
						}
					}
				}()
				r.publish("a", `"`+strings.Repeat("x", 100_000)+`"`)
				time.Sleep(5 * time.Second)
				if st := r.gw.Stats(); st.Connections != 1 {
					t.Errorf("%+v", st)
				}
				end(r)
				time.Sleep(15 * time.Second)
				if st := r.gw.Stats(); st.Connections != 0 || st.Closed != 1 || st.Slow != 0 { // the first cause counts
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

// The timer that ends those who do not let themselves be closed has nothing to say of those
// who do.
func TestWhoIsClosedInTimeIsNotSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Limits: Limits{Write: 100 * time.Millisecond}}})
		s := r.welcome("anna") // never answers a close frame
		r.gw.Disconnect("anna")
		if end := s.end(); end.code != wire.CloseUnauthorized {
			t.Error(end)
		}
		begin := time.Now()
		s.br.ReadByte()
		if d := time.Since(begin); d < lingering-10*time.Millisecond { // it has that time to answer, whatever Limits.Write says
			t.Errorf("cut after %v", d)
		}
		time.Sleep(time.Minute)
		if st := r.gw.Stats(); st.Connections != 0 || st.Slow != 0 || st.Closed != 1 {
			t.Errorf("%+v", st)
		}
	})
}

// What somebody had queued was published after Disconnect had returned, one after the other.
func TestDisconnectEndsWhatWaitsToBePublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0 // by one goroutine at a time
		r := startWith(t, setup{Options: Options{Authorize: func(_ context.Context, a Access) (Grant, error) {
			if a.Action == Publish {
				asked++
				time.Sleep(100 * time.Millisecond)
			}
			return Grant{User: a.Token}, nil
		}}})
		s := r.welcome("eve")
		for i := range 40 {
			s.send(fmt.Sprintf(`{"t":"publish","id":"%d","topic":"a","data":%d}`, i, i))
		}
		time.Sleep(250 * time.Millisecond)
		before := len(r.stored("a"))
		r.gw.Disconnect("eve") // while it is asked about the third
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		if asked != 3 {
			t.Errorf("Authorize was asked %d times", asked)
		}
		if got := r.stored("a"); before != 2 || len(got) != before {
			t.Errorf("stored before: %d, in the end: %q", before, got)
		}
	})
}

// Whoever called them wrote what they had to say to a client that takes nothing, for as long
// as that may take.
func TestDisconnectAndRecheckDoNotWaitForAClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const buffer = 1400
		g := new(guard)
		g.set(allowAll)
		r := startWith(t, setup{net: memnet.Settings{Buffer: buffer}, Options: Options{Authorize: g.authorize}})
		s := r.welcome("anna")
		s.ask(`{"t":"subscribe","topic":"a"}`, wire.Subscribed)
		s.link.Stall(memnet.Down, true)
		for range buffer / len("\x81\x0c{\"t\":\"pong\"}") { // no room is left, and nobody writes
			s.send(`{"t":"ping"}`)
		}
		time.Sleep(time.Second)
		g.set(func(context.Context, Access) (Grant, error) { return Grant{}, ErrForbidden })
		begin := time.Now()
		if err := r.gw.Recheck(context.Background(), "anna"); err != nil || time.Since(begin) != 0 {
			t.Errorf("Recheck: %v after %v", err, time.Since(begin))
		}
		if st := r.gw.Stats(); st.Subscriptions != 0 || st.Revoked != 1 {
			t.Errorf("%+v", st)
		}
		if n := r.gw.Disconnect("anna"); n != 1 || time.Since(begin) != 0 {
			t.Errorf("Disconnect: %d after %v", n, time.Since(begin))
		}
		s.link.Stall(memnet.Down, false)
		for f := s.read(); f.Type != wire.Unsubscribed; f = s.read() { // they are told all the same
		}
		if end := s.end(); end.code != wire.CloseUnauthorized {
			t.Error(end)
		}
	})
}

// Connected was called for a client that got a goodbye and no welcome.
func TestWhoIsSentAwayBeforeTheWelcomeWasNotConnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var traced []string
		r := startWith(t, setup{Options: Options{
			Authorize: func(context.Context, Access) (Grant, error) { time.Sleep(3 * time.Second); return Grant{}, nil },
			Trace: &Trace{
				Connected:    func(Info) { mu.Lock(); traced = append(traced, "connected"); mu.Unlock() },
				Disconnected: func(Info, error) { mu.Lock(); traced = append(traced, "disconnected"); mu.Unlock() },
			},
		}})
		s := r.socket()
		s.send(`{"t":"hello","v":1}`)
		time.Sleep(time.Second)
		go r.gw.Shutdown(context.Background())
		s.expect(wire.Goodbye)
		s.end()
		time.Sleep(5 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if len(traced) > 0 {
			t.Errorf("%q", traced)
		}
	})
}

// Each Disconnect was noted for each connection that had not said yet whose it is, without a
// bound; and one before the hello refused credentials that were newer than it.
func TestLogoutsBeforeSomebodyIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Authorize: func(_ context.Context, a Access) (Grant, error) {
			time.Sleep(time.Second)
			return Grant{User: a.Token}, nil
		}}})
		noted := func() (n int) {
			r.gw.mu.Lock()
			defer r.gw.mu.Unlock()
			for c := range r.gw.conns {
				n = max(n, len(c.gone))
			}
			return n
		}
		early := r.socket()
		time.Sleep(100 * time.Millisecond)
		r.gw.Disconnect("anna")
		if n := noted(); n != 0 {
			t.Errorf("%d are noted of who was not asked about", n)
		}
		early.hello("anna") // with what she got since
		early.alive()
		s := r.socket()
		s.send(`{"t":"hello","v":1,"token":"bert"}`)
		time.Sleep(100 * time.Millisecond)
		for i := range 10_000 {
			r.gw.Disconnect(fmt.Sprint(i))
		}
		if n := noted(); n > maxGone+1 {
			t.Errorf("%d are noted", n)
		}
		if f := s.expect(wire.Error); f.Code != wire.Unavailable { // bert might have been among them
			t.Errorf("%s", f.Append(nil))
		}
		if end := s.end(); end.code != wire.CloseTryLater {
			t.Error(end)
		}
	})
}

// Behind a proxy that ends TLS and does not say so all pages are of another origin. Nobody
// who saw that knew why.
func TestAnOriginOfAnotherSchemeIsExplained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(journal)
		r := startWith(t, setup{Options: Options{Logger: log.logger()}})
		for origin, explained := range map[string]bool{
			"https://example.com": true, "https://example.com:443": true, "https://other.example": false, "https://example.com:444": true,
			"http://other.example": false, "null": false, "x": false,
		} {
			log.reset()
			s := r.dialRaw()
			s.write([]byte(handshake + "Origin: " + origin + "\r\n\r\n"))
			resp, err := http.ReadResponse(s.br, nil)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			for where, text := range map[string]string{"the answer": string(b), "the log": log.String()} {
				if resp.StatusCode != 403 || strings.Contains(text, "X-Forwarded-Proto") != explained {
					t.Errorf("%s: %d, %s: %s", origin, resp.StatusCode, where, text)
				}
			}
			s.conn.Close()
		}
	})
}

// Four times a great rate was negative.
func TestARateWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Limits: Limits{Frames: math.MaxInt, Publishes: math.MaxInt}}})
		s := r.welcome("")
		for i := range 10 {
			s.ask(fmt.Sprintf(`{"t":"publish","id":"%d","topic":"a","data":1}`, i), wire.Ack)
		}
	})
}

// What Disconnected is told did not say where it comes from, and nobody could tell one end
// from another but by its text.
func TestWhatDisconnectedIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(*rig, *socket)
		code websocket.StatusCode
		text string
	}{
		"logout":   {func(r *rig, s *socket) { r.gw.Disconnect("anna") }, wire.CloseUnauthorized, "closed by the server"},
		"no frame": {func(r *rig, s *socket) { s.send("x") }, wire.CloseBadFrame, "closed by the server"},
		"left":     {func(r *rig, s *socket) { s.write(masked(final|opClose, []byte{3, 232})) }, websocket.StatusNormalClosure, "closed by the client: 1000"},
		"lost":     {func(r *rig, s *socket) { s.conn.Close() }, -1, "EOF"},
		"dead":     {func(r *rig, s *socket) { s.link.Blackhole(memnet.Both) }, -1, "found dead"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				told := make(chan error, 1)
				r := startWith(t, setup{Options: Options{Trace: &Trace{Disconnected: func(_ Info, err error) { told <- err }}}})
				s := r.welcome("anna")
				c.end(r, s)
				err := <-told
				if !strings.HasPrefix(err.Error(), "gateway: ") || !strings.Contains(err.Error(), c.text) || websocket.CloseStatus(err) != c.code {
					t.Errorf("%v, %d", err, websocket.CloseStatus(err))
				}
			})
		})
	}
}

// Who was not let in left no trace in the log.
func TestARefusedLoginIsInTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(journal)
		r := startWith(t, setup{Options: Options{Logger: log.logger(), Authorize: func(context.Context, Access) (Grant, error) {
			return Grant{}, ErrForbidden
		}}})
		s := r.socket()
		s.send(`{"t":"hello","v":1,"token":"a-secret"}`)
		s.expect(wire.Error)
		if end := s.end(); end.code != wire.CloseForbidden {
			t.Error(end)
		}
		time.Sleep(5 * time.Second)
		if got := log.String(); !strings.Contains(got, "not welcomed") || !strings.Contains(got, "4403") || strings.Contains(got, "a-secret") {
			t.Errorf("%q", got)
		}
	})
}

// A journal is a log that is kept.
type journal struct {
	mu   sync.Mutex
	text strings.Builder
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func (j *journal) reset() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.text.Reset()
}

func (j *journal) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// PROTOCOL.md bounded what comes from a server by less than what may come.
func TestMessagesAreNotLongerThanTheProtocolSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Payload: func(string) Payload { return Text }}})
		nasty := func(n int) string { return strings.Repeat("\x01", n) } // six bytes of JSON each
		topic := nasty(backplane.MaxTopic)
		quoted := strings.Repeat(`\u0001`, backplane.MaxTopic)
		all := 0
		for _, m := range []struct {
			n int
			backplane.Message
		}{
			{256, backplane.Message{Data: []byte(nasty(64))}}, {256, backplane.Message{Data: []byte("x"), Key: nasty(63)}},
			{2, backplane.Message{Data: []byte(nasty(8 << 10))}}, {2, backplane.Message{Data: []byte(nasty(40 << 10)), Key: nasty(255)}},
		} {
			for range m.n {
				if _, err := r.hub.Publish(context.Background(), topic, m.Message); err != nil {
					t.Fatal(err)
				}
				all++
			}
		}
		s := r.welcome("")
		s.ask(`{"t":"subscribe","topic":"`+quoted+`","last":1000}`, wire.Subscribed)
		longest, got := 0, 0
		for got < all {
			before := s.bytes
			f := s.expect(wire.Entries)
			n := s.bytes - before
			longest = max(longest, n)
			got += len(f.Entries)
			if single := 6*(len(f.Entries[0].Data)) + 4<<10; n > 128<<10 && (len(f.Entries) > 1 || n > single) {
				t.Errorf("%d messages in %d bytes", len(f.Entries), n)
			}
		}
		if longest < 6*40<<10 {
			t.Errorf("%d", longest)
		}
	})
}

// slowHijack lets something happen in the middle of a handshake.
type slowHijack struct {
	http.ResponseWriter
	meanwhile func()
}

func (w *slowHijack) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.meanwhile()
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

// Who was in the middle of its handshake when Shutdown began saw the connection end after a
// second, without a word.
func TestAHandshakeInTheMiddleOfAShutdownIsToldSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		var once sync.Once
		r.srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			r.gw.ServeHTTP(&slowHijack{w, func() {
				once.Do(func() {
					go r.gw.Shutdown(context.Background())
					time.Sleep(time.Second) // until all are told
				})
			}}, req)
		})
		s := r.socket()
		s.expect(wire.Goodbye)
		if end := s.end(); end.code != wire.CloseRestart {
			t.Errorf("%+v", end)
		}
	})
}
