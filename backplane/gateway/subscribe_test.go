package gateway

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/heartbeat"
	"github.com/holdfast-ws/holdfast/internal/memnet"
	"github.com/holdfast-ws/holdfast/internal/verify"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// data is what the entries of a frame say.
func data(f *wire.Frame) (all []string) {
	for _, e := range f.Entries {
		all = append(all, string(e.Data))
	}
	return all
}

// keep has backplane and Hub keep n messages of a topic.
func keep(n int) setup {
	limits := func(string) replay.Limits { return replay.Limits{Entries: n} }
	return setup{bp: backplane.NewMemory(&backplane.MemoryOptions{Limits: limits}), hub: backplane.Options{Limits: limits}}
}

func TestWhereASubscriptionBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, keep(5)) // 6 to 10 of the 10 that there are
		p := []replay.Position{{}}
		for i := 1; i <= 10; i++ {
			p = append(p, r.publish("x", strconv.Itoa(i)))
		}
		other := r.publish("y", "1")
		earlier := other
		for i := 0; earlier.Epoch > p[1].Epoch; i++ {
			earlier = r.publish("y"+strconv.Itoa(i), "1")
		}
		forked := p[7]
		forked.Tag++
		ahead := p[10]
		ahead.Seq++
		before := p[5] // the place before the oldest
		list := func(ps ...replay.Position) string {
			var all []string
			for _, p := range ps {
				all = append(all, pos(p))
			}
			return `"from":[` + strings.Join(all, ",") + `]`
		}
		for _, c := range []struct {
			why, ask string
			base     replay.Position
			late     string
			reset    replay.Reason
			missed   uint64
			first    string // of what comes
		}{
			{why: "now", ask: ``, base: p[10]},
			{why: "the last ones", ask: `"last":2`, base: p[8], first: "9"},
			{why: "more than there are", ask: `"last":100`, base: before, first: "6"},
			{why: "a position", ask: `"from":` + pos(p[7]), base: p[7], first: "8"},
			{why: "a position counts more than last", ask: `"last":5,"from":` + pos(p[9]), base: p[9], first: "10"},
			{why: "the oldest place", ask: `"from":` + pos(before), base: before, first: "6"},
			{why: "the head", ask: `"from":` + pos(p[10]), base: p[10]},
			{why: "no positions", ask: `"from":[]`, base: p[10]},
			{why: "several, all good", ask: list(p[9], p[7], p[8], p[7]), base: p[7], first: "8"},
			{why: "one is trimmed", ask: list(p[9], p[2]), base: p[9], late: "trimmed 7", first: "10"},
			{why: "one is trimmed, and of those that are not the first counts", ask: list(p[9], p[2], p[7], p[8]), base: p[7], late: "trimmed 5", first: "8"},
			{why: "two are trimmed", ask: list(p[2], p[1], p[6]), base: p[6], late: "trimmed 5, trimmed 4", first: "7"},
			{why: "one is of a fork", ask: list(forked, p[9]), base: p[9], late: "forked 0", first: "10"},
			{why: "one is of another history", ask: list(other, p[9]), base: p[9], late: "epoch 0", first: "10"},
			{why: "one is ahead", ask: list(p[8], ahead), base: p[8], late: "ahead 0", first: "9"},
			{why: "one is trimmed, one of another history", ask: list(p[9], other, p[2]), base: p[9], late: "epoch 0, trimmed 7", first: "10"},
			{why: "trimmed", ask: `"from":` + pos(p[3]), reset: replay.ReasonTrimmed, missed: 2, first: "6"},
			{why: "all are trimmed", ask: list(p[1], p[3]), late: "trimmed 2", reset: replay.ReasonTrimmed, missed: 2, first: "6"},
			{why: "one is trimmed, one of another history", ask: list(p[3], earlier), late: "epoch 0", reset: replay.ReasonTrimmed, missed: 2, first: "6"},
			{why: "a fork", ask: `"from":` + pos(forked), reset: replay.ReasonForked, first: "6"},
			{why: "another history", ask: `"from":` + pos(other), reset: replay.ReasonEpoch, first: "6"},
			{why: "ahead", ask: `"from":` + pos(ahead), reset: replay.ReasonAhead, first: "6"},
			{why: "a floor", ask: `"last":5,"floor":` + pos(p[8]), base: p[8], first: "9"},
			{why: "a floor above the position", ask: `"from":` + pos(p[6]) + `,"floor":` + pos(p[8]), base: p[6], reset: backplane.ReasonFloor, missed: 2, first: "9"},
			{why: "a floor below the position", ask: `"from":` + pos(p[8]) + `,"floor":` + pos(p[6]), base: p[8], first: "9"},
			{why: "a floor of long ago", ask: `"last":5,"floor":` + pos(p[2]), base: before, first: "6"},
			{why: "a floor of another history", ask: `"last":5,"floor":` + pos(other), base: before, first: "6"},
		} {
			s := r.welcome("")
			ask := `{"t":"subscribe","topic":"x","ref":9`
			if c.ask != "" {
				ask += "," + c.ask
			}
			f := s.ask(ask+"}", wire.Subscribed)
			var late []string
			for _, l := range f.Late {
				late = append(late, fmt.Sprint(l.Reason, " ", l.Missed))
			}
			slices.Sort(late)
			want := strings.Split(c.late, ", ")
			slices.Sort(want)
			if d := cmp.Diff(want, late); c.late != "" && d != "" || c.late == "" && late != nil {
				t.Errorf("%s: late (-want +got):\n%s", c.why, d)
			}
			if f.Ref != 9 || f.Base != c.base || f.Head != p[10] {
				t.Errorf("%s: %s", c.why, f.Append(nil))
			}
			at := f.Base
			if c.reset != "" {
				f := s.expect(wire.Reset)
				if f.Reason != string(c.reset) || f.Missed != c.missed {
					t.Errorf("%s: %s", c.why, f.Append(nil))
				}
				at = f.Base
			}
			if c.first != "" {
				f := s.expect(wire.Entries)
				if got := string(f.Entries[0].Data); got != c.first || f.Prev != at || f.Entries[len(f.Entries)-1].Pos != p[10] {
					t.Errorf("%s: %s", c.why, f.Append(nil))
				}
			}
			s.alive() // and nothing else has come
			s.conn.Close()
		}
	})
}

