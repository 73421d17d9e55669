package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/replay"
)

// A check is a chat without eyes: clients talk, faults happen, and then it is judged what
// everybody has seen.
type check struct {
	clients  int
	duration time.Duration
	answer   time.Duration // for all that was said to be answered, at most
	settle   time.Duration // for everybody to get the last message after that, at most
	seed     uint64        // of the faults; when exactly they meet what is chance
	out      io.Writer     // gets the table
	progress io.Writer
	kinds    []string                      // of faults; nil means all
	faulted  func(number int, kind string) // called before each fault; may be nil
}

// answered is by when a client has an answer to a message, or has given it up.
const answered = client.DefaultAge + 10*time.Second

// errBroken is what a check returns if the promise was not kept, and errUnjudged if nobody
// can say: who cannot be asked cannot be accused.
var (
	errBroken   = errors.New("the promise was NOT kept")
	errUnjudged = errors.New("could not be judged: the backplane does not answer")
)

// run runs a check on a chat of its own.
func (k *check) run(ctx context.Context, o options) error {
	o.addr = "127.0.0.1:0"
	o.prefix = "holdfast-chat-check-" + strings.ToLower(rand.Text()[:10])
	c, err := start(o)
	if err != nil {
		return err
	}
	r, err := k.watched(ctx, c, o.redis)
	err = errors.Join(err, c.close())
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted: nothing was judged (%w)", context.Cause(ctx))
	}
	if err != nil {
		return err
	}
	v := judge(r)
	v.print(k.out)
	if len(v.broken) > 0 {
		return errBroken
	}
	t, kept := v.total(), "acknowledged message"
	if t.lost > 0 {
		kept = "message that the backplane has kept"
	}
	fmt.Fprintf(k.out, "%d clients, %d nodes, %s backplane, %d faults, seed %d: everybody got every %s once, in one order",
		k.clients, len(c.nodes), c.backplane, len(r.faults), k.seed, kept)
	if t.resets > 0 {
		fmt.Fprintf(k.out, ", or was told (%d resets)", t.resets)
	}
	fmt.Fprintln(k.out)
	return nil
}

// watched has everything happen, and looks at the backplane before and after. It may have
// lost something only if its Redis was started anew, or if it numbers the room anew.
func (k *check) watched(ctx context.Context, c *chat, redis string) (r record, err error) {
	var first, last string
	if redis != "" {
		if first, err = redisRun(ctx, redis); err != nil {
			return r, err
		}
	}
	if r, err = k.record(ctx, c); err != nil {
		return r, err
	}
	if r.kept, err = c.kept(ctx); err == nil && redis != "" {
		last, err = redisRun(ctx, redis)
	}
	if err != nil {
		return r, fmt.Errorf("%w: %w", errUnjudged, err)
	}
	r.mayLose = redis != "" && (last != first || r.kept[0].Epoch != r.views[0].start.Epoch)
	return r, nil
}

