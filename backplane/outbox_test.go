package backplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/holdfast-ws/holdfast/replay"
)

// A ledger is an Outbox's Done that remembers what it is told.
type ledger struct {
	mu  sync.Mutex
	all []string // "topic data outcome" and " error"
	ids []string
}

func (l *ledger) done(topic string, m Message, r Receipt, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := fmt.Sprintf("%s %s %v", topic, m.Data, r.Outcome)
	if err != nil {
		line += " " + err.Error()
	}
	if r.ID != m.ID || r.ID == "" {
		line += " WRONG ID " + r.ID
	}
	if (r.Pos == replay.Position{}) != (err != nil) {
		line += fmt.Sprint(" WRONG POSITION ", r.Pos)
	}
	l.all = append(l.all, line)
	l.ids = append(l.ids, m.ID)
}

func (l *ledger) check(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	// There is no order across topics.
	slices.SortStableFunc(l.all, func(a, b string) int { return strings.Compare(a[:strings.Index(a, " ")], b[:strings.Index(b, " ")]) })
	slices.SortStableFunc(want, func(a, b string) int { return strings.Compare(a[:strings.Index(a, " ")], b[:strings.Index(b, " ")]) })
	if diff := cmp.Diff(want, l.all, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("what Done was told (-want +got):\n%s", diff)
	}
}

// down makes all appends fail from now on; but store says whether they are made
// all the same, with the answer lost.
func (b *tap) down(store bool, topics ...string) {
	b.set(func() {
		b.onAppend = func(_ context.Context, topic string, _ Message, do func() (Receipt, error)) (Receipt, error) {
			switch {
			case len(topics) > 0 && !slices.Contains(topics, topic):
				return do()
			case store:
				do()
				return Receipt{}, errAway
			}
			return Receipt{Outcome: NotStored}, errAway
		}
	})
}

func (b *tap) up() { b.set(func() { b.onAppend = nil }) }

func queue(t *testing.T, h *Hub, topic, text string) Receipt {
	t.Helper()
	r := publish(t, h, topic, text)
	if r.Outcome != Queued || r.ID == "" || !r.Pos.IsZero() {
		t.Fatalf("%q: %+v, want it queued", text, r)
	}
	synctest.Wait() // the first try from the queue comes at once, later ones after a pause
	return r
}

func TestWithoutAnOutboxPublishFailsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		b.down(false)
		start := time.Now()
		r, err := h.Publish(t.Context(), "x", Message{})
		if !errors.Is(err, ErrUnavailable) || r.Outcome != NotStored || r.ID == "" || time.Since(start) != 0 {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

func TestTheOutboxKeepsTheOrderOfATopicAndTheIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var l ledger
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Done: l.done}})
		s := subscribe(t, h, "x", nil)
		b.down(false)
		var ids []string
		for _, text := range []string{"1", "2", "3"} {
			ids = append(ids, queue(t, h, "x", text).ID)
		}
		if st := h.Stats(); st.Queued != 3 || st.QueuedBytes != int64(3+len(ids[0])*3) {
			t.Errorf("%+v", st)
		}
		b.up()
		// Before the next try, so that it has to go behind the others although the
		// backplane would take it.
		ids = append(ids, queue(t, h, "x", "4").ID)
		if r := publish(t, h, "y", "free"); r.Outcome != Committed {
			t.Errorf("another topic: %+v", r)
		}
		time.Sleep(6 * time.Second)
		gets(t, s, "1 2 3 4")
		l.check(t, "x 1 committed", "x 2 committed", "x 3 committed", "x 4 committed")
		if diff := cmp.Diff(ids, l.ids); diff != "" {
			t.Errorf("IDs (-want +got):\n%s", diff)
		}
		if st := h.Stats(); st.Queued != 0 || st.QueuedBytes != 0 {
			t.Errorf("%+v", st)
		}
		if r := publish(t, h, "x", "5"); r.Outcome != Committed {
			t.Errorf("%+v", r)
		}
	})
}

