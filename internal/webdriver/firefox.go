//go:build linux

package webdriver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

// A Firefox is a running Firefox, spoken to in WebDriver BiDi
// (https://www.w3.org/TR/webdriver-bidi/).
type Firefox struct {
	cmd    *exec.Cmd
	dir    string
	conn   *websocket.Conn
	cancel context.CancelFunc
	ended  sync.WaitGroup

	mu   sync.Mutex // guards all below
	id   int
	wait map[int]chan reply
	gone bool
}

type reply struct {
	ID      int
	Type    string
	Result  json.RawMessage
	Error   string
	Message string
}

// prefs keep it from asking the world for things.
const prefs = `user_pref("app.update.auto", false);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("browser.safebrowsing.downloads.remote.enabled", false);
user_pref("services.settings.server", "http://127.0.0.1:9");
`

// StartFirefox starts the firefox, or firefox-esr, that is on PATH, with a fresh profile.
func StartFirefox() (b *Firefox, err error) {
	path, err := exec.LookPath("firefox")
	if err != nil {
		if path, err = exec.LookPath("firefox-esr"); err != nil {
			return nil, err
		}
	}
	dir, err := os.MkdirTemp("", "firefox")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	b = &Firefox{dir: dir, cancel: cancel, wait: map[int]chan reply{}}
	defer func() {
		if err != nil {
			b.Close()
		}
	}()
	if err := os.WriteFile(filepath.Join(dir, "user.js"), []byte(prefs), 0o600); err != nil {
		return b, err
	}
	cmd := exec.Command(path, "--headless", "--no-remote", "--remote-debugging-port=0", "--profile", dir, "about:blank")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	says, err := cmd.StderrPipe()
	if err != nil {
		return b, err
	}
	if err := cmd.Start(); err != nil {
		return b, err
	}
	b.cmd = cmd
	found := make(chan string, 1)
	b.ended.Go(func() {
		lines := bufio.NewScanner(says)
		for lines.Scan() {
			if _, url, ok := strings.Cut(lines.Text(), "BiDi listening on "); ok {
				found <- url
				break
			}
		}
		close(found)
		io.Copy(io.Discard, says)
	})
	starting, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	select {
	case url, ok := <-found:
		if !ok {
			return b, errors.New("firefox ended while it started")
		}
		conn, _, err := websocket.Dial(starting, url+"/session", nil)
		if err != nil {
			return b, err
		}
		conn.SetReadLimit(-1)
		b.conn = conn
	case <-starting.Done():
		return b, errors.New("firefox does not say where it listens")
	}
	b.ended.Go(func() { b.read(ctx) })
	return b, b.call(starting, "session.new", map[string]any{"capabilities": struct{}{}}, nil)
}

func (b *Firefox) read(ctx context.Context) {
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.gone = true
		for _, c := range b.wait {
			close(c)
		}
		clear(b.wait)
	}()
	for {
		_, text, err := b.conn.Read(ctx)
		if err != nil {
			return
		}
		var r reply
		if json.Unmarshal(text, &r) != nil || r.Type == "event" {
			continue
		}
		b.mu.Lock()
		if c := b.wait[r.ID]; c != nil {
			delete(b.wait, r.ID)
			c <- r
		}
		b.mu.Unlock()
	}
}

var errGone = errors.New("firefox is gone")

func (b *Firefox) call(ctx context.Context, method string, params, result any) error {
	c := make(chan reply, 1)
	b.mu.Lock()
	if b.gone {
		b.mu.Unlock()
		return errGone
	}
	b.id++
	id := b.id
	b.wait[id] = c
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.wait, id)
	}()
	text, err := json.Marshal(map[string]any{"id": id, "method": method, "params": params})
	if err != nil {
		return err
	}
	// A connection does not outlive a write that was cancelled.
	if err := b.conn.Write(context.WithoutCancel(ctx), websocket.MessageText, text); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", method, context.Cause(ctx))
	case r, ok := <-c:
		switch {
		case !ok:
			return errGone
		case r.Type != "success":
			return fmt.Errorf("%s: %s: %s", method, r.Error, r.Message)
		case result == nil:
			return nil
		}
		return json.Unmarshal(r.Result, result)
	}
}

// Open opens a tab.
func (b *Firefox) Open(ctx context.Context, url string) (*Tab, error) {
	var r struct{ Context string }
	if err := b.call(ctx, "browsingContext.create", map[string]any{"type": "tab"}, &r); err != nil {
		return nil, err
	}
	t := &Tab{b, r.Context}
	return t, t.Navigate(ctx, url)
}

func (b *Firefox) evaluate(ctx context.Context, tab, promise string) (string, error) {
	var r struct {
		Result           struct{ Value string }
		ExceptionDetails struct{ Text string }
	}
	err := b.call(ctx, "script.evaluate", map[string]any{
		"expression": promise, "target": map[string]any{"context": tab}, "awaitPromise": true, "userActivation": true,
	}, &r)
	if err == nil && r.ExceptionDetails.Text != "" {
		err = errors.New(r.ExceptionDetails.Text)
	}
	return r.Result.Value, err
}

func (b *Firefox) navigate(ctx context.Context, tab, url string) error {
	return b.call(ctx, "browsingContext.navigate", map[string]any{"context": tab, "url": url, "wait": "complete"}, nil)
}

func (b *Firefox) back(ctx context.Context, tab string) error {
	return b.call(ctx, "browsingContext.traverseHistory", map[string]any{"context": tab, "delta": -1}, nil)
}

func (b *Firefox) reload(ctx context.Context, tab string) error {
	return b.call(ctx, "browsingContext.reload", map[string]any{"context": tab, "wait": "complete"}, nil)
}

func (b *Firefox) close(ctx context.Context, tab string) error {
	return b.call(ctx, "browsingContext.close", map[string]any{"context": tab}, nil)
}

// Processes returns those that run pages and workers, in no order.
func (b *Firefox) Processes() []int {
	return children(b.cmd.Process.Pid, func(line string) bool {
		return strings.Contains(line, " -contentproc ") && strings.HasSuffix(line, " tab")
	})
}

// Close ends the browser and all of its processes, and removes its profile.
func (b *Firefox) Close() {
	b.cancel()
	if b.conn != nil {
		b.conn.CloseNow()
	}
	if b.cmd != nil {
		syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL)
		b.ended.Wait() // before the pipe is closed
		b.cmd.Wait()
	}
	os.RemoveAll(b.dir)
}
