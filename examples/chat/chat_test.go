package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/client/browser"
	"github.com/holdfast-ws/holdfast/internal/leak"
	"github.com/holdfast-ws/holdfast/internal/redistest"
	"github.com/holdfast-ws/holdfast/replay"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard)
	leak.Main(m, leak.Dropped)
}

// quick is for tests that wait until it is over, and lasting for those in which it is not
// over before the test is.
var (
	quick   = timing{lose: 700 * time.Millisecond, dead: 500 * time.Millisecond, restart: 300 * time.Millisecond}
	lasting = timing{lose: time.Hour, dead: time.Hour, restart: time.Hour}
)

func newChat(t *testing.T, nodes int, tm timing) *chat {
	t.Helper()
	c, err := start(options{addr: "127.0.0.1:0", nodes: nodes, timing: tm})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func minute(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// request asks the front for something, and returns the answer with its body.
func request(t *testing.T, c *chat, method, path string, header http.Header) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest(method, c.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Close = true
	for name, values := range header {
		r.Header[name] = values
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// push pushes a button.
func push(t *testing.T, c *chat, path string) {
	t.Helper()
	resp, body := request(t, c, "POST", "control/"+path, nil)
	if resp.StatusCode/100 != 2 || body != `{"ok":true}`+"\n" {
		t.Fatalf("%s: %s %q", path, resp.Status, body)
	}
}

// shown is what GET /status says.
func shown(t *testing.T, c *chat) (s status) {
	t.Helper()
	_, body := request(t, c, "GET", "status", nil)
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return s
}

// becomes waits until the status is as it should be.
func becomes(t *testing.T, c *chat, what string, ok func(status) bool) {
	t.Helper()
	ctx := minute(t)
	for s := shown(t, c); !ok(s); s = shown(t, c) {
		if backoff.Sleep(ctx, 10*time.Millisecond) != nil {
			t.Fatalf("never %s: %+v", what, s)
		}
	}
}

// guest has a user join.
func guest(t *testing.T, c *chat, name string) *party {
	t.Helper()
	p, err := join(minute(t), c.url, name)
	if p != nil {
		t.Cleanup(func() {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			p.Close(ctx)
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// says has a user say something, until it is acknowledged.
func (p *party) says(t *testing.T, text string) {
	t.Helper()
	data, _ := json.Marshal(line{From: p.name, Text: text})
	if _, err := p.Publish(minute(t), room, client.Message{Data: data}); err != nil {
		t.Fatalf("%s cannot say %q: %v", p.name, text, err)
	}
}

// hears checks what comes next.
func (p *party) hears(t *testing.T, texts ...string) {
	t.Helper()
	for _, want := range texts {
		e, err := p.sub.Next(minute(t))
		var l line
		if err == nil && e.Reset == nil {
			err = json.Unmarshal(e.Data, &l)
		}
		if err != nil || l.Text != want {
			t.Fatalf("%s hears %s %v (reset %+v), want %q", p.name, e.Data, err, e.Reset, want)
		}
	}
}

// dial makes a WebSocket to the chat without the client's help.
func dial(t *testing.T, c *chat, user string) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true}
	conn, resp, err := websocket.Dial(minute(t), c.url+"ws?user="+url.QueryEscape(user), &websocket.DialOptions{
		Subprotocols: []string{"holdfast.v1"}, HTTPClient: &http.Client{Transport: tr},
	})
	if conn != nil {
		t.Cleanup(func() { conn.CloseNow() })
	}
	return conn, resp, err
}

func TestThePageAndItsConfiguration(t *testing.T) {
	c := newChat(t, 2, lasting)
	resp, body := request(t, c, "GET", "", nil)
	csp := resp.Header.Get("Content-Security-Policy")
	if resp.StatusCode != 200 || !strings.Contains(body, `src="/chat.js"`) || !strings.HasPrefix(csp, "default-src 'none'; ") || strings.Contains(csp, "unsafe") {
		t.Errorf("the page: %s, policy %q\n%s", resp.Status, csp, body)
	}
	_, body = request(t, c, "GET", "config", nil)
	var config struct {
		Module, Room string
		History      int
	}
	if err := json.Unmarshal([]byte(body), &config); err != nil || config.Module != browser.URL("/holdfast/") || config.Room != "room" || config.History != 50 {
		t.Errorf("config: %s %v", body, err)
	}
	resp, body = request(t, c, "GET", strings.TrimPrefix(config.Module, "/"), nil)
	if resp.StatusCode != 200 || !strings.Contains(body, "connect") {
		t.Errorf("the module: %s", resp.Status)
	}
	for path, want := range map[string]int{"chat.js": 200, "no.js": 404, "page_test.go": 404, "..%2fmain.go": 404, "page/": 404} {
		if resp, _ := request(t, c, "GET", path, nil); resp.StatusCode != want {
			t.Errorf("%s: %s, want %d", path, resp.Status, want)
		}
	}
}

func TestConnectionsAreSpreadOverTheNodes(t *testing.T) {
	c := newChat(t, 3, lasting)
	for _, name := range []string{"a", "b", "c", "Jürgen Ω 100%", "e", "f"} {
		guest(t, c, name)
	}
	s := shown(t, c)
	want := []string{"node-1", "node-2", "node-3"}
	for i, n := range s.Nodes {
		if n.Name != want[i] || n.State != "up" || n.Connections != 2 || n.Addr != c.nodes[i].addr {
			t.Errorf("%+v", n)
		}
	}
	if len(s.Nodes) != 3 || s.Backplane != "memory" || s.Held == nil || len(s.Held) != 0 || s.Zombies != 0 {
		t.Errorf("%+v", s)
	}
}

// A welcome names the node, and a login by another's name is none.
func TestTheNodeNamesItselfAndAsksForTheName(t *testing.T) {
	c := newChat(t, 1, lasting)
	ctx := minute(t)
	for token, want := range map[string]string{"anna": `"node":"node-1"`, "bert": "4403", "": "4403"} {
		conn, _, err := dial(t, c, "anna")
		if err != nil {
			t.Fatal(err)
		}
		hello, _ := json.Marshal(map[string]any{"t": "hello", "v": 1, "token": token})
		if err := conn.Write(ctx, websocket.MessageText, hello); err != nil {
			t.Fatal(err)
		}
		var said []byte
		for err == nil && !strings.Contains(string(said), want) {
			var frame []byte
			_, frame, err = conn.Read(ctx)
			said = append(said, frame...)
		}
		if err != nil {
			said = append(said, err.Error()...)
		}
		if !strings.Contains(string(said), want) {
			t.Errorf("token %q: %s, want %s", token, said, want)
		}
	}
	for _, name := range []string{"", " anna", "an\nna", "an\xffna", "an\u00a0na", "an\u200bna", "an\ue000na", strings.Repeat("ü", 33)} {
		if _, resp, err := dial(t, c, name); err == nil || resp == nil || resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%q is let in: %v", name, err)
		}
	}
	for _, name := range []string{"Jürgen Ω 100%", "שלום", "🫩", "\U0001fae8\U0001fadc", "a\U000e0fffb"} { // the last ones were not assigned yet
		if !valid(name) {
			t.Errorf("%q is not let in", name)
		}
	}
	if resp, _ := request(t, c, "GET", "ws?user=anna", nil); resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("no WebSocket: %s", resp.Status)
	}
}

func TestEverybodyMaySpeakInTheRoomInTheirNameAndNothingElse(t *testing.T) {
	c := newChat(t, 2, lasting)
	anna, bert := guest(t, c, "anna"), guest(t, c, "bert")
	anna.says(t, "hello")
	bert.hears(t, "hello")
	anna.hears(t, "hello")
	if err := anna.PublishEphemeral(room, []byte(`{"typing":true,"from":"anna"}`)); err != nil {
		t.Fatal(err)
	}
	if e, err := bert.sub.Next(minute(t)); err != nil || !e.Ephemeral || string(e.Data) != `{"typing":true,"from":"anna"}` {
		t.Errorf("typing: %s %v", e.Data, err)
	}
	refused := (*client.ServerError)(nil)
	if _, err := anna.Publish(minute(t), "another", client.Message{Data: []byte(`{"from":"anna"}`)}); !errors.As(err, &refused) || refused.Code != "forbidden" {
		t.Errorf("publishing elsewhere: %v", err)
	}
	for _, forged := range []string{
		`{"from":"bert","text":"x"}`, `{"from":"bert","FROM":"anna"}`, `{"from":"anna","from":"bert"}`, `{"text":"x"}`, `[]`, `1`, "x", "",
	} {
		if _, err := anna.Publish(minute(t), room, client.Message{Data: []byte(forged)}); !errors.As(err, &refused) || refused.Code != "forbidden" {
			t.Errorf("publishing %s: %v", forged, err)
		}
	}
	if err := anna.PublishEphemeral(room, []byte(`{"typing":true,"from":"bert"}`)); err != nil {
		t.Fatal(err)
	}
	anna.says(t, "that was all")
	bert.hears(t, "that was all")
	sub, err := anna.Subscribe("another", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sub.Next(minute(t)); !errors.As(err, &refused) || refused.Code != "forbidden" {
		t.Errorf("reading elsewhere: %v", err)
	}
}

func TestTheControlsSayWhatIsWrong(t *testing.T) {
	c := newChat(t, 2, lasting)
	tests := []struct {
		method, path string
		header       http.Header
		status       int
		text         string
	}{
		{"POST", "kill?node=node-3", nil, 404, `there is no node "node-3"`},
		{"POST", "kill", nil, 400, "which node?"},
		{"POST", "drain?node=", nil, 400, "which node?"},
		{"POST", "drain?node=%22%3Cb%3E", nil, 404, `there is no node "\"<b>"`},
		{"POST", "lose", nil, 400, "whose network?"},
		{"POST", "lose?user=%0a", nil, 400, "whose network?"},
		{"POST", "lose?user=anna", nil, 404, `nobody named "anna" is connected`},
		{"POST", "melt", nil, 404, "there are lose, kill, drain and restart"},
		{"GET", "kill?node=node-1", nil, 405, ""},
		{"GET", "restart", nil, 405, ""},
		{"POST", "restart", http.Header{"Origin": {"https://evil.example"}}, 403, "cross-origin"},
		{"POST", "restart", http.Header{"Sec-Fetch-Site": {"cross-site"}}, 403, "cross-origin"},
		{"POST", "restart", http.Header{"Sec-Fetch-Site": {"same-site"}}, 403, "cross-origin"},
	}
	for _, tt := range tests {
		resp, body := request(t, c, tt.method, "control/"+tt.path, tt.header)
		if resp.StatusCode != tt.status || !strings.Contains(body, tt.text) {
			t.Errorf("%s %s: %s %q, want %d %q", tt.method, tt.path, resp.Status, body, tt.status, tt.text)
		}
	}
	for _, n := range shown(t, c).Nodes {
		if n.State != up {
			t.Errorf("%+v", n)
		}
	}
	own := http.Header{"Origin": {strings.TrimSuffix(c.url, "/")}, "Sec-Fetch-Site": {"same-origin"}}
	if resp, body := request(t, c, "POST", "control/restart", own); resp.StatusCode != 202 {
		t.Errorf("the page's own button: %s %s", resp.Status, body)
	}
}

func TestALostNetworkLeavesAZombieUntilTheNodeFindsOut(t *testing.T) {
	t.Parallel()                // it waits for the heartbeat
	c := newChat(t, 1, lasting) // so that it is not the front that ends it
	anna, bert := guest(t, c, "anna"), guest(t, c, "bert")
	push(t, c, "lose?user=anna")
	if s := shown(t, c); !slices.Equal(s.Held, []string{"anna"}) || s.Zombies != 1 || s.Nodes[0].Connections != 2 {
		t.Errorf("anna has no network, but %+v", s)
	}
	if err := anna.Wait(minute(t), client.Connecting); err != nil {
		t.Error(err)
	}
	if _, resp, err := dial(t, c, "anna"); err == nil || resp != nil {
		t.Errorf("anna has no network, and connects: %v", resp)
	}
	bert.says(t, "are you there?") // which goes to the zombie, too, and disturbs nobody
	bert.hears(t, "are you there?")
	becomes(t, c, "without a zombie", func(s status) bool { return s.Zombies == 0 && s.Nodes[0].Connections == 1 })
	if s := shown(t, c); !slices.Equal(s.Held, []string{"anna"}) {
		t.Errorf("anna's network is back: %+v", s)
	}
}

func TestANetworkThatIsBackBringsWhatWasMissed(t *testing.T) {
	c := newChat(t, 2, quick)
	anna, bert := guest(t, c, "anna"), guest(t, c, "bert")
	anna.says(t, "one")
	anna.hears(t, "one")
	push(t, c, "lose?user=anna")
	push(t, c, "lose?user=anna") // again, while it is lost
	bert.says(t, "two")
	bert.says(t, "three")
	if s := shown(t, c); !slices.Equal(s.Held, []string{"anna"}) || s.Zombies != 1 {
		t.Errorf("%+v", s)
	}
	anna.hears(t, "two", "three")
	bert.hears(t, "one", "two", "three")
	becomes(t, c, "as before", func(s status) bool { return len(s.Held) == 0 && s.Zombies == 0 })
}

// What a node writes when its client is lost goes nowhere, and what the client has
// written at the last moment does not come later.
func TestAPipeIsHalfOpen(t *testing.T) {
	c := newChat(t, 1, lasting)
	conn, _, err := dial(t, c, "anna")
	if err != nil {
		t.Fatal(err)
	}
	push(t, c, "lose?user=anna")
	_, _, err = conn.Read(minute(t))
	if websocket.CloseStatus(err) != -1 || err == nil {
		t.Errorf("the client was told: %v", err)
	}
	if state, n := c.nodes[0].status(); state != up || n != 1 {
		t.Errorf("the node knows: %d connections", n)
	}
}

func TestAKilledNodeComesBackAndItsClientsMove(t *testing.T) {
	t.Parallel()
	c := newChat(t, 2, quick)
	addr := shown(t, c).Nodes[0].Addr
	anna, bert := guest(t, c, "anna"), guest(t, c, "bert")
	for _, text := range []string{"one", "two"} {
		push(t, c, "kill?node=node-1")
		push(t, c, "kill?node=node-1") // which is down
		anna.says(t, text)
		bert.hears(t, text)
		anna.hears(t, text)
		becomes(t, c, "up again", func(s status) bool { return s.Nodes[0].State == up && s.Nodes[0].Addr == addr })
	}
	if r := anna.Stats().Resets + bert.Stats().Resets; r != 0 {
		t.Errorf("%d resets", r)
	}
}

func TestWithoutANodeTheFrontSays503(t *testing.T) {
	c := newChat(t, 2, lasting)
	bert := guest(t, c, "bert")
	push(t, c, "restart")
	if resp, _ := request(t, c, "POST", "control/kill?node=node-1", nil); resp.StatusCode != http.StatusOK {
		t.Errorf("it is down already: %s", resp.Status)
	}
	for _, n := range shown(t, c).Nodes {
		if n.State != down || n.Connections != 0 {
			t.Errorf("%+v", n)
		}
	}
	_, resp, err := dial(t, c, "anna")
	if err == nil || resp == nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "1" {
		t.Errorf("%v %v", resp, err)
	}
	if err := bert.Wait(minute(t), client.Connecting); err != nil {
		t.Error(err)
	}
}

// The front believes that a node lives that it cannot reach, and asks another.
func TestANodeThatCannotBeReachedIsPassedOver(t *testing.T) {
	c := newChat(t, 3, lasting)
	for _, n := range c.nodes[:2] {
		n.mu.Lock()
		n.life.listener.reset()
		n.mu.Unlock()
	}
	for range 3 {
		if conn, _, err := dial(t, c, "anna"); err != nil {
			t.Error(err)
		} else {
			conn.CloseNow()
		}
	}
}

// What is pressed while all ends does not begin anything any more.
func TestItEndsWhileButtonsArePressed(t *testing.T) {
	for range 5 {
		c, err := start(options{addr: "127.0.0.1:0", nodes: 2, timing: timing{}})
		if err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		var pressing, all sync.WaitGroup
		for _, n := range c.nodes {
			for _, press := range []func(time.Duration) bool{n.kill, n.drain} {
				pressing.Add(1)
				all.Go(func() {
					press(0)
					pressing.Done()
					for {
						select {
						case <-stop:
							return
						default:
							press(0)
						}
					}
				})
			}
		}
		pressing.Wait()
		if err := c.close(); err != nil {
			t.Error(err)
		}
		close(stop)
		all.Wait()
	}
}

func TestEndsAreHandedOnBothWays(t *testing.T) {
	c := newChat(t, 2, quick)
	ctx := minute(t)
	first, _, err := dial(t, c, "anna")
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
	becomes(t, c, "empty", func(s status) bool { return s.Nodes[0].Connections+s.Nodes[1].Connections == 0 })
	for _, what := range []string{"drain", "kill"} {
		conn, _, err := dial(t, c, "anna")
		if err != nil {
			t.Fatal(err)
		}
		conn.Write(ctx, websocket.MessageText, []byte(`{"t":"hello","v":1,"token":"anna"}`))
		if _, welcome, err := conn.Read(ctx); err != nil || !strings.Contains(string(welcome), `"welcome"`) {
			t.Fatalf("%s: %s, %v", what, welcome, err)
		}
		push(t, c, what+"?node=node-1")
		push(t, c, what+"?node=node-2")
		var said string
		for err == nil {
			var frame []byte
			_, frame, err = conn.Read(ctx)
			said += string(frame)
		}
		goodbye := strings.Contains(said, `"goodbye"`) && websocket.CloseStatus(err) == websocket.StatusServiceRestart
		if goodbye != (what == "drain") {
			t.Errorf("%s: %s %v", what, said, err)
		}
		becomes(t, c, "up again", func(s status) bool { return s.Nodes[0].State == up && s.Nodes[1].State == up })
	}
	c.front.mu.Lock()
	defer c.front.mu.Unlock()
	if n := len(c.front.pipes); n != 0 {
		t.Errorf("%d pipes are left", n)
	}
}

// newCheck is a short check. Its output is in the log of the test.
func newCheck(t *testing.T) (k *check, out *bytes.Buffer) {
	out = new(bytes.Buffer)
	t.Cleanup(func() { t.Logf("\n%s", out) })
	return &check{clients: 8, duration: 3 * time.Second, answer: answered, settle: time.Minute, seed: 1, out: out, progress: io.Discard}, out
}

// totals reads the last row of the table.
func totals(t *testing.T, out *bytes.Buffer) (sent, acked, received, replayed, repeated, missing, resets int) {
	t.Helper()
	row := regexp.MustCompile(`(?m)^ *total .*$`).FindString(out.String())
	var name string
	var times int
	if _, err := fmt.Sscan(row, &name, &times, &sent, &acked, &received, &replayed, &repeated, &missing, &resets); err != nil {
		t.Fatalf("%q: %v", row, err)
	}
	return
}

func TestACheckFindsThatThePromiseHolds(t *testing.T) {
	t.Parallel()
	k, out := newCheck(t)
	if err := k.run(minute(t), options{nodes: 2, timing: quick}); err != nil {
		t.Fatal(err)
	}
	sent, acked, received, replayed, repeated, missing, resets := totals(t, out)
	if sent == 0 || acked != sent || received != sent*k.clients || replayed == 0 || repeated+missing+resets != 0 {
		t.Error("the numbers do not fit")
	}
	if text := out.String(); !strings.HasSuffix(text, " faults, seed 1: everybody got every acknowledged message once, in one order\n") {
		t.Error(text)
	}
}

func TestACheckThatIsInterruptedSaysSo(t *testing.T) {
	k, _ := newCheck(t)
	ctx, cancel := context.WithCancel(minute(t))
	k.progress = writer(func(b []byte) (int, error) { cancel(); return len(b), nil }) // when all have joined, and before they talk
	if err := k.run(ctx, options{nodes: 2, timing: quick}); !errors.Is(err, context.Canceled) || !strings.HasPrefix(err.Error(), "interrupted: nothing was judged") {
		t.Error(err)
	}
}

// Who cannot be asked is not accused.
func TestACheckWhoseBackplaneIsGoneDoesNotJudge(t *testing.T) {
	t.Parallel()
	k, out := newCheck(t)
	k.duration, k.answer, k.kinds = time.Second, time.Second, []string{"lose"}
	memory := backplane.NewMemory(nil)
	defer memory.Close()
	bad := &bad{Memory: memory}
	k.faulted = func(number int, _ string) { bad.gone.Store(number >= 2) }
	open := func() (backplane.Backplane, func() error, error) { return bad, func() error { return nil }, nil }
	err := k.run(minute(t), options{nodes: 2, timing: quick, open: open})
	if !errors.Is(err, errUnjudged) || !errors.Is(err, backplane.ErrUnavailable) || errors.Is(err, errBroken) {
		t.Error(err)
	}
	if out.Len() > 0 {
		t.Errorf("it says something all the same: %s", out)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

func TestADrainLosesNothing(t *testing.T) {
	t.Parallel()
	k, out := newCheck(t)
	k.kinds = []string{"drain"}
	if err := k.run(minute(t), options{nodes: 2, timing: quick}); err != nil {
		t.Fatal(err)
	}
	if sent, acked, received, _, _, _, resets := totals(t, out); acked != sent || received != sent*k.clients || resets != 0 {
		t.Error("the numbers do not fit")
	}
}

// A check on a backplane that breaks its contract has to fail.
func TestACheckFindsWhatABackplaneLoses(t *testing.T) {
	tests := []struct {
		what string
		bug  func(n int) (store, twice bool)
		want string
	}{
		{"acknowledged and not stored", func(n int) (bool, bool) { return n%7 != 0, false }, "was not told"},
		{"stored twice", func(n int) (bool, bool) { return true, n%7 == 0 }, "twice"},
		{"the end stored twice", nil, `got "the end" twice`},
	}
	for _, tt := range tests {
		t.Run(tt.what, func(t *testing.T) {
			t.Parallel()
			k, out := newCheck(t)
			k.duration, k.kinds = time.Second, []string{"lose"}
			memory := backplane.NewMemory(nil)
			defer memory.Close()
			bad := &bad{Memory: memory, bug: tt.bug}
			open := func() (backplane.Backplane, func() error, error) { return bad, func() error { return nil }, nil }
			if err := k.run(minute(t), options{nodes: 2, timing: quick, open: open}); !errors.Is(err, errBroken) {
				t.Fatal(err)
			}
			if text := out.String(); !strings.Contains(text, "BROKEN: ") || !strings.Contains(text, tt.want) {
				t.Error(text)
			}
		})
	}
}

// A bad backplane acknowledges what it does not store, or stores twice.
type bad struct {
	*backplane.Memory
	bug  func(n int) (store, twice bool)
	n    atomic.Int64
	gone atomic.Bool // nobody can reach it
}

func (b *bad) Read(ctx context.Context, topic string, after replay.Position, max replay.Budget) (backplane.Page, error) {
	if b.gone.Load() {
		return backplane.Page{}, backplane.ErrUnavailable
	}
	return b.Memory.Read(ctx, topic, after, max)
}

func (b *bad) Append(ctx context.Context, topic string, m backplane.Message) (backplane.Receipt, error) {
	var l line
	json.Unmarshal(m.Data, &l)
	store, twice := true, false
	switch {
	case b.gone.Load():
		return backplane.Receipt{Outcome: backplane.NotStored, ID: m.ID}, backplane.ErrUnavailable
	case l.Text == end || l.Text == over: // without them nobody would know when to stop
		twice = b.bug == nil && l.Text == end
	case b.bug != nil:
		store, twice = b.bug(int(b.n.Add(1)))
	}
	if !store {
		page, err := b.Read(ctx, topic, replay.Position{}, replay.Budget{})
		head := page.Head
		head.Seq, head.Tag = head.Seq+1, 1
		return backplane.Receipt{Outcome: backplane.Committed, ID: m.ID, Pos: head}, err
	}
	if twice {
		again := m
		again.ID += "again"
		if r, err := b.Memory.Append(ctx, topic, again); err != nil {
			return r, err
		}
	}
	return b.Memory.Append(ctx, topic, m)
}

// A Redis that keeps what it has acknowledged is killed: nothing is missing, and nobody
// is told otherwise. One that keeps nothing: everybody is told.
func TestACheckWithARedisThatIsKilled(t *testing.T) {
	for _, keeps := range []bool{true, false} {
		name, args := "keeps all", []string{"--appendonly", "yes", "--appendfsync", "always"}
		if !keeps {
			name, args = "keeps nothing", nil
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, args...)
			k, out := newCheck(t)
			k.faulted = func(number int, kind string) {
				switch number {
				case 2:
					server.Kill()
				case 4:
					if err := server.Relaunch(); err != nil {
						t.Error(err)
					}
				}
			}
			if err := k.run(minute(t), options{nodes: 2, timing: quick, redis: "redis://" + server.Addr()}); err != nil {
				t.Fatal(err)
			}
			sent, acked, received, _, _, missing, resets := totals(t, out)
			if keeps && (acked != sent || received != sent*k.clients || missing+resets != 0) {
				t.Error("the numbers do not fit")
			}
			if !keeps && resets < k.clients {
				t.Errorf("%d resets for %d clients", resets, k.clients)
			}
		})
	}
}

func TestWithoutARedisItDoesNotStart(t *testing.T) {
	t.Parallel()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	_, err = start(options{addr: "127.0.0.1:0", nodes: 2, redis: "redis://" + free.Addr().String(), timing: quick})
	if !errors.Is(err, backplane.ErrUnavailable) {
		t.Error(err)
	}
	if _, err = start(options{addr: "127.0.0.1:0", nodes: 2, redis: "http://localhost", timing: quick}); err == nil {
		t.Error("no URL of a Redis, and it starts")
	}
	_, err = start(options{addr: "127.0.0.1:0", nodes: 2, redis: "redis://anna:se/cret@localhost:6379", timing: quick})
	if err == nil || strings.Contains(err.Error(), "se/") || strings.Contains(err.Error(), "cret") {
		t.Errorf("a password with a slash: %v", err)
	}
}

func TestTheCommandLineSaysWhatIsWrong(t *testing.T) {
	for args, want := range map[string]string{
		"":                                  "",
		"-nodes 3 -redis redis://localhost": "",
		"-check -clients 3 -for 2s -seed 1": "",
		"-nodes 0":                          "-nodes is 1 to 16",
		"-nodes 17":                         "-nodes is 1 to 16",
		"-check -clients 0":                 "-clients is 1 to 200",
		"-check -for 1ms":                   "-for is 1s or more",
		"-clients 3":                        "-clients is for -check only",
		"-seed 3":                           "-seed is for -check only",
		"-for 3s":                           "-for is for -check only",
		"-check -addr localhost:1":          "-addr does nothing with -check",
		"-cheque":                           "-cheque",
		"check":                             `no "check"`,
	} {
		var out strings.Builder
		_, k, err := parse(strings.Fields(args), &out)
		if (err != nil) != (want != "") || !strings.Contains(out.String(), want) || err == nil && (k != nil) != strings.Contains(args, "-check") {
			t.Errorf("%q: %v, %q", args, err, out.String())
		}
	}
}

func TestABusyPortIsNamedWithWhatToDo(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	err = run(minute(t), options{addr: busy.Addr().String(), nodes: 1, timing: quick})
	if err == nil || !strings.Contains(err.Error(), busy.Addr().String()) || !strings.Contains(err.Error(), "-addr") {
		t.Error(err)
	}
}

func TestItSaysWhereToLookAndEnds(t *testing.T) {
	said, to := io.Pipe()
	log.SetOutput(to)
	defer log.SetOutput(io.Discard)
	ctx, stop := context.WithCancel(minute(t))
	var all sync.WaitGroup
	all.Go(func() {
		if err := run(ctx, options{addr: "127.0.0.1:0", nodes: 3, timing: quick}); err != nil {
			t.Error(err)
		}
		to.Close()
	})
	lines := bufio.NewScanner(said)
	lines.Scan()
	where := regexp.MustCompile(`http://127\.0\.0\.1:\d+/  \(3 nodes, memory backplane\)$`).FindString(lines.Text())
	lines.Scan()
	if where == "" || !regexp.MustCompile(`go run ./examples/chat/term -name anna -url ws://127\.0\.0\.1:\d+/ws$`).MatchString(lines.Text()) {
		t.Errorf("%q, then %q", where, lines.Text())
	}
	page, _, _ := strings.Cut(where, " ")
	anna, err := join(ctx, page, "anna")
	if err != nil {
		t.Fatal(err)
	}
	stop()
	all.Wait() // anna is still there
	end, cancel := context.WithCancel(context.Background())
	cancel()
	anna.Close(end)
}
