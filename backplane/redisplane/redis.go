package redisplane

import (
	"context"
	crand "crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/replay"
)

// Defaults of [Options].
const (
	DefaultPrefix          = "holdfast:"
	DefaultIdentity        = 24 * time.Hour
	DefaultIDWindow        = 2 * time.Minute
	DefaultProbe           = 3 * time.Second
	DefaultTimeout         = 5 * time.Second
	DefaultMaxAnnouncement = 16 << 10
	DefaultPartitions      = 64 // in a cluster; 1 otherwise
)

// Options are the choices for a [Plane]. Nil means all defaults. All nodes of a
// service must have the same, but for Probe, Timeout and Logger.
type Options struct {
	// Prefix begins the names of all keys and channels. It must not contain { or }.
	// Give Redis users no more than ~<prefix>* and &<prefix>*. Empty means
	// DefaultPrefix.
	Prefix string

	// Limits returns how much history Redis keeps of a topic. At least that is
	// kept, and up to a sixteenth more, or one call's worth; what is kept for
	// longer than Age is gone a sixteenth of that and a second later. Bytes counts
	// 30 more for each entry. No limit, as negative numbers are, is not allowed:
	// nothing stays in Redis for ever; Append then returns an *InputError. It is
	// called for each append and must be quick. Nil means the defaults of
	// replay.Limits.
	Limits func(topic string) replay.Limits

	// Identity is how long Redis remembers how far the numbers of a topic have got
	// to which nothing is appended and which no Hub follows. Who comes back later
	// gets a Reset. It must be at least ten minutes, and more than any Age. Zero
	// means DefaultIdentity.
	Identity time.Duration

	// IDWindow is how long the ID of a message is remembered, at about 200 bytes
	// each. It goes by Redis's clock: if that is set forward by more than this, all IDs
	// are forgotten, and a message that is sent again is stored twice. At least a
	// second. Zero means DefaultIDWindow.
	IDWindow time.Duration

	// Partitions is the number of hash slots that topics are spread over, in a
	// cluster. Each takes one connection for live messages on each node. Who
	// changes it begins anew. 1 to 4096; always 1 without a cluster. Zero means
	// DefaultPartitions.
	Partitions int

	// MaxAnnouncement is the length in bytes, with key and 30 more, above which a
	// message is not in the live one that announces it, and every node reads it.
	// Zero means DefaultMaxAnnouncement. It must not be negative.
	MaxAnnouncement int

	// Probe is how often each connection for live messages is tried, through the
	// way that publishing takes. One from which nothing comes for another Probe is
	// replaced. Zero means DefaultProbe. At least 10 ms.
	Probe time.Duration

	// Timeout is how long a call may take that has no sooner deadline, counted from
	// its own beginning: an append also while it waits behind others. A Read of a
	// large history is several calls. Zero means DefaultTimeout. At least 10 ms.
	Timeout time.Duration

	// Logger gets what an operator wants to know, and never what messages contain.
	// Nil means no log.
	Logger *slog.Logger
}

// A Plane is a [backplane.Backplane] on Redis. Make one with [New] for each
// process. It is safe for concurrent use.
type Plane struct {
	client  redis.UniversalClient
	opts    Options
	cluster bool
	publish string // the command
	db      int    // number of the database that the keys are in
	node    string // names this Plane in its probes
	parts   []*part
	log     *slog.Logger
	count   counters
	// Bounds of one call of the script that reads.
	pageEntries, pageBytes int64

	wrong atomic.Uint64 // errors that say that the client is of the wrong kind

	ctx    context.Context // ends in Close
	cancel context.CancelFunc

	mu       sync.Mutex // guards all below
	closed   bool
	kept     map[string]time.Time // when the time to live of a head was renewed, see keep
	wg       sync.WaitGroup       // Add only while not closed
	watchers map[*watcher]bool
}

var (
	_ backplane.Backplane          = (*Plane)(nil)
	_ backplane.HeadReader         = (*Plane)(nil)
	_ backplane.EphemeralPublisher = (*Plane)(nil)
)

//go:embed append.lua
var appendSource string

//go:embed read.lua
var readSource string

