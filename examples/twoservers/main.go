// Twoservers runs two server processes and a user on each, who chat through one
// Redis: "user A is connected to server 1, user B to server 2, how do they talk?"
// Then it kills the Redis, stops it, and kills a server, and counts what each user
// has seen.
//
//	go run ./examples/twoservers            # a redis-server of its own, if there is one
//	go run ./examples/twoservers -prompt    # you say what happens
//	go run ./examples/twoservers -redis redis://localhost:6379
//
// It ends with
//
//	--- FLUSHALL: Redis forgets everything
//	ann: RESET, epoch: what was said before is gone from Redis, and what may be missing cannot be had
//	bob: RESET, epoch: what was said before is gone from Redis, and what may be missing cannot be had
//	ann saw 26 of 26 messages, 0 of them twice, resets: 1
//	bob saw 26 of 26 messages, 0 of them twice, resets: 1
//	both in the same order
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/internal/redistest"
)

func main() {
	redisURL := flag.String("redis", "", "`URL` of a Redis that is there already; it is not killed then")
	prompt := flag.Bool("prompt", false, "ask what to do")
	serving := flag.Bool("serve", false, "be one of the servers; used by the program itself")
	flag.Parse()
	var err error
	if *serving {
		err = serve(*redisURL)
	} else {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		defer stop()
		err = run(ctx, os.Stdout, os.Stdin, *redisURL, *prompt)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "twoservers:", err)
		os.Exit(1)
	}
}

// A stage is all that runs.
type stage struct {
	out     io.Writer
	mu      sync.Mutex // guards out
	redis   *redistest.Server
	url     string
	servers [2]*process
	users   [2]*user
}

func (s *stage) print(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, format+"\n", args...)
}

// run sets the stage and plays, or has you play.
func run(ctx context.Context, out io.Writer, in io.Reader, redisURL string, prompt bool) error {
	s := &stage{out: out, url: redisURL}
	if s.url == "" {
		if _, err := exec.LookPath("redis-server"); err != nil {
			return errors.New("there is no redis-server on this machine: install it (Debian, Ubuntu: apt-get install redis-server; macOS: brew install redis), or give -redis URL")
		}
		dir, err := os.MkdirTemp("", "twoservers")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if s.redis, err = redistest.Launch(dir, "--appendonly", "yes", "--appendfsync", "always"); err != nil {
			return err
		}
		defer func() { s.redis.Kill() }()
		s.url = "redis://" + s.redis.Addr()
		s.print("started a redis-server of its own")
	}
	for i := range s.servers {
		p, err := start(s.url)
		if err != nil {
			return err
		}
		defer p.end()
		s.servers[i] = p
	}
	one, two := s.servers[0].addr, s.servers[1].addr
	s.users = [2]*user{newUser("ann", s.shorten(s.print), one, two), newUser("bob", s.shorten(s.print), two, one)}
	listening, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for _, u := range s.users {
		wg.Go(func() { u.listen(listening) })
		select {
		case <-u.ready:
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Second):
			return errors.New("a user cannot connect")
		}
	}
	s.print("ann is connected to server 1, bob to server 2")
	if prompt {
		return s.ask(ctx, in)
	}
	return s.play(ctx)
}

// shorten prints servers by their numbers.
func (s *stage) shorten(print func(string, ...any)) func(string, ...any) {
	names := strings.NewReplacer(s.servers[0].addr, "server 1", s.servers[1].addr, "server 2")
	return func(format string, args ...any) { print("%s", names.Replace(fmt.Sprintf(format, args...))) }
}

// A process is one of the servers.
type process struct {
	cmd  *exec.Cmd
	addr string
	in   io.Closer
	once sync.Once
}

func start(redisURL string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-serve", "-redis", redisURL)
	cmd.Env = append(os.Environ(), "TWOSERVERS_SERVE=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, in: in}
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		p.end()
		return nil, fmt.Errorf("a server did not start: %w", err)
	}
	p.addr = strings.TrimSpace(addr)
	return p, nil
}

// end kills the process, as kill -9 does.
func (p *process) end() {
	p.once.Do(func() {
		p.cmd.Process.Kill()
		p.in.Close()
		p.cmd.Wait()
	})
}

