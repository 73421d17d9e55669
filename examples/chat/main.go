// Chat is a room on several servers that can be broken while one looks: two nodes, a
// front proxy that spreads connections over them, and one backplane.
//
//	go run ./examples/chat
//	go run ./examples/chat -nodes 3 -redis redis://localhost:6379
//	go run ./examples/chat/term -name anna     # from a terminal
//	go run ./examples/chat -check              # without eyes
//
// Then open http://localhost:8080/ in a few tabs and windows, and push the buttons: they
// take your network away, kill and drain nodes, and restart all of them. Nothing is
// missing afterwards, and nothing is there twice. The control API behind the buttons is
// for demonstrations: who reaches the address can use it. When all nodes are killed the
// memory survives: it stands for the Redis that there would be.
//
// With -check, clients talk while all of that happens, and it is counted what each has
// got. The exit status is 0 only if the promise was kept, and not if that could not be
// judged because the backplane is gone. It ends with
//
//	     fault  times  sent  acked  received  replayed  repeated  missing  resets
//	  (before)      0   103    103      2060         0         0        0       0
//	     drain      2   218    218      4360       943         0        0       0
//	      kill      2   218    218      4360       710         0        0       0
//	      lose      2   225    225      4500       307         0        0       0
//	   restart      2   224    224      4480      2020         0        0       0
//	     total      8   988    988     19760      3980         0        0       0
//	20 clients, 2 nodes, memory backplane, 8 faults, seed 1: everybody got every acknowledged message once, in one order
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	neturl "net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/backplane/redisplane"
	"github.com/holdfast-ws/holdfast/replay"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("chat: ")
	o, k, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err != nil {
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	if k != nil {
		err = k.run(ctx, o)
	} else {
		err = run(ctx, o)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// parse reads the command line. The check is nil without -check. What is wrong it says to
// out, too.
func parse(args []string, out io.Writer) (o options, k *check, err error) {
	o.timing = timings
	k = &check{out: os.Stdout, progress: os.Stderr, answer: answered, settle: time.Minute}
	f := flag.NewFlagSet("chat", flag.ContinueOnError)
	f.SetOutput(out)
	f.StringVar(&o.addr, "addr", "localhost:8080", "where to listen; who reaches it can use the control API, which is for demos")
	f.IntVar(&o.nodes, "nodes", 2, "how many nodes, 1 to 16")
	f.StringVar(&o.redis, "redis", "", "`URL` of a Redis, as in redis://localhost:6379; without it the backplane is in memory")
	checking := f.Bool("check", false, "have clients talk while all of that happens, and judge what they have seen; the exit status is 0 if the promise was kept")
	f.IntVar(&k.clients, "clients", 20, "with -check: how many, 1 to 200")
	f.DurationVar(&k.duration, "for", 20*time.Second, "with -check: how long they talk, at least 1s")
	f.Uint64Var(&k.seed, "seed", 0, "with -check: which faults, as an earlier run has printed it; 0 for others each time")
	if err = f.Parse(args); err != nil {
		return o, nil, err
	}
	switch {
	case f.NArg() > 0:
		err = fmt.Errorf("there are flags only, and no %q", f.Arg(0))
	case o.nodes < 1 || o.nodes > 16:
		err = errors.New("-nodes is 1 to 16")
	case k.clients < 1 || k.clients > 200:
		err = errors.New("-clients is 1 to 200")
	case k.duration < time.Second:
		err = errors.New("-for is 1s or more")
	}
	f.Visit(func(set *flag.Flag) {
		switch set.Name {
		case "clients", "for", "seed":
			if !*checking {
				err = cmp.Or(err, fmt.Errorf("-%s is for -check only", set.Name))
			}
		case "addr":
			if *checking {
				err = cmp.Or(err, errors.New("-addr does nothing with -check, which listens where nobody comes"))
			}
		}
	})
	if err != nil {
		fmt.Fprintf(out, "chat: %v; -h shows all flags\n", err)
		return o, nil, err
	}
	if k.seed == 0 {
		k.seed = mathrand.Uint64()
	}
	if !*checking {
		k = nil
	}
	return o, k, nil
}

// Options of a chat.
type options struct {
	addr   string
	nodes  int
	redis  string
	prefix string // of keys in Redis; empty for the default
	timing timing
	open   opener // if not nil, what nodes stand on instead
}

// A timing says how long what is done to the chat lasts.
type timing struct {
	lose    time.Duration // a user's network is lost
	dead    time.Duration // a node that was killed or drained is down
	restart time.Duration // all nodes are down
}

var timings = timing{lose: 5 * time.Second, dead: 3 * time.Second, restart: time.Second}

// run is the chat, until ctx ends.
func run(ctx context.Context, o options) error {
	c, err := start(o)
	if err != nil {
		return err
	}
	nodes := "1 node"
	if n := len(c.nodes); n > 1 {
		nodes = fmt.Sprintf("%d nodes", n)
	}
	log.Printf("%s  (%s, %s backplane)", c.url, nodes, c.backplane)
	hint := "go run ./examples/chat/term -name anna"
	if o.addr != "localhost:8080" {
		hint += " -url ws" + c.url[len("http"):] + "ws"
	}
	log.Printf("or in a terminal: %s", hint)
	select {
	case err = <-c.served:
		c.served <- nil
	case <-ctx.Done():
	}
	return errors.Join(err, c.close())
}

// A chat is all that runs.
type chat struct {
	url       string
	backplane string // memory or redis
	open      opener // connects to it
	timing    timing
	nodes     []*node
	front     *front
	server    *http.Server
	served    chan error // when the front's server has ended
	memory    *backplane.Memory
	cancel    context.CancelFunc
	wg        sync.WaitGroup // of the nodes
}

// start starts the nodes and the front.
func start(o options) (*chat, error) {
	listener, err := net.Listen("tcp", o.addr)
	if err != nil {
		return nil, fmt.Errorf("%w; choose another address with -addr", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &chat{timing: o.timing, cancel: cancel, served: make(chan error, 1), backplane: "memory"}
	c.memory = backplane.NewMemory(&backplane.MemoryOptions{Limits: limits})
	c.open = func() (backplane.Backplane, func() error, error) {
		return c.memory, func() error { return nil }, nil
	}
	if o.redis != "" {
		c.backplane = "redis"
		c.open = func() (backplane.Backplane, func() error, error) { return openRedis(o.redis, o.prefix) }
	}
	if o.open != nil {
		c.open = o.open
	}
	c.front = &front{hold: o.timing.lose, ctx: ctx, pipes: map[*pipe]struct{}{}, held: map[string]int{}}
	for i := range o.nodes {
		n := &node{name: fmt.Sprintf("node-%d", i+1), addr: anyPort, open: c.open, ctx: ctx, wg: &c.wg, state: down}
		c.nodes = append(c.nodes, n)
		if err = n.begin(); err != nil {
			break
		}
	}
	if err == nil && o.redis != "" {
		err = pingRedis(o.redis)
	}
	c.front.nodes = c.nodes
	c.server = &http.Server{Handler: c.site(), ReadHeaderTimeout: 5 * time.Second}
	if err != nil {
		listener.Close()
		c.served <- nil
		c.close()
		return nil, err
	}
	go func() { c.served <- c.server.Serve(listener) }()
	host, _, _ := net.SplitHostPort(o.addr)
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	if ip := net.ParseIP(host); host == "" || ip.IsUnspecified() {
		host = "localhost"
	}
	c.url = "http://" + net.JoinHostPort(host, port) + "/"
	return c, nil
}

// node returns the node of that name, or nil.
func (c *chat) node(name string) *node {
	for _, n := range c.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

// close ends all: the clients are told to come back, for there may be another chat soon.
func (c *chat) close() error {
	c.cancel()
	for _, n := range c.nodes {
		n.settle()
	}
	c.wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var all sync.WaitGroup
	for _, n := range c.nodes {
		all.Go(func() { n.close(ctx) })
	}
	all.Wait()
	err := c.server.Close()
	c.front.close()
	<-c.served
	return errors.Join(err, c.memory.Close())
}

// limits are those of a room to which people come back after lunch.
func limits(string) replay.Limits { return replay.Limits{Age: 12 * time.Hour} }

// silence ends the log of go-redis: what matters comes as errors.
var silence = sync.OnceFunc(logging.Disable)

// dialRedis makes a client for a Redis, which does not connect yet.
func dialRedis(url string) (*redis.Client, error) {
	silence()
	o, err := redis.ParseURL(url)
	if leaky := (*neturl.Error)(nil); errors.As(err, &leaky) {
		err = errors.New("not a URL, as in redis://localhost:6379") // theirs shows the password
	}
	if err != nil {
		return nil, fmt.Errorf("-redis: %w", err)
	}
	// Who looks wants to see within seconds that something happens.
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout = time.Second, time.Second, time.Second
	return redis.NewClient(o), nil
}

// openRedis is what a node does that stands on a Redis.
func openRedis(url, prefix string) (backplane.Backplane, func() error, error) {
	client, err := dialRedis(url)
	if err != nil {
		return nil, nil, err
	}
	plane, err := redisplane.New(client, &redisplane.Options{Prefix: prefix, Limits: limits, Probe: time.Second, Timeout: 2 * time.Second})
	if err != nil {
		client.Close()
		return nil, nil, err
	}
	return plane, func() error { return errors.Join(plane.Close(), client.Close()) }, nil
}

// pingRedis says whether there is a Redis that will do.
func pingRedis(url string) error {
	plane, done, err := openRedis(url, "")
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return plane.(*redisplane.Plane).Ping(ctx)
}

// redisRun returns what names the run of a Redis: after a restart it is another.
func redisRun(ctx context.Context, url string) (string, error) {
	client, err := dialRedis(url)
	if err != nil {
		return "", err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	info, err := client.Info(ctx, "server").Result()
	_, id, ok := strings.Cut(info, "run_id:")
	if err == nil && !ok {
		err = errors.New("the Redis does not say which run it is")
	}
	id, _, _ = strings.Cut(id, "\r\n")
	return id, err
}
