package client

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/heartbeat"
)

func TestDecide(t *testing.T) {
	closed := func(code websocket.StatusCode) error {
		return fmt.Errorf("failed to get reader: %w", websocket.CloseError{Code: code, Reason: "so it is"})
	}
	dial := func(err error) error { return &DialError{URL: "ws://server.test", Attempt: 1, Err: err} }
	for _, tt := range []struct {
		reason string
		err    error
		want   Verdict
	}{
		{"nothing", nil, Retry},
		{"an option", &OptionError{"url", "is bad"}, Final},
		{"an option found at a dial", dial(&OptionError{"Dial.URL", "is bad"}), Final},
		{"network", dial(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}), Retry},
		{"DNS", dial(&net.DNSError{Err: "no such host", IsNotFound: true}), Retry},
		{"timeout", dial(os.ErrDeadlineExceeded), Retry},
		{"a certificate that has expired", dial(x509.CertificateInvalidError{Reason: x509.Expired}), Retry},
		{"a certificate of nobody we know", dial(x509.UnknownAuthorityError{}), Retry},
		{"a certificate of somebody else", dial(x509.HostnameError{Certificate: &x509.Certificate{}}), Retry},
		{"Prepare", dial(errors.New("prepare: no token")), Retry},
		{"no close frame", io.EOF, Retry},
		{"reset", fmt.Errorf("read: %w", syscall.ECONNRESET), Retry},
		{"closed on our side", net.ErrClosed, Retry},
		{"the heartbeat", &HeartbeatError{heartbeat.Verdict{Reason: heartbeat.NoAnswer}}, Retry},
		{"too old", &HeartbeatError{heartbeat.Verdict{Reason: heartbeat.TooOld}}, Retry},
		{"nothing was said", errUnsaid, Retry},
		{"too big", fmt.Errorf("read: %w", websocket.ErrMessageTooBig), Final},
		{"an EndError says the same as what it wraps", &EndError{Err: closed(1008)}, Final},
	} {
		if got := Decide(tt.err); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.reason, got, tt.want)
		}
	}

	codes := map[websocket.StatusCode]Verdict{
		1002: Final, 1003: Final, 1007: Final, 1008: Final, 1009: Final, 1010: Final,
		4400: Final, 4401: Refresh, 4403: Final, 4406: Final,
	}
	for code := websocket.StatusCode(0); code < 5000; code++ {
		if got := Decide(closed(code)); got != codes[code] {
			t.Errorf("close code %d: %v, want %v", code, got, codes[code])
		}
	}
	for status := range 1000 {
		want := Retry
		switch {
		case status == 401 || status == 403:
			want = Refresh
		case status == 408 || status == 425 || status == 426 || status == 429:
		case status >= 300 && status < 500:
			want = Final
		}
		if got := Decide(&DialError{Status: status, Err: io.EOF}); got != want {
			t.Errorf("status %d: %v, want %v", status, got, want)
		}
		if status == 404 || status == 410 || status == 421 {
			want = Retry
		}
		if got := Decide(&DialError{Status: status, Err: io.EOF, everUp: true}); got != want {
			t.Errorf("status %d after a session: %v, want %v", status, got, want)
		}
	}
}

// The table in the documentation says what the code does.
func TestTheTableInTheDocumentationIsTrue(t *testing.T) {
	text, err := os.ReadFile("decide.go")
	if err != nil {
		t.Fatal(err)
	}
	numbers := regexp.MustCompile(`^//\t((?:[0-9]{3,4})(?:, [0-9]{3,4})*) +(Retry|Refresh|Final)\b`)
	rows := 0
	for line := range strings.Lines(string(text)) {
		m := numbers.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		rows++
		for _, n := range strings.Split(m[1], ", ") {
			k, err := strconv.Atoi(n)
			if err != nil {
				t.Fatal(err)
			}
			got := Decide(&DialError{Status: k})
			if len(n) == 4 {
				got = Decide(websocket.CloseError{Code: websocket.StatusCode(k)})
			}
			if got.String() != strings.ToLower(m[2]) {
				t.Errorf("%d is %v, and not as in: %s", k, got, line)
			}
		}
	}
	if rows != 9 {
		t.Errorf("%d rows have numbers, want 9", rows)
	}
}

