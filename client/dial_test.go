package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/internal/memnet"
)

func TestPrepareSaysWhatIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, drop)
		o := r.options()
		o.Subprotocols = []string{"one", "two"}
		o.Prepare = func(_ context.Context, d *Dial) error {
			if d.URL != "ws://server.test/feed?a=b" || len(d.Header) != 0 || d.Header == nil || d.Token != "" || d.Refresh {
				t.Errorf("%+v", d)
			}
			d.URL = fmt.Sprintf("ws://server.test/feed?ticket=%d", d.Attempt)
			d.Header.Set("X-One", "1")
			d.Header.Set("Authorization", "Basic abc") // the token is stronger
			d.Token = "tok.en-1"
			return nil
		}
		for s := range Sessions(t.Context(), "ws://server.test/feed?a=b", o) {
			if s != nil && s.Number == 2 {
				break
			}
		}
		for _, q := range r.requests() {
			if q.query != "ticket=1" || q.header.Get("X-One") != "1" || q.header.Get("Authorization") != "Bearer tok.en-1" || q.header.Get("Sec-Websocket-Protocol") != "one,two" {
				t.Errorf("the server was asked %+v", q)
			}
		}
		if len(r.requests()) != 2 {
			t.Errorf("%d requests", len(r.requests()))
		}
	})
}

func TestWhatPrepareLeavesIsChecked(t *testing.T) {
	for field, spoil := range map[string]func(*Dial){
		"Dial.URL":   func(d *Dial) { d.URL = "ftp://server.test/?SECRET" },
		"Dial.Token": func(d *Dial) { d.Token = "SECRET\n" },
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, drop)
			o := r.options()
			o.Prepare = func(_ context.Context, d *Dial) error { spoil(d); return nil }
			_, errs := loop(t.Context(), "ws://server.test", o)
			var option *OptionError
			var failed *DialError
			if len(errs) != 1 || !errors.As(errs[0], &option) || option.Field != field || !errors.As(errs[0], &failed) || !failed.Final || r.network.Dials() != 0 {
				t.Fatalf("%s: %v, %d dials", field, errs, r.network.Dials())
			}
			if strings.Contains(errs[0].Error(), "SECRET") {
				t.Errorf("%s: %v", field, errs[0])
			}
		})
	}
}

func TestBadOptionsAreFinalBeforeAnythingIsDone(t *testing.T) {
	never := &Options{Prepare: func(context.Context, *Dial) error { t.Error("Prepare was called"); return nil }}
	with := func(f func(*Options)) *Options { o := *never; f(&o); return &o }
	const good = "wss://server.test/"
	for _, tt := range []struct {
		field string
		url   string
		o     *Options
	}{
		{"url", "", never},
		{"url", "server.test", never},
		{"url", "//server.test/SECRET", never},
		{"url", "ftp://server.test/?SECRET", never},
		{"url", "ws://", never},
		{"url", "ws:///SECRET", never},
		{"url", "ws://:80/SECRET", never},
		{"url", "ws://user:SEC%RET@server.test", never},
		{"url", "ws://server.test:SECRET/", never},
		{"url", "ws://server.test/\x00SECRET", never},
		{"URLs[0]", good, with(func(o *Options) { o.URLs = []string{"SECRET"} })},
		{"URLs[1]", good, with(func(o *Options) { o.URLs = []string{good, "ws://"} })},
		{"DialTimeout", good, with(func(o *Options) { o.DialTimeout = -1 })},
		{"QueueMessages", good, with(func(o *Options) { o.QueueMessages = 1 })},
		{"QueueBytes", good, with(func(o *Options) { o.QueueBytes = 1 })},
		{"Full", good, with(func(o *Options) { o.Full = Reject })},
		{"Age", good, with(func(o *Options) { o.Age = 1 })},
		{"BufferMessages", good, with(func(o *Options) { o.BufferMessages = 1 })},
		{"BufferBytes", good, with(func(o *Options) { o.BufferBytes = 1 })},
		{"Hello", good, with(func(o *Options) { o.Hello = 1 })},
		{"OnState", good, with(func(o *Options) { o.OnState = func(State) {} })},
		{"Heartbeat.Interval", good, with(func(o *Options) { o.Heartbeat.Interval = time.Millisecond })},
		{"Heartbeat.Timeout", good, with(func(o *Options) { o.Heartbeat.Timeout = -1 })},
		{"Heartbeat.MaxAge", good, with(func(o *Options) { o.Heartbeat.MaxAge = -1 })},
	} {
		_, errs := loop(t.Context(), tt.url, tt.o)
		var option *OptionError
		if len(errs) != 1 || !errors.As(errs[0], &option) || option.Field != tt.field || Decide(errs[0]) != Final {
			t.Errorf("%q: errors %v, want one about %s", tt.url, errs, tt.field)
			continue
		}
		if text := errs[0].Error(); strings.Contains(text, "SEC") || !strings.HasPrefix(text, "client: "+tt.field+" ") {
			t.Errorf("%q: %s", tt.url, text)
		}
	}
}

