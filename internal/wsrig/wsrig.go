//go:build linux

// Package wsrig measures a WebSocket server on real sockets: what an idle
// connection costs, what a pause of the server does to healthy clients, and how
// soon silent ones are found. The server and its clients are processes of their
// own, copies of the program that measures, so that the figures are the server's
// alone.
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
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-ws/holdfast/internal/cputime"
)

// A Mode makes a server that pings its connections with an interval and gives up
// on those that have not answered after a timeout. Pings returns how many pings it
// has sent.
type Mode func(interval, timeout time.Duration) (handler http.Handler, pings func() int)

// A Setting is what to measure.
type Setting struct {
	Mode              string
	Conns             int
	Interval, Timeout time.Duration
	RTT               time.Duration // how long clients take to answer
	Pause             time.Duration // for which the server is stopped
}

// A Result is what was measured.
type Result struct {
	Bytes      float64       // resident memory of an idle connection
	Goroutines float64       // of an idle connection, with the pings on their way
	CPU        time.Duration // of one ping and its answer, at the server
	Lost       int           // healthy connections lost by the pause
	Silent     int           // connections that fell silent, a few at a time
	Found      int           // and were found
	Mean, Max  time.Duration // from falling silent to that
	All        int           // the rest, that then fell silent at once
	AllFound   int
	AllMax     time.Duration
}

const env = "HOLDFAST_WSRIG"

// A job is what a process is told to be, in its environment.
type job struct {
	Role string
	Addr string // of the server, for the client
	Setting
}

// Main is to be called first thing in main or TestMain. In a process that Run has
// started it does that process's work and exits.
func Main(modes map[string]Mode) {
	text := os.Getenv(env)
	if text == "" {
		return
	}
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		panic(err)
	}
	switch j.Role {
	case "server":
		handler, pings := modes[j.Mode](j.Interval, j.Timeout)
		server(handler, pings)
	case "client":
		client(j.Addr, j.Conns, j.RTT)
	}
	os.Exit(0)
}

// serverStats is what a server process answers on its standard output.
type serverStats struct {
	Addr       string
	Pings      int
	Goroutines int
	RSS        int
	CPU        time.Duration
}

// server serves. For each line on its standard input it answers with its stats;
// the line "gc" frees memory first.
func server(handler http.Handler, pings func() int) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go http.Serve(listener, handler)
	out := json.NewEncoder(os.Stdout)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		if in.Text() == "gc" {
			runtime.GC()
			debug.FreeOSMemory()
		}
		out.Encode(serverStats{
			Addr: listener.Addr().String(), Pings: pings(), Goroutines: runtime.NumGoroutine(),
			RSS: rss(), CPU: cputime.Used(),
		})
	}
}

// rss returns the resident memory of this process.
func rss() int {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		panic(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		panic(err)
	}
	return kb << 10
}

// clientStats is what a client process answers.
type clientStats struct {
	Open     int           // connections
	Lost     int           // of those that answer, closed by the server
	Found    int           // of those that were frozen, closed by the server
	Max      time.Duration // longest time from freezing to that
	Mean     time.Duration
	Failures []string
}

// client keeps n connections that answer pings. A line "freeze k" lets k of them
// fall silent, now.
func client(addr string, n int, rtt time.Duration) {
	var mu sync.Mutex // guards all below
	var stats clientStats
	var found []time.Duration
	frozen := make([]time.Time, n)
	open := make([]bool, n)

	work := make(chan int)
	var dialling sync.WaitGroup
	for range 32 {
		dialling.Go(func() {
			for i := range work {
				c, err := handshake(addr)
				mu.Lock()
				if err != nil {
					stats.Failures = append(stats.Failures, err.Error())
				} else {
					open[i] = true
					stats.Open++
				}
				mu.Unlock()
				if err != nil {
					continue
				}
				go func() {
					answer(c, rtt, func() bool {
						mu.Lock()
						defer mu.Unlock()
						return frozen[i].IsZero()
					})
					mu.Lock()
					defer mu.Unlock()
					stats.Open--
					open[i] = false
					if frozen[i].IsZero() {
						stats.Lost++
					} else {
						found = append(found, time.Since(frozen[i]))
					}
				}()
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	dialling.Wait()

	out := json.NewEncoder(os.Stdout)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		mu.Lock()
		if k, ok := strings.CutPrefix(in.Text(), "freeze "); ok {
			left, err := strconv.Atoi(k)
			if err != nil {
				panic(err)
			}
			for i := range n {
				if left > 0 && open[i] && frozen[i].IsZero() {
					frozen[i] = time.Now()
					left--
				}
			}
		}
		s := stats
		s.Found = len(found)
		if len(found) > 0 {
			s.Max = slices.Max(found)
			for _, d := range found {
				s.Mean += d
			}
			s.Mean /= time.Duration(len(found))
		}
		if in.Text() == "forget" { // those found so far
			found = nil
		}
		mu.Unlock()
		out.Encode(s)
	}
}

func handshake(addr string) (net.Conn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return c, upgrade(c, "")
}

// upgrade makes a WebSocket of a connection.
func upgrade(c net.Conn, headers string) error {
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s\r\n", headers)
	head := make([]byte, 0, 512)
	for b := make([]byte, 1); !strings.HasSuffix(string(head), "\r\n\r\n"); { // and not a byte more
		if _, err := c.Read(b); err != nil {
			return err
		}
		head = append(head, b[0])
	}
	if !strings.HasPrefix(string(head), "HTTP/1.1 101") {
		return fmt.Errorf("%.40s", head)
	}
	return nil
}

// answer answers the pings of a connection until it ends.
func answer(c net.Conn, rtt time.Duration, healthy func() bool) {
	defer c.Close()
	head := make([]byte, 2+125)
	for {
		if _, err := io.ReadFull(c, head[:2]); err != nil {
			return
		}
		size := int(head[1])
		if _, err := io.ReadFull(c, head[2:2+size]); err != nil {
			return
		}
		if head[0] != 0x89 || !healthy() {
			continue
		}
		pong := append([]byte{0x8a, 0x80 | byte(size), 0, 0, 0, 0}, head[2:2+size]...)
		time.Sleep(rtt)
		if _, err := c.Write(pong); err != nil {
			return
		}
	}
}

// A process is one that was started by Run.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func start(j job) (*process, error) { return startEnv(env, j) }

// startEnv starts a copy of this program that is told in its environment what to be.
func startEnv(env string, j any) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), env+"="+string(text))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &process{cmd, in, json.NewDecoder(out)}, cmd.Start()
}

