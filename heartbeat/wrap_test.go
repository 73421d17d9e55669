package heartbeat

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/internal/memnet"
)

// middleware hides all of a writer's optional methods behind Unwrap, as logging
// and metrics do.
type middleware struct{ http.ResponseWriter }

func (m middleware) Unwrap() http.ResponseWriter { return m.ResponseWriter }

// echo accepts WebSockets with wrapped writers and echoes what they say.
func echo(t *testing.T, m *Monitor, wrap func(http.ResponseWriter, *Peer) http.ResponseWriter) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, err := m.NewPeer(nil)
		if err != nil {
			t.Error(err)
			return
		}
		c, err := websocket.Accept(wrap(w, p), r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		if err := p.Watch(c); err != nil {
			t.Error(err)
			return
		}
		defer p.Stop()
		for {
			kind, data, err := c.Read(context.Background())
			if err != nil {
				return
			}
			if p.heard.Load() == 0 && p.sent.Load() == 0 {
				t.Error("the peer saw nothing")
			}
			if err := c.Write(context.Background(), kind, data); err != nil {
				return
			}
		}
	})
}

// talk sends messages of several sizes and expects them back.
func talk(t *testing.T, url string, client *http.Client) {
	t.Helper()
	c, _, err := websocket.Dial(t.Context(), url, &websocket.DialOptions{HTTPClient: client})
	if err != nil {
		t.Error(err)
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(-1)
	for _, size := range []int{0, 1, 500, 512, 513, 5000, 30_000} {
		want := strings.Repeat("x", size)
		if err := c.Write(t.Context(), websocket.MessageText, []byte(want)); err != nil {
			t.Error(err)
			return
		}
		_, got, err := c.Read(t.Context())
		if err != nil || string(got) != want {
			t.Errorf("%d bytes come back as %d, %v", size, len(got), err)
			return
		}
	}
	c.Close(websocket.StatusNormalClosure, "")
}

func TestTheWrapperWorksInAnyChain(t *testing.T) {
	m := newMonitor(t, Config{})
	for name, wrap := range map[string]func(http.ResponseWriter, *Peer) http.ResponseWriter{
		"alone":            func(w http.ResponseWriter, p *Peer) http.ResponseWriter { return p.WrapWriter(w) },
		"above middleware": func(w http.ResponseWriter, p *Peer) http.ResponseWriter { return p.WrapWriter(middleware{w}) },
		"below middleware": func(w http.ResponseWriter, p *Peer) http.ResponseWriter { return middleware{p.WrapWriter(w)} },
		"between some more": func(w http.ResponseWriter, p *Peer) http.ResponseWriter {
			return middleware{middleware{p.WrapWriter(middleware{w})}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(echo(t, m, wrap))
			defer server.Close()
			talk(t, server.URL, server.Client())
		})
		t.Run(name+", TLS", func(t *testing.T) {
			server := httptest.NewTLSServer(echo(t, m, wrap))
			defer server.Close()
			talk(t, server.URL, server.Client())
		})
	}
}

func TestHTTP2IsRefusedWithTheReason(t *testing.T) {
	m := newMonitor(t, Config{})
	refused := make(chan error, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, err := m.NewPeer(nil)
		if err != nil {
			t.Error(err)
		}
		_, _, err = p.WrapWriter(w).(http.Hijacker).Hijack()
		refused <- err
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	resp, err := server.Client().Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if err := <-refused; resp.ProtoMajor != 2 || err == nil || !strings.Contains(err.Error(), "HTTP/2") {
		t.Errorf("%s: %v", resp.Proto, err)
	}
}

// A client that sends its first frame together with its request.
func TestBytesThatComeEarlyAreNotLost(t *testing.T) {
	m := newMonitor(t, Config{})
	for _, early := range []int{1, 6, 100, 511, 512, 600, 3000} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p, err := m.NewPeer(nil)
			if err != nil {
				t.Error(err)
			}
			c, rw, err := http.NewResponseController(p.WrapWriter(w)).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetReadDeadline(time.Now().Add(3 * time.Second)) // for when they are lost
			got := make([]byte, early+5)
			if _, err := io.ReadFull(rw, got); err != nil || string(got) != strings.Repeat("e", early)+"later" {
				t.Errorf("%d early bytes: %q, %v", early, got, err)
				return
			}
			fmt.Fprint(rw, "ok")
			rw.Flush()
		}))
		c, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"+strings.Repeat("e", early))
		io.WriteString(c, "later")
		got, err := io.ReadAll(c)
		c.Close()
		server.Close()
		if string(got) != "ok" || err != nil {
			t.Fatalf("answer %q, %v", got, err)
		}
	}
}

// paper is a connection that keeps what is written to it, each write of which takes a while.
type paper struct {
	net.Conn
	mu   sync.Mutex
	text []byte
}