// Order holds also when some fail in between.
func TestTheOutboxDoesNotPassAMessageThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{}})
		s := subscribe(t, h, "x", nil)
		n := 0
		b.set(func() {
			b.onAppend = func(_ context.Context, _ string, _ Message, do func() (Receipt, error)) (Receipt, error) {
				if n++; n%3 != 0 {
					return Receipt{Outcome: NotStored}, errAway
				}
				return do()
			}
		})
		var want []string
		for i := range 10 {
			want = append(want, strconv.Itoa(i))
			queue(t, h, "x", want[i])
		}
		time.Sleep(time.Minute - time.Second)
		gets(t, s, strings.Join(want, " "))
	})
}

func TestAMessageThatWasStoredAtTheFirstTryIsNotStoredAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var l ledger
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Done: l.done}})
		s := subscribe(t, h, "x", nil)
		b.down(true)
		queue(t, h, "x", "1")
		b.up()
		queue(t, h, "x", "2")
		time.Sleep(6 * time.Second)
		gets(t, s, "1 2")
		l.check(t, "x 1 duplicate", "x 2 committed")
	})
}

func TestTheOutboxIsBounded(t *testing.T) {
	for _, c := range []struct {
		name string
		o    Outbox
		size int
		fit  int
	}{
		{"messages", Outbox{Messages: 5}, 10, 5},
		{"bytes", Outbox{Bytes: 70}, 10, 7},
		{"default messages", Outbox{Bytes: -1}, 10, DefaultOutboxMessages},
		{"default bytes", Outbox{Messages: -1}, 4096, DefaultOutboxBytes / 4096},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTap(t, nil)
				h := hub(t, b, &Options{Sweep: -1, Outbox: &c.o})
				b.down(false)
				n := 0
				for {
					id := fmt.Sprintf("%07d", n)
					r, err := h.Publish(t.Context(), "x", Message{ID: id, Key: "kk", Data: make([]byte, c.size-9)})
					if err != nil {
						if !errors.Is(err, ErrOutboxFull) || !errors.Is(err, ErrUnavailable) || r.Outcome != NotStored || r.ID != id {
							t.Errorf("%+v, %v", r, err)
						}
						break
					}
					n++
				}
				if n != c.fit {
					t.Errorf("%d messages fit, want %d", n, c.fit)
				}
				b.up()
				time.Sleep(6 * time.Second)
				if r := publish(t, h, "x", "room again"); r.Outcome != Committed || r.Pos.Seq != uint64(c.fit)+1 {
					t.Errorf("%+v", r)
				}
			})
		})
	}
}

// One whose first try may have been stored is still Unknown if there is no room.
func TestAFullOutboxDoesNotSayNotStoredWhenItIsNotKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Messages: 1}})
		b.down(true)
		queue(t, h, "y", "1")
		if r, err := h.Publish(t.Context(), "x", Message{}); !errors.Is(err, ErrOutboxFull) || r.Outcome != Unknown {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

func TestMessagesExpireInTheOutbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var l ledger
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Age: 20 * time.Second, Done: l.done}})
		s := subscribe(t, h, "x", nil)
		b.down(false)
		queue(t, h, "x", "1")
		b.down(true)
		queue(t, h, "y", "2") // perhaps stored, which is still so when it expires
		b.down(false)
		time.Sleep(15 * time.Second)
		queue(t, h, "x", "3")
		time.Sleep(19*time.Second - 15*time.Second)
		l.check(t)
		time.Sleep(7 * time.Second) // the longest pause is 5 s
		b.up()
		l.check(t, "x 1 not stored "+ErrExpired.Error(), "y 2 unknown "+ErrExpired.Error())
		time.Sleep(6 * time.Second)
		gets(t, s, "3")
	})
}

// For ever means for ever.
func TestMessagesDoNotExpireWithANegativeAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Age: -1}})
		b.down(false)
		queue(t, h, "x", "1")
		time.Sleep(time.Hour)
		b.up()
		time.Sleep(6 * time.Second)
		if h.Stats().Published != 1 {
			t.Error("given up")
		}
	})
}

