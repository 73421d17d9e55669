package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/internal/memnet"
	"github.com/holdfast-ws/holdfast/internal/wire"
)

// A reader is a real client of WebSocket, of what is written to the other end of a pipe.
func reader(t testing.TB) (server net.Conn, client *websocket.Conn) {
	t.Helper()
	server, end := net.Pipe()
	client, _, err := websocket.Dial(context.Background(), "ws://example.com", &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: transport(func(r *http.Request) (*http.Response, error) {
			sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
			return &http.Response{StatusCode: 101, Body: end, Header: http.Header{
				"Upgrade": {"websocket"}, "Connection": {"Upgrade"},
				"Sec-Websocket-Accept": {base64.StdEncoding.EncodeToString(sum[:])},
			}}, nil
		})},
	})
	if err != nil {
		t.Fatal(err)
	}
	client.SetReadLimit(-1)
	return server, client
}

type transport func(*http.Request) (*http.Response, error)

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) { return t(r) }

// FuzzFrames writes messages of all lengths, one after the other, as connections do, and
// has them read by somebody else's code.
func FuzzFrames(f *testing.F) {
	lengths := func(all ...uint32) (b []byte) {
		for _, n := range all {
			b = binary.BigEndian.AppendUint32(b, n)
		}
		return b
	}
	f.Add(lengths(0), false)
	f.Add(lengths(0, 1, 0, 2), true)
	f.Add(lengths(125, 126, 127, 65535, 65536, 65537), false)
	f.Add(lengths(fragment-1, fragment, fragment+1, 2*fragment-1, 2*fragment, 2*fragment+1), true)
	f.Add(lengths(1<<20, 5, 1<<18+7), false)
	f.Add(lengths(10_000, 10_000, 10_000, 10_000, 3, 32<<10-3), true)
	f.Fuzz(func(t *testing.T, lengths []byte, goodbye bool) {
		var messages [][]byte
		var out []byte
		total := 0
		for i := 0; len(lengths) >= 4; i++ {
			n := int(binary.BigEndian.Uint32(lengths)) & (1<<20 - 1)
			lengths = lengths[4:]
			if total += n; total > 4<<20 || i > 100 {
				break
			}
			m := make([]byte, n)
			for k := range m {
				m[k] = 'a' + byte(k+i)%26
			}
			messages = append(messages, m)
			before := len(out)
			out = appendMessage(out, m)
			if more := len(out) - before; more > n+longHeader*(n/fragment+1) {
				t.Errorf("a message of %d bytes takes %d", n, more)
			}
		}
		server, client := reader(t)
		defer client.CloseNow()
		defer server.Close()
		go func() {
			b := out
			for len(b) > 0 {
				n := cut(b)
				if n < 2 || n > fragment+longHeader || n > len(b) {
					t.Errorf("cut after %d of %d", n, len(b))
					return
				}
				at := 0
				for at < n {
					header, payload := frameSize(b[at:])
					if frameLen(b[at:]) != header+payload || payload > fragment {
						t.Errorf("a frame of %d and %d bytes", header, payload)
					}
					at += header + payload
				}
				if at != n {
					t.Errorf("cut in the middle of a frame: %d, not %d", n, at)
				}
				if _, err := server.Write(b[:n]); err != nil {
					t.Error(err)
					return
				}
				b = b[n:]
			}
			if goodbye {
				go io.Copy(io.Discard, server) // the answer
				server.Write(appendClose(nil, 4321, strings.Repeat("x", len(messages)*3)))
			}
		}()
		for i, want := range messages {
			typ, got, err := client.Read(context.Background())
			if err != nil || typ != websocket.MessageText || !bytes.Equal(got, want) {
				t.Fatalf("message %d of %d bytes: got %d, %v", i, len(want), len(got), err)
			}
		}
		if goodbye {
			_, _, err := client.Read(context.Background())
			var c websocket.CloseError
			if !errors.As(err, &c) || c.Code != 4321 || c.Reason != strings.Repeat("x", min(123, len(messages)*3)) {
				t.Errorf("%v", err)
			}
		}
	})
}

func TestNothingFollowsACloseFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		n := &netConn{Conn: a, timeout: time.Second, turn: make(chan struct{}, 1)}
		var got bytes.Buffer
		done := make(chan struct{})
		go func() { io.Copy(&got, b); close(done) }()
		var want []byte
		for _, m := range []string{"\x88", "\x88\x02", strings.Repeat("\x88", 500)} { // which look like one
			want = appendMessage(want, []byte(m))
			n.Write(appendMessage(nil, []byte(m)))
		}
		// And in pieces, as the library writes a compressed message.
		whole := appendMessage(nil, []byte(strings.Repeat("\x88\x02\x03", 1000)))
		whole[0] |= 0x40
		want = append(want, whole...)
		for b := whole; len(b) > 0; b = b[min(len(b), 512):] {
			n.Write(b[:min(len(b), 512)])
		}
		end := appendClose(nil, 1000, "end")
		want = append(want, end...)
		n.Write(end)
		for range 3 {
			if k, err := n.Write([]byte("more")); k != 4 || err != nil {
				t.Errorf("%d, %v", k, err)
			}
			n.Write(end)
		}
		a.Close()
		<-done
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%d bytes, want %d", got.Len(), len(want))
		}
	})
}

// The library gives itself 5 s to write a control frame, and then closes the connection.
func TestWhoPingsIsNotDroppedBeforeItsTime(t *testing.T) {
	for _, flood := range []int{1, 90} {
		synctest.Test(t, func(t *testing.T) {
			r := startWith(t, setup{net: memnet.Settings{Buffer: 4 << 10}})
			s := r.welcome("")
			s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
			s.link.Stall(memnet.Down, true)
			r.publish("x", `"`+strings.Repeat("x", 100_000)+`"`)
			time.Sleep(time.Second)
			for range flood {
				s.write(masked(final|9, []byte("hello?")))
			}
			time.Sleep(8 * time.Second)
			s.link.Stall(memnet.Down, false)
			f := s.expect(wire.Entries)
			if n := len(f.Entries[0].Data); n != 100_002 {
				t.Errorf("%d bytes", n)
			}
			s.alive()
			if s.pongs == 0 || s.pongs > flood {
				t.Errorf("%d of %d pings were answered", s.pongs, flood)
			}
		})
	}
}

func TestControlFramesThatComeTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		n := &netConn{Conn: a, timeout: time.Hour, turn: make(chan struct{}, 1)}
		var writers sync.WaitGroup
		for i := range 40 {
			writers.Go(func() {
				for range 50 {
					if i%2 == 0 {
						n.Write([]byte{final | 10, 1, byte(i)})
					} else {
						n.Write(appendMessage(nil, []byte(strings.Repeat("x", i*10))))
					}
				}
			})
		}
		s := &socket{t: t, conn: b, br: bufio.NewReader(b), silent: true}
		done := make(chan int)
		go func() {
			messages := 0
			for {
				first, _, err := s.frame()
				if err != nil {
					done <- messages
					return
				}
				if first&0xf == opText {
					messages++
				}
			}
		}()
		writers.Wait()
		if n.later != nil {
			t.Errorf("%q was forgotten", n.later)
		}
		n.Write(appendClose(nil, 1000, ""))
		if messages := <-done; messages != 20*50 || s.pongs == 0 {
			t.Errorf("%d messages, %d pongs", messages, s.pongs)
		}
		a.Close()
		b.Close()
	})
}

func TestAWriteThatGetsNowhereTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		n := &netConn{Conn: a, timeout: 3 * time.Second, turn: make(chan struct{}, 1)}
		for range 2 {
			begin := time.Now()
			if _, err := n.Write([]byte("xyz")); !isTimeout(err) || time.Since(begin) != 3*time.Second {
				t.Errorf("%v after %v", err, time.Since(begin))
			}
		}
	})
}

func TestAWriteThatGetsOnGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, secure := range []bool{false, true} {
			a, b := net.Pipe()
			n := &netConn{Conn: a, timeout: 4 * time.Second, secure: secure, turn: make(chan struct{}, 1)}
			go func() {
				for err := error(nil); err == nil; _, err = b.Read(make([]byte, 1)) {
					time.Sleep(3 * time.Second)
				}
			}()
			begin := time.Now()
			k, err := n.Write(make([]byte, 20))
			// TLS cannot go on with a record of which a part was written.
			if d := time.Since(begin); secure && (!isTimeout(err) || d != 4*time.Second) || !secure && (err != nil || k != 20 || d != time.Minute) {
				t.Errorf("secure %v: %d, %v after %v", secure, k, err, d)
			}
			a.Close()
			b.Close()
			time.Sleep(5 * time.Second)
		}
	})
}