func TestOptionsAreCopied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, drop)
		o := r.options()
		o.URLs = []string{"ws://other.test"}
		o.Subprotocols = []string{"one"}
		seq := Sessions(t.Context(), "ws://server.test", o)
		o.URLs[0], o.Subprotocols[0] = "ws://wrong.test", "wrong"
		*o.HTTPClient = http.Client{}
		*o = Options{}
		n := 0
		for range 2 { // and it can be ranged over again
			for s, err := range seq {
				if err != nil {
					t.Fatal(err)
				}
				if n++; s.Number == 5 {
					break
				}
			}
		}
		if n != 10 {
			t.Errorf("%d sessions", n)
		}
		hosts := map[string]int{}
		for _, q := range r.requests() {
			hosts[q.host]++
			if q.header.Get("Sec-Websocket-Protocol") != "one" {
				t.Errorf("subprotocol %s", q.header.Get("Sec-Websocket-Protocol"))
			}
		}
		if len(hosts) != 2 || hosts["other.test"] == 0 || hosts["server.test"] == 0 {
			t.Errorf("hosts %v", hosts)
		}
	})
}

func TestDefaults(t *testing.T) {
	l, err := newSessions("ws://server.test", nil)
	if err != nil {
		t.Fatal(err)
	}
	if l.DialTimeout != 20*time.Second || l.ReadLimit != 32768 || l.Decide(nil) != Retry {
		t.Errorf("%+v", l)
	}
	// Those of Backoff, First, Stable and Heartbeat are their packages'; that they are used is
	// shown by the tests of losses, of First and of dead servers.
}

// A dial has twenty seconds, and more when the attempts are further apart than that.
func TestTheDialTimeoutGrowsWithTheBackoff(t *testing.T) {
	for _, tt := range []struct {
		name    string
		timeout time.Duration
		policy  backoff.Policy
		want    []time.Duration
	}{
		{"by default", 0, backoff.Policy{}, []time.Duration{20e9, 20e9, 20e9, 20e9, 20e9, 20e9, 20e9, 30e9, 30e9}},
		{"as it is set", 5 * time.Second, backoff.Policy{}, []time.Duration{5e9, 5e9, 5e9, 5e9, 5e9, 8e9, 16e9, 30e9, 30e9}},
		{"but not for ever", 0, backoff.Policy{Base: time.Minute, Cap: time.Hour}, []time.Duration{20e9, 60e9, 120e9, 120e9}},
	} {
		synctest.Test(t, func(t *testing.T) {
			network := memnet.New(memnet.Settings{Swallow: true})
			defer network.Close()
			var start time.Time
			var got []time.Duration
			o := &Options{
				HTTPClient:  &http.Client{Transport: &http.Transport{DialContext: network.DialContext}},
				DialTimeout: tt.timeout, Backoff: tt.policy,
				Trace: &Trace{DialStart: func(string, int) { start = time.Now() }},
			}
			for _, err := range Sessions(t.Context(), "ws://server.test", o) {
				got = append(got, time.Since(start))
				if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), fmt.Sprintf("no answer in time (%v)", got[len(got)-1])) {
					t.Errorf("%s: %v", tt.name, err)
				}
				if len(got) == len(tt.want) {
					break
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%s: the dials took (-want +got):\n%s", tt.name, diff)
			}
		})
	}
}

