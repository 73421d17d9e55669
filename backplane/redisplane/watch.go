package redisplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/backplane"
)

// Watch implements [backplane.Backplane].
func (p *Plane) Watch(s backplane.Sink) backplane.Watcher {
	w := &watcher{plane: p, sink: s, parts: map[int]*feed{}}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		w.closed = true
	} else {
		p.watchers[w] = true
	}
	return w
}

// A watcher has a feed for each partition in which it watches something.
type watcher struct {
	plane *Plane
	sink  backplane.Sink

	mu     sync.Mutex // guards all below
	closed bool
	parts  map[int]*feed
}

// A feed is the live messages of one partition, from one connection at a time.
//
// go-redis makes a new connection when one breaks, without telling. That is no use
// here, because what was missed has to be found out. So any sign of it ends the
// session, and the next begins with a connection whose every confirmation is waited
// for before the sink is told that it was interrupted.
type feed struct {
	w       *watcher
	prefix  string
	ctx     context.Context // ends in Close
	cancel  context.CancelFunc
	stopped chan struct{} // closed when nothing of it runs any more
	wake    chan struct{} // holds a token when there is something to send

	mu      sync.Mutex      // guards all below
	topics  map[string]bool // wanted; true when confirmed in this session
	missing int             // topics that are not
	waiting map[string][]*addition
	changed []string // topics that send has to look at
	session *session // nil while there is none
}

// An addition is one call of Add.
type addition struct {
	left int           // topics not confirmed yet
	done chan struct{} // closed when there are none
}

// A session is one connection. The feed's lock guards it, but for conn and pong.
type session struct {
	conn *redis.PubSub
	pong chan string // the answers to our pings

	asked  map[string]bool // channels subscribed to, until they are unsubscribed from
	subs   map[string]int  // confirmations to come, by channel
	unsubs map[string]int
	again  bool // the sink is to be told of an interruption when all is confirmed
	some   bool // a topic has been confirmed
	heard  time.Time
	token  string // that was published to try the connection; "" when it has come
}

// Add implements [backplane.Watcher].
func (w *watcher) Add(ctx context.Context, topics ...string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	byPart := map[int][]string{}
	for _, topic := range topics {
		i := partition(topic, len(w.plane.parts))
		byPart[i] = append(byPart[i], topic)
	}
	feeds := make(map[*feed][]string, len(byPart))
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return backplane.ErrClosed
	}
	for i, topics := range byPart {
		f := w.parts[i]
		if f == nil {
			f = w.newFeed(w.plane.parts[i].prefix)
			w.parts[i] = f
		}
		feeds[f] = topics
	}
	w.mu.Unlock()
	waits := make(map[*feed]*addition, len(feeds))
	for f, topics := range feeds {
		waits[f] = f.want(topics)
	}
	var err error
	for f, a := range waits {
		select {
		case <-a.done:
		case <-f.stopped:
			err = backplane.ErrClosed
		case <-ctx.Done():
			err = fmt.Errorf("redisplane: not subscribed (%w): %w", context.Cause(ctx), backplane.ErrUnavailable)
		}
	}
	if err != nil {
		for f, a := range waits {
			f.giveUp(a, feeds[f])
		}
	}
	return err
}

// Remove implements [backplane.Watcher].
func (w *watcher) Remove(topics ...string) {
	for _, topic := range topics {
		i := partition(topic, len(w.plane.parts))
		w.mu.Lock()
		f := w.parts[i]
		w.mu.Unlock()
		if f != nil {
			f.unwant(topic)
		}
	}
}

// Close implements [backplane.Watcher].
func (w *watcher) Close() error {
	w.mu.Lock()
	w.closed = true
	feeds := w.parts
	w.mu.Unlock()
	for _, f := range feeds {
		f.cancel()
	}
	for _, f := range feeds {
		<-f.stopped
	}
	w.plane.mu.Lock()
	delete(w.plane.watchers, w)
	w.plane.mu.Unlock()
	return nil
}

