//go:build unix

package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-ws/holdfast/backplane/gateway"
	"github.com/holdfast-ws/holdfast/internal/chromium"
	"github.com/holdfast-ws/holdfast/internal/leak"
	"github.com/holdfast-ws/holdfast/internal/verify"
)

var picture = flag.Bool("picture", false, "write tabs.png, a picture of ten tabs and one connection")

func TestMain(m *testing.M) { leak.Main(m) }

// A site is the example, and a browser's empty profile.
type site struct {
	*server
	t   *testing.T
	ctx context.Context
	p   *chromium.Profile
	url string
	mux atomic.Pointer[http.ServeMux] // of the server

	debug bool
}

// serve makes a server that takes the place of the one before, if there is one.
func (s *site) serve() {
	s.t.Helper()
	old := s.server
	var err error
	s.server, err = newServer(s.debug)
	s.must(err)
	s.mux.Store(s.server.mux)
	if old != nil {
		s.must(old.shutdown(s.ctx))
	}
}

// A tab is one page of it.
type tab struct {
	*chromium.Tab
	s    *site
	name string
}

// watch is run in each page before its own scripts.
const watch = `addEventListener('securitypolicyviolation', e => console.log('not allowed:', e.violatedDirective, e.blockedURI));`

// browse runs a case in a browser, which no other has meanwhile.
func browse(t *testing.T, browsers chan *chromium.Browser, name string, debug bool, f func(s *site)) {
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		b := <-browsers
		defer func() { browsers <- b }()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		s := &site{t: t, ctx: ctx, debug: debug}
		s.serve()
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.mux.Load().ServeHTTP(w, r) }))
		defer srv.Close()
		s.url = srv.URL
		var err error
		s.p, err = b.Profile(ctx)
		s.must(err)
		defer func() {
			end, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			s.p.Close(end)
			s.shutdown(end)
		}()
		f(s)
	})
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) open(path string) *tab {
	s.t.Helper()
	t, err := s.p.Open(s.ctx, s.url+path, watch)
	s.must(err)
	return &tab{t, s, path}
}

// tabs opens n tabs that then share a connection.
func (s *site) tabs(n int, path string) (ts []*tab) {
	s.t.Helper()
	for i := range n {
		t := s.open(path)
		t.name = fmt.Sprintf("tab %d", i+1)
		t.until(fmt.Sprintf("number.textContent === '%d' && document.querySelectorAll('#tabs li').length === %[1]d && !tabs.textContent.includes('Another')", i+1))
		ts = append(ts, t)
	}
	return ts
}

func (t *tab) until(condition string) {
	t.s.t.Helper()
	if err := t.Until(t.s.ctx, condition); err != nil {
		var text string
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		t.Eval(ctx, "document.body.innerText", &text)
		t.s.t.Fatalf("%s: %v; server: %+v; page:\n%s", t.name, err, t.s.seen(), text)
	}
}

func (t *tab) eval(expression string, result any) {
	t.s.t.Helper()
	if err := t.Eval(t.s.ctx, expression, result); err != nil {
		t.s.t.Fatalf("%s: %v", t.name, err)
	}
}

// send sends a text through a page's form.
func (t *tab) send(text string) {
	t.s.t.Helper()
	quoted, _ := json.Marshal(text)
	t.eval(fmt.Sprintf("document.forms[0].text.value = %s, document.forms[0].requestSubmit()", quoted), nil)
}

// clean waits until tabs have got more numbers, and checks that they have missed none and
// got none twice, and that nothing was forbidden or thrown.
func (s *site) clean(ts ...*tab) {
	s.t.Helper()
	before := make([]int, len(ts))
	for i, t := range ts {
		t.eval("+got.textContent", &before[i])
	}
	for i, t := range ts {
		t.until(fmt.Sprintf("+got.textContent >= %d", before[i]+5))
		var faults string
		if t.eval("[missing, twice, resets].map(e => e.textContent).join()", &faults); faults != "0,0,0" {
			s.t.Errorf("%s: missing, twice, resets: %s", t.name, faults)
		}
		t.quiet()
	}
}

