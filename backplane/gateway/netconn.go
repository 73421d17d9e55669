package gateway

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-ws/holdfast/internal/wire"
)

// A netConn is the connection below a WebSocket. The WebSocket library reads from it
// and writes control frames to it, each with one call of Write; the gateway writes data
// frames to it, complete ones, so that one frame can be made once and written to all
// connections. (The library would frame it again for each, at twice the cost.)
type netConn struct {
	net.Conn
	timeout time.Duration
	secure  bool // TLS, which cannot go on with a write that has timed out

	// turn holds a value during one write, of whole frames, of at most a fragment. It is no
	// lock, because the network is waited for with it: in virtual time a lock would stop
	// the clock.
	turn   chan struct{}
	closed int // code of our close frame, once it was written; nothing may follow it. Guarded by turn
	rest   int // bytes still to come of a frame that the library writes in pieces, as it does with compressed ones. Guarded by turn

	over bool        // nothing more can be read; the reader's
	late atomic.Bool // a write has got nowhere in time, perhaps the library's

	mu    sync.Mutex // guards later; nothing else is done under it
	later []byte     // control frames that came while it was another's turn
}

// maxLater bounds netConn.later. Beyond it pongs are left out (RFC 6455, section 5.5.3).
const maxLater = 512

// Read reads, and notes the end. Whoever reads a whole message does not ask for more than
// that, and so has not met the end.
func (n *netConn) Read(b []byte) (int, error) {
	k, err := n.Conn.Read(b)
	if k > 0 {
		return k, nil // the error comes again
	}
	n.over = err != nil
	return 0, err
}

// Write writes b within the timeout. For a control frame it does not wait for its turn:
// the library closes the connection if that takes more than 5 s.
func (n *netConn) Write(b []byte) (int, error) {
	select {
	case n.turn <- struct{}{}:
	default:
		if len(b) >= 2 && b[0]&(final|opClose) == final|opClose && frameLen(b) == len(b) {
			n.mu.Lock()
			if len(n.later)+len(b) <= maxLater {
				n.later = append(n.later, b...)
			}
			n.mu.Unlock()
			return len(b), n.pass() // who has the turn may not look again
		}
		n.turn <- struct{}{}
	}
	k, err := n.write(b)
	<-n.turn
	if err == nil {
		err = n.pass()
	}
	return k, err
}

// pass writes what is there for later, unless it is another's turn, who then does.
func (n *netConn) pass() (err error) {
	for err == nil {
		n.mu.Lock()
		none := len(n.later) == 0
		n.mu.Unlock()
		if none {
			return nil
		}
		select {
		case n.turn <- struct{}{}:
		default:
			return nil
		}
		if n.rest > 0 { // not within a frame
			<-n.turn
			return nil
		}
		n.mu.Lock()
		b := n.later
		n.later = nil
		n.mu.Unlock()
		for len(b) > 0 && err == nil { // one by one, as a close frame may be among them
			k := frameLen(b)
			_, err = n.write(b[:k])
			b = b[k:]
		}
		<-n.turn
	}
	return err
}

// write writes b, if nothing was written yet that nothing may follow.
func (n *netConn) write(b []byte) (int, error) {
	if n.closed != 0 {
		return len(b), nil // the library wants to answer a close frame that answers ours
	}
	if n.rest > 0 {
		n.rest -= len(b)
	} else if len(b) > 1 {
		if b[0] == final|opClose {
			n.closed = wire.CloseNoStatus
			if len(b) >= 4 {
				n.closed = int(b[2])<<8 | int(b[3])
			}
		}
		n.rest = frameLen(b) - len(b) // not above 0 for whole frames
	}
	steps := 4 // of the timeout in which nothing may go through
	if n.secure {
		steps = 1
	}
	for done, idle := 0, 0; ; {
		if err := n.SetWriteDeadline(time.Now().Add(n.timeout / time.Duration(steps))); err != nil {
			return done, err
		}
		k, err := n.Conn.Write(b[done:])
		done += k
		if idle++; k > 0 {
			idle = 0
		}
		if !isTimeout(err) {
			return done, err
		}
		if n.secure || idle == steps {
			n.late.Store(true)
			return done, err
		}
	}
}

// goodbye returns the code of our close frame, or 0 if none was written. It is for when
// nobody writes any more.
func (n *netConn) goodbye() int {
	select {
	case n.turn <- struct{}{}:
		defer func() { <-n.turn }()
		return n.closed
	default:
		return 0 // somebody is stuck
	}
}

// isTimeout reports whether a read or a write has got nowhere in time.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// Frames of WebSocket (RFC 6455, section 5.2), from a server, and so without a mask.
const (
	opText     = 1
	opClose    = 8
	final      = 0x80
	fragment   = 32 << 10 // a longer message goes in pieces, between which control frames can pass
	longHeader = 10
)

// appendMessage appends a text message as one or more frames.
func appendMessage(b, payload []byte) []byte {
	first := byte(opText)
	for len(payload) > fragment {
		b = appendHeader(b, first, fragment)
		b = append(b, payload[:fragment]...)
		payload = payload[fragment:]
		first = 0 // continuation
	}
	b = appendHeader(b, final|first, len(payload))
	return append(b, payload...)
}

func appendHeader(b []byte, first byte, n int) []byte {
	switch {
	case n < 126:
		return append(b, first, byte(n))
	case n < 1<<16:
		return append(b, first, 126, byte(n>>8), byte(n))
	}
	return append(b, first, 127, 0, 0, 0, 0, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

// appendClose appends a close frame.
func appendClose(b []byte, code int, reason string) []byte {
	reason = reason[:min(len(reason), 123)]
	b = append(b, final|opClose, byte(2+len(reason)), byte(code>>8), byte(code))
	return append(b, reason...)
}

// cut returns the length of the whole frames at the beginning of b that are not longer
// together than a fragment, or of one.
func cut(b []byte) (n int) {
	for n < len(b) {
		k := frameLen(b[n:])
		if n > 0 && n+k > fragment+longHeader {
			break
		}
		n += k
	}
	return n
}

// frameLen returns the length of the frame at the beginning of b, which appendMessage
// has made.
func frameLen(b []byte) int { h, n := frameSize(b); return h + n }

func frameSize(b []byte) (header, payload int) {
	switch n := int(b[1]); n {
	case 126:
		return 4, int(b[2])<<8 | int(b[3])
	case 127:
		return 10, int(b[6])<<24 | int(b[7])<<16 | int(b[8])<<8 | int(b[9])
	default:
		return 2, n
	}
}
