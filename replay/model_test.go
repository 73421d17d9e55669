package replay

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-ws/holdfast/internal/verify"
)

var modelOps = flag.Int("model.ops", 1_000_000, "random operations of the model test, all seeds together")

// A model is a log as one would write it who had all the time in the world: a
// slice that is searched from the start for everything.
type model struct {
	limits Limits
	head   Position
	stored []modelEntry
	timer  time.Time // when the log's timer is due; zero while it is not set
}

type modelEntry struct {
	Entry
	got time.Time
}

func size(e Entry) int64 { return int64(len(e.Data)) + int64(len(e.Key)) }

// oldest is the place before the first entry stored.
func (m *model) oldest() Position {
	if len(m.stored) == 0 {
		return m.head
	}
	e := m.stored[0]
	return Position{e.Pos.Epoch, e.Pos.Seq - 1, e.Prev}
}

func (m *model) bytes() (sum int64) {
	for _, e := range m.stored {
		sum += size(e.Entry)
	}
	return sum
}

func (m *model) expire(now time.Time) {
	for m.limits.Age > 0 && len(m.stored) > 0 && now.Sub(m.stored[0].got) >= m.limits.Age {
		m.stored = m.stored[1:]
	}
}

func (m *model) add(e Entry, now time.Time) {
	m.expire(now)
	m.stored = append(m.stored, modelEntry{e, now})
	m.head = e.Pos
	for m.limits.Entries > 0 && len(m.stored) > m.limits.Entries {
		m.stored = m.stored[1:]
	}
	for m.limits.Bytes > 0 && len(m.stored) > 1 && m.bytes() > m.limits.Bytes {
		m.stored = m.stored[1:]
	}
	if m.timer.IsZero() && m.limits.Age > 0 {
		m.timer = now.Add(m.limits.Age)
	}
}

// elapse lets the timer run that is due by now.
func (m *model) elapse(now time.Time) {
	for !m.timer.IsZero() && !m.timer.After(now) {
		at := m.timer
		m.timer = time.Time{}
		m.expire(at)
		if len(m.stored) > 0 {
			m.timer = at.Add(max(m.stored[0].got.Add(m.limits.Age).Sub(at), m.limits.Age/64, time.Millisecond))
		}
	}
}

func (m *model) insert(e Entry, now time.Time) Verdict {
	switch {
	case e.Pos.Epoch != m.head.Epoch:
		return NewEpoch
	case m.head.Seq < math.MaxUint64 && e.Pos.Seq == m.head.Seq+1:
		if e.Prev != m.head.Tag {
			return Forked
		}
		m.add(e, now)
		return Appended
	case e.Pos.Seq > m.head.Seq:
		return Missing
	}
	known := []Position{m.head, m.oldest()}
	for _, s := range m.stored {
		known = append(known, s.Pos)
	}
	for _, p := range known {
		if p == e.Pos {
			return Duplicate
		}
		if p.Seq == e.Pos.Seq {
			return Forked
		}
	}
	return TooOld
}

func (m *model) insertAll(entries []Entry, now time.Time) (v Verdict) {
	for _, e := range entries {
		if v = m.insert(e, now); v != Appended && v != Duplicate {
			return v
		}
	}
	return v
}

// after is what reading after p gives.
func (m *model) after(p Position, budget Budget, conflate bool) (b Batch, err error) {
	gap := func(reason Reason, missed uint64) (Batch, error) {
		return Batch{To: p, Head: m.head}, &GapError{Reason: reason, Want: p, Oldest: m.oldest(), Head: m.head, Missed: missed}
	}
	b = Batch{To: p, Head: m.head}
	oldest := m.oldest()
	switch {
	case p.IsZero():
		return gap(ReasonNone, 0)
	case p.Epoch != m.head.Epoch:
		return gap(ReasonEpoch, 0)
	case p.Seq > m.head.Seq:
		return gap(ReasonAhead, 0)
	case p.Seq < oldest.Seq:
		return gap(ReasonTrimmed, oldest.Seq-p.Seq)
	case p.Seq == oldest.Seq && p != oldest:
		return gap(ReasonForked, 0)
	}
	for _, e := range m.stored {
		if e.Pos.Seq == p.Seq && e.Pos != p {
			return gap(ReasonForked, 0)
		}
	}
	if budget.Entries == 0 {
		budget.Entries = 256
	}
	if budget.Bytes == 0 {
		budget.Bytes = 65536
	}
	var total int64
	for i, e := range m.stored {
		if e.Pos.Seq <= p.Seq {
			continue
		}
		if budget.Entries > 0 && len(b.Entries) == budget.Entries {
			break
		}
		obsolete := false
		for _, later := range m.stored[i+1:] {
			obsolete = obsolete || e.Key != "" && later.Key == e.Key
		}
		if conflate && obsolete {
			b.Conflated++
		} else {
			total += size(e.Entry)
			if budget.Bytes > 0 && len(b.Entries) > 0 && total > budget.Bytes {
				break
			}
			b.Entries = append(b.Entries, e.Entry)
		}
		b.To = e.Pos
	}
	return b, nil
}

