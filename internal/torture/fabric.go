package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-ws/holdfast/internal/memnet"
)

// VirtualFabric is a Fabric of networks in memory, one for each node, in virtual time.
type VirtualFabric struct {
	// Eat is the share of entries frames that get lost between node and client, and
	// of those that come twice: not what a network does, but a bug on the way would.
	Eat float64

	settings memnet.Settings
	healed   atomic.Bool
	pending  sync.WaitGroup // faults that will be healed

	mu   sync.Mutex // guards nets
	nets []*memnet.Network
}

// NewVirtualFabric returns a Fabric for so many nodes.
func NewVirtualFabric(nodes int, s memnet.Settings) *VirtualFabric {
	return &VirtualFabric{settings: s, nets: make([]*memnet.Network, nodes)}
}

// Net returns the network of a node, as it is now.
func (f *VirtualFabric) Net(node int) *memnet.Network {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nets[node]
}

// Listen implements Fabric.
func (f *VirtualFabric) Listen(node int) net.Listener {
	n := memnet.New(f.settings)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nets[node] = n
	if f.Eat > 0 {
		return eater{n, f}
	}
	return n
}

// An eater is a listener whose connections lose frames.
type eater struct {
	net.Listener
	f *VirtualFabric
}

func (e eater) Accept() (net.Conn, error) {
	c, err := e.Listener.Accept()
	return &eaten{c, e.f}, err
}

type eaten struct {
	net.Conn
	f *VirtualFabric
}

// Write writes b, which is whole frames or what comes before the first.
func (c *eaten) Write(b []byte) (int, error) {
	const text, head = 0x81, `{"t":"entries"`
	start := 2
	if len(b) > 4 && b[1] == 126 {
		start = 4
	}
	if b[0] == text && len(b) > start+len(head) && string(b[start:start+len(head)]) == head && !c.f.healed.Load() {
		switch r := rand.Float64(); {
		case r < c.f.Eat:
			return len(b), nil
		case r < 2*c.f.Eat:
			n, err := c.Conn.Write(b)
			if err == nil {
				if _, err := c.Conn.Write(b); err != nil {
					c.Conn.Close() // perhaps in the middle of it: nothing may follow
				}
			}
			return n, err
		}
	}
	return c.Conn.Write(b)
}

// URL implements Fabric.
func (f *VirtualFabric) URL(node, _ int) string { return fmt.Sprintf("ws://node%d.example/ws", node) }

// Transport implements Fabric.
func (f *VirtualFabric) Transport() http.RoundTripper {
	return &http.Transport{DisableKeepAlives: true, DialContext: f.dial}
}

func (f *VirtualFabric) dial(ctx context.Context, network, address string) (net.Conn, error) {
	var node int
	if _, err := fmt.Sscanf(strings.TrimPrefix(address, "node"), "%d.", &node); err != nil {
		return nil, err
	}
	return f.Net(node).DialContext(ctx, network, address)
}

// Cut implements Fabric.
func (f *VirtualFabric) Cut(node int, dark bool) {
	n := f.Net(node)
	if dark {
		n.Set(memnet.Settings{Swallow: true})
	}
	links := n.Links()
	for _, l := range links {
		if dark {
			l.Blackhole(memnet.Both)
		}
	}
	n.Close()
	for _, l := range n.Links() {
		if !dark {
			l.Reset()
		}
	}
}

// Fault implements Fabric.
func (f *VirtualFabric) Fault(rnd *rand.Rand, note func(string)) {
	n := f.Net(rnd.IntN(len(f.nets)))
	links := n.Links()
	d := time.Duration(rnd.Int64N(int64(8 * time.Second)))
	direction := []memnet.Direction{memnet.Up, memnet.Down, memnet.Both}[rnd.IntN(3)]
	bytes := rnd.IntN(2000)
	pick := rnd.IntN(100)
	during := func(what string, s memnet.Settings) {
		note(what)
		n.Set(s)
		f.pending.Go(func() { time.Sleep(d); n.Set(f.settings) })
	}
	// Some of the links, and now and then all.
	some := links[:0]
	all := rnd.IntN(20) == 0
	for _, l := range links {
		if all || rnd.IntN(4) == 0 {
			some = append(some, l)
		}
	}
	switch {
	case pick < 25:
		note("connections reset")
		for _, l := range some {
			l.Reset()
		}
	case pick < 45:
		note(map[memnet.Direction]string{memnet.Up: "half-open up", memnet.Down: "half-open down", memnet.Both: "half-open"}[direction])
		for _, l := range some {
			l.Blackhole(direction)
		}
	case pick < 60:
		note("stall")
		for _, l := range some {
			l.Stall(direction, true)
		}
		f.pending.Go(func() {
			time.Sleep(d)
			for _, l := range some {
				l.Stall(direction, false)
			}
		})
	case pick < 80:
		note("cut in the middle of a frame")
		for _, l := range some {
			l.CutAfter(direction, bytes)
		}
	case pick < 88:
		s := f.settings
		s.Latency = d / 40
		during("slow connections", s)
	case pick < 94:
		s := f.settings
		s.Refuse = true
		during("dials refused", s)
	default:
		s := f.settings
		s.Swallow = true
		during("dials swallowed", s)
	}
}

// Heal implements Fabric.
func (f *VirtualFabric) Heal() {
	f.pending.Wait()
	f.healed.Store(true)
}
