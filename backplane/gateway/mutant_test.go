package gateway

import (
	"testing"

	"github.com/holdfast-ws/holdfast/internal/mutant"
)

// most are all tests but those that take long.
const most = "^Test([^N]|Nu|Nothing[^R])"

func TestBugsPlantedInDefencesAreCaught(t *testing.T) {
	mutant.Run(t, most,
		mutant.Mutant{Why: "hello may take for ever", File: "conn.go",
			Old: "	c.deadline(time.Now().Add(g.opts.Limits.Hello))\n", New: ""},
		mutant.Mutant{Why: "a message may take for ever", File: "conn.go",
			Old: "	c.deadline(time.Now().Add(c.g.opts.Limits.Incoming))\n", New: ""},
		mutant.Mutant{Why: "a message may be of any length", File: "conn.go",
			Old: "ws.SetReadLimit(int64(g.opts.Limits.Message))", New: "ws.SetReadLimit(-1)"},
		mutant.Mutant{Why: "pings are not counted", File: "conn.go",
			Old: "return c.peer.Pinged()", New: "return true"},
		mutant.Mutant{Why: "what comes first need not be hello", File: "conn.go",
			Old: "if f.Type != wire.Hello {", New: "if f.Type == wire.Auth {"},
		mutant.Mutant{Why: "who does not stop is not stopped", File: "conn.go",
			Old: "if level <= float64(-4*rate) {", New: "if level <= float64(-400*rate) {"},
		mutant.Mutant{Why: "what comes too fast is carried out", File: "conn.go",
			Old: "			c.tooFast(f, level, rate)\n		}\n		return nil\n", New: "			c.tooFast(f, level, rate)\n		}\n"},
		mutant.Mutant{Why: "pending publishes may be of any length", File: "conn.go",
			Old: " || c.pending > maxPending {", New: " {"},
		mutant.Mutant{Why: "what is published is not copied", File: "conn.go",
			Old: "bytes.Clone(f.Data)", New: "f.Data"},
		mutant.Mutant{Why: "the user's name and the id run together", File: "conn.go",
			Old: "	h.Write(n[:])\n", New: ""},
		mutant.Mutant{Why: "the end is not seen by who goes on sending", File: "conn.go",
			Old: "			c.linger()\n", New: ""},
		mutant.Mutant{Why: "the log is written by clients", File: "gateway.go",
			Old: "	s = strconv.QuoteToASCII(s)\n	return s[1 : len(s)-1]\n", New: "	return s\n"},
		mutant.Mutant{Why: "answers may wait in any number", File: "write.go",
			Old: "len(c.out) > maxOut && closing == 0", New: "len(c.out) > 1<<40 && closing == 0"},
		mutant.Mutant{Why: "who is written to is not heard", File: "write.go",
			Old: "case len(c.ready) > 0 && !writer:", New: "case len(c.ready) < 0:"},
		mutant.Mutant{Why: "a panic is a yes", File: "authorize.go",
			Old: "grant, err = Grant{}, fmt.Errorf(\"gateway: Authorize panicked: %v\", p)", New: "_ = fmt.Errorf"},
		mutant.Mutant{Why: "an origin is a suffix", File: "origin.go",
			Old: "strings.HasSuffix(other.host, \".\"+o.host)", New: "strings.HasSuffix(other.host, o.host)"},
		mutant.Mutant{Why: "an origin has any scheme", File: "origin.go",
			Old: "	if o.scheme != other.scheme {", New: "	if o.scheme == \"\" {"},
	)
}

func TestBugsPlantedInWhatIsServedAreCaught(t *testing.T) {
	mutant.Run(t, most,
		mutant.Mutant{Why: "all of history is given", File: "subscribe.go",
			Old: "min(f.Last, max(c.g.opts.Limits.History, 0))", New: "f.Last"},
		mutant.Mutant{Why: "the client chooses its floor", File: "subscribe.go",
			Old: "	if !grant.Floor.IsZero() {\n", New: "	if floor.IsZero() {\n"},
		mutant.Mutant{Why: "of several positions any is taken", File: "subscribe.go",
			Old: "cmp.Compare(a.Seq, b.Seq)", New: "cmp.Compare(b.Seq, a.Seq)"},
		mutant.Mutant{Why: "what has ended is answered", File: "subscribe.go",
			Old: "ours = !s.ended.Load() && !c.ended; ours", New: "ours = !c.ended; ours"},
		mutant.Mutant{Why: "entries come before a reset", File: "subscribe.go",
			Old: "s.at = live.Position()", New: "s.at = answer.Base"},
		mutant.Mutant{Why: "frames that lack something are shared", File: "feed.go",
			Old: "whole := keep && isWhole(prev, b)", New: "whole := keep"},
		mutant.Mutant{Why: "a write may take for ever", File: "netconn.go",
			Old: "Add(n.timeout / time.Duration(steps))", New: "Add(100 * n.timeout)"},
		mutant.Mutant{Why: "a piece of a message is taken for a close frame", File: "netconn.go",
			Old: "	if n.rest > 0 {\n		n.rest -= len(b)\n	} else if", New: "	if n.rest < -1<<60 {\n		n.rest -= len(b)\n	} else if"},
		mutant.Mutant{Why: "a pong waits for a write that is stuck", File: "netconn.go",
			Old: "		if len(b) >= 2 && b[0]", New: "		if len(b) >= 2 && n.turn == nil && b[0]"},
		mutant.Mutant{Why: "who is stuck is not replaced", File: "pool.go",
			Old: "		p.add(loose[:share:share])\n", New: ""},
		mutant.Mutant{Why: "what a stuck worker has in hand waits", File: "pool.go",
			Old: "p.add(loose[:share:share])", New: "p.add(nil)"},
		mutant.Mutant{Why: "replacements stay for ever", File: "pool.go",
			Old: "if free <= p.want && ", New: "if free <= 1000*p.want && "},
		mutant.Mutant{Why: "all are sent away at once", File: "drain.go",
			Old: "float64(i) / float64(len(conns))", New: "float64(i*0) / float64(len(conns))"},
		mutant.Mutant{Why: "Shutdown waits for Authorize", File: "drain.go",
			Old: "		g.cancel() // whoever", New: "		// whoever"},
		mutant.Mutant{Why: "a database that is away revokes", File: "drain.go",
			Old: "code != wire.Unavailable {", New: "code != \"\" {"},
	)
}
