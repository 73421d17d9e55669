package backplane

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/replay"
)

// A faulty backplane is a Memory whose calls and hints a test can interfere with.
type faulty struct {
	mu sync.Mutex
	*Memory
	sink    Sink
	mute    bool // hints are collected
	held    []func()
	onRead  func(after replay.Position, p Page, err error) (Page, error)
	onRead0 func(ctx context.Context) error
	onApp   func(ctx context.Context, topic string) error
	onAdd   func(ctx context.Context, topics []string) error
	onHeads func(topics []string, heads []replay.Position) error
}

func (f *faulty) Read(ctx context.Context, topic string, after replay.Position, max replay.Budget) (Page, error) {
	if f.onRead0 != nil {
		if err := f.onRead0(ctx); err != nil {
			return Page{}, err
		}
	}
	p, err := f.Memory.Read(ctx, topic, after, max)
	if f.onRead != nil {
		return f.onRead(after, p, err)
	}
	return p, err
}
func (f *faulty) Append(ctx context.Context, topic string, m Message) (Receipt, error) {
	if f.onApp != nil {
		if err := f.onApp(ctx, topic); err != nil {
			return Receipt{}, err
		}
	}
	return f.Memory.Append(ctx, topic, m)
}
func (f *faulty) Heads(ctx context.Context, topics []string) ([]replay.Position, error) {
	heads, err := f.Memory.Heads(ctx, topics)
	if f.onHeads != nil {
		err = errors.Join(err, f.onHeads(topics, heads))
	}
	return heads, err
}
func (f *faulty) Entry(topic string, e replay.Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mute {
		f.held = append(f.held, func() { f.sink.Entry(topic, e) })
		return
	}
	f.sink.Entry(topic, e)
}
func (f *faulty) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.held {
		x()
	}
	f.held = nil
}
func (f *faulty) Doorbell(topic string)               { f.sink.Doorbell(topic) }
func (f *faulty) Ephemeral(topic string, data []byte) { f.sink.Ephemeral(topic, data) }
func (f *faulty) Interrupted(e error, topics ...string) {
	f.sink.Interrupted(e, topics...)
}
func (f *faulty) Watch(s Sink) Watcher { f.sink = s; return &faultyWatcher{f.Memory.Watch(f), f} }

type faultyWatcher struct {
	Watcher
	f *faulty
}

func (w *faultyWatcher) Add(ctx context.Context, topics ...string) error {
	if w.f.onAdd != nil {
		if err := w.f.onAdd(ctx, topics); err != nil {
			return err
		}
	}
	return w.Watcher.Add(ctx, topics...)
}

func app(t testing.TB, m *Memory, topic, text string) Receipt {
	r, err := m.Append(context.Background(), topic, Message{Data: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func expect(t testing.TB, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

const nothing = "error: context deadline exceeded"

func soon(s *Subscription, d time.Duration) string {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var b Batch
	if err := s.Next(ctx, &b, replay.Budget{}); err != nil {
		return "error: " + err.Error()
	}
	return text(&b)
}

func TestAHintThatComesWhileAStalePositionIsLookedIntoIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, nil)}
		h := hub(t, f, &Options{Sweep: -1})
		n := 0
		f.onRead = func(after replay.Position, p Page, err error) (Page, error) {
			if after.IsZero() && n == 0 {
				n++
				app(t, f.Memory, "x", "one") // appended just after the read
			}
			return p, err
		}
		s := subscribe(t, h, "x", &SubscribeOptions{After: replay.Position{Epoch: 5, Seq: 5, Tag: 5}})
		expect(t, soon(s, time.Second), "reset(epoch 0) one")
	})
}

func TestAHintOfANewEpochDuringTheJoinIsLookedInto(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m1, m2 := memory(t, nil), memory(t, nil)
		f := &faulty{Memory: m1}
		h := hub(t, f, &Options{Sweep: -1})
		n := 0
		f.onRead = func(after replay.Position, p Page, err error) (Page, error) {
			if n == 0 {
				n++
				f.Memory = m2 // flush
				r := app(t, m2, "x", "one")
				f.sink.Entry("x", replay.Entry{Pos: r.Pos, Data: []byte("one")})
			}
			return p, err
		}
		s := subscribe(t, h, "x", &SubscribeOptions{Last: -1})
		// It may or may not have subscribed before that was found out.
		if got := soon(s, time.Hour); got != "one" && got != "reset(epoch 0) one" {
			t.Errorf("got %s", got)
		}
	})
}

