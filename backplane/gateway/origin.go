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
// a sandbox, and "file://", of pages that are files, are schemes without a host.
type origin struct {
	scheme, host string // lower case; the host with its port unless that is the usual one
	below        bool
}

// parseOrigin parses a pattern, or an Origin header (RFC 6454, section 7), which has
// no stars.
func parseOrigin(s string, pattern bool) (o origin, err error) {
	switch s {
	case "null":
		return origin{scheme: s}, nil
	case "file://":
		return origin{scheme: "file"}, nil
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

// foreign says what would let in a page that is not allowed: to the page, if it may be the
// server's own, and to the operator.
func foreign(r *http.Request) (text, hint string) {
	const list = "list the origin in gateway.Options.Origins"
	header := r.Header["Origin"]
	if len(header) != 1 {
		return "", "the request has several headers Origin"
	}
	from, err := parseOrigin(header[0], false)
	switch {
	case err != nil:
		return "", "that is no origin"
	case from.host == "":
		return "", list + ", if it is not that of any page: it is without a host"
	}
	scheme := ownScheme(r)
	page, server := &url.URL{Host: from.host}, &url.URL{Host: canonicalHost(scheme, r.Host)}
	if page.Hostname() != server.Hostname() {
		return "", list + ", or if it is the server's own, have the proxy keep Host"
	}
	var do []string
	if from.scheme != scheme {
		text = "in the scheme"
		do = append(do, "a proxy that ends TLS has to set X-Forwarded-Proto")
	}
	if from.host != canonicalHost(from.scheme, r.Host) {
		if server.Port() != "" { // another server on the same machine
			return "", list
		}
		text = strings.TrimPrefix(text+" and in the port", " and ")
		do = append(do, "a proxy has to pass on Host with the port (nginx: $http_host, and not $host)")
	}
	hint = strings.Join(do, ", and ") + "; or " + list
	return "It differs from the server's own " + text + " alone: " + strings.Join(do, ", and ") + ", or the origin has to be listed.", hint
}
