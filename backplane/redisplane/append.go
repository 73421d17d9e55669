package redisplane

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/replay"
)

// Bounds of one call of the script.
const (
	maxTopics   = 64
	maxMessages = 256
	maxBytes    = 1 << 20
)

// A part is what the Plane has for one partition. Appends to it are coalesced by the
// appenders themselves: the first makes its call at once, those that come meanwhile
// queue, and when the call is done the first of them makes one call for all. So one
// appender alone pays no more than a goroutine, without which its context could not end
// its wait, and many share.
type part struct {
	plane  *Plane
	prefix string

	mu    sync.Mutex // guards all below, and the state of the calls
	busy  bool       // somebody leads
	queue []*appendCall
}

type appendCall struct {
	topic         string
	id, body      string
	entries, room int64
	age           time.Duration
	queued        bool      // and nobody has taken it
	turn          chan bool // true: lead. false: it is done
	receipt       backplane.Receipt
	err           error
}

// Append implements [backplane.Backplane].
func (p *Plane) Append(ctx context.Context, topic string, m backplane.Message) (backplane.Receipt, error) {
	notStored := backplane.Receipt{Outcome: backplane.NotStored}
	if ctx.Err() != nil {
		return notStored, context.Cause(ctx)
	}
	entries, room, age, err := p.limits(topic)
	if err != nil {
		return notStored, err
	}
	if m.ID == "" {
		// What is sent again because the answer was lost must not be stored twice.
		m.ID = "\x00" + crand.Text()
	}
	if !p.begin() {
		return notStored, backplane.ErrClosed
	}
	c := &appendCall{
		topic: topic, id: m.ID, entries: entries, room: room, age: age,
		body: string(appendBody(make([]byte, 0, 10+len(m.Key)+len(m.Data)), rand.Uint32(), m)),
		turn: make(chan bool, 1),
	}
	part := p.part(topic)
	part.mu.Lock()
	lead := !part.busy
	if lead {
		part.busy = true
	} else {
		c.queued = true
		part.queue = append(part.queue, c)
	}
	part.mu.Unlock()
	if !lead {
		select {
		case lead = <-c.turn:
		case <-ctx.Done():
			defer p.wg.Done()
			return part.leave(c), context.Cause(ctx)
		}
	}
	if !lead {
		p.wg.Done()
		return c.receipt, c.err
	}
	if ctx.Done() == nil {
		defer p.wg.Done()
		part.lead(c)
		return c.receipt, c.err
	}
	done := make(chan struct{})
	go func() {
		defer p.wg.Done()
		part.lead(c)
		close(done)
	}()
	select {
	case <-done:
		return c.receipt, c.err
	case <-ctx.Done():
		return backplane.Receipt{Outcome: backplane.Unknown}, context.Cause(ctx)
	}
}

// leave takes c out of the queue, or passes on what it has been given.
func (part *part) leave(c *appendCall) backplane.Receipt {
	part.mu.Lock()
	for i, x := range part.queue {
		if x == c {
			part.queue = append(part.queue[:i:i], part.queue[i+1:]...)
			part.mu.Unlock()
			return backplane.Receipt{Outcome: backplane.NotStored}
		}
	}
	part.mu.Unlock()
	select {
	case lead := <-c.turn:
		if lead {
			part.pass()
			return backplane.Receipt{Outcome: backplane.NotStored}
		}
		if c.err == nil {
			return backplane.Receipt{Outcome: backplane.Unknown} // it is stored, but the caller is told of its context
		}
		return c.receipt
	default:
		return backplane.Receipt{Outcome: backplane.Unknown}
	}
}

