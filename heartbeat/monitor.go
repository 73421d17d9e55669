package heartbeat

import (
	"context"
	"errors"
	"iter"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Errors of [Peer.Watch]. The connection is not touched then: it is the caller's to
// close, or to watch with another peer.
var (
	ErrMonitorClosed = errors.New("heartbeat: monitor closed")
	ErrWatched       = errors.New("heartbeat: peer was watched before")
)

// A Monitor watches any number of peers with one goroutine, which runs only while
// there are some. It is safe for concurrent use.
type Monitor struct {
	config Config

	// clock is the monitor's time in nanoseconds, without our own stalls, as of
	// the last tick; or -1 while the scheduler sleeps for longer and anchor
	// tells the time.
	clock  atomic.Int64
	anchor atomic.Pointer[anchor]

	kick chan struct{}  // wakes the scheduler
	jobs sync.WaitGroup // the scheduler, pings, and drops with their callbacks

	// mu guards all below and the marked fields of peers. Nothing waits and no
	// code of others runs under it.
	mu        sync.Mutex
	closed    bool
	running   bool // there is a scheduler
	watched   int
	classes   []*class
	postponed []*Peer // pings to be cancelled when they may
	stats     Stats
	wall      time.Time // at the last tick
	mono      time.Time
	sleep     time.Duration // that the scheduler planned for
}

// An anchor ties the monitor's clock to real time, until limit, when the
// scheduler is to wake: what is later may be a stall, which does not count.
type anchor struct {
	at           time.Time
	clock, limit int64
}

// A class is the peers that have the same interval and timeout.
//
// Its peers sit in slots, one of which is looked at in each tick, so that however
// many peers come at once, their probes are spread. There are four looks at a peer
// in an interval, and it is probed if it was silent for so long that the next look
// would be too late. Outstanding probes are in a queue; since they all
// have the same timeout, the queue is in the order of their deadlines.
type class struct {
	interval, timeout time.Duration
	quiet             int64 // silence that calls for a probe at a look
	slots             [][]*Peer
	pos               int64 // tick to be looked at next
	turn, stride      int64 // of the next peer, and from its phase to the next
	urgent            int   // slots still to be probed whatever was heard from them
	probes            []due
	peers             int
}

// A due is a probe that was sent at a time of the monitor's clock.
type due struct {
	peer *Peer
	at   int64
}

// Stats are counts since the monitor was made, but for Watched.
type Stats struct {
	Watched    int            // peers watched now
	Probes     int            // times that a peer was asked for a sign of life
	Suppressed int            // looks at peers that needed none, because of traffic both ways
	BusyReader int            // times that a peer got more time because our side was not reading
	SlowWrite  int            // because a write of ours was in the way, and made progress
	FailedPing int            // because a ping failed on our side
	Stalls     int            // times that this process stood still
	StallTime  time.Duration  // for how long in all; nobody was blamed for it
	Wakes      int            // times that the machine was suspended
	Dead       map[Reason]int // verdicts
}

// New returns a monitor that watches nobody yet. The error is a [*ConfigError].
func New(config Config) (*Monitor, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	m := &Monitor{config: config, kick: make(chan struct{}, 1)}
	m.anchor.Store(&anchor{at: time.Now(), limit: math.MaxInt64})
	m.clock.Store(-1)
	m.stats.Dead = map[Reason]int{}
	return m, nil
}

// now returns the monitor's time.
func (m *Monitor) now() int64 {
	if v := m.clock.Load(); v >= 0 {
		return v
	}
	a := m.anchor.Load()
	return min(a.clock+int64(time.Since(a.at)), a.limit)
}

// Close stops watching all peers, without dropping their connections, and waits
// until nothing of the monitor runs any more: no ping, no callback. It may be
// called again.
func (m *Monitor) Close() {
	m.mu.Lock()
	m.closed = true
	for _, c := range m.classes {
		for _, slot := range c.slots {
			for _, p := range slot {
				p.state = stopped
				p.endPing()
			}
		}
	}
	m.classes, m.postponed, m.watched = nil, nil, 0
	m.mu.Unlock()
	m.wakeUp()
	m.jobs.Wait()
}

// Peers returns the peers that are watched, in no particular order. It is a copy:
// the loop may do anything, and peers that end meanwhile may still come.
func (m *Monitor) Peers() iter.Seq[*Peer] {
	m.mu.Lock()
	peers := make([]*Peer, 0, m.watched)
	for _, c := range m.classes {
		for _, slot := range c.slots {
			peers = append(peers, slot...)
		}
	}
	m.mu.Unlock()
	return slices.Values(peers)
}

// Sweep calls visit for each peer that is watched when it begins, spread evenly
// over a time, on the caller's goroutine: for telling all clients to reconnect
// before a server shuts down, without having them come back at once. With a time of
// zero or less they do. It returns when all were visited, or the [context.Cause] of
// ctx when that is done. Peers that are stopped meanwhile are left out.
func (m *Monitor) Sweep(ctx context.Context, over time.Duration, visit func(*Peer)) error {
	peers := slices.Collect(m.Peers())
	rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
	start := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i, p := range peers {
		at := time.Duration(float64(over) * float64(i) / float64(len(peers)))
		if wait := at - time.Since(start); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		m.mu.Lock()
		watching := p.state == watching
		m.mu.Unlock()
		if watching {
			visit(p)
		}
	}
	return nil
}

// Stats returns a snapshot of the counts.
func (m *Monitor) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.stats
	s.Watched = m.watched
	s.Dead = make(map[Reason]int, len(m.stats.Dead))
	for r, n := range m.stats.Dead {
		s.Dead[r] = n
	}
	return s
}