func TestAResetComesBeforeEntries(t *testing.T) {
	// Also while a snapshot is being made.
	synctest.Test(t, func(t *testing.T) {
		s := keep(5)
		s.hub.Snapshot = func(ctx context.Context, topic string, head replay.Position) ([]byte, replay.Position, error) {
			time.Sleep(time.Second)
			return []byte(`{"state":1}`), replay.Position{}, nil
		}
		r := startWith(t, s)
		var p []replay.Position
		for i := range 10 {
			p = append(p, r.publish("x", strconv.Itoa(i)))
		}
		other := r.publish("y", "1")
		for _, from := range []replay.Position{p[0], other} {
			c := r.welcome("")
			if f := c.ask(`{"t":"subscribe","topic":"x","from":`+pos(from)+`}`, wire.Subscribed); !f.Base.IsZero() {
				t.Errorf("%s", f.Append(nil))
			}
			time.Sleep(time.Second / 2)
			r.publish("x", "during")
			f := c.expect(wire.Reset)
			if string(f.Data) != `{"state":1}` || f.Base != p[9] {
				t.Errorf("%s", f.Append(nil))
			}
			f2 := c.expect(wire.Entries)
			if f2.Prev != f.Base || !slices.Equal(data(f2), []string{"during"}) {
				t.Errorf("%s", f2.Append(nil))
			}
			p[9] = f2.Entries[0].Pos
			c.alive()
			c.conn.Close()
		}
	})
}

func TestASubscriptionIsMovedByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		p := r.publish("x", "1")
		r.publish("x", "2")
		s := r.welcome("")
		s.ask(`{"t":"subscribe","topic":"x","ref":1}`, wire.Subscribed)
		if f := s.ask(`{"t":"subscribe","topic":"x","ref":2,"from":`+pos(p)+`}`, wire.Subscribed); f.Ref != 2 || f.Base != p {
			t.Errorf("%s", f.Append(nil))
		}
		if f := s.expect(wire.Entries); !slices.Equal(data(f), []string{"2"}) {
			t.Errorf("%s", f.Append(nil))
		}
		r.publish("x", "3")
		if f := s.expect(wire.Entries); !slices.Equal(data(f), []string{"3"}) {
			t.Errorf("%s", f.Append(nil))
		}
		s.alive() // once only
		if st := r.gw.Stats(); st.Subscriptions != 1 || r.hub.Stats().Subscribers != 1 {
			t.Errorf("%+v, %+v", st, r.hub.Stats())
		}
		if f := s.ask(`{"t":"unsubscribe","topic":"x","ref":3}`, wire.Unsubscribed); f.Ref != 3 || f.Topic != "x" || f.Code != "" {
			t.Errorf("%s", f.Append(nil))
		}
		r.publish("x", "4")
		s.alive()
		if st := r.gw.Stats(); st.Subscriptions != 0 || r.hub.Stats().Subscribers != 0 {
			t.Errorf("%+v, %+v", st, r.hub.Stats())
		}
	})
}

func TestUnsubscribingWhileTheBackplaneIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bp := newGate()
		r := startWith(t, setup{bp: bp})
		s := r.welcome("")
		bp.reads.close()
		s.send(`{"t":"subscribe","topic":"x","ref":1}`)
		time.Sleep(time.Second)
		s.alive()
		if st := r.gw.Stats(); st.Subscriptions != 1 {
			t.Errorf("%+v", st)
		}
		s.ask(`{"t":"unsubscribe","topic":"x","ref":2}`, wire.Unsubscribed)
		s.send(`{"t":"subscribe","topic":"x","ref":3}`)
		s.send(`{"t":"subscribe","topic":"x","ref":4}`)
		s.send(`{"t":"subscribe","topic":"y","ref":5}`)
		s.alive()
		bp.reads.open()
		refs := map[uint64]bool{}
		for range 2 {
			refs[s.expect(wire.Subscribed).Ref] = true
		}
		if !refs[4] || !refs[5] {
			t.Error(refs)
		}
		s.alive()
		if st := r.gw.Stats(); st.Subscriptions != 2 || r.hub.Stats().Subscribers != 2 {
			t.Errorf("%+v, %+v", st, r.hub.Stats())
		}
		// And one that leaves altogether.
		bp.reads.close()
		s.send(`{"t":"subscribe","topic":"z","ref":6}`)
		time.Sleep(time.Second)
		s.conn.Close()
		time.Sleep(time.Second)
		if st := r.gw.Stats(); st.Subscriptions != 0 || r.hub.Stats().Subscribers != 0 {
			t.Errorf("%+v, %+v", st, r.hub.Stats())
		}
		bp.reads.open()
	})
}

// A subscription that was just made, and is moved or ended before or while its answer is
// written: the answer must not come after those of what came later.
func TestAnswersOfSubscriptionsDoNotOvertakeEachOther(t *testing.T) {
	for _, when := range []string{"before", "after"} {
		synctest.Test(t, func(t *testing.T) {
			var pause atomic.Int64
			wait := func(now string) {
				if now == when {
					time.Sleep(time.Duration(pause.Load()))
				}
			}
			r := startWith(t, setup{Options: Options{
				Payload: func(string) Payload { wait("before"); return JSON },
				Trace:   &Trace{Subscribed: func(Info, string, bool) { wait("after") }},
			}})
			s := r.welcome("")
			last := func() (f *wire.Frame) {
				t.Helper()
				time.Sleep(time.Second)
				s.send(`{"t":"ping"}`)
				for {
					g, err := s.next()
					if err != nil {
						t.Fatal(err)
					}
					if g.Type == wire.Pong {
						return f
					}
					f = g
				}
			}
			pause.Store(int64(100 * time.Millisecond))
			s.send(`{"t":"subscribe","topic":"x","ref":1}`)
			time.Sleep(50 * time.Millisecond)
			s.send(`{"t":"unsubscribe","topic":"x","ref":2}`)
			if f := last(); f.Type != wire.Unsubscribed {
				t.Errorf("%s: the last answer is %s, and the subscription has ended", when, f.Append(nil))
			}
			if n := r.hub.Stats().Subscribers; n != 0 {
				t.Errorf("%s: %d subscribers", when, n)
			}
			s.send(`{"t":"subscribe","topic":"x","ref":3}`)
			time.Sleep(50 * time.Millisecond)
			pause.Store(0)
			s.send(`{"t":"subscribe","topic":"x","ref":4}`)
			if f := last(); f.Ref != 4 {
				t.Errorf("%s: the last answer is %s, and the last subscribe was 4", when, f.Append(nil))
			}
			if n := r.hub.Stats().Subscribers; n != 1 {
				t.Errorf("%s: %d subscribers", when, n)
			}
		})
	}
}

func TestHowPayloadsAreShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Payload: func(topic string) Payload {
			return map[string]Payload{"json": JSON, "text": Text, "binary": Binary}[topic]
		}}})
		for _, c := range []struct {
			topic, data string
			kind        wire.Kind
		}{
			{"json", `{"a":1}`, wire.JSON}, {"json", `null`, wire.JSON}, {"json", `{"a":`, wire.Text}, {"json", "\xff", wire.Binary}, {"json", "", wire.Text},
			{"text", `{"a":1}`, wire.Text}, {"text", "a\x00\u2028", wire.Text}, {"text", "\xff", wire.Binary},
			{"binary", `{"a":1}`, wire.Binary}, {"binary", "\x00\xff", wire.Binary}, {"binary", "", wire.Binary},
		} {
			s := r.welcome("")
			s.ask(`{"t":"subscribe","topic":"`+c.topic+`"}`, wire.Subscribed)
			r.publish(c.topic, c.data)
			if f := s.expect(wire.Entries); string(f.Entries[0].Data) != c.data || f.Entries[0].Kind != c.kind {
				t.Errorf("%q to %s: %s", c.data, c.topic, f.Append(nil))
			}
			r.hub.PublishEphemeral(t.Context(), c.topic, []byte(c.data))
			if f := s.expect(wire.Ephemeral); string(f.Data) != c.data || f.Kind != c.kind || f.Topic != c.topic {
				t.Errorf("%q to %s: %s", c.data, c.topic, f.Append(nil))
			}
			s.conn.Close()
		}
	})
}

func TestEntriesSayWhenAndAboutWhat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		s := r.welcome("")
		s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
		at := time.Now().Add(latency)
		s.send(`{"t":"publish","id":"1","topic":"x","key":"k","bin":"/w=="}`)
		for range 2 {
			f, err := s.next()
			if err != nil {
				t.Fatal(err)
			}
			if f.Type == wire.Entries {
				if e := f.Entries[0]; e.At != at.UnixMilli() || e.Key != "k" || e.Kind != wire.Binary || string(e.Data) != "\xff" {
					t.Errorf("%s", f.Append(nil))
				}
			}
		}
	})
}

func TestOthersShareFramesAndGetWhatIsTheirs(t *testing.T) {
	// Each message is encoded once, wherever its readers stand.
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		var all []*socket
		for range 10 {
			s := r.welcome("")
			s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
			all = append(all, s)
		}
		for i := range 20 {
			r.publish("x", strconv.Itoa(i))
			for _, s := range all {
				if f := s.expect(wire.Entries); !slices.Equal(data(f), []string{strconv.Itoa(i)}) {
					t.Errorf("%s", f.Append(nil))
				}
			}
		}
		if st := r.gw.Stats(); st.Encoded != 20 || st.Messages != 200 {
			t.Errorf("%+v", st)
		}
	})
}

