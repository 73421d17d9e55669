package client

import (
	"bytes"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/internal/wire"
)

// A Client is a user of a gateway (package backplane/gateway, or whatever else speaks the
// protocol of PROTOCOL.md). It keeps one connection, as [Sessions] does, and over all that
// happens to that connection
//
//   - each [Subscription] gets every message of its topic once, in the topic's order, or a
//     [Reset] that says why not,
//   - each message that is published is sent until the server has answered, and stored once.
//
// No context that is given to its methods touches the connection: it bounds the call and
// nothing else.
//
// Make one with [New] for each user, and Close it. It is safe for concurrent use.
type Client struct {
	opts    Options
	loop    *sessions
	ctx     context.Context
	cancel  context.CancelCauseFunc
	nudge   chan struct{}
	wake    chan struct{} // holds a value when the writer has to look
	stopped chan struct{} // closed when nothing is sent or received any more
	ended   chan struct{} // closed when nothing of the client runs any more
	prefix  string        // of IDs
	lastID  atomic.Uint64
	wg      sync.WaitGroup // what run does not wait for

	// mu guards all below, and what Subscription and Pending say. Nothing under it waits or
	// calls anything of the application's.
	mu      sync.Mutex
	state   State
	changed chan struct{} // closed at the next change of state or telling
	telling bool          // OnState is running
	err     error         // of Closed
	last    error         // of Connecting
	stats   Stats

	// The session.
	session  bool // there is one
	ready    bool // and it was welcomed
	goodbye  bool // and the server is about to close it: nothing new is begun
	leave    bool // it is to be closed, and is the last
	deadline time.Time
	beat     bool // a beat is to be answered
	limits   wire.Limits
	refusal  *ServerError // what the server has said before it welcomes us

	limited   map[string]bool // codes of limits that the server has told us of in this session
	throttles []throttle      // and those that are to be logged

	// Subscriptions.
	subs         map[string]*Subscription // by topic; those that are over are not in it
	wants        wants                    // those in phase wanted
	asked        map[uint64]*Subscription // those in phase asked, by ref; at most maxAsked
	leaving      map[string]struct{}      // topics for which an unsubscribe is to be written
	left         map[string]uint64        // and those for which one was, with its ref, until it is answered; at most maxLeft
	ref          uint64                   // the last one
	made         uint64                   // subscriptions
	lastUnwanted time.Time

	// Messages. Each is in one of waiting and sent, both in the order of seq.
	waiting     []*Pending
	sent        []*Pending // written in this session, and not answered; those given up as well
	n, bytes    int        // in both, without those given up
	mute        bool       // the server does not answer, and takes no more before it does
	seq         uint64
	blocked     []*blocked
	window      int // how many may be in sent
	maxWindow   int
	grown       int
	slow        time.Time         // nothing but a beat is written before
	careful     bool              // one subscribe at a time, since the server has found us too fast
	complained  time.Time         // a complaint of the server was logged
	holdAll     time.Time         // no message is written before
	gap         time.Duration     // nor sooner than this after
	lastPublish time.Time         // when the last one was written
	held        map[string]*delay // by topic
	age         *time.Timer
	ageArmed    bool
	flushed     chan struct{} // closed when Closing and nothing is left
	lost        int           // messages that were left at the end

	ephemeral      [][]byte // frames
	ephemeralBytes int
	turn           bool // an ephemeral message was written last
}

// How much may be on its way to the server: what it allows, but not more than this.
const (
	defaultWindow  = 256 // if it sets no limit
	greatestWindow = 1024
)

// Causes of the ends of sessions.
var (
	errNoWelcome  = errors.New("client: the server does not welcome us")
	errNoProtocol = errors.New("client: the server does not speak " + wire.Subprotocol)
	errGoodbye    = errors.New("client: the server has said goodbye")
	errMute       = errors.New("client: the server does not answer")
	errBinary     = errors.New("a frame is a text message")
)