var (
	appendScript = redis.NewScript(appendSource)
	readScript   = redis.NewScript(readSource)
)

// New returns a Plane on client, which remains the caller's to close, after the
// Plane. It may be a *redis.Client, also one made for Sentinel, or a
// *redis.ClusterClient that reads from masters. It needs ReadTimeout and WriteTimeout,
// as it has by default, or ContextTimeoutEnabled: else a call might never end.
//
// It does not connect: whether Redis is there and new enough is found out by the
// first call, or by [Plane.Ping]. The only error is an [*backplane.InputError] that
// names the option that is not allowed.
func New(client redis.UniversalClient, opts *Options) (*Plane, error) {
	p := &Plane{
		client: client, publish: "PUBLISH", node: crand.Text(), watchers: map[*watcher]bool{}, kept: map[string]time.Time{},
		pageEntries: maxReadEntries, pageBytes: maxReadBytes,
	}
	if opts != nil {
		p.opts = *opts
	}
	switch c := client.(type) {
	case *redis.Client:
		if c == nil {
			return nil, &backplane.InputError{Field: "client", Reason: "is nil"}
		}
		if o := c.Options(); (o.ReadTimeout <= 0 || o.WriteTimeout <= 0) && !o.ContextTimeoutEnabled {
			return nil, noTimeout
		}
		p.opts.Partitions = 1
		p.db = c.Options().DB
	case *redis.ClusterClient:
		if c == nil {
			return nil, &backplane.InputError{Field: "client", Reason: "is nil"}
		}
		if o := c.Options(); (o.ReadTimeout <= 0 || o.WriteTimeout <= 0) && !o.ContextTimeoutEnabled {
			return nil, noTimeout
		}
		if c.Options().ReadOnly {
			return nil, &backplane.InputError{Field: "client", Reason: "reads from replicas (ReadOnly, RouteByLatency or RouteRandomly), which lag behind"}
		}
		p.cluster = true
		p.publish = "SPUBLISH"
	default:
		return nil, &backplane.InputError{Field: "client", Reason: fmt.Sprintf("is a %T, want a *redis.Client or *redis.ClusterClient", client)}
	}
	if err := p.opts.fill(); err != nil {
		return nil, err
	}
	for _, tag := range tags(p.opts.Partitions) {
		p.parts = append(p.parts, &part{plane: p, prefix: p.opts.Prefix + "{" + tag + "}"})
	}
	p.log = p.opts.Logger
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p, nil
}

var noTimeout = &backplane.InputError{Field: "client", Reason: "has no ReadTimeout or no WriteTimeout, and not ContextTimeoutEnabled: a call might never end"}

// fill sets defaults and refuses what is not allowed.
func (o *Options) fill() error {
	def := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	def(&o.Identity, DefaultIdentity)
	def(&o.IDWindow, DefaultIDWindow)
	def(&o.Probe, DefaultProbe)
	def(&o.Timeout, DefaultTimeout)
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	if o.Limits == nil {
		o.Limits = func(string) replay.Limits { return replay.Limits{} }
	}
	if o.Partitions == 0 {
		o.Partitions = DefaultPartitions
	}
	if o.MaxAnnouncement == 0 {
		o.MaxAnnouncement = DefaultMaxAnnouncement
	}
	bad := func(field, reason string) error { return &backplane.InputError{Field: field, Reason: reason} }
	switch {
	case strings.ContainsAny(o.Prefix, "{}"):
		return bad("Prefix", "contains a brace")
	case o.Identity < 10*time.Minute:
		return bad("Identity", fmt.Sprintf("is %v, less than 10m", o.Identity))
	case o.IDWindow < time.Second:
		return bad("IDWindow", fmt.Sprintf("is %v, less than 1s", o.IDWindow))
	case o.Partitions < 1 || o.Partitions > 4096:
		return bad("Partitions", fmt.Sprintf("is %d, want 1 to 4096", o.Partitions))
	case o.MaxAnnouncement < 0:
		return bad("MaxAnnouncement", "is negative")
	case o.Probe < 10*time.Millisecond:
		return bad("Probe", fmt.Sprintf("is %v, less than 10ms", o.Probe))
	case o.Timeout < 10*time.Millisecond:
		return bad("Timeout", fmt.Sprintf("is %v, less than 10ms", o.Timeout))
	}
	return nil
}

