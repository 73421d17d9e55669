package backplane

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/holdfast-ws/holdfast/replay"
)

func TestAnIdleSubscriptionIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(Subscription{}); n > 100 {
		t.Errorf("%d bytes, want 100 at most", n)
	}
}

// ten publishes 1 to 10 and returns their positions, with that before the first.
func ten(t *testing.T, h *Hub, topic string) []replay.Position {
	pos := make([]replay.Position, 11)
	for i := 1; i <= 10; i++ {
		pos[i] = publish(t, h, topic, strconv.Itoa(i)).Pos
	}
	pos[0].Epoch = pos[1].Epoch
	return pos
}

type beginning struct {
	name string
	opts *SubscribeOptions
	want string
}

// beginnings returns where to begin in a topic with ten messages, and what that
// gives.
func beginnings(pos []replay.Position) []beginning {
	future := pos[10]
	future.Seq = 12
	foreign := pos[9]
	foreign.Epoch++
	return []beginning{
		{"now", nil, ""},
		{"now too", &SubscribeOptions{}, ""},
		{"last 3", &SubscribeOptions{Last: 3}, "8 9 10"},
		{"last 7, more than the ring had", &SubscribeOptions{Last: 7}, "4 5 6 7 8 9 10"},
		{"all", &SubscribeOptions{Last: -1}, "1 2 3 4 5 6 7 8 9 10"},
		{"more than there are", &SubscribeOptions{Last: 50}, "1 2 3 4 5 6 7 8 9 10"},
		{"after", &SubscribeOptions{After: pos[7]}, "8 9 10"},
		{"after the last", &SubscribeOptions{After: pos[10]}, ""},
		{"after the start", &SubscribeOptions{After: pos[0]}, "1 2 3 4 5 6 7 8 9 10"},
		{"after counts more than last", &SubscribeOptions{After: pos[8], Last: 5}, "9 10"},
		{"another epoch, and then all that is left", &SubscribeOptions{After: foreign}, "reset(epoch 0) 1 2 3 4 5 6 7 8 9 10"},
		{"ahead, and then all that is left", &SubscribeOptions{After: future}, "reset(ahead 0) 1 2 3 4 5 6 7 8 9 10"},
		{"floor below", &SubscribeOptions{After: pos[7], Floor: pos[5]}, "8 9 10"},
		{"floor there", &SubscribeOptions{After: pos[7], Floor: pos[7]}, "8 9 10"},
		{"floor above", &SubscribeOptions{After: pos[4], Floor: pos[7]}, "reset(floor 3) 8 9 10"},
		{"floor at the head", &SubscribeOptions{After: pos[4], Floor: pos[10]}, "reset(floor 6)"},
		{"floor ahead of a rolled back log", &SubscribeOptions{After: pos[4], Floor: future}, "reset(floor 8)"},
		{"floor of another epoch", &SubscribeOptions{After: pos[7], Floor: foreign}, "8 9 10"},
		{"only the floor's number counts", &SubscribeOptions{After: pos[4], Floor: replay.Position{Epoch: pos[7].Epoch, Seq: 7, Tag: pos[7].Tag + 1}}, "reset(floor 3) 8 9 10"},
		{"floor above last", &SubscribeOptions{Last: 5, Floor: pos[8]}, "9 10"},
		{"floor above all", &SubscribeOptions{Last: -1, Floor: pos[8]}, "9 10"},
		{"floor below last", &SubscribeOptions{Last: 2, Floor: pos[3]}, "9 10"},
		{"floor ahead and last", &SubscribeOptions{Last: -1, Floor: future}, ""},
		{"foreign floor and last", &SubscribeOptions{Last: 2, Floor: foreign}, "9 10"},
		{"floor and now", &SubscribeOptions{Floor: pos[3]}, ""},
		{"floor after a fork", &SubscribeOptions{After: replay.Position{Epoch: pos[7].Epoch, Seq: 7, Tag: pos[7].Tag + 1}, Floor: pos[8]}, "reset(forked 0) 9 10"},
		{"floor after another epoch", &SubscribeOptions{After: foreign, Floor: pos[8]}, "reset(epoch 0) 9 10"},
	}
}