// compressed returns a connection that has negotiated compression.
func (r *rig) compressed() *websocket.Conn {
	r.t.Helper()
	ws, _, err := websocket.Dial(context.Background(), "ws://example.com/ws", &websocket.DialOptions{
		HTTPClient:      &http.Client{Transport: &http.Transport{DialContext: r.net.DialContext, DisableKeepAlives: true}},
		Subprotocols:    []string{wire.Subprotocol},
		CompressionMode: websocket.CompressionNoContextTakeover,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { ws.CloseNow() })
	ws.SetReadLimit(-1)
	p := &peer{r.t, ws}
	p.send(`{"t":"hello","v":1}`)
	p.expect(wire.Welcome)
	return ws
}

func TestCompression(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Compress: true, Payload: func(string) Payload { return Binary }}})
		with := &peer{t, r.compressed()}
		without := r.welcome("")
		with.send(`{"t":"subscribe","topic":"x"}`)
		with.expect(wire.Subscribed)
		without.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
		rnd := rand.New(rand.NewPCG(1, 2))
		messages := []string{"", "short", strings.Repeat("x", 700), strings.Repeat("y", 100_000)}
		for n := range 300 { // any byte may stand anywhere, also where a frame would begin
			b := make([]byte, 600+2*n)
			for i := range b {
				b[i] = byte(rnd.Uint32())
			}
			messages = append(messages, string(b))
		}
		for i, m := range messages {
			r.publish("x", m)
			with.ws.SetReadLimit(-1)
			done := time.AfterFunc(time.Minute, func() { with.ws.CloseNow() })
			f := with.expect(wire.Entries)
			done.Stop()
			if string(f.Entries[0].Data) != m {
				t.Fatalf("message %d of %d bytes is another", i, len(m))
			}
			if f := without.expect(wire.Entries); string(f.Entries[0].Data) != m {
				t.Fatalf("message %d of %d bytes is another without compression", i, len(m))
			}
		}
		with.send(`{"t":"publish","id":"1","topic":"x","text":"` + strings.Repeat("z", 30_000) + `"}`)
		for range 2 {
			with.read()
		}
		with.send(`{"t":"ping"}`)
		with.expect(wire.Pong)
		if f := without.expect(wire.Entries); len(f.Entries[0].Data) != 30_000 {
			t.Errorf("%.100s", f.Append(nil))
		}
	})
}

func TestACompressionBomb(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Compress: true}})
		defer r.bystander(0)()
		ws := r.compressed()
		bomb := bytes.Repeat([]byte{' '}, 8<<20)
		done := make(chan error)
		go func() { done <- ws.Write(context.Background(), websocket.MessageText, bomb) }()
		p := &peer{t, ws}
		if code := p.status(); code != wire.CloseTooBig {
			t.Errorf("closed with %d", code)
		}
		ws.CloseNow()
		<-done
	})
}

// plain is a ResponseWriter that cannot be hijacked.
type plain struct{ http.ResponseWriter }

// unwrapped is one of middleware that follows the rules.
type unwrapped struct{ http.ResponseWriter }

func (w unwrapped) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func TestBehindMiddleware(t *testing.T) {
	for name, c := range map[string]struct {
		wrap   func(http.Handler) http.Handler
		status int
	}{
		"one with Unwrap": {func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(unwrapped{unwrapped{w}}, r) })
		}, 101},
		"StripPrefix": {func(h http.Handler) http.Handler { return http.StripPrefix("/ws", h) }, 101},
		"a mux":       {func(h http.Handler) http.Handler { m := http.NewServeMux(); m.Handle("GET /ws", h); return m }, 101},
		"MaxBytes":    {func(h http.Handler) http.Handler { return http.MaxBytesHandler(h, 10) }, 101},
		"one without": {func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(plain{w}, r) })
		}, 501},
		"TimeoutHandler": {func(h http.Handler) http.Handler { return http.TimeoutHandler(h, time.Minute, "") }, 501},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startWith(t, setup{})
				n := memnet.New(memnet.Settings{Latency: latency})
				srv := &http.Server{Handler: c.wrap(r.gw)}
				go srv.Serve(n)
				defer srv.Close()
				r.net = n
				s := r.dialRaw()
				s.write([]byte(handshake + "\r\n"))
				resp, err := http.ReadResponse(s.br, nil)
				if err != nil {
					t.Fatal(err)
				}
				if resp.StatusCode != c.status {
					t.Fatalf("status %d, want %d", resp.StatusCode, c.status)
				}
				if c.status == 101 {
					s.hello("")
					s.alive()
				} else if b, _ := io.ReadAll(resp.Body); !strings.Contains(string(b), "Hijack") {
					t.Errorf("%q does not say why", b)
				}
				if st := r.gw.Stats(); (st.Refused == 0) != (c.status == 101) || (st.Connections == 1) != (c.status == 101) {
					t.Errorf("%+v", st)
				}
				s.conn.Close()
				time.Sleep(time.Second)
			})
		})
	}
}

func TestRequestsThatAreNoHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		for _, c := range []struct {
			change, to string
			status     int
		}{
			{"", "", 101},
			{"Upgrade: websocket\r\n", "", 426},
			{"Upgrade: websocket\r\n", "Upgrade: h2c\r\n", 426},
			{"Upgrade: websocket\r\n", "Upgrade: h2c, WebSocket\r\n", 101},
			{"Connection: Upgrade\r\n", "", 426},
			{"Connection: Upgrade\r\n", "Connection: keep-alive, upgrade\r\n", 101},
			{"Sec-WebSocket-Protocol: holdfast.v1\r\n", "", 400},
			{"holdfast.v1", "holdfast.v2", 400},
			{"holdfast.v1", "other, holdfast.v1", 101},
			{"Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 12", 400},
			{"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", "", 400},
			{"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Key: AAAA", 400},
			{"GET", "POST", 405},
			{"HTTP/1.1", "HTTP/1.0", 426},
		} {
			s := r.dialRaw()
			s.write([]byte(strings.Replace(handshake, c.change, c.to, 1) + "Content-Length: 0\r\n\r\n"))
			if status := s.response(); status != c.status {
				t.Errorf("%q for %q: %d, want %d", c.to, c.change, status, c.status)
			}
			s.conn.Close()
		}
		time.Sleep(5 * time.Second)
		if st := r.gw.Stats(); st.Connections != 0 || st.Accepted != 4 || st.Refused != 10 {
			t.Errorf("%+v", st)
		}
	})
}

func TestAHelloTogetherWithTheHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		s := r.dialRaw()
		b := []byte(handshake + "\r\n")
		b = append(b, masked(final|opText, []byte(`{"t":"hello","v":1}`))...)
		b = append(b, masked(final|opText, []byte(`{"t":"subscribe","topic":"x"}`))...)
		b = append(b, masked(final|opText, []byte(`{"t":"publish","topic":"x","id":"1","text":"`+strings.Repeat("x", 3000)+`"}`))...)
		s.write(b)
		if status := s.response(); status != 101 {
			t.Fatal(status)
		}
		s.expect(wire.Welcome)
		for seen := map[string]bool{}; !seen[wire.Subscribed] || !seen[wire.Ack]; {
			f, err := s.next()
			if err != nil {
				t.Fatal(err)
			}
			seen[f.Type] = true
		}
	})
}

// startHTTP serves a gateway with httptest.
func startHTTP(t *testing.T, o Options, change func(*httptest.Server)) (*tcpRig, *httptest.Server) {
	r := startTCP(t, o)
	srv := httptest.NewUnstartedServer(r.gw)
	change(srv)
	t.Cleanup(srv.Close)
	return r, srv
}

// converse has a real client say hello and get an answer.
func converse(t *testing.T, srv *httptest.Server, at string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, at, &websocket.DialOptions{HTTPClient: srv.Client(), Subprotocols: []string{wire.Subprotocol}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	p := &peer{t, ws}
	p.send(`{"t":"hello","v":1}`)
	p.expect(wire.Welcome)
	p.send(`{"t":"subscribe","topic":"x"}`)
	p.expect(wire.Subscribed)
	long := strings.Repeat("x", 20_000)
	p.send(`{"t":"publish","id":"1","topic":"x","text":"` + long + `"}`)
	for range 2 {
		if f, err := p.read(); err != nil || f.Type == wire.Entries && len(f.Entries[0].Data) != len(long) {
			t.Errorf("%v", err)
		}
	}
	ws.Close(websocket.StatusNormalClosure, "")
}

func TestOverTLS(t *testing.T) {
	_, srv := startHTTP(t, Options{}, func(s *httptest.Server) { s.StartTLS() })
	converse(t, srv, srv.URL)
}

func TestBehindAReverseProxy(t *testing.T) {
	r := startTCP(t, Options{})
	target, err := url.Parse("http://" + r.url)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(target); p.SetXForwarded() }})
	defer srv.Close()
	converse(t, srv, srv.URL)
}

func TestOverHTTP2ItIsRefused(t *testing.T) {
	log := new(journal)
	r, srv := startHTTP(t, Options{Logger: log.logger()}, func(s *httptest.Server) { s.EnableHTTP2 = true; s.StartTLS() })
	resp, err := srv.Client().Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.ProtoMajor != 2 || resp.StatusCode != 505 || !strings.Contains(string(b), "HTTP/1.1") {
		t.Errorf("%s, %d, %q", resp.Proto, resp.StatusCode, b)
	}
	if got := log.String(); !strings.Contains(got, "level=INFO") || !strings.Contains(got, "HTTP/1.1 to this server") {
		t.Errorf("in the log: %s", got)
	}
	if st := r.gw.Stats(); st.Refused != 1 {
		t.Errorf("%+v", st)
	}
	srv.Client().CloseIdleConnections()
}
