// Package memnet is a network in memory that misbehaves on command, for tests in
// a [testing/synctest] bubble: every wait in it is durably blocking, so that
// virtual time goes on, and a test can say at which instant a fault is noticed.
//
// A [Network] is one server's listener and the dialer that reaches it. Each
// connection is also a [Link] in the hands of the test, which can slow it down,
// stall it, turn it half-open, reset it, or cut it in the middle of a message.
//
// What it is not: TCP. There is no retransmission, no congestion and no kernel
// that acknowledges for a frozen application; a chunk written is a chunk read,
// later.
package memnet

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-ws/holdfast/backoff"
)

// Settings are properties of connections dialled from now on.
type Settings struct {
	// Latency is how long a byte takes to arrive, and half of what a dial takes.
	Latency time.Duration

	// Buffer is how many bytes may be on their way in one direction: a write
	// blocks while there are that many which the other end has not read. Zero
	// means 64 KiB.
	Buffer int

	// Backlog is how many connections may wait to be accepted; one more is refused. Zero
	// means 128. It counts in New only.
	Backlog int

	// Refuse lets dials fail at once, as on a host whose port is closed.
	Refuse bool

	// Swallow lets dials hang until their context ends, as behind a firewall.
	Swallow bool
}

// Network is a [net.Listener] and the dialer that reaches it. Make one with
// [New], within the bubble.
type Network struct {
	accept chan net.Conn
	closed chan struct{}

	mu       sync.Mutex // guards all below; nothing that waits is done under it
	isClosed bool
	settings Settings
	links    []*Link
	dials    int
}

// New returns a network with the given settings.
func New(s Settings) *Network {
	if s.Backlog == 0 {
		s.Backlog = 128
	}
	return &Network{settings: s, accept: make(chan net.Conn, s.Backlog), closed: make(chan struct{})}
}

// Set changes the settings for dials to come.
func (n *Network) Set(s Settings) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.settings = s
}

// Accept returns the server's end of the next connection dialled.
func (n *Network) Accept() (net.Conn, error) {
	select {
	case <-n.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-n.accept:
		return c, nil
	case <-n.closed:
		return nil, net.ErrClosed
	}
}

// Close ends listening. Connections live on, but for those that nobody has
// accepted, which are reset.
func (n *Network) Close() error {
	n.mu.Lock()
	if !n.isClosed {
		n.isClosed = true
		close(n.closed)
	}
	n.mu.Unlock()
	for {
		select {
		case c := <-n.accept:
			c.(*conn).link.Reset()
		default:
			return nil
		}
	}
}

// Addr returns an address of the documentation's range (RFC 5737).
func (n *Network) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80} }

// DialContext returns the client's end of a new connection, whatever the network
// and address asked for. It need not have been accepted, see [Settings.Backlog]. It
// fits [net/http.Transport].
func (n *Network) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	n.mu.Lock()
	n.dials++
	s := n.settings
	from := &net.TCPAddr{IP: net.IPv4(198, 51, 100, 1), Port: 1024 + n.dials%60000}
	n.mu.Unlock()
	if s.Buffer == 0 {
		s.Buffer = 64 << 10
	}
	if s.Swallow {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	if err := backoff.Sleep(ctx, s.Latency); err != nil {
		return nil, err
	}
	l := &Link{up: newHalf(s), down: newHalf(s)}
	refused := s.Refuse || !n.offer(l, &conn{link: l, r: l.up, w: l.down, local: n.Addr(), remote: from})
	if err := backoff.Sleep(ctx, s.Latency); err != nil {
		l.Reset()
		return nil, err
	}
	if refused {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: n.Addr(), Err: syscall.ECONNREFUSED}
	}
	return &conn{link: l, r: l.down, w: l.up, local: from, remote: n.Addr()}, nil
}

// offer queues the server's end of a connection, unless nobody listens any more
// or the queue is full.
func (n *Network) offer(l *Link, server net.Conn) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.isClosed {
		return false
	}
	select {
	case n.accept <- server:
		n.links = append(n.links, l)
		return true
	default:
		return false
	}
}

