package backplane

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-ws/holdfast/replay"
)

// Defaults of [MemoryOptions], and how many IDs are remembered.
const (
	DefaultForget   = time.Hour
	DefaultIDWindow = 2 * time.Minute
	MaxIDs          = 65536 // of a topic; beyond that the oldest are forgotten early
)

// MemoryOptions are the choices for a [Memory]. Nil means all defaults.
type MemoryOptions struct {
	// Limits returns what a topic may store. It is called when the topic comes into
	// being, without a lock. Nil means the defaults of replay.Limits
	// for all.
	Limits func(topic string) replay.Limits

	// Forget is how long a topic without entries is kept that nobody watches,
	// reads or writes, to within a quarter. Who comes back later with a position
	// in it gets a Reset. A topic that has entries is kept until they are too old.
	// Zero means DefaultForget, negative for ever.
	Forget time.Duration

	// IDWindow is how long the ID of a message is remembered. Zero means
	// DefaultIDWindow, negative not at all.
	IDWindow time.Duration
}

// Memory is a [Backplane] within the process: for a service on one machine, for
// development, and for tests. Its positions are like those of any other. All is
// lost when the process ends, and readers who come back then are told so.
//
// It is safe for concurrent use. Its sinks are called within Append.
type Memory struct {
	opts MemoryOptions
	stop chan struct{}
	wg   sync.WaitGroup

	mu     sync.RWMutex // guards topics and closed; a topic's lock may be taken under it
	topics map[string]*memTopic
	closed bool
}

var (
	_ HeadReader         = (*Memory)(nil)
	_ EphemeralPublisher = (*Memory)(nil)
)

type memTopic struct {
	log *replay.Log

	// mu guards all below. The log's lock may be taken under it.
	mu       sync.Mutex
	used     time.Time
	gone     bool // forgotten, or the Memory is closed: look it up again
	ids      map[string]memID
	order    []string // the keys of ids, oldest first
	watchers []*memWatcher
}

type memID struct {
	pos replay.Position
	at  time.Time
}

// NewMemory returns an empty Memory. Close it.
func NewMemory(opts *MemoryOptions) *Memory {
	m := &Memory{topics: map[string]*memTopic{}, stop: make(chan struct{})}
	if opts != nil {
		m.opts = *opts
	}
	if m.opts.Forget == 0 {
		m.opts.Forget = DefaultForget
	}
	if m.opts.IDWindow == 0 {
		m.opts.IDWindow = DefaultIDWindow
	}
	if m.opts.Forget > 0 {
		m.wg.Go(m.janitor)
	}
	return m
}

// janitor forgets idle topics.
func (m *Memory) janitor() {
	tick := time.NewTicker(max(m.opts.Forget/4, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-m.stop:
			return
		case <-tick.C:
		}
		m.mu.RLock()
		all := make(map[string]*memTopic, len(m.topics))
		for name, t := range m.topics {
			all[name] = t
		}
		m.mu.RUnlock()
		for name, t := range all {
			t.mu.Lock()
			t.forgetIDs(m.opts.IDWindow)
			oldest, head := t.log.Bounds()
			t.gone = len(t.watchers) == 0 && oldest == head && time.Since(t.used) >= m.opts.Forget
			gone := t.gone
			t.mu.Unlock()
			if gone {
				m.mu.Lock()
				delete(m.topics, name)
				m.mu.Unlock()
			}
		}
	}
}

// topic returns a topic, locked. It comes into being when it is first asked for.
func (m *Memory) topic(ctx context.Context, name string) (*memTopic, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	for {
		m.mu.RLock()
		t, closed := m.topics[name], m.closed
		m.mu.RUnlock()
		if closed {
			return nil, ErrClosed
		}
		if t == nil {
			var limits replay.Limits
			if m.opts.Limits != nil {
				limits = m.opts.Limits(name)
			}
			fresh := &memTopic{log: replay.New(limits), ids: map[string]memID{}}
			m.mu.Lock()
			if t = m.topics[name]; t == nil && !m.closed {
				t = fresh
				m.topics[name] = t
			}
			m.mu.Unlock()
			if t == nil {
				return nil, ErrClosed
			}
		}
		t.mu.Lock()
		if !t.gone {
			t.used = time.Now()
			return t, nil
		}
		t.mu.Unlock() // it is about to be taken out of the map
	}
}

