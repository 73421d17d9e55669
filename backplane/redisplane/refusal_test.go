package redisplane

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/redistest"
	"github.com/holdfast-ws/holdfast/replay"
)

// One message that Redis refuses for good failed all that shared its call, and as if
// nobody knew what became of them.
func TestAMessageThatRedisRefusesForGoodFailsAloneAndForGood(t *testing.T) {
	for setting, size := range map[string]int{"proto-max-bulk-len": 1 << 20, "client-query-buffer-limit": 3 << 20} {
		server := redistest.Start(t)
		must(t, server, "CONFIG SET "+setting+" 1mb")
		p, _ := connect(t, server.Addr(), keep(replay.Limits{Entries: plenty, Bytes: plenty}))
		for round := range 3 {
			release, waiting := hold(p, "")
			var all []<-chan result
			const n, bad = 60, 20
			for i := range n {
				m := backplane.Message{Data: fmt.Appendf(nil, "small%d", i)}
				if i == bad {
					m.Data = make([]byte, size)
				}
				all = append(all, later(p, bounded(t), fmt.Sprint(round, "-", i%10), m))
				until(t, "it waits", func() bool { return waiting() == i+1 })
			}
			release()
			for i, c := range all {
				r := outcome(t, c)
				switch {
				case i != bad && (r.err != nil || r.receipt.Outcome != backplane.Committed):
					t.Errorf("append %d is %+v", i, r)
				case i == bad && (r.receipt.Outcome != backplane.NotStored || errors.Is(r.err, backplane.ErrUnavailable) ||
					field(r.err) != "Data" || !strings.Contains(r.err.Error(), setting)):
					t.Errorf("what Redis refuses is %v, %v", r.receipt.Outcome, r.err)
				}
			}
			if got, _ := read(t, p, fmt.Sprint(round, "-0"), replay.Position{}); got != "small0 small10 small30 small40 small50" {
				t.Errorf("stored is %.50q", got)
			}
			if err := p.PublishEphemeral(bounded(t), "t", make([]byte, size)); field(err) != "Data" {
				t.Errorf("an ephemeral message: %v", err)
			}
		}
	}
}

// A call that is answered by an error of which nothing is known fails only those that
// fail also alone.
func TestThoseWhoShareACallThatFailsAreSentAgainApart(t *testing.T) {
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), quick(0))
	put(t, p, "warm", "", "x")
	client.AddHook(answer(func(cmd redis.Cmder) error {
		for _, arg := range cmd.Args() {
			if text, ok := arg.(string); ok && strings.HasSuffix(text, "bad") {
				return said("ERR request refused")
			}
		}
		return nil
	}))
	release, waiting := hold(p, "")
	var all []<-chan result
	const n = 33
	bad := map[int]bool{7: true, 20: true}
	for i := range n {
		text := fmt.Sprint(i)
		if bad[i] {
			text += "bad"
		}
		all = append(all, later(p, bounded(t), "t", backplane.Message{Data: []byte(text)}))
		until(t, "it waits", func() bool { return waiting() == i+1 })
	}
	before := p.Stats()
	release()
	for i, c := range all {
		r := outcome(t, c)
		if bad[i] != (errors.Is(r.err, backplane.ErrUnavailable)) || bad[i] != (r.err != nil) || bad[i] != (r.receipt.Outcome == backplane.NotStored) {
			t.Errorf("append %d is %+v", i, r)
		}
	}
	now := p.Stats()
	if failed, calls := now.Failed-before.Failed, now.Batches-before.Batches; failed != 2 || calls > 25 {
		t.Errorf("%d failed in %d calls", failed, calls)
	}
	entries := readAll(t, p, "t")
	for i := 1; i < len(entries); i++ {
		if a, b := string(entries[i-1].Data), string(entries[i].Data); len(a) > len(b) || len(a) == len(b) && a >= b {
			t.Errorf("%s comes before %s", a, b)
		}
	}
	if len(entries) != n-2 {
		t.Errorf("%d are stored", len(entries))
	}
}

