package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/backplane/gateway"
	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/internal/memnet"
	"github.com/holdfast-ws/holdfast/replay"
)

// A site is the real thing: a backplane, and servers with a Hub and a gateway each.
type site struct {
	t      testing.TB
	memory *backplane.Memory
	nodes  map[string]*node // by host
}

type node struct {
	network *memnet.Network
	hub     *backplane.Hub
	gw      *gateway.Gateway
	stop    func()
}

// newSite returns a site with servers of these names, within a bubble.
func newSite(t testing.TB, o gateway.Options, hub *backplane.Options, memory *backplane.MemoryOptions, names ...string) *site {
	t.Helper()
	s := &site{t: t, memory: backplane.NewMemory(memory), nodes: map[string]*node{}}
	if o.Authorize == nil {
		o.Authorize = func(context.Context, gateway.Access) (gateway.Grant, error) { return gateway.Grant{User: "u"}, nil }
	}
	t.Cleanup(func() { s.memory.Close() })
	for _, name := range names {
		n := &node{network: memnet.New(memnet.Settings{Latency: 5 * time.Millisecond}), hub: backplane.New(s.memory, hub)}
		o.Node = name
		gw, err := gateway.New(n.hub, &o)
		if err != nil {
			t.Fatal(err)
		}
		n.gw = gw
		server := &http.Server{Handler: gw, ErrorLog: log.New(io.Discard, "", 0)}
		var serving sync.WaitGroup
		serving.Go(func() { server.Serve(n.network) })
		n.stop = sync.OnceFunc(func() {
			server.Close()
			for _, l := range n.network.Links() {
				l.Reset()
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			gw.Shutdown(ctx)
			n.hub.Close(ctx)
			serving.Wait()
		})
		t.Cleanup(n.stop)
		s.nodes[name] = n
	}
	return s
}

// DialContext connects to the server that the address names.
func (s *site) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return s.nodes[strings.TrimSuffix(address, ":80")].network.DialContext(ctx, network, address)
}

// client returns a client of some of the servers.
func (s *site) client(names string, change ...func(o *client.Options)) *client.Client {
	s.t.Helper()
	o := &client.Options{
		HTTPClient: &http.Client{Transport: &http.Transport{DialContext: s.DialContext}},
	}
	for _, f := range change {
		f(o)
	}
	hosts := strings.Fields(names)
	for _, host := range hosts[1:] {
		o.URLs = append(o.URLs, "ws://"+host)
	}
	c, err := client.New("ws://"+hosts[0], o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		c.Close(ctx)
	})
	return c
}

func ready(t testing.TB, s *client.Subscription) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestGatewayAConversation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, gateway.Options{}, nil, nil, "a")
		anna, bert := s.client("a"), s.client("a")
		room := subscribe(t, bert, "room/7", nil)
		ready(t, room)
		for _, data := range []string{`{"text":"hi"}`, "text\x00", "\xff\xfe", ""} {
			r, err := anna.Publish(t.Context(), "room/7", client.Message{Key: "k", Data: []byte(data)})
			if err != nil || r.Outcome != client.Committed {
				t.Fatalf("%q: %v, %v", data, r, err)
			}
			e, err := room.Next(t.Context())
			if err != nil || string(e.Data) != data || e.Key != "k" || e.Pos != r.Pos || e.At.IsZero() || room.Position() != r.Pos {
				t.Errorf("%q: %+v, %v", data, e, err)
			}
		}
		r, err := anna.Publish(t.Context(), "room/7", client.Message{ID: "x", Data: []byte("1")})
		again, err2 := anna.Publish(t.Context(), "room/7", client.Message{ID: "x", Data: []byte("1")})
		if err != nil || err2 != nil || again.Outcome != client.Duplicate || again.Pos != r.Pos {
			t.Errorf("%v, %v; again %v, %v", r, err, again, err2)
		}
		if err := anna.PublishEphemeral("room/7", []byte("typing")); err != nil {
			t.Error(err)
		}
		gets(t, room, "1 ~typing")
		if _, err := anna.Publish(t.Context(), "room/7", client.Message{Data: make([]byte, 40_000)}); !errors.Is(err, client.ErrTooLarge) {
			t.Error(err)
		}
		last := subscribe(t, anna, "room/7", &client.SubscribeOptions{Last: 2})
		last.Next(t.Context())
		gets(t, last, "1")
	})
}

// A faster publisher than the gateway takes: nothing is lost, doubled or out of order.
func TestGatewayMoreThanItTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, gateway.Options{}, nil, nil, "a")
		anna, bert := s.client("a"), s.client("a")
		room := subscribe(t, bert, "room", nil)
		ready(t, room)
		const n = 1500
		var work sync.WaitGroup
		work.Go(func() {
			var last *client.Pending
			for i := 1; i <= n; i++ {
				last = send(t, anna, "room", fmt.Sprint(i))
			}
			if got := outcome(last); got != "committed" {
				t.Error(got)
			}
		})
		began := time.Now()
		for i := 1; i <= n; i++ {
			if got := next(room); got != fmt.Sprint(i) {
				t.Fatalf("got %s, want %d", got, i)
			}
		}
		work.Wait()
		// 20 a second, and 80 at once.
		if d := time.Since(began); d > 100*time.Second {
			t.Errorf("it took %v", d)
		}
		if st := anna.Stats(); st.Sessions != 1 {
			t.Errorf("%+v", st)
		} else {
			t.Logf("%v, %d sent again", time.Since(began), st.Resent)
		}
	})
}

