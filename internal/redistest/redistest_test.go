package redistest

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/internal/faultproxy"
	"github.com/holdfast-ws/holdfast/internal/leak"
)

// childEnv is set in the process that TestAServerEndsWithItsProcess starts.
const childEnv = "REDISTEST_CHILD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		return
	}
	leak.Main(m)
}

// patience is what may be waited for in vain before a test fails.
const patience = 20 * time.Second

// recorder is a test that fails or is skipped without consequences.
type recorder struct {
	testing.TB
	failed, skipped string
	cleanups        []func()
	logs            []string
}

func (r *recorder) Helper()           {}
func (r *recorder) Failed() bool      { return r.failed != "" }
func (r *recorder) Cleanup(f func())  { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Fatal(args ...any) { r.failed = fmt.Sprint(args...); runtime.Goexit() }
func (r *recorder) Fatalf(f string, args ...any) {
	r.failed = fmt.Sprintf(f, args...)
	runtime.Goexit()
}
func (r *recorder) Skip(args ...any)           { r.skipped = fmt.Sprint(args...); runtime.Goexit() }
func (r *recorder) Logf(f string, args ...any) { r.logs = append(r.logs, fmt.Sprintf(f, args...)) }

// try runs f as a test of its own would, cleanups included.
func try(t *testing.T, f func(t testing.TB)) *recorder {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			for _, c := range r.cleanups {
				c()
			}
		}()
		f(r)
	}()
	<-done
	return r
}

func does(t *testing.T, s *Server, cmd, want string) {
	t.Helper()
	if got, err := s.Do(cmd); err != nil || got != want {
		t.Errorf("%s: %q, %v; want %q", cmd, got, err, want)
	}
}

func TestWithoutRedisATestIsSkippedLoudlyAndFailsUnderCI(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("HOLDFAST_REPORT", "") // nothing is missing here
	for ci, want := range map[string]string{"": "skipped", "true": "failed"} {
		t.Setenv("CI", ci)
		for name, f := range map[string]func(t testing.TB){
			"Start":     func(t testing.TB) { Start(t) },
			"Replica":   func(t testing.TB) { Replica(t, "127.0.0.1:1") },
			"Sentinels": func(t testing.TB) { Sentinels(t, 3, 2, nil) },
			"Cluster":   func(t testing.TB) { Cluster(t, 3, 1) },
		} {
			r := try(t, f)
			switch {
			case want == "skipped" && (!strings.HasPrefix(r.skipped, "SKIPPED: ") || r.failed != ""),
				want == "failed" && (!strings.Contains(r.failed, binary) || r.skipped != ""):
				t.Errorf("CI=%s %s: skipped %q, failed %q; want %s", ci, name, r.skipped, r.failed, want)
			}
		}
	}
	if _, err := Launch(t.TempDir()); err == nil || !strings.Contains(err.Error(), binary) {
		t.Errorf("Launch: error %v does not name what is missing", err)
	}
}

func TestDoUnderstandsEveryKindOfAnswer(t *testing.T) {
	s := Start(t)
	for _, c := range [][2]string{
		{"PING", "PONG"},
		{`SET key "two words"`, "OK"},
		{"GET key", "two words"},
		{`SET key "two\r\nlines"`, "OK"},
		{"GET key", "two\r\nlines"},
		{"DEL key", "1"},
		{"GET key", "(nil)"},
		{"DBSIZE", "0"},
		{"LRANGE nothing 0 -1", ""},
		{`EVAL "return {1, {'a', 'b'}, 'c'}" 0`, "1\na\nb\nc"},
		{`SET key ""`, "OK"},
		{"GET key", ""},
		{"FLUSHALL", "OK"},
		{"DEBUG SLEEP 0", "OK"},
		{"CLIENT KILL TYPE pubsub", "0"},
	} {
		does(t, s, c[0], c[1])
	}
	if reply, err := s.Do("INCR"); !errors.As(err, new(ReplyError)) || !strings.Contains(err.Error(), "wrong number of arguments") {
		t.Errorf("a wrong command: %q, %v", reply, err)
	}
	s.Kill()
	s.Kill()
	if reply, err := s.Do("PING"); err == nil || errors.As(err, new(ReplyError)) {
		t.Errorf("a dead server: %q, %v", reply, err)
	}
	// None of this means anything any more.
	s.Pause()
	s.Resume()
}