func (p *paper) Write(b []byte) (int, error) {
	p.mu.Lock()
	p.text = append(p.text, b...)
	p.mu.Unlock()
	time.Sleep(time.Millisecond)
	return len(b), nil
}

// Large writes are handed on in chunks, and two of them at a time were mixed up, as those of
// a net.Conn never are.
func TestConcurrentWritesDoNotMix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		p, err := m.NewPeer(nil)
		if err != nil {
			t.Fatal(err)
		}
		page := new(paper)
		c := p.WrapConn(page)
		var wg sync.WaitGroup
		const n = 3*chunkSize + 5
		for _, letter := range "abcd" {
			wg.Go(func() {
				if k, err := c.Write([]byte(strings.Repeat(string(letter), n))); k != n || err != nil {
					t.Errorf("%d, %v", k, err)
				}
			})
		}
		wg.Wait()
		for i := 0; i < 4*n; i += n {
			if got := string(page.text[i : i+n]); got != strings.Repeat(got[:1], n) {
				t.Errorf("the %d bytes from %d on are not of one write", n, i)
			}
		}
	})
}

// gin holds headers back until WriteHeaderNow.
type gin struct {
	http.ResponseWriter
	called *atomic.Bool
}

func (g gin) WriteHeaderNow() { g.called.Store(true) }

func TestWriteHeaderNowIsPassedOn(t *testing.T) {
	m := newMonitor(t, Config{})
	p, err := m.NewPeer(nil)
	if err != nil {
		t.Fatal(err)
	}
	var called atomic.Bool
	type headerNow interface{ WriteHeaderNow() }
	p.WrapWriter(gin{httptest.NewRecorder(), &called}).(headerNow).WriteHeaderNow()
	if !called.Load() {
		t.Error("not passed on")
	}
	p.WrapWriter(httptest.NewRecorder()).(headerNow).WriteHeaderNow() // nothing to pass on to
}

func TestWriteReportsProgressAndErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t, Config{})
		network := memnet.New(memnet.Settings{Buffer: 100_000})
		defer network.Close()
		client, err := network.DialContext(t.Context(), "tcp", "")
		if err != nil {
			t.Fatal(err)
		}
		inner, err := network.Accept()
		if err != nil {
			t.Fatal(err)
		}
		p, err := m.NewPeer(nil)
		if err != nil {
			t.Fatal(err)
		}
		c := p.WrapConn(inner)
		if n, err := c.Write(nil); n != 0 || err != nil {
			t.Errorf("an empty write: %d, %v", n, err)
		}
		if n, err := c.Write(make([]byte, 1000)); n != 1000 || err != nil || p.heard.Load() != 0 {
			t.Errorf("a write at once: %d, %v, heard at %d", n, err, p.heard.Load())
		}
		go func() {
			time.Sleep(3 * time.Second)
			io.CopyN(io.Discard, client, 900_000)
			client.Close()
		}()
		n, err := c.Write(make([]byte, 2_000_000))
		if n < 900_000-1000 || n > 1_000_000 || err == nil {
			t.Errorf("a write to a peer that reads some and goes: %d, %v", n, err)
		}
		if heard := time.Duration(p.heard.Load()); heard != 3*time.Second {
			t.Errorf("room was made after %v, want 3s", heard)
		}
		if p.writing.Load() != 0 {
			t.Error("the write is still under way")
		}
		c.Close()
	})
}

// The client's side: the same monitor, with the connection wrapped below TLS and
// HTTP, finds a server that has gone.
func TestAClientFindsItsServerGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := memnet.New(memnet.Settings{Latency: latency})
		patience, giveUp := context.WithCancel(context.Background())
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, err := websocket.Accept(w, r, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.CloseNow()
			c.Read(patience) // nobody else tells the server that its client is gone
		})}
		go server.Serve(network)

		m := newMonitor(t, Config{Interval: 40 * time.Second})
		peer, err := m.NewPeer(nil)
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, n, a string) (net.Conn, error) {
			c, err := network.DialContext(ctx, n, a)
			if err != nil {
				return nil, err
			}
			return peer.WrapConn(c), nil
		}}
		c, _, err := websocket.Dial(t.Context(), "ws://server/", &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}})
		if err != nil {
			t.Fatal(err)
		}
		gone := c.CloseRead(context.Background())
		if err := peer.Watch(c); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if gone.Err() != nil {
			t.Error("the connection is gone")
		}
		network.Links()[0].Blackhole(memnet.Both)
		dark := time.Now()
		<-gone.Done()
		if took := time.Since(dark); took > 40*time.Second+timeout+tick {
			t.Errorf("found after %v", took)
		}
		if v, dead := peer.Verdict(); !dead || v.Reason != NoAnswer {
			t.Errorf("%+v, %v", v, dead)
		}
		giveUp()
		server.Close()
		time.Sleep(time.Minute)
	})
}
