package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// A sub is a subscription of a connection, from its subscribe frame on.
type sub struct {
	c     *conn
	topic string
	ref   uint64 // of the subscribe
	feed  *feed
	stop  atomic.Pointer[context.CancelFunc] // of join, while it runs
	live  atomic.Pointer[backplane.Subscription]
	ended atomic.Bool

	at      replay.Position // where the client stands; the writer's, once live
	checked atomic.Int64    // when Authorize was asked last, in Unix seconds
}

// subscribe begins a subscription, in place of one of the same topic.
func (c *conn) subscribe(f *wire.Frame) {
	var bad *backplane.InputError
	if errors.As(backplane.CheckTopic(f.Topic), &bad) {
		c.answerBad(f, wire.BadTopic, "topic", bad.Reason)
		return
	}
	if epochs(f.From) > maxEpochs {
		c.answerBad(f, wire.BadPosition, "from", fmt.Sprintf("has positions of more than %d epochs", maxEpochs))
		return
	}
	ctx, cancel := context.WithCancel(c.g.ctx)
	s := &sub{c: c, topic: f.Topic, ref: f.Ref}
	s.stop.Store(&cancel)
	from := slices.Clone(f.From)
	last, floor, ref := min(f.Last, max(c.g.opts.Limits.History, 0)), f.Floor, f.Ref
	if c.g.opts.Limits.History < 0 {
		last = f.Last
	}
	c.mu.Lock()
	if c.ended || c.closing != 0 {
		c.mu.Unlock()
		cancel()
		return
	}
	old := c.take(f.Topic)
	if l := c.g.opts.Limits.Topics; l >= 0 && len(c.subs) >= l && old == nil {
		c.mu.Unlock()
		cancel()
		c.answerBad(f, wire.TooManyTopics, "topic", "is one too many on this connection ("+c.limit("Topics", l)+")")
		return
	}
	c.subs = append(c.subs, s)
	c.mu.Unlock()
	c.g.count.subscriptions.Add(1)
	if old != nil {
		old.close()
	}
	c.g.wg.Go(func() {
		defer cancel()
		c.join(ctx, s, from, last, floor, ref)
	})
}

// take takes the subscription of a topic out of the list, with the lock held.
func (c *conn) take(topic string) *sub {
	for i, s := range c.subs {
		if s.topic == topic {
			c.subs = slices.Delete(c.subs, i, i+1)
			return s
		}
	}
	return nil
}

// join asks whether s is allowed, and makes it a living subscription.
func (c *conn) join(ctx context.Context, s *sub, from []replay.Position, last int, floor replay.Position, ref uint64) {
	g := c.g
	grant, err := g.ask(ctx, Access{Action: Subscribe, User: c.user, Value: c.value, Topic: s.topic, Resume: len(from) > 0})
	if err != nil {
		code, message := refusal(err)
		c.failJoin(s, code, message, ref)
		return
	}
	// Those that are made together are not to be asked about together.
	spread := max(time.Second, g.opts.Recheck)
	s.checked.Store(time.Now().Add(-rand.N(spread)).Unix())
	if !grant.Floor.IsZero() {
		floor = grant.Floor
	}
	o := backplane.SubscribeOptions{Last: last, Floor: floor, Lag: g.opts.Lag(s.topic), Value: s}
	live, answer, err := g.open(ctx, s.topic, o, from)
	if err != nil {
		c.failJoin(s, wire.Unavailable, "the topic cannot be subscribed to now; try again", ref)
		return
	}
	answer.Ref = ref
	s.feed = g.enterFeed(s.topic)
	s.at = live.Position() // also if it is no base, because a reset comes first
	ours := false
	c.sendIf(answer, func() bool {
		if ours = !s.ended.Load() && !c.ended; ours {
			s.live.Store(live)
			s.stop.Store(nil)
		}
		return ours
	})
	if !ours {
		live.Close()
		g.leaveFeed(s.feed)
		return
	}
	g.trace.Subscribed(c.info(), s.topic, len(from) > 0)
	backplane.Arm(g.poller, live) // entries come after the answer
}

// failJoin ends a subscription that was not made.
func (c *conn) failJoin(s *sub, code, message string, ref uint64) {
	c.remove(s, &wire.Frame{Type: wire.Error, Code: code, Message: message, Topic: s.topic, Ref: ref})
}

