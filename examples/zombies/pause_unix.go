//go:build unix

package main

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// standStill stops this process, as a debugger or a migrating virtual machine
// would. Another process wakes it.
func standStill(d time.Duration) error {
	pid := os.Getpid()
	waker := exec.Command("sh", "-c", fmt.Sprintf("kill -STOP %d; sleep %.3f; kill -CONT %d", pid, d.Seconds(), pid))
	waker.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return waker.Run()
}