// A publish that the gateway refused for its rate counted as one, so that 200 commands took up
// to 11 s where the rate allows them in 6.
func TestGatewayTwoHundredCommands(t *testing.T) {
	for _, mode := range []string{"one after the other", "at once"} {
		synctest.Test(t, func(t *testing.T) {
			s := newSite(t, gateway.Options{}, nil, nil, "a")
			c := s.client("a")
			wait(t, c, client.Ready)
			began := time.Now()
			var work sync.WaitGroup
			for i := range 200 {
				work.Go(func() { c.Publish(t.Context(), fmt.Sprint("room ", i), client.Message{Data: []byte("1")}) })
				if mode != "at once" {
					work.Wait()
				}
			}
			work.Wait()
			// 80 at once, and 20 a second.
			if d := time.Since(began); d > 6500*time.Millisecond {
				t.Errorf("%s: it took %v, %+v", mode, d, c.Stats())
			}
		})
	}
}

func TestGatewayResumesOnAnotherServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, gateway.Options{Drain: 10 * time.Second}, nil, nil, "a", "b", "c")
		reader, writer := s.client("a b c"), s.client("a b c", func(o *client.Options) { o.Age = 110 * time.Second })
		room := subscribe(t, reader, "room", nil)
		ready(t, room)
		const n = 600
		var work sync.WaitGroup
		work.Go(func() {
			var all []*client.Pending
			for i := 1; i <= n; i++ {
				all = append(all, send(t, writer, "room", fmt.Sprint(i)))
				time.Sleep(time.Second)
			}
			for i, p := range all {
				if got := outcome(p); got != "committed" && got != "duplicate" {
					t.Errorf("message %d: %s", i+1, got)
				}
			}
		})
		work.Go(func() {
			names := []string{"a", "b", "c"}
			for i := range 9 {
				time.Sleep(time.Minute)
				net := s.nodes[names[i%3]].network
				for _, l := range net.Links() {
					l.Reset()
				}
				net.Set(memnet.Settings{Refuse: true})
				time.AfterFunc(20*time.Second, func() { net.Set(memnet.Settings{Latency: 5 * time.Millisecond}) })
			}
		})
		for i := 1; i <= n; i++ {
			if got := next(room); got != fmt.Sprint(i) {
				t.Fatalf("got %s, want %d", got, i)
			}
		}
		work.Wait()
		if st := reader.Stats(); st.Resets+st.Repairs != 0 || st.Sessions < 3 {
			t.Errorf("%+v", st)
		}
	})
}

// A server that shuts down is left within its window, and nothing is missed.
func TestGatewayShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, gateway.Options{Drain: 10 * time.Second}, nil, nil, "a", "b")
		s.nodes["b"].network.Set(memnet.Settings{Refuse: true})
		c := s.client("a b")
		room := subscribe(t, c, "room", nil)
		ready(t, room)
		time.Sleep(time.Minute)
		s.nodes["b"].network.Set(memnet.Settings{})
		done := make(chan error)
		go func() { done <- s.nodes["a"].gw.Shutdown(context.Background()) }()
		for i := 1; i <= 100; i++ {
			if _, err := s.nodes["b"].hub.Publish(t.Context(), "room", backplane.Message{Data: fmt.Append(nil, i)}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Millisecond)
		}
		if err := <-done; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		gets(t, room, numbers(1, 100))
		if st := c.Stats(); st.Sessions != 2 || st.Resets != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestGatewayResets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		few := func(string) replay.Limits { return replay.Limits{Entries: 10} }
		s := newSite(t, gateway.Options{}, &backplane.Options{
			Limits: few,
			Snapshot: func(_ context.Context, topic string, head replay.Position) ([]byte, replay.Position, error) {
				if topic != "with" {
					return nil, replay.Position{}, errors.New("none")
				}
				return []byte(`{"state":true}`), head, nil
			},
		}, &backplane.MemoryOptions{Limits: few}, "a")
		kept := map[string]replay.Position{}
		c := s.client("a")
		for _, topic := range []string{"with", "without"} {
			sub := subscribe(t, c, topic, nil)
			ready(t, sub)
			kept[topic] = sub.Position()
			sub.Close()
			for i := 1; i <= 30; i++ {
				s.nodes["a"].hub.Publish(t.Context(), topic, backplane.Message{Data: fmt.Append(nil, i)})
			}
		}
		with := subscribe(t, c, "with", &client.SubscribeOptions{From: kept["with"]})
		without := subscribe(t, c, "without", &client.SubscribeOptions{From: kept["without"]})
		ready(t, with)
		s.nodes["a"].hub.Publish(t.Context(), "with", backplane.Message{Data: []byte("31")})
		if got := next(with) + " " + next(with); got != `reset(trimmed 20)={"state":true} 31` {
			t.Error(got)
		}
		if got := next(without) + " " + next(without); got != "reset(trimmed 20) 21" {
			t.Error(got)
		}
		gets(t, without, numbers(22, 30))
		foreign := replay.Position{Epoch: 1, Seq: 5, Tag: 9}
		without.Close()
		without = subscribe(t, c, "without", &client.SubscribeOptions{From: foreign})
		e, err := without.Next(t.Context())
		if err != nil || e.Reset == nil || !e.Reset.Void() || e.Reset.Reason != replay.ReasonEpoch {
			t.Errorf("%+v, %v", e, err)
		}
		gets(t, without, numbers(21, 30))
	})
}