// Prepare has part in the timeout.
func TestPrepareIsBoundedAsADialIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &Options{Prepare: func(ctx context.Context, _ *Dial) error { <-ctx.Done(); return errors.New("too late") }}
		start := time.Now()
		for _, err := range Sessions(t.Context(), "ws://server.test", o) {
			if d := time.Since(start); d != DefaultDialTimeout || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "prepare: no answer in time") {
				t.Errorf("%v after %v", err, d)
			}
			break
		}
	})
}

func TestALimiterIsAskedBeforeEachAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, drop)
		o := r.options()
		n := 0
		full := errors.New("full")
		o.Limiter = limiter(func(ctx context.Context) error {
			if n++; n == 2 {
				return full
			}
			return backoff.Sleep(ctx, time.Minute) // longer than a dial may take
		})
		var order []string
		o.Prepare = func(context.Context, *Dial) error { order = append(order, "prepare"); return nil }
		for s, err := range Sessions(t.Context(), "ws://server.test", o) {
			switch {
			case err == nil:
				order = append(order, "session")
			case errors.Is(err, full):
				order = append(order, "full")
			default:
				t.Fatal(err)
			}
			if s != nil && s.Number == 2 {
				break
			}
		}
		if diff := cmp.Diff([]string{"prepare", "session", "full", "prepare", "session"}, order); diff != "" {
			t.Errorf("the order of events (-want +got):\n%s", diff)
		}
		if n != 3 || r.network.Dials() != 2 {
			t.Errorf("%d calls, %d dials", n, r.network.Dials())
		}
	})
}

func TestRedirects(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		ok       bool
	}{
		{"https://a.test/", "https://a.test/b", true},
		{"https://a.test/", "https://A.TEST:443/b", true},
		{"http://a.test:80/", "http://a.test/b", true},
		{"http://a.test/", "https://a.test/b", true}, // to the better
		{"http://a.test:80/", "https://a.test:443/b", true},
		{"http://a.test:8080/", "https://a.test/b", false},
		{"http://a.test/", "https://a.test:8443/b", false},
		{"https://a.test/", "http://a.test/b", false}, // to the worse
		{"https://a.test/", "http://a.test:443/b", false},
		{"https://a.test/", "ftp://a.test/b", false},
		{"https://a.test/", "https://b.test/", false},
		{"https://a.test/", "https://www.a.test/", false},
		{"https://www.a.test/", "https://a.test/", false},
		{"https://a.test/", "https://a.test.b.test/", false},
		{"https://a.test/", "https://a.test:444/", false},
		{"https://a.test/", "https://a.test@b.test/", false},
		{"http://127.0.0.1:1/", "http://127.0.0.1:2/", false},
	} {
		from, to := mustParse(t, tt.from), mustParse(t, tt.to)
		err := new(handshake).checkRedirect(nil)(&http.Request{URL: to}, []*http.Request{{URL: from}})
		if (err == nil) != tt.ok {
			t.Errorf("from %s to %s: %v", tt.from, tt.to, err)
		}
	}
	// The caller's own rule is asked as well.
	asked := errors.New("asked")
	u := mustParse(t, "http://a.test/")
	err := new(handshake).checkRedirect(func(*http.Request, []*http.Request) error { return asked })(&http.Request{URL: u}, []*http.Request{{URL: u}})
	if err != asked {
		t.Error(err)
	}
}