// Append implements [Backplane].
func (m *Memory) Append(ctx context.Context, topic string, msg Message) (Receipt, error) {
	t, err := m.topic(ctx, topic)
	if err != nil {
		return Receipt{Outcome: NotStored, ID: msg.ID}, err
	}
	window := m.opts.IDWindow
	if msg.ID != "" {
		t.forgetIDs(window)
		if known, ok := t.ids[msg.ID]; ok {
			t.mu.Unlock()
			return Receipt{Duplicate, msg.ID, known.pos}, nil
		}
	}
	e, err := t.log.Append(msg.Key, msg.Data)
	if err != nil { // 2⁶⁴ messages; a new epoch
		t.log.Reset(replay.Position{})
		clear(t.ids)
		t.order = nil
		e, _ = t.log.Append(msg.Key, msg.Data)
	}
	if msg.ID != "" && window > 0 {
		t.ids[msg.ID] = memID{e.Pos, t.used}
		t.order = append(t.order, msg.ID)
		t.forgetIDs(window)
	}
	watchers := t.watchers // never changed, only replaced
	t.mu.Unlock()
	for _, w := range watchers {
		if w.begin() {
			w.sink.Entry(topic, e)
			w.calls.Done()
		}
	}
	return Receipt{Committed, msg.ID, e.Pos}, nil
}

// forgetIDs forgets those that are too old or too many.
func (t *memTopic) forgetIDs(window time.Duration) {
	now, n := time.Now(), 0
	for n < len(t.order) && (len(t.order)-n > MaxIDs || now.Sub(t.ids[t.order[n]].at) >= window) {
		delete(t.ids, t.order[n])
		n++
	}
	if t.order = t.order[n:]; len(t.order) == 0 {
		t.order = nil
	}
}

// Read implements [Backplane].
func (m *Memory) Read(ctx context.Context, topic string, after replay.Position, max replay.Budget) (Page, error) {
	t, err := m.topic(ctx, topic)
	if err != nil {
		return Page{}, err
	}
	defer t.mu.Unlock()
	var b replay.Batch
	if after.IsZero() {
		t.log.Tail(&b, max)
	} else if err := t.log.After(after, &b, max); err != nil {
		return Page{}, err
	}
	return Page{Entries: b.Entries, Head: b.Head}, nil
}

// Heads implements [HeadReader].
func (m *Memory) Heads(ctx context.Context, topics []string) ([]replay.Position, error) {
	heads := make([]replay.Position, len(topics))
	for i, name := range topics {
		t, err := m.topic(ctx, name)
		if err != nil {
			return nil, err
		}
		_, heads[i] = t.log.Bounds()
		t.mu.Unlock()
	}
	return heads, nil
}

// PublishEphemeral implements [EphemeralPublisher].
func (m *Memory) PublishEphemeral(ctx context.Context, topic string, data []byte) error {
	t, err := m.topic(ctx, topic)
	if err != nil {
		return err
	}
	watchers := t.watchers
	t.mu.Unlock()
	for _, w := range watchers {
		if w.begin() {
			w.sink.Ephemeral(topic, data)
			w.calls.Done()
		}
	}
	return nil
}

// Watch implements [Backplane].
func (m *Memory) Watch(s Sink) Watcher {
	return &memWatcher{m: m, sink: s, topics: map[string]*memTopic{}}
}

// Close implements [Backplane]. What is stored is gone. After Close nothing is stored:
// an Append that is still running has stored its message before, or fails.
func (m *Memory) Close() error {
	m.mu.Lock()
	first := !m.closed
	m.closed = true
	m.mu.Unlock()
	if first {
		close(m.stop)
	}
	m.wg.Wait() // the janitor, which decides about gone as well
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.topics {
		t.mu.Lock()
		t.gone = true
		t.mu.Unlock()
	}
	clear(m.topics)
	return nil
}

type memWatcher struct {
	m    *Memory
	sink Sink

	mu     sync.Mutex // guards all below; a topic's lock may be taken under it
	closed bool
	topics map[string]*memTopic
	calls  sync.WaitGroup // of the sink; Add only while not closed
}

// begin reports whether the sink may be called. calls.Done must follow.
func (w *memWatcher) begin() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.calls.Add(1)
	}
	return !w.closed
}

func (w *memWatcher) Add(ctx context.Context, topics ...string) error {
	for _, name := range topics {
		t, err := w.m.topic(ctx, name)
		if err != nil {
			return err
		}
		if !slices.Contains(t.watchers, w) {
			t.watchers = append(slices.Clip(t.watchers), w)
		}
		t.mu.Unlock()
		w.mu.Lock()
		closed := w.closed
		if !closed {
			w.topics[name] = t
		}
		w.mu.Unlock()
		if closed {
			t.remove(w)
			return ErrClosed
		}
	}
	return nil
}

func (t *memTopic) remove(w *memWatcher) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watchers = slices.DeleteFunc(slices.Clone(t.watchers), func(x *memWatcher) bool { return x == w })
	t.used = time.Now()
}

func (w *memWatcher) Remove(topics ...string) {
	for _, name := range topics {
		w.mu.Lock()
		t := w.topics[name]
		delete(w.topics, name)
		w.mu.Unlock()
		if t != nil {
			t.remove(w)
		}
	}
}

func (w *memWatcher) Close() error {
	w.mu.Lock()
	w.closed = true
	topics := w.topics
	w.topics = nil
	w.mu.Unlock()
	for _, t := range topics {
		t.remove(w)
	}
	w.calls.Wait()
	return nil
}