// A slow application over the real thing; the others do not notice.
func TestGatewayASlowApplication(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, gateway.Options{}, nil, nil, "a")
		c := s.client("a", func(o *client.Options) { o.BufferMessages = 16 })
		slow, fast := subscribe(t, c, "slow", nil), subscribe(t, c, "fast", nil)
		ready(t, slow)
		ready(t, fast)
		for i := 1; i <= 300; i++ {
			for _, topic := range []string{"slow", "fast"} {
				s.nodes["a"].hub.Publish(t.Context(), topic, backplane.Message{Data: fmt.Append(nil, i)})
			}
			gets(t, fast, fmt.Sprint(i))
			if i%7 == 0 {
				gets(t, slow, fmt.Sprint(i/7))
			}
		}
		gets(t, slow, numbers(300/7+1, 300))
		if st := c.Stats(); st.Pauses < 5 || st.Resets+st.Repairs != 0 || st.Sessions != 1 {
			t.Errorf("%+v", st)
		}
	})
}

func TestGatewayPermissions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var withdrawn atomic.Bool
		s := newSite(t, gateway.Options{Authorize: func(_ context.Context, a gateway.Access) (gateway.Grant, error) {
			if a.Topic == "secret" || a.Topic == "room" && withdrawn.Load() {
				return gateway.Grant{}, gateway.ErrForbidden
			}
			return gateway.Grant{User: "anna"}, nil
		}}, nil, nil, "a")
		c := s.client("a")
		var refused *client.ServerError
		if _, err := subscribe(t, c, "secret", nil).Next(t.Context()); !errors.As(err, &refused) || refused.Code != "forbidden" {
			t.Error(err)
		}
		if r, err := c.Publish(t.Context(), "secret", client.Message{}); !errors.As(err, &refused) || refused.Code != "forbidden" || r.Outcome != client.NotStored {
			t.Error(r, err)
		}
		room := subscribe(t, c, "room", nil)
		ready(t, room)
		c.Publish(t.Context(), "room", client.Message{Data: []byte("1")})
		withdrawn.Store(true)
		s.nodes["a"].gw.Recheck(t.Context(), "anna")
		gets(t, room, "1")
		if _, err := room.Next(t.Context()); !errors.As(err, &refused) || refused.Code != "forbidden" {
			t.Error(err)
		}
		if c.State() != client.Ready {
			t.Error(c.State())
		}
	})
}

// A token that expires is replaced, and nothing is missed.
func TestGatewayTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var good atomic.Value
		good.Store("t1")
		s := newSite(t, gateway.Options{Authorize: func(_ context.Context, a gateway.Access) (gateway.Grant, error) {
			if a.Action == gateway.Connect {
				if a.Token != good.Load() {
					return gateway.Grant{}, gateway.ErrUnauthenticated
				}
				return gateway.Grant{User: "anna", Expires: time.Now().Add(time.Minute)}, nil
			}
			return gateway.Grant{}, nil
		}}, nil, nil, "a")
		token := "t1"
		var refreshed int
		c := s.client("a", func(o *client.Options) {
			o.Prepare = func(_ context.Context, d *client.Dial) error {
				if d.Refresh && refreshed < 3 {
					refreshed++
					token = fmt.Sprint("t", refreshed+1)
				}
				d.Token = token
				return nil
			}
		})
		room := subscribe(t, c, "room", nil)
		ready(t, room)
		for i := 1; i <= 150; i++ {
			if i%60 == 0 {
				good.Store(fmt.Sprint("t", i/60+1))
			}
			s.nodes["a"].hub.Publish(t.Context(), "room", backplane.Message{Data: fmt.Append(nil, i)})
			time.Sleep(time.Second)
		}
		gets(t, room, numbers(1, 150))
		if refreshed < 2 {
			t.Errorf("%d refreshed", refreshed)
		}
		good.Store("none")
		wait(t, c, client.Closed)
		var refused *client.ServerError
		if err := c.Err(); !errors.As(err, &refused) || refused.Code != "unauthenticated" {
			t.Error(err)
		}
		if _, err := room.Next(t.Context()); err != c.Err() {
			t.Error(err)
		}
	})
}
