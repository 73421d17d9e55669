package gateway

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// An upgrade stands for the ResponseWriter while websocket.Accept answers. It keeps the
// answer, takes the connection over, and writes the answer to that. Two kinds of
// middleware make this necessary: one holds back a status that is written to it until
// there is a body, which never comes; and one has a Hijack that fails, which one must
// know before the client is told that it has a WebSocket.
type upgrade struct {
	w       http.ResponseWriter
	timeout time.Duration
	secure  bool
	conn    *netConn // once the connection was taken over

	header http.Header // of the answer, and its status and text
	status int
	text   strings.Builder
	err    error // why the connection was not taken over, or the answer not sent
}

func (h *upgrade) Header() http.Header         { return h.header }
func (h *upgrade) WriteHeader(status int)      { h.status = status }
func (h *upgrade) Write(b []byte) (int, error) { return h.text.Write(b) }

// Hijack takes the connection over, tells the client so, and hands out a netConn for it.
func (h *upgrade) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	inner, rw, err := hijack(h.w)
	if err != nil {
		h.err = err
		return nil, nil, err
	}
	h.conn = &netConn{Conn: inner, timeout: h.timeout, secure: h.secure, turn: make(chan struct{}, 1)}
	if err := h.answer(inner); err != nil {
		h.err = err
		inner.Close()
		return nil, nil, err
	}
	rw.Writer.Reset(h.conn) // only control frames go through it, if nothing is compressed
	return h.conn, rw, nil
}

// hijack is Hijack of a ResponseWriter, or one below it. Some middleware panics where what
// it wraps has no Hijack.
func hijack(w http.ResponseWriter) (c net.Conn, rw *bufio.ReadWriter, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("Hijack panicked: %v", p)
		}
	}()
	return http.NewResponseController(w).Hijack()
}

// answer writes the header of the response, with what middleware has put into it, but for what is
// about a body or the connection.
func (h *upgrade) answer(c net.Conn) error {
	own := h.header.Clone()
	for name, values := range h.w.Header() {
		switch name = http.CanonicalHeaderKey(name); name {
		case "Content-Encoding", "Content-Length", "Content-Type",
			"Connection", "Keep-Alive", "Trailer", "Transfer-Encoding", "Upgrade":
		default:
			if own[name] == nil {
				h.header[name] = append(h.header[name], values...)
			}
		}
	}
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	h.header.Write(&b)
	b.WriteString("\r\n")
	if err := c.SetWriteDeadline(time.Now().Add(h.timeout)); err != nil {
		return err
	}
	_, err := c.Write(b.Bytes())
	return err
}

// failed answers a handshake that Accept could not complete, and says so in the log.
func (g *Gateway) failed(w http.ResponseWriter, h *upgrade, err error) {
	switch {
	case h.conn != nil: // it is no longer HTTP that is spoken there
		g.count.refused.Add(1)
		g.note(warn, "handshake not completed: the answer could not be sent", "err", quoted(h.err.Error(), maxError))
	case h.err != nil:
		hint := "let the Hijack of the middleware's ResponseWriter succeed"
		if errors.Is(err, http.ErrNotSupported) {
			hint = "give the middleware's ResponseWriter an Unwrap method"
		}
		g.note(warn, "handshake not completed: middleware hides the connection", "hint", hint, "err", quoted(h.err.Error(), maxError))
		g.refuse(w, http.StatusNotImplemented, "Something in front of this handler hides Hijack, or lets it fail, without which there is no WebSocket: give the ResponseWriter that wraps the other an Unwrap method.")
	default:
		for name, values := range h.header {
			w.Header()[name] = values
		}
		g.note(debug, "no WebSocket handshake", "status", h.status, "err", quoted(err.Error(), maxError))
		g.refuse(w, h.status, strings.TrimSpace(h.text.String()))
	}
}

// refuse answers a request that becomes no connection.
func (g *Gateway) refuse(w http.ResponseWriter, status int, why string) {
	g.count.refused.Add(1)
	http.Error(w, why, status)
}
