package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/client"
)

// A server that is busy at first, then breaks a connection, and then says that this client
// is not welcome.
func ExampleSessions() {
	var requests atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := requests.Add(1)
		if n == 1 {
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer conn.CloseNow()
		conn.Write(r.Context(), websocket.MessageText, fmt.Appendf(nil, "hello %d", n-1))
		if n == 3 {
			conn.Close(websocket.StatusPolicyViolation, "no robots")
		}
	}))
	defer server.Close()

	ctx := context.Background()
	opts := &client.Options{
		Backoff: backoff.Policy{Cap: 10 * time.Millisecond}, // be patient outside of examples
	}
	for s, err := range client.Sessions(ctx, server.URL, opts) {
		var failed *client.DialError
		if errors.As(err, &failed) && !failed.Final {
			fmt.Println("busy:", failed.Status)
			continue
		}
		if err != nil {
			fmt.Println("the end:", websocket.CloseStatus(err))
			break // it would end here anyway: this is the last error
		}
		for {
			_, data, err := s.Read(s.Context())
			if err != nil {
				s.End(err)
				break
			}
			fmt.Printf("session %d: %s\n", s.Number, data)
		}
	}
	// Output:
	// busy: 503
	// session 1: hello 1
	// session 2: hello 2
	// the end: StatusPolicyViolation
}

// A token that is made anew for every dial, and really anew when the server has refused
// the last one.
func ExampleOptions_prepare() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer token-2" {
			http.Error(w, "expired", http.StatusUnauthorized)
			return
		}
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		conn.Close(websocket.StatusNormalClosure, "")
	}))
	defer server.Close()

	token := "token-1"
	opts := &client.Options{
		Prepare: func(_ context.Context, d *client.Dial) error {
			if d.Refresh {
				token = "token-2" // ask your token service, with ctx
			}
			d.Token = token
			return nil
		},
	}
	for s, err := range client.Sessions(context.Background(), server.URL, opts) {
		if err != nil {
			fmt.Println("refused")
			continue
		}
		fmt.Println("session", s.Number)
		break
	}
	// Output:
	// refused
	// session 1
}
