package chromium

import "syscall"

// processGroup puts the browser into a group of its own, and lets it die with us.
func processGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