// lead makes the call for c and those that queue, and passes the lead on.
func (part *part) lead(c *appendCall) {
	batch := []*appendCall{c}
	part.mu.Lock()
	n, bytes := 0, len(c.body)
	topics := map[string]bool{c.topic: true}
	for n < len(part.queue) && n < maxMessages-1 && bytes < maxBytes && len(topics) < maxTopics {
		x := part.queue[n]
		bytes += len(x.body)
		topics[x.topic] = true
		batch = append(batch, x)
		n++
	}
	if n > 0 {
		left := copy(part.queue, part.queue[n:])
		clear(part.queue[left:])
		part.queue = part.queue[:left]
	}
	part.mu.Unlock()
	for _, x := range batch {
		x.err = errPanic // until it is known better
	}
	defer func() {
		part.pass() // the next batch begins before these are told
		for _, x := range batch[1:] {
			x.turn <- false
		}
	}()
	part.exec(batch)
}

var errPanic = errors.New("redisplane: a hook of the client has panicked")

// pass gives the lead to the first that waits.
func (part *part) pass() {
	part.mu.Lock()
	defer part.mu.Unlock()
	if len(part.queue) == 0 {
		part.busy = false
		return
	}
	c := part.queue[0]
	copy(part.queue, part.queue[1:])
	part.queue[len(part.queue)-1] = nil
	part.queue = part.queue[:len(part.queue)-1]
	c.turn <- true
}

// once is a command that go-redis does not send again by itself: after a failure
// whose outcome is not known, a later one must not hide that.
type once struct{ *redis.Cmd }

func (once) NoRetry() bool { return true }

// exec appends a batch.
func (part *part) exec(batch []*appendCall) {
	p := part.plane
	p.count.batches.Add(1)
	order := make([]string, 0, len(batch))
	byTopic := make(map[string][]*appendCall, len(batch))
	for _, c := range batch {
		if byTopic[c.topic] == nil {
			order = append(order, c.topic)
		}
		byTopic[c.topic] = append(byTopic[c.topic], c)
	}
	// EVALSHA sha n keys… args…
	args := make([]any, 3, 9+8*len(order)+3*len(batch))
	for _, topic := range order {
		args = append(args, headKey(part.prefix, topic))
	}
	o := &p.opts
	args[2] = len(order)
	if p.cluster {
		for _, c := range batch {
			args = append(args, idKey(part.prefix, c.topic, c.id))
		}
		args[2] = len(order) + len(batch)
	}
	args = append(args, len(order), len(part.prefix), p.publish, o.MaxAnnouncement, o.Identity.Milliseconds(), o.IDWindow.Milliseconds())
	for _, topic := range order {
		calls := byTopic[topic]
		c := calls[0]
		args = append(args, newEpoch(), c.entries, c.room, c.age.Milliseconds(), full(c.entries, maxSegment), full(c.room, maxSegmentBytes), len(calls))
		for _, c := range calls {
			args = append(args, c.id, c.body)
		}
	}
	ctx, cancel := context.WithTimeout(p.ctx, o.Timeout)
	defer cancel()
	reply, outcome, err := part.send(ctx, args)
	if err != nil {
		p.count.failed.Add(uint64(len(batch)))
		for _, c := range batch {
			c.receipt.Outcome, c.err = outcome, err
		}
		return
	}
	for _, topic := range order {
		reply = part.receipts(reply, byTopic[topic])
	}
}

// A segment is a sixteenth of what is kept, or less: what a Read fetches are whole
// segments. But there are never more than 64, because the head lists them.
const (
	maxSegment      = 256
	maxSegmentBytes = 128 << 10
)

func full(limit, most int64) int64 { return max(min(limit/16, most), limit/64, 1) }

func newEpoch() string {
	for {
		if e := rand.Uint64(); e != 0 {
			return epochText(e)
		}
	}
}

