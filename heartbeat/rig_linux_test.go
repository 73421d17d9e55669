package heartbeat

import (
	"bufio"
	"context"
	"encoding/json"
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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/internal/leak"
)

// The rig: a server process with many real WebSocket connections over loopback,
// and a client process at their other ends, so that the figures are the server's
// alone. This file's benchmark starts both, as copies of the test binary.

func TestMain(m *testing.M) {
	switch os.Getenv("HEARTBEAT_RIG") {
	case "server":
		rigServer()
	case "client":
		rigClient()
	default:
		leak.Main(m)
	}
}

func env(name string) int {
	n, err := strconv.Atoi(os.Getenv(name))
	if err != nil {
		panic(name + ": " + err.Error())
	}
	return n
}

// serverStats is what a server process answers on its standard output.
type serverStats struct {
	Addr              string `json:",omitempty"`
	Conns, Pings      int
	Dead              map[Reason]int
	Goroutines        int
	RSS, CPU, StallMS int // bytes, microseconds, milliseconds
}

// rigServer serves WebSockets, watched by a monitor ("wrap"), or in the usual way,
// with a goroutine and a ticker for each ("ticker"). For each line on its
// standard input it answers with its stats; the line "gc" frees memory first.
func rigServer() {
	interval := time.Duration(env("HEARTBEAT_INTERVAL")) * time.Millisecond
	timeout := time.Duration(env("HEARTBEAT_TIMEOUT")) * time.Millisecond
	var conns, pings, reaped atomic.Int64
	m, err := New(Config{Interval: interval, Timeout: timeout, OnDead: func(*Peer, Verdict) { reaped.Add(1) }})
	if err != nil {
		panic(err)
	}
	read := func(c *websocket.Conn) {
		conns.Add(1)
		defer conns.Add(-1)
		for {
			if _, _, err := c.Read(context.Background()); err != nil {
				return
			}
		}
	}
	wrap := func(w http.ResponseWriter, r *http.Request) {
		p, err := m.NewPeer(nil)
		if err != nil {
			panic(err)
		}
		c, err := websocket.Accept(p.WrapWriter(w), r, nil)
		if err != nil {
			return
		}
		if err := p.Watch(c); err != nil {
			panic(err)
		}
		go func() { // the handler returns: its request and buffers are memory
			read(c)
			p.Stop()
			c.CloseNow()
		}()
	}
	ticker := func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() {
			tick := time.NewTicker(interval)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				pings.Add(1)
				ping, cancel := context.WithTimeout(ctx, timeout)
				err := c.Ping(ping)
				cancel()
				if err != nil && ctx.Err() == nil {
					reaped.Add(1)
					c.CloseNow()
					return
				}
			}
		}()
		read(c)
	}
	handler := map[string]http.HandlerFunc{"wrap": wrap, "ticker": ticker}[os.Getenv("HEARTBEAT_MODE")]
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
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			panic(err)
		}
		s := m.Stats()
		if os.Getenv("HEARTBEAT_MODE") == "ticker" {
			s.Probes = int(pings.Load())
			s.Dead = map[Reason]int{NoAnswer: int(reaped.Load())}
		}
		out.Encode(serverStats{
			Addr: listener.Addr().String(), Conns: int(conns.Load()), Pings: s.Probes, Dead: s.Dead,
			Goroutines: runtime.NumGoroutine(), RSS: rss(), CPU: int((u.Utime.Nano() + u.Stime.Nano()) / 1000),
			StallMS: int(s.StallTime.Milliseconds()),
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
	Open     int // connections
	Lost     int // of those that answer, closed by the server
	Found    int // of those that were frozen, closed by the server
	MaxMS    int // longest time from freezing to that
	MeanMS   int // and the mean
	Failures []string
}

// rigClient keeps connections that answer pings. A line "freeze n" lets n of them
// fall silent, now.
func rigClient() {
	n, addr := env("HEARTBEAT_CONNS"), os.Getenv("HEARTBEAT_ADDR")
	rtt := time.Duration(env("HEARTBEAT_RTT")) * time.Millisecond
	var mu sync.Mutex // guards all below
	var stats clientStats
	var found []int
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
						found = append(found, int(time.Since(frozen[i]).Milliseconds()))
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
			s.MaxMS = slices.Max(found)
			for _, ms := range found {
				s.MeanMS += ms
			}
			s.MeanMS /= len(found)
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
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	head := make([]byte, 0, 512)
	for b := make([]byte, 1); !strings.HasSuffix(string(head), "\r\n\r\n"); { // and not a byte more
		if _, err := c.Read(b); err != nil {
			return nil, err
		}
		head = append(head, b[0])
	}
	if !strings.HasPrefix(string(head), "HTTP/1.1 101") {
		return nil, fmt.Errorf("%.40s", head)
	}
	return c, nil
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

// A process of the rig.
type process struct {
	b   *testing.B
	cmd *exec.Cmd
	in  io.Writer
	out *json.Decoder
}

func startProcess(b *testing.B, role string, env ...string) *process {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), "HEARTBEAT_RIG="+role), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &process{b, cmd, in, json.NewDecoder(out)}
}

