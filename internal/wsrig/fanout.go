//go:build linux

package wsrig

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-ws/holdfast/internal/cputime"
)

// A Fan makes a server that sends messages to all of its connections.
type Fan func() Fanner

// A Fanner is that server.
type Fanner struct {
	Handler http.Handler

	// Greeting is what a client sends once it is connected.
	Greeting []string

	// Ready returns how many connections would get a message now.
	Ready func() int

	// Broadcast sends so many messages of so many bytes, one right after the other,
	// to all connections, and returns when all are written.
	Broadcast func(messages, size int)
}

// A FanSetting is what to measure.
type FanSetting struct {
	Mode   string
	Conns  int
	Size   int // of a message, in bytes
	Burst  int // messages that are sent at a time; 1 for one at a time
	Rounds int
}

// A FanResult is what was measured, at the server.
type FanResult struct {
	PerMessage time.Duration // CPU time of one message to one connection
	Bytes      float64       // resident memory of an idle connection
	Goroutines float64       // of an idle connection
}

type fanJob struct {
	Fan      string // server or client
	Addr     string
	Greeting []string
	FanSetting
}

const fanEnv = "HOLDFAST_WSRIG_FAN"

type fanStats struct {
	Addr       string
	Greeting   []string
	Ready      int
	Goroutines int
	RSS        int
	CPU        time.Duration
}

// FanMain is as Main, for RunFan.
func FanMain(fans map[string]Fan) {
	text := os.Getenv(fanEnv)
	if text == "" {
		return
	}
	var j fanJob
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		panic(err)
	}
	if j.Fan == "server" {
		fanServer(fans[j.Mode](), j)
	} else {
		fanClient(j)
	}
	os.Exit(0)
}

func fanServer(f Fanner, j fanJob) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go http.Serve(listener, f.Handler)
	out := json.NewEncoder(os.Stdout)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		switch in.Text() {
		case "gc":
			runtime.GC()
			debug.FreeOSMemory()
		case "broadcast":
			f.Broadcast(j.Burst, j.Size)
		}
		out.Encode(fanStats{
			Addr: listener.Addr().String(), Greeting: f.Greeting, Ready: f.Ready(), Goroutines: runtime.NumGoroutine(),
			RSS: rss(), CPU: cputime.Used(),
		})
	}
}

// fanClient connects and reads what comes, without looking at it.
func fanClient(j fanJob) {
	var open atomic.Int64
	var dialling sync.WaitGroup
	work := make(chan int)
	failed := make(chan error, j.Conns)
	for range 32 {
		dialling.Go(func() {
			for range work {
				c, err := dialFan(j.Addr)
				if err != nil {
					failed <- err
					continue
				}
				var greeting []byte
				for _, text := range j.Greeting {
					greeting = append(greeting, 0x81)
					if n := len(text); n < 126 {
						greeting = append(greeting, 0x80|byte(n))
					} else {
						greeting = append(greeting, 0x80|126, byte(n>>8), byte(n))
					}
					greeting = append(append(greeting, 0, 0, 0, 0), text...) // masked with zeros
				}
				if _, err := c.Write(greeting); err != nil {
					failed <- err
					continue
				}
				open.Add(1)
				go func() {
					io.Copy(io.Discard, struct{ io.Reader }{c})
					c.Close()
				}()
			}
		})
	}
	for i := range j.Conns {
		work <- i
	}
	close(work)
	dialling.Wait()
	out := json.NewEncoder(os.Stdout)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		select {
		case err := <-failed:
			out.Encode(clientStats{Failures: []string{err.Error()}})
		default:
			out.Encode(clientStats{Open: int(open.Load())})
		}
	}
}

func dialFan(addr string) (net.Conn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return c, upgrade(c, "Sec-WebSocket-Protocol: holdfast.v1\r\n")
}

// RunFan measures one mode.
func RunFan(s FanSetting) (r FanResult, err error) {
	var errs []error
	server, err := startEnv(fanEnv, fanJob{Fan: "server", FanSetting: s})
	if err != nil {
		return r, err
	}
	defer server.end()
	says := func(line string) fanStats {
		a, err := ask[fanStats](server, line)
		errs = append(errs, err)
		return a
	}
	empty := says("gc")
	clients, err := startEnv(fanEnv, fanJob{Fan: "client", Addr: empty.Addr, Greeting: empty.Greeting, FanSetting: s})
	if err != nil {
		return r, err
	}
	defer clients.end()
	if c, err := ask[clientStats](clients, "stats"); err != nil || c.Open != s.Conns {
		return r, fmt.Errorf("wsrig: %d of %d connected: %v %.3q", c.Open, s.Conns, err, c.Failures)
	}
	for n := 0; says("stats").Ready < s.Conns; n++ {
		if err := errors.Join(errs...); err != nil || n > 1000 {
			return r, fmt.Errorf("wsrig: not all connections became ready: %w", err)
		}
		<-time.After(20 * time.Millisecond)
	}
	<-time.After(time.Second)
	idle := says("gc")
	r.Bytes = float64(idle.RSS-empty.RSS) / float64(s.Conns)
	r.Goroutines = float64(idle.Goroutines-empty.Goroutines) / float64(s.Conns)
	says("broadcast")
	before := says("stats")
	for range s.Rounds {
		says("broadcast")
	}
	after := says("stats")
	r.PerMessage = (after.CPU - before.CPU) / time.Duration(max(1, s.Rounds*s.Burst*s.Conns))
	return r, errors.Join(errs...)
}
