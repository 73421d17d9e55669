package redistest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/internal/verify"
)

// syncTime is how long servers may take to find each other and to copy data.
const syncTime = 30 * time.Second

// MasterName is the name by which Sentinels know their master.
const MasterName = "mymaster"

// Start is [Launch] for tests: the server runs until the test ends, with a folder
// of its own. If the test failed, the end of the server's log is shown.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	need(t)
	return start(t, t.TempDir(), args...)
}

func need(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath(binary); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("there is no %s, and CI=true: %v", binary, err)
		}
		verify.Skip(t, "there is no "+binary+" on the path, so nothing is known about Redis")
	}
}

func start(t testing.TB, dir string, args ...string) *Server {
	t.Helper()
	s, err := Launch(dir, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			t.Logf("the log of %s %s ends with\n%s", s.Addr(), strings.Join(args, " "), s.logTail())
		}
	})
	return s
}

// Restart starts the server again on its old port, after killing it if it runs.
// Its data is lost, unless it was started with "--appendonly", "yes"; with
// "--appendfsync", "always" as well, no acknowledged write is lost. A Sentinel and
// a Cluster's node keep what they know about the others.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	if err := s.Relaunch(); err != nil {
		t.Fatal(err)
	}
}

// Wipe kills the server and deletes its data, so that [Server.Restart] finds none.
// A Sentinel and a Cluster's node keep what they know about the others.
func (s *Server) Wipe(t testing.TB) {
	t.Helper()
	s.Kill()
	for _, name := range []string{"dump.rdb", "appendonlydir"} {
		if err := os.RemoveAll(filepath.Join(s.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// Promote makes a replica a master. Nobody else is told.
func (s *Server) Promote(t testing.TB) {
	t.Helper()
	s.must(t, "REPLICAOF NO ONE")
}

// must sends a command that cannot fail.
func (s *Server) must(t testing.TB, cmd string) string {
	t.Helper()
	answer, err := s.Do(cmd)
	if err != nil {
		t.Fatalf("%s at %s: %v", cmd, s.Addr(), err)
	}
	return answer
}

// Says waits until the answer of each server to cmd, be it an error or not,
// contains want. The test fails if that takes one of them longer than d.
func Says(t testing.TB, d time.Duration, cmd, want string, servers ...*Server) {
	t.Helper()
	for _, s := range servers {
		if err := s.await(d, cmd, func(answer string) bool { return strings.Contains(answer, want) }); err != nil {
			t.Fatalf("waiting for %q: %v", want, err)
		}
	}
}

// Replica starts a replica of the server at addr, which may be the address of a
// faultproxy. It returns when the replica has the master's data.
func Replica(t testing.TB, addr string, args ...string) *Server {
	t.Helper()
	s := Start(t, slices.Concat(args, []string{"--replicaof", strings.Replace(addr, ":", " ", 1)})...)
	Says(t, syncTime, "INFO replication", "master_link_status:up", s)
	return s
}

// Sentinels starts n Sentinels that watch master, which has its replicas already,
// as [MasterName]. One takes the master for dead after a second of silence, the
// next after 1.3 seconds, and so on; when quorum of them do, and a majority votes,
// one of them promotes a replica. It returns when each knows the others and the
// replicas.
func Sentinels(t testing.TB, n, quorum int, master *Server) []*Server {
	t.Helper()
	need(t)
	replicas := strings.Count(master.must(t, "INFO replication"), ",state=")
	var all []*Server
	for i := range n {
		// A Sentinel rewrites its file. Those that miss the master in the same
		// moment all vote for themselves, and after a vote that nobody has won
		// there is none for twice the failover timeout; so one misses it after the
		// other. A shorter failover timeout does not help: within it the promoted
		// replica has to say that it is the master, and it is asked once a second.
		dir := t.TempDir()
		file := filepath.Join(dir, "sentinel.conf")
		text := fmt.Sprintf("sentinel monitor %s 127.0.0.1 %d %d\n", MasterName, master.port, quorum) +
			fmt.Sprintf("sentinel down-after-milliseconds %s %d\n", MasterName, 1000+300*i) +
			fmt.Sprintf("sentinel failover-timeout %s 2000\n", MasterName)
		if err := os.WriteFile(file, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		all = append(all, start(t, dir, file, "--sentinel"))
	}
	Says(t, syncTime, "INFO sentinel", fmt.Sprintf("slaves=%d,sentinels=%d", replicas, n), all...)
	return all
}

// Cluster starts n masters, with the slots in equal parts, and replicas for each:
// node n+i follows master i%n. A node that is silent for a second counts as failed.
// It returns when each node says that the cluster is well and has its data.
func Cluster(t testing.TB, n, replicas int) []*Server {
	t.Helper()
	var all []*Server
	for range n * (1 + replicas) {
		all = append(all, Start(t, "--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1",
			"--cluster-node-timeout", "1000",
			// A replica is promoted however old its data is, serves its master only,
			// and what is left of a cluster goes on serving its slots.
			"--cluster-replica-validity-factor", "0", "--cluster-allow-replica-migration", "no",
			"--cluster-require-full-coverage", "no"))
	}
	masters, followers := all[:n], all[n:]
	for i, s := range masters {
		s.must(t, fmt.Sprintf("CLUSTER ADDSLOTSRANGE %d %d", i*16384/n, (i+1)*16384/n-1))
		s.must(t, fmt.Sprintf("CLUSTER SET-CONFIG-EPOCH %d", i+1))
	}
	for _, s := range all[1:] {
		all[0].must(t, fmt.Sprintf("CLUSTER MEET 127.0.0.1 %d", s.port))
	}
	Says(t, syncTime, "CLUSTER INFO", fmt.Sprintf("cluster_known_nodes:%d\r\n", len(all)), all...)
	for i, s := range followers {
		id := masters[i%n].must(t, "CLUSTER MYID")
		// It may know the master's address, and not yet its name.
		if err := s.await(syncTime, "CLUSTER REPLICATE "+id, func(answer string) bool { return answer == "OK" }); err != nil {
			t.Fatal(err)
		}
	}
	Says(t, syncTime, "CLUSTER INFO", "cluster_state:ok", all...)
	Says(t, syncTime, "CLUSTER INFO", "cluster_slots_ok:16384", all...)
	Says(t, syncTime, "INFO replication", "master_link_status:up", followers...)
	for _, s := range all {
		// Clients ask any node where the replicas are.
		if err := s.await(syncTime, "CLUSTER NODES", func(answer string) bool {
			return strings.Count(answer, "slave ") == len(followers)
		}); err != nil {
			t.Fatal(err)
		}
	}
	return all
}
