// Package browser serves the client for browsers: an ES module that gives all of a
// user's tabs one WebSocket to a gateway. Each tab gets every message once, or a reset,
// whichever tab or worker crashes or is frozen. It is tried in Chromium by all tests, and in
// Firefox and WebKit by those that can be told to (make test-engines). It is not for other
// servers than gateways; programs in Go have package client.
//
//	mux.Handle("GET /holdfast/", http.StripPrefix("/holdfast/", browser.Handler(nil)))
//	page.Execute(w, browser.URL("/holdfast/")) // for import { connect } from "{{.}}"
//
// The module is one file without dependencies and needs no build step; it is also the
// npm package in this folder. What it does and how it is used is said in its own
// comments, and in README.md beside it.
//
// The nearest thing in the standard library is [http.FileServerFS]. It knows nothing of
// what browsers need here: a URL that changes with the content, since a shared worker
// lives on with the code that it was started with; and a policy of its own for what the
// worker may connect to, since that of the page does not bind it.
//
// # Strict content security policies
//
// A page needs script-src 'self' and connect-src 'self' (or worker-src 'self' besides a
// nonce). Where workers are forbidden, or missing, the module shares the connection in
// another way or not at all.
//
// # Concurrency
//
// Everything here may be used by any number of goroutines.
package browser

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Options are the choices for a Handler. Nil means all defaults.
type Options struct {
	// Connect are origins that the shared worker may connect to besides the one that the
	// module comes from: "wss://live.example.com". Page and gateway of one origin need
	// none.
	Connect []string
}

//go:embed holdfast.min.js
var module []byte

//go:embed holdfast.d.ts
var types []byte

// hash names the content of the module.
var hash = sum(module)

// sum names a content.
func sum(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:8])
}

// A file is what is served under a name.
type file struct {
	mime    string
	content []byte
	hash    string
	gzipped func() (content []byte, hash string) // nil if it is not worth it
}

var files = map[string]file{
	"holdfast.js":   {"text/javascript; charset=utf-8", module, hash, sync.OnceValues(compressed)},
	"holdfast.d.ts": {"text/plain; charset=utf-8", types, sum(types), nil},
}

// compressed returns the module gzipped, and a hash of that: another version of Go may
// compress it to other bytes.
func compressed() (content []byte, hash string) {
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
	w.Write(module)
	w.Close()
	return b.Bytes(), sum(b.Bytes())
}

// takesGzip tells whether a client takes what is gzipped, after its Accept-Encoding: that
// is a list of codings, each with a weight, where 0 means no, and * all that is not listed.
func takesGzip(accept string) bool {
	others := false
	for one := range strings.SplitSeq(accept, ",") {
		coding, params, _ := strings.Cut(one, ";")
		q := 1.0
		if name, value, ok := strings.Cut(strings.TrimSpace(params), "="); ok && strings.EqualFold(strings.TrimSpace(name), "q") {
			q, _ = strconv.ParseFloat(strings.TrimSpace(value), 64) // 0 if it is no number
		}
		switch strings.ToLower(strings.TrimSpace(coding)) {
		case "gzip", "x-gzip":
			return q > 0
		case "*":
			others = q > 0
		}
	}
	return others
}

// URL returns the address of the module below prefix, which is where the Handler is
// mounted: "/holdfast/". It contains a hash of the content, so that browsers may keep
// what they get for ever, and a page of a new version never joins a worker of an old
// one.
func URL(prefix string) string { return strings.TrimSuffix(prefix, "/") + "/holdfast.js?v=" + hash }

// Handler serves holdfast.min.js under the name of holdfast.js and, for editors,
// holdfast.d.ts. Mount it with http.StripPrefix. The error of an origin in Connect that
// is none is a panic, as for a pattern of http.ServeMux. Nil opts are all defaults.
//
// With the hash of [URL] the answer may be kept for ever; with another, as during a deploy
// of several servers, not at all; and without one it has to be asked for each time, which
// is answered with 304 if nothing has changed.
//
// The module is gzipped for those who take that, which makes less than 16 KiB of it.
func Handler(opts *Options) http.Handler {
	connect := "'self'"
	if opts != nil {
		for _, origin := range opts.Connect {
			scheme, host, ok := strings.Cut(origin, "://")
			odd := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`;,'"/?#\`, r) }
			if !ok || scheme != "ws" && scheme != "wss" && scheme != "http" && scheme != "https" || host == "" || strings.ContainsFunc(host, odd) {
				panic("browser: Connect: not an origin, as wss://example.com is: " + origin)
			}
			connect += " " + origin
		}
	}
	policy := "default-src 'none'; script-src 'self'; connect-src " + connect
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, ok := files[strings.TrimPrefix(r.URL.Path, "/")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
			return
		}
		h := w.Header()
		h.Set("Content-Type", f.mime)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Access-Control-Allow-Origin", "*") // frames in a sandbox are of no origin; and it is no secret
		h.Set("Content-Security-Policy", policy)
		switch v := r.URL.Query().Get("v"); v {
		case "":
			h.Set("Cache-Control", "no-cache")
		case f.hash:
			h.Set("Cache-Control", "public, max-age=31536000, immutable")
		default:
			// An old server answers for a new one: who kept this would keep it for a year.
			h.Set("Cache-Control", "no-store")
		}
		h.Add("Vary", "Accept-Encoding")
		content, tag := f.content, f.hash
		if f.gzipped != nil && takesGzip(strings.Join(r.Header.Values("Accept-Encoding"), ",")) {
			content, tag = f.gzipped()
			h.Set("Content-Encoding", "gzip")
			if r.Header.Get("If-Match") == "" { // which may be answered without a body
				h.Set("Content-Length", strconv.Itoa(len(content))) // ServeContent sets none beside an encoding
			}
		}
		h.Set("ETag", `"`+tag+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	})
}