func TestWhatIsNotAnAnswerIsAnError(t *testing.T) {
	for _, text := range []string{
		"", "+PONG", "HTTP/1.1 400 Bad Request\r\n", "$x\r\n", "*x\r\n", "$5\r\nabc\r\n", "*2\r\n+OK\r\n", "\n",
	} {
		if reply, err := read(bufio.NewReader(strings.NewReader(text))); err == nil || errors.As(err, new(ReplyError)) {
			t.Errorf("%q: %q, %v", text, reply, err)
		}
	}
}

func TestARestartedServerKeepsItsPortAndLosesItsData(t *testing.T) {
	s := Start(t)
	port := s.Port()
	does(t, s, "SET key value", "OK")
	s.Kill()
	s.Restart(t)
	does(t, s, "GET key", "(nil)")
	does(t, s, "SET key value", "OK")
	s.Restart(t) // kills it itself
	does(t, s, "GET key", "(nil)")
	if s.Port() != port || s.Addr() != fmt.Sprintf("127.0.0.1:%d", port) {
		t.Errorf("it was on port %d, and now is on %s", port, s.Addr())
	}
}

func TestWithAppendOnlyAServerKeepsItsDataUntilItIsWiped(t *testing.T) {
	s := Start(t, "--appendonly", "yes", "--appendfsync", "always")
	does(t, s, "SET key value", "OK")
	s.Restart(t)
	does(t, s, "GET key", "value")
	s.Wipe(t)
	s.Restart(t)
	does(t, s, "GET key", "(nil)")
}

