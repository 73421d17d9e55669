package backplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/holdfast-ws/holdfast/replay"
)

// A diary is a log as text, without times.
type diary struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (d *diary) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.b.Write(p)
}

func (d *diary) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(d, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// lines returns those with a text.
func (d *diary) lines(text string) (out []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for line := range strings.Lines(d.b.String()) {
		if strings.Contains(line, text) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

// With lines at powers of two only, the NOPERM of somebody who has changed the password
// was not seen behind the EOF of the restart.
func TestTheLogShowsAnErrorThatChangesAtOnce(t *testing.T) {
	for _, c := range []struct {
		what string
		fail func(b *tap, err func() error)
	}{
		{cannotRead, func(b *tap, err func() error) {
			b.onRead = func(context.Context, string, replay.Position, func() (Page, error)) (Page, error) {
				return Page{}, err()
			}
		}},
		{cannotWatch, func(b *tap, err func() error) {
			b.onAdd = func(context.Context, []string, func() error) error { return err() }
		}},
		{cannotCompare, func(b *tap, err func() error) {
			b.onHeads = func(context.Context, func() ([]replay.Position, error)) ([]replay.Position, error) { return nil, err() }
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTap(t, nil)
				var d diary
				h := hub(t, b, &Options{Logger: d.logger()})
				var mu sync.Mutex
				calls := 0
				b.set(func() {
					c.fail(b, func() error {
						mu.Lock()
						defer mu.Unlock()
						if calls++; calls <= 7 {
							return fmt.Errorf("read from port %d: EOF", 50000+calls) // the same error
						}
						return errors.New("NOPERM")
					})
				})
				b.Memory.Append(t.Context(), "x", Message{})
				go func() {
					if s, err := h.Subscribe(t.Context(), "x", nil); err == nil {
						s.Close()
					}
				}()
				var got []string
				for range 600 {
					time.Sleep(100 * time.Millisecond)
					mu.Lock()
					done := calls >= 8
					mu.Unlock()
					if done {
						break
					}
				}
				synctest.Wait()
				for _, line := range d.lines(c.what) {
					_, line, _ = strings.Cut(line, "err=")
					got = append(got, strings.ReplaceAll(line, `"`, ""))
				}
				want := []string{
					"read from port 50001: EOF", "read from port 50002: EOF times=2", "read from port 50004: EOF times=4", "NOPERM",
				}
				if diff := cmp.Diff(want, got[:min(len(got), len(want))]); diff != "" { // it may be too late to look
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		})
	}
}

// An outage is the same for all topics, and the next one is another.
func TestAnOutageOfManyTopicsIsAFewLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var d diary
		h := hub(t, b, &Options{Sweep: -1, Logger: d.logger()})
		for i := range 200 {
			defer subscribe(t, h, strconv.Itoa(i), nil).Close()
		}
		for outage := 1; outage <= 2; outage++ {
			b.set(func() {
				b.onRead = func(context.Context, string, replay.Position, func() (Page, error)) (Page, error) {
					return Page{}, errAway
				}
			})
			before := len(d.lines(cannotRead))
			for i := range 200 {
				b.sinks[0].Doorbell(strconv.Itoa(i))
			}
			time.Sleep(10 * time.Second)
			if n := len(d.lines(cannotRead)) - before; n < 5 || n > 20 {
				t.Errorf("%d lines in outage %d", n, outage)
			}
			first := 0
			for _, line := range d.lines(cannotRead)[before:] {
				if !strings.Contains(line, "times=") {
					first++
				}
				if !strings.Contains(line, "level=WARN") || !strings.Contains(line, "topic=") || !strings.Contains(line, errAway.Error()) {
					t.Errorf("outage %d: %s", outage, line)
				}
			}
			if first != 1 {
				t.Errorf("%d lines of outage %d have no count, want the first", first, outage)
			}
			b.set(func() { b.onRead = nil })
			time.Sleep(forgetNotice + 10*time.Second)
		}
	})
}

// While some reads fail and some succeed, each failure was the first again.
func TestAnOutageOfSomeTopicsIsAFewLinesThoughOthersRecover(t *testing.T) {
	const topics = 100
	for _, c := range []struct {
		what string
		fail func(b *tap, away func() bool)
	}{
		{cannotRead, func(b *tap, away func() bool) {
			b.onRead = func(_ context.Context, _ string, _ replay.Position, do func() (Page, error)) (Page, error) {
				if away() {
					return Page{}, errAway
				}
				return do()
			}
		}},
		{cannotWatch, func(b *tap, away func() bool) {
			b.onAdd = func(_ context.Context, _ []string, do func() error) error {
				if away() {
					return errAway
				}
				return do()
			}
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTap(t, nil)
				var d diary
				h := hub(t, b, &Options{Sweep: -1, Logger: d.logger()})
				var mu sync.Mutex
				calls := 0
				b.set(func() {
					c.fail(b, func() bool {
						mu.Lock()
						defer mu.Unlock()
						calls++
						return calls%2 == 1
					})
				})
				for i := range topics {
					subscribe(t, h, strconv.Itoa(i), nil).Close()
				}
				if lines := d.lines(c.what); len(lines) < 3 || len(lines) > 10 {
					t.Errorf("%d lines of %d calls, half of which have failed", len(lines), calls)
				}
			})
		})
	}
}

