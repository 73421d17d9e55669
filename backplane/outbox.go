package backplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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
// published meanwhile go behind them; once it is back, Publish waits for those before
// its own. Each keeps its ID, so that one which was stored although its first try
// failed is not stored again.
//
// A message waits only while the error of a try wraps [ErrUnavailable] or the try has
// taken too long. Any other error is final: Done is told, and the next message is sent at
// once.
//
// They are lost if the process ends without [Hub.Close].
type Outbox struct {
	// Messages and Bytes (of Data, Key and ID) are the most that is kept; beyond
	// that Publish fails with ErrOutboxFull. A message counts until Done has
	// returned. Zero means DefaultOutboxMessages and DefaultOutboxBytes, negative
	// no limit.
	Messages int
	Bytes    int64

	// Age is how long a message is kept. It should be less than the time for which
	// the backplane remembers IDs. Zero means DefaultOutboxAge, negative for ever.
	Age time.Duration

	// Done is told what became of each message that was Queued: Committed,
	// Duplicate, or NotStored or Unknown with the error, which is ErrExpired for
	// one that got too old and ErrClosed for one that was there at the end. After a
	// try whose outcome was Unknown, the message is Unknown at the end as well,
	// unless a later try has found out: also if a later try was refused. Done is
	// called in a topic's order, for several topics possibly at the same time, and
	// Close waits for it. It may publish; it must not call Close. Nil means that
	// nobody is told but the Logger.
	Done func(topic string, m Message, r Receipt, err error)
}

type outbox struct {
	hub  *Hub
	opts Outbox
	wg   sync.WaitGroup // of the goroutines that send

	mu      sync.Mutex // guards all below, and all queues; Hub.workMu may be taken under it
	queues  map[string]*topicQueue
	n       int
	bytes   int64
	ready   []*topicQueue // to be sent, in this order
	senders int
	closing bool          // no more is queued
	empty   chan struct{} // closed when nothing is left after closing

	// Queues whose last try found the backplane away are tried a few at a time, in
	// turn: not all of thousands when all will fail, and not the same ones always.
	away     []*topicQueue
	timer    *time.Timer // of the next round; nil during one, and when none is needed
	trying   int         // queues of this round that have not been tried yet
	found    finding     // of this round: up if any was, else away if any was
	width    int         // of the next round
	failures int         // rounds in a row without success
}

// A finding is what the first try of a queue in a round says about the backplane.
type finding int

const (
	foundNothing finding = iota // all of its messages had expired
	foundAway
	foundUp
)

// minWidth is how many queues a round has if none of the last succeeded.
const minWidth = 4

// A topicQueue is what waits for one topic.
type topicQueue struct {
	topic   string
	items   []*queued // oldest first
	away    bool      // the last try found the backplane away
	busy    bool      // it has items: it is in ready or in away, or being sent
	round   bool      // it is tried in this round
	told    []*queued // final, and Done is to be told of them
	telling bool      // a goroutine does
}

type queued struct {
	m    Message
	at   time.Time
	last Receipt // of the latest try
	err  error

	// Publish waits for this one. It is closed when that ends: final, or because
	// the backplane is away again.
	wait  chan struct{}
	final bool
}

// maxSenders is for how many topics messages are sent at the same time.
const maxSenders = 8

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
	return &outbox{hub: h, opts: opts, queues: map[string]*topicQueue{}, empty: make(chan struct{})}
}

