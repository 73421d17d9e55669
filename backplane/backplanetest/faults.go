package backplanetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/replay"
)

// faultRules are about what goes wrong. Each fault ends, for each subscriber, in
// contiguous delivery, or in exactly one Reset if something was really lost.
var faultRules = []rule{
	{"HintsDropped", "when all hints are lost, subscribers get every message all the same, by Read", nil, checkDropped},
	{"HintsRepeated", "a hint that comes twice is one message", nil, checkRepeated},
	{"HintsReordered", "hints that come late and out of order do not change the order", nil, checkReordered},
	{"Cut", "when connections break, and messages are published meanwhile, subscribers notice nothing (pad #1181)", func(h *Harness) bool { return h.Cut != nil }, checkCut},
	{"Refused", "while the store is away publishing fails with ErrUnavailable, subscribers wait, and notice nothing when it is back", func(h *Harness) bool { return h.Refuse != nil }, checkRefused},
	{"HalfOpen", "connections that carry nothing, without an error, are found and replaced (pad #1195, centrifugo #1189)", func(h *Harness) bool { return h.HalfOpen != nil }, checkHalfOpen},
	{"Interrupted", "after an interruption the sink is told of it, when hints flow again", func(h *Harness) bool { return h.Cut != nil }, checkInterrupted},
	{"Restart", "positions are valid across a restart, before the first append too, and numbers go on (Mercure bolt lastSeq)", func(h *Harness) bool { return h.Restart != nil }, checkRestart},
	{"Flush", "when all is lost, readers get exactly one Reset, also if numbers have got as far again (pad #1178)", func(h *Harness) bool { return h.Flush != nil }, checkFlush},
	{"FlushIDs", "an ID of an epoch that is gone is not a receipt", func(h *Harness) bool { return h.Flush != nil }, checkFlushIDs},
	{"Rollback", "after a rollback those who had read what is gone get one Reset, the others go on (centrifugo #664, SignalR #3091)", func(h *Harness) bool { return h.Save != nil }, checkRollback},
	{"RollbackResume", "a position in what was rolled back is refused, though its number is there again; one behind the fork is not", func(h *Harness) bool { return h.Save != nil }, checkRollbackResume},
	{"RollbackQuiet", "a rollback after which nothing is published is noticed too", func(h *Harness) bool { return h.Save != nil }, checkRollbackQuiet},
	{"Evict", "when what says how far numbers have got is lost, a new epoch begins, without leftovers (recovery note 4.3)", func(h *Harness) bool { return h.Evict != nil }, checkEvict},
	{"EvictEntries", "when only entries are lost, numbers go on, who missed nothing goes on, and others are told", func(h *Harness) bool { return h.EvictEntries != nil }, checkEvictEntries},
	{"Expire", "a reader who has read everything goes on when all entries are too old (AnyCable filterByOffset)", func(h *Harness) bool { return h.Expire != nil }, checkExpire},
}

// A lossy Backplane hurts the hints on their way to the sink.
type lossy struct {
	backplane.Backplane
	hurt func(deliver func()) // instead of deliver
}

func (l *lossy) Watch(s backplane.Sink) backplane.Watcher {
	return l.Backplane.Watch(&lossySink{s, l.hurt})
}

type lossySink struct {
	backplane.Sink
	hurt func(deliver func())
}

func (s *lossySink) Entry(topic string, e replay.Entry) {
	s.hurt(func() { s.Sink.Entry(topic, e) })
}
func (s *lossySink) Doorbell(topic string) { s.hurt(func() { s.Sink.Doorbell(topic) }) }

// deliver publishes n messages on one node and expects them at subscribers of
// another one that gets its hints hurt.
func (f *fixture) deliver(n int, hurt func(deliver func())) {
	a, b := f.open(), f.open()
	h := f.hub(&lossy{b, hurt})
	r := f.subscribe(h, "t", nil)
	want := some("m", n)
	for i, text := range want {
		f.append(a, "t", text)
		if i%8 == 7 {
			r.until(text) // so that it is not one Read for all
		}
	}
	r.expect(want...)
}

func checkDropped(f *fixture) { f.deliver(f.h.Entries, func(func()) {}) }

func checkRepeated(f *fixture) {
	f.deliver(f.h.Entries, func(deliver func()) { deliver(); deliver() })
}