func TestWhereASubscriptionBegins(t *testing.T) {
	for i, c := range beginnings(make([]replay.Position, 11)) {
		for _, warm := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/warm=%v", c.name, warm), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := newTap(t, nil)
					h := hub(t, b, quiet())
					pos := ten(t, hub(t, b, quiet()), "x")
					if warm { // with only the last of it
						subscribe(t, h, "x", nil)
					}
					c := beginnings(pos)[i]
					s := subscribe(t, h, "x", c.opts)
					gets(t, s, c.want)
					gets(t, s, "")
					publish(t, h, "x", "11")
					if !strings.HasPrefix(c.name, "floor ahead") {
						gets(t, s, "11")
						return
					}
					gets(t, s, "") // the numbers up to the floor are withheld when they come
					publish(t, h, "x", "12")
					gets(t, s, "")
					publish(t, h, "x", "13")
					gets(t, s, "13")
				})
			})
		}
	}
}

// A floor holds for what a reader is given after a gap too, not only at the start.
func TestNothingBelowTheFloorIsGivenAfterARewind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		pos := ten(t, h, "x")
		s := subscribe(t, h, "x", &SubscribeOptions{After: pos[8], Floor: pos[6]})
		gets(t, s, "9 10")
		b.rewind("x", 2)
		publish(t, h, "x", "9'")
		gets(t, s, "reset(ahead 0) 7 8 9'")
		b.lose("x") // what comes after a new beginning came after the floor
		publish(t, h, "x", "one")
		time.Sleep(grace)
		gets(t, s, "reset(epoch 0) one")
	})
}

func TestTheFloorIsKeptWhenMessagesWereTrimmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, &Options{Sweep: -1, Limits: func(string) replay.Limits { return replay.Limits{Entries: 5} }})
		pos := ten(t, h, "x")
		gets(t, subscribe(t, h, "x", &SubscribeOptions{After: pos[2], Floor: pos[8]}), "reset(trimmed 6) 9 10")
		gets(t, subscribe(t, h, "x", &SubscribeOptions{After: pos[2], Floor: pos[4]}), "reset(trimmed 3) 6 7 8 9 10")
	})
}

func TestASubscriberThatLagsIsResetOrConflated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		cut := subscribe(t, h, "x", &SubscribeOptions{Lag: &replay.Lag{Entries: 3}})
		conflated := subscribe(t, h, "x", &SubscribeOptions{Lag: &replay.Lag{Entries: 3, Conflate: true}})
		all := subscribe(t, h, "x", nil)
		price := func(n int) {
			for i := range n {
				if _, err := h.Publish(t.Context(), "x", Message{Key: "k" + strconv.Itoa(i%2), Data: []byte(strconv.Itoa(i))}); err != nil {
					t.Fatal(err)
				}
			}
		}
		price(3)
		for _, s := range []*Subscription{cut, conflated, all} {
			gets(t, s, "0 1 2")
		}
		price(6)
		if n, bytes := all.Lag(); n != 6 || bytes != 6*3 {
			t.Errorf("lag %d, %d", n, bytes)
		}
		gets(t, cut, "reset(lagging 3) 3 4 5")
		gets(t, conflated, "4 5")
		gets(t, all, "0 1 2 3 4 5")
	})
}

// When all that a conflating read finds is obsolete it has to look further.
func TestNextReadsOnPastConflatedMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hub(t, newTap(t, nil), &Options{Sweep: -1, Limits: func(string) replay.Limits { return replay.Limits{Entries: -1} }})
		s := subscribe(t, h, "x", &SubscribeOptions{Lag: &replay.Lag{Entries: 3, Conflate: true}})
		for i := range 3000 {
			if _, err := h.Publish(t.Context(), "x", Message{Key: "k", Data: []byte(strconv.Itoa(i))}); err != nil {
				t.Fatal(err)
			}
		}
		if got := next(t, s); got != "2999" {
			t.Errorf("got %q", got)
		}
	})
}

func TestValueIsThatOfTheCursorThatWaitReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hub(t, newTap(t, nil), quiet())
		p := replay.NewPoller()
		one := subscribe(t, h, "x", &SubscribeOptions{Value: "one"})
		two := subscribe(t, h, "y", &SubscribeOptions{Value: "two"})
		Arm(p, one, two)
		publish(t, h, "y", "1")
		ready := make([]*replay.Cursor, 4)
		if n, err := p.Wait(t.Context(), ready); n != 1 || err != nil || ready[0].Value != "two" {
			t.Errorf("%d, %v, %v", n, err, ready[0])
		}
		gets(t, two, "1")
		if one.Topic() != "x" || two.Topic() != "y" {
			t.Errorf("topics %q and %q", one.Topic(), two.Topic())
		}
	})
}

