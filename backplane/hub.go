package backplane

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-ws/holdfast/replay"
)

// Defaults of [Options].
const (
	DefaultSweep      = 5 * time.Second
	DefaultLinger     = time.Minute
	DefaultMaxMessage = 1 << 20
)

// Options are the choices for a [Hub]. Nil means all defaults.
type Options struct {
	// Limits returns how much of a topic the Hub keeps for its subscribers. What
	// it returns should not be less than what the backplane keeps: a subscriber is
	// given nothing that the Hub has no room for. It is called without a lock when
	// the topic gets its first subscriber. Nil means the defaults of
	// replay.Limits.
	Limits func(topic string) replay.Limits

	// Sweep is how often the Hub compares what it has with the heads at the
	// backplane, and so how long a message may remain unnoticed whose hint, and
	// those of all that follow, are lost. Times are spread by a quarter. Zero
	// means DefaultSweep, negative never.
	//
	// It also bounds for how long a node may not know that the backplane has gone
	// back to an older state, if that breaks no connection and nothing is published.
	// Until then the node still hands out what is lost: a subscriber that was told
	// of the loss by another node, and comes to this one, gets lost messages again
	// and then a second Reset. A position that this node cannot know, and a topic in
	// which it has noticed the loss, make it look at once.
	Sweep time.Duration

	// Linger is how long a topic is still followed after its last subscriber has
	// gone, to within a second, in case one comes back. Zero means DefaultLinger;
	// with a negative one the topic is dropped at the next check.
	Linger time.Duration

	// MaxMessage is the greatest length of Data that Publish takes. Zero means
	// DefaultMaxMessage, negative no limit.
	MaxMessage int

	// Outbox keeps messages that are published while the backplane is away. Nil
	// means none: Publish fails at once.
	Outbox *Outbox

	// Snapshot returns the state of a topic, for subscribers who cannot be given
	// all that they missed: their Reset carries it. The state must contain all
	// messages up to head, which was read before, and nothing after asOf; the zero
	// Position for asOf stands for head. What follows asOf is then delivered as
	// usual, so that a message between head and asOf is harmless to a state that
	// takes a message twice, if asOf is not known.
	//
	// It is called on a goroutine of its own, for a topic by one at a time whose
	// result all wait for who need it. It may block until ctx is done, which is
	// after 10 s or in Close, and may call back. If it fails, that is logged, and
	// subscribers get their Reset without it. Nil means no snapshots.
	Snapshot func(ctx context.Context, topic string, head replay.Position) (data []byte, asOf replay.Position, err error)

	// Logger gets what an operator wants to know, and never what messages contain.
	// A message that comes again with the same error is logged ever more rarely, with
	// a count, whatever the topic; one with another error at once. Nil means no log.
	Logger *slog.Logger
}

// A Hub connects the subscribers and publishers of one process to a [Backplane],
// and keeps the promise of this package whatever the backplane loses of its hints.
// However many subscribers a topic has here, it is watched, and read, once.
//
// Make one with [New] for each process, and Close it. A Hub is safe for concurrent
// use.
type Hub struct {
	bp     Backplane
	header HeadReader // nil if bp is none
	opts   Options
	log    logbook

	watcher Watcher
	ctx     context.Context // ends in Close
	cancel  context.CancelFunc
	closed  atomic.Bool
	done    chan struct{}  // closed at the end of the first Close
	wg      sync.WaitGroup // all goroutines
	outbox  *outbox        // nil without

	mu     sync.RWMutex // guards topics, and the subs and idle of each. workMu may be taken under it
	topics map[string]*topic

	workMu  sync.Mutex // guards all below. Nothing is locked under it
	ended   bool       // no goroutine is started any more
	work    []*topic   // to be read, in this order
	workers int
	toWatch []*topic
	toDrop  []string        // no longer to be watched
	adding  map[string]bool // names in calls of Add that are under way
	adds    int             // of these calls
	alone   int             // of these, for a topic whose last one has failed

	dirty chan struct{} // holds a token if a sweep is wanted now
	doubt chan struct{} // holds a token if a topic's history has changed: so may those of others
	count counters
}

