package client

import (
	"context"
	"strconv"
)

// A State is what a [Client] is about.
//
//	           New
//	            │
//	            ▼           welcome
//	   ┌─── Connecting ──────────────▶ Ready ───┐
//	   │        ▲                       │  │    │
//	   │        └── connection lost, ───┘  │    │
//	   │            goodbye, Reconnect     │    │
//	   │ Close                       Close │    │
//	   ▼                                   │    │
//	Closing ◀──────────────────────────────┘    │ final error
//	   │                                        │ (from Connecting, too)
//	   │ all answered, or time is up            │
//	   ▼                                        │
//	Closed ◀────────────────────────────────────┘
//
// While Closing, what waits is still sent, and the connection may be made anew for that.
type State int

const (
	// Connecting: there is no connection that can be used. The client dials, waits for the
	// server's welcome, or for the next attempt.
	Connecting State = iota
	// Ready: the server has welcomed the client. Subscriptions are about to be resumed, and
	// messages sent.
	Ready
	// Closing: Close was called and waits for answers.
	Closing
	// Closed: for good, by Close or by a final error. See [Client.Err].
	Closed
)

// String returns the name of the constant.
func (s State) String() string {
	switch s {
	case Connecting:
		return "Connecting"
	case Ready:
		return "Ready"
	case Closing:
		return "Closing"
	case Closed:
		return "Closed"
	}
	return "State(" + strconv.Itoa(int(s)) + ")"
}

// State returns the state at this moment.
func (c *Client) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// Wait waits until the client is in that state. It returns the context.Cause of ctx when
// ctx is done, and the error of [Client.Err] if the client is closed and want is another
// state, which it then never reaches.
//
// Ready may have passed again when Wait returns: it is not needed before Subscribe, Send
// or Publish, which wait by themselves.
func (c *Client) Wait(ctx context.Context, want State) error {
	for {
		c.mu.Lock()
		state, err, changed := c.state, c.err, c.changed
		c.mu.Unlock()
		switch {
		case state == want:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case state == Closed:
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// Err returns why the client is not connected: nil while it is Ready; the last error of a
// session or dial, or nil if there is none yet, while it is connecting; ErrClosed or the
// final error once it is Closed.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == Closed {
		return c.err
	}
	return c.last
}

// setState changes the state and tells everybody who waits. The lock is held.
func (c *Client) setState(s State) {
	if c.state == s || c.state == Closed || c.state == Closing && s != Closed {
		return
	}
	c.state = s
	c.broadcast()
}

// broadcast wakes everybody who waits for a change. The lock is held.
func (c *Client) broadcast() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// notify tells OnState, until it has told it of Closed.
func (c *Client) notify() {
	for told := Connecting; told != Closed; {
		c.mu.Lock()
		state, changed := c.state, c.changed
		if state != told {
			c.telling = true
			c.broadcast()
		}
		c.mu.Unlock()
		if state == told {
			<-changed
			continue
		}
		told = state
		c.opts.OnState(state)
		c.mu.Lock()
		c.telling = false
		c.mu.Unlock()
	}
}

// Stats are counts since the client was made, but for the first group.
type Stats struct {
	Subscriptions int // now
	Buffered      int // events that applications have not asked for, or only just
	Queued        int // messages that wait to be sent, or for their answer
	QueuedBytes   int

	Sessions uint64 // that the server has welcomed
	Received uint64 // messages, without ephemeral ones
	Resets   uint64 // received
	Pauses   uint64 // of subscriptions whose buffer was full

	// Repairs is how often a subscription was made again because what came did not follow
	// what was there. It should be 0: something is wrong with the server.
	Repairs uint64

	// Garbage is how many sessions ended because the server sent what is no frame.
	Garbage uint64

	// Complaints is how many error frames came that no subscription was the reason of.
	Complaints uint64

	Ephemeral        uint64 // received
	EphemeralDropped uint64 // received and dropped: the buffer was full, or sent in vain

	Published uint64 // answered: committed, duplicate or queued
	Resent    uint64 // messages written again
	Failed    uint64 // messages that failed
}

// Stats returns a snapshot.
func (c *Client) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Subscriptions = len(c.subs)
	for _, sub := range c.subs {
		s.Buffered += sub.held
	}
	s.Queued, s.QueuedBytes = c.n, c.bytes
	return s
}
