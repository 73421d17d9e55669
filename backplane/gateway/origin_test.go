package gateway

import (
	"crypto/tls"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
)

func TestOrigins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Origins: []string{
			"https://app.example", "http://localhost:8080", "https://*.wild.example", "HTTPS://Caps.Example:443", "https://*.port.example:8443", "http://[::1]:3000",
		}}})
		for _, c := range []struct {
			why, host, origin, proto string // proto is X-Forwarded-Proto; "TLS" for a request over TLS
			want                     bool
		}{
			{"no page", "example.com", "-", "", true},
			{"its own", "example.com", "http://example.com", "", true},
			{"its own with the port that goes without saying", "example.com", "http://example.com:80", "", true},
			{"its own, where the host says the port", "example.com:80", "http://example.com", "", true},
			{"its own in other letters", "Example.com", "http://EXAMPLE.com", "", true},
			{"another port", "example.com", "http://example.com:8080", "", false},
			{"its own port", "example.com:8080", "http://example.com:8080", "", true},
			{"without its port", "example.com:8080", "http://example.com", "", false},
			{"http to https", "example.com", "http://example.com", "TLS", false},
			{"https to http", "example.com", "https://example.com", "", false},
			{"https to https", "example.com", "https://example.com", "TLS", true},
			{"https with its port", "example.com:443", "https://example.com", "TLS", true},
			{"port 80 of https", "example.com:80", "https://example.com", "TLS", false},
			{"https in front", "example.com", "https://example.com", "https", true},
			{"https in front, http page", "example.com", "http://example.com", "https", false},
			{"two in front", "example.com", "https://example.com", "https, http", true},
			{"wss in front", "example.com", "https://example.com", "WSS", true},
			{"ws in front", "example.com", "http://example.com", "ws", true},
			{"http in front", "example.com", "https://example.com", "http", false},
			{"null", "example.com", "null", "", false},
			{"null behind who claims to be it", "example.com", "null", "null", false},
			{"empty", "example.com", "", "", false},
			{"another host", "example.com", "http://evil.example", "", false},
			{"a suffix", "example.com", "http://evilexample.com", "", false},
			{"below its own", "example.com", "http://sub.example.com", "", false},
			{"above", "sub.example.com", "http://example.com", "", false},
			{"a prefix", "example.com", "http://example.com.evil.example", "", false},
			{"user info", "example.com", "http://example.com@evil.example", "", false},
			{"user info of its own", "example.com", "http://evil@example.com", "", false},
			{"a path", "example.com", "http://example.com/", "", false},
			{"a path of a name", "example.com", "http://evil.example/example.com", "", false},
			{"a query", "example.com", "http://evil.example?example.com", "", false},
			{"a fragment", "example.com", "http://evil.example#example.com", "", false},
			{"a backslash", "example.com", `http://evil.example\example.com`, "", false},
			{"two in one", "example.com", "http://example.com http://evil.example", "", false},
			{"no scheme", "example.com", "example.com", "", false},
			{"no scheme but slashes", "example.com", "//example.com", "", false},
			{"another scheme", "example.com", "file://example.com", "", false},
			{"a file", "example.com", "file://", "", false},
			{"a star", "example.com", "http://*", "", false},
			{"a dot at the end", "example.com", "http://example.com.", "", false},
			{"an empty port", "example.com", "http://example.com:", "", false},
			{"no port", "example.com", "http://example.com:x", "", false},
			{"escaped", "example.com", "http://example%2ecom", "", false},
			{"listed", "example.com", "https://app.example", "", true},
			{"listed, with the port that goes without saying", "example.com", "https://app.example:443", "", true},
			{"listed with another scheme", "example.com", "http://app.example", "", false},
			{"listed with another port", "example.com", "https://app.example:8443", "", false},
			{"below a listed one", "example.com", "https://x.app.example", "", false},
			{"listed with a port", "example.com", "http://localhost:8080", "", true},
			{"without the port that is listed", "example.com", "http://localhost", "", false},
			{"listed in capitals", "example.com", "https://caps.example", "", true},
			{"listed by number", "example.com", "http://[::1]:3000", "", true},
			{"below a star", "example.com", "https://a.wild.example", "", true},
			{"far below a star", "example.com", "https://a.b.wild.example", "", true},
			{"the star itself", "example.com", "https://wild.example", "", false},
			{"a suffix of a star", "example.com", "https://evilwild.example", "", false},
			{"nothing below a star", "example.com", "https://.wild.example", "", false},
			{"below a star, another scheme", "example.com", "http://a.wild.example", "", false},
			{"below a star, another port", "example.com", "https://a.wild.example:8443", "", false},
			{"a star with a port", "example.com", "https://a.port.example:8443", "", true},
			{"a star with a port, without", "example.com", "https://a.port.example", "", false},
			{"beyond a star", "example.com", "https://a.wild.example.evil.example", "", false},
		} {
			req := &http.Request{Header: http.Header{}, Host: c.host}
			headers := ""
			if c.origin != "-" {
				req.Header["Origin"] = []string{c.origin}
				headers = "Origin: " + c.origin + "\r\n"
			}
			switch c.proto {
			case "":
			case "TLS":
				req.TLS = new(tls.ConnectionState)
			default:
				req.Header.Set("X-Forwarded-Proto", c.proto)
				headers += "X-Forwarded-Proto: " + c.proto + "\r\n"
			}
			if got := r.gw.allowed(req); got != c.want {
				t.Errorf("%s: %v", c.why, got)
			}
			if c.proto == "TLS" {
				continue
			}
			s := r.dialRaw()
			s.write([]byte(strings.Replace(handshake, "example.com", c.host, 1) + headers + "\r\n"))
			if status := s.response(); status != map[bool]int{true: 101, false: 403}[c.want] {
				t.Errorf("%s: status %d", c.why, status)
			}
			s.conn.Close()
		}
		s := r.dialRaw()
		s.write([]byte(handshake + "Origin: http://example.com\r\nOrigin: http://example.com\r\n\r\n"))
		if status := s.response(); status != 403 {
			t.Errorf("two headers: status %d", status)
		}
	})
}

