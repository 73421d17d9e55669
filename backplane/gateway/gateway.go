package gateway

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/heartbeat"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// A Gateway is an [http.Handler] that serves a Hub to WebSocket clients. Make one with
// New, and Shutdown it before the Hub is closed.
type Gateway struct {
	hub     *backplane.Hub
	opts    Options
	trace   Trace // without nils
	origins []origin
	log     *slog.Logger
	monitor *heartbeat.Monitor
	poller  *replay.Poller
	pool    pool
	scratch sync.Pool // of *scratch

	ctx    context.Context // of all that runs
	cancel context.CancelFunc
	wg     sync.WaitGroup
	count  counters

	mu       sync.Mutex // guards all below; only locks of a conn may be taken under it
	draining bool
	drained  chan struct{} // closed when draining and no connection is left
	window   time.Duration // over which clients are told to come back, while draining
	conns    map[*conn]struct{}
	users    map[string]int // connections of each
	feeds    map[string]*feed
}

// New returns a gateway to hub, which remains the caller's to close, after the
// gateway's Shutdown. The error is an [*OptionError], or a [*heartbeat.ConfigError].
func New(hub *backplane.Hub, opts *Options) (*Gateway, error) {
	g := &Gateway{
		hub:     hub,
		poller:  replay.NewPoller(),
		conns:   map[*conn]struct{}{},
		users:   map[string]int{},
		feeds:   map[string]*feed{},
		drained: make(chan struct{}),
	}
	if hub == nil {
		return nil, &OptionError{"hub", "is nil"}
	}
	if opts != nil {
		g.opts = *opts
	}
	if err := g.opts.fill(); err != nil {
		return nil, err
	}
	for _, s := range g.opts.Origins {
		o, err := parseOrigin(s, true)
		if err != nil {
			return nil, &OptionError{"Origins", strconv.Quote(s) + " " + err.Error()}
		}
		g.origins = append(g.origins, o)
	}
	g.log = g.opts.Logger
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.guardCallbacks()
	hb := g.opts.Heartbeat
	hb.OnDead = func(p *heartbeat.Peer, v heartbeat.Verdict) {
		g.count.dead.Add(1)
		g.log.Info("connection found dead", "conn", p.Value.(*conn).id, "reason", v.Reason, "silent", v.Silent, "rtt", v.RTT)
	}
	var err error
	if g.monitor, err = heartbeat.New(hb); err != nil {
		return nil, err
	}
	if g.opts.Heartbeat.Interval == 0 {
		g.opts.Heartbeat.Interval = heartbeat.DefaultInterval
	}
	if g.opts.Heartbeat.Timeout == 0 {
		g.opts.Heartbeat.Timeout = min(heartbeat.DefaultTimeout, g.opts.Heartbeat.Interval*3/4)
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.scratch.New = func() any { return new(scratch) }
	g.pool.start(g)
	g.wg.Go(g.janitor)
	return g, nil
}

// guardCallbacks sees to it that a panic in one of them ends what it was called for, and
// not the process, and that all of Trace can be called.
func (g *Gateway) guardCallbacks() {
	guard := func(what string) {
		if p := recover(); p != nil {
			g.log.Error(what+" panicked", "panic", clean(fmt.Sprint(p)))
		}
	}
	payload, lag := g.opts.Payload, g.opts.Lag
	g.opts.Payload = func(topic string) (p Payload) { // without one, JSON if it is
		defer guard("Payload")
		return payload(topic)
	}
	g.opts.Lag = func(topic string) (l *replay.Lag) {
		defer guard("Lag")
		return lag(topic)
	}
	if wake := g.opts.Heartbeat.OnWake; wake != nil {
		g.opts.Heartbeat.OnWake = func(away time.Duration) {
			defer guard("OnWake")
			wake(away)
		}
	}
	var t Trace
	if g.opts.Trace != nil {
		t = *g.opts.Trace
	}
	g.trace = Trace{
		Connected: func(c Info) {
			defer guard("Trace.Connected")
			if t.Connected != nil {
				t.Connected(c)
			}
		},
		Disconnected: func(c Info, err error) {
			defer guard("Trace.Disconnected")
			if t.Disconnected != nil {
				t.Disconnected(c, err)
			}
		},
		Subscribed: func(c Info, topic string, resumed bool) {
			defer guard("Trace.Subscribed")
			if t.Subscribed != nil {
				t.Subscribed(c, topic, resumed)
			}
		},
		Reset: func(c Info, topic string, reason replay.Reason, missed uint64) {
			defer guard("Trace.Reset")
			if t.Reset != nil {
				t.Reset(c, topic, reason, missed)
			}
		},
		Published: func(c Info, topic string, r backplane.Receipt, err error) {
			defer guard("Trace.Published")
			if t.Published != nil {
				t.Published(c, topic, r, err)
			}
		},
	}
}

// ServeHTTP makes a WebSocket of a request and serves its client. It returns after the
// client's hello was answered; the connection lives on.
//
// What cannot be is refused with a status and a text: 400 without the subprotocol or with
// headers of a handshake that are wrong, 403 for a page of another origin, 405 for another
// method than GET, 426 for what is no WebSocket handshake, 501 behind middleware whose
// writers have no Unwrap, 505 over HTTP/2, and 503 with Retry-After while there is no room,
// or the server shuts down.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, why string) {
		g.count.refused.Add(1)
		http.Error(w, why, status)
	}
	switch {
	case r.ProtoMajor > 1:
		refuse(http.StatusHTTPVersionNotSupported, "A WebSocket needs HTTP/1.1 here, not HTTP/2.")
		return
	case !hasToken(r.Header, "Upgrade", "websocket"):
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		refuse(http.StatusUpgradeRequired, "This is for WebSockets.")
		return
	case !g.allowed(r):
		hint := ""
		if onlyScheme(r) {
			hint = " It differs from the server's own in the scheme alone: a proxy that ends TLS has to set X-Forwarded-Proto, or the origin has to be listed."
		}
		g.log.Info("page of another origin refused", "origin", clean(r.Header.Get("Origin")), "host", clean(r.Host), "hint", strings.TrimSpace(hint))
		refuse(http.StatusForbidden, "Pages of this origin may not connect."+hint)
		return
	case !hasToken(r.Header, "Sec-WebSocket-Protocol", wire.Subprotocol):
		refuse(http.StatusBadRequest, "The client has to ask for the subprotocol "+wire.Subprotocol+".")
		return
	case !canHijack(w):
		g.log.Error("middleware in front of the gateway hides the connection: its ResponseWriter has neither Hijack nor Unwrap")
		refuse(http.StatusNotImplemented, "Something in front of this handler hides Hijack, without which there is no WebSocket: give the ResponseWriter that wraps the other an Unwrap method.")
		return
	}
	c := &conn{g: g, id: strings.ToLower(rand.Text()[:10])}
	if wait := g.enter(c); wait > 0 {
		// Not all the same: those refused together should not come back together.
		w.Header().Set("Retry-After", strconv.Itoa(1+mathrand.IntN(int(wait/time.Second)+1)))
		refuse(http.StatusServiceUnavailable, "No room for another connection now; come back later.")
		return
	}
	defer g.wg.Done() // the place that enter took
	defer func() {
		if p := recover(); p != nil {
			c.finish(fmt.Errorf("gateway: panic: %v", p))
			panic(p)
		}
	}()
	if err := c.accept(w, r); err != nil {
		c.finish(err)
		return
	}
	if err := c.greet(r); err != nil {
		c.finish(err)
		return
	}
	g.wg.Go(c.loop)
}

