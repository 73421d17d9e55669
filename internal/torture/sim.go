package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/replay"
)

// A Plan is one run of the simulation. Everything random in it follows from the
// seed, but not the order in which goroutines run.
type Plan struct {
	Seed         uint64
	Length       time.Duration // during which there are faults
	Nodes        int
	Topics       int
	Subscribers  int
	Publishers   int
	Retention    int           // entries of each topic, in the store
	HubRetention int           // in the hubs
	Slow         bool          // calls take up to a second and a half
	Sweep        time.Duration // of the hubs; zero for the default

	// Gentle leaves out faults in which the store loses something.
	Gentle bool
}

// An Outcome is what a run amounted to.
type Outcome struct {
	Record     Record
	Violations []Violation
	Deliveries int
	Resets     int
	Faults     map[string]int
	Log        []string // the faults, in order
	Stats      []backplane.Stats
}

func (o *Outcome) String() string {
	faults := 0
	for _, n := range o.Faults {
		faults += n
	}
	return fmt.Sprintf("%d acknowledged and %d unsure publishes, %d deliveries checked, %d Resets, %d faults, %d violations",
		len(o.Record.Acked), o.Record.Unsure, o.Deliveries, o.Resets, faults, len(o.Violations))
}

// Explain returns the violations with what the subscribers they name saw last.
func (o *Outcome) Explain() string {
	var b strings.Builder
	for i, v := range o.Violations {
		if i == 10 {
			fmt.Fprintf(&b, "and %d more\n", len(o.Violations)-i)
			break
		}
		fmt.Fprintln(&b, v)
		events := o.Record.Seen[v.Who]
		n := 0
		for n < len(events) && !events[n].At.After(v.At) {
			n++
		}
		for _, e := range events[max(0, n-50):n] {
			fmt.Fprintln(&b, "   ", e)
		}
	}
	fmt.Fprintln(&b, strings.Join(o.Log, "\n"))
	return b.String()
}

