package backplanetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/replay"
)

// rules are all of them: first what each call promises, then what subscribers of a
// Hub see, and in faults.go what they see when something fails.
var rules = append([]rule{
	{"Order", "Append numbers 1, 2, 3, …, links each entry to the one before, and Read returns what was appended", nil, checkOrder},
	{"ConcurrentAppenders", "entries appended at the same time, on several nodes, have one order, each number once", nil, checkAppenders},
	{"IDs", "a message with an ID that the topic remembers is not stored again; IDs count within a topic only", nil, checkIDs},
	{"ConcurrentIDs", "of messages with one ID, appended at the same time, one is committed and the others are its duplicates", nil, checkConcurrentIDs},
	{"Bounds", "a topic keeps so many entries; reading before them is a gap, with the number missed, and one before the oldest is not", nil, checkBounds},
	{"Boundaries", "Read checks identity: ahead, another epoch, and another tag anywhere are gaps; the head is not", nil, checkBoundaries},
	{"Budget", "Read returns as many entries as the budget allows, one at least, and the newest ones without a position", nil, checkBudget},
	{"EmptyTopic", "a topic has an epoch before anything is appended, the same for all nodes, and its first entry follows the beginning", nil, checkEmptyTopic},
	{"ReadNeverGoesBack", "once Read has returned number n, nothing up to n appears that was not there (synaplan #1022, AnyCable over NATS)", nil, checkReadNeverGoesBack},
	{"Heads", "Heads returns the heads that Read returns, in the order asked for", nil, checkHeads},
	{"Topics", "topics with different names are different, whatever is in the names (centrifuge: channel meta.y, recovery note 3.1)", nil, checkTopics},
	{"Payloads", "any bytes come back as they were, few or many, and so does the key", nil, checkPayloads},
	{"WatchConfirmed", "when Add has returned, the sink is told of what is appended on any node, and told the truth", nil, checkWatch},
	{"WatchAgain", "a topic can be removed and added again, and added twice", nil, checkWatchAgain},
	{"WatchClose", "when a Watcher's Close has returned, the sink is not called any more", nil, checkWatchClose},
	{"Close", "after Close all calls return ErrClosed, and Close can be called again", nil, checkClose},
	{"Context", "a call with a context that is done returns its cause, and an append then has a true outcome", nil, checkContext},
	{"Ephemeral", "an ephemeral message comes to those who watch, and is not stored", nil, checkEphemeral},
	{"PublishSubscribe", "subscribers on all nodes get every message once, in one order", nil, checkPublishSubscribe},
	{"Resume", "a subscriber that comes back, on any node, gets what it missed and nothing twice (streams-adapter #39, socket.io #5419)", nil, checkResume},
	{"ResumeTrimmed", "a subscriber that was away for too long gets exactly one Reset, with the number missed", nil, checkResumeTrimmed},
	{"SlowSubscriber", "a subscriber that reads too slowly gets exactly one Reset, and nobody else notices", nil, checkSlowSubscriber},
	{"QuietSubscriber", "a subscriber that has missed nothing gets no Reset, however much happens elsewhere (socket.io #5282)", nil, checkQuiet},
}, faultRules...)

func checkOrder(f *fixture) {
	b := f.open()
	want := some("m", 12)
	at := f.append(b, "t", want...)
	for i, p := range at {
		if p.Seq != uint64(i)+1 || p.Epoch == 0 || p.Epoch != at[0].Epoch {
			f.Fatalf("append %d got the position %v after %v", i+1, p, at[:i])
		}
	}
	entries := f.readAll(b, "t", replay.Position{Epoch: at[0].Epoch})
	if got := texts(entries); got != strings.Join(want, " ") {
		f.Fatalf("read %s", got)
	}
	for i, e := range entries {
		if e.Pos != at[i] {
			f.Fatalf("the receipt says %v, Read says %v", at[i], e.Pos)
		}
		if e.At.IsZero() {
			f.Fatalf("entry %d has no time", i+1)
		}
	}
	tags := map[uint32]bool{}
	for _, p := range at {
		tags[p.Tag] = true
	}
	if len(tags) < len(at)-1 {
		f.Fatalf("the tags of %d entries are not random: %v", len(at), at)
	}
}

