package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
)

// How clients fail.
const (
	healthy int32 = iota
	silent        // answers nothing, but reads: a frozen page
	dark          // its network is gone: nothing is read or written any more
	greedy        // asks for data without end and does not read it
)

// A client is one raw connection: what it does is below what libraries allow.
type client struct {
	conn net.Conn
	mode atomic.Int32
}

// beClients connects n clients to a server and then does as the lines on in say:
// "silent", "dark" and "greedy" turn one in nine clients into such a zombie, which
// together is a third. It answers each line when it is done, and ends with in.
func beClients(addr string, n int, in io.Reader, out io.Writer) error {
	clients := make([]*client, n)
	for i := range clients {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		clients[i] = &client{conn: c}
		if err := clients[i].handshake(i); err != nil {
			return fmt.Errorf("client %d: %w", i, err)
		}
	}
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(c.live)
	}
	fmt.Fprintln(out, "ready")

	next := 0
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		mode := map[string]int32{"silent": silent, "dark": dark, "greedy": greedy}[lines.Text()]
		for range n / 9 {
			c := clients[next]
			next += 2 // neighbours stay healthy
			c.mode.Store(mode)
			if mode == greedy {
				c.conn.Write([]byte{0x81, 0x84, 0, 0, 0, 0, 'm', 'o', 'r', 'e'})
			}
		}
		fmt.Fprintln(out, "done")
	}
	for _, c := range clients {
		c.conn.Close()
	}
	wg.Wait()
	return lines.Err()
}

func (c *client) handshake(number int) error {
	fmt.Fprintf(c.conn, "GET /?client=%d HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", number)
	var head strings.Builder
	for b := make([]byte, 1); !strings.HasSuffix(head.String(), "\r\n\r\n"); { // and not a byte more
		if _, err := c.conn.Read(b); err != nil {
			return err
		}
		head.Write(b)
	}
	if !strings.Contains(head.String(), " 101 ") {
		return fmt.Errorf("%s instead of %d", head.String(), http.StatusSwitchingProtocols)
	}
	return nil
}

// live answers pings until the connection ends, or the client becomes a zombie.
func (c *client) live() {
	head := make([]byte, 2+125)
	for {
		if _, err := io.ReadFull(c.conn, head[:2]); err != nil {
			return
		}
		size := int(head[1])
		if size > 125 {
			return // greedy: it stops reading here
		}
		if _, err := io.ReadFull(c.conn, head[2:2+size]); err != nil {
			return
		}
		switch {
		case c.mode.Load() == dark:
			return // neither reads nor writes again; the connection stays open
		case c.mode.Load() == healthy && head[0] == 0x89:
			pong := append([]byte{0x8a, 0x80 | byte(size), 0, 0, 0, 0}, head[2:2+size]...)
			if _, err := c.conn.Write(pong); err != nil {
				return
			}
		}
	}
}
