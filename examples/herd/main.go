// Herd simulates ten thousand clients that lose their server at the same moment,
// and shows what becomes of it with different ways of waiting before the next
// dial: the formula min(2^n·1s + rand·0.5s, 10s) that many clients use, no jitter,
// equal and full jitter, and holdfast's backoff.Loop.
//
//	go run ./examples/herd
//	go run ./examples/herd -clients 100000 -rate 2000 -seed 7
//	go run ./examples/herd -svg herd.svg
//
// Nothing is dialled and nobody waits: time is virtual, and the same flags give
// the same figures on every machine. The model is described in sim.go.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "herd:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("herd", flag.ContinueOnError)
	flags.SetOutput(stderr)
	clients := flags.Int("clients", 10_000, "clients that lose the server, 1 to 1000000")
	rate := flags.Int("rate", 500, "handshakes per second that the server can do, 1 to 1000000")
	seed := flags.Uint64("seed", 1, "seed of the random numbers")
	svg := flags.String("svg", "", "also draw the arrival curves into this `file`")
	markdown := flags.Bool("markdown", false, "print one summary as Markdown instead of the tables")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case *clients < 1 || *clients > 1_000_000:
		return fmt.Errorf("-clients %d is not between 1 and 1000000", *clients)
	case *rate < 1 || *rate > 1_000_000:
		return fmt.Errorf("-rate %d is not between 1 and 1000000", *rate)
	}

	results := contest(*clients, *rate, *seed, stderr)
	out := bufio.NewWriter(stdout)
	if *markdown {
		printMarkdown(out, results, *clients, *rate, *seed)
	} else {
		printTables(out, results, *clients, *rate, *seed)
	}
	if *svg != "" {
		if err := os.WriteFile(*svg, drawSVG(results, *clients, *rate), 0o666); err != nil {
			return err
		}
		if !*markdown {
			fmt.Fprintf(out, "\nArrival curves: %s\n", *svg)
		}
	}
	return out.Flush()
}

// contest runs every policy through every scenario it is for, several at a time.
// When that takes longer than five seconds it says every second on progress how
// far one of them is.
func contest(clients, rate int, seed uint64, progress io.Writer) []result {
	var runs []result
	for i := range scenarios {
		for j := range policies {
			if p := &policies[j]; p.only == "" || p.only == scenarios[i].name {
				runs = append(runs, result{scenario: &scenarios[i], policy: p})
			}
		}
	}

	var mu sync.Mutex // guards last and writing to progress
	last := time.Now().Add(4 * time.Second)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(runs)); i = next.Add(1) - 1 {
				s, p := runs[i].scenario, runs[i].policy
				runs[i] = simulate(s, p, clients, rate, seed, func(connected int, at time.Duration) {
					mu.Lock()
					defer mu.Unlock()
					if time.Since(last) < time.Second {
						return
					}
					last = time.Now()
					fmt.Fprintf(progress, "%d of %d: %s, %s: %d of %d clients connected %.0f s after the loss\n",
						i+1, len(runs), s.name, p.name, connected, clients, at.Seconds())
				})
			}
		})
	}
	wg.Wait()
	return runs
}
