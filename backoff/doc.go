// Package backoff says how long to wait before trying again, so that ten
// thousand clients that lost a server together do not come back together. It is
// for whatever dials or fetches. Whatever the fields and however long the outage,
// no delay is negative or above its cap, and clients do not fall into step.
//
// The nearest relatives are a loop around [time.Sleep], and the ticker of
// package time for work that does not fail. This package only computes
// delays (and waits, if asked): it does not run your operation, wrap its errors
// or decide which of them are final.
//
// A [Policy] turns the number of an attempt into a random delay. Its zero value
// is ready: full jitter over a first window of 500 ms that doubles up to 30 s.
//
//	var retry backoff.Policy
//	for range retry.Attempts(ctx) {
//		if dial(ctx) == nil {
//			return nil
//		}
//	}
//	return context.Cause(ctx)
//
// A [Loop] paces one long-lived connection. It adds what a policy cannot know:
// that the first reconnect after a loss is the dangerous one, that a connection
// which lived for a second proves nothing, and that the server may have said
// how widely to spread.
//
// # Guarantees
//
// For any field values and any attempt number, [Policy.Delay] lies between Floor
// and Cap: it is never negative, never above Cap, never an overflow. The window is
// cut at Cap before the random draw and not after it, so that delays keep their
// full spread however long an outage lasts. (Cutting after the draw, or adding
// jitter of a fixed width, makes all clients wait the same time once they stand at
// the cap.) Nothing panics: values that make no sense have a documented meaning.
// Only what a server asks for may exceed Cap, up to [MaxHint] and a spread.
//
// # Concurrency
//
// A [Policy] is a plain value without hidden state: copy it, share it, use it
// from any number of goroutines (Rand, if set, must allow that too). A [Loop]
// remembers one connection and belongs to the goroutine that reconnects it.
//
// # Choosing numbers
//
// With N clients that have long been waiting, attempts arrive at about 2·N/Cap
// per second until the server is back, and the last client hears of that up to
// one Cap later: a longer Cap protects the server, a shorter one speeds up
// recovery. A dial timeout that is shorter than the queue in front of the server
// makes it work for clients that have already gone, and with many clients and a
// short Cap it may never get out of that: let the timeout be 10 s or more, and not
// less than Cap. The program examples/herd simulates all of this.
//
// # Left out
//
// Retry frameworks, error wrappers, tickers and retry budgets can all be built
// outside. Decorrelated jitter would need state per client, and gained too little
// over full jitter in the same simulations to earn it.
//
// The names follow M. Brooker, "Exponential Backoff And Jitter", AWS
// Architecture Blog, 2015.
package backoff
