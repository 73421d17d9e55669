package backplane

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Defaults of [Outbox].
const (
	DefaultOutboxMessages = 1024
	DefaultOutboxBytes    = 1 << 20
	DefaultOutboxAge      = time.Minute
)

// An Outbox keeps messages in memory that are published while the backplane is
// away, until it is back. For a topic they keep their order, and messages that are
// published meanwhile go behind them. Each keeps its ID, so that one which was
// stored although its first try failed is not stored again.
//
// They are lost if the process ends without [Hub.Close].
type Outbox struct {
	// Messages and Bytes (of Data, Key and ID) are the most that is kept; beyond
	// that Publish fails with ErrOutboxFull. Zero means DefaultOutboxMessages and
	// DefaultOutboxBytes, negative no limit.
	Messages int
	Bytes    int64

	// Age is how long a message is kept. It should be less than the time for which
	// the backplane remembers IDs. Zero means DefaultOutboxAge, negative for ever.
	Age time.Duration

	// Done is told what became of each message that was Queued: Committed,
	// Duplicate, or NotStored or Unknown with the error, which is ErrExpired for
	// one that got too old and ErrClosed for one that was there at the end. It is
	// called by one goroutine at a time, in a topic's order, and the outbox waits
	// for it. It must not call Close. Nil means that nobody is told but the Logger.
	Done func(topic string, m Message, r Receipt, err error)
}

type outbox struct {
	hub  *Hub
	opts Outbox

	mu      sync.Mutex // guards all below
	queue   []*queued  // oldest first
	topics  map[string]int
	bytes   int64
	running bool
	closing bool          // no more is queued
	hurry   chan struct{} // holds a token when the next pass is not to wait
	empty   chan struct{} // closed when the goroutine has ended after closing
}

type queued struct {
	topic string
	m     Message
	at    time.Time
	last  Receipt // of the latest try
}

func (q *queued) size() int64 { return int64(len(q.m.Data) + len(q.m.Key) + len(q.m.ID)) }

func newOutbox(h *Hub, opts Outbox) *outbox {
	if opts.Messages == 0 {
		opts.Messages = DefaultOutboxMessages
	}
	if opts.Bytes == 0 {
		opts.Bytes = DefaultOutboxBytes
	}
	if opts.Age == 0 {
		opts.Age = DefaultOutboxAge
	}
	return &outbox{hub: h, opts: opts, topics: map[string]int{}, hurry: make(chan struct{}, 1), empty: make(chan struct{})}
}

// publish is Publish with the outbox behind it.
func (o *outbox) publish(ctx context.Context, topic string, m Message) (Receipt, error) {
	q := &queued{topic: topic, m: m, at: time.Now(), last: Receipt{Outcome: NotStored, ID: m.ID}}
	o.mu.Lock()
	behind := o.topics[topic] > 0
	o.mu.Unlock()
	var err error = ErrUnavailable
	if !behind {
		q.last, err = o.hub.append(ctx, topic, m)
		if err == nil || !errors.Is(err, ErrUnavailable) {
			return q.last, err
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.closing:
		return q.last, err
	case o.opts.Messages >= 0 && len(o.queue) >= o.opts.Messages,
		o.opts.Bytes >= 0 && o.bytes+q.size() > o.opts.Bytes:
		return q.last, errors.Join(ErrOutboxFull, err)
	}
	o.queue = append(o.queue, q)
	o.topics[topic]++
	o.bytes += q.size()
	if !o.running {
		o.running = true
		o.hub.workMu.Lock()
		o.hub.spawn(o.run)
		o.hub.workMu.Unlock()
	}
	return Receipt{Outcome: Queued, ID: m.ID}, nil
}

// run sends what is queued until there is no more.
func (o *outbox) run() {
	failures := 0
	for {
		if o.pass() {
			failures = 0
		}
		failures++
		o.mu.Lock()
		if len(o.queue) == 0 || o.hub.ctx.Err() != nil {
			o.running = false
			if o.closing {
				close(o.empty)
			}
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
		wait := time.NewTimer(pause(failures))
		select {
		case <-wait.C:
		case <-o.hurry:
		case <-o.hub.ctx.Done():
		}
		wait.Stop()
	}
}

// maxAway is how many topics may fail until a pass gives up: the others probably
// would too.
const maxAway = 4

// pass tries each message in turn, but none of a topic of which one has failed. It
// reports whether one was stored.
func (o *outbox) pass() (stored bool) {
	away := map[string]bool{}
	for i := 0; ; {
		o.mu.Lock()
		if i >= len(o.queue) || o.hub.ctx.Err() != nil {
			o.mu.Unlock()
			return stored
		}
		q := o.queue[i]
		o.mu.Unlock()
		var err error
		switch {
		case o.opts.Age >= 0 && time.Since(q.at) >= o.opts.Age:
			err = ErrExpired
		case away[q.topic] || len(away) >= maxAway:
			i++
			continue
		default:
			ctx, cancel := o.hub.call()
			var r Receipt
			r, err = o.hub.append(ctx, q.topic, q.m)
			late := ctx.Err() != nil // a backplane that hangs is away too, as in Close
			cancel()
			stored = stored || err == nil
			if err == nil || r.Outcome == Unknown {
				q.last = r // an earlier try may have been stored: Unknown remains
			}
			if err != nil && (late || errors.Is(err, ErrUnavailable)) {
				away[q.topic] = true
				i++
				continue
			}
		}
		o.mu.Lock()
		o.remove(i)
		o.mu.Unlock()
		o.done(q, err)
	}
}

// remove takes out message i. The lock is held.
func (o *outbox) remove(i int) {
	q := o.queue[i]
	copy(o.queue[i:], o.queue[i+1:])
	o.queue[len(o.queue)-1] = nil
	o.queue = o.queue[:len(o.queue)-1]
	o.bytes -= q.size()
	if o.topics[q.topic]--; o.topics[q.topic] == 0 {
		delete(o.topics, q.topic)
	}
}

func (o *outbox) done(q *queued, err error) {
	if err != nil {
		o.hub.log.Error("a queued message is given up", "topic", q.topic, "id", q.m.ID, "outcome", q.last.Outcome.String(), "error", err)
	}
	if o.opts.Done != nil {
		o.opts.Done(q.topic, q.m, q.last, err)
	}
}

func (o *outbox) len() (int, int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.queue), o.bytes
}

// close waits until the outbox is empty or ctx is done, and gives up what is left.
func (o *outbox) close(ctx context.Context) error {
	o.mu.Lock()
	o.closing = true
	o.hurry <- struct{}{}
	running := o.running
	o.mu.Unlock()
	if running {
		select {
		case <-o.empty:
		case <-ctx.Done():
			o.hub.cancel()
			<-o.empty
		}
	}
	o.mu.Lock()
	left := o.queue
	o.queue, o.topics, o.bytes = nil, map[string]int{}, 0
	o.mu.Unlock()
	for _, q := range left {
		o.done(q, ErrClosed)
	}
	if len(left) > 0 {
		return context.Cause(ctx)
	}
	return nil
}
