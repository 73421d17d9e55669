package replay

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/holdfast-ws/holdfast/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// fill appends entries "1", "2", … up to n and returns their positions, with the
// start of the log before them.
func fill(l *Log, n int) []Position {
	_, head := l.Bounds()
	positions := []Position{head}
	for i := range n {
		e, err := l.Append("", fmt.Append(nil, i+1))
		if err != nil {
			panic(err)
		}
		positions = append(positions, e.Pos)
	}
	return positions
}

// room returns how many entries the log's ring has room for.
func room(l *Log) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ring)
}

// words returns the data of entries.
func words(entries []Entry) string {
	var all []string
	for _, e := range entries {
		all = append(all, string(e.Data))
	}
	return strings.Join(all, " ")
}

// after reads what follows p with an unlimited budget.
func after(l *Log, p Position) (string, *GapError) {
	var b Batch
	err := l.After(p, &b, Budget{-1, -1})
	var gap *GapError
	if err != nil && !errors.As(err, &gap) {
		panic(err)
	}
	return words(b.Entries), gap
}

// forged returns p with another tag.
func forged(p Position) Position {
	p.Tag ^= 1
	return p
}

func TestDocumentedDefaults(t *testing.T) {
	for name, same := range map[string]bool{
		"DefaultEntries":      DefaultEntries == 1024,
		"DefaultBytes":        DefaultBytes == 1<<20,
		"DefaultAge":          DefaultAge == 5*time.Minute,
		"DefaultBatchEntries": DefaultBatchEntries == 256,
		"DefaultBatchBytes":   DefaultBatchBytes == 64<<10,
	} {
		if !same {
			t.Errorf("%s is not as documented", name)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Bytes: -1, Age: -1})
		fill(l, DefaultEntries+10)
		if oldest, head := l.Bounds(); head.Seq-oldest.Seq != DefaultEntries {
			t.Errorf("%d entries stored by default", head.Seq-oldest.Seq)
		}
		var b Batch
		if err := l.After(l.Last(DefaultEntries), &b, Budget{}); err != nil || len(b.Entries) != DefaultBatchEntries {
			t.Errorf("%d entries in a batch by default, %v", len(b.Entries), err)
		}

		l = New(Limits{Age: -1})
		for range 40 {
			l.Append("", make([]byte, DefaultBytes/32))
		}
		if oldest, head := l.Bounds(); head.Seq-oldest.Seq != 32 {
			t.Errorf("%d entries of 32 KiB stored by default", head.Seq-oldest.Seq)
		}
		if err := l.After(l.Last(32), &b, Budget{}); err != nil || len(b.Entries) != 2 {
			t.Errorf("%d entries of 32 KiB in a batch by default, %v", len(b.Entries), err)
		}

		l = New(Limits{})
		start := fill(l, 1)[0]
		time.Sleep(DefaultAge - 1)
		if got, gap := after(l, start); got != "1" {
			t.Errorf("just before DefaultAge: %q, %v", got, gap)
		}
		time.Sleep(1 * time.Nanosecond)
		synctest.Wait()
		if _, gap := after(l, start); gap == nil {
			t.Error("an entry is still there at DefaultAge")
		}
	})
}

func TestNegativeLimitsAreNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{-1, -1, -1})
		start := fill(l, 5000)[0]
		l.Append("", make([]byte, 2*DefaultBytes))
		time.Sleep(1000 * time.Hour)
		if oldest, head := l.Bounds(); oldest != start || head.Seq != 5001 {
			t.Errorf("stored after %v up to %v", oldest, head)
		}
	})
}

func TestAppendNumbersDenselyAndLinksEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{})
		start := l.Last(0)
		if start.Epoch == 0 || start.Seq != 0 || start.Tag != 0 {
			t.Fatalf("a new log starts at %+v", start)
		}
		if other := New(Limits{}).Last(0); other.Epoch == start.Epoch {
			t.Error("two logs have the same epoch")
		}
		data := []byte("data")
		var times []time.Time
		for i := range 5 {
			times = append(times, time.Now())
			e, err := l.Append(fmt.Sprint("key", i), data)
			if err != nil || e.Pos.Seq != uint64(i+1) || e.Pos.Epoch != start.Epoch {
				t.Fatalf("Append %d = %+v, %v", i, e, err)
			}
			time.Sleep(700 * time.Millisecond) // so that the log's clock is read anew
		}
		var b Batch
		if err := l.After(start, &b, Budget{}); err != nil || len(b.Entries) != 5 {
			t.Fatal(b, err)
		}
		prev := start
		for i, e := range b.Entries {
			if e.Pos.Seq != prev.Seq+1 || e.Prev != prev.Tag || e.Key != fmt.Sprint("key", i) || !e.At.Equal(times[i]) {
				t.Errorf("entry %d is %+v after %+v, appended at %v", i, e, prev, times[i])
			}
			if &e.Data[0] != &data[0] {
				t.Errorf("entry %d is a copy of the data", i)
			}
			prev = e.Pos
		}
		if b.To != prev || b.Head != prev || b.Conflated != 0 {
			t.Errorf("batch ends at %+v, head %+v, %d conflated", b.To, b.Head, b.Conflated)
		}
	})
}

// Every boundary at which another system is known to give a wrong answer.
func TestBoundariesOfReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Entries: 4, Age: time.Minute})
		at := fill(l, 10) // stored: 7 8 9 10
		other := New(Limits{}).Last(0)
		type answer struct {
			Reason Reason
			Missed uint64
			Data   string
		}
		check := func(reason string, p Position, want answer) {
			t.Helper()
			data, gap := after(l, p)
			got := answer{Data: data}
			if gap != nil {
				got = answer{gap.Reason, gap.Missed, data}
				oldest, head := l.Bounds()
				if diff := cmp.Diff(&GapError{Reason: want.Reason, Want: p, Oldest: oldest, Head: head, Missed: want.Missed}, gap); diff != "" {
					t.Errorf("%s: the gap (-want +got):\n%s", reason, diff)
				}
				if gap.Error() == "" || !strings.HasPrefix(gap.Error(), "replay: ") {
					t.Errorf("%s: message %q", reason, gap)
				}
				if _, again := after(l, gap.Oldest); again != nil {
					t.Errorf("%s: reading on at Oldest: %v", reason, again)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: (-want +got):\n%s", reason, diff)
			}
		}

		check("caught up", at[10], answer{})
		check("one behind", at[9], answer{Data: "10"})
		check("at the oldest stored", at[7], answer{Data: "8 9 10"})
		check("one before the oldest", at[6], answer{Data: "7 8 9 10"})
		check("two before the oldest", at[5], answer{ReasonTrimmed, 1, ""})
		check("at the start", at[0], answer{ReasonTrimmed, 6, ""})
		check("no position is not position 0", Position{}, answer{ReasonNone, 0, ""})
		check("ahead", Position{at[0].Epoch, 11, 1}, answer{ReasonAhead, 0, ""})
		check("far ahead", Position{at[0].Epoch, math.MaxUint64, 1}, answer{ReasonAhead, 0, ""})
		check("another epoch", Position{other.Epoch, 8, at[8].Tag}, answer{ReasonEpoch, 0, ""})
		check("the start of another epoch", other, answer{ReasonEpoch, 0, ""})
		check("epoch 0", Position{0, 8, at[8].Tag}, answer{ReasonEpoch, 0, ""})
		check("the head's number, another tag", forged(at[10]), answer{ReasonForked, 0, ""})
		check("a stored number, another tag", forged(at[8]), answer{ReasonForked, 0, ""})
		check("one before the oldest, another tag", forged(at[6]), answer{ReasonForked, 0, ""})
		check("trimmed, another tag: nobody can tell", forged(at[5]), answer{ReasonTrimmed, 1, ""})

		time.Sleep(time.Minute)
		synctest.Wait()
		if oldest, head := l.Bounds(); oldest != at[10] || head != at[10] {
			t.Errorf("emptied by age: bounds %+v, %+v, want the head %+v twice", oldest, head, at[10])
		}
		check("caught up on an emptied log", at[10], answer{})
		check("one behind on an emptied log", at[9], answer{ReasonTrimmed, 1, ""})
		check("the head's number with another tag on an emptied log", forged(at[10]), answer{ReasonForked, 0, ""})
		check("ahead on an emptied log", Position{at[0].Epoch, 11, 1}, answer{ReasonAhead, 0, ""})
		at = append(at, fill(l, 1)[1])
		check("after an emptied log went on", at[10], answer{Data: "1"})
		check("one before that", at[9], answer{ReasonTrimmed, 1, ""})

		l.Reset(Position{})
		head := l.Last(0)
		if head.Epoch == at[0].Epoch || head.Seq != 0 {
			t.Errorf("reset to %+v", head)
		}
		check("a reader from before the reset", at[11], answer{ReasonEpoch, 0, ""})
		check("the new start", head, answer{})
		check("number 0 with a tag", Position{head.Epoch, 0, 1}, answer{ReasonForked, 0, ""})
		first := fill(l, 1)[1]
		if first != (Position{head.Epoch, 1, first.Tag}) {
			t.Errorf("the first after the reset is %+v", first)
		}
		check("the first append after a reset", head, answer{Data: "1"})
		check("a reader from before the reset, later", at[11], answer{ReasonEpoch, 0, ""})

		to := Position{77, 1000, 5}
		l.Reset(to)
		check("reset to a position: there", to, answer{})
		check("reset to a position: one before", Position{77, 999, 5}, answer{ReasonTrimmed, 1, ""})
		check("reset to a position: its number, another tag", forged(to), answer{ReasonForked, 0, ""})
		if v := l.Insert(Entry{Pos: Position{77, 1001, 6}, Prev: 5, Data: []byte("x")}); v != Appended {
			t.Errorf("inserting the entry after a reset: %v", v)
		}
		check("reset to a position: and on", to, answer{Data: "x"})
	})
}