// publish is Publish with the outbox behind it.
func (o *outbox) publish(ctx context.Context, topic string, m Message) (Receipt, error) {
	item := &queued{m: m, at: time.Now(), last: Receipt{Outcome: NotStored, ID: m.ID}}
	o.mu.Lock()
	q := o.queues[topic]
	behind := q != nil && q.busy // not if only Done is still to be told
	o.mu.Unlock()
	err := ErrUnavailable
	if !behind {
		item.last, err = o.hub.append(ctx, topic, m)
		if err == nil || !errors.Is(err, ErrUnavailable) {
			return item.last, err
		}
	}
	o.mu.Lock()
	switch {
	case o.closing:
		o.mu.Unlock()
		return item.last, err
	case o.opts.Messages >= 0 && o.n >= o.opts.Messages:
		o.mu.Unlock()
		o.full("backplane.Outbox.Messages", int64(o.opts.Messages))
		return item.last, fmt.Errorf("%w: it has %d messages (backplane.Outbox.Messages): %w", ErrOutboxFull, o.opts.Messages, err)
	case o.opts.Bytes >= 0 && o.bytes+item.size() > o.opts.Bytes:
		o.mu.Unlock()
		o.full("backplane.Outbox.Bytes", o.opts.Bytes)
		return item.last, fmt.Errorf("%w: it would have more than %d bytes (backplane.Outbox.Bytes): %w", ErrOutboxFull, o.opts.Bytes, err)
	}
	q = o.queues[topic]
	if q == nil {
		q = &topicQueue{topic: topic}
		o.queues[topic] = q
	}
	q.items = append(q.items, item)
	o.n++
	o.bytes += item.size()
	switch {
	case q.busy:
	case behind: // it was, but all before have been sent meanwhile
		o.soon(q)
	default:
		q.busy, q.away = true, true
		o.away = append(o.away, q)
		o.plan()
	}
	if q.away {
		o.mu.Unlock()
		return Receipt{Outcome: Queued, ID: m.ID}, nil
	}
	// The backplane is back, and this message only waits for those before it. Who
	// publishes waits with it: otherwise the queue might never become empty.
	item.wait = make(chan struct{})
	wait := item.wait
	o.mu.Unlock()
	select {
	case <-wait:
	case <-ctx.Done():
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	item.wait = nil
	if item.final {
		return item.last, item.err
	}
	return Receipt{Outcome: Queued, ID: m.ID}, nil
}

func (o *outbox) full(option string, limit int64) {
	o.hub.log.say(slog.LevelWarn, "the outbox is full", option, "limit", limit, "option", option)
}

// soon has a queue sent. The lock is held.
func (o *outbox) soon(q *topicQueue) {
	q.busy = true
	o.ready = append(o.ready, q)
	if o.senders < maxSenders && o.hub.ctx.Err() == nil {
		o.senders++
		o.wg.Go(o.send)
	}
}

// plan has the next round begin after a pause, if one is needed. The lock is held.
func (o *outbox) plan() {
	if o.timer == nil && o.trying == 0 && len(o.away) > 0 && o.hub.ctx.Err() == nil {
		o.timer = time.AfterFunc(pause(o.failures), o.round)
	}
}

// round tries some of those for which the backplane was away.
func (o *outbox) round() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.timer == nil {
		return
	}
	o.timer, o.found = nil, foundNothing
	n := min(max(o.width, minWidth), len(o.away))
	o.trying = n
	for _, q := range o.away[:n] {
		q.round = true
		o.soon(q)
	}
	o.away = slices.Delete(o.away, 0, n)
}

// tried counts the first try of a queue in a round. The lock is held.
func (o *outbox) tried(q *topicQueue, f finding) {
	if !q.round {
		return
	}
	q.round = false
	o.found = max(o.found, f)
	if o.trying--; o.trying > 0 {
		return
	}
	switch o.found {
	case foundUp:
		o.width, o.failures = 2*max(o.width, minWidth), 0
	case foundAway:
		o.width = minWidth
		o.failures++
	}
	o.plan()
}

// hurry has a round begin now.
func (o *outbox) hurry() {
	o.mu.Lock()
	wait := o.timer != nil && o.timer.Stop()
	o.mu.Unlock()
	if wait {
		o.round()
	}
}

// send sends queues as long as there are any.
func (o *outbox) send() {
	for {
		o.mu.Lock()
		if len(o.ready) == 0 || o.hub.ctx.Err() != nil {
			o.senders--
			o.mu.Unlock()
			return
		}
		q := o.ready[0]
		o.ready = o.ready[1:]
		o.mu.Unlock()
		more := true
		for n := 0; more && n < 64; n++ { // and then it is another's turn
			more = o.sendFirst(q)
		}
		if more {
			o.mu.Lock()
			o.ready = append(o.ready, q)
			o.mu.Unlock()
		}
	}
}

