// Sse is an ordinary HTTP server that sends events to browsers (Server-Sent
// Events), and lets a client that was away catch up on exactly what it missed.
// It needs nothing but package replay.
//
//	go run ./examples/sse
//	curl -N localhost:8080/events
//	curl -d 'hello' localhost:8080/publish
//
// Or open http://localhost:8080/ in a browser. Stop curl, publish some more, and
// start it again with the last id that it was sent:
//
//	curl -N -H 'Last-Event-ID: <id>' localhost:8080/events
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

	"github.com/holdfast-ws/holdfast/replay"
)

func main() {
	addr := flag.String("addr", "localhost:8080", "`address` to listen on")
	keep := flag.Int("keep", 100, "number of events to keep, 1 or more")
	flag.Parse()
	if *keep < 1 || flag.NArg() > 0 {
		log.Fatalf("-keep must be 1 or more, not %d, and there are no arguments", *keep)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("http://%s/", listener.Addr())
	if err := serve(ctx, listener, replay.New(replay.Limits{Entries: *keep})); err != nil {
		log.Fatal(err)
	}
}

// serve serves events until ctx ends, and then ends all streams.
func serve(ctx context.Context, listener net.Listener, events *replay.Log) error {
	server := &http.Server{
		Handler:           handler(events),
		ReadHeaderTimeout: 10 * time.Second,
		// Streams end with the server: their requests' contexts come from ctx.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		server.Shutdown(bounded)
	})
	err := server.Serve(listener)
	if stop() {
		return err // not because of ctx
	}
	<-done
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// handler is what you would add to a server of your own, behind whatever decides
// there who may read and who may publish.
func handler(events *replay.Log) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /events", stream{events})
	mux.Handle("POST /publish", publish{events})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write([]byte(page))
	})
	return mux
}
