package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/heartbeat"
)

// What other zero fields of [Options] stand for, beyond the defaults of packages backoff
// and heartbeat.
const (
	DefaultDialTimeout = 20 * time.Second
	DefaultReadLimit   = 32 << 10
)

// maxDialTimeout is how far the backoff's window may lengthen a dial's timeout.
const maxDialTimeout = 2 * time.Minute

// A Dial is an attempt to connect that is about to be made.
type Dial struct {
	URL     string      // one of those given; Prepare may change it, query included
	Header  http.Header // of the request, empty and not nil
	Token   string      // if not empty, sent as "Authorization: Bearer"
	Refresh bool        // a server has refused the credentials of the last attempt that reached one: get new ones
	Attempt int         // 1 is the first since the loop began, or since the last session
}

// Sessions connects to a WebSocket server and, whenever the connection is lost, connects
// again, after a delay. The body of the range loop over it is the session: it reads and
// writes, and returns to the loop when it has got an error, which it should pass to
// [Session.End]. The session is over then: its connection is closed.
//
// The URL begins with ws, wss, http or https. Options may be nil.
//
// The loop yields a session, or a nil session and an error:
//
//   - a [*DialError] whose Final is not set: an attempt has failed. There will be another,
//     after its Wait, if the loop goes on.
//   - anything else is the last error, and says why the loop ends: a DialError whose Final
//     is set, an [*EndError] after a session, an [*OptionError] before anything was done, or
//     the [context.Cause] of ctx.
//
// So a body that does nothing but continue on errors is right, and the last error is the
// one to keep. A session that was lost is not an error of its own; the body knows.
//
// When ctx ends, so do the wait, the dial or the session that it finds, and the loop, as
// soon as the body returns. Leaving the loop ends everything at once: see the guarantees
// of the package. A connection that still works is then closed with 1000, and the server
// has a quarter of a second to answer that.
//
// The sequence may be ranged over again, which begins anew.
func Sessions(ctx context.Context, url string, opts *Options) iter.Seq2[*Session, error] {
	l, err := newSessions(url, opts)
	if err == nil {
		err = opts.onlyForNew()
	}
	if err != nil {
		return func(yield func(*Session, error) bool) { yield(nil, err) }
	}
	return l.all(ctx)
}

// sessions is what [Sessions] was given, checked and with defaults. It is also for the
// client of a gateway, which sets the fields at the end before it calls all.
type sessions struct {
	Options
	urls   []string
	client *http.Client

	// nudge, if not nil, forces a fresh connection when something is received from it: a
	// wait or a session ends, and so does a dial that is not quite new. Give it a buffer of one
	// and send without waiting.
	nudge <-chan struct{}

	// needReady says that there is no session before Ready: one that ends without it is a
	// failed attempt for the backoff.
	needReady bool

	wall func() time.Time // the wall clock
}

func newSessions(url string, opts *Options) (*sessions, error) {
	l := &sessions{wall: func() time.Time { return time.Now().Round(0) }}
	if opts != nil {
		l.Options = *opts
	}
	l.URLs = nil
	l.urls = []string{url}
	if opts != nil {
		l.urls = append(l.urls, opts.URLs...)
	}
	for i, u := range l.urls {
		field := "url"
		if i > 0 {
			field = "URLs[" + strconv.Itoa(i-1) + "]"
		}
		if err := checkURL(field, u); err != nil {
			return nil, err
		}
	}
	l.Subprotocols = slices.Clone(l.Subprotocols)
	switch {
	case l.DialTimeout < 0:
		return nil, &OptionError{"DialTimeout", "is negative"}
	case l.DialTimeout == 0:
		l.DialTimeout = DefaultDialTimeout
	}
	if l.ReadLimit == 0 {
		l.ReadLimit = DefaultReadLimit
	}
	if l.Decide == nil {
		l.Decide = Decide
	}
	if l.Trace == nil {
		l.Trace = &Trace{}
	}
	if l.Heartbeat.Interval >= 0 {
		if _, err := heartbeat.New(l.Heartbeat); err != nil {
			var ce *heartbeat.ConfigError
			if errors.As(err, &ce) {
				return nil, &OptionError{"Heartbeat." + ce.Field, fmt.Sprintf("of %v is %s", ce.Value, ce.Reason)}
			}
			return nil, &OptionError{"Heartbeat", err.Error()}
		}
	}
	l.client = handshaker(l.HTTPClient)
	return l, nil
}

