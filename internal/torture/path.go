package torture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/backplane/gateway"
	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/heartbeat"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// A Fabric is the network between clients and nodes, and ways to hurt it.
type Fabric interface {
	// Listen returns where the server of a node is to accept connections. It is called
	// again after Cut.
	Listen(node int) net.Listener

	// URL returns what a user dials to reach a node, always the same.
	URL(node, user int) string

	// Transport returns what a client dials with.
	Transport() http.RoundTripper

	// Cut ends the listener of a node and all its connections: with resets, or if dark as
	// a host does that has lost its power, of which nobody is told.
	Cut(node int, dark bool)

	// Fault hurts some connections, by what rnd gives, heals what heals by itself, and
	// calls note with what it does. It is called again and again, by one goroutine.
	Fault(rnd *rand.Rand, note func(what string))

	// Heal returns when new connections can be made. Half-open ones remain so.
	Heal()
}

// Path is what RunPath counts besides what Run does.
type Path struct {
	Sessions   int // of clients, that were welcomed
	Crashes    int // of clients, each followed by one that goes on from the saved positions
	Refreshes  int // of credentials
	Ephemerals int // delivered
	Refused    int // subscriptions that were not allowed
	Revoked    int // permissions, withdrawn and given back
	Pauses     int // of subscriptions, because the application was slow
	Resent     int // publishes
	Repairs    int // of clients, that found out by prev that a frame was wrong. Unless the fabric eats some, that is a fault
	Messages   int // that gateways have handed to connections
	Encoded    int // of these, encoded; the others shared a frame
	Handed     int // messages that were received by clients

	Flushed time.Duration // from when all was healed until all publishes were answered
}

func (p *Path) add(q *Path) {
	p.Sessions += q.Sessions
	p.Crashes += q.Crashes
	p.Refreshes += q.Refreshes
	p.Ephemerals += q.Ephemerals
	p.Refused += q.Refused
	p.Revoked += q.Revoked
	p.Pauses += q.Pauses
	p.Resent += q.Resent
	p.Repairs += q.Repairs
	p.Messages += q.Messages
	p.Encoded += q.Encoded
	p.Handed += q.Handed
	p.Flushed = max(p.Flushed, q.Flushed)
}

func (p *Path) String() string {
	return fmt.Sprintf("answered within %v, %d sessions, %d client crashes, %d token refreshes, %d ephemerals, %d refusals, %d revocations, %d pauses, %d publishes sent again, %d repairs",
		p.Flushed.Round(time.Millisecond), p.Sessions, p.Crashes, p.Refreshes, p.Ephemerals, p.Refused, p.Revoked, p.Pauses, p.Resent, p.Repairs)
}