// How long anything may take at the backplane, and how the Hub works on many
// topics.
const (
	callTimeout = 10 * time.Second
	grace       = 20 * time.Millisecond // for a hint that another has overtaken
	maxWorkers  = 32                    // reads at the same time
	maxWatch    = 1024                  // topics in one Add
	maxHeads    = 512                   // topics in one Heads
	maxEarly    = 256                   // hints kept for a topic that cannot be inserted yet
	maxAdds     = 8                     // calls of Add at the same time

	maxEarlyBytes = 1 << 20
)

// New returns a Hub on bp, which remains the caller's to close, after the Hub. It
// does not wait for bp: a backplane that is away is tried again, for as long as
// somebody wants something of it.
func New(bp Backplane, opts *Options) *Hub {
	h := &Hub{bp: bp, topics: map[string]*topic{}, adding: map[string]bool{}, dirty: make(chan struct{}, 1), doubt: make(chan struct{}, 1), done: make(chan struct{})}
	if opts != nil {
		h.opts = *opts
	}
	o := &h.opts
	if o.Limits == nil {
		o.Limits = func(string) replay.Limits { return replay.Limits{} }
	}
	if o.Sweep == 0 {
		o.Sweep = DefaultSweep
	}
	if o.Linger == 0 {
		o.Linger = DefaultLinger
	}
	if o.MaxMessage == 0 {
		o.MaxMessage = DefaultMaxMessage
	}
	h.log.log = o.Logger
	if h.log.log == nil {
		h.log.log = slog.New(slog.DiscardHandler)
	}
	h.header, _ = bp.(HeadReader)
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.watcher = bp.Watch(sink{h})
	if o.Outbox != nil {
		h.outbox = newOutbox(h, *o.Outbox)
	}
	h.wg.Go(h.sweepLoop)
	return h
}

// Publish appends a message to a topic, for all who are subscribed to it on any
// node, and those who will resume. It returns when the backplane has said what
// became of it, or ctx is done: the wait is bounded by ctx alone.
//
// If there is an error, the receipt's outcome tells whether the message may be
// stored all the same; then publish it again with the ID of the receipt to find
// out. The errors are [*InputError], [ErrClosed], what the backplane returned,
// which wraps [ErrUnavailable] while it is away, and [ErrOutboxFull]. With an
// [Outbox] the receipt is Queued instead of the error that the backplane is away.
//
// The messages of a publisher that waits for each receipt keep their order.
func (h *Hub) Publish(ctx context.Context, topic string, m Message) (Receipt, error) {
	if err := h.checkPublish(topic, m); err != nil {
		return Receipt{Outcome: NotStored, ID: m.ID}, err
	}
	if m.ID == "" {
		m.ID = rand.Text()
	}
	if h.outbox != nil {
		return h.outbox.publish(ctx, topic, m)
	}
	return h.append(ctx, topic, m)
}

func (h *Hub) checkPublish(topic string, m Message) error {
	if h.closed.Load() {
		return ErrClosed
	}
	if err := CheckTopic(topic); err != nil {
		return err
	}
	if err := m.Check(); err != nil {
		return err
	}
	if h.opts.MaxMessage >= 0 && len(m.Data) > h.opts.MaxMessage {
		return &InputError{"Data", fmt.Sprintf("has %d bytes, more than %d", len(m.Data), h.opts.MaxMessage)}
	}
	return nil
}

// append is Append with the counters.
func (h *Hub) append(ctx context.Context, topic string, m Message) (Receipt, error) {
	r, err := h.bp.Append(ctx, topic, m)
	r.ID = m.ID
	switch {
	case err == nil && (r.Outcome == Committed || r.Outcome == Duplicate):
		h.count.published.Add(1)
		return r, nil
	case err == nil:
		err = fmt.Errorf("backplane: Append returned the outcome %q without an error", r.Outcome)
		r.Outcome = Unknown
	case r.Outcome != NotStored:
		r.Outcome = Unknown
	}
	h.count.failed.Add(1)
	return r, err
}

