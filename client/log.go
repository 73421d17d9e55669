package client

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/internal/wire"
)

// log writes to the logger, if there is one.
func (l *sessions) log(ctx context.Context, level slog.Level, message string, attrs ...slog.Attr) {
	if l.Logger != nil {
		l.Logger.LogAttrs(ctx, level, message, attrs...)
	}
}

func (c *Client) log(level slog.Level, message string, attrs ...slog.Attr) {
	c.loop.log(c.ctx, level, message, attrs...)
}

// attrs are those of a failed dial.
func (e *DialError) attrs() []slog.Attr {
	list := []slog.Attr{slog.String("url", e.URL), slog.Int("attempt", e.Attempt)}
	if e.Status != 0 {
		list = append(list, slog.Int("status", e.Status))
	}
	if !e.Final {
		list = append(list, slog.Duration("wait", e.Wait.Round(time.Millisecond)))
	}
	return append(list, slog.String("err", e.reason()))
}

// attrs are those of a session that has ended with err.
func (s *Session) attrs(lasted time.Duration, err error) []slog.Attr {
	list := []slog.Attr{slog.String("url", s.URL), slog.Int("session", s.Number)}
	var closed websocket.CloseError
	said := errors.As(err, &closed)
	if said {
		list = append(list, slog.Int("code", int(closed.Code)), slog.String("reason", printable(closed.Reason, maxText)))
	}
	list = append(list, slog.Duration("lasted", lasted.Round(time.Millisecond)))
	var refusal *ServerError
	switch {
	case errors.As(err, &refusal):
		list = append(list, slog.String("err", refusal.Error()))
	case !said && err != nil:
		list = append(list, slog.String("err", describe(err)))
	}
	return list
}

// A throttle is the first time in a session that the server has refused something for one
// of its limits.
type throttle struct{ code, field, topic, message string }

// throttled keeps what the server says about a limit, if it says it for the first time in
// this session. The lock is held.
func (c *Client) throttled(f *wire.Frame) {
	switch f.Code {
	case wire.TooFast, wire.TooManyPending, wire.TooManyTopics, wire.TooLarge:
	default:
		return
	}
	if c.limited[f.Code] {
		return
	}
	c.limited[f.Code] = true
	c.throttles = append(c.throttles, throttle{f.Code, f.Field, f.Topic, f.Message})
}

// logThrottle says that the server has refused something for a limit, and which.
func (c *Client) logThrottle(s *Session, t throttle) {
	list := []slog.Attr{slog.Int("session", s.Number), slog.String("code", t.code)}
	if t.topic != "" {
		list = append(list, slog.String("topic", printable(t.topic, maxText)))
	}
	if limit, option := limitOf(t.message); option != "" {
		list = append(list, slog.String("limit", printable(limit, maxText)), slog.String("option", printable(option, maxText)))
	}
	c.log(slog.LevelInfo, "client: a limit of the server is reached", append(list, slog.String("message", printable(t.message, maxText)))...)
}

// limitOf returns the limit and the option of the server that a message names, as in "too many
// topics (128, gateway.Limits.Topics)" and "too many frames (50 a second, gateway.Limits.Frames)".
func limitOf(message string) (limit, option string) {
	before, after, ok := strings.Cut(message, ", gateway.")
	if !ok {
		return "", ""
	}
	end := strings.IndexFunc(after, func(r rune) bool { return r != '.' && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') })
	if end < 0 {
		end = len(after)
	}
	return before[strings.LastIndexByte(before, '(')+1:], "gateway." + strings.TrimRight(after[:end], ".")
}
