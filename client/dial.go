package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/heartbeat"
	"github.com/holdfast-ws/holdfast/internal/retryafter"
)

const (
	maxRedirects = 10

	// maxHeader is how many bytes of headers of an answer are read, instead of 10 MiB.
	maxHeader = 64 << 10
)

// handshaker returns the HTTP client to dial with, whose Transport is only a pattern.
func handshaker(c *http.Client) *http.Client {
	if c == nil {
		// Not http.DefaultTransport: its pool outlives the loop, and its timeout for TLS
		// handshakes is shorter than the queue in front of an overloaded server.
		return &http.Client{Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			MaxResponseHeaderBytes: maxHeader,
		}}
	}
	own := *c
	if own.Transport == nil {
		own.Transport = http.DefaultTransport
	}
	return &own
}

// dial makes one attempt to connect to e. The error is a *DialError.
func (r *redial) dial(ctx context.Context, e *endpoint) (*Session, error) {
	r.attempt++
	d := &Dial{URL: e.url, Header: http.Header{}, Refresh: r.refresh, Attempt: r.attempt}
	r.Trace.dialStart(redact(d.URL), d.Attempt)
	fail := func(ours bool, err error) error {
		return newDialError(d, ours, err)
	}
	if r.Limiter != nil {
		if err := r.Limiter.Wait(ctx); err != nil {
			return nil, fail(true, fmt.Errorf("limiter: %w", err))
		}
	}

	timeout := max(r.DialTimeout, min(r.window, maxDialTimeout))
	timed, stopTimer := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w (%v): %w", errDialTimeout, timeout, context.DeadlineExceeded))
	defer stopTimer()
	dialCtx, cancel := context.WithCancelCause(timed)
	defer cancel(nil)
	unwatch := r.watchDial(dialCtx, cancel)
	defer unwatch()

	if r.Prepare != nil {
		err := r.Prepare(dialCtx, d)
		if dialCtx.Err() != nil {
			err = context.Cause(dialCtx)
		}
		if err != nil {
			return nil, fail(true, fmt.Errorf("prepare: %w", err))
		}
		if err := d.check(); err != nil {
			return nil, fail(true, err)
		}
	}
	header := d.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	if d.Token != "" {
		header.Set("Authorization", "Bearer "+d.Token)
	}

	s := &Session{URL: redact(d.URL), Attempt: d.Attempt, refresh: d.Refresh}
	if r.monitor != nil {
		peer, err := r.monitor.NewPeer(&heartbeat.Options{Value: s})
		if err != nil {
			return nil, fail(true, err)
		}
		s.peer = peer
	}
	h := &handshake{ctx: dialCtx, base: r.client.Transport, peer: s.peer}
	defer func() {
		cancel(nil) // before stop waits for dials, which end with it
		h.stop()
	}()
	httpClient := *r.client
	httpClient.Transport = h
	httpClient.CheckRedirect = h.checkRedirect(r.client.CheckRedirect)
	o := &websocket.DialOptions{HTTPClient: &httpClient, HTTPHeader: header, Subprotocols: r.Subprotocols}
	if s.peer != nil {
		o.OnPingReceived = func(context.Context, []byte) bool { return s.peer.Pinged() }
	}
	conn, resp, err := websocket.Dial(dialCtx, d.URL, o)
	if err == nil && !h.release() {
		conn.CloseNow()
		err = context.Cause(dialCtx)
	}
	if err != nil {
		if dialCtx.Err() != nil {
			err = context.Cause(dialCtx)
		}
		var ue *url.Error
		if errors.As(err, &ue) {
			// Without the URL and its query, which a redirect may repeat. (There is no type for that.)
			if err = ue.Err; strings.HasPrefix(err.Error(), "failed to parse Location header") {
				err = fmt.Errorf("%w: its Location cannot be parsed", errRedirect)
			}
		}
		failed := newDialError(d, false, err)
		failed.Status = h.status
		failed.answer = said(resp, d.secrets())
		failed.stripped = h.status == http.StatusUpgradeRequired && aboutWebSockets(h.header, failed.answer)
		if h.status == http.StatusTooManyRequests || h.status == http.StatusServiceUnavailable {
			now := time.Now()
			if date, err := http.ParseTime(h.header.Get("Date")); err == nil {
				now = date
			}
			failed.retryAfter = retryafter.Parse(h.header.Get("Retry-After"), now, max(backoff.MaxHint, r.Backoff.Cap))
		}
		return nil, failed
	}
	conn.SetReadLimit(r.ReadLimit)
	s.Conn, s.raw, s.Header = conn, h.raw, resp.Header
	return s, nil
}

