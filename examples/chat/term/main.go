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
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	neturl "net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

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
	name := flag.String("name", "", "who you are, 1 to 32 printable characters")
	url := flag.String("url", "ws://localhost:8080/ws", "of the chat")
	flag.Parse()
	wrong := check(*url, *name)
	if flag.NArg() > 0 {
		wrong = fmt.Errorf("there are flags only, and no %q", flag.Arg(0))
	}
	if wrong != nil {
		log.Printf("%v; -h shows all flags", wrong)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second one ends it at once
	if err := run(ctx, *url, *name, os.Stdin, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

// check says what is wrong with a URL or a name, before anybody is bothered with it.
func check(url, name string) error {
	n := utf8.RuneCountInString(name)
	unprintable := func(r rune) bool { // as in the chat, which decides
		return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co, unicode.Cs) || unicode.Is(unicode.Z, r) && r != ' ' || r == utf8.RuneError
	}
	if n < 1 || n > 32 || strings.TrimSpace(name) != name || strings.ContainsFunc(name, unprintable) {
		return errors.New("who are you? -name is 1 to 32 printable characters, as in -name anna")
	}
	u, err := neturl.Parse(url)
	switch {
	case err != nil:
		return fmt.Errorf("-url: %w", err)
	case u.Scheme != "ws" && u.Scheme != "wss" || u.Host == "":
		return fmt.Errorf("-url %s is not one of a WebSocket, as ws://localhost:8080/ws is", url)
	case strings.Trim(u.Path, "/") == "":
		return fmt.Errorf("-url %s leads to the page; the chat is at %s://%s/ws", url, u.Scheme, u.Host)
	}
	return nil
}

// A line is what is said in the room.
type line struct {
	From string `json:"from"`
	Text string `json:"text"`
}

// run is the client, until in or ctx ends or there is nothing more to be done.
func run(ctx context.Context, url, name string, in io.Reader, out io.Writer) error {
	u, err := neturl.Parse(url)
	if err = cmp.Or(check(url, name), err); err != nil {
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
	if refused := (*client.DialError)(nil); errors.As(err, &refused) && refused.Final && refused.Status != 0 {
		err = fmt.Errorf("%w: %s", err, reason(end, u))
	}
	return err
}

// reason is what the server answers to a plain request: a client of WebSockets has only the
// status of what was refused.
func reason(ctx context.Context, u *neturl.URL) string {
	plain := *u
	plain.Scheme = "http" + strings.TrimPrefix(u.Scheme, "ws")
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, plain.String(), nil)
	if err != nil {
		return err.Error()
	}
	request.Close = true
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(answer.Body, 200))
	return clean(strings.TrimSpace(string(text)))
}

// longest is how long a line may be that is read, in bytes. The server may take less.
const longest = 1 << 20

// speak publishes what comes in, line by line, and returns when all of it is answered.
func speak(ctx context.Context, c *client.Client, name string, in io.Reader, p *printer) error {
	var answers sync.WaitGroup
	var failed atomic.Int64
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, longest)
	for lines.Scan() {
		text := strings.TrimSpace(lines.Text())
		if !strings.ContainsFunc(text, func(r rune) bool { return !unicode.In(r, unicode.Z, unicode.Cc, unicode.Cf) }) {
			continue // there is nothing to be seen
		}
		data, err := json.Marshal(line{From: name, Text: text})
		if err != nil {
			return err
		}
		refused := func(outcome client.Outcome, err error) {
			failed.Add(1)
			p.print("--- %v: %q: %v", outcome, short(text), err)
		}
		pending, err := c.Send(ctx, room, client.Message{Data: data})
		if errors.Is(err, client.ErrTooLarge) {
			refused(client.NotStored, err) // and the next line may be shorter
			continue
		}
		if err != nil {
			return err
		}
		answers.Go(func() {
			if receipt, err := pending.Wait(ctx); err != nil && ctx.Err() == nil {
				refused(receipt.Outcome, err)
			}
		})
	}
	answers.Wait()
	err := lines.Err()
	if errors.Is(err, bufio.ErrTooLong) {
		err = fmt.Errorf("a line is longer than %d bytes, and nothing from there on was read", longest)
	}
	if n := failed.Load(); n > 0 {
		err = errors.Join(fmt.Errorf("%d lines were not acknowledged", n), err)
	}
	return err
}

// short is a text, or how it begins.
func short(text string) string {
	if r := []rune(text); len(r) > 60 {
		return string(r[:60]) + "…"
	}
	return text
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

// clean takes out what would do something to the terminal, or turn around what follows.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r < ' ', r >= 0x7f && r < 0xa0:
			return '·'
		case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
			return -1
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
	if p.quiet != nil {
		p.quiet.Stop() // that of the session before
	}
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
