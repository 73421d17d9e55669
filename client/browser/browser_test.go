package browser_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/holdfast-ws/holdfast/client/browser"
)

func get(h http.Handler, method, target string, header ...string) *http.Response {
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	http.StripPrefix("/holdfast/", h).ServeHTTP(w, r)
	return w.Result()
}

func TestHandler(t *testing.T) {
	h := browser.Handler(&browser.Options{Connect: []string{"wss://live.example.com:8443"}})
	module, err := os.ReadFile("holdfast.min.js")
	if err != nil {
		t.Fatal(err)
	}
	own := browser.URL("/holdfast/")
	tag := get(h, "GET", own).Header.Get("ETag")
	for _, c := range []struct {
		why, method, target string
		header              []string
		status              int
		cache, mime         string
	}{
		{why: "with the hash", method: "GET", target: own, status: 200, cache: "public, max-age=31536000, immutable", mime: "text/javascript; charset=utf-8"},
		{why: "only the head", method: "HEAD", target: own, status: 200, cache: "public, max-age=31536000, immutable", mime: "text/javascript; charset=utf-8"},
		{why: "without a hash", method: "GET", target: "/holdfast/holdfast.js", status: 200, cache: "no-cache", mime: "text/javascript; charset=utf-8"},
		{why: "of another version", method: "GET", target: "/holdfast/holdfast.js?v=0011223344556677", status: 200, cache: "no-store", mime: "text/javascript; charset=utf-8"},
		{why: "known already", method: "GET", target: "/holdfast/holdfast.js", header: []string{"If-None-Match", tag}, status: 304, cache: "no-cache"},
		{why: "types", method: "GET", target: "/holdfast/holdfast.d.ts", status: 200, cache: "no-cache", mime: "text/plain; charset=utf-8"},
		{why: "types are not the module", method: "GET", target: "/holdfast/holdfast.d.ts", header: []string{"If-None-Match", tag}, status: 200, cache: "no-cache", mime: "text/plain; charset=utf-8"},
		{why: "something else", method: "GET", target: "/holdfast/package.json", status: 404},
		{why: "the folder", method: "GET", target: "/holdfast/", status: 404},
		{why: "a post", method: "POST", target: own, status: 405},
	} {
		r := get(h, c.method, c.target, c.header...)
		if r.StatusCode != c.status || r.Header.Get("Cache-Control") != c.cache || c.mime != "" && r.Header.Get("Content-Type") != c.mime {
			t.Errorf("%s: %s %v", c.why, r.Status, r.Header)
		}
		if c.status != 200 {
			continue
		}
		if body, err := io.ReadAll(r.Body); err != nil || strings.Contains(c.mime, "javascript") && c.method == "GET" && !bytes.Equal(body, module) {
			t.Errorf("%s: %d bytes, %v", c.why, len(body), err)
		}
		for name, want := range map[string]string{
			"X-Content-Type-Options":       "nosniff",
			"Cross-Origin-Resource-Policy": "same-origin",
			"Content-Security-Policy":      "default-src 'none'; script-src 'self'; connect-src 'self' wss://live.example.com:8443",
		} {
			if got := r.Header.Get(name); got != want {
				t.Errorf("%s: %s: %q", c.why, name, got)
			}
		}
	}
}

func TestURL(t *testing.T) {
	for _, prefix := range []string{"/a", "/a/"} {
		if got := browser.URL(prefix); !strings.HasPrefix(got, "/a/holdfast.js?v=") || len(got) != len("/a/holdfast.js?v=")+16 {
			t.Error(got)
		}
	}
}

func TestWhatIsNoOriginPanics(t *testing.T) {
	for _, origin := range []string{"", "live.example.com", "wss://", "wss://a b", "wss://a; script-src *", "ftp://a", "wss://a/path", "wss://a\r\nX: y"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q is taken", origin)
				}
			}()
			browser.Handler(&browser.Options{Connect: []string{origin}})
		}()
	}
}

func ExampleURL() {
	url := browser.URL("/holdfast/")
	fmt.Println(url[:len("/holdfast/holdfast.js?v=")])
	// Output: /holdfast/holdfast.js?v=
}