// send calls the script. If the connection breaks it tries once more: the IDs make
// that harmless.
func (part *part) send(ctx context.Context, args []any) (reply []any, outcome backplane.Outcome, err error) {
	p := part.plane
	unsure := false
	for try := 0; ; try++ {
		args[0], args[1] = "evalsha", appendScript.Hash()
		cmd := once{redis.NewCmd(ctx, args...)}
		err = p.client.Process(ctx, cmd)
		if err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
			args[0], args[1] = "eval", appendSource
			cmd = once{redis.NewCmd(ctx, args...)}
			err = p.client.Process(ctx, cmd)
		}
		if err == nil {
			reply, err = cmd.Slice()
			return reply, backplane.Unknown, err
		}
		outcome = classify(err)
		unsure = unsure || outcome == backplane.Unknown
		if try > 0 || !broken(err) || ctx.Err() != nil {
			break
		}
	}
	if unsure {
		outcome = backplane.Unknown
	}
	if p.ctx.Err() != nil {
		return nil, outcome, backplane.ErrClosed
	}
	return nil, outcome, unavailable(err)
}

// broken reports whether a connection broke, rather than that Redis was slow.
func broken(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// refusals are the errors of Redis with which it says that it has not begun.
var refusals = []string{
	"READONLY", "LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "MOVED", "ASK", "OOM", "NOREPLICAS", "MISCONF",
	"BUSY", "NOAUTH", "NOPERM", "WRONGPASS", "NOSCRIPT", "ERR max number of clients",
}

// classify says what an error means for the message.
func classify(err error) backplane.Outcome {
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" || errors.Is(err, redis.ErrPoolTimeout) {
		return backplane.NotStored
	}
	var reply redis.Error
	if errors.As(err, &reply) {
		for _, prefix := range refusals {
			// An error from within the script is not a refusal, but for those that
			// come before its first write.
			inside := strings.Contains(reply.Error(), "script: ") && prefix == "NOPERM"
			if strings.HasPrefix(reply.Error(), prefix) && !inside {
				return backplane.NotStored
			}
		}
	}
	return backplane.Unknown
}

// receipts takes those of one topic from the reply, and returns the rest.
func (part *part) receipts(reply []any, calls []*appendCall) []any {
	p := part.plane
	fail := func(outcome backplane.Outcome, err error) []any {
		p.count.failed.Add(uint64(len(calls)))
		for _, c := range calls {
			c.receipt.Outcome, c.err = outcome, err
		}
		return reply[min(len(reply), 1+len(calls)):]
	}
	if len(reply) < 1+len(calls) {
		return fail(backplane.Unknown, errFormat)
	}
	text, _ := reply[0].(string)
	if !strings.HasPrefix(text, "+") {
		return fail(backplane.NotStored, fmt.Errorf("redisplane: topic %q: %s", calls[0].topic, text))
	}
	epoch, err := parseEpoch(text[1:])
	if err != nil {
		return fail(backplane.Unknown, err)
	}
	for i, c := range calls {
		c.err = nil
		switch v := reply[1+i].(type) {
		case int64:
			c.receipt = backplane.Receipt{Outcome: backplane.Committed, Pos: replay.Position{
				Epoch: epoch, Seq: uint64(v), Tag: binary.BigEndian.Uint32([]byte(c.body[:4])),
			}}
		case string:
			c.receipt.Outcome = backplane.Duplicate
			if c.receipt.Pos, c.err = parsePosition(v); c.err != nil {
				c.receipt.Outcome = backplane.Unknown
			}
		default:
			c.receipt.Outcome, c.err = backplane.Unknown, errFormat
		}
	}
	p.count.appends.Add(uint64(len(calls)))
	return reply[1+len(calls):]
}

// PublishEphemeral implements [backplane.EphemeralPublisher].
func (p *Plane) PublishEphemeral(ctx context.Context, topic string, data []byte) error {
	channel := channelKey(p.part(topic).prefix, topic)
	_, err := do(p, ctx, func(ctx context.Context) (struct{}, error) {
		if err := p.client.Do(ctx, p.publish, channel, "1m"+string(data)).Err(); err != nil {
			return struct{}{}, unavailable(err)
		}
		return struct{}{}, nil
	})
	return err
}