func TestALogIsNeverTakenBackBehindWhatHintsHaveBrought(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, &MemoryOptions{Limits: func(string) replay.Limits { return replay.Limits{Entries: 1} }})}
		h := hub(t, f, nil)
		s := subscribe(t, h, "x", nil)
		app(t, f.Memory, "x", "one")
		expect(t, next(t, s), "one")
		f.mute = true
		app(t, f.Memory, "x", "two")
		app(t, f.Memory, "x", "three")
		f.onRead = func(after replay.Position, p Page, err error) (Page, error) {
			if after.IsZero() {
				app(t, f.Memory, "x", "four")
				f.release()
				expect(t, next(t, s), "two three four")
			}
			return p, err
		}
		f.Doorbell("x")
		time.Sleep(time.Second)
		expect(t, soon(s, time.Hour), nothing)
	})
}

func TestALiveReaderIsNotTakenBackWhenOthersWantMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, nil)}
		h := hub(t, f, &Options{Limits: func(string) replay.Limits { return replay.Limits{Entries: 2} }})
		app(t, f.Memory, "x", "1")
		app(t, f.Memory, "x", "2")
		app(t, f.Memory, "x", "3")
		s := subscribe(t, h, "x", nil)
		f.onRead = func(after replay.Position, p Page, err error) (Page, error) {
			if after.IsZero() {
				for i := range 4 {
					app(t, f.Memory, "x", fmt.Sprint(4+i))
					expect(t, next(t, s), 4+i)
				}
			}
			return p, err
		}
		subscribe(t, h, "x", &SubscribeOptions{Last: -1})
		expect(t, soon(s, time.Hour), nothing)
	})
}

func TestSlowReadersKeepWhatTheHubStillHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, &MemoryOptions{Limits: func(string) replay.Limits { return replay.Limits{Entries: 2} }})}
		h := hub(t, f, nil)
		app(t, f.Memory, "x", "0")
		app(t, f.Memory, "x", "0")
		s := subscribe(t, h, "x", nil)
		for i := range 5 {
			app(t, f.Memory, "x", fmt.Sprint(1+i))
		}
		subscribe(t, h, "x", &SubscribeOptions{Last: -1})
		expect(t, soon(s, time.Hour), "1 2 3 4 5")
	})
}

func TestAFloorHoldsOnANodeThatIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, nil)}
		h := hub(t, f, nil)
		subscribe(t, h, "x", nil)
		f.mute = true
		app(t, f.Memory, "x", "secret")
		floor := app(t, f.Memory, "x", "joined").Pos
		s := subscribe(t, h, "x", &SubscribeOptions{Floor: floor})
		expect(t, soon(s, time.Millisecond), nothing)
		app(t, f.Memory, "x", "public")
		f.release()
		expect(t, soon(s, time.Hour), "public")
		s2 := subscribe(t, h, "x", &SubscribeOptions{After: replay.Position{Epoch: floor.Epoch}, Floor: floor})
		expect(t, soon(s2, time.Hour), "reset(floor 2) public")
	})
}

func TestAMessageSurvivesAHangThatEndsWithTheCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, nil)}
		var mode atomic.Value
		mode.Store("down")
		f.onApp = func(ctx context.Context, topic string) error {
			switch mode.Load() {
			case "down":
				return ErrUnavailable
			case "hang":
				<-ctx.Done()
				return fmt.Errorf("redis: %w", context.Cause(ctx))
			}
			return nil
		}
		h := hub(t, f, &Options{Outbox: &Outbox{Done: func(topic string, m Message, r Receipt, err error) {
			expect(t, fmt.Sprint(string(m.Data), r.Outcome, err), "onecommitted <nil>")
		}}})
		r, err := h.Publish(t.Context(), "x", Message{Data: []byte("one")})
		expect(t, fmt.Sprint(r.Outcome, err), "queued <nil>")
		mode.Store("hang")
		time.Sleep(20 * time.Second)
		mode.Store("")
		time.Sleep(20 * time.Second)
		_, head := func() (a, b replay.Position) {
			p, _ := f.Memory.Read(t.Context(), "x", replay.Position{}, replay.Budget{})
			return a, p.Head
		}()
		expect(t, head.Seq, 1)
	})
}