// A backplane that hangs is away as well as one that refuses.
func TestTheOutboxKeepsAMessageWhileTheBackplaneHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var l ledger
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Age: -1, Done: l.done}})
		b.down(false)
		queue(t, h, "x", "1")
		b.set(func() {
			b.onAppend = func(ctx context.Context, _ string, _ Message, _ func() (Receipt, error)) (Receipt, error) {
				return Receipt{}, hang(ctx)
			}
		})
		time.Sleep(time.Minute)
		l.check(t)
		b.up()
		time.Sleep(20 * time.Second)
		l.check(t, "x 1 committed")
	})
}

func TestAMessageThatIsRefusedForGoodIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var l ledger
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Done: l.done}})
		b.down(false)
		queue(t, h, "x", "1")
		queue(t, h, "x", "2")
		bad := errors.New("message refused")
		b.set(func() {
			b.onAppend = func(_ context.Context, _ string, m Message, do func() (Receipt, error)) (Receipt, error) {
				if string(m.Data) == "1" {
					return Receipt{Outcome: NotStored}, bad
				}
				return do()
			}
		})
		time.Sleep(6 * time.Second)
		l.check(t, "x 1 not stored message refused", "x 2 committed")
		if r, err := h.Publish(t.Context(), "x", Message{Data: []byte("1")}); err != bad || r.Outcome != NotStored {
			t.Errorf("what is refused must not be queued: %+v, %v", r, err)
		}
	})
}

func TestATopicThatFailsDoesNotHoldUpOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var l ledger
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Age: -1, Done: l.done}})
		b.down(false)
		queue(t, h, "bad", "1")
		queue(t, h, "good", "1")
		queue(t, h, "bad", "2")
		queue(t, h, "good", "2")
		b.down(false, "bad")
		time.Sleep(6 * time.Second)
		l.check(t, "good 1 committed", "good 2 committed")
		if r := publish(t, h, "good", "3"); r.Outcome != Committed {
			t.Errorf("%+v", r)
		}
		b.up()
		time.Sleep(6 * time.Second)
		l.check(t, "good 1 committed", "good 2 committed", "bad 1 committed", "bad 2 committed")
	})
}

// It must not try every one of thousands of messages when all will fail.
func TestTheOutboxIsPolite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Age: -1}})
		b.down(false)
		for i := range 1000 {
			queue(t, h, "t"+strconv.Itoa(i), "1")
		}
		before := h.Stats().Failed
		time.Sleep(time.Minute)
		if n := h.Stats().Failed - before; n < 4 || n > 40*minWidth {
			t.Errorf("%d failed appends in a minute", n)
		}
		b.up()
		time.Sleep(6 * time.Second)
		if n := h.Stats().Published; n != 1000 {
			t.Errorf("%d were published", n)
		}
	})
}

func TestDoneMayPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var h *Hub
		h = hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Done: func(topic string, m Message, _ Receipt, _ error) {
			if len(m.Data) < 3 {
				h.Publish(context.Background(), topic, Message{Data: append(slices.Clone(m.Data), '+')})
			}
		}}})
		s := subscribe(t, h, "x", nil)
		b.down(false)
		queue(t, h, "x", "a")
		queue(t, h, "x", "b")
		b.up()
		time.Sleep(6 * time.Second)
		gets(t, s, "a b a+ b+")
	})
}

func TestCloseSendsWhatIsQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var l ledger
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Done: l.done}})
		s := subscribe(t, h, "x", nil)
		b.down(false)
		queue(t, h, "x", "1")
		time.Sleep(20 * time.Second) // so that the next try is seconds away
		b.up()
		start := time.Now()
		var closed error
		go func() { closed = h.Close(context.Background()) }()
		synctest.Wait()
		if closed != nil || time.Since(start) != 0 {
			t.Errorf("%v after %v", closed, time.Since(start))
		}
		l.check(t, "x 1 committed")
		gets(t, s, "error: "+ErrClosed.Error())
	})
}