// New returns a client that connects to the gateway at url, which begins with ws, wss, http
// or https, in the background and at once. Nil opts are all defaults. The error is an
// [*OptionError].
//
// Subscribe and publish without waiting for the connection. If it cannot be had for good,
// because credentials are refused for example, the client is [Closed], and all that waits
// for something returns the error that [Client.Err] tells.
//
// A Prepare of the options that sets [Dial.Token] is the way to log in, and to get a new
// token when the old one has expired.
func New(url string, opts *Options) (*Client, error) {
	o, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Client{
		opts: o, nudge: make(chan struct{}, 1), wake: make(chan struct{}, 1), stopped: make(chan struct{}), ended: make(chan struct{}),
		changed: make(chan struct{}), flushed: make(chan struct{}), prefix: newPrefix(),
		subs: map[string]*Subscription{}, asked: map[uint64]*Subscription{}, limited: map[string]bool{}, leaving: map[string]struct{}{}, left: map[string]uint64{}, held: map[string]*delay{},
	}
	if c.loop, err = newSessions(url, &o); err != nil {
		return nil, err
	}
	c.loop.nudge, c.loop.needReady = c.nudge, true
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	if o.OnState != nil {
		c.wg.Go(c.notify)
	}
	go c.run()
	return c, nil
}

// run connects, again and again, until the client is closed.
func (c *Client) run() {
	defer func() {
		close(c.stopped)
		c.wg.Wait()
		close(c.ended)
	}()
	var last error
	for s, err := range c.loop.all(c.ctx) {
		if err != nil {
			last = err
			c.mu.Lock()
			c.last = err
			c.mu.Unlock()
			continue
		}
		if !c.serve(s) {
			break
		}
	}
	c.finishAll(last)
}

// finishAll ends everything that waits for something.
func (c *Client) finishAll(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leave || c.ctx.Err() != nil {
		err = ErrClosed
	}
	c.err = err
	if c.state == Closing {
		c.lost = len(c.sent) + len(c.waiting)
	}
	c.setState(Closed)
	for _, list := range [][]*Pending{c.sent, c.waiting} {
		for _, p := range list {
			if open(p) {
				c.finish(p, Receipt{}, err)
			}
		}
	}
	c.sent, c.waiting = nil, nil
	c.admit()
	for _, s := range c.subs {
		c.end(s, err)
	}
	c.wants, c.leaving, c.held, c.ephemeral = nil, nil, nil, nil
	if c.ageArmed && c.age.Stop() {
		c.ageArmed = false
		c.wg.Done()
	}
}

// serve is one session. It reports whether there is to be another.
func (c *Client) serve(s *Session) bool {
	c.mu.Lock()
	c.session, c.deadline = true, time.Now().Add(c.opts.Hello)
	c.mu.Unlock()
	var writer sync.WaitGroup
	read := make(chan struct{})
	writer.Go(func() { c.write(s, read) })
	err := c.read(s)
	close(read)
	timer := time.AfterFunc(closeGrace, func() { s.raw.Close() }) // the writer may be stuck
	writer.Wait()
	timer.Stop()

	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refusal != nil {
		err = fmt.Errorf("%w (%w)", c.refusal, err)
	}
	s.End(err)
	if c.last = s.end(); c.last == errUnsaid {
		c.last = err
	}
	c.session, c.ready, c.goodbye, c.beat, c.refusal = false, false, false, false, nil
	c.setState(Connecting)
	sent := slices.DeleteFunc(c.sent, func(p *Pending) bool { return !open(p) })
	for _, p := range sent {
		p.doubt = true
	}
	c.sent, c.mute, c.holdAll, c.gap, c.slow, c.careful = nil, false, time.Time{}, 0, time.Time{}, false
	c.again(sent...)
	c.stats.EphemeralDropped += uint64(len(c.ephemeral))
	c.ephemeral, c.ephemeralBytes = nil, 0
	clear(c.leaving)
	clear(c.left)
	clear(c.asked)
	clear(c.limited)
	c.wants = nil
	for _, s := range c.subs {
		if s.phase == paused {
			continue
		}
		if s.phase != wanted {
			s.due = time.Time{}
		}
		s.phase, s.ref = wanted, 0
		c.wants.Push(s)
	}
	heap.Init(&c.wants)
	return !c.leave
}

