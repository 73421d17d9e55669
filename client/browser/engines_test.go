//go:build linux

package browser_test

import (
	"context"
	"flag"
	"fmt"
	"os/exec"
	"testing"

	"github.com/holdfast-ws/holdfast/internal/verify"
	"github.com/holdfast-ws/holdfast/internal/webdriver"
)

var engines = flag.Bool("engines", false, "try Firefox and WebKit, too")

type firefox struct{ *webdriver.Firefox }

func (b firefox) Open(ctx context.Context, url string) (page, error) { return b.Firefox.Open(ctx, url) }

// A driver of WebKit ends with the first process that is killed.
type webkit struct{ *webdriver.WebKit }

func (webkit) Processes() []int { return nil }

func (b webkit) Open(ctx context.Context, url string) (page, error) { return b.WebKit.Open(ctx, url) }

// one lets one case at a time have the browser.
func one(b engine) chan *engine {
	engines := make(chan *engine, 1)
	engines <- &b
	return engines
}

// What TestTabs tries in Chromium, in other browsers as far as they can be told to.
func TestOtherEngines(t *testing.T) {
	if !*engines {
		verify.Only(t, "Firefox and WebKit")
	}
	installed := func(t *testing.T, names ...string) {
		for _, name := range names {
			if _, err := exec.LookPath(name); err == nil {
				return
			}
		}
		if *engines {
			t.Fatalf("none of %v is on PATH", names)
		}
		verify.Skip(t, fmt.Sprintf("none of %v is on PATH", names)) // nobody has to have them
	}
	t.Run("Firefox", func(t *testing.T) {
		installed(t, "firefox", "firefox-esr")
		testTabs(t, one(engine{name: "Firefox", start: func() (other, error) {
			b, err := webdriver.StartFirefox()
			return firefox{b}, err
		}}))
	})
	t.Run("WebKit", func(t *testing.T) {
		installed(t, "WebKitWebDriver")
		testTabs(t, one(engine{name: "WebKit", start: func() (other, error) {
			b, err := webdriver.StartWebKit()
			return webkit{b}, err
		}}))
	})
}
