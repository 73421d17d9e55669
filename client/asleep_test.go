package client

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/internal/memnet"
	"github.com/holdfast-ws/holdfast/internal/wire"
)

// Age was counted by a clock that stands still while the machine sleeps: a message that was
// written before was sent again afterwards, when the server had forgotten its ID, and
// stored twice.
func TestAMessageDoesNotOutliveItsAgeAsleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New(memnet.Settings{Latency: time.Millisecond})
		written := make(chan *websocket.Conn, 8)
		srv := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{wire.Subprotocol}})
			if err != nil {
				return
			}
			defer ws.CloseNow()
			ws.Read(context.Background()) // hello
			ws.Write(context.Background(), websocket.MessageText, []byte(`{"t":"welcome","v":1}`))
			for {
				if _, _, err := ws.Read(context.Background()); err != nil {
					return
				}
				written <- ws
			}
		})}
		var wg sync.WaitGroup
		wg.Go(func() { srv.Serve(n) })
		defer wg.Wait()
		defer srv.Close()
		c, err := New("ws://x/", &Options{HTTPClient: &http.Client{Transport: &http.Transport{DialContext: n.DialContext}}})
		if err != nil {
			t.Fatal(err)
		}
		p, err := c.Send(t.Context(), "a", Message{Data: []byte("1")})
		if err != nil {
			t.Fatal(err)
		}
		first := <-written
		c.mu.Lock()
		p.wall = p.wall.Add(-time.Hour) // as if the machine had slept so long since
		c.mu.Unlock()
		first.CloseNow()
		<-p.Done()
		if r, err := p.Wait(t.Context()); r.Outcome != Unknown || !errors.Is(err, ErrExpired) {
			t.Errorf("%v %v", r, err)
		}
		time.Sleep(time.Minute)
		if len(written) > 0 {
			t.Error("it was written again")
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			t.Error(err)
		}
	})
}
