package replay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-ws/holdfast/internal/verify"
)

func TestNextReadsThePastAndThenThePresent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{})
		start := fill(l, 3)[0]
		c := l.Cursor(start, nil)
		var b Batch
		if err := c.Next(t.Context(), &b, Budget{Entries: 2}); err != nil || words(b.Entries) != "1 2" {
			t.Fatalf("first %q, %v", words(b.Entries), err)
		}
		if err := c.Next(t.Context(), &b, Budget{}); err != nil || words(b.Entries) != "3" || b.To != b.Head {
			t.Fatalf("then %q, %v", words(b.Entries), err)
		}
		if err := c.Read(&b, Budget{}); err != nil || len(b.Entries) != 0 || c.Position() != l.Last(0) {
			t.Fatalf("caught up: Read gives %q, %v", words(b.Entries), err)
		}
		time.AfterFunc(time.Hour, func() { l.Append("", []byte("live")) })
		waited := time.Now()
		if err := c.Next(t.Context(), &b, Budget{}); err != nil || words(b.Entries) != "live" || time.Since(waited) != time.Hour {
			t.Fatalf("after %v %q, %v", time.Since(waited), words(b.Entries), err)
		}
	})
}

func TestAllThatWaitAreWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, wake := range map[string]func(l *Log){
			"Append": func(l *Log) { l.Append("", nil) },
			"Insert": func(l *Log) { l.Insert(Entry{Pos: Position{7, 2, 1}, Prev: 9}) },
			"Reset":  func(l *Log) { l.Reset(Position{}) },
		} {
			l := New(Limits{})
			l.Reset(Position{7, 1, 9})
			var woken atomic.Int32
			for range 10 {
				go func() {
					var b Batch
					err := l.Cursor(Position{7, 1, 9}, nil).Next(t.Context(), &b, Budget{})
					var gap *GapError
					if name == "Reset" && errors.As(err, &gap) && gap.Reason == ReasonEpoch || name != "Reset" && err == nil && len(b.Entries) == 1 {
						woken.Add(1)
					}
				}()
			}
			synctest.Wait()
			wake(l)
			synctest.Wait()
			if woken.Load() != 10 {
				t.Errorf("%s wakes %d of 10", name, woken.Load())
			}
		}
	})
}

// What was appended wakes, also when the last of several entries was not.
func TestNextIsWokenByWhatWasAppendedBeforeAnEntryThatDoesNotFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, l := New(Limits{}), New(Limits{})
		var all []Entry
		for range 4 {
			e, _ := source.Append("", nil)
			all = append(all, e)
		}
		_, head := source.Bounds()
		l.Reset(Position{Epoch: head.Epoch}, all[0])
		for _, c := range []struct {
			name    string
			entries []Entry
			want    Verdict
		}{
			{"missing", []Entry{all[1], all[3]}, Missing},
			{"duplicate", []Entry{all[2], all[2]}, Duplicate},
		} {
			cursor := l.Cursor(placeBefore(c.entries[0]), nil)
			var got Batch
			woken := make(chan error, 1)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			go func() { woken <- cursor.Next(ctx, &got, Budget{}) }()
			synctest.Wait()
			if v := l.Insert(c.entries...); v != c.want {
				t.Errorf("%s: %v", c.name, v)
			}
			if err := <-woken; err != nil || len(got.Entries) != 1 {
				t.Errorf("%s: %v, %d entries", c.name, err, len(got.Entries))
			}
			cancel()
		}
	})
}

// placeBefore returns the position that e follows.
func placeBefore(e Entry) Position {
	return Position{Epoch: e.Pos.Epoch, Seq: e.Pos.Seq - 1, Tag: e.Prev}
}

func TestAResetToTheHeadIsNoGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{})
		at := fill(l, 3)
		c := l.Cursor(at[3], nil)
		behind := l.Cursor(at[2], nil)
		go func() {
			time.Sleep(time.Second)
			l.Reset(at[3])
			time.Sleep(time.Second)
			l.Append("", []byte("next"))
		}()
		var b Batch
		if err := c.Next(t.Context(), &b, Budget{}); err != nil || words(b.Entries) != "next" {
			t.Errorf("the reader at the head gets %q, %v", words(b.Entries), err)
		}
		var gap *GapError
		if err := behind.Next(t.Context(), &b, Budget{}); !errors.As(err, &gap) || gap.Reason != ReasonTrimmed || gap.Missed != 1 {
			t.Errorf("the reader one behind gets %v", err)
		}
	})
}