// quiet checks that a page has written nothing to its console.
func (t *tab) quiet() {
	t.s.t.Helper()
	for _, line := range t.Logs() {
		if !strings.Contains(line, "Download the React DevTools") {
			t.s.t.Errorf("%s: console: %s", t.name, line)
		}
	}
}

// listed waits until n tabs are in the list of each, and that is all of the server's
// connections.
func (s *site) listed(n int, ts ...*tab) {
	s.t.Helper()
	for _, t := range ts {
		t.until(fmt.Sprintf("document.querySelectorAll('#tabs li').length === %d && sharing.textContent === '%[1]d' && document.getElementById('open').textContent === '1'", n))
	}
	if f := s.seen(); f.Open != 1 {
		s.t.Errorf("%d connections are open", f.Open)
	}
}

// saw checks what the server has seen.
func (s *site) saw(want figures) {
	s.t.Helper()
	if diff := cmp.Diff(want, s.seen()); diff != "" {
		s.t.Errorf("the server has seen (-want +got):\n%s", diff)
	}
}

// alive returns those that answer: a process may be that of two tabs.
func (s *site) alive(ts []*tab) (alive []*tab) {
	for _, t := range ts {
		ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
		if t.Eval(ctx, "1", nil) == nil {
			alive = append(alive, t)
		}
		cancel()
	}
	return alive
}