// read is what a cursor at p with a lag limit gets.
func (m *model) read(p Position, budget Budget, lag *Lag) (Batch, error) {
	over := func(p Position) bool {
		entries, bytes := m.lag(p)
		return lag != nil && (lag.Entries > 0 && entries > uint64(lag.Entries) || lag.Bytes > 0 && bytes > lag.Bytes)
	}
	b, err := m.after(p, budget, over(p) && lag.Conflate)
	if lag == nil || lag.Conflate {
		return b, err
	}
	var gap *GapError
	if err == nil && over(p) {
		gap = &GapError{Reason: ReasonLagging, Want: p, Oldest: p, Head: m.head}
		b, err = Batch{To: p, Head: m.head}, gap
	}
	if errors.As(err, &gap) && over(gap.Oldest) {
		places := []Position{m.head}
		for i := len(m.stored) - 1; i >= 0; i-- {
			e := m.stored[i]
			place := Position{e.Pos.Epoch, e.Pos.Seq - 1, e.Prev}
			if over(place) {
				break
			}
			places = append(places, place)
		}
		gap.Oldest = places[len(places)-1]
		if gap.Reason == ReasonTrimmed || gap.Reason == ReasonLagging {
			gap.Missed = gap.Oldest.Seq - p.Seq
		}
	}
	return b, err
}

func (m *model) lag(p Position) (entries uint64, bytes int64) {
	if _, err := m.after(p, Budget{}, false); err != nil {
		return 0, 0
	}
	for _, e := range m.stored {
		if e.Pos.Seq > p.Seq {
			entries++
			bytes += size(e.Entry)
		}
	}
	return entries, bytes
}

// A duel runs the same operations on a log and on a model.
type duel struct {
	log     *Log
	model   *model
	rnd     *rand.Rand
	follow  bool     // the log is fed by Insert and not by Append
	source  []Entry  // what there is to insert, of the current epoch, oldest first
	from    Position // what the source follows
	known   []Position
	cursors []*Cursor
	batch   Batch
	seen    map[string]int // verdicts and reasons, counted
}

func newDuel(rnd *rand.Rand, seen map[string]int) *duel {
	pick := func(ns ...int64) int64 { return ns[rnd.IntN(len(ns))] }
	limits := Limits{
		Entries: int(pick(-1, 1, 2, 3, 7, 8, 9, 30)),
		Bytes:   pick(-1, 1, 20, 100, 1000),
		Age:     time.Duration(pick(-1, -1, 1, int64(time.Second), int64(time.Minute), int64(time.Hour))),
	}
	if limits.Entries < 0 && limits.Age < 0 && limits.Bytes < 0 {
		limits.Entries = 50 // the model is slow
	}
	if limits.Entries < 0 && limits.Bytes < 0 {
		limits.Bytes = 300
	}
	d := &duel{log: New(limits), model: &model{limits: limits}, rnd: rnd, follow: rnd.IntN(2) == 0, seen: seen}
	d.model.head = d.log.Last(0)
	if rnd.IntN(4) == 0 {
		d.reset(Position{rnd.Uint64(), math.MaxUint64 - uint64(rnd.IntN(200)), rnd.Uint32()})
	}
	d.known = append(d.known, d.model.head)
	d.from = d.model.head
	for range 8 {
		var lag *Lag
		if rnd.IntN(3) > 0 {
			lag = &Lag{Entries: rnd.IntN(6) - 1, Bytes: pick(-1, 0, 5, 50), Conflate: rnd.IntN(2) == 0}
		}
		d.cursors = append(d.cursors, d.log.Cursor(d.model.head, lag))
	}
	return d
}

func (d *duel) reset(p Position) {
	d.log.Reset(p)
	d.model.stored = nil
	if p.Seq == 0 {
		p.Tag = 0
	}
	d.model.head = p
	if p.Epoch == 0 {
		d.model.head = d.log.Last(0)
	}
	d.source, d.from = nil, d.model.head
	d.known = append(d.known, d.model.head)
}

