// Package cputime tells how much processor time this process has used, for
// benchmarks: on a busy machine it says more than the time that has passed.
package cputime

import "time"

// Used returns the processor time of this process, in user and system mode, since it
// started.
func Used() time.Duration { return used() }