// More than there is room for on the stack, of two topics in turn.
func TestArmTakesAnyNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hub(t, newTap(t, nil), quiet())
		p := replay.NewPoller()
		var subs []*Subscription
		for i := range 150 {
			subs = append(subs, subscribe(t, h, "t"+strconv.Itoa(i%2), nil))
		}
		Arm(p, subs...)
		publish(t, h, "t0", "1")
		publish(t, h, "t1", "1")
		ready := make([]*replay.Cursor, 200)
		if n, _ := p.Wait(t.Context(), ready); n != 150 {
			t.Errorf("%d are ready, want 150", n)
		}
	})
}

func TestNextWaitsForAMessageAndForItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hub(t, newTap(t, nil), quiet())
		s := subscribe(t, h, "x", nil)
		start := time.Now()
		go func() {
			time.Sleep(time.Second)
			h.Publish(context.Background(), "x", Message{Data: []byte("1")})
		}()
		if got := next(t, s); got != "1" || time.Since(start) != time.Second {
			t.Errorf("got %q after %v", got, time.Since(start))
		}
		at := s.Position()
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errPatience)
		defer cancel()
		b := Batch{Reset: &Reset{}, Ephemeral: [][]byte{nil}, Batch: replay.Batch{Entries: make([]replay.Entry, 1)}}
		if err := s.Next(ctx, &b, replay.Budget{}); err != errPatience || !b.Empty() || b.To != at {
			t.Errorf("%v, %+v", err, b)
		}
		if err := s.Next(ctx, &b, replay.Budget{}); err != errPatience || !b.Empty() {
			t.Errorf("with a context that is done: %v, %+v", err, b)
		}
	})
}

func TestABatchIsWithinTheBudgetAndCanBeUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hub(t, newTap(t, nil), quiet())
		pos := ten(t, h, "x")
		s := subscribe(t, h, "x", &SubscribeOptions{After: pos[0]})
		h.PublishEphemeral(t.Context(), "x", []byte("e"))
		var b Batch
		var got []string
		for {
			if err := s.Read(&b, replay.Budget{Entries: 4}); err != nil {
				t.Fatal(err)
			}
			if b.Empty() {
				break
			}
			if b.To != b.Entries[len(b.Entries)-1].Pos || b.To != s.Position() || b.Head != pos[10] {
				t.Errorf("%+v, at %v", b, s.Position())
			}
			got = append(got, text(&b))
		}
		if out := strings.Join(got, "|"); out != "1 2 3 4 ~e|5 6 7 8|9 10" {
			t.Errorf("got %q", out)
		}
		if b.To != pos[10] || len(b.Ephemeral) != 0 || b.Reset != nil {
			t.Errorf("%+v", b)
		}
	})
}

func TestAllEndsWithTheError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hub(t, newTap(t, nil), quiet())
		s := subscribe(t, h, "x", nil)
		go func() {
			for i := range 3 {
				time.Sleep(time.Second)
				h.Publish(context.Background(), "x", Message{Data: []byte(strconv.Itoa(i))})
			}
			time.Sleep(time.Second)
			s.Close()
		}()
		var got []string
		for b, err := range s.All(t.Context()) {
			if err != nil {
				got = append(got, err.Error())
				continue
			}
			got = append(got, text(b))
		}
		if out := strings.Join(got, " "); out != "0 1 2 "+ErrClosed.Error() {
			t.Errorf("got %q", out)
		}
		publish(t, h, "x", "3")
		s = subscribe(t, h, "x", &SubscribeOptions{Last: 1})
		for b, err := range s.All(t.Context()) {
			if err != nil || text(b) != "3" {
				t.Errorf("%q, %v", text(b), err)
			}
			break // and no more is read
		}
	})
}