// It takes as long as its context allows, but no longer.
func TestCloseGivesUpWhatCannotBeSent(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		t.Run(fmt.Sprintf("hangs=%v", hangs), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTap(t, nil)
				var l ledger
				h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Done: l.done}})
				b.down(false)
				queue(t, h, "x", "1")
				queue(t, h, "x", "2")
				b.down(true)
				queue(t, h, "y", "3")
				b.down(false)
				want := "x 1 not stored "
				if hangs {
					want = "x 1 unknown " // the last try may yet succeed
					b.set(func() {
						b.onAppend = func(ctx context.Context, _ string, _ Message, _ func() (Receipt, error)) (Receipt, error) {
							return Receipt{}, hang(ctx)
						}
					})
				}
				ctx, cancel := context.WithTimeoutCause(t.Context(), 5*time.Second, errPatience)
				defer cancel()
				start := time.Now()
				if err := h.Close(ctx); err != errPatience || time.Since(start) != 5*time.Second {
					t.Errorf("%v after %v", err, time.Since(start))
				}
				l.check(t, want+ErrClosed.Error(), "x 2 not stored "+ErrClosed.Error(), "y 3 unknown "+ErrClosed.Error())
				if st := h.Stats(); st.Queued != 0 || st.QueuedBytes != 0 {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

// Nothing is queued any more, but what is published before Close counts.
func TestAPublishThatEndsDuringCloseIsNotQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{}})
		go func() {
			time.Sleep(time.Second)
			h.Close(context.Background())
		}()
		b.set(func() {
			b.onAppend = func(_ context.Context, _ string, _ Message, _ func() (Receipt, error)) (Receipt, error) {
				time.Sleep(2 * time.Second)
				return Receipt{Outcome: NotStored}, errAway
			}
		})
		if r, err := h.Publish(t.Context(), "x", Message{}); !errors.Is(err, ErrUnavailable) || r.Outcome != NotStored {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// The wait of a publisher is its own, not that of the backplane.
func TestAPublishWhoseContextEndsIsNotQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{}})
		b.set(func() {
			b.onAppend = func(ctx context.Context, _ string, _ Message, _ func() (Receipt, error)) (Receipt, error) {
				return Receipt{}, hang(ctx)
			}
		})
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errPatience)
		defer cancel()
		if r, err := h.Publish(ctx, "x", Message{}); !errors.Is(err, errPatience) || r.Outcome != Unknown {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// Three good messages expired behind one that the backplane would never take.
func TestTheOutboxDoesNotWaitBehindWhatCanNeverSucceed(t *testing.T) {
	errRefused := errors.New("too large")
	for _, c := range []struct {
		name  string
		first Receipt // of the first try of the bad one
		want  string
	}{
		{"never stored", Receipt{Outcome: NotStored}, "x bad not stored too large"},
		// It may have been stored by the first try: who refuses cannot say.
		{"unknown before", Receipt{Outcome: Unknown}, "x bad unknown too large"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTap(t, nil)
				var l ledger
				h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Done: l.done}})
				s := subscribe(t, h, "x", nil)
				b.set(func() {
					b.onAppend = func(context.Context, string, Message, func() (Receipt, error)) (Receipt, error) {
						return c.first, errAway
					}
				})
				queue(t, h, "x", "bad")
				b.down(false)
				for _, text := range []string{"1", "2", "3"} {
					queue(t, h, "x", text)
				}
				var at []time.Duration
				start := time.Now()
				b.set(func() {
					b.onAppend = func(_ context.Context, _ string, m Message, do func() (Receipt, error)) (Receipt, error) {
						at = append(at, time.Since(start))
						if string(m.Data) == "bad" {
							return Receipt{Outcome: NotStored}, errRefused
						}
						return do()
					}
				})
				time.Sleep(6 * time.Second)
				l.check(t, c.want, "x 1 committed", "x 2 committed", "x 3 committed")
				gets(t, s, "1 2 3")
				synctest.Wait()
				if len(at) != 4 || at[3] != at[0] {
					t.Errorf("tries at %v, want four at once", at)
				}
			})
		})
	}
}