func (w *watcher) newFeed(prefix string) *feed {
	f := &feed{
		w: w, prefix: prefix, topics: map[string]bool{},
		stopped: make(chan struct{}), wake: make(chan struct{}, 1), waiting: map[string][]*addition{},
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	go f.run()
	return f
}

// want adds topics. What it returns says when all are confirmed.
func (f *feed) want(topics []string) *addition {
	a := &addition{done: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, topic := range topics {
		confirmed, ok := f.topics[topic]
		if !ok {
			f.topics[topic] = false
			f.missing++
			f.changed = append(f.changed, topic)
			channel := channelKey(f.prefix, f.w.plane.db, topic)
			if s := f.session; s != nil && s.asked[channel] && s.subs[channel] == 0 {
				f.confirm(topic) // it was unwanted, but nobody has told Redis yet
				confirmed = true
			}
		}
		if !confirmed {
			a.left++
			f.waiting[topic] = append(f.waiting[topic], a)
		}
	}
	if a.left == 0 {
		close(a.done)
	}
	f.poke()
	return a
}

// giveUp forgets that somebody waits for topics.
func (f *feed) giveUp(a *addition, topics []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, topic := range topics {
		f.waiting[topic] = slices.DeleteFunc(f.waiting[topic], func(x *addition) bool { return x == a })
		if len(f.waiting[topic]) == 0 {
			delete(f.waiting, topic)
		}
	}
}

// unwant takes a topic away.
func (f *feed) unwant(topic string) {
	f.mu.Lock()
	confirmed, ok := f.topics[topic]
	if ok {
		delete(f.topics, topic)
		f.changed = append(f.changed, topic)
		if !confirmed {
			f.missing--
		}
	}
	tell := f.whole()
	f.mu.Unlock()
	f.interrupted(tell)
	f.poke()
}

// confirm notes that a topic is subscribed to. The lock is held.
func (f *feed) confirm(topic string) {
	confirmed, ok := f.topics[topic]
	if !ok || confirmed {
		return
	}
	f.topics[topic] = true
	f.missing--
	for _, a := range f.waiting[topic] {
		if a.left--; a.left == 0 {
			close(a.done)
		}
	}
	delete(f.waiting, topic)
}

// whole returns the topics of which the sink is to be told that they were interrupted,
// as soon as all are confirmed again; and nil at any other time. The lock is held.
func (f *feed) whole() []string {
	s := f.session
	if s == nil || !s.again || f.missing > 0 || s.subs[probeKey(f.prefix, f.w.plane.node)] > 0 {
		return nil
	}
	s.again = false
	if len(f.w.plane.parts) == 1 {
		return []string{} // all
	}
	return slices.AppendSeq([]string{}, maps.Keys(f.topics))
}

// interrupted tells the sink what whole has returned.
func (f *feed) interrupted(topics []string) {
	if topics != nil && (len(topics) > 0 || len(f.w.plane.parts) == 1) {
		f.w.sink.Interrupted(errInterrupted, topics...)
	}
}

func (f *feed) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// run has one session after the other.
func (f *feed) run() {
	defer close(f.stopped)
	pace := backoff.Policy{Base: 50 * time.Millisecond, Cap: 2 * time.Second}
	failures, had := series{}, false
	for {
		begun := time.Now()
		ok, err := f.serve(had)
		if f.ctx.Err() != nil {
			return
		}
		f.w.plane.count.interruptions.Add(1)
		if ok && begun.Add(10*time.Second).Before(time.Now()) {
			failures = series{} // that was another
		}
		if failures.tell(err) {
			attrs := []any{"err", err, "lasted", time.Since(begun).Round(time.Millisecond), "failures", failures.n}
			if wrong := f.w.plane.wrongClient(err); wrong != nil {
				attrs = append(attrs, "reason", wrong)
			}
			f.w.plane.log.Warn("connection for live messages lost", attrs...)
		}
		had = had || ok
		if c, ok := f.w.plane.client.(*redis.ClusterClient); ok {
			c.ReloadState(f.ctx)
		}
		if backoff.Sleep(f.ctx, pace.Delay(failures.n)) != nil {
			return
		}
	}
}

// serve is one session. It reports whether a topic was confirmed in it, and returns
// why it ended.
func (f *feed) serve(again bool) (ok bool, err error) {
	p := f.w.plane
	ctx, cancel := context.WithCancelCause(f.ctx)
	probe := probeKey(f.prefix, p.node)
	s := &session{
		pong: make(chan string, 1), asked: map[string]bool{probe: true}, subs: map[string]int{probe: 1},
		unsubs: map[string]int{}, again: again, heard: time.Now(),
	}
	if p.cluster {
		s.conn = p.client.SSubscribe(ctx, probe)
	} else {
		s.conn = p.client.Subscribe(ctx, probe)
	}
	f.mu.Lock()
	f.session = s
	f.changed = f.changed[:0]
	f.missing = len(f.topics)
	for topic := range f.topics {
		f.topics[topic] = false
		f.changed = append(f.changed, topic)
	}
	f.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { cancel(f.receive(ctx, s)) })
	wg.Go(func() { cancel(f.probe(ctx, s)) })
	wg.Go(func() { cancel(f.send(ctx, s)) })
	<-ctx.Done()
	// Closing is what ends a Receive. It may have to wait until go-redis has tried to
	// connect.
	s.conn.Close()
	wg.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.session = nil
	return s.some, context.Cause(ctx)
}

// receive takes what comes.
func (f *feed) receive(ctx context.Context, s *session) error {
	for {
		m, err := s.conn.Receive(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		f.mu.Lock()
		s.heard = time.Now()
		f.mu.Unlock()
		switch m := m.(type) {
		case *redis.Message:
			f.message(s, m)
		case *redis.Subscription:
			if err := f.notice(s, m); err != nil {
				return err
			}
		case *redis.Pong:
			select {
			case s.pong <- m.Payload:
			default: // nobody waits for it
			}
		}
	}
}

// message passes one on to the sink.
func (f *feed) message(s *session, m *redis.Message) {
	topic, ok := strings.CutPrefix(m.Channel, channelKey(f.prefix, f.w.plane.db, ""))
	if !ok {
		f.mu.Lock()
		if s.token != "" && m.Payload == s.token {
			s.token = ""
			f.w.plane.count.probes.Add(1)
		}
		f.mu.Unlock()
		if _, err := strconv.Atoi(m.Payload); err != nil {
			f.malformed(m)
		}
		return
	}
	f.w.plane.count.announcements.Add(1)
	a, err := parseAnnouncement(m.Payload)
	switch {
	case err != nil:
		f.malformed(m)
		f.w.sink.Doorbell(topic)
	case a.ephemeral:
		f.w.sink.Ephemeral(topic, a.data)
	case len(a.entries) == 0:
		f.w.sink.Doorbell(topic)
	default:
		for _, e := range a.entries {
			f.w.sink.Entry(topic, e)
		}
	}
}

// malformed counts a message that is not ours.
func (f *feed) malformed(m *redis.Message) {
	p := f.w.plane
	if n := p.count.malformed.Add(1); n&(n-1) == 0 { // the first, and ever fewer of those that follow it
		p.log.Warn("somebody else publishes on our channels", "channel", m.Channel, "bytes", len(m.Payload), "malformed", n)
	}
}

var (
	errRepeated    = errors.New("redisplane: a subscription was confirmed again: the connection was replaced")
	errUnsolicited = errors.New("redisplane: Redis has ended a subscription: the topic has moved")
	errSilent      = errors.New("redisplane: nothing comes from Redis any more")
	errElsewhere   = errors.New("redisplane: what is published does not come back: publishing goes to another server")
)

// notice takes the beginning or end of a subscription.
func (f *feed) notice(s *session, m *redis.Subscription) error {
	f.mu.Lock()
	switch m.Kind {
	case "subscribe", "ssubscribe":
		if s.subs[m.Channel] == 0 {
			f.mu.Unlock()
			return errRepeated
		}
		s.subs[m.Channel]--
		if s.subs[m.Channel] == 0 {
			delete(s.subs, m.Channel)
		}
		topic, ok := strings.CutPrefix(m.Channel, channelKey(f.prefix, f.w.plane.db, ""))
		if ok && s.subs[m.Channel] == 0 && s.unsubs[m.Channel] == 0 && s.asked[m.Channel] {
			s.some = true
			f.confirm(topic)
		}
	case "unsubscribe", "sunsubscribe":
		if s.unsubs[m.Channel] == 0 {
			f.mu.Unlock()
			return errUnsolicited
		}
		s.unsubs[m.Channel]--
		if s.unsubs[m.Channel] == 0 {
			delete(s.unsubs, m.Channel)
		}
	}
	tell := f.whole()
	f.mu.Unlock()
	f.interrupted(tell)
	return nil
}

var errInterrupted = errors.New("redisplane: the connection for live messages was replaced")

// maxChannels is how many are subscribed to in one command.
const maxChannels = 1000

// send subscribes to what is wanted and unsubscribes from what is not.
func (f *feed) send(ctx context.Context, s *session) error {
	for {
		var add, drop []string
		f.mu.Lock()
		n := min(len(f.changed), maxChannels)
		for _, topic := range f.changed[:n] {
			channel := channelKey(f.prefix, f.w.plane.db, topic)
			_, wanted := f.topics[topic]
			switch {
			case wanted && !s.asked[channel]:
				add = append(add, channel)
				s.asked[channel] = true
				s.subs[channel]++
			case !wanted && s.asked[channel]:
				drop = append(drop, channel)
				delete(s.asked, channel)
				s.unsubs[channel]++
			}
		}
		if f.changed = f.changed[n:]; len(f.changed) == 0 {
			f.changed = nil
		}
		f.mu.Unlock()
		var err error
		switch {
		case len(add) > 0 && f.w.plane.cluster:
			err = s.conn.SSubscribe(ctx, add...)
		case len(add) > 0:
			err = s.conn.Subscribe(ctx, add...)
		}
		switch {
		case err != nil:
		case len(drop) > 0 && f.w.plane.cluster:
			err = s.conn.SUnsubscribe(ctx, drop...)
		case len(drop) > 0:
			err = s.conn.Unsubscribe(ctx, drop...)
		}
		if err != nil {
			return err
		}
		if n > 0 {
			continue
		}
		select {
		case <-f.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// probe tries, again and again, whether the connection carries what is published. What
// comes on one connection comes in order: so if a message was published, and then an
// answer to a ping comes before it, it does not come at all. Only a connection from
// which nothing comes is judged by time.
func (f *feed) probe(ctx context.Context, s *session) error {
	p := f.w.plane
	for n := 0; ; n++ {
		if backoff.Sleep(ctx, p.opts.Probe*3/4+rand.N(p.opts.Probe/4+1)) != nil {
			return context.Cause(ctx)
		}
		token := strconv.Itoa(n)
		f.mu.Lock()
		ready := s.subs[probeKey(f.prefix, p.node)] == 0
		s.token = token
		f.mu.Unlock()
		published := false
		if ready {
			call, cancel := context.WithTimeout(ctx, p.opts.Probe)
			_, err := do(p, call, func(ctx context.Context) (any, error) {
				return nil, p.tell(ctx, probeKey(f.prefix, p.node), token)
			})
			cancel()
			published = err == nil // otherwise the ping still tells whether anything comes
		}
		if err := s.conn.Ping(ctx, token); err != nil {
			return err
		}
		for answered := false; !answered; {
			timer := time.NewTimer(p.opts.Probe)
			select {
			case pong := <-s.pong:
				answered = pong == token
			case <-ctx.Done():
			case <-timer.C:
				f.mu.Lock()
				silent := time.Since(s.heard) >= p.opts.Probe
				f.mu.Unlock()
				if silent {
					return errSilent
				}
			}
			timer.Stop()
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		f.mu.Lock()
		lost := s.token != ""
		f.mu.Unlock()
		if published && lost {
			return errElsewhere
		}
	}
}
