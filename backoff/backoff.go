package backoff

import (
	"context"
	"iter"
	"math"
	"math/rand/v2"
	"time"
)

// The values that zero fields of [Policy] and [Loop] stand for, and the longest
// hint of a server that is believed.
const (
	DefaultBase   = 500 * time.Millisecond
	DefaultCap    = 30 * time.Second
	DefaultFactor = 2
	DefaultFirst  = 5 * time.Second
	DefaultStable = 10 * time.Second

	// MaxHint bounds what [Policy.After] and [Loop.Hint] take from a server:
	// a longer hint counts as MaxHint, or as Cap if that is longer still.
	// Without a bound one wrong header could switch off a client for years.
	MaxHint = time.Hour
)

// A Policy computes the delay before a retry from the number of retries so far.
// The zero value is full jitter with windows of 0.5, 1, 2, 4, 8, 16, 30, 30, …
// seconds.
//
// Attempt n has the window w = min(Cap, Base·Factorⁿ), and its delay is drawn
// uniformly from [Fixed·w, w]. [Policy.Delay] is what most callers want, or
// [Policy.Attempts] as a loop.
//
// A Policy is a value: it is never changed by its methods and may be copied and
// used by many goroutines at once.
type Policy struct {
	// Base is the window of attempt 0. Zero or negative means DefaultBase. A
	// Base above Cap counts as Cap.
	Base time.Duration

	// Cap is the longest window and the longest delay. Zero or negative means
	// DefaultCap, or twice the Floor if that is longer.
	Cap time.Duration

	// Floor is the shortest delay. Zero or negative means none. A window that
	// would start below Floor is moved up to start there; it keeps its width as
	// far as Cap allows, so that a Floor does not put clients in step. Only a
	// Floor that is not below a given Cap does: then every delay is exactly Cap.
	Floor time.Duration

	// Factor is what the window grows by from one attempt to the next. Zero,
	// NaN and anything below 1 mean DefaultFactor; 1 keeps every window at Base.
	Factor float64

	// Fixed is the share of the window that is not random, from 0 to 1. Zero is
	// full jitter, 0.5 equal jitter, 0.8 proportional jitter of the last fifth,
	// 1 no jitter at all: all clients in step, which is for tests. Negative and
	// NaN count as 0, above 1 counts as 1.
	Fixed float64

	// Rand returns a uniformly distributed number in [0, n), n > 0; tests and
	// simulations set it to be repeatable. Nil means [rand.Uint64N], which is
	// safe for concurrent use. A result outside of the range is reduced modulo n.
	Rand func(n uint64) uint64
}

// Delay returns how long to wait after attempt has failed, and before the next
// is made. Attempts count from 0; a negative attempt counts as 0. The result
// lies within [Policy.Window] of the attempt.
func (p Policy) Delay(attempt int) time.Duration {
	if p.Fixed == 0 && p.Floor == 0 && p.Factor == 0 && p.Rand == nil {
		// The usual case, a quarter faster.
		hi := double(p.base(), p.limit(), attempt)
		return time.Duration(rand.Uint64N(uint64(hi) + 1))
	}
	lo, hi := p.window(attempt)
	return p.draw(lo, hi)
}

// Window returns the bounds, both inclusive, of [Policy.Delay] for this attempt:
// 0 ≤ lo ≤ hi ≤ Cap. A dial timeout should not be shorter than hi, or an
// overloaded server spends its time on clients that have already given up.
func (p Policy) Window(attempt int) (lo, hi time.Duration) {
	return p.window(attempt)
}

// After returns how long to wait when the server has said how long to stay away,
// as in the Retry-After header of a 429 or 503 answer (RFC 9110, section
// 10.2.3). It is never less than hint, nor than Floor, and spread above that: over
// the attempt's window or, if that is wider, over the length of the hint, up to
// Cap or 30 s, whichever is longer. So clients that were all told "10 s" come back
// over the ten seconds after those, whatever Fixed is.
//
// Zero or negative means that there was no hint: After is then the same as
// [Policy.Delay]. A hint beyond [MaxHint], or beyond Cap if that is longer,
// counts as that maximum. The sum saturates; any hint is safe.
func (p Policy) After(attempt int, hint time.Duration) time.Duration {
	lo, hi := p.window(attempt)
	if hint <= 0 {
		return p.draw(lo, hi)
	}
	limit := p.limit()
	hint = min(hint, max(limit, MaxHint))
	spread := max(hi, min(hint, max(limit, DefaultCap)))
	return p.drawOver(max(hint, p.floor()), spread)
}