func TestTopicsThatAreAwayDoNotStarveOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, nil)}
		var all atomic.Bool
		all.Store(true)
		f.onApp = func(ctx context.Context, topic string) error {
			if all.Load() || topic != "good" {
				return ErrUnavailable
			}
			return nil
		}
		var good atomic.Bool
		h := hub(t, f, &Options{Outbox: &Outbox{Done: func(topic string, m Message, r Receipt, err error) {
			if topic == "good" {
				good.Store(true)
				expect(t, fmt.Sprint(r.Outcome, err), "committed <nil>")
			}
		}}})
		for i := range 4 {
			h.Publish(t.Context(), fmt.Sprint("bad", i), Message{Data: []byte("one")})
		}
		time.Sleep(50 * time.Millisecond)
		h.Publish(t.Context(), "good", Message{Data: []byte("one")})
		all.Store(false)
		for range 50 {
			time.Sleep(time.Second)
			for i := range 4 {
				h.Publish(t.Context(), fmt.Sprint("bad", i), Message{Data: []byte("one")})
			}
		}
		expect(t, good.Load(), true)
	})
}

func TestABusyTopicIsDrainedAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, nil)}
		var down atomic.Bool
		f.onApp = func(ctx context.Context, topic string) error {
			if down.Load() {
				return ErrUnavailable
			}
			time.Sleep(5 * time.Millisecond)
			return nil
		}
		h := hub(t, f, &Options{Outbox: &Outbox{}})
		counts := map[string]int{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range 4000 {
			down.Store(i > 400 && i < 500) // 0.2 s of 8 s
			wg.Go(func() {
				r, err := h.Publish(t.Context(), "x", Message{Data: []byte("one")})
				mu.Lock()
				counts[fmt.Sprint(r.Outcome, errors.Is(err, ErrOutboxFull))]++
				mu.Unlock()
			})
			time.Sleep(2 * time.Millisecond)
		}
		wg.Wait()
		time.Sleep(10 * time.Second)
		expect(t, h.Stats().Queued, 0)
		if n := counts["queuedtrue"] + counts["not storedtrue"] + counts["unknowntrue"]; n > 0 {
			t.Errorf("the outbox was full %d times: %v", n, counts)
		}
	})
}

func TestWhoHasGivenUpDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, nil)}
		f.onRead0 = func(ctx context.Context) error { <-ctx.Done(); return ErrUnavailable }
		h := hub(t, f, nil)
		done := make(chan struct{})
		for range 100 {
			go func() {
				for range 300 {
					ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
					h.Subscribe(ctx, "x", nil)
					cancel()
				}
				done <- struct{}{}
			}()
		}
		for range 100 {
			<-done
		}
		most := 0
		for range 2000 { // a refresh under way has them elsewhere
			time.Sleep(10 * time.Millisecond)
			tp := h.topics["x"]
			tp.mu.Lock()
			most = max(most, len(tp.waiting))
			tp.mu.Unlock()
		}
		expect(t, most, 0)
		tp := h.topics["x"]
		tp.mu.Lock()
		expect(t, fmt.Sprint(len(tp.waiting), h.Stats().Subscribers), "0 0")
		tp.mu.Unlock()
	})
}

func TestTopicsThatNobodyWantsAreNotWatchedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, nil)}
		f.onAdd = func(ctx context.Context, topics []string) error {
			if topics[0] == "slow" {
				time.Sleep(5 * time.Second)
			}
			return nil
		}
		h := hub(t, f, &Options{Linger: -1})
		go func() { h.Subscribe(context.Background(), "slow", nil) }()
		time.Sleep(time.Second)
		for i := range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			if s, err := h.Subscribe(ctx, fmt.Sprint(i), nil); err == nil {
				s.Close()
			}
			cancel()
		}
		time.Sleep(3 * time.Hour)
		f.Memory.mu.Lock()
		expect(t, fmt.Sprint(h.Stats().Topics, len(f.Memory.topics)), "1 1")
		f.Memory.mu.Unlock()
	})
}

