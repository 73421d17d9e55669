// Package faultproxy forwards TCP and hurts it, for tests that need real sockets:
// real resets, real back-pressure, a kernel that acknowledges for an application
// that hears nothing.
//
// A client connects to [Proxy.Addr] instead of the target. All faults are knobs
// of the [Proxy] which act on its connections, present and future, as long as
// they are turned on. Up is the way from the client to the target, down the way
// back.
package faultproxy

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// dialTimeout is how long a target may take to accept.
	dialTimeout = 5 * time.Second

	// chunk is how many bytes are read, and held back, at once.
	chunk = 32 << 10

	// poll is how often a chunk that is held back looks at the knobs.
	poll = time.Millisecond

	// grace is what the bytes before a cut get to leave the kernel, for a reset
	// throws away what has not been sent.
	grace = 20 * time.Millisecond
)

// Proxy forwards connections to a target. Each knob and each method may be used
// at any time and by any number of goroutines.
type Proxy struct {
	// Delay is for how many nanoseconds each chunk is held back, each way. What
	// arrives meanwhile waits in the kernel and is the next chunk, so a byte is
	// late by one to two Delays. Zero and less mean none.
	Delay atomic.Int64

	// HoleUp and HoleDown are black holes, one for each direction: bytes, FIN and
	// RST vanish, and the sender is told that all is well. Both together are a
	// host that lost its power. A connection that lost anything to a hole stays
	// silent in that direction, also after Heal, for no TCP stream has a gap in
	// it. ResetAll ends it.
	HoleUp, HoleDown atomic.Bool

	// Stall holds everything back, both ways, until it is turned off: the senders
	// feel back-pressure, and nothing is lost. It is a partition that heals.
	Stall atomic.Bool

	// CutUp and CutDown, when more than zero, are how many more bytes pass, on
	// all connections together. The connection that carries the last of them is
	// reset right after it, and the knob is zero again.
	CutUp, CutDown atomic.Int64

	// Refuse resets each connection as soon as it is accepted.
	Refuse atomic.Bool

	// Swallow accepts connections and leaves them at that: the target hears of
	// none of them, and they hear nothing, also after Heal, until ResetAll.
	Swallow atomic.Bool

	ln     net.Listener
	ctx    context.Context // ends dials; New made it, Close ends it
	cancel context.CancelFunc
	wg     sync.WaitGroup // accept, and serve for each link

	mu     sync.Mutex // guards all below, and link.server
	target string
	closed bool
	links  map[*link]bool // those whose sockets are open
}

// link is a client's connection, and ours to the target for it.
type link struct {
	client   *net.TCPConn
	server   *net.TCPConn // nil while there is none
	up, down way
	gone     chan struct{} // closed by drop
}

// way is one direction of a link.
type way struct {
	hole *atomic.Bool
	cut  *atomic.Int64
	lost atomic.Bool // something vanished: nothing more passes
}

// New starts a proxy for target, a TCP address, on a free port of 127.0.0.1.
// Nobody dials target before a client comes. Close must be called.
func New(target string) (*Proxy, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{target: target, ln: ln, links: map[*link]bool{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.wg.Go(p.accept)
	return p, nil
}

// Addr returns the address on which the proxy listens, as host:port. It stays
// the same until Close.
func (p *Proxy) Addr() string { return p.ln.Addr().String() }

// SetTarget changes where connections made from now on lead to. Those that exist
// stay where they are; ResetAll ends them.
func (p *Proxy) SetTarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// ResetAll sends an RST on every connection, to both ends, before it returns.
func (p *Proxy) ResetAll() {
	for _, l := range p.all() {
		p.drop(l, true)
	}
}

// Heal turns all knobs back. What Delay and Stall hold back goes on its way.
func (p *Proxy) Heal() {
	for _, knob := range []*atomic.Bool{&p.HoleUp, &p.HoleDown, &p.Stall, &p.Refuse, &p.Swallow} {
		knob.Store(false)
	}
	for _, knob := range []*atomic.Int64{&p.Delay, &p.CutUp, &p.CutDown} {
		knob.Store(0)
	}
}

// Close resets all connections, stops listening, and returns when the last
// goroutine of the proxy has ended. It may be called again.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true // no link is added any more
	p.mu.Unlock()
	p.cancel()
	p.ln.Close()
	p.ResetAll()
	p.wg.Wait()
}

func (p *Proxy) accept() {
	for {
		c, err := p.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Too many open files, or a client that left again: the next may work.
			select {
			case <-p.ctx.Done():
			case <-time.After(poll):
			}
			continue
		}
		l := &link{client: c.(*net.TCPConn), gone: make(chan struct{})}
		l.up.hole, l.up.cut = &p.HoleUp, &p.CutUp
		l.down.hole, l.down.cut = &p.HoleDown, &p.CutDown
		switch {
		case !p.add(l):
			reset(l.client)
		case p.Refuse.Load():
			p.drop(l, true)
		case !p.Swallow.Load():
			p.wg.Go(func() { p.serve(l) })
		}
	}
}

