package client_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/internal/cputime"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// BenchmarkReceive is target P16: processor time of a message that is received, through
// the client, and by a bare loop of coder/websocket and encoding/json over the same
// frames. The sender is in the same process and counts in both. It only writes, and large
// pieces: if it wrote frame by frame, whoever reads faster would find less at a time, and
// pay for that with more system calls.
func BenchmarkReceive(b *testing.B) {
	messages := 200_000
	if testing.Short() {
		messages = 2_000
	}
	for _, entries := range []int{1, 16} {
		stream, first := frames(messages, entries)
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h := &hijacker{ResponseWriter: w}
			c, err := websocket.Accept(h, r, &websocket.AcceptOptions{Subprotocols: []string{wire.Subprotocol}})
			if err != nil {
				return
			}
			defer c.CloseNow()
			for _, answer := range []wire.Frame{
				{Type: wire.Welcome, Version: 1, Beat: 25000, Timeout: 10000, Limits: wire.Limits{Message: 32768, Topics: 1, Pending: 1, History: 1}},
				{Type: wire.Subscribed, Topic: "room", Base: first, Head: first},
			} {
				var f wire.Frame
				_, text, err := c.Read(r.Context())
				if err != nil || wire.Decode(text, &f) != nil {
					return
				}
				answer.Ref = f.Ref
				if c.Write(r.Context(), websocket.MessageText, answer.Append(nil)) != nil {
					return
				}
			}
			for rest := stream; len(rest) > 0; {
				n, err := h.conn.Write(rest[:min(len(rest), 256<<10)])
				if rest = rest[n:]; err != nil {
					return
				}
			}
			c.Read(r.Context()) // until the client closes
		})
		srv := httptest.NewServer(handler)
		url := "ws" + strings.TrimPrefix(srv.URL, "http")
		var bare time.Duration
		for _, mode := range []struct {
			name string
			run  func(url string, n int) error
		}{{"bare", receiveBare}, {"client", receiveClient}} {
			b.Run(fmt.Sprintf("entries=%d/%s", entries, mode.name), func(b *testing.B) {
				if b.N > 1 {
					b.Skip("once is enough: use -benchtime 1x")
				}
				best := time.Duration(1<<63 - 1)
				for range 5 {
					before := cputime.Used()
					if err := mode.run(url, messages); err != nil {
						b.Fatal(err)
					}
					best = min(best, (cputime.Used()-before)/time.Duration(messages))
				}
				if mode.name == "bare" {
					bare = best
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(float64(best.Nanoseconds()), "cpu-ns/message")
				b.ReportMetric(float64(bare)/float64(best), "x-of-bare")
			})
		}
		srv.Close()
	}
}

// A hijacker remembers the connection that is taken over.
type hijacker struct {
	http.ResponseWriter
	conn net.Conn
}

func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	h.conn = c
	return c, rw, err
}

// frames returns entries frames with so many messages of 128 bytes, so many in a frame, as
// they stand on the wire.
func frames(messages, entries int) (stream []byte, first replay.Position) {
	log := replay.New(replay.Limits{Entries: 1})
	_, first = log.Bounds()
	data := []byte(`{"text":"` + strings.Repeat("x", 117) + `"}`)
	prev := first
	for n := 0; n < messages; n += entries {
		var parts [][]byte
		var last replay.Position
		for range entries {
			e, err := log.Append("", data)
			if err != nil {
				panic(err)
			}
			parts = append(parts, wire.AppendEntry(nil, &e, wire.JSON))
			last = e.Pos
		}
		text := wire.AppendEntries(nil, "room", prev, parts, replay.Position{}, 0)
		stream = append(stream, 0x81, 126, byte(len(text)>>8), byte(len(text))) // between 126 and 65535 bytes
		stream = append(stream, text...)
		prev = last
	}
	return stream, first
}

func receiveBare(url string, n int) error {
	ctx := context.Background()
	c, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{Subprotocols: []string{wire.Subprotocol}})
	if err != nil {
		return err
	}
	defer c.CloseNow()
	for _, text := range []string{`{"t":"hello","v":1}`, `{"t":"subscribe","topic":"room","ref":1}`} {
		if err := c.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			return err
		}
	}
	for got := 0; got < n; {
		_, text, err := c.Read(ctx)
		if err != nil {
			return err
		}
		var f struct {
			T       string `json:"t"`
			Topic   string `json:"topic"`
			Prev    string `json:"prev"`
			Entries []struct {
				Pos  string          `json:"pos"`
				At   int64           `json:"at"`
				Key  string          `json:"key"`
				Data json.RawMessage `json:"data"`
			} `json:"entries"`
		}
		if err := json.Unmarshal(text, &f); err != nil {
			return err
		}
		got += len(f.Entries)
	}
	return nil
}

func receiveClient(url string, n int) error {
	ctx := context.Background()
	// The sender never pauses, and cannot subscribe anybody a second time.
	c, err := client.New(url, &client.Options{BufferMessages: n, BufferBytes: 1 << 30})
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	sub, err := c.Subscribe("room", nil)
	if err != nil {
		return err
	}
	for range n {
		e, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		if e.Reset != nil || len(e.Data) != 128 {
			return fmt.Errorf("not a message: %v: %w", e, io.ErrUnexpectedEOF)
		}
	}
	return nil
}