func ask[T any](p *process, line string) (answer T) {
	p.b.Helper()
	if _, err := fmt.Fprintln(p.in, line); err != nil {
		p.b.Fatal(err)
	}
	if err := p.out.Decode(&answer); err != nil {
		p.b.Fatal(err)
	}
	return answer
}

// BenchmarkRig is targets P7, P8 and P9 on real sockets: memory and goroutines of
// an idle connection, processor time of a ping, what a pause of the server costs
// healthy peers, and how fast silent peers are found, a few and all at once.
//
// "ticker" is coder/websocket as it is usually written. With -short it only shows
// that the rig runs.
func BenchmarkRig(b *testing.B) {
	conns, interval, timeout, rtt := 10_000, 5000, 3000, 200
	if testing.Short() {
		conns, interval, timeout, rtt = 200, 1000, 500, 50
	}
	for _, mode := range []string{"wrap", "ticker"} {
		b.Run(fmt.Sprintf("%s/conns=%d/interval=%dms/timeout=%dms", mode, conns, interval, timeout), func(b *testing.B) {
			if b.N > 1 {
				b.Skip("once is enough, and takes a minute")
			}
			runRig(b, mode, conns, interval, timeout, rtt)
		})
	}
}

func runRig(b *testing.B, mode string, conns, interval, timeout, rtt int) {
	ms := func(n int) { <-time.After(time.Duration(n) * time.Millisecond) }
	number := func(name string, n int) string { return name + "=" + strconv.Itoa(n) }
	server := startProcess(b, "server", "HEARTBEAT_MODE="+mode, number("HEARTBEAT_INTERVAL", interval), number("HEARTBEAT_TIMEOUT", timeout))
	empty := ask[serverStats](server, "gc")
	client := startProcess(b, "client", "HEARTBEAT_ADDR="+empty.Addr, number("HEARTBEAT_CONNS", conns), number("HEARTBEAT_RTT", rtt))
	if s := ask[clientStats](client, "stats"); s.Open != conns { // answered when all are connected
		b.Fatalf("%+v", s)
	}
	ms(interval * 13 / 10)

	before := ask[serverStats](server, "stats")
	ms(3 * interval)
	after := ask[serverStats](server, "stats")
	b.ReportMetric(float64(after.CPU-before.CPU)/float64(after.Pings-before.Pings), "cpu-µs/ping")
	idle := ask[serverStats](server, "gc")
	b.ReportMetric(float64(idle.RSS-empty.RSS)/float64(conns), "B/conn")
	b.ReportMetric(float64(idle.Goroutines-empty.Goroutines)/float64(conns), "goroutines/conn")
	if idle.Conns != conns {
		b.Errorf("before any fault: %+v", idle)
	}

	// The server stands still.
	server.cmd.Process.Signal(syscall.SIGSTOP)
	ms(2 * timeout)
	server.cmd.Process.Signal(syscall.SIGCONT)
	ms(interval + timeout + 1000)
	lost := ask[clientStats](client, "stats").Lost
	b.ReportMetric(float64(lost), "lost-by-pause")

	// Some fall silent, at several phases of the interval, and then all.
	healthy := conns - lost
	few := conns * 3 / 100
	for range 3 {
		ask[clientStats](client, fmt.Sprint("freeze ", few/3))
		ms(interval * 37 / 100)
	}
	ms(interval + timeout + 2000)
	s := ask[clientStats](client, "stats")
	b.ReportMetric(float64(s.MaxMS), "max-ms-to-find")
	b.ReportMetric(float64(s.MeanMS), "mean-ms-to-find")
	if s.Found != few/3*3 {
		b.Errorf("%d of %d silent peers found", s.Found, few/3*3)
	}
	ask[clientStats](client, fmt.Sprint("freeze ", conns))
	ms(interval + timeout + 3000)
	s = ask[clientStats](client, "stats")
	b.ReportMetric(float64(s.MaxMS), "max-ms-to-find-all")
	if s.Found != healthy || s.Lost != lost {
		b.Errorf("all silent: %+v", s)
	}
	b.ReportMetric(0, "ns/op")
	if mode == "wrap" && lost > 0 {
		b.Errorf("%d healthy peers lost by a pause of %d ms", lost, 2*timeout)
	}
}
