package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/backplane/gateway"
	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// serve runs the whole server until the test ends.
func serve(t *testing.T) *httptest.Server {
	t.Helper()
	a := newApp()
	rt, err := newRealtime(a)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(a.mux)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		rt.shutdown(ctx)
		srv.Close()
	})
	return srv
}

// visit returns an HTTP client that is logged in, unless name is empty.
func visit(t *testing.T, srv *httptest.Server, name string) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &http.Client{Jar: jar, Transport: &http.Transport{}}
	t.Cleanup(b.CloseIdleConnections)
	if name != "" {
		resp, err := b.PostForm(srv.URL+"/login", url.Values{"name": {name}})
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	return b
}

func TestWhoIsLoggedInGetsEachNoteOnce(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	srv := serve(t)
	anna, bert := visit(t, srv, "anna"), visit(t, srv, "bert")
	c, err := client.New(strings.Replace(srv.URL, "http", "ws", 1)+"/ws", &client.Options{HTTPClient: bert})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	sub, err := c.Subscribe("notes", &client.SubscribeOptions{Last: 10})
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range []string{"one", "two", "three"} {
		resp, err := anna.PostForm(srv.URL+"/notes", url.Values{"text": {text}})
		if err != nil || resp.StatusCode != http.StatusNoContent {
			t.Fatal(resp, err)
		}
		resp.Body.Close()
		e, err := sub.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var n note
		if err := json.Unmarshal(e.Data, &n); err != nil || n.User != "anna" || n.Text != text {
			t.Errorf("note %d: %s %v", i, e.Data, err)
		}
		if i == 1 {
			c.Reconnect()
		}
	}
	// What is not allowed.
	_, err = c.Publish(ctx, "notes", client.Message{Data: []byte(`{"user":"anna","text":"forged"}`)})
	if refused := (*client.ServerError)(nil); !errors.As(err, &refused) || refused.Code != "forbidden" {
		t.Errorf("publishing past the form: %v", err)
	}
	stranger, err := client.New(strings.Replace(srv.URL, "http", "ws", 1)+"/ws", &client.Options{HTTPClient: visit(t, srv, "")})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close(ctx)
	if err := stranger.Wait(ctx, client.Ready); websocket.CloseStatus(err) != 4401 {
		t.Errorf("without a cookie: %v", err)
	}
}

func TestWhoLogsOutIsDisconnected(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	srv := serve(t)
	anna, bert := visit(t, srv, "anna"), visit(t, srv, "bert")
	open := func(b *http.Client) *client.Subscription {
		c, err := client.New(strings.Replace(srv.URL, "http", "ws", 1)+"/ws", &client.Options{HTTPClient: b})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(ctx) })
		sub, err := c.Subscribe("notes", &client.SubscribeOptions{Last: 10})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(ctx, client.Ready); err != nil {
			t.Fatal(err)
		}
		return sub
	}
	annas, berts := open(anna), open(bert)
	resp, err := anna.Post(srv.URL+"/logout", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if _, err := annas.Next(ctx); websocket.CloseStatus(err) != 4401 {
		t.Errorf("who has logged out: %v", err)
	}
	if resp, err = bert.PostForm(srv.URL+"/notes", url.Values{"text": {"still here"}}); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if _, err := berts.Next(ctx); err != nil {
		t.Errorf("somebody else: %v", err)
	}
}

func TestThePageAsksForWhatItNeeds(t *testing.T) {
	a := newApp()
	srv := httptest.NewServer(a.mux)
	defer srv.Close()
	get := func(b *http.Client) string {
		resp, err := b.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var text strings.Builder
		resp.Write(&text)
		return text.String()
	}
	if text := get(visit(t, srv, "")); !strings.Contains(text, "/login") || strings.Contains(text, "connect(") {
		t.Error("who is not logged in does not get the form alone")
	}
	if text := get(visit(t, srv, "<b>")); !strings.Contains(text, `key: "\u003cb\u003e"`) {
		t.Error("who is logged in gets no live updates")
	}
}

// The session was looked up twice: a logout in between granted an empty user, and Disconnect
// did not find that connection.
func TestALogoutWhileSomebodyConnects(t *testing.T) {
	asked := 0
	grant, err := authorize(func(*http.Request) string {
		if asked++; asked == 1 {
			return "anna"
		}
		return ""
	})(context.Background(), gateway.Access{Action: gateway.Connect})
	if err != nil || grant.User != "anna" {
		t.Errorf("let in as %q, %v", grant.User, err)
	}
}

// The promise of the example: this is all that was added to the server.
func TestFewLinesWereAdded(t *testing.T) {
	text, err := os.ReadFile("realtime.go")
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(string(text), "// authorize lets in")
	if n := strings.Count(body, "\n"); n > 45 {
		t.Errorf("%d lines", n)
	}
}
