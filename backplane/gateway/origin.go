package gateway

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"
)

// An origin is a pattern of Options.Origins: scheme://host[:port], or with "*." before
// the host for everything below it, at any depth, but not itself. "null", of frames in
// a sandbox, is a scheme without a host.
type origin struct {
	scheme, host string // lower case; the host with its port unless that is the usual one
	below        bool
}

// parseOrigin parses a pattern, or an Origin header (RFC 6454, section 7), which has
// no stars.
func parseOrigin(s string, pattern bool) (o origin, err error) {
	if s == "null" {
		return origin{scheme: s}, nil
	}
	scheme, host, ok := strings.Cut(strings.ToLower(s), "://")
	if !ok || scheme == "" {
		return o, fmt.Errorf("has no scheme, as in https://example.com")
	}
	if pattern {
		host, o.below = strings.CutPrefix(host, "*.")
	}
	if strings.ContainsAny(host, "*/?#@\\ ") || host == "" {
		return o, fmt.Errorf("is not of the form scheme://host, scheme://host:port or scheme://*.host")
	}
	u, err := url.Parse(scheme + "://" + host)
	if err != nil || u.Host != host || u.Hostname() == "" || strings.HasPrefix(host, ".") || strings.HasSuffix(host, ":") {
		return o, fmt.Errorf("is not of the form scheme://host, scheme://host:port or scheme://*.host")
	}
	if pattern {
		port, _ := strconv.Atoi(u.Port())
		switch {
		case scheme == "ws" || scheme == "wss":
			return o, fmt.Errorf("is no origin of a page: that begins with http or https")
		case port > 65535 || strings.Contains(host, ","):
			return o, fmt.Errorf("is not of the form scheme://host, scheme://host:port or scheme://*.host")
		case strings.ContainsFunc(host, func(r rune) bool { return r > unicode.MaxASCII }):
			return o, fmt.Errorf("is not as browsers send it, which is in Punycode: xn--…")
		case o.below && (!strings.Contains(strings.TrimSuffix(u.Hostname(), "."), ".") && u.Hostname() != "localhost" || strings.Contains(host, "[")):
			return o, fmt.Errorf("would let in everybody below %q", host)
		}
	}
	o.scheme, o.host = scheme, canonicalHost(scheme, host)
	return o, nil
}

// canonicalHost leaves out the port that goes without saying.
func canonicalHost(scheme, host string) string {
	host = strings.ToLower(host)
	if h, port, err := net.SplitHostPort(host); err == nil {
		if scheme == "https" && port == "443" || scheme == "http" && port == "80" {
			if strings.Contains(h, ":") {
				return "[" + h + "]"
			}
			return h
		}
	}
	return host
}

func (o origin) matches(other origin) bool {
	if o.scheme != other.scheme {
		return false
	}
	if o.below {
		return strings.HasSuffix(other.host, "."+o.host) && len(other.host) > len(o.host)+1
	}
	return o.host == other.host
}

// allowed reports whether a page of the request's origin may connect. Requests without
// an Origin do not come from a page.
func (g *Gateway) allowed(r *http.Request) bool {
	header := r.Header["Origin"]
	if len(header) == 0 {
		return true
	}
	if len(header) > 1 {
		return false
	}
	from, err := parseOrigin(header[0], false)
	if err != nil {
		return false
	}
	own := origin{scheme: ownScheme(r)}
	own.host = canonicalHost(own.scheme, r.Host)
	if from.host != "" && own.matches(from) {
		return true
	}
	for _, o := range g.origins {
		if o.matches(from) {
			return true
		}
	}
	return false
}

// ownScheme returns the scheme of pages of the server's own, as the request says it.
func ownScheme(r *http.Request) string {
	// A page cannot set this header, so it cannot lie with it.
	if proto := r.Header.Get("X-Forwarded-Proto"); proto != "" {
		proto, _, _ = strings.Cut(proto, ",")
		switch proto = strings.ToLower(strings.TrimSpace(proto)); proto {
		case "wss":
			return "https"
		case "ws":
			return "http"
		}
		return proto
	}
	if r.TLS != nil {
		return "https"
	}
	return "http"
}

// onlyScheme reports whether it is the scheme alone that keeps the origin of a request that
// is not allowed from being the server's own.
func onlyScheme(r *http.Request) bool {
	header := r.Header["Origin"]
	if len(header) != 1 {
		return false
	}
	from, err := parseOrigin(header[0], false)
	return err == nil && from.host != "" && from.scheme != ownScheme(r) && from.host == canonicalHost(from.scheme, r.Host)
}