// A Redis that takes no writes at all refuses each half of a call as well.
func TestARedisThatTakesNothingIsNotCalledForEachMessage(t *testing.T) {
	for _, text := range []string{
		"OOM command not allowed when used memory > 'maxmemory'. script: 1f, on @user_script:47.", from62("-OOM command not allowed when used memory > 'maxmemory'."),
		"READONLY You can't write against a read only replica. script: 1f, on @user_script:47.", from62("-READONLY You can't write against a read only replica."),
	} {
		client := redis.NewClient(options("127.0.0.1:1"))
		client.AddHook(answer(func(redis.Cmder) error { return said(text) }))
		p, err := New(client, quick(entries))
		if err != nil {
			t.Fatal(err)
		}
		release, waiting := hold(p, "")
		var all []<-chan result
		const n = 50
		for i := range n {
			all = append(all, later(p, bounded(t), fmt.Sprint(i), backplane.Message{}))
		}
		until(t, "all wait", func() bool { return waiting() == n })
		release()
		for _, c := range all {
			if r := outcome(t, c); r.receipt.Outcome != backplane.NotStored || !errors.Is(r.err, backplane.ErrUnavailable) {
				t.Errorf("%s: %+v", text, r)
			}
		}
		if calls := p.Stats().Batches; calls != 1 {
			t.Errorf("%s: %d calls", text, calls)
		}
		p.Close()
		client.Close()
	}
}

// What a topic's own refusal says of the message, if the script has caught it.
func TestARefusalOfOneTopicIsForNowOrForGood(t *testing.T) {
	for text, now := range map[string]bool{
		"OOM command not allowed when used memory > 'maxmemory'.":                                            true,
		"@user_script: 47: -OOM command not allowed when used memory > 'maxmemory'.":                         true,
		"@user_script: 47: -READONLY You can't write against a read only replica.":                           true,
		"ERR The user executing the script can't run this command or subcommand script: 1f, on @user_script": true,
		"@user_script: 47: The user executing the script can't run this command or subcommand":               true,
		"ERR the head is malformed": false,
		"@user_script: 47: -WRONGTYPE Operation against a key holding the wrong kind of value": false,
	} {
		p, err := New(nowhere(t), quick(entries))
		if err != nil {
			t.Fatal(err)
		}
		c := &appendCall{topic: "t"}
		if rest := p.part("t").receipts([]any{text, int64(0)}, []*appendCall{c}); len(rest) != 0 {
			t.Errorf("%s: %v is left", text, rest)
		}
		if c.receipt.Outcome != backplane.NotStored || errors.Is(c.err, backplane.ErrUnavailable) != now {
			t.Errorf("%s: %v, %v", text, c.receipt.Outcome, c.err)
		}
		p.Close()
	}
}

// An answer is a hook that answers in Redis's place, if it returns an error.
type answer func(cmd redis.Cmder) error

func (h answer) DialHook(next redis.DialHook) redis.DialHook { return next }
func (h answer) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if err := h(cmd); err != nil {
			cmd.SetErr(err)
			return err
		}
		return next(ctx, cmd)
	}
}
func (h answer) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// Redis bounds the strings to which it appends, but not what is stored in one step: a
// segment that was nearly full could make a message fail which Redis takes.
func TestAMessageThatDoesNotFitIntoASegmentBeginsAnother(t *testing.T) {
	server := redistest.Start(t)
	must(t, server, "CONFIG SET proto-max-bulk-len 1mb")
	p, client := connect(t, server.Addr(), keep(replay.Limits{Entries: plenty, Bytes: plenty}))
	first := put(t, p, "t", "", strings.Repeat("a", 100_000))
	large := strings.Repeat("b", 1_000_000)
	put(t, p, "t", "", large)
	put(t, p, "t", "", "c")
	if got, gap := read(t, p, "t", first); gap != nil || got != large+" c" {
		t.Errorf("%d bytes, %v", len(got), gap)
	}
	if n := len(keysOf(t, client, "s")); n != 2 {
		t.Errorf("there are %d segments", n)
	}
}

// What somebody has forbidden for now is not final: the message may be stored later.
func TestACommandThatIsForbiddenWithinTheScriptIsNotFinal(t *testing.T) {
	server := redistest.Start(t)
	p, _ := connect(t, server.Addr(), quick(entries))
	put(t, p, "t", "", "before")
	must(t, server, "ACL SETUSER default -append")
	r, err := p.Append(bounded(t), "t", backplane.Message{ID: "id", Data: []byte("x")})
	if r.Outcome != backplane.NotStored || !errors.Is(err, backplane.ErrUnavailable) {
		t.Errorf("%v, %v", r.Outcome, err)
	}
	must(t, server, "ACL SETUSER default +append")
	put(t, p, "t", "id", "x")
}
