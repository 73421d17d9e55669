package client

import (
	"container/heap"
	"context"
	"iter"
	"sync/atomic"
	"time"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// SubscribeOptions say where a subscription begins. Nil means with what is published next.
type SubscribeOptions struct {
	// From is where to go on: a [Subscription.Position] that was kept. The zero Position
	// means that there is none.
	From replay.Position

	// Last is how many of the newest messages to begin with, if there is no From. Zero or
	// negative means none. The server may give fewer.
	Last int

	// Floor is a position up to which nothing is wanted: with Last there are fewer messages
	// then, and a From before it is answered with a Reset whose reason is "floor". If the
	// server has a floor of its own for the user, that counts instead. The zero Position
	// means none.
	Floor replay.Position
}

// An Event is what a subscription returns: a message, unless Reset or Ephemeral are set.
type Event struct {
	// Reset, if not nil, says that what follows does not follow what came before. There is
	// no message in such an event.
	Reset *Reset

	// Ephemeral: the message was for those who are connected now, has no position, and may
	// be missing elsewhere.
	Ephemeral bool

	Pos  replay.Position // where the topic goes on after this event; zero if Ephemeral
	At   time.Time       // when the message was stored; zero if that is not known
	Key  string          // what the message is about; may be empty
	Data []byte          // the message; the application may keep and change it
}

// A Reset stands between two messages that do not follow each other: one for each time
// that they do not. There is no other way in which messages are missed.
type Reset struct {
	Reason replay.Reason
	Missed uint64 // how many messages were missed, 0 if that is not known

	// Snapshot is a state that takes the place of everything before the Reset, if the server
	// has one, and else nil. The messages that come follow it.
	Snapshot []byte
}

// Void reports whether the history is another than the one that was known before, so that
// a state that was built from messages before the Reset is to be thrown away: what follows
// may contain what was seen before, and lack what was seen. If not, some messages are
// missing, and all else holds.
func (r *Reset) Void() bool {
	switch r.Reason {
	case replay.ReasonTrimmed, replay.ReasonLagging, "floor":
		return false
	}
	return true
}

// A Subscription is the reading of one topic. It goes on where it stood whenever the client
// has connected again.
//
// What comes is held for the application up to [Options.BufferMessages] and BufferBytes.
// When it is slower than that, the client tells the server to stop, and to go on when half
// of it is read; nothing is lost but what is ephemeral, and no other subscription waits. Who
// is slow for longer than the server keeps messages gets a Reset.
//
// Next, All and Position are for one goroutine at a time, all else for any.
type Subscription struct {
	c     *Client
	topic string
	wake  chan struct{} // holds a value when there may be news for who waits in Next
	live  chan struct{} // closed when the server has confirmed it for the first time, or it is over
	gone  atomic.Bool   // Close was called

	// Of the goroutine that reads.
	batch    []Event // handed over; those before next were returned
	next     int
	position replay.Position
	used     int // returned since the last credit: events, and bytes
	usedSize int

	// Guarded by Client.mu.
	opts     SubscribeOptions
	number   uint64 // in the order of Subscribe
	phase    phase
	ref      uint64          // of the subscribe that counts; 0 if there is none in this session
	pos      replay.Position // what comes follows this; zero until that is known
	base     replay.Position // the first pos, if the server has chosen it
	due      time.Time       // phase wanted: not before
	place    int             // in Client.wants; -1 if it is not there
	pace     backoff.Loop
	queue    []Event // received and not yet handed over
	held     int     // events received and not yet returned, credits permitting
	heldSize int
	over     bool // no more will come
	resuming bool // it was paused since the server has confirmed it
	err      error
}

// phase is where a subscription stands with the server.
//
//	         writer            subscribed
//	wanted ──────────▶ asked ──────────────▶ following ─┐
//	 ▲ ▲                 │                       │      │ buffer full
//	 │ └── error, lost ──┴───────────────────────┘      ▼
//	 └───────────────────────────────────────────── paused
//	                 half of the buffer is read
type phase int

const (
	wanted    phase = iota // to be subscribed by the writer
	asked                  // subscribe was written; all but its answer is of an older one
	following              // what comes is for us
	paused                 // not subscribed, because the buffer is full
)

// Subscribe subscribes to a topic. It does not wait for anything, and needs no connection:
// errors of the server come from [Subscription.Next]. The error is an [*InputError];
// ErrSubscribed, if there is a subscription of this client to the topic already, whose
// events you would have to pass on; or that the client is closed. Nil opts are the zero
// SubscribeOptions.
//
// Close it when it is no longer wanted.
func (c *Client) Subscribe(topic string, opts *SubscribeOptions) (*Subscription, error) {
	if err := checkTopic(topic); err != nil {
		return nil, err
	}
	s := &Subscription{
		c: c, topic: topic, wake: make(chan struct{}, 1), live: make(chan struct{}), pace: backoff.Loop{First: -1}, place: -1,
	}
	if opts != nil {
		s.opts = *opts
		s.opts.Last = max(0, s.opts.Last)
	}
	s.pos, s.position = s.opts.From, s.opts.From
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.state == Closed:
		return nil, c.err
	case c.state == Closing:
		return nil, ErrClosed
	case c.subs[topic] != nil:
		return nil, ErrSubscribed
	}
	c.subs[topic] = s
	c.made++
	s.number = c.made
	delete(c.leaving, topic) // to subscribe again does that, too
	c.want(s, time.Time{})
	return s, nil
}

