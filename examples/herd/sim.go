package main

import (
	"container/heap"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// The model: every client loses the server within the same 50 ms, asks its pacer
// how long to wait, dials, and on failure asks again, until it is connected. The
// server is away until upAt. From then on it does one handshake after the other;
// the others wait in a queue of limited length, and a dial that finds it full is
// refused at once. A client whose dial takes too long
// gives up, but the server still does that handshake: it cannot know.
const (
	rtt     = 40 * time.Millisecond
	within  = 50 * time.Millisecond
	horizon = 30 * time.Minute // after the server is up again
)

// A scenario is what happens to the server, and how it behaves afterwards.
type scenario struct {
	name, title, text string

	upAt    time.Duration // when the server is back; until then dials are refused
	backlog int           // dials that may be in work or wait for it
	timeout time.Duration // how long a client waits for its handshake
	stand   int           // attempts that every client has failed before it starts
}

// A pacer is asked by one client how long to wait: first after the loss, then
// after each failed dial.
type pacer func() time.Duration

// A policy is a contestant.
type policy struct {
	name  string
	color string // in the picture; "" leaves it out

	// start returns the pacer of a client that lost its connection in s and has
	// already failed s.stand times, given the window in which the server would
	// have its clients back and the random numbers of the simulation.
	start func(s *scenario, window time.Duration, rnd *rand.Rand) pacer

	timeout time.Duration // dial timeout, where the scenario's is shorter
	only    string        // the one scenario to run in; "" means all
}

// A result is what one policy did in one scenario. Times count from the moment
// the server was up.
type result struct {
	scenario *scenario
	policy   *policy

	perSecond, per100ms int             // most arrivals in any second, any 100 ms
	p50, p99            time.Duration   // until connected; never if above horizon
	attempts, failed    int             // dials in all, and those without success
	connected           int             // clients connected within the horizon
	arrivals            []time.Duration // of the dials within picture after that, sorted
}

const never = time.Duration(math.MaxInt64)

// simulate runs n clients with policy p through s, against a server that does
// rate handshakes per second. It is a function of its arguments: the same seed
// gives the same result on every machine. progress, if not nil, is called now
// and then with the number of connected clients and the virtual time.
func simulate(s *scenario, p *policy, n, rate int, seed uint64, progress func(connected int, at time.Duration)) result {
	rnd := rand.New(rand.NewPCG(seed, 0x686f6c6466617374))
	res := result{scenario: s, policy: p}
	done := make([]time.Duration, 0, n) // when each client was connected

	// The server asks for half as much again as it needs, so that it keeps up.
	window := ideal(n, rate) * 3 / 2
	timeout := max(s.timeout, p.timeout)
	pacers := make([]pacer, n)
	queue := make(dials, 0, n)
	for i := range n {
		lost := time.Duration(rnd.Int64N(int64(within)))
		pacers[i] = p.start(s, window, rnd)
		queue = append(queue, dial{lost + pacers[i]() + rtt/2, int32(i)})
	}
	heap.Init(&queue)

	service := time.Second / time.Duration(rate)
	busyUntil := s.upAt // when the server is through with all it has accepted
	for len(queue) > 0 {
		d := queue[0] // arrives at the server now
		now, sent := d.at, d.at-rtt/2
		if now > s.upAt+horizon {
			break
		}
		res.attempts++
		if now >= s.upAt {
			res.arrivals = append(res.arrivals, now-s.upAt)
		}
		if progress != nil && res.attempts%(1<<16) == 0 {
			progress(len(done), now)
		}

		var failedAt time.Duration // when the client knows
		waiting := int((busyUntil - now + service - 1) / service)
		switch {
		case now < s.upAt, waiting >= s.backlog:
			failedAt = now + rtt/2
		default:
			busyUntil = max(busyUntil, now) + service
			answer := busyUntil + rtt/2
			giveUp := sent + timeout
			if answer <= giveUp {
				done = append(done, answer-s.upAt)
				heap.Pop(&queue)
				continue
			}
			failedAt = giveUp
		}
		res.failed++
		queue[0].at = failedAt + pacers[d.client]() + rtt/2
		heap.Fix(&queue, 0)
	}

	slices.Sort(done)
	res.connected = len(done)
	res.p50 = quantile(done, n, 0.50)
	res.p99 = quantile(done, n, 0.99)
	res.perSecond = peak(res.arrivals, time.Second)
	res.per100ms = peak(res.arrivals, 100*time.Millisecond)
	end, _ := slices.BinarySearch(res.arrivals, picture(n, rate))
	res.arrivals = slices.Clone(res.arrivals[:end]) // the rest can be a gigabyte
	return res
}

// ideal is how long a server that does rate handshakes per second needs for n,
// if none is wasted.
func ideal(n, rate int) time.Duration {
	return time.Duration(float64(n) / float64(rate) * float64(time.Second))
}

// picture is the span of time that the picture shows.
func picture(n, rate int) time.Duration { return 3 * ideal(n, rate) }

// quantile returns the q-quantile of n sorted times, of which those that are
// missing at the end never happened.
func quantile(sorted []time.Duration, n int, q float64) time.Duration {
	i := int(math.Ceil(q*float64(n))) - 1
	if i >= len(sorted) {
		return never
	}
	return sorted[max(0, i)]
}

// peak returns the largest number of sorted times that lie within any window.
func peak(sorted []time.Duration, window time.Duration) (most int) {
	first := 0
	for i, t := range sorted {
		for sorted[first] <= t-window {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

// A dial arrives at the server at a time.
type dial struct {
	at     time.Duration
	client int32
}

// dials is a [heap.Interface]: the earliest dial first and, of two at the same
// time, that of the lower client, so that a run does not depend on the heap.
type dials []dial

func (h dials) Len() int      { return len(h) }
func (h dials) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h dials) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].client < h[j].client
}
func (h *dials) Push(d any) { *h = append(*h, d.(dial)) }
func (h *dials) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
