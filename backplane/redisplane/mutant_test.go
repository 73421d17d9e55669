package redisplane

import (
	"testing"

	"github.com/holdfast-ws/holdfast/internal/mutant"
)

// The tests that find these are quick ones: they are run again for each.

func TestBugsPlantedInAppendAndReadAreCaught(t *testing.T) {
	mutant.Run(t, "^Test(TheIDOf|DuplicatesWithin|ATimeoutAfter|ErrorsAre|AppendsThatWaitKeep|WhoLeaves|RedisWithoutMemory|ALost|AReaderBefore|AScriptThatIsAborted|AConnectionTo|EveryKey)",
		mutant.Mutant{Why: "no answer is taken for a refusal", File: "append.go",
			Old: `errors.As(err, &dial) && dial.Op == "dial" ||`, New: `errors.As(err, &dial) ||`},
		mutant.Mutant{Why: "who comes last goes first", File: "append.go",
			Old: "part.queue = append(part.queue, c)", New: "part.queue = append([]*appendCall{c}, part.queue...)"},
		mutant.Mutant{Why: "who leaves takes the lead away", File: "append.go",
			Old: "		if lead {\n			part.pass()\n", New: "		if lead {\n"},
		mutant.Mutant{Why: "the ID of a dead epoch is a receipt", File: "append.lua",
			Old: "sub(dup, 1, 16) ~= epoch", New: "sub(dup, 1, 16) == ''"},
		mutant.Mutant{Why: "what is not stored is a duplicate later", File: "append.lua",
			Old: "ipairs(ids)", New: "ipairs({})"},
		mutant.Mutant{Why: "a lost segment is taken for a short one", File: "append.lua",
			Old: "if length == lbytes + #all then", New: "if type(length) == 'number' then"},
		mutant.Mutant{Why: "a segment stays for ever", File: "append.lua",
			Old: "pcall('SET', name, all, 'PX', string.format('%.0f', age + age / 16 + 1000))", New: "pcall('SET', name, all)"},
		mutant.Mutant{Why: "the client does not see that Redis refuses", File: "append.lua",
			Old: "local write = redis.call", New: "local write = redis.pcall"},
		mutant.Mutant{Why: "the tag of the position is not compared", File: "read.go",
			Old: "if r.data[0].Prev != after.Tag {", New: "if false {"},
		mutant.Mutant{Why: "what was before a lost segment is read", File: "read.lua",
			Old: "elseif call('EXISTS', name(i)) == 0 then", New: "elseif false then"},
	)
}

func TestBugsPlantedInTheScriptsAreCaught(t *testing.T) {
	mutant.Run(t, "^Test(ASegment|AClock|EntriesThat|AMessageThatDoes)",
		mutant.Mutant{Why: "a segment lives only as long as its first entry", File: "append.lua",
			Old: "age + age / 16 + 1000", New: "age"},
		mutant.Mutant{Why: "the begin of a segment is taken for that of the next", File: "append.lua",
			Old: "unpack('>I8', segs, 49)", New: "unpack('>I8', segs, 21)"},
		mutant.Mutant{Why: "nobody sees that the clock has gone back", File: "append.lua",
			Old: " and ms >= lbegun", New: ""},
		mutant.Mutant{Why: "what does not fit into a segment fails", File: "append.lua",
			Old: "not string.find(length.err, 'string exceeds', 1, true) and length.err or nil", New: "length.err"},
		mutant.Mutant{Why: "a segment that has lost bytes counts as whole", File: "read.lua",
			Old: "if not got[i] or #got[i] < bytes then", New: "if not got[i] then"},
		mutant.Mutant{Why: "what the head does not know of is returned", File: "read.lua",
			Old: "    got[i] = sub(got[i], 1, bytes)\n", New: ""},
		mutant.Mutant{Why: "entries are not compared with those before them", File: "read.go",
			Old: "|| b.Prev != a.Pos.Tag {", New: "{"},
	)
}

func TestBugsPlantedInTheCallsAreCaught(t *testing.T) {
	mutant.Run(t, "^Test(ConnectionsThat|ManyCallers|EachAppend|AnAppendThatGets|WhatWasNever|PlanesOn|ThoseWho|ACommandThatIs|ARedisThatTakes|AClusterClientOn)",
		mutant.Mutant{Why: "one dead connection after another fails a call", File: "append.go",
			Old: "if try > idle {", New: "if try > 0 {"},
		mutant.Mutant{Why: "an outage is dialled as often as the pool was large", File: "append.go",
			Old: "!broken(err) || !written.Load() || ctx", New: "!broken(err) || ctx"},
		mutant.Mutant{Why: "who queues waits for the time of others", File: "append.go",
			Old: "time.NewTimer(p.opts.Timeout)", New: "time.NewTimer(time.Hour)"},
		mutant.Mutant{Why: "a call that had no connection is unknown", File: "append.go",
			Old: "part.plane.opts.Timeout-part.plane.opts.Timeout/16)", New: "part.plane.opts.Timeout)"},
		mutant.Mutant{Why: "what was never written is unknown", File: "append.go",
			Old: "err != nil && written.Load() && ", New: "err != nil && "},
		mutant.Mutant{Why: "one bad message fails its neighbours", File: "append.go",
			Old: "ctx.Err() == nil && shared(err) {", New: "ctx.Err() == nil && shared(err) && false {"},
		mutant.Mutant{Why: "what is forbidden for now is final", File: "append.go",
			Old: "slices.Concat(refusals, forbidden)", New: "slices.Concat(refusals)"},
		mutant.Mutant{Why: "a refusal that Redis 6.2 passes on is not known", File: "append.go",
			Old: "strings.HasPrefix(inner(reply.Error()), prefix)", New: "strings.HasPrefix(reply.Error(), prefix)"},
		mutant.Mutant{Why: "all databases share their channels", File: "redis.go",
			Old: "p.db = c.Options().DB", New: "_ = c.Options().DB"},
		mutant.Mutant{Why: "nobody is told that the client is of the wrong kind", File: "redis.go",
			Old: "	if wrong == nil {", New: "	if wrong == nil || true {"},
	)
}

func TestBugsPlantedInWatchAreCaught(t *testing.T) {
	mutant.Run(t, "^Test(ALinkThatIsKilled|ALinkTo|ARedisThat|ASubscriptionThat|TheSinkIs|ATopicThatIsAdded|AddEnds)",
		mutant.Mutant{Why: "the sink is not told of an interruption", File: "watch.go",
			Old: "f.serve(had)", New: "f.serve(false && had)"},
		mutant.Mutant{Why: "a confirmation is not waited for", File: "watch.go",
			Old: "		if !confirmed {\n			a.left++", New: "		if !confirmed && f == nil {\n			a.left++"},
		mutant.Mutant{Why: "the sink is told too early", File: "watch.go",
			Old: "|| f.missing > 0 ", New: ""},
		mutant.Mutant{Why: "a probe that does not come back is ignored", File: "watch.go",
			Old: "if published && lost {", New: "if published && lost && false {"},
		mutant.Mutant{Why: "silence is ignored", File: "watch.go",
			Old: "				if silent {", New: "				if silent && false {"},
		mutant.Mutant{Why: "a connection may be replaced in silence", File: "watch.go",
			Old: "return errRepeated", New: "return nil"},
		mutant.Mutant{Why: "who comes back at once waits for ever", File: "watch.go",
			Old: "s.asked[channel] && s.subs[channel] == 0 {", New: "s.asked[channel] && s.subs[channel] < 0 {"},
	)
}
