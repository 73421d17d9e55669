package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/replay"
)

// This file judges what clients have seen, and knows nothing of how that came about.

// A message is what somebody has published.
type message struct {
	text    string // no two messages have the same
	fault   string // the last one before it was sent
	outcome client.Outcome
	pos     replay.Position // if it was acknowledged
}

// acked reports whether its sender was told that it is stored.
func (m *message) acked() bool {
	return m.outcome == client.Committed || m.outcome == client.Duplicate
}

// A sight is one thing that a client got: a message or a reset.
type sight struct {
	text     string
	pos      replay.Position // where the topic goes on
	replayed bool            // it was stored while the client was away
	reset    *client.Reset
	fault    string // the last one before it, for a reset
}

// A view is what one client has seen, after where it began.
type view struct {
	name  string
	start replay.Position
	seen  []sight
}

// A record is all that happened.
type record struct {
	faults  []string // their kinds, in order
	sent    []message
	views   []view
	late    []string // who has not come to the end, and why
	mayLose bool     // the backplane may have lost what it had acknowledged
}

// A row counts what belongs to one kind of fault: for messages the last one before they
// were sent.
type row struct {
	fault                                                           string
	times, sent, acked, received, replayed, repeated, missing, told int
	resets                                                          int
	lost                                                            int // missing, and the backplane has given their numbers away
}

// before is the kind of fault of what was sent before the first.
const before = "(before)"

// A verdict is what came of a record.
type verdict struct {
	rows   []row // the last is the total
	broken []string
}

