package main

import (
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/backplane/gateway"
	"github.com/holdfast-ws/holdfast/client/browser"
)

// Topics. "numbers" is 1, 2, 3 and so on, by which each tab sees whether it gets all;
// "server" is what the server sees; "chat" is what tabs say.

// figures are what the server sees.
type figures struct {
	Open  int            `json:"open"`  // connections that are welcome now
	Dials int            `json:"dials"` // requests for one, ever
	Users map[string]int `json:"users"` // open connections of each
}

type server struct {
	memory  *backplane.Memory
	hub     *backplane.Hub
	gw      *gateway.Gateway
	mux     *http.ServeMux
	changed chan struct{} // figures have changed; holds one
	stop    context.CancelFunc
	wg      sync.WaitGroup

	mu      sync.Mutex // guards figures
	figures figures
}

func newServer(debug bool) (*server, error) {
	ctx, stop := context.WithCancel(context.Background())
	s := &server{
		memory: backplane.NewMemory(nil), mux: http.NewServeMux(), stop: stop,
		changed: make(chan struct{}, 1), figures: figures{Users: map[string]int{}},
	}
	s.hub = backplane.New(s.memory, nil)
	var err error
	s.gw, err = gateway.New(s.hub, &gateway.Options{
		Authorize: authorize,
		Trace: &gateway.Trace{
			Connected: func(i gateway.Info) { s.count(func(f *figures) { f.Open++; f.Users[i.User]++ }) },
			Disconnected: func(i gateway.Info, _ error) {
				s.count(func(f *figures) {
					f.Open--
					if f.Users[i.User]--; f.Users[i.User] == 0 {
						delete(f.Users, i.User)
					}
				})
			},
		},
	})
	if err != nil {
		stop()
		return nil, err
	}
	s.mux.HandleFunc("GET /ws", func(w http.ResponseWriter, r *http.Request) {
		s.count(func(f *figures) { f.Dials++ })
		s.gw.ServeHTTP(w, r)
	})
	s.mux.Handle("GET /holdfast/", http.StripPrefix("/holdfast/", browser.Handler(nil)))
	s.pages(debug)
	s.wg.Go(func() { s.publish(ctx) })
	return s, nil
}

func (s *server) shutdown(ctx context.Context) error {
	s.stop()
	s.wg.Wait()
	return errors.Join(s.gw.Shutdown(ctx), s.hub.Close(ctx), s.memory.Close())
}

// authorize believes everybody: a token is the name of who has it. See examples/embed for
// a login.
func authorize(_ context.Context, a gateway.Access) (gateway.Grant, error) {
	switch a.Action {
	case gateway.Connect, gateway.Renew:
		if len(a.Token) > 32 {
			return gateway.Grant{}, gateway.ErrUnauthenticated
		}
		return gateway.Grant{User: cmp.Or(a.Token, "guest")}, nil
	case gateway.Subscribe:
		if a.Topic == "numbers" || a.Topic == "server" || a.Topic == "chat" {
			return gateway.Grant{}, nil
		}
	case gateway.Publish:
		if a.Topic == "chat" {
			return gateway.Grant{}, nil
		}
	}
	return gateway.Grant{}, gateway.ErrForbidden
}

// count changes the figures.
func (s *server) count(f func(*figures)) {
	s.mu.Lock()
	f(&s.figures)
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default: // they will be published anyway
	}
}

func (s *server) seen() figures {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.figures
	f.Users = maps.Clone(f.Users)
	return f
}

// publish publishes numbers, and the figures whenever they change, until ctx is done.
func (s *server) publish(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	say := func(topic string, v any) {
		data, _ := json.Marshal(v) // numbers and figures can be marshalled
		if _, err := s.hub.Publish(ctx, topic, backplane.Message{Data: data}); err != nil && ctx.Err() == nil {
			log.Print(err)
		}
	}
	for n := 1; ; {
		select {
		case <-ctx.Done():
			return
		case <-s.changed:
			say("server", s.seen())
		case <-tick.C:
			say("numbers", n)
			n++
		}
	}
}

//go:embed page.html tabs.js tabs.css ten.html react
var files embed.FS

var templates = template.Must(template.ParseFS(files, "page.html", "react/react.html"))

// policy is what pages may do: neither inline scripts nor anything from elsewhere.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// worker is a script for the shared worker that does not only what the module does: any
// page may tell it to die. It says good-bye to nobody.
const worker = `import %q;
new BroadcastChannel('debug').onmessage = e => { if (e.data === 'die') close(); };
`

const noBundle = `There is no bundle yet. Make it, and start the server again:

	cd client/browser
	npm ci && npm run example-react
	cd ../.. && go run ./examples/tabs
`

func (s *server) pages(debug bool) {
	module := browser.URL("/holdfast/")
	render := func(w http.ResponseWriter, name string, script string) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", policy)
		if err := templates.ExecuteTemplate(w, name, map[string]any{"Module": module, "Debug": debug, "Script": script}); err != nil {
			log.Print(err)
		}
	}
	s.mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { render(w, "page.html", "") })
	s.mux.HandleFunc("GET /react", func(w http.ResponseWriter, r *http.Request) {
		bundle := "react/bundle.js"
		if r.URL.Query().Has("dev") { // with React's checks, which find effects that do not clean up
			bundle = "react/bundle.dev.js"
		}
		if _, err := fs.Stat(files, bundle); err != nil {
			http.Error(w, noBundle, http.StatusNotFound)
			return
		}
		render(w, "react.html", "/"+bundle)
	})
	for _, name := range []string{"tabs.js", "tabs.css", "react/bundle.js", "react/bundle.dev.js"} {
		s.mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "no-cache")
			http.ServeFileFS(w, r, files, name)
		})
	}
	// That of the README: its script is in the page, which a strict policy would not allow.
	s.mux.HandleFunc("GET /ten", func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, files, "ten.html") })
	if debug {
		s.mux.HandleFunc("GET /worker.js", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
			w.Header().Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; connect-src 'self'")
			fmt.Fprintf(w, worker, module)
		})
	}
}