// Topic returns the name of the topic.
func (s *Subscription) Topic() string { return s.topic }

// Position returns after which event the application stands: the last one with a position
// that Next has returned. Keep it, together with what was made of the events, and give it as
// [SubscribeOptions.From] to go on exactly there, in another process too. Before the first
// event it is From, or where the server has said that the subscription begins; it is zero
// until that is known.
func (s *Subscription) Position() replay.Position {
	if s.position.IsZero() {
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		return s.base
	}
	return s.position
}

// Ready waits until the server has confirmed the subscription for the first time: nothing
// that is published from then on is missed. It returns the context.Cause of ctx when ctx is
// done, and the error of Next if the subscription is over.
func (s *Subscription) Ready(ctx context.Context) error {
	select {
	case <-s.live:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.over {
		return s.err
	}
	return nil
}

// Next returns the next event, and waits for it if need be. It returns the context.Cause of
// ctx when ctx is done, which does the subscription no harm. When the subscription is over
// it returns the events that have come before that, and then always the same error:
//
//   - a [*ServerError], for example with the code forbidden: the server does not allow this
//     subscription, or no longer
//   - what [Client.Err] says, once the client is closed
//   - ErrClosed, at once, after Close of the subscription
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	if ctx.Err() != nil {
		return Event{}, context.Cause(ctx)
	}
	for s.next == len(s.batch) {
		if err := s.refill(ctx); err != nil {
			return Event{}, err
		}
	}
	if s.gone.Load() {
		return Event{}, ErrClosed
	}
	e := s.batch[s.next]
	s.batch[s.next] = Event{} // it is the application's now
	s.next++
	if !e.Ephemeral {
		s.position = e.Pos
	}
	s.used++
	s.usedSize += e.size()
	if o := &s.c.opts; s.used > o.BufferMessages/8 || s.usedSize > o.BufferBytes/8 {
		s.c.mu.Lock()
		s.credit()
		s.c.mu.Unlock()
	}
	return e, nil
}

