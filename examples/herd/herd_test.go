package main

import (
	"bytes"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/internal/verify"
)

var update = flag.Bool("update", false, "rewrite herd.svg and the figures in README.md")

// full is the contest with the default flags, run once for all tests.
var full = sync.OnceValue(func() []result { return contest(10_000, 500, 1, &bytes.Buffer{}) })

// find returns the result of one policy in one scenario.
func find(t *testing.T, scenario, policy string) result {
	t.Helper()
	for _, r := range full() {
		if r.scenario.name == scenario && strings.HasPrefix(r.policy.name, policy) {
			return r
		}
	}
	t.Fatalf("no result for %q in %q", policy, scenario)
	panic("unreachable")
}

// The project's targets for a herd of 10 000 clients and 500 handshakes/s.
func TestLoopMeetsItsTargets(t *testing.T) {
	verify.Only(t, "a long simulation")
	limit := ideal(10_000, 500) * 115 / 100
	outage := find(t, "outage", "Loop, Cap 10 s")
	if outage.p99 > limit || outage.connected != 10_000 {
		t.Errorf("after an outage p99 is %v and %d clients connect, want p99 <= %v and all", outage.p99, outage.connected, limit)
	}
	for _, name := range []string{"Loop, Cap 10 s", "zero Loop"} {
		if r := find(t, "resync", name); r.per100ms > 250 {
			t.Errorf("%s: %d dials within 100 ms at a resync, want <= 250", name, r.per100ms)
		}
	}
	window := find(t, "restart", "Loop, server-given window")
	if window.failed != 0 || window.attempts != 10_000 {
		t.Errorf("with a server-given window %d of %d dials fail, want none", window.failed, window.attempts)
	}
	// The README says so.
	if zero := find(t, "outage", "zero Loop"); zero.attempts*2 >= outage.attempts || zero.p99 > 30*time.Second {
		t.Errorf("zero Loop: %d dials and p99 %v; with Cap 10 s %d dials", zero.attempts, zero.p99, outage.attempts)
	}
	for _, name := range []string{"zero Loop", "Loop, Cap 10 s, dial timeout 20 s"} {
		if r := find(t, "collapse", name); r.p99 > 30*time.Second {
			t.Errorf("%s: p99 %v, want recovery within 30 s", name, r.p99)
		}
	}
}

// What the others are here to show. If one of these fails, the model no longer
// shows what the text says.
func TestTheOthersShowTheirFaults(t *testing.T) {
	verify.Only(t, "a long simulation")
	if r := find(t, "outage", "common formula"); r.perSecond < 8000 || r.p99 < 100*time.Second {
		t.Errorf("common formula after an outage: peak %d/s, p99 %v", r.perSecond, r.p99)
	}
	if r := find(t, "resync", "common formula"); r.per100ms != 10_000 {
		t.Errorf("common formula at a resync: %d of 10000 in 100 ms; at its cap it has no jitter", r.per100ms)
	}
	small := find(t, "restart", "full jitter, 0.5..30")
	if small.perSecond < 4*find(t, "restart", "zero Loop").perSecond {
		t.Errorf("a small first window and no First: peak only %d/s", small.perSecond)
	}
	for _, r := range full() { // the README says so
		if r.scenario == small.scenario && r.perSecond > small.perSecond {
			t.Errorf("%s has a higher peak than a small first window", r.policy.name)
		}
	}
	for _, name := range []string{"common formula", "no jitter", "equal", "full jitter, 1..10", "Loop, Cap 10 s"} {
		if r := find(t, "collapse", name); r.p99 != never {
			t.Errorf("%s recovers from the collapse, p99 %v", name, r.p99)
		}
	}
}

func TestTheSameSeedGivesTheSameResult(t *testing.T) {
	for i := range scenarios[:3] {
		for j := range policies {
			one := simulate(&scenarios[i], &policies[j], 500, 50, 7, nil)
			two := simulate(&scenarios[i], &policies[j], 500, 50, 7, nil)
			if !slices.Equal(one.arrivals, two.arrivals) || one.p99 != two.p99 || one.attempts != two.attempts {
				t.Errorf("%s, %s: two runs differ", scenarios[i].name, policies[j].name)
			}
			other := simulate(&scenarios[i], &policies[j], 500, 50, 8, nil)
			if slices.Equal(one.arrivals, other.arrivals) {
				t.Errorf("%s, %s: another seed gives the same dials", scenarios[i].name, policies[j].name)
			}
		}
	}
}

