package redistest

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
	"time"
)

// attributes lets the kernel kill a server together with us, however we end. A
// group of its own keeps a Ctrl-C, which is meant for us, from the server.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// awaitStop returns when the process is stopped or has ended. A signal takes
// effect only after it was sent.
func awaitStop(r *run) {
	for end := time.Now().Add(bootTime); time.Now().Before(end); time.Sleep(poll) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.process.Pid))
		// The state follows the program's name, which is in parentheses.
		if err != nil || bytes.Contains(stat, []byte(") T ")) || bytes.Contains(stat, []byte(") Z ")) {
			return
		}
	}
}