// RunPath runs a plan on the whole path: Subscribers are clients of gateways, of which
// the first Publishers also publish; each node has a backplane of the world, a Hub and a
// gateway, and the fabric is between. It runs in a bubble of testing/synctest unless
// world and fabric are real. Besides what [Record.Check] finds it reports:
//
//	I9 authorised    somebody got what it may not read, or was refused what it may
//	I10 not stored   a publish was said not to be stored, and is
//	alive            a client gave up, or a subscription did, or a publish is never answered
//	garbage          a client was sent what is no frame
func RunPath(p Plan, w World, f Fabric) *Outcome {
	if p.Pace == 0 {
		p.Pace = 1
	}
	s := &path{
		sim: sim{
			Plan: p, start: time.Now(), world: w, at: map[string]replay.Position{},
			out: &Outcome{
				Faults: map[string]int{}, Path: &Path{},
				Record: Record{
					Seen: map[string][]Event{}, Ends: map[string]replay.Position{}, Heads: map[string]replay.Position{},
					Topics: map[string]string{}, Retention: min(p.Retention, p.HubRetention), Buffered: true,
				},
			},
		},
		fabric: f, calmed: make(chan struct{}), denied: map[string]*denial{}, notStored: map[string]bool{},
	}
	s.end, s.stop = context.WithCancel(context.Background())
	defer s.stop()
	for i := range p.Nodes {
		n := &pathNode{i: i, bp: w.Open(i)}
		s.nodes = append(s.nodes, n)
		s.startNode(n)
	}
	for i := range p.Subscribers {
		s.users = append(s.users, s.newUser(i))
	}
	working, quit := context.WithCancel(context.Background())
	defer quit()
	var lives, workers sync.WaitGroup
	for _, u := range s.users {
		lives.Go(u.live)
		if u.i < p.Publishers {
			workers.Go(func() { u.publisher(working) })
		}
	}
	workers.Go(func() { s.revoker(working) })
	var faults sync.WaitGroup
	faults.Go(func() {
		rnd := rand.New(rand.NewPCG(p.Seed, 1))
		for s.pause(rnd) {
			s.world.Fault(rnd, s.note, s.lose)
		}
	})
	rnd := rand.New(rand.NewPCG(p.Seed, 2))
	for s.pause(rnd) {
		if rnd.IntN(100) < 8 {
			s.nodeFault(rnd)
		} else {
			s.fabric.Fault(rnd, s.note)
		}
	}
	faults.Wait()
	w.Heal()
	f.Heal()
	s.nodeJobs.Wait()
	s.calm.Store(true)
	close(s.calmed)
	quit()
	workers.Wait()

	// What waits in the clients, one last message for each topic, and time to converge.
	healed := time.Now()
	for s.queued() > 0 {
		if time.Since(healed) > 2*time.Minute {
			s.fail("", "alive: %d publishes are still not answered", s.queued())
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.out.Path.Flushed = time.Since(healed)
	time.Sleep(2 * time.Second) // what dead connections have sent may still be on its way to the store
	healed = time.Now()
	var publishes sync.WaitGroup
	for i := range p.Topics {
		publishes.Go(func() { s.publishLast(i) })
	}
	publishes.Wait()
	for time.Since(healed) < bound && !s.converged() {
		time.Sleep(100 * time.Millisecond)
	}
	s.out.Converged = time.Since(healed)
	s.stop()
	lives.Wait()
	for _, n := range s.nodes {
		s.stopNode(n, 0)
		n.bp.Close()
	}
	s.servers.Wait()
	for _, events := range s.out.Record.Seen {
		for _, e := range events {
			if e.Reset != "" {
				s.out.Resets++
			} else {
				s.out.Deliveries++
			}
		}
	}
	s.out.Record.Stored = w.Stored()
	for _, e := range s.out.Record.Stored {
		if s.notStored[e.Payload] {
			s.fail("", "I10 not stored: %v is stored", e)
		}
	}
	s.out.Violations = append(s.out.Violations, s.out.Record.Check()...)
	return s.out
}

// bound is by when everybody has to be at the head.
const bound = 30 * time.Second

// queued returns how many messages wait in the clients.
func (s *path) queued() (n int) {
	for _, u := range s.users {
		n += u.current().Stats().Queued
	}
	return n
}

// publishLast publishes what is to be the head of a topic.
func (s *path) publishLast(i int) {
	last := fmt.Sprint("last of ", i)
	for began := time.Now(); time.Since(began) < bound; {
		call, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		r, err := s.users[i%len(s.users)].current().Publish(call, topicName(i), client.Message{ID: last, Data: []byte(last)})
		cancel()
		if err == nil {
			s.ack(topicName(i), r.Pos, last)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.out.Record.Heads[topicName(i)] = r.Pos
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.fail("", "alive: the last message to %s is not answered", topicName(i))
}

type path struct {
	sim
	fabric   Fabric
	users    []*user
	nodes    []*pathNode
	calmed   chan struct{}   // closed when calm
	end      context.Context // done when all are at the head
	stop     context.CancelFunc
	nodeJobs sync.WaitGroup // nodes that crash, drain or come back
	servers  sync.WaitGroup

	// Guarded by sim.mu, as out is.
	denied    map[string]*denial // by user and topic, what was ever withdrawn
	notStored map[string]bool    // payloads
}

// A denial is a permission that is withdrawn for a while.
type denial struct {
	now   bool
	since time.Time // all nodes know; zero if not yet, or not any more
}

func (s *path) note(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Faults[what]++
	s.out.Log = append(s.out.Log, time.Now().Format("04:05.000 ")+what)
}

func (s *path) lose() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Record.Losses = append(s.out.Record.Losses, time.Now())
}

// fail reports a violation.
func (s *path) fail(who, f string, a ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Violations = append(s.out.Violations, Violation{fmt.Sprintf(f, a...), who, time.Now()})
}

// count counts something of the Path.
func (s *path) count(n *int, d int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*n += d
}

// pause waits between two faults, and reports whether there is to be another.
func (s *path) pause(rnd *rand.Rand) bool {
	if time.Since(s.start) >= s.Length {
		return false
	}
	time.Sleep(s.factor(100*time.Millisecond) + s.paced(rnd, time.Second))
	return time.Since(s.start) < s.Length
}

func (s *path) factor(d time.Duration) time.Duration { return time.Duration(float64(d) * s.Pace) }

// calmSleep waits for d, or until it is calm.
func (s *path) calmSleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.calmed:
	}
}

// converged reports whether all are at the head of all they read.
func (s *path) converged() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.users {
		for _, r := range u.readers {
			if s.at[r.who] != s.out.Record.Heads[r.topic] {
				return false
			}
		}
	}
	return true
}

