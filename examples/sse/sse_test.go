package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/internal/leak"
	"github.com/holdfast-ws/holdfast/replay"
)

func TestMain(m *testing.M) { leak.Main(m) }

// A client reads one stream of events, as a browser would.
type client struct {
	t      *testing.T
	resp   *http.Response
	lines  *bufio.Scanner
	lastID string
}

type message struct{ event, data string }

// connect opens a stream, with a Last-Event-ID if id is not empty.
func connect(t *testing.T, server *httptest.Server, id string) *client {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", server.URL+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	if id != "" {
		req.Header.Set("Last-Event-ID", id)
	}
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || got != "text/event-stream" {
		t.Fatalf("%s, %s", resp.Status, got)
	}
	c := &client{t: t, resp: resp, lines: bufio.NewScanner(resp.Body), lastID: id}
	t.Cleanup(c.cut)
	return c
}

// welcome reads until the client has an id.
func (c *client) welcome() {
	for c.lines.Scan() {
		if id, ok := strings.CutPrefix(c.lines.Text(), "id: "); ok {
			c.lastID = id
			return
		}
	}
	c.t.Fatalf("the stream ends: %v", c.lines.Err())
}

// next returns the next event.
func (c *client) next() (m message) {
	c.t.Helper()
	var data []string
	for c.lines.Scan() {
		line := c.lines.Text()
		name, value, _ := strings.Cut(line, ": ")
		switch {
		case line == "" && data != nil:
			return message{m.event, strings.Join(data, "\n")}
		case name == "event":
			m.event = value
		case name == "id":
			c.lastID = value
		case name == "data":
			data = append(data, value)
		}
	}
	c.t.Fatalf("the stream ends: %v", c.lines.Err())
	panic("unreachable")
}

// cut breaks the connection.
func (c *client) cut() { c.resp.Body.Close() }

func (c *client) expect(want ...message) {
	c.t.Helper()
	for _, w := range want {
		if got := c.next(); got != w {
			c.t.Errorf("got %q, want %q", got, w)
		}
	}
}

// post publishes text and returns its position.
func post(t *testing.T, server *httptest.Server, text string) string {
	t.Helper()
	resp, err := server.Client().Post(server.URL+"/publish", "text/plain", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%s, %v: %s", resp.Status, err, body)
	}
	return strings.TrimSpace(string(body))
}

func start(t *testing.T, keep int) (*httptest.Server, *replay.Log) {
	events := replay.New(replay.Limits{Entries: keep})
	server := httptest.NewServer(handler(events))
	t.Cleanup(server.Close)
	return server, events
}

func TestAClientThatWasCutMissesNothing(t *testing.T) {
	server, _ := start(t, 100)
	post(t, server, "one")
	c := connect(t, server, "")
	c.expect(message{"", "one"})
	post(t, server, "two")
	c.expect(message{"", "two"})
	c.cut()

	post(t, server, "three")
	post(t, server, "four\nof two lines")
	for range 2 { // coming back twice repeats nothing and drops nothing
		back := connect(t, server, c.lastID)
		back.expect(message{"", "three"}, message{"", "four\nof two lines"})
		back.cut()
	}
	c = connect(t, server, c.lastID)
	c.expect(message{"", "three"})
	id := c.lastID
	c.cut()
	c = connect(t, server, id)
	c.expect(message{"", "four\nof two lines"})
	post(t, server, "five")
	c.expect(message{"", "five"})
}

// A client that has not had an event yet has a position all the same: what comes
// while it is away is more than a new client would get.
func TestAClientThatWasCutBeforeItsFirstEventMissesNothing(t *testing.T) {
	server, _ := start(t, 100)
	c := connect(t, server, "")
	c.welcome()
	c.cut()
	var want []message
	for i := range 2 * first {
		text := string(rune('a' + i))
		post(t, server, text)
		want = append(want, message{"", text})
	}
	connect(t, server, c.lastID).expect(want...)
}

