package torture

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-ws/holdfast/replay"
)

// An Event is an acknowledged publish, or one thing a subscriber's application saw:
// an entry, or a Reset that stands between two runs.
type Event struct {
	At      time.Time
	Topic   string
	Pos     replay.Position
	Stored  time.Time // when the store got the entry
	Payload string

	Reset  replay.Reason // of a Reset; its Pos, if there is one, is what follows it follows
	Missed uint64
	State  replay.Position // of the snapshot of a Reset: it has everything up to here

	Died []time.Time // when the store lost it; it may have come back
}

func (e Event) String() string {
	at := e.At.Format("04:05.000")
	if e.Reset != "" {
		text := fmt.Sprintf("%s %s reset(%s, %d missed)", at, e.Topic, e.Reset, e.Missed)
		if !e.State.IsZero() {
			text += fmt.Sprintf(" snapshot(%d/%08x of %x)", e.State.Seq, e.State.Tag, e.State.Epoch>>48)
		}
		if !e.Pos.IsZero() {
			text += fmt.Sprintf(" goes on after %d/%08x of %x", e.Pos.Seq, e.Pos.Tag, e.Pos.Epoch>>48)
		}
		return text
	}
	return fmt.Sprintf("%s %s %d/%08x of %x %q", at, e.Topic, e.Pos.Seq, e.Pos.Tag, e.Pos.Epoch>>48, e.Payload)
}

// A Violation is one thing that broke the promise.
type Violation struct {
	Text string
	Who  string    // the subscriber that saw it, if any
	At   time.Time // when
}

func (v Violation) String() string { return v.Text }

// A Record is all that happened in a run.
type Record struct {
	Acked     []Event
	Stored    []Event            // everything that was ever stored; nil if the store cannot tell
	Unsure    int                // publishes of which nobody knows whether they are stored
	Seen      map[string][]Event // by subscriber, over all its sessions
	Ends      map[string]replay.Position
	Heads     map[string]replay.Position // by topic, at the end, from the store itself
	Topics    map[string]string          // of each subscriber in Ends
	Losses    []time.Time                // when the store lost something, in order
	Retention int                        // entries that are always there

	// Buffered says that an application may see a Reset long after it was made: it reads
	// from a client's buffer.
	Buffered bool

	died map[string]map[replay.Position][]time.Time // from Stored
}

// unaware is for how long a node may not know that something was lost.
const unaware = 15 * time.Second

// newer returns how many entries there were when a Reset was made, from e on. It was made
// before the application saw it, and if there is a buffer between, some time after since.
func (r *Record) newer(stored []Event, e Event, since, seen time.Time) (n int) {
	if !r.Buffered {
		since = seen
	}
	for i := range stored {
		p := &stored[i]
		dead := false
		for _, d := range p.Died {
			dead = dead || d.Before(since.Add(-unaware))
		}
		if p.Topic == e.Topic && p.Pos.Epoch == e.Pos.Epoch && p.Pos.Seq >= e.Pos.Seq && !p.At.After(seen) && !dead {
			n++
		}
	}
	return n
}

// acked returns what was acknowledged, each at the time when the store got it if anybody
// has seen that: an acknowledgement may come much later, and a Reset before it.
func (r *Record) acked() []Event {
	type id struct {
		topic string
		pos   replay.Position
	}
	first := map[id]time.Time{}
	for _, events := range r.Seen {
		for _, e := range events {
			if e.Reset == "" && !e.Stored.IsZero() {
				first[id{e.Topic, e.Pos}] = e.Stored
			}
		}
	}
	all := slices.Clone(r.Acked)
	for i := range all {
		if at, ok := first[id{all[i].Topic, all[i].Pos}]; ok && at.Before(all[i].At) {
			all[i].At = at
		}
	}
	return all
}

