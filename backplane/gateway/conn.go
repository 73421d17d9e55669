package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	b64 "encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/heartbeat"
	"github.com/holdfast-ws/holdfast/internal/wire"
)

// A conn is one client's connection.
//
//	ServeHTTP: accept ── greet (hello, Authorize, welcome) ──▶ loop (its own goroutine) ──▶ finish
//
// The goroutine of loop reads, and carries out what needs no waiting. Each subscribe
// has a goroutine until it is answered, and publishes share one while there are some.
// Whoever has something to be written becomes the writer if nobody is, see flush.
type conn struct {
	g     *Gateway
	ws    *websocket.Conn
	net   *netConn // nil before accept; then guarded by mu
	peer  *heartbeat.Peer
	id    string
	user  string   // set by greet; guarded by Gateway.mu until then
	known bool     // user is set; guarded by Gateway.mu
	asked bool     // Authorize was asked who that is; guarded by Gateway.mu
	gone  []string // users that were disconnected since; guarded by Gateway.mu
	value any

	frames, publishes bucket // the reader's

	hit     map[string]bool // limits that are in the log, see hold; the reader's
	dropped map[string]bool // codes with which a dropped ephemeral message was answered; the reader's
	limited io.LimitedReader

	dead    atomic.Bool // nothing can be written any more
	greeted bool        // Connected was called
	since   time.Time   // when the handshake was over

	mu       sync.Mutex // guards all below; nothing that waits is done under it
	writing  bool       // somebody is the writer
	out      []byte     // frames to be written
	ready    []*sub     // subscriptions that have something to be read, with the writer's turn to come
	subs     []*sub
	pubs     []publish // to be carried out, the first of which is under way
	pending  int       // bytes in pubs
	expires  time.Time
	renewal  *renewal    // under way
	closing  int         // close code, which is sent once out is written
	reason   string      // sent with it
	cause    *cause      // of the end, once there is one
	patience *time.Timer // kills a connection whose end takes too long
	ended    bool        // nobody reads any more
}

// maxOut is how many bytes of answers may wait to be written. Rates and timeouts keep
// them far below that for everybody who reads at all.
const maxOut = 256 << 10

// maxPending is how many bytes of publishes may wait, besides Limits.Pending.
const maxPending = 256 << 10

// accept makes the WebSocket.
func (c *conn) accept(w http.ResponseWriter, r *http.Request) (err error) {
	g := c.g
	if c.peer, err = g.monitor.NewPeer(&heartbeat.Options{Value: c}); err != nil {
		return err
	}
	h := &upgrade{w: c.peer.WrapWriter(w), timeout: g.opts.Limits.Write, secure: r.TLS != nil, header: http.Header{}}
	mode := websocket.CompressionDisabled
	if g.opts.Compress {
		mode = websocket.CompressionNoContextTakeover
	}
	ws, err := websocket.Accept(h, r, &websocket.AcceptOptions{
		Subprotocols:       []string{wire.Subprotocol},
		InsecureSkipVerify: true, // the origin was checked
		CompressionMode:    mode,
		OnPingReceived:     func(context.Context, []byte) bool { return c.peer.Pinged() },
		OnPongReceived:     func(context.Context, []byte) { c.peer.Pinged() }, // ours are fewer than it may send
	})
	if err != nil {
		g.failed(w, h, err)
		return err
	}
	ws.SetReadLimit(-1) // see receive
	g.count.accepted.Add(1)
	c.since = time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ws, c.net = ws, h.conn
	if c.closing != 0 && !c.dead.Load() { // the end came before the beginning, and is to be told
		c.writing = true
		c.writer()
	}
	if c.closing != 0 || c.dead.Load() {
		return errRefused
	}
	return nil
}