// wakeWriter has the writer look for something to be written. The lock is held.
func (c *Client) wakeWriter() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// write writes, until the session is over. It gives no context to the connection, which
// is taken away from under it when that of the session ends.
func (c *Client) write(s *Session, read <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	hello := wire.Frame{Type: wire.Hello, Version: wire.Version}
	frame := hello.Append(nil)
	buf := make([]byte, 0, 512) // never a message's: that may have to be written again
	var f wire.Frame
	for {
		if err := s.Write(context.Background(), websocket.MessageText, frame); err != nil {
			// If the server has closed the connection, it may have said why.
			timer.Reset(time.Second)
			select {
			case <-read:
			case <-timer.C:
				s.cancel(err)
			}
			return
		}
		for {
			c.mu.Lock()
			now := time.Now()
			late := !c.deadline.IsZero() && !now.Before(c.deadline)
			var at time.Time
			frame, at = c.nextFrame(now, &f, buf[:0])
			leave, goodbye, mute := c.leave, c.goodbye, c.mute
			c.mu.Unlock()
			switch {
			case leave:
				farewell(s)
				<-read
				return
			case mute:
				s.cancel(errMute)
				return
			case late && goodbye:
				s.cancel(errGoodbye)
				return
			case late:
				s.cancel(fmt.Errorf("%w within %v", errNoWelcome, c.opts.Hello))
				return
			}
			if frame != nil {
				break
			}
			wait := time.Hour
			if !at.IsZero() {
				wait = time.Until(at)
			}
			timer.Reset(wait)
			select {
			case <-c.wake:
			case <-timer.C:
			case <-read:
				return
			case <-s.Context().Done():
				return
			}
		}
	}
}

// farewell closes the connection politely, if that is quickly done.
func farewell(s *Session) {
	timer := time.AfterFunc(closeGrace, func() { s.raw.Close() })
	defer timer.Stop()
	s.Conn.Close(websocket.StatusNormalClosure, "")
}

// nextFrame returns the next frame to be written, in buf if it is not a message's, or nil
// and when to look again. The lock is held.
func (c *Client) nextFrame(now time.Time, f *wire.Frame, buf []byte) (frame []byte, at time.Time) {
	switch {
	case c.leave:
		return nil, at
	case c.beat:
		c.beat = false
		*f = wire.Frame{Type: wire.Beat}
		return f.Append(buf), at
	case !c.ready || c.goodbye:
		return nil, c.deadline
	case now.Before(c.slow):
		return nil, c.slow
	}
	for topic := range c.leaving {
		delete(c.leaving, topic)
		c.lastUnwanted = now
		c.ref++
		if len(c.left) < maxLeft {
			c.left[topic] = c.ref
		}
		*f = wire.Frame{Type: wire.Unsubscribe, Topic: topic, Ref: c.ref}
		return f.Append(buf), at
	}
	s, at := c.nextSubscribe(now)
	if s != nil {
		s.subscribeFrame(f)
		return f.Append(buf), at
	}
	if len(c.ephemeral) > 0 && !c.turn {
		frame, c.ephemeral[0] = c.ephemeral[0], nil
		c.ephemeral = c.ephemeral[1:]
		c.ephemeralBytes -= len(frame)
		c.turn = true
		return frame, at
	}
	c.turn = false
	p, later := c.nextPublish(now)
	if p != nil {
		return p.frame, at
	}
	if len(c.ephemeral) > 0 { // nothing of the other kind: no turns
		return c.nextFrame(now, f, buf)
	}
	if at.IsZero() || !later.IsZero() && later.Before(at) {
		at = later
	}
	return nil, at
}

// read reads, until the session is over, and returns why. It gives no context to the
// connection, as write does.
func (c *Client) read(s *Session) error {
	if s.Subprotocol() != wire.Subprotocol {
		return errNoProtocol
	}
	var f wire.Frame
	buf := make([]byte, 0, 4<<10)
	for {
		kind, r, err := s.Reader(context.Background())
		if err != nil {
			return err
		}
		if buf, err = readAll(buf[:0], r); err != nil {
			return err
		}
		if kind != websocket.MessageText {
			return c.garbage("binary", len(buf), errBinary)
		}
		if err := wire.Decode(buf, &f); err != nil {
			return c.garbage("text", len(buf), err)
		}
		if err := c.handle(s, &f); err != nil {
			return err
		}
		if cap(buf) > 64<<10 { // a rare one: its memory is not kept for ever
			buf, f = make([]byte, 0, 4<<10), wire.Frame{}
		}
	}
}

