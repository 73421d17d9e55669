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

	"github.com/holdfast-ws/holdfast/replay"
)

// A shop sells snapshots: the numbers of all messages, as an application would have
// them in its database.
type shop struct {
	mu    sync.Mutex
	calls int
	heads []replay.Position
	make  func(ctx context.Context, head replay.Position) ([]byte, replay.Position, error)
}

func (s *shop) snapshot(ctx context.Context, topic string, head replay.Position) ([]byte, replay.Position, error) {
	s.mu.Lock()
	s.calls++
	s.heads = append(s.heads, head)
	s.mu.Unlock()
	if topic != "x" {
		panic(topic)
	}
	return s.make(ctx, head)
}

// withSnapshots returns a Hub with room for 4 messages, a subscriber that has
// missed number 2 to 6 of 10 and not read yet, and the position of each.
func withSnapshots(t *testing.T, make func(ctx context.Context, head replay.Position) ([]byte, replay.Position, error)) (*tap, *Hub, *shop, *Subscription, []replay.Position) {
	limits := func(string) replay.Limits { return replay.Limits{Entries: 4} }
	b := newTap(t, &MemoryOptions{Limits: limits})
	s := &shop{make: make}
	h := hub(t, b, &Options{Sweep: -1, Limits: limits, Snapshot: s.snapshot})
	pos := ten(t, hub(t, b, quiet()), "x")
	return b, h, s, subscribe(t, h, "x", &SubscribeOptions{After: pos[1]}), pos
}

func state(head replay.Position) []byte { return []byte(strconv.Itoa(int(head.Seq))) }

func TestASnapshotReplacesWhatIsMissedAndTheRestFollows(t *testing.T) {
	for _, c := range []struct {
		name string
		back uint64 // how far asOf is behind the head; 99 for a zero asOf
		want string
	}{
		{"of the head", 0, "reset(trimmed 5) snapshot(10)"},
		{"of a little before", 2, "reset(trimmed 5) snapshot(10) 9 10"},
		{"of the oldest place", 4, "reset(trimmed 5) snapshot(10) 7 8 9 10"},
		{"of who knows when", 99, "reset(trimmed 5) snapshot(10)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var pos []replay.Position
				_, h, shop, s, all := withSnapshots(t, func(_ context.Context, head replay.Position) ([]byte, replay.Position, error) {
					if c.back == 99 {
						return state(head), replay.Position{}, nil
					}
					return state(head), pos[head.Seq-c.back], nil
				})
				pos = all
				if got := next(t, s); got != c.want {
					t.Errorf("got %q, want %q", got, c.want)
				}
				if shop.calls != 1 || shop.heads[0] != pos[10] || h.Stats().Resets != 1 {
					t.Errorf("%d calls, %v, %d Resets", shop.calls, shop.heads, h.Stats().Resets)
				}
				publish(t, h, "x", "11")
				gets(t, s, "11")
			})
		})
	}
}

// Without an asOf the state may contain messages after head, which are delivered
// again, but none may be missing: so the head must be that of before.
func TestTheHeadIsFixedBeforeTheSnapshotIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h *Hub
		_, hub, shop, s, pos := withSnapshots(t, func(_ context.Context, head replay.Position) ([]byte, replay.Position, error) {
			publish(t, h, "x", "11")
			time.Sleep(time.Second)
			publish(t, h, "x", "12")
			return state(head), replay.Position{}, nil
		})
		h = hub
		if got := next(t, s); got != "reset(trimmed 7) snapshot(10) 11 12" {
			t.Errorf("got %q", got)
		}
		if shop.heads[0] != pos[10] {
			t.Errorf("%v", shop.heads)
		}
	})
}

// A snapshot that is nil is one nevertheless: the state is empty.
func TestAnEmptySnapshotIsNotNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, _, s, _ := withSnapshots(t, func(context.Context, replay.Position) ([]byte, replay.Position, error) {
			return nil, replay.Position{}, nil
		})
		if got := next(t, s); got != "reset(trimmed 5) snapshot()" {
			t.Errorf("got %q", got)
		}
	})
}

func TestIfASnapshotFailsTheResetComesWithout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, h, shop, s, _ := withSnapshots(t, func(context.Context, replay.Position) ([]byte, replay.Position, error) {
			return []byte("half"), replay.Position{}, errors.New("no database")
		})
		if got := next(t, s); got != "reset(trimmed 5) 7 8 9 10" {
			t.Errorf("got %q", got)
		}
		if shop.calls != 1 || h.Stats().Resets != 1 {
			t.Errorf("%d calls, %d Resets", shop.calls, h.Stats().Resets)
		}
	})
}

func TestASnapshotIsGivenTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, _, s, _ := withSnapshots(t, func(ctx context.Context, _ replay.Position) ([]byte, replay.Position, error) {
			return nil, replay.Position{}, hang(ctx)
		})
		start := time.Now()
		if got := next(t, s); got != "reset(trimmed 5) 7 8 9 10" || time.Since(start) != 10*time.Second {
			t.Errorf("got %q after %v", got, time.Since(start))
		}
	})
}

// What a subscriber is to remember must never be ahead of what it was given: if it
// disconnects now, it would miss the gap without a Reset.
func TestWhileASnapshotIsMadeNothingIsGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, h, _, s, pos := withSnapshots(t, func(_ context.Context, head replay.Position) ([]byte, replay.Position, error) {
			time.Sleep(5 * time.Second)
			return state(head), replay.Position{}, nil
		})
		p := replay.NewPoller()
		ready := make([]*replay.Cursor, 4)
		Arm(p, s)
		returns := 0
		var b Batch
		for i := 11; ; {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			n, err := p.Wait(ctx, ready)
			cancel()
			if err != nil {
				if i > 13 {
					break
				}
				publish(t, h, "x", strconv.Itoa(i))
				i++
				continue
			}
			if n != 1 {
				t.Fatal(n)
			}
			if returns++; returns > 100 {
				t.Fatal("a busy loop")
			}
			if err := s.Read(&b, replay.Budget{}); err != nil {
				t.Fatal(err)
			}
			if b.Reset != nil {
				break
			}
			if !b.Empty() || b.To != pos[1] || s.Position() != pos[1] {
				t.Fatalf("before the snapshot: %q to %v, at %v; want %v", text(&b), b.To, s.Position(), pos[1])
			}
			Arm(p, s)
		}
		if returns > 4 { // the first, and one for each message
			t.Errorf("the poller returned it %d times", returns)
		}
		if b.Reset == nil { // it is armed
			if _, err := p.Wait(t.Context(), ready); err != nil {
				t.Fatal(err)
			}
			s.Read(&b, replay.Budget{})
		}
		if got := text(&b); got != "reset(trimmed 8) snapshot(10) 11 12 13" || s.Position() != b.To || b.To.Seq != 13 {
			t.Errorf("got %q, at %v", got, b.To)
		}
	})
}

func TestEphemeralMessagesDoNotWaitForASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, h, _, s, _ := withSnapshots(t, func(_ context.Context, head replay.Position) ([]byte, replay.Position, error) {
			time.Sleep(5 * time.Second)
			return state(head), replay.Position{}, nil
		})
		gets(t, s, "")
		h.PublishEphemeral(t.Context(), "x", []byte("e"))
		gets(t, s, "~e")
		if got := next(t, s); got != "reset(trimmed 5) snapshot(10)" {
			t.Errorf("got %q", got)
		}
	})
}

func TestOneSnapshotServesAllWhoNeedOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, h, shop, s, pos := withSnapshots(t, func(_ context.Context, head replay.Position) ([]byte, replay.Position, error) {
			time.Sleep(5 * time.Second)
			return state(head), replay.Position{}, nil
		})
		c := gather(t, h, 1000, same("x"), func(int) SubscribeOptions { return SubscribeOptions{After: pos[1]} })
		synctest.Wait()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		for i, m := range c.members {
			if got, empty := m.seen(); got != "reset(trimmed 5) snapshot(10)" || empty > 1 {
				t.Fatalf("member %d got %q and %d empty batches", i, got, empty)
			}
		}
		if shop.calls != 1 {
			t.Errorf("%d calls, want 1", shop.calls)
		}
		// Who comes later gets one of then.
		if got := next(t, s); got != "reset(trimmed 5) snapshot(10)" || shop.calls != 2 {
			t.Errorf("got %q, %d calls", got, shop.calls)
		}
	})
}

