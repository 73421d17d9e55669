package heartbeat

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// Options are the properties of one peer. Zero fields take those of the monitor's
// [Config]. Let there be a few different intervals and timeouts in a monitor, not
// one for each peer: those that are equal share a schedule. Their bounds are those
// of Config.
type Options struct {
	Interval time.Duration
	Timeout  time.Duration

	// Value is the caller's, for example what it calls the peer in its log.
	Value any
}

// A Peer is one connection that is watched, or is about to be. It is safe for
// concurrent use.
type Peer struct {
	// Value is that of the [Options].
	Value any

	monitor           *Monitor
	interval, timeout time.Duration
	maxAge            int64 // 0 = none
	wrapped           atomic.Bool

	heard, sent atomic.Int64 // monitor's time of the last byte in and out
	rtt         atomic.Int64
	pings       atomic.Int64 // received in about an interval
	reading     atomic.Bool  // somebody waits in Read of the wrapped connection
	writing     atomic.Int32 // calls of its Write that have not returned
	wrote       atomic.Int64 // monitor time at which the last of them began or got on
	failed      atomic.Bool  // the last ping failed
	closed      atomic.Bool  // a ping found the connection closed

	// Guarded by Monitor.mu.
	state       state
	conn        Conn
	class       *class
	slot, index int
	born        int64
	looks       int
	waiting     bool            // a probe is out
	asked       int64           // when it was sent
	pinging     bool            // a call of Ping has not returned
	pinged      int64           // when it began
	again       bool            // and another is to follow
	pingCtx     context.Context // of that call
	cancelPing  context.CancelFunc
	excused     int
	probes      int // since the last sign of life
	verdict     Verdict
}

type state int

const (
	fresh state = iota
	watching
	stopped
	dead
)

// NewPeer returns a peer that is not watched yet: wrap its connection if you
// want, see [Peer.WrapWriter], make it, and then call [Peer.Watch]. Options may be
// nil. The error is a [*ConfigError].
func (m *Monitor) NewPeer(o *Options) (*Peer, error) {
	p := &Peer{monitor: m, interval: m.config.Interval, timeout: m.config.Timeout}
	if o != nil {
		p.Value = o.Value
		if o.Interval != 0 || o.Timeout != 0 {
			c := Config{Interval: o.Interval, Timeout: o.Timeout}
			if c.Interval == 0 {
				c.Interval = m.config.Interval
			}
			if c.Timeout == 0 {
				c.Timeout = min(m.config.Timeout, c.Interval*3/4)
			}
			if err := c.check(); err != nil {
				return nil, err
			}
			p.interval, p.timeout = c.Interval, c.Timeout
		}
	}
	if age := m.config.MaxAge; age > 0 {
		p.maxAge = int64(float64(age) * (0.9 + 0.2*rand.Float64()))
	}
	return p, nil
}

// Watch begins to watch the peer at the other end of c, until [Peer.Stop], a
// verdict, or [Monitor.Close]. The error is [ErrMonitorClosed], or [ErrWatched]:
// a peer is for one connection, and can be watched once.
func (p *Peer) Watch(c Conn) error { return p.monitor.start(p, c) }

// Stop ends watching without a verdict; call it when you are done with the
// connection. A ping that is under way is cancelled, which may close the
// connection. It does nothing if the peer is not watched, and may be called
// often.
func (p *Peer) Stop() {
	m := p.monitor
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.state == watching {
		p.state = stopped
		m.leave(p)
	}
}

// Touch says that something was heard from the peer just now: any byte, whatever
// it means. It costs some nanoseconds. With a wrapped connection it is called for
// you; otherwise call it from OnPongReceived and for each message.
func (p *Peer) Touch() { store(&p.heard, p.monitor.now()) }

// Sent says that something was sent to the peer just now. A peer that is both
// heard from and sent to is not pinged: there is no need, neither to know that it
// lives nor to keep the connection open in the eyes of proxies. With a wrapped
// connection it is called for you.
func (p *Peer) Sent() { store(&p.sent, p.monitor.now()) }

// store stores a time, unless it is there already, as it mostly is on a busy
// connection: the clock stands still between two ticks.
func store(at *atomic.Int64, v int64) {
	if at.Load() != v {
		at.Store(v)
	}
}

// Pinged says that the peer has sent a ping, and reports whether it should be
// answered: not if the peer sends more than MaxPings in an Interval. Such a peer
// is dropped at the next look, with [PingFlood]. It fits OnPingReceived of
// coder/websocket.
func (p *Peer) Pinged() bool {
	n := p.pings.Add(1)
	limit := p.monitor.config.MaxPings
	return limit < 0 || n <= int64(limit)
}

// Probe pings the peer now, whatever was heard from it, and so gives it Timeout to
// show life. Use it when there is doubt, for example because a network interface
// has changed.
func (p *Peer) Probe() {
	m := p.monitor
	m.mu.Lock()
	p.settle()
	if p.state == watching && !p.waiting {
		v := m.now()
		// What was heard in the same tick, but before, is no answer.
		if heard := p.heard.Load(); heard >= v {
			p.heard.CompareAndSwap(heard, v-1)
		}
		m.newRound(p, v)
	}
	m.mu.Unlock()
	m.wakeUp()
}

// RTT returns how long the last ping took that was answered, and 0 if none was.
// Waiting for our own writes and for the scheduler is part of it.
func (p *Peer) RTT() time.Duration { return time.Duration(p.rtt.Load()) }

// Idle returns how long ago the peer was heard from, to about 50 ms and without
// our own stalls, or was first watched if it never was. It is 0 while the peer is
// not watched.
func (p *Peer) Idle() time.Duration {
	m := p.monitor
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.state != watching {
		return 0
	}
	return time.Duration(max(0, m.now()-max(p.heard.Load(), p.born)))
}

// Verdict returns why the peer was dropped, and whether it was.
func (p *Peer) Verdict() (Verdict, bool) {
	m := p.monitor
	m.mu.Lock()
	defer m.mu.Unlock()
	return p.verdict, p.state == dead
}
