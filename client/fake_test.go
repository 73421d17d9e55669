package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/internal/memnet"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// A fake is a gateway that does what a test says, on a network in memory.
type fake struct {
	t       testing.TB
	network *memnet.Network
	handle  func(p *peer)
	speaks  []string // subprotocols
	running sync.WaitGroup

	mu    sync.Mutex
	peers []*peer
}

// A peer is a connection as the gateway sees it. Its methods end the handler when the
// connection is over.
type peer struct {
	*websocket.Conn
	g *fake
	n int // of the connection, from 1

	since time.Time // when it was accepted

	mu  sync.Mutex
	got []string // types of frames received
	err error    // the end
}

// newFake returns a gateway whose connections are handled by handle, within a bubble.
func newFake(t testing.TB, handle func(p *peer)) *fake {
	t.Helper()
	g := &fake{t: t, network: memnet.New(memnet.Settings{Latency: time.Millisecond}), handle: handle, speaks: []string{wire.Subprotocol}}
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(g.serve)}
	g.running.Go(func() { server.Serve(g.network) })
	t.Cleanup(func() {
		server.Close()
		for _, l := range g.network.Links() {
			l.Reset()
		}
		g.mu.Lock()
		peers := slices.Clone(g.peers)
		g.mu.Unlock()
		for _, p := range peers { // those whose links have become black holes
			p.CloseNow()
		}
		g.running.Wait()
	})
	return g
}

func (g *fake) serve(w http.ResponseWriter, r *http.Request) {
	g.running.Add(1)
	defer g.running.Done()
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: g.speaks})
	if err != nil {
		return
	}
	ws.SetReadLimit(1 << 20)
	defer ws.CloseNow()
	g.mu.Lock()
	p := &peer{Conn: ws, g: g, n: len(g.peers) + 1, since: time.Now()}
	g.peers = append(g.peers, p)
	g.mu.Unlock()
	g.handle(p)
}

// connections returns how many there were.
func (g *fake) connections() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.peers)
}

// peer returns the n-th connection.
func (g *fake) peer(n int) *peer {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.peers[n-1]
}

// options returns options for clients of this gateway.
func (g *fake) options() *client.Options {
	return &client.Options{
		HTTPClient: &http.Client{Transport: &http.Transport{DialContext: g.network.DialContext}},
	}
}

// client returns a client, which is closed when the test ends.
func (g *fake) client(change ...func(*client.Options)) *client.Client {
	g.t.Helper()
	o := g.options()
	for _, f := range change {
		f(o)
	}
	c, err := client.New("ws://gateway.test/ws", o)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		c.Close(ctx)
	})
	return c
}

