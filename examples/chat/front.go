package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-ws/holdfast/backoff"
)

// patience is how long something may take that takes no time if all is well: the answer of
// a node or a Redis, to join, the end of one direction of a connection after the other's.
const patience = 5 * time.Second

// A front spreads connections over the nodes, and cuts those of a user who is to lose
// the network.
type front struct {
	nodes []*node
	hold  time.Duration // for how long the network of somebody is lost
	ctx   context.Context
	wg    sync.WaitGroup

	mu     sync.Mutex // guards all below
	closed bool
	pipes  map[*pipe]struct{}
	held   map[string]int // users whose network is lost, and how many times at once
	turn   int            // so that nodes with as many connections take turns
}

// A pipe is a connection that was let through to a node.
type pipe struct {
	user           string
	node           *node
	client, server *net.TCPConn
	lost           atomic.Bool // the client's side is cut, and the node does not know
}

// ServeHTTP finds a node for a WebSocket.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user := r.URL.Query().Get("user")
	if !valid(user) {
		http.Error(w, "a name of 1 to 32 printable characters is needed: /ws?user=anna", http.StatusBadRequest)
		return
	}
	if r.ContentLength != 0 { // there is no limit to how long that may take
		http.Error(w, "a request for a WebSocket has no body", http.StatusBadRequest)
		return
	}
	if f.lostUser(user) {
		if client, _, err := hijack(w); err == nil {
			reset(client) // there is no network
		}
		return
	}
	for _, n := range f.order() {
		server, in, answer, err := f.ask(r, n)
		switch {
		case err != nil:
			continue
		case answer.StatusCode == http.StatusSwitchingProtocols:
			f.join(w, in, answer, &pipe{user: user, node: n, server: server})
			return
		case answer.StatusCode >= 500: // it is about to end, say
			server.Close()
			continue
		}
		maps.Copy(w.Header(), answer.Header)
		w.WriteHeader(answer.StatusCode)
		io.Copy(w, answer.Body)
		server.Close()
		return
	}
	w.Header().Set("Retry-After", "1")
	http.Error(w, "no node is there; try again", http.StatusServiceUnavailable)
}

// order returns the nodes that live, the one with the fewest connections first.
func (f *front) order() (nodes []*node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	count := map[*node]int{}
	for p := range f.pipes {
		count[p.node]++
	}
	f.turn++
	for i := range f.nodes {
		n := f.nodes[(f.turn+i)%len(f.nodes)]
		if state, _ := n.status(); state == up {
			nodes = append(nodes, n)
		}
	}
	slices.SortStableFunc(nodes, func(a, b *node) int { return count[a] - count[b] })
	return nodes
}

// ask hands a request on to a node and returns the connection with the answer.
func (f *front) ask(r *http.Request, n *node) (*net.TCPConn, *bufio.Reader, *http.Response, error) {
	dialer := net.Dialer{Timeout: patience}
	c, err := dialer.DialContext(r.Context(), "tcp", n.addr)
	if err != nil {
		return nil, nil, nil, err
	}
	server := c.(*net.TCPConn)
	server.SetDeadline(time.Now().Add(patience))
	in := bufio.NewReader(server)
	var answer *http.Response
	if err = r.Write(server); err == nil {
		answer, err = http.ReadResponse(in, r)
	}
	if err != nil {
		server.Close()
		return nil, nil, nil, err
	}
	server.SetDeadline(time.Time{})
	return server, in, answer, nil
}