// Messages below a floor move the place on, also where nothing comes with them but ephemeral
// messages: a client that is not told so sees a gap before the next entry.
func TestAPlaceThatMovesOnBesideEphemeralMessagesIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		a := r.publish("x", "1")
		r.welcome("").ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
		synctest.Wait()
		s := r.gw.list("", true)[0].subs[0]
		b := r.publish("x", "2")
		synctest.Wait()
		s.at = a
		batch := backplane.Batch{Batch: replay.Batch{To: b}, Ephemeral: [][]byte{[]byte("3")}}
		out := s.frames(&batch, new(scratch))
		var got []wire.Frame
		for len(out) > 0 {
			header, n := frameSize(out)
			var f wire.Frame
			if err := wire.Decode(out[header:header+n], &f); err != nil {
				t.Fatal(err)
			}
			got = append(got, f)
			out = out[header+n:]
		}
		want := []wire.Frame{
			{Type: wire.Entries, Topic: "x", Prev: a, To: b},
			{Type: wire.Ephemeral, Topic: "x", Payload: wire.Payload{Kind: wire.JSON, Data: []byte("3")}},
		}
		if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	})
}

func TestLongMessagesLetControlFramesPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{net: memnet.Settings{Buffer: 8 << 10}})
		s := r.welcome("")
		s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
		message := `"` + strings.Repeat("x", 300<<10) + `"`
		r.publish("x", message)
		time.Sleep(time.Second)
		s.write(masked(final|9, []byte("hello?")))
		frames, between := 0, false
		var text []byte
		for {
			first, payload, err := s.frame()
			if err != nil {
				t.Fatal(err)
			}
			if first&0xf == 10 {
				between = between || frames > 0
				continue
			}
			frames++
			text = append(text, payload...)
			if first&final != 0 {
				break
			}
		}
		if frames < 9 || !between {
			t.Errorf("%d frames, with a pong between: %v", frames, between)
		}
		f := new(wire.Frame)
		if err := wire.Decode(text, f); err != nil || string(f.Entries[0].Data) != message {
			t.Errorf("%.100s: %v", text, err)
		}
	})
}

func TestBeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		verdicts := make(chan error, 4)
		r := startWith(t, setup{Options: Options{
			Heartbeat: heartbeat.Config{Interval: 20 * time.Second, Timeout: 5 * time.Second},
			Trace:     &Trace{Disconnected: func(_ Info, err error) { verdicts <- err }},
		}})
		good, bad := r.socket(), r.socket()
		for s, name := range map[*socket]string{good: "good", bad: "bad"} {
			s.send(`{"t":"hello","v":1,"beats":true,"token":"` + name + `"}`)
			if f := s.expect(wire.Welcome); f.Beat != 20000 || f.Timeout != 5000 {
				t.Errorf("%s", f.Append(nil))
			}
		}
		begin := time.Now()
		ended := bad.idle() // answers pings, if there were any
		beats := 0
		for time.Since(begin) < 5*time.Minute {
			if f := good.expect(wire.Beat); len(f.Append(nil)) != len(`{"t":"beat"}`) {
				t.Errorf("%s", f.Append(nil))
			}
			beats++
			good.send(`{"t":"beat"}`)
		}
		if err := <-verdicts; err.Error() != "gateway: found dead: no answer" {
			t.Error(err)
		}
		<-ended
		if beats < 14 || beats > 24 || good.pings+bad.pings != 0 {
			t.Errorf("%d beats, %d and %d pings", beats, good.pings, bad.pings)
		}
		if st := r.gw.Stats(); st.Connections != 1 || st.Dead != 1 {
			t.Errorf("%+v", st)
		}
	})
}

func TestWhoDoesNotSpeakOfBeatsIsPinged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		s, dead := r.welcome(""), r.welcome("")
		dead.silent = true
		begin := time.Now()
		live, ended := s.idle(), dead.idle()
		<-ended
		if d := time.Since(begin); d < 10*time.Second || d > 36*time.Second {
			t.Errorf("found dead after %v", d)
		}
		time.Sleep(5 * time.Minute)
		select {
		case c := <-live:
			t.Errorf("one that answers: %v", c)
		default:
		}
		s.conn.Close()
		<-live
		if s.pings < 10 {
			t.Errorf("%d pings", s.pings)
		}
	})
}

