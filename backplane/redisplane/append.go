package redisplane

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/replay"
)

// Bounds of one call of the script. A message that is longer than maxBytes goes alone:
// that is the least that Redis takes, whatever its settings.
const (
	maxTopics   = 64
	maxMessages = 256
	maxBytes    = 1 << 20
)

// A part is what the Plane has for one partition. Appends to it are coalesced by the
// appenders themselves: the first makes its call at once, those that come meanwhile
// queue, and when the call is done the first of them makes one call for all. So one
// appender alone pays no more than a goroutine, without which neither its context nor
// Timeout could end its wait, and many share.
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
	if uint64(len(m.Data)) > math.MaxUint32 {
		return notStored, &backplane.InputError{Field: "Data", Reason: fmt.Sprintf("has %d bytes, more than %d", len(m.Data), uint32(math.MaxUint32))}
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
	// The call has a bound of its own, but a client may be slow to notice; and who
	// queues behind it must not wait for its time and then for its own.
	late := time.NewTimer(p.opts.Timeout)
	defer late.Stop()
	if !lead {
		select {
		case lead = <-c.turn:
		case <-ctx.Done():
			defer p.wg.Done()
			outcome, _ := part.leave(c)
			return backplane.Receipt{Outcome: outcome}, context.Cause(ctx)
		case <-late.C:
			defer p.wg.Done()
			outcome, done := part.leave(c)
			if done {
				return c.receipt, c.err
			}
			return backplane.Receipt{Outcome: outcome}, p.late()
		}
	}
	if !lead {
		p.wg.Done()
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
	case <-late.C:
		return backplane.Receipt{Outcome: backplane.Unknown}, p.late()
	}
}

// late is the error of an append that has taken as long as Timeout.
func (p *Plane) late() error {
	return fmt.Errorf("redisplane: no answer within %v (Options.Timeout): %w: %w", p.opts.Timeout, backplane.ErrUnavailable, context.DeadlineExceeded)
}

// leave takes c out of the queue, or passes on what it has been given. It returns what
// is known of the message, and whether that is already in c.
func (part *part) leave(c *appendCall) (outcome backplane.Outcome, done bool) {
	part.mu.Lock()
	for i, x := range part.queue {
		if x == c {
			part.queue = append(part.queue[:i:i], part.queue[i+1:]...)
			part.mu.Unlock()
			return backplane.NotStored, false
		}
	}
	part.mu.Unlock()
	select {
	case lead := <-c.turn:
		if lead {
			part.pass()
			return backplane.NotStored, false
		}
		if c.err == nil {
			return backplane.Unknown, true // it is stored, but who leaves for its context is told of that
		}
		return c.receipt.Outcome, true
	default:
		return backplane.Unknown, false
	}
}