// entry makes the entry after prev, with few different keys and sizes.
func (d *duel) entry(prev Position) Entry {
	e := Entry{Pos: Position{prev.Epoch, prev.Seq + 1, d.rnd.Uint32()}, Prev: prev.Tag, Data: make([]byte, d.rnd.IntN(12))}
	if d.rnd.IntN(2) == 0 {
		e.Key = string(rune('a' + d.rnd.IntN(5)))
	}
	return e
}

// top is the newest entry that the source has given a number to.
func (d *duel) top() Position {
	if len(d.source) == 0 {
		return d.from
	}
	return d.source[len(d.source)-1].Pos
}

// step does one operation on both and returns how they differ.
func (d *duel) step() error {
	switch n := d.rnd.IntN(100); {
	case n < 40:
		return d.write()
	case n < 45:
		time.Sleep(time.Duration(d.rnd.Int64N(int64(max(2, d.model.limits.Age/3, time.Millisecond)))))
		synctest.Wait()
	case n < 46 && d.rnd.IntN(10) == 0:
		switch d.rnd.IntN(4) {
		case 0:
			d.reset(Position{})
		case 1:
			d.reset(d.known[d.rnd.IntN(len(d.known))])
		case 2: // a little back or forward in the same epoch, as after a rollback
			p := d.model.head
			p.Seq = max(1, p.Seq-uint64(d.rnd.IntN(5)))
			p.Tag = d.rnd.Uint32()
			d.reset(p)
		case 3: // without a break
			d.reset(d.model.head)
		}
	case n < 75:
		return d.read(d.cursors[d.rnd.IntN(len(d.cursors))])
	case n < 80:
		return d.tail()
	default:
		return d.after()
	}
	return nil
}

func (d *duel) write() error {
	if !d.follow {
		e := d.entry(d.model.head)
		got, err := d.log.Append(e.Key, e.Data)
		if d.model.head.Seq == math.MaxUint64 {
			if err != ErrExhausted || !got.Pos.IsZero() {
				return fmt.Errorf("Append = %+v, %v, want ErrExhausted", got, err)
			}
			return nil
		}
		e.Pos.Tag, e.At = got.Pos.Tag, time.Now()
		if got.Pos != e.Pos || got.Prev != e.Prev || got.Key != e.Key || !got.At.Equal(e.At) || err != nil {
			return fmt.Errorf("Append = %+v, %v, want %+v", got, err, e)
		}
		d.model.elapse(time.Now())
		d.model.add(e, time.Now())
		d.known = append(d.known, got.Pos)
		return nil
	}

	// The source goes on, and now and then back to an older state.
	if top := d.top(); top.Seq < math.MaxUint64 {
		d.source = append(d.source, d.entry(top))
	}
	if d.rnd.IntN(40) == 0 && len(d.source) > 0 {
		d.source = d.source[:d.rnd.IntN(len(d.source))]
	}
	if len(d.source) > 60 {
		d.from = d.source[0].Pos
		d.source = d.source[1:]
	}
	// The log gets the next of its entries, or any, or a page, or a forgery.
	var entries []Entry
	next := 0
	for next < len(d.source) && d.source[next].Pos.Seq <= d.model.head.Seq {
		next++
	}
	switch n := d.rnd.IntN(20); {
	case n < 10 && next < len(d.source):
		entries = d.source[next : next+1]
	case n < 14 && next < len(d.source):
		from := max(0, next-d.rnd.IntN(3))
		entries = d.source[from : from+d.rnd.IntN(len(d.source)-from+1)]
	case n < 18 && len(d.source) > 0:
		i := d.rnd.IntN(len(d.source))
		entries = d.source[i : i+1]
	case n == 18: // what nobody has given
		entries = []Entry{d.entry(d.known[d.rnd.IntN(len(d.known))])}
	case n == 19: // of another epoch
		entries = []Entry{d.entry(Position{d.rnd.Uint64N(2), d.rnd.Uint64(), 0})}
	}
	d.model.elapse(time.Now())
	got, want := d.log.Insert(entries...), d.model.insertAll(entries, time.Now())
	if got != want {
		return fmt.Errorf("Insert of %d from %+v = %v, want %v", len(entries), entries, got, want)
	}
	d.seen[got.String()]++
	d.known = append(d.known, d.model.head)
	switch got {
	case Missing, Forked, TooOld, NewEpoch:
		if d.rnd.IntN(3) == 0 { // repair, as a node does
			from := max(0, len(d.source)-d.rnd.IntN(30))
			after := d.from
			if from > 0 {
				after = d.source[from-1].Pos
			}
			page := d.source[from:]
			d.model.stored, d.model.head = nil, after
			wantV := Appended
			if len(page) > 0 {
				wantV = d.model.insertAll(page, time.Now())
			}
			if v := d.log.Reset(after, page...); v != wantV {
				return fmt.Errorf("Reset with %d entries = %v, want %v", len(page), v, wantV)
			}
			d.known = append(d.known, d.model.head)
		}
	}
	return nil
}