func mustParse(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestCredentialsAreNotTakenElsewhere(t *testing.T) {
	for _, tt := range []struct {
		location string
		want     string // in the error; empty = followed
		asked    int
	}{
		{"ws://evil.test/x?q=PRIVATE", "redirect refused: to http://evil.test/x, which is another server", 1},
		{"//evil.test/x", "another server", 1},
		{"http://server.test:81/", "another server", 1},
		{"/elsewhere", "", 2},
		{"/again", "more than 10", 10},
		{"http://%zz/PRIVATE", "redirect refused: its Location cannot be parsed", 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, func(n int, w http.ResponseWriter, req *http.Request) {
				if req.URL.Path == "/elsewhere" {
					drop(n, w, req)
					return
				}
				answer(302, "Location", tt.location)(n, w, req)
			})
			o := r.options()
			o.Prepare = func(_ context.Context, d *Dial) error { d.Token = "TOKEN"; return nil }
			var last error
			for _, err := range Sessions(t.Context(), "ws://server.test/?ticket=TICKET", o) {
				if last = err; err == nil {
					break
				}
			}
			var failed *DialError
			switch {
			case tt.want == "":
				if last != nil {
					t.Errorf("%s: %v", tt.location, last)
				}
			case !errors.As(last, &failed) || !failed.Final || failed.Status != 302 || !strings.Contains(last.Error(), tt.want):
				t.Errorf("%s: %+v, want %q", tt.location, last, tt.want)
			case strings.Contains(last.Error(), "PRIVATE"):
				t.Errorf("%s: %v", tt.location, last)
			}
			got := r.requests()
			if len(got) != tt.asked {
				t.Errorf("%s: %d requests, want %d", tt.location, len(got), tt.asked)
			}
			for _, q := range got {
				if q.host != "server.test" {
					t.Errorf("%s: %s was asked, with %v", tt.location, q.host, q.header)
				}
			}
			r.expectQuiet(t)
		})
	}
}

// A chain returns err and all that it wraps.
func chain(err error) (all []error) {
	for err != nil {
		all = append(all, err)
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range joined.Unwrap() {
				all = append(all, chain(e)...)
			}
			return all
		}
		err = errors.Unwrap(err)
	}
	return all
}

// Whatever goes wrong, neither errors nor logs nor traces have a query, a password or a
// token in them.
func TestSecretsAreToldToNobody(t *testing.T) {
	const secret, token, key = "S3CR3T", "T0K3N", "K3YK3Y"
	hijack := func(text string) func(int, http.ResponseWriter, *http.Request) {
		return func(_ int, w http.ResponseWriter, _ *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				io.WriteString(c, text)
				c.Close()
			}
		}
	}
	tests := []struct {
		name    string
		handler func(int, http.ResponseWriter, *http.Request)
		change  func(*rig, *Options)
		want    string // in an error or a log
	}{
		{"success", drop, nil, "connected"},
		{"not found", answer(404), nil, "404 Not Found"},
		{"busy", answer(503, "Retry-After", "5"), nil, "503 Service Unavailable"},
		{"refused", nil, func(r *rig, _ *Options) { r.network.Set(memnet.Settings{Refuse: true}) }, "connection refused"},
		{"no answer", nil, func(r *rig, _ *Options) { r.network.Set(memnet.Settings{Swallow: true}) }, "no answer in time"},
		{"garbage", hijack("what?\r\n\r\n"), nil, "malformed HTTP"},
		{"nothing", hijack(""), nil, "EOF"},
		{"no upgrade", hijack("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n"), nil, "does not contain"},
		{"redirect", answer(302, "Location", "http://evil.test/?a="+secret), nil, "redirect refused"},
		{"bad redirect", answer(302, "Location", "http://%zz/?a="+secret), nil, "redirect refused"},
		{"token service", nil, func(r *rig, o *Options) {
			o.Prepare = func(context.Context, *Dial) error {
				return fmt.Errorf("token: %w", &url.Error{Op: "Get", URL: "https://id.test/?key=" + key, Err: syscall.ECONNREFUSED})
			}
		}, "https://id.test/"},
		{"a transport that talks", nil, func(_ *rig, o *Options) {
			o.HTTPClient = &http.Client{Transport: talkative{}}
		}, "cannot send"},
		{"goodbye", closeWith(1001, "bye"), nil, "bye"},
		{"final goodbye", closeWith(1008, "no"), nil, "StatusPolicyViolation"},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			handler := tt.handler
			if handler == nil {
				handler = drop
			}
			r := newRig(t, handler)
			o := r.options()
			o.Prepare = func(_ context.Context, d *Dial) error {
				d.Token = token
				return nil
			}
			var out bytes.Buffer
			o.Logger = slog.New(slog.NewJSONHandler(&out, nil))
			o.Trace = &Trace{
				DialStart: func(url string, n int) { fmt.Fprintln(&out, "start", url, n) },
				DialDone:  func(url string, n int, err error) { fmt.Fprintln(&out, "done", url, n, err) },
				Up:        func(s *Session) { fmt.Fprintln(&out, "up", s.URL, s.Header) },
				Down:      func(_ *Session, err error, wait time.Duration) { fmt.Fprintln(&out, "down", err, wait) },
			}
			if tt.change != nil {
				tt.change(r, o)
			}
			n := 0
			var errs []error
			for s, err := range Sessions(t.Context(), "ws://user:pw"+secret+"@server.test/path?token="+secret+"%20x&b="+secret+"#"+secret, o) {
				if err != nil {
					errs = append(errs, err)
				} else {
					read(s)
				}
				if n++; n == 3 {
					break
				}
			}
			for _, err := range errs {
				for i, e := range chain(err) {
					if strings.Contains(tt.name, "that talks") && i > 0 {
						break // what others have written stays as it is, within
					}
					if _, ok := e.(*url.Error); ok {
						break // that of Prepare
					}
					if tt.name == "token service" && i > 0 {
						break
					}
					fmt.Fprintf(&out, "%v %+v\n", e, e)
				}
			}
			text := out.String()
			for _, s := range []string{secret, "%20x", token, key} {
				if strings.Contains(text, s) {
					t.Errorf("%s: %s in\n%s", tt.name, s, text)
				}
			}
			if !strings.Contains(text, tt.want) {
				t.Errorf("%s: not %q in\n%s", tt.name, tt.want, text)
			}
		})
	}
}