func TestTabs(t *testing.T) {
	bs := chromium.Several(t, "--window-size=1000,890", "--hide-scrollbars", "--disable-popup-blocking")
	browsers := make(chan *chromium.Browser, len(bs))
	for _, b := range bs {
		browsers <- b
	}

	browse(t, browsers, "ten tabs, one connection", false, func(s *site) {
		ts := s.tabs(10, "/?share=worker")
		s.listed(10, ts...)
		ts[3].send("Hello, <b>everybody</b>!")
		for _, t := range ts {
			t.until("chat.textContent === 'tab 4: Hello, <b>everybody</b>!'")
			t.until("how.textContent === 'The connection is in a SharedWorker.'")
		}
		s.clean(ts...)
		s.saw(figures{Open: 1, Dials: 1, Users: map[string]int{"guest": 1}})
		if *picture {
			ts[9].until("document.querySelectorAll('#tabs li.silent').length === 0 && +got.textContent > 30")
			png, err := ts[9].Screenshot(s.ctx)
			s.must(err)
			s.must(os.WriteFile("tabs.png", png, 0o666))
		}
		ts[8].Crash(s.ctx)
		left := s.alive(ts)
		s.listed(len(left), left...)
		s.clean(left...)
		if len(left) < 8 {
			s.t.Errorf("%d tabs are left", len(left))
		}
	})

	browse(t, browsers, "the worker is killed", true, func(s *site) {
		ts := s.tabs(4, "/")
		ts[1].eval("kill.click()", nil)
		ts[1].until("dials.textContent === '2'")
		s.listed(4, ts...)
		ts[2].send("back")
		for _, t := range ts {
			t.until("chat.textContent === 'tab 3: back'")
		}
		s.clean(ts...)
		if f := s.seen(); f.Dials != 2 {
			s.t.Errorf("%d dials, want 2", f.Dials)
		}
	})

	browse(t, browsers, "the leader is closed", false, func(s *site) {
		ts := s.tabs(3, "/?share=leader")
		s.listed(3, ts...)
		ts[0].until("document.querySelector('#tabs li.you').textContent.includes('leads')")
		ts[2].until("how.textContent === 'The connection is in tab 1, which leads.'")
		s.must(ts[0].Close(s.ctx))
		ts = ts[1:]
		s.listed(2, ts...)
		for _, t := range ts {
			t.until("document.querySelector('#tabs').textContent.split('leads').length === 2")
		}
		s.clean(ts...)
		if f := s.seen(); f.Dials != 2 {
			s.t.Errorf("%d dials, want 2", f.Dials)
		}
	})

	browse(t, browsers, "not shared, and shared with nobody else", false, func(s *site) {
		for i := range 3 {
			t := s.open("/?share=none")
			t.until(fmt.Sprintf("sharing.textContent === '1' && document.getElementById('open').textContent === '%d'", i+1))
			t.until("how.textContent === 'This tab has a connection of its own.'")
			s.clean(t)
		}
		for range 2 {
			t := s.open("/?user=bert")
			t.until("users.textContent === 'bert 1, guest 3'")
			s.clean(t)
		}
	})

	browse(t, browsers, "a tab stands still", false, func(s *site) {
		ts := s.tabs(3, "/")
		s.must(ts[0].Freeze(s.ctx, true))
		ts[1].eval("block.click()", nil)
		ts[2].until("tabs.firstChild.textContent.includes('stands still')")
		s.clean(ts[2])
		s.must(ts[0].Freeze(s.ctx, false))
		ts[1].until("said.textContent.startsWith('That was')")
		s.listed(3, ts...)
		for _, t := range ts {
			t.until("document.querySelectorAll('#tabs li.silent').length === 0")
		}
		s.clean(ts...)
		if f := s.seen(); f.Dials != 1 {
			s.t.Errorf("%d dials, want 1", f.Dials)
		}
	})

	browse(t, browsers, "the buttons", false, func(s *site) {
		one := s.tabs(1, "/")[0]
		one.eval("nine.click()", nil)
		one.until("said.textContent === 'Nine tabs came, the connection is the same.'")
		s.listed(10, one)
		other := s.open("/")
		s.listed(11, one, other)
		other.eval("void setTimeout(() => crash.click())", nil)
		other.gone()
		s.listed(10, one)
		s.clean(one)
	})

	// Then what was got does not go on, and this is said.
	browse(t, browsers, "another server", false, func(s *site) {
		ts := s.tabs(2, "/")
		needBundle(s.t)
		r := s.open("/react")
		r.until("chat && document.querySelectorAll('.numbers').length === 2")
		ts[0].send("before")
		r.until("chat.children.length === 1")
		s.serve()
		for _, t := range ts {
			t.until("resets.textContent === '1'")
			var faults string
			if t.eval("missing.textContent + twice.textContent", &faults); faults != "00" {
				s.t.Errorf("%s: missing, twice: %s", t.name, faults)
			}
		}
		r.until("document.querySelector('.numbers').textContent.includes('after a reset') && document.body.innerText.includes('are missing')")
		ts[0].send("after")
		r.until("chat.textContent === 'tab 1: after'")
		s.listed(3, ts...)
	})

	browse(t, browsers, "ten lines", false, func(s *site) {
		one, two := s.open("/ten"), s.open("/ten")
		for i, t := range []*tab{one, two} {
			t.until("window.box?.onchange")
			t.eval(fmt.Sprintf("box.value = 'from %d', box.dispatchEvent(new Event('change'))", i), nil)
			for _, t := range []*tab{one, two} {
				t.until(fmt.Sprintf("list.firstChild?.textContent === 'from %d' && list.children.length === %d", i, i+1))
			}
		}
		s.saw(figures{Open: 1, Dials: 1, Users: map[string]int{"guest": 1}})
	})

	for _, path := range []string{"/react", "/react?dev"} {
		browse(t, browsers, "React"+strings.TrimPrefix(path, "/react"), false, func(s *site) { testReact(s, path) })
	}
}

// gone waits until the process of a page is.
func (t *tab) gone() {
	t.s.t.Helper()
	var err error
	for err == nil || !strings.Contains(err.Error(), "has crashed") {
		if t.s.ctx.Err() != nil {
			t.s.t.Fatalf("%s does not crash: %v", t.name, err)
		}
		err = t.Eval(t.s.ctx, "1", nil)
	}
}

func needBundle(t *testing.T) {
	t.Helper()
	if _, err := fs.Stat(files, "react/bundle.js"); err != nil {
		if verify.On() && os.Getenv("CI") == "true" {
			t.Fatal(noBundle)
		}
		verify.Skip(t, "there is no React bundle; make lint builds it")
	}
}

