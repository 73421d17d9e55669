package torture

import (
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