// talkative is a transport whose errors repeat the request.
type talkative struct{}

func (talkative) RoundTrip(req *http.Request) (*http.Response, error) {
	return nil, fmt.Errorf("cannot send %s with %s", req.URL, req.Header.Get("Authorization"))
}

func TestWhatTheServerSaysStaysOnOneLine(t *testing.T) {
	reason := "first\nsecond\x1b[31m red \u202e right to left " + strings.Repeat("x", 60)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(n int, w http.ResponseWriter, req *http.Request) {
			code := websocket.StatusGoingAway
			if n > 1 {
				code = websocket.StatusPolicyViolation
			}
			closeWith(code, reason)(n, w, req)
		})
		o := r.options()
		var out bytes.Buffer
		o.Logger = slog.New(plainHandler{&out})
		_, errs := loop(t.Context(), "ws://server.test", o)
		if len(errs) != 1 {
			t.Fatal(errs)
		}
		fmt.Fprintln(&out, errs[0])
		if strings.ContainsAny(out.String(), "\x1b\u202e\r") || strings.Count(out.String(), "\n") != 5 {
			t.Errorf("not five clean lines:\n%q", out.String())
		}
		if n := strings.Count(out.String(), `first\nsecond\x1b[31m red \u202e right to left `+strings.Repeat("x", 60)); n != 3 {
			t.Errorf("the reason is there %d times:\n%s", n, out.String())
		}
		if !strings.Contains(out.String(), " code=1001 reason=first") || !strings.Contains(out.String(), " code=1008 reason=first") {
			t.Errorf("without the code:\n%s", out.String())
		}
	})
}

// plainHandler is a careless one: it writes what it gets.
type plainHandler struct{ w io.Writer }

func (plainHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h plainHandler) WithAttrs([]slog.Attr) slog.Handler     { return h }
func (h plainHandler) WithGroup(string) slog.Handler          { return h }
func (h plainHandler) Handle(_ context.Context, r slog.Record) error {
	fmt.Fprint(h.w, r.Level, " ", r.Message)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprint(h.w, " ", a.Key, "=", a.Value)
		return true
	})
	_, err := fmt.Fprintln(h.w)
	return err
}