func checkReordered(f *fixture) {
	var mu sync.Mutex
	var late []func()
	f.deliver(f.h.Entries, func(deliver func()) {
		mu.Lock()
		late = append(late, deliver)
		var now []func()
		if len(late) >= 3 {
			now, late = late, nil
		}
		mu.Unlock()
		for _, i := range rand.Perm(len(now)) {
			now[i]()
		}
	})
}

func checkCut(f *fixture) {
	a, b := f.open(), f.open()
	h := f.hub(b)
	readers := []*reader{f.subscribe(h, "t", nil), f.subscribe(h, "t", nil), f.subscribe(f.hub(a), "t", nil)}
	var want []string
	for round := range 5 {
		for i := range 6 {
			if i == 3 {
				f.h.Cut()
			}
			text := fmt.Sprintf("m%d-%d", round, i)
			f.append(a, "t", text)
			want = append(want, text)
		}
		readers[0].until(want[len(want)-1])
	}
	for _, r := range readers {
		r.expect(want...)
	}
}

func checkRefused(f *fixture) {
	a, b := f.open(), f.open()
	h := f.hub(b)
	r := f.subscribe(h, "t", nil)
	f.append(a, "t", "one")
	r.expect("one")
	heal := sync.OnceFunc(f.h.Refuse())
	f.Cleanup(heal)
	f.until("publishing fails", func() bool {
		ctx, cancel := context.WithTimeout(f.ctx, 5*time.Second)
		defer cancel()
		receipt, err := h.Publish(ctx, "u", backplane.Message{Data: []byte("x")})
		if err != nil && !errors.Is(err, backplane.ErrUnavailable) && ctx.Err() == nil {
			f.Errorf("publishing while the store is away: %v, which does not wrap ErrUnavailable", err)
		}
		if err != nil && receipt.Outcome != backplane.NotStored && receipt.Outcome != backplane.Unknown {
			f.Errorf("the outcome is %v", receipt.Outcome)
		}
		return err != nil
	})
	heal()
	f.append(a, "t", "two")
	r.expect("two")
	late := f.subscribe(h, "new", nil)
	f.append(a, "new", "three")
	late.expect("three")
}

func checkHalfOpen(f *fixture) {
	a, b := f.open(), f.open()
	h := f.hub(b)
	r := f.subscribe(h, "t", nil)
	f.append(a, "t", "one")
	r.expect("one")
	heal := sync.OnceFunc(f.h.HalfOpen())
	f.Cleanup(heal)
	time.AfterFunc(200*time.Millisecond, heal)
	f.append(a, "t", "two", "three")
	r.expect("two", "three")
	f.append(a, "t", "four")
	r.expect("four")
}

func checkInterrupted(f *fixture) {
	a, b := f.open(), f.open()
	s := &interruptions{spy: newSpy()}
	w := b.Watch(s)
	f.Cleanup(func() { w.Close() })
	if err := w.Add(f.ctx, "t"); err != nil {
		f.Fatalf("Add: %v", err)
	}
	before := s.count()
	f.h.Cut()
	f.until("the sink is told of the interruption", func() bool { return s.count() > before })
	told := s.told("t")
	f.append(a, "t", "after") // hints must flow by now
	f.until("the sink is told of what is appended after it was told of the interruption", func() bool { return s.told("t") > told })
	if f.h.Refuse == nil {
		return
	}
	heal := sync.OnceFunc(f.h.Refuse())
	f.Cleanup(heal)
	for range 10 {
		f.pause() // it may find out, but cannot do anything about it yet
	}
	before = s.count()
	heal()
	f.until("the sink is told of the interruption after the store is back", func() bool { return s.count() > before })
}

type interruptions struct {
	*spy
	n int // guarded by spy.mu
}

func (s *interruptions) Interrupted(err error, topics ...string) {
	s.spy.call(func() {
		if len(topics) == 0 || slices.Contains(topics, "t") {
			s.n++
		}
	})
}

func (s *interruptions) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