// Run runs a plan. It is to be called in a bubble of testing/synctest.
func Run(p Plan) *Outcome {
	s := &sim{
		Plan:  p,
		start: time.Now(),
		store: NewStore(p.Retention, ""),
		out: &Outcome{
			Faults: map[string]int{},
			Record: Record{
				Seen: map[string][]Event{}, Ends: map[string]replay.Position{}, Heads: map[string]replay.Position{},
				Topics: map[string]string{}, Retention: min(p.Retention, p.HubRetention),
			},
		},
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	s.healthy = healthy
	if p.Slow {
		s.healthy.Latency = 1500 * time.Millisecond
	}
	for range p.Nodes {
		n := &simNode{bp: s.store.Open(s.healthy)}
		n.start(p)
		s.nodes = append(s.nodes, n)
	}
	var workers, readers sync.WaitGroup
	for i := range p.Publishers {
		workers.Go(func() { s.publisher(ctx, i) })
	}
	for i := range p.Subscribers {
		readers.Go(func() { s.subscriber(ctx, i) })
	}
	s.faults(p.Length)
	s.calm.Store(true)
	stop()
	workers.Wait()

	// One last message for each topic, and time to converge.
	for i := range p.Topics {
		for {
			r, err := s.nodes[0].current().Publish(context.Background(), topicName(i), backplane.Message{ID: fmt.Sprint("last ", i), Data: []byte(fmt.Sprint("last of ", i))})
			if err == nil {
				s.ack(topicName(i), r.Pos, fmt.Sprint("last of ", i))
				break
			}
			time.Sleep(time.Second)
		}
	}
	time.Sleep(30 * time.Second)
	for _, n := range s.nodes {
		h := n.current()
		s.out.Stats = append(s.out.Stats, h.Stats())
		h.Close(context.Background())
	}
	readers.Wait()
	for i := range p.Topics {
		s.out.Record.Heads[topicName(i)] = s.store.Head(topicName(i))
	}
	for _, n := range s.nodes {
		n.bp.Close()
	}
	for _, events := range s.out.Record.Seen {
		for _, e := range events {
			if e.Reset != "" {
				s.out.Resets++
			} else {
				s.out.Deliveries++
			}
		}
	}
	s.out.Record.Stored = s.store.All()
	s.out.Violations = s.out.Record.Check()
	return s.out
}

// healthy is a link as it is between faults: hints are never to be relied on.
var healthy = Link{
	Latency: 4 * time.Millisecond, Drop: 0.02, Repeat: 0.02, Delay: 0.05, Lateness: time.Second, Ring: 0.02, Unsure: 0.01,
}

type sim struct {
	Plan
	start time.Time
	store *Store
	nodes []*simNode
	calm  atomic.Bool // no more faults

	healthy Link

	mu  sync.Mutex // guards what out points to
	out *Outcome
}

type simNode struct {
	bp *Node

	mu  sync.Mutex // guards hub
	hub *backplane.Hub
}

func (n *simNode) start(p Plan) {
	limits := replay.Limits{Entries: p.HubRetention, Age: -1, Bytes: -1}
	hub := backplane.New(n.bp, &backplane.Options{
		Sweep: p.Sweep, Linger: 5 * time.Second,
		Limits: func(string) replay.Limits { return limits },
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hub = hub
}

func (n *simNode) current() *backplane.Hub {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hub
}

func topicName(i int) string { return fmt.Sprintf("topic %d", i) }

func (s *sim) ack(topic string, pos replay.Position, payload string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Record.Acked = append(s.out.Record.Acked, Event{At: time.Now(), Topic: topic, Pos: pos, Payload: payload})
}

// publisher publishes about ten messages a second on changing nodes, and tries
// those again of which it does not know what became of them.
func (s *sim) publisher(ctx context.Context, i int) {
	rnd := rand.New(rand.NewPCG(s.Seed, uint64(1000+i)))
	for n := 0; ; n++ {
		if sleep(ctx, time.Duration(rnd.Int64N(int64(200*time.Millisecond)))) != nil {
			return
		}
		topic := topicName(rnd.IntN(s.Topics))
		payload := fmt.Sprintf("p%d-%d", i, n)
		m := backplane.Message{ID: payload, Data: []byte(payload)}
		for try := 0; ; try++ {
			h := s.nodes[rnd.IntN(len(s.nodes))].current()
			call, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			r, err := h.Publish(call, topic, m)
			cancel()
			if err == nil {
				s.ack(topic, r.Pos, payload)
				break
			}
			if r.Outcome == backplane.NotStored && try == 0 {
				break
			}
			if try == 4 {
				s.mu.Lock()
				s.out.Record.Unsure++
				s.mu.Unlock()
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// subscriber reads a topic in sessions on changing nodes, each from where the last
// one ended, and in some of them is slow.
func (s *sim) subscriber(ctx context.Context, i int) {
	rnd := rand.New(rand.NewPCG(s.Seed, uint64(2000+i)))
	who := fmt.Sprintf("s%d", i)
	topic := topicName(i % s.Topics)
	var at replay.Position
	var seen []Event
	for last := false; !last; {
		last = s.calm.Load()
		node := s.nodes[rnd.IntN(len(s.nodes))]
		h := node.current()
		session, cancel := context.WithTimeout(ctx, time.Duration(rnd.Int64N(int64(20*time.Second))))
		if last {
			cancel()
			session, cancel = context.WithCancel(context.Background())
		}
		sub, err := h.Subscribe(session, topic, &backplane.SubscribeOptions{After: at, Last: rnd.IntN(20) - 1})
		if err != nil {
			cancel()
			if last && errors.Is(err, backplane.ErrClosed) {
				break
			}
			last = false
			time.Sleep(50 * time.Millisecond)
			continue
		}
		slow := !last && rnd.IntN(4) == 0
		var b backplane.Batch
		for {
			err = sub.Next(session, &b, replay.Budget{Entries: 1 + rnd.IntN(20)})
			if err != nil {
				break
			}
			if b.Reset != nil {
				e := Event{At: time.Now(), Topic: topic, Reset: b.Reset.Reason, Missed: b.Reset.Missed}
				if len(b.Entries) == 0 {
					e.Pos = b.To
				}
				seen = append(seen, e)
			}
			for _, e := range b.Entries {
				seen = append(seen, Event{At: time.Now(), Topic: topic, Pos: e.Pos, Stored: e.At, Payload: string(e.Data)})
			}
			at = b.To
			if slow {
				sleep(session, time.Duration(rnd.Int64N(int64(8*time.Second))))
			}
		}
		cancel()
		sub.Close()
		if last && !errors.Is(err, backplane.ErrClosed) {
			panic(fmt.Sprintf("%s: %v", who, err))
		}
		if !last && ctx.Err() == nil {
			time.Sleep(time.Duration(rnd.Int64N(int64(5 * time.Second))))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Record.Seen[who] = seen
	s.out.Record.Ends[who] = at
	s.out.Record.Topics[who] = topic
}

// faults hurts the store and the nodes for so long, and heals them.
func (s *sim) faults(length time.Duration) {
	rnd := rand.New(rand.NewPCG(s.Seed, 1))
	restore := s.store.Save()
	var saved sync.WaitGroup
	for time.Since(s.start) < length {
		time.Sleep(200*time.Millisecond + time.Duration(rnd.Int64N(int64(2*time.Second))))
		n := s.nodes[rnd.IntN(len(s.nodes))]
		d := time.Duration(rnd.Int64N(int64(8 * time.Second)))
		worse := s.healthy
		pick := rnd.IntN(100)
		if s.Gentle && pick >= 92 {
			pick -= 50
		}
		switch {
		case pick < 20:
			s.fault("cut", n, 0)
			n.bp.Set(Link{Down: true})
			n.bp.Set(s.healthy)
		case pick < 35:
			s.fault("down", n, d)
			worse.Down = true
			saved.Go(func() { n.bp.Set(worse); time.Sleep(d); n.bp.Set(s.healthy) })
		case pick < 50:
			s.fault("hang", n, d)
			worse.Hang = true
			saved.Go(func() { n.bp.Set(worse); time.Sleep(d); n.bp.Set(s.healthy) })
		case pick < 70:
			s.fault("hints lost", n, d)
			worse.Drop = 1
			saved.Go(func() { n.bp.Set(worse); time.Sleep(d); n.bp.Set(s.healthy) })
		case pick < 80:
			s.fault("hints out of order", n, d)
			worse.Delay, worse.Repeat = 0.7, 0.3
			saved.Go(func() { n.bp.Set(worse); time.Sleep(d); n.bp.Set(s.healthy) })
		case pick < 86:
			s.fault("node restarts", n, d)
			h := n.current()
			h.Close(context.Background())
			n.start(s.Plan)
		case pick < 92:
			s.fault("store restarts", nil, 0)
			s.store.Restart()
			for _, n := range s.nodes {
				n.bp.Set(s.healthy)
			}
		case pick < 96:
			s.lose("rollback", restore)
			restore = s.store.Save()
		default:
			s.lose("flush", s.store.Flush)
			restore = s.store.Save()
		}
		if rnd.IntN(4) == 0 {
			restore = s.store.Save()
		}
	}
	saved.Wait()
	for _, n := range s.nodes {
		n.bp.Set(s.healthy)
	}
}

func (s *sim) fault(kind string, n *simNode, d time.Duration) {
	who := ""
	for i, x := range s.nodes {
		if x == n {
			who = fmt.Sprintf(" at node %d for %v", i, d.Round(time.Millisecond))
		}
	}
	s.out.Faults[kind]++
	s.out.Log = append(s.out.Log, fmt.Sprintf("%s %s%s", time.Now().Format("04:05.000"), kind, who))
}

func (s *sim) lose(kind string, how func()) {
	s.fault(kind, nil, 0)
	how()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Record.Losses = append(s.out.Record.Losses, time.Now())
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