// may reports whether a user may read a topic.
func (s *path) may(user, topic string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.denied[user+topic]
	return s.mayEver(user, topic) && (d == nil || !d.now)
}

func (s *path) mayEver(user, topic string) bool {
	i, err := strconv.Atoi(strings.TrimPrefix(user, "u"))
	var t int
	if n, _ := fmt.Sscanf(topic, "topic %d", &t); n != 1 || err != nil {
		return false
	}
	return (t-i%s.Topics+s.Topics)%s.Topics < s.readable()
}

// readable is how many topics each user may read, one less than there are.
func (s *path) readable() int { return max(1, s.Topics-1) }

// A pathNode is one server.
type pathNode struct {
	i    int
	bp   backplane.Backplane
	busy atomic.Bool // it crashes, drains or comes back

	mu  sync.Mutex // guards what follows
	hub *backplane.Hub
	gw  *gateway.Gateway
	srv *http.Server
}

func (n *pathNode) gateway() *gateway.Gateway {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gw
}

// beats is the heartbeat of both sides.
func (s *path) beats() heartbeat.Config {
	interval := max(time.Second, s.factor(5*time.Second))
	return heartbeat.Config{Interval: interval, Timeout: interval * 3 / 5}
}

var errNotNow = errors.New("the database of users is away")

// startNode starts the server of a node.
func (s *path) startNode(n *pathNode) {
	hub := backplane.New(n.bp, s.hubOptions())
	gw, err := gateway.New(hub, &gateway.Options{
		Authorize: s.authorize,
		Recheck:   10 * time.Second,
		Heartbeat: s.beats(),
		Limits:    gateway.Limits{Publishes: 10},
		Payload: func(topic string) gateway.Payload { // one of each kind
			return []gateway.Payload{gateway.JSON, gateway.Text, gateway.Binary}[len(topic)%3]
		},
		Drain: s.factor(4 * time.Second),
		Node:  fmt.Sprint("node ", n.i),
		Trace: &gateway.Trace{Subscribed: func(c gateway.Info, topic string, _ bool) {
			if !s.mayEver(c.User, topic) {
				s.fail("", "I9 authorised: %s has subscribed to %s", c.User, topic)
			}
		}},
	})
	if err != nil {
		panic(err)
	}
	srv := &http.Server{Handler: gw, ErrorLog: log.New(io.Discard, "", 0)}
	ln := s.fabric.Listen(n.i)
	n.mu.Lock()
	n.hub, n.gw, n.srv = hub, gw, srv
	n.mu.Unlock()
	s.servers.Go(func() { srv.Serve(ln) })
}

