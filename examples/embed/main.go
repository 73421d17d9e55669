// Embed is a server that exists already, with a login by cookie and a page of notes, to
// which live updates were added: realtime.go is all of it on the server, and the script
// at the end of page.html all of it in the page.
//
//	go run ./examples/embed
//
// Then open http://localhost:8080/ in two windows, log in under two names, and write.
// Switch the network off and on, or send the laptop to sleep: what was written meanwhile
// comes by itself, once.
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
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	if err := run(ctx, *addr); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, addr string) error {
	a := newApp()
	rt, err := newRealtime(a)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: a.mux, ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(listener) }()
	log.Printf("open http://%s/", listener.Addr())
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(rt.shutdown(end), srv.Shutdown(end))
}