// enter counts a connection in, or returns after how long to come back.
func (g *Gateway) enter(c *conn) (wait time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.draining {
		return max(g.window, time.Second)
	}
	if l := g.opts.Limits.Connections; l >= 0 && len(g.conns) >= l {
		return 10 * time.Second
	}
	g.conns[c] = struct{}{}
	g.wg.Add(1)
	return 0
}

// enterUser counts a connection of a user in. If that cannot be it returns a close code
// and why.
func (g *Gateway) enterUser(c *conn, user string) (status int, why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	gone := c.gone
	c.gone = nil
	if slices.Contains(gone, user) {
		return wire.CloseUnauthorized, "logged out"
	}
	if len(gone) > maxGone { // not all of them were noted
		return wire.CloseTryLater, "too many were logged out meanwhile; try again"
	}
	if l := g.opts.Limits.PerUser; user != "" && l >= 0 && g.users[user] >= l {
		return wire.CloseTooManyOfUser, "too many connections of this user"
	}
	if user != "" {
		g.users[user]++
	}
	c.user, c.known = user, true
	return 0, ""
}

// maxGone bounds conn.gone.
const maxGone = 64

// remove undoes enter and enterUser.
func (g *Gateway) remove(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.conns[c]; !ok {
		return
	}
	delete(g.conns, c)
	if c.user != "" {
		if g.users[c.user]--; g.users[c.user] == 0 {
			delete(g.users, c.user)
		}
	}
	if g.draining && len(g.conns) == 0 {
		close(g.drained)
	}
}

// list returns the connections of a user, or all if all is true.
func (g *Gateway) list(user string, all bool) (conns []*conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		if all || c.known && c.user == user {
			conns = append(conns, c)
		}
	}
	return conns
}