// HTTP/2 ends a stream whose write deadline passes, also while nothing is written.
// The stream must not have one while it is quiet.
func TestAQuietStreamHasNoDeadline(t *testing.T) {
	events := replay.New(replay.Limits{})
	var deadline atomic.Value
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler(events).ServeHTTP(deadlineWriter{w, &deadline}, r)
	}))
	t.Cleanup(server.Close)
	c := connect(t, server, "")
	post(t, server, "one")
	c.expect(message{"", "one"})
	for give := time.Now().Add(time.Minute); !deadline.Load().(time.Time).IsZero(); runtime.Gosched() {
		if time.Now().After(give) {
			t.Fatalf("a quiet stream's deadline is %v", deadline.Load())
		}
	}
}

type deadlineWriter struct {
	http.ResponseWriter
	deadline *atomic.Value
}

func (w deadlineWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
func (w deadlineWriter) SetWriteDeadline(t time.Time) error {
	w.deadline.Store(t)
	return nil
}

func TestAClientIsToldWhatItCannotHave(t *testing.T) {
	server, events := start(t, 3)
	id := post(t, server, "1")
	for _, text := range []string{"2", "3", "4", "5", "6"} {
		post(t, server, text)
	}
	c := connect(t, server, id)
	c.expect(message{"reset", `{"missed":2,"reason":"trimmed"}`})
	resumed := c.lastID // a client that is cut right after the reset is not told again
	c.expect(message{"", "4"}, message{"", "5"}, message{"", "6"})
	c.cut()
	c = connect(t, server, resumed)
	c.expect(message{"", "4"})
	c.cut()

	events.Reset(replay.Position{}) // as after a restart of the server
	post(t, server, "new")
	c = connect(t, server, id)
	c.expect(message{"reset", `{"missed":0,"reason":"epoch"}`}, message{"", "new"})
	for _, bad := range []string{"0", "undefined", strings.Repeat("x", 5000), "-"} {
		c := connect(t, server, bad)
		c.expect(message{"reset", `{"missed":0,"reason":"malformed position"}`}, message{"", "new"})
		c.cut()
	}
}

func TestAClientThatIsConnectedIsToldOfAReset(t *testing.T) {
	server, events := start(t, 10)
	post(t, server, "old")
	c := connect(t, server, "")
	c.expect(message{"", "old"})
	events.Reset(replay.Position{})
	c.expect(message{"reset", `{"missed":0,"reason":"epoch"}`})
	post(t, server, "new")
	c.expect(message{"", "new"})
}

func TestANewClientGetsTheLastTen(t *testing.T) {
	server, _ := start(t, 100)
	for i := range 15 {
		post(t, server, string(rune('a'+i)))
	}
	c := connect(t, server, "")
	c.expect(message{"", "f"}, message{"", "g"})
}

func TestDataCannotForgeAnEvent(t *testing.T) {
	server, _ := start(t, 10)
	c := connect(t, server, "")
	post(t, server, "x\r\revent: reset\rid: forged\n\ndata: y\r\n")
	c.expect(message{"", "x\n\nevent: reset\nid: forged\n\ndata: y\n"})
	post(t, server, "")
	c.expect(message{"", ""})
}

func TestTooLongAnEventIsRefused(t *testing.T) {
	server, events := start(t, 10)
	resp, err := server.Client().Post(server.URL+"/publish", "text/plain", strings.NewReader(strings.Repeat("x", maxBody+1)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge || events.Last(1) != events.Last(0) {
		t.Errorf("%s, head %v", resp.Status, events.Last(0))
	}
}

func TestThePageIsThere(t *testing.T) {
	server, _ := start(t, 10)
	resp, err := server.Client().Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(body), "EventSource('/events')") {
		t.Errorf("%v: %s", err, body)
	}
}

func TestTheServerEndsItsStreams(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, listener, replay.New(replay.Limits{})) }()
	resp, err := http.Get("http://" + listener.Addr().String() + "/events")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Errorf("the stream ends with %v", err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the server does not end")
	}
}
