package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/backplane/gateway"
	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/internal/faultproxy"
	"github.com/holdfast-ws/holdfast/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// A chat is a gateway that takes names as examples/chat does, behind a network that fails.
type chat struct {
	t   *testing.T
	hub *backplane.Hub
	net *faultproxy.Proxy
	ctx context.Context
}

func newChat(t *testing.T) *chat {
	c := &chat{t: t}
	var cancel context.CancelFunc
	c.ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	c.begin()
	t.Cleanup(c.net.Close)
	return c
}

// begin starts a server without a past, and leads the network there.
func (c *chat) begin() {
	memory := backplane.NewMemory(nil)
	hub := backplane.New(memory, nil)
	gw, err := gateway.New(hub, &gateway.Options{
		Authorize: func(_ context.Context, a gateway.Access) (gateway.Grant, error) {
			if a.Action == gateway.Connect && (a.Token == "" || a.Token != url.PathEscape(a.Request.URL.Query().Get("user"))) || a.Token == "nobody" {
				return gateway.Grant{}, gateway.ErrForbidden
			}
			return gateway.Grant{User: a.Token}, nil
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	srv := httptest.NewServer(gw)
	c.t.Cleanup(func() {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		gw.Shutdown(now)
		srv.Close()
		hub.Close(now)
		memory.Close()
	})
	c.hub = hub
	addr := srv.Listener.Addr().String()
	if c.net != nil {
		c.net.SetTarget(addr)
		return
	}
	if c.net, err = faultproxy.New(addr); err != nil {
		c.t.Fatal(err)
	}
}

func (c *chat) say(data string) {
	c.t.Helper()
	if _, err := c.hub.Publish(c.ctx, room, backplane.Message{Data: []byte(data)}); err != nil {
		c.t.Fatal(err)
	}
}

// said returns what is in the room.
func (c *chat) said(n int) (all []string) {
	c.t.Helper()
	sub, err := c.hub.Subscribe(c.ctx, room, &backplane.SubscribeOptions{Last: -1})
	if err != nil {
		c.t.Fatal(err)
	}
	defer sub.Close()
	for batch, err := range sub.All(c.ctx) {
		if err != nil {
			c.t.Fatal(err)
		}
		for _, e := range batch.Entries {
			all = append(all, string(e.Data))
		}
		if len(all) >= n {
			break
		}
	}
	return all
}

// A terminal is what somebody looks at.
type terminal struct {
	t     *testing.T
	keys  io.WriteCloser
	leave context.CancelFunc
	done  chan error

	mu   sync.Mutex
	text strings.Builder
}

func (s *terminal) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *terminal) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// sit has somebody sit down at a terminal.
func (c *chat) sit(name string) *terminal {
	in, keys := io.Pipe()
	ctx, leave := context.WithCancel(c.ctx)
	s := &terminal{t: c.t, keys: keys, leave: leave, done: make(chan error, 1)}
	c.t.Cleanup(func() { keys.Close() })
	go func() { s.done <- run(ctx, "ws://"+c.net.Addr()+"/ws", name, in, s) }()
	return s
}

// shows waits until all of it is on the screen, in that order.
func (s *terminal) shows(patterns ...string) {
	s.t.Helper()
	all := regexp.MustCompile(`(?s)` + strings.Join(patterns, ".*"))
	deadline, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for !all.MatchString(s.String()) {
		if backoff.Sleep(deadline, 5*time.Millisecond) != nil {
			s.t.Fatalf("the terminal shows\n%s\nwant %q", s, patterns)
		}
	}
}

// ends returns what run has returned.
func (s *terminal) ends() error {
	s.t.Helper()
	select {
	case err := <-s.done:
		return err
	case <-time.After(30 * time.Second):
		s.t.Fatalf("it does not end:\n%s", s)
		return nil
	}
}

func TestWhatIsPipedInIsSaidAndThatIsTheEnd(t *testing.T) {
	c := newChat(t)
	s := c.sit("Jürgen Ω 100%")
	io.WriteString(s.keys, "one\n\n  two  \nthree <b>\"\nfour")
	s.keys.Close()
	if err := s.ends(); err != nil {
		t.Error(err)
	}
	for i, said := range c.said(4) {
		want := []string{"one", "two", `three \u003cb\u003e\"`, "four"}[i]
		if said != `{"from":"Jürgen Ω 100%","text":"`+want+`"}` {
			t.Errorf("message %d: %s", i+1, said)
		}
	}
}

func TestTheRoomIsShownFromItsHistoryOn(t *testing.T) {
	c := newChat(t)
	for range history {
		c.say(`{"from":"bert","text":"long ago"}`)
	}
	c.say(`{"from":"bert","text":"before"}`)
	s := c.sit("anna")
	s.shows("--- connected\n", ":..   bert: before\n")
	if n := strings.Count(s.String(), "long ago"); n != history-1 {
		t.Errorf("%d messages of %d were long ago", n, history)
	}
	c.say(`{"from":"b\u001b[2Jert","text":"now\n\u202eand\u2066"}`)
	c.say(`["something else"]`)
	io.WriteString(s.keys, "typed\n")
	s.shows("b·\\[2Jert: now·and\n", "    \\[\"something else\"\\]\n", "anna: typed\n")
	s.leave() // while it waits for a key
	if err := s.ends(); err != nil {
		t.Error(err)
	}
	if err := c.hub.PublishEphemeral(c.ctx, room, []byte("1")); err != nil {
		t.Error(err)
	}
}

func TestWhatHappensToTheConnectionIsShown(t *testing.T) {
	c := newChat(t)
	s := c.sit("anna")
	c.say(`{"from":"bert","text":"one"}`)
	s.shows("bert: one\n")
	c.net.Refuse.Store(true)
	c.net.ResetAll()
	s.shows("--- connection lost \\([^\n]*\\); reconnecting in \\d")
	c.say(`{"from":"bert","text":"two"}`)
	c.say(`{"from":"bert","text":"three"}`)
	io.WriteString(s.keys, "are you there?\n")
	s.shows("--- no connection \\([^\n]*\\); trying again in \\d")
	c.net.Heal()
	s.shows(`\+ bert: two`, `\+ bert: three`, `  anna: are you there\?`)
	s.shows("--- connected again; messages that came meanwhile: 2\n")

	// Another server, which does not have what was said.
	c.begin()
	c.net.ResetAll()
	s.shows("--- messages may be missing here, and some may come again: epoch\n")
	c.say(`{"from":"bert","text":"four"}`)
	s.shows("bert: four\n")
	s.keys.Close()
	if err := s.ends(); err != nil {
		t.Error(err)
	}
	for _, text := range []string{"bert: one", "bert: two", "bert: three", "anna: are you there?", "bert: four"} {
		if n := strings.Count(s.String(), text); n != 1 {
			t.Errorf("%q is shown %d times:\n%s", text, n, s)
		}
	}
}

func TestWhoIsRefusedIsToldAndItEnds(t *testing.T) {
	c := newChat(t)
	s := c.sit("nobody")
	if err := s.ends(); err == nil || !strings.Contains(err.Error(), "4403") && !strings.Contains(err.Error(), "forbidden") {
		t.Error(err)
	}
	// The name would do, but not for this server.
	refuses := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no Annas here", 400) }))
	defer refuses.Close()
	in, keys := io.Pipe()
	defer keys.Close()
	err := run(c.ctx, "ws"+strings.TrimPrefix(refuses.URL, "http")+"/ws", "anna", in, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "no Annas here") {
		t.Error(err)
	}
	for _, tt := range []struct{ url, name, want string }{
		{"http:\n", "anna", "-url: "},
		{"http://localhost:8080/ws", "anna", "is not one of a WebSocket"},
		{"ws://localhost:8080", "anna", "the chat is at ws://localhost:8080/ws"},
		{"ws://localhost:8080/", "anna", "the chat is at ws://localhost:8080/ws"},
		{"ws://localhost:8080/ws", "", "who are you?"},
		{"ws://localhost:8080/ws", "an\nna", "who are you?"},
		{"ws://localhost:8080/ws", strings.Repeat("ü", 33), "who are you?"},
	} {
		if err := run(c.ctx, tt.url, tt.name, strings.NewReader(""), io.Discard); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q, %q: %v, want %q", tt.url, tt.name, err, tt.want)
		}
	}
}

// Lines that are too long for the server, or for us, do not take others with them.
func TestALongLineIsRefusedAlone(t *testing.T) {
	c := newChat(t)
	in := "one\n" + strings.Repeat("x", 200<<10) + "\n\u200b\u2060\ntwo\n" + strings.Repeat("y", longest+1) + "\n"
	s := &terminal{t: t}
	err := run(c.ctx, "ws://"+c.net.Addr()+"/ws", "anna", strings.NewReader(in), s)
	if err == nil || !strings.Contains(err.Error(), "1 lines were not acknowledged") || !strings.Contains(err.Error(), "a line is longer than") {
		t.Error(err)
	}
	s.shows(`--- not stored: "x{60}…": `)
	if said := c.said(2); len(said) != 2 || !strings.Contains(said[1], "two") {
		t.Errorf("said %q", said)
	}
}

// A session that begins says nothing more of what the one before has brought.
func TestWhatWasMissedIsSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		p := &printer{out: &out}
		for n := 1; n <= 3; n++ {
			p.up(&client.Session{Number: n})
		}
		time.Sleep(2 * quiet)
		p.close()
		if n := strings.Count(out.String(), "connected again"); n != 1 {
			t.Errorf("said %d times:\n%s", n, out.String())
		}
	})
}

// What was typed and cannot be said is not passed over.
func TestWhatIsNotSaidIsAnError(t *testing.T) {
	c := newChat(t)
	c.net.Refuse.Store(true)
	s := c.sit("anna")
	io.WriteString(s.keys, "one\n")
	io.WriteString(s.keys, "\n") // which is read when one has been sent
	s.shows("--- no connection")
	s.keys.Close()
	s.leave()
	if err := s.ends(); err == nil || !strings.Contains(err.Error(), "not all that was typed is acknowledged") {
		t.Errorf("%v\n%s", err, s)
	}
}