// noLimit stands for no limit in the scripts, and is the greatest one.
const noLimit = 1 << 40

// limits returns what a topic keeps, with defaults.
func (p *Plane) limits(topic string) (entries, bytes int64, age time.Duration, err error) {
	l := p.opts.Limits(topic)
	entries, bytes, age = int64(l.Entries), l.Bytes, l.Age
	if entries == 0 {
		entries = replay.DefaultEntries
	}
	if bytes == 0 {
		bytes = replay.DefaultBytes
	}
	if age == 0 {
		age = replay.DefaultAge
	}
	switch {
	case entries < 0 || entries > noLimit:
		err = &backplane.InputError{Field: "Limits", Reason: fmt.Sprintf("of topic %q have %d Entries, want 1 to %d", topic, entries, int64(noLimit))}
	case bytes < 0 || bytes > noLimit:
		err = &backplane.InputError{Field: "Limits", Reason: fmt.Sprintf("of topic %q have %d Bytes, want 1 to %d", topic, bytes, int64(noLimit))}
	case age < time.Millisecond:
		err = &backplane.InputError{Field: "Limits", Reason: fmt.Sprintf("of topic %q have the Age %v, want a millisecond or more", topic, age)}
	case age > p.opts.Identity-age/16-time.Second:
		err = &backplane.InputError{Field: "Limits", Reason: fmt.Sprintf("of topic %q have the Age %v, longer than Identity", topic, age)}
	}
	return entries, bytes, age, err
}

// part returns the partition of a topic.
func (p *Plane) part(topic string) *part {
	return p.parts[partition(topic, len(p.parts))]
}

// begin reports whether the Plane is open. If so, wg.Done must follow.
func (p *Plane) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.wg.Add(1)
	}
	return !p.closed
}

// Close implements [backplane.Backplane]. Calls that are on their way to Redis are
// waited for, for no longer than Timeout and the timeouts of the client.
func (p *Plane) Close() error {
	p.mu.Lock()
	p.closed = true
	var all []*watcher
	for w := range p.watchers {
		all = append(all, w)
	}
	p.mu.Unlock()
	p.cancel()
	for _, w := range all {
		w.Close()
	}
	p.wg.Wait()
	return nil
}

// do makes a call that may be slow to notice that ctx is done: on a goroutine of its
// own, which Close waits for.
func do[T any](p *Plane, ctx context.Context, f func(ctx context.Context) (T, error)) (T, error) {
	var none T
	if ctx.Err() != nil {
		return none, context.Cause(ctx)
	}
	if !p.begin() {
		return none, backplane.ErrClosed
	}
	type result struct {
		value T
		err   error
	}
	call, cancel := context.WithTimeout(p.ctx, p.opts.Timeout)
	stop := context.AfterFunc(ctx, cancel)
	done := make(chan result, 1)
	go func() {
		defer p.wg.Done()
		defer cancel()
		defer stop()
		value, err := f(call)
		done <- result{value, err}
	}()
	var r result
	select {
	case r = <-done:
	case <-ctx.Done():
	case <-call.Done(): // a client may be slow to notice
		select {
		case r = <-done:
		default:
			r.err = p.unavailable(context.DeadlineExceeded)
		}
	}
	switch {
	case ctx.Err() != nil: // whatever the client makes of it
		return none, context.Cause(ctx)
	case r.err != nil && p.ctx.Err() != nil:
		return none, backplane.ErrClosed
	}
	return r.value, r.err
}

// Ping reports whether Redis can be reached now, is new enough (6.2, or 7.0 for a
// cluster), and is what the client is made for: a cluster for a *redis.ClusterClient,
// and none for a *redis.Client. It returns nil, an error that wraps
// backplane.ErrUnavailable, or one that says what is wrong. It is for readiness checks.
func (p *Plane) Ping(ctx context.Context) error {
	_, err := do(p, ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, p.check(ctx) })
	return err
}