// A few clients whose times can be worked out by hand.
func TestTheModelOnAFewClients(t *testing.T) {
	const s, ms = time.Second, time.Millisecond
	waits := func(wait time.Duration) *policy {
		return &policy{start: func(*scenario, time.Duration, *rand.Rand) pacer {
			return func() time.Duration { return wait }
		}}
	}
	tests := []struct {
		reason      string
		scenario    scenario
		clients     int
		rate        int
		attempts    int
		failed      int
		first, last time.Duration // when the first and the last are connected, at least
	}{
		{"one client waits, dials and is served", scenario{backlog: 1, timeout: s}, 1, 10, 1, 0, s + rtt + 100*ms, 0},
		{"the second waits behind the first", scenario{backlog: 2, timeout: s}, 2, 10, 2, 0, s + rtt + 100*ms, s + rtt + 150*ms},
		{"with no backlog but the one in work it is refused", scenario{backlog: 1, timeout: s}, 2, 10, 3, 1, s + rtt + 100*ms, 2*s + 2*rtt + 100*ms},
		{"it gives up, again and again, on a server that is too slow", scenario{backlog: 1, timeout: 100 * ms}, 1, 10, 0, 0, never, never},
		{"dials are refused while the server is away", scenario{upAt: 3 * s, backlog: 1, timeout: s}, 1, 10, 3, 2, 3*rtt + 100*ms, 0},
	}
	for _, tt := range tests {
		r := simulate(&tt.scenario, waits(s), tt.clients, tt.rate, 1, nil)
		if tt.first == never {
			if r.connected != 0 || r.failed == 0 {
				t.Errorf("%s: %d connected, %d failed", tt.reason, r.connected, r.failed)
			}
			continue
		}
		if r.attempts != tt.attempts || r.failed != tt.failed || r.connected != tt.clients {
			t.Errorf("%s: %d dials, %d failed, %d connected, want %d, %d, %d", tt.reason, r.attempts, r.failed, r.connected, tt.attempts, tt.failed, tt.clients)
		}
		// The loss itself is up to 50 ms late.
		if r.p50 < tt.first || r.p50 > tt.first+within {
			t.Errorf("%s: first connected after %v, want %v to %v", tt.reason, r.p50, tt.first, tt.first+within)
		}
		if tt.last != 0 && (r.p99 < tt.last || r.p99 > tt.last+2*within) {
			t.Errorf("%s: last connected after %v, want %v to %v", tt.reason, r.p99, tt.last, tt.last+2*within)
		}
	}
}

func TestPeakAndQuantileAgreeWithTheirDefinitions(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		times := make([]time.Duration, 1+rnd.IntN(50))
		for i := range times {
			times[i] = time.Duration(rnd.IntN(100))
		}
		slices.Sort(times)
		window := time.Duration(1 + rnd.IntN(30))
		most := 0
		for _, from := range times {
			n := 0
			for _, u := range times {
				if u >= from && u < from+window {
					n++
				}
			}
			most = max(most, n)
		}
		if got := peak(times, window); got != most {
			t.Fatalf("peak(%v, %d) = %d, want %d", times, window, got, most)
		}
	}
	ten := []time.Duration{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for _, tt := range []struct {
		n    int
		q    float64
		want time.Duration
	}{{10, 0.5, 5}, {10, 0.99, 10}, {10, 0.9, 9}, {20, 0.5, 10}, {20, 0.51, never}} {
		if got := quantile(ten, tt.n, tt.q); got != tt.want {
			t.Errorf("quantile(1..10 of %d, %v) = %d, want %d", tt.n, tt.q, got, tt.want)
		}
	}
}

func TestBadFlagsAreNamed(t *testing.T) {
	for args, want := range map[string]string{
		"-clients 0":                         "-clients 0",
		"-clients -5":                        "-clients -5",
		"-clients 99999999":                  "-clients 99999999",
		"-rate 0":                            "-rate 0",
		"-rate 2000000":                      "-rate 2000000",
		"-seed x":                            "-seed",
		"now":                                `"now"`,
		"-clients 1 -svg /nonexistent/x.svg": "/nonexistent/x.svg",
	} {
		var out, errs bytes.Buffer
		if err := run(strings.Fields(args), &out, &errs); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("herd %s: error %v, want one that names %s", args, err, want)
		}
	}
	if err := run([]string{"-h"}, &bytes.Buffer{}, &bytes.Buffer{}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v", err)
	}
}

func TestSmallAndOddSizesRun(t *testing.T) {
	for _, args := range []string{"-clients 1", "-clients 3 -rate 1", "-clients 50 -rate 1000000 -markdown", "-clients 2000 -rate 100 -seed 99"} {
		var out, errs bytes.Buffer
		if err := run(append(strings.Fields(args), "-svg", t.TempDir()+"/x.svg"), &out, &errs); err != nil || out.Len() == 0 {
			t.Errorf("herd %s: %v", args, err)
		}
	}
}

// The README shows the picture and the figures that this program makes.
func TestReadmeShowsWhatTheProgramMakes(t *testing.T) {
	if !*update {
		verify.Only(t, "a long simulation")
	}
	var table bytes.Buffer
	printMarkdown(&table, full(), 10_000, 500, 1)
	const begin, end = "<!-- go run ./examples/herd -markdown -->\n", "<!-- end -->\n"
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(readme), begin)
	shown, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("README.md has no block between %q and %q", begin, end)
	}
	svg := drawSVG(full(), 10_000, 500)
	if *update {
		if err := errors.Join(
			os.WriteFile("../../README.md", []byte(before+begin+table.String()+end+after), 0o666),
			os.WriteFile("herd.svg", svg, 0o666),
		); err != nil {
			t.Fatal(err)
		}
		return
	}
	if shown != table.String() {
		t.Errorf("README.md shows\n%s\nthe program prints\n%s\nrun go test ./examples/herd -update", shown, table.String())
	}
	if file, err := os.ReadFile("herd.svg"); err != nil || !bytes.Equal(file, svg) {
		t.Errorf("herd.svg (%v) is not what the program draws; run go test ./examples/herd -update", err)
	}
}
