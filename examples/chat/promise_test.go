package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/replay"
)

// at is a position.
func at(epoch, seq uint64) replay.Position {
	return replay.Position{Epoch: epoch, Seq: seq, Tag: uint32(1000*epoch + seq)}
}

// a to e are messages at 1 to 5.
func got(texts string) (seen []sight) {
	for _, r := range texts {
		seen = append(seen, sight{text: string(r), pos: at(1, uint64(r-'a'+1))})
	}
	return seen
}

func skip(reason replay.Reason, missed uint64, to replay.Position) sight {
	return sight{reset: &client.Reset{Reason: reason, Missed: missed}, pos: to, fault: "kill"}
}

// good is a record in which nothing is wrong: a to e, all seen by two.
func good() record {
	r := record{faults: []string{"kill", "lose", "kill"}}
	for i, text := range []string{"a", "b", "c", "d", "e"} {
		m := message{text: text, fault: before, outcome: client.Committed, pos: at(1, uint64(i+1))}
		if i >= 2 {
			m.fault = "kill"
		}
		r.sent = append(r.sent, m)
	}
	for _, name := range []string{"anna", "bert"} {
		r.views = append(r.views, view{name: name, start: at(1, 0), seen: got("abcde")})
	}
	return r
}

// anew has bert see the first few, and then a history that begins anew with e alone.
func anew(r *record, before string, reason replay.Reason) {
	r.mayLose = true
	r.sent[4].pos = at(2, 1)
	e := sight{text: "e", pos: at(2, 1)}
	r.views[0].seen = append(got("abcd"), skip(reason, 0, at(2, 0)), e)
	r.views[1].seen = append(got(before), skip(reason, 0, at(2, 0)), e)
}

// rolledBack has x stored at 3, acknowledged and lost, before c gets that number.
func rolledBack(r *record) {
	r.mayLose = true
	r.sent = append(r.sent, message{text: "x", fault: "kill", outcome: client.Committed, pos: replay.Position{Epoch: 1, Seq: 3, Tag: 77}})
}

