// Tabs is a page that shows which tabs of the browser share a connection, who leads, and
// what the server sees of them.
//
//	go run ./examples/tabs
//
// Then open http://localhost:8080/, and nine more tabs with the page's first button: the
// server has one connection. Each tab counts what it gets, and checks that it is all and
// in order. Close a tab, crash one, kill the worker (with -debug), let a tab stand still:
// the others stay connected or are again in a moment, and no count of what is missing or
// came twice moves.
//
// The page has a link for each way to share, one for another user, who shares with nobody,
// one to the ten lines of the README, and one to a page in React. That needs a bundle,
// which is made in client/browser:
//
//	npm ci && npm run example-react
package main

import (
	"context"
	"errors"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"
)

func main() {
	addr := flag.String("addr", "localhost:8080", "where to listen")
	debug := flag.Bool("debug", false, "let pages kill the shared worker")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	if err := run(ctx, *addr, *debug); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, addr string, debug bool) error {
	s, err := newServer(debug)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return errors.Join(err, s.shutdown(ctx))
	}
	srv := &http.Server{Handler: s.mux, ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(listener) }()
	log.Printf("open http://%s/", listener.Addr())
	select {
	case err := <-failed:
		return errors.Join(err, s.shutdown(ctx))
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(s.shutdown(end), srv.Shutdown(end))
}
