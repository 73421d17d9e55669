package gateway

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/memnet"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// A guard is an Authorize that a test can change, and which keeps what it was asked.
type guard struct {
	mu     sync.Mutex
	asked  []Access
	answer func(ctx context.Context, a Access) (Grant, error)
}

func (g *guard) authorize(ctx context.Context, a Access) (Grant, error) {
	g.mu.Lock()
	g.asked = append(g.asked, a)
	answer := g.answer
	g.mu.Unlock()
	if answer != nil {
		return answer(ctx, a)
	}
	return Grant{User: a.Token}, nil
}

// set sets the answer and forgets what was asked.
func (g *guard) set(answer func(ctx context.Context, a Access) (Grant, error)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked, g.answer = nil, answer
}

func (g *guard) deny(err error) {
	g.set(func(context.Context, Access) (Grant, error) { return Grant{}, err })
}

// questions says what was asked.
func (g *guard) questions() (all []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range g.asked {
		q := string(a.Action) + " " + a.User + " " + a.Topic
		if a.Resume {
			q += " again"
		}
		all = append(all, q)
	}
	return all
}

func TestEverythingIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type session struct{ n int }
		g := new(guard)
		g.set(func(_ context.Context, a Access) (Grant, error) {
			switch {
			case a.Action == Connect:
				if a.Request == nil || a.Request.Host != "example.com" || a.Token != "anna" || a.User != "" || a.Value != nil {
					t.Errorf("%+v", a)
				}
				return Grant{User: "Anna", Value: &session{7}}, nil
			case a.User != "Anna" || a.Value.(*session).n != 7 || a.Request != nil:
				t.Errorf("%+v", a)
			case a.Action == Renew && a.Token != "new" || a.Action != Renew && a.Token != "":
				t.Errorf("%+v", a)
			}
			if a.Action == Renew {
				return Grant{User: "Anna"}, nil
			}
			if a.Action == Renew {
				return Grant{Value: 8}, nil
			}
			return Grant{User: "somebody else", Value: 8}, nil // which counts for Connect only
		})
		r := startWith(t, setup{Options: Options{Authorize: g.authorize}})
		s := r.welcome("anna")
		p := r.publish("x", "1")
		s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
		s.ask(`{"t":"unsubscribe","topic":"x"}`, wire.Unsubscribed)
		s.ask(`{"t":"subscribe","topic":"x","from":`+pos(p)+`}`, wire.Subscribed)
		s.ask(`{"t":"publish","topic":"y","id":"1","data":1}`, wire.Ack)
		s.send(`{"t":"ephemeral","topic":"z","data":1}`)
		s.ask(`{"t":"auth","token":"new"}`, wire.OK)
		time.Sleep(time.Second)
		want := []string{"connect  ", "subscribe Anna x", "subscribe Anna x again", "publish Anna y", "publish Anna z", "renew Anna "}
		slices.Sort(want) // some are at the same time
		got := g.questions()
		slices.Sort(got)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("asked (-want +got):\n%s", d)
		}
	})
}