// stopNode ends the server of a node, which drains for so long.
func (s *path) stopNode(n *pathNode, drain time.Duration) {
	n.mu.Lock()
	hub, gw, srv := n.hub, n.gw, n.srv
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	gw.Shutdown(ctx)
	st := gw.Stats()
	if st.Connections != 0 || st.Subscriptions != 0 || st.Workers != 0 {
		s.fail("", "node %d has something left after its end: %+v", n.i, st)
	}
	s.count(&s.out.Path.Messages, int(st.Messages))
	s.count(&s.out.Path.Encoded, int(st.Encoded))
	srv.Close()
	gone, cancelled := context.WithCancel(context.Background())
	cancelled()
	s.mu.Lock()
	s.out.Stats = append(s.out.Stats, hub.Stats())
	s.mu.Unlock()
	hub.Close(gone)
}

// nodeFault ends a node, if it runs, and starts it anew later.
func (s *path) nodeFault(rnd *rand.Rand) {
	n := s.nodes[rnd.IntN(len(s.nodes))]
	how, away := rnd.IntN(3), s.paced(rnd, 3*time.Second)
	window := s.paced(rnd, 6*time.Second)
	if n.busy.Swap(true) {
		return
	}
	s.note([]string{"node crashes", "node loses its power", "node drains"}[how])
	s.nodeJobs.Go(func() {
		defer n.busy.Store(false)
		switch how {
		case 0, 1:
			s.fabric.Cut(n.i, how == 1)
			s.stopNode(n, 0)
		case 2:
			s.stopNode(n, window)
			s.fabric.Cut(n.i, false)
		}
		time.Sleep(away)
		s.startNode(n)
	})
}

// authorize is that of the gateways. A token is a user's name and when it expires.
func (s *path) authorize(ctx context.Context, a gateway.Access) (g gateway.Grant, err error) {
	if !s.calm.Load() {
		switch rand.IntN(100) {
		case 0:
			if a.Action != gateway.Subscribe || s.may(a.User, a.Topic) { // a no is a no: see Recheck
				return g, errNotNow
			}
		case 1, 2, 3:
			if err := backoff.Sleep(ctx, rand.N(s.factor(time.Second))); err != nil {
				return g, err
			}
		}
	}
	switch a.Action {
	case gateway.Connect, gateway.Renew:
		name, until, _ := strings.Cut(a.Token, "/")
		ms, err := strconv.ParseInt(until, 10, 64)
		expires := time.UnixMilli(ms)
		if err != nil || time.Now().After(expires) {
			return g, gateway.ErrUnauthenticated
		}
		return gateway.Grant{User: name, Expires: expires}, nil
	case gateway.Subscribe:
		if !s.may(a.User, a.Topic) {
			return g, gateway.ErrForbidden
		}
	}
	return g, nil
}

// revoker takes permissions away and gives them back.
func (s *path) revoker(ctx context.Context) {
	rnd := rand.New(rand.NewPCG(s.Seed, 4))
	for sleep(ctx, s.factor(time.Second)+s.paced(rnd, 4*time.Second)) == nil {
		u := s.users[rnd.IntN(len(s.users))]
		r := u.readers[rnd.IntN(len(u.readers))]
		d := &denial{now: true}
		s.mu.Lock()
		s.denied[u.name+r.topic] = d
		s.mu.Unlock()
		all := true
		for _, n := range s.nodes {
			call, cancel := context.WithTimeout(ctx, 20*time.Second)
			all = n.gateway().Recheck(call, u.name) == nil && all
			cancel()
		}
		if all {
			s.mu.Lock()
			d.since = time.Now()
			s.out.Path.Revoked++
			s.mu.Unlock()
		}
		sleep(ctx, s.factor(time.Second)+s.paced(rnd, 4*time.Second))
		s.mu.Lock()
		*d = denial{}
		s.mu.Unlock()
	}
}

