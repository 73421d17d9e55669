//go:build unix

package browser_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/backplane/gateway"
	"github.com/holdfast-ws/holdfast/client/browser"
	"github.com/holdfast-ws/holdfast/heartbeat"
	"github.com/holdfast-ws/holdfast/internal/chromium"
	"github.com/holdfast-ws/holdfast/internal/faultproxy"
	"github.com/holdfast-ws/holdfast/internal/leak"
	"github.com/holdfast-ws/holdfast/replay"
)

func TestMain(m *testing.M) { leak.Main(m) }

// script is that of the test page: it connects as the query says, and notes what it is
// told. What it has got outlives a reload, so that it can be seen what is missing.
const script = `
const q = new URLSearchParams(location.search);
if (q.has('init')) (0, eval)(q.get('init')); // in browsers whose driver cannot do that
const { connect, internal } = await import(q.get('module') ?? MODULE);
if (q.has('times')) Object.assign(internal.T, JSON.parse(q.get('times')));
let storage;
try { storage = sessionStorage; } catch {}
window.got = JSON.parse(storage?.getItem('got') ?? '{}');
Object.assign(window, { resets: [], acks: [], states: [], codes: [], errors: [], updates: [], published: 0, shown: 0 });
const c = window.c = connect('/ws', {
	share: q.get('share') ?? 'auto', key: q.get('key') ?? '', token: q.get('token') ?? undefined, keep: q.get('keep') ?? false,
	workerUrl: q.get('worker') ?? undefined,
	topics: q.get('topics').split(','), backoff: q.has('slow') ? { base: 3600e3, cap: 3600e3 } : { base: 50, cap: 500, first: 100 },
});
window.publish = (topic, data) => {
	published++;
	c.publish(topic, data).then(r => acks.push(r), e => errors.push(String(e)));
};
const tell = () => { if (parent !== window) c.info().then(i => parent.postMessage({ got, resets, state: c.state, mode: i.mode }, '*')); };
c.addEventListener('message', e => {
	const { topic, data } = e.detail;
	const list = got[topic] ??= [];
	list.push(data.sent ? [data.n, performance.timeOrigin + performance.now() - data.sent] : data);
	if (window.echo && topic === 'news' && list.length % 7 === 0) publish('pub', window.echo + ':' + list.length);
	tell();
});
c.addEventListener('reset', e => { resets.push({ at: got[e.detail.topic]?.length ?? 0, ...e.detail }); tell(); });
c.addEventListener('state', e => { states.push(e.detail.state); codes.push(e.detail.code); tell(); });
c.addEventListener('error', e => errors.push(String(e.detail.error)));
c.addEventListener('update', e => updates.push(e.detail.build));
addEventListener('pagehide', () => { storage?.setItem('got', JSON.stringify(got)); });
addEventListener('pageshow', e => { if (e.persisted) shown++; });
// What an array of numbers is not, if it is not all of them in order.
window.fault = (topic, n) => {
	const g = got[topic] ?? [];
	for (let i = 0; i < Math.max(n, g.length); i++) if (g[i] !== i) return 'at ' + i + ' of ' + n + ': ' + JSON.stringify(g.slice(Math.max(0, i - 2), i + 3)) + ' of ' + g.length;
	return g.length > n ? g.length + ', more than ' + n : '';
};
window.live = async () => { await Promise.all(q.get('topics').split(',').map(t => c.subscribe(t).ready)); return c.state === 'open'; };
window.up = true;
`

// frame is a page with the test page in a sandbox, of which it hears.
const frame = `<!doctype html><title>frame</title><script>
onmessage = e => { Object.assign(window, e.data); };
</script><iframe sandbox="allow-scripts" src="/?%s"></iframe>`

// A site is all there is at the server: pages, the module, a gateway. What the browser
// sees is the address of a proxy, so that the server behind it can be another.
type site struct {
	t     testing.TB
	ctx   context.Context
	b     *engine
	p     *chromium.Profile // if it is Chromium
	other other             // if not
	mem   *backplane.Memory
	hub   *backplane.Hub
	proxy *faultproxy.Proxy
	beat  heartbeat.Config
	host  string // as the browser knows it

	hold  chan struct{} // ends what asks for /hold
	dials atomic.Int64  // requests for a WebSocket
	wg    sync.WaitGroup

	loggedOut atomic.Bool // everybody

	mu    sync.Mutex // guards all below
	gw    *gateway.Gateway
	srv   *http.Server
	open  int // welcomed, at all gateways
	most  int // at once
	users map[string]int
}

// authorize lets everybody in with a name for a token, who is not logged out; "user/x" is
// for x alone.
func (s *site) authorize(_ context.Context, a gateway.Access) (gateway.Grant, error) {
	if s.loggedOut.Load() {
		return gateway.Grant{}, gateway.ErrUnauthenticated
	}
	if of, ok := strings.CutPrefix(a.Topic, "user/"); ok && of != a.User {
		return gateway.Grant{}, gateway.ErrForbidden
	}
	return gateway.Grant{User: a.Token}, nil
}

