package redisplane

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/backplane/backplanetest"
	"github.com/holdfast-ws/holdfast/internal/faultproxy"
	"github.com/holdfast-ws/holdfast/internal/leak"
	"github.com/holdfast-ws/holdfast/internal/redistest"
	"github.com/holdfast-ws/holdfast/replay"
)

func TestMain(m *testing.M) {
	if os.Getenv("REDIS_LOG") == "" {
		logging.Disable()
	}
	leak.Main(m, leak.Dropped)
}

// quick has short times, so that tests need not wait; but not where a busy machine might
// need longer.
func quick(entries int) *Options {
	limits := replay.Limits{Entries: entries, Bytes: 1 << 26}
	return &Options{
		Probe: 200 * time.Millisecond, Timeout: patience,
		Limits: func(string) replay.Limits { return limits },
	}
}

func options(addr string) *redis.Options {
	return &redis.Options{
		Addr: addr, DialTimeout: time.Second, ReadTimeout: time.Second, WriteTimeout: time.Second, MaxRetries: 1, DialerRetries: 1,
		DisableIdentity: true,
	}
}

// connect returns a Plane and its client, closed when the test ends.
func connect(t testing.TB, addr string, opts *Options) (*Plane, *redis.Client) {
	t.Helper()
	client := redis.NewClient(options(addr))
	plane, err := New(client, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plane.Close(); client.Close() })
	return plane, client
}

// must runs a command on a server.
func must(t testing.TB, s *redistest.Server, cmd string) string {
	t.Helper()
	answer, err := s.Do(cmd)
	if err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	return answer
}

const entries = 64

// A dump is everything in a Redis: what a snapshot on disk would have.
type dump map[string][2]string // name to serialised value and time to live

func save(t testing.TB, c redis.UniversalClient) dump {
	t.Helper()
	d := dump{}
	keys, err := c.Keys(context.Background(), "*").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		value, err := c.Dump(context.Background(), key).Result()
		if err != nil {
			t.Fatal(err)
		}
		ttl, err := c.PTTL(context.Background(), key).Result()
		if err != nil {
			t.Fatal(err)
		}
		d[key] = [2]string{value, fmt.Sprint(max(1, ttl.Milliseconds()))}
	}
	return d
}

// restore goes back to a dump in one step: who looked in between would see a Redis that
// has forgotten everything, which is another fault. It is a script, because a transaction
// cannot have the keys of several slots of a cluster.
func (d dump) restore(t testing.TB, c redis.UniversalClient) {
	t.Helper()
	var args []any
	for key, v := range d {
		args = append(args, key, v[1], v[0])
	}
	const script = `redis.call('FLUSHALL') for i = 1, #ARGV, 3 do redis.call('RESTORE', ARGV[i], ARGV[i+1], ARGV[i+2]) end`
	if err := c.Eval(context.Background(), script, nil, args...).Err(); err != nil && err != redis.Nil {
		t.Fatal(err)
	}
}

