package torture

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/replay"
)

// at returns an entry of a topic t that was stored and seen at second n.
func at(n int, epoch uint64, seq uint64, payload string) Event {
	when := time.Unix(int64(n), 0)
	return Event{At: when, Stored: when, Topic: "t", Pos: replay.Position{Epoch: epoch, Seq: seq, Tag: uint32(epoch*1000 + seq)}, Payload: payload}
}

func reset(n int, reason replay.Reason, missed uint64) Event {
	return Event{At: time.Unix(int64(n), 0), Topic: "t", Reset: reason, Missed: missed}
}

func with(e Event, f func(*Event)) Event { f(&e); return e }

func TestTheCheckerFindsWhatIsWrongAndNothingElse(t *testing.T) {
	one, two, three, four := at(1, 1, 1, "a"), at(2, 1, 2, "b"), at(3, 1, 3, "c"), at(4, 1, 4, "d")
	again := at(5, 2, 1, "e")
	lost := func(r *Record) { r.Losses = []time.Time{time.Unix(4, 5e8)} }
	for _, tt := range []struct {
		reason string
		seen   []Event
		change func(*Record)
		want   string // the beginning of each violation
	}{
		{"a clean record", []Event{one, two, three, four}, nil, ""},
		{"a late start is no gap", []Event{three, four}, nil, ""},
		{"a loss", []Event{one, two, four}, nil, "I4"},
		{"a duplicate", []Event{one, two, two, three, four}, nil, "I2"},
		{"disorder", []Event{two, one, four}, nil, "I1 I4"},
		{"a lost tail", []Event{one, two, three}, nil, "I6"},
		{"a wrong payload", []Event{one, two, with(three, func(e *Event) { e.Payload = "x" }), four}, nil, "I3"},
		{"two acknowledgements of one position", []Event{one, two, three, four}, func(r *Record) {
			r.Acked = append(r.Acked, with(four, func(e *Event) { e.Payload = "x" }))
		}, "I0 I3"},
		{"one message stored twice", []Event{one, two, three, four}, func(r *Record) {
			r.Acked = append(r.Acked, with(at(4, 1, 5, "d"), func(e *Event) {}))
		}, "I0"},
		{"a true trimmed Reset", []Event{one, reset(4, replay.ReasonTrimmed, 1), three, four}, nil, ""},
		{"one before an acknowledgement that is late", []Event{one, reset(4, replay.ReasonTrimmed, 1), three, four}, func(r *Record) {
			r.Acked[3].At = time.Unix(9, 0)
		}, ""},
		{"one before what is stored later", []Event{one, reset(4, replay.ReasonTrimmed, 1), three, with(four, func(e *Event) { e.Stored = time.Unix(5, 0) })}, func(r *Record) {
			r.Acked[3].At = time.Unix(9, 0)
		}, "I5"},
		{"one without a number", []Event{one, reset(4, replay.ReasonTrimmed, 0), three, four}, nil, "I5"},
		{"one with a wrong number", []Event{one, reset(4, replay.ReasonTrimmed, 2), three, four}, nil, "I5"},
		{"one while all was there", []Event{one, reset(3, replay.ReasonTrimmed, 1), three, four}, nil, "I5"},
		{"a Reset for nothing", []Event{one, two, reset(3, replay.ReasonForked, 0), one, two, three, four}, nil, "I5"},
		{"a new epoch after a loss", []Event{one, two, three, four, reset(5, replay.ReasonEpoch, 0), again}, lost, ""},
		{"a second Reset for one loss", []Event{one, two, three, four, reset(5, replay.ReasonEpoch, 0), again, reset(6, replay.ReasonEpoch, 0)}, lost, "I5"},
		{"a Reset after which not all comes that is left", []Event{one, two, three, four, reset(5, replay.ReasonEpoch, 0), at(6, 2, 2, "f")}, lost, "I5 I6"},
		{"a new epoch in silence", []Event{one, two, three, four, again}, lost, "I4"},
		{"two histories spliced", []Event{one, two, with(three, func(e *Event) { e.Pos.Tag++ }), four}, func(r *Record) {
			r.Seen["other"] = []Event{one, two, three, four}
		}, "I3"},
	} {
		r := Record{
			Acked: []Event{one, two, three, four}, Seen: map[string][]Event{"s": tt.seen}, Retention: 2,
			Ends: map[string]replay.Position{"s": tt.seen[len(tt.seen)-1].Pos}, Topics: map[string]string{"s": "t"},
			Heads: map[string]replay.Position{"t": four.Pos},
		}
		if strings.Contains(tt.reason, "epoch") || strings.Contains(tt.reason, "second Reset") {
			r.Heads["t"] = again.Pos
			r.Ends["s"] = again.Pos
		}
		if tt.change != nil {
			tt.change(&r)
		}
		var got []string
		for _, v := range r.Check() {
			got = append(got, v.Text[:2])
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: found %q, want %q: %v", tt.reason, strings.Join(got, " "), tt.want, r.Check())
		}
	}
}