func TestAGapIsReportedUntilTheReaderMoves(t *testing.T) {
	l := New(Limits{Entries: 2})
	start := fill(l, 5)[0]
	c := l.Cursor(start, nil)
	var b Batch
	var gap *GapError
	for range 2 {
		if err := c.Next(t.Context(), &b, Budget{}); !errors.As(err, &gap) || gap.Missed != 3 || c.Position() != start {
			t.Fatalf("%v, cursor at %+v", err, c.Position())
		}
	}
	c.Seek(gap.Oldest)
	if err := c.Next(t.Context(), &b, Budget{}); err != nil || words(b.Entries) != "4 5" {
		t.Errorf("from Oldest: %q, %v", words(b.Entries), err)
	}
	c.Seek(gap.Head)
	if err := c.Read(&b, Budget{}); err != nil || len(b.Entries) != 0 {
		t.Errorf("from Head: %q, %v", words(b.Entries), err)
	}
}

func TestLagLimits(t *testing.T) {
	l := New(Limits{})
	at := fill(l, 10)
	tests := []struct {
		reason string
		lag    *Lag
		behind int
		over   bool
	}{
		{"none", nil, 10, false},
		{"zero", &Lag{}, 10, false},
		{"negative", &Lag{Entries: -1, Bytes: -1}, 10, false},
		{"entries, at the limit", &Lag{Entries: 4}, 4, false},
		{"entries, over it", &Lag{Entries: 4}, 5, true},
		{"bytes, at the limit", &Lag{Bytes: 5}, 4, false},
		{"bytes, over it", &Lag{Bytes: 5}, 5, true},
	}
	for _, tt := range tests {
		c := l.Cursor(at[10-tt.behind], tt.lag)
		if entries, bytes := c.Lag(); entries != uint64(tt.behind) || bytes != int64(tt.behind+1) {
			t.Errorf("%s: Lag = %d, %d", tt.reason, entries, bytes) // "10" has two bytes
		}
		var b Batch
		err := c.Read(&b, Budget{})
		var gap *GapError
		if errors.As(err, &gap) != tt.over {
			t.Errorf("%s: %v", tt.reason, err)
		}
		if !tt.over {
			continue
		}
		if gap.Reason != ReasonLagging || gap.Want != at[5] || gap.Oldest != at[6] || gap.Missed != 1 || gap.Head != at[10] {
			t.Errorf("%s: %+v", tt.reason, *gap)
		}
		c.Seek(gap.Oldest)
		if err := c.Read(&b, Budget{}); err != nil || words(b.Entries) != "7 8 9 10" {
			t.Errorf("%s: at Oldest %q, %v", tt.reason, words(b.Entries), err)
		}
	}
	// One entry that is over the limit by itself.
	l.Append("", make([]byte, 100))
	c := l.Cursor(at[10], &Lag{Bytes: 5})
	var b Batch
	var gap *GapError
	if err := c.Read(&b, Budget{}); !errors.As(err, &gap) || gap.Oldest != gap.Head || gap.Missed != 1 {
		t.Errorf("%+v", err)
	}
}

func TestConflationGivesTheNewestOfEachKey(t *testing.T) {
	l := New(Limits{})
	start := l.Last(0)
	for _, kv := range []string{"a1", "b1", "a2", "-x", "a3", "c1", "-y", "b2"} {
		key := kv[:1]
		if key == "-" {
			key = ""
		}
		l.Append(key, []byte(kv))
	}
	c := l.Cursor(start, &Lag{Entries: 3, Conflate: true})
	var b Batch
	if err := c.Next(t.Context(), &b, Budget{Entries: 2}); err != nil || words(b.Entries) != "-x a3" || b.Conflated != 3 || b.To.Seq != 5 {
		t.Errorf("%q, %d conflated, to %d, %v", words(b.Entries), b.Conflated, b.To.Seq, err)
	}
	l.Append("c", []byte("c2"))
	// Four behind: one over the limit.
	if err := c.Next(t.Context(), &b, Budget{}); err != nil || words(b.Entries) != "-y b2 c2" || b.Conflated != 1 || b.To != b.Head {
		t.Errorf("%q, %d conflated, %v", words(b.Entries), b.Conflated, err)
	}
	for range 3 {
		l.Append("c", []byte("c3"))
	}
	// Three behind: within the limit, so all of them.
	if err := c.Next(t.Context(), &b, Budget{}); err != nil || words(b.Entries) != "c3 c3 c3" || b.Conflated != 0 {
		t.Errorf("%q, %d conflated, %v", words(b.Entries), b.Conflated, err)
	}
}

