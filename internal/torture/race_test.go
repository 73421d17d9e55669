//go:build race

package torture

import "runtime"

// One thread: with several the race detector itself crashes here, in one run of four or
// so. A timer in a bubble whose channel somebody reads after its time is fired by the
// reader, with the race context of the bubble, and two threads then use that at once
// (Go 1.26, runtime/time.go, maybeRunChan and unlockAndRun). What the detector finds does
// not depend on it: it follows what happens before what.
func init() { runtime.GOMAXPROCS(1) }