// These accusations were false, in one of some thousand seeds.
func TestTheCheckerDoesNotAccuseWrongly(t *testing.T) {
	lost := func(n int, events ...Event) (out []Event) {
		for _, e := range events {
			e.Died = append(e.Died, time.Unix(int64(n), 0))
			out = append(out, e)
		}
		return out
	}
	begin := func(n int, epoch uint64) Event { return at(n, epoch, 0, "") }
	goesOn := func(e Event, after replay.Position) Event { e.Pos = after; return e }
	entries := func(epoch uint64, from, to int) (out []Event) { // stored at 10*epoch seconds and a bit
		for i := from; i <= to; i++ {
			out = append(out, at(int(10*epoch)+i, epoch, uint64(i), string(rune('a'+i))))
		}
		return out
	}
	first := entries(1, 1, 6)
	second := entries(2, 1, 4)
	third := at(40, 3, 1, "x")
	for _, tt := range []struct {
		reason string
		record Record
		want   string
	}{
		{"a Reset that was made before a flush, and read from a buffer long after it", Record{
			Buffered: true,
			Stored:   append(lost(20, first...), begin(20, 2), third),
			Seen: map[string][]Event{"s": {
				first[0], goesOn(reset(90, replay.ReasonTrimmed, 3), first[3].Pos), with(first[4], func(e *Event) { e.At = time.Unix(91, 0) }),
			}},
		}, ""},
		{"the same without a buffer", Record{
			Stored: append(lost(20, first...), begin(20, 2), third),
			Seen:   map[string][]Event{"s": {first[0], goesOn(reset(90, replay.ReasonTrimmed, 3), first[3].Pos), first[4]}},
		}, "I5"},
		{"a buffer does not make an entry older that came after it", Record{
			Buffered: true,
			Stored:   append(slices.Clone(first[:4]), at(99, 1, 5, "late")),
			Seen:     map[string][]Event{"s": {first[0], goesOn(reset(20, replay.ReasonTrimmed, 2), first[2].Pos), first[3]}},
		}, "I5"},
		// first is lost, then begins second, of which the application sees that the oldest
		// two are trimmed; then these are there again and the others lost.
		{"trimmed right after all was void, and then void again", Record{
			Stored: slices.Concat(lost(18, begin(10, 1)), lost(18, first...), []Event{begin(20, 2)}, second[:1], lost(35, second[1:]...), []Event{third}),
			Seen: map[string][]Event{"s": {
				first[0],
				goesOn(reset(19, replay.ReasonEpoch, 0), begin(20, 2).Pos),
				goesOn(reset(30, replay.ReasonTrimmed, 2), second[1].Pos),
				goesOn(reset(36, replay.ReasonAhead, 0), begin(20, 2).Pos),
				with(second[0], func(e *Event) { e.At = time.Unix(37, 0) }),
			}},
		}, ""},
		{"trimmed right after all was void, with a wrong number", Record{
			Stored: slices.Concat(lost(18, begin(10, 1)), lost(18, first...), []Event{begin(20, 2)}, second),
			Seen: map[string][]Event{"s": {
				first[0],
				goesOn(reset(19, replay.ReasonEpoch, 0), begin(20, 2).Pos),
				goesOn(reset(30, replay.ReasonTrimmed, 1), second[1].Pos),
			}},
		}, "I5"},
	} {
		tt.record.Retention = 2
		var got []string
		for _, v := range tt.record.Check() {
			got = append(got, v.Text[:2])
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: found %q, want %q: %v", tt.reason, strings.Join(got, " "), tt.want, tt.record.Check())
		}
	}
}

// A snapshot stands for what was missed, and what follows it follows.
func TestTheCheckerJudgesSnapshots(t *testing.T) {
	one, two, three, four, five := at(1, 1, 1, "a"), at(2, 1, 2, "b"), at(3, 1, 3, "c"), at(4, 1, 4, "d"), at(5, 1, 5, "e")
	all := []Event{one, two, three, four, five}
	died := func(e Event) Event { e.Died = []time.Time{time.Unix(6, 0)}; return e }
	again := at(7, 2, 1, "f")
	state := func(r Event, p replay.Position) Event { r.Pos, r.State = p, p; return r }
	for _, tt := range []struct {
		reason string
		stored []Event
		seen   []Event
		want   string
	}{
		{"of the head", all, []Event{one, state(reset(5, replay.ReasonTrimmed, 2), five.Pos)}, ""},
		{"of before", all, []Event{one, state(reset(5, replay.ReasonTrimmed, 2), four.Pos), five}, ""},
		{"while nothing was trimmed", all, []Event{one, state(reset(3, replay.ReasonTrimmed, 1), three.Pos)}, "I5"},
		{"of less than what was trimmed", all, []Event{one, state(reset(5, replay.ReasonTrimmed, 3), two.Pos), three}, "I5"},
		{"with a number below zero", all, []Event{one, two, three, state(reset(5, replay.ReasonTrimmed, 1<<64-1), two.Pos)}, "I5"},
		{"what follows it is missing", all, []Event{one, state(reset(5, replay.ReasonTrimmed, 1), three.Pos), five}, "I4"},
		{"what it has comes again", all, []Event{one, state(reset(5, replay.ReasonTrimmed, 1), three.Pos), three}, "I1"},
		{"of something else than what it goes on from", all, []Event{one, with(state(reset(5, replay.ReasonTrimmed, 1), three.Pos), func(e *Event) { e.State = two.Pos })}, "I5"},
		{"that never was", all, []Event{one, state(reset(5, replay.ReasonTrimmed, 1), at(0, 1, 9, "").Pos)}, "I5"},
		{"of a new epoch", []Event{died(one), again}, []Event{one, state(reset(8, replay.ReasonEpoch, 0), again.Pos)}, ""},
		{"of a new epoch, called trimmed", []Event{died(one), again}, []Event{one, state(reset(8, replay.ReasonTrimmed, 1), again.Pos)}, "I5"},
		{"of a new epoch, and nothing was lost", []Event{one, again}, []Event{one, state(reset(8, replay.ReasonEpoch, 0), again.Pos)}, "I5"},
	} {
		r := Record{Stored: tt.stored, Seen: map[string][]Event{"s": tt.seen}, Retention: 2}
		var got []string
		for _, v := range r.Check() {
			got = append(got, v.Text[:2])
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: found %q, want %q: %v", tt.reason, strings.Join(got, " "), tt.want, r.Check())
		}
	}
}
