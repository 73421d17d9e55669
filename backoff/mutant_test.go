package backoff

import (
	"testing"

	"github.com/holdfast-ws/holdfast/internal/leak"
	"github.com/holdfast-ws/holdfast/internal/mutant"
)

func TestMain(m *testing.M) { leak.Main(m) }

// Bugs that this package's relatives have had, or a review of this one has
// planted, each by itself.
func TestPlantedBugsAreCaught(t *testing.T) {
	mutant.Run(t, "^Test[^P]",
		mutant.Mutant{Why: "no jitter without Rand", File: "backoff.go",
			Old: "return lo + time.Duration(rand.Uint64N(n))", New: "_ = rand.Uint64N; return lo + time.Duration(n/2)"},
		mutant.Mutant{Why: "fast path ignores Floor", File: "backoff.go",
			Old: "p.Fixed == 0 && p.Floor == 0 &&", New: "p.Fixed == 0 &&"},
		mutant.Mutant{Why: "cap after the draw", File: "backoff.go",
			Old: "	return p.draw(lo, hi)\n}\n\n// Window", New: "	return min(p.limit(), 2*p.draw(lo, hi))\n}\n\n// Window"},
		mutant.Mutant{Why: "doubling overflows", File: "backoff.go",
			Old: "if base > limit>>n {", New: "if base<<n > limit {"},
		mutant.Mutant{Why: "Retry-After obeyed exactly", File: "backoff.go",
			Old: "return p.drawOver(max(hint, p.floor()), spread)", New: "_ = spread; return max(hint, p.floor())"},
		mutant.Mutant{Why: "Retry-After unbounded", File: "backoff.go",
			Old: "hint = min(hint, max(limit, MaxHint))", New: ""},
		mutant.Mutant{Why: "reset when the connection opens", File: "loop.go",
			Old: "l.since = time.Now()", New: "l.since = time.Now(); l.failures = 0"},
		mutant.Mutant{Why: "no window of its own for the first reconnect", File: "loop.go",
			Old: "p.Base = max(p.base(), l.first())", New: "p.Base = p.base()"},
		mutant.Mutant{Why: "hint survives an Up", File: "loop.go",
			Old: "	l.hint, l.hinted = 0, false\n", New: ""},
		mutant.Mutant{Why: "hint for every Down", File: "loop.go",
			Old: "		l.hinted = false\n", New: ""},
		mutant.Mutant{Why: "hint makes a hot loop", File: "loop.go",
			Old: "window = max(window, usual)", New: "_ = usual"},
		mutant.Mutant{Why: "goodbyes in a row are never forgotten", File: "loop.go",
			Old: "l.failures, l.goodbyes = 0, 0", New: "l.failures = 0"},
		mutant.Mutant{Why: "a hint before the first Up narrows", File: "loop.go",
			Old: "p.Base = max(p.base(), l.hint)", New: "p.Base = max(p.Base, l.hint)"},
	)
}
