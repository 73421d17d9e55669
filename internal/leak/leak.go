// Package leak fails a package's tests if goroutines or, on Linux, sockets outlive
// them.
package leak

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Main runs the tests of a package and exits. It is all that TestMain has to do:
//
//	func TestMain(m *testing.M) { leak.Main(m) }
func Main(m *testing.M, allow ...Allowance) {
	before := sockets()
	code := m.Run()
	if code == 0 {
		if left := Check(10 * time.Second); left != "" {
			fmt.Fprintf(os.Stderr, "leak: goroutines left after the tests:\n\n%s\n", left)
			code = 1
		}
		for range 10 * len(allow) {
			if sockets() > before {
				runtime.GC()
				<-time.After(10 * time.Millisecond) // finalizers run on a goroutine of their own
			}
		}
		if now := sockets(); now > before {
			fmt.Fprintf(os.Stderr, "leak: %d sockets left after the tests\n", now-before)
			code = 1
		}
	}
	os.Exit(code)
}

// An Allowance is something that Main lets pass.
type Allowance int

// Dropped sockets are those that nobody holds any more, so that the garbage collector
// closes them. It is for packages that use go-redis, which dials on a goroutine of its
// own and drops the connection if the client was closed meanwhile.
const Dropped Allowance = 1

// sockets returns how many sockets this process has open, where the system tells.
func sockets() (n int) {
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	for _, f := range files {
		if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// Check returns the stacks of all goroutines that belong neither to the runtime
// nor to package testing, nor to the caller. It gives those that are about to end
// up to patience to do so.
func Check(patience time.Duration) (left string) {
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if left = others(); left == "" || time.Now().After(deadline) {
			return left
		}
		<-tick.C
	}
}

// others returns the stacks of the goroutines that Check is about.
func others() string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	var found []string
	for i, stack := range strings.Split(string(buf), "\n\n") {
		// The first is the one that runs this. The rest are started by the
		// testing package's or the runtime's own machinery.
		if i > 0 && !strings.Contains(stack, "testing.(*M).") && !strings.Contains(stack, "testing.RunTests") &&
			!strings.Contains(stack, "testing.runFuzz") && !strings.Contains(stack, "os/signal.") &&
			!strings.Contains(stack, "runtime.ensureSigM") {
			found = append(found, stack)
		}
	}
	return strings.Join(found, "\n\n")
}