func testReact(s *site, path string) {
	needBundle(s.t)
	ts := []*tab{s.open(path), s.open(path)}
	plain := s.open("/")
	subscribed := func(n int) {
		s.t.Helper()
		for s.gw.Stats().Subscriptions != n {
			select {
			case <-s.ctx.Done():
				s.t.Fatalf("%d subscriptions, want %d", s.gw.Stats().Subscriptions, n)
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	contiguous := func(t *tab) {
		s.t.Helper()
		t.until(`(() => {
			const [a, b] = [...document.querySelectorAll('.numbers')].map(e => e.textContent);
			const n = a.split(' ').map(Number);
			return a === b && n.length === 10 && n.every((x, i) => x === n[0] + i);
		})()`)
	}
	plain.until("sharing.textContent === '3'")
	for i, t := range ts {
		t.until("state.textContent === 'open'")
		contiguous(t)
		t.send(fmt.Sprintf("<i>%d</i>", i))
		for _, t := range ts {
			t.until(fmt.Sprintf("chat.children.length === %d && chat.firstChild.textContent === 'tab React: <i>%d</i>'", i+1, i))
		}
	}
	plain.until("chat.children.length === 2")
	s.clean(plain)
	subscribed(3) // all tabs have one connection, and the topics are the same
	s.saw(figures{Open: 1, Dials: 1, Users: map[string]int{"guest": 1}})
	s.must(plain.Close(s.ctx))
	subscribed(2)
	for _, t := range ts {
		t.eval("toggle.click()", nil)
	}
	subscribed(0)
	ts[0].eval("toggle.click()", nil) // mounted again it begins again
	contiguous(ts[0])
	ts[0].until("chat.children.length === 2")
	subscribed(2)
	ts[0].eval("for (let i = 0; i < 7; i++) toggle.click()", nil)
	subscribed(0)
	ts[0].eval("toggle.click()", nil)
	contiguous(ts[0])
	subscribed(2)
	for _, t := range ts {
		t.quiet()
	}
}

func TestNobodyPublishesWhatIsTheServers(t *testing.T) {
	for _, c := range []struct {
		a    gateway.Access
		user string
		ok   bool
	}{
		{gateway.Access{Action: gateway.Connect}, "guest", true},
		{gateway.Access{Action: gateway.Connect, Token: "bert"}, "bert", true},
		{gateway.Access{Action: gateway.Connect, Token: strings.Repeat("x", 33)}, "", false},
		{gateway.Access{Action: gateway.Subscribe, Topic: "server"}, "", true},
		{gateway.Access{Action: gateway.Subscribe, Topic: "other"}, "", false},
		{gateway.Access{Action: gateway.Publish, Topic: "chat"}, "", true},
		{gateway.Access{Action: gateway.Publish, Topic: "numbers"}, "", false},
		{gateway.Access{Action: gateway.Publish, Topic: "server"}, "", false},
	} {
		if g, err := authorize(t.Context(), c.a); g.User != c.user || (err == nil) != c.ok {
			t.Errorf("%+v: %+v, %v", c.a, g, err)
		}
	}
}

func TestThePagesAreThere(t *testing.T) {
	for _, debug := range []bool{false, true} {
		s, err := newServer(debug)
		if err != nil {
			t.Fatal(err)
		}
		get := func(path string) (int, http.Header, string) {
			w := httptest.NewRecorder()
			s.mux.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			body, _ := io.ReadAll(w.Result().Body)
			return w.Code, w.Header(), string(body)
		}
		for path, mime := range map[string]string{"/": "text/html", "/tabs.js": "text/javascript", "/tabs.css": "text/css", "/ten": "text/html"} {
			if code, h, _ := get(path); code != 200 || !strings.HasPrefix(h.Get("Content-Type"), mime) {
				t.Errorf("%s: %d, %v", path, code, h)
			}
		}
		_, h, page := get("/")
		if h.Get("Content-Security-Policy") != policy {
			t.Errorf("the page's policy: %v", h)
		}
		code, _, _ := get("/worker.js")
		if (code == 200) != debug || strings.Contains(page, "/worker.js") != debug || strings.Contains(page, "needs -debug") == debug {
			t.Errorf("debug %v: /worker.js is answered with %d, the page is\n%s", debug, code, page)
		}
		if code, _, text := get("/react"); code == 404 && text != noBundle+"\n" || code != 404 && code != 200 {
			t.Errorf("/react: %d %s", code, text)
		}
		if err := s.shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
