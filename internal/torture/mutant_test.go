package torture

import (
	"testing"

	"github.com/holdfast-ws/holdfast/internal/mutant"
)

// Bugs in client and gateway that the whole path has to find, within the four seeds of
// -short.
func TestPathFindsPlantedBugs(t *testing.T) {
	const (
		subscription = "../../client/subscription.go"
		publish      = "../../client/publish.go"
		client       = "../../client/client.go"
		redial       = "../../client/redial.go"
		conn         = "../../backplane/gateway/conn.go"
		subscribe    = "../../backplane/gateway/subscribe.go"
		write        = "../../backplane/gateway/write.go"
		feed         = "../../backplane/gateway/feed.go"
		drain        = "../../backplane/gateway/drain.go"
	)
	mutant.Run(t, "^TestPath($|That)", []mutant.Mutant{
		{Why: "the client does not look at prev", File: subscription,
			Old: "if f.Prev != s.pos || s.pos.IsZero() {", New: "if s.pos.IsZero() {"},
		{Why: "the client resumes from the newest messages", File: subscription,
			Old: "	if s.pos.IsZero() {\n		f.Last", New: "	if s.base != s.pos || s.pos.IsZero() {\n		f.Last"},
		{Why: "the client saves the position of what it has received", File: subscription,
			Old: "	return s.position\n", New: "	s.c.mu.Lock()\n	defer s.c.mu.Unlock()\n	return s.pos\n"},
		{Why: "the client loses the message for which there is no room", File: subscription,
			Old: "			c.pause(s) // the rest comes again\n", New: "			s.pos = e.Pos\n			c.pause(s)\n"},
		{Why: "the client swallows Resets", File: subscription,
			Old: "if !s.push(Event{Reset: r, Pos: f.Base}) {", New: "if r == nil {"},
		{Why: "the client takes frames of the old subscription for those of the new", File: subscription,
			Old: "if s != nil && s.phase == following {", New: "if s != nil && (s.phase == following || s.phase == asked) {"},
		{Why: "the client does not subscribe again after the connection was lost", File: client,
			Old: "		c.wants.Push(s)\n", New: ""},
		{Why: "the client sends a message again with another ID", File: publish,
			Old: "		p.progress = Waiting\n", New: "		if p.progress = Waiting; p.tries > 0 {\n			f := wire.Frame{}\n			wire.Decode(p.frame, &f)\n			f.ID += \"'\"\n			p.id, p.frame = f.ID, f.Append(nil)\n		}\n"},
		{Why: "the client does not send again what was not answered", File: client,
			Old: "	c.again(sent...)\n", New: "	_ = sent\n"},
		{Why: "the client uses the memory of messages again", File: client,
			Old: "		for {\n			c.mu.Lock()\n			now := time.Now()\n", New: "		if cap(frame) > cap(buf) {\n			buf = frame\n		}\n		for {\n			c.mu.Lock()\n			now := time.Now()\n"},
		{Why: "the client has no heartbeat", File: redial,
			Old: "		s.peer.Watch(watched{s})\n", New: ""},
		{Why: "the gateway answers with another base than where it goes on", File: subscribe,
			Old: "answer.Base = o.After\n", New: "answer.Base = answer.Head\n"},
		{Why: "the gateway loses what there is when a subscription is made", File: subscribe,
			Old: "	backplane.Arm(g.poller, live) // entries", New: "	var b backplane.Batch\n	live.Read(&b, budget)\n	backplane.Arm(g.poller, live) // entries"},
		{Why: "the gateway lets everybody resume", File: subscribe,
			Old: "	if err != nil {\n		code, message := refusal(err)\n		c.failJoin", New: "	if err != nil && len(from) == 0 {\n		code, message := refusal(err)\n		c.failJoin"},
		{Why: "the gateway shares frames without looking at prev", File: feed,
			Old: "m.to == b.To && m.prev == prev", New: "m.to == b.To"},
		{Why: "the gateway does not tell of Resets", File: write,
			Old: "		buf = appendMessage(buf, w.text)\n	}\n", New: "	}\n"},
		{Why: "the gateway does not end what is no longer allowed", File: drain,
			Old: "		c.drop(s, code, message)\n", New: "		_ = message\n"},
		{Why: "the gateway keeps ids of a connection and not of the user", File: conn,
			Old: "scoped(c.user, id)", New: "scoped(c.id, id)"},
	}...)
}

// Bugs in the Hub that its simulation has to find, within the three seeds of -short.
func TestSimulationFindsPlantedBugs(t *testing.T) {
	const subscription = "../../backplane/subscription.go"
	mutant.Run(t, "^TestThreeHubs", []mutant.Mutant{
		{Why: "with a snapshot all Resets are trimmed", File: subscription,
			Old: "			from = snap.asOf\n", New: "			from, r.Reason = snap.asOf, replay.ReasonTrimmed\n"},
		{Why: "what follows a snapshot is skipped", File: subscription,
			Old: "			from = snap.asOf\n", New: "			from = gap.Head\n"},
		{Why: "what is no longer there is counted from where the snapshot is", File: subscription,
			Old: "			from = snap.asOf\n", New: "			from = snap.asOf\n			if r.Missed > 0 {\n				r.Missed = from.Seq - want.Seq + 1\n			}\n"},
	}...)
}

// What the checker thought before, which was false.
func TestBugsPlantedInTheCheckerAreCaught(t *testing.T) {
	mutant.Run(t, "^TestTheChecker", []mutant.Mutant{
		{Why: "a Reset is made when it is seen", File: "check.go",
			Old: "	if !r.Buffered {\n", New: "	if true {\n"},
		{Why: "trimmed right after void leaves the application where it was", File: "check.go",
			Old: "				if !e.Pos.IsZero() {\n					s.last,", New: "				if !e.Pos.IsZero() && (s.on || e.Reset != replay.ReasonTrimmed) {\n					s.last,"},
		{Why: "a snapshot is not looked at", File: "check.go",
			Old: "				if e.State.IsZero() {\n					continue\n				}\n", New: "				if true {\n					continue\n				}\n"},
	}...)
}