// check says what cannot be used of what Prepare has left.
func (d *Dial) check() error {
	for _, c := range []byte(d.Token) {
		if c <= ' ' || c > '~' { // a newline at the end of a file, most often
			return &OptionError{"Dial.Token", "has a character that no token has, such as a space or a newline"}
		}
	}
	return checkURL("Dial.URL", d.URL)
}

// said returns the beginning of what a server that accepts no connection says about it: a
// gateway says why, in plain text.
func said(resp *http.Response, secrets []string) string {
	if resp == nil || resp.Body == nil {
		return ""
	}
	kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || kind != "text/plain" {
		return ""
	}
	b, _ := io.ReadAll(resp.Body) // at most 1024 bytes, which websocket.Dial has read already
	return printable(hide(strings.Join(strings.Fields(string(b)), " "), secrets), maxText)
}

// aboutWebSockets reports whether an answer with status 426 is one of a WebSocket server: a
// gateway names its subprotocol; others say so in a header or in the text. Proxies take
// Upgrade out of answers, too.
func aboutWebSockets(h http.Header, answer string) bool {
	return strings.Contains(strings.ToLower(answer+" "+strings.Join(h.Values("Upgrade"), " ")), "websocket") ||
		h.Get("Sec-WebSocket-Version") != "" || h.Get("Sec-WebSocket-Protocol") != ""
}

// secrets returns what of a dial must not be found in texts.
func (d *Dial) secrets() []string {
	secrets := []string{d.Token}
	if u, parseErr := url.Parse(d.URL); parseErr == nil {
		secrets = append(secrets, u.RawQuery)
		for _, values := range u.Query() {
			secrets = append(secrets, values...)
		}
		if password, ok := u.User.Password(); ok {
			secrets = append(secrets, password)
		}
	}
	return secrets
}

func newDialError(d *Dial, ours bool, err error) *DialError {
	return &DialError{
		URL: redact(d.URL), Attempt: d.Attempt, Err: err,
		text: describe(err, d.secrets()...), refreshed: d.Refresh, ours: ours,
	}
}

// A handshake is the transport of one dial. It keeps what has to be ended: net/http goes
// on dialling when the request it was for is over, and coder/websocket reads from a
// connection, without a bound by ctx, when the answer was a bad one.
type handshake struct {
	ctx  context.Context // of the dial
	base http.RoundTripper
	peer *heartbeat.Peer

	status int // of the last answer; 0 if there was none since the last request
	header http.Header
	raw    io.Closer // the connection, once it is a WebSocket
	free   func() bool

	mu    sync.Mutex // guards over and conns, and that there is no Add when over
	over  bool
	conns []net.Conn
	jobs  sync.WaitGroup
}

func (h *handshake) RoundTrip(req *http.Request) (*http.Response, error) {
	h.status, h.header = 0, nil
	transport, err := h.transport(req)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	h.status, h.header = resp.StatusCode, resp.Header
	if body, ok := resp.Body.(io.ReadWriteCloser); ok && resp.StatusCode == http.StatusSwitchingProtocols {
		h.raw = body
		h.jobs.Add(1)
		h.free = context.AfterFunc(h.ctx, func() {
			defer h.jobs.Done()
			body.Close()
		})
		// Here and not around the net.Conn, so that it goes with any transport.
		conn := &stream{ReadWriteCloser: body}
		if resp.Body = conn; h.peer != nil {
			resp.Body = h.peer.WrapConn(conn)
		}
	}
	return resp, nil
}

