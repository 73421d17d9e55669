package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-ws/holdfast/internal/memnet"
)

// A connectProxy is an HTTP proxy that knows CONNECT, in front of a rig.
type connectProxy struct {
	rig     *rig
	network *memnet.Network
	user    string // and password, if they are asked for
	mute    bool
	padding string // of the header of an answer

	mu   sync.Mutex
	seen []string // requests
}

// newConnectProxy returns a proxy. With a config it speaks TLS.
func newConnectProxy(t *testing.T, r *rig, config *tls.Config) *connectProxy {
	p := &connectProxy{rig: r, network: memnet.New(memnet.Settings{Latency: time.Millisecond})}
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: p, TLSConfig: config}
	var running sync.WaitGroup
	running.Go(func() {
		if config != nil {
			server.ServeTLS(p.network, "", "")
		} else {
			server.Serve(p.network)
		}
	})
	t.Cleanup(func() {
		server.Close()
		for _, l := range p.network.Links() {
			l.Reset()
		}
		running.Wait()
	})
	return p
}

func (p *connectProxy) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	p.mu.Lock()
	p.seen = append(p.seen, req.Method+" "+req.RequestURI)
	mute := p.mute
	p.mu.Unlock()
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(p.user))
	switch {
	case mute:
		<-req.Context().Done()
		return
	case p.user != "" && req.Header.Get("Proxy-Authorization") != want:
		http.Error(w, "who are you?", http.StatusProxyAuthRequired)
		return
	case req.Method != http.MethodConnect:
		http.Error(w, "no", http.StatusUpgradeRequired) // as Squid says
		return
	}
	there, err := p.rig.network.DialContext(req.Context(), "tcp", req.Host)
	if err != nil {
		http.Error(w, "no way", http.StatusBadGateway)
		return
	}
	here, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	io.WriteString(here, "HTTP/1.1 200 Connection established\r\nPadding: "+p.padding+"\r\n\r\n")
	var copies sync.WaitGroup
	copies.Go(func() { io.Copy(there, here); there.Close() })
	io.Copy(here, there)
	here.Close()
	copies.Wait()
}

// options are those of a client that can reach nothing but the proxy.
func (p *connectProxy) options(proxyURL string, change ...func(*http.Transport)) *Options {
	u, err := url.Parse(proxyURL)
	if err != nil {
		panic(err)
	}
	t := &http.Transport{
		Proxy: http.ProxyURL(u),
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if !strings.HasPrefix(address, "proxy.test:") {
				return nil, fmt.Errorf("no way to %s but by the proxy", address)
			}
			return p.network.DialContext(ctx, network, address)
		},
	}
	for _, f := range change {
		f(t)
	}
	return &Options{HTTPClient: &http.Client{Transport: t}}
}

// first returns the first result of a loop.
func first(ctx context.Context, url string, o *Options) (connected bool, err error) {
	for s, err := range Sessions(ctx, url, o) {
		return s != nil, err
	}
	return false, nil
}