// A client that reads more slowly than its topics have news is written to all the
// time. It must be heard all the same, whoever happens to be the one that writes.
func TestAClientIsHeardWhileItIsWrittenTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{net: memnet.Settings{Buffer: 4 << 10}, Options: Options{Limits: Limits{Frames: -1}}})
		s := r.welcome("")
		for i := range 4 {
			s.ask(fmt.Sprintf(`{"t":"subscribe","topic":"%d"}`, i), wire.Subscribed)
		}
		// An answer is the first for which there is no room.
		s.link.Stall(memnet.Down, true)
		const before = 400
		for range before {
			s.send(`{"t":"ping"}`)
		}
		time.Sleep(time.Second)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			message := `"` + strings.Repeat("x", 2000) + `"`
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
					r.publish(strconv.Itoa(i%4), message)
				}
			}
		})
		time.Sleep(100 * time.Millisecond)
		s.link.Stall(memnet.Down, false)
		var mu sync.Mutex
		pongs := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				f, err := s.next()
				if err != nil {
					return
				}
				if f.Type == wire.Pong {
					mu.Lock()
					pongs++
					mu.Unlock()
				} else {
					time.Sleep(5 * time.Millisecond)
				}
			}
		}()
		const n = 50
		for range n {
			time.Sleep(100 * time.Millisecond)
			s.send(`{"t":"ping"}`)
		}
		time.Sleep(time.Second)
		mu.Lock()
		if pongs != before+n {
			t.Errorf("%d of %d pings were answered", pongs, before+n)
		}
		mu.Unlock()
		close(stop)
		wg.Wait()
		s.conn.Close()
		<-done
	})
}

// A strict is a client that checks all that PROTOCOL.md says it must, and more.
type strict struct {
	t    testing.TB
	r    *rig
	name string
	rnd  *rand.Rand

	mu   sync.Mutex // guards all below
	s    *socket
	ref  uint64
	subs map[string]*strictSub
	old  map[string][]replay.Position // some places where it stood
	seen map[string]int               // messages, per topic
	odd  map[string]int               // resets and conflated frames
}

type strictSub struct {
	want   uint64 // ref of what was asked last
	open   uint64 // ref of the subscription that is open, or 0
	wanted bool   // what was asked last is a subscription
	at     replay.Position
	gap    bool // a reset has to come first
}

func (c *strict) fail(f *wire.Frame, format string, args ...any) {
	c.t.Errorf("%s: %s: %.300s", c.name, fmt.Sprintf(format, args...), f.Append(nil))
}

// take checks one frame.
func (c *strict) take(f *wire.Frame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sub := c.subs[f.Topic]
	switch f.Type {
	case wire.Pong, wire.Ack, wire.Nack, wire.Beat:
		return
	case wire.Error:
		if f.Code != wire.NotSubscribed && f.Code != wire.TooFast {
			c.fail(f, "error")
		}
		return
	case wire.Subscribed, wire.Unsubscribed, wire.Entries, wire.Reset, wire.Ephemeral:
	default:
		c.fail(f, "what is this?")
		return
	}
	if sub == nil {
		c.fail(f, "nothing was asked")
		return
	}
	switch f.Type {
	case wire.Subscribed:
		if f.Ref <= sub.open || f.Ref > sub.want {
			c.fail(f, "%d is open, %d was asked for", sub.open, sub.want)
		}
		sub.open, sub.at, sub.gap = f.Ref, f.Base, f.Base.IsZero()
		return
	case wire.Unsubscribed:
		if f.Ref <= sub.open {
			c.fail(f, "%d is open", sub.open)
		}
		sub.open = 0
		return
	}
	if sub.open == 0 {
		c.fail(f, "it is not subscribed to")
		return
	}
	switch f.Type {
	case wire.Reset:
		switch f.Reason {
		case "trimmed", "lagging", "floor":
			// Of those that follow the gap some may have been left out, too.
			if n := f.Base.Seq - sub.at.Seq; !sub.at.IsZero() && f.Missed != n && len(f.Data) == 0 && (f.Topic != "conflate" || f.Missed > n) {
				c.fail(f, "stood at %v, goes on at %v", sub.at, f.Base)
			}
		}
		if strings.HasPrefix(f.Topic, "snap") {
			// The snapshot says up to where it goes.
			if string(f.Data) != fmt.Sprintf(`{"upto":%d}`, f.Base.Seq) {
				c.fail(f, "the snapshot goes up to elsewhere")
			}
		}
		sub.at, sub.gap = f.Base, false
		c.odd[f.Reason]++
	case wire.Entries:
		if sub.gap {
			c.fail(f, "before the reset")
		}
		if f.Prev != sub.at {
			c.fail(f, "stands at %v", sub.at)
		}
		if f.Conflated > 0 {
			c.odd["conflated"]++
			if !strings.HasPrefix(f.Topic, "conflate") {
				c.fail(f, "conflated")
			}
		}
		if len(f.Entries) == 0 && f.To.IsZero() {
			c.fail(f, "nothing")
		}
		seq := f.Prev.Seq
		for _, e := range f.Entries {
			if e.Pos.Seq <= seq || f.Conflated == 0 && e.Pos.Seq != seq+1 {
				c.fail(f, "%d after %d", e.Pos.Seq, seq)
			}
			seq = e.Pos.Seq
			if string(e.Data) != fmt.Sprintf(`"%s %d"`, f.Topic, seq) {
				c.fail(f, "%s at %d", e.Data, seq)
			}
			sub.at = e.Pos
			c.seen[f.Topic]++
		}
		if !f.To.IsZero() {
			if f.To.Seq <= seq {
				c.fail(f, "to is no further")
			}
			sub.at = f.To
		}
		if len(f.Entries)%5 == 1 {
			c.old[f.Topic] = append(c.old[f.Topic], sub.at)
			if n := len(c.old[f.Topic]); n > 8 {
				c.old[f.Topic] = slices.Delete(c.old[f.Topic], 0, n-8)
			}
		}
	}
}