// Disconnect ends all connections of a user here, as a logout does, and returns how
// many there were. The clients are told that their credentials no longer count: they
// come back only with new ones. It does not wait for them. What they have sent and is
// not under way is not carried out.
func (g *Gateway) Disconnect(user string) int {
	g.mu.Lock()
	for c := range g.conns {
		// Authorize may just have said that this is the user, who still was logged in then.
		if c.asked && !c.known && len(c.gone) <= maxGone {
			c.gone = append(c.gone, user)
		}
	}
	g.mu.Unlock()
	conns := g.list(user, false)
	for _, c := range conns {
		c.dismiss(wire.CloseUnauthorized, "logged out", nil)
	}
	return len(conns)
}

// canHijack reports whether a writer, or one that it wraps, has a method Hijack. One
// finds out too late by calling it: the client was told by then that it has a WebSocket.
func canHijack(w http.ResponseWriter) bool {
	for {
		switch t := w.(type) {
		case http.Hijacker:
			return true
		case interface{ Unwrap() http.ResponseWriter }:
			w = t.Unwrap()
		default:
			return false
		}
	}
}

// hasToken reports whether a header that is a list has a token in it.
func hasToken(h http.Header, name, token string) bool {
	return slices.ContainsFunc(h.Values(name), func(v string) bool {
		for part := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(part), token) {
				return true
			}
		}
		return false
	})
}

// clean makes text of a client fit for a log: quoted, and not long.
func clean(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "…"
	}
	s = strconv.QuoteToASCII(s)
	return s[1 : len(s)-1]
}

// A Stats is a snapshot of a gateway. Counts are since it was made, but for the first
// group.
type Stats struct {
	Connections   int // now, those included that have not said hello
	Subscriptions int // now, those included that wait for the Hub
	Workers       int // goroutines that write now, more than usual while some are stuck

	Accepted        uint64 // handshakes that became connections
	Refused         uint64 // and those that did not
	Dead            uint64 // connections that the heartbeat ended
	Slow            uint64 // connections dropped because they took nothing more
	FramesIn        uint64 // from clients, those refused included
	BadFrames       uint64 // answered with an error
	TooFast         uint64 // frames refused for their rate
	Messages        uint64 // handed to connections, each for each
	Encoded         uint64 // messages encoded; all further uses share that
	Resets          uint64 // told to clients
	Published       uint64 // acknowledged
	NotPublished    uint64 // answered with a nack
	AuthorizeErrors uint64 // answers that were neither yes nor no
	Revoked         uint64 // living subscriptions that Authorize no longer allowed
}

type counters struct {
	subscriptions                                                       atomic.Int64
	accepted, refused, dead, slow, framesIn, badFrames, tooFast         atomic.Uint64
	messages, encoded, resets, published, notPublished, authorizeErrors atomic.Uint64
	revoked                                                             atomic.Uint64
}

// Stats returns a snapshot.
func (g *Gateway) Stats() Stats {
	c := &g.count
	g.mu.Lock()
	connections := len(g.conns)
	g.mu.Unlock()
	return Stats{
		Connections: connections, Subscriptions: int(c.subscriptions.Load()), Workers: g.pool.size(),
		Accepted: c.accepted.Load(), Refused: c.refused.Load(), Dead: c.dead.Load(), Slow: c.slow.Load(),
		FramesIn: c.framesIn.Load(), BadFrames: c.badFrames.Load(), TooFast: c.tooFast.Load(),
		Messages: c.messages.Load(), Encoded: c.encoded.Load(), Resets: c.resets.Load(),
		Published: c.published.Load(), NotPublished: c.notPublished.Load(),
		AuthorizeErrors: c.authorizeErrors.Load(), Revoked: c.revoked.Load(),
	}
}

// A Trace is told what happens. Its functions may be nil; they run on goroutines of the
// gateway, must not block, and must not call Shutdown.
type Trace struct {
	// Connected: a client was welcomed.
	Connected func(Info)
	// Disconnected: its connection has ended; err says why. [websocket.CloseStatus] of it is
	// the close code, if there was one; the text says whose.
	Disconnected func(c Info, err error)
	// Subscribed: a subscription was made, on a new place or resumed.
	Subscribed func(c Info, topic string, resumed bool)
	// Reset: a subscriber was told of a gap.
	Reset func(c Info, topic string, reason replay.Reason, missed uint64)
	// Published: a publish was answered.
	Published func(c Info, topic string, receipt backplane.Receipt, err error)
}

// An Info says which connection something is about.
type Info struct {
	ID    string // chosen by the gateway, and told to the client
	User  string // as in the Grant, and so is Value
	Value any
}

func (c *conn) info() Info { return Info{c.id, c.user, c.value} }
