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
	pacer  pacer

	mu         sync.Mutex // guards all below; only locks of a conn may be taken under it
	draining   bool
	drained    chan struct{} // closed when draining and no connection is left
	window     time.Duration // over which clients are told to come back, while draining
	drainSince time.Time
	conns      map[*conn]struct{}
	users      map[string]int // connections of each
	feeds      map[string]*feed
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
		pacer:   pacer{paces: map[string]*pace{}},
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
	var err error
	if g.monitor, err = heartbeat.New(g.opts.Heartbeat); err != nil {
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
// client's hello was answered; the connection lives on. The answer to the handshake has the
// headers that middleware has set before, and is written to the connection itself:
// middleware does not see its status.
//
// What cannot be is refused with a status and a text: 400 without the subprotocol or with
// headers of a handshake that are wrong, 403 for a page of another origin, 405 for another
// method than GET, 426 for what is no WebSocket handshake, has lost its Upgrade to a proxy, or comes as HTTP/1.0,
// 501 behind middleware whose writers have no Unwrap or whose Hijack fails, 505 over HTTP/2,
// and 503 with Retry-After while there is no room, or the server shuts down. The log says so,
// too, and what to do.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.ProtoMajor > 1:
		hint := "have the proxy speak HTTP/1.1 to this server, or serve without HTTP/2"
		g.note(info, "handshake refused: it is not HTTP/1.1", "proto", clean(r.Proto), "host", clean(r.Host), "hint", hint)
		g.refuse(w, http.StatusHTTPVersionNotSupported, "A WebSocket needs HTTP/1.1 here, not HTTP/2.")
		return
	case !hasToken(r.Header, "Upgrade", "websocket"), !hasToken(r.Header, "Connection", "Upgrade"):
		upgradeRequired(w)
		if r.Header.Get("Sec-WebSocket-Key") == "" { // a browser's address bar, or a proxy that leaves out all of it
			g.note(debug, "handshake refused: it is none", "host", clean(r.Host))
			g.refuse(w, http.StatusUpgradeRequired, "This is for WebSockets. If it was one, a proxy in between does not pass on its headers Upgrade and Connection.")
			return
		}
		g.note(warn, "handshake refused: a proxy does not pass on Upgrade", "host", clean(r.Host), "upgrade", clean(r.Header.Get("Upgrade")), "connection", clean(r.Header.Get("Connection")),
			"hint", "have it pass on the headers Upgrade and Connection; nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade")
		g.refuse(w, http.StatusUpgradeRequired, "A proxy in front of this server does not pass on the headers Upgrade and Connection of a WebSocket handshake.")
		return
	case !r.ProtoAtLeast(1, 1):
		upgradeRequired(w)
		g.note(warn, "handshake refused: a proxy speaks HTTP/1.0", "proto", clean(r.Proto), "host", clean(r.Host), "hint", "have it speak HTTP/1.1 to this server; nginx: proxy_http_version 1.1")
		g.refuse(w, http.StatusUpgradeRequired, "A proxy in front of this server speaks "+r.Proto+" to it. A WebSocket needs HTTP/1.1.")
		return
	case !g.allowed(r):
		text, hint := foreign(r)
		g.note(info, "handshake refused: page of another origin", "origin", clean(r.Header.Get("Origin")), "host", clean(r.Host), "scheme", clean(ownScheme(r)), "hint", hint)
		g.refuse(w, http.StatusForbidden, strings.TrimSpace("Pages of this origin may not connect. "+text))
		return
	case !hasToken(r.Header, "Sec-WebSocket-Protocol", wire.Subprotocol):
		g.note(info, "handshake refused: another subprotocol", "asked", clean(r.Header.Get("Sec-WebSocket-Protocol")), "hint", "its clients ask for "+wire.Subprotocol)
		g.refuse(w, http.StatusBadRequest, "The client has to ask for the subprotocol "+wire.Subprotocol+".")
		return
	}
	c := &conn{g: g, id: strings.ToLower(rand.Text()[:10])}
	if wait, why := g.enter(c); wait > 0 {
		// Not all the same: those refused together should not come back together.
		w.Header().Set("Retry-After", strconv.Itoa(1+mathrand.IntN(int(wait/time.Second)+1)))
		g.refuse(w, http.StatusServiceUnavailable, "No room for another connection now ("+why+"); come back later.")
		return
	}
	defer g.wg.Done() // the place that enter took
	defer func() {
		if p := recover(); p != nil {
			c.finish(fmt.Errorf("%w: %v", errPanic, p))
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

// upgradeRequired sets the headers of an answer with status 426.
func upgradeRequired(w http.ResponseWriter) {
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Upgrade", "websocket")
	// Proxies pass it on though they pass on no Upgrade: so clients know whose answer it is.
	w.Header().Set("Sec-WebSocket-Protocol", wire.Subprotocol)
}

// enter counts a connection in, or returns after how long to come back, and why.
func (g *Gateway) enter(c *conn) (wait time.Duration, why string) {
	g.mu.Lock()
	l := g.opts.Limits.Connections
	full := l >= 0 && len(g.conns) >= l
	switch {
	case g.draining:
		wait, why = max(g.window, time.Second), "the server shuts down"
	case full:
		wait, why = 10*time.Second, fmt.Sprintf("%d, gateway.Limits.Connections", l)
	default:
		g.conns[c] = struct{}{}
		g.wg.Add(1)
	}
	g.mu.Unlock()
	if wait > 0 && full {
		g.note(warn, "a limit keeps clients out", "limit", l, "option", "gateway.Limits.Connections")
	}
	return wait, why
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

// A Stats is a snapshot of a gateway. Counts are since it was made, but for the first
// group.
type Stats struct {
	Connections   int // now, those included that have not said hello
	Subscriptions int // now, those included that wait for the Hub
	Workers       int // goroutines that write now, more than usual while some are stuck

	Accepted uint64 // handshakes that became connections
	Refused  uint64 // and those that did not

	// Why accepted connections have ended: each counts once, for what came first.
	Closed uint64 // by the server: a logout, a drain, a frame that is none
	Left   uint64 // by the client, with a close frame
	Lost   uint64 // by the network
	Slow   uint64 // dropped because they took nothing more
	Dead   uint64 // dropped by the heartbeat

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
	accepted, refused, framesIn, badFrames, tooFast                     atomic.Uint64
	messages, encoded, resets, published, notPublished, authorizeErrors atomic.Uint64
	revoked                                                             atomic.Uint64
	ends                                                                [ways]atomic.Uint64
}

// Stats returns a snapshot.
func (g *Gateway) Stats() Stats {
	c := &g.count
	g.mu.Lock()
	connections := len(g.conns)
	g.mu.Unlock()
	return Stats{
		Connections: connections, Subscriptions: int(c.subscriptions.Load()), Workers: g.pool.size(),
		Accepted: c.accepted.Load(), Refused: c.refused.Load(),
		Closed: c.ends[endClosed].Load(), Left: c.ends[endLeft].Load(), Lost: c.ends[endLost].Load(), Slow: c.ends[endSlow].Load(), Dead: c.ends[endDead].Load(),
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
	// Disconnected: its connection has ended; err says why, as Stats counts it. The text says
	// whether it was closed by the server or the client, lost, slow or dead.
	// [websocket.CloseStatus] of it is the close code, if there was one, and 4001 for one that
	// was slow, whether its client could be told or not.
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
