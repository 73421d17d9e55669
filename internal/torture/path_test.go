package torture

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/internal/memnet"
	"github.com/holdfast-ws/holdfast/internal/verify"
)

var (
	pathSeeds  = flag.Int("path.seeds", 0, "how many seeds of the whole path to simulate; 0 as torture.seeds")
	pathLength = flag.Duration("path.length", 45*time.Second, "virtual time of each, with faults")
)

func pathPlan(i int) Plan {
	p := Plan{
		Seed: *seed + uint64(i), Length: *pathLength, Nodes: 3, Topics: 4, Subscribers: 16, Publishers: 6,
		Retention: 50, HubRetention: 50, Gentle: i%3 == 0, Slow: i%10 == 4, Snapshots: i%3 == 2,
	}
	if i%2 == 1 { // from the latest value only to more than there ever are
		rnd := rand.New(rand.NewPCG(p.Seed, 3))
		p.Retention, p.HubRetention = 1+rnd.IntN(100), 1+rnd.IntN(100)
	}
	return p
}

// pathNet is the network of the i-th seed; in some, a connection that stands still soon
// blocks who writes to it.
func pathNet(i int) memnet.Settings {
	return memnet.Settings{Latency: 5 * time.Millisecond, Buffer: []int{64 << 10, 8 << 10, 2 << 10}[i%3]}
}

func TestPath(t *testing.T) {
	sum := newPathSum("the path")
	for i := range many(*pathSeeds, 4, 4, 60) {
		if out := sum.run(t, i, 0); out.Path.Repairs > 0 {
			t.Errorf("seed %d: %d times a frame did not follow", i, out.Path.Repairs)
		}
	}
	verify.Report(t, "%v", sum)
}

// A bug between Hub and client that loses or repeats frames is found out by the client,
// which mends it. (Without Resets: these do not say what they follow, and so not whether
// the server's idea of where the client stands is right.)
func TestPathThatEatsFrames(t *testing.T) {
	sum := newPathSum("the path without some frames")
	for i := range many(*pathSeeds/5, 2, 2, 12) {
		sum.run(t, i, 0.02)
	}
	if sum.resets > 0 {
		t.Errorf("%d Resets, though all is kept", sum.resets)
	}
	if sum.path.Repairs == 0 {
		t.Error("nothing had to be repaired")
	}
	verify.Report(t, "%v", sum)
}

// A pathSum is some runs.
type pathSum struct {
	of                                                  string
	n                                                   int
	start                                               time.Time
	virtual, slowest                                    time.Duration
	acked, unsure, deliveries, resets, faults, violated int
	path                                                Path
	kinds                                               map[string]int
}

func newPathSum(of string) *pathSum {
	return &pathSum{of: of, start: time.Now(), kinds: map[string]int{}}
}

func (s *pathSum) run(t *testing.T, i int, eat float64) (out *Outcome) {
	p := pathPlan(i)
	if eat > 0 {
		p.Gentle, p.Retention, p.HubRetention = true, 1e4, 1e4
	}
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		f := NewVirtualFabric(p.Nodes, pathNet(i))
		f.Eat = eat
		out = RunPath(p, NewVirtual(p), f)
		s.virtual += time.Since(start)
	})
	if len(out.Violations) > 0 {
		t.Errorf("seed %d: %s\n%s", p.Seed, out, out.Explain())
	} else if testing.Verbose() {
		fmt.Printf("seed %d: %s; %s; converged in %v\n", p.Seed, out, out.Path, out.Converged)
	}
	s.n++
	s.slowest = max(s.slowest, out.Converged)
	s.acked += len(out.Record.Acked)
	s.unsure += out.Record.Unsure
	s.deliveries += out.Deliveries
	s.resets += out.Resets
	s.violated += len(out.Violations)
	s.path.add(out.Path)
	for what, n := range out.Faults {
		s.faults += n
		s.kinds[what] += n
	}
	return out
}

func (s *pathSum) String() string {
	var kinds []string
	for _, what := range slices.Sorted(maps.Keys(s.kinds)) {
		kinds = append(kinds, fmt.Sprint(s.kinds[what], " ", what))
	}
	return fmt.Sprintf("simulated %d seeds of %s, %v of virtual time in %v: %d acknowledged and %d unsure publishes, %d deliveries checked, %d Resets, %d faults (%s); %s, converged within %v, %d violations",
		s.n, s.of, s.virtual.Round(time.Second), time.Since(s.start).Round(time.Millisecond), s.acked, s.unsure, s.deliveries, s.resets,
		s.faults, strings.Join(kinds, ", "), &s.path, s.slowest.Round(time.Millisecond), s.violated)
}
