// Thirdparty measures holdfast's packages side by side with libraries that do
// the same work. It is a module of its own, so that none of those libraries
// comes near a program that uses holdfast.
//
//	make bench-peers
//
// All contestants of a table are measured in turn, round after round in one
// process, and the median counts: on a shared machine only ratios mean much.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	rigMain() // in a process of the rig this does not return
	rounds := flag.Int("rounds", 15, "times that each contestant is measured; the median counts")
	each := flag.Duration("each", 50*time.Millisecond, "how long one measurement takes")
	markdown := flag.Bool("markdown", false, "print Markdown only, instead of text followed by Markdown")
	conns := flag.Int("conns", 10_000, "connections of the measurement with real sockets, which takes a minute for each library; 0 leaves it out")
	flag.Parse()
	if *rounds < 1 || *each <= 0 || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "thirdparty: -rounds and -each must be positive, and there are no arguments")
		os.Exit(2)
	}
	tables := []table{backoffCost(*rounds, *each), backoffSpread()}
	tables = append(tables, logCost(*rounds, *each)...)
	if *conns > 0 {
		t, err := zombies(*conns)
		if err != nil {
			fmt.Fprintln(os.Stderr, "thirdparty:", err)
			os.Exit(1)
		}
		tables = append(tables, t)
	}
	if !*markdown {
		fmt.Println(machine())
		for _, t := range tables {
			t.text(os.Stdout)
		}
		fmt.Println("\nThe same as Markdown:")
		fmt.Println()
	}
	fmt.Println(machine())
	for _, t := range tables {
		t.markdown(os.Stdout)
	}
}

// A table is what is printed of one comparison.
type table struct {
	title  string
	header []string
	rows   [][]string
}

func (t table) text(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n", t.title)
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{t.header}, t.rows...) {
		fmt.Fprintln(tab, strings.Join(row, "\t"))
	}
	tab.Flush()
}

func (t table) markdown(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n\n", t.title)
	fmt.Fprintf(w, "| %s |\n|%s\n", strings.Join(t.header, " | "), strings.Repeat("---|", len(t.header)))
	for _, row := range t.rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
	}
}

// A contestant does a piece of work n times.
type contestant struct {
	name string
	run  func(n int)
}

// A cost is what one piece of work takes.
type cost struct {
	ns     float64 // median of the rounds
	allocs float64
}

// compare measures all contestants, rounds times in turn, each time for about
// the given time.
func compare(contestants []contestant, rounds int, each time.Duration) []cost {
	counts := make([]int, len(contestants))
	times := make([][]float64, len(contestants))
	costs := make([]cost, len(contestants))
	for i, c := range contestants {
		n := 1
		for {
			start := time.Now()
			c.run(n)
			if took := time.Since(start); took > each/20 {
				counts[i] = max(1, int(float64(n)*float64(each)/float64(took)))
				break
			}
			n *= 2
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		c.run(n)
		runtime.ReadMemStats(&after)
		costs[i].allocs = float64(after.Mallocs-before.Mallocs) / float64(n)
	}
	for range rounds {
		for i, c := range contestants {
			start := time.Now()
			c.run(counts[i])
			times[i] = append(times[i], float64(time.Since(start))/float64(counts[i]))
		}
	}
	for i := range costs {
		slices.Sort(times[i])
		costs[i].ns = times[i][rounds/2]
	}
	return costs
}

// machine says what the figures were measured with.
func machine() string {
	cpu := runtime.GOARCH
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				cpu = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
				break
			}
		}
	}
	return fmt.Sprintf("%s, %s/%s, %s, %d CPUs. %s.", runtime.Version(), runtime.GOOS, runtime.GOARCH,
		cpu, runtime.NumCPU(), time.Now().UTC().Format(time.DateOnly))
}

// version returns the version of the module that this program was built with.
func version(module string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if dep.Path == module {
				return dep.Version
			}
		}
	}
	return "unknown"
}
