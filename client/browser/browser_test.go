package browser_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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
		want := map[string]string{"Cache-Control": c.cache}
		if c.mime != "" {
			want["Content-Type"] = c.mime
		}
		if c.status == 200 {
			want["X-Content-Type-Options"] = "nosniff"
			want["Cross-Origin-Resource-Policy"] = "same-origin"
			want["Content-Security-Policy"] = "default-src 'none'; script-src 'self'; connect-src 'self' wss://live.example.com:8443"
		}
		got := map[string]string{}
		for name := range want {
			got[name] = r.Header.Get(name)
		}
		if diff := cmp.Diff(want, got); r.StatusCode != c.status || diff != "" {
			t.Errorf("%s: status %d, want %d; headers (-want +got):\n%s", c.why, r.StatusCode, c.status, diff)
		}
		if c.status != 200 {
			continue
		}
		if body, err := io.ReadAll(r.Body); err != nil || strings.Contains(c.mime, "javascript") && c.method == "GET" && !bytes.Equal(body, module) {
			t.Errorf("%s: %d bytes, %v", c.why, len(body), err)
		}
	}
}

func TestWhoTakesGzipGetsIt(t *testing.T) {
	h := browser.Handler(nil)
	for _, c := range []struct {
		accept string
		want   bool
	}{
		{"", false},
		{"gzip", true},
		{"gzip, deflate, br, zstd", true},
		{"br;q=1.0, GZIP ; Q=0.5", true},
		{"x-gzip", true},
		{"*", true},
		{"identity", false},
		{"gzip;q=0", false},
		{"gzip; q=0.000, *", false},
		{"*, gzip;q=0", false},
		{"*;q=0", false},
		{"gzip;q=x", false},
		{"gzipped", false},
	} {
		for _, name := range []string{"holdfast.min.js", "holdfast.d.ts"} {
			content, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			want := c.want && name == "holdfast.min.js"
			target := "/holdfast/" + strings.Replace(name, ".min", "", 1)
			plain := get(h, "GET", target).Header.Get("ETag")
			for _, method := range []string{"GET", "HEAD"} {
				r := get(h, method, target, "Accept-Encoding", c.accept)
				body, err := io.ReadAll(r.Body)
				if err != nil {
					t.Fatal(err)
				}
				size, tag := r.ContentLength, r.Header.Get("ETag")
				if r.StatusCode != 200 || r.Header.Get("Vary") != "Accept-Encoding" || (r.Header.Get("Content-Encoding") == "gzip") != want ||
					(tag != plain) != want || (size < int64(len(content))/2) != want || r.Header.Get("Content-Type") == "" {
					t.Errorf("%s %s for %q: %s %v", method, name, c.accept, r.Status, r.Header)
				}
				if method == "HEAD" {
					if len(body) > 0 {
						t.Errorf("HEAD of %s for %q: %d bytes", name, c.accept, len(body))
					}
				} else if int64(len(body)) != size {
					t.Errorf("%s for %q: %d bytes, and a Content-Length of %d", name, c.accept, len(body), size)
				}
				if method == "GET" && want {
					z, err := gzip.NewReader(bytes.NewReader(body))
					if err != nil {
						t.Fatal(err)
					}
					if body, err = io.ReadAll(z); err != nil {
						t.Fatal(err)
					}
				}
				if method == "GET" && !bytes.Equal(body, content) {
					t.Errorf("%s for %q: another content", name, c.accept)
				}
				if r := get(h, method, target, "Accept-Encoding", c.accept, "If-None-Match", tag); r.StatusCode != 304 ||
					r.Header.Get("ETag") != tag || r.Header.Get("Vary") != "Accept-Encoding" || r.Header.Get("Content-Length") != "" {
					t.Errorf("%s %s for %q, known: %s %v", method, name, c.accept, r.Status, r.Header)
				}
				if r := get(h, method, target, "Accept-Encoding", c.accept, "If-None-Match", `"other"`); r.StatusCode != 200 {
					t.Errorf("%s %s for %q, known in another version: %s", method, name, c.accept, r.Status)
				}
			}
		}
	}
}

// What arrives is what README.md says: less than 16 KiB.
func TestTheModuleArrivesSmall(t *testing.T) {
	srv := httptest.NewServer(http.StripPrefix("/holdfast/", browser.Handler(nil)))
	defer srv.Close()
	r, err := http.NewRequest("GET", srv.URL+browser.URL("/holdfast/"), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept-Encoding", "gzip")
	resp, err := srv.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || n != resp.ContentLength || n >= 16<<10 {
		t.Errorf("%d bytes, Content-Length %d, %v", n, resp.ContentLength, err)
	}
	t.Logf("%d bytes", n)
}

func TestAnotherVersionIsAskedForWithIfMatch(t *testing.T) {
	srv := httptest.NewServer(http.StripPrefix("/holdfast/", browser.Handler(nil)))
	defer srv.Close()
	for _, accept := range []string{"gzip", "identity"} {
		r, err := http.NewRequest("GET", srv.URL+browser.URL("/holdfast/"), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept-Encoding", accept)
		r.Header.Set("If-Match", `"other"`)
		resp, err := srv.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusPreconditionFailed {
			t.Errorf("%s: %s, %v", accept, resp.Status, err)
		}
		resp.Body.Close()
	}
}

func TestTheTypesAreNotKeptUnderTheHashOfTheModule(t *testing.T) {
	_, v, _ := strings.Cut(browser.URL("/"), "?")
	if r := get(browser.Handler(nil), "GET", "/holdfast/holdfast.d.ts?"+v); r.Header.Get("Cache-Control") != "no-store" {
		t.Error(r.Header)
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
	for _, origin := range []string{"", "live.example.com", "wss://", "wss://a b", "wss://a; script-src *", "ftp://a", "wss://a/path", "wss://a\r\nX: y", "wss://a\t*", "wss://a?b", "wss://a#b", "wss://ä"} {
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