// connect connects, and subscribes again from where it stands.
func (c *strict) connect() {
	s := c.r.welcome(c.name)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.s = s
	for _, sub := range c.subs {
		sub.open = 0
	}
	for topic, sub := range c.subs {
		if sub.wanted {
			c.subscribe(topic, c.resume(sub))
		}
	}
}

func (c *strict) resume(sub *strictSub) string {
	if sub.at.IsZero() {
		return ""
	}
	return `,"from":` + pos(sub.at)
}

// subscribe subscribes, with the lock held.
func (c *strict) subscribe(topic, more string) {
	sub := c.subs[topic]
	if sub == nil {
		sub = new(strictSub)
		c.subs[topic] = sub
	}
	c.ref++
	sub.want, sub.wanted = c.ref, true
	c.s.conn.Write(masked(final|opText, fmt.Appendf(nil, `{"t":"subscribe","topic":"%s","ref":%d%s}`, topic, c.ref, more)))
}

// act does something at random.
func (c *strict) act(topics []string) {
	topic := topics[c.rnd.IntN(len(topics))]
	c.mu.Lock()
	defer c.mu.Unlock()
	switch n := c.rnd.IntN(20); {
	case n < 4:
		c.subscribe(topic, "")
	case n < 6:
		c.subscribe(topic, fmt.Sprintf(`,"last":%d`, c.rnd.IntN(200)))
	case n < 9:
		if sub := c.subs[topic]; sub != nil {
			c.subscribe(topic, c.resume(sub))
		}
	case n < 12:
		var all []string
		for _, p := range c.old[topic] {
			all = append(all, pos(p))
		}
		c.rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		c.subscribe(topic, `,"from":[`+strings.Join(all, ",")+`]`)
	case n < 14:
		if sub := c.subs[topic]; sub != nil {
			c.ref++
			sub.want, sub.wanted = c.ref, false
			c.s.conn.Write(masked(final|opText, fmt.Appendf(nil, `{"t":"unsubscribe","topic":"%s","ref":%d}`, topic, c.ref)))
		}
	case n < 16:
		link := c.s.link
		link.Stall(memnet.Down, true)
		time.AfterFunc(time.Duration(c.rnd.IntN(6000))*time.Millisecond, func() { link.Stall(memnet.Down, false) })
	case n < 17:
		c.s.conn.Close()
	}
}

func TestManyClientsAtRandom(t *testing.T) {
	seeds, duration := 2, 30*time.Second
	if !verify.On() {
		seeds = 1
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) { random(t, uint64(seed), duration) })
	}
}