func TestNumbersNearTheTop(t *testing.T) {
	for _, limit := range []int{1, 3, 8, 100} {
		l := New(Limits{Entries: limit})
		l.Reset(Position{1, math.MaxUint64 - 20, 7})
		at := fill(l, 20)
		if head := l.Last(0); head.Seq != math.MaxUint64 {
			t.Fatalf("head %+v", head)
		}
		if e, err := l.Append("", nil); err != ErrExhausted || !e.Pos.IsZero() {
			t.Errorf("Append after the last number = %+v, %v", e, err)
		}
		stored := min(limit, 20)
		if got, gap := after(l, at[20-stored]); gap != nil || len(strings.Fields(got)) != stored {
			t.Errorf("limit %d: %q, %v", limit, got, gap)
		}
		if got, gap := after(l, at[20]); got != "" || gap != nil {
			t.Errorf("after the last number: %q, %v", got, gap)
		}
		if _, gap := after(l, Position{Epoch: 1}); gap == nil || gap.Missed != math.MaxUint64-uint64(stored) {
			t.Errorf("from the start: %+v", gap)
		}
		if v := l.Insert(Entry{Pos: Position{1, math.MaxUint64, at[20].Tag}}); v != Duplicate {
			t.Errorf("Insert of the head: %v", v)
		}
		if v := l.Insert(Entry{Pos: Position{1, 0, 0}}); v != TooOld {
			t.Errorf("Insert of number 0: %v", v)
		}
		l.Reset(Position{})
		if _, err := l.Append("", nil); err != nil {
			t.Errorf("Append after a reset: %v", err)
		}
	}
}

