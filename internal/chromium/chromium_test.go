//go:build unix

package chromium

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

const page = `<!doctype html><title>t</title><script>
	const w = new SharedWorker('/worker.js');
	w.port.onmessage = e => { window.answer = e.data; console.log('answer', e.data); };
	w.port.postMessage(20);
</script>`

const worker = `onconnect = e => { const p = e.ports[0]; p.onmessage = m => p.postMessage(m.data + 1); };`

func TestABrowser(t *testing.T) {
	path := Find(t)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.Write([]byte(page))
	})
	mux.HandleFunc("GET /worker.js", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/javascript")
		w.Write([]byte(worker))
	})
	srv := httptest.NewServer(mux)
	defer srv.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	b, err := Start(path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p, err := b.Profile(ctx)
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	one, err := p.Open(ctx, srv.URL, "window.early = 'yes'")
	must(err)
	must(one.Until(ctx, "window.answer === 21 && window.early === 'yes'"))
	if logs := strings.Join(one.Logs(), ";"); !strings.Contains(logs, "answer 21") {
		t.Errorf("console: %q", logs)
	}
	two, err := p.Open(ctx, srv.URL, "")
	must(err)
	must(two.Until(ctx, "window.answer === 21 && document.visibilityState === 'visible'"))
	must(one.Until(ctx, "document.visibilityState === 'hidden'"))
	must(one.Show(ctx))
	must(one.Until(ctx, "document.visibilityState === 'visible'"))

	must(one.Freeze(ctx, true))
	must(one.Freeze(ctx, false))
	must(one.Eval(ctx, "window.answer = 0; w.port.postMessage(1)", nil))
	must(one.Until(ctx, "window.answer === 2"))
	must(one.Eval(ctx, "Promise.resolve(7)", new(int)))
	must(b.KillWorkers(ctx)) // and with it the tab that has started it
	for ids := []string{""}; len(ids) > 0; {
		ids, err = b.workers(ctx)
		must(err)
	}
	must(one.Close(ctx))
	one = two
	if err := one.Eval(ctx, "(() => { throw new Error('boom') })()", nil); err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("an exception: %v", err)
	}
	must(one.Navigate(ctx, srv.URL+"/?2"))
	must(one.Until(ctx, "location.search === '?2'"))
	must(one.Back(ctx))
	must(one.Until(ctx, "location.search === ''"))
	must(one.Reload(ctx))
	must(one.Until(ctx, "window.answer === 21"))
	if png, err := one.Screenshot(ctx); err != nil || !strings.HasPrefix(string(png), "\x89PNG") {
		t.Errorf("screenshot: %.10q %v", png, err)
	}
	two.Crash(ctx)
	if err := two.Eval(ctx, "1", nil); err == nil || !strings.Contains(err.Error(), "crashed") {
		t.Errorf("a crashed page: %v", err)
	}
	must(p.Close(ctx))
}

// A browser that dies while it starts is started again, but not for ever, and what it said
// is told.
func TestABrowserThatDiesAtItsStart(t *testing.T) {
	path := Find(t)
	for _, deaths := range []int{2, 3} {
		dir := t.TempDir()
		fake := filepath.Join(dir, "browser")
		script := fmt.Sprintf(`#!/bin/sh
echo >> %[1]s/starts
if [ $(wc -l < %[1]s/starts) -le %[2]d ]; then echo "these were $(wc -l < %[1]s/starts)" >&2; kill -SEGV $$; fi
exec %[3]s "$@"
`, dir, deaths, path)
		if err := os.WriteFile(fake, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		b, err := Start(fake)
		switch {
		case deaths == 2 && err != nil:
			t.Errorf("after two deaths: %v", err)
		case deaths == 2:
			b.Close()
		case err == nil:
			b.Close()
			t.Error("it is started for ever")
		case !strings.Contains(err.Error(), "segmentation fault") || !strings.Contains(err.Error(), "these were 3"):
			t.Errorf("after three deaths: %v", err)
		}
	}
}