// The default client, and one for TLS, on real sockets.
func TestOnRealSockets(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/missing" {
			http.NotFound(w, req)
			return
		}
		echo(0, w, req)
	})
	quiet := log.New(io.Discard, "", 0)
	for _, kind := range []string{"http", "http with a client", "https", "https with h2"} {
		server := httptest.NewUnstartedServer(handler)
		server.Config.ErrorLog = quiet
		var o *Options
		if !strings.HasPrefix(kind, "https") {
			server.Start()
			if kind != "http" {
				o = &Options{HTTPClient: &http.Client{}}
			}
		} else {
			server.EnableHTTP2 = kind == "https with h2"
			server.StartTLS()
			o = &Options{HTTPClient: server.Client()}
		}
		for s, err := range Sessions(t.Context(), server.URL, o) {
			if err != nil {
				t.Fatal(kind, err)
			}
			if err := s.Write(s.Context(), websocket.MessageText, []byte("hello")); err != nil {
				t.Error(kind, err)
			}
			if _, data, err := s.Read(s.Context()); err != nil || string(data) != "hello" {
				t.Errorf("%s: %q, %v", kind, data, err)
			}
			break
		}
		var failed *DialError
		_, errs := loop(t.Context(), server.URL+"/missing", o)
		if len(errs) != 1 || !errors.As(errs[0], &failed) || failed.Status != 404 || !failed.Final {
			t.Errorf("%s: %v", kind, errs)
		}
		if strings.HasPrefix(kind, "https") {
			for _, err := range Sessions(t.Context(), server.URL, nil) {
				var unknown *tls.CertificateVerificationError
				if !errors.As(err, &failed) || failed.Final || !errors.As(err, &unknown) {
					t.Errorf("%s: an unknown certificate: %v", kind, err)
				}
				break
			}
		}
		server.Close() // waits for connections that are still open
	}
}

// A transport of another kind is used as it is; its connections are seen by the heartbeat
// all the same.
func TestAnyTransportWillDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, echo)
		o := r.options()
		inner := o.HTTPClient.Transport
		used := 0
		o.HTTPClient.Transport = roundTripper(func(req *http.Request) (*http.Response, error) {
			used++
			return inner.RoundTrip(req)
		})
		for s, err := range Sessions(t.Context(), "ws://server.test", o) {
			if err != nil {
				t.Fatal(err)
			}
			r.network.Links()[0].Blackhole(memnet.Both)
			err := read(s)
			var dead *HeartbeatError
			if !errors.As(context.Cause(s.Context()), &dead) {
				t.Errorf("%v, %v", err, context.Cause(s.Context()))
			}
			break
		}
		if used != 1 {
			t.Errorf("used %d times", used)
		}
		r.expectQuiet(t)
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// cities is a network of several servers, by host name.
func cities(rigs map[string]*rig) *Options {
	return &Options{HTTPClient: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			return rigs[host].network.DialContext(ctx, network, address)
		},
	}}}
}

func TestAllServersAreTriedBeforeAWait(t *testing.T) {
	first := map[string]bool{}
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			rigs := map[string]*rig{}
			for _, name := range []string{"a", "b", "c"} {
				rigs[name] = newRig(t, drop)
				rigs[name].network.Set(memnet.Settings{Refuse: true})
			}
			o := cities(rigs)
			o.URLs = []string{"ws://b", "ws://c"}
			o.Backoff = backoff.Policy{Fixed: 1}
			var rounds strings.Builder
			var tried []string
			for _, err := range Sessions(t.Context(), "ws://a", o) {
				var failed *DialError
				if !errors.As(err, &failed) {
					t.Fatal(err)
				}
				tried = append(tried, failed.URL)
				fmt.Fprint(&rounds, failed.Wait, " ")
				if len(tried) == 9 {
					break
				}
			}
			if want := "0s 0s 500ms 0s 0s 1s 0s 0s 2s "; rounds.String() != want {
				t.Errorf("waited %s, want %s", rounds.String(), want)
			}
			first[tried[0]] = true
			for i := 0; i < 9; i += 3 {
				round := slices.Sorted(slices.Values(tried[i : i+3]))
				if len(slices.Compact(round)) != 3 {
					t.Errorf("round %v", tried[i:i+3])
				}
			}
		})
	}
	if len(first) != 3 {
		t.Errorf("the first is always one of %v", first)
	}
}

// Without a token it is no use to try another server: there is a wait after each attempt.
func TestTheTokenServiceIsNotAskedForEachServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &Options{
			URLs:    []string{"ws://b", "ws://c"},
			Backoff: backoff.Policy{Fixed: 1},
			Prepare: func(context.Context, *Dial) error { return errors.New("away") },
		}
		var waits []time.Duration
		for _, err := range Sessions(t.Context(), "ws://a", o) {
			var failed *DialError
			if !errors.As(err, &failed) {
				t.Fatal(err)
			}
			if waits = append(waits, failed.Wait); len(waits) == 4 {
				break
			}
		}
		if fmt.Sprint(waits) != "[500ms 1s 2s 4s]" {
			t.Errorf("waited %v", waits)
		}
	})
}