func checkAppenders(f *fixture) {
	nodes := []backplane.Backplane{f.open(), f.open()}
	n := f.h.Entries / 8
	var mu sync.Mutex
	got := map[replay.Position]string{}
	for i := range 8 {
		f.running.Go(func() {
			for k := range n {
				text := fmt.Sprintf("a%d-%d", i, k)
				r, err := nodes[i%2].Append(f.ctx, "t", backplane.Message{ID: text, Data: []byte(text)})
				mu.Lock()
				if other, twice := got[r.Pos]; err != nil || twice {
					f.Errorf("append of %s: %v, %v, which is that of %q", text, r.Pos, err, other)
				}
				got[r.Pos] = text
				mu.Unlock()
			}
		})
	}
	f.running.Wait()
	if f.Failed() {
		return
	}
	for _, b := range nodes {
		entries := f.readAll(b, "t", f.start(b, "t"))
		if len(entries) != 8*n {
			f.Fatalf("%d entries of %d were read", len(entries), 8*n)
		}
		last := map[string]int{}
		for _, e := range entries {
			if got[e.Pos] != string(e.Data) {
				f.Fatalf("%v is %q for the appender, %q for the reader", e.Pos, got[e.Pos], e.Data)
			}
			who, k, _ := strings.Cut(string(e.Data), "-")
			if fmt.Sprint(last[who]) != k {
				f.Fatalf("an appender that waits for each receipt is out of order: %s", texts(entries))
			}
			last[who]++
		}
	}
}

func checkIDs(f *fixture) {
	a, b := f.open(), f.open()
	first := f.appendID(a, "t", "x", "one")
	f.appendID(a, "t", "y", "two")
	if r := f.appendID(b, "t", "x", "one"); r.Outcome != backplane.Duplicate || r.Pos != first.Pos {
		f.Fatalf("the second append with an ID: %v at %v, want a duplicate of %v", r.Outcome, r.Pos, first.Pos)
	}
	if first.Outcome != backplane.Committed {
		f.Fatalf("the first append with an ID: %v", first.Outcome)
	}
	// Centrifuge joins topic and ID with a dot: the second of these was suppressed.
	for _, m := range [][2]string{{"t2", "x"}, {"a.b", "c"}, {"a", "b.c"}, {"a:b", "c"}, {"a", "b:c"}, {"a b", "c"}, {"a", "b c"}, {"a{b}", "c"}, {"a", "{b}c"}} {
		if r := f.appendID(a, m[0], m[1], "new"); r.Outcome != backplane.Committed {
			f.Fatalf("topic %q, ID %q: %v, though that is new", m[0], m[1], r.Outcome)
		}
	}
	f.appendID(a, "t", "", "three")
	if r := f.appendID(a, "t", "", "three"); r.Outcome != backplane.Committed {
		f.Fatalf("a second append without an ID: %v", r.Outcome)
	}
	long := strings.Repeat("é", backplane.MaxID/2)
	f.appendID(a, "t", long, "four")
	if r := f.appendID(a, "t", long, "four"); r.Outcome != backplane.Duplicate {
		f.Fatalf("an ID of the greatest length: %v", r.Outcome)
	}
	if got, want := texts(f.readAll(b, "t", replay.Position{Epoch: first.Pos.Epoch})), "one two three three four"; got != want {
		f.Fatalf("stored is %q, want %q", got, want)
	}
}

func checkConcurrentIDs(f *fixture) {
	nodes := []backplane.Backplane{f.open(), f.open()}
	for round := range 10 {
		var committed atomic.Int64
		id := fmt.Sprint("id", round)
		for i := range 8 {
			f.running.Go(func() {
				r, err := nodes[i%2].Append(f.ctx, "t", backplane.Message{ID: id, Data: []byte(id)})
				if err != nil {
					f.Errorf("append: %v", err)
				}
				if r.Outcome == backplane.Committed {
					committed.Add(1)
				}
			})
		}
		f.running.Wait()
		if n := committed.Load(); n != 1 {
			f.Fatalf("%d of 8 appends with one ID were committed", n)
		}
	}
	if got := f.readAll(nodes[0], "t", f.start(nodes[0], "t")); len(got) != 10 {
		f.Fatalf("%d entries are stored, want 10", len(got))
	}
}