// play is what happens without a prompt.
func (s *stage) play(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	n := 0
	// chat has both say so many things, and waits until both have seen all of them.
	chat := func(count int, meanwhile func() error) error {
		done := make(chan error, 1)
		go func() {
			if meanwhile == nil {
				done <- nil
				return
			}
			done <- meanwhile()
		}()
		var texts []string
		for range count {
			n++
			u := s.users[n%2]
			text := fmt.Sprintf("message %d, by %s", n, u.name)
			texts = append(texts, text)
			if err := u.say(ctx, text); err != nil {
				return err
			}
			if meanwhile != nil {
				backoff.Sleep(ctx, 150*time.Millisecond)
			}
		}
		if err := <-done; err != nil {
			return err
		}
		for _, u := range s.users {
			for _, text := range texts {
				if err := u.sees(ctx, text); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := chat(2, nil); err != nil {
		return err
	}
	if s.redis != nil {
		s.print("--- kill -9 of Redis, which is back after a second")
		if err := chat(8, func() error {
			s.redis.Kill()
			backoff.Sleep(ctx, time.Second)
			return s.redis.Relaunch()
		}); err != nil {
			return err
		}
		s.print("--- Redis stands still for two seconds")
		if err := chat(8, func() error {
			s.redis.Pause()
			backoff.Sleep(ctx, 2*time.Second)
			s.redis.Resume()
			return nil
		}); err != nil {
			return err
		}
	}
	s.print("--- kill -9 of server 1, where ann is")
	if err := chat(6, func() error { s.servers[0].end(); return nil }); err != nil {
		return err
	}
	flushed := 0
	if s.redis != nil {
		s.print("--- FLUSHALL: Redis forgets everything")
		if _, err := s.redis.Do("FLUSHALL"); err != nil {
			return err
		}
		flushed = 1
		if err := chat(2, nil); err != nil {
			return err
		}
	}
	return s.summary(n, flushed)
}

// summary says what each user saw, and returns an error if that is not right.
func (s *stage) summary(said, resets int) error {
	var bad error
	for _, u := range s.users {
		u.mu.Lock()
		twice := 0
		for _, n := range u.seen {
			if n > 1 {
				twice++
			}
		}
		s.print("%s saw %d of %d messages, %d of them twice, resets: %d", u.name, len(u.seen), said, twice, len(u.resets))
		if len(u.seen) != said || twice > 0 || len(u.resets) != resets {
			bad = errors.New("that is not right")
		}
		u.mu.Unlock()
	}
	a, b := s.users[0], s.users[1]
	if strings.Join(a.order, "\n") != strings.Join(b.order, "\n") {
		return errors.New("they saw the messages in different orders")
	}
	s.print("both in the same order")
	return bad
}

const help = `ann TEXT, bob TEXT   say something
kill, start          Redis
pause, resume        Redis
flush                have Redis forget everything
server 1, server 2   kill that server
quit`

// ask has you play.
func (s *stage) ask(ctx context.Context, in io.Reader) error {
	s.print("%s", help)
	scanner := bufio.NewScanner(in)
	for scanner.Scan() && ctx.Err() == nil {
		word, rest, _ := strings.Cut(strings.TrimSpace(scanner.Text()), " ")
		var err error
		switch {
		case word == "ann" || word == "bob":
			u := s.users[0]
			if word == "bob" {
				u = s.users[1]
			}
			call, cancel := context.WithTimeout(ctx, 10*time.Second)
			err = u.say(call, rest)
			cancel()
		case word == "server" && (rest == "1" || rest == "2"):
			s.servers[rest[0]-'1'].end()
		case word == "quit":
			return nil
		case s.redis == nil && (word == "kill" || word == "start" || word == "pause" || word == "resume" || word == "flush"):
			err = errors.New("this Redis is not ours to hurt")
		case word == "kill":
			s.redis.Kill()
		case word == "start":
			err = s.redis.Relaunch()
		case word == "pause":
			s.redis.Pause()
		case word == "resume":
			s.redis.Resume()
		case word == "flush":
			_, err = s.redis.Do("FLUSHALL")
		default:
			s.print("%s", help)
		}
		if err != nil {
			s.print("%v", err)
		}
	}
	return scanner.Err()
}
