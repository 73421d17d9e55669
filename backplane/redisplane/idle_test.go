package redisplane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/redistest"
	"github.com/holdfast-ws/holdfast/replay"
)

// A tlsEnd speaks TLS for a server that does not. A connection that it closes looks
// alive to go-redis, as one to a Redis with the option timeout does, or one through a
// load balancer that closes what is idle.
type tlsEnd struct {
	ln       net.Listener
	target   string
	deaf     atomic.Bool // closes connections as soon as they are there
	accepted atomic.Int64
	wg       sync.WaitGroup

	mu    sync.Mutex // guards all below
	conns map[net.Conn]bool
}

func newTLSEnd(t testing.TB, target string) *tlsEnd {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	e := &tlsEnd{ln: ln, target: target, conns: map[net.Conn]bool{}}
	e.wg.Go(e.accept)
	t.Cleanup(func() {
		ln.Close()
		e.cut()
		e.wg.Wait()
	})
	return e
}

func (e *tlsEnd) accept() {
	for {
		c, err := e.ln.Accept()
		if err != nil {
			return
		}
		e.accepted.Add(1)
		e.wg.Go(func() {
			defer c.Close()
			if e.deaf.Load() {
				c.(*tls.Conn).Handshake()
				return
			}
			up, err := net.Dial("tcp", e.target)
			if err != nil {
				return
			}
			defer up.Close()
			e.mu.Lock()
			e.conns[c] = true
			e.mu.Unlock()
			e.wg.Go(func() {
				io.Copy(c, up)
				c.Close()
			})
			io.Copy(up, c)
			e.mu.Lock()
			delete(e.conns, c)
			e.mu.Unlock()
		})
	}
}

// cut closes all connections, as TLS wants it.
func (e *tlsEnd) cut() {
	e.mu.Lock()
	var all []net.Conn
	for c := range e.conns {
		all = append(all, c)
	}
	e.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}

// idle is how many connections of a pool are dead.
const idle = 12

// stale leaves the client with a pool of dead connections that look alive.
func (e *tlsEnd) stale(t testing.TB, client *redis.Client) {
	t.Helper()
	var conns []*redis.Conn
	for range idle {
		c := client.Conn()
		if err := c.Ping(bounded(t)).Err(); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	for _, c := range conns {
		c.Close()
	}
	if n := client.PoolStats().IdleConns; n < idle {
		t.Fatalf("the pool has %d connections", n)
	}
	e.cut()
}

func connectTLS(t testing.TB, e *tlsEnd, opts *Options) (*Plane, *redis.Client) {
	t.Helper()
	o := options(e.ln.Addr().String())
	o.TLSConfig = &tls.Config{InsecureSkipVerify: true} // of this test
	o.PoolSize = 2 * idle
	client := redis.NewClient(o)
	p, err := New(client, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(); client.Close() })
	return p, client
}

// Over TLS go-redis does not see that a connection in its pool is closed. With a pool of
// such, most of what was published after a pause failed with "unknown … EOF".
func TestConnectionsThatWereClosedWhileIdleFailNoCall(t *testing.T) {
	server := redistest.Start(t)
	end := newTLSEnd(t, server.Addr())
	p, client := connectTLS(t, end, quick(entries))
	direct, _ := connect(t, server.Addr(), quick(entries))
	s, _ := watch(t, direct, "t")
	first := put(t, p, "t", "", "first")
	for _, test := range []struct {
		what string
		call func() error
	}{
		{"Append without an ID", func() error {
			_, err := p.Append(bounded(t), "t", backplane.Message{Data: []byte("a")})
			return err
		}},
		{"Append with an ID", func() error {
			_, err := p.Append(bounded(t), "t", backplane.Message{ID: "id", Data: []byte("b")})
			return err
		}},
		{"many appends", func() error {
			var all []<-chan result
			for i := range 30 {
				all = append(all, later(p, bounded(t), fmt.Sprint("many", i), backplane.Message{Data: []byte("x")}))
			}
			var err error
			for _, c := range all {
				err = errors.Join(err, outcome(t, c).err)
			}
			return err
		}},
		{"Read", func() error {
			_, err := p.Read(bounded(t), "t", first, replay.Budget{})
			return err
		}},
		{"Heads", func() error {
			heads, err := p.Heads(bounded(t), []string{"t", "u"})
			if err == nil && heads[0].IsZero() {
				err = errors.New("the head is not known")
			}
			return err
		}},
		{"PublishEphemeral", func() error { return p.PublishEphemeral(bounded(t), "t", []byte("typing")) }},
		{"Ping", func() error { return p.Ping(bounded(t)) }},
	} {
		end.stale(t, client)
		if err := test.call(); err != nil {
			t.Errorf("%s: %v", test.what, err)
		}
	}
	if got, gap := read(t, direct, "t", first); got != "a b" || gap != nil {
		t.Errorf("stored is %q, %v", got, gap)
	}
	until(t, "the ephemeral message arrives", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.ephemerals["t"]) == 1
	})
}