func checkBounds(f *fixture) {
	b := f.open()
	n := f.h.Entries + f.h.Slack + 5
	at := f.append(b, "t", some("m", n)...)
	start := replay.Position{Epoch: at[0].Epoch}
	_, gap := f.read(b, "t", start, all)
	if gap == nil {
		f.Fatalf("of %d entries all are kept, want at most %d", n, f.h.Entries+f.h.Slack)
		return
	}
	kept := int(gap.Head.Seq - gap.Oldest.Seq)
	switch {
	case gap.Reason != replay.ReasonTrimmed:
		f.Fatalf("reading from the start: %q, want %q", gap.Reason, replay.ReasonTrimmed)
	case gap.Head != at[n-1] || gap.Want != start:
		f.Fatalf("the gap is from %v to %v, want from %v to %v", gap.Want, gap.Head, start, at[n-1])
	case kept < f.h.Entries || kept > f.h.Entries+f.h.Slack:
		f.Fatalf("%d entries are kept, want %d to %d", kept, f.h.Entries, f.h.Entries+f.h.Slack)
	case gap.Oldest != at[n-1-kept]:
		f.Fatalf("the oldest place to read from is %v, but that entry was %v", gap.Oldest, at[n-1-kept])
	case gap.Missed != uint64(n-kept):
		f.Fatalf("%d entries are said to be missed, want %d", gap.Missed, n-kept)
	}
	// One before the oldest: its own entry is gone, but nothing is missed.
	if got := f.readAll(b, "t", gap.Oldest); len(got) != kept {
		f.Fatalf("%d entries follow the oldest place, want %d", len(got), kept)
	}
	// Two before.
	if _, gap := f.read(b, "t", at[n-2-kept], all); gap == nil || gap.Missed != 1 || gap.Reason != replay.ReasonTrimmed {
		f.Fatalf("one entry is missing: %v", gap)
	}
}

func checkBoundaries(f *fixture) {
	b := f.open()
	at := f.append(b, "t", some("m", f.h.Entries+f.h.Slack+3)...)
	head := at[len(at)-1]
	start := replay.Position{Epoch: head.Epoch}
	_, gap := f.read(b, "t", start, all)
	if gap == nil {
		f.Fatalf("nothing was trimmed")
		return
	}
	oldest := gap.Oldest
	try := func(what string, p replay.Position, reason replay.Reason) {
		f.Helper()
		page, gap := f.read(b, "t", p, all)
		switch {
		case gap == nil && reason != "":
			f.Errorf("reading after %s returned %d entries, want a gap (%s)", what, len(page.Entries), reason)
		case gap != nil && gap.Reason != reason:
			f.Errorf("reading after %s: %q, want %q", what, gap.Reason, reason)
		case gap != nil && (gap.Head != head || gap.Want != p || gap.Oldest != oldest):
			f.Errorf("reading after %s: the gap says from %v, oldest %v, head %v; want %v, %v, %v", what, gap.Want, gap.Oldest, gap.Head, p, oldest, head)
		case gap == nil && page.Head != head:
			f.Errorf("reading after %s: the head is %v, want %v", what, page.Head, head)
		case gap == nil:
			f.linked(p, page.Entries)
		}
	}
	change := func(p replay.Position, f func(*replay.Position)) replay.Position { f(&p); return p }
	tag := func(p *replay.Position) { p.Tag ^= 1 }
	middle := at[len(at)-5]
	try("the head", head, "")
	try("an entry", middle, "")
	try("the oldest place", oldest, "")
	try("the head with another tag", change(head, tag), replay.ReasonForked)
	try("an entry with another tag", change(middle, tag), replay.ReasonForked)
	try("the oldest place with another tag (recovery note 4.6)", change(oldest, tag), replay.ReasonForked)
	try("a number ahead", change(head, func(p *replay.Position) { p.Seq++ }), replay.ReasonAhead)
	try("a number far ahead", change(head, func(p *replay.Position) { p.Seq = 1 << 63 }), replay.ReasonAhead)
	try("another epoch", change(middle, func(p *replay.Position) { p.Epoch ^= 1 }), replay.ReasonEpoch)
	try("the head's number in another epoch", change(head, func(p *replay.Position) { p.Epoch ^= 1 << 40 }), replay.ReasonEpoch)
	try("the start", start, replay.ReasonTrimmed)
}

