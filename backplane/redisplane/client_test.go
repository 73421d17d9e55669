package redisplane

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/redistest"
	"github.com/holdfast-ws/holdfast/replay"
)

// What comes from a managed "configuration endpoint" is any node of a cluster. Ping said
// that all was well, and two thirds of the publishes failed.
func TestAPlainClientOnANodeOfAClusterIsToldWhichOneIsRight(t *testing.T) {
	const right = "redis.ClusterClient"
	nodes := redistest.Cluster(t, 2, 0)
	refused := 0
	for _, node := range nodes {
		log := &record{}
		opts := quick(entries)
		opts.Logger = slog.New(log)
		p, _ := connect(t, node.Addr(), opts)
		if err := p.Ping(bounded(t)); err == nil || errors.Is(err, backplane.ErrUnavailable) || !strings.Contains(err.Error(), right) {
			t.Errorf("Ping: %v", err)
		}
		r, err := p.Append(bounded(t), "t", backplane.Message{Data: []byte("x")})
		if err == nil {
			continue // it happens to be this node's
		}
		refused++
		if r.Outcome != backplane.NotStored || !errors.Is(err, backplane.ErrUnavailable) || !strings.Contains(err.Error(), right) {
			t.Errorf("an append: %v, %v", r.Outcome, err)
		}
		if !log.has("WARN", right, "MOVED") {
			t.Errorf("after an append the log says %q", log.lines)
		}
		_, err = p.Read(bounded(t), "t", replay.Position{}, replay.Budget{})
		if !errors.Is(err, backplane.ErrUnavailable) || !strings.Contains(err.Error(), right) {
			t.Errorf("a read: %v", err)
		}
		if _, err = p.Heads(bounded(t), []string{"t"}); !errors.Is(err, backplane.ErrUnavailable) || !strings.Contains(err.Error(), right) {
			t.Errorf("heads: %v", err)
		}
		for range 100 {
			p.Append(bounded(t), "t", backplane.Message{Data: []byte("x")})
		}
		if n := log.count(right); n > 10 {
			t.Errorf("the log says so %d times", n)
		}
	}
	if refused != 1 {
		t.Errorf("%d of 2 nodes refused", refused)
	}
}

// No command is run then, and so nobody may be told that the outcome is unknown.
func TestAClusterClientOnASingleServerIsToldWhichOneIsRight(t *testing.T) {
	const right = "redis.Client,"
	server := redistest.Start(t)
	client := redis.NewClusterClient(clusterOptions([]*redistest.Server{server}))
	defer client.Close()
	log := &record{}
	opts := quick(entries)
	opts.Logger = slog.New(log)
	p, err := New(client, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Ping(bounded(t)); err == nil || errors.Is(err, backplane.ErrUnavailable) || !strings.Contains(err.Error(), right) {
		t.Errorf("Ping: %v", err)
	}
	r, err := p.Append(bounded(t), "t", backplane.Message{Data: []byte("x")})
	if r.Outcome != backplane.NotStored || !errors.Is(err, backplane.ErrUnavailable) || !strings.Contains(err.Error(), right) {
		t.Errorf("an append: %v, %v", r.Outcome, err)
	}
	if !log.has("WARN", right) {
		t.Errorf("after an append the log says %q", log.lines)
	}
	_, err = p.Read(bounded(t), "t", replay.Position{}, replay.Budget{})
	if !errors.Is(err, backplane.ErrUnavailable) || !strings.Contains(err.Error(), right) {
		t.Errorf("a read: %v", err)
	}
	w := p.Watch(newSpy())
	defer w.Close()
	ctx, cancel := context.WithCancel(bounded(t))
	added := make(chan error, 1)
	go func() { added <- w.Add(ctx, "t") }()
	until(t, "the log says why nothing is subscribed to", func() bool { return log.has("live messages", right) })
	cancel()
	if err := <-added; err == nil {
		t.Error("Add is content")
	}
}

func TestAPlainClientOnASentinelIsToldWhichOneIsRight(t *testing.T) {
	sentinel := redistest.Sentinels(t, 1, 1, redistest.Start(t))[0]
	p, _ := connect(t, sentinel.Addr(), quick(entries))
	if err := p.Ping(bounded(t)); err == nil || errors.Is(err, backplane.ErrUnavailable) || !strings.Contains(err.Error(), "redis.NewFailoverClient") {
		t.Errorf("Ping: %v", err)
	}
}

// A client that never gets a connection has not sent anything, whatever the error.
func TestWhatWasNeverWrittenIsNotStored(t *testing.T) {
	for _, err := range []error{errors.New("no certificate"), io.EOF, &net.OpError{Op: "read", Err: errors.New("handshake")}, context.DeadlineExceeded} {
		o := options("nowhere:1")
		o.Dialer = func(context.Context, string, string) (net.Conn, error) { return nil, err }
		client := redis.NewClient(o)
		p, err2 := New(client, quick(entries))
		if err2 != nil {
			t.Fatal(err2)
		}
		r, got := p.Append(bounded(t), "t", backplane.Message{})
		if r.Outcome != backplane.NotStored || !errors.Is(got, backplane.ErrUnavailable) {
			t.Errorf("%v: %v, %v", err, r.Outcome, got)
		}
		p.Close()
		client.Close()
	}
}

// The time of who waits was up before that of the call, and so nobody looked whether
// anything was written.
func TestAnAppendThatGetsNoConnectionWithinTimeoutIsNotStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", Dialer: func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done() // as through a firewall that drops all
			return nil, ctx.Err()
		}})
		defer time.Sleep(time.Minute) // go-redis goes on to dial for a while
		defer client.Close()
		p, err := New(client, &Options{Timeout: 2 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		for range 3 {
			began := time.Now()
			r, err := p.Append(t.Context(), "t", backplane.Message{})
			if r.Outcome != backplane.NotStored || !errors.Is(err, backplane.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v, %v", r.Outcome, err)
			}
			if took := time.Since(began); took > p.opts.Timeout {
				t.Errorf("it took %v", took)
			}
		}
	})
}

