package backoff

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

const longest = time.Duration(math.MaxInt64)

var (
	nan = math.NaN()
	inf = math.Inf(1)
)

// lowest and highest are the extremes that Policy.Rand can return.
func lowest(uint64) uint64    { return 0 }
func highest(n uint64) uint64 { return n - 1 }

func TestZeroPolicyIsFullJitterOverDoublingWindowsUpTo30s(t *testing.T) {
	var p Policy
	for n, want := range []time.Duration{
		500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second,
		8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second,
	} {
		if lo, hi := p.Window(n); lo != 0 || hi != want {
			t.Errorf("Window(%d) = %v, %v, want 0s, %v", n, lo, hi, want)
		}
	}
}

// The documentation promises these values, and that zero fields stand for them.
func TestDocumentedDefaults(t *testing.T) {
	defaults := []struct {
		name      string
		got, want any
	}{
		{"DefaultBase", DefaultBase, 500 * time.Millisecond},
		{"DefaultCap", DefaultCap, 30 * time.Second},
		{"DefaultFactor", DefaultFactor, 2},
		{"DefaultFirst", DefaultFirst, 5 * time.Second},
		{"DefaultStable", DefaultStable, 10 * time.Second},
		{"MaxHint", MaxHint, time.Hour},
	}
	for _, d := range defaults {
		if d.got != d.want {
			t.Errorf("%s = %v, documented as %v", d.name, d.got, d.want)
		}
	}
	spelled := Policy{Base: DefaultBase, Cap: DefaultCap, Factor: DefaultFactor}
	for n := range 100 {
		lo, hi := Policy{}.Window(n)
		wantLo, wantHi := spelled.Window(n)
		if lo != wantLo || hi != wantHi {
			t.Fatalf("zero Policy: Window(%d) = %v, %v, with the defaults spelled out %v, %v", n, lo, hi, wantLo, wantHi)
		}
	}
}

