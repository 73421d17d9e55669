// Zombies shows package heartbeat at work: a server with a thousand WebSockets
// over loopback, a third of which turn into zombies in three ways, while a table
// in the terminal shows who is found, why and how soon, and that a pause of the
// whole server kills nobody who is healthy.
//
//	go run ./examples/zombies
//	go run ./examples/zombies -conns 3000 -interval 5s -timeout 3s -plain
//
// The clients are in a process of their own (a copy of this program), so that the
// memory shown is the server's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "zombies:", err)
		os.Exit(1)
	}
}

// A plan is what the flags say.
type plan struct {
	conns             int
	interval, timeout time.Duration
	pause             time.Duration
	plain             bool
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("zombies", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var p plan
	flags.IntVar(&p.conns, "conns", 1000, "connections, 3 to 8000")
	flags.DurationVar(&p.interval, "interval", 4*time.Second, "heartbeat interval, at least 1s")
	flags.DurationVar(&p.timeout, "timeout", 2*time.Second, "heartbeat timeout, at most three quarters of the interval")
	flags.DurationVar(&p.pause, "pause", 6*time.Second, "how long the server stands still; 0 to leave that out")
	flags.BoolVar(&p.plain, "plain", false, "print lines instead of a table that is drawn anew")
	clients := flags.String("clients-of", "", "run as the clients of the server at this `address` (internal)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case p.conns < 3 || p.conns > 8000:
		return fmt.Errorf("-conns %d is not between 3 and 8000", p.conns)
	case p.pause < 0:
		return fmt.Errorf("-pause %v is negative", p.pause)
	}
	if *clients != "" {
		return beClients(*clients, p.conns, os.Stdin, stdout)
	}
	return show(ctx, p, stdout)
}