// Dials returns how many dials there were so far, failed ones included.
func (n *Network) Dials() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials
}

// Links returns the connections that neither end has closed and no fault has
// ended, oldest first. Those that are stalled or half-open are among them.
func (n *Network) Links() []*Link {
	n.mu.Lock()
	defer n.mu.Unlock()
	var open []*Link
	for _, l := range n.links {
		if l.open() {
			open = append(open, l)
		}
	}
	n.links = append([]*Link(nil), open...)
	return open
}

// A Direction of a connection.
type Direction int

const (
	Up   Direction = 1 << iota // from the client to the server
	Down                       // from the server to the client
	Both = Up | Down
)

// A Link is one connection in the hands of a test.
type Link struct{ up, down *half }

// each calls f for the halves of the given directions, with their locks held.
func (l *Link) each(d Direction, f func(*half)) {
	if d&Up != 0 {
		l.up.set(f)
	}
	if d&Down != 0 {
		l.down.set(f)
	}
}

func (l *Link) open() (open bool) {
	open = true
	l.each(Both, func(h *half) { open = open && h.err == nil && !h.wclosed && !h.rclosed })
	return open
}

// Stall holds back all that is on its way in a direction, until it is called with
// false: a frozen peer, or a partition that heals. Nothing is lost, and writes
// block once the buffer is full.
func (l *Link) Stall(d Direction, on bool) { l.each(d, func(h *half) { h.stall = on }) }

// Blackhole makes the link half-open, for good: bytes and the end of the
// connection vanish in a direction, and neither end is told. Writes succeed until
// the buffer is full, as they do while a kernel waits for acknowledgements.
func (l *Link) Blackhole(d Direction) { l.each(d, func(h *half) { h.hole = true }) }

// Reset ends the connection at both ends at once, with ECONNRESET. What was on its
// way is lost.
func (l *Link) Reset() { l.each(Both, func(h *half) { h.err = syscall.ECONNRESET }) }

// CutAfter lets n more bytes be written in a direction, and then ends the
// connection: the reader gets those n bytes and then ECONNRESET, and the writer
// ECONNRESET from its next write on. Once one of them knows, so does the other.
func (l *Link) CutAfter(d Direction, n int) {
	l.each(d, func(h *half) { h.cut, h.left, h.fin = true, n, false })
}

// EndAfter is CutAfter with an orderly end, as when the writer's process is ended: the
// reader gets EOF in place of ECONNRESET.
func (l *Link) EndAfter(d Direction, n int) {
	l.each(d, func(h *half) { h.cut, h.left, h.fin = true, n, true })
}

// A half is one direction of a connection.
type half struct {
	latency time.Duration
	size    int

	// mu guards all below. Waiting on cond is durably blocking; nothing else
	// happens under mu.
	mu           sync.Mutex
	cond         *sync.Cond
	chunks       []chunk
	n            int  // bytes on their way, and such as a black hole took
	wclosed      bool // the writer has closed: EOF after the last chunk, at eof
	eof          time.Time
	rclosed      bool  // the reader has closed: writing fails
	err          error // ends both sides at once
	stall, hole  bool
	busy         bool // a write is under way
	cut          bool // the connection ends when left is 0
	left         int
	fin          bool      // and the reader gets EOF
	rlimit, wlim time.Time // deadlines
}

// A chunk arrives at a time.
type chunk struct {
	bytes []byte
	at    time.Time
}

func newHalf(s Settings) *half {
	h := &half{latency: s.Latency, size: s.Buffer}
	h.cond = sync.NewCond(&h.mu)
	return h
}

// set changes the half and lets everybody look again.
func (h *half) set(f func(*half)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(h)
	h.cond.Broadcast()
}

