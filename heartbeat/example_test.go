package heartbeat_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/heartbeat"
)

// A server watches each of its WebSockets.
func Example_server() {
	monitor, err := heartbeat.New(heartbeat.Config{
		OnDead: func(p *heartbeat.Peer, v heartbeat.Verdict) {
			fmt.Println(p.Value, "dropped:", v.Reason)
		},
	})
	if err != nil {
		panic(err)
	}
	defer monitor.Close()

	handler := func(w http.ResponseWriter, r *http.Request) {
		peer, err := monitor.NewPeer(&heartbeat.Options{Value: r.RemoteAddr})
		if err != nil {
			panic(err)
		}
		conn, err := websocket.Accept(peer.WrapWriter(w), r, nil)
		if err != nil {
			return // Accept has answered
		}
		defer conn.CloseNow()
		if err := peer.Watch(conn); err != nil {
			return // the monitor is closed: the server shuts down
		}
		defer peer.Stop()
		for {
			kind, data, err := conn.Read(context.Background())
			if err != nil {
				return // also when the peer was found dead
			}
			if err := conn.Write(context.Background(), kind, data); err != nil {
				return
			}
		}
	}
	server := httptest.NewServer(http.HandlerFunc(handler))
	defer server.Close()

	ctx := context.Background()
	conn, _, err := websocket.Dial(ctx, server.URL, nil)
	if err != nil {
		panic(err)
	}
	defer conn.CloseNow()
	if err := conn.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		panic(err)
	}
	_, data, err := conn.Read(ctx)
	fmt.Println(string(data), err)
	fmt.Println(monitor.Stats().Watched, "watched")
	// Output:
	// hello <nil>
	// 1 watched
}

// gorillaConn stands for a connection of github.com/gorilla/websocket, whose
// pings are only sent, and whose answers are seen by a handler.
type gorillaConn struct{ pong func(string) error }

func (c *gorillaConn) WriteControl(messageType int, data []byte, deadline time.Time) error {
	return c.pong(string(data)) // this peer answers at once
}
func (c *gorillaConn) SetPongHandler(h func(string) error) { c.pong = h }
func (c *gorillaConn) Close() error                        { return nil }

// Any other library: two functions, and a Touch when the answer comes. With
// Peer.WrapWriter given to the library's Upgrade, the Touch is not needed either.
func ExampleFuncs() {
	monitor, err := heartbeat.New(heartbeat.Config{})
	if err != nil {
		panic(err)
	}
	defer monitor.Close()
	peer, err := monitor.NewPeer(nil)
	if err != nil {
		panic(err)
	}

	conn := &gorillaConn{}
	answered := make(chan struct{}, 1)
	conn.SetPongHandler(func(string) error {
		peer.Touch()
		answered <- struct{}{}
		return nil
	})
	err = peer.Watch(heartbeat.Funcs{
		PingFunc: func(ctx context.Context) error {
			const pingMessage = 9
			if err := conn.WriteControl(pingMessage, nil, time.Now().Add(5*time.Second)); err != nil {
				return err
			}
			<-ctx.Done() // the answer is seen by the handler above
			return ctx.Err()
		},
		CloseFunc: conn.Close,
	})
	if err != nil {
		panic(err)
	}
	peer.Probe() // now, and not only in 25 s
	<-answered
	fmt.Println("answered")
	// Output: answered
}

// A client watches its server. The interval is longer than the server's: while
// the server pings, its pings are life enough, and the client sends none.
func Example_client() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer conn.CloseNow()
		conn.Read(context.Background())
	}))
	defer server.Close()

	monitor, err := heartbeat.New(heartbeat.Config{Interval: 40 * time.Second})
	if err != nil {
		panic(err)
	}
	defer monitor.Close()
	peer, err := monitor.NewPeer(nil)
	if err != nil {
		panic(err)
	}
	var dialer net.Dialer
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return peer.WrapConn(conn), nil
		},
	}
	conn, _, err := websocket.Dial(context.Background(), server.URL, &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: transport},
	})
	if err != nil {
		panic(err)
	}
	defer conn.CloseNow()
	if err := peer.Watch(conn); err != nil {
		panic(err)
	}
	defer peer.Stop()
	// Read from conn; it is closed when the server is found dead.
	fmt.Println(monitor.Stats().Watched, "watched")
	// Output: 1 watched
}