// What was on its way to Done did not count: with a slow Done any number was held, while
// Stats said that there was none.
func TestTheOutboxIsBoundedAlsoWhileDoneIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		slow := make(chan struct{})
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Messages: 4, Done: func(string, Message, Receipt, error) { <-slow }}})
		b.down(false)
		for range 4 {
			queue(t, h, "x", "data")
		}
		bytes := h.Stats().QueuedBytes
		b.up()
		time.Sleep(6 * time.Second)
		b.down(false)
		if st := h.Stats(); st.Published != 4 || st.Queued != 4 || st.QueuedBytes != bytes {
			t.Errorf("%+v, want 4 published and queued, and %d bytes", st, bytes)
		}
		if r, err := h.Publish(t.Context(), "y", Message{}); !errors.Is(err, ErrOutboxFull) || !strings.Contains(err.Error(), "4 messages (backplane.Outbox.Messages)") {
			t.Errorf("%+v, %v", r, err)
		}
		close(slow)
		synctest.Wait()
		if st := h.Stats(); st.Queued != 0 || st.QueuedBytes != 0 {
			t.Errorf("%+v", st)
		}
		queue(t, h, "y", "room again")
	})
}

// Those of which only Done is still to be told are no reason to wait: with a full outbox
// and a slow Done each publish failed, although the backplane took all.
func TestNobodyQueuesBehindMessagesOfWhichOnlyDoneIsToBeTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var l ledger
		slow := make(chan struct{})
		release := sync.OnceFunc(func() { close(slow) })
		defer release()
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Messages: 2, Done: func(topic string, m Message, r Receipt, err error) {
			<-slow
			l.done(topic, m, r, err)
		}}})
		s := subscribe(t, h, "x", nil)
		b.down(false)
		queue(t, h, "x", "1")
		queue(t, h, "x", "2")
		b.up()
		time.Sleep(6 * time.Second)
		for _, text := range []string{"3", "4"} {
			if r, err := h.Publish(t.Context(), "x", Message{Data: []byte(text)}); r.Outcome != Committed {
				t.Errorf("%s: %+v, %v", text, r, err)
			}
		}
		gets(t, s, "1 2 3 4")
		// It is full all the same: what fails now cannot be kept.
		b.down(false)
		if r, err := h.Publish(t.Context(), "x", Message{}); !errors.Is(err, ErrOutboxFull) || r.Outcome != NotStored {
			t.Errorf("%+v, %v", r, err)
		}
		release()
		l.check(t, "x 1 committed", "x 2 committed")
	})
}

// The same within Done, which is told of the last that fits.
func TestDoneMayPublishToItsOwnTopicWhenTheOutboxIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var h *Hub
		h = hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Messages: 1, Done: func(topic string, _ Message, _ Receipt, _ error) {
			if r, err := h.Publish(context.Background(), topic, Message{Data: []byte("follow-up")}); r.Outcome != Committed {
				t.Errorf("%+v, %v", r, err)
			}
		}}})
		s := subscribe(t, h, "x", nil)
		b.down(false)
		queue(t, h, "x", "1")
		b.up()
		time.Sleep(6 * time.Second)
		gets(t, s, "1 follow-up")
	})
}

// A message that is queued while Done is told of those before is told after them.
func TestDoneIsInOrderAcrossTwoOutages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var l ledger
		slow := make(chan struct{})
		release := sync.OnceFunc(func() { close(slow) })
		defer release()
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Done: func(topic string, m Message, r Receipt, err error) {
			<-slow
			l.done(topic, m, r, err)
		}}})
		s := subscribe(t, h, "x", nil)
		for _, text := range []string{"1", "2"} {
			b.down(false)
			queue(t, h, "x", text+"a")
			queue(t, h, "x", text+"b")
			b.up()
			time.Sleep(6 * time.Second)
		}
		gets(t, s, "1a 1b 2a 2b")
		release()
		l.check(t, "x 1a committed", "x 1b committed", "x 2a committed", "x 2b committed")
	})
}

