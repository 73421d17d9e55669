package redisplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/replay"
)

// Read implements [backplane.Backplane]. What is more than a call of the script should
// return it reads in several, each of which may take as long as Timeout: Redis answers
// nobody else during one, and a connection that gets nothing for a while counts as lost.
func (p *Plane) Read(ctx context.Context, topic string, after replay.Position, max replay.Budget) (backplane.Page, error) {
	p.count.reads.Add(1)
	if max.Entries == 0 {
		max.Entries = replay.DefaultBatchEntries
	}
	if max.Bytes == 0 {
		max.Bytes = replay.DefaultBatchBytes
	}
	// A history that changes while it is read is read again, and then the answer is what
	// is true now.
	for range maxTries {
		r, err := p.readScript(ctx, topic, after, max)
		if err != nil {
			return backplane.Page{}, err
		}
		from, budget := after, max
		if !after.IsZero() {
			if err := r.follow(topic, after); err != nil {
				return backplane.Page{}, err
			}
		} else if begin, more := r.begin(max); more {
			r, from, budget = reply{}, begin, replay.Budget{Entries: -1, Bytes: -1}
		} else {
			return backplane.Page{Head: r.head.pos, Entries: newest(r.data, max)}, nil
		}
		r, err = p.readOn(ctx, topic, r, from, budget)
		var gap *replay.GapError
		for errors.As(err, &gap) && gap.Reason == replay.ReasonTrimmed && after.IsZero() {
			r, err = p.readOn(ctx, topic, reply{}, gap.Oldest, budget) // all that is left
		}
		switch {
		case errors.As(err, &gap):
			continue
		case err != nil:
			return backplane.Page{}, err
		case after.IsZero():
			return backplane.Page{Head: r.head.pos, Entries: newest(r.data, max)}, nil
		}
		return backplane.Page{Head: r.head.pos, Entries: within(r.data, max)}, nil
	}
	return backplane.Page{}, errChanged
}

// readOn adds to r, whose entries follow after, those that follow them, up to the head
// or until the budget is spent.
func (p *Plane) readOn(ctx context.Context, topic string, r reply, after replay.Position, max replay.Budget) (reply, error) {
	data := r.data
	spent := int64(0)
	for {
		for i := range r.data {
			spent += size(&r.data[i])
		}
		if n := len(data); n > 0 {
			after = data[n-1].Pos
		}
		if after == r.head.pos || len(data) > 0 && (max.Entries >= 0 && len(data) >= max.Entries || max.Bytes >= 0 && spent > max.Bytes) {
			r.data = data
			return r, nil
		}
		var err error
		if r, err = p.readScript(ctx, topic, after, replay.Budget{Entries: -1, Bytes: -1}); err != nil {
			return r, err
		}
		if err := r.follow(topic, after); err != nil {
			return r, err
		}
		data = append(data, r.data...)
	}
}

var errChanged = fmt.Errorf("redisplane: the history changes faster than it can be read: %w", backplane.ErrUnavailable)

// Bounds of one call of the script that reads: it returns the segments that have this
// much, which may be one more, and up to a 64th of a topic's limits each.
const (
	maxReadEntries = 8192
	maxReadBytes   = 1 << 20

	maxTries = 3 // of a Read
)

// A reply is what the read script has found.
type reply struct {
	head   head
	oldest int            // index of the oldest segment that is there
	data   []replay.Entry // of the segments wanted
}

// follow leaves the entries that follow after, or returns why there are none.
func (r *reply) follow(topic string, after replay.Position) error {
	head := r.head.pos
	oldest := r.head.before(r.oldest)
	gap := &replay.GapError{Want: after, Oldest: oldest, Head: head}
	switch {
	case after.Epoch != head.Epoch:
		gap.Reason = replay.ReasonEpoch
		return gap
	case after.Seq > head.Seq:
		gap.Reason = replay.ReasonAhead
		return gap
	case after.Seq < oldest.Seq:
		gap.Reason, gap.Missed = replay.ReasonTrimmed, oldest.Seq-after.Seq
		return gap
	case after.Seq == head.Seq:
		if after != head {
			gap.Reason = replay.ReasonForked
			return gap
		}
		return nil
	}
	// The entry that follows says what the one before it was.
	for len(r.data) > 0 && r.data[0].Pos.Seq <= after.Seq {
		r.data = r.data[1:]
	}
	if len(r.data) == 0 || r.data[0].Pos.Seq != after.Seq+1 {
		return fmt.Errorf("topic %q: entry %d is missing: %w", topic, after.Seq+1, errFormat)
	}
	if r.data[0].Prev != after.Tag {
		gap.Reason = replay.ReasonForked
		return gap
	}
	return nil
}