// greet reads the hello, asks who that is, and answers.
func (c *conn) greet(r *http.Request) error {
	g := c.g
	buf := buffers.Get().(*bytes.Buffer)
	defer putBuffer(buf)
	c.deadline(time.Now().Add(g.opts.Limits.Hello))
	typ, err := c.receive(buf, "no hello in time", "Hello", g.opts.Limits.Hello)
	if err != nil {
		return fmt.Errorf("no hello: %w", err)
	}
	var f wire.Frame
	if !c.decode(typ, buf.Bytes(), &f) {
		return errRefused
	}
	g.count.framesIn.Add(1)
	if f.Type != wire.Hello {
		return c.refuse(wire.CloseBadFrame, wire.OutOfState, "t", "the first frame has to be hello")
	}
	if f.Version < 1 {
		return c.refuse(wire.CloseVersion, wire.BadFrame, "v", "is missing: the greatest version that the client speaks")
	}
	token := f.Token
	if token == "" {
		token = bearer(r)
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer context.AfterFunc(g.ctx, cancel)()
	defer cancel()
	g.mu.Lock()
	c.asked = true
	g.mu.Unlock()
	grant, err := g.ask(ctx, Access{Action: Connect, Request: r, Token: token})
	if err != nil {
		code, message := refusal(err)
		status := wire.CloseTryLater
		switch code {
		case wire.Unauthenticated:
			status = wire.CloseUnauthorized
		case wire.Forbidden:
			status = wire.CloseForbidden
		}
		return c.refuse(status, code, "", message)
	}
	if status, why := g.enterUser(c, grant.User); status != 0 {
		code := wire.Forbidden
		switch status {
		case wire.CloseUnauthorized:
			code = wire.Unauthenticated
		case wire.CloseTryLater:
			code = wire.Unavailable
		case wire.CloseTooManyOfUser:
			c.user = grant.User // for the log
			why += " (" + c.limit("PerUser", g.opts.Limits.PerUser) + ")"
			c.user = ""
		}
		return c.refuse(status, code, "", why)
	}
	c.value = grant.Value
	c.mu.Lock()
	c.expires = grant.Expires
	c.mu.Unlock()
	hb := g.opts.Heartbeat
	var watched heartbeat.Conn = c.ws
	if f.Beats {
		watched = heartbeat.Funcs{PingFunc: c.beat, CloseFunc: c.ws.CloseNow}
	}
	l := g.opts.Limits
	welcome := wire.Frame{
		Type: wire.Welcome, Version: min(f.Version, wire.Version), Conn: c.id, Node: g.opts.Node,
		Beat: hb.Interval.Milliseconds(), Timeout: hb.Timeout.Milliseconds(),
		Limits: wire.Limits{Message: l.Message, Topics: max(0, l.Topics), Pending: max(0, l.Pending), History: max(0, l.History)},
	}
	welcomed := false
	c.enqueue(&welcome, 0, "", func() bool { welcomed = true; return true }, true)
	if !welcomed || c.dead.Load() { // it may have been told to go instead
		return errGone
	}
	if err := c.peer.Watch(watched); err != nil {
		return err
	}
	c.greeted = true
	g.log.Debug("connected", "conn", c.id, "user", clean(c.user))
	g.trace.Connected(c.info())
	return nil
}

// Why reading ends: the client was told why, it has left, or we have panicked.
var (
	errRefused = errors.New("gateway: refused")
	errGone    = errors.New("gateway: gone")
	errPanic   = errors.New("gateway: panic")
)

// refuse answers with an error and a close frame, on the goroutine that reads, which
// then ends.
func (c *conn) refuse(status int, code, field, message string) error {
	c.g.count.badFrames.Add(1)
	c.end(status, message, &wire.Frame{Type: wire.Error, Code: code, Field: field, Message: message})
	return fmt.Errorf("%w: %s", errRefused, strings.TrimSpace(field+" "+message))
}

func bearer(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || len(token) > wire.MaxToken {
		return ""
	}
	return strings.TrimSpace(token)
}

// beat is the ping of clients that answer by themselves. It waits until somebody has
// seen the answer, which is the wrapped connection.
func (c *conn) beat(ctx context.Context) error {
	c.send(&wire.Frame{Type: wire.Beat})
	<-ctx.Done()
	return ctx.Err()
}

var (
	buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}
	decoded = sync.Pool{New: func() any { return new(wire.Frame) }}
)

