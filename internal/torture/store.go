// Package torture checks the promise, of a Hub alone and of the whole path to clients:
// a naive broker that misbehaves on command, a simulation of nodes, publishers and
// subscribers on it in virtual time, and a checker of what all of them saw.
package torture

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/replay"
)

// A Store is a broker with any number of nodes. It is written without regard to
// cost and shares no code with package replay, so that the two can be compared.
type Store struct {
	Entries int // kept of each topic; 0 for no limit
	Bug     Bug // planted

	mu     sync.Mutex // guards all below
	topics map[string]*stored
	nodes  []*Node
	all    []Event      // everything that was ever stored
	alive  map[int]bool // indices in all of what has not been lost
}

// stored is one topic. Its slices and maps are shared with saved states, and never
// changed in place.
type stored struct {
	head    replay.Position
	entries []replay.Entry
	ids     map[string]replay.Position
}

// A Bug makes a Store break one rule of its contract.
type Bug string

// The bugs, each named for the rule that is broken.
const (
	NumberTwice     Bug = "two entries get one number"
	Sparse          Bug = "numbers are not dense"
	NoDedup         Bug = "IDs are not looked at"
	IDsAcrossTopics Bug = "IDs count across topics"
	IDsOutliveEpoch Bug = "an ID is remembered beyond the epoch"
	NoBound         Bug = "nothing is ever dropped"
	SilentGap       Bug = "trimmed entries are skipped in silence"
	FalseGap        Bug = "one before the oldest is called a gap"
	OffByOne        Bug = "Read begins with the entry itself"
	IgnoreEpoch     Bug = "the epoch is not looked at"
	IgnoreTag       Bug = "the tag is not looked at"
	IgnorePrev      Bug = "the tag before the oldest is not looked at"
	AheadIsFine     Bug = "ahead of the head is taken for caught up"
	SameEpoch       Bug = "a new beginning has the old epoch"
	NoEpochOnRead   Bug = "a topic has no epoch until the first append"
	IgnoreBudget    Bug = "the budget is not looked at"
	TailFromStart   Bug = "the tail is read from the start"
	SharedNames     Bug = "topics that differ after a colon are one"
	BrokenLinks     Bug = "Prev is not the tag of the entry before"
	FalseHints      Bug = "hints are not what is stored"
	EarlyConfirm    Bug = "Add returns before the topic is watched"
	DeafAfterAdd    Bug = "what is watched is not told of"
	NoInterrupted   Bug = "an interruption is not reported"
	EarlyInterrupt  Bug = "an interruption is reported before hints flow again"
	CallsAfterClose Bug = "the sink is called after Close"
	OpenAfterClose  Bug = "calls succeed after Close"
	DeafToContext   Bug = "contexts are not looked at"
	HeadsWrong      Bug = "heads are in another order"
	LateEntry       Bug = "an entry appears below what was read"
	EvictInvents    Bug = "leftovers are returned after a new beginning"
	RestartForgets  Bug = "a restart forgets the head"
)

// NewStore returns an empty store that keeps so many entries of each topic.
func NewStore(entries int, bug Bug) *Store {
	return &Store{Entries: entries, Bug: bug, topics: map[string]*stored{}, alive: map[int]bool{}}
}

func (s *Store) epoch() uint64 {
	if s.Bug == SameEpoch {
		return 42
	}
	return rand.Uint64() | 1
}

// topic returns a topic, with the lock held.
func (s *Store) topic(name string) *stored {
	if s.Bug == SharedNames {
		for i, r := range name {
			if r == ':' {
				name = name[:i]
				break
			}
		}
	}
	t := s.topics[name]
	if t == nil {
		t = &stored{head: replay.Position{Epoch: s.epoch()}, ids: map[string]replay.Position{}}
		s.topics[name] = t
		s.alive[len(s.all)] = true
		s.all = append(s.all, Event{At: time.Now(), Topic: name, Pos: t.head, Stored: time.Now()})
	}
	return t
}