// What is asked about is the message that will be stored, with the client's own id.
func TestAMessageIsShownBeforeItIsPublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(guard)
		r := startWith(t, setup{Options: Options{Authorize: g.authorize}})
		s := r.welcome("anna")
		g.set(func(_ context.Context, a Access) (Grant, error) {
			if a.Action == Publish && !strings.Contains(string(a.Message.Data), "anna") {
				return Grant{}, fmt.Errorf("who? %w", ErrForbidden)
			}
			return Grant{}, nil
		})
		s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
		for _, f := range []string{
			`{"t":"publish","topic":"x","id":"1","key":"k","data":{"from":"anna"}}`,
			`{"t":"publish","topic":"x","id":"2","text":"I am anna"}`,
			`{"t":"publish","topic":"x","id":"3","bin":"YW5uYQ=="}`,
		} {
			s.send(f)
			got := []string{s.read().Type, s.read().Type}
			if slices.Sort(got); !slices.Equal(got, []string{wire.Ack, wire.Entries}) {
				t.Errorf("%s: %q", f, got)
			}
		}
		s.send(`{"t":"ephemeral","topic":"x","id":"4","key":"k","data":{"typing":"anna"}}`)
		s.expect(wire.Ephemeral)
		if f := s.ask(`{"t":"publish","topic":"x","id":"5","data":{"from":"bert"}}`, wire.Nack); f.Code != wire.Forbidden || f.Outcome != wire.NotStored || f.ID != "5" {
			t.Errorf("%s", f.Append(nil))
		}
		if f := s.ask(`{"t":"ephemeral","topic":"x","data":{"typing":"bert"}}`, wire.Error); f.Code != wire.Forbidden || f.Topic != "x" || f.Ref != 0 {
			t.Errorf("%s", f.Append(nil))
		}
		r.publish("x", `"the server may"`)
		s.expect(wire.Entries) // the subscription lives on
		var got []string
		for _, a := range g.asked {
			if m := a.Message; a.Action == Publish {
				got = append(got, fmt.Sprintf("%s %s %s", m.ID, m.Key, m.Data))
			} else if m.ID != "" || m.Data != nil {
				t.Errorf("%+v", a)
			}
		}
		want := []string{`1 k {"from":"anna"}`, "2  I am anna", "3  anna", `  {"typing":"anna"}`, `5  {"from":"bert"}`, `  {"typing":"bert"}`}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("asked about (-want +got):\n%s", d)
		}
		r.holds("x", `{"from":"anna"}`, "I am anna", "anna", `"the server may"`)
	})
}

func TestNothingHappensThatIsNotAllowed(t *testing.T) {
	for _, c := range []struct {
		err   error
		code  string
		close int
	}{
		{ErrForbidden, wire.Forbidden, wire.CloseForbidden},
		{fmt.Errorf("so says the table: %w", ErrForbidden), wire.Forbidden, wire.CloseForbidden},
		{ErrUnauthenticated, wire.Unauthenticated, wire.CloseUnauthorized},
		{errors.New("no database"), wire.Unavailable, wire.CloseTryLater},
		{context.DeadlineExceeded, wire.Unavailable, wire.CloseTryLater},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := new(guard)
			r := startWith(t, setup{Options: Options{Authorize: g.authorize}})
			p := r.publish("x", "1")
			r.publish("x", "2")
			s := r.welcome("")
			g.deny(c.err)
			for _, more := range []string{``, `,"last":1`, `,"from":` + pos(p)} {
				f := s.ask(`{"t":"subscribe","topic":"x","ref":1`+more+`}`, wire.Error)
				if f.Code != c.code || f.Topic != "x" || f.Ref != 1 || strings.Contains(f.Message, "database") || strings.Contains(f.Message, "table") {
					t.Errorf("%v: %s", c.err, f.Append(nil))
				}
			}
			if f := s.ask(`{"t":"publish","topic":"x","id":"a","data":3}`, wire.Nack); f.Code != c.code || f.Outcome != wire.NotStored || f.ID != "a" {
				t.Errorf("%v: %s", c.err, f.Append(nil))
			}
			if f := s.ask(`{"t":"ephemeral","topic":"x","data":3}`, wire.Error); f.Code != c.code || f.Topic != "x" {
				t.Errorf("%v: %s", c.err, f.Append(nil))
			}
			r.publish("x", "4")
			s.alive() // and got nothing
			r.holds("x", "1", "2", "4")
			if st := r.gw.Stats(); st.Subscriptions != 0 || r.hub.Stats().Subscribers != 0 || (st.AuthorizeErrors == 5) != (c.code == wire.Unavailable) {
				t.Errorf("%+v", st)
			}
			other := r.socket()
			if f := other.ask(`{"t":"hello","v":1}`, wire.Error); f.Code != c.code {
				t.Errorf("%v: %s", c.err, f.Append(nil))
			}
			if e := other.end(); e.code != c.close {
				t.Errorf("%v: %v", c.err, e)
			}
		})
	}
}

func TestAnAnswerHasToComeInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(guard)
		r := startWith(t, setup{Options: Options{Authorize: g.authorize, Limits: Limits{Authorize: 3 * time.Second}}})
		s := r.welcome("")
		g.set(func(ctx context.Context, a Access) (Grant, error) {
			<-ctx.Done()
			return Grant{}, context.Cause(ctx)
		})
		begin := time.Now()
		s.send(`{"t":"subscribe","topic":"x"}`)
		s.send(`{"t":"publish","topic":"x","id":"1","data":1}`)
		s.send(`{"t":"auth","token":"x"}`)
		s.alive() // meanwhile
		for range 3 {
			if f, err := s.next(); err != nil || f.Code != wire.Unavailable {
				t.Errorf("%s, %v", f.Append(nil), err)
			}
		}
		if d := time.Since(begin); d != 3*time.Second+2*latency {
			t.Errorf("after %v", d)
		}
		other := r.socket()
		begin = time.Now()
		other.send(`{"t":"hello","v":1}`)
		if c := other.end(); c.code != wire.CloseTryLater || time.Since(begin) != 3*time.Second+2*latency {
			t.Errorf("%v after %v", c, time.Since(begin))
		}
	})
}

func TestWhoseTokenCounts(t *testing.T) {
	long := strings.Repeat("x", wire.MaxToken+1)
	for _, c := range []struct{ header, hello, want string }{
		{"", "hello", "hello"},
		{"Authorization: Bearer header\r\n", "", "header"},
		{"Authorization: bearer   header \r\n", "", "header"},
		{"Authorization: Bearer header\r\n", "hello", "hello"},
		{"Authorization: Basic YTpi\r\n", "", ""},
		{"Authorization: Bearer\r\n", "", ""},
		{"Authorization: Bearer " + long + "\r\n", "", ""},
		{"", "", ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			got := "not asked"
			r := startWith(t, setup{Options: Options{Authorize: func(_ context.Context, a Access) (Grant, error) {
				got = a.Token
				return Grant{}, nil
			}}})
			r.welcome(c.hello, c.header)
			if got != c.want {
				t.Errorf("%.40q and %q: %q", c.header, c.hello, got)
			}
		})
	}
}

func TestTheRequestIsThatOfTheHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Authorize: func(_ context.Context, a Access) (Grant, error) {
			if c, err := a.Request.Cookie("session"); err != nil || c.Value != "7" || a.Request.URL.Path != "/ws" {
				t.Errorf("%v, %v", c, err)
			}
			return Grant{}, nil
		}}})
		r.welcome("", "Cookie: session=7\r\n")
	})
}

func TestNothingBelowTheFloorIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p []replay.Position
		g := new(guard)
		r := startWith(t, setup{Options: Options{Authorize: g.authorize}})
		for i := range 10 {
			p = append(p, r.publish("x", strconv.Itoa(i)))
		}
		g.set(func(_ context.Context, a Access) (Grant, error) {
			if a.Action == Subscribe && a.User == "guest" {
				return Grant{Floor: p[6]}, nil
			}
			return Grant{User: a.Token}, nil
		})
		full := r.welcome("member")
		full.ask(`{"t":"subscribe","topic":"x","from":`+pos(p[2])+`}`, wire.Subscribed)
		full.expect(wire.Entries)
		for _, c := range []struct {
			ask  string
			want []string
		}{
			{`"last":100`, []string{"7", "8", "9"}},
			{`"last":2`, []string{"8", "9"}},
			{`"from":` + pos(p[2]), []string{"floor", "7", "8", "9"}},
			{`"from":` + pos(p[7]), []string{"8", "9"}},
			{`"from":[` + pos(p[8]) + `,` + pos(p[0]) + `]`, []string{"floor", "7", "8", "9"}},
			{`"last":100,"floor":` + pos(p[0]), []string{"7", "8", "9"}}, // its own is not asked for
			{`"last":100,"floor":` + pos(p[8]), []string{"7", "8", "9"}},
			{`"floor":` + pos(p[0]), nil},
		} {
			s := r.welcome("guest")
			s.ask(`{"t":"subscribe","topic":"x",`+c.ask+`}`, wire.Subscribed)
			var got []string
			s.send(`{"t":"ping"}`)
			for {
				f, err := s.next()
				if err != nil {
					t.Fatal(err)
				}
				if f.Type == wire.Pong {
					break
				}
				if f.Type == wire.Reset {
					got = append(got, f.Reason)
				}
				got = append(got, data(f)...)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.ask, d)
			}
			s.conn.Close()
		}
	})
}