func TestEachWayToBreakThePromiseIsFound(t *testing.T) {
	tests := []struct {
		why    string
		change func(*record)
		want   string // in what is broken; empty if nothing is
	}{
		{"all is well", func(*record) {}, ""},
		{"lost in the middle", func(r *record) { r.views[1].seen = got("abde") }, "bert got number 4 after 2, and no reset"},
		{"lost in the middle is missing, too", func(r *record) { r.views[1].seen = got("abde") }, `bert has not got "c", number 3, and was not told`},
		{"lost at the end", func(r *record) { r.views[1].seen = got("abcd") }, `bert has not got "e"`},
		{"lost at the beginning", func(r *record) { r.views[1].seen = got("bcde") }, "bert got number 2 after 0"},
		{"repeated", func(r *record) { r.views[1].seen = got("abccde") }, `bert got "c" twice`},
		{"all of it repeated", func(r *record) { r.views[1].seen = got("abcdeabcde") }, `bert got "a" twice`},
		{"stored twice", func(r *record) {
			again := sight{text: "e", pos: at(1, 6)}
			r.views[0].seen, r.views[1].seen = append(got("abcde"), again), append(got("abcde"), again)
		}, `anna got "e" twice`},
		{"another order", func(r *record) { r.views[1].seen = got("abdce") }, `bert got "c", number 3, after number 4`},
		{"an order of its own, numbered", func(r *record) {
			r.views[1].seen[1].text, r.views[1].seen[2].text = "c", "b"
		}, `bert has "c" at number 2, where others have "b"`},
		{"acknowledged elsewhere", func(r *record) { r.sent[4].pos = at(1, 7) }, `"e" at number 5, others at 7`},
		{"invented", func(r *record) { r.views[1].seen[4].text = "x" }, `bert got "x", which nobody has sent`},
		{"refused and stored", func(r *record) { r.sent[4].outcome = client.NotStored }, `not stored`},
		{"nobody knows, and everybody has it", func(r *record) { r.sent[4].outcome = client.Unknown }, ""},
		{"nobody knows, and nobody has it", func(r *record) {
			r.sent[4].outcome = client.Unknown
			r.views[0].seen, r.views[1].seen = got("abcd"), got("abcd")
		}, ""},
		{"somebody has not come to the end", func(r *record) { r.late = []string{"bert: too late"} }, "bert: too late"},

		{"trimmed, and says how many", func(r *record) {
			r.views[1].seen = slices.Concat(got("a"), []sight{skip(replay.ReasonTrimmed, 2, at(1, 3))}, got("de"))
		}, ""},
		{"trimmed, and says too few", func(r *record) {
			r.views[1].seen = slices.Concat(got("a"), []sight{skip(replay.ReasonTrimmed, 1, at(1, 3))}, got("de"))
		}, "bert was told that 1 are missing (trimmed), between numbers 1 and 3"},
		{"trimmed, and more is missing", func(r *record) {
			r.views[1].seen = slices.Concat(got("a"), []sight{skip(replay.ReasonTrimmed, 2, at(1, 3))}, got("e"))
		}, `bert has not got "d"`},
		{"trimmed, and nothing is missing", func(r *record) {
			r.views[1].seen = slices.Concat(got("a"), []sight{skip(replay.ReasonTrimmed, 0, at(1, 1))}, got("bcde"))
		}, "bert was told that 0 are missing"},
		{"trimmed is no excuse to repeat", func(r *record) {
			r.views[1].seen = slices.Concat(got("ab"), []sight{skip(replay.ReasonTrimmed, 1, at(1, 3))}, got("bde"))
		}, `bert got "b" twice`},

		{"another history, which both are told of", func(r *record) { anew(r, "abcd", replay.ReasonEpoch) }, ""},
		{"another history, and one was away before", func(r *record) { anew(r, "ab", replay.ReasonEpoch) }, ""},
		{"another history explains no hole before it", func(r *record) { anew(r, "abd", replay.ReasonEpoch) }, "bert got number 4 after 2"},
		{"another history of a backplane that loses nothing", func(r *record) {
			anew(r, "abcd", replay.ReasonEpoch)
			r.mayLose = false
		}, "bert was told that the history is another (epoch), and it is not"},
		{"another history, and it is the same", func(r *record) {
			r.mayLose = true
			r.views[1].seen = slices.Concat(got("abc"), []sight{skip(replay.ReasonEpoch, 0, at(1, 3))}, got("de"))
		}, "bert was told that a new history begins, and it is the old one"},
		{"another history, and nobody is told", func(r *record) {
			anew(r, "abcd", replay.ReasonEpoch)
			r.views[1].seen = slices.Delete(r.views[1].seen, 4, 5)
		}, `bert got "e" of another history without a reset`},
		{"another history, and one stays in the old", func(r *record) {
			anew(r, "abcd", replay.ReasonEpoch)
			r.views[1].seen = got("abcd")
		}, "at the end there are 2 histories"},
		{"two things of which nobody knows at one number", func(r *record) {
			r.sent[1].outcome = client.Unknown
			r.sent = append(r.sent, message{text: "x", outcome: client.Unknown})
			r.views[1].seen[1] = sight{text: "x", pos: replay.Position{Epoch: 1, Seq: 2, Tag: 77}}
		}, `bert has "x" at number 2, where others have "b"`},
		{"rolled back, and one had not got so far", func(r *record) {
			rolledBack(r)
			r.views[0].seen = slices.Concat(got("ab"), []sight{{text: "x", pos: r.sent[5].pos}, skip(replay.ReasonForked, 0, at(1, 2))}, got("cde"))
		}, ""},
		{"rolled back, and who had got so far is not told", func(r *record) {
			rolledBack(r)
			r.views[0].seen = slices.Concat(got("ab"), []sight{{text: "x", pos: r.sent[5].pos}}, got("de"))
		}, `where others have`},
		{"another history, and it is where it was", func(r *record) {
			r.mayLose = true
			r.views[1].seen = slices.Concat(got("abc"), []sight{skip(replay.ReasonForked, 0, at(1, 3))}, got("de"))
		}, "bert was told that a new history begins, and it is the old one"},
		{"a false alarm, and all of it again", func(r *record) {
			r.mayLose = true
			r.views[1].seen = slices.Concat(got("abc"), []sight{skip(replay.ReasonForked, 0, at(1, 0))}, got("abcde"))
		}, "bert was told that the history is another (forked), and number 3, where it stood, is as it was"},
		{"a false alarm that hides a hole", func(r *record) {
			r.mayLose = true
			r.views[1].seen = slices.Concat(got("ab"), []sight{skip(replay.ReasonForked, 0, at(1, 3))}, got("de"))
		}, "bert was told that the history is another (forked), and number 2, where it stood, is as it was"},
		{"a false alarm for everybody, and the backplane knows better", func(r *record) {
			r.mayLose = true
			for i := range r.views {
				r.views[i].seen = slices.Concat(got("ab"), []sight{skip(replay.ReasonForked, 0, at(1, 3))}, got("de"))
			}
			r.kept = []replay.Position{at(1, 5), at(1, 1), at(1, 2), at(1, 3), at(1, 4), at(1, 5)}
		}, "anna was told that the history is another (forked), and number 2, where it stood, is as it was"},
		{"another history from nowhere on, and it is the old one", func(r *record) {
			r.mayLose = true
			r.views[1].seen = slices.Concat(got("ab"), []sight{skip(replay.ReasonEpoch, 0, replay.Position{})}, got("de"))
		}, "bert was told that the history is another (epoch)"},
		{"a false alarm before the first message", func(r *record) {
			r.mayLose = true
			r.views[1].seen = slices.Concat([]sight{skip(replay.ReasonForked, 0, at(1, 2))}, got("cde"))
		}, "bert was told that the history is another (forked), and number 0, where it stood, is as it was"},
		{"what a new history repeats", func(r *record) {
			anew(r, "abcd", replay.ReasonEpoch)
			for i := range r.views {
				seen := r.views[i].seen
				seen[len(seen)-1].pos = at(2, 2)
				r.views[i].seen = slices.Insert(seen, len(seen)-1, sight{text: "d", pos: at(2, 1)})
			}
			r.sent[4].pos = at(2, 2)
		}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.why, func(t *testing.T) {
			r := good()
			tt.change(&r)
			broken := judge(r).broken
			if tt.want == "" && len(broken) > 0 {
				t.Errorf("%q", broken)
			}
			if tt.want != "" && !slices.ContainsFunc(broken, func(s string) bool { return strings.Contains(s, tt.want) }) {
				t.Errorf("%q, want something with %q", broken, tt.want)
			}
		})
	}
}

