package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/replay"
)

// A user is connected to one server, and to the other when that one is gone.
type user struct {
	name    string
	servers []string // addresses, the preferred one first
	print   func(format string, args ...any)

	mu     sync.Mutex // guards all below
	at     replay.Position
	ready  chan struct{} // closed when it has a position for the first time
	seen   map[string]int
	order  []string
	resets []string
	said   int
}

func newUser(name string, print func(string, ...any), servers ...string) *user {
	return &user{name: name, servers: servers, print: print, ready: make(chan struct{}), seen: map[string]int{}}
}

// listen keeps a connection until ctx is done.
func (u *user) listen(ctx context.Context) {
	pace := backoff.Loop{First: 200 * time.Millisecond, Policy: backoff.Policy{Base: 100 * time.Millisecond, Cap: time.Second}, Stable: time.Second}
	for n := 0; ; n++ {
		server := u.servers[n%len(u.servers)]
		err := u.connect(ctx, server, pace.Up)
		if ctx.Err() != nil {
			return
		}
		u.print("%s: connection to %s lost (%v)", u.name, server, cause(err))
		if backoff.Sleep(ctx, pace.Down()) != nil {
			return
		}
	}
}

// cause leaves out of an error what differs from run to run.
func cause(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+len(": "):]
	}
	return text
}

func (u *user) connect(ctx context.Context, server string, up func()) error {
	u.mu.Lock()
	after := u.at
	u.mu.Unlock()
	query := ""
	if !after.IsZero() {
		query = "?after=" + url.QueryEscape(after.String())
	}
	request, err := http.NewRequestWithContext(ctx, "GET", "http://"+server+"/events"+query, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", server, response.Status)
	}
	up()
	in := bufio.NewScanner(response.Body)
	for in.Scan() {
		var l line
		if err := json.Unmarshal(in.Bytes(), &l); err != nil {
			return err
		}
		u.take(l)
	}
	if in.Err() != nil {
		return in.Err()
	}
	return fmt.Errorf("server: %w", io.EOF)
}

func (u *user) take(l line) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case l.Reset != "":
		u.resets = append(u.resets, string(l.Reset))
		u.print("%s: RESET, %s: what was said before is gone from Redis, and what may be missing cannot be had", u.name, l.Reset)
	case l.Text != "":
		u.at = l.Position
		u.seen[l.Text]++
		u.order = append(u.order, l.Text)
		u.print("%s sees %3d: %s", u.name, l.Position.Seq, l.Text)
	case u.at.IsZero():
		u.at = l.Position
		close(u.ready)
	}
}

// say sends a message until a server has taken it.
func (u *user) say(ctx context.Context, text string) error {
	u.mu.Lock()
	u.said++
	id := fmt.Sprintf("%s-%d", u.name, u.said)
	u.mu.Unlock()
	for n := 0; ; n++ {
		err := u.send(ctx, u.servers[n%len(u.servers)], id, text)
		if err == nil {
			return nil
		}
		if err := backoff.Sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

func (u *user) send(ctx context.Context, server, id, text string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, "POST", "http://"+server+"/say?id="+url.QueryEscape(id), strings.NewReader(text))
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s %w", response.Status, body, err)
	}
	if outcome := strings.TrimSpace(string(body)); outcome != "committed" {
		u.print("%s says %q: %s", u.name, text, outcome)
	}
	return nil
}

// sees waits until the user has seen a text.
func (u *user) sees(ctx context.Context, text string) error {
	for {
		u.mu.Lock()
		ok := u.seen[text] > 0
		u.mu.Unlock()
		if ok {
			return nil
		}
		if err := backoff.Sleep(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("%s has not seen %q: %w", u.name, text, err)
		}
	}
}
