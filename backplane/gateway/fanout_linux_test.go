package gateway

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/heartbeat"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/internal/wsrig"
)

var fans = map[string]wsrig.Fan{
	"raw":     func() wsrig.Fanner { return loopFan(rawSender) },
	"coder":   func() wsrig.Fanner { return loopFan(coderSender) },
	"gateway": gatewayFan,
}

func init() { fanMain = func() { wsrig.FanMain(fans) } }

// gatewayFan is a gateway with everything it has, and one topic.
func gatewayFan() wsrig.Fanner {
	hub := backplane.New(backplane.NewMemory(nil), nil)
	gw, err := New(hub, &Options{
		Authorize: allowAll,
		Heartbeat: heartbeat.Config{Interval: time.Hour}, // the rig's clients answer no pings
	})
	if err != nil {
		panic(err)
	}
	return wsrig.Fanner{
		Handler:  gw,
		Greeting: []string{`{"t":"hello","v":1}`, `{"t":"subscribe","topic":"room"}`},
		Ready:    func() int { return hub.Stats().Subscribers },
		Broadcast: func(messages, size int) {
			data := append(append([]byte{'"'}, bytes.Repeat([]byte("x"), size-2)...), '"')
			goal := gw.Stats().Messages + uint64(messages*gw.Stats().Connections)
			for range messages {
				if _, err := hub.Publish(context.Background(), "room", backplane.Message{Data: data}); err != nil {
					panic(err)
				}
			}
			for gw.Stats().Messages < goal {
				<-time.After(200 * time.Microsecond)
			}
		},
	}
}

// loopFan is a server that keeps a list of connections and writes to one after the
// other, in as many goroutines as there are processors.
func loopFan(send func(c *websocket.Conn, n net.Conn, frame, payload []byte) error) wsrig.Fanner {
	type member struct {
		c *websocket.Conn
		n net.Conn
	}
	var mu sync.Mutex // guards members
	var members []member
	return wsrig.Fanner{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h := &upgrade{w: w, timeout: time.Hour, header: http.Header{}}
			c, err := websocket.Accept(h, r, &websocket.AcceptOptions{Subprotocols: []string{wire.Subprotocol}})
			if err != nil {
				return
			}
			mu.Lock()
			members = append(members, member{c, h.conn.Conn})
			mu.Unlock()
			go func() {
				for {
					if _, _, err := c.Read(context.Background()); err != nil {
						return
					}
				}
			}()
		}),
		Ready: func() int {
			mu.Lock()
			defer mu.Unlock()
			return len(members)
		},
		Broadcast: func(messages, size int) {
			// What the gateway sends is some 150 bytes longer than the message.
			payload := bytes.Repeat([]byte("x"), size+150)
			frame := appendMessage(nil, payload)
			for range messages {
				var wg sync.WaitGroup
				for i := range 2 {
					wg.Go(func() {
						for k := i; k < len(members); k += 2 {
							if err := send(members[k].c, members[k].n, frame, payload); err != nil {
								panic(err)
							}
						}
					})
				}
				wg.Wait()
			}
		},
	}
}

// rawSender is the floor: a frame made once, written to the connection.
func rawSender(_ *websocket.Conn, n net.Conn, frame, _ []byte) error {
	_, err := n.Write(frame)
	return err
}

// coderSender is a bare coder/websocket server that is written with care: no timer for
// each write.
func coderSender(c *websocket.Conn, _ net.Conn, _, payload []byte) error {
	return c.Write(context.Background(), websocket.MessageText, payload)
}

// BenchmarkFanout is targets P5, P6 and P7: CPU time of the server for each message and
// connection, one message at a time and eight that wait together, against a frame made
// once and a bare coder/websocket; and the memory of an idle connection. Server and
// clients are processes of their own. With -short it only shows that it runs.
func BenchmarkFanout(b *testing.B) {
	sizes, rounds := []int{1000, 5000, 10_000}, 60
	if testing.Short() {
		sizes, rounds = []int{50}, 2
	}
	for _, conns := range sizes {
		for _, burst := range []int{1, 8} {
			floor := time.Duration(0)
			for _, mode := range []string{"raw", "coder", "gateway"} {
				b.Run(fmt.Sprintf("conns=%d/burst=%d/%s", conns, burst, mode), func(b *testing.B) {
					if b.N > 1 {
						b.Skip("once is enough: use -benchtime 1x")
					}
					r, err := wsrig.RunFan(wsrig.FanSetting{Mode: mode, Conns: conns, Size: 128, Burst: burst, Rounds: max(2, rounds*1000/conns/burst)})
					if err != nil {
						b.Fatal(err)
					}
					if mode == "raw" {
						floor = r.PerMessage
					}
					b.ReportMetric(0, "ns/op")
					b.ReportMetric(float64(r.PerMessage.Nanoseconds()), "cpu-ns/message")
					b.ReportMetric(float64(floor)/float64(r.PerMessage), "x-of-raw")
					b.ReportMetric(r.Bytes, "B/conn")
					b.ReportMetric(r.Goroutines, "goroutines/conn")
				})
			}
		}
	}
}
