package memnet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// pair returns both ends of a connection and its link.
func pair(t *testing.T, s Settings) (client, server net.Conn, link *Link) {
	t.Helper()
	n := New(s)
	client, err := n.DialContext(t.Context(), "tcp", "anywhere:80")
	if err != nil {
		t.Fatal(err)
	}
	server, err = n.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, server, n.Links()[0]
}

// took reports how long f takes.
func took(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

func readString(t *testing.T, c net.Conn, n int) string {
	t.Helper()
	buf := make([]byte, n)
	if _, err := io.ReadFull(c, buf); err != nil {
		t.Errorf("reading %d bytes: %v", n, err)
	}
	return string(buf)
}

func TestBytesArriveInOrderAfterTheLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var client, server net.Conn
		if d := took(func() { client, server, _ = pair(t, Settings{Latency: 30 * time.Millisecond}) }); d != 60*time.Millisecond {
			t.Errorf("dialling took %v, want a round trip", d)
		}
		io.WriteString(client, "one ")
		time.Sleep(10 * time.Millisecond)
		io.WriteString(client, "two")
		if d := took(func() {
			if got := readString(t, server, 7); got != "one two" {
				t.Errorf("got %q", got)
			}
		}); d != 30*time.Millisecond {
			t.Errorf("arrived after %v", d)
		}
		// The other way, and the end of the connection.
		io.WriteString(server, "x")
		server.Close()
		if d := took(func() {
			if got, err := io.ReadAll(client); string(got) != "x" || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
		}); d != 30*time.Millisecond {
			t.Errorf("the end arrived after %v", d)
		}
		if got := client.RemoteAddr().String() + " " + server.LocalAddr().String(); got != "192.0.2.1:80 192.0.2.1:80" {
			t.Errorf("addresses %s", got)
		}
		if client.LocalAddr().String() != server.RemoteAddr().String() {
			t.Errorf("addresses %v, %v", client.LocalAddr(), server.RemoteAddr())
		}
	})
}

func TestAFullBufferHoldsTheWriterBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, _ := pair(t, Settings{Buffer: 10})
		data := strings.Repeat("0123456789", 5)
		var written int
		var err error
		done := make(chan struct{})
		go func() {
			defer close(done)
			written, err = io.WriteString(client, data)
		}()
		var got bytes.Buffer
		for range 10 {
			time.Sleep(time.Second)
			synctest.Wait()
			select {
			case <-done:
				t.Fatal("the write returned early")
			default:
			}
			got.WriteString(readString(t, server, 4))
		}
		got.WriteString(readString(t, server, 10))
		<-done
		if written != 50 || err != nil || got.String() != data {
			t.Errorf("wrote %d, %v, read %q", written, err, got.String())
		}
	})
}

func TestWritesDoNotInterleave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, _ := pair(t, Settings{Buffer: 10})
		var wg sync.WaitGroup
		for _, letter := range []string{"a", "b", "c"} {
			wg.Go(func() {
				if n, err := io.WriteString(client, strings.Repeat(letter, 40)); n != 40 || err != nil {
					t.Errorf("%s: wrote %d, %v", letter, n, err)
				}
			})
		}
		got := readString(t, server, 120)
		wg.Wait()
		for _, letter := range []string{"a", "b", "c"} {
			if !strings.Contains(got, strings.Repeat(letter, 40)) {
				t.Errorf("read %s", got)
			}
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, _ := pair(t, Settings{Buffer: 10})
		client.SetDeadline(time.Now().Add(3 * time.Second))
		var err error
		if d := took(func() { _, err = client.Read(make([]byte, 1)) }); d != 3*time.Second || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read ended after %v with %v", d, err)
		}
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%v is no timeout", err)
		}
		if n, err := client.Write([]byte("x")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write after its deadline = %d, %v", n, err)
		}
		client.SetDeadline(time.Time{})
		client.SetWriteDeadline(time.Now().Add(time.Second))
		var n int
		if d := took(func() { n, err = client.Write(make([]byte, 25)) }); d != time.Second || n != 10 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write of too much ended after %v with %d, %v", d, n, err)
		}
		if got := readString(t, server, 10); len(got) != 10 {
			t.Errorf("read %q", got)
		}
		// A deadline set while a read waits ends it.
		time.AfterFunc(time.Minute, func() { server.SetReadDeadline(time.Now()) })
		if d := took(func() { _, err = server.Read(make([]byte, 1)) }); d != time.Minute || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read ended after %v with %v", d, err)
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, _ := pair(t, Settings{})
		var err error
		time.AfterFunc(time.Second, func() { client.Close() })
		if d := took(func() { _, err = client.Read(make([]byte, 1)) }); d != time.Second || !errors.Is(err, net.ErrClosed) {
			t.Errorf("Read of a conn that is closed ended after %v with %v", d, err)
		}
		if _, err := client.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Write to a closed conn: %v", err)
		}
		if err := client.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Close of a closed conn: %v", err)
		}
		if _, err := server.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("Read from a closed peer: %v", err)
		}
		if _, err := server.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("Write to a closed peer: %v", err)
		}
	})
}

func TestStallLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, link := pair(t, Settings{Buffer: 10})
		link.Stall(Up, true)
		io.WriteString(server, "down")
		readString(t, client, 4)
		io.WriteString(client, "0123456789") // fills the buffer
		time.AfterFunc(time.Minute, func() { link.Stall(Up, false) })
		go io.WriteString(client, "x")
		if d := took(func() {
			if got := readString(t, server, 11); got != "0123456789x" {
				t.Errorf("got %q", got)
			}
		}); d != time.Minute {
			t.Errorf("arrived after %v", d)
		}
	})
}

func TestBlackholeSwallowsBytesAndTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, link := pair(t, Settings{Buffer: 10})
		link.Blackhole(Up)
		io.WriteString(client, "lost")
		io.WriteString(server, "still")
		if got := readString(t, client, 5); got != "still" {
			t.Errorf("the other way: %q", got)
		}
		client.Close()
		server.SetReadDeadline(time.Now().Add(time.Hour))
		if n, err := server.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the server reads %d, %v: it must not notice the end", n, err)
		}

		client, server, link = pair(t, Settings{Buffer: 10})
		link.Blackhole(Both)
		server.Close()
		client.SetDeadline(time.Now().Add(time.Hour))
		if n, err := client.Write(make([]byte, 15)); n != 10 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the client writes %d, %v: as much as the buffer holds, and waits", n, err)
		}
	})
}

func TestReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, link := pair(t, Settings{})
		io.WriteString(client, "lost")
		time.AfterFunc(time.Second, link.Reset)
		var err error
		if d := took(func() { _, err = client.Read(make([]byte, 1)) }); d != time.Second || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("Read ended after %v with %v", d, err)
		}
		for name, do := range map[string]func([]byte) (int, error){
			"client write": client.Write, "server read": server.Read, "server write": server.Write,
		} {
			if n, err := do(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s = %d, %v", name, n, err)
			}
		}
	})
}

func TestCutAfterEndsInTheMiddleOfAMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, cut := range []int{0, 1, 5, 10} {
			client, server, link := pair(t, Settings{Latency: time.Millisecond})
			link.CutAfter(Up, cut)
			n, err := io.WriteString(client, "0123456789x")
			if n != cut || !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("cut after %d: wrote %d, %v", cut, n, err)
			}
			got, err := io.ReadAll(server)
			if string(got) != "0123456789"[:cut] || !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("cut after %d: read %q, %v", cut, got, err)
			}
			if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("cut after %d: the writer reads %v", cut, err)
			}
			if _, err := server.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("cut after %d: the reader writes %v", cut, err)
			}
		}
		// A writer that only reads learns of it from the reader.
		client, server, link := pair(t, Settings{})
		link.CutAfter(Up, 3)
		io.WriteString(client, "abc")
		if got, err := io.ReadAll(server); string(got) != "abc" || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read %q, %v", got, err)
		}
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the writer reads %v", err)
		}
	})
}

