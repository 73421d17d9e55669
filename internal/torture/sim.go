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
	Snapshots    bool          // the hubs have them: some are slow, and some fail

	// Pace is how long things take, as a factor: 1 if it is zero, which is for
	// virtual time.
	Pace float64

	// Gentle leaves out faults in which the store loses something.
	Gentle bool
}

// A World is what a plan is run on: some backplane, and ways to hurt it.
type World interface {
	// Open returns the backplane of a node. Run closes it at the end.
	Open(node int) backplane.Backplane

	// Fault hurts something, by what rnd gives, and heals it by itself. It calls
	// note with what it does, and lose when something was lost. It is called again
	// and again, by one goroutine.
	Fault(rnd *rand.Rand, note func(what string), lose func())

	// Heal returns when all is well again.
	Heal()

	// Stored returns everything that was ever stored, nil if that is not known.
	Stored() []Event
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
	Converged  time.Duration // from when all was healed until everybody was at the head
	Path       *Path         // of RunPath
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

// Run runs a plan, in a bubble of testing/synctest unless the world is a real one.
func Run(p Plan, w World) *Outcome {
	if p.Pace == 0 {
		p.Pace = 1
	}
	s := &sim{
		Plan:  p,
		start: time.Now(),
		world: w,
		at:    map[string]replay.Position{},
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
	for i := range p.Nodes {
		n := &simNode{bp: w.Open(i)}
		n.start(s)
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
	w.Heal()
	s.calm.Store(true)
	stop()
	workers.Wait()

	// One last message for each topic, and time to converge.
	healed := time.Now()
	for i := range p.Topics {
		last := fmt.Sprint("last of ", i)
		for {
			call, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			r, err := s.nodes[0].current().Publish(call, topicName(i), backplane.Message{ID: last, Data: []byte(last)})
			cancel()
			if err == nil {
				s.ack(topicName(i), r.Pos, last)
				s.out.Record.Heads[topicName(i)] = r.Pos
				break
			}
			time.Sleep(time.Second)
		}
	}
	for time.Since(healed) < 30*time.Second && !s.converged() {
		time.Sleep(100 * time.Millisecond)
	}
	s.out.Converged = time.Since(healed)
	for _, n := range s.nodes {
		h := n.current()
		s.out.Stats = append(s.out.Stats, h.Stats())
		h.Close(context.Background())
	}
	readers.Wait()
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
	s.out.Record.Stored = w.Stored()
	s.out.Violations = s.out.Record.Check()
	return s.out
}

// converged reports whether all subscribers are at the head.
func (s *sim) converged() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.Subscribers {
		if topic := topicName(i % s.Topics); s.at[fmt.Sprintf("s%d", i)] != s.out.Record.Heads[topic] {
			return false
		}
	}
	return true
}

// paced returns a random time up to d, at the plan's pace.
func (s *sim) paced(rnd *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(float64(rnd.Int64N(int64(d))) * s.Pace)
}

type sim struct {
	Plan
	start time.Time
	world World
	nodes []*simNode
	calm  atomic.Bool // no more faults

	mu  sync.Mutex                 // guards at and what out points to
	at  map[string]replay.Position // of each subscriber
	out *Outcome
}

type simNode struct {
	bp backplane.Backplane

	mu  sync.Mutex // guards hub
	hub *backplane.Hub
}

func (n *simNode) start(s *sim) {
	hub := backplane.New(n.bp, s.hubOptions())
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hub = hub
}

// hubOptions are those of each Hub.
func (s *sim) hubOptions() *backplane.Options {
	limits := replay.Limits{Entries: s.HubRetention, Age: -1, Bytes: -1}
	o := &backplane.Options{
		Sweep: s.Sweep, Linger: 5 * time.Second,
		Limits: func(string) replay.Limits { return limits },
	}
	if s.Snapshots {
		o.Snapshot = s.snapshot
	}
	return o
}

var errNoSnapshot = errors.New("the database of states is away")

// snapshot returns a state of a topic, which is the position up to which it has everything:
// that of the head, or that after one of the messages that were acknowledged last, as an
// application would have them in its database. That message may be lost meanwhile, or a
// node may not have been told of it.
func (s *sim) snapshot(ctx context.Context, topic string, head replay.Position) ([]byte, replay.Position, error) {
	pace := s.Pace
	switch rand.IntN(10) {
	case 0:
		<-ctx.Done()
		return nil, replay.Position{}, context.Cause(ctx)
	case 1, 2:
		return nil, replay.Position{}, errNoSnapshot
	case 3, 4, 5, 6:
		if err := sleep(ctx, time.Duration(pace*float64(rand.N(9*time.Second)))); err != nil {
			return nil, replay.Position{}, err
		}
	}
	switch rand.IntN(3) {
	case 0:
		return []byte(head.String()), replay.Position{}, nil
	case 1:
		s.mu.Lock()
		acked := s.out.Record.Acked
		s.mu.Unlock()
		back := rand.IntN(4)
		for i := len(acked) - 1; i >= 0; i-- {
			if acked[i].Topic != topic {
				continue
			}
			if back--; back < 0 {
				return []byte(acked[i].Pos.String()), acked[i].Pos, nil
			}
		}
	}
	return []byte(head.String()), head, nil
}

// resetEvent is what an application sees of a Reset, after which it goes on after base.
func resetEvent(topic string, reason replay.Reason, missed uint64, base replay.Position, snapshot []byte) Event {
	e := Event{At: time.Now(), Topic: topic, Reset: reason, Missed: missed, Pos: base}
	if snapshot != nil {
		state, err := replay.ParsePosition(string(snapshot))
		if err != nil || state.IsZero() {
			panic(fmt.Sprintf("no state that was ever returned: %q", snapshot))
		}
		e.State = state
	}
	return e
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
		if sleep(ctx, s.paced(rnd, 200*time.Millisecond)) != nil {
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
		session, cancel := context.WithTimeout(ctx, s.paced(rnd, 20*time.Second))
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
				base := b.To
				if len(b.Entries) > 0 {
					first := &b.Entries[0]
					base = replay.Position{Epoch: first.Pos.Epoch, Seq: first.Pos.Seq - 1, Tag: first.Prev}
				}
				seen = append(seen, resetEvent(topic, b.Reset.Reason, b.Reset.Missed, base, b.Reset.Snapshot))
			}
			for _, e := range b.Entries {
				seen = append(seen, Event{At: time.Now(), Topic: topic, Pos: e.Pos, Stored: e.At, Payload: string(e.Data)})
			}
			at = b.To
			s.mu.Lock()
			s.at[who] = at
			s.mu.Unlock()
			if slow {
				sleep(session, s.paced(rnd, 8*time.Second))
			}
		}
		cancel()
		sub.Close()
		if last && !errors.Is(err, backplane.ErrClosed) {
			panic(fmt.Sprintf("%s: %v", who, err))
		}
		if !last && ctx.Err() == nil {
			time.Sleep(s.paced(rnd, 5*time.Second))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Record.Seen[who] = seen
	s.out.Record.Ends[who] = at
	s.out.Record.Topics[who] = topic
}

// faults hurts the world and restarts nodes for so long.
func (s *sim) faults(length time.Duration) {
	rnd := rand.New(rand.NewPCG(s.Seed, 1))
	note := func(what string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.out.Faults[what]++
		s.out.Log = append(s.out.Log, time.Now().Format("04:05.000 ")+what)
	}
	lose := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.out.Record.Losses = append(s.out.Record.Losses, time.Now())
	}
	for time.Since(s.start) < length {
		time.Sleep(time.Duration(float64(200*time.Millisecond)*s.Pace) + s.paced(rnd, 2*time.Second))
		if rnd.IntN(100) < 6 {
			i := rnd.IntN(len(s.nodes))
			note("node restarts")
			h := s.nodes[i].current()
			h.Close(context.Background())
			s.nodes[i].start(s)
			continue
		}
		s.world.Fault(rnd, note, lose)
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
