package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/backplane/redisplane"
	"github.com/holdfast-ws/holdfast/replay"
)

// A line is what a user is sent: a message, or that some are missing before the next.
type line struct {
	Position replay.Position `json:"position"`
	Text     string          `json:"text,omitempty"`
	Reset    replay.Reason   `json:"reset,omitempty"`
	Missed   uint64          `json:"missed,omitempty"`
}

const room = "room"

// serve is one server process. It prints its address, and ends when its standard
// input does: with the process that has started it.
func serve(redisURL string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	logging.Disable() // go-redis's own; what matters comes as errors
	options, err := redis.ParseURL(redisURL)
	if err != nil {
		return err
	}
	// The clients here want to see that something happens within seconds.
	options.DialTimeout, options.ReadTimeout, options.WriteTimeout = time.Second, time.Second, time.Second
	client := redis.NewClient(options)
	defer client.Close()
	plane, err := redisplane.New(client, &redisplane.Options{Probe: time.Second, Timeout: 2 * time.Second})
	if err != nil {
		return err
	}
	defer plane.Close()
	hub := backplane.New(plane, &backplane.Options{
		Outbox: &backplane.Outbox{Done: func(topic string, m backplane.Message, r backplane.Receipt, err error) {
			if err != nil {
				slog.Error("a message is lost", "id", m.ID, "outcome", r.Outcome.String(), "error", err)
			}
		}},
	})
	defer hub.Close(context.Background())

	mux := http.NewServeMux()
	mux.HandleFunc("POST /say", func(w http.ResponseWriter, r *http.Request) { say(hub, w, r) })
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) { events(hub, w, r) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	fmt.Println(listener.Addr())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		server.Close()
		<-done
	}
	return err
}

// say publishes a message. The id in the URL is the user's: so it may be sent again,
// to any server.
func say(hub *backplane.Hub, w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 4<<10))
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	receipt, err := hub.Publish(r.Context(), room, backplane.Message{ID: r.URL.Query().Get("id"), Data: text})
	var input *backplane.InputError
	switch {
	case errors.As(err, &input):
		http.Error(w, err.Error(), http.StatusBadRequest)
	case err != nil:
		http.Error(w, fmt.Sprintf("%v: %v", receipt.Outcome, err), http.StatusServiceUnavailable)
	default:
		fmt.Fprintln(w, receipt.Outcome)
	}
}

// events sends a user what is said, one JSON object to a line, from where it was.
func events(hub *backplane.Hub, w http.ResponseWriter, r *http.Request) {
	var after replay.Position
	if text := r.URL.Query().Get("after"); text != "" {
		var err error
		if after, err = replay.ParsePosition(text); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	sub, err := hub.Subscribe(r.Context(), room, &backplane.SubscribeOptions{After: after})
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer sub.Close()
	out := json.NewEncoder(w)
	out.Encode(line{Position: sub.Position()}) // where the user is, if nothing is said
	flush := http.NewResponseController(w)
	flush.Flush()
	for batch, err := range sub.All(r.Context()) {
		if err != nil {
			return
		}
		if batch.Reset != nil {
			out.Encode(line{Reset: batch.Reset.Reason, Missed: batch.Reset.Missed})
		}
		for _, m := range batch.Entries {
			out.Encode(line{Position: m.Pos, Text: string(m.Data)})
		}
		if flush.Flush() != nil {
			return
		}
	}
}
