// Package retryafter reads the Retry-After header (RFC 9110, section 10.2.3) without
// trusting it: whatever a server sends, the result is a duration that can be waited for.
package retryafter

import (
	"math"
	"net/http"
	"time"
)

// maxLen is the longest value that is looked at, in bytes. A date takes 29 to 33; a
// number of seconds that is longer than this is no request but a mistake.
const maxLen = 64

// Parse returns how long the value of a Retry-After header asks to wait from now on,
// from 0 to longest, and 0 if it asks for nothing that can be understood. The value is
// either a number of seconds or a date. What does not fit an integer, or is further away
// than longest, counts as longest. With a longest of zero or less the result is 0.
//
// now should be the Date header of the same answer, if it has one: clocks of clients
// are often wrong, and only the difference of the two dates was meant.
func Parse(value string, now time.Time, longest time.Duration) time.Duration {
	if len(value) > maxLen || longest <= 0 {
		return 0
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(longest, max(0, at.Sub(now))) // Sub saturates
	}
	// By hand and unsigned: ParseInt takes signs, and a product that is not bounded at each
	// step turns 9223372037 seconds into -292 years, and 18446744074 into 0.29 s.
	const most = uint64(math.MaxInt64 / time.Second)
	var seconds uint64
	for _, c := range []byte(value) {
		if c < '0' || c > '9' {
			return 0
		}
		seconds = min(10*seconds+uint64(c-'0'), most)
	}
	return min(longest, time.Duration(seconds)*time.Second)
}