// Each verdict, through the loop: what a server answers or closes with, and how often it is
// dialled because of that.
func TestVerdictsThroughTheLoop(t *testing.T) {
	refuse := func(status int) func(int, http.ResponseWriter, *http.Request) { return answer(status) }
	for _, tt := range []struct {
		name    string
		handler func(int, http.ResponseWriter, *http.Request)
		final   bool
	}{
		{"200", refuse(200), false},
		{"204", refuse(204), false},
		{"302 without Location", refuse(302), true},
		{"400", refuse(400), true},
		{"404", refuse(404), true},
		{"408", refuse(408), false},
		{"425", refuse(425), false},
		{"426 of a proxy", refuse(426), false},
		{"426 of a server", answer(426, "Upgrade", "websocket"), true},
		{"429", refuse(429), false},
		{"500", refuse(500), false},
		{"502", refuse(502), false},
		{"503", refuse(503), false},
		{"504", refuse(504), false},
		{"1000", closeWith(1000, ""), false},
		{"1001", closeWith(1001, ""), false},
		{"1002", closeWith(1002, ""), true},
		{"1003", closeWith(1003, ""), true},
		{"1005", closeWith(1005, ""), false},
		{"1007", closeWith(1007, ""), true},
		{"1008", closeWith(1008, ""), true},
		{"1009", closeWith(1009, ""), true},
		{"1010", closeWith(1010, ""), true},
		{"1011", closeWith(1011, ""), false},
		{"1012", closeWith(1012, ""), false},
		{"1013", closeWith(1013, ""), false},
		{"1014", closeWith(1014, ""), false},
		{"3000", closeWith(3000, ""), false},
		{"4000", closeWith(4000, ""), false},
		{"4400", closeWith(4400, ""), true},
		{"4403", closeWith(4403, ""), true},
		{"4406", closeWith(4406, ""), true},
		{"4429", closeWith(4429, ""), false},
		{"no close frame", drop, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, tt.handler)
			n := 0
			var last error
			for s, err := range Sessions(t.Context(), "ws://server.test", r.options()) {
				if last = err; s != nil {
					read(s)
				}
				if n++; n == 5 {
					break
				}
			}
			if final := len(r.requests()) == 1; final != tt.final {
				t.Errorf("%s: dialled %d times, the last error is %v", tt.name, len(r.requests()), last)
			}
			if tt.final && Decide(last) != Final {
				t.Errorf("%s: the last error does not tell: %v", tt.name, last)
			}
			r.expectQuiet(t)
		})
	}
}

func TestTheDecisionMayBeAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(n int, w http.ResponseWriter, req *http.Request) {
			switch n {
			case 1:
				answer(404)(n, w, req) // an ingress without its backend, say
			default:
				closeWith(1000, "done")(n, w, req) // and here 1000 does mean done
			}
		})
		o := r.options()
		o.Decide = func(err error) Verdict {
			var failed *DialError
			switch {
			case errors.As(err, &failed) && failed.Status == 404:
				return Retry
			case websocket.CloseStatus(err) == websocket.StatusNormalClosure:
				return Final
			}
			return Decide(err)
		}
		sessions, errs := loop(t.Context(), "ws://server.test", o)
		if sessions != 1 || len(errs) != 2 || websocket.CloseStatus(errs[1]) != websocket.StatusNormalClosure {
			t.Errorf("%d sessions, %v", sessions, errs)
		}
	})
}

func TestVerdictsHaveNames(t *testing.T) {
	for v, want := range map[Verdict]string{Retry: "retry", Refresh: "refresh", Final: "final", 7: "Verdict(7)"} {
		if v.String() != want {
			t.Errorf("%s, want %s", v, want)
		}
	}
}
