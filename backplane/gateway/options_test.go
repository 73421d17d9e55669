package gateway

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/heartbeat"
	"github.com/holdfast-ws/holdfast/internal/wire"
)

func TestDefaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		want := Limits{
			Connections: 50_000, PerUser: 64, Message: 32 << 10, Topics: 128, Pending: 64, History: 1000, Frames: 50, Publishes: 20,
			Hello: 10 * time.Second, Incoming: 10 * time.Second, Write: 10 * time.Second, Authorize: 10 * time.Second,
		}
		o := r.gw.opts
		if d := cmp.Diff(want, o.Limits); d != "" {
			t.Errorf("Limits (-want +got):\n%s", d)
		}
		if o.Recheck != 15*time.Minute || DefaultRecheck != 15*time.Minute {
			t.Errorf("Recheck %v", o.Recheck)
		}
		if o.Payload("x") != JSON || o.Lag("x") != nil || o.Compress || o.Drain != 0 {
			t.Errorf("%+v", o)
		}
		s := r.socket()
		f := s.hello("")
		if f.Version != 1 || f.Conn == "" || f.Node != "" || f.Beat != 25_000 || f.Timeout != 10_000 ||
			f.Limits != (wire.Limits{Message: 32 << 10, Topics: 128, Pending: 64, History: 1000}) {
			t.Errorf("%s", f.Append(nil))
		}
	})
}

func TestOptionsAreWhatWelcomeSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{
			Node: "a", Heartbeat: heartbeat.Config{Interval: 4 * time.Second},
			Limits: Limits{Message: 1000, Topics: -1, Pending: -1, History: -1},
		}})
		f := r.socket().hello("")
		if f.Node != "a" || f.Beat != 4000 || f.Timeout != 3000 || f.Limits != (wire.Limits{Message: 1000}) {
			t.Errorf("%s", f.Append(nil))
		}
		if g := r.socket().hello(""); g.Conn == f.Conn {
			t.Errorf("two are named %s", g.Conn)
		}
	})
}

func TestDrainByDefault(t *testing.T) {
	for n, want := range map[int]time.Duration{1: time.Second, 300: 1500 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			r := startWith(t, setup{})
			for range n {
				s := r.socket()
				go func() { s.end(); s.conn.Close() }()
			}
			begin := time.Now()
			if err := r.gw.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			if d := time.Since(begin); r.gw.window != want || d > want+time.Second {
				t.Errorf("%d connections over %v, in %v", n, r.gw.window, d)
			}
		})
	}
}

// newHub returns a hub that ends with the test.
func newHub(t testing.TB) *backplane.Hub {
	bp := backplane.NewMemory(nil)
	hub := backplane.New(bp, nil)
	t.Cleanup(func() {
		hub.Close(context.Background())
		bp.Close()
	})
	return hub
}

func TestBadOptionsAreRefused(t *testing.T) {
	hub := newHub(t)
	for field, o := range map[string]*Options{
		"Authorize":         {},
		"Node":              {Node: strings.Repeat("x", 65)},
		"Drain":             {Drain: -1},
		"Origins":           {Origins: []string{"*"}},
		"Limits.Message":    {Limits: Limits{Message: 511}},
		"Limits.Message ":   {Limits: Limits{Message: 64<<20 + 1}},
		"Limits.Message  ":  {Limits: Limits{Message: -1}},
		"Limits.Hello":      {Limits: Limits{Hello: -1}},
		"Limits.Incoming":   {Limits: Limits{Incoming: -1}},
		"Limits.Write":      {Limits: Limits{Write: -1}},
		"Limits.Authorize":  {Limits: Limits{Authorize: -1}},
		"Heartbeat.OnDead":  {Heartbeat: heartbeat.Config{OnDead: func(*heartbeat.Peer, heartbeat.Verdict) {}}},
		"Heartbeat.timeout": {Heartbeat: heartbeat.Config{Interval: 10 * time.Second, Timeout: 9 * time.Second}},
	} {
		if field != "Authorize" {
			o.Authorize = allowAll
		}
		_, err := New(hub, o)
		var bad *OptionError
		var config *heartbeat.ConfigError
		switch {
		case field == "Heartbeat.timeout":
			if !errors.As(err, &config) {
				t.Errorf("%s: %v", field, err)
			}
		case !errors.As(err, &bad) || bad.Field != strings.TrimSpace(field) || bad.Reason == "" || err.Error() != "gateway: "+bad.Field+" "+bad.Reason:
			t.Errorf("%s: %v", field, err)
		}
	}
	var bad *OptionError
	if _, err := New(nil, &Options{Authorize: allowAll}); !errors.As(err, &bad) || bad.Field != "hub" {
		t.Error(err)
	}
	if _, err := New(hub, nil); !errors.As(err, &bad) || bad.Field != "Authorize" {
		t.Error(err)
	}
}

func TestTheGreatestOptionsAreTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{
			Node: strings.Repeat("x", 64), Recheck: -1, Drain: time.Second,
			Limits: Limits{
				Connections: -1, PerUser: -1, Message: 64 << 20, Topics: -1, Pending: -1, History: -1, Frames: math.MaxInt, Publishes: -1,
				Hello: time.Hour, Incoming: time.Hour, Write: time.Hour, Authorize: time.Hour,
			},
		}})
		s := r.welcome("")
		for range 300 {
			s.alive()
		}
		s.ask(`{"t":"publish","id":"1","topic":"x","data":1}`, wire.Ack)
	})
}

func TestOptionsAreCopied(t *testing.T) {
	o := Options{Authorize: allowAll}
	gw, err := New(newHub(t), &o)
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Shutdown(t.Context())
	if o.Limits != (Limits{}) || o.Recheck != 0 || o.Payload != nil {
		t.Errorf("%+v", o)
	}
}

func TestABucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bucket
		let := 0
		for range 1000 {
			if b.take(10) >= 0 {
				let++
			}
		}
		if let != 40 || b.level != -40 {
			t.Errorf("%d at once, level %v", let, b.level)
		}
		// Who waits as long as it is told to is let through, and no sooner.
		wait := time.Duration(refill(b.level, 10)) * time.Millisecond
		if wait != 4100*time.Millisecond {
			t.Errorf("told to wait %v", wait)
		}
		early := b
		time.Sleep(wait - time.Millisecond)
		if early.take(10) >= 0 {
			t.Error("let through too soon")
		}
		time.Sleep(time.Millisecond)
		if b.take(10) < 0 {
			t.Error("not let through")
		}
		time.Sleep(time.Hour)
		for let = 0; b.take(10) >= 0; let++ {
		}
		if let != 40 {
			t.Errorf("%d at once after an hour", let)
		}
		if let = 0; b.take(-1) != 0 {
			t.Error("a limit where there is none")
		}
	})
}
