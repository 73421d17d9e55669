package redistest

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestAServerEndsWithItsProcess(t *testing.T) {
	need(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	addr := strings.TrimSpace(line)
	c, err := net.DialTimeout("tcp", addr, patience)
	if err == nil {
		c.Close()
	}
	cmd.Process.Kill() // SIGKILL: it cannot clean up
	cmd.Wait()
	if err != nil {
		t.Fatalf("the child's server is not at %q: %v", addr, err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(poll) {
		c, err := net.DialTimeout("tcp", addr, patience)
		if err != nil {
			break
		}
		c.Close()
		if time.Now().After(end) {
			t.Fatalf("the server at %s has outlived its process by %v", addr, patience)
		}
	}
}

// What kills a server with its process is in truth about threads: those that the
// Go runtime ends, for one when a goroutine ends that is locked to it.
func TestAServerOutlivesTheThreadOfItsCaller(t *testing.T) {
	need(t)
	var s *Server
	for thread := os.Getpid(); thread == os.Getpid(); { // the main thread never ends
		var err error
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			thread = syscall.Gettid()
			if thread != os.Getpid() {
				s, err = Launch(t.TempDir())
			}
		}()
		<-done
		if err != nil {
			t.Fatal(err)
		}
		if s != nil {
			defer s.Kill()
			for end := time.Now().Add(patience); ; time.Sleep(poll) {
				if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", thread)); os.IsNotExist(err) {
					break
				}
				if time.Now().After(end) {
					t.Fatal("the thread does not end")
				}
			}
		}
	}
	does(t, s, "PING", "PONG")
}
