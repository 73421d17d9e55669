package torture

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/holdfast-ws/holdfast/backplane"
)

// Virtual is a World of a Store, in virtual time.
type Virtual struct {
	store   *Store
	gentle  bool
	healthy Link
	nodes   []*Node
	restore func()
	pending sync.WaitGroup // links that will be healed
}

// NewVirtual returns one whose store keeps what the plan says.
func NewVirtual(p Plan) *Virtual {
	// A link as it is between faults: hints are never to be relied on.
	healthy := Link{
		Latency: 4 * time.Millisecond, Drop: 0.02, Repeat: 0.02, Delay: 0.05, Lateness: time.Second, Ring: 0.02, Unsure: 0.01,
	}
	if p.Slow {
		healthy.Latency = 1500 * time.Millisecond
	}
	s := NewStore(p.Retention, "")
	return &Virtual{store: s, gentle: p.Gentle, healthy: healthy, restore: s.Save()}
}

// Open implements World.
func (v *Virtual) Open(int) backplane.Backplane {
	n := v.store.Open(v.healthy)
	v.nodes = append(v.nodes, n)
	return n
}

// Fault implements World.
func (v *Virtual) Fault(rnd *rand.Rand, note func(string), lose func()) {
	n := v.nodes[rnd.IntN(len(v.nodes))]
	during := func(what string, worse func(*Link)) {
		note(what)
		link, d := v.healthy, time.Duration(rnd.Int64N(int64(8*time.Second)))
		worse(&link)
		v.pending.Go(func() { n.Set(link); time.Sleep(d); n.Set(v.healthy) })
	}
	pick := rnd.IntN(100)
	if v.gentle && pick >= 91 {
		pick -= 50
	}
	switch {
	case pick < 20:
		note("cut")
		n.Set(Link{Down: true})
		n.Set(v.healthy)
	case pick < 36:
		during("down", func(l *Link) { l.Down = true })
	case pick < 52:
		during("hang", func(l *Link) { l.Hang = true })
	case pick < 73:
		during("hints lost", func(l *Link) { l.Drop = 1 })
	case pick < 84:
		during("hints out of order", func(l *Link) { l.Delay, l.Repeat = 0.7, 0.3 })
	case pick < 91:
		note("store restarts")
		v.store.Restart()
		for _, n := range v.nodes {
			n.Set(v.healthy)
		}
	case pick < 96:
		note("rollback")
		v.restore()
		lose()
		v.restore = v.store.Save()
	default:
		note("flush")
		v.store.Flush()
		lose()
		v.restore = v.store.Save()
	}
	if rnd.IntN(4) == 0 {
		v.restore = v.store.Save()
	}
}

// Heal implements World.
func (v *Virtual) Heal() {
	v.pending.Wait()
	for _, n := range v.nodes {
		n.Set(v.healthy)
	}
}

// Stored implements World.
func (v *Virtual) Stored() []Event { return v.store.All() }