// It would never end for a topic that is faster than its snapshots.
func TestASnapshotThatIsTooOldIsMadeThreeTimesAtMost(t *testing.T) {
	for _, late := range []int{2, 99} {
		t.Run(fmt.Sprint(late), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var h *Hub
				n := 10
				_, hub, shop, s, _ := withSnapshots(t, func(_ context.Context, head replay.Position) ([]byte, replay.Position, error) {
					if late--; late < 0 {
						return state(head), replay.Position{}, nil
					}
					for range 6 {
						n++
						publish(t, h, "x", strconv.Itoa(n))
					}
					return state(head), replay.Position{}, nil
				})
				h = hub
				want, calls := "reset(trimmed 17) snapshot(22)", 3
				if late > 2 {
					want = "reset(trimmed 23) 25 26 27 28"
				}
				if got := next(t, s); got != want || shop.calls != calls {
					t.Errorf("got %q in %d calls, want %q in %d", got, shop.calls, want, calls)
				}
				if h.Stats().Resets != 1 {
					t.Errorf("%d Resets", h.Stats().Resets)
				}
				publish(t, h, "x", "next")
				gets(t, s, "next")
			})
		})
	}
}

func TestASnapshotThatIsReadyBetweenReadAndArmIsNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, _, s, _ := withSnapshots(t, func(_ context.Context, head replay.Position) ([]byte, replay.Position, error) {
			time.Sleep(time.Second)
			return state(head), replay.Position{}, nil
		})
		gets(t, s, "")
		time.Sleep(2 * time.Second)
		p := replay.NewPoller()
		Arm(p, s)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if n, _ := p.Wait(ctx, make([]*replay.Cursor, 1)); n != 1 {
			t.Fatal("not woken")
		}
		gets(t, s, "reset(trimmed 5) snapshot(10)")
	})
}

func TestAFloorNeedsNoSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, h, shop, _, pos := withSnapshots(t, func(_ context.Context, head replay.Position) ([]byte, replay.Position, error) {
			return state(head), replay.Position{}, nil
		})
		s := subscribe(t, h, "x", &SubscribeOptions{After: pos[7], Floor: pos[9]})
		gets(t, s, "reset(floor 2) 10")
		if shop.calls != 0 {
			t.Errorf("%d calls", shop.calls)
		}
	})
}

// A snapshot has what is below the floor too, and a made-up position gets one.
func TestWhoHasAFloorGetsNoSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pos []replay.Position
		_, h, _, _, all := withSnapshots(t, func(_ context.Context, head replay.Position) ([]byte, replay.Position, error) {
			return state(head), pos[7], nil
		})
		pos = all
		s := subscribe(t, h, "x", &SubscribeOptions{After: pos[1], Floor: pos[9]})
		if got := next(t, s); got != "reset(trimmed 8) 10" {
			t.Errorf("got %q", got)
		}
	})
}

func TestCloseEndsASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, h, _, s, _ := withSnapshots(t, func(ctx context.Context, _ replay.Position) ([]byte, replay.Position, error) {
			return nil, replay.Position{}, hang(ctx)
		})
		got := make(chan error, 1)
		go func() { got <- s.Next(context.Background(), &Batch{}, replay.Budget{}) }()
		synctest.Wait()
		start := time.Now()
		h.Close(t.Context())
		if err := <-got; err != ErrClosed || time.Since(start) != 0 || h.Stats().Resets > 1 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// The state is one that the application stored with the position of a message, and
// this node has not been told of that message yet.
func TestASnapshotMayBeAheadOfThisNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b *tap
		var h *Hub
		tp, hub, shop, s, _ := withSnapshots(t, func(context.Context, replay.Position) ([]byte, replay.Position, error) {
			var r Receipt
			b.deaf(func() { r = publish(t, h, "x", "more") })
			return state(r.Pos), r.Pos, nil
		})
		b, h = tp, hub
		if got := next(t, s); got != "reset(trimmed 6) snapshot(11)" || shop.calls != 1 {
			t.Errorf("got %q in %d calls", got, shop.calls)
		}
		publish(t, h, "x", "12")
		gets(t, s, "12")
	})
}

// goBack has a topic end at p, with nothing stored, or with these entries.
func (b *tap) goBack(topic string, p replay.Position, entries ...replay.Entry) {
	b.Memory.mu.RLock()
	mt := b.Memory.topics[topic]
	b.Memory.mu.RUnlock()
	mt.mu.Lock()
	defer mt.mu.Unlock()
	mt.log.Reset(p, entries...)
	clear(mt.ids)
	mt.order = nil
}