// append gives m its place.
func (s *Store) append(topic string, m backplane.Message) (backplane.Receipt, replay.Entry) {
	t := s.topic(topic)
	id := m.ID
	scope := t.ids
	if s.Bug == IDsAcrossTopics {
		scope = s.topic("\x00ids").ids
	}
	if pos, ok := scope[id]; ok && id != "" && s.Bug != NoDedup {
		return backplane.Receipt{Outcome: backplane.Duplicate, Pos: pos}, replay.Entry{}
	}
	e := replay.Entry{
		Pos:  replay.Position{Epoch: t.head.Epoch, Seq: t.head.Seq + 1, Tag: rand.Uint32()},
		Prev: t.head.Tag, At: time.Now(), Key: m.Key, Data: m.Data,
	}
	switch {
	case s.Bug == NumberTwice && e.Pos.Seq == 8:
		e.Pos.Seq--
	case s.Bug == Sparse && e.Pos.Seq == 8:
		e.Pos.Seq++
	case s.Bug == BrokenLinks && e.Pos.Seq == 8:
		e.Prev++
	}
	t.head = e.Pos
	s.alive[len(s.all)] = true
	s.all = append(s.all, Event{At: e.At, Topic: topic, Pos: e.Pos, Stored: e.At, Payload: string(e.Data)})
	t.entries = append(slices.Clip(t.entries), e)
	if s.Bug == LateEntry && e.Pos.Seq%8 == 0 { // hidden until the next append
		t.entries = t.entries[:len(t.entries)-1]
	} else if s.Bug == LateEntry && e.Pos.Seq%8 == 1 && e.Pos.Seq > 1 {
		hidden := replay.Entry{Pos: replay.Position{Epoch: e.Pos.Epoch, Seq: e.Pos.Seq - 1, Tag: e.Prev}}
		t.entries = slices.Insert(slices.Clone(t.entries), len(t.entries)-1, hidden)
	}
	if n := len(t.entries) - s.Entries; s.Entries > 0 && n > 0 && s.Bug != NoBound {
		t.entries = t.entries[n:]
	}
	if id != "" {
		scope = maps.Clone(scope)
		scope[id] = e.Pos
		if s.Bug == IDsAcrossTopics {
			s.topic("\x00ids").ids = scope
		} else {
			t.ids = scope
		}
	}
	return backplane.Receipt{Outcome: backplane.Committed, Pos: e.Pos}, e
}