// sendFirst sends the oldest message of a queue. It reports whether to go on with the
// next, and else sees to it that somebody does who has to.
func (o *outbox) sendFirst(q *topicQueue) bool {
	o.mu.Lock()
	item := q.items[0]
	expired := o.opts.Age >= 0 && time.Since(item.at) >= o.opts.Age
	o.mu.Unlock()
	r, err := item.last, error(ErrExpired)
	away := false
	if !expired {
		ctx, cancel := o.hub.call()
		r, err = o.hub.append(ctx, q.topic, item.m)
		away = err != nil && (ctx.Err() != nil || errors.Is(err, ErrUnavailable))
		cancel()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil || r.Outcome == Unknown {
		item.last = r // an earlier try may have been stored: Unknown remains
	}
	if away {
		q.away = true
		o.away = append(o.away, q)
		for _, item := range q.items {
			o.serve(item)
		}
		o.tried(q, foundAway)
		o.plan()
		return false
	}
	if !expired {
		q.away = false
		o.tried(q, foundUp)
	}
	if item.err, item.final = err, true; o.serve(item) {
		o.free(item)
	} else {
		q.told = append(q.told, item)
		if !q.telling {
			q.telling = true
			o.wg.Go(func() { o.tell(q) })
		}
	}
	q.items[0] = nil
	if q.items = q.items[1:]; len(q.items) > 0 {
		return true
	}
	q.busy = false
	o.tried(q, foundNothing) // unless one was sent, and that was said
	o.forget(q)
	return false
}

// tell tells Done, in order, while the next messages are already sent.
func (o *outbox) tell(q *topicQueue) {
	for {
		o.mu.Lock()
		if len(q.told) == 0 {
			q.telling = false
			o.forget(q)
			o.mu.Unlock()
			return
		}
		item := q.told[0]
		q.told = q.told[1:]
		o.mu.Unlock()
		o.done(q.topic, item)
		o.mu.Lock()
		o.free(item)
		o.mu.Unlock()
	}
}

// forget drops a queue in which there is nothing any more. The lock is held.
func (o *outbox) forget(q *topicQueue) {
	if len(q.items) > 0 || len(q.told) > 0 || q.telling || q.busy {
		return
	}
	if o.queues[q.topic] == q {
		delete(o.queues, q.topic)
	}
	if o.closing && len(o.queues) == 0 {
		select {
		case <-o.empty:
		default:
			close(o.empty)
		}
	}
}

// serve ends the wait of the one who has published item, and reports whether there was
// one. The lock is held.
func (o *outbox) serve(item *queued) bool {
	if item.wait == nil {
		return false
	}
	close(item.wait)
	item.wait = nil
	return true
}

// free gives back the room of a message. The lock is held.
func (o *outbox) free(item *queued) {
	o.n--
	o.bytes -= item.size()
}

func (o *outbox) done(topic string, item *queued) {
	if item.err != nil {
		o.hub.log.log.Error("a queued message is given up", "topic", topic, "id", item.m.ID, "outcome", item.last.Outcome.String(), "err", item.err)
	}
	if o.opts.Done != nil {
		o.opts.Done(topic, item.m, item.last, item.err)
	}
}

func (o *outbox) len() (int, int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.n, o.bytes
}

// close waits until the outbox is empty or ctx is done, and gives up what is left.
func (o *outbox) close(ctx context.Context) error {
	o.mu.Lock()
	o.closing = true
	left := len(o.queues)
	o.mu.Unlock()
	if left > 0 {
		o.hurry()
		select {
		case <-o.empty:
		case <-ctx.Done():
		}
	}
	o.hub.cancel()
	o.mu.Lock()
	if o.timer != nil {
		o.timer.Stop()
		o.timer = nil
	}
	o.mu.Unlock()
	o.wg.Wait()
	o.mu.Lock()
	type lost struct {
		topic string
		item  *queued
	}
	var all []lost
	for _, q := range o.queues {
		for _, item := range q.items {
			if item.err, item.final = ErrClosed, true; !o.serve(item) {
				all = append(all, lost{q.topic, item})
			}
			o.free(item)
		}
	}
	o.queues, o.ready, o.away = map[string]*topicQueue{}, nil, nil
	o.mu.Unlock()
	for _, l := range all {
		o.done(l.topic, l.item)
	}
	if len(all) > 0 {
		return context.Cause(ctx)
	}
	return nil
}
