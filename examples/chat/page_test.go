//go:build unix

package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/chromium"
	"github.com/holdfast-ws/holdfast/replay"
)

var picture = flag.Bool("picture", false, "make light.png, dark.png and phone.png anew")

// A show is a chat, and a browser to look at it.
type show struct {
	t   *testing.T
	ctx context.Context
	c   *chat
	b   *chromium.Browser
}

// newShow starts both.
func newShow(t *testing.T, o options) *show {
	path := chromium.Find(t)
	o.addr, o.nodes = "127.0.0.1:0", 2
	c, err := start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
	})
	b, err := chromium.Start(path, "--force-device-scale-factor=1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return &show{t, ctx, c, b}
}

// A visitor is a user with a browser of their own.
type visitor struct {
	*chromium.Tab
	s    *show
	name string
}

// watch notes what the page was not allowed to do.
const watch = `window.violations = []; addEventListener('securitypolicyviolation', e => violations.push(e.blockedURI))`

// visit opens the page at a path, with the storage of nobody else.
func (s *show) visit(name, path string) *visitor {
	s.t.Helper()
	p, err := s.b.Profile(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	tab, err := p.Open(s.ctx, strings.TrimSuffix(s.c.url, "/")+path, watch)
	if err != nil {
		s.t.Fatal(err)
	}
	v := &visitor{tab, s, name}
	v.do("Emulation.setFocusEmulationEnabled", map[string]any{"enabled": true})
	return v
}

// come is visit, and waits until the room is open.
func (s *show) come(name string) *visitor {
	s.t.Helper()
	v := s.visit(name, "/?name="+name)
	v.open()
	return v
}

func (v *visitor) open() {
	v.s.t.Helper()
	v.until(`$('#state').dataset.state === 'open' && $('#node').textContent.startsWith('node-')`)
}

// script has $ as short for querySelector, and whole for the messages in the list.
const script = `const $ = q => document.querySelector(q), number = q => Number($(q).textContent);
const whole = () => [...document.querySelectorAll('#log .message')].map(m => [m.dataset.s, +m.dataset.n, m.querySelector('.text').textContent]);
`

func (v *visitor) eval(expression string, result any) {
	v.s.t.Helper()
	if err := v.Eval(v.s.ctx, "(() => {"+script+"return "+expression+"})()", result); err != nil {
		v.s.t.Fatalf("%s: %v", v.name, err)
	}
}

func (v *visitor) until(condition string) {
	v.s.t.Helper()
	if err := v.Until(v.s.ctx, "(() => {"+script+"return "+condition+"})()"); err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		var page string
		v.Eval(ctx, "document.body.innerText", &page)
		v.s.t.Fatalf("%s: %v\n%.4000s", v.name, err, page)
	}
}

func (v *visitor) do(method string, params any) {
	v.s.t.Helper()
	if err := v.Call(v.s.ctx, method, params, nil); err != nil {
		v.s.t.Fatalf("%s: %v", v.name, err)
	}
}

// write types into the field that has the focus.
func (v *visitor) write(text string) {
	v.s.t.Helper()
	v.do("Input.insertText", map[string]any{"text": text})
}