// read is the whole of Backplane.Read.
func (s *Store) read(topic string, after replay.Position, max replay.Budget) (backplane.Page, error) {
	t := s.topic(topic)
	if s.Bug == NoEpochOnRead && t.head.Seq == 0 {
		delete(s.topics, topic)
	}
	page := backplane.Page{Head: t.head}
	limit, room := max.Entries, max.Bytes
	if limit == 0 {
		limit = replay.DefaultBatchEntries
	}
	if room == 0 {
		room = replay.DefaultBatchBytes
	}
	if s.Bug == IgnoreBudget {
		limit, room = -1, -1
	}
	fits := func(n int, bytes int64) bool {
		return n <= 1 || (limit < 0 || n <= limit) && (room < 0 || bytes <= room)
	}
	bytes := int64(0)
	if after.IsZero() && s.Bug != TailFromStart {
		n := 0
		for n < len(t.entries) {
			e := t.entries[len(t.entries)-1-n]
			if bytes += int64(len(e.Data) + len(e.Key)); !fits(n+1, bytes) {
				break
			}
			n++
		}
		page.Entries = slices.Clone(t.entries[len(t.entries)-n:])
		return page, nil
	}
	oldest := t.head
	if len(t.entries) > 0 {
		e := t.entries[0]
		oldest = replay.Position{Epoch: e.Pos.Epoch, Seq: e.Pos.Seq - 1, Tag: e.Prev}
	}
	gap := &replay.GapError{Want: after, Oldest: oldest, Head: t.head}
	from := after.Seq
	first := oldest.Seq
	if s.Bug == FalseGap && len(t.entries) == s.Entries {
		first++
	}
	switch {
	case after.IsZero(): // a bug
		from = oldest.Seq
	case after.Epoch != t.head.Epoch && s.Bug != IgnoreEpoch:
		gap.Reason = replay.ReasonEpoch
	case after.Seq > t.head.Seq && s.Bug != AheadIsFine:
		gap.Reason = replay.ReasonAhead
	case after.Seq < first && s.Bug != SilentGap:
		gap.Reason, gap.Missed = replay.ReasonTrimmed, oldest.Seq-after.Seq
	case after.Seq >= oldest.Seq && after.Seq <= t.head.Seq:
		tag := oldest.Tag
		if s.Bug == IgnorePrev && after.Seq == oldest.Seq {
			tag = after.Tag
		}
		for _, e := range t.entries {
			if e.Pos.Seq == after.Seq {
				tag = e.Pos.Tag
			}
		}
		if tag != after.Tag && s.Bug != IgnoreTag && s.Bug != IgnoreEpoch {
			gap.Reason = replay.ReasonForked
		}
	}
	if gap.Reason != "" {
		return backplane.Page{}, gap
	}
	if s.Bug == OffByOne && from > 0 {
		from--
	}
	for _, e := range t.entries {
		if e.Pos.Seq <= from {
			continue
		}
		if bytes += int64(len(e.Data) + len(e.Key)); !fits(len(page.Entries)+1, bytes) {
			break
		}
		page.Entries = append(page.Entries, e)
	}
	return page, nil
}

// Save returns a function that has the store go back to what it is now, as when a
// replica that has missed the rest becomes the master.
func (s *Store) Save() (restore func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	saved := map[string]stored{}
	for name, t := range s.topics {
		saved[name] = *t
	}
	alive := maps.Clone(s.alive)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.die(alive)
		s.topics = map[string]*stored{}
		for name, t := range saved {
			s.topics[name] = &t
		}
	}
}

// die notes what is lost if only this remains alive.
func (s *Store) die(alive map[int]bool) {
	for i := range s.alive {
		if !alive[i] {
			s.all[i].Died = append(s.all[i].Died, time.Now())
		}
	}
	s.alive = maps.Clone(alive)
	if s.alive == nil {
		s.alive = map[int]bool{}
	}
}

// Flush loses everything.
func (s *Store) Flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.die(nil)
	old := s.topics
	s.topics = map[string]*stored{}
	if s.Bug == IDsOutliveEpoch {
		for name, t := range old {
			s.topic(name).ids = t.ids
		}
	}
}

// Evict loses what says how far the numbers of a topic have got, but not the
// entries.
func (s *Store) Evict(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.topics[name]
	delete(s.topics, name)
	if s.Bug == EvictInvents && old != nil {
		s.topic(name).entries = old.entries
	}
}

// Expire drops all entries of a topic because they are too old.
func (s *Store) Expire(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.topic(name).entries = nil
}

// Restart ends the store's process, and begins it again on what it had on disk.
func (s *Store) Restart() {
	s.mu.Lock()
	if s.Bug == RestartForgets {
		for _, t := range s.topics {
			t.head.Seq = 0
		}
	}
	s.mu.Unlock()
	s.Cut()
}

// Cut breaks all connections. They are made anew at once.
func (s *Store) Cut() {
	s.mu.Lock()
	nodes := slices.Clone(s.nodes)
	s.mu.Unlock()
	for _, n := range nodes {
		n.Set(Link{Down: true})
		n.Set(Link{})
	}
}

// All returns everything that was ever stored, also what is lost.
func (s *Store) All() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all)
}

