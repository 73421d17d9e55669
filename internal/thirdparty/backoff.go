package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"time"

	avast "github.com/avast/retry-go/v5"
	cenkalti "github.com/cenkalti/backoff/v7"
	"github.com/hashicorp/go-retryablehttp"
	jpillora "github.com/jpillora/backoff"
	sethvargo "github.com/sethvargo/go-retry"

	"github.com/holdfast-ws/holdfast/backoff"
)

// A schedule is a way to compute the delay before a retry. Attempts must be asked
// for in order, from 0, because most libraries keep the number to themselves.
type schedule struct {
	name, module string
	// start returns the delays of one client.
	start func(base, limit time.Duration) func(attempt int) time.Duration
}

// cycle is how many attempts a client makes before it starts again.
const cycle = 16

var schedules = []schedule{
	{
		name: "floor: integer full jitter on math/rand/v2, nothing else",
		start: func(base, limit time.Duration) func(int) time.Duration {
			return func(n int) time.Duration {
				hi := limit
				if n < 63 && base <= limit>>n {
					hi = base << n
				}
				return time.Duration(rand.Uint64N(uint64(hi) + 1))
			}
		},
	},
	{
		name:   "holdfast Policy",
		module: "github.com/holdfast-ws/holdfast",
		start: func(base, limit time.Duration) func(int) time.Duration {
			return backoff.Policy{Base: base, Cap: limit}.Delay
		},
	},
	{
		name:   "cenkalti/backoff ExponentialBackOff, ±50 %",
		module: "github.com/cenkalti/backoff/v7",
		start: func(base, limit time.Duration) func(int) time.Duration {
			b := cenkalti.NewExponentialBackOff()
			b.InitialInterval, b.MaxInterval, b.Multiplier = base, limit, 2
			b.Reset()
			return func(n int) time.Duration {
				if n == 0 {
					b.Reset()
				}
				return b.NextBackOff()
			}
		},
	},
	{
		name:   "jpillora/backoff, Jitter",
		module: "github.com/jpillora/backoff",
		start: func(base, limit time.Duration) func(int) time.Duration {
			b := jpillora.Backoff{Min: base, Max: limit, Factor: 2, Jitter: true}
			return func(n int) time.Duration { return b.ForAttempt(float64(n)) }
		},
	},
	{
		name:   "sethvargo/go-retry, exponential, cap, full jitter",
		module: "github.com/sethvargo/go-retry",
		start: func(base, limit time.Duration) func(int) time.Duration {
			var b sethvargo.Backoff
			return func(n int) time.Duration {
				if n == 0 { // it cannot be reset
					b = sethvargo.WithFullJitter(sethvargo.WithCappedDuration(limit, sethvargo.NewExponential(base)))
				}
				d, _ := b.Next()
				return d
			}
		},
	},
	{
		name:   "avast/retry-go, default: backoff + 100 ms, MaxDelay",
		module: "github.com/avast/retry-go/v5",
		start: func(base, limit time.Duration) func(int) time.Duration {
			delay := avast.CombineDelay(avast.BackOffDelay, avast.RandomDelay)
			var c avast.DelayContext = avastConfig{base: base, limit: limit}
			return func(n int) time.Duration {
				return min(limit, delay(uint(n)+1, nil, c)) // as retry.go clamps with MaxDelay
			}
		},
	},
	{
		name:   "go-retryablehttp, DefaultBackoff",
		module: "github.com/hashicorp/go-retryablehttp",
		start: func(base, limit time.Duration) func(int) time.Duration {
			var resp *http.Response
			return func(n int) time.Duration { return retryablehttp.DefaultBackoff(base, limit, n, resp) }
		},
	},
}

// avastConfig is the part of avast's configuration that its delays look at.
type avastConfig struct{ base, limit time.Duration }

func (c avastConfig) Delay() time.Duration     { return c.base }
func (c avastConfig) MaxJitter() time.Duration { return 100 * time.Millisecond }
func (c avastConfig) MaxBackOffN() uint        { return 62 - uint(math.Log2(float64(c.base))) }
func (c avastConfig) MaxDelay() time.Duration  { return c.limit }

// backoffCost is target P1: what computing one delay costs.
func backoffCost(rounds int, each time.Duration) table {
	var contestants []contestant
	for _, s := range schedules {
		delay := s.start(500*time.Millisecond, 30*time.Second)
		contestants = append(contestants, contestant{s.name, func(n int) {
			for i := range n {
				if delay(i%cycle) < 0 {
					panic(s.name + ": negative delay")
				}
			}
		}})
	}
	t := table{
		title:  "P1: one delay, attempts 0 to 15 in turn (for those that count themselves, with a reset every 16)",
		header: []string{"", "version", "ns", "x floor", "allocs"},
	}
	costs := compare(contestants, rounds, each)
	for i, c := range costs {
		t.rows = append(t.rows, []string{
			schedules[i].name, moduleVersion(schedules[i]), fmt.Sprintf("%.1f", c.ns),
			fmt.Sprintf("%.2f", c.ns/costs[0].ns), fmt.Sprintf("%.2f", c.allocs),
		})
	}
	return t
}

// backoffSpread shows what share of 4000 clients wait exactly equally long.
func backoffSpread() table {
	t := table{
		title:  "Clients in step: share of 4000 clients with the most common delay, base 1 s, cap 10 s",
		header: []string{"", "version", "attempt 0", "attempt 4", "attempt 15", "attempt 40"},
	}
	for _, s := range schedules {
		row := []string{s.name, moduleVersion(s)}
		for _, attempt := range []int{0, 4, 15, 40} {
			row = append(row, fmt.Sprintf("%.2f %%", 100*inStep(s, attempt)))
		}
		t.rows = append(t.rows, row)
	}
	return t
}

// inStep returns the share of 4000 clients that get the most common delay at an
// attempt.
func inStep(s schedule, attempt int) float64 {
	const clients = 4000
	counts := map[time.Duration]int{}
	most := 0
	for range clients {
		delay := s.start(time.Second, 10*time.Second)
		var d time.Duration
		for n := range attempt + 1 {
			d = delay(n)
		}
		counts[d]++
		most = max(most, counts[d])
	}
	return float64(most) / clients
}

func moduleVersion(s schedule) string {
	switch s.module {
	case "":
		return ""
	case "github.com/holdfast-ws/holdfast":
		return "this checkout"
	}
	return version(s.module)
}
