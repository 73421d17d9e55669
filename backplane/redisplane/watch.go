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

	mu      sync.Mutex // guards all below
	topics  map[string]bool
	session *session      // nil while there is none
	changed chan struct{} // closed at each confirmation
}

// A session is one connection. The feed's lock guards it, but for conn.
type session struct {
	conn *redis.PubSub

	asked     map[string]bool // channels subscribed to, until they are unsubscribed from
	confirmed map[string]bool // those of asked that have been confirmed
	subs      map[string]int  // confirmations to come, by channel
	unsubs    map[string]int
	again     bool // the sink is to be told of an interruption when all is confirmed
	some      bool // a topic has been confirmed

	heard  time.Time     // when something came
	token  string        // of the last probe
	answer chan struct{} // closed when it has come
}

// Add implements [backplane.Watcher].
func (w *watcher) Add(ctx context.Context, topics ...string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	byPart := map[int][]string{}
	for _, topic := range topics {
		i := 0
		if n := len(w.plane.parts); n > 1 {
			i = partition(topic, n)
		}
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
	for f, topics := range feeds {
		f.want(topics)
	}
	for f, topics := range feeds {
		if err := f.confirmed(ctx, topics); err != nil {
			return err
		}
	}
	return nil
}

// Remove implements [backplane.Watcher].
func (w *watcher) Remove(topics ...string) {
	for _, topic := range topics {
		i := 0
		if n := len(w.plane.parts); n > 1 {
			i = partition(topic, n)
		}
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
		stopped: make(chan struct{}), wake: make(chan struct{}, 1), changed: make(chan struct{}),
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	go f.run()
	return f
}

// want adds topics, and unwant takes them away.
func (f *feed) want(topics []string) {
	f.mu.Lock()
	for _, topic := range topics {
		f.topics[topic] = true
	}
	f.mu.Unlock()
	f.poke()
}

func (f *feed) unwant(topic string) {
	f.mu.Lock()
	delete(f.topics, topic)
	f.mu.Unlock()
	f.poke()
}

func (f *feed) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// confirmed waits until all topics are subscribed to.
func (f *feed) confirmed(ctx context.Context, topics []string) error {
	for {
		f.mu.Lock()
		all := f.session != nil
		for _, topic := range topics {
			all = all && f.session.confirmed[channelKey(f.prefix, topic)]
		}
		changed := f.changed
		f.mu.Unlock()
		if all {
			return nil
		}
		select {
		case <-changed:
		case <-f.stopped:
			return backplane.ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("redisplane: not subscribed (%w): %w", context.Cause(ctx), backplane.ErrUnavailable)
		}
	}
}

// run has one session after the other.
func (f *feed) run() {
	defer close(f.stopped)
	pace := backoff.Policy{Base: 50 * time.Millisecond, Cap: 2 * time.Second}
	failures, had := 0, false
	for {
		begun := time.Now()
		ok, err := f.serve(had)
		if f.ctx.Err() != nil {
			return
		}
		f.w.plane.count.interruptions.Add(1)
		f.w.plane.log.Warn("connection for live messages lost", "error", err, "failures", failures)
		had = had || ok
		if failures++; ok && time.Since(begun) > 10*time.Second {
			failures = 0
		}
		if c, ok := f.w.plane.client.(*redis.ClusterClient); ok {
			c.ReloadState(f.ctx)
		}
		if backoff.Sleep(f.ctx, pace.Delay(failures)) != nil {
			return
		}
	}
}

// serve is one session. It reports whether it was ever confirmed in whole, and
// returns why it ended.
func (f *feed) serve(again bool) (ok bool, err error) {
	p := f.w.plane
	ctx, cancel := context.WithCancelCause(f.ctx)
	probe := probeKey(f.prefix, p.node)
	s := &session{
		asked: map[string]bool{probe: true}, confirmed: map[string]bool{}, subs: map[string]int{probe: 1},
		unsubs: map[string]int{}, again: again, heard: time.Now(),
	}
	if p.cluster {
		s.conn = p.client.SSubscribe(ctx, probe)
	} else {
		s.conn = p.client.Subscribe(ctx, probe)
	}
	f.mu.Lock()
	f.session = s
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
	close(f.changed)
	f.changed = make(chan struct{})
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
		}
	}
}

// message passes one on to the sink.
func (f *feed) message(s *session, m *redis.Message) {
	topic, ok := strings.CutPrefix(m.Channel, channelKey(f.prefix, ""))
	if !ok {
		f.mu.Lock()
		if m.Payload == s.token {
			s.token = ""
			close(s.answer)
			f.w.plane.count.probes.Add(1)
		}
		f.mu.Unlock()
		return
	}
	f.w.plane.count.announcements.Add(1)
	a, err := parseAnnouncement(m.Payload)
	switch {
	case err != nil:
		f.w.plane.count.malformed.Add(1)
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
		if s.subs[m.Channel] == 0 && s.unsubs[m.Channel] == 0 && s.asked[m.Channel] {
			s.confirmed[m.Channel] = true
			s.some = s.some || m.Channel != probeKey(f.prefix, f.w.plane.node)
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
	var interrupted []string
	if s.again && len(s.subs) == 0 && len(s.asked) > len(f.topics) {
		s.again = false
		interrupted = []string{}
		if len(f.w.plane.parts) > 1 {
			interrupted = slices.Collect(maps.Keys(f.topics))
		}
	}
	if len(s.subs) == 0 {
		close(f.changed)
		f.changed = make(chan struct{})
	}
	f.mu.Unlock()
	if interrupted != nil {
		f.w.sink.Interrupted(errInterrupted, interrupted...)
	}
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
		for topic := range f.topics {
			if channel := channelKey(f.prefix, topic); !s.asked[channel] && len(add) < maxChannels {
				add = append(add, channel)
			}
		}
		for channel := range s.asked {
			if topic, ok := strings.CutPrefix(channel, channelKey(f.prefix, "")); ok && !f.topics[topic] && len(drop) < maxChannels {
				drop = append(drop, channel)
			}
		}
		for _, channel := range add {
			s.asked[channel] = true
			s.subs[channel]++
		}
		for _, channel := range drop {
			delete(s.asked, channel)
			delete(s.confirmed, channel)
			s.unsubs[channel]++
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
		if len(add)+len(drop) > 0 {
			continue
		}
		select {
		case <-f.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// probe tries, again and again, whether the connection carries what is published.
func (f *feed) probe(ctx context.Context, s *session) error {
	p := f.w.plane
	channel := probeKey(f.prefix, p.node)
	for n := 0; ; n++ {
		if backoff.Sleep(ctx, p.opts.Probe*7/8+rand.N(p.opts.Probe/4+1)) != nil {
			return context.Cause(ctx)
		}
		begun := time.Now()
		answer := make(chan struct{})
		f.mu.Lock()
		s.token, s.answer = strconv.Itoa(n), answer
		f.mu.Unlock()
		if err := s.conn.Ping(ctx); err != nil {
			return err
		}
		call, cancel := context.WithTimeout(ctx, p.opts.Probe)
		receivers, err := do(p, call, func(ctx context.Context) (int, error) {
			return p.client.Do(ctx, p.publish, channel, strconv.Itoa(n)).Int()
		})
		if err == nil && receivers == 0 {
			cancel()
			return errElsewhere
		}
		select {
		case <-answer:
		case <-call.Done():
		}
		late := call.Err() != nil
		cancel()
		f.mu.Lock()
		heard := s.heard.After(begun)
		f.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case late && !heard:
			return errSilent
		case late && err == nil:
			return errElsewhere
		}
	}
}
