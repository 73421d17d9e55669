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
	late    []string          // who has not come to the end, and why
	mayLose bool              // the backplane may have lost what it had acknowledged
	kept    []replay.Position // what it has at the end
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
	j := &judgement{
		record: r, rows: map[string]*row{},
		said: map[string]*message{}, text: map[replay.Position]string{}, place: map[string]replay.Position{},
	}
	for _, fault := range r.faults {
		j.of(fault).times++
	}
	for i := range r.sent {
		m := &r.sent[i]
		j.said[m.text] = m
		j.of(m.fault).sent++
		if m.acked() {
			j.of(m.fault).acked++
			j.stands("its sender", m.text, m.pos)
		}
	}
	for _, text := range r.late {
		j.fail("%s", text)
	}
	var readers []*reader
	for _, v := range r.views {
		readers = append(readers, j.read(v))
	}
	j.final(readers)
	for _, c := range readers {
		j.missing(c)
	}
	return verdict{j.table(), j.broken}
}

// A judgement is a record on its way to a verdict.
type judgement struct {
	record
	rows   map[string]*row
	broken []string
	said   map[string]*message
	text   map[replay.Position]string // what stands at a position, for everybody
	place  map[string]replay.Position // and where something stands
}

func (j *judgement) fail(format string, args ...any) {
	j.broken = append(j.broken, fmt.Sprintf(format, args...))
}

// of returns the row of a kind of fault.
func (j *judgement) of(fault string) *row {
	if j.rows[fault] == nil {
		j.rows[fault] = &row{fault: fault}
	}
	return j.rows[fault]
}

// stands checks that all agree on where a message stands.
func (j *judgement) stands(who, what string, pos replay.Position) {
	if !j.mayLose {
		pos.Tag = 0 // only what is lost leaves its number to another
	}
	if other, ok := j.text[pos]; ok && other != what {
		j.fail("%s has %q at number %d, where others have %q", who, what, pos.Seq, other)
	}
	if other, ok := j.place[what]; ok && other != pos && !j.mayLose {
		j.fail("%s has %q at number %d, others at %d", who, what, pos.Seq, other.Seq)
	}
	j.text[pos], j.place[what] = what, pos
}

// A reader is one client, as far as its view has been gone through.
type reader struct {
	name     string
	last     replay.Position   // where it stands
	known    bool              // whether that is known
	began    map[uint64]uint64 // epochs that it was in, and after which number
	ended    map[uint64]uint64 // those that a reset has ended, and after which number
	holes    []hole            // where it was told that messages are missing
	left     []left            // where it was told that the history is another
	got, now map[string]bool   // ever, and since the history is this one
	run      map[number]sight  // what stands where, as far as it knows
}

// A number is that of a message, in an epoch.
type number struct{ epoch, seq uint64 }

// A hole is what is missing between two numbers.
type hole struct{ epoch, after, to uint64 }

// A left is where a reader stood that was told that the history is another now.
type left struct {
	pos    replay.Position
	reason replay.Reason
}

func numberOf(p replay.Position) number { return number{p.Epoch, p.Seq} }

// read goes through what one client has seen.
func (j *judgement) read(v view) *reader {
	c := &reader{
		name: v.name, last: v.start, known: true,
		began: map[uint64]uint64{v.start.Epoch: v.start.Seq}, ended: map[uint64]uint64{},
		got: map[string]bool{}, now: map[string]bool{}, run: map[number]sight{},
	}
	for _, s := range v.seen {
		if s.reset != nil {
			j.reset(c, s)
		} else {
			j.message(c, s)
		}
	}
	return c
}

// reset judges one that a client was given.
func (j *judgement) reset(c *reader, s sight) {
	j.of(s.fault).resets++
	sound := c.known && s.pos.Epoch == c.last.Epoch
	switch {
	case !s.reset.Void() && (!sound || s.pos.Seq <= c.last.Seq || s.reset.Missed != s.pos.Seq-c.last.Seq):
		j.fail("%s was told that %d are missing (%s), between numbers %d and %d", c.name, s.reset.Missed, s.reset.Reason, c.last.Seq, s.pos.Seq)
	case !s.reset.Void():
		c.holes = append(c.holes, hole{c.last.Epoch, c.last.Seq, s.pos.Seq})
	case !j.mayLose:
		j.fail("%s was told that the history is another (%s), and it is not", c.name, s.reset.Reason)
	case sound && (s.reset.Reason == replay.ReasonEpoch || s.pos == c.last):
		j.fail("%s was told that a new history begins, and it is the old one", c.name)
	default:
		if c.known {
			c.left = append(c.left, left{c.last, s.reset.Reason})
		}
		if upTo, again := c.ended[c.last.Epoch]; !again || c.last.Seq < upTo {
			c.ended[c.last.Epoch] = c.last.Seq
		}
		clear(c.now)
		maps.DeleteFunc(c.run, func(n number, _ sight) bool { return n.epoch == s.pos.Epoch })
	}
	if c.known = !s.pos.IsZero(); c.known {
		c.last = s.pos
		c.began[c.last.Epoch] = c.last.Seq
	}
}