func TestAfterALossOthersComeFirst(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			rigs := map[string]*rig{"a": newRig(t, hold(time.Minute)), "b": newRig(t, hold(time.Minute))}
			o := cities(rigs)
			o.URLs = []string{"ws://b"}
			last := ""
			for s, err := range Sessions(t.Context(), "ws://a", o) {
				if err != nil {
					t.Fatal(err)
				}
				if s.URL == last {
					t.Errorf("session %d is with %s again", s.Number, last)
				}
				last = s.URL
				if s.Number == 4 {
					break
				}
				read(s)
			}
		})
	}
	// And if the others are away, it is the turn of the one that was lost, without a wait.
	synctest.Test(t, func(t *testing.T) {
		rigs := map[string]*rig{"a": newRig(t, hold(time.Minute)), "b": newRig(t, drop)}
		rigs["b"].network.Set(memnet.Settings{Refuse: true})
		o := cities(rigs)
		o.URLs = []string{"ws://b"}
		var got []string
		for s, err := range Sessions(t.Context(), "ws://a", o) {
			var failed *DialError
			if errors.As(err, &failed) {
				got = append(got, failed.URL+" "+failed.Wait.String())
				continue
			}
			if s.Number == 2 {
				break
			}
			got = nil
			read(s)
		}
		if fmt.Sprint(got) != "[ws://b 0s]" {
			t.Errorf("between two sessions: %v", got)
		}
	})
}

// What one server asks for holds for it alone.
func TestRetryAfterIsOneServersOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rigs := map[string]*rig{"a": newRig(t, answer(503, "Retry-After", "600")), "b": newRig(t, answer(500))}
		o := cities(rigs)
		o.URLs = []string{"ws://b"}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		loop(ctx, "ws://a", o)
		a, b := rigs["a"].requests(), rigs["b"].requests()
		for i := 1; i < len(a); i++ {
			if d := a[i].at.Sub(a[i-1].at); d < 10*time.Minute {
				t.Errorf("a was dialled after %v", d)
			}
		}
		if len(a) < 4 || len(a) > 6 || len(b) < 100 {
			t.Errorf("%d dials of a, %d of b", len(a), len(b))
		}
	})
	synctest.Test(t, func(t *testing.T) { // when all have asked, the first to be ready counts
		rigs := map[string]*rig{"a": newRig(t, answer(503, "Retry-After", "600")), "b": newRig(t, answer(503, "Retry-After", "60"))}
		o := cities(rigs)
		o.URLs = []string{"ws://b"}
		n := 0
		start := time.Now()
		for _, err := range Sessions(t.Context(), "ws://a", o) {
			if n++; n == 3 {
				var failed *DialError
				if d := time.Since(start); !errors.As(err, &failed) || failed.URL != "ws://b" || d < time.Minute || d > 2*time.Minute+time.Second {
					t.Errorf("%v after %v", err, d)
				}
				break
			}
		}
	})
}

// A server that refuses a client says why, and nobody ever saw it.
func TestWhatARefusalSays(t *testing.T) {
	for _, tt := range []struct{ why, kind, body, want string }{
		{"a gateway", "text/plain; charset=utf-8", "Something hides Hijack.\n", "501 Not Implemented: Something hides Hijack."},
		{"several lines", "text/plain", "one\r\n\ttwo\x1b[31m", `501 Not Implemented: one two\x1b[31m`},
		{"long", "text/plain", strings.Repeat("x", 5000), "501 Not Implemented: " + strings.Repeat("x", maxText) + "…"},
		{"secrets", "text/plain", "no token-1234 nor query-1234", "501 Not Implemented: no … nor …"},
		{"a page", "text/html", "<h1>Nothing</h1>", "501 Not Implemented"},
		{"nothing", "text/plain", "", "501 Not Implemented"},
		{"what, it does not say", "", "\x00\x01", "501 Not Implemented"},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
				w.Header()["Content-Type"] = []string{tt.kind}
				w.WriteHeader(501)
				io.WriteString(w, tt.body)
			})
			o := r.options()
			o.Prepare = func(_ context.Context, d *Dial) error { d.Token = "token-1234"; return nil }
			o.Decide = func(error) Verdict { return Final }
			_, errs := loop(t.Context(), "ws://server.test/?q=query-1234", o)
			want := "client: dial ws://server.test/ (attempt 1): the server answered " + tt.want + "; not tried again"
			if len(errs) != 1 || errs[0].Error() != want {
				t.Errorf("%s: %v\nwant %s", tt.why, errs, want)
			}
			r.expectQuiet(t)
		})
	}
}