// serve starts a server with a gateway of its own, to which the proxy leads from now on.
func (s *site) serve() {
	s.t.Helper()
	gw, err := gateway.New(s.hub, &gateway.Options{
		Authorize: s.authorize, Heartbeat: s.beat, Drain: 500 * time.Millisecond,
		Origins: []string{"null"}, // for the sandbox
		Limits:  gateway.Limits{Frames: -1, Publishes: -1, PerUser: -1, Pending: -1},
		Trace: &gateway.Trace{
			Connected: func(i gateway.Info) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.open++
				s.users[i.User]++
				s.most = max(s.most, s.open)
			},
			Disconnected: func(i gateway.Info, _ error) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.open--
				s.users[i.User]--
			},
		},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	mux := http.NewServeMux()
	page := func(w http.ResponseWriter, text string) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprint(w, text)
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		if csp := r.URL.Query().Get("csp"); csp != "" {
			w.Header().Set("Content-Security-Policy", csp)
		}
		page(w, `<!doctype html><title>tab</title><script type="module" nonce="abc" src="/page.js"></script>`)
	})
	mux.HandleFunc("GET /frame", func(w http.ResponseWriter, r *http.Request) {
		page(w, fmt.Sprintf(frame, strings.ReplaceAll(r.URL.RawQuery, "&", "&amp;")))
	})
	mux.HandleFunc("GET /blank", func(w http.ResponseWriter, _ *http.Request) { page(w, "<!doctype html><title>blank</title>") })
	mux.HandleFunc("GET /page.js", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/javascript")
		w.Header().Set("Access-Control-Allow-Origin", "*") // a sandbox is another origin
		fmt.Fprint(w, strings.Replace(script, "MODULE", strconv.Quote(browser.URL("/holdfast/")), 1))
	})
	mux.Handle("GET /holdfast/", http.StripPrefix("/holdfast/", patient(s.t, browser.Handler(nil))))
	mux.HandleFunc("GET /source.js", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, "holdfast.js") })
	mux.HandleFunc("GET /hold", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-s.hold:
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("GET /ws", func(w http.ResponseWriter, r *http.Request) {
		s.dials.Add(1)
		gw.ServeHTTP(w, r)
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	srv := &http.Server{Handler: mux}
	s.wg.Go(func() { srv.Serve(ln) })
	if s.proxy == nil {
		if s.proxy, err = faultproxy.New(ln.Addr().String()); err != nil {
			s.t.Fatal(err)
		}
		s.host = s.proxy.Addr()
	}
	s.proxy.SetTarget(ln.Addr().String())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gw, s.srv = gw, srv
}

// patient serves the module with more patience for a worker that starts: on a machine that
// is busy with other tests it may take seconds, and a page that tries another meanwhile
// makes dials of its own.
func patient(t testing.TB, h http.Handler) http.Handler {
	const is, want = "hello:300,", "hello:3000,"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Accept-Encoding")
		got := httptest.NewRecorder()
		h.ServeHTTP(got, r)
		if got.Code == http.StatusOK && strings.Count(got.Body.String(), is) != 1 {
			t.Errorf("the module has not one %q", is)
		}
		maps.Copy(w.Header(), got.Header())
		w.Header().Del("Content-Length")
		w.WriteHeader(got.Code)
		io.WriteString(w, strings.Replace(got.Body.String(), is, want, 1))
	})
}

// kill ends a server as a crash does.
func (s *site) kill(gw *gateway.Gateway, srv *http.Server) {
	s.proxy.ResetAll()
	now, cancel := context.WithCancel(context.Background())
	cancel()
	gw.Shutdown(now)
	srv.Close()
}

// browse runs a case: with a server and an empty profile of a browser, which no other case
// has meanwhile.
func browse(t *testing.T, engines chan *engine, name string, f func(s *site)) {
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		b := <-engines
		defer func() { engines <- b }()
		start := time.Now()
		s := open(t, b, heartbeat.Config{Interval: time.Second, Timeout: 700 * time.Millisecond})
		defer s.close()
		f(s)
		s.mu.Lock()
		defer s.mu.Unlock()
		t.Logf("%.1f s, %d dials, at most %d connections at once", time.Since(start).Seconds(), s.dials.Load(), s.most)
	})
}

// An engine is a browser. Only Chromium can be told to freeze a page, and the like; what
// needs that is skipped in others.
type engine struct {
	name     string
	chromium *chromium.Browser

	start func() (other, error) // starts another, for each case
}

// An other is another browser than Chromium.
type other interface {
	Open(ctx context.Context, url string) (page, error)
	Processes() []int // of pages and workers; none if they must not be killed
	Close()
}

func open(t testing.TB, b *engine, beat heartbeat.Config) *site {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	s := &site{t: t, ctx: ctx, b: b, beat: beat, hold: make(chan struct{}), users: map[string]int{}}
	t.Cleanup(cancel)
	limits := func(string) replay.Limits { return replay.Limits{Entries: 50_000, Bytes: 64 << 20} }
	s.mem = backplane.NewMemory(&backplane.MemoryOptions{Limits: limits})
	s.hub = backplane.New(s.mem, &backplane.Options{Limits: limits})
	s.serve()
	var err error
	if b.chromium != nil {
		s.p, err = b.chromium.Profile(ctx)
	} else {
		s.other, err = b.start()
	}
	s.must(err)
	return s
}

// chromium skips the rest of a case in another browser.
func (s *site) chromium() *chromium.Browser {
	if s.b.chromium == nil {
		s.t.Skip("SKIPPED: the rest needs Chromium")
	}
	return s.b.chromium
}

func (s *site) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if s.p != nil {
		s.p.Close(ctx)
	}
	if s.other != nil {
		s.other.Close()
	}
	s.kill(s.gw, s.srv)
	s.proxy.Close()
	s.wg.Wait()
	s.hub.Close(ctx)
	s.mem.Close()
}

// A page is what a test needs of a tab in any browser.
type page interface {
	Navigate(ctx context.Context, url string) error
	Back(ctx context.Context) error
	Reload(ctx context.Context) error
	Eval(ctx context.Context, expression string, result any) error
	Logs() []string
	Close(ctx context.Context) error
}

// A tab is a page of a site.
type tab struct {
	page
	s    *site
	name string
}

func (t *tab) Crash(ctx context.Context) {
	t.s.chromium()
	t.page.(*chromium.Tab).Crash(ctx)
}

func (t *tab) Freeze(ctx context.Context, frozen bool) error {
	t.s.chromium()
	return t.page.(*chromium.Tab).Freeze(ctx, frozen)
}

// tab opens the test page, and returns when it is live. The query is "share=leader&...";
// topics are news and pub if it has none.
func (s *site) tab(query, init string) *tab {
	s.t.Helper()
	t := s.load("/?"+s.query(query), init)
	t.until("window.up && live()")
	return t
}

func (s *site) query(query string) string {
	s.t.Helper()
	q, err := url.ParseQuery(query)
	if err != nil {
		s.t.Fatal(err)
	}
	if !q.Has("topics") {
		q.Set("topics", "news,pub")
	}
	return q.Encode()
}

var tabs atomic.Int64