func TestFieldsWithoutSenseHaveTheirDocumentedMeaning(t *testing.T) {
	tests := []struct {
		reason  string
		policy  Policy
		attempt int
		lo, hi  time.Duration
	}{
		{"a negative attempt counts as 0", Policy{}, -1, 0, DefaultBase},
		{"the smallest attempt too", Policy{}, math.MinInt, 0, DefaultBase},
		{"the largest attempt stands at the cap", Policy{}, math.MaxInt, 0, DefaultCap},
		{"a negative Base means the default", Policy{Base: -1}, 0, 0, DefaultBase},
		{"a negative Cap means the default", Policy{Cap: -1}, 99, 0, DefaultCap},
		{"a negative Floor means none", Policy{Floor: -1}, 0, 0, DefaultBase},
		{"a Base above Cap counts as Cap", Policy{Base: time.Hour, Cap: time.Second}, 0, 0, time.Second},
		{"the default Base yields to a small Cap", Policy{Cap: time.Millisecond}, 0, 0, time.Millisecond},
		{"a Floor above Cap counts as Cap", Policy{Floor: time.Hour, Cap: time.Second}, 0, time.Second, time.Second},
		{"a Floor equal to Cap leaves nothing to draw", Policy{Floor: time.Second, Cap: time.Second}, 0, time.Second, time.Second},
		{"a long Floor raises the default Cap", Policy{Floor: time.Minute}, 99, time.Minute, 2 * time.Minute},
		{"a short one does not", Policy{Floor: 15 * time.Second}, 99, 15 * time.Second, DefaultCap},
		{"and the longest does not overflow", Policy{Floor: longest}, 0, longest - 1, longest - 1},
		{"a Floor moves the window and keeps its width", Policy{Floor: time.Second}, 0, time.Second, 1500 * time.Millisecond},
		{"as far as Cap allows", Policy{Floor: time.Second}, 9, time.Second, DefaultCap},
		{"a Floor inside of the window's fixed part changes nothing", Policy{Floor: time.Second, Fixed: .5}, 3, 2 * time.Second, 4 * time.Second},
		{"a Floor above the fixed part moves it", Policy{Floor: 3 * time.Second, Fixed: .5}, 3, 3 * time.Second, 5 * time.Second},
		{"Factor 1 keeps the window", Policy{Factor: 1}, math.MaxInt, 0, DefaultBase},
		{"a Factor below 1 means the default", Policy{Factor: .5}, 1, 0, time.Second},
		{"a negative Factor too", Policy{Factor: -2}, 1, 0, time.Second},
		{"a Factor that is not a number too", Policy{Factor: nan}, 1, 0, time.Second},
		{"an infinite Factor goes to Cap at once", Policy{Factor: inf}, 1, 0, DefaultCap},
		{"but not before", Policy{Factor: inf}, 0, 0, DefaultBase},
		{"Factor 1.5", Policy{Base: time.Second, Factor: 1.5}, 2, 0, 2250 * time.Millisecond},
		{"Factor 3", Policy{Base: time.Second, Factor: 3}, 2, 0, 9 * time.Second},
		{"a Factor barely above 1 ends, and soon", Policy{Factor: 1 + 1e-8}, math.MaxInt, 0, DefaultCap},
		{"equal jitter", Policy{Fixed: .5}, 1, 500 * time.Millisecond, time.Second},
		{"no jitter", Policy{Fixed: 1}, 1, time.Second, time.Second},
		{"Fixed above 1 counts as 1", Policy{Fixed: 9}, 1, time.Second, time.Second},
		{"infinite Fixed too", Policy{Fixed: inf}, 1, time.Second, time.Second},
		{"negative Fixed counts as 0", Policy{Fixed: -1}, 1, 0, time.Second},
		{"Fixed that is not a number too", Policy{Fixed: nan}, 1, 0, time.Second},
		{"the largest Cap does not overflow", Policy{Cap: longest}, 62, 0, longest},
		{"nor in the last step before it", Policy{Base: 1, Cap: longest}, 62, 0, 1 << 62},
		{"nor after it", Policy{Base: 1, Cap: longest}, 63, 0, longest},
		{"nor with another Factor", Policy{Cap: longest, Factor: 1.5}, math.MaxInt, 0, longest},
		{"the largest Base", Policy{Base: longest, Cap: longest}, 0, 0, longest},
		{"the smallest Base", Policy{Base: 1}, 0, 0, 1},
		{"a power that just reaches the largest Cap", Policy{Base: 1, Cap: longest, Factor: 8}, 21, 0, longest},
	}
	for _, tt := range tests {
		lo, hi := tt.policy.Window(tt.attempt)
		if lo != tt.lo || hi != tt.hi {
			t.Errorf("%s: %+v.Window(%d) = %v, %v, want %v, %v", tt.reason, tt.policy, tt.attempt, lo, hi, tt.lo, tt.hi)
		}
	}
}

func TestDelayReachesBothEndsOfItsWindow(t *testing.T) {
	for _, p := range []Policy{{}, {Fixed: .5}, {Fixed: 1}, {Floor: time.Second}, {Cap: longest}, {Base: 1}} {
		for _, n := range []int{0, 1, 5, 70} {
			lo, hi := p.Window(n)
			p.Rand = lowest
			if got := p.Delay(n); got != lo {
				t.Errorf("%+v: least Delay(%d) = %v, want %v", p, n, got, lo)
			}
			p.Rand = highest
			if got := p.Delay(n); got != hi {
				t.Errorf("%+v: largest Delay(%d) = %v, want %v", p, n, got, hi)
			}
		}
	}
}

func TestDelayOfTheZeroPolicyFillsItsWindow(t *testing.T) {
	for n := range 8 {
		_, hi := Policy{}.Window(n)
		least, most := hi, time.Duration(0)
		for range 1000 { // all above 0.1·hi: once in 1e45 runs
			d := Policy{}.Delay(n)
			least, most = min(least, d), max(most, d)
		}
		if least > hi/10 || most < hi-hi/10 {
			t.Errorf("1000 times Delay(%d) lie in [%v, %v], the window ends at %v", n, least, most, hi)
		}
	}
}

func TestDelayOfTheSmallestWindowReachesItsEnd(t *testing.T) {
	p := Policy{Base: 1, Cap: 1}
	seen := map[time.Duration]bool{}
	for range 1000 { // never one of the two: once in 1e301 runs
		seen[p.Delay(0)] = true
	}
	if !seen[0] || !seen[1] || len(seen) != 2 {
		t.Errorf("delays within [0, 1] are %v", seen)
	}
}

func TestRandOutsideOfItsRangeDoesNoHarm(t *testing.T) {
	p := Policy{Rand: func(n uint64) uint64 { return n + 7 }}
	if got := p.Delay(0); got != 7 {
		t.Errorf("Delay(0) = %v with a Rand of n+7, want 7ns", got)
	}
}