// kept asks the backplane for all that it has, which is one position at least.
func (c *chat) kept(ctx context.Context) ([]replay.Position, error) {
	plane, done, err := c.open()
	if err != nil {
		return nil, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	page, err := plane.Read(ctx, room, replay.Position{}, replay.Budget{Entries: -1, Bytes: -1})
	all := []replay.Position{page.Head}
	for _, e := range page.Entries {
		all = append(all, e.Pos)
	}
	return all, err
}

// A party is one of the clients.
type party struct {
	*client.Client
	view
	sub     *client.Subscription
	pending []*client.Pending
	sent    []message

	session atomic.Int64 // the number of
	up      atomic.Int64 // when it began, in ns since 1970
}

// A stage is where a check takes place.
type stage struct {
	*check
	parties []*party
	last    atomic.Pointer[string] // the kind of the last fault
	ended   sync.WaitGroup         // readers that have not got to the end
	nsent   atomic.Int64
	nseen   atomic.Int64
}

// A line is what is said in the room.
type line struct {
	From string `json:"from"`
	Text string `json:"text"`
}

// record has everything happen.
func (k *check) record(ctx context.Context, c *chat) (r record, err error) {
	s := &stage{check: k}
	none := before
	s.last.Store(&none)
	defer func() {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		var all sync.WaitGroup
		for _, p := range s.parties {
			all.Go(func() { p.Close(now) })
		}
		all.Wait()
	}()
	for i := range k.clients {
		p, err := join(ctx, c.url, fmt.Sprintf("user-%d", i+1))
		if p != nil {
			s.parties = append(s.parties, p)
		}
		if err != nil {
			return r, err
		}
	}
	fmt.Fprintf(k.progress, "%d clients at %d nodes, %s backplane, seed %d\n", k.clients, len(c.nodes), c.backplane, k.seed)

	// Everybody reads until the last message of all has come, or time is up.
	var readers, talkers, others sync.WaitGroup
	reading, stopReading := context.WithCancelCause(ctx)
	defer readers.Wait()
	defer stopReading(nil)
	failed := make(chan error, k.clients)
	for _, p := range s.parties {
		s.ended.Add(1)
		readers.Go(func() {
			if err := s.read(reading, p); err != nil {
				failed <- fmt.Errorf("%s: %w", p.name, err)
			}
		})
	}
	talking, stopTalking := context.WithTimeout(ctx, k.duration)
	defer stopTalking()
	for _, p := range s.parties {
		talkers.Go(func() { s.talk(talking, p) })
	}
	watching, stopWatching := context.WithCancel(ctx)
	others.Go(func() { s.watch(watching) })
	defer others.Wait()
	defer stopWatching()

	r.faults, err = s.fault(talking, c)
	talkers.Wait()
	if err = errors.Join(err, ctx.Err()); err != nil {
		return r, err
	}
	fmt.Fprintln(k.progress, "all is said; waiting until everybody has got it")
	if !s.answers(ctx) { // not for a minute
		if _, err := c.kept(ctx); err != nil {
			return r, fmt.Errorf("%w: %w", errUnjudged, err)
		}
	}
	settled := errors.New("not everybody has got the last message in time")
	deadline := time.AfterFunc(k.settle, func() { stopReading(settled) })
	defer deadline.Stop()
	lost := s.finish(reading, end)
	if lost == nil {
		s.ended.Wait()
		if reading.Err() == nil {
			lost = s.finish(reading, over)
		}
	}
	if lost != nil {
		stopReading(lost) // nobody will get it
	}
	readers.Wait()
	close(failed)
	for err := range failed {
		r.late = append(r.late, err.Error())
	}
	if lost != nil {
		r.late = append(r.late, fmt.Sprintf("the last message is not acknowledged: %v", lost))
	}
	for _, p := range s.parties {
		r.sent = append(r.sent, p.sent...)
		r.views = append(r.views, p.view)
	}
	return r, ctx.Err()
}

// answers waits for the answers to all that was said, and reports whether all is stored.
func (s *stage) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, s.answer)
	defer cancel()
	all := true
	for _, p := range s.parties {
		for i, pending := range p.pending {
			receipt, _ := pending.Wait(ctx) // the outcome says it all
			p.sent[i].outcome, p.sent[i].pos = receipt.Outcome, receipt.Pos
			all = all && p.sent[i].acked()
		}
	}
	return all
}

// finish has the first one say something, and waits until it is stored.
func (s *stage) finish(ctx context.Context, text string) error {
	p := s.parties[0]
	pending, err := s.say(ctx, p, text)
	if err != nil {
		return err
	}
	receipt, err := pending.Wait(ctx)
	m := &p.sent[len(p.sent)-1]
	m.outcome, m.pos = receipt.Outcome, receipt.Pos
	return err
}

// end is the text of the message that everybody waits for, and over that of the last one,
// for which they read on, so that it is seen what comes after the end.
const (
	end  = "the end"
	over = "the end, and that was all"
)