// Done is called in a topic's order, one call after the other, however slow it is and
// while more is sent.
func TestDoneIsCalledInOrderAndOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var running, most int
		var told []string
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Done: func(_ string, m Message, _ Receipt, _ error) {
			running++
			most = max(most, running)
			time.Sleep(time.Second)
			told = append(told, string(m.Data))
			running--
		}}})
		b.down(false)
		var want []string
		for i := range 10 {
			want = append(want, strconv.Itoa(i))
			queue(t, h, "x", want[i])
		}
		b.up()
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if diff := cmp.Diff(want, told); diff != "" || most != 1 {
			t.Errorf("%d at a time; told (-want +got):\n%s", most, diff)
		}
	})
}

// That a message has expired says nothing about the backplane: it is still away, and so
// few topics are tried at a time.
func TestAnExpiredMessageIsNoSuccess(t *testing.T) {
	for _, second := range []bool{false, true} { // another message in the topics whose first expires
		t.Run(fmt.Sprintf("second=%v", second), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTap(t, nil)
				h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{}})
				b.down(false)
				for i := range 24 {
					queue(t, h, "old"+strconv.Itoa(i), "1")
				}
				time.Sleep(DefaultOutboxAge / 2)
				for i := range 24 {
					queue(t, h, "new"+strconv.Itoa(i), "1")
					if second {
						queue(t, h, "old"+strconv.Itoa(i), "2")
					}
				}
				time.Sleep(DefaultOutboxAge / 2)
				round := map[time.Time]int{} // what is tried at one moment
				b.set(func() {
					b.onAppend = func(context.Context, string, Message, func() (Receipt, error)) (Receipt, error) {
						b.set(func() { round[time.Now()]++ })
						return Receipt{Outcome: NotStored}, errAway
					}
				})
				time.Sleep(DefaultOutboxAge/2 - time.Second)
				b.up()
				synctest.Wait()
				for _, n := range round {
					if n > minWidth {
						t.Fatalf("%d topics were tried in one round, want %d", n, minWidth)
					}
				}
				if len(round) == 0 {
					t.Error("nothing was tried")
				}
			})
		})
	}
}

// Nor does it say that the backplane is still away.
func TestARoundOfExpiredMessagesIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Age: 1}})
		b.down(false)
		for i := range 20 * minWidth {
			queue(t, h, strconv.Itoa(i), "1")
		}
		start := time.Now()
		for h.Stats().Queued > 0 && time.Since(start) < time.Minute {
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		if took := time.Since(start); took > 20*60*time.Millisecond {
			t.Errorf("twenty rounds took %v: their pauses became longer", took)
		}
	})
}

// Those who publish while the messages before theirs are sent wait for them, and Close
// ends that, for all of them.
func TestCloseEndsThoseWhoWaitForMessagesBeforeTheirs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var l ledger
		h := hub(t, b, &Options{Sweep: -1, Outbox: &Outbox{Age: -1, Done: l.done}})
		b.down(false)
		queue(t, h, "x", "1")
		queue(t, h, "x", "2")
		b.set(func() {
			b.onAppend = func(ctx context.Context, _ string, m Message, do func() (Receipt, error)) (Receipt, error) {
				if string(m.Data) == "1" {
					return do()
				}
				return Receipt{}, hang(ctx)
			}
		})
		time.Sleep(6 * time.Second) // 1 is sent, so the backplane is back, and 2 hangs
		type result struct {
			text string
			r    Receipt
			err  error
		}
		results := make(chan result, 3)
		for _, text := range []string{"3", "4", "5"} {
			go func() {
				r, err := h.Publish(context.Background(), "x", Message{Data: []byte(text)})
				results <- result{text, r, err}
			}()
			synctest.Wait()
		}
		if len(results) > 0 {
			t.Fatalf("not waited: %+v", <-results)
		}
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errPatience)
		defer cancel()
		h.Close(ctx)
		synctest.Wait()
		if len(results) != 3 {
			t.Fatalf("%d of 3 have returned", len(results))
		}
		for range 3 {
			if x := <-results; x.r.Outcome != Queued && !errors.Is(x.err, ErrClosed) {
				t.Errorf("%+v", x)
			}
		}
	})
}
