package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

var (
	// ErrClosed is returned by everything of a client or subscription that was closed.
	ErrClosed = errors.New("client: closed")

	// ErrQueueFull: the queue has no room for a message, see [Options.Full]. Slow down, or
	// tell the user.
	ErrQueueFull = errors.New("client: the queue is full")

	// ErrDropped: a message had to give way to a newer one, see [DropOldest].
	ErrDropped = errors.New("client: dropped, because the queue was full")

	// ErrExpired: a message was not answered within [Options.Age].
	ErrExpired = errors.New("client: no answer in time")

	// ErrTooLarge is in the error of a message that is greater, as it travels, than what the
	// server takes, or than the whole queue. It was not sent.
	ErrTooLarge = errors.New("client: message too large")

	// ErrNotReady: there is no connection, and what was to be sent is not worth keeping.
	ErrNotReady = errors.New("client: not connected")

	// ErrSubscribed: there is a subscription to this topic already.
	ErrSubscribed = errors.New("client: already subscribed to this topic")
)

// An InputError names an argument that no server would accept, and says why.
type InputError struct {
	Field  string // "topic", "ID", "Key"
	Reason string // goes on after the field: "is empty"
}

func (e *InputError) Error() string { return "client: " + e.Field + " " + e.Reason }

// A ServerError is a refusal by the server, as PROTOCOL.md, section 6, lists them.
type ServerError struct {
	Code    string // for example "forbidden"
	Field   string // what was wrong, may be empty
	Message string // for people, may be empty; what the server wrote, on one line, 256 bytes at most
}