func TestVerdictsOfInsert(t *testing.T) {
	l := New(Limits{Entries: 3})
	l.Reset(Position{9, 100, 1})
	entry := func(seq uint64, tag, prev uint32) Entry {
		return Entry{Pos: Position{9, seq, tag}, Prev: prev, Data: fmt.Append(nil, seq)}
	}
	tests := []struct {
		reason string
		entry  Entry
		want   Verdict
	}{
		{"the position reset to", entry(100, 1, 0), Duplicate},
		{"its number, another tag", entry(100, 2, 0), Forked},
		{"before it", entry(99, 1, 0), TooOld},
		{"two ahead", entry(102, 3, 2), Missing},
		{"far ahead", entry(math.MaxUint64, 3, 2), Missing},
		{"the next, after another head", entry(101, 2, 9), Forked},
		{"the next", entry(101, 2, 1), Appended},
		{"the same again", entry(101, 2, 1), Duplicate},
		{"its number, another tag", entry(101, 7, 1), Forked},
		{"and on", entry(102, 3, 2), Appended},
		{"and on", entry(103, 4, 3), Appended},
		{"and on, 101 is dropped", entry(104, 5, 4), Appended},
		{"the oldest stored", entry(102, 3, 2), Duplicate},
		{"the one before the oldest", entry(101, 2, 1), Duplicate},
		{"its number, another tag", entry(101, 9, 1), Forked},
		{"further back: nobody can tell", entry(100, 1, 0), TooOld},
		{"another epoch", Entry{Pos: Position{10, 105, 6}, Prev: 5}, NewEpoch},
		{"epoch 0", Entry{Pos: Position{0, 105, 6}, Prev: 5}, NewEpoch},
	}
	for _, tt := range tests {
		_, before := l.Bounds()
		if got := l.Insert(tt.entry); got != tt.want {
			t.Errorf("%s: Insert(%+v) = %v, want %v", tt.reason, tt.entry.Pos, got, tt.want)
		}
		if _, head := l.Bounds(); tt.want != Appended && head != before {
			t.Errorf("%s: the head moved from %+v to %+v", tt.reason, before, head)
		}
	}
	if got, gap := after(l, Position{9, 101, 2}); got != "102 103 104" || gap != nil {
		t.Errorf("stored %q, %v", got, gap)
	}
	for v, want := range map[Verdict]string{Appended: "Appended", Duplicate: "Duplicate", Missing: "Missing", Forked: "Forked", NewEpoch: "NewEpoch", TooOld: "TooOld", 0: "Verdict(?)"} {
		if v.String() != want {
			t.Errorf("verdict %d is called %v", v, v)
		}
	}
}

func TestBoundInBytesCountsKeysAndKeepsTheNewest(t *testing.T) {
	l := New(Limits{Bytes: 10})
	start := l.Last(0)
	l.Append("key", []byte("1"))
	l.Append("key", []byte("2")) // 8 bytes
	if got, _ := after(l, start); got != "1 2" {
		t.Errorf("stored %q", got)
	}
	l.Append("", []byte("333")) // 11 bytes
	if got, _ := after(l, l.Last(99)); got != "2 333" {
		t.Errorf("stored %q", got)
	}
	l.Append("", []byte("a very long one"))
	if got, _ := after(l, l.Last(99)); got != "a very long one" {
		t.Errorf("stored %q", got)
	}
	l.Append("", nil)
	if got, _ := after(l, l.Last(99)); got != "" || l.Last(99) == l.Last(0) {
		t.Errorf("stored %q", got)
	}
}

func TestEntriesExpireByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Age: 64 * time.Second})
		for range 3 {
			l.Append("", []byte("x"))
			time.Sleep(10 * time.Second)
		}
		// Now 30 s; they come of age at 64, 74 and 84 s.
		for _, step := range []struct {
			sleep time.Duration
			want  int
		}{{34*time.Second - 1, 3}, {1, 2}, {10*time.Second - 1, 2}, {1, 1}, {10 * time.Second, 0}} {
			time.Sleep(step.sleep)
			synctest.Wait()
			oldest, head := l.Bounds()
			if got := int(head.Seq - oldest.Seq); got != step.want {
				t.Errorf("%d entries stored, want %d", got, step.want)
			}
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.ring != nil || l.meta != nil || l.armed {
			t.Error("an empty log holds memory or a timer")
		}
	})
}

// An entry inserted long after it was numbered is not dropped at once.
func TestAgeCountsFromWhenTheLogGotTheEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Age: time.Minute})
		l.Reset(Position{1, 0, 0})
		l.Insert(Entry{Pos: Position{1, 1, 1}, At: time.Now().Add(-time.Hour)})
		time.Sleep(time.Minute - 1)
		if oldest, head := l.Bounds(); oldest == head {
			t.Error("dropped too early")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if oldest, head := l.Bounds(); oldest != head {
			t.Error("not dropped")
		}
	})
}

func TestABusyLogDropsManyEntriesPerTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const age = 64 * time.Second
		l := New(Limits{Entries: -1, Bytes: -1, Age: age})
		for range 6400 {
			l.Append("", nil)
			time.Sleep(10 * time.Millisecond)
		}
		for range 70 {
			synctest.Wait()
			oldest, head := l.Bounds()
			var b Batch
			if err := l.After(oldest, &b, Budget{Entries: 1}); err != nil {
				t.Fatal(err)
			}
			if oldest != head {
				if old := time.Since(b.Entries[0].At); old > age+age/64+time.Millisecond {
					t.Fatalf("an entry is %v old", old)
				}
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if oldest, head := l.Bounds(); oldest != head {
			t.Error("entries left")
		}
	})
}

func TestMemoryIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Entries: 10_000, Bytes: -1, Age: time.Minute})
		heap := func() int64 {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		empty := heap()
		for i := range 10_000 {
			l.Append(fmt.Sprint(i), make([]byte, 1000))
		}
		full := heap() - empty
		if full < 10_000_000 {
			t.Fatalf("10000 entries of 1000 bytes take %d bytes", full)
		}
		if n := room(l); n != 16384 {
			t.Errorf("the ring has room for %d", n)
		}
		time.Sleep(59 * time.Second)
		for range 10 {
			l.Append("", nil)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := room(l); n > 64 {
			t.Errorf("with 10 entries the ring has room for %d", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if left := heap() - empty; left > full/100 {
			t.Errorf("empty again, %d bytes of %d are still held", left, full)
		}
		runtime.KeepAlive(l)
	})
}

// A dropped entry's data must not be held by the ring's memory.
func TestDroppedDataIsLetGo(t *testing.T) {
	l := New(Limits{Entries: 5}) // of the ring's 8 places
	freed := make(chan struct{})
	func() {
		big := make([]byte, 1<<16)
		runtime.AddCleanup(&big[0], func(struct{}) { close(freed) }, struct{}{})
		l.Append("", big)
	}()
	fill(l, 5)
	deadline := time.After(10 * time.Second)
	for {
		runtime.GC()
		select {
		case <-freed:
			runtime.KeepAlive(l)
			return
		case <-deadline:
			t.Fatal("the data of a dropped entry is still held")
		default:
			runtime.Gosched()
		}
	}
}

func TestBudgets(t *testing.T) {
	l := New(Limits{})
	start := l.Last(0)
	for i := range 10 {
		l.Append("k", make([]byte, i*10)) // sizes 1, 11, 21, … 91
	}
	tests := []struct {
		reason string
		after  uint64
		budget Budget
		want   int
	}{
		{"all", 0, Budget{}, 10},
		{"no limits", 0, Budget{-1, -1}, 10},
		{"by number", 0, Budget{Entries: 3}, 3},
		{"by number, across what is left", 8, Budget{Entries: 3}, 2},
		{"by bytes, exactly", 0, Budget{Bytes: 1 + 11 + 21}, 3},
		{"by bytes, one less", 0, Budget{Bytes: 1 + 11 + 20}, 2},
		{"one over the budget alone", 9, Budget{Bytes: 5}, 1},
		{"and then no second", 8, Budget{Bytes: 5}, 1},
		{"both, number first", 0, Budget{2, 33}, 2},
		{"both, bytes first", 0, Budget{4, 33}, 3},
		{"bytes beyond what the number takes", 0, Budget{2, 40}, 2},
	}
	for _, tt := range tests {
		p := start
		if tt.after > 0 {
			p = l.Last(10 - int(tt.after))
		}
		var b Batch
		if err := l.After(p, &b, tt.budget); err != nil || len(b.Entries) != tt.want {
			t.Errorf("%s: %d entries, %v, want %d", tt.reason, len(b.Entries), err, tt.want)
		}
		if want := p.Seq + uint64(tt.want); b.To.Seq != want || b.Head.Seq != 10 {
			t.Errorf("%s: ends at %d with head %d, want %d and 10", tt.reason, b.To.Seq, b.Head.Seq, want)
		}
	}
}

func TestLast(t *testing.T) {
	l := New(Limits{Entries: 4})
	at := fill(l, 10)
	for n, want := range map[int]Position{-5: at[10], 0: at[10], 1: at[9], 4: at[6], 5: at[6], math.MaxInt: at[6]} {
		if got := l.Last(n); got != want {
			t.Errorf("Last(%d) = %+v, want %+v", n, got, want)
		}
	}
}

func TestABatchIsUsedAgainWithoutAllocation(t *testing.T) {
	l := New(Limits{})
	fill(l, 300)
	p := l.Last(200)
	var b Batch
	read := func() {
		if err := l.After(p, &b, Budget{Entries: 100}); err != nil {
			t.Fatal(err)
		}
	}
	read()
	if n := testing.AllocsPerRun(100, read); n != 0 {
		t.Errorf("%v allocations for a read into a used batch", n)
	}
	if n := testing.AllocsPerRun(2000, func() { l.Append("", nil) }); n != 0 {
		t.Errorf("%v allocations for an append", n)
	}
	b = Batch{Entries: make([]Entry, 5), Conflated: 7}
	if err := l.After(Position{}, &b, Budget{}); err == nil || len(b.Entries) != 0 || b.Conflated != 0 {
		t.Errorf("after an error the batch is %+v", b)
	}
}

func TestABatchLetsGoOfWhatItNoLongerHolds(t *testing.T) {
	l := New(Limits{})
	fill(l, 100)
	var b Batch
	if err := l.After(l.Last(100), &b, Budget{}); err != nil {
		t.Fatal(err)
	}
	if err := l.After(l.Last(1), &b, Budget{}); err != nil || len(b.Entries) != 1 {
		t.Fatal(err)
	}
	for i, e := range b.Entries[1:100] {
		if e.Data != nil {
			t.Fatalf("entry %d is still held", i+1)
		}
	}
}

func TestADroppedLogIsFreedThoughItsTimerRuns(t *testing.T) {
	freed := make(chan struct{})
	func() {
		l := New(Limits{Age: time.Hour})
		p := NewPoller()
		p.Arm(l.Cursor(fill(l, 3)[3], nil))
		runtime.AddCleanup(l, func(struct{}) { close(freed) }, struct{}{})
	}()
	deadline := time.After(10 * time.Second)
	for {
		runtime.GC()
		select {
		case <-freed:
			return
		case <-deadline:
			t.Fatal("a log that nobody holds is still there")
		default:
			runtime.Gosched()
		}
	}
}

func TestKeysOfDroppedEntriesTakeNoMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Entries: 100_000, Bytes: -1, Age: time.Minute})
		heap := func() int64 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		empty := heap()
		for i := range 100_000 {
			l.Append(fmt.Sprint("key ", i), nil)
		}
		full := heap() - empty
		time.Sleep(59 * time.Second)
		l.Append("the last", nil)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if left := heap() - empty; left > full/100 {
			t.Errorf("with one entry left %d bytes of %d are still held", left, full)
		}
		runtime.KeepAlive(l)
	})
}

