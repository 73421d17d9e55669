// Term is a terminal client for the chat of examples/chat: the same room, the same
// messages, from package client.
//
//	go run ./examples/chat/term -name anna
//	echo "the build is done" | go run ./examples/chat/term -name ci
//
// What is typed is said. What others say is printed, what was missed while there was no
// connection marked with a "+", and whatever happens to the connection with "---". At the
// end of the input it waits until all that was typed is answered, and its exit status says
// whether it was.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	neturl "net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/client"
)

// room is the chat's topic, and history how many of its messages are shown first.
const (
	room    = "room"
	history = 50
)

// patience is how long answers are waited for after an interrupt.
const patience = 2 * time.Second

func main() {
	log.SetFlags(0)
	log.SetPrefix("term: ")
	name := flag.String("name", "", "who you are, 1 to 32 characters")
	url := flag.String("url", "ws://localhost:8080/ws", "of the chat")
	flag.Parse()
	if *name == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop) // a second one ends it at once
	if err := run(ctx, *url, *name, os.Stdin, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

// A line is what is said in the room.
type line struct {
	From string `json:"from"`
	Text string `json:"text"`
}

// run is the client, until in or ctx ends or there is nothing more to be done.
func run(ctx context.Context, url, name string, in io.Reader, out io.Writer) error {
	u, err := neturl.Parse(url)
	if err != nil {
		return err
	}
	query := u.Query()
	query.Set("user", name) // for the chat's front, which can take this user's network away
	u.RawQuery = query.Encode()
	p := &printer{out: out}
	defer p.close()
	c, err := client.New(u.String(), &client.Options{
		Prepare: func(_ context.Context, d *client.Dial) error {
			d.Token = neturl.PathEscape(name) // it goes into a header
			return nil
		},
		// One person, who sits and waits. (Thousands should not all come back in a second.)
		First:   time.Second,
		Stable:  time.Second,
		Backoff: backoff.Policy{Cap: 5 * time.Second},
		Trace:   p.trace(),
	})
	if err != nil {
		return err
	}
	sub, err := c.Subscribe(room, &client.SubscribeOptions{Last: history})
	if err != nil {
		return err
	}
	hearing, deafen := context.WithCancel(ctx)
	var hear sync.WaitGroup
	ended := make(chan error, 1)
	hear.Go(func() {
		err := listen(hearing, sub, p)
		if hearing.Err() == nil {
			ended <- err
		}
	})
	typed := make(chan error, 1)
	go func() { typed <- speak(ctx, c, name, in, p) }() // not waited for on an interrupt: it may be reading
	select {
	case err = <-typed:
	case err = <-ended:
	case <-ctx.Done():
	}
	deafen()
	hear.Wait()
	end, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if left := c.Close(end); left != nil && err == nil {
		err = fmt.Errorf("not all that was typed is acknowledged: %w", left)
	}
	return err
}

// speak publishes what comes in, line by line, and returns when all of it is answered.
func speak(ctx context.Context, c *client.Client, name string, in io.Reader, p *printer) error {
	var answers sync.WaitGroup
	var failed atomic.Int64
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		text := strings.TrimSpace(lines.Text())
		if text == "" {
			continue
		}
		data, err := json.Marshal(line{From: name, Text: text})
		if err != nil {
			return err
		}
		pending, err := c.Send(ctx, room, client.Message{Data: data})
		if err != nil {
			return err
		}
		answers.Go(func() {
			if receipt, err := pending.Wait(ctx); err != nil && ctx.Err() == nil {
				failed.Add(1)
				p.print("--- %v: %q: %v", receipt.Outcome, text, err)
			}
		})
	}
	answers.Wait()
	if n := failed.Load(); n > 0 {
		return fmt.Errorf("%d lines were not acknowledged", n)
	}
	return lines.Err()
}

// listen prints what is said.
func listen(ctx context.Context, sub *client.Subscription, p *printer) error {
	for e, err := range sub.All(ctx) {
		var l line
		switch {
		case err != nil:
			return err
		case e.Ephemeral: // somebody is typing
		case e.Reset != nil && e.Reset.Missed > 0:
			p.print("--- %d messages are missing here (%s)", e.Reset.Missed, e.Reset.Reason)
		case e.Reset != nil:
			p.print("--- messages may be missing here, and some may come again: %s", e.Reset.Reason)
		case json.Unmarshal(e.Data, &l) != nil || l.Text == "":
			p.print("    %s", clean(string(e.Data)))
		default:
			p.message(e.At, clean(l.From)+": "+clean(l.Text))
		}
	}
	return nil
}

// clean takes out what would do something to the terminal.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '·'
		}
		return r
	}, text)
}

// A printer prints messages, and what happens to the connection.
type printer struct {
	mu      sync.Mutex // guards out and all below
	out     io.Writer
	session int         // the number of
	since   time.Time   // when it began
	missed  int         // messages that came in it, and were said before
	quiet   *time.Timer // until it is said how many
	closed  bool
}

// quiet is how long nothing comes any more that was missed, before it is said how much
// that was.
const quiet = 300 * time.Millisecond

func (p *printer) print(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		fmt.Fprintf(p.out, format+"\n", args...)
	}
}

// close has nothing printed any more.
func (p *printer) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}

// message prints what was said, and marks it if that was while there was no connection.
func (p *printer) message(at time.Time, text string) {
	mark := ' '
	p.mu.Lock()
	if p.session > 1 && at.UnixMilli() < p.since.UnixMilli() {
		mark = '+'
		p.missed++
		p.quiet.Reset(quiet)
	}
	p.mu.Unlock()
	p.print("%s %c %s", at.Format("15:04:05"), mark, text)
}

// up begins a session.
func (p *printer) up(s *client.Session) {
	if s.Number == 1 {
		p.print("--- connected")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.session, p.since, p.missed = s.Number, time.Now(), 0
	if s.Number > 1 {
		p.quiet = time.AfterFunc(quiet, p.resumed)
	}
}

// resumed says what was missed.
func (p *printer) resumed() {
	p.mu.Lock()
	n := p.missed
	p.missed = 0
	p.mu.Unlock()
	p.print("--- connected again; messages that came meanwhile: %d", n)
}

// trace returns what prints what happens to the connection.
func (p *printer) trace() *client.Trace {
	return &client.Trace{
		Up: p.up,
		Down: func(_ *client.Session, err error, wait time.Duration) {
			if wait > 0 {
				p.print("--- connection lost (%s); reconnecting in %v", cause(err), wait.Round(10*time.Millisecond))
			}
		},
		DialDone: func(_ string, _ int, err error) {
			if failed := (*client.DialError)(nil); errors.As(err, &failed) && !failed.Final {
				p.print("--- no connection (%s); trying again in %v", cause(failed.Err), failed.Wait.Round(10*time.Millisecond))
			}
		},
	}
}

// cause is what an error ends with.
func cause(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+len(": "):]
	}
	return clean(text)
}