// A conflating read over a long backlog holds the lock for a part of it at a time.
func TestConflationGetsOnInSteps(t *testing.T) { synctest.Test(t, testSteps) }

func testSteps(t *testing.T) {
	l := New(Limits{Entries: 5000, Bytes: -1})
	start := l.Last(0)
	for range 4000 {
		l.Append("k", nil)
	}
	newest, _ := l.Append("k", []byte("newest"))
	c := l.Cursor(start, &Lag{Entries: 1, Conflate: true})
	var b Batch
	if err := c.Read(&b, Budget{}); err != nil || len(b.Entries) != 0 || b.Conflated != scanned || b.To.Seq != scanned || b.Head != newest.Pos {
		t.Errorf("a read: %d entries, %d conflated, to %d, %v", len(b.Entries), b.Conflated, b.To.Seq, err)
	}
	if err := c.Next(t.Context(), &b, Budget{}); err != nil || words(b.Entries) != "newest" || b.To != newest.Pos {
		t.Errorf("Next: %q, to %d, %v", words(b.Entries), b.To.Seq, err)
	}
}

func TestPollerReturnsACursorOnceForEachArm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, other := New(Limits{}), New(Limits{})
		p := NewPoller()
		idle, behind := l.Cursor(l.Last(0), nil), other.Cursor(other.Last(0), nil)
		idle.Value, behind.Value = "idle", "behind"
		other.Append("", []byte("x"))
		p.Arm(idle, behind)
		wait := func(want ...any) { // of nothing it is nil, as got
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			cursors := make([]*Cursor, 4)
			n, err := p.Wait(ctx, cursors)
			var got []any
			for _, c := range cursors[:n] {
				got = append(got, c.Value)
			}
			if diff := cmp.Diff(want, got); diff != "" || (err == nil) != (n > 0) {
				t.Errorf("Wait returns %v, and cursors (-want +got):\n%s", err, diff)
			}
		}
		wait("behind")
		wait()
		l.Append("", nil)
		l.Append("", nil)
		wait("idle")
		wait()
		l.Append("", nil)
		wait() // not armed
		p.Arm(behind, idle)
		wait("behind", "idle")
		var b Batch
		behind.Read(&b, Budget{})
		idle.Read(&b, Budget{})
		p.Arm(behind, idle)
		l.Reset(Position{})
		wait("idle")
		if err := idle.Read(&b, Budget{}); err == nil {
			t.Error("no gap after a reset")
		}
		idle.Seek(Position{}) // no position: there is a GapError to be had
		p.Arm(idle)
		wait("idle")
	})
}

func TestPollerWakesAWorkerForEachCursorThatIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{})
		p := NewPoller()
		const workers = 5
		for i := range workers {
			c := l.Cursor(l.Last(0), nil)
			c.Value = i
			p.Arm(c)
		}
		var busy sync.WaitGroup
		var got [workers]atomic.Int32
		release := make(chan struct{})
		for range workers {
			busy.Go(func() {
				one := make([]*Cursor, 1)
				if _, err := p.Wait(t.Context(), one); err != nil {
					t.Error(err)
				}
				got[one[0].Value.(int)].Add(1)
				<-release // a slow write
			})
		}
		synctest.Wait()
		l.Append("", nil) // all five, in one step
		synctest.Wait()
		for i := range got {
			if n := got[i].Load(); n != 1 {
				t.Errorf("cursor %d was returned %d times while all workers are busy, want once", i, n)
			}
		}
		close(release)
		busy.Wait()
	})
}