func TestTheTableCounts(t *testing.T) {
	r := good()
	r.sent = append(r.sent, message{text: "f", fault: "lose"}) // which nobody has heard of
	r.views[0].seen[3].replayed = true
	r.views[1].seen = slices.Concat(got("aa"), []sight{skip(replay.ReasonTrimmed, 2, at(1, 3))}, got("de"))
	v := judge(r)
	want := []row{
		{fault: before, sent: 2, acked: 2, received: 4, repeated: 1, missing: 1, told: 1},
		{fault: "kill", times: 2, sent: 3, acked: 3, received: 5, replayed: 1, missing: 1, told: 1, resets: 1},
		{fault: "lose", times: 1, sent: 1},
		{fault: "total", times: 3, sent: 6, acked: 5, received: 9, replayed: 1, repeated: 1, missing: 2, told: 2, resets: 1},
	}
	if diff := cmp.Diff(want, v.rows, cmp.AllowUnexported(row{})); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	var out strings.Builder
	v.print(&out)
	if printed := strings.TrimPrefix(`
     fault  times  sent  acked  received  replayed  repeated  missing  resets
  (before)      0     2      2         4         0         1        1       0
      kill      2     3      3         5         1         0        1       1
      lose      1     1      0         0         0         0        0       0
     total      3     6      5         9         1         1        2       1
of the missing ones 2 are where a reset said so
BROKEN: bert got "a" twice
`, "\n"); out.String() != printed {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), printed)
	}
}