// Frames are shared. Those of one who may see everything must not reach one who may not,
// though both read at the same moment and the same place.
func TestSharedFramesKeepToTheFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bp := newGate()
		g := new(guard)
		r := startWith(t, setup{bp: bp, Options: Options{Authorize: g.authorize}})
		var p []replay.Position
		for i := range 10 {
			p = append(p, r.publish("x", strconv.Itoa(i)))
		}
		g.set(func(_ context.Context, a Access) (Grant, error) {
			if n, err := strconv.Atoi(a.User); err == nil && a.Action == Subscribe {
				return Grant{Floor: p[n]}, nil
			}
			return Grant{User: a.Token}, nil
		})
		bp.reads.close()
		var all []*socket
		floors := []int{-1, 4, 0, 9, 4, 7, -1, 2, 2, 8}
		for _, floor := range floors {
			s := r.welcome(strconv.Itoa(floor))
			if floor < 0 {
				s = r.welcome("member")
			}
			s.send(`{"t":"subscribe","topic":"x","from":` + pos(p[0]) + `}`)
			all = append(all, s)
		}
		time.Sleep(time.Second)
		bp.reads.open()
		time.Sleep(time.Second)
		r.publish("x", "10")
		for i, s := range all {
			at := s.expect(wire.Subscribed).Base
			want := 1
			var got []string
			for !slices.Contains(got, "10") {
				f, err := s.next()
				if err != nil {
					t.Fatal(err)
				}
				if f.Type == wire.Reset {
					at = f.Base
					want = floors[i] + 1
					continue
				}
				if f.Prev != at {
					t.Errorf("floor %d: %s", floors[i], f.Append(nil))
				}
				at = f.Entries[len(f.Entries)-1].Pos
				got = append(got, data(f)...)
			}
			if (floors[i] > 0) != (want > 1) || got[0] != strconv.Itoa(want) || len(got) != 11-want {
				t.Errorf("floor %d: %q", floors[i], got)
			}
		}
	})
}

// Somebody who may see nothing yet stands where others stand who may.
func TestAFloorThatIsAheadOfTheTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(guard)
		r := startWith(t, setup{Options: Options{Authorize: g.authorize}})
		floor := r.publish("x", "1")
		floor.Seq += 2
		g.set(func(_ context.Context, a Access) (Grant, error) {
			if a.Action == Subscribe && a.User == "guest" {
				return Grant{Floor: floor}, nil
			}
			return Grant{User: a.Token}, nil
		})
		var all []*socket
		for i := range 6 {
			s := r.welcome([]string{"guest", "member"}[i%2])
			s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
			all = append(all, s)
		}
		for i := 2; i <= 5; i++ {
			p := r.publish("x", strconv.Itoa(i))
			for k, s := range all {
				f := s.expect(wire.Entries)
				if k%2 == 0 && i <= 3 {
					if len(f.Entries) != 0 || f.To != p {
						t.Errorf("a guest got %s", f.Append(nil))
					}
				} else if !slices.Equal(data(f), []string{strconv.Itoa(i)}) {
					t.Errorf("%s, not %d", f.Append(nil), i)
				}
			}
		}
	})
}