// wakeUp has the scheduler look at once.
func (m *Monitor) wakeUp() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// class returns the class of an interval and a timeout.
func (m *Monitor) class(interval, timeout time.Duration, v int64) *class {
	for _, c := range m.classes {
		if c.interval == interval && c.timeout == timeout {
			return c
		}
	}
	n := int64(interval/4/tick) - 1
	c := &class{
		interval: interval, timeout: timeout,
		quiet:  int64(interval) - n*int64(tick),
		slots:  make([][]*Peer, n),
		stride: int64(0.618*4*float64(n)) | 1,
		pos:    v/int64(tick) + 1,
	}
	for gcd(c.stride, 4*n) != 1 { // each phase has its turn
		c.stride += 2
	}
	m.classes = append(m.classes, c)
	return c
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// start begins to watch p.
func (m *Monitor) start(p *Peer, conn Conn) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrMonitorClosed
	}
	if p.state != fresh {
		return ErrWatched
	}
	p.conn = conn
	v := m.now()
	c := m.class(p.interval, p.timeout, v)
	// Its turn gives it a phase of the interval, in ticks, in which its probes are
	// due while it is quiet. Steps of about the golden ratio spread the phases of
	// any number of peers, however fast they come.
	n := int64(len(c.slots))
	phase := c.turn * c.stride % (4 * n)
	c.turn++
	first := (v + int64(minAge) + int64(tick) - 1) / int64(tick)
	first += ((phase-first)%(4*n) + 4*n) % (4 * n)
	p.born = v
	p.sent.Store(v)
	p.heard.Store(min(v, first*int64(tick)-c.quiet))
	p.class, p.slot = c, int(phase%n)
	p.index = len(c.slots[p.slot])
	c.slots[p.slot] = append(c.slots[p.slot], p)
	c.peers++
	p.state = watching
	m.watched++
	if !m.running {
		m.running = true
		m.jobs.Add(1)
		go m.run()
	} else {
		m.wakeUp()
	}
	return nil
}

// leave takes p out of its class.
func (m *Monitor) leave(p *Peer) {
	c := p.class
	slot := c.slots[p.slot]
	last := slot[len(slot)-1]
	slot[p.index], last.index = last, p.index
	slot[len(slot)-1] = nil
	c.slots[p.slot] = slot[:len(slot)-1]
	m.watched--
	if c.peers--; c.peers == 0 {
		m.classes = slices.DeleteFunc(m.classes, func(d *class) bool { return d == c })
	}
	p.endPing()
}

// run is the scheduler. It ticks while probes are outstanding, and otherwise
// sleeps until the next peer is due.
func (m *Monitor) run() {
	defer m.jobs.Done()
	m.mu.Lock()
	now := time.Now()
	m.mono, m.wall = now, now.Round(0)
	m.sleep = 0
	v := m.now()
	m.mu.Unlock()
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for {
		m.mu.Lock()
		if m.watched == 0 {
			m.running = false
			m.anchor.Store(&anchor{time.Now(), v, math.MaxInt64})
			m.clock.Store(-1)
			m.mu.Unlock()
			return
		}
		m.sleep = m.next(v)
		if m.sleep > tick {
			m.anchor.Store(&anchor{m.mono, v, v + int64(m.sleep)})
			m.clock.Store(-1)
		} else {
			m.clock.Store(v)
		}
		timer.Reset(m.sleep)
		m.mu.Unlock()

		select {
		case <-timer.C:
		case <-m.kick:
		}
		m.mu.Lock()
		// Read under the lock, so that nobody was told a later time before.
		now := time.Now()
		v = m.advance(v, now, now.Round(0))
		m.mu.Unlock()
	}
}