// judge says whether the promise was kept: that everybody got every acknowledged message
// once and all in one order, or a reset in the place where messages are missing, which
// says how many or that the history is another.
//
// What it cannot see: after a reset with another history, what stands in that before the
// reset's position may have been gone already, or may have been kept from the client.
func judge(r record) verdict {
	var v verdict
	fail := func(format string, args ...any) { v.broken = append(v.broken, fmt.Sprintf(format, args...)) }
	rows := map[string]*row{}
	of := func(fault string) *row {
		if rows[fault] == nil {
			rows[fault] = &row{fault: fault}
		}
		return rows[fault]
	}
	for _, fault := range r.faults {
		of(fault).times++
	}
	sent := map[string]*message{}
	text := map[replay.Position]string{} // what stands at a position, for everybody
	type number struct{ epoch, seq uint64 }
	final := map[number]string{} // what stands at a number at the end, for everybody
	place := map[string]replay.Position{}
	// stands checks that all agree on where a message stands.
	stands := func(who, what string, pos replay.Position) {
		if !r.mayLose {
			pos.Tag = 0 // only what is lost leaves its number to another
		}
		if other, ok := text[pos]; ok && other != what {
			fail("%s has %q at number %d, where others have %q", who, what, pos.Seq, other)
		}
		if other, ok := place[what]; ok && other != pos && !r.mayLose {
			fail("%s has %q at number %d, others at %d", who, what, pos.Seq, other.Seq)
		}
		text[pos], place[what] = what, pos
	}
	for i := range r.sent {
		m := &r.sent[i]
		sent[m.text] = m
		of(m.fault).sent++
		if m.acked() {
			of(m.fault).acked++
			stands("its sender", m.text, m.pos)
		}
	}
	for _, text := range r.late {
		fail("%s", text)
	}
	finally := map[uint64]bool{} // epochs
	for _, c := range r.views {
		last, known := c.start, true
		began := map[uint64]uint64{last.Epoch: last.Seq} // epochs that it was in, and after which number
		ended := map[uint64]uint64{}                     // those that a reset has ended, and after which number
		type hole struct{ epoch, after, to uint64 }
		var holes []hole
		got, now := map[string]bool{}, map[string]bool{} // ever, and since the history is this one
		run := map[number]string{}                       // what stands where, as far as it knows
		for _, s := range c.seen {
			if s.reset != nil {
				of(s.fault).resets++
				sound := known && s.pos.Epoch == last.Epoch
				switch {
				case !s.reset.Void() && (!sound || s.pos.Seq <= last.Seq || s.reset.Missed != s.pos.Seq-last.Seq):
					fail("%s was told that %d are missing (%s), between numbers %d and %d", c.name, s.reset.Missed, s.reset.Reason, last.Seq, s.pos.Seq)
				case !s.reset.Void():
					holes = append(holes, hole{last.Epoch, last.Seq, s.pos.Seq})
				case !r.mayLose:
					fail("%s was told that the history is another (%s), and it is not", c.name, s.reset.Reason)
				case sound && (s.reset.Reason == replay.ReasonEpoch || s.pos == last):
					fail("%s was told that a new history begins, and it is the old one", c.name)
				default:
					if upTo, again := ended[last.Epoch]; !again || last.Seq < upTo {
						ended[last.Epoch] = last.Seq
					}
					clear(now)
					maps.DeleteFunc(run, func(n number, _ string) bool { return n.epoch == s.pos.Epoch })
				}
				if known = !s.pos.IsZero(); known {
					last = s.pos
					began[last.Epoch] = last.Seq
				}
				continue
			}
			m := sent[s.text]
			if m == nil {
				fail("%s got %q, which nobody has sent", c.name, s.text)
				continue
			}
			count := of(m.fault)
			count.received++
			if s.replayed {
				count.replayed++
			}
			if m.outcome == client.NotStored {
				fail("%s got %q, whose sender was told that it is not stored", c.name, s.text)
			}
			switch {
			case now[s.text]:
				count.repeated++
				fail("%s got %q twice", c.name, s.text)
			case known && s.pos.Epoch != last.Epoch:
				fail("%s got %q of another history without a reset", c.name, s.text)
			case known && s.pos.Seq <= last.Seq:
				fail("%s got %q, number %d, after number %d", c.name, s.text, s.pos.Seq, last.Seq)
			case known && s.pos.Seq > last.Seq+1:
				fail("%s got number %d after %d, and no reset", c.name, s.pos.Seq, last.Seq)
			}
			stands(c.name, s.text, s.pos)
			if !known {
				began[s.pos.Epoch] = s.pos.Seq - 1
			}
			got[s.text], now[s.text] = true, true
			run[number{s.pos.Epoch, s.pos.Seq}] = s.text
			last, known = s.pos, true
		}
		finally[last.Epoch] = true
		for n, what := range run {
			if other, ok := final[n]; ok && other != what && n.epoch == last.Epoch {
				fail("%s has %q at number %d at the end, where others have %q", c.name, what, n.seq, other)
			}
			if n.epoch == last.Epoch {
				final[n] = what
			}
		}
		for i := range r.sent {
			m := &r.sent[i]
			if !m.acked() || got[m.text] {
				continue
			}
			of(m.fault).missing++
			from, was := began[m.pos.Epoch]
			upTo, over := ended[m.pos.Epoch]
			explained := len(ended) > 0 && !was || // it was away for all of that history
				over && m.pos.Seq > upTo || // and for the rest of that one
				len(ended) > 0 && m.pos.Seq <= from || // and that this was no longer there
				slices.ContainsFunc(holes, func(h hole) bool {
					return h.epoch == m.pos.Epoch && h.after < m.pos.Seq && m.pos.Seq <= h.to
				})
			// It was behind what the backplane has lost, and for it nothing is missing.
			other, taken := run[number{m.pos.Epoch, m.pos.Seq}]
			lost := r.mayLose && (taken && other != m.text || m.pos.Epoch == last.Epoch && m.pos.Seq > last.Seq)
			switch {
			case explained:
				of(m.fault).told++
			case lost:
				of(m.fault).lost++
			default:
				fail("%s has not got %q, number %d, and was not told", c.name, m.text, m.pos.Seq)
			}
		}
	}
	if len(finally) > 1 {
		fail("at the end there are %d histories", len(finally))
	}
	total := row{fault: "total"}
	for _, fault := range slices.Sorted(maps.Keys(rows)) {
		a := *rows[fault]
		v.rows = append(v.rows, a)
		total.times += a.times
		total.sent += a.sent
		total.acked += a.acked
		total.received += a.received
		total.replayed += a.replayed
		total.repeated += a.repeated
		total.missing += a.missing
		total.told += a.told
		total.lost += a.lost
		total.resets += a.resets
	}
	v.rows = append(v.rows, total)
	return v
}

// total returns the row of all.
func (v *verdict) total() row { return v.rows[len(v.rows)-1] }

// print prints the table, and what is broken.
func (v *verdict) print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "fault\ttimes\tsent\tacked\treceived\treplayed\trepeated\tmissing\tresets\t")
	for _, r := range v.rows {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", r.fault, r.times, r.sent, r.acked, r.received, r.replayed, r.repeated, r.missing, r.resets)
	}
	w.Flush()
	if t := v.total(); t.told > 0 {
		fmt.Fprintf(out, "of the missing ones %d are where a reset said so\n", t.told)
	}
	if t := v.total(); t.lost > 0 {
		fmt.Fprintf(out, "of the missing ones %d were acknowledged and then lost by the backplane, behind where their reader stood\n", t.lost)
	}
	const most = 20
	for i, text := range v.broken {
		if i == most {
			fmt.Fprintf(out, "BROKEN: and %d more\n", len(v.broken)-most)
			break
		}
		fmt.Fprintln(out, "BROKEN:", text)
	}
}