// evict deletes the keys of a topic that are of one kind.
func evict(t testing.TB, c redis.UniversalClient, prefix, kind, topic string) {
	t.Helper()
	keys, err := c.Keys(context.Background(), "*").Result()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, key := range keys {
		if strings.HasPrefix(key, prefix+kind) && strings.HasSuffix(key, ":"+topic) {
			n++
			if err := c.Del(context.Background(), key).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n == 0 {
		t.Fatalf("there is no key %s%s…:%s in %q", prefix, kind, topic, keys)
	}
}

// standalone is a harness with every fault.
func standalone(t testing.TB) *backplanetest.Harness {
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always", "--repl-ping-replica-period", "1")
	proxy, err := faultproxy.New(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	admin := redis.NewClient(options(server.Addr()))
	t.Cleanup(func() { admin.Close() })
	prefix := DefaultPrefix + "{0}"
	return &backplanetest.Harness{
		Open: func() backplane.Backplane {
			plane, _ := connect(t, proxy.Addr(), quick(entries))
			return plane
		},
		Entries: entries,
		Slack:   entries / 8,
		Restart: func() { server.Kill(); server.Restart(t) },
		Flush:   func() { must(t, server, "FLUSHALL") },
		Save: func() func() {
			d := save(t, admin)
			return func() { d.restore(t, admin) }
		},
		Evict:        func(topic string) { evict(t, admin, prefix, "m", topic) },
		EvictEntries: func(topic string) { evict(t, admin, prefix, "s", topic) },
		Expire:       func(topic string) { evict(t, admin, prefix, "s", topic) },
		Cut:          proxy.ResetAll,
		HalfOpen: func() func() {
			proxy.HoleUp.Store(true)
			proxy.HoleDown.Store(true)
			return func() {
				proxy.ResetAll()
				proxy.Heal()
			}
		},
		Refuse: func() func() {
			proxy.Refuse.Store(true)
			proxy.ResetAll()
			return proxy.Heal
		},
	}
}

func TestStandaloneRedisConforms(t *testing.T) { backplanetest.Run(t, standalone) }

// replicated waits until a replica has all that its master has. WAIT would not do: it
// is about what its own connection has written.
func replicated(t testing.TB, master, replica *redistest.Server) {
	t.Helper()
	field := func(s *redistest.Server, name string) string {
		_, after, _ := strings.Cut(must(t, s, "INFO replication"), name+":")
		value, _, _ := strings.Cut(after, "\n")
		return strings.TrimSpace(value)
	}
	for end := time.Now().Add(20 * time.Second); field(replica, "slave_repl_offset") != field(master, "master_repl_offset"); {
		if time.Now().After(end) {
			t.Fatal("the replica does not get what the master has")
		}
	}
}

// eachMaster runs a command on all servers that are masters.
func eachMaster(t testing.TB, servers []*redistest.Server, cmd string) {
	t.Helper()
	for _, s := range servers {
		if info, err := s.Do("INFO replication"); err == nil && strings.Contains(info, "role:master") {
			must(t, s, cmd)
		}
	}
}

// With Sentinel, a restart is a failover: the master is killed, and its replica, which
// has all, takes over.
func TestRedisWithSentinelConforms(t *testing.T) {
	master := redistest.Start(t)
	replica := redistest.Replica(t, master.Addr())
	servers := []*redistest.Server{master, replica}
	sentinels := redistest.Sentinels(t, 3, 2, master)
	var addrs []string
	for _, s := range sentinels {
		addrs = append(addrs, s.Addr())
	}
	failover := func() (client *redis.Client, end func()) {
		// go-redis v9.22 may go on dialling when it has been closed, and what it then
		// subscribes to at a Sentinel nobody ends.
		var ended atomic.Bool
		client = redis.NewFailoverClient(&redis.FailoverOptions{
			MasterName: redistest.MasterName, SentinelAddrs: addrs, DialTimeout: time.Second, ReadTimeout: time.Second,
			WriteTimeout: time.Second, MaxRetries: 1, DialerRetries: 1, DisableIdentity: true,
			Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
				if ended.Load() {
					return nil, net.ErrClosed
				}
				return (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, addr)
			},
		})
		return client, func() {
			ended.Store(true)
			client.Close()
		}
	}
	backplanetest.Run(t, func(t testing.TB) *backplanetest.Harness {
		admin, end := failover()
		t.Cleanup(end)
		eachMaster(t, servers, "FLUSHALL")
		prefix := DefaultPrefix + "{0}"
		return &backplanetest.Harness{
			Open: func() backplane.Backplane {
				client, end := failover()
				plane, err := New(client, quick(entries))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { plane.Close(); end() })
				return plane
			},
			Entries: entries,
			Slack:   entries / 8,
			Restart: func() {
				replicated(t, master, replica) // else it would be a rollback
				master.Kill()
				redistest.Says(t, 15*time.Second, "INFO replication", "role:master", replica)
				master.Restart(t)
				redistest.Says(t, 15*time.Second, "INFO replication", "master_link_status:up", master)
				master, replica = replica, master
			},
			Flush: func() { eachMaster(t, servers, "FLUSHALL") },
			Save: func() func() {
				d := save(t, admin)
				return func() { d.restore(t, admin) }
			},
			Evict:        func(topic string) { evict(t, admin, prefix, "m", topic) },
			EvictEntries: func(topic string) { evict(t, admin, prefix, "s", topic) },
			Expire:       func(topic string) { evict(t, admin, prefix, "s", topic) },
			Cut: func() {
				eachMaster(t, servers, "CLIENT KILL TYPE pubsub")
				eachMaster(t, servers, "CLIENT KILL TYPE normal")
			},
		}
	})
}

func clusterOptions(nodes []*redistest.Server) *redis.ClusterOptions {
	o := &redis.ClusterOptions{
		DialTimeout: time.Second, ReadTimeout: time.Second, WriteTimeout: time.Second, DialerRetries: 1, DisableIdentity: true,
	}
	for _, s := range nodes {
		o.Addrs = append(o.Addrs, s.Addr())
	}
	return o
}

func TestRedisClusterConforms(t *testing.T) {
	nodes := redistest.Cluster(t, 3, 0)
	backplanetest.Run(t, func(t testing.TB) *backplanetest.Harness {
		admin := redis.NewClusterClient(clusterOptions(nodes))
		t.Cleanup(func() { admin.Close() })
		eachMaster(t, nodes, "FLUSHALL")
		ctx := context.Background()
		find := func(kind string) func(topic string) {
			return func(topic string) {
				n := 0
				err := admin.ForEachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
					keys, err := c.Keys(ctx, DefaultPrefix+"*}"+kind+"*:"+topic).Result()
					for _, key := range keys {
						n++
						c.Del(ctx, key)
					}
					return err
				})
				if err != nil || n == 0 {
					t.Fatalf("%d keys deleted, %v", n, err)
				}
			}
		}
		return &backplanetest.Harness{
			Open: func() backplane.Backplane {
				client := redis.NewClusterClient(clusterOptions(nodes))
				opts := quick(entries)
				opts.Partitions = 12
				plane, err := New(client, opts)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { plane.Close(); client.Close() })
				return plane
			},
			Entries: entries,
			Slack:   entries / 8,
			Flush:   func() { eachMaster(t, nodes, "FLUSHALL") },
			Save: func() func() {
				var mu sync.Mutex
				dumps := map[string]dump{}
				if err := admin.ForEachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
					d := save(t, c)
					mu.Lock()
					defer mu.Unlock()
					dumps[c.Options().Addr] = d
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				return func() {
					if err := admin.ForEachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
						mu.Lock()
						defer mu.Unlock()
						dumps[c.Options().Addr].restore(t, c)
						return nil
					}); err != nil {
						t.Fatal(err)
					}
				}
			},
			Evict:        find("m"),
			EvictEntries: find("s"),
			Expire:       find("s"),
			Cut: func() {
				eachMaster(t, nodes, "CLIENT KILL TYPE pubsub")
				eachMaster(t, nodes, "CLIENT KILL TYPE normal")
			},
		}
	})
}