// A Link is what a node's connection to the store is like.
type Link struct {
	Down     bool          // calls fail at once, hints are lost
	Hang     bool          // calls hang until their context is done, hints are lost
	Latency  time.Duration // of each call, and of hints; at random up to that
	Drop     float64       // share of hints that are lost without anybody being told
	Repeat   float64       // share of hints that come twice
	Delay    float64       // share of hints that are late by up to Lateness
	Lateness time.Duration
	Ring     float64 // share of hints that are only a doorbell
	Unsure   float64 // share of appends that fail though they are stored
}

// A Node is one node's connection, a Backplane.
type Node struct {
	store *Store
	wg    sync.WaitGroup // hints on their way

	mu       sync.Mutex // guards all below
	link     Link
	closed   bool
	watchers []*watcher
}

var (
	_ backplane.HeadReader         = (*Node)(nil)
	_ backplane.EphemeralPublisher = (*Node)(nil)
)

// Open returns one more node.
func (s *Store) Open(link Link) *Node {
	n := &Node{store: s, link: link}
	s.mu.Lock()
	s.nodes = append(s.nodes, n)
	s.mu.Unlock()
	return n
}

var errLink = fmt.Errorf("link is down: %w", backplane.ErrUnavailable)

// Set changes the link. When it works again after it did not, the watchers are told
// that they were interrupted.
func (n *Node) Set(link Link) {
	n.mu.Lock()
	was := n.link
	n.link = link
	watchers := slices.Clone(n.watchers)
	n.mu.Unlock()
	bug := n.store.Bug
	broke := !was.Down && !was.Hang && (link.Down || link.Hang)
	healed := (was.Down || was.Hang) && !link.Down && !link.Hang
	if healed && bug != NoInterrupted && bug != EarlyInterrupt || broke && bug == EarlyInterrupt {
		for _, w := range watchers {
			w.tell(func(s backplane.Sink) { s.Interrupted(errLink) })
		}
	}
}

// Link returns what the link is like.
func (n *Node) Link() Link {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.link
}

// call is the way to the store and back. do runs with the store locked.
func (n *Node) call(ctx context.Context, do func()) (done bool, err error) {
	n.mu.Lock()
	link, closed := n.link, n.closed
	n.mu.Unlock()
	switch {
	case closed && n.store.Bug != OpenAfterClose:
		return false, backplane.ErrClosed
	case ctx.Err() != nil && n.store.Bug != DeafToContext:
		return false, context.Cause(ctx)
	case link.Down:
		return false, errLink
	case link.Hang:
		<-ctx.Done()
		return false, fmt.Errorf("no answer (%w): %w", context.Cause(ctx), backplane.ErrUnavailable)
	}
	wait(link.Latency / 2)
	n.store.mu.Lock()
	do()
	n.store.mu.Unlock()
	wait(link.Latency / 2)
	return true, nil
}

func wait(atMost time.Duration) {
	if atMost > 0 {
		time.Sleep(rand.N(atMost))
	}
}

// Append implements backplane.Backplane.
func (n *Node) Append(ctx context.Context, topic string, m backplane.Message) (r backplane.Receipt, err error) {
	done, err := n.call(ctx, func() {
		var e replay.Entry
		if r, e = n.store.append(topic, m); r.Outcome == backplane.Committed {
			for _, other := range n.store.nodes {
				other.hint(topic, e)
			}
		}
	})
	if !done {
		if n.Link().Hang {
			return backplane.Receipt{Outcome: backplane.Unknown}, err
		}
		return backplane.Receipt{Outcome: backplane.NotStored}, err
	}
	if rand.Float64() < n.Link().Unsure {
		return backplane.Receipt{Outcome: backplane.Unknown}, errLink
	}
	return r, nil
}

