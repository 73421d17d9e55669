package leak

import (
	"net"
	"runtime"
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

func TestSocketsAreCounted(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("SKIPPED: only Linux tells which sockets are open")
	}
	before := sockets()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if n := sockets(); n != before+1 {
		t.Errorf("%d sockets with a listener more than %d", n, before)
	}
	listener.Close()
	if n := sockets(); n != before {
		t.Errorf("%d sockets after it was closed, want %d", n, before)
	}
}
