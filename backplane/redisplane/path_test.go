package redisplane

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/internal/faultproxy"
	"github.com/holdfast-ws/holdfast/internal/redistest"
	"github.com/holdfast-ws/holdfast/internal/torture"
	"github.com/holdfast-ws/holdfast/internal/verify"
	"github.com/holdfast-ws/holdfast/replay"
)

// A realFabric is real sockets, with two proxies in front of each node.
type realFabric struct {
	t         *testing.T
	proxies   [][2]*faultproxy.Proxy // by node
	listeners []net.Listener
}

func newRealFabric(t *testing.T, nodes int) *realFabric {
	f := &realFabric{t: t, proxies: make([][2]*faultproxy.Proxy, nodes), listeners: make([]net.Listener, nodes)}
	for i := range f.proxies {
		for k := range f.proxies[i] {
			proxy, err := faultproxy.New("127.0.0.1:1")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(proxy.Close)
			f.proxies[i][k] = proxy
		}
	}
	return f
}

func (f *realFabric) Listen(node int) net.Listener {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	f.listeners[node] = ln // Cut is called for this node only before or after
	for _, proxy := range f.proxies[node] {
		proxy.SetTarget(ln.Addr().String())
		proxy.Heal()
	}
	return ln
}

func (f *realFabric) URL(node, user int) string {
	return "ws://" + f.proxies[node][user%2].Addr() + "/ws"
}

func (f *realFabric) Transport() http.RoundTripper { return &http.Transport{DisableKeepAlives: true} }

func (f *realFabric) Cut(node int, dark bool) {
	f.listeners[node].Close()
	for _, proxy := range f.proxies[node] {
		if dark {
			proxy.HoleUp.Store(true)
			proxy.HoleDown.Store(true)
			proxy.Swallow.Store(true)
		} else {
			proxy.ResetAll()
		}
	}
}

func (f *realFabric) Heal() {
	for _, node := range f.proxies {
		for _, proxy := range node {
			proxy.Heal()
		}
	}
}

func (f *realFabric) Fault(rnd *rand.Rand, note func(string)) {
	proxy := f.proxies[rnd.IntN(len(f.proxies))][rnd.IntN(2)]
	d, bytes, direction := time.Duration(rnd.Int64N(int64(800*time.Millisecond))), 1+rnd.Int64N(4000), rnd.IntN(3)
	during := func(what string) {
		note(what)
		wait(d)
		proxy.Heal()
	}
	switch pick := rnd.IntN(100); {
	case pick < 25:
		note("clients' connections reset")
		proxy.ResetAll()
	case pick < 45: // those that lose something remain so
		proxy.HoleUp.Store(direction != 1)
		proxy.HoleDown.Store(direction != 2)
		during([]string{"clients' connections half-open", "down only", "up only"}[direction])
	case pick < 60:
		proxy.Stall.Store(true)
		during("clients' connections stalled")
	case pick < 80:
		note("frame cut")
		if direction == 0 {
			proxy.CutUp.Store(bytes)
		} else {
			proxy.CutDown.Store(bytes)
		}
	case pick < 88:
		proxy.Delay.Store(int64(d / 10))
		during("clients' connections slow")
	case pick < 94:
		proxy.Refuse.Store(true)
		during("dials refused")
	default:
		proxy.Swallow.Store(true)
		during("dials swallowed")
	}
}

// What internal/torture does in virtual time with clients and gateways, here with
// everything real: sockets from the clients to the gateways and from there to Redis.
func TestThePathOverRealSocketsAndARealRedisKeepsThePromise(t *testing.T) {
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
	out := torture.RunPath(p, w, newRealFabric(t, p.Nodes))
	var kinds []string
	for _, what := range slices.Sorted(maps.Keys(out.Faults)) {
		kinds = append(kinds, fmt.Sprint(out.Faults[what], " ", what))
	}
	verify.Report(t, "seed %d, %v: %s (%s); %s; converged in %v", p.Seed, p.Length, out, strings.Join(kinds, ", "), out.Path, out.Converged.Round(time.Millisecond))
	if len(out.Violations) > 0 {
		t.Error(out.Explain())
	}
	if out.Path.Repairs > 0 {
		t.Errorf("%d times a frame did not follow", out.Path.Repairs)
	}
	if out.Deliveries < 1000 || out.Path.Sessions < 50 {
		t.Errorf("only %d deliveries in %d sessions: nothing was tested", out.Deliveries, out.Path.Sessions)
	}
}