// rare is the size from which on a buffer is not kept for others.
const rare = 64 << 10

func putBuffer(b *bytes.Buffer) {
	if b.Cap() <= rare {
		buffers.Put(b)
	}
}

// loop reads until the connection ends.
func (c *conn) loop() {
	err := errPanic
	defer func() {
		if p := recover(); p != nil {
			c.g.log.Error("panic in a connection", "conn", c.id, "panic", clean(fmt.Sprint(p)))
		}
		c.finish(err)
	}()
	for {
		if err = c.read(); err != nil {
			return
		}
	}
}

// read reads one message and carries it out.
func (c *conn) read() error {
	buf := buffers.Get().(*bytes.Buffer)
	defer putBuffer(buf)
	typ, err := c.receive(buf, "the message did not end in time", "Incoming", c.g.opts.Limits.Incoming)
	if err != nil {
		return err
	}
	f := decoded.Get().(*wire.Frame)
	defer decoded.Put(f)
	return c.frame(typ, buf.Bytes(), f)
}

// receive reads one message. From its beginning on it has some time, but for the first, for
// which the time runs already.
func (c *conn) receive(buf *bytes.Buffer, late, option string, patience time.Duration) (websocket.MessageType, error) {
	buf.Reset()
	typ, reader, err := c.ws.Reader(context.Background())
	if err == nil {
		if c.greeted {
			c.deadline(time.Now().Add(patience))
		}
		c.limited = io.LimitedReader{R: reader, N: int64(c.g.opts.Limits.Message) + 1}
		_, err = buf.ReadFrom(&c.limited)
	}
	switch {
	case isTimeout(err) && !c.net.late.Load():
		c.end(wire.CloseHelloTimeout, late+" ("+c.limit(option, patience)+")", nil)
	case err == nil && buf.Len() > c.g.opts.Limits.Message:
		c.end(wire.CloseTooBig, "the message is too long ("+c.limit("Message", c.g.opts.Limits.Message)+")", nil)
		err = errRefused
	case err == nil && c.net.over:
		// The library takes a message for complete that was cut off between two of its reads.
		err = io.ErrUnexpectedEOF
	}
	c.deadline(time.Time{})
	return typ, err
}

// deadline bounds reading, unless the connection is being closed, which has a deadline
// of its own.
func (c *conn) deadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing == 0 {
		c.net.SetReadDeadline(t)
	}
}

// frame carries out one frame.
func (c *conn) frame(typ websocket.MessageType, b []byte, f *wire.Frame) error {
	g := c.g
	g.count.framesIn.Add(1)
	rate := g.opts.Limits.Frames
	if level := c.frames.take(rate); level < 0 {
		g.count.tooFast.Add(1)
		if level <= -4*float64(rate) {
			return c.refuse(wire.CloseTooFast, wire.TooFast, "", "far too many frames ("+c.limit("Frames", perSecond(rate))+")")
		}
		// It is looked at, to answer what needs an answer, but not carried out.
		if typ == websocket.MessageText && wire.Decode(b, f) == nil {
			c.tooFast(f, level, rate)
		}
		return nil
	}
	if typ != websocket.MessageText {
		return c.refuse(wire.CloseUnsupported, wire.BadFrame, "", "a frame is a text message")
	}
	if err := wire.Decode(b, f); err != nil {
		var bad *wire.FrameError
		errors.As(err, &bad)
		if !utf8.Valid(b) {
			return c.refuse(wire.CloseInvalidUTF8, bad.Code, bad.Field, bad.Reason)
		}
		if bad.Field == "" {
			return c.refuse(wire.CloseBadFrame, bad.Code, "", bad.Error())
		}
		c.answerBad(f, bad.Code, bad.Field, bad.Reason)
		return nil
	}
	switch f.Type {
	case wire.Beat, wire.Pong:
	case wire.Ping:
		c.send(&wire.Frame{Type: wire.Pong})
	case wire.Subscribe:
		c.subscribe(f)
	case wire.Unsubscribe:
		c.unsubscribe(f)
	case wire.Publish, wire.Ephemeral:
		c.publish(f)
	case wire.Auth:
		c.renew(f)
	case wire.Hello, wire.Welcome, wire.OK, wire.Subscribed, wire.Unsubscribed, wire.Entries, wire.Reset, wire.Ack,
		wire.Nack, wire.Error, wire.Goodbye:
		c.answerBad(f, wire.OutOfState, "t", "is not for a client to send now")
	default:
		c.answerBad(f, wire.UnknownType, "t", "is no type of frame that is known here")
	}
	return nil
}