// hint sends one to this node's watchers. It runs with the store locked.
func (n *Node) hint(topic string, e replay.Entry) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.link
	if l.Down || l.Hang || n.closed || rand.Float64() < l.Drop || n.store.Bug == DeafAfterAdd {
		return
	}
	if n.store.Bug == FalseHints {
		e.Data = []byte("false")
	}
	copies := 1
	if rand.Float64() < l.Repeat {
		copies = 2
	}
	for range copies {
		late := l.Latency / 2
		if rand.Float64() < l.Delay {
			late += l.Lateness
		}
		ring := rand.Float64() < l.Ring
		for _, w := range n.watchers {
			if !w.has(topic) {
				continue
			}
			n.wg.Go(func() {
				wait(late)
				w.tell(func(s backplane.Sink) {
					if ring {
						s.Doorbell(topic)
					} else {
						s.Entry(topic, e)
					}
				})
			})
		}
	}
}

// Read implements backplane.Backplane.
func (n *Node) Read(ctx context.Context, topic string, after replay.Position, max replay.Budget) (page backplane.Page, err error) {
	var gap error
	if _, err := n.call(ctx, func() { page, gap = n.store.read(topic, after, max) }); err != nil {
		return backplane.Page{}, err
	}
	return page, gap
}

// Heads implements backplane.HeadReader.
func (n *Node) Heads(ctx context.Context, topics []string) (heads []replay.Position, err error) {
	_, err = n.call(ctx, func() {
		for _, name := range topics {
			heads = append(heads, n.store.topic(name).head)
		}
	})
	if n.store.Bug == HeadsWrong {
		slices.Reverse(heads)
	}
	return heads, err
}

// PublishEphemeral implements backplane.EphemeralPublisher.
func (n *Node) PublishEphemeral(ctx context.Context, topic string, data []byte) error {
	_, err := n.call(ctx, func() {
		for _, other := range n.store.nodes {
			other.mu.Lock()
			for _, w := range other.watchers {
				if w.has(topic) && !other.link.Down && !other.link.Hang {
					other.wg.Go(func() { w.tell(func(s backplane.Sink) { s.Ephemeral(topic, data) }) })
				}
			}
			other.mu.Unlock()
		}
	})
	return err
}

// Watch implements backplane.Backplane.
func (n *Node) Watch(s backplane.Sink) backplane.Watcher {
	w := &watcher{node: n, sink: s, topics: map[string]bool{}}
	n.mu.Lock()
	n.watchers = append(n.watchers, w)
	n.mu.Unlock()
	return w
}

// Close implements backplane.Backplane.
func (n *Node) Close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.store.mu.Lock()
	n.store.nodes = slices.DeleteFunc(n.store.nodes, func(x *Node) bool { return x == n })
	n.store.mu.Unlock()
	n.wg.Wait()
	return nil
}

type watcher struct {
	node *Node
	sink backplane.Sink

	mu     sync.RWMutex // guards topics and closed. Held while the sink is called, which does not call back
	topics map[string]bool
	closed bool
}

func (w *watcher) has(topic string) bool {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.topics[topic]
}

func (w *watcher) tell(f func(backplane.Sink)) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if !w.closed || w.node.store.Bug == CallsAfterClose {
		f(w.sink)
	}
}

func (w *watcher) Add(ctx context.Context, topics ...string) error {
	w.mu.RLock()
	closed := w.closed
	w.mu.RUnlock()
	if closed {
		return backplane.ErrClosed
	}
	add := func() {
		w.mu.Lock()
		for _, name := range topics {
			w.topics[name] = true
		}
		w.mu.Unlock()
	}
	if w.node.store.Bug == EarlyConfirm {
		w.node.wg.Go(func() { time.Sleep(100 * time.Millisecond); add() })
		return nil
	}
	_, err := w.node.call(ctx, add)
	return err
}

func (w *watcher) Remove(topics ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range topics {
		delete(w.topics, name)
	}
}

func (w *watcher) Close() error {
	w.mu.Lock()
	w.closed = true
	if w.node.store.Bug != CallsAfterClose {
		clear(w.topics)
	}
	w.mu.Unlock()
	return nil
}