func TestASubscriptionThatIsArmedAfterCloseIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, nil)}
		h := New(f, nil)
		s := subscribe(t, h, "x", nil)
		p := replay.NewPoller()
		app(t, f.Memory, "x", "one")
		expect(t, next(t, s), "one")
		f.mute = true
		gate := make(chan struct{})
		f.onRead = func(after replay.Position, p Page, err error) (Page, error) {
			if !after.IsZero() {
				return Page{}, &replay.GapError{Reason: replay.ReasonTrimmed}
			}
			<-gate
			p.Entries = p.Entries[:1] // read when there was only the first
			p.Head = p.Entries[0].Pos
			return p, err
		}
		f.Doorbell("x")
		synctest.Wait()
		done := make(chan error)
		go func() { done <- h.Close(context.Background()) }()
		synctest.Wait()
		close(gate)
		<-done
		Arm(p, s)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		n, err := p.Wait(ctx, make([]*replay.Cursor, 1))
		expect(t, fmt.Sprint(n, err), "1 <nil>")
	})
}

func TestSnapshotsAndFloorsAndNodesThatAreBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, nil)}
		calls := 0
		h := hub(t, f, &Options{Snapshot: func(ctx context.Context, topic string, head replay.Position) ([]byte, replay.Position, error) {
			calls++
			time.Sleep(time.Millisecond)
			hs, _ := f.Memory.Heads(ctx, []string{topic})
			return []byte(fmt.Sprint("state with the secret as of ", hs[0].Seq)), hs[0], nil
		}})
		floor := app(t, f.Memory, "x", "secret").Pos
		s := subscribe(t, h, "x", &SubscribeOptions{After: replay.Position{Epoch: 1, Seq: 1}, Floor: floor})
		expect(t, soon(s, time.Hour), "reset(epoch 0)")
		f.mute = true
		s = subscribe(t, h, "x", &SubscribeOptions{After: replay.Position{Epoch: 1, Seq: 1}})
		app(t, f.Memory, "x", "one")
		calls = 0
		expect(t, fmt.Sprint(soon(s, time.Hour), calls), "reset(epoch 0) snapshot(state with the secret as of 2)1")
	})
}

func TestTopicsThatCannotBeWatchedDoNotHoldUpOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, nil)}
		f.onAdd = func(ctx context.Context, topics []string) error {
			for _, n := range topics {
				if n[0] == 'b' {
					<-ctx.Done()
					return ErrUnavailable
				}
			}
			return nil
		}
		h := hub(t, f, nil)
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 50 {
			go func() {
				time.Sleep(time.Duration(i) * 200 * time.Millisecond)
				h.Subscribe(ctx, fmt.Sprint("bad", i), nil)
			}()
		}
		time.Sleep(time.Minute)
		c2, cancel2 := context.WithTimeout(ctx, 20*time.Second)
		_, err := h.Subscribe(c2, "good", nil)
		cancel2()
		expect(t, err, nil)
		cancel()
	})
}

func TestABackplaneThatContradictsItselfIsNotReadInALoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, nil)}
		h := hub(t, f, nil)
		subscribe(t, h, "x", nil)
		f.mute = true
		app(t, f.Memory, "x", "one")
		f.onRead = func(after replay.Position, p Page, err error) (Page, error) {
			time.Sleep(time.Millisecond)
			for i := range p.Entries {
				p.Entries[i].Prev++
			}
			return p, err
		}
		f.Doorbell("x")
		time.Sleep(time.Minute)
		if n := h.Stats().Reads; n > 200 {
			t.Errorf("%d reads in a minute", n)
		}
		expect(t, h.Stats().Errors > 5, true)
		f.onRead = nil
	})
}