// Attempts returns a sequence for a range loop around the operation to be
// retried. It yields 0 at once, and then 1, 2, 3, … after waiting for the
// [Policy.Delay] of the attempt before. It ends when ctx does, also in
// the middle of a wait; leaving the loop early is fine and leaves nothing behind.
// It never gives up by itself: count the attempts, or give ctx a deadline.
//
// A loop that was not left early was ended by ctx: [context.Cause] says why. The
// sequence may be ranged over again, and by several goroutines; each starts at 0.
func (p Policy) Attempts(ctx context.Context) iter.Seq[int] {
	return func(yield func(int) bool) {
		for n := 0; ctx.Err() == nil && yield(n); n++ {
			if Sleep(ctx, p.Delay(n)) != nil {
				return
			}
		}
	}
}

// Sleep waits for d or until ctx is done, whichever is first, and returns nil or
// the [context.Cause] of ctx. With a d of zero or less it does not wait, and only
// reports whether ctx is done already.
func Sleep(ctx context.Context, d time.Duration) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// base returns the effective Base, which may be above Cap. Like all methods
// below it takes a pointer, because the compiler copies a value even where it
// inlines the method.
func (p *Policy) base() time.Duration {
	if p.Base <= 0 {
		return DefaultBase
	}
	return p.Base
}

// limit returns the effective Cap.
func (p *Policy) limit() time.Duration {
	if p.Cap > 0 {
		return p.Cap
	}
	if p.Floor > DefaultCap/2 {
		return 2 * min(p.Floor, math.MaxInt64/2)
	}
	return DefaultCap
}

// floor returns the effective Floor.
func (p *Policy) floor() time.Duration {
	return min(max(0, p.Floor), p.limit())
}

// window is Window.
func (p *Policy) window(attempt int) (lo, hi time.Duration) {
	if p.Factor >= 1 && p.Factor != 2 {
		hi = power(p.base(), p.limit(), p.Factor, attempt)
	} else { // also for NaN
		hi = double(p.base(), p.limit(), attempt)
	}
	return p.narrow(hi)
}

// double returns base*2^attempt, cut at limit.
func double(base, limit time.Duration, attempt int) time.Duration {
	// Shift the limit down instead of the base up: that cannot overflow, and
	// gives 0 for 63 and more.
	n := uint(max(0, attempt))
	if base > limit>>n {
		return limit
	}
	return base << n
}

// power returns base*factor^attempt, cut at limit.
func power(base, limit time.Duration, factor float64, attempt int) time.Duration {
	// Not a loop: a factor of 1+1e-15 would take 1e15 rounds.
	f := float64(base) * math.Pow(factor, float64(max(0, attempt)))
	if f < float64(limit) {
		return min(limit, max(base, time.Duration(f)))
	}
	return limit
}

// narrow returns the part of the window up to hi that Fixed and Floor leave.
func (p *Policy) narrow(hi time.Duration) (time.Duration, time.Duration) {
	var lo time.Duration
	switch {
	case p.Fixed >= 1:
		lo = hi
	case p.Fixed > 0:
		lo = min(hi, time.Duration(p.Fixed*float64(hi)))
	}
	if floor := p.floor(); floor > lo {
		lo, hi = floor, floor+min(hi-lo, p.limit()-floor)
	}
	return lo, hi
}

// draw picks a delay in [lo, hi], where 0 <= lo <= hi.
func (p *Policy) draw(lo, hi time.Duration) time.Duration {
	n := uint64(hi-lo) + 1 // unsigned: hi-lo may be MaxInt64
	if p.Rand == nil {
		return lo + time.Duration(rand.Uint64N(n))
	}
	return lo + time.Duration(p.Rand(n)%n)
}

// drawOver picks a delay from lo on, within the given spread.
func (p *Policy) drawOver(lo, spread time.Duration) time.Duration {
	return p.draw(lo, lo+min(spread, math.MaxInt64-lo))
}