// A proxy that did not pass on Upgrade was not named, and what a proxy had said of its own was
// taken for the server's.
func TestA426SaysWhoseItIs(t *testing.T) {
	for _, tt := range []struct {
		reason, body string
		header       []string
		final        bool
		want         string
	}{
		{"a gateway behind a proxy that takes Upgrade out of both", "This is for WebSockets.", nil, true,
			"the server answered 426 Upgrade Required: This is for WebSockets.; not tried again"},
		{"a gateway behind a proxy that speaks HTTP/1.0", "A proxy in front of this server speaks HTTP/1.0 to it. A WebSocket needs HTTP/1.1.", []string{"Sec-WebSocket-Protocol", "holdfast.v1"}, true,
			"the server answered 426 Upgrade Required: A proxy in front of this server speaks HTTP/1.0 to it. A WebSocket needs HTTP/1.1.; not tried again"},
		{"another server", "", []string{"Sec-WebSocket-Version", "13"}, true,
			"the server answered 426 Upgrade Required (a proxy in between does not pass on the header Upgrade)"},
		{"a proxy that wants HTTP/2", "use HTTP/2", []string{"Upgrade", "h2c"}, false,
			"the server answered 426 Upgrade Required: use HTTP/2 (that is no WebSocket server but somebody in between)"},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, func(n int, w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Content-Type", "text/plain")
				answer(426, tt.header...)(n, w, req)
				io.WriteString(w, tt.body)
			})
			_, err := first(t.Context(), "ws://server.test", r.options())
			var failed *DialError
			if !errors.As(err, &failed) || failed.Final != tt.final || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v", tt.reason, err)
			}
		})
	}
}

// A connection that ended between two parts of a message, where the WebSocket library begins
// to read anew, made a whole message of what had come.
func TestAnEndInTheMiddleOfAMessageIsAnEnd(t *testing.T) {
	for _, interval := range []time.Duration{0, -1} { // with and without heartbeat
		for _, after := range []int{0, 1, 2, 4, 4 + 1, 4 + 512, 4 + 4096, 4 + 4999} {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, accept(func(ctx context.Context, c *websocket.Conn) {
					c.Read(ctx)
					c.Write(ctx, websocket.MessageText, bytes.Repeat([]byte("x"), 5000)) // with a header of 4 bytes
				}))
				o := r.options()
				o.Heartbeat.Interval = interval
				for s := range Sessions(t.Context(), "ws://server.test", o) {
					r.network.Links()[0].EndAfter(memnet.Down, after)
					s.Write(s.Context(), websocket.MessageText, []byte("go on"))
					if _, data, err := s.Read(s.Context()); !errors.Is(err, io.ErrUnexpectedEOF) || websocket.CloseStatus(err) != -1 {
						t.Errorf("cut after %d bytes: a message of %d bytes, %v", after, len(data), err)
					}
					break
				}
			})
		}
	}
	// Nor is it one between two fragments.
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, accept(func(ctx context.Context, c *websocket.Conn) {
			c.Read(ctx)
			w, err := c.Writer(ctx, websocket.MessageText)
			if err == nil {
				w.Write(bytes.Repeat([]byte("x"), 10_000)) // more than its buffer
			}
		}))
		for s := range Sessions(t.Context(), "ws://server.test", r.options()) {
			s.Write(s.Context(), websocket.MessageText, []byte("go on"))
			if _, data, err := s.Read(s.Context()); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("one fragment: a message of %d bytes, %v", len(data), err)
			}
			break
		}
	})
}
