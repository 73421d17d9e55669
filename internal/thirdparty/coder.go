package main

import (
	"context"
	"net/http"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/heartbeat"
)

// coderHandler serves coder/websocket connections that m watches.
func coderHandler(m *heartbeat.Monitor) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, err := m.NewPeer(nil)
		if err != nil {
			panic(err)
		}
		c, err := websocket.Accept(p.WrapWriter(w), r, nil)
		if err != nil {
			return
		}
		if err := p.Watch(c); err != nil {
			panic(err)
		}
		go func() {
			defer c.CloseNow()
			defer p.Stop()
			for {
				if _, _, err := c.Read(context.Background()); err != nil {
					return
				}
			}
		}()
	})
}