func (d *duel) budget() Budget {
	return Budget{Entries: d.rnd.IntN(12) - 1, Bytes: int64(d.rnd.IntN(60) - 1)}
}

// position is one that was true once, or a forgery of one.
func (d *duel) position() Position {
	p := d.known[len(d.known)-1-min(len(d.known)-1, d.rnd.IntN(1+d.rnd.IntN(60)))]
	switch d.rnd.IntN(12) {
	case 0:
		p.Tag ^= 1
	case 1:
		p.Seq += uint64(d.rnd.IntN(9)) - 4
	case 2:
		p.Epoch ^= 1
	case 3:
		p = Position{}
	case 4:
		p.Seq = d.rnd.Uint64()
	}
	return p
}

func (d *duel) after() error {
	p, budget := d.position(), d.budget()
	err := d.log.After(p, &d.batch, budget)
	want, wantErr := d.model.after(p, budget, false)
	d.count(want, wantErr)
	return compare(fmt.Sprintf("After(%+v, %+v)", p, budget), d.batch, err, want, wantErr)
}

func (d *duel) tail() error {
	budget := d.budget()
	if budget.Entries == 0 {
		budget.Entries = 256
	}
	if budget.Bytes == 0 {
		budget.Bytes = 65536
	}
	want := Batch{To: d.model.head, Head: d.model.head}
	bytes := int64(0)
	for i := len(d.model.stored) - 1; i >= 0; i-- {
		e := d.model.stored[i].Entry
		bytes += size(e)
		if n := len(want.Entries); n > 0 && (budget.Entries > 0 && n == budget.Entries || budget.Bytes > 0 && bytes > budget.Bytes) {
			break
		}
		want.Entries = append([]Entry{e}, want.Entries...)
	}
	d.log.Tail(&d.batch, budget)
	if err := compare(fmt.Sprintf("Tail(%+v)", budget), d.batch, nil, want, nil); err != nil {
		return err
	}
	p := d.position()
	at, ok := d.log.At(p.Seq)
	wantAt, wantOK := Position{}, false
	if p.Seq == d.model.head.Seq {
		wantAt, wantOK = d.model.head, true
	} else if oldest := d.model.oldest(); p.Seq == oldest.Seq {
		wantAt, wantOK = oldest, true
	}
	for _, e := range d.model.stored {
		if e.Pos.Seq == p.Seq {
			wantAt, wantOK = e.Pos, true
		}
	}
	if at != wantAt || ok != wantOK {
		return fmt.Errorf("At(%d) = %+v, %t, want %+v, %t", p.Seq, at, ok, wantAt, wantOK)
	}
	return nil
}

func (d *duel) read(c *Cursor) error {
	if d.rnd.IntN(10) == 0 {
		c.Seek(d.position())
	}
	p, budget := c.Position(), d.budget()
	entries, bytes := c.Lag()
	if wantEntries, wantBytes := d.model.lag(p); entries != wantEntries || bytes != wantBytes {
		return fmt.Errorf("Lag at %+v = %d, %d, want %d, %d", p, entries, bytes, wantEntries, wantBytes)
	}
	err := c.Read(&d.batch, budget)
	want, wantErr := d.model.read(p, budget, c.lag)
	d.count(want, wantErr)
	if err := compare(fmt.Sprintf("Read at %+v with %+v, lag %+v", p, budget, c.lag), d.batch, err, want, wantErr); err != nil {
		return err
	}
	if c.Position() != want.To {
		return fmt.Errorf("Read moves the cursor from %+v to %+v, want %+v", p, c.Position(), want.To)
	}
	var gap *GapError
	if errors.As(err, &gap) {
		c.Seek(gap.Oldest) // from there it can go on, always
		if err := c.Read(&d.batch, budget); err != nil {
			return fmt.Errorf("at the Oldest of %+v: %w", *gap, err)
		}
		c.Seek([]Position{gap.Oldest, gap.Head, p}[d.rnd.IntN(3)])
	}
	return nil
}

