//go:build unix && !linux

package chromium

import "syscall"

// processGroup puts the browser into a group of its own.
func processGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