func TestInsertOfSeveralPassesOverDuplicatesAndStopsAtTheFirstThatDoesNotFit(t *testing.T) {
	chain := make([]Entry, 10)
	prev := Position{9, 100, 1}
	for i := range chain {
		chain[i] = Entry{Pos: Position{9, prev.Seq + 1, uint32(i + 2)}, Prev: prev.Tag, Data: fmt.Append(nil, i)}
		prev = chain[i].Pos
	}
	forged := chain[4]
	forged.Pos.Tag = 99
	tests := []struct {
		reason  string
		entries []Entry
		want    Verdict
		stored  string
	}{
		{"none", nil, 0, ""},
		{"a page", chain[:3], Appended, "0 1 2"},
		{"a page that overlaps", chain[1:5], Appended, "0 1 2 3 4"},
		{"nothing new", chain[2:5], Duplicate, "0 1 2 3 4"},
		{"a gap within", append(append([]Entry{}, chain[4:6]...), chain[8]), Missing, "0 1 2 3 4 5"},
		{"a fork first", append([]Entry{forged}, chain[6]), Forked, "0 1 2 3 4 5"},
	}
	l := New(Limits{})
	l.Reset(Position{9, 100, 1})
	for _, tt := range tests {
		if got := l.Insert(tt.entries...); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.reason, got, tt.want)
		}
		if got, gap := after(l, Position{9, 100, 1}); got != tt.stored || gap != nil {
			t.Errorf("%s: stored %q, %v, want %q", tt.reason, got, gap, tt.stored)
		}
	}
	if n := testing.AllocsPerRun(100, func() { l.Insert(chain[0]) }); n != 0 {
		t.Errorf("%v allocations for an Insert", n)
	}
}