// next returns the next frame, and ends the handler if there is none.
func (p *peer) next() wire.Frame {
	kind, b, err := p.Read(context.Background())
	var f wire.Frame
	if err == nil {
		if kind != websocket.MessageText {
			p.g.t.Errorf("the client sent a binary message: %q", b)
		}
		if bad := wire.Decode(b, &f); bad != nil {
			p.g.t.Errorf("the client sent what is no frame: %v: %q", bad, b)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.err = err
		runtime.Goexit()
	}
	p.got = append(p.got, f.Type)
	return f
}

// end returns with what the connection has ended, as seen by next.
func (p *peer) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// expect returns the next frame, which has to be of that type.
func (p *peer) expect(typ string) wire.Frame {
	p.g.t.Helper()
	f := p.next()
	if f.Type != typ {
		p.g.t.Errorf("connection %d: the client sent %s, want %s", p.n, f.Append(nil), typ)
		runtime.Goexit()
	}
	return f
}

// hears fails the test if a frame comes within d.
func (p *peer) hears(d time.Duration) {
	p.g.t.Helper()
	got := make(chan wire.Frame, 1)
	timer := time.NewTimer(d)
	defer timer.Stop()
	var reader sync.WaitGroup
	reader.Go(func() { got <- p.next() })
	select {
	case f := <-got:
		p.g.t.Errorf("the client sent %s", f.Append(nil))
	case <-timer.C:
	}
	p.CloseNow()
	reader.Wait()
}

// send writes frames, and ends the handler if that cannot be done.
func (p *peer) send(frames ...wire.Frame) {
	for i := range frames {
		p.raw(string(frames[i].Append(nil)))
	}
}

func (p *peer) raw(text string) {
	if p.Write(context.Background(), websocket.MessageText, []byte(text)) != nil {
		runtime.Goexit()
	}
}

var limits = wire.Limits{Message: 32 << 10, Topics: 128, Pending: 64, History: 1000}

// welcome expects a hello and answers it.
func (p *peer) welcome() { p.welcomeWith(limits) }

func (p *peer) welcomeWith(l wire.Limits) {
	if f := p.expect(wire.Hello); f.Version != 1 || f.Beats || f.Token != "" {
		p.g.t.Errorf("hello: %s", f.Append(nil))
	}
	p.send(wire.Frame{Type: wire.Welcome, Version: 1, Conn: fmt.Sprint(p.n), Beat: 25000, Timeout: 10000, Limits: l})
}

// accept expects a subscribe and answers it: the subscription goes on after base.
func (p *peer) accept(base replay.Position) wire.Frame {
	f := p.expect(wire.Subscribe)
	p.send(subscribed(f, base))
	return f
}

// drain reads until the end.
func (p *peer) drain() {
	for {
		p.next()
	}
}

func subscribed(f wire.Frame, base replay.Position) wire.Frame {
	return wire.Frame{Type: wire.Subscribed, Topic: f.Topic, Ref: f.Ref, Base: base}
}

// at is the position of message n of a topic.
func at(n int) replay.Position {
	return replay.Position{Epoch: 7, Seq: uint64(n), Tag: uint32(31 * n)}
}

// entries are messages from and including one to and including another, each with its number
// as its data.
func entries(topic string, from, to int) wire.Frame {
	f := wire.Frame{Type: wire.Entries, Topic: topic, Prev: at(from - 1)}
	for n := from; n <= to; n++ {
		f.Entries = append(f.Entries, wire.Entry{Pos: at(n), At: 1790000000000 + int64(n), Payload: wire.Payload{Kind: wire.JSON, Data: fmt.Append(nil, n)}})
	}
	return f
}

func reset(topic, reason string, missed int, base int) wire.Frame {
	return wire.Frame{Type: wire.Reset, Topic: topic, Reason: reason, Missed: uint64(missed), Base: at(base)}
}

func ack(id string, n int) wire.Frame {
	return wire.Frame{Type: wire.Ack, ID: id, Outcome: wire.Committed, Pos: at(n)}
}

// subscribe subscribes to a topic, which has to work.
func subscribe(t testing.TB, c *client.Client, topic string, o *client.SubscribeOptions) *client.Subscription {
	t.Helper()
	s, err := c.Subscribe(topic, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// next returns the next event as text: "5", "~typing", "reset(trimmed 3)", or "error: …".
// It waits for a minute.
func next(s *client.Subscription) string {
	ctx, cancel := context.WithTimeoutCause(context.Background(), time.Minute, errSilence)
	defer cancel()
	e, err := s.Next(ctx)
	return text(e, err)
}

var errSilence = errors.New("silence")

func text(e client.Event, err error) string {
	switch {
	case err != nil:
		return "error: " + err.Error()
	case e.Reset != nil:
		out := fmt.Sprintf("reset(%s %d)", e.Reset.Reason, e.Reset.Missed)
		if e.Reset.Snapshot != nil {
			out += fmt.Sprintf("=%s", e.Reset.Snapshot)
		}
		return out
	case e.Ephemeral:
		return "~" + string(e.Data)
	}
	return string(e.Data)
}

// gets fails the test if the next events are not those named, separated by blanks.
func gets(t testing.TB, s *client.Subscription, want string) {
	t.Helper()
	var got []string
	for range strings.Fields(want) {
		got = append(got, strings.ReplaceAll(next(s), " ", "_"))
	}
	same(t, "events of "+s.Topic(), strings.Fields(want), got)
}

// same fails the test if got is not want.
func same[T any](t testing.TB, what string, want, got T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// numbers is "from from+1 … to".
func numbers(from, to int) string {
	var out []string
	for n := from; n <= to; n++ {
		out = append(out, fmt.Sprint(n))
	}
	return strings.Join(out, " ")
}

// send queues a message, which has to work.
func send(t testing.TB, c *client.Client, topic, data string) *client.Pending {
	t.Helper()
	p, err := c.Send(context.Background(), topic, client.Message{Data: []byte(data)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// wait waits for a state, for a minute.
func wait(t testing.TB, c *client.Client, s client.State) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.Wait(ctx, s); err != nil {
		t.Fatalf("waiting for %v: %v", s, err)
	}
}

// outcome is what became of a message, as text. It waits for five minutes.
func outcome(p *client.Pending) string {
	ctx, cancel := context.WithTimeoutCause(context.Background(), 5*time.Minute, errSilence)
	defer cancel()
	r, err := p.Wait(ctx)
	if err != nil {
		return r.Outcome.String() + ": " + err.Error()
	}
	return r.Outcome.String()
}

// A journal is what happened, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf(format, args...))
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.lines, " ")
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines)
}

var (
	memnetRefuse = memnet.Settings{Refuse: true}
	memnetSmall  = memnet.Settings{Latency: time.Millisecond, Buffer: 400}
)
