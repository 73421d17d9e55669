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
)

var (
	pathSeeds  = flag.Int("path.seeds", 30, "how many seeds of the whole path to simulate")
	pathLength = flag.Duration("path.length", 40*time.Second, "virtual time of each, with faults")
)

func pathPlan(i int) Plan {
	p := Plan{
		Seed: *seed + uint64(i), Length: *pathLength, Nodes: 3, Topics: 4, Subscribers: 16, Publishers: 6,
		Retention: 50, HubRetention: 50, Gentle: i%3 == 0, Slow: i%5 == 4,
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
	n := *pathSeeds
	if testing.Short() {
		n = min(n, 3)
	}
	start := time.Now()
	var acked, unsure, deliveries, resets, faults, violations int
	var virtual, slowest time.Duration
	var sum Path
	kinds := map[string]int{}
	for i := range n {
		p := pathPlan(i)
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			out := RunPath(p, NewVirtual(p), NewVirtualFabric(p.Nodes, pathNet(i)))
			virtual += time.Since(start)
			slowest = max(slowest, out.Converged)
			if len(out.Violations) > 0 {
				t.Errorf("seed %d: %s\n%s", p.Seed, out, out.Explain())
			} else if testing.Verbose() {
				fmt.Printf("seed %d: %s; %s; converged in %v\n", p.Seed, out, out.Path, out.Converged)
			}
			acked += len(out.Record.Acked)
			unsure += out.Record.Unsure
			deliveries += out.Deliveries
			resets += out.Resets
			violations += len(out.Violations)
			sum.add(out.Path)
			for what, n := range out.Faults {
				faults += n
				kinds[what] += n
			}
		})
		if t.Failed() {
			break
		}
	}
	var list []string
	for _, what := range slices.Sorted(maps.Keys(kinds)) {
		list = append(list, fmt.Sprint(kinds[what], " ", what))
	}
	t.Logf("%d seeds, %v of virtual time in %v: %d acknowledged and %d unsure publishes, %d deliveries checked, %d Resets, %d faults (%s), %s, converged within %v, %d violations",
		n, virtual.Round(time.Second), time.Since(start).Round(time.Millisecond), acked, unsure, deliveries, resets, faults, strings.Join(list, ", "), &sum, slowest, violations)
}