func TestCloseTakesACursorOutOfItsPollerForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{})
		p := NewPoller()
		ready := make([]*Cursor, 2)
		nobody := func() {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if n, err := p.Wait(ctx, ready); n != 0 {
				t.Errorf("Wait = %d, %v", n, err)
			}
		}
		if l.Cursor(l.Last(0), nil).Close() {
			t.Error("Close of a cursor never armed")
		}

		parked := l.Cursor(l.Last(0), nil)
		p.Arm(parked)
		if !parked.Close() || parked.Close() {
			t.Error("Close of a parked cursor, twice")
		}
		behind := l.Cursor(l.Last(0), nil)
		l.Append("", nil)
		p.Arm(behind) // ready at once
		if !behind.Close() {
			t.Error("Close of a ready cursor")
		}
		nobody()

		busy := l.Cursor(l.Last(1), nil)
		p.Arm(busy)
		if n, err := p.Wait(t.Context(), ready); n != 1 || ready[0] != busy || err != nil {
			t.Errorf("Wait = %d, %v", n, err)
		}
		if busy.Close() {
			t.Error("Close of a cursor that a worker has")
		}
		p.Arm(busy) // by the worker, which does not know
		l.Append("", nil)
		nobody()
	})
}

func TestACursorMayChangeItsPoller(t *testing.T) {
	l := New(Limits{})
	p, other := NewPoller(), NewPoller()
	c := l.Cursor(l.Last(0), nil)
	ready := make([]*Cursor, 2)
	for _, q := range []*Poller{p, other, p} {
		q.Arm(c)
		l.Append("", nil)
		if n, err := q.Wait(t.Context(), ready); n != 1 || err != nil {
			t.Errorf("Wait = %d, %v", n, err)
		}
		var b Batch
		if err := c.Read(&b, Budget{}); err != nil || len(b.Entries) != 1 {
			t.Errorf("%d entries, %v", len(b.Entries), err)
		}
	}
}

// A worker whose context ends just when it is woken passes the cursor on.
func TestAWorkerThatLeavesLosesNoCursor(t *testing.T) {
	for i := range 20 {
		synctest.Test(t, func(t *testing.T) {
			l := New(Limits{})
			p := NewPoller()
			p.Arm(l.Cursor(l.Last(0), nil))
			leaving, leave := context.WithCancel(t.Context())
			var served atomic.Int32
			workers := []context.Context{leaving, t.Context()}
			if i%2 == 1 {
				slices.Reverse(workers)
			}
			for _, ctx := range workers {
				go func() {
					if n, _ := p.Wait(ctx, make([]*Cursor, 1)); n == 1 {
						served.Add(1)
					}
				}()
				synctest.Wait() // in this order
			}
			l.Append("", nil)
			leave()
			synctest.Wait()
			if served.Load() != 1 {
				t.Fatalf("served %d times", served.Load())
			}
			l.Reset(Position{})
			p.Arm(l.Cursor(Position{}, nil)) // for whoever still waits
		})
	}
}

// An Arm of a cursor that is behind wakes a worker that waits.
func TestArmWakesAWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, other := New(Limits{}), New(Limits{})
		first, second := l.Cursor(l.Last(0), nil), other.Cursor(other.Last(0), nil)
		l.Append("", nil)
		p := NewPoller()
		got := make(chan *Cursor, 2)
		go func() {
			one := make([]*Cursor, 1)
			p.Wait(t.Context(), one)
			got <- one[0]
		}()
		synctest.Wait()
		p.Arm(first, second) // ready, and then parked
		if c := <-got; c != first {
			t.Error("another cursor")
		}
	})
}

func TestReadyIsClosedWhenThereIsSomethingToReadOrSeeTo(t *testing.T) {
	l := New(Limits{})
	c := l.Cursor(l.Last(0), nil)
	closed := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	ready := c.Ready()
	if closed(ready) {
		t.Error("ready with nothing to read")
	}
	l.Append("", nil)
	if !closed(ready) || !closed(c.Ready()) {
		t.Error("not ready after an append")
	}
	var b Batch
	if err := c.Read(&b, Budget{}); err != nil {
		t.Fatal(err)
	}
	ready = c.Ready()
	if closed(ready) {
		t.Error("ready after all was read")
	}
	l.Wake()
	if !closed(ready) {
		t.Error("not ready after Wake")
	}
	if closed(c.Ready()) {
		t.Error("Wake lasts")
	}
	c.Seek(Position{})
	if !closed(c.Ready()) {
		t.Error("not ready though there is a gap")
	}
}

