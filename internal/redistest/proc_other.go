//go:build !linux

package redistest

import "syscall"

// attributes has nothing by which a server would end together with us. It stays
// in our process group, so that Ctrl-C ends it too.
func attributes() *syscall.SysProcAttr { return nil }

func awaitStop(*run) {}
