//go:build unix

package main

import (
	"context"
	"net/url"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/internal/chromium"
)

// The page in a browser: notes come by themselves, each once.
func TestThePageIsLive(t *testing.T) {
	path := chromium.Find(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	srv := serve(t)
	b, err := chromium.Start(path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	profile, err := b.Profile(ctx)
	if err != nil {
		t.Fatal(err)
	}
	tab, err := profile.Open(ctx, srv.URL, "")
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err, tab.Logs())
		}
	}
	anna := visit(t, srv, "anna")
	add := func(text string) {
		resp, err := anna.PostForm(srv.URL+"/notes", url.Values{"text": {text}})
		must(err)
		resp.Body.Close()
	}
	add("before")
	must(tab.Eval(ctx, "fetch('/login', { method: 'POST', body: new URLSearchParams({ name: 'bert' }) }).then(() => 0)", nil))
	must(tab.Reload(ctx))
	must(tab.Until(ctx, "document.getElementById('state').textContent === 'live'"))
	add("live")
	shown := "[...document.querySelectorAll('li')].map(l => l.textContent).join()"
	must(tab.Until(ctx, shown+" === 'anna: live,anna: before'"))
}
