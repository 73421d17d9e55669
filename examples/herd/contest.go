package main

import (
	"math/rand/v2"
	"time"

	"github.com/holdfast-ws/holdfast/backoff"
)

var scenarios = []scenario{
	{
		name:    "outage",
		title:   "Down for 60 s, then up",
		text:    "All clients lose the server. Their dials are refused for a minute; then it is back.",
		upAt:    60 * time.Second,
		backlog: 512,
		timeout: 5 * time.Second,
	},
	{
		name:    "resync",
		title:   "Resync at the cap",
		text:    "All clients stand at attempt 10, their delays at the cap, when something fails them in the same 50 ms.",
		backlog: 512,
		timeout: 5 * time.Second,
		stand:   10,
	},
	{
		name:    "restart",
		title:   "Back at once",
		text:    "The server restarts, as in a deploy, and another takes its clients at once.",
		backlog: 512,
		timeout: 5 * time.Second,
	},
	{
		name:    "collapse",
		title:   "Collapse",
		text:    "As the outage, but the server queues 8192 dials and clients wait only 3 s: it works for clients that have gone.",
		upAt:    60 * time.Second,
		backlog: 8192,
		timeout: 3 * time.Second,
	},
}

var policies = []policy{
	{
		name:  "common formula: min(2^n·1s + rand·0.5s, 10s)",
		color: "#d1242f",
		start: func(s *scenario, _ time.Duration, rnd *rand.Rand) pacer {
			n := s.stand - 1
			return func() time.Duration {
				n++
				ms := uint64(10_000)
				if n < 4 { // 2^4 s is above the cap
					ms = min(ms, 1000<<n+rnd.Uint64N(500))
				}
				return time.Duration(ms) * time.Millisecond
			}
		},
	},
	{
		name:  "no jitter, 1..10 s",
		start: fixed(backoff.Policy{Base: time.Second, Cap: 10 * time.Second, Fixed: 1}),
	},
	{
		name:  "equal jitter, 1..10 s",
		start: fixed(backoff.Policy{Base: time.Second, Cap: 10 * time.Second, Fixed: 0.5}),
	},
	{
		name:  "full jitter, 1..10 s",
		color: "#9a6700",
		start: fixed(backoff.Policy{Base: time.Second, Cap: 10 * time.Second}),
	},
	{
		name:  "full jitter, 0.5..30 s (zero Policy)",
		start: fixed(backoff.Policy{}),
	},
	{
		name:  "Loop, Cap 10 s",
		color: "#0969da",
		start: loop(backoff.Loop{Policy: backoff.Policy{Cap: 10 * time.Second}}, false),
	},
	{
		name:  "zero Loop",
		start: loop(backoff.Loop{}, false),
	},
	{
		name:  "Loop, server-given window",
		color: "#1a7f37",
		start: loop(backoff.Loop{}, true),
		only:  "restart",
	},
	{
		name:    "Loop, Cap 10 s, dial timeout 20 s",
		start:   loop(backoff.Loop{Policy: backoff.Policy{Cap: 10 * time.Second}}, false),
		timeout: 20 * time.Second,
		only:    "collapse",
	},
}

// fixed is a contestant that counts attempts and asks p, as most clients do.
func fixed(p backoff.Policy) func(*scenario, time.Duration, *rand.Rand) pacer {
	return func(s *scenario, _ time.Duration, rnd *rand.Rand) pacer {
		p := p
		p.Rand = rnd.Uint64N
		n := s.stand - 1
		return func() time.Duration {
			n++
			return p.Delay(n)
		}
	}
}

// loop is a contestant whose clients each have a copy of l. With goodbye the
// server told them in which window to come back.
func loop(l backoff.Loop, goodbye bool) func(*scenario, time.Duration, *rand.Rand) pacer {
	return func(s *scenario, window time.Duration, rnd *rand.Rand) pacer {
		l := l
		l.Policy.Rand = rnd.Uint64N
		l.Up()
		for range s.stand {
			l.Down()
		}
		if goodbye {
			l.Hint(window)
		}
		return l.Down
	}
}