// next returns how long the scheduler may sleep at time v: until the next tick
// while a probe is out, and else until the next slot with a peer in it.
func (m *Monitor) next(v int64) time.Duration {
	now := v / int64(tick)
	at := now + int64(maxInterval/tick)
	for _, c := range m.classes {
		if len(c.probes) > 0 || c.urgent > 0 || len(m.postponed) > 0 {
			at = now + 1
			break
		}
		for k := range int64(len(c.slots)) {
			if len(c.slots[(c.pos+k)%int64(len(c.slots))]) > 0 {
				at = min(at, c.pos+k)
				break
			}
		}
	}
	return min(maxSleep, time.Duration(max(at, now+1)*int64(tick)-v))
}

// advance moves the monitor's clock from v to now, does what is due, and returns
// the new time. Time for which we stood still does not count: nobody could
// answer, and nobody is blamed for it. The wall clock is passed apart from the
// monotonic, which stops while the machine is suspended. The lock is held.
func (m *Monitor) advance(v int64, mono, wall time.Time) int64 {
	step := mono.Sub(m.mono)
	if late := step - m.sleep; late > tick && m.sleep > 0 {
		// That we are a little late is usual and no stall, but neither is it
		// anybody else's fault.
		if late > 4*tick {
			m.stats.Stalls++
			m.stats.StallTime += late
		}
		step = m.sleep
	}
	if away := wall.Sub(m.wall) - mono.Sub(m.mono); away > 2*time.Second {
		m.stats.Wakes++
		for _, c := range m.classes {
			c.urgent = len(c.slots)
		}
		if m.config.OnWake != nil {
			m.jobs.Add(1)
			go func() {
				defer m.jobs.Done()
				m.config.OnWake(away)
			}()
		}
	}
	m.mono, m.wall = mono, wall
	v += int64(step)
	m.clock.Store(v)
	for _, c := range slices.Clone(m.classes) {
		m.look(c, v)
		m.judge(c, v)
	}
	m.postponed = slices.DeleteFunc(m.postponed, func(p *Peer) bool {
		if p.state != watching || !p.again {
			return true // it has ended by itself, and another may be under way
		}
		if !m.mayCancel(p, v) {
			return false
		}
		p.endPing()
		return true
	})
	return v
}

// look looks at the slots whose ticks have come.
func (m *Monitor) look(c *class, v int64) {
	before := c.pos
	for last := v / int64(tick); c.pos <= last; c.pos++ {
		m.lookAt(c, int(c.pos%int64(len(c.slots))), v, false)
	}
	// After a wake-up all are probed, within twenty ticks.
	if c.pos > before {
		for k := (len(c.slots) + 19) / 20; k > 0 && c.urgent > 0; k-- {
			c.urgent--
			m.lookAt(c, c.urgent, v, true)
		}
	}
}

func (m *Monitor) lookAt(c *class, slot int, v int64, urgent bool) {
	for i := len(c.slots[slot]) - 1; i >= 0; i-- { // backwards, for those that are dropped
		p := c.slots[slot][i]
		heard, sent := p.heard.Load(), p.sent.Load()
		pings := p.pings.Load()
		if p.looks++; p.looks%4 == 0 {
			p.pings.Add(-pings)
		}
		p.settle()
		switch {
		case m.config.MaxPings >= 0 && pings > int64(m.config.MaxPings):
			m.drop(p, PingFlood, v)
			continue
		case p.maxAge > 0 && v-p.born >= p.maxAge:
			m.drop(p, TooOld, v)
			continue
		case p.waiting || v-p.born < int64(minAge):
			// A probe is out, or the peer is busy reading the handshake.
		case urgent || v-min(heard, sent) >= c.quiet:
			m.newRound(p, v)
		default:
			if v-p.born >= c.quiet {
				m.stats.Suppressed++
			}
		}
		if !p.waiting && p.pinging && m.mayCancel(p, v) {
			p.endPing() // it was answered, by whatever
		}
	}
}

// settle notices that the peer has answered.
func (p *Peer) settle() {
	if p.waiting && p.heard.Load() >= p.asked {
		p.waiting = false
	}
}

