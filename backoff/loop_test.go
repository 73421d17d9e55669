package backoff

import (
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// checkLoop runs l through n failures, with and without an Up and a hint, and
// reports the first delay that breaks the guarantees.
func checkLoop(l Loop, hint time.Duration, n int) error {
	limit := l.Policy.limit()
	floor := min(max(0, l.Policy.Floor), limit)
	for i := range n {
		if i == n/2 {
			l.Up()
		}
		if d := l.Down(); d < floor || d > limit {
			return fmt.Errorf("Down %d = %d is not within [%d, %d]", i, d, floor, limit)
		}
	}
	l.Hint(hint)
	most := limit
	if hint > 0 {
		window := max(limit, min(hint, max(limit, MaxHint)))
		most = floor + min(window, longest-floor)
	}
	if d := l.Down(); d < floor || d > most {
		return fmt.Errorf("Down after Hint(%d) = %d is not within [%d, %d]", hint, d, floor, most)
	}
	if d := l.Down(); d < floor || d > limit {
		return fmt.Errorf("Down after the one with a hint = %d is not within [%d, %d]", d, floor, limit)
	}
	return nil
}

// downs asks l for its delays n times in a row.
func downs(l *Loop, n int) string {
	s := make([]time.Duration, n)
	for i := range s {
		s[i] = l.Down()
	}
	return fmt.Sprint(s)
}

func TestLoopWithoutAnUpUsesThePolicyAlone(t *testing.T) {
	l := Loop{Policy: Policy{Rand: highest}}
	if got, want := downs(&l, 8), "[500ms 1s 2s 4s 8s 16s 30s 30s]"; got != want {
		t.Errorf("delays %v, want %v", got, want)
	}
}

func TestLoopSpreadsTheFirstReconnectAndNeverNarrowsAfterIt(t *testing.T) {
	tests := []struct {
		reason string
		loop   Loop
		want   string
	}{
		{"zero value", Loop{}, "[5s 10s 20s 30s 30s]"},
		{"First given", Loop{First: 8 * time.Second}, "[8s 16s 30s 30s 30s]"},
		{"a First below Base changes nothing", Loop{First: time.Millisecond}, "[500ms 1s 2s 4s 8s]"},
		{"negative First means none", Loop{First: -1}, "[500ms 1s 2s 4s 8s]"},
		{"First above Cap counts as Cap", Loop{First: time.Hour}, "[30s 30s 30s 30s 30s]"},
		{"a Base above First holds", Loop{Policy: Policy{Base: 7 * time.Second}}, "[7s 14s 28s 30s 30s]"},
	}
	for _, tt := range tests {
		l := tt.loop
		l.Policy.Rand = highest
		l.Up()
		if got := downs(&l, 5); got != tt.want {
			t.Errorf("%s: delays after a loss %v, want %v", tt.reason, got, tt.want)
		}
		l.Policy.Rand = lowest
		if got := l.Down(); got != 0 {
			t.Errorf("%s: least delay %v, want 0s: the jitter is full", tt.reason, got)
		}
	}
}

func TestOnlyAStableConnectionClearsTheFailureCount(t *testing.T) {
	tests := []struct {
		reason string
		stable time.Duration
		uptime time.Duration
		want   string // the delay after 2 failures and a connection of that duration
	}{
		{"default, just too short", 0, DefaultStable - 1, "[20s]"},
		{"default, just long enough", 0, DefaultStable, "[5s]"},
		{"accepted and closed at once", 0, 0, "[20s]"},
		{"given, too short", time.Minute, time.Minute - 1, "[20s]"},
		{"given, long enough", time.Minute, time.Minute, "[5s]"},
		{"negative: any connection will do", -1, 0, "[5s]"},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			l := Loop{Policy: Policy{Rand: highest}, Stable: tt.stable}
			l.Up()
			downs(&l, 2)
			l.Up()
			time.Sleep(tt.uptime)
			if got := downs(&l, 1); got != tt.want {
				t.Errorf("%s: %v, want %v", tt.reason, got, tt.want)
			}
		})
	}
}

// The bug of most reconnecting clients: a count that is reset when the
// connection opens makes a hot loop against a server that accepts and closes.
func TestAcceptThenCloseIsNotAHotLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Loop
		start := time.Now()
		dials := 0
		for time.Since(start) < 10*time.Minute {
			dials++
			l.Up()
			time.Sleep(l.Down())
		}
		// Windows of 5, 10, 20, 30, 30, … s: some 41 dials, were none random.
		if dials > 80 {
			t.Errorf("%d dials in 10 minutes", dials)
		}
	})
}

func TestUptimeCountsFromTheLastUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Loop{Policy: Policy{Rand: highest}}
		l.Up()
		downs(&l, 2)
		l.Up()
		time.Sleep(DefaultStable - 1)
		l.Up()
		time.Sleep(time.Nanosecond)
		if got, want := downs(&l, 1), "[20s]"; got != want {
			t.Errorf("delay %v, want %v", got, want)
		}
		time.Sleep(time.Hour) // spent disconnected: no uptime
		if got, want := downs(&l, 1), "[30s]"; got != want {
			t.Errorf("delay %v, want %v", got, want)
		}
	})
}

