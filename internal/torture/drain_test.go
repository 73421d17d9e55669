package torture

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/backplane/gateway"
	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/internal/memnet"
	"github.com/holdfast-ws/holdfast/internal/verify"
	"github.com/holdfast-ws/holdfast/replay"
)

var stormClients = flag.Int("storm.clients", 0, "how many clients come back at once, in virtual time; 0 as torture.seeds")

// A counted is a Memory that several nodes share, as one of them sees it.
type counted struct {
	*backplane.Memory
	reads atomic.Int64
}

func (c *counted) Read(ctx context.Context, topic string, after replay.Position, max replay.Budget) (backplane.Page, error) {
	c.reads.Add(1)
	return c.Memory.Read(ctx, topic, after, max)
}

// A crowd is many clients of a few nodes, all with the defaults of the library.
type crowd struct {
	t      testing.TB
	fabric *VirtualFabric
	memory *backplane.Memory
	nodes  []*crowdNode
	topics int
	all    []*spectator
	failed atomic.Int64 // dials

	mu    sync.Mutex // guards dials
	dials []time.Time
}

type crowdNode struct {
	plane *counted
	hub   *backplane.Hub
	gw    *gateway.Gateway
	srv   *http.Server
	done  sync.WaitGroup
}

// A spectator is a client that reads one topic.
type spectator struct {
	c       *client.Client
	sub     *client.Subscription
	topic   int
	started replay.Position
	done    sync.WaitGroup

	// Of its goroutine until done.
	at    replay.Position
	wrong string
	got   int
	when  time.Time // when it got the marked message

	marked atomic.Uint64 // its number
	seq    atomic.Uint64 // of at
}