// A WebSocket without TLS went to the proxy as a GET, which proxies answer themselves, and
// the client was closed for good with what the proxy had said.
func TestAProxyIsAskedToConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, echo)
		p := newConnectProxy(t, r, nil)
		p.user = "anna:s3cret-of-the-proxy"
		for _, tt := range []struct {
			proxy, url, want string
			change           func(*http.Transport)
		}{
			{"http://anna:s3cret-of-the-proxy@proxy.test:3128", "ws://server.test/feed", "", nil},
			{"http://anna:s3cret-of-the-proxy@proxy.test", "http://server.test:8080/feed", "", nil},
			{"http://proxy.test", "ws://server.test", "", func(t *http.Transport) {
				t.ProxyConnectHeader = http.Header{"Proxy-Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(p.user))}}
			}},
			{"http://anna:wrong-secret@proxy.test:3128", "ws://server.test",
				"the proxy proxy.test:3128 answered 407 Proxy Authentication Required to CONNECT server.test:80", nil},
			{"http://anna:wrong-secret@proxy.test:3128", "wss://server.test",
				"the proxy proxy.test:3128 answered 407 Proxy Authentication Required to CONNECT server.test:443", nil},
		} {
			var change []func(*http.Transport)
			if tt.change != nil {
				change = append(change, tt.change)
			}
			ok, err := first(t.Context(), tt.url, p.options(tt.proxy, change...))
			var failed *DialError
			switch {
			case tt.want == "" && !ok:
				t.Errorf("%s by %s: %v", tt.url, tt.proxy, err)
			case tt.want != "" && (!errors.As(err, &failed) || failed.Final || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret")):
				t.Errorf("%s by %s: %v", tt.url, tt.proxy, err)
			}
		}
		if diff := cmp.Diff([]string{
			"CONNECT server.test:80", "CONNECT server.test:8080", "CONNECT server.test:80", "CONNECT server.test:80", "CONNECT server.test:443",
		}, p.seen); diff != "" {
			t.Errorf("the proxy was asked (-want +got):\n%s", diff)
		}
		if n := len(r.requests()); n != 3 {
			t.Errorf("the server has got %d requests", n)
		}
		p.network.Close()
		r.expectQuiet(t)
	})
}

func TestAProxyMaySpeakTLS(t *testing.T) {
	certificate := httptest.NewUnstartedServer(nil)
	certificate.StartTLS()
	config := &tls.Config{Certificates: certificate.TLS.Certificates}
	roots := x509.NewCertPool()
	roots.AddCert(certificate.Certificate())
	certificate.Close()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, echo)
		p := newConnectProxy(t, r, config)
		trusting := func(t *http.Transport) { t.TLSClientConfig = &tls.Config{RootCAs: roots, ServerName: "example.com"} }
		if ok, err := first(t.Context(), "ws://server.test", p.options("https://proxy.test", trusting)); !ok {
			t.Error(err)
		}
		if _, err := first(t.Context(), "ws://server.test", p.options("https://proxy.test")); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Error(err)
		}
		// Whoever knows how to speak TLS with it may do so, also in the old way.
		for _, old := range []bool{false, true} {
			ok, err := first(t.Context(), "ws://server.test", p.options("https://proxy.test", func(transport *http.Transport) {
				dial, config := transport.DialContext, &tls.Config{RootCAs: roots, ServerName: "example.com"}
				transport.DialContext = nil
				dialTLS := func(ctx context.Context, network, address string) (net.Conn, error) {
					conn, err := dial(ctx, network, address)
					if err != nil {
						return nil, err
					}
					return tls.Client(conn, config), nil
				}
				if old {
					//lint:ignore SA1019 it may be set
					transport.DialTLS = func(network, address string) (net.Conn, error) {
						return dialTLS(context.Background(), network, address)
					}
				} else {
					transport.DialTLSContext = dialTLS
				}
			}))
			if !ok {
				t.Errorf("old %v: %v", old, err)
			}
		}
	})
}

// The bound for headers was not that of the Transport.
func TestAProxyHeaderIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, echo)
		p := newConnectProxy(t, r, nil)
		for _, tt := range []struct {
			header int
			most   int64
			ok     bool
		}{{1000, 0, true}, {1000, 500, false}, {100_000, 0, false}, {100_000, 200_000, true}} {
			p.padding = strings.Repeat("x", tt.header)
			limited := func(t *http.Transport) { t.MaxResponseHeaderBytes = tt.most }
			if ok, err := first(t.Context(), "ws://server.test", p.options("http://proxy.test", limited)); ok != tt.ok {
				t.Errorf("%d bytes, most %d: %v, %v", tt.header, tt.most, ok, err)
			}
		}
	})
}

// Nothing of a dial is left when the proxy does not answer.
func TestAProxyThatDoesNotAnswerIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, echo)
		p := newConnectProxy(t, r, nil)
		p.mute = true
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		began := time.Now()
		if _, err := first(ctx, "ws://server.test", p.options("http://proxy.test")); err != context.DeadlineExceeded || time.Since(began) != 5*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		synctest.Wait()
		if n := len(p.network.Links()); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
}