// checkPolicy reports the first of the package's guarantees that p breaks.
func checkPolicy(p Policy, attempt int, hint time.Duration) error {
	limit := p.Cap
	if limit <= 0 {
		limit = max(DefaultCap, 2*min(p.Floor, longest/2))
	}
	floor := min(max(0, p.Floor), limit)
	lo, hi := p.Window(attempt)
	if lo < floor || lo > hi || hi > limit {
		return fmt.Errorf("Window(%d) = %d, %d is not within [%d, %d]", attempt, lo, hi, floor, limit)
	}
	if d := p.Delay(attempt); d < lo || d > hi {
		return fmt.Errorf("Delay(%d) = %d is not within its window [%d, %d]", attempt, d, lo, hi)
	}
	if lo == hi && p.Floor < limit && !(p.Fixed >= 1) && hi > 1 && !(p.Fixed > 0) {
		return fmt.Errorf("Window(%d) = %d, %d: all clients in step though nobody asked for it", attempt, lo, hi)
	}
	if attempt < math.MaxInt {
		if _, next := p.Window(attempt + 1); next < hi {
			return fmt.Errorf("Window(%d) ends at %d, and the next at %d: windows must not shrink", attempt, hi, next)
		}
	}
	d := p.After(attempt, hint)
	if hint <= 0 {
		if d < lo || d > hi {
			return fmt.Errorf("After(%d, %d) = %d is not within the window [%d, %d]", attempt, hint, d, lo, hi)
		}
		return nil
	}
	believed := min(hint, max(limit, MaxHint))
	least := max(floor, believed)
	if most := least + min(max(limit, DefaultCap), longest-least); d < least || d > most {
		return fmt.Errorf("After(%d, %d) = %d is not within [%d, %d]", attempt, hint, d, least, most)
	}
	return nil
}

func TestEveryPolicyKeepsItsBounds(t *testing.T) {
	durations := []time.Duration{math.MinInt64, -1, 0, 1, 2, time.Millisecond, time.Second, DefaultCap, 1 << 53, 1<<53 + 1, longest - 1, longest}
	factors := []float64{0, -2, .5, 1, 1 + 1e-15, 1.5, 2, 3, 1e300, inf, -inf, nan}
	fixeds := []float64{0, -1, 1e-300, .5, 1 - 1e-16, 1, 9, inf, -inf, nan}
	attempts := []int{math.MinInt, -1, 0, 1, 2, 10, 62, 63, 64, 1000, math.MaxInt32, math.MaxInt}
	rands := []func(uint64) uint64{lowest, highest, nil, func(uint64) uint64 { return math.MaxUint64 }}
	pick := rand.New(rand.NewPCG(1, 2))
	n := 0
	for _, base := range durations {
		for _, limit := range durations {
			for _, floor := range durations {
				for _, factor := range factors {
					for _, fixed := range fixeds {
						p := Policy{Base: base, Cap: limit, Floor: floor, Factor: factor, Fixed: fixed, Rand: rands[pick.IntN(len(rands))]}
						attempt := attempts[pick.IntN(len(attempts))]
						hint := durations[pick.IntN(len(durations))]
						if err := checkPolicy(p, attempt, hint); err != nil {
							t.Fatalf("%+v: %v", p, err)
						}
						n++
					}
				}
			}
		}
	}
}

func FuzzPolicy(f *testing.F) {
	f.Add(int64(0), int64(0), int64(0), 0.0, 0.0, 0, int64(0), uint64(0))
	f.Add(int64(math.MaxInt64), int64(math.MaxInt64), int64(math.MinInt64), nan, inf, math.MaxInt, int64(math.MaxInt64), uint64(math.MaxUint64))
	f.Add(int64(1), int64(math.MaxInt64), int64(1), 1+1e-15, 1-1e-16, 64, int64(-1), uint64(1)<<63)
	f.Add(int64(0), int64(0), int64(1), 0.0, 0.0, 3, int64(1), uint64(1)) // random&1: the default Rand
	f.Fuzz(func(t *testing.T, base, limit, floor int64, factor, fixed float64, attempt int, hint int64, random uint64) {
		p := Policy{
			Base: time.Duration(base), Cap: time.Duration(limit), Floor: time.Duration(floor),
			Factor: factor, Fixed: fixed,
			Rand: func(n uint64) uint64 {
				if n == 0 {
					t.Fatal("Rand was asked for a number in an empty range")
				}
				return random % n
			},
		}
		if random&1 != 0 {
			p.Rand = nil
		}
		if err := checkPolicy(p, attempt, time.Duration(hint)); err != nil {
			t.Fatalf("%+v: %v", p, err)
		}
		if err := checkLoop(Loop{Policy: p, First: time.Duration(hint), Stable: time.Duration(base)}, time.Duration(hint), attempt%16); err != nil {
			t.Fatalf("%+v: %v", p, err)
		}
	})
}

