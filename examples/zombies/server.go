package main

import (
	"bufio"
	"context"
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
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/heartbeat"
)

// A server watches WebSockets and remembers who was dropped, and how soon.
type server struct {
	monitor *heartbeat.Monitor
	conns   sync.WaitGroup

	mu     sync.Mutex // guards found
	found  map[heartbeat.Reason][]time.Duration
	faults time.Time // when the last zombies were made
}

func newServer(p plan) (*server, error) {
	s := &server{found: map[heartbeat.Reason][]time.Duration{}}
	var err error
	s.monitor, err = heartbeat.New(heartbeat.Config{
		Interval: p.interval, Timeout: p.timeout,
		OnDead: func(_ *heartbeat.Peer, v heartbeat.Verdict) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.found[v.Reason] = append(s.found[v.Reason], time.Since(s.faults))
		},
	})
	return s, err
}

// ServeHTTP accepts a WebSocket. Its handler returns at once, which saves memory:
// the request and its buffers are not needed any more.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	peer, err := s.monitor.NewPeer(nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	conn, err := websocket.Accept(peer.WrapWriter(w), r, nil)
	if err != nil {
		return
	}
	if err := peer.Watch(conn); err != nil {
		conn.CloseNow()
		return
	}
	s.conns.Go(func() {
		defer conn.CloseNow()
		defer peer.Stop()
		for {
			_, message, err := conn.Read(context.Background())
			if err != nil {
				return
			}
			if string(message) == "more" { // a client that asks for data
				s.conns.Go(func() {
					data := make([]byte, 64<<10)
					for conn.Write(context.Background(), websocket.MessageBinary, data) == nil {
					}
				})
			}
		}
	})
}

// show runs the server and its clients, and says what happens.
func show(ctx context.Context, p plan, out io.Writer) error {
	s, err := newServer(p)
	if err != nil {
		return err
	}
	defer s.monitor.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	web := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { web.Serve(listener) })
	defer func() {
		web.Close()
		serving.Wait()
		s.conns.Wait() // the clients have ended
	}()
	table := &screen{out: out, plain: p.plain, server: s, conns: p.conns, start: time.Now()}
	table.line("%d connections, interval %v, timeout %v: a zombie is to be found within %v", p.conns, p.interval, p.timeout, p.interval+p.timeout)

	before := memory()
	clients, err := startClients(ctx, listener.Addr().String(), p.conns)
	if err != nil {
		return err
	}
	defer clients.stop()
	table.line("all connected, %.1f KB of memory each", float64(memory()-before)/1000/float64(p.conns))

	never := func() bool { return false }
	if err := table.watch(ctx, p.interval, never); err != nil {
		return err
	}
	if p.pause > 0 {
		table.line("the server stands still for %v …", p.pause)
		if err := standStill(p.pause); err != nil {
			return fmt.Errorf("the server cannot stand still (-pause 0 leaves it out): %w", err)
		}
		if err := table.watch(ctx, p.interval+p.timeout+time.Second, never); err != nil {
			return err
		}
		if n := s.monitor.Stats().Watched; n != p.conns {
			return fmt.Errorf("%d of %d healthy connections were lost by a pause of %v", p.conns-n, p.conns, p.pause)
		}
		table.line("… and has lost nobody")
	}
	left := p.conns
	for _, kind := range []string{"silent", "dark", "greedy"} {
		table.line("%d clients turn %s", p.conns/9, kind)
		s.mu.Lock()
		s.faults = time.Now()
		s.mu.Unlock()
		if err := clients.say(kind); err != nil {
			return err
		}
		left -= p.conns / 9
		found := func() bool { return s.monitor.Stats().Watched <= left }
		if err := table.watch(ctx, p.interval+p.timeout+20*time.Second, found); err != nil {
			return err
		}
	}
	table.line("done, %.1f KB of memory for each that is left", float64(memory()-before)/1000/float64(max(1, s.monitor.Stats().Watched)))
	table.draw()
	return s.check(p)
}