func TestWakeMakesArmedCursorsReadyAndNoOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{})
		p := NewPoller()
		a, b := l.Cursor(l.Last(0), nil), l.Cursor(l.Last(0), nil)
		b.Wake() // was never armed
		p.Arm(a, b)
		wait := func() (got []*Cursor) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			got = make([]*Cursor, 4)
			n, _ := p.Wait(ctx, got)
			return got[:n]
		}
		a.Wake()
		a.Wake() // ready already
		if got := wait(); !slices.Equal(got, []*Cursor{a}) {
			t.Errorf("one was woken, Wait returned %d", len(got))
		}
		a.Wake() // not armed: nothing
		if got := wait(); len(got) > 0 {
			t.Error("a cursor that is not armed was woken")
		}
		p.Arm(a)
		l.Wake()
		if got := wait(); len(got) != 2 {
			t.Errorf("all were woken, Wait returned %d", len(got))
		}
		p.Arm(a, b)
		b.Close()
		b.Wake()
		l.Append("", nil)
		if got := wait(); !slices.Equal(got, []*Cursor{a}) {
			t.Errorf("one was closed, Wait returned %d", len(got))
		}
	})
}

// Anything at any time, from many goroutines: no cursor that is behind is
// forgotten, none is returned twice or after it was closed.
func TestPollersUnderStress(t *testing.T) {
	rounds, workers := 3000, 6
	if !verify.On() {
		rounds = 500
	}
	logs := []*Log{New(Limits{Entries: 100}), New(Limits{Entries: 100}), New(Limits{Entries: 100})}
	pollers := []*Poller{NewPoller(), NewPoller()}
	type owner struct {
		poller *Poller
		busy   atomic.Bool
		gone   atomic.Bool // closed, and no worker had it
		seen   atomic.Uint64
	}
	ctx, finish := context.WithCancel(t.Context())
	var wg, writers sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 7))
			p := pollers[i%len(pollers)]
			cursors := make([]*Cursor, 1+rnd.IntN(8))
			var b Batch
			for ctx.Err() == nil {
				short, cancel := context.WithTimeout(ctx, time.Duration(rnd.IntN(200))*time.Microsecond)
				n, _ := p.Wait(short, cursors)
				cancel()
				for _, c := range cursors[:n] {
					o := c.Value.(*owner)
					if o.busy.Swap(true) {
						t.Error("two workers have one cursor")
					}
					if o.gone.Load() {
						t.Error("a closed cursor is returned")
					}
					var gap *GapError
					if err := c.Read(&b, Budget{Entries: 1 + rnd.IntN(10)}); errors.As(err, &gap) {
						c.Seek(gap.Oldest)
					}
					o.seen.Store(c.Position().Seq)
					o.busy.Store(false)
				}
				p.Arm(cursors[:n]...)
			}
		})
	}
	var mu sync.Mutex // guards cursors
	var cursors []*Cursor
	for i := range 3 {
		writers.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 8))
			for range rounds {
				l := logs[rnd.IntN(len(logs))]
				switch rnd.IntN(6) {
				case 0:
					o := &owner{poller: pollers[rnd.IntN(len(pollers))]}
					c := l.Cursor(l.Last(rnd.IntN(5)), nil)
					c.Value = o
					o.poller.Arm(c)
					mu.Lock()
					cursors = append(cursors, c)
					mu.Unlock()
				case 1:
					mu.Lock()
					var c *Cursor
					if len(cursors) > 0 {
						k := rnd.IntN(len(cursors))
						c = cursors[k]
						cursors = slices.Delete(cursors, k, k+1)
					}
					mu.Unlock()
					if c != nil && c.Close() {
						c.Value.(*owner).gone.Store(true)
					}
				default:
					if _, err := l.Append("", nil); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	writers.Wait()
	for _, c := range cursors {
		o, head := c.Value.(*owner), c.log.Last(0)
		deadline := time.Now().Add(30 * time.Second)
		for o.seen.Load() < head.Seq && !(o.seen.Load() == 0) {
			if time.Now().After(deadline) {
				t.Fatalf("a cursor stands at %d of %d for ever", o.seen.Load(), head.Seq)
			}
			runtime.Gosched()
		}
	}
	finish()
	wg.Wait()
}

func TestMisuseOfAPollerPanics(t *testing.T) {
	l := New(Limits{})
	p := NewPoller()
	c := l.Cursor(l.Last(0), nil)
	p.Arm(c)
	for name, misuse := range map[string]func(){
		"Arm twice":         func() { p.Arm(c) },
		"Arm in two":        func() { NewPoller().Arm(c) },
		"Wait without room": func() { p.Wait(t.Context(), nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			misuse()
		}()
	}
	l.Append("", nil) // the log is not left locked
	if n, err := p.Wait(t.Context(), make([]*Cursor, 1)); n != 1 || err != nil {
		t.Errorf("Wait = %d, %v", n, err)
	}
}

func TestPollersThatAreGoneLeaveNothing(t *testing.T) {
	l := New(Limits{})
	for range 100 {
		p := NewPoller()
		c := l.Cursor(l.Last(0), nil)
		p.Arm(c)
		c.Close()
		if _, err := l.Append("", nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(l.parked) > 1 {
		t.Errorf("the log remembers %d pollers", len(l.parked))
	}
}

func TestAnIdleCursorIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(Cursor{}); size > 80 {
		t.Errorf("a cursor takes %d bytes", size)
	}
}

// reader checks what one cursor sees: strictly the next number, or an explicit
// gap. In the end all numbers have been read or reported.
type reader struct {
	t      *testing.T
	cursor *Cursor
	pos    Position
	read   uint64
	missed uint64
}

func (r *reader) take(b *Batch, err error) {
	var gap *GapError
	if errors.As(err, &gap) {
		if gap.Reason != ReasonTrimmed || gap.Want != r.pos || gap.Oldest.Seq != r.pos.Seq+gap.Missed || gap.Missed == 0 {
			r.t.Errorf("at %+v: %+v", r.pos, *gap)
		}
		r.missed += gap.Missed
		r.pos = gap.Oldest
		r.cursor.Seek(gap.Oldest)
		return
	}
	for _, e := range b.Entries {
		if e.Pos.Seq != r.pos.Seq+1 || e.Prev != r.pos.Tag || string(e.Data) != fmt.Sprint(e.Pos.Tag%7) && len(e.Data) != 1 {
			r.t.Errorf("at %+v: %+v follows", r.pos, e)
		}
		r.pos = e.Pos
		r.read++
	}
	if b.To != r.pos {
		r.t.Errorf("the batch ends at %+v, its entries at %+v", b.To, r.pos)
	}
}

func TestFourWritersAndAThousandReaders(t *testing.T) {
	writers, each, readers := 4, 5000, 1000
	if !verify.On() {
		each, readers = 500, 100
	}
	total := uint64(writers * each)
	l := New(Limits{Entries: 600})
	start := l.Last(0)
	var all []*reader
	var wg sync.WaitGroup
	newReader := func() *reader {
		r := &reader{t: t, cursor: l.Cursor(start, nil), pos: start}
		r.cursor.Value = r
		all = append(all, r)
		return r
	}

	// Half of the readers have a goroutine each and read at their own pace.
	for i := range readers / 2 {
		r := newReader()
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 2))
			var b Batch
			for r.pos.Seq < total {
				err := r.cursor.Next(t.Context(), &b, Budget{Entries: 1 + rnd.IntN(300), Bytes: int64(rnd.IntN(300))})
				r.take(&b, err)
				for range rnd.IntN(20) * (i % 3) {
					runtime.Gosched()
				}
			}
		})
	}
	// The other half are served by a few workers.
	poller := NewPoller()
	var unfinished atomic.Int64
	done, finish := context.WithCancel(t.Context())
	for range readers / 2 {
		poller.Arm(newReader().cursor)
		unfinished.Add(1)
	}
	for i := range 3 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 3))
			var b Batch
			cursors := make([]*Cursor, 1+i*10)
			for {
				n, err := poller.Wait(done, cursors)
				if err != nil {
					return
				}
				for _, c := range cursors[:n] {
					r := c.Value.(*reader)
					r.take(&b, c.Read(&b, Budget{Entries: 1 + rnd.IntN(100)}))
					if r.pos.Seq < total {
						poller.Arm(c)
					} else if unfinished.Add(-1) == 0 {
						finish()
					}
				}
			}
		})
	}
	for range writers {
		wg.Go(func() {
			for i := range each {
				if _, err := l.Append("", []byte{'0' + byte(i%7)}); err != nil {
					t.Error(err)
				}
				if i%50 == 0 {
					runtime.Gosched()
				}
			}
		})
	}
	wg.Wait()
	finish()
	var read, missed uint64
	for _, r := range all {
		if r.read+r.missed != total {
			t.Errorf("a reader has read %d and missed %d of %d", r.read, r.missed, total)
		}
		read += r.read
		missed += r.missed
	}
	if read == 0 || missed == 0 {
		t.Errorf("all together have read %d and missed %d: both should happen", read, missed)
	}
	t.Logf("%d readers have read %d entries and were told of %d missed", len(all), read, missed)
}
