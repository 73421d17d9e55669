package redisplane

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/replay"
)

// Read implements [backplane.Backplane].
func (p *Plane) Read(ctx context.Context, topic string, after replay.Position, max replay.Budget) (backplane.Page, error) {
	return do(p, ctx, func(ctx context.Context) (backplane.Page, error) {
		p.count.reads.Add(1)
		return p.read(ctx, topic, after, max)
	})
}

// A reply is what the read script has found.
type reply struct {
	head   head
	oldest int            // index of the oldest segment that is there
	data   []replay.Entry // of the segments wanted
}

func (p *Plane) read(ctx context.Context, topic string, after replay.Position, max replay.Budget) (backplane.Page, error) {
	entries, bytes := max.Entries, max.Bytes
	if entries == 0 {
		entries = replay.DefaultBatchEntries
	}
	if bytes == 0 {
		bytes = replay.DefaultBatchBytes
	}
	r, err := p.readScript(ctx, topic, after, entries, bytes)
	if err != nil {
		return backplane.Page{}, err
	}
	head := r.head.pos
	page := backplane.Page{Head: head}
	if after.IsZero() {
		page.Entries = newest(r.data, entries, bytes)
		return page, nil
	}
	oldest := r.head.before(r.oldest)
	gap := &replay.GapError{Want: after, Oldest: oldest, Head: head}
	switch {
	case after.Epoch != head.Epoch:
		gap.Reason = replay.ReasonEpoch
		return backplane.Page{}, gap
	case after.Seq > head.Seq:
		gap.Reason = replay.ReasonAhead
		return backplane.Page{}, gap
	case after.Seq < oldest.Seq:
		gap.Reason, gap.Missed = replay.ReasonTrimmed, oldest.Seq-after.Seq
		return backplane.Page{}, gap
	case after.Seq == head.Seq:
		if after != head {
			gap.Reason = replay.ReasonForked
			return backplane.Page{}, gap
		}
		return page, nil
	}
	// The entry that follows says what the one before it was.
	for len(r.data) > 0 && r.data[0].Pos.Seq <= after.Seq {
		r.data = r.data[1:]
	}
	if len(r.data) == 0 || r.data[0].Pos.Seq != after.Seq+1 {
		return backplane.Page{}, fmt.Errorf("topic %q: entry %d is missing: %w", topic, after.Seq+1, errFormat)
	}
	if r.data[0].Prev != after.Tag {
		gap.Reason = replay.ReasonForked
		return backplane.Page{}, gap
	}
	page.Entries = within(r.data, entries, bytes)
	return page, nil
}

func size(e *replay.Entry) int64 { return int64(len(e.Data) + len(e.Key)) }

// within returns those of the first entries that are within the budget, one at least.
func within(all []replay.Entry, entries int, bytes int64) []replay.Entry {
	spent := int64(0)
	for i := range all {
		spent += size(&all[i])
		if i > 0 && (entries >= 0 && i >= entries || bytes >= 0 && spent > bytes) {
			return all[:i]
		}
	}
	return all
}

// newest returns those of the last entries that are.
func newest(all []replay.Entry, entries int, bytes int64) []replay.Entry {
	spent := int64(0)
	for n := range all {
		i := len(all) - 1 - n
		spent += size(&all[i])
		if n > 0 && (entries >= 0 && n >= entries || bytes >= 0 && spent > bytes) {
			return all[i+1:]
		}
	}
	return all
}

// readScript calls the script and takes its answer apart.
func (p *Plane) readScript(ctx context.Context, topic string, after replay.Position, entries int, bytes int64) (r reply, err error) {
	prefix := p.part(topic).prefix
	epoch := ""
	if !after.IsZero() {
		epoch = epochText(after.Epoch)
	}
	want, room := int64(entries), bytes
	if want < 0 {
		want = noLimit
	}
	if room < 0 {
		room = noLimit
	}
	answer, err := readScript.Run(ctx, p.client, []string{headKey(prefix, topic)},
		len(prefix), newEpoch(), p.opts.Identity.Milliseconds(), epoch, min(after.Seq, maxSeq), want, room).Slice()
	if err != nil {
		return r, unavailable(err)
	}
	bad := fmt.Errorf("topic %q: %w", topic, errFormat)
	if len(answer) < 2 {
		return r, bad
	}
	text, _ := answer[0].(string)
	if r.head, err = parseHead(text); err != nil {
		return r, bad
	}
	oldest, ok := answer[1].(int64)
	if !ok {
		return r, bad
	}
	r.oldest = int(oldest) - 1
	for _, part := range answer[2:] {
		text, ok := part.(string)
		if !ok {
			return r, bad
		}
		if r.data, err = parseEntries(r.data, r.head.pos.Epoch, text); err != nil {
			return r, bad
		}
	}
	// What is returned is contiguous, or something has been at it that is not ours.
	for i := 1; i < len(r.data); i++ {
		if a, b := &r.data[i-1], &r.data[i]; b.Pos.Seq != a.Pos.Seq+1 || b.Prev != a.Pos.Tag {
			return r, bad
		}
	}
	return r, nil
}

// keep reports whether the time to live of a topic's head is to be renewed: after an
// eighth of it.
func (p *Plane) keep(topic string) bool {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.kept[topic]) < p.opts.Identity/8 {
		return false
	}
	if len(p.kept) >= maxKept {
		clear(p.kept) // mostly of topics that nobody follows any more
	}
	p.kept[topic] = now
	return true
}

const maxKept = 1 << 17

// maxSeq is the largest number that a script knows exactly.
const maxSeq = 1 << 53

// Heads implements [backplane.HeadReader]: topics it cannot reach have the zero Position,
// unless that is all of them.
func (p *Plane) Heads(ctx context.Context, topics []string) ([]replay.Position, error) {
	return do(p, ctx, func(ctx context.Context) ([]replay.Position, error) {
		pipe := p.client.Pipeline()
		cmds := make([]*redis.StringCmd, len(topics))
		for i, topic := range topics {
			key := headKey(p.part(topic).prefix, topic)
			cmds[i] = pipe.GetRange(ctx, key, 0, headSize-1)
			if p.keep(topic) {
				pipe.PExpire(ctx, key, p.opts.Identity)
			}
		}
		pipe.Exec(ctx)
		heads := make([]replay.Position, len(topics))
		var failed error
		reached := len(topics) == 0
		for i, cmd := range cmds {
			text, err := cmd.Result()
			if err != nil {
				failed = err
				continue
			}
			reached = true
			if text != "" {
				heads[i], _ = parsePosition(text) // or else Read says what is wrong
			}
		}
		if !reached {
			return nil, unavailable(failed)
		}
		return heads, nil
	})
}