// The point of the package: many clients at the cap do not wait equally long.
// Jitter that is added before the cut at Cap would put all of them in step here.
func TestAtTheCapNoTwoClientsInAThousandWaitEquallyLong(t *testing.T) {
	const clients = 4000
	src := rand.New(rand.NewPCG(1, 2))
	hinted := func(p Policy) time.Duration {
		l := Loop{Policy: p}
		l.Up()
		l.Hint(20 * time.Second)
		return l.Down()
	}
	for name, delay := range map[string]func(p Policy) time.Duration{
		"full":         func(p Policy) time.Duration { return p.Delay(40) },
		"equal":        func(p Policy) time.Duration { p.Fixed = .5; return p.Delay(40) },
		"proportional": func(p Policy) time.Duration { p.Fixed = .8; return p.Delay(40) },
		"with a Floor": func(p Policy) time.Duration { p.Floor = time.Minute; return p.Delay(40) },
		"as the seed formula": func(p Policy) time.Duration {
			p.Base, p.Cap = time.Second, 10*time.Second
			return p.Delay(40)
		},
		"Retry-After":                func(p Policy) time.Duration { return p.After(40, 10*time.Second) },
		"Retry-After without jitter": func(p Policy) time.Duration { p.Fixed = 1; return p.After(0, 10*time.Second) },
		"server-given window":        hinted,
	} {
		for _, rnd := range []func(uint64) uint64{nil, src.Uint64N} {
			count := map[time.Duration]int{}
			most := 0
			for range clients {
				d := delay(Policy{Rand: rnd})
				count[d]++
				most = max(most, count[d])
			}
			if most*1000 >= clients {
				t.Errorf("%s: %d of %d clients wait equally long", name, most, clients)
			}
		}
	}
}

func TestDelaysAreUniformOverTheWindow(t *testing.T) {
	const draws, buckets = 100_000, 20
	src := rand.New(rand.NewPCG(3, 4))
	p := Policy{Floor: 3 * time.Second, Rand: src.Uint64N}
	lo, hi := p.Window(10)
	var count [buckets]int
	for range draws {
		d := p.Delay(10)
		count[min(buckets-1, int(buckets*(d-lo)/(hi-lo)))]++
	}
	var chi2 float64
	for _, n := range count {
		d := float64(n) - draws/buckets
		chi2 += d * d / (draws / buckets)
	}
	// 19 degrees of freedom: above 43.8 once in a thousand; the seed is fixed.
	if chi2 > 43.8 {
		t.Errorf("chi-squared of %d delays in %d buckets is %.1f: %v", draws, buckets, chi2, count)
	}
}