// A node repairs its copy of a log that went back to an older state. Readers whose
// part of it is as it was do not notice, however unluckily they look.
func TestARepairInOneStepDisturbsNobodyElse(t *testing.T) {
	entries := func(from Position, n int, tag uint32) (chain []Entry) {
		for range n {
			e := Entry{Pos: Position{from.Epoch, from.Seq + 1, tag + uint32(from.Seq)}, Prev: from.Tag}
			chain = append(chain, e)
			from = e.Pos
		}
		return chain
	}
	start := Position{5, 1000, 7}
	common := entries(start, 90, 1)
	at90 := common[89].Pos
	l := New(Limits{})
	l.Reset(start, append(common, entries(at90, 10, 50_000)...)...)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for _, pos := range []Position{start, common[40].Pos, common[88].Pos, at90} {
		wg.Go(func() {
			var b Batch
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := l.After(pos, &b, Budget{Entries: 1}); err != nil || len(b.Entries) != 1 {
					t.Errorf("the reader at %d: %v, %d entries", pos.Seq, err, len(b.Entries))
					return
				}
			}
		})
	}
	for i := range 2000 {
		if v := l.Reset(start, append(common, entries(at90, 1+i%20, uint32(100_000*(i+2)))...)...); v != Appended {
			t.Errorf("Reset = %v", v)
		}
	}
	close(done)
	wg.Wait()
	if v := l.Reset(start, common[1]); v != Missing || l.Last(0) != start {
		t.Errorf("Reset with an entry that does not follow = %v, head %+v", v, l.Last(0))
	}
	l.Reset(Position{0, 5, 5})
	if head := l.Last(0); head.Epoch == 0 || head.Seq != 0 || head.Tag != 0 {
		t.Errorf("Reset with epoch 0: %+v", head)
	}
	l.Reset(Position{5, 0, 5})
	if head := l.Last(0); head != (Position{Epoch: 5}) {
		t.Errorf("Reset to number 0 with a tag: %+v", head)
	}
}

func TestGapErrorsSayWhatHappened(t *testing.T) {
	gap := GapError{Want: Position{1, 5, 1}, Head: Position{1, 9, 1}, Missed: 3}
	for reason, want := range map[Reason]string{
		ReasonTrimmed: "the 3 entries after number 5", ReasonEpoch: "new epoch", ReasonForked: "number 5 is now another entry",
		ReasonAhead: "ends at 9", ReasonNone: "no position", ReasonLagging: "4 entries behind", "moved": "after number 5: moved",
	} {
		gap.Reason = reason
		if got := gap.Error(); !strings.Contains(got, want) {
			t.Errorf("%q does not say %q", got, want)
		}
	}
}

var errStop = errors.New("stop")

func TestContextCauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{})
		c := l.Cursor(l.Last(0), nil)
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(errStop) })
		var b Batch
		if err := c.Next(ctx, &b, Budget{}); err != errStop {
			t.Errorf("Next = %v", err)
		}
		fill(l, 1)
		if err := c.Next(ctx, &b, Budget{}); err != errStop || len(b.Entries) != 0 {
			t.Errorf("Next with a context that has ended = %v, %d entries", err, len(b.Entries))
		}
		p := NewPoller()
		ctx, cancel = context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(errStop) })
		if n, err := p.Wait(ctx, make([]*Cursor, 1)); n != 0 || err != errStop {
			t.Errorf("Wait = %d, %v", n, err)
		}
		p.Arm(c)
		if n, err := p.Wait(ctx, make([]*Cursor, 1)); n != 0 || err != errStop {
			t.Errorf("Wait with a context that has ended = %d, %v", n, err)
		}
	})
}