// press presses a key.
func (v *visitor) press(key, text string, code int) {
	v.s.t.Helper()
	for _, kind := range []string{"keyDown", "keyUp"} {
		p := map[string]any{"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code}
		if kind == "keyDown" {
			p["text"] = text
		}
		v.do("Input.dispatchKeyEvent", p)
	}
}

// say writes a message and sends it with the Enter key.
func (v *visitor) say(text string) {
	v.s.t.Helper()
	v.eval("$('#text').focus()", nil)
	v.write(text)
	v.press("Enter", "\r", 13)
}

// tap presses the mouse's button on something, as a person does: a page may not do
// everything when a script has clicked.
func (v *visitor) tap(q string) {
	v.s.t.Helper()
	var at struct{ X, Y float64 }
	v.eval(fmt.Sprintf("(e => { e.scrollIntoView({ block: 'nearest' }); const r = e.getBoundingClientRect(); return { x: r.x + r.width / 2, y: r.y + r.height / 2 }; })($(%q))", q), &at)
	for _, kind := range []string{"mousePressed", "mouseReleased"} {
		v.do("Input.dispatchMouseEvent", map[string]any{"type": kind, "x": at.X, "y": at.Y, "button": "left", "clickCount": 1})
	}
}

func (v *visitor) click(q string) { v.s.t.Helper(); v.eval(fmt.Sprintf("void $(%q).click()", q), nil) }

// hears waits for a message.
func (v *visitor) hears(text string) {
	v.s.t.Helper()
	v.until(fmt.Sprintf("whole().some(m => m[2] === %q)", text))
}

func (v *visitor) number(q string) (n int) {
	v.s.t.Helper()
	v.eval(fmt.Sprintf("number(%q)", q), &n)
	return n
}

func (v *visitor) text(q string) (text string) {
	v.s.t.Helper()
	v.eval(fmt.Sprintf("$(%q).textContent", q), &text)
	return text
}

// until waits for a condition at the server.
func (s *show) until(what string, ok func(status) bool) {
	s.t.Helper()
	for st := s.c.status(); !ok(st); st = s.c.status() {
		select {
		case <-s.ctx.Done():
			s.t.Fatalf("never: %s: %+v", what, st)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// state returns that of a node.
func (s status) state(node string) string {
	for _, n := range s.Nodes {
		if n.Name == node {
			return n.State
		}
	}
	return ""
}

func (s status) connections() (n int) {
	for _, node := range s.Nodes {
		n += node.Connections
	}
	return n
}

// robots lets the visitors' robots count, or not.
func robots(on bool, vs ...*visitor) {
	for _, v := range vs {
		v.s.t.Helper()
		v.eval(fmt.Sprintf("void ($('#robot').checked !== %v && $('#robot').click())", on), nil)
	}
}

// exact waits until all that was said has come to all, and checks that each has all of
// it, once, in the same order, and that their pages say so.
func exact(vs ...*visitor) {
	s := vs[0].s
	s.t.Helper()
	most := 0
	for _, v := range vs {
		v.until("$('#pending').children.length === 0")
		most = max(most, v.number("#received"))
	}
	var first string
	for i, v := range vs {
		v.until(fmt.Sprintf("number('#received') >= %d", most))
		var all []any
		v.eval("whole()", &all)
		text, _ := json.Marshal(all)
		switch {
		case i == 0:
			first = string(text)
		case string(text) != first:
			s.t.Errorf("%s and %s do not see the same:\n%s\n%s", vs[0].name, v.name, first, text)
		}
		var holes []string
		v.eval(`(() => {
			const next = new Map(), wrong = [];
			for (const [s, n] of whole()) {
				if (n !== (next.get(s) ?? 1)) wrong.push(s + ': ' + n + ' where ' + (next.get(s) ?? 1) + ' was due');
				next.set(s, n + 1);
			}
			return wrong;
		})()`, &holes)
		if len(holes) > 0 || len(all) != most {
			s.t.Errorf("%s: %d messages of %d: %q", v.name, len(all), most, holes)
		}
		for _, q := range []string{"#missing", "#repeated", "#resets"} {
			if n := v.number(q); n != 0 {
				s.t.Errorf("%s: %s is %d", v.name, q, n)
			}
		}
		v.allowed()
	}
}

// allowed checks that the page did nothing that its policy forbids, and threw nothing.
func (v *visitor) allowed() {
	v.s.t.Helper()
	var violations []string
	v.eval("violations", &violations)
	if logs := v.Logs(); len(violations)+len(logs) > 0 {
		v.s.t.Errorf("%s: policy: %q, console: %q", v.name, violations, logs)
	}
}

// broken runs a fault that cuts somebody off while both robots count, and waits until
// they are back.
func broken(v, other *visitor, button string, meanwhile func()) {
	v.s.t.Helper()
	robots(true, v, other)
	n, heard := v.number("#reconnects"), v.number("#received")
	v.until(fmt.Sprintf("number('#received') > %d", heard+2))
	v.click(button)
	meanwhile()
	v.until(fmt.Sprintf("number('#reconnects') > %d", n))
	v.open()
	heard = v.number("#received")
	v.until(fmt.Sprintf("number('#received') > %d", heard+2))
	v.s.until("all nodes are up", func(st status) bool { return st.state("node-1") == up && st.state("node-2") == up })
	robots(false, v, other)
	exact(v, other)
	v.s.t.Logf("%s: %s", button, v.text("#events li"))
}

func TestTwoUsersChatAndBreakThings(t *testing.T) {
	s := newShow(t, options{timing: timing{lose: 1500 * time.Millisecond, dead: 3500 * time.Millisecond, restart: 300 * time.Millisecond}})
	anna, bert := s.come("anna"), s.come("bert")
	if anna.text("#node") == bert.text("#node") {
		t.Errorf("both are on %s", anna.text("#node"))
	}
	anna.say("hello bert")
	bert.hears("hello bert")
	anna.eval("$('#text').focus()", nil)
	anna.write("are you")
	bert.until("$('#typing').textContent === 'anna is typing…'")
	anna.write(" there?")
	anna.press("Enter", "\r", 13)
	bert.hears("are you there?")
	bert.until("$('#typing').textContent === ''")
	bert.say("<b>yes</b>")
	anna.hears("<b>yes</b>")
	anna.until("[...document.querySelectorAll('#log .mine')].length === 2 && [...document.querySelectorAll('#log .mine')].every(m => m.dataset.state === 'delivered')")
	anna.until("/^\\d.* ms$/.test($('#rtt').textContent) && !$('#spark .lost').getAttribute('d')") // a ping came back, and none did not
	exact(anna, bert)

	broken(anna, bert, "#lose", func() {
		s.until("anna's network is lost, and a node has not noticed", func(st status) bool {
			return len(st.Held) == 1 && st.Held[0] == "anna" && st.Zombies == 1
		})
		anna.until("$('#state').dataset.state !== 'open'")
		anna.until("$('#zombies').textContent === '1' && $('#nodes').textContent.includes('anna has no network')")
		anna.say("said without a network")
		bert.say("said to somebody without a network")
		anna.until("$('#pending').children.length > 0 && $('#pending').textContent.includes('said without a network')")
		bert.hears("said to somebody without a network")
		anna.hears("said to somebody without a network")
		bert.hears("said without a network")
	})
	if anna.number("#replayed") == 0 || anna.number("#log .divider") != 0 && !strings.HasSuffix(anna.text("#log .divider"), " caught up") {
		t.Errorf("nothing was caught up: %s", anna.text("#log .divider"))
	}

	node := anna.text("#node")
	broken(anna, bert, "#kill", func() {
		s.until(node+" is down", func(st status) bool { return st.state(node) == down })
		anna.until("$('#state').dataset.state === 'open' && $('#node').textContent !== '" + node + "'")
	})

	node = anna.text("#node")
	broken(anna, bert, "#drain", func() {
		s.until(node+" drains", func(st status) bool { return st.state(node) != up })
		anna.until("$('#state').dataset.state === 'open' && $('#node').textContent !== '" + node + "'")
	})

	n := bert.number("#reconnects")
	broken(anna, bert, "#restart", func() {
		s.until("all nodes are down", func(st status) bool { return st.state("node-1") == down && st.state("node-2") == down })
		bert.until(fmt.Sprintf("number('#reconnects') > %d", n))
	})

	anna.screen(1280, 800, "light", 1)
	anna.tap("#more")
	if err := anna.Show(s.ctx); err != nil {
		t.Fatal(err)
	}
	anna.until("number('#tabs') === 10 && $('#events li').textContent.endsWith('open nine more tabs → 10 tabs on one WebSocket')")
	anna.tap("#more")
	anna.until("$('#events li').textContent.endsWith('there are ten tabs already')")
	s.until("two connections", func(st status) bool { return st.connections() == 2 })
	anna.say("in ten tabs at once")
	bert.hears("in ten tabs at once")
	exact(anna, bert)

	var before, after []any
	bert.eval("whole().slice(-50)", &before)
	if err := bert.Reload(s.ctx); err != nil {
		t.Fatal(err)
	}
	bert.until("whole().some(m => m[2] === 'in ten tabs at once')")
	bert.eval("whole()", &after)
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("after a reload:\n%v\n%v", after, before)
	}
	if n := bert.number("#replayed"); n != 0 {
		t.Errorf("history is no catching up: %d", n)
	}
}

// Whoever was away for longer than the history lasts is told so, at the place.
func TestAGapIsShown(t *testing.T) {
	s := newShow(t, options{timing: timing{lose: 3 * time.Second}})
	anna := s.come("anna")
	anna.say("before")
	anna.hears("before")
	anna.click("#lose")
	anna.until("$('#state').dataset.state !== 'open'")
	anna.say("said without a network")
	const n = 2000
	hub := backplane.New(s.c.memory, nil)
	defer hub.Close(s.ctx)
	for i := range n {
		m := fmt.Sprintf(`{"from":"bert","text":"%d","s":"bert","n":%d,"robot":true}`, i+1, i+1)
		if _, err := hub.Publish(s.ctx, room, backplane.Message{Data: []byte(m)}); err != nil {
			t.Fatal(err)
		}
	}
	anna.hears("2000")
	anna.hears("said without a network")
	anna.until("$('#pending').children.length === 0")
	var list []string
	anna.eval("[...document.querySelectorAll('#log > :not(.late)')].map(e => e.className + ': ' + (e.querySelector('.text') ?? e).textContent)", &list)
	missed := n + 2 - anna.number("#received")
	marks := 0
	for _, e := range list {
		if e == fmt.Sprintf("reset: %d messages are missing here (trimmed)", missed) {
			marks++
		}
	}
	if missed < n-replay.DefaultEntries || marks != 1 || anna.number("#resets") != 1 || anna.number("#missing")+anna.number("#repeated") != 0 {
		t.Errorf("%d missed, %q, %d resets; %d missing, %d repeated in silence", missed, list, anna.number("#resets"), anna.number("#missing"), anna.number("#repeated"))
	}
	own := 0
	anna.eval("whole().filter(m => m[2] === 'said without a network').length", &own)
	if own != 1 {
		t.Errorf("an own message is there %d times", own)
	}
	t.Log(anna.text("#events li"))
	anna.allowed()

	// Who reads further up is not torn away, and can go to the end.
	anna.eval("void ($('#scroller').scrollTop = 0)", nil)
	anna.until("$('#scroller').scrollTop === 0")
	anna.eval("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))", nil)
	if _, err := hub.Publish(s.ctx, room, backplane.Message{Data: []byte(`{"from":"bert","text":"news"}`)}); err != nil {
		t.Fatal(err)
	}
	anna.until("!$('#newer').hidden && $('#scroller').scrollTop === 0")
	anna.click("#newer")
	anna.until("$('#newer').hidden && $('#log').lastChild.getBoundingClientRect().bottom < innerHeight")
	anna.allowed()
}

// What cannot be sent is kept with a button, and nobody looks for it.
func TestWhatIsNotSentIsSaid(t *testing.T) {
	s := newShow(t, options{timing: timings})
	anna, bert := s.come("anna"), s.come("bert")
	anna.say("one")
	bert.hears("one")
	anna.eval("void ($('#text').maxLength = 1e6)", nil)
	anna.eval("void ($('#text').value = 'x'.repeat(1e5))", nil)
	anna.click("#say .main")
	anna.until("$('#log [data-state=failed] .status')?.textContent.includes('too_large')")
	anna.click("#log .retry")
	anna.until("$('#log [data-state=failed] .status')?.textContent.includes('too_large')")
	anna.say("two")
	bert.hears("two")
	bert.until("number('#missing') + number('#repeated') === 0")
	anna.until("number('#received') === 2")
	var list []string
	anna.eval("[...document.querySelectorAll('#log .text')].map(e => e.textContent.slice(0, 3))", &list)
	if fmt.Sprint(list) != "[one xxx two]" {
		t.Errorf("what failed is not where it was said: %q", list)
	}
	anna.allowed()
	bert.allowed()
}

// A message that is sent again is no repetition, also for who came after it was said first.
// What a robot could not say is not kept, and it goes on.
func TestWhatIsSentAgainIsShownToAll(t *testing.T) {
	memory := backplane.NewMemory(nil)
	defer memory.Close()
	sick := &sick{Memory: memory}
	s := newShow(t, options{timing: timings, open: func() (backplane.Backplane, func() error, error) {
		return sick, func() error { return nil }, nil
	}})
	anna := s.come("anna")
	sick.refuse.Store(true)
	anna.say("\u200b\u2060") // of which nothing can be seen
	anna.press("Backspace", "", 8)
	anna.press("Backspace", "", 8)
	anna.say("one")
	anna.until("$('#log [data-state=failed]')?.dataset.n === '1'")
	robots(true, anna)
	s.until("the robot has tried", func(status) bool { return sick.refused.Load() > 3 })
	anna.until("$('#pending').children.length <= 1")
	sick.refuse.Store(false)
	anna.until("[...document.querySelectorAll('#log .robot')].some(m => m.dataset.state === 'delivered')")
	robots(false, anna)
	anna.say("two")
	bert := s.come("שלום")
	bert.hears("two")
	anna.click("#log .retry")
	bert.hears("one")
	anna.until("$('#pending').children.length === 0 && !$('[data-state=failed]') && $('#log').lastChild.textContent.includes('one')")
	anna.say("three")
	bert.hears("three")
	anna.hears("three")
	for _, v := range []*visitor{anna, bert} {
		if n := v.number("#missing") + v.number("#repeated"); n != 0 {
			t.Errorf("%s: missing %s, repeated %s", v.name, v.text("#missing"), v.text("#repeated"))
		}
		v.allowed()
	}
	bert.say("(1)")
	anna.until("$('#log').lastChild.querySelector('.name bdi')?.textContent === 'שלום' && $('#log').lastChild.querySelector('.text').dir === 'auto'")
}

// A sick backplane refuses to store, or says that what was said long ago was.
type sick struct {
	*backplane.Memory
	refuse  atomic.Bool
	refused atomic.Int64
}

func (b *sick) Append(ctx context.Context, topic string, m backplane.Message) (backplane.Receipt, error) {
	if b.refuse.Load() {
		b.refused.Add(1)
		return backplane.Receipt{Outcome: backplane.NotStored, ID: m.ID}, &backplane.InputError{Field: "data", Reason: "is refused"}
	}
	return b.Memory.Append(ctx, topic, m)
}

func (b *sick) Read(ctx context.Context, topic string, after replay.Position, max replay.Budget) (backplane.Page, error) {
	page, err := b.Memory.Read(ctx, topic, after, max)
	for i, e := range page.Entries {
		if strings.Contains(string(e.Data), "long ago") {
			page.Entries[i].At = e.At.Add(-time.Hour)
		}
	}
	return page, err
}

// A newcomer who has seen nothing but history knows all the same what was missed.
func TestWhatIsCaughtUpIsCounted(t *testing.T) {
	memory := backplane.NewMemory(nil)
	defer memory.Close()
	s := newShow(t, options{timing: quick, open: func() (backplane.Backplane, func() error, error) {
		return &sick{Memory: memory}, func() error { return nil }, nil
	}})
	hub := backplane.New(memory, nil)
	defer hub.Close(s.ctx)
	say := func(text string) {
		if _, err := hub.Publish(s.ctx, room, backplane.Message{Data: []byte(`{"from":"anna","text":"` + text + `"}`)}); err != nil {
			t.Fatal(err)
		}
	}
	say("long ago")
	bert := s.visit("bert", "/?name=%F0%9F%AB%A9") // which is newer than some tables
	bert.open()
	bert.hears("long ago")
	bert.click("#lose")
	bert.until("$('#state').dataset.state !== 'open'")
	say("one")
	say("two")
	bert.hears("two")
	if n := bert.number("#replayed"); n != 2 || bert.text("#log .divider") != "2 caught up" {
		t.Errorf("%d caught up, %q", n, bert.text("#log .divider"))
	}
	bert.allowed()
}

// While there is no node, buttons say that they do nothing, and who comes is told why
// nothing happens.
func TestWhileAllIsDownThePageSaysSo(t *testing.T) {
	s := newShow(t, options{timing: lasting})
	anna := s.come("anna")
	anna.until("$('.you')")
	anna.click("#restart")
	anna.until("$('#state').dataset.state !== 'open' && $('.where').textContent.startsWith('was on node-') && !$('.you')")
	anna.until("$('#events li').textContent.includes('lost without a word')")
	anna.click("#kill")
	anna.until("$('#events li').textContent.endsWith(' → it is down already')")
	bert := s.visit("bert", "/?name=bert")
	bert.until("$('#events li').textContent.endsWith('no connection: no node is there; try again')")
	for _, n := range s.c.nodes {
		if err := n.begin(); err != nil {
			t.Fatal(err)
		}
	}
	anna.open()
	bert.open()
	anna.until("$('.you') && $('.where').textContent.startsWith('on node-')")
	anna.until("/restart everything → lost without a word → open on node-.*/.test($('#events li:nth-child(2)').textContent)")
	if text := anna.text("#events li"); !strings.HasSuffix(text, "it is down already") {
		t.Errorf("what had no effect has a story: %q", text)
	}
	anna.allowed()
	bert.allowed()
}

// What is counted as missing and repeated, of a sender s and of the page's own, me.
func TestThePageCountsWhatIsMissing(t *testing.T) {
	s := newShow(t, options{timing: timings})
	v := s.visit("nobody", "/")
	for _, tt := range []struct {
		why, steps string
		want       string // missing, repeated
	}{
		{"all is well", "s(1); s(2); s(3)", "0 0"},
		{"one is missing", "s(1); s(3)", "1 0"},
		{"one comes twice", "s(1); s(2); s(2)", "0 1"},
		{"one comes late that was not stored", "s(1); s(3, [2]); s(2); s(4)", "0 0"},
		{"one does not come that was not stored, and then was", "s(1); s(3, [2]); s(4)", "1 0"},
		{"some are not stored for ever", "s(1); s(70, [[2, 69]]); s(71, [[2, 69]])", "0 0"},
		{"some of a range come", "s(1); s(70, [[2, 69]]); s(30); s(30); s(71, [[2, 29], [31, 69]])", "0 1"},
		{"the first is believed", "s(7); s(8)", "0 0"},
		{"one from before the first", "s(7, [6]); s(6); s(8)", "0 0"},
		{"one from before the first, twice", "s(7); s(6); s(6)", "0 1"},
		{"the first is an old one", "s(2, [], true); s(5); s(6)", "0 0"},
		{"told", "s(1); told(); s(5); s(6)", "0 0"},
		{"told, and more is missing", "s(1); told(); s(5); s(7)", "1 0"},
		{"told, and what was not stored may be among it", "s(1); s(3, [2]); told(); s(5)", "0 0"},
		{"told, and what was not stored comes", "s(1); s(3, [2]); told(); s(5, [2]); s(2)", "0 0"},
		{"told, and one comes late", "s(1); told(); s(5, [4]); s(4)", "0 0"},
		{"told, and one comes late, twice", "s(1); told(); s(5, [4]); s(4); s(4)", "0 1"},
		{"told, and an old one comes first", "s(1); s(3, [2]); told(); s(2, [], true); s(6)", "0 0"},
		{"told, and what was missing before is so", "s(1); s(3); told(); s(5)", "1 0"},
		{"another history", "s(1); s(2); anew(); s(4, [3]); s(3)", "0 0"},
		{"another history begins again", "s(1); s(2); s(4); anew(); s(1); s(2)", "0 0"},
		{"the own first one is missing", "me(2)", "1 0"},
		{"the own first one comes late", "me(2, [1]); me(1)", "0 0"},
		{"the own first one, told", "told(); me(2)", "0 0"},
		{"the own first one in another history", "anew(); me(2)", "0 0"},
	} {
		var got string
		v.eval(`import('/panel.js').then(({ Numbers }) => {
			const n = new Numbers('me'), s = (...a) => n.take('s', ...a), me = (...a) => n.take('me', ...a), told = () => n.reset(false), anew = () => n.reset(true);
			`+tt.steps+`;
			return n.missing + ' ' + n.repeated;
		})`, &got)
		if got != tt.want {
			t.Errorf("%s: %s: missing and repeated %s, want %s", tt.why, tt.steps, got, tt.want)
		}
	}
}

// screen makes the page as wide and high as that, and light or dark.
func (v *visitor) screen(width, height int, scheme string, scale float64) {
	v.s.t.Helper()
	v.do("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "screenWidth": width, "screenHeight": height, "deviceScaleFactor": scale, "mobile": width < 600})
	v.do("Emulation.setEmulatedMedia", map[string]any{"features": []any{map[string]any{"name": "prefers-color-scheme", "value": scheme}}})
	v.until(fmt.Sprintf("screen.width === %d", width))
}

func TestThePageFitsAPhone(t *testing.T) {
	s := newShow(t, options{timing: timings})
	anna := s.visit("anna", "/")
	anna.screen(360, 740, "light", 1)
	fits := func(what string) {
		t.Helper()
		// What scrolls sideways, and what can be pressed but is narrower or lower than a finger.
		var wrong []string
		anna.eval(`[...document.querySelectorAll('body, body *')].filter(e => e.checkVisibility() && !e.closest('svg') &&
			(e.getBoundingClientRect().right > 360.5 || e.matches('button, summary, input:not([type=checkbox])') && e.getBoundingClientRect().height < 36))
			.map(e => e.outerHTML.slice(0, 80))`, &wrong)
		var wide bool
		anna.eval("innerWidth > 360 || document.documentElement.scrollWidth > 360", &wide)
		if wide || len(wrong) > 0 {
			t.Errorf("%s: wider than the phone: %v, %q", what, wide, wrong)
		}
	}
	anna.until("document.activeElement.id === 'name'")
	fits("the door")
	anna.write("anna")
	anna.press("Enter", "\r", 13)
	anna.open()
	fits("the room")
	anna.say(strings.Repeat("a long line of text, as people write, ", 5) + strings.Repeat("x", 200))
	anna.until("document.querySelectorAll('#log .mine[data-state=delivered]').length === 1")
	fits("a long message")
	anna.click("#break")
	anna.until("$('#panel').open && document.activeElement.id === 'lose'")
	fits("the panel")
	// Reloaded, it knows who this is; in another tab it only suggests it.
	if err := anna.Reload(s.ctx); err != nil {
		t.Fatal(err)
	}
	anna.until("$('#my-name').textContent === 'anna'")
	anna.open()
	anna.click("#leave")
	anna.until("!$('#door').hidden && $('#name').value === 'anna'")
	anna.allowed()
}

// The pictures show a conversation with faults behind it.
func TestPictures(t *testing.T) {
	if !*picture {
		t.Skip("SKIPPED: this makes the pictures anew, with -picture")
	}
	s := newShow(t, options{timing: timing{lose: 3 * time.Second, dead: 3500 * time.Millisecond, restart: 300 * time.Millisecond}})
	anna, bert, carla := s.come("anna"), s.come("bert"), s.come("carla")
	for _, v := range []*visitor{anna, bert, carla} {
		v.screen(1280, 800, "light", 1)
	}
	all := func(v *visitor, text string) {
		v.say(text)
		for _, o := range []*visitor{anna, bert, carla} {
			o.hears(text)
		}
	}
	wait := func(d time.Duration) { <-time.After(d) } // for a picture, not for a test
	all(bert, "Is this thing on?")
	all(anna, "Loud and clear. You are on node-2, I am on node-1")
	all(carla, "And I brought a robot. Let's break something")
	robots(true, carla)
	wait(2 * time.Second)
	robots(false, carla)
	n := anna.number("#reconnects")
	anna.click("#kill")
	anna.until(fmt.Sprintf("number('#reconnects') > %d", n))
	anna.open()
	all(anna, "My node is dead, long live my node")
	all(bert, "I did not notice a thing")
	robots(true, carla)
	wait(time.Second)
	n = anna.number("#reconnects")
	anna.click("#lose")
	anna.until("$('#state').dataset.state !== 'open'")
	bert.say("anna, are you still there?")
	bert.say("She has no network. Good test!")
	anna.until(fmt.Sprintf("number('#reconnects') > %d", n))
	anna.open()
	wait(time.Second)
	robots(false, carla)
	all(anna, "Back, and I have read all of it. Nothing missing, nothing twice")
	n = anna.number("#reconnects")
	anna.click("#drain")
	anna.until(fmt.Sprintf("number('#reconnects') > %d", n))
	anna.open()
	all(carla, "Deployed in the middle of a sentence, too")
	anna.tap("#more")
	wait(2 * time.Second)
	if err := anna.Show(s.ctx); err != nil {
		t.Fatal(err)
	}
	anna.until("number('#tabs') === 10")
	wait(15 * time.Second) // round trips
	bert.eval("$('#text').focus()", nil)
	bert.write("One more")
	anna.until("$('#typing').textContent !== ''")
	anna.eval("$('#text').focus()", nil)
	shoot := func(name string) {
		bert.eval("$('#text').dispatchEvent(new Event('input', { bubbles: true }))", nil)
		wait(500 * time.Millisecond)
		png, err := anna.Screenshot(s.ctx)
		if err == nil {
			err = os.WriteFile(name+".png", png, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(png) > 200<<10 {
			t.Errorf("%s.png: %d bytes", name, len(png))
		}
	}
	shoot("light")
	anna.screen(1280, 800, "dark", 1)
	shoot("dark")
	anna.screen(390, 844, "light", 2)
	shoot("phone")
	exact(anna, bert, carla)
}
