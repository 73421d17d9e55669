package gateway

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/wire"
)

// The next publish begins when the answer of the one before has its place among the frames: else
// its own could come first.
func TestAnAnswerHasItsPlaceBeforeTheNextPublishBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		s := r.welcome("")
		// Whoever has something to send takes a scratch first. None is left, and the first one that
		// is made, for the first answer, takes its time.
		var made atomic.Int64
		r.gw.scratch.New = func() any {
			if made.Add(1) == 2 {
				time.Sleep(time.Second)
			}
			return new(scratch)
		}
		for made.Load() == 0 {
			r.gw.scratch.Get()
		}
		s.send(`{"t":"publish","id":"1","topic":"x","data":1}`)
		time.Sleep(100 * time.Millisecond)
		s.send(`{"t":"publish","id":"2","topic":"x","data":2}`)
		for _, id := range []string{"1", "2"} {
			if f := s.expect(wire.Ack); f.ID != id {
				t.Errorf("the answer is %s, want that of %s", f.Append(nil), id)
			}
		}
	})
}

func TestPublishesKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := 0
		r := startWith(t, setup{Options: Options{
			Limits: Limits{Publishes: -1, Frames: -1, Pending: 1000},
			Authorize: func(_ context.Context, a Access) (Grant, error) {
				if a.Action == Publish {
					slow++
					time.Sleep(time.Duration(slow%7) * time.Millisecond)
				}
				return Grant{}, nil
			},
		}})
		s := r.welcome("anna")
		const n = 300
		var want []string
		for i := range n {
			s.send(fmt.Sprintf(`{"t":"publish","id":"%d","topic":"%d","data":%d}`, i, i%3, i))
			want = append(want, strconv.Itoa(i))
		}
		var got []string
		var last [3]uint64
		for i := range n {
			f := s.expect(wire.Ack)
			got = append(got, f.ID)
			if f.Pos.Seq != last[i%3]+1 {
				t.Errorf("%s after %d", f.Append(nil), last[i%3])
			}
			last[i%3] = f.Pos.Seq
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("answered (-want +got):\n%s", d)
		}
		if st := r.gw.Stats(); st.Published != n || st.NotPublished != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// A verdict is a backplane whose Append ends as a test wants.
type verdict struct {
	*backplane.Memory
	mu      sync.Mutex
	outcome backplane.Outcome
	err     error
}

func (v *verdict) Append(ctx context.Context, topic string, m backplane.Message) (backplane.Receipt, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err == nil {
		return v.Memory.Append(ctx, topic, m)
	}
	return backplane.Receipt{Outcome: v.outcome}, v.err
}

func (v *verdict) set(o backplane.Outcome, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.outcome, v.err = o, err
}

func TestWhatBecameOfAPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type answer struct {
			id, topic string
			receipt   backplane.Receipt
			err       error
		}
		traced := make(chan answer, 10)
		bp := &verdict{Memory: backplane.NewMemory(nil)}
		s := setup{bp: bp, hub: backplane.Options{MaxMessage: 100}}
		s.Trace = &Trace{Published: func(i Info, topic string, r backplane.Receipt, err error) {
			traced <- answer{r.ID, topic, r, err}
		}}
		r := startWith(t, s)
		c := r.welcome("anna")
		f := c.ask(`{"t":"publish","id":"1","topic":"x","data":1}`, wire.Ack)
		if f.Outcome != wire.Committed || f.Pos.IsZero() {
			t.Errorf("%s", f.Append(nil))
		}
		if a := <-traced; a.id != "1" || a.topic != "x" || a.receipt.Pos != f.Pos || a.err != nil {
			t.Errorf("%+v", a)
		}
		if g := c.ask(`{"t":"publish","id":"1","topic":"x","data":2}`, wire.Ack); g.Outcome != wire.Duplicate || g.Pos != f.Pos {
			t.Errorf("%s", g.Append(nil))
		}
		<-traced
		away := fmt.Errorf("the secret address of a server: %w", backplane.ErrUnavailable)
		for _, v := range []struct {
			outcome backplane.Outcome
			want    string
		}{{backplane.Unknown, wire.Unknown}, {backplane.NotStored, wire.NotStored}} {
			bp.set(v.outcome, away)
			g := c.ask(`{"t":"publish","id":"2","topic":"x","data":2}`, wire.Nack)
			if g.Outcome != v.want || g.Code != wire.Unavailable || g.ID != "2" || strings.Contains(string(g.Append(nil)), "secret") {
				t.Errorf("%s", g.Append(nil))
			}
			if a := <-traced; !errors.Is(a.err, away) || a.id != "2" || a.receipt.Outcome != v.outcome {
				t.Errorf("%+v", a)
			}
		}
		bp.set(0, nil)
		if g := c.ask(`{"t":"publish","id":"2","topic":"x","data":2}`, wire.Ack); g.Outcome != wire.Committed {
			t.Errorf("%s", g.Append(nil))
		}
		<-traced
		g := c.ask(`{"t":"publish","id":"3","topic":"x","data":"`+strings.Repeat("x", 100)+`"}`, wire.Nack)
		if g.Outcome != wire.NotStored || g.Code != wire.TooLarge || g.Field != "data" {
			t.Errorf("%s", g.Append(nil))
		}
		if st := r.gw.Stats(); st.Published != 3 || st.NotPublished != 3 {
			t.Errorf("%+v", st)
		}
	})
}

func TestAPublishIsQueuedWhereThereIsAnOutbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bp := &verdict{Memory: backplane.NewMemory(nil)}
		s := setup{bp: bp, hub: backplane.Options{Outbox: &backplane.Outbox{}}}
		r := startWith(t, s)
		c := r.welcome("anna")
		bp.set(backplane.NotStored, backplane.ErrUnavailable)
		if f := c.ask(`{"t":"publish","id":"1","topic":"x","data":1}`, wire.Ack); f.Outcome != wire.Queued || !f.Pos.IsZero() {
			t.Errorf("%s", f.Append(nil))
		}
		bp.set(0, nil)
		time.Sleep(20 * time.Second)
		r.holds("x", "1")
	})
}

func TestPayloadsAreStoredAsTheyAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		s := r.welcome("")
		for i, c := range [][2]string{
			{`"data": {"b" : 1, "a":[ ]} `, `{"b" : 1, "a":[ ]}`}, {`"data":null`, `null`}, {`"data":1e400`, `1e400`},
			{`"text":"a\n\u00e9\ud83d\ude00"`, "a\né😀"}, {`"text":""`, ""}, {`"text":"\ud800"`, "\ufffd"},
			{`"bin":"AP8="`, "\x00\xff"}, {`"bin":""`, ""},
		} {
			s.ask(fmt.Sprintf(`{"t":"publish","id":"%d","topic":"x",%s}`, i, c[0]), wire.Ack)
			if got := r.stored("x"); got[i] != c[1] {
				t.Errorf("%s is stored as %q", c[0], got[i])
			}
		}
	})
}

// What a client has published must not change when its connection uses its buffers again.
func TestWhatIsPublishedIsCopied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bp := newGate()
		r := startWith(t, setup{bp: bp})
		s := r.welcome("")
		bp.appends.close()
		var want []string
		for i := range 10 {
			text := strings.Repeat(strconv.Itoa(i), 1000)
			want = append(want, text)
			s.send(fmt.Sprintf(`{"t":"publish","id":"%s","topic":"x","key":"%s","text":"%s"}`, text[:20], text[:10], text))
		}
		s.alive()
		bp.appends.open()
		for range want {
			s.expect(wire.Ack)
		}
		r.holds("x", want...)
	})
}

// noEphemeral is a backplane without these.
type noEphemeral struct{ backplane.Backplane }

func TestEphemeralMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{bp: noEphemeral{backplane.NewMemory(nil)}})
		if f := r.welcome("").ask(`{"t":"ephemeral","topic":"x","data":1}`, wire.Error); f.Code != wire.Unsupported || f.Topic != "x" {
			t.Errorf("%s", f.Append(nil))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Limits: Limits{Publishes: 2}}})
		s, other := r.welcome(""), r.welcome("")
		other.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
		for range 20 {
			s.send(`{"t":"ephemeral","topic":"x","data":1}`)
		}
		// Not even those that are too many are answered, but for the first.
		if f := s.expect(wire.Error); f.Code != wire.TooFast || f.Topic != "x" || f.Retry == 0 || f.Field != "t" {
			t.Errorf("%s", f.Append(nil))
		}
		s.alive()
		time.Sleep(time.Second)
		other.send(`{"t":"ping"}`)
		got := 0
		for f := other.read(); f.Type == wire.Ephemeral; f = other.read() {
			got++
		}
		if got != 8 {
			t.Errorf("%d were passed on, want 4 times the rate", got)
		}
		if len(r.stored("x")) != 0 {
			t.Error("stored")
		}
	})
}

// An ephemeral message that found too much waiting was dropped without a word, and the bound for
// bytes was not in the log for anything.
func TestALimitForWhatWaitsIsNotSilent(t *testing.T) {
	for name, c := range map[string]struct {
		pending, size int
		log           string
	}{
		"messages": {4, 1, "limit=4 option=gateway.Limits.Pending"},
		"bytes":    {-1, 30_000, `limit=262144 of="bytes that wait to be stored"`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := new(journal)
				bp := newGate()
				r := startWith(t, setup{bp: bp, Options: Options{Logger: log.logger(), Limits: Limits{Pending: c.pending}}})
				s := r.welcome("")
				bp.appends.close()
				refused := func(f *wire.Frame) {
					if f.Code != wire.TooManyPending || f.Retry == 0 || (f.Field == "t") != (f.Type == wire.Error) {
						t.Errorf("%s", f.Append(nil))
					}
				}
				for i := range 10 {
					s.send(fmt.Sprintf(`{"t":"publish","id":"%d","topic":"x","text":"%s"}`, i, strings.Repeat("x", c.size)))
				}
				for range 3 {
					s.send(`{"t":"ephemeral","topic":"y","data":1}`)
				}
				s.send(`{"t":"publish","id":"last","topic":"x","data":1}`)
				for last := ""; last != "last"; { // the publishes that are refused, and one of the others
					f := s.read()
					if refused(f); f.Type == wire.Error {
						if f.Topic != "y" || last == "error" {
							t.Errorf("%s", f.Append(nil))
						}
						last = "error"
					} else if f.ID == "last" && last != "error" {
						t.Error("no ephemeral message was answered")
						break
					} else if f.ID == "last" {
						last = f.ID
					}
				}
				if got := log.String(); strings.Count(got, "a limit holds up a client") != 1 || !strings.Contains(got, c.log) {
					t.Errorf("in the log: %s", got)
				}
				bp.appends.open()
			})
		})
	}
}

// read is next without an error.
func (s *socket) read() *wire.Frame {
	s.t.Helper()
	f, err := s.next()
	if err != nil {
		s.t.Fatal(err)
	}
	return f
}

func TestPublishesOfWhoHasLeft(t *testing.T) {
	// What was under way is stored; what had not begun the client sends again.
	synctest.Test(t, func(t *testing.T) {
		bp := newGate()
		r := startWith(t, setup{bp: bp})
		s := r.welcome("anna")
		bp.appends.close()
		for i := range 5 {
			s.send(fmt.Sprintf(`{"t":"publish","id":"%d","topic":"x","data":%d}`, i, i))
		}
		time.Sleep(time.Second)
		s.conn.Close()
		time.Sleep(time.Second)
		bp.appends.open()
		time.Sleep(time.Second)
		r.holds("x", "0")
		s = r.welcome("anna")
		for i := range 5 {
			f := s.ask(fmt.Sprintf(`{"t":"publish","id":"%d","topic":"x","data":%d}`, i, i), wire.Ack)
			if (f.Outcome == wire.Duplicate) != (i == 0) {
				t.Errorf("%s", f.Append(nil))
			}
		}
		r.holds("x", "0", "1", "2", "3", "4")
	})
}