// wait waits for a change or a time, with mu held.
func (h *half) wait(until time.Time) {
	if !until.IsZero() {
		defer time.AfterFunc(time.Until(until), func() { h.set(func(*half) {}) }).Stop()
	}
	h.cond.Wait()
}

// earlier returns the earlier of a time and one that may be zero, for never.
func earlier(deadline, t time.Time) time.Time {
	if deadline.IsZero() || t.Before(deadline) {
		return t
	}
	return deadline
}

func passed(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

// read is Read of the end that this half leads to. It reports whether the
// connection was cut.
func (h *half) read(p []byte) (n int, cut bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		until := h.rlimit
		switch {
		case h.rclosed:
			return 0, false, net.ErrClosed
		case h.err != nil:
			return 0, false, h.err
		case passed(h.rlimit):
			return 0, false, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, false, nil
		case h.stall:
		case len(h.chunks) > 0:
			first := &h.chunks[0]
			if passed(first.at) {
				n := copy(p, first.bytes)
				if first.bytes = first.bytes[n:]; len(first.bytes) == 0 {
					h.chunks = h.chunks[1:]
				}
				h.n -= n
				h.cond.Broadcast()
				return n, false, nil
			}
			until = earlier(until, first.at)
		case h.cut && h.left == 0:
			if h.fin {
				return 0, true, io.EOF
			}
			return 0, true, syscall.ECONNRESET
		case h.wclosed && !h.hole:
			if passed(h.eof) {
				return 0, false, io.EOF
			}
			until = earlier(until, h.eof)
		}
		h.wait(until)
	}
}

// write is Write of the end that this half begins at. It reports whether the
// connection was cut.
func (h *half) write(p []byte) (written int, cut bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	mine := false // one write after the other, as a net.Conn promises
	defer func() {
		if mine {
			h.busy = false
			h.cond.Broadcast()
		}
	}()
	for {
		switch {
		case h.wclosed:
			return written, false, net.ErrClosed
		case h.err != nil:
			return written, false, h.err
		case h.cut && h.left == 0:
			return written, true, syscall.ECONNRESET
		case h.rclosed && !h.hole:
			return written, false, syscall.EPIPE
		case passed(h.wlim):
			return written, false, os.ErrDeadlineExceeded
		case h.busy && !mine:
			h.wait(h.wlim)
		case len(p) == 0:
			return written, false, nil
		case h.n < h.size:
			mine, h.busy = true, true
			part := p[:min(len(p), h.size-h.n)]
			if h.cut {
				part = part[:min(len(part), h.left)]
				h.left -= len(part)
			}
			h.n += len(part)
			if !h.hole {
				h.chunks = append(h.chunks, chunk{append([]byte(nil), part...), time.Now().Add(h.latency)})
			}
			written += len(part)
			p = p[len(part):]
			h.cond.Broadcast()
		default:
			h.wait(h.wlim)
		}
	}
}

// conn is one end of a connection.
type conn struct {
	link          *Link
	r, w          *half
	local, remote net.Addr
}

func (c *conn) Read(p []byte) (int, error) {
	n, cut, err := c.r.read(p)
	if cut {
		c.w.set(func(h *half) { h.err = syscall.ECONNRESET })
	}
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	n, cut, err := c.w.write(p)
	if cut {
		c.r.set(func(h *half) { h.err = syscall.ECONNRESET })
	}
	return n, err
}

// Close ends the connection: the other end reads what was written, then EOF.
func (c *conn) Close() error {
	closed := false
	c.w.set(func(h *half) {
		closed, h.wclosed = h.wclosed, true
		if !closed {
			h.eof = time.Now().Add(h.latency)
		}
	})
	c.r.set(func(h *half) {
		h.rclosed = true
		h.chunks = nil // nobody will read them
	})
	if closed {
		return net.ErrClosed
	}
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetReadDeadline(t time.Time) error {
	c.r.set(func(h *half) { h.rlimit = t })
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.w.set(func(h *half) { h.wlim = t })
	return nil
}

func (c *conn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}
