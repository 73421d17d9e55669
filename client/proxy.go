package client

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
)

// viaTunnel has a request without TLS go through an HTTP proxy as WebSockets have to (RFC
// 6455, section 4.1): by CONNECT. Package net/http does that for TLS alone, and sends a GET
// otherwise, which proxies answer themselves, without Upgrade. The transport is that of one
// request.
func viaTunnel(t *http.Transport, req *http.Request) error {
	if t.Proxy == nil {
		return nil
	}
	proxy, err := t.Proxy(req)
	if err != nil {
		return err
	}
	t.Proxy = http.ProxyURL(proxy) // it is asked once
	if t.OnProxyConnectResponse == nil {
		t.OnProxyConnectResponse = connected
	}
	if proxy == nil || req.URL.Scheme != "http" || proxy.Scheme != "http" && proxy.Scheme != "https" {
		return nil
	}
	p := &proxyDialer{Transport: t.Clone(), proxy: proxy, dial: t.DialContext}
	//lint:ignore SA1019 it is deprecated, and may be set
	if old := t.Dial; p.dial == nil && old != nil {
		p.dial = func(_ context.Context, network, address string) (net.Conn, error) { return old(network, address) }
	} else if p.dial == nil {
		p.dial = (&net.Dialer{}).DialContext
	}
	t.Proxy, t.DialContext = nil, p.tunnel
	return nil
}

// connected says what is wrong with a proxy's answer to a CONNECT, if anything is.
func connected(_ context.Context, proxy *url.URL, req *http.Request, resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	return fmt.Errorf("the proxy %s answered %s to CONNECT %s", proxy.Host, resp.Status, req.Host)
}

// A proxyDialer makes connections through an HTTP proxy.
type proxyDialer struct {
	*http.Transport // for its options
	proxy           *url.URL
	dial            dialFunc
}

// tunnel returns a connection to address.
func (p *proxyDialer) tunnel(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := p.reach(ctx, network)
	if err != nil {
		return nil, fmt.Errorf("proxy %s: %w", p.proxy.Host, err)
	}
	raw := conn
	if secured, ok := conn.(*tls.Conn); ok { // whose Close writes, which may take 5 s
		raw = secured.NetConn()
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		raw.Close()
	})
	err = p.connect(ctx, conn, address)
	if !stop() {
		<-closed
		if err == nil {
			err = context.Cause(ctx)
		}
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// reach returns a connection to the proxy itself.
func (p *proxyDialer) reach(ctx context.Context, network string) (net.Conn, error) {
	port := p.proxy.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[p.proxy.Scheme]
	}
	address := net.JoinHostPort(p.proxy.Hostname(), port)
	if p.proxy.Scheme == "https" && p.DialTLSContext != nil {
		return p.DialTLSContext(ctx, network, address)
	}
	if old := p.DialTLS; p.proxy.Scheme == "https" && old != nil {
		return old(network, address)
	}
	conn, err := p.dial(ctx, network, address)
	if err != nil || p.proxy.Scheme == "http" {
		return conn, err
	}
	config := p.TLSClientConfig.Clone()
	if config == nil {
		config = &tls.Config{}
	}
	if config.ServerName == "" {
		config.ServerName = p.proxy.Hostname()
	}
	config.NextProtos = nil // no HTTP/2
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secured, nil
}

// connect asks for the way to address.
func (p *proxyDialer) connect(ctx context.Context, conn net.Conn, address string) error {
	header := p.ProxyConnectHeader.Clone()
	if p.GetProxyConnectHeader != nil {
		h, err := p.GetProxyConnectHeader(ctx, p.proxy, address)
		if err != nil {
			return err
		}
		header = h.Clone()
	}
	if header == nil {
		header = http.Header{}
	}
	if user := p.proxy.User; user != nil {
		password, _ := user.Password()
		header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: header}
	if err := req.Write(conn); err != nil {
		return fmt.Errorf("proxy %s: %w", p.proxy.Host, err)
	}
	most := p.MaxResponseHeaderBytes
	if most <= 0 {
		most = maxHeader
	}
	// What is behind the answer is of nobody: the server does not speak first.
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, most)), req)
	if err != nil {
		return fmt.Errorf("proxy %s: %w", p.proxy.Host, err)
	}
	if err := p.OnProxyConnectResponse(ctx, p.proxy, req, resp); err != nil {
		return err
	}
	return connected(ctx, p.proxy, req, resp)
}