func TestHintReplacesTheNextWindowOnly(t *testing.T) {
	tests := []struct {
		reason string
		policy Policy
		hint   time.Duration
		want   string
	}{
		{"wider than First", Policy{}, 20 * time.Second, "[20s 20s 30s]"},
		{"narrower than First", Policy{}, time.Second, "[1s 5s 10s]"},
		{"between", Policy{}, 6 * time.Second, "[6s 6s 12s]"},
		{"beyond Cap", Policy{}, time.Minute, "[1m0s 30s 30s]"},
		{"ten years are an hour", Policy{}, 87600 * time.Hour, "[1h0m0s 30s 30s]"},
		{"or Cap, if that is longer", Policy{Cap: 2 * time.Hour}, longest, "[2h0m0s 2h0m0s 2h0m0s]"},
		{"zero is no hint", Policy{}, 0, "[5s 10s 20s]"},
		{"negative is no hint", Policy{}, math.MinInt64, "[5s 10s 20s]"},
		{"full jitter even where the policy has none", Policy{Fixed: 1}, 20 * time.Second, "[20s 20s 30s]"},
		{"moved up by Floor", Policy{Floor: 3 * time.Second}, 20 * time.Second, "[23s 23s 30s]"},
		{"of which no more than Cap counts", Policy{Floor: time.Hour, Cap: time.Second}, 20 * time.Second, "[21s 1s 1s]"},
		{"the sum saturates", Policy{Cap: longest, Floor: time.Second}, longest, fmt.Sprintf("[%v %v %v]", longest, longest, longest)},
	}
	for _, tt := range tests {
		l := Loop{Policy: tt.policy, Stable: -1}
		l.Up()
		least := l
		l.Policy.Rand = highest
		l.Hint(tt.hint)
		if got := downs(&l, 3); got != tt.want {
			t.Errorf("%s: delays %v, want %v", tt.reason, got, tt.want)
		}
		least.Policy.Rand = lowest
		least.Hint(tt.hint)
		if got, want := least.Down(), tt.policy.floor(); got != want && tt.policy.Fixed == 0 {
			t.Errorf("%s: least delay %v, want %v", tt.reason, got, want)
		}
		l.Up()
		if got := downs(&l, 1); tt.policy.Floor == 0 && got != "[5s]" {
			t.Errorf("%s: after the next connection %v, want [5s]", tt.reason, got)
		}
	}
}

func TestHintIsForgottenWhenNotUsedBeforeTheNextUp(t *testing.T) {
	l := Loop{Policy: Policy{Rand: highest}}
	l.Up()
	l.Hint(time.Hour)
	l.Up()
	if got, want := downs(&l, 2), "[5s 10s]"; got != want {
		t.Errorf("delays %v, want %v", got, want)
	}
}

func TestHintBeforeTheFirstUp(t *testing.T) {
	l := Loop{Policy: Policy{Rand: highest}}
	l.Hint(10 * time.Second)
	if got, want := downs(&l, 3), "[10s 10s 20s]"; got != want {
		t.Errorf("delays %v, want %v", got, want)
	}
}

// A short hint before the first connection took the place of the default Base: after one
// of 10 ms the next attempt waited for 20 ms at most.
func TestAHintBeforeTheFirstUpDoesNotNarrowWindows(t *testing.T) {
	l := Loop{Policy: Policy{Rand: highest}}
	l.Hint(10 * time.Millisecond)
	if got, want := downs(&l, 3), "[10ms 500ms 1s]"; got != want {
		t.Errorf("delays %v, want %v", got, want)
	}
}

// In a rolling restart clients come to servers that say goodbye soon after. They came back
// after 10 s and more instead of within the window, because the connection had been short.
func TestAHintCountsAlsoAfterAShortConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Loop{Policy: Policy{Rand: highest}}
		goodbye := func() time.Duration {
			l.Up()
			time.Sleep(2 * time.Second)
			l.Hint(time.Second)
			return l.Down()
		}
		for i, want := range []time.Duration{1, 1, 1, 1, 5, 10, 20, 30, 30} {
			if got := goodbye(); got != want*time.Second {
				t.Errorf("goodbye %d: %v, want %vs", i+1, got, int64(want))
			}
		}
		l.Up()
		time.Sleep(DefaultStable)
		l.Down()
		if got := goodbye(); got != time.Second {
			t.Errorf("after a stable connection: %v", got)
		}
		// Goodbyes are no failures.
		l.Up()
		if got, want := downs(&l, 2), "[10s 20s]"; got != want { // the stable connection's loss was one
			t.Errorf("delays %v, want %v", got, want)
		}
	})
}

// A server that accepts, asks for a short window and closes, is still not dialled
// all the time.
func TestHintDoesNotMakeAHotLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Loop
		start := time.Now()
		dials := 0
		for time.Since(start) < 10*time.Minute {
			dials++
			l.Up()
			l.Hint(time.Millisecond)
			time.Sleep(l.Down())
		}
		if dials > 80 {
			t.Errorf("%d dials in 10 minutes", dials)
		}

		l = Loop{Policy: Policy{Rand: highest}}
		l.Up()
		time.Sleep(DefaultStable)
		l.Hint(time.Millisecond)
		if got, want := downs(&l, 1), "[1ms]"; got != want {
			t.Errorf("after a stable connection %v, want %v", got, want)
		}
	})
}

func TestHintOfZeroWithdrawsAHint(t *testing.T) {
	l := Loop{Policy: Policy{Rand: highest}}
	l.Up()
	l.Hint(time.Minute)
	l.Hint(0)
	if got, want := downs(&l, 1), "[5s]"; got != want {
		t.Errorf("delay %v, want %v", got, want)
	}
}

func TestLoopAllocatesNothing(t *testing.T) {
	var l Loop
	if n := testing.AllocsPerRun(100, func() { l.Up(); l.Hint(1); l.Down(); l.Down() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
