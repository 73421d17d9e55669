// Package redistest runs real redis-server processes for tests and examples:
// one alone, replicas, Sentinels, a Cluster. It needs a redis-server of version 7
// or later on the PATH, and no client library: commands go as Redis's inline
// commands over a connection of their own.
//
// [Start] and what builds on it are for tests: they end with the test, and where
// there is no redis-server the test is skipped, or fails under CI=true. [Launch]
// is for programs. Servers keep nothing on disk unless told to.
//
// On Linux no server outlives its process, however that ends. On other systems
// servers outlive a process that is killed, or that panics.
//
// Faults: [Server.Kill], [Server.Pause], [Server.Wipe], Do("CLIENT KILL TYPE
// pubsub"), Do("DEBUG SLEEP 0.3"), Do("FLUSHALL"). For a failover that loses
// acknowledged writes, let a [Replica] follow its master through a faultproxy,
// open the hole, write, kill the master, and [Server.Promote] the replica.
// Pausing a replica loses nothing: what was sent to it waits in its socket.
package redistest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	binary  = "redis-server"
	logFile = "redis-server.log"

	// bootTime is how long a server may take until it answers.
	bootTime = 20 * time.Second

	// poll is how often we look whether something has happened in another process.
	poll = 5 * time.Millisecond
)

// options of every server but Sentinels, which do not know them: nothing is kept
// on disk, faults can be caused, and replicas follow without delay.
var options = []string{
	"--save", "", "--appendonly", "no",
	"--enable-debug-command", "local",
	"--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1",
}

// A Server is a redis-server process on a port of 127.0.0.1 that stays its own
// when it is restarted. Its methods may be used by any number of goroutines, but
// Restart, Relaunch and Wipe by one at a time.
type Server struct {
	port int
	dir  string
	args []string

	mu  sync.Mutex // guards run
	run *run
}

// run is one life of a server.
type run struct {
	process *os.Process
	ended   chan struct{} // closed when the process has ended
}

// Launch starts a redis-server with the given options, in addition to our own,
// over which they win: "--appendonly", "yes", "--appendfsync", "always". The port
// and the address are chosen here. The server's data and its log are in dir,
// which must exist. The caller must Kill it. Launch returns when the server
// answers. Most tests want [Start].
func Launch(dir string, args ...string) (*Server, error) {
	if _, err := exec.LookPath(binary); err != nil {
		return nil, fmt.Errorf("redistest: %w", err)
	}
	for tries := 1; ; tries++ {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		s := &Server{port: port, dir: dir, args: slices.Clone(args)}
		if err = s.boot(); err == nil {
			return s, nil
		}
		// Another process may have taken the port meanwhile.
		if tries == 5 || !strings.Contains(err.Error(), "Address already in use") {
			return nil, err
		}
	}
}

// Addr returns the server's address as host:port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// Port returns the server's port.
func (s *Server) Port() int { return s.port }

// Dir returns the folder with the server's files: redis-server.log, and with
// persistence dump.rdb or appendonlydir.
func (s *Server) Dir() string { return s.dir }

// Kill ends the process with SIGKILL, also a paused one, and returns when it is
// gone. A server that is not running stays as it is.
func (s *Server) Kill() {
	if r := s.current(); r != nil {
		r.process.Kill() // fails only if it has ended already
		<-r.ended
	}
}

// Pause stops the process with SIGSTOP: the kernel goes on accepting connections
// and bytes for it, and nobody answers. On Linux it does nothing more once Pause
// has returned. It may be killed while paused. Nothing happens to a server that
// is not running.
func (s *Server) Pause() {
	if r := s.current(); r != nil {
		pause(r)
	}
}

// Resume lets a paused process go on with SIGCONT.
func (s *Server) Resume() {
	if r := s.current(); r != nil {
		resume(r)
	}
}

// Relaunch is Restart for use outside of tests.
func (s *Server) Relaunch() error {
	s.Kill()
	return s.boot()
}

func (s *Server) current() *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.run
}

// boot starts the process and waits until it answers.
func (s *Server) boot() error {
	// A file, and not a pipe, so that no goroutine has to copy.
	log, err := os.OpenFile(filepath.Join(s.dir, logFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o666)
	if err != nil {
		return fmt.Errorf("redistest: %w", err)
	}
	cmd := exec.Command(binary, s.commandLine()...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = attributes()
	started, ended := make(chan error), make(chan struct{})
	go func() { // Kill waits for its end
		defer close(ended)
		// Linux kills the process when the thread that started it ends, so this
		// thread waits, and does nothing else, as long as the process lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
	}()
	err = <-started
	log.Close() // the process has its own
	if err != nil {
		<-ended
		return fmt.Errorf("redistest: %w", err)
	}
	r := &run{cmd.Process, ended}
	s.mu.Lock()
	s.run = r
	s.mu.Unlock()

	// Its id must be right, for on a port that another process took in time it is
	// a stranger that answers.
	id := fmt.Sprintf("process_id:%d\r\n", r.process.Pid)
	for end := time.Now().Add(bootTime); time.Now().Before(end); time.Sleep(poll) {
		select {
		case <-ended:
			return fmt.Errorf("redistest: %s ended at once:\n%s", binary, s.logTail())
		default:
		}
		if info, err := s.Do("INFO server"); err != nil || !strings.Contains(info, id) {
			continue
		}
		// While it loads data it answers with an error.
		if pong, err := s.Do("PING"); err == nil && pong == "PONG" {
			return s.hurry()
		}
	}
	s.Kill()
	return fmt.Errorf("redistest: no answer within %v:\n%s", bootTime, s.logTail())
}

// hurry lets a Sentinel look at the others more often, which it does not remember
// when it is restarted. What bounds the periods:
//
//   - A link that broke is dialled again after PING-PERIOD at the earliest. A
//     promotion breaks links, so the period must be much shorter than the time
//     after which the new master counts as dead, or a second failover follows.
//   - In a failover replicas are asked for INFO once a second, whatever we say
//     here, and one whose last answer is older than five PING-PERIODs, or three
//     INFO-PERIODs, is not promoted.
func (s *Server) hurry() error {
	if !s.isSentinel() {
		return nil
	}
	_, err := s.Do("SENTINEL DEBUG INFO-PERIOD 1000 PING-PERIOD 400 ASK-PERIOD 100 PUBLISH-PERIOD 200")
	if err != nil {
		s.Kill()
		return fmt.Errorf("redistest: SENTINEL DEBUG: %w", err)
	}
	return nil
}

func (s *Server) isSentinel() bool { return slices.Contains(s.args, "--sentinel") }

func (s *Server) commandLine() []string {
	ours := []string{"--port", strconv.Itoa(s.port), "--bind", "127.0.0.1", "--dir", s.dir}
	if s.isSentinel() {
		return slices.Concat(s.args, ours) // its first argument is a file
	}
	return slices.Concat(options, s.args, ours)
}

// logTail returns the last lines of the server's log.
func (s *Server) logTail() string {
	log, err := os.ReadFile(filepath.Join(s.dir, logFile))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// freePort returns a port on which nobody listens, below those that Linux gives to
// clients, so that none of them takes it while its server is down. A Cluster's
// node also needs the port 10000 above.
func freePort() (int, error) {
	var errs error
	for range 100 {
		port := 10000 + rand.IntN(10000)
		err1, err2 := tryPort(port), tryPort(port+10000)
		if err1 == nil && err2 == nil {
			return port, nil
		}
		errs = errors.Join(err1, err2)
	}
	return 0, fmt.Errorf("redistest: no free port: %w", errs)
}

func tryPort(port int) error {
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return ln.Close()
}
