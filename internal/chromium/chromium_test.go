//go:build unix

package chromium

import (
	"context"
	"net/http"
	"net/http/httptest"
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
	must(b.KillWorker(ctx)) // and with it the tab that has started it
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