func checkRestart(f *fixture) {
	b := f.open()
	at := f.append(b, "t", some("m", 10)...)
	r := f.subscribe(f.hub(b), "t", nil)
	f.h.Restart()
	if got := texts(f.readAll(b, "t", at[7])); got != "m9 m10" {
		f.Fatalf("after the restart, what follows number 8 is %q", got)
	}
	if p, gap := f.read(b, "t", at[9], all); gap != nil || len(p.Entries) > 0 || p.Head != at[9] {
		f.Fatalf("after the restart, what follows the head is %+v, %v", p, gap)
	}
	again := f.append(b, "t", "m11")
	if again[0].Seq != 11 || again[0].Epoch != at[0].Epoch {
		f.Fatalf("the first append after the restart got %v", again[0])
	}
	resumed := f.subscribe(f.hub(f.open()), "t", &backplane.SubscribeOptions{After: at[8]})
	resumed.expect("m10", "m11")
	r.expect("m11")
}

func checkFlush(f *fixture) {
	a, b := f.open(), f.open()
	h := f.hub(b)
	live := f.subscribe(h, "t", nil)
	at := f.append(a, "t", some("m", 8)...)
	live.until("m8")
	live.seen = nil
	f.h.Flush()
	f.append(a, "t", some("n", 8)...) // the same numbers again
	live.until("n8")
	if len(live.resets) != 1 || live.resets[0].Reason != replay.ReasonEpoch {
		f.Fatalf("a subscriber that is there saw %q", live.seen)
	}
	if _, gap := f.read(a, "t", at[3], all); gap == nil || gap.Reason != replay.ReasonEpoch {
		f.Fatalf("reading after a position from before: %v", gap)
	}
	resumed := f.subscribe(f.hub(f.open()), "t", &backplane.SubscribeOptions{After: at[3]})
	resumed.expect(append([]string{"reset(epoch, 0)"}, some("n", 8)...)...)
	f.append(a, "t", "more")
	resumed.expect("more")
	live.until("more")
	if len(live.resets) != 1 {
		f.Fatalf("one more Reset: %+v", live.resets)
	}
}

func checkFlushIDs(f *fixture) {
	b := f.open()
	f.appendID(b, "t", "x", "one")
	f.h.Flush()
	if r := f.appendID(b, "t", "x", "one"); r.Outcome != backplane.Committed {
		f.Fatalf("the append of a message that was lost: %v", r.Outcome)
	}
	if got := texts(f.readAll(b, "t", f.start(b, "t"))); got != "one" {
		f.Fatalf("stored is %q", got)
	}
}

func checkRollback(f *fixture) {
	a, b := f.open(), f.open()
	h := f.hub(b)
	ahead, behind := f.subscribe(h, "t", nil), f.subscribe(h, "t", nil)
	f.append(a, "t", some("m", 5)...)
	ahead.until("m5")
	behind.until("m5") // and then reads no more until after the fork
	restore := f.h.Save()
	f.append(a, "t", some("lost", 5)...)
	ahead.until("lost5")
	ahead.seen, behind.seen = nil, nil
	restore()
	f.append(a, "t", some("n", 7)...) // numbers 6 to 12; the subscriber had seen 10
	ahead.until("n7")
	if len(ahead.resets) != 1 || !lostHistory(ahead.resets[0].Reason) {
		f.Fatalf("the subscriber that had seen what is gone saw %q", ahead.seen)
	}
	if last := ahead.seen[len(ahead.seen)-7:]; !slices.Equal(last, some("n", 7)) {
		f.Fatalf("it saw %q at the end", last)
	}
	behind.expect(some("n", 7)...)
}

func lostHistory(r replay.Reason) bool {
	return r == replay.ReasonForked || r == replay.ReasonAhead || r == replay.ReasonEpoch
}

func checkRollbackResume(f *fixture) {
	a := f.open()
	before := f.append(a, "t", some("m", 5)...)
	restore := f.h.Save()
	gone := f.append(a, "t", some("lost", 5)...)
	restore()
	f.append(a, "t", some("n", 7)...)
	for i, p := range gone {
		if page, gap := f.read(a, "t", p, all); gap == nil || gap.Reason != replay.ReasonForked && gap.Reason != replay.ReasonEpoch {
			f.Errorf("reading after number %d of what is gone: %q, %v", 6+i, texts(page.Entries), gap)
		}
	}
	if got := texts(f.readAll(a, "t", before[4])); got != "n1 n2 n3 n4 n5 n6 n7" {
		f.Errorf("reading after the fork: %q", got)
	}
	h := f.hub(f.open())
	f.subscribe(h, "t", &backplane.SubscribeOptions{After: before[2]}).expect("m4", "m5", "n1", "n2", "n3", "n4", "n5", "n6", "n7")
	r := f.subscribe(h, "t", &backplane.SubscribeOptions{After: gone[2]})
	r.until("n7")
	if len(r.resets) != 1 || r.seen[0] != fmt.Sprintf("reset(%s, 0)", r.resets[0].Reason) {
		f.Errorf("a resume in what is gone saw %q", r.seen)
	}
}