// lost returns when a position was lost, or when anything was if that is not known.
func (r *Record) lost(topic string, pos replay.Position) []time.Time {
	if r.died == nil {
		r.died = map[string]map[replay.Position][]time.Time{}
		for _, e := range r.Stored {
			if r.died[e.Topic] == nil {
				r.died[e.Topic] = map[replay.Position][]time.Time{}
			}
			r.died[e.Topic][e.Pos] = e.Died
		}
	}
	if times, ok := r.died[topic][pos]; ok {
		return times
	}
	return r.Losses
}

// Check says what broke. It takes time linear in the number of events, but for one
// scan of Acked for each trimmed Reset. Its names are:
//
//	I0 unique      no two acknowledged publishes have one position, or one message two
//	I1 order       numbers rise by one within a run
//	I2 once        nothing comes twice within a run
//	I3 agreement   one position has one payload and one predecessor, for everybody
//	I4 silent      nothing is missing within a run
//	I5 honest      a Reset has a cause, and its number is right
//	I6 converged   at the end everybody is at the head
func (r *Record) Check() (bad []Violation) {
	var now Violation
	fail := func(f string, a ...any) {
		now.Text = fmt.Sprintf(f, a...)
		bad = append(bad, now)
	}
	type id struct {
		topic string
		pos   replay.Position
	}
	payload, before := map[id]string{}, map[id]replay.Position{}
	where := map[string]replay.Position{}
	there := map[id]*Event{} // everything that was ever stored, if that is known
	for i := range r.Stored {
		e := &r.Stored[i]
		there[id{e.Topic, e.Pos}] = e
	}
	for _, p := range r.Acked {
		if e := there[id{p.Topic, p.Pos}]; r.Stored != nil && (e == nil || e.Payload != p.Payload) {
			fail("I0 unique: %v was acknowledged, but not stored", p)
		}
	}
	alive := map[[2]string]*Event{}
	for i := range r.Stored {
		e := &r.Stored[i]
		if e.Pos.Seq == 0 {
			continue // the beginning of an epoch
		}
		k := [2]string{e.Topic, e.Payload}
		if other := alive[k]; other != nil && len(other.Died) == 0 {
			fail("I0 unique: one message is stored twice: %v and %v", *other, *e)
		}
		alive[k] = e
	}
	stored, newest := r.Stored, 0
	if stored == nil {
		stored, newest = r.acked(), r.Unsure
	}
	for _, p := range r.Acked {
		k := id{p.Topic, p.Pos}
		if other, twice := payload[k]; twice && other != p.Payload {
			fail("I0 unique: %v was acknowledged for %q and %q", k, other, p.Payload)
		}
		payload[k] = p.Payload
		if other, twice := where[p.Payload]; twice && other.Epoch == p.Pos.Epoch && other != p.Pos && len(r.Losses) == 0 {
			fail("I0 unique: %q was acknowledged at %v and %v", p.Payload, other, p.Pos)
		}
		where[p.Payload] = p.Pos
	}
	for who, events := range r.Seen {
		type run struct {
			last  replay.Position
			known bool      // last is valid: of an entry, or of a Reset
			on    bool      // last is of an entry, or of a snapshot
			since time.Time // when last was stored, or got
			reset *Event    // stands before the next entry
		}
		at := map[string]*run{}
		seen := map[id]bool{} // in this run
		for i, e := range events {
			now = Violation{Who: who, At: e.At}
			s := at[e.Topic]
			if s == nil {
				s = &run{}
				at[e.Topic] = s
			}
			k := id{e.Topic, e.Pos}
			if e.Reset != "" {
				if e.Reset != replay.ReasonTrimmed {
					// What it saw last is gone, or it stood where nothing had been yet.
					cause := false
					for _, l := range r.lost(k.topic, s.last) {
						cause = cause || !l.Before(s.since) && !l.After(e.At)
					}
					if !cause {
						fail("I5 honest: %s: %v, but nothing that it had seen was lost", who, e)
					}
					s.on = false
					seen = map[id]bool{}
				} else if m := e.Missed; s.known && !e.Pos.IsZero() {
					from := replay.Position{Epoch: s.last.Epoch, Seq: s.last.Seq + m} // with what is left
					next := Event{Topic: e.Topic, Pos: replay.Position{Epoch: from.Epoch, Seq: from.Seq + 1}}
					switch {
					case m == 0 || e.Pos.Epoch != from.Epoch || from.Seq < s.last.Seq || e.Pos.Seq < from.Seq,
						e.State.IsZero() && e.Pos.Seq != from.Seq:
						fail("I5 honest: %s: %v stands after %d", who, e, s.last.Seq)
					case !e.State.IsZero() && newest+r.newer(stored, next, s.since, e.At) < r.Retention:
						fail("I5 honest: %s: %v, but what follows %d was there", who, e, s.last.Seq)
					}
				}
				s.reset = &events[i]
				if !e.Pos.IsZero() {
					s.last, s.known = e.Pos, true
				}
				if e.State.IsZero() {
					continue
				}
				// It has the state of one who has seen all up to there.
				if x := there[id{e.Topic, e.State}]; e.State != e.Pos || r.Stored != nil && x == nil {
					fail("I5 honest: %s: %v, a state that what comes then does not follow, or that never was", who, e)
				} else if x != nil {
					s.since = x.Stored
				}
				s.on, s.reset = true, nil
				continue
			}
			a, b := s.last, e.Pos
			if x := there[k]; r.Stored != nil && (x == nil || x.Payload != e.Payload) {
				fail("I3 agreement: %s got what was never stored: %v", who, e)
			}
			if p, ok := payload[k]; ok && p != e.Payload {
				fail("I3 agreement: %s got %q at %v, not %q", who, e.Payload, k, p)
			}
			payload[k] = e.Payload
			switch {
			case s.reset != nil && !s.reset.Pos.IsZero() && (b.Epoch != a.Epoch || b.Seq != a.Seq+1):
				fail("I5 honest: %s: after %v comes %v", who, *s.reset, e)
			case !s.on && s.reset != nil && b.Seq > 1 && r.newer(stored, e, s.since, s.reset.At)+newest < r.Retention:
				fail("I5 honest: %s: after %v comes not all that is left: %v", who, *s.reset, e)
			case !s.on:
			case a.Epoch != b.Epoch:
				fail("I4 silent: %s went from epoch %x to %x without a Reset: %v", who, a.Epoch, b.Epoch, e)
			case s.reset != nil:
				newer := newest + r.newer(stored, e, s.since, s.reset.At)
				m := s.reset.Missed
				if !s.reset.Pos.IsZero() {
					m = 0 // counted already
				} else if m == 0 {
					m-- // which is wrong
				}
				if b.Seq != a.Seq+1+m {
					fail("I5 honest: %s: %v stands between %d and %d", who, *s.reset, a.Seq, b.Seq)
				} else if newer < r.Retention {
					fail("I5 honest: %s: %v, but only %d are newer", who, *s.reset, newer)
				}
			case b.Seq <= a.Seq && seen[k]:
				fail("I2 once: %s got it again: %v", who, e)
			case b.Seq <= a.Seq:
				fail("I1 order: %s was at %d: %v", who, a.Seq, e)
			case b.Seq != a.Seq+1:
				fail("I4 silent: %s lost what is between %d and %d: %v", who, a.Seq, b.Seq, e)
			default:
				if p, ok := before[k]; ok && p != a {
					fail("I3 agreement: %v follows %v and %v: two histories are spliced", k, p, a)
				}
				before[k] = a
			}
			seen[k] = true
			s.last, s.since, s.reset, s.on, s.known = b, e.Stored, nil, true, true
		}
	}
	for who, end := range r.Ends {
		now = Violation{Who: who, At: time.Now()}
		if head := r.Heads[r.Topics[who]]; end != head {
			fail("I6 converged: %s is at %v, the head at %v", who, end, head)
		}
	}
	return bad
}