func TestAPausedServerAcceptsAndAnswersWhenItIsResumed(t *testing.T) {
	s := Start(t)
	s.Pause()
	c, err := net.DialTimeout("tcp", s.Addr(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("PING\r\n")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, len("+PONG\r\n"))
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // what comes later is not seen
	if n, err := c.Read(answer); !errors.Is(err, os.ErrDeadlineExceeded) && runtime.GOOS == "linux" {
		t.Errorf("it answers %q, %v", answer[:n], err)
	}
	s.Resume()
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(answer); err != nil || string(answer) != "+PONG\r\n" {
		t.Errorf("resumed, it answers %q, %v", answer, err)
	}
	s.Pause()
	s.Kill()
	s.Restart(t)
	does(t, s, "PING", "PONG")
}

func TestAServerThatCannotStartShowsItsLog(t *testing.T) {
	need(t)
	r := try(t, func(fake testing.TB) { start(fake, t.TempDir(), "--no-such-option", "1") })
	if !strings.Contains(r.failed, "no-such-option") {
		t.Errorf("the failure %q does not say why", r.failed)
	}
	if _, err := Launch(filepath.Join(t.TempDir(), "nowhere")); err == nil {
		t.Error("a folder that does not exist is no error")
	}
}

func TestTheLogIsShownWhenATestFails(t *testing.T) {
	need(t)
	r := try(t, func(fake testing.TB) {
		s := start(fake, t.TempDir())
		Says(fake, 200*time.Millisecond, "PING", "PANG", s)
	})
	if !strings.Contains(r.failed, "PING") || !strings.Contains(r.failed, "PONG") || !strings.Contains(r.failed, "PANG") {
		t.Errorf("the failure %q does not name the command, what was wanted and what came", r.failed)
	}
	if len(r.logs) != 1 || !strings.Contains(r.logs[0], "Ready to accept connections") {
		t.Errorf("logged: %q", r.logs)
	}
}

// Two test programs may choose the same port. The second server then ends, and it
// is the first that answers.
func TestAStrangerOnThePortIsNotTakenForOurServer(t *testing.T) {
	stranger := Start(t)
	s := &Server{port: stranger.port, dir: t.TempDir()}
	if err := s.boot(); err == nil || !strings.Contains(err.Error(), "Address already in use") {
		t.Errorf("error %v", err)
	}
	does(t, stranger, "PING", "PONG")
}

func TestSaysWaitsForAnErrorToo(t *testing.T) {
	s := Start(t)
	Says(t, patience, "NOSUCHCOMMAND", "unknown command", s)
}

func TestAReplicaHasTheDataAndCanBePromoted(t *testing.T) {
	master := Start(t)
	does(t, master, "SET before 1", "OK")
	replica := Replica(t, master.Addr())
	does(t, replica, "GET before", "1")
	does(t, master, "SET after 1", "OK")
	does(t, master, "WAIT 1 20000", "1")
	Says(t, patience, "GET after", "1", replica)
	Says(t, patience, "SET key value", "READONLY", replica)
	replica.Promote(t)
	does(t, replica, "SET key value", "OK")
}

func TestAFailoverThroughAHoleLosesAcknowledgedWrites(t *testing.T) {
	master := Start(t)
	proxy, err := faultproxy.New(master.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	replica := Replica(t, proxy.Addr())
	does(t, master, "SET key kept", "OK")
	Says(t, patience, "GET key", "kept", replica)
	proxy.HoleDown.Store(true)
	does(t, master, "SET key lost", "OK")
	master.Kill()
	replica.Promote(t)
	does(t, replica, "GET key", "kept")
}

func TestSentinelsPromoteAReplicaAndTakeTheOldMasterBack(t *testing.T) {
	master := Start(t)
	replica := Replica(t, master.Addr())
	sentinels := Sentinels(t, 3, 2, master)
	ask := "SENTINEL GET-MASTER-ADDR-BY-NAME " + MasterName
	does(t, sentinels[0], ask, fmt.Sprintf("127.0.0.1\n%d", master.Port()))
	master.Kill()
	Says(t, syncTime, "INFO replication", "role:master", replica)
	Says(t, syncTime, ask, fmt.Sprintf("127.0.0.1\n%d", replica.Port()), sentinels...)
	master.Restart(t)
	Says(t, syncTime, "INFO replication", "role:slave", master)
	sentinels[0].Restart(t)
	does(t, sentinels[0], ask, fmt.Sprintf("127.0.0.1\n%d", replica.Port()))
}

func TestAClusterOfMastersSeesOneFailAndReturn(t *testing.T) {
	nodes := Cluster(t, 3, 0)
	// The slots of the three begin at 0, 5461 and 10922, and "x" is in 16287.
	does(t, nodes[2], "SET x value", "OK")
	Says(t, patience, "GET x", fmt.Sprintf("MOVED 16287 127.0.0.1:%d", nodes[2].Port()), nodes[:2]...)
	nodes[2].Kill()
	Says(t, patience, "CLUSTER INFO", "cluster_slots_fail:5462", nodes[:2]...)
	Says(t, patience, "CLUSTER INFO", "cluster_state:ok", nodes[:2]...) // for the slots it still has
	nodes[2].Restart(t)
	Says(t, patience, "CLUSTER INFO", "cluster_slots_ok:16384", nodes...)
	Says(t, patience, "CLUSTER INFO", "cluster_state:ok", nodes...) // for itself it is so later
	does(t, nodes[2], "GET x", "(nil)")                             // the same node, without its data
}

func TestAClusterWithReplicasPromotesOneOnCommandAndOnDeath(t *testing.T) {
	nodes := Cluster(t, 3, 1)
	does(t, nodes[2], "SET x value", "OK")
	does(t, nodes[2], "WAIT 1 20000", "1")
	does(t, nodes[5], "CLUSTER FAILOVER", "OK")
	Says(t, patience, "ROLE", "master", nodes[5])
	Says(t, patience, "ROLE", "slave", nodes[2])
	Says(t, patience, "GET x", "value", nodes[5])
	nodes[0].Kill()
	Says(t, patience, "ROLE", "master", nodes[3])
	Says(t, patience, "CLUSTER INFO", "cluster_slots_ok:16384", nodes[1:]...)
}
