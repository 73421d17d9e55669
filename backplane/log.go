package backplane

import (
	"context"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"
)

// A logbook limits how often the Hub logs the same thing. The same is a message with the
// same text, usually that of an error, but for digits: they differ in ports and counts. It
// is logged the first time, the second, the fourth, and so on. A text that is new is
// logged at once. So the log shows each cause, and when it changes, but not one line for
// each of ten thousand topics.
type logbook struct {
	log *slog.Logger

	mu   sync.Mutex // guards seen. Nothing is locked or called under it
	seen map[notice]*times
}

type notice struct{ msg, text string }

type times struct {
	n    int
	last time.Time
}

// maxNotices is how many texts are told apart; the others count as one for each message.
// One that has not come for a while is new again.
const (
	maxNotices   = 64
	forgetNotice = time.Minute
)

// say logs a message, unless it is time to be silent about it. No lock is held. The
// attribute times counts, if it is not the first time.
func (l *logbook) say(level slog.Level, msg, text string, attrs ...any) {
	key := notice{msg, strings.Map(func(r rune) rune {
		if '0' <= r && r <= '9' {
			return -1
		}
		return r
	}, text)}
	now := time.Now()
	l.mu.Lock()
	if l.seen == nil {
		l.seen = map[notice]*times{}
	}
	if l.seen[key] == nil && len(l.seen) >= maxNotices {
		maps.DeleteFunc(l.seen, func(_ notice, x *times) bool { return now.Sub(x.last) >= forgetNotice })
		if len(l.seen) >= maxNotices {
			key.text = "" // of these there are only as many as messages
		}
	}
	x := l.seen[key]
	if x == nil || now.Sub(x.last) >= forgetNotice {
		x = &times{}
		l.seen[key] = x
	}
	x.n++
	x.last = now
	n := x.n
	l.mu.Unlock()
	if n&(n-1) != 0 {
		return
	}
	if n > 1 {
		attrs = append(attrs, "times", n)
	}
	l.log.Log(context.Background(), level, msg, attrs...)
}

// over says that a message is no longer true: the next time is the first again. It is
// not for what is said of many topics, some of which may still fail.
func (l *logbook) over(msg string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.seen, func(k notice, _ *times) bool { return k.msg == msg })
}

// What is said of work that fails.
const (
	cannotRead    = "cannot read a topic"
	cannotWatch   = "cannot watch topics"
	cannotCompare = "cannot compare heads"
)