func TestEndAfterEndsInTheMiddleOfAMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, link := pair(t, Settings{Latency: time.Millisecond})
		link.EndAfter(Up, 5)
		if n, err := io.WriteString(client, "0123456789"); n != 5 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("wrote %d, %v", n, err)
		}
		if got, err := io.ReadAll(server); string(got) != "01234" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		if _, err := server.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the reader writes %v", err)
		}
	})
}

func TestDialsThatFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Settings{Refuse: true, Latency: time.Second})
		var err error
		if d := took(func() { _, err = n.DialContext(t.Context(), "tcp", "") }); d != 2*time.Second || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("refused after %v with %v", d, err)
		}
		n.Set(Settings{Swallow: true})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if d := took(func() { _, err = n.DialContext(ctx, "tcp", "") }); d != time.Minute || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("swallowed for %v, %v", d, err)
		}
		n.Set(Settings{Latency: time.Hour})
		ctx, cancel = context.WithTimeout(t.Context(), 90*time.Minute) // the answer is still under way
		defer cancel()
		if _, err := n.DialContext(ctx, "tcp", ""); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("too slow: %v", err)
		}
		n.Set(Settings{})
		client, err := n.DialContext(t.Context(), "tcp", "")
		if err != nil {
			t.Fatal(err)
		}
		n.Close()
		n.Close()
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a connection that nobody accepted: %v", err)
		}
		if _, err := n.DialContext(t.Context(), "tcp", ""); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("after Close: %v", err)
		}
		if _, err := n.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: %v", err)
		}
		if n.Dials() != 5 || len(n.Links()) != 0 {
			t.Errorf("%d dials, %d links", n.Dials(), len(n.Links()))
		}
	})
}

// serve runs a real HTTP server on n and returns a client for it.
func serve(t *testing.T, n *Network, h http.HandlerFunc) *http.Client {
	server := &http.Server{Handler: h}
	var wg sync.WaitGroup
	wg.Go(func() { server.Serve(n) })
	transport := &http.Transport{DialContext: n.DialContext, DisableKeepAlives: true}
	t.Cleanup(func() {
		server.Close()
		transport.CloseIdleConnections()
		wg.Wait()
	})
	return &http.Client{Transport: transport}
}

func TestARealHTTPServerRunsOverIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Settings{Latency: 10 * time.Millisecond, Buffer: 1000})
		client := serve(t, n, func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%d bytes, %v\n", len(body), err)
		})
		for range 20 {
			resp, err := client.Post("http://server/", "text/plain", strings.NewReader(strings.Repeat("x", 100_000)))
			if err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(resp.Body).ReadString('\n')
			resp.Body.Close()
			if line != "100000 bytes, <nil>\n" || err != nil {
				t.Errorf("%q, %v", line, err)
			}
		}
	})
}

// A half-open link is found by a real WebSocket's pings at an exact instant:
// pings at 20, 40 and 60 s are answered, the link goes dark at 65 s, and the ping
// of 80 s times out at 90 s.
func TestARealWebSocketRunsOverIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Settings{Latency: 5 * time.Millisecond})
		found := make(chan time.Duration, 1)
		client := serve(t, n, func(w http.ResponseWriter, r *http.Request) {
			c, err := websocket.Accept(w, r, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.CloseNow()
			ctx, born := c.CloseRead(context.Background()), time.Now()
			for {
				time.Sleep(time.Until(born.Add(time.Since(born).Truncate(20*time.Second) + 20*time.Second)))
				ping, cancel := context.WithTimeout(ctx, 10*time.Second)
				err := c.Ping(ping)
				cancel()
				if err != nil {
					found <- time.Since(born)
					return
				}
			}
		})
		c, _, err := websocket.Dial(t.Context(), "ws://server/", &websocket.DialOptions{HTTPClient: client})
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseNow()
		gone := c.CloseRead(context.Background())
		time.Sleep(65 * time.Second)
		n.Links()[0].Blackhole(Both)
		if got := <-found; got != 90*time.Second {
			t.Errorf("found after %v", got)
		}
		if gone.Err() != nil {
			t.Error("the client noticed: the link was not half-open")
		}
	})
}
