package gateway

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// A scratch is what a writer needs while it writes.
type scratch struct {
	batch backplane.Batch
	buf   []byte
	text  []byte
	parts [][]byte
}

// trim lets go of room that is seldom needed.
func (s *scratch) trim() {
	if cap(s.buf) > rare {
		s.buf = nil
	}
	if cap(s.text) > rare {
		s.text = nil
	}
}

func (g *Gateway) putScratch(s *scratch) {
	s.trim()
	g.scratch.Put(s)
}

// budget bounds what goes into one frame.
var budget = replay.Budget{Entries: 256, Bytes: 16 << 10}

// send has a frame written, now or by whoever is writing. It may wait for the network,
// but not longer than the write timeout.
func (c *conn) send(f *wire.Frame) { c.enqueue(f, 0, "", nil, true) }

// sendIf has a frame written if what may, with the lock held, says so: in one step with
// what it does. It is not asked if nothing is sent any more. It does not wait for the
// network.
func (c *conn) sendIf(f *wire.Frame, may func() bool) { c.enqueue(f, 0, "", may, false) }

// end closes the connection when all that was sent before is written, and f, which may
// be nil. It may wait as send does.
func (c *conn) end(code int, reason string, f *wire.Frame) { c.enqueue(f, code, reason, nil, true) }

// dismiss is end for those who have others to look after: it does not wait for the network. It
// reports whether the connection ends for this.
func (c *conn) dismiss(code int, reason string, f *wire.Frame) bool {
	return c.enqueue(f, code, reason, nil, false)
}

// enqueue has f written, and then the connection closed if closing is not 0. With wait the
// caller becomes the writer if there is none, and else a goroutine. It reports whether it has
// done so, and not found that the connection ends already.
func (c *conn) enqueue(f *wire.Frame, closing int, reason string, may func() bool, wait bool) bool {
	s := c.g.scratch.Get().(*scratch)
	defer c.g.putScratch(s)
	if f != nil {
		s.text = f.Append(s.text[:0])
	}
	c.mu.Lock()
	if c.dead.Load() || c.closing != 0 || c.ended && !wait || may != nil && !may() {
		c.mu.Unlock()
		return false
	}
	if f != nil {
		c.out = appendMessage(c.out, s.text)
	}
	if len(c.out) > maxOut && closing == 0 {
		closing, reason = wire.CloseSlow, fmt.Sprintf("answers are not read (%d bytes wait)", len(c.out))
	}
	if closing != 0 {
		c.close(closing, reason)
	}
	if c.writing || c.net == nil { // not yet accepted: see there
		c.mu.Unlock()
		return true
	}
	c.writing = true
	if !wait {
		c.writer()
		c.mu.Unlock()
		return true
	}
	c.mu.Unlock()
	c.flush(s, false)
	return true
}

// close has the connection closed as soon as out is written, and sees to it that what is
// left does not take longer than the write timeout: who takes a byte now and then could
// else stay for ever. The lock is held.
func (c *conn) close(code int, reason string) {
	c.closing, c.reason = code, reason
	if c.cause == nil {
		c.cause = &cause{how: endClosed, code: code, reason: reason}
		if code == wire.CloseSlow {
			c.cause.how = endSlow
		}
	}
	c.ready = nil
	c.forget()
	if !c.ended { // else finish would not stop it
		c.g.wg.Add(1)
		c.patience = time.AfterFunc(c.g.opts.Limits.Write, func() {
			defer c.g.wg.Done()
			c.kill(os.ErrDeadlineExceeded)
		})
	}
}

// calm stops the timer that close has started. The lock is held.
func (c *conn) calm() {
	if c.patience != nil && c.patience.Stop() {
		c.g.wg.Done()
	}
}

// writer starts a goroutine that writes what there is. The lock is held, and the connection
// has not ended, so that nobody can have waited for all goroutines yet.
func (c *conn) writer() {
	c.g.wg.Go(func() {
		s := c.g.scratch.Get().(*scratch)
		defer c.g.putScratch(s)
		c.flush(s, true)
	})
}

// offer hands over a subscription that has something to be read, and reports whether
// the caller has become the writer, and has to call flush.
func (c *conn) offer(s *sub) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead.Load() || c.closing != 0 || c.ended {
		return false
	}
	c.ready = append(c.ready, s)
	if c.writing {
		return false
	}
	c.writing = true
	return true
}

