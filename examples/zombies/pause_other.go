//go:build !unix

package main

import (
	"errors"
	"time"
)

// standStill cannot be done without signals.
func standStill(time.Duration) error { return errors.ErrUnsupported }