func TestAfterIsNeverEarlyAndNeverInStep(t *testing.T) {
	const s = time.Second
	tests := []struct {
		reason  string
		policy  Policy
		attempt int
		hint    time.Duration
		lo, hi  time.Duration
	}{
		{"no hint is Delay", Policy{}, 1, 0, 0, s},
		{"a negative hint is none", Policy{}, 1, math.MinInt64, 0, s},
		{"a hint is spread over itself", Policy{}, 0, 10 * s, 10 * s, 20 * s},
		{"or over the window if that is wider", Policy{}, 9, 10 * s, 10 * s, 40 * s},
		{"but over Cap at most", Policy{}, 0, 120 * s, 120 * s, 150 * s},
		{"and also when nothing else is", Policy{Fixed: 1}, 0, 10 * s, 10 * s, 20 * s},
		{"a Floor above the hint holds", Policy{Floor: 2 * s}, 0, s, 2 * s, 4500 * time.Millisecond},
		{"a short Cap does not bring clients together", Policy{Cap: s}, 0, 30 * s, 30 * s, 60 * s},
		{"Fixed narrows the window only, not the hint", Policy{Fixed: .9}, 6, s, s, 31 * s},
		{"ten years are an hour", Policy{}, 0, 10 * 365 * 24 * time.Hour, MaxHint, MaxHint + 30*s},
		{"or Cap, if that is longer", Policy{Cap: 2 * time.Hour}, 0, longest, 2 * time.Hour, 4 * time.Hour},
		{"the sum saturates", Policy{Cap: longest}, 99, longest, longest, longest},
	}
	for _, tt := range tests {
		p := tt.policy
		p.Rand = lowest
		lo := p.After(tt.attempt, tt.hint)
		p.Rand = highest
		hi := p.After(tt.attempt, tt.hint)
		if lo != tt.lo || hi != tt.hi {
			t.Errorf("%s: %+v.After(%d, %v) in [%v, %v], want [%v, %v]", tt.reason, tt.policy, tt.attempt, tt.hint, lo, hi, tt.lo, tt.hi)
		}
	}
}

func TestAttemptsWaitsTheDelayOfTheAttemptBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var at []time.Duration
		for n := range (Policy{Rand: highest}).Attempts(t.Context()) {
			if n != len(at) {
				t.Fatalf("attempt %d follows attempt %d", n, len(at)-1)
			}
			at = append(at, time.Since(start))
			if n == 3 {
				break
			}
		}
		ms := time.Millisecond
		if diff := cmp.Diff([]time.Duration{0, 500 * ms, 1500 * ms, 3500 * ms}, at); diff != "" {
			t.Errorf("times of attempts (-want +got):\n%s", diff)
		}
	})
}

func TestAttemptsEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cause := errors.New("shutting down")
		ctx, cancel := context.WithCancelCause(t.Context())
		start := time.Now()
		time.AfterFunc(10*time.Second, func() { cancel(cause) })
		attempts := 0
		for range (Policy{Base: time.Minute, Cap: time.Minute, Fixed: 1}).Attempts(ctx) {
			attempts++
		}
		if attempts != 1 || time.Since(start) != 10*time.Second {
			t.Errorf("%d attempts in %v, want one and the end of its wait after 10s", attempts, time.Since(start))
		}
		if got := context.Cause(ctx); got != cause {
			t.Errorf("cause %v, want %v", got, cause)
		}
		for n := range (Policy{}).Attempts(ctx) {
			t.Fatalf("attempt %d with a context that has ended", n)
		}
	})
}

func TestAttemptsMayBeRangedOverAgainAndConcurrently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seq := Policy{}.Attempts(t.Context())
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 2 {
					want := 0
					for n := range seq {
						if n != want {
							t.Errorf("attempt %d, want %d", n, want)
						}
						if want++; n == 5 {
							break
						}
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if err := Sleep(t.Context(), time.Hour); err != nil || time.Since(start) != time.Hour {
			t.Errorf("Sleep(1h) = %v after %v", err, time.Since(start))
		}
		for _, d := range []time.Duration{0, -1, math.MinInt64} {
			if err := Sleep(t.Context(), d); err != nil {
				t.Errorf("Sleep(%d) = %v", d, err)
			}
		}

		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		start = time.Now()
		time.AfterFunc(time.Minute, func() { cancel(cause) })
		if err := Sleep(ctx, longest); err != cause || time.Since(start) != time.Minute {
			t.Errorf("Sleep = %v after %v, want %v after 1m", err, time.Since(start), cause)
		}
		for _, d := range []time.Duration{time.Hour, 0, -1} {
			start = time.Now()
			if err := Sleep(ctx, d); err != cause || time.Since(start) != 0 {
				t.Errorf("Sleep(%v) with a context that has ended = %v after %v, want %v at once", d, err, time.Since(start), cause)
			}
		}
	})
}

func TestPoliciesAreFreeOfRaces(t *testing.T) {
	p := Policy{Fixed: .5}
	q := p
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for n := range 1000 {
				for _, p := range []Policy{p, q} {
					if err := checkPolicy(p, n, time.Duration(n)); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestAttemptsAllocatesNothingUntilItWaits(t *testing.T) {
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		for range (Policy{}).Attempts(ctx) {
			break
		}
	}); n != 0 {
		t.Errorf("%v allocations for a first attempt that succeeds", n)
	}
}