func random(t *testing.T, seed uint64, duration time.Duration) {
	topics := []string{"plain", "lag", "conflate", "snap"}
	s := keep(150)
	s.net.Buffer = 4 << 10
	s.hub.Snapshot = func(_ context.Context, topic string, head replay.Position) ([]byte, replay.Position, error) {
		if topic != "snap" {
			return nil, replay.Position{}, fmt.Errorf("none for %s", topic)
		}
		time.Sleep(10 * time.Millisecond)
		return fmt.Appendf(nil, `{"upto":%d}`, head.Seq), head, nil
	}
	s.Lag = func(topic string) *replay.Lag {
		return map[string]*replay.Lag{"lag": {Entries: 40}, "conflate": {Entries: 20, Conflate: true}}[topic]
	}
	s.Limits = Limits{Write: 3 * time.Second}
	r := startWith(t, s)
	stop, over := make(chan struct{}), make(chan struct{})
	var publishers, actors, readers sync.WaitGroup
	for i, topic := range topics {
		publishers.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(i)))
			for n := 1; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(rnd.ExpFloat64() * float64(40*time.Millisecond))):
				}
				r.hub.Publish(context.Background(), topic, backplane.Message{
					Key: strconv.Itoa(n % 7), Data: fmt.Appendf(nil, `"%s %d"`, topic, n),
				})
				if n%10 == 0 {
					r.hub.PublishEphemeral(context.Background(), topic, []byte(`1`))
				}
			}
		})
	}
	var clients []*strict
	for i := range 12 {
		c := &strict{t: t, r: r, name: fmt.Sprint("client ", i), rnd: rand.New(rand.NewPCG(seed, uint64(100+i))),
			subs: map[string]*strictSub{}, old: map[string][]replay.Position{}, seen: map[string]int{}, odd: map[string]int{}}
		clients = append(clients, c)
		c.connect()
		readers.Go(func() {
			for {
				for {
					f, err := c.s.next()
					if err != nil {
						break
					}
					c.take(f)
				}
				c.s.conn.Close()
				select {
				case <-over:
					return
				case <-time.After(time.Second):
				}
				c.connect()
			}
		})
		actors.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(c.rnd.ExpFloat64() * float64(500*time.Millisecond))):
				}
				c.act(topics)
			}
		})
	}
	time.Sleep(duration)
	close(stop)
	publishers.Wait()
	actors.Wait()
	time.Sleep(20 * time.Second) // whoever was stalled, or away, is back
	for _, topic := range topics {
		page, err := r.bp.Read(context.Background(), topic, replay.Position{}, replay.Budget{Entries: 1})
		if err != nil {
			t.Fatal(err)
		}
		standing, seen, odd := 0, 0, map[string]int{}
		for _, c := range clients {
			c.mu.Lock()
			seen += c.seen[topic]
			for k, n := range c.odd {
				odd[k] += n
			}
			if sub := c.subs[topic]; sub != nil && sub.open != 0 && sub.wanted {
				standing++
				if sub.at != page.Head {
					t.Errorf("%s: %s: at %v, not %v", c.name, topic, sub.at, page.Head)
				}
				if sub.open != sub.want {
					t.Errorf("%s: %s: %d is open, and %d wanted", c.name, topic, sub.open, sub.want)
				}
			}
			c.mu.Unlock()
		}
		if standing == 0 || seen == 0 || odd["lagging"] == 0 || odd["trimmed"] == 0 || odd["conflated"] == 0 {
			t.Errorf("%s: nothing was tested: %d, %d, %v", topic, standing, seen, odd)
		}
		t.Logf("%s: %d messages, %v", topic, seen, odd)
	}
	if n := r.hub.Stats().Subscribers; n != r.gw.Stats().Subscriptions {
		t.Errorf("%d subscribers at the Hub, %+v", n, r.gw.Stats())
	}
	close(over)
	for _, c := range clients {
		c.s.conn.Close()
	}
	readers.Wait()
	time.Sleep(time.Second)
	if st := r.gw.Stats(); st.Subscriptions != 0 || r.hub.Stats().Subscribers != 0 {
		t.Errorf("%+v, %+v", st, r.hub.Stats())
	}
}
