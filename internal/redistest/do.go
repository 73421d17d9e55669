package redistest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// doTime is how long a command may take.
const doTime = 5 * time.Second

// ReplyError is an answer of Redis that is an error, such as "READONLY You can't
// write against a read only replica.".
type ReplyError string

func (e ReplyError) Error() string { return string(e) }

// Do sends one command on a connection of its own, and returns the answer: text
// as it is, a number in digits, the elements of an array in lines, "(nil)" for
// none. An answer that is an error is returned as a [ReplyError]. The command is
// an inline one, as typed into a terminal: words with spaces stand in double
// quotes. A server that does not answer is an error after 5 seconds.
func (s *Server) Do(cmd string) (string, error) {
	return s.do(cmd, time.Now().Add(doTime))
}

func (s *Server) do(cmd string, deadline time.Time) (string, error) {
	c, err := net.DialTimeout("tcp", s.Addr(), time.Until(deadline))
	if err != nil {
		return "", fmt.Errorf("redistest: %s: %w", cmd, err)
	}
	defer c.Close()
	c.SetDeadline(deadline)
	if _, err = io.WriteString(c, cmd+"\r\n"); err != nil {
		return "", fmt.Errorf("redistest: %s: %w", cmd, err)
	}
	reply, err := read(bufio.NewReader(c))
	if _, ok := err.(ReplyError); err != nil && !ok {
		return "", fmt.Errorf("redistest: %s: %w", cmd, err)
	}
	return reply, err
}

// read reads one answer in Redis's protocol, version 2.
func read(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // the connection is new: it has to answer
	}
	if err != nil {
		return "", err
	}
	kind, rest := line[0], strings.TrimSpace(line[1:])
	switch kind {
	case '+', ':':
		return rest, nil
	case '-':
		return "", ReplyError(rest)
	case '$', '*':
	default:
		return "", fmt.Errorf("not an answer of Redis: %q", line)
	}
	n, err := strconv.Atoi(rest)
	if err != nil {
		return "", fmt.Errorf("not an answer of Redis: %q", line)
	}
	if n < 0 {
		return "(nil)", nil
	}
	if kind == '$' {
		text := make([]byte, n+len("\r\n"))
		if _, err := io.ReadFull(r, text); err != nil {
			return "", err
		}
		return string(text[:n]), nil
	}
	elements := make([]string, n)
	for i := range elements {
		if elements[i], err = read(r); err != nil {
			return "", err
		}
	}
	return strings.Join(elements, "\n"), nil
}

// await repeats cmd until its answer, which may be an error, is ok, or until d has
// passed.
func (s *Server) await(d time.Duration, cmd string, ok func(answer string) bool) error {
	last := "there was none"
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(poll) {
		deadline := time.Now().Add(doTime)
		if end.Before(deadline) {
			deadline = end
		}
		answer, err := s.do(cmd, deadline)
		if _, isReply := err.(ReplyError); isReply {
			answer, err = err.Error(), nil
		}
		if err == nil && ok(answer) {
			return nil
		}
		if err == nil {
			last = fmt.Sprintf("the last was %q", answer)
		}
	}
	return fmt.Errorf("%s did not answer %s as wanted within %v; %s", s.Addr(), cmd, d, last)
}