// check says whether all zombies were found, and only they.
func (s *server) check(p plan) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	zombies := p.conns / 9 * 3
	var errs []error
	if left := s.monitor.Stats().Watched; left != p.conns-zombies {
		errs = append(errs, fmt.Errorf("%d connections are left of %d with %d zombies", left, p.conns, zombies))
	}
	for reason, times := range s.found {
		if reason != heartbeat.NoAnswer && reason != heartbeat.WriteBlocked {
			errs = append(errs, fmt.Errorf("%d dropped with the reason %q", len(times), reason))
		}
	}
	return errors.Join(errs...)
}

// memory returns what this process holds, without garbage.
func memory() int64 {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.Sys - m.HeapReleased)
}

// Clients are a process full of clients.
type clients struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startClients(ctx context.Context, addr string, n int) (*clients, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "-clients-of", addr, "-conns", fmt.Sprint(n))
	cmd.Env = append(os.Environ(), "ZOMBIES_CLIENTS=1") // for the test, which runs itself
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &clients{cmd, in, bufio.NewScanner(out)}
	if err := c.answered(); err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

func (c *clients) say(line string) error {
	if _, err := fmt.Fprintln(c.in, line); err != nil {
		return err
	}
	return c.answered()
}

func (c *clients) answered() error {
	if !c.out.Scan() {
		return errors.Join(errors.New("the clients have ended"), c.out.Err())
	}
	return nil
}

func (c *clients) stop() {
	c.in.Close()
	c.cmd.Wait()
}

// A screen is the table in the terminal.
type screen struct {
	out    io.Writer
	plain  bool
	server *server
	conns  int
	start  time.Time
	lines  []string
	drawn  int
}

// line adds a line of the story.
func (s *screen) line(format string, args ...any) {
	line := fmt.Sprintf("%5.1f s  ", time.Since(s.start).Seconds()) + fmt.Sprintf(format, args...)
	s.lines = append(s.lines, line)
	if s.plain {
		fmt.Fprintln(s.out, line)
	}
}

// watch draws the table for a time, or until what it waits for is so.
func (s *screen) watch(ctx context.Context, d time.Duration, until func() bool) error {
	end := time.NewTimer(d)
	defer end.Stop()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-end.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			if !s.plain {
				s.draw()
			}
			if until() {
				return nil
			}
		}
	}
}

// draw draws all that there is to see, over what was drawn before.
func (s *screen) draw() {
	var rows []string
	if !s.plain {
		rows = append(rows, s.lines...)
	}
	st := s.server.monitor.Stats()
	rows = append(rows, fmt.Sprintf("         watched %d of %d, %d probes, %d stalls of %v in all",
		st.Watched, s.conns, st.Probes, st.Stalls, st.StallTime.Round(100*time.Millisecond)))
	rows = append(rows, fmt.Sprintf("         %-14s %6s %8s %8s", "verdict", "peers", "mean s", "worst s"))
	s.server.mu.Lock()
	for _, reason := range []heartbeat.Reason{heartbeat.NoAnswer, heartbeat.WriteBlocked, heartbeat.ReaderStuck, heartbeat.Closed, heartbeat.TooOld, heartbeat.PingFlood} {
		if times := s.server.found[reason]; len(times) > 0 {
			var sum time.Duration
			for _, t := range times {
				sum += t
			}
			rows = append(rows, fmt.Sprintf("         %-14s %6d %8.2f %8.2f", reason, len(times),
				(sum/time.Duration(len(times))).Seconds(), slices.Max(times).Seconds()))
		}
	}
	s.server.mu.Unlock()
	if s.drawn > 0 {
		fmt.Fprintf(s.out, "\x1b[%dA", s.drawn)
	}
	for _, row := range rows {
		s.row(row)
	}
	if !s.plain {
		s.drawn = len(rows)
	}
}

func (s *screen) row(row string) {
	if !s.plain {
		row = "\x1b[2K" + row // clears what was there
	}
	fmt.Fprintln(s.out, row)
}
