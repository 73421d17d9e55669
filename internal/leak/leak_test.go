package leak

import (
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

func waitHere(stop <-chan struct{}) { <-stop }

func TestCheckFindsAGoroutineAndSeesItEnd(t *testing.T) {
	if left := Check(time.Second); left != "" {
		t.Fatalf("before anything was started: %s", left)
	}
	stop := make(chan struct{})
	go waitHere(stop)
	if left := Check(0); !strings.Contains(left, "created by") || !strings.Contains(left, t.Name()) {
		t.Errorf("the goroutine is not found in %q", left)
	}
	close(stop)
	if left := Check(10 * time.Second); left != "" {
		t.Errorf("the goroutine has ended, and is still found: %s", left)
	}
}