func TestPermissionIsAskedForAgain(t *testing.T) {
	for _, c := range []struct {
		err  error
		gone string // code, if it ends
	}{
		{nil, ""}, {errors.New("no database"), ""}, {ErrForbidden, wire.Forbidden}, {ErrUnauthenticated, wire.Unauthenticated},
	} {
		for _, how := range []string{"in time", "now"} {
			synctest.Test(t, func(t *testing.T) {
				g := new(guard)
				recheck := time.Minute
				if how == "now" {
					recheck = -1
				}
				r := startWith(t, setup{Options: Options{Authorize: g.authorize, Recheck: recheck}})
				s, other := r.welcome("anna"), r.welcome("bert")
				for _, s := range []*socket{s, other} {
					s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
					s.ask(`{"t":"subscribe","topic":"y"}`, wire.Subscribed)
				}
				g.set(func(_ context.Context, a Access) (Grant, error) {
					if a.User == "anna" && a.Topic == "x" {
						return Grant{}, c.err
					}
					return Grant{}, nil
				})
				if how == "now" {
					time.Sleep(time.Second)
					err := r.gw.Recheck(context.Background(), "anna")
					if unsure := c.err != nil && !errors.Is(c.err, ErrForbidden) && !errors.Is(c.err, ErrUnauthenticated); unsure != (err != nil) {
						t.Error(err)
					}
				} else {
					for range 12 { // neither is quiet for so long that it would be asked if it lives
						time.Sleep(6 * time.Second)
						s.send(`{"t":"pong"}`)
						other.send(`{"t":"pong"}`)
					}
				}
				synctest.Wait()
				asked := g.questions()
				slices.Sort(asked)
				if how == "in time" { // once or twice
					asked = slices.Compact(asked)
				}
				want := []string{"subscribe anna x again", "subscribe anna y again"}
				if how == "in time" {
					want = append(want, "subscribe bert x again", "subscribe bert y again")
				}
				if d := cmp.Diff(want, asked); d != "" {
					t.Errorf("%v, %s: asked (-want +got):\n%s", c.err, how, d)
				}
				if c.gone != "" {
					if f := s.expect(wire.Unsubscribed); f.Topic != "x" || f.Code != c.gone || f.Ref != 0 {
						t.Errorf("%v, %s: %s", c.err, how, f.Append(nil))
					}
				}
				r.publish("x", "1")
				r.publish("y", "1")
				if c.gone == "" {
					if f := s.expect(wire.Entries); f.Topic != "x" {
						t.Errorf("%v, %s: %s", c.err, how, f.Append(nil))
					}
				}
				if f := s.expect(wire.Entries); f.Topic != "y" {
					t.Errorf("%v, %s: %s", c.err, how, f.Append(nil))
				}
				other.expect(wire.Entries)
				other.expect(wire.Entries)
				s.alive()
				if st := r.gw.Stats(); (st.Revoked == 1) != (c.gone != "") || (st.Subscriptions == 3) != (c.gone != "") {
					t.Errorf("%v, %s: %+v", c.err, how, st)
				}
			})
		}
	}
}

// Where there was no answer it is asked again in a minute, and not each second: that would be all
// the more for a database that is away.
func TestAQuestionWithoutAnAnswerIsNotAskedAgainAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(guard)
		r := startWith(t, setup{Options: Options{Authorize: g.authorize, Recheck: 10 * time.Minute}})
		s := r.welcome("anna")
		s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
		s.idle()
		times := make(chan time.Time, 1000)
		g.set(func(context.Context, Access) (Grant, error) {
			times <- time.Now()
			return Grant{}, errors.New("no database")
		})
		time.Sleep(14 * time.Minute)
		var asked []time.Time
		for range len(times) {
			asked = append(asked, <-times)
		}
		if len(asked) < 4 || len(asked) > 14 {
			t.Errorf("asked %d times in 14 minutes", len(asked))
		}
		for i := 1; i < len(asked); i++ {
			if d := asked[i].Sub(asked[i-1]); d < time.Minute || d > 63*time.Second {
				t.Errorf("asked again after %v", d)
			}
		}
	})
}