// message judges one that a client has got.
func (j *judgement) message(c *reader, s sight) {
	m := j.said[s.text]
	if m == nil {
		j.fail("%s got %q, which nobody has sent", c.name, s.text)
		return
	}
	count := j.of(m.fault)
	count.received++
	if s.replayed {
		count.replayed++
	}
	if m.outcome == client.NotStored {
		j.fail("%s got %q, whose sender was told that it is not stored", c.name, s.text)
	}
	switch {
	case c.now[s.text]:
		count.repeated++
		j.fail("%s got %q twice", c.name, s.text)
	case c.known && s.pos.Epoch != c.last.Epoch:
		j.fail("%s got %q of another history without a reset", c.name, s.text)
	case c.known && s.pos.Seq <= c.last.Seq:
		j.fail("%s got %q, number %d, after number %d", c.name, s.text, s.pos.Seq, c.last.Seq)
	case c.known && s.pos.Seq > c.last.Seq+1:
		j.fail("%s got number %d after %d, and no reset", c.name, s.pos.Seq, c.last.Seq)
	}
	j.stands(c.name, s.text, s.pos)
	if !c.known {
		c.began[s.pos.Epoch] = s.pos.Seq - 1
	}
	c.got[s.text], c.now[s.text] = true, true
	c.run[numberOf(s.pos)] = s
	c.last, c.known = s.pos, true
}

// final finds out what the history is at the end, whether all are in it, and who was told
// that it is another than the one that it is.
func (j *judgement) final(readers []*reader) {
	epochs, history := map[uint64]bool{}, map[number]sight{}
	for _, c := range readers {
		epochs[c.last.Epoch] = true
		for n, s := range c.run {
			if n.epoch != c.last.Epoch {
				continue
			}
			if other, ok := history[n]; ok && other.text != s.text {
				j.fail("%s has %q at number %d at the end, where others have %q", c.name, s.text, n.seq, other.text)
			}
			history[n] = s
		}
	}
	if len(epochs) > 1 {
		j.fail("at the end there are %d histories", len(epochs))
	}
	for _, pos := range j.kept {
		epochs[pos.Epoch] = true
		history[numberOf(pos)] = sight{pos: pos}
	}
	for _, c := range readers {
		for _, l := range c.left {
			still := history[numberOf(l.pos)].pos == l.pos || l.pos.Seq == 0 // before the first nothing can change
			if epochs[l.pos.Epoch] && (still || l.reason == replay.ReasonEpoch) {
				j.fail("%s was told that the history is another (%s), and number %d, where it stood, is as it was", c.name, l.reason, l.pos.Seq)
			}
		}
	}
}

// missing judges what a client has not got.
func (j *judgement) missing(c *reader) {
	for i := range j.sent {
		m := &j.sent[i]
		if !m.acked() || c.got[m.text] {
			continue
		}
		count := j.of(m.fault)
		count.missing++
		// It was behind what the backplane has lost, and for it nothing is missing.
		other, taken := c.run[numberOf(m.pos)]
		lost := j.mayLose && (taken && other.text != m.text || m.pos.Epoch == c.last.Epoch && m.pos.Seq > c.last.Seq)
		switch {
		case c.explained(m.pos):
			count.told++
		case lost:
			count.lost++
		default:
			j.fail("%s has not got %q, number %d, and was not told", c.name, m.text, m.pos.Seq)
		}
	}
}

// explained reports whether resets say that what stands there may be missing.
func (c *reader) explained(pos replay.Position) bool {
	from, was := c.began[pos.Epoch]
	upTo, over := c.ended[pos.Epoch]
	return len(c.ended) > 0 && !was || // it was away for all of that history
		over && pos.Seq > upTo || // and for the rest of that one
		len(c.ended) > 0 && pos.Seq <= from || // and that this was no longer there
		slices.ContainsFunc(c.holes, func(h hole) bool {
			return h.epoch == pos.Epoch && h.after < pos.Seq && pos.Seq <= h.to
		})
}

// table returns the rows, and the total as the last.
func (j *judgement) table() (rows []row) {
	total := row{fault: "total"}
	for _, fault := range slices.Sorted(maps.Keys(j.rows)) {
		a := *j.rows[fault]
		rows = append(rows, a)
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
	return append(rows, total)
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