func checkBudget(f *fixture) {
	b := f.open()
	at := f.append(b, "t", some("m", 12)...) // m1 … m9 have 2 bytes and a key of 1, m10 … 3
	start := replay.Position{Epoch: at[0].Epoch}
	try := func(after replay.Position, max replay.Budget, want string) {
		f.Helper()
		p, gap := f.read(b, "t", after, max)
		if gap != nil {
			f.Fatalf("Read: %v", gap)
		}
		if got := texts(p.Entries); got != want {
			f.Errorf("Read after %d with the budget %+v returned %q, want %q", after.Seq, max, got, want)
		}
		if p.Head != at[11] {
			f.Errorf("the head is %v, want %v", p.Head, at[11])
		}
	}
	none := replay.Position{}
	try(start, replay.Budget{Entries: 3}, "m1 m2 m3")
	try(at[2], replay.Budget{Entries: 1}, "m4")
	try(at[2], replay.Budget{Bytes: 7}, "m4 m5")
	try(at[2], replay.Budget{Bytes: 6}, "m4 m5")
	try(at[2], replay.Budget{Bytes: 5}, "m4")
	try(at[2], replay.Budget{Bytes: 1}, "m4")
	try(at[9], replay.Budget{Entries: -1, Bytes: -1}, "m11 m12")
	try(at[9], replay.Budget{}, "m11 m12")
	try(at[11], replay.Budget{}, "")
	try(none, replay.Budget{Entries: 1}, "m12")
	try(none, replay.Budget{Entries: 3}, "m10 m11 m12")
	try(none, replay.Budget{Bytes: 9}, "m11 m12")
	try(none, replay.Budget{Bytes: 8}, "m11 m12")
	try(none, replay.Budget{Bytes: 1}, "m12")
	try(none, replay.Budget{Entries: -1}, strings.Join(some("m", 12), " "))
}

func checkEmptyTopic(f *fixture) {
	a, b := f.open(), f.open()
	p, gap := f.read(a, "t", replay.Position{}, replay.Budget{})
	if gap != nil || len(p.Entries) > 0 || p.Head.Epoch == 0 || p.Head.Seq != 0 {
		f.Fatalf("a topic without entries: %+v, %v", p, gap)
	}
	if again, _ := f.read(b, "t", replay.Position{}, replay.Budget{}); again.Head != p.Head {
		f.Fatalf("its beginning is %v for one node, %v for the other", p.Head, again.Head)
	}
	if page, gap := f.read(b, "t", p.Head, replay.Budget{}); gap != nil || len(page.Entries) > 0 {
		f.Fatalf("Read after the beginning: %+v, %v", page, gap)
	}
	at := f.append(b, "t", "first")
	if at[0].Epoch != p.Head.Epoch || at[0].Seq != 1 {
		f.Fatalf("the first entry is %v, the beginning was %v", at[0], p.Head)
	}
	if got := texts(f.readAll(a, "t", p.Head)); got != "first" {
		f.Fatalf("after the beginning comes %q", got)
	}
	if other := f.start(a, "u"); other.Epoch == p.Head.Epoch {
		f.Fatalf("two topics have one epoch")
	}
}