// A user is one application with a client, and comes back with another client when that
// has crashed.
type user struct {
	s       *path
	i       int
	name    string
	rnd     *rand.Rand
	readers []*reader

	mu      sync.Mutex // guards what follows
	c       *client.Client
	token   string
	closing bool
}

// A reader is the part of the application that reads one topic.
type reader struct {
	u     *user
	topic string
	who   string
	rnd   *rand.Rand
	at    replay.Position // saved
	begun bool            // something was seen
	seen  []Event
}

func (s *path) newUser(i int) *user {
	u := &user{s: s, i: i, name: fmt.Sprint("u", i), rnd: rand.New(rand.NewPCG(s.Seed, uint64(1000+i)))}
	for k := range s.readable() {
		topic := topicName((i + k) % s.Topics)
		u.readers = append(u.readers, &reader{
			u: u, topic: topic, who: u.name + ", " + topic, rnd: rand.New(rand.NewPCG(s.Seed, uint64(2000+100*i+k))),
		})
	}
	u.connect()
	return u
}

func (u *user) current() *client.Client {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.c
}

// prepare is that of the client: it logs in.
func (u *user) prepare(_ context.Context, d *client.Dial) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if d.Refresh || u.token == "" {
		valid := time.Hour
		if u.i%3 == 0 {
			valid = u.s.factor(20*time.Second) + rand.N(u.s.factor(20*time.Second))
		}
		u.token = fmt.Sprintf("%s/%d", u.name, time.Now().Add(valid).UnixMilli())
		u.s.count(&u.s.out.Path.Refreshes, 1)
	}
	d.Token = u.token
	return nil
}

