package main

import (
	"math"
	"net/http"
	"time"
)

// retryAfter returns how long the value of a Retry-After header asks to wait
// from now on, and 0 if it asks for nothing that can be understood. The header
// is either a number of seconds or a date (RFC 9110, section 10.2.3).
//
// Values that do not fit saturate. What is too long for common sense is left to
// backoff.Policy.After.
func retryAfter(value string, now time.Time) time.Duration {
	if at, err := http.ParseTime(value); err == nil {
		return max(0, at.Sub(now)) // Sub saturates
	}
	var seconds time.Duration
	for _, c := range []byte(value) {
		if c < '0' || c > '9' {
			return 0
		}
		seconds = min(10*seconds+time.Duration(c-'0'), math.MaxInt64/time.Second)
	}
	return seconds * time.Second
}