// Heads are compared by one for all topics: when it succeeds, the failure is over.
func TestAFailureToCompareHeadsIsOverInTheLogWhenItSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var d diary
		h := hub(t, b, &Options{Sweep: 5 * time.Second, Logger: d.logger()})
		defer subscribe(t, h, "x", nil).Close()
		for outage := 1; outage <= 3; outage++ {
			b.set(func() {
				b.onHeads = func(context.Context, func() ([]replay.Position, error)) ([]replay.Position, error) {
					return nil, errAway
				}
			})
			time.Sleep(7 * time.Second)
			b.set(func() { b.onHeads = nil })
			time.Sleep(7 * time.Second)
			first := 0
			for _, line := range d.lines(cannotCompare) {
				if !strings.Contains(line, "times=") {
					first++
				}
			}
			if first != outage {
				t.Errorf("%d lines without a count after %d outages", first, outage)
			}
		}
	})
}

func TestAHistoryThatHasChangedIsLoggedWithTheReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var d diary
		h := hub(t, b, &Options{Sweep: -1, Logger: d.logger()})
		defer subscribe(t, h, "x", nil).Close()
		ten(t, h, "x")
		b.rewind("x", 3)
		b.sinks[0].Doorbell("x")
		synctest.Wait()
		want := []string{`level=WARN msg="the history has changed" topic=x reason=ahead had=10 head=7`}
		if diff := cmp.Diff(want, d.lines("")); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestAnOutboxThatIsFullIsLoggedWithTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTap(t, nil)
		var d diary
		h := hub(t, b, &Options{Sweep: -1, Logger: d.logger(), Outbox: &Outbox{Messages: 1}})
		b.down(false)
		queue(t, h, "x", "1")
		for range 100 {
			h.Publish(t.Context(), "x", Message{})
		}
		lines := d.lines("outbox is full")
		if len(lines) != 7 || lines[0] != `level=WARN msg="the outbox is full" limit=1 option=backplane.Outbox.Messages` {
			t.Errorf("%d lines, the first is %q", len(lines), lines)
		}
	})
}

// However many texts there are, a line for each would be too many.
func TestTheLogbookIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		l := logbook{log: d.logger()}
		for i := range 10000 {
			l.say(slog.LevelInfo, "message", strings.Repeat("x", i))
		}
		if n := len(d.lines("")); n > maxNotices+15 || len(l.seen) > maxNotices+1 {
			t.Errorf("%d lines, %d texts", n, len(l.seen))
		}
		time.Sleep(forgetNotice)
		l.say(slog.LevelInfo, "later", "text")
		if len(l.seen) != 1 {
			t.Errorf("%d texts are remembered", len(l.seen))
		}
	})
}