// lead makes the call for c and those that queue, and passes the lead on.
func (part *part) lead(c *appendCall) {
	batch := []*appendCall{c}
	part.mu.Lock()
	n, bytes := 0, len(c.body)
	topics := map[string]bool{c.topic: true}
	for n < len(part.queue) && n < maxMessages-1 && len(topics) < maxTopics {
		x := part.queue[n]
		if bytes+len(x.body) > maxBytes {
			break // also one that Redis may refuse (refusal), which nobody shares
		}
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
		if x := recover(); x != nil { // not our caller's: others wait for the result too
			part.plane.log.Warn("a hook of the client has panicked", "panic", x, "stack", string(debug.Stack()))
		}
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

// A mark is an argument of a command that tells whether the command was written to a
// connection: until then it is certain that Redis does not run it, whatever failed.
type mark struct {
	text    string
	written *atomic.Bool
}

func (m mark) MarshalBinary() ([]byte, error) {
	m.written.Store(true)
	return []byte(m.text), nil
}

func (m mark) String() string { return m.text } // for hooks that log commands

// exec appends a batch. It has a little less than Timeout, so that who began with the call
// hears what came of it: above all that nothing was sent.
func (part *part) exec(batch []*appendCall) {
	ctx, cancel := context.WithTimeout(part.plane.ctx, part.plane.opts.Timeout-part.plane.opts.Timeout/16)
	defer cancel()
	part.try(ctx, batch, false)
}

// try makes one call for a batch. If that fails, and it may be for what one of the
// messages is, it tries again with each half, until those that fail are alone. The IDs
// make that harmless. unsure says that an earlier call may have stored something.
func (part *part) try(ctx context.Context, batch []*appendCall, unsure bool) {
	p := part.plane
	p.count.batches.Add(1)
	outcome, err := part.call(ctx, batch)
	if err == nil {
		return
	}
	unsure = unsure || outcome == backplane.Unknown
	if n := len(batch); n > 1 && ctx.Err() == nil && shared(err) {
		part.try(ctx, batch[:n/2], unsure)
		part.try(ctx, batch[n/2:], unsure)
		return
	}
	if unsure {
		outcome = backplane.Unknown
	}
	if len(batch) == 1 {
		if refused := p.refusal(ctx, err, len(batch[0].body)); refused != nil {
			outcome, err = backplane.NotStored, refused // also by the calls before, which were the same
		}
	}
	p.count.failed.Add(uint64(len(batch)))
	for _, c := range batch {
		c.receipt.Outcome, c.err = outcome, err
	}
}

// shared reports whether an error may be about one message of a batch, rather than
// about Redis or the way to it.
func shared(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply) && (malformed(err) || classify(err) == backplane.Unknown)
}

// malformed reports whether Redis has refused to read a command: it did not run it, and
// never will. After this answer it hangs up.
func malformed(err error) bool { return redis.HasErrorPrefix(err, "Protocol error") }

// refusal returns an error that says so if Redis refuses a command for good, because
// an argument has size bytes; and else nil. Who is still writing when Redis hangs up
// finds a broken connection instead of the answer, and then the settings tell.
func (p *Plane) refusal(ctx context.Context, err error, size int) error {
	refused := func(limit string) error {
		return &backplane.InputError{Field: "Data", Reason: fmt.Sprintf("makes an argument of %d bytes, more than this Redis takes (%s)", size, limit)}
	}
	switch {
	case malformed(err):
		return refused("proto-max-bulk-len")
	case size > maxBytes && broken(err):
		for _, name := range []string{"proto-max-bulk-len", "client-query-buffer-limit"} {
			all, err := p.client.ConfigGet(ctx, name).Result()
			most, err2 := strconv.ParseInt(all[name], 10, 64)
			if err == nil && err2 == nil && int64(size) > most {
				return refused(fmt.Sprintf("%s %d", name, most))
			}
		}
	}
	return nil
}

// call makes one call of the script for a batch, and sets the receipts if it is answered.
func (part *part) call(ctx context.Context, batch []*appendCall) (outcome backplane.Outcome, err error) {
	p := part.plane
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
	args = append(args, len(order), len(part.prefix), p.publish, channelKey("", p.db, ""), o.MaxAnnouncement, o.Identity.Milliseconds(), o.IDWindow.Milliseconds())
	for _, topic := range order {
		calls := byTopic[topic]
		c := calls[0]
		args = append(args, newEpoch(), c.entries, c.room, c.age.Milliseconds(), full(c.entries, maxSegment), full(c.room, maxSegmentBytes), len(calls))
		for _, c := range calls {
			args = append(args, c.id, c.body)
		}
	}
	reply, outcome, err := part.send(ctx, args)
	if err != nil {
		return outcome, err
	}
	for _, topic := range order {
		reply = part.receipts(reply, byTopic[topic])
	}
	return outcome, nil
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

// send calls the script, again if the connection breaks: the IDs make that harmless.
func (part *part) send(ctx context.Context, args []any) (reply []any, outcome backplane.Outcome, err error) {
	p := part.plane
	outcome = backplane.NotStored
	once := func(name, script string, written *atomic.Bool) (*redis.Cmd, error) {
		written.Store(false)
		args[0], args[1] = name, mark{script, written}
		cmd := once{redis.NewCmd(ctx, args...)}
		err := p.client.Process(ctx, cmd)
		if err != nil && written.Load() && classify(err) == backplane.Unknown {
			outcome = backplane.Unknown // whatever becomes of the next try
		}
		return cmd.Cmd, err
	}
	err = p.persist(ctx, func(written *atomic.Bool) error {
		cmd, err := once("evalsha", appendScript.Hash(), written)
		if err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
			cmd, err = once("eval", appendSource, written)
		}
		if err == nil {
			if reply, err = cmd.Slice(); err != nil {
				outcome = backplane.Unknown
			}
		}
		return err
	})
	switch {
	case err == nil:
		return reply, outcome, nil
	case p.ctx.Err() != nil:
		return nil, outcome, backplane.ErrClosed
	}
	return nil, outcome, p.unavailable(err)
}

// persist makes a call, and again as often as its connection breaks, until it must have
// had one that is new. For those in the client's pool may all be dead: Redis (timeout),
// or what is in between, closes those that are idle, and over TLS go-redis does not see
// that when it takes one from the pool. Each try that fails takes one of them away.
//
// The call sets written when a command is written (mark). A connection from the pool has
// always got as far as that; so if nothing was written the connection was new, and
// another would only be dialled in vain. What was idle when the first broke bounds the
// tries if new ones break later.
func (p *Plane) persist(ctx context.Context, call func(written *atomic.Bool) error) error {
	idle := uint32(0)
	for try := uint32(0); ; try++ {
		var written atomic.Bool
		err := call(&written)
		if !broken(err) || !written.Load() || ctx.Err() != nil {
			return err
		}
		if try == 0 {
			stats := p.client.PoolStats()
			idle = stats.IdleConns
			if stats.PipelineStats != nil {
				idle += stats.PipelineStats.IdleConns
			}
		}
		if try > idle {
			return err
		}
	}
}

// broken reports whether a connection broke, rather than that Redis was slow or could
// not be reached.
func broken(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.As(err, &op) && op.Op != "dial" && !op.Timeout()
}

// refusals are the errors of Redis with which it says that it has not begun.
var refusals = []string{
	"READONLY", "LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "MOVED", "ASK", "OOM", "NOREPLICAS", "MISCONF",
	"BUSY", "NOAUTH", "NOPERM", "WRONGPASS", "NOSCRIPT", "ERR max number of clients", "ERR unknown command", noCluster,
	"ERR Protocol error",
}

// forbidden is how Redis says within a script what it calls NOPERM outside: 7, and 6.2.
var forbidden = []string{"ERR The user executing the script can't run", "The user executing the script can't run"}

// inner returns what a command of a script was answered. Redis 7 passes that on as it is.
// 6.2 says before it where in the script that was.
func inner(text string) string {
	const where = "@user_script: "
	if i := strings.LastIndex(text, where); i >= 0 {
		if _, said, ok := strings.Cut(text[i+len(where):], ": "); ok {
			return strings.TrimPrefix(said, "-")
		}
	}
	return text
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
			if strings.HasPrefix(inner(reply.Error()), prefix) && !inside {
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
		err := fmt.Errorf("redisplane: topic %q: %s", calls[0].topic, text)
		for _, prefix := range slices.Concat(refusals, forbidden) {
			if strings.HasPrefix(inner(text), prefix) { // for now, and not for good
				err = fmt.Errorf("%w: %w", err, backplane.ErrUnavailable)
				break
			}
		}
		return fail(backplane.NotStored, err)
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

// tell publishes on a channel.
func (p *Plane) tell(ctx context.Context, channel, text string) error {
	return p.persist(ctx, func(written *atomic.Bool) error {
		return p.client.Do(ctx, p.publish, channel, mark{text, written}).Err()
	})
}

// PublishEphemeral implements [backplane.EphemeralPublisher]. A message whose connection
// broke is sent again, and so may arrive twice: it has no ID by which to tell.
func (p *Plane) PublishEphemeral(ctx context.Context, topic string, data []byte) error {
	channel := channelKey(p.part(topic).prefix, p.db, topic)
	_, err := do(p, ctx, func(ctx context.Context) (struct{}, error) {
		text := "1m" + string(data)
		err := p.tell(ctx, channel, text)
		if err == nil {
			return struct{}{}, nil
		}
		if refused := p.refusal(ctx, err, len(text)); refused != nil {
			return struct{}{}, refused
		}
		return struct{}{}, p.unavailable(err)
	})
	return err
}