// PublishEphemeral passes data on to those who are subscribed to topic at this
// moment: what is worth nothing a second later, such as "is typing". It is not
// stored, has no number, is never queued, and may get lost without anybody being
// told. Data is not copied.
//
// It returns [errors.ErrUnsupported] if the backplane cannot do that.
func (h *Hub) PublishEphemeral(ctx context.Context, topic string, data []byte) error {
	if err := h.checkPublish(topic, Message{Data: data}); err != nil {
		return err
	}
	p, ok := h.bp.(EphemeralPublisher)
	if !ok {
		return fmt.Errorf("backplane: %T has no ephemeral messages: %w", h.bp, errors.ErrUnsupported)
	}
	return p.PublishEphemeral(ctx, topic, data)
}

// Close ends the Hub: no more is published or subscribed, the outbox is given until
// ctx is done to become empty, and then all subscriptions end with [ErrClosed].
// Messages still in the outbox are handed to [Outbox.Done] with that error. Close
// waits for all that the Hub has called, a Snapshot or Done included, and when it
// returns nothing of the Hub runs any more. It returns the [context.Cause] of ctx if
// the outbox was not emptied.
//
// It may be called again: a later call only waits for the first, and returns nil when that
// has returned, or the cause of its own ctx when that is done earlier.
func (h *Hub) Close(ctx context.Context) (err error) {
	if h.closed.Swap(true) {
		select {
		case <-h.done:
			return nil
		default:
		}
		select {
		case <-h.done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	defer close(h.done)
	if h.outbox != nil {
		err = h.outbox.close(ctx)
	}
	h.workMu.Lock()
	h.ended = true
	h.workMu.Unlock()
	h.mu.Lock()
	topics := h.topics
	h.topics = nil // Subscribe looks
	h.mu.Unlock()
	h.cancel()
	h.watcher.Close()
	for _, t := range topics {
		t.end()
	}
	h.wg.Wait()
	return err
}

// spawn runs f on a goroutine that Close waits for, unless Close has begun to wait.
// workMu is held.
func (h *Hub) spawn(f func()) {
	if !h.ended {
		h.wg.Go(f)
	}
}

// call returns a context for one call of the backplane.
func (h *Hub) call() (context.Context, context.CancelFunc) {
	return context.WithTimeout(h.ctx, callTimeout)
}

// Stats are counts since the Hub was made, but for the first group.
type Stats struct {
	Topics      int // followed now
	Subscribers int // now
	Queued      int // messages in the outbox now
	QueuedBytes int64

	Published     uint64 // committed or duplicate
	Failed        uint64 // appends that ended in an error
	Hints         uint64 // told by the backplane
	Duplicates    uint64 // hints for what was there
	Interruptions uint64 // told by the backplane
	Reads         uint64 // calls of Read
	Repairs       uint64 // reads that found entries which no hint had brought
	Rewinds       uint64 // reads that found another history than before
	Errors        uint64 // calls of the backplane, other than Append, that failed
	Resets        uint64 // given to subscribers
}

type counters struct {
	published, failed, hints, duplicates, interruptions, reads, repairs, rewinds, errors, resets atomic.Uint64
	subscribers                                                                                  atomic.Int64
}

// Stats returns a snapshot.
func (h *Hub) Stats() Stats {
	c := &h.count
	s := Stats{
		Subscribers:   int(c.subscribers.Load()),
		Published:     c.published.Load(),
		Failed:        c.failed.Load(),
		Hints:         c.hints.Load(),
		Duplicates:    c.duplicates.Load(),
		Interruptions: c.interruptions.Load(),
		Reads:         c.reads.Load(),
		Repairs:       c.repairs.Load(),
		Rewinds:       c.rewinds.Load(),
		Errors:        c.errors.Load(),
		Resets:        c.resets.Load(),
	}
	h.mu.RLock()
	s.Topics = len(h.topics)
	h.mu.RUnlock()
	if h.outbox != nil {
		s.Queued, s.QueuedBytes = h.outbox.len()
	}
	return s
}