// serve forwards between both ends of l until both directions have ended.
func (p *Proxy) serve(l *link) {
	dialer := net.Dialer{Timeout: dialTimeout}
	c, err := dialer.DialContext(p.ctx, "tcp", p.to())
	if err != nil {
		p.drop(l, true) // as if the client had reached the closed port itself
		return
	}
	if !p.attach(l, c.(*net.TCPConn)) {
		reset(c.(*net.TCPConn))
		return
	}
	var up sync.WaitGroup
	up.Go(func() { p.pump(l, l.server, l.client, &l.up, &l.down) })
	p.pump(l, l.client, l.server, &l.down, &l.up)
	up.Wait()
	if !l.up.lost.Load() && !l.down.lost.Load() {
		p.drop(l, false) // both have sent their FIN
	}
	// Otherwise an end believes that it is connected: its socket stays open.
}

// pump forwards from src to dst, which is the direction w; back is the other one.
func (p *Proxy) pump(l *link, dst, src *net.TCPConn, w, back *way) {
	buf := make([]byte, chunk)
	for {
		n, err := src.Read(buf)
		// After the read, so that a fault also meets what comes while we wait for
		// it, and so that a fault turned on before something is sent meets that.
		if !p.hold(l) {
			return
		}
		if w.hole.Load() {
			w.lost.Store(true)
		}
		if w.lost.Load() {
			if err != nil {
				return // FIN and RST vanish too
			}
			continue
		}
		n, last := take(w.cut, n)
		var werr error
		if n > 0 {
			_, werr = dst.Write(buf[:n])
		}
		switch {
		case last:
			pause(l, grace)
			p.drop(l, true)
			return
		case werr != nil && (back.hole.Load() || back.lost.Load()):
			// dst is gone, and its RST goes the other way, into the hole: src does
			// not hear of it, and may send as before.
			w.lost.Store(true)
			if err != nil {
				return
			}
		case werr != nil || err != nil && err != io.EOF:
			p.drop(l, true) // a reset is passed on as a reset
			return
		case err == io.EOF:
			dst.CloseWrite() // a FIN is passed on as a FIN
			return
		}
	}
}

// hold returns when neither Delay nor Stall holds back what came now. It returns
// false if l was dropped.
func (p *Proxy) hold(l *link) bool {
	for came := time.Now(); p.Stall.Load() || time.Since(came) < time.Duration(p.Delay.Load()); {
		if !pause(l, poll) {
			return false
		}
	}
	return pause(l, 0)
}

// pause waits for d, or until l is dropped; then it returns false.
func pause(l *link, d time.Duration) bool {
	if d > 0 {
		select {
		case <-l.gone:
		case <-time.After(d):
		}
	}
	select {
	case <-l.gone:
		return false
	default:
		return true
	}
}

// take takes n bytes from a cut. It returns how many of them pass, and whether
// they are the last.
func take(cut *atomic.Int64, n int) (pass int, last bool) {
	for {
		left := cut.Load()
		if left <= 0 {
			return n, false
		}
		pass := min(int64(n), left)
		if cut.CompareAndSwap(left, left-pass) {
			return int(pass), pass == left
		}
	}
}

// to returns where new connections lead to.
func (p *Proxy) to() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.target
}

// all returns the links whose sockets are open.
func (p *Proxy) all() (links []*link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		links = append(links, l)
	}
	return links
}

// add makes l known to ResetAll, unless the proxy is closed.
func (p *Proxy) add(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.links[l] = true
	}
	return !p.closed
}

// attach gives l its connection to the target, unless l was dropped meanwhile.
func (p *Proxy) attach(l *link, server *net.TCPConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.links[l] {
		l.server = server
	}
	return p.links[l]
}

// drop closes the sockets of l, with an RST if hard, and wakes its goroutines.
func (p *Proxy) drop(l *link, hard bool) {
	p.mu.Lock()
	first := p.links[l]
	delete(p.links, l)
	server := l.server
	p.mu.Unlock()
	if !first {
		return
	}
	close(l.gone)
	for _, c := range []*net.TCPConn{l.client, server} {
		switch {
		case c == nil:
		case hard:
			reset(c)
		default:
			c.Close()
		}
	}
}

// reset closes c with an RST.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}