// join connects a client and waits until it is subscribed.
func join(ctx context.Context, page, name string) (*party, error) {
	p := &party{view: view{name: name}}
	var err error
	p.Client, err = client.New("ws"+strings.TrimPrefix(page, "http")+"ws?user="+url.QueryEscape(name), &client.Options{
		Prepare: func(_ context.Context, d *client.Dial) error {
			d.Token = url.PathEscape(name)
			return nil
		},
		// There are few of them, and they are in a hurry.
		First:   500 * time.Millisecond,
		Backoff: backoff.Policy{Base: 200 * time.Millisecond, Cap: time.Second},
		Trace: &client.Trace{Up: func(s *client.Session) {
			p.session.Store(int64(s.Number))
			p.up.Store(time.Now().UnixNano())
		}},
	})
	if err != nil {
		return nil, err
	}
	if p.sub, err = p.Subscribe(room, nil); err != nil {
		return p, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := p.sub.Ready(ctx); err != nil {
		return p, fmt.Errorf("%s cannot join: %w", name, errors.Join(err, p.Err()))
	}
	p.start = p.sub.Position()
	return p, nil
}

// read keeps what a client gets, until it is over.
func (s *stage) read(ctx context.Context, p *party) error {
	ended := sync.OnceFunc(s.ended.Done)
	defer ended()
	for e, err := range p.sub.All(ctx) {
		switch {
		case err != nil:
			return err
		case e.Ephemeral:
		case e.Reset != nil:
			p.seen = append(p.seen, sight{reset: e.Reset, pos: e.Pos, fault: *s.last.Load()})
		default:
			var l line
			if err := json.Unmarshal(e.Data, &l); err != nil {
				return err
			}
			s.nseen.Add(1)
			replayed := p.session.Load() > 1 && e.At.UnixMilli() < p.up.Load()/1e6
			p.seen = append(p.seen, sight{text: l.Text, pos: e.Pos, replayed: replayed})
			switch l.Text {
			case end:
				ended()
			case over:
				return nil
			}
		}
	}
	return nil
}

// talk has a client say something a few times a second, connected or not.
func (s *stage) talk(ctx context.Context, p *party) {
	for n := 1; ; n++ {
		if backoff.Sleep(ctx, time.Duration(200+mathrand.IntN(400))*time.Millisecond) != nil {
			return
		}
		s.say(ctx, p, fmt.Sprintf("%s, %d", p.name, n))
	}
}

// say sends a message, and does not wait for the answer. With an error it was never sent.
func (s *stage) say(ctx context.Context, p *party, text string) (*client.Pending, error) {
	data, _ := json.Marshal(line{From: p.name, Text: text})
	pending, err := p.Send(ctx, room, client.Message{Data: data})
	if err != nil {
		return nil, err
	}
	s.nsent.Add(1)
	p.pending = append(p.pending, pending)
	p.sent = append(p.sent, message{text: text, fault: *s.last.Load()})
	return pending, nil
}

// fault makes faults for as long as ctx lasts, with some peace before and after them, and
// returns their kinds.
func (s *stage) fault(ctx context.Context, c *chat) (faults []string, err error) {
	rnd := mathrand.New(mathrand.NewPCG(s.seed, 0))
	number := max(8, int(s.duration/(2500*time.Millisecond)))
	kinds := s.kinds
	if kinds == nil {
		kinds = []string{"lose", "kill", "drain", "restart"}
	}
	var bag []string
	for i := range number {
		if len(bag) == 0 {
			bag = slices.Clone(kinds)
			rnd.Shuffle(len(bag), func(i, j int) { bag[i], bag[j] = bag[j], bag[i] })
		}
		kind := bag[0]
		bag = bag[1:]
		node, user := rnd.IntN(len(c.nodes)), rnd.IntN(len(s.parties))
		if err := backoff.Sleep(ctx, s.duration/time.Duration(number+1)); err != nil {
			return faults, nil
		}
		if s.faulted != nil {
			s.faulted(i, kind)
		}
		s.last.Store(&kind)
		for done := false; !done; {
			path := kind
			switch kind {
			case "lose":
				// Somebody who is connected: else there is nothing to lose.
				for range s.parties {
					if s.parties[user].State() == client.Ready {
						break
					}
					user = (user + 1) % len(s.parties)
				}
				path += "?user=" + s.parties[user].name
			case "kill", "drain":
				path += "?node=" + c.nodes[node].name
			}
			status, err := post(ctx, c.url+"control/"+path)
			switch {
			case ctx.Err() != nil:
				return faults, nil
			case err != nil:
				return faults, err
			case status == http.StatusAccepted:
				faults, done = append(faults, kind), true
			case status == http.StatusOK: // that one is down already
				node = (node + 1) % len(c.nodes)
			case kind != "lose" || status != http.StatusNotFound: // nobody is connected, or that one no longer
				return faults, fmt.Errorf("%s: status %d", path, status)
			}
			if !done {
				backoff.Sleep(ctx, 20*time.Millisecond)
			}
		}
	}
	return faults, nil
}

// post sends a request without a body.
func post(ctx context.Context, url string) (status int, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return 0, err
	}
	request.Close = true
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	io.Copy(io.Discard, answer.Body)
	return answer.StatusCode, nil
}

// watch says each second how far it is.
func (s *stage) watch(ctx context.Context) {
	for n := 1; backoff.Sleep(ctx, time.Second) == nil; n++ {
		connected := 0
		for _, p := range s.parties {
			if p.State() == client.Ready {
				connected++
			}
		}
		fmt.Fprintf(s.progress, "%3d s: last fault %-8s  connected %d of %d, sent %d, received %d\n",
			n, *s.last.Load(), connected, len(s.parties), s.nsent.Load(), s.nseen.Load())
	}
}