// decode is for the first frame, which has to be a good one.
func (c *conn) decode(typ websocket.MessageType, b []byte, f *wire.Frame) bool {
	var bad *wire.FrameError
	switch err := wire.Decode(b, f); {
	case typ != websocket.MessageText:
		c.refuse(wire.CloseUnsupported, wire.BadFrame, "", "a frame is a text message")
	case !utf8.Valid(b):
		c.refuse(wire.CloseInvalidUTF8, wire.BadFrame, "", "the frame is not UTF-8")
	case errors.As(err, &bad):
		c.refuse(wire.CloseBadFrame, bad.Code, bad.Field, bad.Reason)
	default:
		return true
	}
	return false
}

// answerBad answers a frame that cannot be carried out, as one of its type is answered.
func (c *conn) answerBad(f *wire.Frame, code, field, message string) {
	c.g.count.badFrames.Add(1)
	if f.Type == wire.Publish && f.ID != "" && len(f.ID) <= backplane.MaxID {
		c.nack(f.ID, wire.NotStored, code, field, message, 0)
		return
	}
	answer := wire.Frame{Type: wire.Error, Code: code, Field: field, Message: message, Ref: f.Ref}
	if len(f.Topic) <= backplane.MaxTopic {
		answer.Topic = f.Topic
	}
	c.send(&answer)
}

func (c *conn) tooFast(f *wire.Frame, level float64, rate int) {
	retry := refill(level, rate)
	message := "too many frames (" + c.limit("Frames", perSecond(rate)) + ")"
	if f.Type == wire.Publish && f.ID != "" && len(f.ID) <= backplane.MaxID {
		c.nack(f.ID, wire.NotStored, wire.TooFast, "", message, retry)
		return
	}
	answer := wire.Frame{Type: wire.Error, Code: wire.TooFast, Message: message, Ref: f.Ref, Retry: retry}
	if len(f.Topic) <= backplane.MaxTopic {
		answer.Topic = f.Topic
	}
	c.send(&answer)
}

func (c *conn) nack(id, outcome, code, field, message string, retry int64) {
	c.send(c.g.nack(id, outcome, code, field, message, retry))
}

func (g *Gateway) nack(id, outcome, code, field, message string, retry int64) *wire.Frame {
	g.count.notPublished.Add(1)
	return &wire.Frame{Type: wire.Nack, ID: id, Outcome: outcome, Code: code, Field: field, Message: message, Retry: retry}
}

// A publish waits to be carried out.
type publish struct {
	topic     string
	m         backplane.Message
	ephemeral bool
}

