//go:build unix

// Package chromium drives a headless Chromium for tests, over a pipe and with nothing
// but the standard library: tabs, JavaScript in them, freezing, crashing, and killing
// the process of a shared worker.
package chromium

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/internal/verify"
)

// A Browser is a running Chromium. It is safe for concurrent use.
type Browser struct {
	cmd  *exec.Cmd
	out  *os.File
	gone chan struct{} // closed when the pipe has ended
	dir  string
	said lastWords

	mu   sync.Mutex // guards all below, and the order of writes
	id   int64
	wait map[int64]chan reply
	logs map[string][]string      // by session: what the page's console and exceptions say
	dead map[string]chan struct{} // by session: closed when the page's process is gone
}

type reply struct {
	Result json.RawMessage
	Error  *struct{ Message string }
}

// lastWords are the last 4 KB that were written to it.
type lastWords struct {
	mu sync.Mutex
	b  []byte
}

func (w *lastWords) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b = append(w.b, b...)
	w.b = w.b[max(0, len(w.b)-4096):]
	return len(b), nil
}

func (w *lastWords) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.b)
}

// names are those under which distributions install it.
var names = []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"}

// Find returns the path of the program, or skips the test, loudly; with CI=true it
// fails.
func Find(t testing.TB) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("no chromium on PATH")
	}
	verify.Skip(t, "no chromium on PATH, nothing was tried in a browser")
	return ""
}

// Start starts a browser with a fresh profile. Flags are added to the usual ones. One start
// in some 300 of Chromium 156 ends with a segmentation fault of its own, when several are
// started at once, so there are three attempts.
func Start(path string, flags ...string) (b *Browser, err error) {
	for range 3 {
		if b, err = start(path, flags...); !errors.Is(err, errGone) {
			break
		}
	}
	return b, err
}

// Several starts as many browsers as a test should use at a time: each of its cases waits
// for half of its time. They end with the test. Without a Chromium the test is skipped, as
// Find says.
func Several(t testing.TB, flags ...string) []*Browser {
	t.Helper()
	path := Find(t)
	bs := make([]*Browser, min(4, runtime.GOMAXPROCS(0)))
	for i := range bs {
		b, err := Start(path, flags...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Close)
		bs[i] = b
	}
	return bs
}

var errGone = errors.New("the browser is gone")

func start(path string, flags ...string) (*Browser, error) {
	dir, err := os.MkdirTemp("", "chromium")
	if err != nil {
		return nil, err
	}
	read, out, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	in, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	args := append([]string{
		"--headless", "--remote-debugging-pipe", "--user-data-dir=" + dir, "--no-sandbox", "--disable-gpu",
		"--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
		"--disable-sync", "--disable-dev-shm-usage",
	}, flags...)
	b := &Browser{
		cmd: exec.Command(path, append(args, "about:blank")...), out: out, dir: dir,
		gone: make(chan struct{}), wait: map[int64]chan reply{}, logs: map[string][]string{},
		dead: map[string]chan struct{}{},
	}
	b.cmd.ExtraFiles = []*os.File{read, write} // its descriptors 3 and 4
	b.cmd.SysProcAttr = processGroup()
	b.cmd.Stderr = &b.said
	b.cmd.WaitDelay = time.Second // for a process of it that lives on and holds stderr
	err = b.cmd.Start()
	read.Close() // while we hold these ends, the pipe never ends
	write.Close()
	if err != nil {
		in.Close()
		out.Close()
		return nil, err
	}
	go b.read(in)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := b.Call(ctx, "", "Browser.getVersion", nil, nil); err != nil {
		b.Close()
		return nil, fmt.Errorf("%w (%v); it said: %s", err, b.cmd.ProcessState, b.said.text())
	}
	return b, nil
}

