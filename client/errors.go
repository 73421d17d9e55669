package client

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-ws/holdfast/heartbeat"
)

// An OptionError says what cannot be used of the arguments of a constructor, or of what
// [Options.Prepare] has put into a [Dial]. It is found before anything is dialled,
// and is final. What the field held is not repeated: it may be a secret.
type OptionError struct {
	Field  string // for example "url", "URLs[1]" or "Heartbeat.Interval"
	Reason string
}

func (e *OptionError) Error() string { return "client: " + e.Field + " " + e.Reason }

// A DialError says that an attempt to connect has failed. [Sessions] tries again, after
// Wait, unless Final is set.
//
// errors.Is and errors.As see through it, to errors of [Options.Prepare] and of the
// network. Its text is one line without secrets: of the URL it has no query and no user
// information. With the Status stands the beginning of what the server says, if that is plain
// text. Err is without the URL, too, but otherwise what others have written.
type DialError struct {
	URL     string        // scheme, host and path that were dialled
	Attempt int           // as in [Dial]
	Status  int           // of the server's answer; 0 if there was none
	Wait    time.Duration // until the next attempt; 0 if that is made at once, or never
	Final   bool          // there is no next attempt: this is the last error
	Err     error

	text       string
	answer     string        // the beginning of what the server said, fit for a line
	retryAfter time.Duration // what the server asked for; 0 = nothing
	everUp     bool          // there was a session before
	stripped   bool          // a WebSocket server has said that a proxy made something else of the handshake
	refreshed  bool          // the attempt had credentials made with Dial.Refresh
	ours       bool          // it failed before the server was asked
}

func (e *DialError) Error() string {
	text := fmt.Sprintf("client: dial %s (attempt %d): %s", e.URL, e.Attempt, e.reason())
	switch {
	case e.Final:
		text += "; not tried again"
	case e.Wait > 0:
		text += "; next attempt in " + e.Wait.Round(time.Millisecond).String()
	}
	return text
}

// reason returns what has failed, without what else there is in the error.
func (e *DialError) reason() string {
	switch {
	case e.Status != 0 && e.Status != http.StatusSwitchingProtocols && !errors.Is(e.Err, errRedirect):
		text := strings.TrimSpace("the server answered " + strconv.Itoa(e.Status) + " " + http.StatusText(e.Status))
		if e.answer != "" {
			text += ": " + e.answer
		}
		switch {
		case e.stripped && e.answer != "": // it says why
		case e.stripped:
			text += " (a proxy in between does not pass on the header Upgrade)"
		case e.Status == http.StatusUpgradeRequired:
			text += " (that is no WebSocket server but somebody in between)"
		}
		return text
	case e.text != "":
		return e.text
	}
	return describe(e.Err)
}

func (e *DialError) Unwrap() error { return e.Err }

// An EndError is the last error of [Sessions] after a session that ended in a way that
// makes another one useless: see [Decide]. Err is what the body gave to [Session.End], or
// a [*HeartbeatError]; [websocket.CloseStatus], errors.Is and errors.As see through.
type EndError struct {
	URL string // scheme, host and path
	Err error
}

func (e *EndError) Error() string {
	return fmt.Sprintf("client: session with %s ended for good: %s", e.URL, describe(e.Err))
}

func (e *EndError) Unwrap() error { return e.Err }

// A HeartbeatError is why a session ended that was found dead: the cause of
// [Session.Context], and what [Decide] and [Trace] get. The read that was under way fails
// with an error of the network instead.
type HeartbeatError struct{ Verdict heartbeat.Verdict }

func (e *HeartbeatError) Error() string {
	v := e.Verdict
	switch v.Reason {
	case heartbeat.NoAnswer, heartbeat.WriteBlocked:
		return fmt.Sprintf("client: connection found dead: %s, silent for %v, %d probes", v.Reason, v.Silent.Round(time.Millisecond), v.Probes)
	}
	return "client: connection dropped by the heartbeat: " + string(v.Reason)
}

// Causes of the ends of contexts.
var (
	errOver        = errors.New("client: the session is over")
	errUnsaid      = errors.New("client: the session was left without a reason")
	errNudged      = errors.New("client: told to connect anew")
	errWoke        = errors.New("client: the machine was suspended")
	errDialTimeout = errors.New("no answer in time")
	errRedirect    = errors.New("redirect refused")
)

// redact returns scheme, host and path of a URL, or "…" if it is none.
func redact(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return "…"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}

// maxText is how much is shown of a text that came from others, in bytes. Whatever the protocol
// allows fits: the reason of a close frame has 123 at most.
const maxText = 256

// describe returns the text of an error on one line, with the URLs that net/http puts into
// its errors redacted, and none of the secrets.
func describe(err error, secrets ...string) string {
	if err == nil {
		return "unknown error"
	}
	text := err.Error()
	var ue *url.Error
	for e := err; errors.As(e, &ue); e = ue.Err {
		text = strings.ReplaceAll(text, ue.URL, redact(ue.URL))
		quoted := strconv.Quote(ue.URL)
		text = strings.ReplaceAll(text, quoted[1:len(quoted)-1], redact(ue.URL))
	}
	text = hide(text, secrets)
	return printable(strings.TrimPrefix(text, "client: "), 2*maxText) // what a server says may stand in ours
}

// hide returns text without the secrets.
func hide(text string, secrets []string) string {
	for _, s := range secrets {
		if len(s) >= 4 { // what is shorter is no secret, and is found in the midst of words
			text = strings.ReplaceAll(text, s, "…")
		}
	}
	return text
}

// printable returns s, cut at n bytes, with everything escaped that could leave its line
// or change how the line looks.
func printable(s string, n int) string {
	cut := len(s) > n
	if cut {
		for n > 0 && !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n]
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError:
			if _, size := utf8.DecodeRuneInString(s[i:]); size == 1 {
				fmt.Fprintf(&b, `\x%02x`, s[i])
				continue
			}
			b.WriteRune(r)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		}
	}
	if cut {
		b.WriteString("…")
	}
	return b.String()
}
