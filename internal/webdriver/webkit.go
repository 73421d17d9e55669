//go:build linux

package webdriver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A WebKit is a running MiniBrowser of WebKitGTK, spoken to in WebDriver
// (https://www.w3.org/TR/webdriver2/). It does one thing at a time.
type WebKit struct {
	cmd    *exec.Cmd // of the driver, which starts the browser
	screen *exec.Cmd
	dir    string
	base   string // URL of the session
	first  string // a tab that stays: there has to be one to open others
	http   http.Client

	turn    chan struct{} // has room for one: whoever makes a call, and has current
	current string        // the tab that calls are about
}

// StartWebKit starts the WebKitWebDriver that is on PATH, with it the browser that Debian
// has for it, with a fresh profile, and Xvfb, on which that is shown.
func StartWebKit() (b *WebKit, err error) {
	path, err := exec.LookPath("WebKitWebDriver")
	if err != nil {
		return nil, err
	}
	xvfb, err := exec.LookPath("Xvfb")
	if err != nil {
		return nil, err
	}
	browsers, err := filepath.Glob("/usr/lib/*/webkit2gtk-4.1/MiniBrowser")
	if err != nil || len(browsers) == 0 {
		return nil, fmt.Errorf("MiniBrowser: %w", exec.ErrNotFound)
	}
	dir, err := os.MkdirTemp("", "webkit")
	if err != nil {
		return nil, err
	}
	b = &WebKit{dir: dir, turn: make(chan struct{}, 1)}
	b.http.Transport = &http.Transport{DisableKeepAlives: true}
	defer func() {
		if err != nil {
			b.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	read, write, err := os.Pipe()
	if err != nil {
		return b, err
	}
	defer read.Close()
	group := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	screen := exec.Command(xvfb, "-displayfd", "3", "-nolisten", "tcp", "-screen", "0", "800x600x24")
	screen.ExtraFiles, screen.SysProcAttr = []*os.File{write}, group
	err = screen.Start()
	write.Close()
	if err != nil {
		return b, err
	}
	b.screen = screen
	read.SetReadDeadline(time.Now().Add(30 * time.Second))
	number := make([]byte, 16)
	n, err := read.Read(number)
	if err != nil {
		return b, fmt.Errorf("%s: %w", xvfb, err)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return b, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close() // somebody else may take it now, which is an error then
	cmd := exec.Command(path, fmt.Sprintf("--port=%d", port))
	cmd.SysProcAttr = group
	cmd.Env = append(os.Environ(), "DISPLAY=:"+strings.TrimSpace(string(number[:n])), "HOME="+dir, "XDG_RUNTIME_DIR="+dir,
		"XDG_CACHE_HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir,
		"WEBKIT_DISABLE_COMPOSITING_MODE=1", "LIBGL_ALWAYS_SOFTWARE=1", "GIO_USE_NETWORK_MONITOR=base", "NO_AT_BRIDGE=1")
	if err := cmd.Start(); err != nil {
		return b, err
	}
	b.cmd = cmd
	root := fmt.Sprintf("http://127.0.0.1:%d", port)
	if err := retry(ctx, func() error { return b.call(ctx, "GET", root+"/status", nil, nil) }); err != nil {
		return b, err
	}
	var session struct{ SessionID string }
	err = b.call(ctx, "POST", root+"/session", map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"timeouts":                 map[string]any{"script": 60_000, "pageLoad": 60_000},
		"webkitgtk:browserOptions": map[string]any{"binary": browsers[0], "args": []string{"--automation"}},
	}}}, &session)
	if err != nil {
		return b, err
	}
	b.base = root + "/session/" + session.SessionID
	return b, b.call(ctx, "GET", b.base+"/window", nil, &b.first)
}

// call makes a request and puts the value of the answer into result if that is not nil.
func (b *WebKit) call(ctx context.Context, method, url string, params, result any) error {
	var body io.Reader
	if method == "POST" {
		if params == nil {
			params = struct{}{}
		}
		text, err := json.Marshal(params)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	resp, err := b.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct{ Value json.RawMessage }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, answer.Value)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(answer.Value, result)
}

// in makes a call about a tab.
func (b *WebKit) in(ctx context.Context, tab, method, path string, params, result any) error {
	select {
	case b.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-b.turn }()
	if tab != b.current {
		if err := b.call(ctx, "POST", b.base+"/window", map[string]any{"handle": tab}, nil); err != nil {
			return err
		}
		b.current = tab
	}
	return b.call(ctx, method, b.base+path, params, result)
}

// Open opens a tab.
func (b *WebKit) Open(ctx context.Context, url string) (*Tab, error) {
	var r struct{ Handle string }
	if err := b.in(ctx, b.first, "POST", "/window/new", map[string]any{"type": "tab"}, &r); err != nil {
		return nil, err
	}
	t := &Tab{b, r.Handle}
	return t, t.Navigate(ctx, url)
}

func (b *WebKit) evaluate(ctx context.Context, tab, promise string) (string, error) {
	var r struct{ Value, Error string }
	script := "const done = arguments[arguments.length - 1]; " + promise +
		".then(value => done({ value }), error => done({ error: String(error) || 'an error' }));"
	err := b.in(ctx, tab, "POST", "/execute/async", map[string]any{"script": script, "args": []any{}}, &r)
	if err == nil && r.Error != "" {
		err = fmt.Errorf("%s", r.Error)
	}
	return r.Value, err
}

func (b *WebKit) navigate(ctx context.Context, tab, url string) error {
	return b.in(ctx, tab, "POST", "/url", map[string]any{"url": url}, nil)
}

func (b *WebKit) back(ctx context.Context, tab string) error {
	return b.in(ctx, tab, "POST", "/back", nil, nil)
}

func (b *WebKit) reload(ctx context.Context, tab string) error {
	return b.in(ctx, tab, "POST", "/refresh", nil, nil)
}

func (b *WebKit) close(ctx context.Context, tab string) error {
	err := b.in(ctx, tab, "DELETE", "/window", nil, nil)
	b.turn <- struct{}{}
	defer func() { <-b.turn }()
	if b.current == tab {
		b.current = ""
	}
	return err
}

// Close ends the browser and all of its processes, and removes its profile.
func (b *WebKit) Close() {
	for _, cmd := range []*exec.Cmd{b.cmd, b.screen} {
		if cmd != nil {
			for _, pid := range children(cmd.Process.Pid, func(string) bool { return true }) {
				syscall.Kill(pid, syscall.SIGKILL)
			}
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			cmd.Wait()
		}
	}
	os.RemoveAll(b.dir)
}