// flush writes all there is to be written. There is one writer for a connection at a
// time: whoever finds that there is none becomes it, and what others have meanwhile it
// writes for them. So nobody waits for a slow connection but one goroutine.
//
// Who has other things to do than to write hands over to a goroutine when it comes to
// subscriptions: there may be news of them without end.
func (c *conn) flush(s *scratch, writer bool) {
	for {
		var err error
		c.mu.Lock()
		switch {
		case c.dead.Load():
			c.out, c.ready, c.writing = nil, nil, false
			c.mu.Unlock()
			return
		case len(c.out) > 0:
			out := c.out
			c.out = nil
			c.mu.Unlock()
			err = c.write(out)
		case c.closing != 0:
			// Still the writer, and for ever: nothing follows a close frame.
			code, reason := c.closing, c.reason
			c.calm() // from here on it is the reader that does not stay
			c.net.SetReadDeadline(time.Now().Add(lingering))
			c.mu.Unlock()
			if _, err := c.net.Write(appendClose(s.buf[:0], code, reason)); err != nil {
				c.kill(err)
			}
			return
		case len(c.ready) > 0 && !writer:
			c.writer()
			c.mu.Unlock()
			return
		case len(c.ready) > 0:
			sub := c.ready[0]
			c.ready = c.ready[:copy(c.ready, c.ready[1:])]
			c.mu.Unlock()
			err = c.serve(sub, s)
		default:
			c.writing = false
			c.mu.Unlock()
			return
		}
		if err != nil {
			c.kill(err)
		}
	}
}

// write writes whole frames.
func (c *conn) write(b []byte) error {
	if c.g.opts.Compress {
		return c.writeCompressed(b)
	}
	for len(b) > 0 {
		n := cut(b)
		if _, err := c.net.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// writeCompressed has the library frame what is in frames again.
func (c *conn) writeCompressed(b []byte) error {
	var message []byte
	for len(b) > 0 {
		header, n := frameSize(b)
		last := b[0]&final != 0
		payload := b[header : header+n]
		b = b[header+n:]
		if !last || message != nil {
			message = append(message, payload...)
			payload = message
		}
		if last {
			if err := c.ws.Write(context.Background(), websocket.MessageText, payload); err != nil { // netConn has the timeout
				return err
			}
			message = nil
		}
	}
	return nil
}

// serve reads what there is for a subscription, writes it, and has it wait for more.
func (c *conn) serve(s *sub, w *scratch) error {
	live := s.live.Load()
	if live == nil {
		return nil // closed meanwhile
	}
	b := &w.batch
	if err := live.Read(b, budget); err != nil { // the Hub was closed, or the subscription
		if s.live.Load() != nil {
			c.drop(s, wire.Unavailable, "the server has no more of it")
		}
		return nil
	}
	if b.Empty() && b.To == s.at {
		backplane.Arm(c.g.poller, live)
		return nil
	}
	frame := s.frames(b, w)
	if err := c.write(frame); err != nil {
		return err
	}
	s.at = b.To
	c.g.count.messages.Add(uint64(len(b.Entries)))
	backplane.Arm(c.g.poller, live)
	return nil
}

// frames returns the frames for what was read.
func (s *sub) frames(b *backplane.Batch, w *scratch) []byte {
	if b.Reset == nil && len(b.Ephemeral) == 0 {
		return s.feed.entries(s.at, b, w)
	}
	g := s.c.g
	buf := w.buf[:0]
	if r := b.Reset; r != nil {
		g.count.resets.Add(1)
		g.trace.Reset(s.c.info(), s.topic, r.Reason, r.Missed)
		s.at = b.To
		if len(b.Entries) > 0 {
			first := &b.Entries[0]
			s.at = replay.Position{Epoch: first.Pos.Epoch, Seq: first.Pos.Seq - 1, Tag: first.Prev}
		}
		f := wire.Frame{Type: wire.Reset, Topic: s.topic, Reason: string(r.Reason), Missed: r.Missed, Base: s.at}
		if r.Snapshot != nil {
			f.Payload = wire.Fit(s.feed.kind, r.Snapshot)
		}
		w.text = f.Append(w.text[:0])
		buf = appendMessage(buf, w.text)
	}
	if len(b.Entries) > 0 || b.To != s.at {
		w.buf = buf // entries does not use it
		buf = append(buf, s.feed.entries(s.at, b, w)...)
	}
	for _, data := range b.Ephemeral {
		buf = append(buf, s.feed.ephemeral(data, w)...)
	}
	w.buf = buf
	return buf
}