// The Reset kept the reason and the number from when the gap was found, though the history
// had changed while the snapshot was made: "trimmed, 5 missed" in another epoch, for which
// Void is false, or "trimmed" with a number below zero.
func TestAResetSaysWhatIsTrueWhenItIsGiven(t *testing.T) {
	errNone := errors.New("no database")
	for _, c := range []struct {
		name  string
		error bool // of the first call
		loses func(b *tap, pos []replay.Position)
		want  string
	}{
		{"lost, no snapshot", true, func(b *tap, _ []replay.Position) { b.lose("x") }, "reset(epoch 0) new"},
		{"lost, a second snapshot", false, func(b *tap, _ []replay.Position) { b.lose("x") }, "reset(epoch 0) snapshot(1)"},
		{"gone back, no snapshot", true, func(b *tap, pos []replay.Position) { b.goBack("x", pos[3]) }, "reset(ahead 0) new"},
		{"gone back, a second snapshot", false, func(b *tap, pos []replay.Position) { b.goBack("x", pos[3]) }, "reset(ahead 0) snapshot(4)"},
		{"gone back to what is still trimmed", true, func(b *tap, pos []replay.Position) { b.rewind("x", 3) }, "reset(trimmed 1) 7 new"},
		{"trimmed further", true, func(b *tap, pos []replay.Position) { b.goBack("x", pos[8]) }, "reset(trimmed 3) new"},
		{"forked", true, func(b *tap, pos []replay.Position) { p := pos[5]; p.Tag++; b.goBack("x", p) }, "reset(forked 0) new"},
		{"another history in which it has missed nothing", true, func(b *tap, pos []replay.Position) { b.goBack("x", pos[5]) }, "new"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				limits := func(string) replay.Limits { return replay.Limits{Entries: 4} }
				b := newTap(t, &MemoryOptions{Limits: limits})
				var h *Hub
				var pos []replay.Position
				s := &shop{}
				s.make = func(_ context.Context, head replay.Position) ([]byte, replay.Position, error) {
					if s.calls > 1 {
						return state(head), replay.Position{}, nil
					}
					c.loses(b, pos)
					publish(t, h, "x", "new")
					time.Sleep(time.Second)
					if c.error {
						return nil, replay.Position{}, errNone
					}
					return state(head), replay.Position{}, nil
				}
				h = hub(t, b, &Options{Sweep: -1, Limits: limits, Snapshot: s.snapshot})
				pos = ten(t, hub(t, b, quiet()), "x")
				sub := subscribe(t, h, "x", &SubscribeOptions{After: pos[5]})
				if got := next(t, sub); got != c.want {
					t.Errorf("got %q, want %q", got, c.want)
				}
				if n := h.Stats().Resets; n != uint64(strings.Count(c.want, "reset")) {
					t.Errorf("%d Resets", n)
				}
				publish(t, h, "x", "after")
				if got := next(t, sub); got != "after" {
					t.Errorf("got %q", got)
				}
			})
		})
	}
}

// A failover, and back again before anybody was told.
func TestAGapThatIsGoneBeforeItIsToldIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var all []replay.Entry
		var pos []replay.Position
		snapshot := func(context.Context, string, replay.Position) ([]byte, replay.Position, error) {
			b.goBack("x", pos[0], all...)
			b.sinks[0].Interrupted(errAway)
			time.Sleep(time.Second)
			return []byte("state"), replay.Position{}, nil
		}
		h := hub(t, b, &Options{Sweep: -1, Snapshot: snapshot})
		pos = ten(t, h, "x")
		page, _ := b.Memory.Read(t.Context(), "x", replay.Position{}, replay.Budget{Entries: -1})
		all = page.Entries
		sub := subscribe(t, h, "x", &SubscribeOptions{After: pos[9]})
		b.goBack("x", pos[0], all[:3]...)
		b.sinks[0].Interrupted(errAway)
		synctest.Wait()
		if got := next(t, sub); got != "10" || h.Stats().Resets != 0 {
			t.Errorf("got %q, %d Resets", got, h.Stats().Resets)
		}
	})
}

// What is to be remembered is never ahead of what was given, also at the end.
func TestCloseDuringASnapshotLeavesThePosition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, h, _, s, pos := withSnapshots(t, func(ctx context.Context, _ replay.Position) ([]byte, replay.Position, error) {
			return nil, replay.Position{}, hang(ctx)
		})
		gets(t, s, "")
		h.Close(t.Context())
		gets(t, s, "error: "+ErrClosed.Error())
		if s.Position() != pos[1] || h.Stats().Resets != 0 {
			t.Errorf("at %v after Close, want %v; %d Resets", s.Position(), pos[1], h.Stats().Resets)
		}
	})
}
