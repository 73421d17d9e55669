package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/backplane/gateway"
	"github.com/holdfast-ws/holdfast/heartbeat"
)

// room is the one topic of the chat.
const room = "room"

// anyPort is the address of a node that has not lived yet.
const anyPort = "127.0.0.1:0"

// States of a node.
const (
	up       = "up"
	draining = "draining"
	down     = "down"
)

// A node is a server of the chat. It would be a process of its own, and for the clients
// it is: killed, it leaves nothing behind but what is in the backplane.
type node struct {
	name string
	addr string          // the same in every life
	open opener          // what it stands on
	ctx  context.Context // ends with the cluster
	wg   *sync.WaitGroup

	mu    sync.Mutex // guards all below
	state string
	life  *life // nil while down
}

// An opener connects a node to the backplane.
type opener func() (backplane.Backplane, func() error, error)

// A life of a node lasts from its start to its end, however that comes.
type life struct {
	listener *listener
	server   *http.Server
	gw       *gateway.Gateway
	hub      *backplane.Hub
	close    func() error // of the backplane
	served   chan struct{}
	once     sync.Once
}

// begin starts a node.
func (n *node) begin() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil || n.state == up {
		return n.ctx.Err()
	}
	tcp, err := net.Listen("tcp", n.addr)
	if err != nil {
		return err
	}
	if n.addr == anyPort {
		n.addr = tcp.Addr().String() // before anybody else knows the node
	}
	plane, closePlane, err := n.open()
	if err != nil {
		tcp.Close()
		return err
	}
	l := &life{listener: &listener{Listener: tcp, conns: map[*conn]struct{}{}}, close: closePlane, served: make(chan struct{})}
	l.hub = backplane.New(plane, &backplane.Options{Limits: limits})
	l.gw, err = gateway.New(l.hub, &gateway.Options{
		Authorize: authorize,
		Node:      n.name,
		Drain:     2 * time.Second,
		// Who is gone without a word is found while one looks.
		Heartbeat: heartbeat.Config{Interval: 3 * time.Second, Timeout: 1500 * time.Millisecond},
	})
	if err != nil {
		tcp.Close()
		return errors.Join(err, l.hub.Close(n.ctx), l.close())
	}
	mux := http.NewServeMux()
	mux.Handle("GET /ws", l.gw)
	l.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		defer close(l.served)
		l.server.Serve(l.listener)
	}()
	n.state, n.life = up, l
	return nil
}

// authorize lets everybody in who has a name, and speak in the room in that name only.
// A real server would look at who somebody is.
func authorize(_ context.Context, a gateway.Access) (gateway.Grant, error) {
	switch a.Action {
	case gateway.Connect:
		if name := a.Request.URL.Query().Get("user"); valid(name) && isToken(a.Token, name) {
			return gateway.Grant{User: name}, nil
		}
	case gateway.Renew:
		if isToken(a.Token, a.User) {
			return gateway.Grant{}, nil
		}
	case gateway.Subscribe:
		if a.Topic == room {
			return gateway.Grant{}, nil
		}
	case gateway.Publish:
		// Not into a struct: for its field From, "FROM" would do, which is another name
		// for the page.
		var m map[string]any
		if a.Topic == room && json.Unmarshal(a.Message.Data, &m) == nil && m["from"] == a.User {
			return gateway.Grant{}, nil
		}
	}
	return gateway.Grant{}, gateway.ErrForbidden
}

// isToken reports whether a token is that of a name: the name, also escaped as in a URL,
// because not everything may stand in a header.
func isToken(token, name string) bool { return token == name || token == url.PathEscape(name) }

// valid reports whether somebody may have this name: as proper in page/chat.js, which may
// know newer characters than we do. So what is not assigned is let through.
func valid(name string) bool {
	n := utf8.RuneCountInString(name)
	unprintable := func(r rune) bool {
		return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co, unicode.Cs) || unicode.Is(unicode.Z, r) && r != ' ' || r == utf8.RuneError
	}
	return n >= 1 && n <= 32 && strings.TrimSpace(name) == name && !strings.ContainsFunc(name, unprintable)
}

// kill ends a node as kill -9 does: its listener and its connections are gone, without a
// goodbye, and so is what it had in memory. It comes back after a time. It reports whether
// there was anything to kill.
func (n *node) kill(pause time.Duration) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.life
	if l == nil || n.ctx.Err() != nil {
		return false // it is dead already
	}
	n.state, n.life = down, nil
	l.listener.reset()
	n.wg.Go(func() {
		l.end()
		n.revive(pause)
	})
	return true
}

// settle waits for whoever is about to end the node. Once its context has ended nobody
// begins to.
func (n *node) settle() {
	n.mu.Lock()
	defer n.mu.Unlock()
}

// drain has a node say goodbye to its clients and end. It comes back after a time. It
// reports whether there was anything to drain.
func (n *node) drain(pause time.Duration) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.state != up || n.ctx.Err() != nil {
		return false
	}
	l := n.life
	n.state = draining // the front sends nobody here any more
	n.wg.Go(func() {
		ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
		defer cancel()
		l.gw.Shutdown(ctx)
		n.mu.Lock()
		mine := n.life == l // it was not killed meanwhile
		if mine {
			n.state, n.life = down, nil
		}
		n.mu.Unlock()
		if mine {
			l.end()
			n.revive(pause)
		}
	})
	return true
}

// revive starts a node after a time.
func (n *node) revive(pause time.Duration) {
	for backoff.Sleep(n.ctx, pause) == nil {
		err := n.begin()
		if err == nil || n.ctx.Err() != nil {
			return
		}
		log.Printf("%s does not start: %v", n.name, err)
		pause = 500 * time.Millisecond
	}
}

// status returns the state, and how many connections there are.
func (n *node) status() (state string, connections int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.life != nil {
		connections = n.life.gw.Stats().Connections
	}
	return n.state, connections
}

// close shuts a node down for good, within ctx. The node's own context has ended.
func (n *node) close(ctx context.Context) {
	n.mu.Lock()
	l := n.life
	n.state, n.life = down, nil
	n.mu.Unlock()
	if l != nil {
		l.gw.Shutdown(ctx)
		l.end()
	}
}

// end ends a life, at once: whoever is connected is cut off.
func (l *life) end() {
	l.once.Do(func() {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		l.listener.reset()
		l.server.Close()
		<-l.served
		l.gw.Shutdown(now)
		l.hub.Close(now)
		l.close()
	})
}

// A listener knows its connections, and can reset all of them.
type listener struct {
	net.Listener

	mu    sync.Mutex // guards all below
	dead  bool
	conns map[*conn]struct{}
}

type conn struct {
	*net.TCPConn
	from *listener
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		tcp, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{tcp.(*net.TCPConn), l}
		l.mu.Lock()
		dead := l.dead
		if !dead {
			l.conns[c] = struct{}{}
		}
		l.mu.Unlock()
		if !dead {
			return c, nil
		}
		reset(c.TCPConn)
	}
}

// reset closes the listener and all its connections.
func (l *listener) reset() {
	l.Listener.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = true
	for c := range l.conns {
		reset(c.TCPConn)
	}
	clear(l.conns)
}

func (c *conn) Close() error {
	c.from.mu.Lock()
	delete(c.from.conns, c)
	c.from.mu.Unlock()
	return c.TCPConn.Close()
}

// reset closes a connection so that the other side hears of an abrupt end.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}
