//go:build linux

package webdriver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/internal/leak"
	"github.com/holdfast-ws/holdfast/internal/verify"
)

func TestMain(m *testing.M) { leak.Main(m) }

type browser interface {
	Open(ctx context.Context, url string) (*Tab, error)
	Close()
}

// Two tabs count in one shared worker, until its process and theirs are killed.
func TestTabsTalkToASharedWorker(t *testing.T) {
	verify.Only(t, "Firefox and WebKit")
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, `<!doctype html><title>t</title><script>
			const { port } = new SharedWorker('/worker.js');
			window.count = () => new Promise(f => { port.onmessage = e => f(e.data); port.postMessage(0); });
		</script>`)
	})
	mux.HandleFunc("GET /worker.js", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/javascript")
		fmt.Fprint(w, `let n = 0; onconnect = e => { const [p] = e.ports; p.onmessage = () => p.postMessage(++n); };`)
	})
	srv := httptest.NewServer(mux)
	defer srv.Close()

	for _, c := range []struct {
		name  string
		start func() (browser, error)
	}{
		{"Firefox", func() (browser, error) { return StartFirefox() }},
		{"WebKit", func() (browser, error) { return StartWebKit() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			b, err := c.start()
			if errors.Is(err, exec.ErrNotFound) {
				verify.Skip(t, err.Error()) // nobody has to have them
			}
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			var tabs []*Tab
			for i := range 2 {
				tab, err := b.Open(ctx, srv.URL)
				if err != nil {
					t.Fatal(err)
				}
				tabs = append(tabs, tab)
				var n int
				if err := tab.Eval(ctx, "count()", &n); err != nil || n != i+1 {
					t.Fatalf("tab %d: %d, %v", i, n, err)
				}
			}
			if err := tabs[0].Eval(ctx, "nothing.at.all", nil); err == nil {
				t.Error("an expression that throws is no error")
			}
			if err := tabs[0].Reload(ctx); err != nil {
				t.Error(err)
			}
			if err := tabs[0].Navigate(ctx, srv.URL+"/worker.js"); err != nil {
				t.Error(err)
			}
			if err := tabs[0].Back(ctx); err != nil {
				t.Error(err)
			}
			if err := tabs[0].Close(ctx); err != nil {
				t.Error(err)
			}
			if b, ok := b.(*Firefox); ok {
				pids := b.Processes()
				if len(pids) == 0 {
					t.Error("no process runs pages")
				}
				for _, pid := range pids {
					if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}