func TestHeadsThatCannotBeHadDoNotHideOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, nil)}
		f.onHeads = func(topics []string, heads []replay.Position) error {
			if topics[0] == "good599" {
				return ErrUnavailable // a whole chunk
			}
			for i, n := range topics {
				if n[0] == 'b' {
					heads[i] = replay.Position{}
				}
			}
			return nil
		}
		h := hub(t, f, nil)
		for i := range 600 {
			subscribe(t, h, fmt.Sprint("bad", i), nil)
		}
		var s []*Subscription
		for i := range 600 {
			s = append(s, subscribe(t, h, fmt.Sprint("good", i), nil))
		}
		f.mute = true
		for i := range 600 {
			app(t, f.Memory, fmt.Sprint("good", i), "one")
		}
		time.Sleep(time.Minute)
		n := 0
		var b Batch
		for _, s := range s {
			s.Read(&b, replay.Budget{})
			if !b.Empty() {
				n++
			}
		}
		expect(t, n, 600)
	})
}

func TestMadeUpPositionsCostNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, nil)}
		h := hub(t, f, nil)
		f.onRead = func(after replay.Position, p Page, err error) (Page, error) {
			time.Sleep(time.Millisecond)
			return p, err
		}
		subscribe(t, h, "x", nil)
		before := h.Stats().Reads
		for i := range 3000 {
			if i%400 == 0 {
				subscribe(t, h, "x", &SubscribeOptions{After: replay.Position{Epoch: 7, Seq: 1}})
			}
			app(t, f.Memory, "x", "one")
			time.Sleep(10 * time.Millisecond)
		}
		if n := h.Stats().Reads - before; n > 50 {
			t.Errorf("%d reads", n)
		}
	})
}

func TestLastIsNoMoreThanLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, nil)}
		h := hub(t, f, nil)
		for range 10 {
			app(t, f.Memory, "x", "one")
		}
		s := subscribe(t, h, "x", &SubscribeOptions{Last: 8, Lag: &replay.Lag{Entries: 5}})
		expect(t, soon(s, time.Hour), "one one one one one")
	})
}

func TestEarlyHintsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, nil)}
		h := hub(t, f, nil)
		hold := make(chan struct{})
		f.onRead0 = func(ctx context.Context) error { <-ctx.Done(); return ErrUnavailable }
		go h.Subscribe(t.Context(), "x", nil)
		synctest.Wait()
		for range 1000 {
			app(t, f.Memory, "x", string(make([]byte, 1<<14)))
		}
		tp := h.topics["x"]
		tp.mu.Lock()
		expect(t, len(tp.early), 64)
		tp.mu.Unlock()
		close(hold)
	})
}

func TestAClosedSubscriptionGetsNoReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Memory: memory(t, nil)}
		h := hub(t, f, &Options{Linger: -1})
		s := subscribe(t, h, "x", nil)
		tp := s.topic.Load()
		app(t, f.Memory, "x", "one")
		s.Close()
		time.Sleep(2 * time.Second)
		// what Read does after it has loaded s.topic before Close
		var b Batch
		err := s.cursor.Read(&b.Batch, replay.Budget{})
		var gap *replay.GapError
		if errors.As(err, &gap) {
			err = s.reset(tp, &b, replay.Budget{}, gap)
		}
		expect(t, fmt.Sprint(err, text(&b)), ErrClosed.Error())
	})
}

func TestWhoWaitsIsServedAsSoonAsTheBackplaneIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		worst := time.Duration(0)
		for range 30 {
			f := &faulty{Memory: memory(t, nil)}
			var down atomic.Bool
			down.Store(true)
			f.onRead0 = func(ctx context.Context) error {
				if down.Load() {
					return ErrUnavailable
				}
				return nil
			}
			h := hub(t, f, nil)
			ch := make(chan time.Duration)
			var back atomic.Int64
			go func() { h.Subscribe(context.Background(), "x", nil); ch <- time.Since(time.Unix(0, back.Load())) }()
			time.Sleep(2 * time.Minute)
			down.Store(false)
			back.Store(time.Now().UnixNano())
			f.Interrupted(errors.New("x"))
			worst = max(worst, <-ch)
		}
		if worst > 200*time.Millisecond {
			t.Errorf("after %v", worst)
		}
	})
}

