package torture

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/internal/leak"
	"github.com/holdfast-ws/holdfast/internal/verify"
)

func TestMain(m *testing.M) { leak.Main(m) }

var (
	seeds  = flag.Int("torture.seeds", 0, "how many seeds to simulate; 0 for some, or many in make verify")
	seed   = flag.Uint64("torture.seed", 1, "the first of them")
	length = flag.Duration("torture.length", 2*time.Minute, "virtual time of each, with faults")
)

// many returns how much of a simulation is run: as much as a flag says, if it is not 0;
// with -short what planted bugs need; otherwise what make test has time for, or in
// make verify what that has time for.
func many(flag, short, test, long int) int {
	switch {
	case flag > 0:
		return flag
	case testing.Short():
		return short
	case verify.On():
		return long
	}
	return test
}

func TestThreeHubsOnALossyBackplaneKeepThePromise(t *testing.T) {
	n := many(*seeds, 3, 6, 150)
	start := time.Now()
	var acked, unsure, deliveries, resets, faults, violations int
	var virtual time.Duration
	for i := range n {
		p := Plan{
			Seed: *seed + uint64(i), Length: *length, Nodes: 3, Topics: 4, Subscribers: 20, Publishers: 4,
			Retention: 50, HubRetention: 50, Gentle: i%5 == 4, Slow: i%5 == 3, Snapshots: i%3 == 2,
		}
		if i%2 == 1 { // from the latest value only to more than there ever are
			rnd := rand.New(rand.NewPCG(p.Seed, 3))
			p.Retention, p.HubRetention = 1+rnd.IntN(100), 1+rnd.IntN(100)
		}
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			out := Run(p, NewVirtual(p))
			virtual += time.Since(start)
			if len(out.Violations) > 0 {
				t.Errorf("seed %d: %s\n%s", p.Seed, out, out.Explain())
			} else if testing.Verbose() {
				fmt.Printf("seed %d: %s %+v\n", p.Seed, out, out.Stats[0])
			}
			acked += len(out.Record.Acked)
			unsure += out.Record.Unsure
			deliveries += out.Deliveries
			resets += out.Resets
			violations += len(out.Violations)
			for _, n := range out.Faults {
				faults += n
			}
		})
	}
	verify.Report(t, "simulated %d seeds of Hubs, %v of virtual time in %v: %d acknowledged and %d unsure publishes, %d deliveries checked, %d Resets, %d faults, %d violations",
		n, virtual.Round(time.Second), time.Since(start).Round(time.Millisecond), acked, unsure, deliveries, resets, faults, violations)
}
