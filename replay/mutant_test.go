package replay

import (
	"testing"

	"github.com/holdfast-ws/holdfast/internal/mutant"
)

// The model test alone finds each of these bugs in the log.
func TestBugsPlantedInTheLogAreCaughtByTheModel(t *testing.T) {
	mutant.Run(t, "^TestModel$",
		mutant.Mutant{Why: "ring index wraps one off", File: "log.go",
			Old: "return int(seq & uint64(len(l.ring)-1))", New: "return int(seq % uint64(max(1, len(l.ring)-1)))"},
		mutant.Mutant{Why: "the second run of a wrapped read starts one late", File: "log.go",
			Old: "l.ring[:end-len(l.ring)]...)", New: "l.ring[1:end-len(l.ring)+1]...)"},
		mutant.Mutant{Why: "entries move wrongly when the ring grows", File: "log.go",
			Old: "= old[s&mask], oldMeta[s&mask]", New: "= old[(s-1)&mask], oldMeta[(s-1)&mask]"},
		mutant.Mutant{Why: "one before the oldest is called a gap", File: "log.go",
			Old: "case behind <= uint64(l.n):", New: "case behind < uint64(l.n):"},
		mutant.Mutant{Why: "the tag is not looked at", File: "log.go",
			Old: "if ok && tag == p.Tag {", New: "if _ = tag; ok {"},
		mutant.Mutant{Why: "the epoch is not looked at", File: "log.go",
			Old: "case p.Epoch != l.head.Epoch:\n		reason", New: "case false:\n		reason"},
		mutant.Mutant{Why: "ahead is taken for caught up", File: "log.go",
			Old: "if p == l.head {", New: "if p == l.head || p.Epoch == l.head.Epoch && p.Seq > l.head.Seq {"},
		mutant.Mutant{Why: "a duplicate by number alone", File: "log.go",
			Old: "case tag == e.Pos.Tag:", New: "case tag == tag:"},
		mutant.Mutant{Why: "the link is not checked", File: "log.go",
			Old: "case e.Prev != l.head.Tag:", New: "case false:"},
		mutant.Mutant{Why: "missed counts one too few", File: "log.go",
			Old: "missed = l.head.Seq - uint64(l.n) - p.Seq", New: "missed = l.head.Seq - uint64(l.n) - p.Seq - 1"},
		mutant.Mutant{Why: "age is not a bound", File: "log.go",
			Old: "if l.limits.Age < 0 {", New: "if true {"},
		mutant.Mutant{Why: "bytes are not a bound", File: "log.go",
			Old: "if limit := l.limits.Bytes; limit > 0 {", New: "if limit := l.limits.Bytes; limit > 1<<40 {"},
		mutant.Mutant{Why: "an emptied log forgets its head", File: "log.go",
			Old: "		l.ring, l.meta, l.newest = nil, nil, nil\n", New: "		l.ring, l.meta, l.newest = nil, nil, nil\n		l.head.Tag = 0\n"},
		mutant.Mutant{Why: "conflation drops the newest of a key", File: "log.go",
			Old: "if l.meta[i].newer != 0 {", New: "if e.Key != \"\" && len(b.Entries) > 0 {"},
		mutant.Mutant{Why: "a dropped key is remembered", File: "log.go",
			Old: "delete(l.newest, e.Key)", New: "_ = e"},
		mutant.Mutant{Why: "lagging leads nowhere", File: "cursor.go",
			Old: "gap.Oldest = l.last(allowed)", New: "_ = allowed"},
		mutant.Mutant{Why: "a page stops at a duplicate", File: "log.go",
			Old: "} else if v != Duplicate {", New: "} else {"},
		mutant.Mutant{Why: "the tail is one entry too long", File: "log.go",
			Old: "n = 1 + sort.Search(n-1,", New: "n = 2 + sort.Search(n-2,"},
		mutant.Mutant{Why: "the cursor moves although there is a gap", File: "log.go",
			Old: "held := b.reset(p, l.head)\n", New: "held := b.reset(l.head, l.head)\n"},
	)
}

// And these in what wakes readers are found by the other tests.
func TestBugsPlantedInTheWakingAreCaught(t *testing.T) {
	mutant.Run(t, "^Test(Next|All|Poller|Close|AReset|AWorker|Arm|Four|Conflation|Ready|Wake)",
		mutant.Mutant{Why: "Wake leaves a cursor parked", File: "poller.go",
			Old: "	if armed && c.pos == c.log.head { // else", New: "	if armed && c.pos != c.log.head { // else"},
		mutant.Mutant{Why: "Ready forgets that there is a gap", File: "cursor.go",
			Old: "	if c.pos != c.log.head {\n		return readyNow", New: "	if c.pos.Epoch == c.log.head.Epoch && c.pos != c.log.head {\n		return readyNow"},
		mutant.Mutant{Why: "only an insert that ends well wakes", File: "log.go",
			Old: "	if l.head == head {\n", New: "	if l.head == head || v != Appended {\n"},
		mutant.Mutant{Why: "those that wait are not woken", File: "poller.go",
			Old: "		close(wake)\n", New: "		_ = wake\n"},
		mutant.Mutant{Why: "parked cursors are forgotten", File: "poller.go",
			Old: "take(&k.poller.ready, &k.cursors)", New: "initList(&k.cursors)"},
		mutant.Mutant{Why: "a worker is not told that there is more", File: "poller.go",
			Old: "			p.signal() // for the next worker\n", New: ""},
		mutant.Mutant{Why: "a cursor that is behind is parked", File: "poller.go",
			Old: "if c.pos == c.log.head {", New: "if c.pos.Epoch == c.log.head.Epoch {"},
		mutant.Mutant{Why: "a worker that leaves keeps the token", File: "poller.go",
			Old: "			if ready {\n				p.signal()\n			}\n			return 0", New: "			_ = ready\n			return 0"},
		mutant.Mutant{Why: "Arm does not wake a worker", File: "poller.go",
			Old: "		if ready {\n			p.signal()\n		}\n	}()", New: "	}()"},
		mutant.Mutant{Why: "only the last of several armed counts", File: "poller.go",
			Old: "ready = p.arm(cursors[0]) || ready", New: "ready = p.arm(cursors[0])"},
		mutant.Mutant{Why: "a closed cursor can be armed", File: "poller.go",
			Old: "	case c.park == &closed:\n		return false\n", New: ""},
		mutant.Mutant{Why: "a conflating read that finds nothing waits", File: "cursor.go",
			Old: "if b.To != b.Head { // it got", New: "if false { // it got"},
		mutant.Mutant{Why: "a list loses its last cursor", File: "poller.go",
			Old: "first, last := other.next, other.prev\n", New: "first, last := other.next, other.prev\n	if last != first {\n		last = last.prev\n	}\n"},
	)
}