// read reads answers and events: JSON, each ended by a zero byte.
func (b *Browser) read(in *os.File) {
	defer close(b.gone)
	defer in.Close()
	r := bufio.NewReaderSize(in, 1<<20)
	for {
		text, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var m struct {
			reply
			ID        int64
			Method    string
			SessionID string
			Params    struct {
				Args             []struct{ Value any }
				ExceptionDetails struct {
					Text      string
					Exception struct{ Description string }
				}
			}
		}
		if json.Unmarshal(text[:len(text)-1], &m) != nil {
			continue // an event whose parameters are of another form
		}
		b.mu.Lock()
		if c := b.wait[m.ID]; c != nil && m.Method == "" {
			delete(b.wait, m.ID)
			c <- m.reply
		}
		switch m.Method {
		case "Runtime.consoleAPICalled":
			var line strings.Builder
			for _, a := range m.Params.Args {
				fmt.Fprint(&line, a.Value, " ")
			}
			b.logs[m.SessionID] = append(b.logs[m.SessionID], line.String())
		case "Runtime.exceptionThrown":
			d := m.Params.ExceptionDetails
			b.logs[m.SessionID] = append(b.logs[m.SessionID], d.Text+" "+d.Exception.Description)
		case "Inspector.targetCrashed":
			if c := b.dead[m.SessionID]; c != nil {
				delete(b.dead, m.SessionID)
				close(c)
			}
		}
		b.mu.Unlock()
	}
}

// Call calls a method of the DevTools protocol, in a session or, if that is empty, of the
// browser, and puts what it returns into result if that is not nil.
func (b *Browser) Call(ctx context.Context, session, method string, params, result any) error {
	return b.call(ctx, session, nil, method, params, result)
}

// call is Call for a page that may die.
func (b *Browser) call(ctx context.Context, session string, dead <-chan struct{}, method string, params, result any) error {
	if params == nil {
		params = struct{}{}
	}
	request := map[string]any{"method": method, "params": params}
	if session != "" {
		request["sessionId"] = session
	}
	c := make(chan reply, 1)
	b.mu.Lock()
	b.id++
	id := b.id
	request["id"] = id
	b.wait[id] = c
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.wait, id)
	}()
	text, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	_, err = b.out.Write(append(text, 0)) // one write, which a pipe's lock keeps whole
	if errors.Is(err, syscall.EPIPE) {
		err = errGone
	}
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", method, context.Cause(ctx))
	case <-b.gone:
		return fmt.Errorf("%s: %w", method, errGone)
	case <-dead:
		return fmt.Errorf("%s: the page has crashed", method)
	case r := <-c:
		if r.Error != nil {
			return fmt.Errorf("%s: %s", method, r.Error.Message)
		}
		if result == nil {
			return nil
		}
		return json.Unmarshal(r.Result, result)
	}
}

// Close ends the browser and all of its processes, and removes its profile.
func (b *Browser) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	b.Call(ctx, "", "Browser.close", nil, nil)
	syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL)
	b.cmd.Wait()
	b.out.Close()
	<-b.gone
	os.RemoveAll(b.dir)
}

// A Profile is a set of tabs that share cookies, storage and workers with each other and
// with no other profile.
type Profile struct {
	b  *Browser
	id string

	mu   sync.Mutex // guards some
	some bool       // there was a tab: the first needs a window
}

// Profile returns a new, empty profile.
func (b *Browser) Profile(ctx context.Context) (*Profile, error) {
	var r struct{ BrowserContextID string }
	err := b.Call(ctx, "", "Target.createBrowserContext", nil, &r)
	return &Profile{b: b, id: r.BrowserContextID}, err
}

// Close closes all tabs of the profile.
func (p *Profile) Close(ctx context.Context) error {
	return p.b.Call(ctx, "", "Target.disposeBrowserContext", map[string]any{"browserContextId": p.id}, nil)
}

// A Tab is one page. The tab opened last is visible, and the others of its profile are
// hidden, until Show.
type Tab struct {
	b               *Browser
	target, session string
	dead            chan struct{} // closed when its process is gone, after which it cannot be used again
}