// readAll reads a message into buf, or what takes its place if that is too small.
func readAll(buf []byte, r io.Reader) ([]byte, error) {
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case err == io.EOF:
			return buf, nil
		case err != nil:
			return buf, err
		case len(buf) == cap(buf):
			buf = slices.Grow(buf, len(buf))
		}
	}
}

// garbage is the end of a session with a server that sends what is no frame. What it says
// goes into the log, where nothing of a message may stand.
func (c *Client) garbage(kind string, size int, err error) error {
	c.mu.Lock()
	c.stats.Garbage++
	c.mu.Unlock()
	return fmt.Errorf("client: the server sent what is no frame (%s, %d bytes): %w", kind, size, err)
}

// handle does what a frame says. The frame's memory is used again. An error ends the
// session.
func (c *Client) handle(s *Session, f *wire.Frame) error {
	own(f)
	welcome, complaint, goodbye := false, false, false
	c.mu.Lock()
	switch f.Type {
	case wire.Welcome:
		if welcome = !c.ready; welcome {
			if f.Version != wire.Version {
				c.mu.Unlock()
				return fmt.Errorf("client: the server welcomes us with version %d of the protocol, after we said %d", f.Version, wire.Version)
			}
			c.onWelcome(f)
		}
	case wire.Beat:
		c.beat = true
		c.wakeWriter()
	case wire.Goodbye:
		if goodbye = !c.goodbye; goodbye {
			c.goodbye, c.deadline = true, time.Now().Add(goodbyeGrace)
			c.wakeWriter()
		}
	case wire.Error:
		if !c.ready {
			c.refusal = serverError(f)
		}
		if now := time.Now(); c.onError(f) && now.Sub(c.complained) >= time.Second { // the others are only counted
			c.complained, complaint = now, true
		}
	default:
		if c.ready {
			c.onFrame(f)
		}
	}
	throttles := c.throttles
	c.throttles = nil
	c.mu.Unlock()
	for _, t := range throttles {
		c.logThrottle(s, t)
	}
	switch {
	case welcome:
		s.Ready()
		c.log(slog.LevelInfo, "client: welcome", slog.Int("session", s.Number),
			slog.String("conn", printable(f.Conn, maxText)), slog.String("node", printable(f.Node, maxText)))
	case goodbye:
		window := time.Duration(min(f.Window, int64(time.Hour/time.Millisecond))) * time.Millisecond
		s.Hint(window)
		c.log(slog.LevelInfo, "client: goodbye", slog.Int("session", s.Number),
			slog.String("reason", printable(f.Reason, maxText)), slog.Duration("window", window))
	case complaint && len(throttles) == 0:
		e := serverError(f)
		c.log(slog.LevelWarn, "client: the server complains", slog.Int("session", s.Number),
			slog.String("code", e.Code), slog.String("field", e.Field), slog.String("message", e.Message))
	}
	return nil
}

// goodbyeGrace is how long the server may take to close the connection after a goodbye.
// Until then what is on its way may still be answered.
const goodbyeGrace = 5 * time.Second

// onWelcome is what the welcome does. The lock is held.
func (c *Client) onWelcome(f *wire.Frame) {
	c.ready, c.refusal, c.last = true, nil, nil
	if !c.goodbye {
		c.deadline = time.Time{}
	}
	c.limits, c.lastUnwanted = f.Limits, time.Now()
	c.maxWindow = f.Limits.Pending
	if c.maxWindow == 0 {
		c.maxWindow = defaultWindow
	}
	c.maxWindow = min(c.maxWindow, greatestWindow)
	c.window, c.grown = c.maxWindow, 0
	c.stats.Sessions++
	c.setState(Ready)
	c.wakeWriter()
}