// transport returns one for this request alone, if that can be done.
func (h *handshake) transport(req *http.Request) (http.RoundTripper, error) {
	pattern, ok := h.base.(*http.Transport)
	if !ok {
		return h.base, nil
	}
	t := pattern.Clone()
	t.DisableKeepAlives = true
	if err := viaTunnel(t, req); err != nil {
		return nil, err
	}
	dial := t.DialContext
	//lint:ignore SA1019 it is deprecated, and may be set
	if dial == nil && t.Dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	if dial != nil {
		t.DialContext = h.own(dial)
	}
	if t.DialTLSContext != nil {
		t.DialTLSContext = h.own(t.DialTLSContext)
	}
	return t, nil
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// own makes what is dialled end with the handshake. The transport's own context does not:
// it is meant for connections that others may use later.
func (h *handshake) own(dial dialFunc) dialFunc {
	return func(_ context.Context, network, address string) (net.Conn, error) {
		h.mu.Lock()
		if h.over {
			h.mu.Unlock()
			return nil, net.ErrClosed
		}
		h.jobs.Add(1)
		h.mu.Unlock()
		defer h.jobs.Done()
		conn, err := dial(h.ctx, network, address)
		if err == nil {
			h.mu.Lock()
			h.conns = append(h.conns, conn)
			h.mu.Unlock()
		}
		return conn, err
	}
}

// release takes the connection out of the handshake, unless it has ended meanwhile.
func (h *handshake) release() bool {
	if h.free == nil || !h.free() {
		return false
	}
	h.jobs.Done()
	h.mu.Lock()
	h.conns = nil
	h.mu.Unlock()
	return true
}

// stop ends what is left of the handshake, and waits for it. Its context is done.
func (h *handshake) stop() {
	h.mu.Lock()
	h.over = true
	h.mu.Unlock()
	h.jobs.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, conn := range h.conns {
		conn.Close()
	}
}

// checkRedirect refuses to take credentials to somebody else. (Browsers follow no redirect
// of a WebSocket at all.)
func (h *handshake) checkRedirect(next func(*http.Request, []*http.Request) error) func(*http.Request, []*http.Request) error {
	return func(req *http.Request, via []*http.Request) error {
		from, to := via[len(via)-1].URL, req.URL
		switch {
		case len(via) >= maxRedirects:
			return fmt.Errorf("%w: more than %d", errRedirect, maxRedirects)
		case from.Scheme == "https" && to.Scheme != "https":
			return fmt.Errorf("%w: from TLS to %s", errRedirect, redact(to.String()))
		case !strings.EqualFold(from.Hostname(), to.Hostname()) || port(from) != port(to) && (from.Scheme == to.Scheme || port(from) != "80" || port(to) != "443"):
			return fmt.Errorf("%w: to %s, which is another server", errRedirect, redact(to.String()))
		}
		if next != nil {
			return next(req, via)
		}
		return nil
	}
}

// port returns the port of a URL whose scheme is http or https.
func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}

// A stream is a connection as far as [heartbeat.Peer.WrapConn] needs one: it uses only
// these three methods.
type stream struct {
	net.Conn // nil
	io.ReadWriteCloser
}

// Read has io.ErrUnexpectedEOF for the end. A WebSocket ends with a close frame; and
// coder/websocket takes an io.EOF where a payload should begin, or the next frame of a
// message, for the end of the message, and returns what has come so far as a whole one.
func (s *stream) Read(b []byte) (int, error) {
	n, err := s.ReadWriteCloser.Read(b)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (s *stream) Write(b []byte) (int, error) { return s.ReadWriteCloser.Write(b) }
func (s *stream) Close() error                { return s.ReadWriteCloser.Close() }
