package client

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/heartbeat"
)

func TestErrorsSayWhatHasHappened(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&OptionError{"URLs[1]", "has no host"}, "client: URLs[1] has no host"},
		{&DialError{URL: "ws://a/b", Attempt: 2, Err: io.EOF}, "client: dial ws://a/b (attempt 2): EOF"},
		{&DialError{URL: "ws://a/b", Attempt: 2, Err: io.EOF, Wait: 1234567 * time.Microsecond}, "client: dial ws://a/b (attempt 2): EOF; next attempt in 1.235s"},
		{&DialError{URL: "ws://a/b", Attempt: 2, Status: 404, Final: true}, "client: dial ws://a/b (attempt 2): the server answered 404 Not Found; not tried again"},
		{&DialError{URL: "ws://a/b", Attempt: 2, Status: 599, Err: io.EOF}, "client: dial ws://a/b (attempt 2): the server answered 599"},
		{&DialError{URL: "ws://a/b", Attempt: 2, Err: errNudged}, "client: dial ws://a/b (attempt 2): told to connect anew"},
		{&DialError{URL: "ws://a/b", Attempt: 2}, "client: dial ws://a/b (attempt 2): unknown error"},
		{&EndError{URL: "ws://a/b", Err: websocket.CloseError{Code: 1008, Reason: "no"}}, `client: session with ws://a/b ended for good: status = StatusPolicyViolation and reason = "no"`},
		{&HeartbeatError{heartbeat.Verdict{Reason: heartbeat.NoAnswer, Silent: 35 * time.Second, Probes: 1}}, "client: connection found dead: no answer, silent for 35s, 1 probes"},
		{&HeartbeatError{heartbeat.Verdict{Reason: heartbeat.TooOld}}, "client: connection dropped by the heartbeat: too old"},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
	if !errors.Is(&DialError{Err: io.EOF}, io.EOF) || !errors.Is(&EndError{Err: io.EOF}, io.EOF) {
		t.Error("what they wrap cannot be seen")
	}
}

func TestDescribe(t *testing.T) {
	long := strings.Repeat("é", 300)
	for _, tt := range []struct {
		err     error
		secrets []string
		want    string
	}{
		{nil, nil, "unknown error"},
		{errors.New("client: once"), nil, "once"},
		{errors.New("a\r\nb\x00\u2028\xff"), nil, `a\r\nb\x00\u2028\xff`},
		{errors.New("\ufffd stays"), nil, "\ufffd stays"},
		{errors.New(long), nil, strings.Repeat("é", 256) + "…"},
		{errors.New("x" + long), nil, "x" + strings.Repeat("é", 255) + "…"}, // not half of one
		{errors.New("with abcd, and abc"), []string{"abcd", "abc", ""}, "with …, and abc"},
		{fmt.Errorf("outer: %w", &url.Error{Op: "Get", URL: "http://u:p@a/b?c=d", Err: io.EOF}), nil, `outer: Get "http://a/b": EOF`},
		{&url.Error{Op: "Get", URL: "http://a/?c", Err: &url.Error{Op: "parse", URL: "http://b/?d", Err: io.EOF}}, nil, `Get "http://a/": parse "http://b/": EOF`},
		{&url.Error{Op: "parse", URL: "\x7f?secret", Err: io.EOF}, nil, `parse "…": EOF`},
		{websocket.CloseError{Code: 1001, Reason: strings.Repeat("r", 123)}, nil, `status = StatusGoingAway and reason = "` + strings.Repeat("r", 123) + `"`},
	} {
		if got := describe(tt.err, tt.secrets...); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.err, got, tt.want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	for _, s := range []string{"", "plain", "a\nb\x1b[0m", "\xff\xfe", "\u202e", strings.Repeat("é", 100)} {
		f.Add(s, 64)
	}
	f.Fuzz(func(t *testing.T, s string, n int) {
		n = max(0, min(n, 1000))
		got := printable(s, n)
		for _, r := range got {
			if !unicode.IsPrint(r) && r != utf8.RuneError {
				t.Errorf("%q has %q", got, r)
			}
		}
		if len(got) > 10*n+len("…") || !utf8.ValidString(got) {
			t.Errorf("%d bytes of %d become %q", n, len(s), got)
		}
	})
}