// A server that closes each connection is not dialled for as long as there is time.
func TestAConnectionThatWasDialledForACallEndsItsTries(t *testing.T) {
	server := redistest.Start(t)
	end := newTLSEnd(t, server.Addr())
	p, client := connectTLS(t, end, quick(entries))
	put(t, p, "t", "", "first")
	end.stale(t, client)
	end.deaf.Store(true)
	before := end.accepted.Load()
	r, err := p.Append(context.Background(), "t", backplane.Message{Data: []byte("x")})
	if r.Outcome != backplane.Unknown || !errors.Is(err, backplane.ErrUnavailable) {
		t.Errorf("%v, %v", r.Outcome, err) // it was written to one that was dead
	}
	if n := end.accepted.Load() - before; n != 1 {
		t.Errorf("it was dialled %d times", n)
	}
	// And now that there are no dead ones left, nothing was ever written.
	r, err = p.Append(context.Background(), "t", backplane.Message{Data: []byte("x")})
	if r.Outcome != backplane.NotStored || !errors.Is(err, backplane.ErrUnavailable) {
		t.Errorf("%v, %v", r.Outcome, err)
	}
}

// A load balancer whose Redis is away may accept connections, and hang up. Each of many
// callers dialled as often as all of them had connections: thousands of times.
func TestManyCallersDialAFewTimesEachWhenAllConnectionsBreak(t *testing.T) {
	// A call of the client's is two tries. The last call of each caller finds no dead
	// connection any more, and those before it found one at least.
	const callers = 40
	const most = 2*callers + 2*idle
	server := redistest.Start(t)
	for _, test := range []struct {
		what string
		call func(p *Plane, i int) error
	}{
		{"Read", func(p *Plane, i int) error {
			_, err := p.Read(context.Background(), fmt.Sprint(i), replay.Position{}, replay.Budget{})
			return err
		}},
		{"Heads", func(p *Plane, i int) error {
			_, err := p.Heads(context.Background(), []string{fmt.Sprint(i)})
			return err
		}},
		{"PublishEphemeral", func(p *Plane, i int) error {
			return p.PublishEphemeral(context.Background(), fmt.Sprint(i), []byte("x"))
		}},
		{"Append", func(p *Plane, i int) error {
			_, err := p.Append(context.Background(), fmt.Sprint(i), backplane.Message{})
			return err
		}},
		{"Ping", func(p *Plane, i int) error { return p.Ping(context.Background()) }},
	} {
		t.Run(test.what, func(t *testing.T) {
			end := newTLSEnd(t, server.Addr())
			p, client := connectTLS(t, end, &Options{Timeout: patience})
			all := func() (failed int64) {
				var wg sync.WaitGroup
				var n atomic.Int64
				for i := range callers {
					wg.Go(func() {
						if test.call(p, i) != nil {
							n.Add(1)
						}
					})
				}
				wg.Wait()
				return n.Load()
			}
			all()
			end.stale(t, client)
			end.deaf.Store(true)
			for _, outage := range []string{"its first moment", "later"} {
				before := end.accepted.Load()
				if n := all(); n != callers {
					t.Errorf("%s: %d of %d fail", outage, n, callers)
				}
				if n := end.accepted.Load() - before; n > most {
					t.Errorf("%s: %d callers dialled %d times", outage, callers, n)
				}
			}
		})
	}
}
