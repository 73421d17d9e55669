// Anyserver follows a WebSocket server that knows nothing of this library, with
// client.Sessions, and prints what happens: when it dials, what goes wrong, how long it
// waits because of that, and what the server says.
//
//	go run ./examples/anyserver                      # a server of its own, which misbehaves
//	go run ./examples/anyserver wss://example.com/   # or yours
//
// Its own server drops connections, answers 503 with Retry-After, accepts and closes at
// once, and restarts. It ends with
//
//	--- the server: up again
//	dial 3: connected
//	session 5: "tick 1"
//	session 5: "tick 2"
//	session 5: "tick 3"
//	the end: client: session with ws://127.0.0.1:40123/ticks ended for good: […] reason = "that was all"
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	out := &lines{to: os.Stdout}
	switch len(os.Args) {
	case 1:
		if err := show(ctx, out); err != nil {
			log.Fatal(err)
		}
	case 2:
		out.print("the end: %v", follow(ctx, out, os.Args[1], nil))
	default:
		log.Fatal("usage: anyserver [URL]")
	}
}

// show follows a server of its own.
func show(ctx context.Context, out *lines) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr := listener.Addr().String()
	s := &server{out: out, listen: func() (net.Listener, error) {
		if l := listener; l != nil {
			listener = nil
			return l, nil
		}
		return net.Listen("tcp", addr)
	}}
	ctx, cancel := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() {
		served <- s.run(ctx)
		cancel()
	}()
	out.print("the end: %v", follow(ctx, out, "ws://"+addr+"/ticks", impatient()))
	cancel()
	return <-served
}

// impatient are options for people who watch: with the defaults the first dial after a
// loss is made within five seconds, and the windows grow to thirty.
func impatient() *client.Options {
	return &client.Options{
		Backoff: backoff.Policy{Base: 200 * time.Millisecond, Cap: 2 * time.Second},
		First:   time.Second,
		// Of this server we know that it says 1000 when there is no more to come. From
		// others that may be a proxy that restarts, and we would come back.
		Decide: func(err error) client.Verdict {
			if websocket.CloseStatus(err) == websocket.StatusNormalClosure {
				return client.Final
			}
			return client.Decide(err)
		},
	}
}

// follow prints what a server says until ctx ends or there is no point in going on, and
// returns which.
func follow(ctx context.Context, out *lines, url string, o *client.Options) error {
	if o == nil {
		o = &client.Options{}
	}
	o.Trace = &client.Trace{
		DialDone: func(_ string, attempt int, err error) {
			if err == nil {
				out.print("dial %d: connected", attempt)
			}
		},
		Down: func(s *client.Session, err error, wait time.Duration) {
			if wait > 0 {
				out.print("session %d: lost: %v; next dial in %v", s.Number, err, wait.Round(time.Millisecond))
			}
		},
	}
	var last error
	for s, err := range client.Sessions(ctx, url, o) {
		if err != nil {
			if failed, ok := err.(*client.DialError); ok && !failed.Final {
				out.print("%v", err) // and the next attempt comes
			}
			last = err
			continue
		}
		for {
			_, data, err := s.Read(s.Context())
			if err != nil {
				s.End(err)
				break
			}
			out.print("session %d: %.100q", s.Number, data)
		}
	}
	return last
}

// lines prints lines from several goroutines.
type lines struct {
	mu sync.Mutex // guards to
	to io.Writer
}

func (l *lines) print(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.to, format+"\n", args...)
}

// A server does something else with each client that comes.
type server struct {
	out    *lines
	listen func() (net.Listener, error)

	restart chan struct{}
	mu      sync.Mutex // guards clients
	clients int
}

// run serves until ctx ends, and is away for a while when a handler asks for a restart.
func (s *server) run(ctx context.Context) error {
	s.restart = make(chan struct{}, 1)
	for {
		listener, err := s.listen()
		if err != nil {
			return err
		}
		// Handlers end with the server: their requests' contexts come from this one.
		alive, kill := context.WithCancel(ctx)
		h := &http.Server{Handler: s, BaseContext: func(net.Listener) context.Context { return alive }}
		var handlers sync.WaitGroup
		handlers.Go(func() { h.Serve(listener) })
		select {
		case <-s.restart:
			s.out.print("--- the server: goes down for two seconds")
		case <-ctx.Done():
		}
		kill()
		h.Close()
		handlers.Wait()
		if backoff.Sleep(ctx, 2*time.Second) != nil {
			return nil
		}
		s.out.print("--- the server: up again")
	}
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.clients++
	n := s.clients
	s.mu.Unlock()
	if n == 2 {
		s.out.print("--- the server: is busy, and says so")
		w.Header().Set("Retry-After", "2")
		http.Error(w, "busy", http.StatusServiceUnavailable)
		return
	}
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer c.CloseNow()
	ctx := c.CloseRead(r.Context())
	ticks, code, reason := 0, websocket.StatusCode(0), ""
	switch n {
	case 1:
		s.out.print("--- the server: will break the connection")
		ticks = 2
	case 3:
		s.out.print("--- the server: will close with 1001, as proxies do when they restart")
		ticks, code = 1, websocket.StatusGoingAway
	case 4:
		s.out.print("--- the server: accepts and breaks the connection at once")
	case 5:
		s.out.print("--- the server: once more, and restarts")
		s.restart <- struct{}{}
	default:
		ticks, code, reason = 3, websocket.StatusNormalClosure, "that was all"
	}
	for i := range ticks {
		if err := c.Write(ctx, websocket.MessageText, fmt.Appendf(nil, "tick %d", i+1)); err != nil {
			return
		}
		if backoff.Sleep(ctx, 300*time.Millisecond) != nil {
			return
		}
	}
	if code != 0 {
		c.Close(code, reason)
	}
}