// judge looks at probes: at the oldest, whether they were answered, and at those
// that have timed out.
func (m *Monitor) judge(c *class, v int64) {
	done := 0
	for ; done < len(c.probes); done++ {
		d := c.probes[done]
		p := d.peer
		if p.state != watching || d.at != p.asked {
			continue // stopped, or asked again since
		}
		if p.settle(); !p.waiting {
			if p.pinging && m.mayCancel(p, v) {
				p.endPing()
			}
			continue
		}
		if p.closed.Load() {
			m.drop(p, Closed, v)
			continue
		}
		if v-d.at < int64(c.timeout) {
			break
		}
		// What stands in the way of an answer, on our side.
		writing := p.writing.Load() > 0
		blocked := writing && p.wrote.Load() <= d.at // since before it was asked, without progress
		stuck := p.wrapped.Load() && !p.reading.Load()
		failed := p.failed.Load()
		switch {
		case blocked:
			m.drop(p, WriteBlocked, v)
		case (writing || stuck || failed) && p.excused < excuses:
			p.excused++
			switch {
			case stuck:
				m.stats.BusyReader++
			case writing:
				m.stats.SlowWrite++
			default:
				m.stats.FailedPing++
			}
			m.probe(p, v)
		case stuck:
			m.drop(p, ReaderStuck, v)
		default:
			m.drop(p, NoAnswer, v)
		}
	}
	clear(c.probes[:done])
	c.probes = c.probes[done:]
	if len(c.probes) == 0 {
		c.probes = nil
	}
}

// probe queues a probe of p, and sends a ping unless one is still under way.
func (m *Monitor) probe(p *Peer, v int64) {
	p.asked = v
	p.class.probes = append(p.class.probes, due{p, v})
	p.probes++
	m.stats.Probes++
	if p.pinging {
		return
	}
	p.pinging = true
	m.newPing(p)
	m.jobs.Add(1)
	go m.ping(p)
}

// newRound begins a round of probes with a ping of its own. One that still waits
// for its answer, although the last round was answered, is cancelled first: there
// are peers that do not echo what a ping says, and pings that do not end by
// themselves.
func (m *Monitor) newRound(p *Peer, v int64) {
	p.waiting, p.excused, p.probes = true, 0, 0
	if p.pinging {
		p.again = true
		if m.mayCancel(p, v) {
			p.endPing()
		} else {
			m.postponed = append(m.postponed, p)
		}
	}
	m.probe(p, v)
}

// pingWrites is how long a ping may be in the middle of writing: the limit that
// coder/websocket has for its control frames.
const pingWrites = 5 * time.Second

// mayCancel reports whether the ping under way can be cancelled without harm. A
// library whose context ends in the middle of a write closes the connection.
func (m *Monitor) mayCancel(p *Peer, v int64) bool {
	if p.wrapped.Load() {
		return p.writing.Load() == 0
	}
	if _, ok := p.conn.(Funcs); ok {
		return true // as documented there
	}
	return v-p.pinged >= int64(pingWrites)
}

// newPing makes the context of a ping. It is made for each, because it takes more
// memory than the rest of an idle peer.
func (m *Monitor) newPing(p *Peer) {
	p.failed.Store(false)
	p.pinged = m.now()
	p.pingCtx, p.cancelPing = context.WithCancel(context.Background())
}

// endPing cancels the ping that is under way, if there is one.
func (p *Peer) endPing() {
	if p.cancelPing != nil {
		p.cancelPing()
	}
}

// ping pings until no further ping is wanted.
func (m *Monitor) ping(p *Peer) {
	defer m.jobs.Done()
	for more := true; more; {
		m.mu.Lock()
		ctx := p.pingCtx
		m.mu.Unlock()
		if !p.wrapped.Load() {
			p.Sent() // as far as we can know
		}
		start := time.Now()
		err := p.conn.Ping(ctx)
		switch {
		case err == nil:
			p.rtt.Store(int64(time.Since(start)))
			p.Touch()
		case ctx.Err() != nil: // cancelled by us
		case errors.Is(err, net.ErrClosed):
			p.closed.Store(true)
		default:
			p.failed.Store(true)
		}
		m.mu.Lock()
		p.endPing()
		if more = p.again && p.state == watching; more {
			m.newPing(p)
		} else {
			p.pinging, p.pingCtx, p.cancelPing = false, nil, nil
		}
		p.again = false
		m.mu.Unlock()
	}
}

// drop ends p: it is taken out at once, and its connection closed and the verdict
// told on another goroutine.
func (m *Monitor) drop(p *Peer, reason Reason, v int64) {
	verdict := Verdict{
		Reason: reason,
		Silent: time.Duration(v - max(p.heard.Load(), p.born)),
		Probes: p.probes,
		RTT:    p.RTT(),
	}
	p.state = dead
	p.verdict = verdict
	m.stats.Dead[reason]++
	m.leave(p)
	m.jobs.Add(1)
	go func() {
		defer m.jobs.Done()
		p.conn.CloseNow()
		if m.config.OnDead != nil {
			m.config.OnDead(p, verdict)
		}
	}()
}