// begin returns after which position to read so as to get the newest entries that the
// budget allows, if r has not got them all.
func (r *reply) begin(max replay.Budget) (after replay.Position, more bool) {
	from, entries, bytes := len(r.head.segments), 0, int64(0)
	for from > r.oldest && (from == len(r.head.segments) || (max.Entries < 0 || entries < max.Entries) && (max.Bytes < 0 || bytes < max.Bytes)) {
		end := r.head.before(from).Seq
		from--
		n := end - r.head.segments[from].first + 1
		entries += int(n)
		bytes += int64(r.head.segments[from].bytes - n*(entryHeader+bodyHeader))
	}
	after = r.head.before(from)
	return after, after != r.head.pos && (len(r.data) == 0 || r.data[0].Pos.Seq > after.Seq+1)
}

func size(e *replay.Entry) int64 { return int64(len(e.Data) + len(e.Key)) }

// within returns those of the first entries that are within the budget, one at least.
func within(all []replay.Entry, max replay.Budget) []replay.Entry {
	spent := int64(0)
	for i := range all {
		spent += size(&all[i])
		if i > 0 && (max.Entries >= 0 && i >= max.Entries || max.Bytes >= 0 && spent > max.Bytes) {
			return all[:i]
		}
	}
	return all
}

// newest returns those of the last entries that are.
func newest(all []replay.Entry, max replay.Budget) []replay.Entry {
	spent := int64(0)
	for n := range all {
		i := len(all) - 1 - n
		spent += size(&all[i])
		if n > 0 && (max.Entries >= 0 && n >= max.Entries || max.Bytes >= 0 && spent > max.Bytes) {
			return all[i+1:]
		}
	}
	return all
}

// readScript calls the script and takes its answer apart.
func (p *Plane) readScript(ctx context.Context, topic string, after replay.Position, max replay.Budget) (r reply, err error) {
	prefix := p.part(topic).prefix
	epoch := ""
	if !after.IsZero() {
		epoch = epochText(after.Epoch)
	}
	want, room := int64(max.Entries), max.Bytes
	if want < 0 {
		want = noLimit
	}
	if room < 0 {
		room = noLimit
	}
	answer, err := do(p, ctx, func(ctx context.Context) (answer []any, err error) {
		err = p.persist(ctx, func(written *atomic.Bool) (err error) {
			answer, err = readScript.Run(ctx, p.client, []string{headKey(prefix, topic)}, mark{strconv.Itoa(len(prefix)), written}, newEpoch(), p.opts.Identity.Milliseconds(),
				epoch, min(after.Seq, maxSeq), min(want, p.pageEntries), min(room, p.pageBytes)).Slice()
			return err
		})
		if err != nil {
			err = p.unavailable(err)
		}
		return answer, err
	})
	if err != nil {
		return r, err
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
		heads := make([]replay.Position, len(topics))
		keep := make([]bool, len(topics))
		left := make([]int, len(topics)) // those not reached yet
		for i, topic := range topics {
			keep[i], left[i] = p.keep(topic), i
		}
		err := p.persist(ctx, func(written *atomic.Bool) (failed error) {
			pipe := p.client.Pipeline()
			cmds := make(map[int]*redis.Cmd, len(left))
			for _, i := range left {
				key := headKey(p.part(topics[i]).prefix, topics[i])
				cmds[i] = pipe.Do(ctx, "getrange", key, mark{"0", written}, headSize-1)
				if keep[i] {
					pipe.PExpire(ctx, key, p.opts.Identity)
				}
			}
			pipe.Exec(ctx)
			left = slices.DeleteFunc(left, func(i int) bool {
				text, err := cmds[i].Text()
				switch {
				case err != nil && !broken(failed):
					failed = err
				case err == nil && text != "":
					heads[i], _ = parsePosition(text) // or else Read says what is wrong
				}
				return err == nil
			})
			return failed
		})
		if err != nil {
			err = p.unavailable(err) // and so it is in the log if the client is of the wrong kind
			if len(left) == len(topics) {
				return nil, err
			}
		}
		return heads, nil
	})
}
