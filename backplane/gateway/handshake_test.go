package gateway

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/internal/wire"
)

// behind has another middleware before the gateway than net/http's server.
func (r *rig) behind(wrap func(http.ResponseWriter) http.ResponseWriter) {
	r.srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { r.gw.ServeHTTP(wrap(w), req) })
}

// handshake sends one, and returns the answer and its body.
func (r *rig) handshake(headers ...string) (*socket, *http.Response, string) {
	r.t.Helper()
	s := r.dialRaw()
	s.write([]byte(handshake + strings.Join(headers, "") + "\r\n"))
	s.conn.SetReadDeadline(time.Now().Add(time.Minute))
	resp, err := http.ReadResponse(s.br, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return s, resp, ""
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Error(err)
	}
	return s, resp, string(b)
}

// A zipper holds back the status and what is written until there is enough of it, as echo's
// gzip middleware does.
type zipper struct {
	http.ResponseWriter
	code int
	buf  bytes.Buffer
}

func (w *zipper) WriteHeader(code int) {
	w.Header().Del("Content-Length")
	w.code = code
}

func (w *zipper) Write(b []byte) (int, error) {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", http.DetectContentType(b))
	}
	w.buf.Write(b)
	return len(b), w.flush()
}

func (w *zipper) flush() error {
	w.ResponseWriter.WriteHeader(w.code)
	_, err := w.buf.WriteTo(w.ResponseWriter)
	return err
}

func (w *zipper) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *zipper) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

// holder only holds back the status, and has what the README asks for.
type holder struct{ *zipper }

func (w holder) Hijack() {} // another method: it is found by Unwrap

// The status was written to the middleware, which held it back: the client waited for ever, and
// nothing was in the log.
func TestMiddlewareThatHoldsBackTheStatus(t *testing.T) {
	for name, wrap := range map[string]func(http.ResponseWriter) http.ResponseWriter{
		"with Hijack": func(w http.ResponseWriter) http.ResponseWriter { return &zipper{ResponseWriter: w} },
		"with Unwrap": func(w http.ResponseWriter) http.ResponseWriter { return holder{&zipper{ResponseWriter: w}} },
		"twice": func(w http.ResponseWriter) http.ResponseWriter {
			return &zipper{ResponseWriter: unwrapped{&zipper{ResponseWriter: w}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startWith(t, setup{})
				r.behind(func(w http.ResponseWriter) http.ResponseWriter {
					w.Header().Set("Vary", "Accept-Encoding")
					w.Header().Set("Content-Encoding", "gzip")
					w.Header().Add("Set-Cookie", "a=b")
					w.Header().Set("Content-Security-Policy", "default-src 'self'")
					w.Header()["upgrade"] = []string{"h2c"} // by hand
					w.Header()["x-mine"] = []string{"yes"}
					return wrap(w)
				})
				s, resp, _ := r.handshake()
				if resp.StatusCode != 101 || resp.Header.Get("Set-Cookie") != "a=b" || resp.Header.Get("Content-Encoding") != "" ||
					resp.Header.Get("Content-Security-Policy") == "" || resp.Header.Get("X-Mine") != "yes" || strings.Join(resp.Header.Values("Upgrade"), ",") != "websocket" || resp.Header.Get("Sec-WebSocket-Protocol") != wire.Subprotocol {
					t.Fatalf("%d, %v", resp.StatusCode, resp.Header)
				}
				s.hello("")
				s.alive()
				// And what is refused reaches the client, too.
				if _, resp, text := r.handshake("Origin: https://evil.example\r\n"); resp.StatusCode != 403 || text == "" {
					t.Errorf("%d %q", resp.StatusCode, text)
				}
			})
		})
	}
}

// broken has a Hijack that fails.
type broken struct {
	http.ResponseWriter
	fail func() error
}

func (w broken) Hijack() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, w.fail() }