// All returns what Next does, one event after the other, in a loop. It ends with one more
// pair, whose error is not nil.
func (s *Subscription) All(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for {
			e, err := s.Next(ctx)
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Close ends the subscription. It does not wait, and may be called again.
func (s *Subscription) Close() {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.gone.Store(true)
	s.queue = nil
	if !s.over && s.ref != 0 && s.phase != paused {
		c.leaving[s.topic] = struct{}{}
		c.wakeWriter()
	}
	c.end(s, ErrClosed)
}

// refill takes over what has been received, or waits for it.
func (s *Subscription) refill(ctx context.Context) error {
	c := s.c
	c.mu.Lock()
	s.credit()
	switch {
	case s.gone.Load():
		c.mu.Unlock()
		return ErrClosed
	case len(s.queue) > 0:
		if cap(s.batch) > 64 {
			s.batch = nil // a rare burst: it is not kept for ever
		}
		s.batch, s.queue = s.queue, s.batch[:0]
		s.next = 0
		c.mu.Unlock()
		return nil
	case s.over:
		c.mu.Unlock()
		return s.err
	}
	c.mu.Unlock()
	select {
	case <-s.wake:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// credit says that what was used need not be held any more. The lock is held.
func (s *Subscription) credit() {
	s.held -= s.used
	s.heldSize -= s.usedSize
	s.used, s.usedSize = 0, 0
	if o := &s.c.opts; s.phase == paused && !s.over && s.held <= o.BufferMessages/2 && s.heldSize <= o.BufferBytes/2 {
		s.c.want(s, time.Time{})
	}
}

func (e *Event) size() int {
	if e.Reset != nil {
		return len(e.Reset.Snapshot)
	}
	return len(e.Data) + len(e.Key)
}

// push appends an event for the application, or reports that there is no room. The lock is
// held.
func (s *Subscription) push(e Event) bool {
	o := &s.c.opts
	size := e.size()
	if s.held > 0 && (s.held >= o.BufferMessages || s.heldSize+size > o.BufferBytes) {
		return false
	}
	s.held++
	s.heldSize += size
	if s.queue = append(s.queue, e); len(s.queue) == 1 {
		s.tell()
	}
	return true
}

// tell wakes who waits in Next.
func (s *Subscription) tell() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// end ends a subscription, with what Next returns then. The lock is held.
func (c *Client) end(s *Subscription, err error) {
	if s.over {
		return
	}
	delete(c.asked, s.ref)
	s.over, s.err, s.ref = true, err, 0
	if c.subs[s.topic] == s {
		delete(c.subs, s.topic)
	}
	if s.place >= 0 {
		heap.Remove(&c.wants, s.place)
	}
	s.confirm()
	s.tell()
}

// confirm lets Ready return. The lock is held.
func (s *Subscription) confirm() {
	select {
	case <-s.live:
	default:
		close(s.live)
	}
}

// want has the writer subscribe, not before a time. The lock is held.
func (c *Client) want(s *Subscription, due time.Time) {
	delete(c.asked, s.ref)
	s.phase, s.ref, s.due = wanted, 0, due
	heap.Push(&c.wants, s)
	c.wakeWriter()
}

// wants are subscriptions in phase wanted, as a heap: the one to be subscribed next is the
// first. With thousands of them nothing may be done to all for each.
type wants []*Subscription

func (w wants) Len() int { return len(w) }

func (w wants) Less(i, j int) bool {
	if d := w[i].due.Compare(w[j].due); d != 0 {
		return d < 0
	}
	return w[i].number < w[j].number
}

func (w wants) Swap(i, j int) {
	w[i], w[j] = w[j], w[i]
	w[i].place, w[j].place = i, j
}

func (w *wants) Push(s any) {
	s.(*Subscription).place = len(*w)
	*w = append(*w, s.(*Subscription))
}

func (w *wants) Pop() any {
	last := len(*w) - 1
	s := (*w)[last]
	(*w)[last] = nil
	*w = (*w)[:last]
	s.place = -1
	return s
}

// wantLater has the writer subscribe again after something went wrong. What goes wrong
// again and again is tried more and more seldom. The lock is held.
func (c *Client) wantLater(s *Subscription, atLeast time.Duration) {
	c.want(s, time.Now().Add(max(s.pace.Down(), atLeast)))
}

// pause stops a subscription for which there is no room. The lock is held.
func (c *Client) pause(s *Subscription) {
	s.phase, s.ref, s.resuming = paused, 0, true
	c.leaving[s.topic] = struct{}{}
	c.stats.Pauses++
	c.wakeWriter()
}

// nextSubscribe returns the next subscription for which a subscribe is to be written, or
// nil and when to look again. The lock is held.
func (c *Client) nextSubscribe(now time.Time) (next *Subscription, at time.Time) {
	switch {
	case len(c.wants) == 0:
		return nil, time.Time{}
	case len(c.asked) >= maxAsked || c.careful && len(c.asked) > 0:
		return nil, time.Time{} // the answer wakes the writer
	case now.Before(c.wants[0].due):
		return nil, c.wants[0].due
	}
	next = heap.Pop(&c.wants).(*Subscription)
	c.ref++
	next.phase, next.ref = asked, c.ref
	c.asked[c.ref] = next
	return next, time.Time{}
}

// maxAsked is how many subscribes may be unanswered. Those of a client with thousands of
// subscriptions, all at once after a reconnect, would be far too many frames for a server.
const maxAsked = 32

// subscribeFrame fills in the frame with which a subscription is asked for. The lock is held.
func (s *Subscription) subscribeFrame(f *wire.Frame) {
	*f = wire.Frame{Type: wire.Subscribe, Topic: s.topic, Ref: s.ref, Floor: s.opts.Floor, From: f.From[:0]}
	if s.pos.IsZero() {
		f.Last = s.opts.Last
	} else {
		f.From = append(f.From, s.pos)
	}
}

// following returns the subscription that a frame of a topic is for, or nil. The lock is
// held.
func (c *Client) following(topic string) *Subscription {
	s := c.subs[topic]
	if s != nil && s.phase == following {
		return s
	}
	if len(topic) > maxTopic {
		return nil // nobody can have asked for that
	}
	if s == nil || s.phase == paused {
		// The unsubscribe is under way, or was written some time ago: then it is told
		// again, as a server may have refused it for its rate.
		if now := time.Now(); now.Sub(c.lastUnwanted) > unwantedEvery {
			c.lastUnwanted = now
			c.leaving[topic] = struct{}{}
			c.wakeWriter()
		}
	}
	return nil
}

const unwantedEvery = 5 * time.Second

// onSubscribed is what a subscribed frame does. The lock is held.
func (c *Client) onSubscribed(f *wire.Frame) {
	s := c.subs[f.Topic]
	if s == nil || s.ref != f.Ref || s.phase != asked {
		return
	}
	s.pace.Up()
	c.wakeWriter()
	if !f.Base.IsZero() && !s.pos.IsZero() && f.Base != s.pos {
		c.repair(s) // going on there would lose or repeat something
		return
	}
	s.phase = following
	delete(c.asked, s.ref)
	if s.pos.IsZero() {
		s.pos, s.base = f.Base, f.Base
	}
	s.resuming = false
	s.confirm()
}

// repair subscribes again because what came does not follow. The lock is held.
func (c *Client) repair(s *Subscription) {
	c.stats.Repairs++
	c.wantLater(s, 0)
}

// onReset is what a reset does. The lock is held.
func (c *Client) onReset(f *wire.Frame) {
	s := c.following(f.Topic)
	if s == nil {
		return
	}
	if f.Base.IsZero() {
		c.repair(s)
		return
	}
	r := &Reset{Reason: replay.Reason(f.Reason), Missed: f.Missed}
	if f.Kind != wire.None {
		r.Snapshot = f.Data
	}
	if !s.push(Event{Reset: r, Pos: f.Base}) {
		c.pause(s) // it comes again
		return
	}
	c.stats.Resets++
	s.pos = f.Base
}

// onEntries is what entries do. The lock is held.
func (c *Client) onEntries(f *wire.Frame) {
	s := c.following(f.Topic)
	if s == nil {
		return
	}
	if f.Prev != s.pos || s.pos.IsZero() {
		c.repair(s)
		return
	}
	for i := range f.Entries {
		e := &f.Entries[i]
		event := Event{Pos: e.Pos, Key: e.Key, Data: e.Data}
		if e.At != 0 {
			event.At = time.UnixMilli(e.At)
		}
		if !s.push(event) {
			c.pause(s) // the rest comes again
			return
		}
		s.pos = e.Pos
		c.stats.Received++
	}
	if !f.To.IsZero() {
		s.pos = f.To
	}
}

// onEphemeral is what an ephemeral message does. The lock is held.
func (c *Client) onEphemeral(f *wire.Frame) {
	s := c.subs[f.Topic]
	if s == nil {
		return
	}
	c.stats.Ephemeral++
	if s.phase != following || !s.push(Event{Ephemeral: true, Data: f.Data}) {
		c.stats.EphemeralDropped++
	}
}

// maxLeft bounds Client.left. Beyond it, an unsubscribe that is refused is written again
// only when something comes that is not wanted.
const maxLeft = 1024

// leftBy reports whether a frame answers an unsubscribe, which is forgotten then. The lock
// is held.
func (c *Client) leftBy(f *wire.Frame) bool {
	if ref, ok := c.left[f.Topic]; !ok || ref != f.Ref {
		return false
	}
	delete(c.left, f.Topic)
	return true
}

// onUnsubscribed is what an unsubscribed frame does. The lock is held.
func (c *Client) onUnsubscribed(f *wire.Frame) {
	if c.leftBy(f) {
		return
	}
	s := c.subs[f.Topic]
	if s == nil || s.ref == 0 || f.Ref != 0 && f.Ref != s.ref {
		return // the answer to an unsubscribe
	}
	if f.Ref == 0 && (f.Code == "" || s.phase == asked) {
		return // it may be that, too
	}
	c.refused(s, f)
}

// onError is what an error does. The lock is held.
func (c *Client) onError(f *wire.Frame) (complaint bool) {
	c.throttled(f)
	if (f.Code == wire.TooFast || f.Code == wire.TooManyPending) && f.Field != "" && f.Ref == 0 {
		c.stats.Complaints++ // of an ephemeral message that was dropped: nothing else has to wait
		return false
	}
	if f.Code == wire.TooFast && c.ready {
		c.careful = true
		if at := time.Now().Add(retry(f, time.Second)); at.After(c.slow) {
			c.slow = at
		}
		c.stats.EphemeralDropped += uint64(len(c.ephemeral))
		c.ephemeral, c.ephemeralBytes = nil, 0
	}
	if f.Ref != 0 {
		if c.leftBy(f) {
			if s := c.subs[f.Topic]; f.Code == wire.TooFast && (s == nil || s.phase == paused) {
				c.leaving[f.Topic] = struct{}{}
				c.wakeWriter()
			}
			return false
		}
		s := c.asked[f.Ref]
		if s == nil {
			s = c.subs[f.Topic]
		}
		if s != nil && s.ref == f.Ref {
			c.refused(s, f)
			return false
		}
		if f.Ref <= c.ref {
			return false // of a subscribe that does not count any more
		}
	}
	c.stats.Complaints++
	return true
}

// refused ends a subscription, or tries again. The lock is held.
func (c *Client) refused(s *Subscription, f *wire.Frame) {
	switch f.Code {
	case "", wire.TooFast, wire.TooManyPending, wire.Unavailable, wire.Internal:
		c.wantLater(s, retry(f, 0))
	default:
		if f.Code == wire.TooManyTopics && s.resuming { // its place was given away while it was paused
			c.wantLater(s, time.Second)
			return
		}
		c.end(s, serverError(f))
	}
}