// onFrame is for what comes after the welcome. The lock is held.
func (c *Client) onFrame(f *wire.Frame) {
	switch f.Type {
	case wire.Entries:
		c.onEntries(f)
	case wire.Ack:
		c.onAck(f)
	case wire.Nack:
		c.onNack(f)
	case wire.Subscribed:
		c.onSubscribed(f)
	case wire.Unsubscribed:
		c.onUnsubscribed(f)
	case wire.Reset:
		c.onReset(f)
	case wire.Ephemeral:
		c.onEphemeral(f)
	}
}

// ownTogether is how much of the data of a frame may share memory: so much is kept alive by
// an application that keeps one message.
const ownTogether = 4 << 10

// own copies the frame's data, because its memory is used again.
func own(f *wire.Frame) {
	if f.Kind == wire.JSON || f.Kind == wire.Text {
		f.Data = bytes.Clone(f.Data)
	}
	var room []byte
	for i := range f.Entries {
		e := &f.Entries[i]
		if e.Kind == wire.Binary { // decoded to a place of its own
			continue
		}
		n := len(e.Data)
		if n > cap(room)-len(room) {
			if n > ownTogether/4 {
				e.Data = bytes.Clone(e.Data)
				continue
			}
			size := 0
			for _, next := range f.Entries[i:] {
				if len(next.Data) <= ownTogether/4 {
					if size += len(next.Data); size >= ownTogether {
						break
					}
				}
			}
			room = make([]byte, 0, min(size, ownTogether))
		}
		start := len(room)
		room = append(room, e.Data...)
		e.Data = room[start:len(room):len(room)]
	}
}

// Reconnect has the client make a fresh connection, to another server if there are
// several: for when it is known that the network has changed. A wait for the next attempt
// is cut short. It does nothing more often than about once in a second.
func (c *Client) Reconnect() {
	select {
	case c.nudge <- struct{}{}:
	default:
	}
}

// Close waits until what was published is answered, or ctx is done, closes the connection,
// and ends everything: when it returns nothing of the client runs, and nothing is dialled
// any more. Subscribe, Send and Publish fail with ErrClosed from the beginning of Close.
//
// If messages were left, which fail then, it returns the context.Cause of ctx, or what
// [Client.Err] says if that was not the reason. What it does after ctx is done takes no
// time: the server is not waited for. Nor is a callback of the Options that has not
// returned then, which runs on: an OnState not at all, and any other for a quarter of a second.
// OnState is told of Closed after it. It may be called again, and by several goroutines.
//
// From within a callback give it a ctx that ends: it waits for the callback until then.
func (c *Client) Close(ctx context.Context) error {
	c.mu.Lock()
	if c.state < Closing {
		c.setState(Closing)
		c.admit() // nobody: they are told
		if c.n == 0 {
			close(c.flushed)
		}
	}
	c.mu.Unlock()
	select {
	case <-c.flushed:
	case <-c.stopped:
	case <-ctx.Done():
	}
	c.mu.Lock()
	c.leave = c.leave || c.state != Closed
	session := c.session
	c.wakeWriter()
	c.mu.Unlock()
	if session {
		timer := time.NewTimer(2 * closeGrace)
		select {
		case <-c.stopped:
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	c.cancel(ErrClosed)
	c.settle(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.lost == 0 && c.state == Closed:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return c.err
}

// settle waits until nothing of the client runs, or nothing but a callback when ctx is done.
func (c *Client) settle(ctx context.Context) {
	select {
	case <-c.ended:
		return
	case <-ctx.Done():
	}
	// What is ours needs no time. Whether the loop is in a callback is not known, but it ends
	// soon if not. (If it were known, one that is short, such as the last line in the log, would
	// have Close return before all has ended.)
	timer := time.NewTimer(closeGrace)
	defer timer.Stop()
	select {
	case <-c.stopped:
	case <-timer.C:
		return
	}
	for {
		c.mu.Lock()
		telling, changed := c.telling, c.changed
		c.mu.Unlock()
		if telling {
			return
		}
		select {
		case <-c.ended:
			return
		case <-changed:
		}
	}
}