func checkReadNeverGoesBack(f *fixture) {
	a, b := f.open(), f.open()
	n := min(f.h.Entries, 240) / 4
	start := f.start(a, "t")
	for i := range 4 {
		f.running.Go(func() {
			for k := range n {
				text := fmt.Sprintf("a%d-%d", i, k)
				if _, err := a.Append(f.ctx, "t", backplane.Message{Data: []byte(text)}); err != nil && !f.cancelled() {
					f.Errorf("append: %v", err)
				}
			}
		})
	}
	var read []replay.Entry
	at := start
	for len(read) < 4*n && !f.Failed() {
		p, gap := f.read(b, "t", at, replay.Budget{})
		if gap != nil {
			f.Fatalf("Read after %v: %v", at, gap)
		}
		f.linked(at, p.Entries)
		if read = append(read, p.Entries...); len(p.Entries) > 0 {
			at = p.Entries[len(p.Entries)-1].Pos
		}
		if p.Head.Seq < at.Seq {
			f.Fatalf("the head %v is before an entry that was read, %v", p.Head, at)
		}
		if f.ctx.Err() != nil {
			f.Fatalf("only %d of %d entries could be read", len(read), 4*n)
		}
	}
	f.running.Wait()
	if later := f.readAll(b, "t", start); texts(later) != texts(read) {
		f.Fatalf("entries that were read as they came:\n%s\nnow there are:\n%s", texts(read), texts(later))
	}
}

func checkHeads(f *fixture) {
	b := f.open()
	if _, ok := b.(backplane.HeadReader); !ok {
		f.Skipf("SKIPPED: %T is not a HeadReader", b)
	}
	names := some("topic", 20)
	want := make([]replay.Position, len(names))
	for i, name := range names {
		want[i] = f.append(b, name, some("m", i%3+1)...)[i%3]
	}
	ask := append(slices.Clone(names), "nothing", names[3])
	heads, err := b.(backplane.HeadReader).Heads(f.ctx, ask)
	if err != nil || len(heads) != len(ask) {
		f.Fatalf("%d heads for %d topics, %v", len(heads), len(ask), err)
	}
	for i := range want {
		if heads[i] != want[i] {
			f.Errorf("the head of %s is %v, want %v", names[i], heads[i], want[i])
		}
	}
	if heads[20].Seq != 0 {
		f.Errorf("the head of a topic without entries is %v", heads[20])
	}
	if heads[21] != want[3] {
		f.Errorf("a topic asked for twice: %v and %v", heads[3], heads[21])
	}
}

func checkTopics(f *fixture) {
	b := f.open()
	names := []string{
		"a", "A", "a ", " a", "a:b", "a:", ":a", "a.b", "meta.a", "a{b}", "{a}", "{a}b", "{}", "a*", "*", "a?", "[a]", "a\nb", "a\x00", "\x00",
		"a/b", "a//b", "ä", "a\u0308", "日本", "0", "00", "e:a", "s:a", "d:a", "a:s", "%61", "a%", "a+b", "a,b", "\U0001f600",
		strings.Repeat("x", backplane.MaxTopic), strings.Repeat("x", backplane.MaxTopic-1), strings.Repeat("é", backplane.MaxTopic/2),
	}
	for i, name := range names {
		if err := backplane.CheckTopic(name); err != nil {
			f.Fatalf("the suite uses a bad name: %v", err)
		}
		f.appendID(b, name, "id", fmt.Sprint(i))
	}
	for i, name := range names {
		if got := texts(f.readAll(b, name, f.start(b, name))); got != fmt.Sprint(i) {
			f.Errorf("the topic %q has %q, want %q", name, got, fmt.Sprint(i))
		}
	}
}

func checkPayloads(f *fixture) {
	b := f.open()
	big := strings.Repeat("0123456789abcdef", 1<<14) // 256 KiB
	binary := make([]byte, 256)
	for i := range binary {
		binary[i] = byte(i)
	}
	var want []backplane.Message
	for _, data := range []string{"", "x", string(binary), big, "\r\n", "日本", "last"} {
		m := backplane.Message{Key: "key of " + data[:min(len(data), 3)], Data: []byte(data)}
		if m.Check() != nil {
			m.Key = ""
		}
		want = append(want, m)
		if _, err := b.Append(f.ctx, "t", m); err != nil {
			f.Fatalf("append of %d bytes: %v", len(data), err)
		}
	}
	h := f.hub(f.open())
	r := f.subscribe(h, "t", &backplane.SubscribeOptions{Last: -1})
	r.until("last")
	entries := f.readAll(b, "t", f.start(b, "t"))
	for i, e := range entries {
		if string(e.Data) != string(want[i].Data) || e.Key != want[i].Key {
			f.Errorf("message %d: %d bytes with the key %q became %d bytes with the key %q", i+1, len(want[i].Data), want[i].Key, len(e.Data), e.Key)
		}
		if r.seen[i] != string(want[i].Data) {
			f.Errorf("message %d of %d bytes became %d bytes at a subscriber", i+1, len(want[i].Data), len(r.seen[i]))
		}
	}
}