func TestThoseSubscribedTogetherAreNotAskedAboutTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(guard)
		r := startWith(t, setup{Options: Options{Authorize: g.authorize, Recheck: 20 * time.Second, Limits: Limits{Topics: -1, Frames: -1}}})
		s := r.welcome("")
		const n = 400
		for i := range n {
			s.send(fmt.Sprintf(`{"t":"subscribe","topic":"%d"}`, i))
		}
		lives := s.idle()
		time.Sleep(time.Second)
		for round := range 3 {
			for quarter := range 4 {
				g.set(nil)
				time.Sleep(5 * time.Second)
				s.send(`{"t":"pong"}`)
				if got := len(g.questions()); got < n/8 || got > n/2 {
					t.Errorf("asked %d times in quarter %d of round %d", got, quarter, round)
				}
			}
		}
		s.conn.Close()
		<-lives
	})
}

func TestRecheckAlsoEndsWhatStillWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bp := newGate()
		g := new(guard)
		r := startWith(t, setup{bp: bp, Options: Options{Authorize: g.authorize}})
		r.publish("x", "1")
		s := r.welcome("anna")
		bp.reads.close()
		s.send(`{"t":"subscribe","topic":"x","last":1,"ref":5}`)
		time.Sleep(time.Second)
		g.deny(ErrForbidden)
		r.gw.Recheck(context.Background(), "anna")
		bp.reads.open()
		if f := s.expect(wire.Error); f.Code != wire.Forbidden || f.Ref != 5 {
			t.Errorf("%s", f.Append(nil))
		}
		s.alive()
	})
}

func TestRecheckEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(guard)
		r := startWith(t, setup{Options: Options{Authorize: g.authorize}})
		s := r.welcome("anna")
		s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
		g.set(func(ctx context.Context, a Access) (Grant, error) { <-ctx.Done(); return Grant{}, context.Cause(ctx) })
		why := errors.New("why")
		ctx, cancel := context.WithTimeoutCause(context.Background(), time.Second, why)
		defer cancel()
		begin := time.Now()
		if err := r.gw.Recheck(ctx, "anna"); err != why || time.Since(begin) != time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		s.alive()
		if st := r.gw.Stats(); st.Subscriptions != 1 {
			t.Errorf("%+v", st)
		}
	})
}

func TestCredentialsExpireUnlessTheyAreRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		g := new(guard)
		g.set(func(_ context.Context, a Access) (Grant, error) {
			switch a.Token {
			case "30s", "60s":
				d, _ := time.ParseDuration(a.Token)
				return Grant{User: "x", Expires: begin.Add(d)}, nil
			case "bad":
				return Grant{}, ErrUnauthenticated
			case "worse":
				return Grant{}, ErrForbidden
			case "down":
				return Grant{}, errors.New("no database")
			}
			return Grant{User: "x"}, nil
		})
		r := startWith(t, setup{Options: Options{Authorize: g.authorize}})
		never, first, second, last := r.welcome("never"), r.welcome("30s"), r.welcome("30s"), r.welcome("30s")
		if f := second.ask(`{"t":"auth","token":"60s","ref":5}`, wire.OK); f.Ref != 5 {
			t.Errorf("%s", f.Append(nil))
		}
		last.ask(`{"t":"auth","token":"for ever"}`, wire.OK)
		if f := first.ask(`{"t":"auth","token":"down","ref":6}`, wire.Error); f.Code != wire.Unavailable || f.Ref != 6 {
			t.Errorf("%s", f.Append(nil))
		}
		lives := []<-chan *closed{never.idle(), last.idle()}
		ended := second.idle()
		if f := first.expect(wire.Error); f.Code != wire.Unauthenticated {
			t.Errorf("%s", f.Append(nil))
		}
		if c, d := first.end(), time.Since(begin); c.code != wire.CloseUnauthorized || d < 30*time.Second || d > 31*time.Second+2*latency {
			t.Errorf("%v after %v", c, d)
		}
		if c, d := <-ended, time.Since(begin); c.code != wire.CloseUnauthorized || d < 60*time.Second || d > 61*time.Second+2*latency {
			t.Errorf("%v after %v", c, d)
		}
		time.Sleep(5 * time.Minute)
		for _, live := range lives {
			select {
			case c := <-live:
				t.Error(c)
			default:
			}
		}
		for _, token := range []string{"bad", "worse"} {
			s := r.welcome("never")
			s.send(`{"t":"auth","token":"` + token + `","ref":7}`)
			if f := s.expect(wire.Error); f.Code != wire.Unauthenticated || f.Ref != 7 {
				t.Errorf("%s", f.Append(nil))
			}
			if c := s.end(); c.code != wire.CloseUnauthorized {
				t.Errorf("%s: %v", token, c)
			}
		}
	})
}

// That Authorize hangs for subscriptions that are asked about again is no reason to keep
// connections whose credentials have expired.
func TestCredentialsExpireWhileAuthorizeHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		g := new(guard)
		r := startWith(t, setup{Options: Options{Authorize: g.authorize, Recheck: 10 * time.Second}})
		s := r.welcome("anna")
		for i := range 100 {
			s.ask(fmt.Sprintf(`{"t":"subscribe","topic":"%d"}`, i), wire.Subscribed)
			time.Sleep(20 * time.Millisecond)
		}
		g.set(func(ctx context.Context, a Access) (Grant, error) {
			if a.Action == Connect {
				return Grant{User: "bert", Expires: begin.Add(20 * time.Second)}, nil
			}
			<-ctx.Done()
			return Grant{}, context.Cause(ctx)
		})
		lives := s.idle()
		bert := r.welcome("bert")
		if c, d := bert.end(), time.Since(begin); c.code != wire.CloseUnauthorized || d > 21*time.Second+2*latency {
			t.Errorf("%v after %v", c, d)
		}
		s.conn.Close()
		<-lives
	})
}

func TestDisconnectEndsAllOfAUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		var of []*socket
		for range 3 {
			of = append(of, r.welcome("anna"))
		}
		bert := r.welcome("bert")
		if n := r.gw.Disconnect("anna"); n != 3 {
			t.Errorf("%d", n)
		}
		for _, s := range of {
			if c := s.end(); c.code != wire.CloseUnauthorized {
				t.Error(c)
			}
			s.conn.Close()
		}
		bert.alive()
		time.Sleep(5 * time.Second)
		if n := r.gw.Disconnect("anna"); n != 0 {
			t.Errorf("%d", n)
		}
		r.welcome("anna").alive()
	})
}

// A user that is put out is out at once, with all connections, even if one does not read.
func TestDisconnectDoesNotWaitForASlowConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const buffer = 1400
		r := startWith(t, setup{net: memnet.Settings{Buffer: buffer}})
		var of []*socket
		for range 5 {
			s := r.welcome("anna")
			s.link.Stall(memnet.Down, true)
			for range buffer / len("\x81\x0c{\"t\":\"pong\"}") { // then there is room for nothing more
				s.send(`{"t":"ping"}`)
			}
			of = append(of, s)
		}
		time.Sleep(time.Second)
		begin := time.Now()
		done := make(chan bool)
		go func() { r.gw.Disconnect("anna"); close(done) }()
		stuck := rand.IntN(len(of))
		time.Sleep(time.Second / 2)
		for i, s := range of {
			if i == stuck {
				continue
			}
			s.link.Stall(memnet.Down, false)
			if c := s.end(); c.code != wire.CloseUnauthorized {
				t.Error(c)
			}
			if d := time.Since(begin); d > time.Second {
				t.Errorf("a connection was put out after %v", d)
			}
		}
		<-done
	})
}

func TestConnectionsOfOneUserAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Limits: Limits{PerUser: 2}}})
		a := r.welcome("anna")
		r.welcome("anna")
		third := r.socket()
		third.send(`{"t":"hello","v":1,"token":"anna"}`)
		if c := third.end(); c.code != wire.CloseTooManyOfUser {
			t.Error(c)
		}
		for range 3 {
			r.welcome("") // those of nobody are not counted
		}
		r.welcome("bert")
		a.conn.Close()
		time.Sleep(time.Second)
		r.welcome("anna").alive()
	})
}

func TestConnectionsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Limits: Limits{Connections: 3}}})
		var all []*socket
		for range 3 {
			all = append(all, r.socket()) // also before hello
		}
		waits := map[string]bool{}
		for range 100 {
			s := r.dialRaw()
			s.write([]byte(handshake + "\r\n"))
			resp, err := http.ReadResponse(s.br, nil)
			if err != nil {
				t.Fatal(err)
			}
			after := resp.Header.Get("Retry-After")
			if n, err := strconv.Atoi(after); resp.StatusCode != 503 || err != nil || n < 1 || n > 11 {
				t.Errorf("%d, %q", resp.StatusCode, after)
			}
			waits[after] = true
			s.conn.Close()
		}
		if len(waits) < 5 {
			t.Errorf("all come back at once: %v", waits)
		}
		if st := r.gw.Stats(); st.Connections != 3 || st.Refused != 100 {
			t.Errorf("%+v", st)
		}
		all[0].conn.Close()
		time.Sleep(time.Second)
		r.welcome("").alive()
	})
}

func TestIDsAreTheUsersOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		for i, user := range []string{"anna", "bert", "ann", ""} {
			s := r.welcome(user)
			for _, id := range []string{"1", "a1"} { // "ann" with "a1" is not "anna" with "1"
				if f := s.ask(fmt.Sprintf(`{"t":"publish","id":"%s","topic":"x","data":"%d%s"}`, id, i, id), wire.Ack); f.Outcome != wire.Committed || f.ID != id {
					t.Errorf("%s: %s", user, f.Append(nil))
				}
				first := s.ask(fmt.Sprintf(`{"t":"publish","id":"%s","topic":"x","data":"again"}`, id), wire.Ack)
				if first.Outcome != wire.Duplicate || first.Pos.IsZero() || first.ID != id {
					t.Errorf("%s: %s", user, first.Append(nil))
				}
				// Another connection of the same user, another topic.
				again := r.welcome(user)
				if f := again.ask(fmt.Sprintf(`{"t":"publish","id":"%s","topic":"x","data":"again"}`, id), wire.Ack); f.Outcome != wire.Duplicate || f.Pos != first.Pos {
					t.Errorf("%s: %s", user, f.Append(nil))
				}
				if f := again.ask(fmt.Sprintf(`{"t":"publish","id":"%s","topic":"y","data":"%d"}`, id, i), wire.Ack); f.Outcome != wire.Committed {
					t.Errorf("%s: %s", user, f.Append(nil))
				}
			}
		}
		if got := r.stored("x"); len(got) != 8 || strings.Contains(strings.Join(got, " "), "again") {
			t.Errorf("stored: %q", got)
		}
	})
}

func TestAnIDAsLongAsTheyGet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		id := strings.Repeat("ä", backplane.MaxID/2)
		f := r.welcome("anna").ask(`{"t":"publish","id":"`+id+`","topic":"x","data":1}`, wire.Ack)
		if f.ID != id || f.Outcome != wire.Committed {
			t.Errorf("%s", f.Append(nil))
		}
	})
}