// connect begins with a client.
func (u *user) connect() {
	s := u.s
	var urls []string
	for i := range s.Nodes {
		urls = append(urls, s.fabric.URL((u.i+i)%s.Nodes, u.i))
	}
	o := &client.Options{
		URLs: urls[1:], Prepare: u.prepare, HTTPClient: &http.Client{Transport: s.fabric.Transport()},
		Backoff: backoff.Policy{Base: s.factor(100 * time.Millisecond), Cap: s.factor(2 * time.Second)},
		First:   s.factor(500 * time.Millisecond), Stable: s.factor(2 * time.Second),
		DialTimeout: max(time.Second, s.factor(5*time.Second)), Heartbeat: s.beats(),
		Hello: max(time.Second, s.factor(5*time.Second)),
	}
	if u.i%2 == 0 {
		o.BufferMessages = 16 << (u.i % 4)
	}
	o.OnState = func(state client.State) {
		u.mu.Lock()
		defer u.mu.Unlock()
		if state == client.Closed && !u.closing {
			s.fail("", "alive: the client of %s is closed: %v", u.name, u.c.Err())
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	c, err := client.New(urls[0], o)
	if err != nil {
		panic(err)
	}
	u.c, u.closing = c, false
}

// close ends the client, within a time.
func (u *user) close(within time.Duration) {
	u.mu.Lock()
	u.closing = true
	c := u.c
	u.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	c.Close(ctx)
	st := c.Stats()
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	p := u.s.out.Path
	p.Sessions += int(st.Sessions)
	p.Ephemerals += int(st.Ephemeral)
	p.Pauses += int(st.Pauses)
	p.Resent += int(st.Resent)
	p.Handed += int(st.Received)
	p.Repairs += int(st.Repairs)
	if st.Garbage > 0 {
		u.s.out.Violations = append(u.s.out.Violations, Violation{fmt.Sprintf("garbage: %s was sent what is no frame", u.name), "", time.Now()})
	}
}

// live is the user's process, and those that take its place when it crashes.
func (u *user) live() {
	s := u.s
	for {
		life, die := context.WithCancel(s.end)
		var wg sync.WaitGroup
		c := u.current()
		for _, r := range u.readers {
			wg.Go(func() { r.read(life, c) })
		}
		if s.Topics > 1 {
			wg.Go(func() { u.trespass(life, c) })
		}
		if u.i%2 == 0 {
			s.calmSleep(s.factor(2*time.Second) + s.paced(u.rnd, 40*time.Second))
		} else {
			<-s.calmed
		}
		last := s.calm.Load()
		if last {
			<-s.end.Done()
		}
		die()
		wg.Wait()
		if last {
			u.close(time.Second)
			break
		}
		u.close(time.Duration(u.rnd.IntN(2)) * time.Second) // at once, or when all is answered
		s.count(&s.out.Path.Crashes, 1)
		s.calmSleep(s.paced(u.rnd, 3*time.Second))
		u.connect()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range u.readers {
		s.out.Record.Seen[r.who] = r.seen
		s.out.Record.Ends[r.who] = r.at
		s.out.Record.Topics[r.who] = r.topic
	}
}

// trespass tries to read what the user may not.
func (u *user) trespass(ctx context.Context, c *client.Client) {
	topic := topicName((u.i + u.s.readable()) % u.s.Topics)
	sub, err := c.Subscribe(topic, &client.SubscribeOptions{Last: 10})
	if err != nil {
		return // closed
	}
	defer sub.Close()
	e, err := sub.Next(ctx)
	var refused *client.ServerError
	switch {
	case err == nil:
		u.s.fail("", "I9 authorised: %s got %q of %s", u.name, e.Data, topic)
	case errors.As(err, &refused) && refused.Code == wire.Forbidden:
		u.s.count(&u.s.out.Path.Refused, 1)
	case ctx.Err() == nil && !errors.Is(err, client.ErrClosed):
		u.s.fail("", "I9 authorised: %s was not refused %s, but: %v", u.name, topic, err)
	}
}

// read reads the topic in sessions, each from where the last one ended.
func (r *reader) read(life context.Context, c *client.Client) {
	s := r.u.s
	for life.Err() == nil {
		o := client.SubscribeOptions{From: r.at, Last: r.rnd.IntN(20) - 1}
		sub, err := c.Subscribe(r.topic, &o)
		if err != nil {
			if !errors.Is(err, client.ErrClosed) {
				s.fail(r.who, "alive: %s cannot subscribe: %v", r.who, err)
			}
			return
		}
		session, leave := context.WithCancel(life)
		timer := time.AfterFunc(s.factor(time.Second)+s.paced(r.rnd, 20*time.Second), func() {
			if !s.calm.Load() {
				leave()
			}
		})
		slow := r.rnd.IntN(4) == 0
		for {
			var e client.Event
			if e, err = sub.Next(session); err != nil {
				break
			}
			r.event(e)
			r.at = sub.Position()
			s.mu.Lock()
			s.at[r.who] = r.at
			s.mu.Unlock()
			if slow && r.rnd.IntN(8) == 0 {
				s.calmSleep(s.paced(r.rnd, 4*time.Second))
			}
		}
		if at := sub.Position(); !at.IsZero() {
			r.at = at
		}
		left := session.Err() != nil
		timer.Stop()
		leave()
		sub.Close()
		var refused *client.ServerError
		switch {
		case left || errors.Is(err, client.ErrClosed):
		case errors.As(err, &refused) && refused.Code == wire.Forbidden && s.everDenied(r.u.name, r.topic):
		default:
			s.fail(r.who, "alive: the subscription of %s has ended: %v", r.who, err)
		}
		s.calmSleep(s.paced(r.rnd, 2*time.Second))
		if s.calm.Load() && life.Err() == nil {
			time.Sleep(100 * time.Millisecond)
		}
	}
}

func (s *path) everDenied(user, topic string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.denied[user+topic] != nil
}

// event is one thing that the application sees.
func (r *reader) event(e client.Event) {
	s, now := r.u.s, time.Now()
	if e.Ephemeral {
		if !strings.HasPrefix(string(e.Data), r.topic+" ") {
			s.fail(r.who, "I9 authorised: %s got %q", r.who, e.Data)
		}
		return
	}
	if !r.begun && e.Reset == nil && !r.at.IsZero() && (e.Pos.Epoch != r.at.Epoch || e.Pos.Seq != r.at.Seq+1) {
		s.fail(r.who, "I4 silent: %s began at %v, and then got %v", r.who, r.at, e.Pos)
	}
	r.begun = true
	if e.Reset != nil {
		r.seen = append(r.seen, resetEvent(r.topic, e.Reset.Reason, e.Reset.Missed, e.Pos, e.Reset.Snapshot))
		return
	}
	s.mu.Lock()
	d := s.denied[r.u.name+r.topic]
	forbidden := d != nil && !d.since.IsZero() && e.At.After(d.since)
	s.mu.Unlock()
	if forbidden {
		s.fail(r.who, "I9 authorised: %s got %q, which was stored after the permission was withdrawn", r.who, e.Data)
	}
	r.seen = append(r.seen, Event{At: now, Topic: r.topic, Pos: e.Pos, Stored: e.At, Payload: string(e.Data)})
}

// payload returns the n-th message of a user: of each kind, and a few that are long.
func (u *user) payload(n int, rnd *rand.Rand) []byte {
	id := fmt.Sprintf("%s-%d", u.name, n)
	if rnd.IntN(50) == 0 {
		id += strings.Repeat(".", rnd.IntN(20<<10))
	}
	switch rnd.IntN(4) {
	case 0:
		b, err := json.Marshal(map[string]string{"id": id})
		if err != nil {
			panic(err)
		}
		return b
	case 1:
		return []byte("\xff" + id)
	}
	return []byte(id)
}

// publisher publishes some messages a second, and tries those again of which it does
// not know what became of them.
func (u *user) publisher(ctx context.Context) {
	rnd := rand.New(rand.NewPCG(u.s.Seed, uint64(3000+u.i)))
	n := 0
	for {
		if sleep(ctx, u.s.paced(rnd, 300*time.Millisecond)) != nil {
			return
		}
		topic := topicName(rnd.IntN(u.s.Topics))
		switch rnd.IntN(40) {
		case 0: // many at once, more than the server lets through
			var wg sync.WaitGroup
			for range 10 + rnd.IntN(40) {
				n++
				data, own := u.payload(n, rnd), rand.New(rand.NewPCG(u.s.Seed, rnd.Uint64()))
				wg.Go(func() { u.publish(own, topic, data) })
			}
			wg.Wait()
		case 1, 2, 3:
			u.current().PublishEphemeral(topic, fmt.Appendf(nil, "%s is typed to by %s", topic, u.name))
		default:
			n++
			u.publish(rnd, topic, u.payload(n, rnd))
		}
	}
}

// publish publishes one message, with the process that there is at the time.
func (u *user) publish(rnd *rand.Rand, topic string, data []byte) {
	s, began, doubt := u.s, time.Now(), false
	m := client.Message{ID: string(data[:min(len(data), 60)]), Data: data}
	if data[0] == 0xff {
		m.ID = "b" + m.ID[1:]
	}
	for {
		call, cancel := context.WithTimeout(context.Background(), s.factor(500*time.Millisecond)+s.paced(rnd, 8*time.Second))
		r, err := u.current().Publish(call, topic, m)
		cancel()
		switch {
		case err == nil:
			s.ack(topic, r.Pos, string(data))
			return
		case r.Outcome == client.Unknown:
			doubt = true
		case !doubt && rnd.IntN(2) == 0:
			s.mu.Lock()
			s.notStored[string(data)] = true
			s.mu.Unlock()
			return
		}
		if time.Since(began) > 60*time.Second {
			s.mu.Lock()
			s.out.Record.Unsure++
			s.mu.Unlock()
			return
		}
		time.Sleep(s.factor(100 * time.Millisecond))
	}
}
