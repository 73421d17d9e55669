package backoff

import (
	"math/rand/v2"
	"testing"
	"time"
)

// The floor is the least that any full jitter can cost: a shift, a comparison
// and one number from math/rand/v2. What it lacks is everything else: other
// factors, kinds of jitter, a floor, and safety for all field values.
//
//go:noinline
func floorDelay(attempt int) time.Duration {
	hi := DefaultCap
	if attempt < 63 && DefaultBase <= DefaultCap>>attempt {
		hi = DefaultBase << attempt
	}
	return time.Duration(rand.Uint64N(uint64(hi) + 1))
}

var sink time.Duration

func BenchmarkDelay(b *testing.B) {
	b.Run("floor", func(b *testing.B) {
		b.ReportAllocs()
		for n := 0; b.Loop(); n++ {
			sink += floorDelay(n & 15)
		}
	})
	for _, bench := range []struct {
		name   string
		policy Policy
	}{
		{"full", Policy{}},
		{"equal", Policy{Fixed: 0.5}},
		{"floor=1s", Policy{Floor: time.Second}},
		{"factor=1.5", Policy{Factor: 1.5}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				sink += bench.policy.Delay(n & 15)
			}
		})
	}
}

func BenchmarkAfter(b *testing.B) {
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		sink += Policy{}.After(n&15, 10*time.Second)
	}
}

// BenchmarkAttempts is a loop whose first attempt succeeds: the usual case.
func BenchmarkAttempts(b *testing.B) {
	b.ReportAllocs()
	ctx := b.Context()
	for b.Loop() {
		for range (Policy{}).Attempts(ctx) {
			break
		}
	}
}

func BenchmarkLoop(b *testing.B) {
	b.ReportAllocs()
	var l Loop
	for b.Loop() {
		l.Up()
		sink += l.Down()
	}
}