// Open opens a tab at url. Before any script of its own each of its pages runs init, if
// that is not empty.
func (p *Profile) Open(ctx context.Context, url, init string) (*Tab, error) {
	p.mu.Lock()
	first := !p.some
	p.some = true
	p.mu.Unlock()
	var target struct{ TargetID string }
	err := p.b.Call(ctx, "", "Target.createTarget", map[string]any{
		"url": "about:blank", "browserContextId": p.id, "newWindow": first,
	}, &target)
	if err != nil {
		return nil, err
	}
	var attached struct{ SessionID string }
	err = p.b.Call(ctx, "", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	if err != nil {
		return nil, err
	}
	t := &Tab{p.b, target.TargetID, attached.SessionID, make(chan struct{})}
	p.b.mu.Lock()
	p.b.dead[t.session] = t.dead
	p.b.mu.Unlock()
	for _, method := range []string{"Inspector.enable", "Page.enable", "Runtime.enable"} {
		if err := t.call(ctx, method, nil, nil); err != nil {
			return nil, err
		}
	}
	if init != "" {
		if err := t.call(ctx, "Page.addScriptToEvaluateOnNewDocument", map[string]any{"source": init}, nil); err != nil {
			return nil, err
		}
	}
	return t, t.Navigate(ctx, url)
}

// Call calls a method of the DevTools protocol for the page, as Browser.Call does.
func (t *Tab) Call(ctx context.Context, method string, params, result any) error {
	return t.call(ctx, method, params, result)
}

func (t *Tab) call(ctx context.Context, method string, params, result any) error {
	return t.b.call(ctx, t.session, t.dead, method, params, result)
}

// Navigate goes to url, and returns when it has been answered.
func (t *Tab) Navigate(ctx context.Context, url string) error {
	var r struct{ ErrorText string }
	if err := t.call(ctx, "Page.navigate", map[string]any{"url": url}, &r); err != nil {
		return err
	}
	if r.ErrorText != "" {
		return fmt.Errorf("%s: %s", url, r.ErrorText)
	}
	return nil
}

// Eval evaluates JavaScript in the page, waits for what it returns if that is a promise,
// and puts that into result if that is not nil.
func (t *Tab) Eval(ctx context.Context, expression string, result any) error {
	var r struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	err := t.call(ctx, "Runtime.evaluate", map[string]any{
		"expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true,
	}, &r)
	if err != nil {
		return err
	}
	if e := r.ExceptionDetails; e != nil {
		return fmt.Errorf("%s: %s %s", expression, e.Text, e.Exception.Description)
	}
	if result == nil || r.Result.Value == nil {
		return nil
	}
	return json.Unmarshal(r.Result.Value, result)
}

// Until evaluates a condition again and again until it is true.
func (t *Tab) Until(ctx context.Context, condition string) error {
	for {
		var ok bool
		err := t.Eval(ctx, "!!("+condition+")", &ok)
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: never true (%v): %s", condition, err, strings.Join(t.Logs(), "\n"))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Logs returns what the page has written to its console, and exceptions that nobody has
// caught.
func (t *Tab) Logs() []string {
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	return slices.Clone(t.b.logs[t.session])
}

// Show makes the tab the visible one of its profile.
func (t *Tab) Show(ctx context.Context) error { return t.call(ctx, "Page.bringToFront", nil, nil) }

// Close closes the tab.
func (t *Tab) Close(ctx context.Context) error {
	return t.b.Call(ctx, "", "Target.closeTarget", map[string]any{"targetId": t.target}, nil)
}

// Crash crashes the process of the tab, which may be that of others, too.
func (t *Tab) Crash(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	t.call(ctx, "Page.crash", nil, nil) // is never answered
}

// Freeze freezes the page as browsers do with those in the background, or ends that.
func (t *Tab) Freeze(ctx context.Context, frozen bool) error {
	state := "active"
	if frozen {
		state = "frozen"
	}
	return t.call(ctx, "Page.setWebLifecycleState", map[string]any{"state": state}, nil)
}

// Back goes back in the tab's history.
func (t *Tab) Back(ctx context.Context) error {
	var h struct {
		CurrentIndex int
		Entries      []struct{ ID int }
	}
	if err := t.call(ctx, "Page.getNavigationHistory", nil, &h); err != nil {
		return err
	}
	if h.CurrentIndex == 0 {
		return errors.New("there is nothing to go back to")
	}
	return t.call(ctx, "Page.navigateToHistoryEntry", map[string]any{"entryId": h.Entries[h.CurrentIndex-1].ID}, nil)
}

// Reload loads the page again.
func (t *Tab) Reload(ctx context.Context) error { return t.call(ctx, "Page.reload", nil, nil) }

// Screenshot returns a picture of the page, as a PNG.
func (t *Tab) Screenshot(ctx context.Context) ([]byte, error) {
	var r struct{ Data []byte }
	err := t.call(ctx, "Page.captureScreenshot", map[string]any{"format": "png"}, &r)
	return r.Data, err
}

// workers returns the targets of the shared workers that run.
func (b *Browser) workers(ctx context.Context) (ids []string, err error) {
	var all struct {
		TargetInfos []struct{ TargetID, Type string }
	}
	err = b.Call(ctx, "", "Target.getTargets", nil, &all)
	for _, t := range all.TargetInfos {
		if t.Type == "shared_worker" {
			ids = append(ids, t.TargetID)
		}
	}
	return ids, err
}

// renderers returns how many seconds of processor time each renderer process has used.
func (b *Browser) renderers(ctx context.Context) (map[int]float64, error) {
	var r struct {
		ProcessInfo []struct {
			Type    string
			ID      int
			CPUTime float64
		}
	}
	err := b.Call(ctx, "", "SystemInfo.getProcessInfo", nil, &r)
	seconds := map[int]float64{}
	for _, p := range r.ProcessInfo {
		if p.Type == "renderer" {
			seconds[p.ID] = p.CPUTime
		}
	}
	return seconds, err
}

// KillWorkers kills the processes in which shared workers run, as the system does when
// memory is short. Such a process may be that of a tab, too, which then is gone: calls for
// it fail. There has to be a worker.
func (b *Browser) KillWorkers(ctx context.Context) error {
	ids, err := b.workers(ctx)
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		return errors.New("no shared worker runs")
	}
	<-time.After(400 * time.Millisecond) // loading pages takes processor time, too
	var pids []int
	for _, id := range ids {
		pid, err := b.process(ctx, id)
		if err != nil {
			return err
		}
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	for _, pid := range slices.Compact(pids) {
		err = errors.Join(err, syscall.Kill(pid, syscall.SIGKILL))
	}
	return err
}

// process returns the process of a target. Chromium does not say which that is, so the
// target is made to burn processor time, and the process that has burnt it is the one.
func (b *Browser) process(ctx context.Context, target string) (pid int, err error) {
	var w struct{ SessionID string }
	if err := b.Call(ctx, "", "Target.attachToTarget", map[string]any{"targetId": target, "flatten": true}, &w); err != nil {
		return 0, err
	}
	for ms := 300; pid == 0; ms *= 2 { // on a busy machine it gets less time than it wants
		if ms > 5000 {
			return 0, errors.New("no renderer has burnt the time")
		}
		before, err := b.renderers(ctx)
		if err != nil {
			return 0, err
		}
		burn := map[string]any{"expression": fmt.Sprintf("for (const end = performance.now() + %d; performance.now() < end;);", ms)}
		if err := b.Call(ctx, w.SessionID, "Runtime.evaluate", burn, nil); err != nil {
			return 0, err
		}
		after, err := b.renderers(ctx)
		if err != nil {
			return 0, err
		}
		most, second := 0.15, 0.0 // seconds; with less, or with another that is near it, it is a guess
		for id, s := range after {
			switch d := s - before[id]; {
			case d > most:
				pid, most, second = id, d, most
			case d > second:
				second = d
			}
		}
		if pid != 0 && second > most/2 && second > 0.15 {
			pid = 0
		}
	}
	// A session that is open would be carried over to the worker's successor.
	return pid, b.Call(ctx, "", "Target.detachFromTarget", map[string]any{"sessionId": w.SessionID}, nil)
}