func TestCloseWakesWhoWaitsInNext(t *testing.T) {
	for _, who := range []string{"subscription", "hub", "subscription that has got ephemerals"} {
		t.Run(who, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := hub(t, newTap(t, nil), quiet())
				if who != "hub" && who != "subscription" {
					subscribe(t, h, "x", nil)
					h.PublishEphemeral(t.Context(), "x", nil)
				}
				s := subscribe(t, h, "x", nil)
				publish(t, h, "x", "1")
				gets(t, s, "1")
				at := s.Position()
				got := make(chan error, 1)
				var b Batch
				go func() { got <- s.Next(context.Background(), &b, replay.Budget{}) }()
				synctest.Wait()
				if who == "hub" {
					h.Close(t.Context())
				} else if s.Close() {
					t.Error("it was not armed")
				}
				synctest.Wait()
				select {
				case err := <-got:
					if err != ErrClosed || !b.Empty() || b.To != at {
						t.Errorf("%v, %+v", err, b)
					}
				default:
					t.Fatal("Next goes on waiting")
				}
				if s.Close(); s.Topic() != "" || h.Stats().Subscribers > 1 {
					t.Errorf("topic %q, %d subscribers", s.Topic(), h.Stats().Subscribers)
				}
				if err := s.Next(t.Context(), &b, replay.Budget{}); err != ErrClosed {
					t.Errorf("Next after Close: %v", err)
				}
				if err := s.Read(&b, replay.Budget{}); err != ErrClosed || s.Position() != at {
					t.Errorf("Read after Close: %v, at %v", err, s.Position())
				}
			})
		})
	}
}

// Closed from another goroutine before Next has made what Close would end.
func TestNextOfAClosedSubscriptionDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hub(t, newTap(t, nil), quiet())
		s := subscribe(t, h, "x", nil)
		s.Close()
		if got := next(t, s); got != "error: "+ErrClosed.Error() {
			t.Error(got)
		}
	})
}

// What is read after the end must be the end and no Reset: a client would throw
// away its state.
func TestTheEndOfTheHubIsNoReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hub(t, newTap(t, nil), quiet())
		c := gather(t, h, 100, same("x"), nil)
		idle := subscribe(t, h, "x", nil)
		publish(t, h, "x", "1")
		c.all(t, "1")
		p := replay.NewPoller()
		s := subscribe(t, h, "y", nil)
		Arm(p, s)
		h.Close(t.Context())
		ready := make([]*replay.Cursor, 4)
		if n, _ := p.Wait(t.Context(), ready); n != 1 {
			t.Fatal("an armed subscription is not told of the end")
		}
		gets(t, s, "error: "+ErrClosed.Error())
		gets(t, idle, "error: "+ErrClosed.Error())
		Arm(p, s) // too late, so at once
		if n, _ := p.Wait(t.Context(), ready); n != 1 {
			t.Fatal("armed after the end, it is not ready")
		}
		c.all(t, "1 "+ErrClosed.Error())
		if n := h.Stats().Resets; n != 0 {
			t.Errorf("%d Resets", n)
		}
	})
}

func TestCloseTellsWhetherASubscriptionWasArmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hub(t, newTap(t, nil), quiet())
		p := replay.NewPoller()
		s, other := subscribe(t, h, "x", nil), subscribe(t, h, "x", nil)
		Arm(p, s)
		if !s.Close() || s.Close() || other.Close() {
			t.Error("wrong")
		}
		Arm(p, s, other)
		publish(t, h, "x", "1")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if n, _ := p.Wait(ctx, make([]*replay.Cursor, 4)); n != 0 {
			t.Error("a closed subscription is ready")
		}
	})
}

func TestEphemeralMessagesReachThoseWhoAreThereOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h, other := hub(t, b, quiet()), hub(t, b, quiet())
		one, two := subscribe(t, h, "x", nil), subscribe(t, other, "x", nil)
		elsewhere := subscribe(t, h, "y", nil)
		if err := h.PublishEphemeral(t.Context(), "x", []byte("a")); err != nil {
			t.Fatal(err)
		}
		late := subscribe(t, h, "x", &SubscribeOptions{Last: -1})
		gets(t, late, "")
		gets(t, one, "~a")
		gets(t, two, "~a")
		gets(t, elsewhere, "")
		h.PublishEphemeral(t.Context(), "x", []byte("b"))
		publish(t, h, "x", "1")
		for _, s := range []*Subscription{one, two, late} {
			gets(t, s, "1 ~b")
			gets(t, s, "")
		}
		gets(t, subscribe(t, h, "x", &SubscribeOptions{Last: -1}), "1")
		if one.Position().Seq != 1 {
			t.Errorf("an ephemeral message has a number")
		}
	})
}

func TestOfEphemeralMessagesTheNewestAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hub(t, newTap(t, nil), quiet())
		s := subscribe(t, h, "x", nil)
		var want []string
		for i := range 100 {
			h.PublishEphemeral(t.Context(), "x", []byte(strconv.Itoa(i)))
			if i >= 100-64 {
				want = append(want, "~"+strconv.Itoa(i))
			}
		}
		gets(t, s, strings.Join(want, " "))
		for i := range 64 {
			h.PublishEphemeral(t.Context(), "x", []byte(strconv.Itoa(i)))
			want[i] = "~" + strconv.Itoa(i)
		}
		gets(t, s, strings.Join(want, " "))
	})
}

func TestAnEphemeralMessageWakesThoseWhoWait(t *testing.T) {
	t.Run("in Next", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := hub(t, newTap(t, nil), quiet())
			s := subscribe(t, h, "x", nil)
			go func() {
				time.Sleep(time.Second)
				h.PublishEphemeral(context.Background(), "x", []byte("e"))
			}()
			if got := next(t, s); got != "~e" {
				t.Errorf("got %q", got)
			}
		})
	})
	t.Run("armed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := hub(t, newTap(t, nil), quiet())
			c := gather(t, h, 10, same("x"), nil)
			h.PublishEphemeral(t.Context(), "x", []byte("a"))
			c.all(t, "~a")
			h.PublishEphemeral(t.Context(), "x", []byte("b"))
			c.all(t, "~a ~b")
		})
	})
	for _, first := range []bool{true, false} {
		t.Run(fmt.Sprintf("between Read and Arm/first=%v", first), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := hub(t, newTap(t, nil), quiet())
				p := replay.NewPoller()
				s := subscribe(t, h, "x", nil)
				if !first {
					h.PublishEphemeral(t.Context(), "x", []byte("a"))
					gets(t, s, "~a")
				}
				gets(t, s, "")
				h.PublishEphemeral(t.Context(), "x", []byte("b"))
				Arm(p, s)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				ready := make([]*replay.Cursor, 4)
				if n, _ := p.Wait(ctx, ready); n != 1 {
					t.Fatal("not woken")
				}
				gets(t, s, "~b")
				Arm(p, s)
				if n, _ := p.Wait(ctx, ready); n != 0 {
					t.Error("woken for nothing")
				}
			})
		})
	}
}

func TestABackplaneWithoutEphemeralMessagesSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hub(t, plain{newTap(t, nil)}, quiet())
		if err := h.PublishEphemeral(t.Context(), "x", nil); !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
	})
}

// #26: readers that do not read hold up nobody.
func TestASubscriberThatDoesNotReadHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hub(t, newTap(t, nil), &Options{Sweep: -1, Limits: func(string) replay.Limits { return replay.Limits{Entries: 10} }})
		stalled, s := subscribe(t, h, "x", nil), subscribe(t, h, "x", nil)
		for i := range 100 {
			publish(t, h, "x", strconv.Itoa(i))
			gets(t, s, strconv.Itoa(i))
		}
		gets(t, stalled, "reset(trimmed 90) 90 91 92 93 94 95 96 97 98 99")
		if n := h.Stats().Resets; n != 1 {
			t.Errorf("%d Resets, want 1", n)
		}
	})
}

// One reader of a topic with a handful of goroutines closing it: all but the first
// are told that there was nothing to do.
func TestCloseIsCountedOnceHoweverManyCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hub(t, newTap(t, nil), quiet())
		s := subscribe(t, h, "x", nil)
		Arm(replay.NewPoller(), s)
		var wg sync.WaitGroup
		var mu sync.Mutex
		armed := 0
		for range 8 {
			wg.Go(func() {
				if s.Close() {
					mu.Lock()
					armed++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if n := h.Stats().Subscribers; n != 0 || armed != 1 {
			t.Errorf("%d subscribers, %d times armed", n, armed)
		}
	})
}