// open subscribes to a topic after the position furthest back, of several, from which
// that is possible; and returns with it the answer for the client.
func (g *Gateway) open(ctx context.Context, topic string, o backplane.SubscribeOptions, from []replay.Position) (live *backplane.Subscription, answer *wire.Frame, err error) {
	answer = &wire.Frame{Type: wire.Subscribed, Topic: topic}
	for try := 1; len(from) > 0; try++ {
		good := from
		if len(from) > 1 {
			if good, answer.Late, err = g.sift(ctx, topic, from); err != nil {
				return nil, nil, err
			}
		}
		o.After = good[0]
		if live, err = g.hub.Subscribe(ctx, topic, &o); err != nil {
			return nil, nil, err
		}
		if answer.Head, err = live.Check(o.After); err == nil {
			answer.Base = o.After
		} else if len(good) > 1 && try < 4 { // it was trimmed just now; the others may not be concerned
			live.Close()
			continue
		} // else the first read gives a reset, which is about good[0]
		return live, answer, nil
	}
	if live, err = g.hub.Subscribe(ctx, topic, &o); err != nil {
		return nil, nil, err
	}
	answer.Base = live.Position()
	answer.Head, err = live.Check(answer.Base)
	if p := o.Floor; err == nil && p.Epoch == answer.Base.Epoch && p.Seq > answer.Base.Seq {
		// It begins below its floor, and would have to say so if it were resumed there.
		if _, err := live.Check(p); err == nil {
			live.Close()
			o.After = p
			if live, err = g.hub.Subscribe(ctx, topic, &o); err != nil {
				return nil, nil, err
			}
			answer.Base = p
		}
	}
	return live, answer, nil
}

// sift returns those of several positions after which one can go on, the one furthest back
// first, or else only the one furthest on; and beside them those after which one cannot,
// with how many messages they are behind the first.
func (g *Gateway) sift(ctx context.Context, topic string, from []replay.Position) (good []replay.Position, late []wire.Late, err error) {
	from = slices.Compact(slices.SortedFunc(slices.Values(from), func(a, b replay.Position) int {
		return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.Tag, b.Tag))
	}))
	// What the Hub has explains a position once it was asked for it. Both ends of each
	// epoch are asked for, and then all between them are explained.
	var live *backplane.Subscription
	for i, p := range from {
		inner := i > 0 && i < len(from)-1 && from[i-1].Epoch == p.Epoch && from[i+1].Epoch == p.Epoch
		if inner {
			continue
		}
		if live != nil {
			live.Close()
		}
		if live, err = g.hub.Subscribe(ctx, topic, &backplane.SubscribeOptions{After: p}); err != nil {
			return nil, nil, err
		}
	}
	defer live.Close()
	var gap *replay.GapError
	for _, p := range from {
		if _, err := live.Check(p); errors.As(err, &gap) {
			late = append(late, wire.Late{Pos: p, Reason: string(gap.Reason)})
		} else {
			good = append(good, p)
		}
	}
	if len(good) == 0 { // the reset tells what that one has missed
		good, late = from[len(from)-1:], late[:len(late)-1]
	}
	for i := range late {
		if l := &late[i]; l.Reason == string(replay.ReasonTrimmed) && l.Pos.Epoch == good[0].Epoch {
			l.Missed = good[0].Seq - l.Pos.Seq
		}
	}
	return good, late, nil
}

// maxEpochs is how many lives of a topic the positions of one subscribe may be of. Each
// costs a read or two.
const maxEpochs = 4

func epochs(from []replay.Position) int {
	seen := map[uint64]bool{}
	for _, p := range from {
		seen[p.Epoch] = true
	}
	return len(seen)
}

// unsubscribe ends a subscription.
func (c *conn) unsubscribe(f *wire.Frame) {
	c.mu.Lock()
	s := c.take(f.Topic)
	c.mu.Unlock()
	if s == nil {
		c.answerBad(f, wire.NotSubscribed, "topic", "is not subscribed to")
		return
	}
	s.close()
	c.send(&wire.Frame{Type: wire.Unsubscribed, Topic: f.Topic, Ref: f.Ref})
}

// drop ends a subscription of the server's own accord.
func (c *conn) drop(s *sub, code, message string) {
	if s.live.Load() == nil { // it has not been answered yet; if it is just now, that is an error of one that is over
		c.failJoin(s, code, message, s.ref)
		return
	}
	c.remove(s, &wire.Frame{Type: wire.Unsubscribed, Topic: s.topic, Code: code, Message: message})
}

// remove ends a subscription and says so, in one step, so that nothing of a later one of
// the same topic is said before. If s is in the list no more, nobody wants to know.
func (c *conn) remove(s *sub, f *wire.Frame) {
	rest := func() {}
	c.sendIf(f, func() bool {
		mine := slices.Contains(c.subs, s)
		if mine {
			c.take(s.topic)
			rest = s.cut()
		}
		return mine
	})
	rest()
}

// close ends a subscription that is no longer in its connection's list. What the writer
// has read of it already is still written.
func (s *sub) close() {
	s.c.mu.Lock()
	rest := s.cut()
	s.c.mu.Unlock()
	rest()
}

// cut is close with the lock held; what it returns is to be called without.
func (s *sub) cut() (rest func()) {
	ended := s.ended.Swap(true)
	live := s.live.Swap(nil)
	stop := s.stop.Swap(nil)
	return func() {
		if ended {
			return
		}
		s.c.g.count.subscriptions.Add(-1)
		if stop != nil {
			(*stop)()
		}
		if live != nil {
			live.Close()
			s.c.g.leaveFeed(s.feed)
		}
	}
}
