package heartbeat

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
)

const (
	// bufferSize is that of the buffers that a hijacked connection gets, one
	// each way, instead of the 4 KiB of net/http. Libraries that bring their own
	// buffers do so all the same.
	bufferSize = 512

	// chunkSize is how much of a large write is handed to the network at once.
	// Between two chunks it can be seen that the peer makes room.
	chunkSize = 64 << 10
)

// WrapWriter returns a writer to be given to the Accept or Upgrade function of a
// WebSocket library in place of w. The connection that the library hijacks from it
// is seen by the peer: each byte that comes in, each write and its progress, and
// whether anybody reads. That makes verdicts exact, and excuses possible. Its
// buffers are small, which saves two thirds of the memory of an idle connection.
//
// It goes with any library that uses [http.Hijacker] or
// [http.ResponseController], and may stand anywhere in a chain of middleware whose
// writers have an Unwrap method. Over TLS what is seen are the bytes within. HTTP/2
// connections cannot be hijacked; then the library gets an error that says so.
//
// A write of ours that gets on, however slowly, excuses a peer that does not answer
// meanwhile, if it gets on by 64 KiB in each Timeout.
//
// Call it before [Peer.Watch].
func (p *Peer) WrapWriter(w http.ResponseWriter) http.ResponseWriter {
	p.wrapped.Store(true)
	return &writer{w, p}
}

// WrapConn returns a connection to be used in place of c, seen by the peer as with
// [Peer.WrapWriter]: for clients, in the DialContext function of an
// [http.Transport], and for protocols without HTTP. Like those of any net.Conn,
// concurrent writes do not mix. Call it before [Peer.Watch], for one connection.
func (p *Peer) WrapConn(c net.Conn) net.Conn {
	p.wrapped.Store(true)
	return newConn(c, p)
}

type writer struct {
	http.ResponseWriter
	peer *Peer
}

// Unwrap is for [http.ResponseController].
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeaderNow is for gin, whose writers hold headers back until it is called;
// coder/websocket looks for it before it hijacks (nhooyr/websocket#166).
func (w *writer) WriteHeaderNow() {
	if g, ok := w.ResponseWriter.(interface{ WriteHeaderNow() }); ok {
		g.WriteHeaderNow()
	}
}

// Hijack implements [http.Hijacker].
func (w *writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	inner, old, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		why := "heartbeat: the connection cannot be taken over for a WebSocket"
		if errors.Is(err, http.ErrNotSupported) {
			why += ", as is so with HTTP/2 and behind middleware without Unwrap"
		}
		return nil, nil, fmt.Errorf("%s: %w", why, err)
	}
	c := newConn(inner, w.peer)
	// What came together with the request is in the old buffer, and has to be in
	// the new one: some libraries look for it there.
	early, err := old.Reader.Peek(old.Reader.Buffered())
	if err != nil {
		inner.Close()
		return nil, nil, err
	}
	var r io.Reader = c
	if len(early) > 0 {
		r = io.MultiReader(bytes.NewReader(bytes.Clone(early)), c)
	}
	br := bufio.NewReaderSize(r, max(bufferSize, len(early)))
	if _, err := br.Peek(len(early)); err != nil {
		inner.Close()
		return nil, nil, err
	}
	return c, bufio.NewReadWriter(br, bufio.NewWriterSize(c, bufferSize)), nil
}

// conn tells the peer what happens on a connection.
type conn struct {
	net.Conn
	peer *Peer

	// turn holds a value during one Write, so that two of them do not mix though they are
	// handed on in chunks. It is no lock, because the network is waited for with it: in virtual
	// time a lock would stop the clock.
	turn chan struct{}
}

func newConn(c net.Conn, p *Peer) *conn { return &conn{c, p, make(chan struct{}, 1)} }

func (c *conn) Read(b []byte) (int, error) {
	c.peer.reading.Store(true)
	n, err := c.Conn.Read(b)
	c.peer.reading.Store(false)
	if n > 0 {
		c.peer.Touch()
	}
	return n, err
}

func (c *conn) Write(b []byte) (n int, err error) {
	c.turn <- struct{}{} // who has it leaves when the connection is closed or its deadline comes
	defer func() { <-c.turn }()
	p := c.peer
	p.writing.Add(1)
	defer p.writing.Add(-1)
	for {
		before := p.monitor.now()
		p.wrote.Store(before)
		k, err := c.Conn.Write(b[n:min(len(b), n+chunkSize)])
		n += k
		if k > 0 {
			p.Sent()
			// A write that goes through at once proves nothing: kernels take
			// megabytes for a peer that never reads. One that had to wait, and
			// then went on, does: the peer has made room. (The clock may jump by
			// a tick within the shortest write.)
			if p.monitor.now()-before >= 2*int64(tick) {
				p.Touch()
			}
		}
		if err != nil || n == len(b) {
			return n, err
		}
	}
}