func (p *process) end() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// ask sends a line to a process and returns its answer.
func ask[T any](p *process, line string) (answer T, err error) {
	if _, err := fmt.Fprintln(p.in, line); err != nil {
		return answer, err
	}
	return answer, p.out.Decode(&answer)
}

// Run measures one mode. It takes about ten intervals and a pause.
func Run(s Setting) (r Result, err error) {
	// Errors of the many questions are collected, since all have one cause: that
	// a process has died.
	var errs []error
	server, err := start(job{Role: "server", Setting: s})
	if err != nil {
		return r, err
	}
	defer server.end()
	serverSays := func(line string) serverStats {
		a, err := ask[serverStats](server, line)
		errs = append(errs, err)
		return a
	}
	empty := serverSays("gc")
	clients, err := start(job{Role: "client", Addr: empty.Addr, Setting: s})
	if err != nil {
		return r, err
	}
	defer clients.end()
	clientsSay := func(line string) clientStats {
		a, err := ask[clientStats](clients, line)
		errs = append(errs, err)
		return a
	}
	if c := clientsSay("stats"); c.Open != s.Conns { // answered when all have dialled
		return r, fmt.Errorf("wsrig: %d of %d connected: %.3q", c.Open, s.Conns, c.Failures)
	}
	wait := func(d time.Duration) { <-time.After(d) }
	wait(s.Interval * 13 / 10)

	before := serverSays("stats")
	wait(3 * s.Interval)
	after := serverSays("stats")
	if n := after.Pings - before.Pings; n > 0 {
		r.CPU = (after.CPU - before.CPU) / time.Duration(n)
	}
	idle := serverSays("gc")
	r.Bytes = float64(idle.RSS-empty.RSS) / float64(s.Conns)
	r.Goroutines = float64(idle.Goroutines-empty.Goroutines) / float64(s.Conns)

	// The server stands still.
	errs = append(errs, server.cmd.Process.Signal(syscall.SIGSTOP))
	wait(s.Pause)
	errs = append(errs, server.cmd.Process.Signal(syscall.SIGCONT))
	wait(s.Interval + s.Timeout + time.Second)
	r.Lost = clientsSay("stats").Lost

	// Some fall silent, at several phases of the interval, and then all.
	batch := min(s.Conns/100, (s.Conns-r.Lost)/6)
	for range 3 {
		clientsSay(fmt.Sprint("freeze ", batch))
		wait(s.Interval * 37 / 100)
	}
	r.Silent = 3 * batch
	wait(s.Interval + s.Timeout + 2*time.Second)
	c := clientsSay("forget")
	r.Found, r.Mean, r.Max = c.Found, c.Mean, c.Max
	r.All = s.Conns - r.Lost - r.Silent
	clientsSay(fmt.Sprint("freeze ", s.Conns))
	wait(s.Interval + s.Timeout + 3*time.Second)
	c = clientsSay("stats")
	r.AllFound, r.AllMax = c.Found, c.Max
	if c.Lost != r.Lost {
		errs = append(errs, fmt.Errorf("wsrig: %d healthy connections were lost without a pause", c.Lost-r.Lost))
	}
	return r, errors.Join(errs...)
}