func (d *duel) count(b Batch, err error) {
	var gap *GapError
	switch {
	case errors.As(err, &gap):
		d.seen[string(gap.Reason)]++
	case b.Conflated > 0:
		d.seen["conflated"]++
	case b.To != b.Head:
		d.seen["part"]++
	case len(b.Entries) == 0:
		d.seen["nothing"]++
	default:
		d.seen["all"]++
	}
}

// check compares all that can be seen of the state.
func (d *duel) check() error {
	d.model.elapse(time.Now())
	oldest, head := d.log.Bounds()
	d.log.mu.Lock()
	bytes := d.log.bytes
	d.log.mu.Unlock()
	room := room(d.log)
	if oldest != d.model.oldest() || head != d.model.head {
		return fmt.Errorf("bounds %+v, %+v, want %+v, %+v", oldest, head, d.model.oldest(), d.model.head)
	}
	if bytes != d.model.bytes() {
		return fmt.Errorf("%d bytes stored, want %d", bytes, d.model.bytes())
	}
	if n := d.rnd.IntN(10) - 1; n <= len(d.model.stored) {
		want := d.model.head
		if n > 0 {
			e := d.model.stored[len(d.model.stored)-n]
			want = Position{e.Pos.Epoch, e.Pos.Seq - 1, e.Prev}
		}
		if got := d.log.Last(n); got != want {
			return fmt.Errorf("Last(%d) = %+v, want %+v", n, got, want)
		}
	}
	if n := len(d.model.stored); n == 0 && room > 8 || room > 8 && room >= 8*n {
		return fmt.Errorf("the ring has room for %d with %d entries", room, n)
	}
	return nil
}

func compare(what string, got Batch, err error, want Batch, wantErr error) error {
	if fmt.Sprint(err) != fmt.Sprint(wantErr) {
		return fmt.Errorf("%s: error %v, want %v", what, err, wantErr)
	}
	var gap, wantGap *GapError
	if errors.As(err, &gap) && errors.As(wantErr, &wantGap) && *gap != *wantGap {
		return fmt.Errorf("%s (-want +got):\n%s", what, cmp.Diff(wantGap, gap))
	}
	if len(got.Entries) != len(want.Entries) || got.Conflated != want.Conflated || got.To != want.To || got.Head != want.Head {
		return fmt.Errorf("%s (-want +got):\n%s", what, cmp.Diff(want, got))
	}
	for i, e := range got.Entries {
		w := want.Entries[i]
		if e.Pos != w.Pos || e.Prev != w.Prev || e.Key != w.Key || len(e.Data) != len(w.Data) || !e.At.Equal(w.At) {
			return fmt.Errorf("%s: entry %d (-want +got):\n%s", what, i, cmp.Diff(w, e))
		}
	}
	return nil
}

// A million random operations on logs of all kinds give the same answers as the
// model. A failure names its seed; -run with the same name repeats it.
func TestModel(t *testing.T) {
	const perSeed = 5000
	seeds := max(1, *modelOps/perSeed)
	if !verify.On() {
		seeds = min(seeds, 20)
	}
	seen := map[string]int{}
	for seed := range seeds {
		if err := runModel(t, uint64(seed), perSeed, seen); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	for _, answer := range []string{
		"Appended", "Duplicate", "Missing", "Forked", "NewEpoch", "TooOld",
		"trimmed", "epoch", "forked", "ahead", "no position", "lagging",
		"conflated", "part", "nothing", "all",
	} {
		if seen[answer] < seeds {
			t.Errorf("the answer %q came only %d times: the model does not test it", answer, seen[answer])
		}
	}
	verify.Report(t, "%d seeds, %d operations agree", seeds, seeds*perSeed)
	t.Log(seen)
}

func runModel(t *testing.T, seed uint64, ops int, seen map[string]int) (err error) {
	synctest.Test(t, func(t *testing.T) {
		d := newDuel(rand.New(rand.NewPCG(seed, 1)), seen)
		var last []string
		for i := range ops {
			d.model.elapse(time.Now())
			before := fmt.Sprintf("head %d, %d stored", d.model.head.Seq, len(d.model.stored))
			if err = d.step(); err == nil {
				err = d.check()
			}
			if last = append(last, before); len(last) > 10 {
				last = last[1:]
			}
			if err != nil {
				err = fmt.Errorf("operation %d, follow %v, limits %+v: %w\nbefore the last ones: %s", i, d.follow, d.model.limits, err, strings.Join(last, "; "))
				return
			}
		}
	})
	return err
}