// publish queues a message.
func (c *conn) publish(f *wire.Frame) {
	l := c.g.opts.Limits
	p := publish{topic: f.Topic, ephemeral: f.Type == wire.Ephemeral}
	p.m = backplane.Message{ID: f.ID, Key: f.Key}
	var bad *backplane.InputError
	switch {
	case !p.ephemeral && f.ID == "":
		c.answerBad(f, wire.BadFrame, "id", "is missing")
		return
	case errors.As(backplane.CheckTopic(f.Topic), &bad):
		c.answerBad(f, wire.BadTopic, "topic", bad.Reason)
		return
	case errors.As(p.m.Check(), &bad):
		c.answerBad(f, wire.BadFrame, strings.ToLower(bad.Field), bad.Reason)
		return
	case f.Kind == wire.None:
		c.answerBad(f, wire.BadFrame, "data", "is missing, and so are text and bin")
		return
	}
	if level := c.publishes.take(l.Publishes); level < 0 {
		c.publishes.level++ // what is refused costs nothing: all frames are counted anyhow
		c.g.count.tooFast.Add(1)
		c.refusePublish(f, wire.TooFast, "too many messages ("+c.limit("Publishes", perSecond(l.Publishes))+")", refill(level, l.Publishes))
		return
	}
	if p.ephemeral {
		p.m = backplane.Message{}
	}
	p.m.Data = bytes.Clone(f.Data)
	c.mu.Lock()
	if c.ended || c.closing != 0 {
		c.mu.Unlock()
		return
	}
	many, long := l.Pending >= 0 && len(c.pubs) >= l.Pending, c.pending > maxPending
	if many || long {
		c.mu.Unlock()
		message := fmt.Sprintf("too many bytes wait to be stored (more than %d)", maxPending)
		if many {
			message = "too many messages wait to be stored (" + c.limit("Pending", l.Pending) + ")"
		} else {
			c.hold("bytes that wait to be stored", "limit", maxPending, "of", "bytes that wait to be stored")
		}
		c.refusePublish(f, wire.TooManyPending, message, 1000)
		return
	}
	c.pubs = append(c.pubs, p)
	c.pending += len(p.m.Data)
	first := len(c.pubs) == 1
	c.mu.Unlock()
	if first {
		c.g.wg.Go(c.publisher)
	}
}

// refusePublish answers a message that a limit keeps out. Of ephemeral ones it answers the first
// of each code: what is worth nothing a second later is dropped, but not without a word. The
// field says that it is about these, and that nothing else has to wait.
func (c *conn) refusePublish(f *wire.Frame, code, message string, retry int64) {
	switch {
	case f.Type == wire.Publish:
		c.nack(f.ID, wire.NotStored, code, "", message, retry)
	case !c.dropped[code]:
		if c.dropped == nil {
			c.dropped = map[string]bool{}
		}
		c.dropped[code] = true
		c.send(&wire.Frame{Type: wire.Error, Code: code, Field: "t", Message: message, Topic: f.Topic, Retry: retry})
	}
}

// publisher carries out what is queued, one after the other, and ends.
func (c *conn) publisher() {
	for done := false; !done; {
		c.mu.Lock()
		if len(c.pubs) == 0 || c.ended { // what has not begun the client will send again, elsewhere
			c.pubs, c.pending = nil, 0
			c.mu.Unlock()
			return
		}
		p := c.pubs[0]
		c.mu.Unlock()
		answer := c.carryOut(p)
		// In one step: who has got the answer may send another at once, and what that is
		// answered must not come first.
		asked := false
		next := func() bool {
			asked = true
			if len(c.pubs) > 0 {
				c.pending -= len(p.m.Data)
				c.pubs[0] = publish{}
				c.pubs = c.pubs[1:]
			}
			if done = len(c.pubs) == 0; done {
				c.pubs = nil
			}
			return true
		}
		if answer != nil {
			c.enqueue(answer, 0, "", next, true)
		}
		if !asked {
			c.mu.Lock()
			next()
			c.mu.Unlock()
		}
	}
}

// forget gives up the publishes that have not begun. The lock is held.
func (c *conn) forget() {
	for i := range c.pubs {
		if i > 0 { // the first is under way
			c.pending -= len(c.pubs[i].m.Data)
			c.pubs[i] = publish{}
		}
	}
	c.pubs = c.pubs[:min(len(c.pubs), 1)]
}

// publishTimeout bounds a publish. A client that hears nothing asks again.
const publishTimeout = 10 * time.Second

