package gateway

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"time"
)

const (
	debug = slog.LevelDebug
	info  = slog.LevelInfo
	warn  = slog.LevelWarn
)

// A pacer decides which lines of a log are written that clients can cause: of each
// message so many at once, and one a second.
type pacer struct {
	mu    sync.Mutex // guards all below
	paces map[string]*pace
}

type pace struct {
	level  float64 // lines that may be written at once
	at     time.Time
	hidden int // since the last that was written
}

// linesAtOnce is how many lines of one message are written at once.
const linesAtOnce = 10

// pass reports whether a line may be written now, and how many were not since the last.
func (p *pacer) pass(message string) (hidden int, ok bool) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.paces[message]
	if l == nil {
		l = &pace{level: linesAtOnce, at: now}
		p.paces[message] = l
	}
	l.level = min(linesAtOnce, l.level+now.Sub(l.at).Seconds())
	l.at = now
	if l.level < 1 {
		l.hidden++
		return 0, false
	}
	l.level--
	hidden, l.hidden = l.hidden, 0
	return hidden, true
}

// note writes a line that clients can cause, but not too often; then the next has "hidden",
// the number of those left out. The message is a constant.
func (g *Gateway) note(level slog.Level, message string, args ...any) {
	ctx := context.Background()
	if !g.log.Enabled(ctx, level) {
		return
	}
	hidden, ok := g.pacer.pass(message)
	if !ok {
		return
	}
	if hidden > 0 {
		args = append(args, "hidden", hidden)
	}
	g.log.Log(ctx, level, message, args...)
}

// maxError is how many bytes of an error's text are logged.
const maxError = 256

// clean makes text of a client fit for a log: quoted, and not long.
func clean(s string) string { return quoted(s, 64) }

// quoted makes a text fit for a log, which takes not much more than so many bytes there.
func quoted(s string, most int) string {
	q := strconv.QuoteToASCII(s[:min(len(s), most)])
	q = q[1 : len(q)-1]
	if len(s) > most || len(q) > most {
		return q[:min(len(q), most)] + "..."
	}
	return q
}
