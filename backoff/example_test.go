package backoff_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-ws/holdfast/backoff"
)

// Retry an operation until it succeeds, four attempts are used up or the
// context ends.
func ExamplePolicy_Attempts() {
	calls := 0
	fetch := func() error {
		if calls++; calls < 3 {
			return errors.New("try again")
		}
		return nil
	}

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	retry := backoff.Policy{Base: time.Millisecond}
	err := errors.New("never tried")
	for n := range retry.Attempts(ctx) {
		if err = fetch(); err == nil || n == 3 {
			break
		}
	}
	fmt.Println(calls, "calls, error:", err)
	// Output: 3 calls, error: <nil>
}

// Keep one connection: Up when it is made, Down when it is lost or a dial fails.
func ExampleLoop() {
	dial := func() (conn string, err error) { return "a connection", nil }
	serve := func(conn string) error { return errors.New("lost") } // blocks until the end

	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	var pace backoff.Loop
	for {
		conn, err := dial()
		if err == nil {
			pace.Up()
			err = serve(conn)
		}
		wait := pace.Down() // up to 5 s after the first loss
		if sleepErr := backoff.Sleep(ctx, wait); sleepErr != nil {
			fmt.Println(err, "and", sleepErr)
			return
		}
	}
	// Output: lost and context deadline exceeded
}

// A server that goes down for a deploy tells its clients to come back spread
// over half a minute: the next delay is drawn from that window.
func ExampleLoop_Hint() {
	var pace backoff.Loop
	pace.Up()
	pace.Hint(30 * time.Second) // from the server's goodbye
	wait := pace.Down()
	fmt.Println(0 <= wait && wait <= 30*time.Second)
	// Output: true
}

// A server answered 503 with "Retry-After: 10". After is never early, and it
// spreads the clients that were all told the same.
func ExamplePolicy_After() {
	attempt, retryAfter := 0, 10*time.Second
	wait := backoff.Policy{}.After(attempt, retryAfter)
	fmt.Println(10*time.Second <= wait && wait <= 20*time.Second)
	// Output: true
}

// The windows of the zero Policy.
func ExamplePolicy_Window() {
	for n := range 8 {
		_, hi := backoff.Policy{}.Window(n)
		fmt.Print(hi, " ")
	}
	// Output: 500ms 1s 2s 4s 8s 16s 30s 30s
}