func (e *ServerError) Error() string {
	text := "client: the server says " + e.Code
	if e.Field != "" {
		text += " (" + e.Field + ")"
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

func serverError(f *wire.Frame) *ServerError {
	return &ServerError{printable(f.Code, maxText), printable(f.Field, maxText), printable(f.Message, maxText)}
}

// Bounds of the protocol, in bytes.
const (
	maxTopic = 255
	maxID    = 128
	maxKey   = 255
)

func checkName(field, s string, max int) error {
	switch {
	case len(s) > max:
		return &InputError{field, fmt.Sprintf("has %d bytes, more than %d", len(s), max)}
	case !utf8.ValidString(s):
		return &InputError{field, "is not valid UTF-8"}
	}
	return nil
}

func checkTopic(topic string) error {
	if topic == "" {
		return &InputError{"topic", "is empty"}
	}
	return checkName("topic", topic, maxTopic)
}

// A Message is what is published.
type Message struct {
	// ID makes it harmless to send the message again when it is not known what became of
	// it: for a user and a topic it names this message and no other. The client chooses a
	// random one if it is empty. Valid UTF-8 of at most 128 bytes.
	ID string

	// Key says what the message is about, for readers who are content with the newest
	// message of each key. It may be empty. Valid UTF-8 of at most 255 bytes.
	Key string

	// Data is the message. It is copied. It travels as JSON if it is a JSON value, as text if
	// it is valid UTF-8, and in base64 otherwise. Readers get the same bytes in any case, but
	// for white space around JSON, which is left out.
	Data []byte
}

// A Receipt says what became of a message.
type Receipt struct {
	Outcome Outcome
	ID      string          // of the message, also when the client has chosen it
	Pos     replay.Position // where it is stored, if Committed or Duplicate
}

// An Outcome is what became of a message. With Unknown and NotStored there is an error.
type Outcome int

const (
	// Unknown: the message may be stored, now or later, or it may not. Publishing it again
	// with the same ID finds out, and stores it once.
	Unknown Outcome = iota
	// NotStored: it is certain that the message is not stored, and will not be.
	NotStored
	// Committed: the message has got its position.
	Committed
	// Duplicate: a message with that ID was stored before, and this one is not.
	Duplicate
	// Queued: the server cannot store the message now. It keeps it in its memory and goes on
	// trying for as long as it is configured to (backplane.Outbox.Age, a minute by default).
	// After that, or if the server ends before, the message is lost, and the client does not
	// hear of it. To be sure, publish it again with the same ID until it is Committed or
	// Duplicate.
	Queued
)

// String returns the name in words.
func (o Outcome) String() string {
	switch o {
	case Unknown:
		return "unknown"
	case NotStored:
		return "not stored"
	case Committed:
		return "committed"
	case Duplicate:
		return "duplicate"
	case Queued:
		return "queued"
	}
	return "Outcome(" + strconv.Itoa(int(o)) + ")"
}

// A Pending is a message on its way. It is safe for concurrent use.
type Pending struct {
	c     *Client
	topic string
	id    string
	frame []byte // as it travels; nil once it is answered
	named bool   // the application has chosen the ID, and may use it for other topics, too
	at    time.Time
	wall  time.Time     // at, by the clock that goes on while the machine sleeps
	done  chan struct{} // closed when all below is final

	// Guarded by Client.mu.
	seq      uint64 // in the order of Send
	progress Progress
	tries    int  // times written
	doubt    bool // a try that is over may have been stored
	receipt  Receipt
	err      error
}

// Progress is how far a message has got.
type Progress int

const (
	// Waiting: in the queue of the client.
	Waiting Progress = iota
	// Written: to the connection, which does not mean that the server has got it.
	Written
	// Answered: the server has it; the receipt tells more.
	Answered
	// Failed: it is given up; the error tells why, and the receipt whether it may be stored.
	Failed
)

// String returns the name of the constant.
func (p Progress) String() string {
	switch p {
	case Waiting:
		return "Waiting"
	case Written:
		return "Written"
	case Answered:
		return "Answered"
	case Failed:
		return "Failed"
	}
	return "Progress(" + strconv.Itoa(int(p)) + ")"
}

// ID returns the message's ID.
func (p *Pending) ID() string { return p.id }

// Progress returns how far the message has got. A connection that is lost takes it from
// Written back to Waiting.
func (p *Pending) Progress() Progress {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	return p.progress
}

// Done is closed when the message is Answered or Failed.
func (p *Pending) Done() <-chan struct{} { return p.done }

// Wait waits until the message is Answered or Failed, and returns the receipt; or until
// ctx is done, and then returns its context.Cause and what can be said so far. The message
// stays on its way then. The other errors are those of [Client.Publish].
func (p *Pending) Wait(ctx context.Context) (Receipt, error) {
	select {
	case <-p.done:
		return p.receipt, p.err
	default:
	}
	select {
	case <-p.done:
		return p.receipt, p.err
	case <-ctx.Done():
		return Receipt{Outcome: Unknown, ID: p.id}, context.Cause(ctx)
	}
}

// Publish sends a message to a topic and waits for the answer.
//
// When ctx is done it returns its context.Cause. A message that was not yet written to a
// connection is then withdrawn, and NotStored. One that was is Unknown, and remains on its
// way: it is sent again if the connection is lost.
//
// The errors are: a [*ServerError] if the server has refused the message for good;
// ErrExpired, ErrDropped and ErrQueueFull, see [Options]; ErrTooLarge; an [*InputError]; and
// if the client is closed ErrClosed or what [Client.Err] says. With each of them the receipt
// tells whether the message may be stored all the same. What the server refuses for the
// moment only is sent again by the client, and no error.
func (c *Client) Publish(ctx context.Context, topic string, m Message) (Receipt, error) {
	p, err := c.Send(ctx, topic, m)
	if err != nil {
		return Receipt{Outcome: NotStored, ID: m.ID}, err
	}
	r, err := p.Wait(ctx)
	if err != nil && ctx.Err() != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		switch {
		case p.progress >= Answered:
			return p.receipt, p.err
		case p.tries == 0:
			c.takeOut(p)
			c.finish(p, Receipt{}, err)
			return p.receipt, err
		}
	}
	return r, err
}

// Send queues a message to a topic. It does not wait for a connection, and only with
// [Block] for room in the queue, until ctx is done. An error means that the message is not
// queued, and not stored: see Publish for which there are.
//
// Messages are sent in the order in which they are queued, those to a topic also when they
// are sent again: those that were not answered when a connection was lost come before all
// others. But a message that the server refuses for the moment may be overtaken by those
// that were on their way then; a publisher to whom that matters waits for each receipt.
func (c *Client) Send(ctx context.Context, topic string, m Message) (*Pending, error) {
	named := m.ID != ""
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case !named:
		m.ID = c.prefix + strconv.FormatUint(c.lastID.Add(1), 36)
	}
	if err := cmp.Or(checkTopic(topic), checkName("ID", m.ID, maxID), checkName("Key", m.Key, maxKey)); err != nil {
		return nil, err
	}
	f := wire.Frame{Type: wire.Publish, Topic: topic, ID: m.ID, Key: m.Key, Payload: wire.Fit(wire.None, m.Data)}
	p := &Pending{
		c: c, topic: topic, id: m.ID, named: named, at: time.Now(), done: make(chan struct{}),
		frame: f.Append(make([]byte, 0, len(topic)+len(m.ID)+len(m.Key)+len(m.Data)+len(m.Data)/2+64)),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.mayQueue(p); err != nil {
		return nil, err
	}
	if len(c.blocked) == 0 && c.fits(p) {
		c.enqueue(p)
		return p, nil
	}
	switch c.opts.Full {
	case Reject:
		return nil, ErrQueueFull
	case DropOldest:
		drop, n, size := 0, c.n, c.bytes+len(p.frame)
		for ; n >= c.opts.QueueMessages || size > c.opts.QueueBytes; drop++ {
			if drop == len(c.waiting) { // none is dropped in vain
				return nil, ErrQueueFull
			}
			n--
			size -= len(c.waiting[drop].frame)
		}
		for range drop {
			oldest := c.waiting[0]
			c.takeOut(oldest)
			c.finish(oldest, Receipt{}, ErrDropped)
		}
		c.enqueue(p)
		return p, nil
	}
	b := &blocked{p: p, told: make(chan struct{})}
	c.blocked = append(c.blocked, b)
	c.mu.Unlock()
	select {
	case <-b.told:
	case <-ctx.Done():
	}
	c.mu.Lock()
	select {
	case <-b.told:
		if b.err != nil {
			return nil, b.err
		}
		return p, nil
	default:
	}
	c.blocked = slices.DeleteFunc(c.blocked, func(other *blocked) bool { return other == b })
	c.admit() // who stood behind may fit
	return nil, context.Cause(ctx)
}

// blocked is somebody who waits for room in the queue.
type blocked struct {
	p    *Pending
	told chan struct{} // closed when p is in the queue, or will not be
	err  error
}

// mayQueue says why a message cannot be sent. The lock is held.
func (c *Client) mayQueue(p *Pending) error {
	switch {
	case c.state == Closed:
		return c.err
	case c.state == Closing:
		return ErrClosed
	case c.limits.Message > 0 && len(p.frame) > c.limits.Message:
		return fmt.Errorf("%w: %d bytes as it travels, and the server takes %d", ErrTooLarge, len(p.frame), c.limits.Message)
	case len(p.frame) > c.opts.QueueBytes:
		return fmt.Errorf("%w: %d bytes as it travels, and the queue takes %d", ErrTooLarge, len(p.frame), c.opts.QueueBytes)
	}
	return nil
}

// fits reports whether there is room in the queue. The lock is held.
func (c *Client) fits(p *Pending) bool {
	return c.n < c.opts.QueueMessages && c.bytes+len(p.frame) <= c.opts.QueueBytes
}

// enqueue puts a message at the end of the queue. The lock is held.
func (c *Client) enqueue(p *Pending) {
	c.seq++
	p.seq = c.seq
	p.at, p.wall = time.Now(), c.loop.wall()
	c.n++
	c.bytes += len(p.frame)
	c.waiting = append(c.waiting, p)
	c.armAge()
	c.wakeWriter()
}

// admit lets those into the queue who wait for room, as long as there is some. The lock is
// held.
func (c *Client) admit() {
	for len(c.blocked) > 0 {
		b := c.blocked[0]
		if b.err = c.mayQueue(b.p); b.err == nil {
			if !c.fits(b.p) {
				return
			}
			c.enqueue(b.p)
		}
		c.blocked[0] = nil
		c.blocked = c.blocked[1:]
		close(b.told)
	}
}

// takeOut removes a message that waits. The lock is held.
func (c *Client) takeOut(p *Pending) { c.waiting = remove(c.waiting, slices.Index(c.waiting, p)) }

// remove removes element i, which is nearly always the first.
func remove(list []*Pending, i int) []*Pending {
	if i == 0 {
		list[0] = nil
		return list[1:]
	}
	return slices.Delete(list, i, i+1)
}

// finish makes what became of a message final; it is in neither list any more. With an
// error the outcome is made here. The lock is held.
func (c *Client) finish(p *Pending, r Receipt, err error) {
	r.ID = p.id
	if err != nil {
		if r.Outcome = NotStored; p.doubt || p.progress == Written {
			r.Outcome = Unknown
		}
		p.progress = Failed
		c.stats.Failed++
		c.forgetDelay(p.topic)
	} else {
		p.progress = Answered
		c.stats.Published++
	}
	c.n--
	c.bytes -= len(p.frame)
	p.receipt, p.err, p.frame = r, err, nil
	close(p.done)
	c.admit()
	if c.n == 0 && c.state == Closing {
		close(c.flushed)
	}
}

// armAge sees to it that messages expire. The lock is held.
func (c *Client) armAge() {
	if c.ageArmed || c.n == 0 || c.state == Closed {
		return
	}
	oldest := c.oldest()
	c.ageArmed = true
	c.wg.Add(1)
	c.age = time.AfterFunc(time.Until(oldest.at.Add(c.opts.Age)), func() {
		defer c.wg.Done()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.ageArmed = false
		for _, p := range c.expired() {
			c.finish(p, Receipt{}, ErrExpired)
		}
		c.wakeWriter()
		c.armAge()
	})
}

// open reports whether a message is neither answered nor given up. The lock is held.
func open(p *Pending) bool { return p.progress < Answered }

// oldest returns the open message that was queued first. The lock is held, and there is one.
func (c *Client) oldest() *Pending {
	var first *Pending
	if len(c.waiting) > 0 {
		first = c.waiting[0]
	}
	for _, p := range c.sent { // not in order: some may have been sent again
		if open(p) && (first == nil || p.seq < first.seq) {
			first = p
		}
	}
	return first
}

// expired returns the open messages whose time is up, in the order in which they were queued.
// Those that wait are taken out. What is sent counts for the server until it has answered.
// The lock is held.
func (c *Client) expired() (list []*Pending) {
	for len(c.waiting) > 0 && time.Since(c.waiting[0].at) >= c.opts.Age {
		list = append(list, c.waiting[0])
		c.waiting = remove(c.waiting, 0)
	}
	for _, p := range c.sent {
		if open(p) && time.Since(p.at) >= c.opts.Age {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, bySeq)
	return list
}

// A delay keeps back the messages to a topic in which the server cannot store now: until a
// time, and then all but one until that is stored.
type delay struct {
	pace  backoff.Loop
	until time.Time
	probe *Pending // the one
}

// forgetDelay drops the delay of a topic to which there are no messages any more. The lock
// is held.
func (c *Client) forgetDelay(topic string) {
	of := func(p *Pending) bool { return p.topic == topic }
	if c.held[topic] != nil && !slices.ContainsFunc(c.waiting, of) && !slices.ContainsFunc(c.sent, of) {
		delete(c.held, topic)
	}
}

// again returns messages that were written to the queue, each to its place. The lock is
// held.
func (c *Client) again(ps ...*Pending) {
	for _, p := range ps {
		p.progress = Waiting
	}
	c.waiting = append(c.waiting, ps...)
	slices.SortFunc(c.waiting, bySeq)
}

func bySeq(a, b *Pending) int { return cmp.Compare(a.seq, b.seq) }

// nextPublish returns the next message to be written, or nil and when to look again, which
// is zero if something else has to happen first. The lock is held.
func (c *Client) nextPublish(now time.Time) (next *Pending, at time.Time) {
	if len(c.sent) >= c.window {
		if len(c.waiting) > 0 && !slices.ContainsFunc(c.sent, open) {
			if at = c.lastPublish.Add(muteAfter); !now.Before(at) {
				c.mute = true
			}
		}
		return nil, at
	}
	if now.Before(c.holdAll) || now.Before(c.lastPublish.Add(c.gap)) {
		if len(c.waiting) > 0 {
			if at = c.lastPublish.Add(c.gap); at.Before(c.holdAll) {
				at = c.holdAll
			}
		}
		return nil, at
	}
	for i := 0; i < len(c.waiting); i++ {
		p := c.waiting[i]
		if p.named && slices.ContainsFunc(c.sent, func(o *Pending) bool { return o.id == p.id && o.topic != p.topic }) {
			continue // which of them an answer is for, it does not say
		}
		if p.doubt && c.loop.wall().Sub(p.wall) >= c.opts.Age {
			// We have slept, and the server may have forgotten the ID meanwhile.
			c.waiting = remove(c.waiting, i)
			c.finish(p, Receipt{}, ErrExpired)
			i--
			continue
		}
		if len(c.held) > 0 {
			if h := c.held[p.topic]; h != nil {
				if now.Before(h.until) {
					if at.IsZero() || h.until.Before(at) {
						at = h.until
					}
					continue
				}
				if h.probe != nil && h.probe.progress == Written {
					continue
				}
				h.probe = p
			}
		}
		c.waiting = remove(c.waiting, i)
		if max := c.limits.Message; max > 0 && len(p.frame) > max {
			c.finish(p, Receipt{}, fmt.Errorf("%w: %d bytes as it travels, and the server takes %d", ErrTooLarge, len(p.frame), max))
			i--
			continue
		}
		if p.progress = Written; p.tries > 0 {
			c.stats.Resent++
		}
		p.tries++
		c.lastPublish = now
		c.sent = append(c.sent, p)
		return p, at
	}
	return nil, at
}

// answered returns the message that an ack or nack is about, taken out of sent, or nil if it
// was given up. The lock is held.
func (c *Client) answered(id string) *Pending {
	for i, p := range c.sent { // nearly always the first
		if p.id != id {
			continue
		}
		if len(c.waiting) > 0 {
			c.wakeWriter()
		}
		c.sent = remove(c.sent, i)
		if !open(p) {
			return nil
		}
		return p
	}
	return nil
}

// onAck is what an ack does. The lock is held.
func (c *Client) onAck(f *wire.Frame) {
	p := c.answered(f.ID)
	if p == nil {
		return
	}
	delete(c.held, p.topic)
	// After a refusal as much is on its way, and as fast, as the server takes, which is found
	// out by doing more until the next refusal.
	if c.gap -= c.gap / 16; c.gap < minGap/2 {
		c.gap = 0
	}
	if c.grown++; c.grown >= c.window && c.window < c.maxWindow {
		c.window++
		c.grown = 0
	}
	r := Receipt{Outcome: Committed, Pos: f.Pos}
	switch f.Outcome {
	case wire.Duplicate:
		r.Outcome = Duplicate
	case wire.Queued:
		r.Outcome = Queued
	}
	c.finish(p, r, nil)
}

// onNack is what a nack does. The lock is held.
func (c *Client) onNack(f *wire.Frame) {
	p := c.answered(f.ID)
	if p == nil {
		return
	}
	p.progress = Waiting
	p.doubt = p.doubt || f.Outcome != wire.NotStored
	c.throttled(f)
	c.wakeWriter()
	now := time.Now()
	switch f.Code {
	case wire.TooFast, wire.TooManyPending: // which has nothing to do with the topic
		c.window, c.grown = 1, 0
		if !now.Before(c.holdAll) { // others of the same burst are told the same
			c.holdAll = now.Add(retry(f, time.Second))
			if f.Code == wire.TooFast {
				c.gap = min(max(2*c.gap, minGap), maxGap)
			}
		}
	case wire.Unavailable, wire.Internal:
		h := c.held[p.topic]
		if h == nil {
			h = &delay{pace: backoff.Loop{First: -1}}
			c.held[p.topic] = h
		}
		if !now.Before(h.until) {
			h.until = now.Add(max(h.pace.Down(), retry(f, 0)))
		}
	default:
		c.finish(p, Receipt{}, serverError(f))
		return
	}
	c.again(p)
}

// muteAfter is how long the server may take to answer when nothing can be sent to it before
// it does, and nobody waits for the answers any more.
const muteAfter = 10 * time.Second

// The bounds of Client.gap, but for 0.
const (
	minGap = 20 * time.Millisecond
	maxGap = time.Second
)

// retry returns how long the server asks to wait, or else if it does not say.
func retry(f *wire.Frame, otherwise time.Duration) time.Duration {
	switch {
	case f.Retry <= 0:
		return otherwise
	case f.Retry > backoff.MaxHint.Milliseconds():
		return backoff.MaxHint
	}
	return time.Duration(f.Retry) * time.Millisecond
}

// PublishEphemeral passes data on to those who are subscribed to the topic at this moment:
// what is worth nothing a second later, such as "is typing". It does not wait. It may get
// lost without anybody being told; an error says that it certainly is: ErrNotReady,
// ErrQueueFull if more than 64 or 64 KiB of them wait to be written, ErrTooLarge, an
// [*InputError], or that the client is closed. Whether the server refuses it, is counted in
// [Stats], as a complaint.
func (c *Client) PublishEphemeral(topic string, data []byte) error {
	if err := checkTopic(topic); err != nil {
		return err
	}
	f := wire.Frame{Type: wire.Ephemeral, Topic: topic, Payload: wire.Fit(wire.None, data)}
	frame := f.Append(make([]byte, 0, len(topic)+len(data)+len(data)/2+64))
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.state == Closed:
		return c.err
	case c.state == Closing:
		return ErrClosed
	case c.limits.Message > 0 && len(frame) > c.limits.Message:
		return fmt.Errorf("%w: %d bytes as it travels, and the server takes %d", ErrTooLarge, len(frame), c.limits.Message)
	case !c.ready:
		return ErrNotReady
	case len(c.ephemeral) >= maxEphemeral || c.ephemeralBytes+len(frame) > maxEphemeralBytes && len(c.ephemeral) > 0:
		return ErrQueueFull
	}
	c.ephemeral = append(c.ephemeral, frame)
	c.ephemeralBytes += len(frame)
	c.wakeWriter()
	return nil
}

// How much of what is ephemeral waits to be written.
const (
	maxEphemeral      = 64
	maxEphemeralBytes = 64 << 10
)

// newPrefix returns what the IDs begin with that a client chooses.
func newPrefix() string { return rand.Text()[:16] + "-" }