// A spy is a Sink that remembers.
type spy struct {
	mu        sync.Mutex // guards all below
	entries   map[string][]replay.Entry
	bells     map[string]int
	ephemeral map[string][]string
	calls     int
	closed    bool // no call is expected any more
	late      bool // but there was one
}

func newSpy() *spy {
	return &spy{entries: map[string][]replay.Entry{}, bells: map[string]int{}, ephemeral: map[string][]string{}}
}

func (s *spy) call(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	s.late = s.late || s.closed
	f()
}

func (s *spy) Entry(topic string, e replay.Entry) {
	s.call(func() { s.entries[topic] = append(s.entries[topic], e) })
}
func (s *spy) Doorbell(topic string) { s.call(func() { s.bells[topic]++ }) }
func (s *spy) Ephemeral(topic string, data []byte) {
	s.call(func() { s.ephemeral[topic] = append(s.ephemeral[topic], string(data)) })
}
func (s *spy) Interrupted(error, ...string) { s.call(func() {}) }

// told returns how often the spy was told of something in a topic.
func (s *spy) told(topic string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.entries[topic]) + s.bells[topic]
}

func checkWatch(f *fixture) {
	a, b := f.open(), f.open()
	s := newSpy()
	w := a.Watch(s)
	f.Cleanup(func() { w.Close() })
	names := some("topic", 10)
	if err := w.Add(f.ctx, names...); err != nil {
		f.Fatalf("Add: %v", err)
	}
	for i, name := range names {
		f.append([]backplane.Backplane{a, b}[i%2], name, "now") // at once: it is confirmed
	}
	f.append(b, "other", "not watched")
	for _, name := range names {
		f.until("the sink is told of a message in "+name, func() bool { return s.told(name) > 0 })
		stored := f.readAll(b, name, f.start(b, name))
		s.mu.Lock()
		for _, e := range s.entries[name] {
			if e.Pos != stored[0].Pos || e.Prev != stored[0].Prev || e.Key != stored[0].Key || string(e.Data) != "now" || e.At.IsZero() {
				f.Errorf("the sink was told %+v, but stored is %+v", e, stored[0])
			}
		}
		s.mu.Unlock()
	}
	if s.told("other") > 0 {
		f.Errorf("the sink was told of a topic that is not watched")
	}
	if err := a.Watch(newSpy()).Close(); err != nil {
		f.Errorf("Close of a Watcher that watches nothing: %v", err)
	}
}

func checkWatchAgain(f *fixture) {
	b := f.open()
	s := newSpy()
	w := b.Watch(s)
	f.Cleanup(func() { w.Close() })
	for i := range 3 {
		for range 2 {
			if err := w.Add(f.ctx, "t", "u"); err != nil {
				f.Fatalf("Add: %v", err)
			}
		}
		before := s.told("t")
		f.append(b, "t", fmt.Sprint("m", i))
		f.until("the sink is told, in round "+fmt.Sprint(i), func() bool { return s.told("t") > before })
		w.Remove("t", "unknown")
	}
	before := s.told("u")
	f.append(b, "u", "still watched")
	f.until("the sink is told of the topic that was not removed", func() bool { return s.told("u") > before })
}

func checkWatchClose(f *fixture) {
	a, b := f.open(), f.open()
	for round := range 10 {
		s := newSpy()
		w := a.Watch(s)
		if err := w.Add(f.ctx, "t"); err != nil {
			f.Fatalf("Add: %v", err)
		}
		stop, done := make(chan struct{}), make(chan struct{})
		f.running.Go(func() {
			defer close(done)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-f.ctx.Done():
					return
				default:
				}
				b.Append(f.ctx, "t", backplane.Message{Data: []byte(fmt.Sprint(round, i))})
			}
		})
		f.until("the sink is told", func() bool { return s.told("t") > 0 })
		if err := w.Close(); err != nil {
			f.Errorf("Close: %v", err)
		}
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		f.append(b, "t", fmt.Sprint("after ", round))
		f.pause()
		close(stop)
		<-done
		s.mu.Lock()
		if s.late {
			f.Errorf("the sink was called after Close")
		}
		s.mu.Unlock()
		if err := w.Add(f.ctx, "t"); !errors.Is(err, backplane.ErrClosed) {
			f.Errorf("Add after Close: %v, want ErrClosed", err)
		}
		if f.Failed() {
			return
		}
	}
}