func checkRollbackQuiet(f *fixture) {
	a, b := f.open(), f.open()
	r := f.subscribe(f.hub(b), "t", nil)
	f.append(a, "t", "one")
	restore := f.h.Save()
	f.append(a, "t", "two")
	r.expect("one", "two")
	restore()
	for len(r.resets) == 0 {
		r.next()
	}
	f.append(a, "t", "three")
	r.until("three")
	if len(r.resets) != 1 || !lostHistory(r.resets[0].Reason) {
		f.Fatalf("the subscriber saw %q", r.seen)
	}
}

func checkEvict(f *fixture) {
	a := f.open()
	live := f.subscribe(f.hub(f.open()), "t", nil)
	at := f.append(a, "t", some("m", 6)...)
	live.until("m6")
	f.h.Evict("t")
	if _, gap := f.read(a, "t", at[2], all); gap == nil || gap.Reason != replay.ReasonEpoch {
		f.Fatalf("reading after a position from before: %v", gap)
	}
	new := f.append(a, "t", "n1", "n2")
	if new[0].Epoch == at[0].Epoch || new[0].Seq != 1 {
		f.Fatalf("the next append got %v, after %v", new[0], at[5])
	}
	if got := texts(f.readAll(a, "t", f.start(a, "t"))); got != "n1 n2" {
		f.Fatalf("leftovers: %q", got)
	}
	live.seen = nil
	live.until("n2")
	if len(live.resets) != 1 {
		f.Fatalf("the subscriber saw %q", live.seen)
	}
	// The read may be what comes first after the loss.
	f.h.Evict("t")
	if got := f.readAll(a, "t", f.start(a, "t")); len(got) > 0 {
		f.Fatalf("a Read before the first append returned leftovers: %q", texts(got))
	}
}

func checkEvictEntries(f *fixture) {
	a := f.open()
	at := f.append(a, "t", some("m", 6)...)
	f.h.EvictEntries("t")
	p, gap := f.read(a, "t", at[5], all)
	if gap == nil && (len(p.Entries) > 0 || p.Head != at[5]) || gap != nil && !lostHistory(gap.Reason) {
		f.Fatalf("reading after the head: %+v, %v", p, gap)
	}
	if _, gap := f.read(a, "t", at[3], all); gap == nil {
		f.Fatalf("entries that are gone can be read")
	}
	r := f.subscribe(f.hub(f.open()), "t", &backplane.SubscribeOptions{After: at[5]})
	f.append(a, "t", "m7")
	r.until("m7")
	if len(r.resets) > 1 {
		f.Fatalf("the subscriber saw %q", r.seen)
	}
	old := f.subscribe(f.hub(f.open()), "t", &backplane.SubscribeOptions{After: at[3]})
	old.until("m7")
	if len(old.resets) != 1 {
		f.Fatalf("a subscriber that missed some saw %q", old.seen)
	}
}

func checkExpire(f *fixture) {
	a := f.open()
	at := f.append(a, "t", some("m", 6)...)
	f.h.Expire("t")
	if p, gap := f.read(a, "t", at[5], all); gap != nil || len(p.Entries) > 0 || p.Head != at[5] {
		f.Fatalf("reading after the head: %+v, %v", p, gap)
	}
	if _, gap := f.read(a, "t", at[3], all); gap == nil || gap.Reason != replay.ReasonTrimmed || gap.Missed != 2 {
		f.Fatalf("reading what is too old: %v", gap)
	}
	forked := at[5]
	forked.Tag ^= 1
	if _, gap := f.read(a, "t", forked, all); gap == nil || gap.Reason != replay.ReasonForked {
		f.Fatalf("the head's identity is forgotten: %v", gap)
	}
	r := f.subscribe(f.hub(f.open()), "t", &backplane.SubscribeOptions{After: at[5]})
	f.append(a, "t", "m7")
	r.expect("m7")
}