func TestPatternsThatMeanTooMuch(t *testing.T) {
	for _, pattern := range []string{
		"", "*", "null ", "Null", "example.com", "*.example.com", "https://", "https://*", "https://*.", "https://*example.com", "https://*.*.example.com",
		"https://a.*.example.com", "https://example.*", "https://example.com/", "https://example.com/path", "https://a@example.com",
		"https://example.com?x", "https://example.com#x", "https://.example.com", "https://*..example.com", "https://example.com:x",
		"://example.com", "*://example.com", "https://exa mple.com", "https://example.com\n", "https://[::1", "https:// ",
		"https://*.com", "https://*.com.", "https://*.localhost.", "wss://example.com", "https://example.com:65536", "https://exämple.com", "https://*.[::1]",
		"https://example.com,https://other.example", "https://example.com:",
	} {
		_, err := New(newHub(t), &Options{Authorize: allowAll, Origins: []string{"https://ok.example", pattern}})
		if bad, ok := err.(*OptionError); !ok || bad.Field != "Origins" {
			t.Errorf("%q: %v", pattern, err)
		}
	}
}

// Frames in a sandbox send null, whatever site they are of: they come in where that is
// listed, and nobody else by it.
func TestSandbox(t *testing.T) {
	gw, err := New(newHub(t), &Options{Authorize: allowAll, Origins: []string{"null"}})
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Shutdown(t.Context())
	for origin, want := range map[string]bool{
		"null": true, "http://example.com": true,
		"Null": false, "null ": false, "http://null": false, "null://": false, "": false, "https://example.com": false,
	} {
		r := &http.Request{Host: "example.com", Header: http.Header{"Origin": {origin}}}
		if got := gw.allowed(r); got != want {
			t.Errorf("%q: %v", origin, got)
		}
	}
}

// Pages of desktop shells are files. No setting let them in.
func TestAPageThatIsAFile(t *testing.T) {
	gw, err := New(newHub(t), &Options{Authorize: allowAll, Origins: []string{"file://"}})
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Shutdown(t.Context())
	for origin, want := range map[string]bool{
		"file://": true, "http://example.com": true,
		"FILE://": false, "file:///": false, "file://example.com": false, "file:": false, "file": false, "null": false, "http://file": false, "https://": false, "": false,
	} {
		r := &http.Request{Host: "example.com", Header: http.Header{"Origin": {origin}}}
		if got := gw.allowed(r); got != want {
			t.Errorf("%q: %v", origin, got)
		}
	}
	for _, pattern := range []string{"file:///", "FILE://", "file://*", "file://*.example.com/", "file:", "app://", "file:// "} {
		if _, err := New(newHub(t), &Options{Authorize: allowAll, Origins: []string{pattern}}); err == nil {
			t.Errorf("%q is taken for a pattern", pattern)
		}
	}
}

// FuzzOrigin checks what a pattern lets through.
func FuzzOrigin(f *testing.F) {
	for _, c := range [][2]string{
		{"https://example.com", "https://example.com:443"}, {"https://*.example.com", "https://a.example.com"},
		{"https://*.example.com", "https://evilexample.com"}, {"https://*.example.com:8443", "https://a.example.com:8443"},
		{"http://[::1]:80", "http://[::1]"}, {"http://*.1", "http://[::.1]"}, {"https://*.example.com", "https://a@b.example.com"},
		{"https://*.example.com", "https://a\x00.example.com"}, {"https://*.é.com", "https://É.É.com"},
	} {
		f.Add(c[0], c[1])
	}
	f.Fuzz(func(t *testing.T, pattern, header string) {
		p, err := parseOrigin(pattern, true)
		if err != nil {
			return
		}
		o, err := parseOrigin(header, false)
		if err != nil || !p.matches(o) {
			return
		}
		if pattern == "null" && header == "null" {
			return
		}
		// By hand, and with as little as possible of the code above.
		split := func(s string) (scheme, host, port string) {
			scheme, rest, _ := strings.Cut(strings.ToLower(s), "://")
			port = map[string]string{"http": "80", "https": "443"}[scheme]
			host = rest
			if h, p, err := net.SplitHostPort(rest); err == nil {
				host, port = h, p
			}
			return scheme, strings.Trim(host, "[]"), port
		}
		ps, ph, pp := split(pattern)
		hs, hh, hp := split(header)
		if ps != hs || pp != hp {
			t.Errorf("%q lets %q through: scheme or port", pattern, header)
		}
		if strings.ContainsAny(header, "*@?#\\ \r\n") || strings.Count(header, "/") != 2 {
			t.Errorf("%q lets %q through, which is no origin", pattern, header)
		}
		if h, star := strings.CutPrefix(ph, "*."); star {
			if below, ok := strings.CutSuffix(hh, "."+h); !ok || below == "" {
				t.Errorf("%q lets %q through", pattern, header)
			}
		} else if hh != ph {
			t.Errorf("%q lets %q through", pattern, header)
		}
	})
}