func (s *site) load(path, init string) *tab {
	s.t.Helper()
	var p page
	var err error
	if at := "http://" + s.host + path; s.p != nil {
		p, err = s.p.Open(s.ctx, at, init)
	} else {
		if init != "" {
			at += "&init=" + url.QueryEscape(init)
		}
		p, err = s.other.Open(s.ctx, at)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return &tab{p, s, "tab" + strconv.FormatInt(tabs.Add(1), 10)}
}

// tabs opens n of the same.
func (s *site) tabs(n int, query string) (ts []*tab) {
	s.t.Helper()
	for range n {
		ts = append(ts, s.tab(query, ""))
	}
	return ts
}

// must ends the test after an error.
func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// eval evaluates an expression in the page.
func (t *tab) eval(expression string, result any) {
	t.s.t.Helper()
	if err := t.Eval(t.s.ctx, expression, result); err != nil {
		t.s.t.Fatalf("%s: %v", t.name, err)
	}
}

// back goes back, to a page that is live then.
func (t *tab) back() {
	t.s.t.Helper()
	var err error
	t.s.until("the way back", func() bool { // for a moment the page there is none that could be asked
		err = t.Back(t.s.ctx)
		return err == nil || !strings.Contains(err.Error(), "active page")
	})
	t.s.must(err)
	t.until("window.up && live()")
}

// busy keeps the page from doing anything.
func (t *tab) busy() (goOn func()) {
	switch t.s.b.name {
	case "WebKit":
		t.s.t.Skip("SKIPPED: where one tab is busy its driver waits for all")
	case "Firefox": // does a few things while such a request lasts
		t.eval("void setTimeout(() => { for (const end = performance.now() + 15_000; performance.now() < end;); })", nil)
		return func() {}
	}
	t.eval("void setTimeout(() => { const r = new XMLHttpRequest(); r.open('GET', '/hold?a', false); r.send(); })", nil)
	return func() { close(t.s.hold) }
}

// until waits for a condition, or a promise of one, in the page.
func (t *tab) until(condition string) {
	t.s.t.Helper()
	for {
		var ok bool
		err := t.Eval(t.s.ctx, "Promise.resolve("+condition+").then(x => !!x)", &ok)
		if ok {
			return
		}
		select {
		case <-t.s.ctx.Done():
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			defer cancel()
			var info any
			t.Eval(ctx, "c.info().then(i => ({ ...i, errors, states, resets, published, acks: acks.length }))", &info)
			text, _ := json.Marshal(info)
			t.s.t.Fatalf("%s: %s: never true (%v); server: %+v; %s\n%s", t.name, condition, err, t.s.gw.Stats(), text, strings.Join(t.Logs(), "\n"))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// until waits for a condition at the server.
func (s *site) until(what string, ok func() bool) {
	s.t.Helper()
	for !ok() {
		select {
		case <-s.ctx.Done():
			s.t.Fatalf("never: %s; %d connections, %+v", what, s.conns(), s.gw.Stats())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// conns returns how many connections are welcome now.
func (s *site) conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

// connected waits until so many are.
func (s *site) connected(n int) {
	s.t.Helper()
	s.until(fmt.Sprintf("%d connections", n), func() bool { return s.conns() == n })
}

// atMost checks how many there were at once.
func (s *site) atMost(n int) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.most > n {
		s.t.Errorf("%d connections at once, want at most %d", s.most, n)
	}
}

// dialled checks how often the server was dialled.
func (s *site) dialled(n int64) {
	s.t.Helper()
	if got := s.dials.Load(); got != n {
		s.t.Errorf("%d dials, want %d", got, n)
	}
}

// say publishes a message at the server.
func (s *site) say(topic string, data any) {
	text, err := json.Marshal(data)
	if err == nil {
		_, err = s.hub.Publish(context.Background(), topic, backplane.Message{Data: text})
	}
	if err != nil {
		s.t.Error(err)
	}
}

// A feed publishes 0, 1, 2 and so on.
type feed struct {
	s     *site
	topic string
	n     atomic.Int64
	quit  chan struct{}
	done  sync.WaitGroup
}

// feed begins to publish every 3 ms, until stop.
func (s *site) feed(topic string) *feed {
	f := &feed{s: s, topic: topic, quit: make(chan struct{})}
	f.done.Go(func() {
		tick := time.NewTicker(3 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-f.quit:
				return
			case <-s.ctx.Done():
				return
			case <-tick.C:
				s.say(topic, f.n.Load())
				f.n.Add(1)
			}
		}
	})
	return f
}

// more waits until so many more are published.
func (f *feed) more(n int64) {
	f.s.t.Helper()
	to := f.n.Load() + n
	f.s.until("traffic", func() bool { return f.n.Load() >= to })
}

// stop ends it and returns how many there were.
func (f *feed) stop() int {
	close(f.quit)
	f.done.Wait()
	return int(f.n.Load())
}

// exact waits until the tabs have n numbers of a topic, and checks that these are all,
// in order, once. No chain was broken on the way, and nothing was reset.
func (s *site) exact(topic string, n int, ts ...*tab) {
	s.t.Helper()
	for _, t := range ts {
		t.until(fmt.Sprintf("(got[%q] ?? []).length >= %d", topic, n))
	}
	for _, t := range ts {
		var fault string
		if t.eval(fmt.Sprintf("fault(%q, %d)", topic, n), &fault); fault != "" {
			s.t.Errorf("%s: %s: %s", t.name, topic, fault)
		}
		t.clean()
	}
}

// clean checks that nothing has gone wrong in a tab.
func (t *tab) clean() {
	t.s.t.Helper()
	var r struct {
		Resets, Errors []any
		Broken, Faults int
		Fault          string
	}
	t.eval("c.info().then(i => ({ resets, errors, broken: i.counters.broken, faults: i.counters.faults, fault: i.fault }))", &r)
	if len(r.Resets)+len(r.Errors)+r.Broken+r.Faults > 0 {
		t.s.t.Errorf("%s: %+v", t.name, r)
	}
}

// echo lets the tabs publish: each after every seventh message that it gets, and the
// visible one every few milliseconds.
func echo(ts ...*tab) {
	for _, t := range ts {
		t.eval(fmt.Sprintf("window.echo = %q, void setInterval(() => window.echo && document.visibilityState === 'visible' && published - acks.length < 500 && publish('pub', echo + '+' + published), 4)", t.name), nil)
	}
}

// echoed ends that, and checks that each publish was answered, and is stored, once, and
// came to each tab, in the same order.
func (s *site) echoed(ts ...*tab) {
	s.t.Helper()
	total := 0
	for _, t := range ts {
		t.eval("window.echo = ''", nil)
	}
	ids := map[string]bool{}
	for _, t := range ts {
		t.until("acks.length + errors.length >= published")
		var acks []struct{ ID, Outcome, Pos string }
		t.eval("acks", &acks)
		total += len(acks)
		for _, a := range acks {
			ids[a.ID] = true
		}
	}
	page, err := s.mem.Read(s.ctx, "pub", replay.Position{}, replay.Budget{Entries: -1, Bytes: -1})
	s.must(err)
	var stored []string
	for _, e := range page.Entries {
		var text string
		s.must(json.Unmarshal(e.Data, &text))
		stored = append(stored, text)
	}
	once := slices.Compact(slices.Sorted(slices.Values(stored)))
	mine := 0 // those of tabs that are no more are not answered
	for _, text := range once {
		if slices.ContainsFunc(ts, func(t *tab) bool { return strings.HasPrefix(text, t.name+":") || strings.HasPrefix(text, t.name+"+") }) {
			mine++
		}
	}
	if len(once) != len(stored) || mine != total || len(ids) != total || total == 0 {
		s.t.Errorf("%d publishes were answered, with %d ids; %d of %d are stored, %d without repetition", total, len(ids), mine, len(stored), len(once))
	}
	for _, t := range ts {
		t.until(fmt.Sprintf("(got.pub ?? []).length >= %d", len(stored)))
		var got []string
		t.eval("got.pub", &got)
		if diff := cmp.Diff(stored, got); diff != "" {
			s.t.Errorf("%s: of pub it has not what is stored (-want +got):\n%s", t.name, diff)
		}
		t.clean()
	}
	s.t.Logf("%d publishes of %d tabs, each answered and stored once", total, len(ts))
}

// survivors returns those tabs that answer.
func survivors(s *site, ts []*tab) (alive []*tab) {
	s.t.Helper()
	ok := make([]bool, len(ts))
	var wg sync.WaitGroup
	for i, t := range ts {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
			defer cancel()
			ok[i] = t.Eval(ctx, "1", nil) == nil
		})
	}
	wg.Wait()
	for i, t := range ts {
		if ok[i] {
			alive = append(alive, t)
		}
	}
	return alive
}

// killWorker kills the worker's process, and that of a second one if there are two for a
// moment. In another
// browser than Chromium it kills one after the other, the oldest first, until it was that.
func (s *site) killWorker() {
	s.t.Helper()
	if s.b.chromium == nil {
		pids := slices.Sorted(slices.Values(s.other.Processes()))
		if len(pids) == 0 {
			s.t.Skip("SKIPPED: the rest kills a process")
		}
		dials := s.dials.Load()
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
			for range 50 {
				if s.conns() == 0 || s.dials.Load() > dials {
					return
				}
				<-time.After(10 * time.Millisecond)
			}
		}
		s.t.Fatal("all processes are killed, and the connection lives on")
	}
	for { // one of an earlier case may just be ending
		err := s.b.chromium.KillWorkers(s.ctx)
		if err == nil {
			return
		}
		if s.ctx.Err() != nil {
			s.t.Fatal(err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func TestTabs(t *testing.T) {
	bs := chromium.Several(t, "--host-resolver-rules=MAP intranet.test 127.0.0.1")
	engines := make(chan *engine, len(bs))
	for _, b := range bs {
		engines <- &engine{name: "Chromium", chromium: b}
	}
	testTabs(t, engines)
}

// testTabs runs all cases, as many at a time as there are engines.
func testTabs(t *testing.T, engines chan *engine) {
	for _, share := range []string{"worker", "leader"} {
		browse(t, engines, "ten tabs are one connection/"+share, func(s *site) {
			ts := s.tabs(10, "share="+share)
			for i := range 1000 {
				s.say("news", i)
			}
			s.exact("news", 1000, ts...)
			s.connected(1)
			s.atMost(1)
			s.dialled(1)
			if n := s.gw.Stats().Subscriptions; n != 2 {
				s.t.Errorf("%d subscriptions, want those of two topics", n)
			}
			for _, t := range ts {
				t.until("c.info().then(i => i.mode === '" + share + "' && i.hub.tabs === 10)")
			}
		})
	}

	browse(t, engines, "the worker is killed", func(s *site) {
		first := s.tab("share=worker", "") // in whose process the worker is
		ts := s.tabs(5, "share=worker")
		s.must(first.Close(s.ctx))
		news := s.feed("news")
		echo(ts...)
		news.more(50)
		s.killWorker()
		s.until("a new dial", func() bool { return s.dials.Load() >= 2 })
		news.more(100)
		alive := survivors(s, ts)
		n := news.stop()
		s.exact("news", n, alive...)
		s.echoed(alive...)
		s.connected(1)
		s.dialled(2)
		if len(alive) < 4 && s.b.chromium != nil { // else they shared a process
			s.t.Errorf("%d of 5 tabs are left", len(alive))
		}
		s.t.Logf("%d messages in each of %d tabs", n, len(alive))
	})

	browse(t, engines, "the worker is killed again and again", func(s *site) {
		first := s.tab("share=worker", "")
		ts := s.tabs(4, "share=worker")
		s.must(first.Close(s.ctx))
		news := s.feed("news")
		echo(ts...)
		var late []*tab
		for range 2 {
			news.more(20)
			s.killWorker()
			// Tabs are opened at that moment; they begin somewhere in the stream.
			for range 2 {
				late = append(late, s.load("/?"+s.query("share=worker"), ""))
			}
			ts = survivors(s, ts) // a successor may be in the process of a tab
			late = survivors(s, late)
			for _, t := range late {
				t.until("window.up && live()")
			}
			s.connected(1)
		}
		news.more(20)
		n := news.stop()
		if len(ts) > 0 || s.b.chromium != nil { // else they shared processes with the workers
			s.exact("news", n, ts...)
			s.echoed(ts...)
		}
		for _, t := range late {
			t.until(fmt.Sprintf("got.news.at(-1) === %d && got.news.every((n, i) => n === got.news[0] + i)", n-1))
			t.clean()
		}
		for _, t := range append(ts, late...) {
			t.until(fmt.Sprintf("c.info().then(i => i.mode === 'worker' && i.hub.tabs === %d)", len(ts)+len(late)))
		}
		s.connected(1)
		if len(late) == 0 {
			s.t.Error("no tab is left of those that came later")
		}
		s.t.Logf("%d messages; %d tabs of 4 and %d of 4 that came later are left", n, len(ts), len(late))
	})

	browse(t, engines, "the worker is killed with its tab", func(s *site) {
		ts := s.tabs(4, "share=worker")
		news := s.feed("news")
		echo(ts...)
		news.more(50)
		ts[0].Crash(s.ctx) // with the worker, if that is in its process, as it usually is
		news.more(100)
		ts = survivors(s, ts)
		n := news.stop()
		s.exact("news", n, ts...)
		s.echoed(ts...)
		s.connected(1)
		if len(ts) < 2 {
			s.t.Errorf("%d tabs are left", len(ts))
		}
	})

	for _, share := range []string{"worker", "leader"} {
		browse(t, engines, "the server restarts/"+share, func(s *site) {
			ts := s.tabs(4, "share="+share)
			news := s.feed("news")
			echo(ts...)
			news.more(50)
			gw, srv := s.gw, s.srv
			s.serve()
			s.kill(gw, srv) // a crash
			s.until("a second dial", func() bool { return s.dials.Load() >= 2 })
			s.connected(1)
			news.more(50)
			gw, srv = s.gw, s.srv
			s.serve()
			s.must(gw.Shutdown(s.ctx)) // a deploy
			s.until("a third dial", func() bool { return s.dials.Load() >= 3 })
			srv.Close()
			s.connected(1)
			news.more(50)

			s.proxy.Refuse.Store(true) // no server for a while
			s.proxy.ResetAll()
			for _, t := range ts {
				t.until("c.state !== 'open' && states.includes('waiting')")
			}
			news.more(50)
			s.proxy.Refuse.Store(false)
			s.connected(1)
			n := news.stop()
			s.exact("news", n, ts...)
			s.echoed(ts...)
			s.dialled(4)
			s.connected(1)
		})
	}

	for _, share := range []string{"worker", "leader"} {
		browse(t, engines, "what a tab had for itself is freed/"+share, func(s *site) {
			ts := s.tabs(2, "share="+share)
			closed, crashed := s.tab("topics=news,pub,own,alone&share="+share, ""), s.tab("topics=pub,own,mine&share="+share, "")
			subscriptions := func(n int) {
				s.t.Helper()
				s.until(fmt.Sprintf("%d subscriptions", n), func() bool {
					return s.gw.Stats().Subscriptions == n && s.hub.Stats().Subscribers == n
				})
			}
			subscriptions(5)
			s.must(closed.Close(s.ctx))
			ts[0].until("c.info().then(i => i.hub.tabs === 3)")
			subscriptions(4) // another has one of its two still
			crashed.Crash(s.ctx)
			subscriptions(2)
			ts = survivors(s, ts) // a process may be that of two tabs
			for i := range 100 {
				s.say("news", i)
			}
			s.exact("news", 100, ts...)
			s.connected(1)
			if len(ts) == 2 {
				s.dialled(1)
			}
		})
	}

	deaf := "const add = EventTarget.prototype.addEventListener; EventTarget.prototype.addEventListener = function (t, ...a) { if (t !== 'freeze') add.call(this, t, ...a); };"
	for _, c := range []struct {
		name, init string
		lose       func(leader *tab) error
		frozen     bool
	}{
		{name: "closed", lose: func(l *tab) error { return l.Close(l.s.ctx) }},
		{name: "crashed", lose: func(l *tab) error { l.Crash(l.s.ctx); return nil }},
		{name: "elsewhere", lose: func(l *tab) error { return l.Navigate(l.s.ctx, "http://"+l.s.host+"/blank") }},
		{name: "frozen", lose: func(l *tab) error { return l.Freeze(l.s.ctx, true) }, frozen: true},
		{name: "frozen and does not notice", lose: func(l *tab) error { return l.Freeze(l.s.ctx, true) }, init: deaf, frozen: true},
	} {
		browse(t, engines, "the leader is "+c.name, func(s *site) {
			query := `share=leader&module=/source.js&times={"probe":1e6}` // nobody has to find out by asking
			if c.init != "" {
				query = `share=leader` // as it is served
			}
			leader := s.tab(query, c.init)
			ts := s.tabs(3, query)
			leader.until("c.info().then(i => i.leads)")
			news := s.feed("news")
			echo(append(ts, leader)...)
			news.more(50)
			s.must(c.lose(leader))
			start := time.Now()
			s.until("a new dial", func() bool { return s.dials.Load() >= 2 })
			s.t.Logf("dialled again after %d ms", time.Since(start).Milliseconds())
			news.more(100)
			s.connected(1) // what a frozen page does not close the server does
			ts = survivors(s, ts)
			if c.frozen {
				s.must(leader.Freeze(s.ctx, false))
				ts = append(ts, leader)
				news.more(50)
			}
			n := news.stop()
			s.exact("news", n, ts...)
			s.echoed(ts...)
			s.connected(1)
			s.dialled(2)
			if len(ts) < 2 {
				s.t.Errorf("%d tabs are left", len(ts))
			}
		})
	}

	browse(t, engines, "the leader crashes, and the next are frozen", func(s *site) {
		ts := s.tabs(4, "share=leader")
		ts[0].until("c.info().then(i => i.leads)")
		news := s.feed("news")
		echo(ts...)
		news.more(50)
		for _, t := range ts[1:3] {
			s.must(t.Freeze(s.ctx, true))
		}
		ts[0].Crash(s.ctx)
		if ts = survivors(s, ts); len(ts) == 0 {
			s.t.Fatal("no tab is left")
		}
		last := ts[len(ts)-1]
		last.until("c.info().then(i => i.leads)")
		news.more(50)
		for _, t := range ts[:len(ts)-1] {
			s.must(t.Freeze(s.ctx, false))
		}
		news.more(50)
		s.must(last.Freeze(s.ctx, true)) // and now the others have to
		ts[0].until("c.state === 'open'")
		news.more(50)
		s.must(last.Freeze(s.ctx, false))
		n := news.stop()
		s.exact("news", n, ts...)
		s.echoed(ts...)
		s.connected(1)
	})

	for _, share := range []string{"worker", "leader"} {
		browse(t, engines, "reloaded, and gone back to/"+share, func(s *site) {
			ts := s.tabs(3, "keep=session&share="+share)
			news := s.feed("news")
			dials := int64(1)
			for _, t := range []*tab{ts[1], ts[0]} { // the second leads nothing
				news.more(20)
				t.eval("void (window.old = true)", nil)
				s.must(t.Reload(s.ctx))
				t.until("window.up && !window.old && live()")
			}
			if share == "leader" {
				dials++
			}
			s.connected(1)
			s.dialled(dials)
			news.more(20)
			s.must(ts[1].Navigate(s.ctx, "http://"+s.host+"/blank"))
			ts[1].until("location.pathname === '/blank'")
			news.more(20)
			ts[1].back()
			var shown int
			ts[1].eval("shown", &shown)
			if shown != 1 && s.b.chromium != nil { // Firefox does not keep pages that hold locks
				s.t.Error("the page was thrown out of the back/forward cache") // as it is for a message to it
			}
			news.more(20)
			n := news.stop()
			s.exact("news", n, ts...)
			s.connected(1)

			// And now as the only one.
			s.must(ts[0].Close(s.ctx))
			s.must(ts[2].Close(s.ctx))
			ts[1].until("c.info().then(i => i.hub?.tabs === 1)")
			s.connected(1)
			s.must(ts[1].Navigate(s.ctx, "http://"+s.host+"/blank"))
			s.connected(0)
			if n := s.gw.Stats().Dead; n > 0 && s.b.chromium != nil { // WebKit stops a worker before it hears of the last goodbye
				s.t.Error("the connection was left behind, for the server to find")
			}
			s.say("news", n)
			ts[1].back()
			s.say("news", n+1)
			s.exact("news", n+2, ts[1])
			ts[1].eval("void (window.old = true)", nil)
			s.must(ts[1].Reload(s.ctx))
			s.say("news", n+2)
			ts[1].until("window.up && !window.old && live()")
			s.say("news", n+3)
			s.exact("news", n+4, ts[1])
			s.connected(1)
		})

		browse(t, engines, "all tabs are hidden/"+share, func(s *site) {
			ts := s.tabs(3, "share="+share)
			s.load("/blank", "")
			for _, t := range ts {
				t.until("document.visibilityState === 'hidden'")
			}
			news := s.feed("news")
			echo(ts...)
			news.more(50)
			gw, srv := s.gw, s.srv
			s.serve()
			s.kill(gw, srv)
			s.until("a new dial", func() bool { return s.dials.Load() >= 2 })
			news.more(50)
			n := news.stop()
			s.exact("news", n, ts...)
			s.echoed(ts...)
			s.connected(1)
			s.dialled(2)
		})

		browse(t, engines, "another user has another connection/"+share, func(s *site) {
			var ts []*tab
			names := []string{"bob", "bobby", "bob", "bobby"}
			for _, name := range names {
				ts = append(ts, s.tab("topics=news,user/"+name+"&key="+name+"&token="+name+"&share="+share, ""))
			}
			s.connected(2)
			s.dialled(2)
			s.mu.Lock()
			if diff := cmp.Diff(map[string]int{"bob": 1, "bobby": 1}, s.users); diff != "" {
				s.t.Errorf("connections of users (-want +got):\n%s", diff)
			}
			s.mu.Unlock()
			for i := range 50 {
				s.say("news", i)
				s.say("user/bob", i)
				s.say("user/bobby", i)
			}
			s.exact("news", 50, ts...)
			for i, t := range ts {
				s.exact("user/"+names[i], 50, t)
				t.until("Object.keys(got).length === 2")
			}
			ts[2].eval("void c.subscribe('user/bobby')", nil) // of which the other connection has a subscription
			ts[2].until("errors.length === 1 && errors[0].includes('forbidden')")
			s.say("user/bobby", 50)
			s.exact("user/bobby", 51, ts[1], ts[3])
			ts[2].until("!got['user/bobby']")
		})

		browse(t, engines, "half of the link is dead/"+share, func(s *site) {
			ts := s.tabs(3, "share="+share)
			news := s.feed("news")
			echo(ts...)
			news.more(20)
			s.proxy.HoleDown.Store(true)
			handed := s.gw.Stats().Messages
			s.until("messages for the hole", func() bool { return s.gw.Stats().Messages > handed+50 })
			s.proxy.Heal() // for new connections; the old one remains silent
			start := time.Now()
			s.until("a new dial", func() bool { return s.dials.Load() >= 2 })
			s.t.Logf("dialled again after %d ms", time.Since(start).Milliseconds())
			news.more(50)
			n := news.stop()
			s.exact("news", n, ts...)
			s.echoed(ts...)
			s.connected(1)
		})
	}

	for _, c := range []struct {
		share, how string
		stop       func(t *tab) (goOn func())
	}{
		{"worker", "frozen", func(t *tab) func() {
			t.s.must(t.Freeze(t.s.ctx, true))
			return func() { t.s.must(t.Freeze(t.s.ctx, false)) }
		}},
		{"worker", "busy", (*tab).busy},
		{"leader", "busy", (*tab).busy}, // a frozen page goes on there: it gets what comes over a BroadcastChannel
	} {
		share := c.share
		browse(t, engines, "a tab is "+c.how+"/"+share, func(s *site) {
			ts := s.tabs(3, "share="+share)
			s.say("news", 0)
			s.exact("news", 1, ts...)
			stuck, all := ts[1], []*tab{ts[0], ts[2]}
			goOn := c.stop(stuck)
			pad := strings.Repeat("x", 200)
			const n = 12_000 // more than 8 rings and a window
			for i := 1; i <= n; i++ {
				s.say("big", pad)
				s.say("news", i)
				if i%1000 == 0 { // as fast as those who are not stuck
					for _, t := range all {
						t.until(fmt.Sprintf("got.news.length > %d", i))
					}
				}
			}
			s.exact("news", n+1, all...)
			var info struct {
				Ring    int
				Cursors []struct{ Behind, Unacked int }
			}
			ts[2].eval("c.info().then(i => ({ ring: i.hub.topics.news.ring, cursors: i.hub.topics.news.cursors }))", &info)
			most := 0
			for _, c := range info.Cursors {
				most = max(most, c.Unacked)
			}
			if info.Ring > 8000 || most > 256 || len(info.Cursors) != 3 {
				s.t.Errorf("the hub keeps %d messages, and %d are on their way to a tab: %+v", info.Ring, most, info)
			}
			goOn()
			stuck.until(fmt.Sprintf("got.news[got.news.length - 1] === %d", n))
			for i := n + 1; i <= n+50; i++ {
				s.say("news", i)
			}
			s.exact("news", n+51, all...)
			stuck.until(fmt.Sprintf("got.news[got.news.length - 1] === %d", n+50))
			var r struct {
				Resets []struct {
					At, Missed int
					Reason     string
				}
				News []int
			}
			stuck.eval("({ resets, news: got.news })", &r)
			if len(r.Resets) != 1 || r.Resets[0].Missed+len(r.News) != n+51 {
				s.t.Fatalf("%d messages and the resets %+v, want one, and %d in all", len(r.News), r.Resets, n+51)
			}
			for i, v := range r.News {
				if i >= r.Resets[0].At {
					i += r.Resets[0].Missed
				}
				if v != i {
					s.t.Fatalf("message %d is %d; %+v", i, v, r.Resets)
				}
			}
			s.t.Logf("%d of %d messages and a reset, %q", len(r.News), n+51, r.Resets[0].Reason)
			s.connected(1)
			s.dialled(1)
		})
	}

	for _, share := range []string{"worker", "leader", "none"} {
		browse(t, engines, "what one tab does wrong is not the fault of others/"+share, func(s *site) {
			ts := s.tabs(2, "share="+share)
			var errs []string
			ts[1].eval(`(async () => {
				const errs = [], say = async f => { try { errs.push('taken: ' + JSON.stringify(await f())); } catch (e) { errs.push(e.code + ' ' + e.field); } };
				const nested = n => { let v = 1; while (n--) v = [v]; return v; };
				await say(() => c.publish('pub', nested(62)));
				await say(() => c.ephemeral('pub', nested(62)));
				await say(() => c.subscribe('x', { last: 1.5 }));
				await say(() => c.subscribe('x', { from: 'x y' }));
				await say(() => c.subscribe('x', { floor: 7 }));
				await say(() => c.publish('pub', nested(61)).then(r => r.outcome));
				return errs;
			})()`, &errs)
			want := []string{"bad_input data", "bad_input data", "bad_input last", "bad_input from", "bad_input floor", `taken: "committed"`}
			if diff := cmp.Diff(want, errs); diff != "" {
				s.t.Errorf("errors (-want +got):\n%s", diff)
			}
			for _, t := range ts {
				t.until("got.pub.length === 1 && c.state === 'open' && !errors.length && !resets.length")
			}
			for i, topic := range []string{"constructor", "toString", "__proto__"} {
				ts[1].until(fmt.Sprintf("c.subscribe('%s').ready.then(() => c.publish('%[1]s', %d)).then(() => true)", topic, i))
				ts[1].until(fmt.Sprintf("c.info().then(i => Object.hasOwn(i.topics, '%s') && Object.hasOwn(i.hub.topics, '%[1]s'))", topic))
			}
			for i := range 10 {
				s.say("news", i)
			}
			s.exact("news", 10, ts...)
			ts[1].eval("c.close()", nil)
			ts[1].until("states.join() === 'open,closed'")
		})
	}

	for _, share := range []string{"worker", "leader", "none"} {
		browse(t, engines, "a page closes its connection with things under way, and makes another/"+share, func(s *site) {
			t := s.tab("share="+share, "")
			for range 5 {
				t.eval("void (() => { for (let i = 0; i < 30; i++) c.publish('pub', i).catch(() => {}); c.subscribe('more'); c.close(); })()", nil)
				t.until("(async () => { window.c = new c.constructor('/ws', { share: '" + share + "' }); await c.subscribe('news').ready; return (await c.publish('news', 1)).outcome === 'committed'; })()")
			}
			s.connected(1)
		})
	}

	for _, share := range []string{"worker", "leader", "none"} {
		browse(t, engines, "logged out, a page is told at once/"+share, func(s *site) {
			ts := s.tabs(3, "slow=1&token=bob&share="+share)
			s.loggedOut.Store(true)
			if n, want := s.gw.Disconnect("bob"), map[string]int{"none": 3}[share]; n != max(1, want) {
				s.t.Errorf("%d connections are ended", n)
			}
			for _, t := range ts {
				t.until("c.state === 'denied'")
				t.until("states.join() === 'open,connecting,denied' && codes.join() === '0,4401,4401'")
			}
			s.connected(0)
		})
	}

	browse(t, engines, "an old worker and a new page", func(s *site) {
		old := s.tab("module="+url.QueryEscape("/holdfast/holdfast.js?v=0ld"), "")
		recent := s.tabs(2, "")
		s.connected(2)
		news := s.feed("news")
		echo(append(recent, old)...)
		news.more(50)
		n := news.stop()
		s.exact("news", n, append(recent, old)...)
		s.echoed(append(recent, old)...)
		old.until("updates.length > 0 && updates.every(u => u !== '0ld')")
		recent[0].until("updates.length === 0")
		s.must(old.Close(s.ctx))
		s.connected(1)
		s.dialled(2)
	})

	browse(t, engines, "a page of the source and pages of what is served", func(s *site) {
		first := s.tab("share=leader&module=/source.js", "")
		recent := s.tabs(2, "share=leader")
		s.connected(1)
		s.dialled(1)
		news := s.feed("news")
		echo(append(recent, first)...)
		news.more(50)
		s.must(first.Close(s.ctx)) // another leads
		s.until("a new dial", func() bool { return s.dials.Load() >= 2 })
		late := s.tab("share=leader&module=/source.js", "")
		news.more(50)
		n := news.stop()
		s.exact("news", n, recent...)
		s.echoed(recent...)
		recent[0].until("c.info().then(i => i.hub.tabs === 3 && i.hub.node !== undefined && i.mode === 'leader' && i.counters.received > 0)")
		late.until("c.info().then(i => i.hub.tabs === 3 && i.hub.node !== undefined && i.topics.news.position)")
		s.connected(1)
	})

	var (
		noWorker  = "delete window.SharedWorker;"
		noChannel = "delete window.BroadcastChannel;"
		noLocks   = "delete Navigator.prototype.locks;"
	)
	for _, c := range []struct {
		name, query, init string
		insecure          bool
		mode              string
		conns             int
	}{
		{name: "a strict policy", query: url.Values{"csp": {"default-src 'none'; script-src 'self'; connect-src 'self'"}}.Encode(), mode: "worker", conns: 1},
		{name: "a policy with a nonce", query: url.Values{"csp": {"default-src 'none'; script-src 'nonce-abc'; worker-src 'self'; connect-src 'self'"}}.Encode(), mode: "worker", conns: 1},
		{name: "a policy without workers", query: url.Values{"csp": {"default-src 'none'; script-src 'self'; connect-src 'self'; worker-src 'none'"}}.Encode(), mode: "leader", conns: 1},
		{name: "no worker at its address", query: "worker=/holdfast/missing.js", mode: "leader", conns: 1},
		{name: "a worker of another origin", query: "worker=https://example.com/holdfast.js", mode: "leader", conns: 1},
		{name: "no SharedWorker", init: noWorker, mode: "leader", conns: 1},
		{name: "no BroadcastChannel", init: noChannel, mode: "worker", conns: 1},
		{name: "no SharedWorker and no BroadcastChannel", init: noWorker + noChannel, mode: "none", conns: 2},
		{name: "no locks", init: noLocks, mode: "worker", conns: 1},
		{name: "no locks and no SharedWorker", init: noLocks + noWorker, mode: "none", conns: 2},
		{name: "an origin that is not secure", insecure: true, mode: "worker", conns: 1},
	} {
		browse(t, engines, c.name, func(s *site) {
			if c.insecure {
				s.chromium() // which was told where this is
				_, port, _ := net.SplitHostPort(s.host)
				s.host = "intranet.test:" + port
			}
			var ts []*tab
			for range 2 {
				ts = append(ts, s.tab(c.query, c.init))
			}
			if c.insecure {
				ts[0].until("!isSecureContext")
			}
			news := s.feed("news")
			echo(ts...)
			news.more(30)
			n := news.stop()
			s.exact("news", n, ts...)
			s.echoed(ts...)
			for _, t := range ts {
				t.until("c.info().then(i => i.mode === '" + c.mode + "')")
			}
			s.connected(c.conns)
			s.dialled(int64(c.conns))
			s.must(ts[0].Close(s.ctx))
			for i := range 20 {
				s.say("news", n+i)
			}
			s.exact("news", n+20, ts[1:]...)
			s.connected(max(1, c.conns-1))
		})
	}

	browse(t, engines, "a sandbox", func(s *site) {
		t := s.load("/frame?"+s.query(""), "")
		t.until("window.state === 'open'")
		s.until("a subscription", func() bool { return s.gw.Stats().Subscriptions == 2 })
		for i := range 50 {
			s.say("news", i)
		}
		t.until("got.news?.length === 50 && got.news.every((n, i) => n === i) && resets.length === 0 && mode === 'none'")
		s.connected(1)
		s.dialled(1)
	})
}

// BenchmarkTabs is ten tabs that share a connection, beside ten with one each: how many
// connections that is at the server, how late a message is in a tab, and what the browser
// takes.
func BenchmarkTabs(b *testing.B) {
	br, err := chromium.Start(chromium.Find(b))
	if err != nil {
		b.Fatal(err)
	}
	defer br.Close()
	const tabs, messages = 10, 300
	for _, size := range []int{64, 4096} {
		for _, share := range []string{"worker", "leader", "none"} {
			b.Run(fmt.Sprintf("share=%s/bytes=%d", share, size), func(b *testing.B) {
				s := open(b, &engine{chromium: br}, heartbeat.Config{})
				defer s.close()
				ts := s.tabs(tabs, "topics=news&share="+share)
				type message struct {
					N    int     `json:"n"`
					Sent float64 `json:"sent"`
					Pad  string  `json:"pad"`
				}
				pad := strings.Repeat("x", size)
				var late []float64
				for b.Loop() {
					tick := time.NewTicker(10 * time.Millisecond)
					for i := range messages {
						<-tick.C
						s.say("news", message{i, float64(time.Now().UnixMicro()) / 1000, pad})
					}
					tick.Stop()
					for _, t := range ts {
						t.until(fmt.Sprintf("got.news.length >= %d", messages))
						var got [][2]float64 // number and delay
						t.eval("got.news.splice(0)", &got)
						for i, m := range got {
							if int(m[0]) != i || len(got) != messages {
								b.Fatalf("%s: message %d of %d is %v", t.name, i, len(got), m[0])
							}
							late = append(late, m[1])
						}
						t.clean()
					}
				}
				slices.Sort(late)
				b.ReportMetric(float64(s.conns()), "conns")
				b.ReportMetric(float64(s.gw.Stats().Messages)/float64(b.N)/messages, "frames/msg")
				b.ReportMetric(late[len(late)/2], "p50-ms")
				b.ReportMetric(late[len(late)*95/100], "p95-ms")
				if kb := memory(b, br); kb > 0 {
					b.ReportMetric(float64(kb)/1024, "browser-MB")
				}
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// memory returns what all processes of the browser take, in KiB: what they share is
// counted once. It is 0 where the system does not tell.
func memory(b *testing.B, br *chromium.Browser) (kb int) {
	var r struct {
		ProcessInfo []struct {
			ID int `json:"id"`
		} `json:"processInfo"`
	}
	if err := br.Call(b.Context(), "", "SystemInfo.getProcessInfo", nil, &r); err != nil {
		b.Fatal(err)
	}
	for _, p := range r.ProcessInfo {
		rollup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.ID))
		for line := range strings.Lines(string(rollup)) {
			var n int
			if _, err := fmt.Sscanf(line, "Pss: %d kB", &n); err == nil {
				kb += n
			}
		}
	}
	return kb
}
