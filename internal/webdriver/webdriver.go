//go:build linux

// Package webdriver drives Firefox and WebKit (its GTK port) for tests: tabs, JavaScript in
// them, and which processes they live in. Chromium, which can do more, has package
// internal/chromium.
package webdriver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A Tab is one page. Its methods may be called by several goroutines.
type Tab struct {
	b  driver
	id string
}

// A driver is a browser.
type driver interface {
	// evaluate returns what a promise of a string resolves to.
	evaluate(ctx context.Context, tab, promise string) (string, error)
	navigate(ctx context.Context, tab, url string) error
	back(ctx context.Context, tab string) error
	reload(ctx context.Context, tab string) error
	close(ctx context.Context, tab string) error
}

// Navigate goes to url.
func (t *Tab) Navigate(ctx context.Context, url string) error { return t.b.navigate(ctx, t.id, url) }

// Back goes back in the tab's history.
func (t *Tab) Back(ctx context.Context) error { return t.b.back(ctx, t.id) }

// Reload loads the page again.
func (t *Tab) Reload(ctx context.Context) error { return t.b.reload(ctx, t.id) }

// Close closes the tab.
func (t *Tab) Close(ctx context.Context) error { return t.b.close(ctx, t.id) }

// Logs returns nothing: consoles are not heard here.
func (t *Tab) Logs() []string { return nil }

// Eval evaluates JavaScript in the page, waits for what it returns if that is a promise,
// and puts that into result if that is not nil.
func (t *Tab) Eval(ctx context.Context, expression string, result any) error {
	text, err := t.b.evaluate(ctx, t.id, "(async () => JSON.stringify(await ("+expression+")) ?? '')()")
	if err != nil {
		return fmt.Errorf("%s: %w", expression, err)
	}
	if result == nil || text == "" {
		return nil
	}
	return json.Unmarshal([]byte(text), result)
}

// children returns the processes below one whose command line, with spaces between its
// arguments, says something.
func children(of int, says func(line string) bool) (pids []int) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	parents := map[int]int{}
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // it has ended
		}
		// pid (name) state parent: the name may have brackets and spaces of its own.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 {
			parents[pid], _ = strconv.Atoi(fields[1])
		}
	}
	for pid := range parents {
		for up := parents[pid]; up > 1; up = parents[up] {
			if up != of {
				continue
			}
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if says(strings.TrimSpace(string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))) {
				pids = append(pids, pid)
			}
			break
		}
	}
	return pids
}

// retry calls f until it returns no error, or ctx ends.
func retry(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