// Pub/Sub knows no databases, but keys do.
func TestPlanesOnTwoDatabasesOfOneRedisDoNotHearEachOther(t *testing.T) {
	server := redistest.Start(t)
	inDB := func(n int) *Plane {
		o := options(server.Addr())
		o.DB = n
		client := redis.NewClient(o)
		p, err := New(client, quick(entries))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close(); client.Close() })
		return p
	}
	zero, one := inDB(0), inDB(1)
	s0, _ := watch(t, zero, "t")
	s1, _ := watch(t, one, "t")
	for _, text := range []string{"a", "b", strings.Repeat("large", 10_000)} {
		put(t, one, "t", "", text)
	}
	if err := one.PublishEphemeral(bounded(t), "t", []byte("typing in one")); err != nil {
		t.Fatal(err)
	}
	// What one connection carries it carries in order, and Redis knows one order.
	put(t, zero, "t", "", "zero")
	put(t, one, "t", "", "end")
	until(t, "both have heard the last of theirs", func() bool { return s0.has("t", "zero") && s1.has("t", "end") })
	if n := zero.Stats().Announcements; n != 1 {
		t.Errorf("in database 0 %d announcements were heard", n)
	}
	if n := one.Stats().Announcements; n != 5 {
		t.Errorf("in database 1 %d announcements were heard", n)
	}
	if s0.count("t") != 1 || s0.rung("t") != 0 || len(s0.ephemerals["t"]) != 0 {
		t.Errorf("database 0 was told %d entries, %d bells, %q", s0.count("t"), s0.rung("t"), s0.ephemerals["t"])
	}
}

// A silent server accepts connections and all that is written to them, and answers only
// the command with which a connection begins.
type silent struct {
	wg    sync.WaitGroup
	mu    sync.Mutex // guards conns
	conns []net.Conn
}

func (s *silent) dial(context.Context, string, string) (net.Conn, error) {
	c, end := net.Pipe()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, end)
	s.wg.Go(func() {
		end.Read(make([]byte, 1024)) // HELLO
		io.WriteString(end, "-ERR unknown command\r\n")
		io.Copy(io.Discard, end)
	})
	return c, nil
}

// close ends all connections: a client that was closed may forget some.
func (s *silent) close() {
	s.mu.Lock()
	for _, c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// Those that queued behind a batch which hung waited for its time and then for their
// own: 1000 publishes took up to 25 s, with a Timeout of 5 s.
func TestEachAppendToARedisThatHangsEndsWithinTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var server silent
		defer server.close()
		client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", Dialer: server.dial, Protocol: 2, DisableIdentity: true, ReadTimeout: 3 * time.Second})
		defer client.Close()
		p, err := New(client, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		began := time.Now()
		const n = 1000
		type done struct {
			result
			after time.Duration
		}
		all := make(chan done, n)
		for i := range n {
			go func() {
				r, err := p.Append(context.Background(), "t", backplane.Message{Data: []byte("x")})
				all <- done{result{r, err}, time.Since(began)}
			}()
			if i == 0 {
				synctest.Wait() // so that it is alone in its call
			}
		}
		count := map[backplane.Outcome]int{}
		for range n {
			r := <-all
			count[r.receipt.Outcome]++
			if r.after > p.opts.Timeout {
				t.Errorf("an append has taken %v", r.after)
			}
			if !errors.Is(r.err, backplane.ErrUnavailable) {
				t.Errorf("its error is %v", r.err)
			}
		}
		// The first, and then as many as go into one call, were written.
		if count[backplane.Unknown] != 1+maxMessages || count[backplane.NotStored] != n-1-maxMessages {
			t.Errorf("the outcomes are %v", count)
		}
	})
}
