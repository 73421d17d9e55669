//go:build unix

package redistest

import "syscall"

func pause(r *run) {
	r.process.Signal(syscall.SIGSTOP) // fails only if it has ended
	awaitStop(r)
}

func resume(r *run) { r.process.Signal(syscall.SIGCONT) }