func checkClose(f *fixture) {
	b, other := f.open(), f.open()
	f.append(b, "t", "one")
	w := b.Watch(newSpy())
	if err := w.Add(f.ctx, "t"); err != nil {
		f.Fatalf("Add: %v", err)
	}
	for range 2 {
		if err := b.Close(); err != nil {
			f.Fatalf("Close: %v", err)
		}
	}
	r, err := b.Append(f.ctx, "t", backplane.Message{Data: []byte("two")})
	if !errors.Is(err, backplane.ErrClosed) || r.Outcome != backplane.NotStored {
		f.Errorf("Append after Close: %v, %v", r.Outcome, err)
	}
	if _, err := b.Read(f.ctx, "t", replay.Position{}, all); !errors.Is(err, backplane.ErrClosed) {
		f.Errorf("Read after Close: %v", err)
	}
	if err := w.Add(f.ctx, "u"); !errors.Is(err, backplane.ErrClosed) {
		f.Errorf("Add after Close: %v", err)
	}
	if err := w.Close(); err != nil {
		f.Errorf("Close of a Watcher after Close: %v", err)
	}
	if h, ok := b.(backplane.HeadReader); ok {
		if _, err := h.Heads(f.ctx, []string{"t"}); !errors.Is(err, backplane.ErrClosed) {
			f.Errorf("Heads after Close: %v", err)
		}
	}
	if e, ok := b.(backplane.EphemeralPublisher); ok {
		if err := e.PublishEphemeral(f.ctx, "t", nil); !errors.Is(err, backplane.ErrClosed) {
			f.Errorf("PublishEphemeral after Close: %v", err)
		}
	}
	if _, err := other.Read(f.ctx, "t", replay.Position{}, all); err != nil && !errors.Is(err, backplane.ErrClosed) {
		f.Errorf("Read on another node: %v", err) // a Backplane in memory is one for all
	}
}

func checkContext(f *fixture) {
	b := f.open()
	f.append(b, "t", "one")
	cause := errors.New("the cause")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(cause)
	r, err := b.Append(ctx, "t", backplane.Message{Data: []byte("two")})
	if !errors.Is(err, cause) {
		f.Errorf("Append with a context that is done: %v", err)
	}
	if stored := len(f.readAll(b, "t", f.start(b, "t"))) == 2; stored && r.Outcome == backplane.NotStored ||
		r.Outcome != backplane.NotStored && r.Outcome != backplane.Unknown {
		f.Errorf("the outcome is %q, but stored: %t", r.Outcome, stored)
	}
	if _, err := b.Read(ctx, "t", replay.Position{}, all); !errors.Is(err, cause) {
		f.Errorf("Read with a context that is done: %v", err)
	}
	w := b.Watch(newSpy())
	f.Cleanup(func() { w.Close() })
	if err := w.Add(ctx, "t"); !errors.Is(err, cause) {
		f.Errorf("Add with a context that is done: %v", err)
	}
}

func checkEphemeral(f *fixture) {
	a, b := f.open(), f.open()
	if _, ok := b.(backplane.EphemeralPublisher); !ok {
		f.Skipf("SKIPPED: %T is not an EphemeralPublisher", b)
	}
	s := newSpy()
	w := a.Watch(s)
	f.Cleanup(func() { w.Close() })
	if err := w.Add(f.ctx, "t"); err != nil {
		f.Fatalf("Add: %v", err)
	}
	head := f.start(a, "t")
	data := "typing\x00\xff"
	if err := b.(backplane.EphemeralPublisher).PublishEphemeral(f.ctx, "t", []byte(data)); err != nil {
		f.Fatalf("PublishEphemeral: %v", err)
	}
	f.until("the ephemeral message has come", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.Contains(s.ephemeral["t"], data)
	})
	if got := f.readAll(a, "t", head); len(got) > 0 || s.told("t") > 0 {
		f.Errorf("it was stored: %s", texts(got))
	}
}

