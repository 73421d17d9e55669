package heartbeat

import (
	"testing"

	"github.com/holdfast-ws/holdfast/internal/mutant"
)

// Bugs that heartbeats in the field have, each by itself.
func TestPlantedBugsAreCaught(t *testing.T) {
	mutant.Run(t, "^Test[^P]|^TestP(eers|robes|robe)",
		mutant.Mutant{Why: "our own pause counts against peers", File: "monitor.go",
			Old: "		step = m.sleep\n", New: "		_ = late\n"},
		mutant.Mutant{Why: "a failed ping is a verdict", File: "monitor.go",
			Old: "(writing || stuck || failed) && p.excused", New: "(writing || stuck || failed && false) && p.excused"},
		mutant.Mutant{Why: "a busy reader is no excuse", File: "monitor.go",
			Old: "(writing || stuck || failed) && p.excused", New: "(writing || failed || stuck && false) && p.excused"},
		mutant.Mutant{Why: "an excuse without bound", File: "monitor.go",
			Old: "p.excused < excuses:", New: "true:"},
		mutant.Mutant{Why: "only what we hear spares a ping", File: "monitor.go",
			Old: "v-min(heard, sent) >= c.quiet", New: "v-max(heard, sent-sent+heard) >= c.quiet"},
		mutant.Mutant{Why: "only what we send spares a ping", File: "monitor.go",
			Old: "v-min(heard, sent) >= c.quiet", New: "v-max(sent, heard-heard+sent) >= c.quiet"},
		mutant.Mutant{Why: "an answered ping goes on waiting", File: "monitor.go",
			Old: "			if p.pinging && m.mayCancel(p, v) {\n				p.endPing()\n			}\n			continue\n", New: "			continue\n"},
		mutant.Mutant{Why: "a round without a ping", File: "monitor.go",
			Old: "			m.postponed = append(m.postponed, p)\n", New: "			p.again = false\n"},
		mutant.Mutant{Why: "what was heard before a probe answers it", File: "peer.go",
			Old: "if heard := p.heard.Load(); heard >= v {", New: "if heard := p.heard.Load(); heard > v {"},
		mutant.Mutant{Why: "the clock runs on while we stand still", File: "monitor.go",
			Old: "return min(a.clock+int64(time.Since(a.at)), a.limit)", New: "return a.clock + int64(time.Since(a.at))"},
		mutant.Mutant{Why: "an answered peer is held to be waiting", File: "monitor.go",
			Old: "		p.settle()\n		switch {", New: "		switch {"},
		mutant.Mutant{Why: "all peers have one phase", File: "monitor.go",
			Old: "phase := c.turn * c.stride % (4 * n)", New: "phase := int64(0)"},
		mutant.Mutant{Why: "a wake-up is not noticed", File: "monitor.go",
			Old: "away > 2*time.Second {", New: "away > 1000*time.Hour {"},
		mutant.Mutant{Why: "progress of a write is no evidence", File: "wrap.go",
			Old: "p.monitor.now()-before >= 2*int64(tick)", New: "before < 0"},
		mutant.Mutant{Why: "every write is evidence", File: "wrap.go",
			Old: "p.monitor.now()-before >= 2*int64(tick)", New: "before >= 0"},
		mutant.Mutant{Why: "a large write is one call", File: "wrap.go",
			Old: "b[n:min(len(b), n+chunkSize)]", New: "b[n:]"},
		mutant.Mutant{Why: "writes that are handed on in chunks mix", File: "wrap.go",
			Old: "	defer func() { <-c.turn }()\n", New: "	<-c.turn\n"},
		mutant.Mutant{Why: "early bytes are overwritten", File: "wrap.go",
			Old: "bytes.Clone(early)", New: "make([]byte, len(early))"},
		mutant.Mutant{Why: "the scheduler runs on without peers", File: "monitor.go",
			Old: "		if m.watched == 0 {\n", New: "		if m.closed {\n"},
		mutant.Mutant{Why: "probes are late by a look", File: "monitor.go",
			Old: "quiet:  int64(interval) - n*int64(tick),", New: "quiet:  int64(interval),"},
	)
}