// carryOut publishes, and returns the answer, if there is one.
func (c *conn) carryOut(p publish) (answer *wire.Frame) {
	g := c.g
	if _, err := g.ask(g.ctx, Access{Action: Publish, User: c.user, Value: c.value, Topic: p.topic, Message: p.m}); err != nil {
		code, message := refusal(err)
		if p.ephemeral {
			return &wire.Frame{Type: wire.Error, Code: code, Message: message, Topic: p.topic}
		}
		return g.nack(p.m.ID, wire.NotStored, code, "", message, 0)
	}
	c.mu.Lock()
	over := c.closing != 0
	c.mu.Unlock()
	if over { // what Authorize has allowed may be allowed no longer
		return nil
	}
	ctx, cancel := context.WithTimeout(g.ctx, publishTimeout)
	defer cancel()
	if p.ephemeral {
		err := g.hub.PublishEphemeral(ctx, p.topic, p.m.Data)
		if errors.Is(err, errors.ErrUnsupported) {
			return &wire.Frame{Type: wire.Error, Code: wire.Unsupported, Message: "ephemeral messages are not supported", Topic: p.topic}
		}
		return nil
	}
	id := p.m.ID
	p.m.ID = scoped(c.user, id)
	receipt, err := g.hub.Publish(ctx, p.topic, p.m)
	receipt.ID = id
	g.trace.Published(c.info(), p.topic, receipt, err)
	outcome := outcomes[receipt.Outcome]
	if err == nil {
		g.count.published.Add(1)
		return &wire.Frame{Type: wire.Ack, ID: id, Outcome: outcome, Pos: receipt.Pos}
	}
	if bad := (*backplane.InputError)(nil); errors.As(err, &bad) {
		code := wire.BadFrame
		if bad.Field == "Data" {
			code = wire.TooLarge
		}
		return g.nack(id, outcome, code, strings.ToLower(bad.Field), bad.Reason, 0)
	}
	g.note(warn, "publish failed", "conn", c.id, "user", clean(c.user), "topic", clean(p.topic), "outcome", outcome, "err", quoted(err.Error(), maxError))
	return g.nack(id, outcome, wire.Unavailable, "", "it could not be stored now; try again", 0)
}

var outcomes = map[backplane.Outcome]string{
	backplane.Unknown: wire.Unknown, backplane.NotStored: wire.NotStored, backplane.Committed: wire.Committed,
	backplane.Duplicate: wire.Duplicate, backplane.Queued: wire.Queued,
}

// scoped makes the id of a user's message one that no other user can have, so that
// nobody can suppress the message of another by using its id first.
func scoped(user, id string) string {
	h := sha256.New()
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(user)))
	h.Write(n[:])
	io.WriteString(h, user)
	io.WriteString(h, id)
	return "gw:" + b64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

// A renewal is a new token about which Authorize is being asked, and the one that has come
// meanwhile, if any.
type renewal struct {
	token string
	ref   uint64
	next  *renewal
}

// renew takes a new token. There is one question at a time, and the last token counts.
func (c *conn) renew(f *wire.Frame) {
	r := &renewal{token: f.Token, ref: f.Ref}
	c.mu.Lock()
	if c.ended || c.closing != 0 {
		c.mu.Unlock()
		return
	}
	if first := c.renewal; first != nil {
		old := first.next
		first.next = r
		c.mu.Unlock()
		if old != nil {
			c.send(&wire.Frame{Type: wire.Error, Code: wire.OutOfState, Message: "another token has come since", Ref: old.ref})
		}
		return
	}
	c.renewal = r
	c.mu.Unlock()
	c.g.wg.Go(func() {
		for r != nil {
			c.ask(r)
			c.mu.Lock()
			if r = r.next; c.ended {
				r = nil
			}
			c.renewal = r
			c.mu.Unlock()
		}
	})
}

// ask asks about one token, and answers.
func (c *conn) ask(r *renewal) {
	ref := r.ref
	grant, err := c.g.ask(c.g.ctx, Access{Action: Renew, Token: r.token, User: c.user, Value: c.value})
	if err == nil && grant.User != "" && grant.User != c.user {
		err = ErrUnauthenticated // a connection does not change hands
	}
	if err != nil {
		switch code, message := refusal(err); code {
		case wire.Unavailable:
			c.send(&wire.Frame{Type: wire.Error, Code: code, Message: message, Ref: ref})
		default:
			c.end(wire.CloseUnauthorized, message, &wire.Frame{Type: wire.Error, Code: wire.Unauthenticated, Message: message, Ref: ref})
		}
		return
	}
	c.mu.Lock()
	c.expires = grant.Expires
	c.mu.Unlock()
	c.send(&wire.Frame{Type: wire.OK, Ref: ref})
}
