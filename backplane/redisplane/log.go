package redisplane

import (
	"errors"
	"net"
)

// A series is a row of failures of one thing, most of which the log need not know of.
type series struct {
	n     int
	texts map[string]bool // what they were
}

// maxTexts is how many different failures of a series count as new.
const maxTexts = 8

// tell counts a failure, and reports whether it is for the log: the first, one that is
// new, and ever fewer of the others.
func (s *series) tell(err error) bool {
	s.n++
	text := err.Error()
	var op *net.OpError
	if errors.As(err, &op) {
		text = op.Op + ": " + op.Err.Error() // without the port, which is always new
	}
	fresh := !s.texts[text] && len(s.texts) < maxTexts
	if fresh {
		if s.texts == nil {
			s.texts = map[string]bool{}
		}
		s.texts[text] = true
	}
	return fresh || s.n&(s.n-1) == 0
}