func checkPublishSubscribe(f *fixture) {
	hubs := []*backplane.Hub{f.hub(f.open()), f.hub(f.open())}
	var readers []*reader
	for i := range 4 {
		readers = append(readers, f.subscribe(hubs[i%2], "t", nil))
	}
	want := some("m", f.h.Entries/2)
	for i, text := range want {
		if r, err := hubs[i%2].Publish(f.ctx, "t", backplane.Message{Data: []byte(text)}); err != nil || r.Outcome != backplane.Committed {
			f.Fatalf("publish: %v, %v", r.Outcome, err)
		}
	}
	for _, r := range readers {
		r.expect(want...)
	}
}

func checkResume(f *fixture) {
	b := f.open()
	hubs := []*backplane.Hub{f.hub(b), f.hub(f.open())}
	r := f.subscribe(hubs[0], "t", nil)
	f.append(b, "t", "one", "two")
	r.expect("one", "two")
	at := r.at
	r.sub.Close()
	f.append(b, "t", "three", "four")
	for i := range 4 {
		again := f.subscribe(hubs[i%2], "t", &backplane.SubscribeOptions{After: at})
		if i < 2 {
			again.expect("three", "four")
			if i == 1 {
				at = again.at
			}
		} else {
			text := fmt.Sprint("then ", i)
			f.append(b, "t", text)
			again.expect(text)
			at = again.at
		}
		again.sub.Close()
	}
}

func checkResumeTrimmed(f *fixture) {
	b := f.open()
	at := f.append(b, "t", "one")
	n := f.h.Entries + f.h.Slack + 7
	texts := some("m", n)
	f.append(b, "t", texts...)
	h := f.hub(f.open())
	r := f.subscribe(h, "t", &backplane.SubscribeOptions{After: at[0]})
	r.until(texts[n-1])
	if len(r.resets) != 1 || r.resets[0].Reason != replay.ReasonTrimmed {
		f.Fatalf("saw %d Resets: %q", len(r.resets), r.seen)
	}
	if got := len(r.seen) - 1; got+int(r.resets[0].Missed) != n {
		f.Fatalf("%d messages and %d missed, of %d", got, r.resets[0].Missed, n)
	}
	f.append(b, "t", "live")
	r.until("live")
	if len(r.resets) != 1 {
		f.Fatalf("one more Reset: %q", r.seen)
	}
}

func checkSlowSubscriber(f *fixture) {
	b := f.open()
	h := f.hub(b)
	slow, quick := f.subscribe(h, "t", nil), f.subscribe(h, "t", nil)
	f.append(b, "t", "first")
	slow.until("first")
	quick.until("first")
	n := f.h.Entries + 9
	want := some("m", n)
	for _, text := range want {
		f.append(b, "t", text)
		quick.until(text)
	}
	if len(quick.resets) > 0 || len(quick.seen) != n+1 {
		f.Fatalf("the quick subscriber saw %q", quick.seen)
	}
	slow.until(want[n-1])
	if len(slow.resets) != 1 || slow.resets[0].Reason != replay.ReasonTrimmed || slow.resets[0].Missed != 9 {
		f.Fatalf("the slow subscriber saw the Resets %+v", slow.resets)
	}
	if len(slow.seen) != 2+f.h.Entries {
		f.Fatalf("the slow subscriber saw %d messages, want %d", len(slow.seen)-2, f.h.Entries)
	}
}

func checkQuiet(f *fixture) {
	b := f.open()
	h := f.hub(b)
	quiet := f.subscribe(h, "t", nil)
	f.append(b, "t", "one")
	quiet.expect("one")
	quiet.sub.Close()
	other := some("m", 2*f.h.Entries)
	f.append(b, "other", other...)
	again := f.subscribe(f.hub(f.open()), "t", &backplane.SubscribeOptions{After: quiet.at})
	f.append(b, "t", "two")
	again.expect("two")
}