// Where Hijack exists and fails, the client was told that it has a WebSocket, and then nothing.
func TestAHijackThatFails(t *testing.T) {
	for name, fail := range map[string]func() error{
		"an error":         func() error { return errors.New("not today") },
		"is not supported": func() error { return http.ErrNotSupported },
		"a panic":          func() error { panic("interface conversion: *http.response is not http.Hijacker") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := new(journal)
				r := startWith(t, setup{Options: Options{Logger: log.logger()}})
				r.behind(func(w http.ResponseWriter) http.ResponseWriter { return broken{w, fail} })
				_, resp, text := r.handshake()
				if resp.StatusCode != 501 || !strings.Contains(text, "Hijack") || resp.Header.Get("Upgrade") != "" {
					t.Errorf("%d %v %q", resp.StatusCode, resp.Header, text)
				}
				if got := log.String(); !strings.Contains(got, "level=WARN") || !strings.Contains(got, "handshake not completed") || name == "an error" && !strings.Contains(got, "not today") {
					t.Errorf("in the log: %s", got)
				}
				if st := r.gw.Stats(); st.Refused != 1 || st.Accepted != 0 || st.Connections != 0 {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

// mute lets the connection be taken over, but nothing can be sent on it.
type mute struct {
	http.ResponseWriter
}

func (w mute) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		c.Close()
	}
	return c, rw, err
}

func TestAnAnswerThatCannotBeSentIsInTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(journal)
		r := startWith(t, setup{Options: Options{Logger: log.logger()}})
		r.behind(func(w http.ResponseWriter) http.ResponseWriter { return mute{w} })
		s := r.dialRaw()
		s.write([]byte(handshake + "\r\n"))
		if _, err := s.br.ReadByte(); err == nil {
			t.Error("something was sent")
		}
		time.Sleep(time.Second)
		if got := log.String(); !strings.Contains(got, "level=WARN") || !strings.Contains(got, "handshake not completed") {
			t.Errorf("in the log: %s", got)
		}
		if st := r.gw.Stats(); st.Refused != 1 || st.Accepted != 0 || st.Connections != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// A reverse proxy that does not pass on Upgrade makes a request of a handshake that is none, and
// nobody was told.
func TestAProxyThatDoesNotPassOnUpgrade(t *testing.T) {
	for name, c := range map[string]struct {
		change, to string
		proxy      bool
	}{
		"without Upgrade":         {"Upgrade: websocket\r\n", "", true},
		"without both":            {"Connection: Upgrade\r\nUpgrade: websocket\r\n", "Connection: close\r\n", true},
		"without Connection":      {"Connection: Upgrade\r\n", "", true},
		"over HTTP/1.0, as nginx": {"HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", "HTTP/1.0\r\nHost: example.com\r\nConnection: close\r\n", true},
		"a browser's address bar": {handshake[strings.Index(handshake, "Connection"):], "", false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := new(journal)
				r := startWith(t, setup{Options: Options{Logger: log.logger()}})
				s := r.dialRaw()
				s.write([]byte(strings.Replace(handshake, c.change, c.to, 1) + "\r\n"))
				resp, err := http.ReadResponse(s.br, nil)
				if err != nil {
					t.Fatal(err)
				}
				text, _ := io.ReadAll(resp.Body)
				if resp.StatusCode != 426 || !strings.Contains(string(text), "proxy") || !strings.Contains(string(text), "Upgrade") || resp.Header.Get("Sec-WebSocket-Protocol") != wire.Subprotocol {
					t.Errorf("%d %v %q", resp.StatusCode, resp.Header, text)
				}
				if got := log.String(); strings.Contains(got, "level=WARN") != c.proxy || c.proxy && !strings.Contains(got, "proxy_set_header") {
					t.Errorf("in the log: %s", got)
				}
			})
		})
	}
}

// nginx speaks HTTP/1.0 unless it is told otherwise, even if it was told to pass on Upgrade. The
// answer did not say whose it was, and nothing was in the log.
func TestAProxyThatSpeaksHTTP10(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(journal)
		r := startWith(t, setup{Options: Options{Logger: log.logger()}})
		s := r.dialRaw()
		s.write([]byte(strings.Replace(handshake, "HTTP/1.1", "HTTP/1.0", 1) + "\r\n"))
		resp, err := http.ReadResponse(s.br, nil)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != 426 || !strings.Contains(string(text), "HTTP/1.0") || resp.Header.Get("Sec-WebSocket-Protocol") != wire.Subprotocol {
			t.Errorf("%d %v %q", resp.StatusCode, resp.Header, text)
		}
		got := log.String()
		for _, want := range []string{"level=WARN", `msg="handshake refused: a proxy speaks HTTP/1.0"`, "proxy_http_version 1.1"} {
			if !strings.Contains(got, want) {
				t.Errorf("%q is not in the log: %s", want, got)
			}
		}
		if st := r.gw.Stats(); st.Refused != 1 || st.Accepted != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// Whoever looked for the reason of a refusal found nothing at Info, or not what to do.
func TestARefusalSaysWhatToDo(t *testing.T) {
	for name, c := range map[string]struct {
		host, origin string
		want         []string
	}{
		"another site":             {"example.com", "https://other.example", []string{"gateway.Options.Origins", "keep Host"}},
		"nginx's $host":            {"localhost", "http://localhost:8080", []string{"$http_host", "gateway.Options.Origins"}},
		"the backend's name":       {"backend:8080", "http://example.com", []string{"keep Host"}},
		"another port":             {"localhost:8080", "http://localhost:3000", []string{"gateway.Options.Origins"}},
		"a proxy that ends TLS":    {"example.com", "https://example.com", []string{"X-Forwarded-Proto"}},
		"both, TLS and the port":   {"example.com", "https://example.com:8443", []string{"X-Forwarded-Proto", "$http_host"}},
		"a file":                   {"example.com", "file://", []string{"gateway.Options.Origins"}},
		"a frame in a sandbox":     {"example.com", "null", []string{"gateway.Options.Origins"}},
		"something else":           {"example.com", "x", []string{"no origin"}},
		"the port of another name": {"example.com", "http://other.example:8080", []string{"keep Host"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := new(journal)
				r := startWith(t, setup{Options: Options{Logger: log.logger()}})
				s := r.dialRaw()
				s.write([]byte(strings.Replace(handshake, "example.com", c.host, 1) + "Origin: " + c.origin + "\r\n\r\n"))
				if status := s.response(); status != 403 {
					t.Fatal(status)
				}
				got := log.String()
				for _, want := range append(c.want, "level=INFO") {
					if !strings.Contains(got, want) {
						t.Errorf("%q is not in the log: %s", want, got)
					}
				}
				if len(c.want) == 1 && strings.Contains(got, "$http_host") {
					t.Errorf("in the log: %s", got)
				}
			})
		})
	}
}

// What clients can cause is in the log, but not as often as they like.
func TestRefusalsDoNotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(journal)
		r := startWith(t, setup{Options: Options{Logger: log.logger()}})
		refused := func(n int) (lines int, text string) {
			log.reset()
			for range n {
				r.handshake("Origin: https://evil.example\r\n")
			}
			text = log.String()
			return strings.Count(text, "handshake refused"), text
		}
		if n, text := refused(100); n != linesAtOnce {
			t.Errorf("%d lines: %s", n, text)
		}
		time.Sleep(5 * time.Second)
		if n, text := refused(1); n != 1 || !strings.Contains(text, "hidden=90") {
			t.Errorf("%d lines: %s", n, text)
		}
	})
}