func (p *Plane) check(ctx context.Context) error {
	var info string
	err := p.persist(ctx, func(written *atomic.Bool) (err error) {
		info, err = p.client.Do(ctx, "info", mark{"server", written}).Text()
		return err
	})
	if err != nil {
		if wrong := p.wrongClient(err); wrong != nil {
			return fmt.Errorf("redisplane: %w", wrong)
		}
		return p.unavailable(err)
	}
	switch {
	case strings.Contains(info, "redis_mode:cluster") && !p.cluster:
		return fmt.Errorf("redisplane: %w", errIsCluster)
	case strings.Contains(info, "redis_mode:sentinel"):
		return fmt.Errorf("redisplane: %w", errIsSentinel)
	}
	return p.checkVersion(info)
}

// checkVersion looks for the version in the answer to INFO.
func (p *Plane) checkVersion(info string) error {
	_, after, ok := strings.Cut(info, "redis_version:")
	version, _, _ := strings.Cut(after, "\r\n")
	parts := strings.Split(version, ".")
	if !ok || len(parts) < 2 {
		return fmt.Errorf("redisplane: Redis does not tell its version")
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	want, wantMinor := 6, 2
	if p.cluster {
		want, wantMinor = 7, 0
	}
	if errors.Join(err1, err2) != nil || major < want || major == want && minor < wantMinor {
		return fmt.Errorf("redisplane: Redis %s is older than %d.%d", version, want, wantMinor)
	}
	return nil
}

// unavailable marks an error as one of the way to Redis. If it is because the client is
// of the wrong kind, it says so, here and in the log.
func (p *Plane) unavailable(err error) error {
	wrong := p.wrongClient(err)
	if wrong == nil {
		return fmt.Errorf("redisplane: %w: %w", backplane.ErrUnavailable, err)
	}
	if n := p.wrong.Add(1); n&(n-1) == 0 { // the first, and ever fewer of those that follow it
		p.log.Warn("the client is of the wrong kind", "reason", wrong, "err", err, "failures", n)
	}
	return fmt.Errorf("redisplane: %w: %w: %w", backplane.ErrUnavailable, wrong, err)
}

var (
	errIsCluster  = errors.New("this Redis is a node of a cluster: give New a *redis.ClusterClient, which redis.NewClusterClient makes, instead of a *redis.Client")
	errIsSentinel = errors.New("this is a Sentinel: give New a client that redis.NewFailoverClient makes")
	errNoCluster  = errors.New("this Redis is not a cluster: give New a *redis.Client, which redis.NewClient makes, instead of a *redis.ClusterClient")
)

// noCluster is how Redis answers a client that asks for its cluster, and has not begun.
const noCluster = "ERR This instance has cluster support disabled"

// wrongClient returns what is wrong with the client, if an error says that.
func (p *Plane) wrongClient(err error) error {
	var reply redis.Error
	if !errors.As(err, &reply) {
		return nil
	}
	switch text := reply.Error(); {
	case !p.cluster && (strings.HasPrefix(text, "MOVED ") || strings.HasPrefix(text, "ASK ")):
		return errIsCluster
	case p.cluster && strings.HasPrefix(text, noCluster):
		return errNoCluster
	}
	return nil
}

// Stats are counts since the Plane was made.
type Stats struct {
	Appends       uint64 // messages appended, duplicates included
	Batches       uint64 // script calls that did it
	Failed        uint64 // messages whose append failed
	Reads         uint64 // calls of Read
	Announcements uint64 // received
	Malformed     uint64 // messages on our channels that are not ours
	Interruptions uint64 // of connections for live messages
	Probes        uint64 // answered
}

type counters struct {
	appends, batches, failed, reads, announcements, malformed, interruptions, probes atomic.Uint64
}

// Stats returns a snapshot.
func (p *Plane) Stats() Stats {
	c := &p.count
	return Stats{
		Appends: c.appends.Load(), Batches: c.batches.Load(), Failed: c.failed.Load(), Reads: c.reads.Load(),
		Announcements: c.announcements.Load(), Malformed: c.malformed.Load(),
		Interruptions: c.interruptions.Load(), Probes: c.probes.Load(),
	}
}
