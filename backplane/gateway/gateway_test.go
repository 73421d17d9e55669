package gateway

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/leak"
	"github.com/holdfast-ws/holdfast/internal/memnet"
	"github.com/holdfast-ws/holdfast/internal/wire"
)

// fanMain is what a process of BenchmarkFanout does, where there is that.
var fanMain = func() {}

func TestMain(m *testing.M) {
	fanMain()
	leak.Main(m)
}

// A rig is a gateway on a network in memory, in virtual time.
type rig struct {
	t   testing.TB
	bp  backplane.Backplane
	hub *backplane.Hub
	gw  *Gateway
	net *memnet.Network
	srv *http.Server
}

// allowAll is an Authorize that takes the token for the user's name.
func allowAll(_ context.Context, a Access) (Grant, error) { return Grant{User: a.Token}, nil }

// start starts a gateway; without an Authorize everything is allowed.
func start(t testing.TB, o Options) *rig {
	t.Helper()
	if o.Authorize == nil {
		o.Authorize = allowAll
	}
	r := &rig{t: t, net: memnet.New(memnet.Settings{Latency: time.Millisecond})}
	r.bp = backplane.NewMemory(nil)
	r.hub = backplane.New(r.bp, nil)
	gw, err := New(r.hub, &o)
	if err != nil {
		t.Fatal(err)
	}
	r.gw = gw
	r.srv = &http.Server{Handler: gw}
	go r.srv.Serve(r.net)
	return r
}

// stop ends all of it.
func (r *rig) stop() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.gw.Shutdown(ctx); err != nil {
		r.t.Errorf("Shutdown: %v", err)
	}
	r.srv.Close()
	r.hub.Close(ctx)
	r.bp.Close()
	r.net.Close()
}

// A peer is a client that speaks frames.
type peer struct {
	t  testing.TB
	ws *websocket.Conn
}

func (r *rig) dial(header http.Header) (*websocket.Conn, *http.Response, error) {
	return websocket.Dial(context.Background(), "ws://example.com/ws", &websocket.DialOptions{
		HTTPClient:   &http.Client{Transport: &http.Transport{DialContext: r.net.DialContext, DisableKeepAlives: true}},
		HTTPHeader:   header,
		Subprotocols: []string{wire.Subprotocol},
	})
}

// connect returns a client that was welcomed.
func (r *rig) connect(token string) *peer {
	r.t.Helper()
	ws, _, err := r.dial(nil)
	if err != nil {
		r.t.Fatal(err)
	}
	p := &peer{r.t, ws}
	p.send(`{"t":"hello","v":1,"token":"` + token + `"}`)
	p.expect(wire.Welcome)
	return p
}

func (p *peer) send(text string) {
	p.t.Helper()
	if err := p.ws.Write(context.Background(), websocket.MessageText, []byte(text)); err != nil {
		p.t.Fatalf("%s: %v", text, err)
	}
}

// read returns the next frame.
func (p *peer) read() (*wire.Frame, error) {
	_, b, err := p.ws.Read(context.Background())
	if err != nil {
		return nil, err
	}
	f := new(wire.Frame)
	if err := wire.Decode(b, f); err != nil {
		p.t.Errorf("%s: %v", b, err)
	}
	return f, nil
}

// expect returns the next frame, which has to be of that type.
func (p *peer) expect(typ string) *wire.Frame {
	p.t.Helper()
	f, err := p.read()
	if err != nil {
		p.t.Fatalf("waiting for %s: %v", typ, err)
	}
	if f.Type != typ {
		p.t.Fatalf("got %s, not %s", f.Append(nil), typ)
	}
	return f
}

// status reads until the end, and returns the close code.
func (p *peer) status() int {
	for {
		if _, err := p.read(); err != nil {
			return int(websocket.CloseStatus(err))
		}
	}
}

func TestAConversation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, Options{Node: "a"})
		defer r.stop()
		a, b := r.connect("anna"), r.connect("bert")
		defer a.ws.CloseNow()
		defer b.ws.CloseNow()
		for _, p := range []*peer{a, b} {
			p.send(`{"t":"subscribe","topic":"room","ref":7}`)
			f := p.expect(wire.Subscribed)
			if f.Ref != 7 || f.Base.IsZero() || f.Base != f.Head {
				t.Errorf("%s", f.Append(nil))
			}
		}
		a.send(`{"t":"publish","id":"1","topic":"room","data":{"x": 1}}`)
		var ack, entries *wire.Frame
		for range 2 {
			f, err := a.read()
			if err != nil {
				t.Fatal(err)
			}
			switch f.Type {
			case wire.Ack:
				ack = f
			case wire.Entries:
				entries = f
			}
		}
		if ack == nil || entries == nil || ack.Pos != entries.Entries[0].Pos || ack.Outcome != wire.Committed {
			t.Fatal("no ack, or no entry, or they do not agree")
		}
		f := b.expect(wire.Entries)
		if string(f.Entries[0].Data) != `{"x": 1}` {
			t.Errorf("%s", f.Append(nil))
		}
		b.send(`{"t":"publish","id":"1","topic":"room","data":2}`) // another user's id
		if f := a.expect(wire.Entries); f.Prev != ack.Pos {
			t.Errorf("%s does not follow %s", f.Append(nil), ack.Append(nil))
		}
		b.send(`{"t":"ephemeral","topic":"room","text":"typing"}`)
		if f := a.expect(wire.Ephemeral); string(f.Data) != `typing` || f.Topic != "room" {
			t.Errorf("%s", f.Append(nil))
		}
		a.send(`{"t":"unsubscribe","topic":"room"}`)
		a.expect(wire.Unsubscribed)
		c := r.connect("anna")
		defer c.ws.CloseNow()
		c.send(`{"t":"subscribe","topic":"room","from":"` + ack.Pos.String() + `"}`)
		if f := c.expect(wire.Subscribed); f.Base != ack.Pos {
			t.Errorf("%s", f.Append(nil))
		}
		if f := c.expect(wire.Entries); len(f.Entries) != 1 || string(f.Entries[0].Data) != "2" {
			t.Errorf("%s", f.Append(nil))
		}
		done := make(chan int)
		go func() { done <- c.status() }()
		go a.status()
		go b.status()
		r.stop()
		if code := <-done; code != wire.CloseRestart {
			t.Errorf("closed with %d", code)
		}
	})
}

func TestRefusedHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, Options{})
		defer r.stop()
		_, resp, err := r.dial(http.Header{"Origin": {"https://evil.example"}})
		if err == nil || resp.StatusCode != 403 {
			t.Errorf("a foreign page: %v", err)
		}
		c, err := r.net.DialContext(context.Background(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := raw(t, c, "GET /ws HTTP/1.1\r\nHost: example.com\r\n\r\n"); !strings.Contains(got, "426") {
			t.Error(got)
		}
	})
}

// raw sends a request and returns the first line of the answer.
func raw(t *testing.T, c net.Conn, request string) string {
	t.Helper()
	if _, err := c.Write([]byte(request)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return line
}