func newCrowd(t testing.TB, nodes, topics, clients int) *crowd {
	c := &crowd{t: t, topics: topics, memory: backplane.NewMemory(nil), fabric: NewVirtualFabric(nodes, memnet.Settings{Latency: time.Millisecond, Backlog: 4096})}
	for i := range nodes {
		n := &crowdNode{plane: &counted{Memory: c.memory}}
		n.hub = backplane.New(n.plane, nil)
		gw, err := gateway.New(n.hub, &gateway.Options{
			Authorize: func(context.Context, gateway.Access) (gateway.Grant, error) { return gateway.Grant{}, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		n.gw = gw
		n.srv = &http.Server{Handler: gw, ErrorLog: log.New(io.Discard, "", 0)}
		ln := c.fabric.Listen(i)
		n.done.Go(func() { n.srv.Serve(ln) })
		c.nodes = append(c.nodes, n)
	}
	for _, n := range c.survivors() {
		c.fabric.Net(n).Set(memnet.Settings{Refuse: true})
	}
	// Not more at a time than there is room for where they wait to be accepted.
	for i := 0; i < clients; i += 100 {
		part := make([]*spectator, min(100, clients-i))
		for k := range part {
			part[k] = c.spectator(i + k)
			c.all = append(c.all, part[k])
		}
		for _, s := range part {
			if err := s.sub.Ready(context.Background()); err != nil {
				t.Fatal(err)
			}
			s.started = s.sub.Position()
			s.done.Go(s.watch)
		}
	}
	for _, n := range c.survivors() {
		c.fabric.Net(n).Set(memnet.Settings{Latency: time.Millisecond})
	}
	c.failed.Store(0)
	c.mu.Lock()
	c.dials = nil
	c.mu.Unlock()
	return c
}

// survivors are the nodes but the first.
func (c *crowd) survivors() (nodes []int) {
	for i := 1; i < len(c.fabric.nets); i++ {
		nodes = append(nodes, i)
	}
	return nodes
}

func (c *crowd) topic(i int) string { return fmt.Sprint("topic ", i%c.topics) }

// spectator begins with one more client, connected to the first node.
func (c *crowd) spectator(i int) *spectator {
	var urls []string
	for n := range c.nodes {
		urls = append(urls, c.fabric.URL(n, i))
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		c.mu.Lock()
		c.dials = append(c.dials, time.Now())
		c.mu.Unlock()
		return c.fabric.dial(ctx, network, address)
	}}
	cl, err := client.New(urls[0], &client.Options{
		URLs: urls[1:], HTTPClient: &http.Client{Transport: transport},
		Trace: &client.Trace{DialDone: func(_ string, _ int, err error) {
			if err != nil {
				c.failed.Add(1)
			}
		}},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	s := &spectator{c: cl, topic: i % c.topics}
	if s.sub, err = cl.Subscribe(c.topic(i), nil); err != nil {
		c.t.Fatal(err)
	}
	return s
}

// watch reads until the client is closed.
func (s *spectator) watch() {
	s.at = s.started
	for e, err := range s.sub.All(context.Background()) {
		switch {
		case err != nil:
			return
		case e.Reset != nil:
			s.wrong = fmt.Sprintf("Reset(%s, %d) after %d", e.Reset.Reason, e.Reset.Missed, s.at.Seq)
		case e.Pos.Epoch != s.at.Epoch || e.Pos.Seq != s.at.Seq+1:
			s.wrong = fmt.Sprintf("%d after %d", e.Pos.Seq, s.at.Seq)
		}
		s.at = e.Pos
		s.seq.Store(e.Pos.Seq)
		s.got++
		if e.Pos.Seq == s.marked.Load() {
			s.when = time.Now()
		}
	}
}

// publish publishes a message to each topic, and returns their positions.
func (c *crowd) publish() (heads []replay.Position) {
	for i := range c.topics {
		r, err := c.nodes[1].hub.Publish(context.Background(), c.topic(i), backplane.Message{Data: []byte(`{"x":1}`)})
		if err != nil {
			c.t.Fatal(err)
		}
		heads = append(heads, r.Pos)
	}
	return heads
}

// settle waits until all have got everything, or for a minute.
func (c *crowd) settle(heads []replay.Position) {
	began := time.Now()
	for _, s := range c.all {
		for s.seq.Load() != heads[s.topic].Seq && time.Since(began) < time.Minute {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// stop ends all, and looks whether everybody got everything. It returns how much.
func (c *crowd) stop(heads []replay.Position) (deliveries int) {
	var closing sync.WaitGroup
	for _, s := range c.all {
		closing.Go(func() { s.c.Close(context.Background()); s.done.Wait() })
	}
	closing.Wait()
	wrong := 0
	for i, s := range c.all {
		deliveries += s.got
		if s.wrong == "" && s.at != heads[s.topic] {
			s.wrong = fmt.Sprintf("ended at %d, the head is %d", s.at.Seq, heads[s.topic].Seq)
		}
		if s.wrong == "" && c.all[i].c.Stats().Repairs > 0 {
			s.wrong = "a frame did not follow"
		}
		if s.wrong != "" {
			if wrong++; wrong <= 5 {
				c.t.Errorf("client %d: %s", i, s.wrong)
			}
		}
	}
	if wrong > 5 {
		c.t.Errorf("and %d more", wrong-5)
	}
	for _, n := range c.nodes {
		n.end()
	}
	c.memory.Close()
	for i := range c.nodes {
		c.fabric.Net(i).Close()
	}
	return deliveries
}

func (n *crowdNode) end() {
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	n.gw.Shutdown(gone)
	n.srv.Close()
	n.hub.Close(gone)
	n.done.Wait()
}

// peak returns the most dials within any of the buckets of a width, and the mean of all
// buckets from the first dial to the last.
func (c *crowd) peak(width time.Duration) (most int, mean float64, from, to time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	buckets := map[time.Time]int{}
	for i, at := range c.dials {
		if i == 0 || at.Before(from) {
			from = at
		}
		if at.After(to) {
			to = at
		}
		buckets[at.Truncate(width)]++
	}
	for _, n := range buckets {
		most = max(most, n)
	}
	return most, float64(len(c.dials)) / max(1, float64(to.Sub(from))/float64(width)), from, to
}

// A node that shuts down tells its clients one after the other, and they come to the
// other node over the time that was chosen for that, and miss nothing.
func TestADrainedNodeLosesNothingAndSpreadsItsClients(t *testing.T) {
	clients := many(0, 500, 500, 2000)
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 2, 20, clients)
		heads := c.publish()
		began := time.Now()
		ended := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			ended <- c.nodes[0].gw.Shutdown(ctx)
		}()
		for time.Since(began) < 40*time.Second {
			time.Sleep(time.Second)
			heads = c.publish()
		}
		if err := <-ended; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		c.settle(heads)
		most, mean, from, to := c.peak(100 * time.Millisecond)
		dials, failed := len(c.dials), c.failed.Load()
		if dials != clients || failed > 0 {
			t.Errorf("%d dials of %d clients, %d of which failed", dials, clients, failed)
		}
		// The gateway spreads them over window, and their own wait is short: so many are to be
		// expected in a tenth of a second, and chance makes no more than eight deviations of it.
		window := time.Duration(clients) * time.Second / 200
		ideal := float64(clients) * 0.1 / window.Seconds()
		if float64(most) > ideal+8*math.Sqrt(ideal) {
			t.Errorf("%d dials within 100 ms, where %.1f are to be expected and %.1f are the mean", most, ideal, mean)
		}
		if d := to.Sub(from); d < window*9/10 || to.Sub(began) > window+time.Second {
			t.Errorf("dials from %v to %v after the begin, want them spread over %v", from.Sub(began), to.Sub(began), window)
		}
		deliveries := c.stop(heads)
		verify.Report(t, "simulated %d clients that moved within %v: at most %d dials in 100 ms, the mean is %.1f; %d failed; %d deliveries, none lost or repeated",
			clients, to.Sub(began).Round(10*time.Millisecond), most, mean, failed, deliveries)
	})
}

// A stormed is what a storm amounted to.
type stormed struct {
	reads    []int64       // of the broker, by the surviving nodes
	caughtUp time.Duration // the last client
	peak     int           // dials within a second
	failed   int64         // dials
}

// storm ends a node that has all the clients, without a goodbye, and waits until they are
// caught up on the others.
func storm(t testing.TB, clients, topics int) (r stormed) {
	c := newCrowd(t, 3, topics, clients)
	c.publish()
	time.Sleep(100 * time.Millisecond)
	for _, i := range c.survivors() {
		c.nodes[i].plane.reads.Store(0)
	}
	marked := c.publish() // which the clients get from the next one, unless they have it already
	for _, s := range c.all {
		s.marked.Store(marked[s.topic].Seq + 1)
	}
	began := time.Now()
	c.fabric.Cut(0, false)
	c.nodes[0].end()
	heads := c.publish()
	for time.Since(began) < backoff.DefaultFirst+4*time.Second {
		time.Sleep(time.Second)
		heads = c.publish()
	}
	c.settle(heads)
	for _, i := range c.survivors() {
		r.reads = append(r.reads, c.nodes[i].plane.reads.Load())
	}
	r.peak, _, _, _ = c.peak(time.Second)
	r.failed = c.failed.Load()
	c.stop(heads)
	for _, s := range c.all {
		r.caughtUp = max(r.caughtUp, s.when.Sub(began))
		if s.when.IsZero() {
			r.caughtUp = time.Hour
		}
	}
	return r
}

// check holds a storm to what is promised.
func (r stormed) check(t testing.TB, clients, topics int) {
	t.Helper()
	if r.failed > 0 {
		t.Errorf("%d dials failed", r.failed)
	}
	for _, n := range r.reads {
		if n > int64(2*topics) {
			t.Errorf("%d reads of the broker for %d topics", n, topics)
		}
	}
	if limit := backoff.DefaultFirst * 12 / 10; r.caughtUp > limit {
		t.Errorf("the last client is caught up after %v, want %v", r.caughtUp, limit)
	}
	if limit := 2 * clients / int(backoff.DefaultFirst/time.Second); r.peak > limit {
		t.Errorf("%d dials within a second, want at most %d", r.peak, limit)
	}
}

// However many clients a node has that dies, the broker is read once for each topic and
// node, and nobody waits longer than the window of the reconnects.
func TestAResumeStormReadsEachTopicOnce(t *testing.T) {
	clients, topics := many(*stormClients, 500, 500, 2000), 10
	synctest.Test(t, func(t *testing.T) {
		r := storm(t, clients, topics)
		r.check(t, clients, topics)
		verify.Report(t, "simulated %d clients on %d topics: %v reads of the broker, all caught up after %v, at most %d dials in a second",
			clients, topics, r.reads, r.caughtUp.Round(time.Millisecond), r.peak)
	})
}

// The storm in real time: with all the work that 10 000 clients and the nodes they come
// back to do on this machine.
func BenchmarkResumeStorm(b *testing.B) {
	for _, clients := range []int{1000, 5000, 10000} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			if testing.Short() && clients > 1000 {
				b.Skip("too long for -short")
			}
			for b.Loop() {
				r := storm(b, clients, 10)
				b.ReportMetric(float64(slices.Max(r.reads)), "reads/node")
				b.ReportMetric(r.caughtUp.Seconds(), "s-caught-up")
				b.ReportMetric(float64(r.peak), "dials/s-peak")
				b.ReportMetric(float64(r.failed), "dials-failed")
			}
		})
	}
}