// checkURL says what is wrong with a URL, without repeating it.
func checkURL(field, text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return &OptionError{field, "cannot be parsed"}
	case u.Scheme != "ws" && u.Scheme != "wss" && u.Scheme != "http" && u.Scheme != "https":
		return &OptionError{field, "does not begin with ws://, wss://, http:// or https://"}
	case u.Hostname() == "":
		return &OptionError{field, "has no host"}
	}
	return nil
}

// A Session is one connection: the body of the loop over [Sessions]. It is over when the
// body returns to the loop; its methods do nothing then, and those of its Conn return
// errors.
//
// The Conn is the connection itself, with all that github.com/coder/websocket offers. The
// body has to read from it all the time, or pings, pongs and close frames are not seen, and
// the heartbeat ends the session. A context that ends during Read or Write closes the
// connection, and one that has ended before Write does so sometimes. Close takes five
// seconds when the server does not answer: it is enough to return to the loop. A connection
// that ends without a close frame is io.ErrUnexpectedEOF, or an error of the network, wherever
// in a message that is.
type Session struct {
	*websocket.Conn
	URL     string      // scheme, host and path; what follows may be a secret
	Header  http.Header // of the server's answer to the handshake
	Number  int         // of the session in its loop, from 1
	Attempt int         // as in the Dial that made it

	ctx     context.Context
	cancel  context.CancelCauseFunc
	raw     io.Closer // what is below Conn: closing it never waits
	peer    *heartbeat.Peer
	refresh bool // as in the Dial
	workers sync.WaitGroup

	mu    sync.Mutex // guards all below, and the pace of the loop during the session
	over  bool
	since time.Time // when it became usable; zero before
	up    func()    // tells the loop
	hint  time.Duration
	err   error
}

// Context ends with the session: when the connection is found dead, when the context of the
// loop ends, or when the body returns to the loop. Its [context.Cause] says which: a
// [*HeartbeatError], the cause of the loop's context, or an error that says that the session
// is over. It carries the values of the loop's context.
//
// A connection that breaks does not end it by itself: that is an error of Read.
func (s *Session) Context() context.Context { return s.ctx }

// Ready says that the session is usable only now, for example because the server's first
// message has come. How long a session lasted, on which the delay after it depends, is
// counted from here, and otherwise from the handshake. Only the first call counts.
func (s *Session) Ready() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if up := s.up; up != nil && !s.over {
		s.up = nil
		s.since = time.Now()
		up()
	}
}

// Hint says that the server has asked its clients to come back spread over window, for
// example in a goodbye before a restart; see [backoff.Loop.Hint]. It counts also when the
// session was short. Zero or negative withdraws it.
func (s *Session) Hint(window time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.hint = window
	}
}

// End says what ended the session, usually an error of Read, so that it can be decided
// whether to connect again: call it before the body returns to the loop. It does not end
// anything itself. The first error counts; nil does nothing. A session without it is one
// that was lost.
func (s *Session) End(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && !s.over {
		s.err = err
	}
}

// closeGrace is how long a server may take to answer a close frame when the session ends
// while the connection works.
const closeGrace = 250 * time.Millisecond

// release ends all that belongs to the session, and returns when nothing of it runs.
func (s *Session) release(politely bool) {
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	if politely && s.ctx.Err() == nil {
		// Close waits for five seconds and more, and CloseNow then waits for it. What ends
		// both is to take the connection away from under them.
		timer := time.AfterFunc(closeGrace, func() { s.raw.Close() })
		s.Conn.Close(websocket.StatusNormalClosure, "")
		timer.Stop()
	}
	s.cancel(errOver)
	s.raw.Close()
	s.Conn.CloseNow()
	if s.peer != nil {
		s.peer.Stop()
	}
	s.workers.Wait()
}

// end returns what ended the session, which is over.
func (s *Session) end() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	// What the server has said is better than what we have found out.
	if s.err != nil && (websocket.CloseStatus(s.err) != -1 || errors.Is(s.err, websocket.ErrMessageTooBig)) {
		return s.err
	}
	if cause := context.Cause(s.ctx); cause != nil && cause != errOver {
		return cause
	}
	if s.err != nil {
		return s.err
	}
	return errUnsaid
}
