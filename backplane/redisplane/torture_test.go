package redisplane

import (
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/faultproxy"
	"github.com/holdfast-ws/holdfast/internal/redistest"
	"github.com/holdfast-ws/holdfast/internal/torture"
	"github.com/holdfast-ws/holdfast/internal/verify"
	"github.com/holdfast-ws/holdfast/replay"
)

var (
	tortureLength = flag.Duration("torture.length", 0, "how long Redis and the nodes are hurt; 0 for 4 s, or 15 s in make verify")
	tortureSeed   = flag.Uint64("torture.seed", 1, "for the faults")
)

// length is how long a torture takes.
func length() time.Duration {
	switch {
	case *tortureLength > 0:
		return *tortureLength
	case verify.On():
		return 15 * time.Second
	}
	return 4 * time.Second
}

// A redisWorld is one Redis, and a proxy in front of it for each node.
type redisWorld struct {
	t       *testing.T
	opts    *Options
	server  *redistest.Server
	proxies []*faultproxy.Proxy
	began   time.Time
	shown   time.Time
}

func (w *redisWorld) Open(int) backplane.Backplane {
	proxy, err := faultproxy.New(w.server.Addr())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(proxy.Close)
	w.proxies = append(w.proxies, proxy)
	plane, _ := connect(w.t, proxy.Addr(), w.opts)
	return plane
}

func (w *redisWorld) Stored() []torture.Event { return nil }

func (w *redisWorld) Heal() {
	for _, p := range w.proxies {
		p.Heal()
	}
}

// wait is how long a fault lasts.
func wait(d time.Duration) { <-time.After(d) }

func (w *redisWorld) Fault(rnd *rand.Rand, note func(string), lose func()) {
	if length() > time.Minute && time.Since(w.shown) > 10*time.Second {
		w.shown = time.Now()
		w.t.Logf("%v of %v", time.Since(w.began).Round(time.Second), length())
	}
	proxy := w.proxies[rnd.IntN(len(w.proxies))]
	d := time.Duration(rnd.Int64N(int64(800 * time.Millisecond)))
	switch pick := rnd.IntN(100); {
	case pick < 25:
		note("node's connections reset")
		proxy.ResetAll()
	case pick < 45:
		note("node's connections half-open")
		proxy.HoleUp.Store(true)
		proxy.HoleDown.Store(true)
		wait(d)
		proxy.ResetAll()
		proxy.Heal()
	case pick < 55:
		note("node's connections stalled")
		proxy.Stall.Store(true)
		wait(d)
		proxy.Heal()
	case pick < 65:
		note("message cut")
		proxy.CutDown.Store(1 + rnd.Int64N(2000))
	case pick < 75:
		note("subscriptions killed")
		must(w.t, w.server, "CLIENT KILL TYPE pubsub")
	case pick < 85:
		note("Redis stopped")
		w.server.Pause()
		wait(d)
		w.server.Resume()
	case pick < 93:
		note("Redis killed, with its data on disk")
		w.server.Kill()
		wait(d / 4)
		w.server.Restart(w.t)
	case pick < 97:
		note("FLUSHALL")
		must(w.t, w.server, "FLUSHALL")
		lose()
	default:
		note("Redis killed, and its data lost")
		w.server.Wipe(w.t)
		lose()
		w.server.Restart(w.t)
	}
}

// What internal/torture does in virtual time, here with everything real: Redis,
// go-redis, sockets.
func TestThreeHubsOnARealRedisKeepThePromise(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: it takes seconds, too long for planted bugs, which run with -short")
	}
	limits := replay.Limits{Entries: 200, Bytes: 1 << 26}
	w := &redisWorld{
		t: t, began: time.Now(),
		opts:   &Options{Probe: 200 * time.Millisecond, Timeout: time.Second, Limits: func(string) replay.Limits { return limits }},
		server: redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always"),
	}
	p := torture.Plan{
		Seed: *tortureSeed, Length: length(), Nodes: 3, Topics: 4, Subscribers: 20, Publishers: 8,
		Retention: 190, HubRetention: 200, Pace: 0.1, Sweep: 500 * time.Millisecond,
	}
	out := torture.Run(p, w)
	verify.Report(t, "seed %d, %v: %s; converged %v after the last fault; %v", p.Seed, p.Length, out, out.Converged.Round(time.Millisecond), out.Faults)
	if len(out.Violations) > 0 {
		t.Error(out.Explain())
	}
	if out.Deliveries < 1000 {
		t.Errorf("only %d deliveries: nothing was tested", out.Deliveries)
	}
}