// join makes a pipe of a client's request and a node's answer to it, and forwards until
// it ends. The node may have said more already, which is in its reader.
func (f *front) join(w http.ResponseWriter, in *bufio.Reader, answer *http.Response, p *pipe) {
	client, out, err := hijack(w)
	if err != nil {
		reset(p.server)
		return
	}
	p.client = client
	f.mu.Lock()
	ok := !f.closed && f.held[p.user] == 0
	if ok {
		f.pipes[p] = struct{}{}
		f.wg.Add(1)
	}
	f.mu.Unlock()
	if !ok {
		reset(client)
		reset(p.server)
		return
	}
	defer f.wg.Done()
	defer func() {
		f.mu.Lock()
		delete(f.pipes, p)
		f.mu.Unlock()
		client.Close()
		p.server.Close()
	}()
	answer.Body = nil // what follows is no body
	if answer.Write(client) != nil && !p.lost.Load() {
		p.cut()
	}
	var wg sync.WaitGroup
	wg.Go(func() { p.upwards(out.Reader) })
	p.downwards(in)
	wg.Wait()
}

// upwards forwards what the client says.
func (p *pipe) upwards(in *bufio.Reader) {
	end := forward(in, func(b []byte) error {
		if p.lost.Load() {
			return net.ErrClosed
		}
		_, err := p.server.Write(b)
		return err
	})
	switch {
	case p.lost.Load(): // the node hears nothing of it
	case end == nil:
		p.server.CloseWrite()
		p.server.SetReadDeadline(time.Now().Add(patience))
	default:
		p.cut()
	}
}

// downwards forwards what the node says; if the client is lost, into nothing.
func (p *pipe) downwards(in *bufio.Reader) {
	end := forward(in, func(b []byte) error {
		if p.lost.Load() {
			return nil
		}
		p.client.SetWriteDeadline(time.Now().Add(2 * patience)) // who takes nothing holds up nobody for ever
		if _, err := p.client.Write(b); err != nil && !p.lost.Load() {
			return err
		}
		return nil
	})
	switch {
	case p.lost.Load(): // the node has found out
	case end == nil:
		p.client.CloseWrite()
		p.client.SetReadDeadline(time.Now().Add(patience))
	default:
		p.cut()
	}
}

// forward hands on what comes, until nothing more does. The error is nil if that is an
// end in good order.
func forward(in *bufio.Reader, write func([]byte) error) error {
	for {
		if _, err := in.Peek(1); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		b, _ := in.Peek(in.Buffered())
		if err := write(b); err != nil {
			return err
		}
		in.Discard(len(b))
	}
}

// cut ends both sides.
func (p *pipe) cut() {
	reset(p.client)
	reset(p.server)
}

// hijack takes a client's connection over from the HTTP server.
func hijack(w http.ResponseWriter) (*net.TCPConn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil, err
	}
	c.SetDeadline(time.Time{})
	return c.(*net.TCPConn), rw, nil
}

// lose takes a user's network away for a while: the connections are cut where the client
// is, and stay open and silent where the node is, until that finds out by itself. New
// ones are refused. It reports whether there was anything to cut.
func (f *front) lose(user string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	var cut []*pipe
	for p := range f.pipes {
		if p.user == user && !p.lost.Load() {
			cut = append(cut, p)
		}
	}
	if f.closed || len(cut) == 0 && f.held[user] == 0 {
		return false
	}
	f.held[user]++
	for _, p := range cut {
		p.lost.Store(true)
		reset(p.client)
	}
	f.wg.Go(func() {
		backoff.Sleep(f.ctx, f.hold)
		for _, p := range cut {
			reset(p.server) // if it is still open
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.held[user]--; f.held[user] == 0 {
			delete(f.held, user)
		}
	})
	return true
}

// lostUser reports whether the network of a user is lost.
func (f *front) lostUser(user string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held[user] > 0
}

// status returns whose network is lost, and how many connections a node believes in that
// have no client any more.
func (f *front) status() (held []string, zombies int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for p := range f.pipes {
		if p.lost.Load() {
			zombies++
		}
	}
	held = slices.AppendSeq([]string{}, maps.Keys(f.held))
	slices.Sort(held)
	return held, zombies
}

// close cuts all connections and waits until nothing of the front runs. Its context has
// ended.
func (f *front) close() {
	f.mu.Lock()
	f.closed = true
	for p := range f.pipes {
		p.cut()
	}
	f.mu.Unlock()
	f.wg.Wait()
}