// The number was forgotten if the reader stood just where the log began.
func TestWhoLagsIsToldHowManyItMissedAlsoWithoutASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := memory(t, nil)
		h := hub(t, m, &Options{Snapshot: func(context.Context, string, replay.Position) ([]byte, replay.Position, error) {
			return nil, replay.Position{}, errors.New("none")
		}})
		pos := ten(t, h, "x")
		for i := range 2 {
			s := subscribe(t, h, "x", &SubscribeOptions{After: pos[i], Lag: &replay.Lag{Entries: 3}})
			expect(t, next(t, s), fmt.Sprintf("reset(lagging %d) 8 9 10", 7-i))
		}
	})
}

// Somebody who came when the Hub knew only the newest message, and just as the history went
// back to before that, was told that what was still there had been trimmed.
func TestAHistoryThatGoesBackWhileItIsReadFurtherIsNotTrimmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		other := hub(t, b, quiet())
		var ps []replay.Position
		for _, text := range []string{"1", "2", "3", "4", "5"} {
			ps = append(ps, publish(t, other, "x", text).Pos)
		}
		h := hub(t, b, quiet())
		newest := subscribe(t, h, "x", &SubscribeOptions{Last: 1})
		gets(t, newest, "5")
		var once sync.Once
		b.set(func() {
			b.onRead = func(_ context.Context, _ string, after replay.Position, do func() (Page, error)) (Page, error) {
				if after.IsZero() { // for more than the newest
					once.Do(func() { b.rewind("x", 2) })
				}
				return do()
			}
		})
		late := subscribe(t, h, "x", &SubscribeOptions{After: ps[1]})
		gets(t, late, "3")
		gets(t, newest, "reset(ahead 0) 1 2 3")
		if n := h.Stats().Rewinds; n != 1 {
			t.Errorf("%d rewinds", n)
		}
	})
}

// The same after the log was filled anew: where it begins is then another place.
func TestAHistoryThatGoesBackTwiceIsNotTrimmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, &MemoryOptions{Limits: func(string) replay.Limits { return replay.Limits{Entries: 4} }})
		h := hub(t, b, quiet())
		publish(t, h, "x", "1")
		s := subscribe(t, h, "x", nil)
		b.lose("x")
		var pos []replay.Position
		b.deaf(func() { pos = ten(t, h, "x") })
		b.sinks[0].Doorbell("x")
		gets(t, s, "reset(epoch 0) 7 8 9 10")
		// Now what follows 10 is trimmed, and before the rest is read the history goes back
		// to before the 7 with which the log begins.
		b.deaf(func() { ten(t, h, "x") })
		b.set(func() {
			b.onRead = func(_ context.Context, _ string, after replay.Position, do func() (Page, error)) (Page, error) {
				if after.IsZero() {
					b.goBack("x", pos[3])
				}
				return do()
			}
		})
		b.sinks[0].Doorbell("x")
		gets(t, s, "reset(ahead 0)")
		if n := h.Stats().Rewinds; n != 2 {
			t.Errorf("%d rewinds", n)
		}
	})
}

// A hint that came too early while the new history was read is dropped with those of the
// old one, and so must ring.
func TestAnEarlyHintThatComesWhileTheNewHistoryIsReadIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		h := hub(t, b, quiet())
		other := hub(t, b, quiet())
		ten(t, other, "x")
		s := subscribe(t, h, "x", nil)
		b.rewind("x", 4)
		var once sync.Once
		b.set(func() {
			b.onRead = func(_ context.Context, _ string, after replay.Position, do func() (Page, error)) (Page, error) {
				page, err := do()
				if after.IsZero() {
					once.Do(func() {
						b.deaf(func() {
							for seq := 7; seq <= 11; seq++ {
								publish(t, other, "x", "new")
							}
						})
						publish(t, other, "x", "early")
					})
				}
				return page, err
			}
		})
		b.sinks[0].Doorbell("x")
		synctest.Wait()
		time.Sleep(time.Second)
		gets(t, s, "reset(forked 0) 1 2 3 4 5 6 new new new new new early")
	})
}
