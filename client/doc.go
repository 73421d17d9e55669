// Package client keeps a WebSocket connection of a Go program alive: it dials again
// whenever the connection is lost, as fast as is good for the server, and not at all
// when that would be of no use.
//
// # Any WebSocket server
//
// [Sessions] is a loop whose body is the session:
//
//	for s, err := range client.Sessions(ctx, "wss://example.com/feed", nil) {
//		if err != nil {
//			log.Print(err) // a dial failed and is tried again, or this was the last error
//			continue
//		}
//		for {
//			_, data, err := s.Read(s.Context())
//			if err != nil {
//				s.End(err) // back to the loop, which connects again
//				break
//			}
//			handle(data)
//		}
//	}
//
// The nearest thing in the standard library is a loop around a dial and a time.Sleep,
// which dials a server that accepts and then closes as fast as it can, brings all its
// clients back in the same second, tries for ever with a token that has expired, and
// does not notice that the network is gone.
//
// # Guarantees
//
// Leaving the loop ends everything: when the range statement has ended, by break, by
// return, by a panic or because ctx is done, the socket is closed, no dial is under way
// and none will be made, and no goroutine of this package runs.
//
// Nothing is dialled faster than package backoff allows: neither when the server accepts
// and then closes, nor when it refuses, nor when tokens cannot be had (then nothing is
// dialled at all). What the server asks for, by Retry-After or by [Session.Hint], is
// obeyed, spread and clamped.
//
// URL, headers and token are asked for before every dial, see [SessionOptions.Prepare].
// Credentials are not sent anywhere else: redirects to another host, or from TLS to no
// TLS, are refused. Errors of this package, its logs and traces show no query, no user
// information and no token. What a server has said is on one line in them, and cut: its
// reason for closing after 64 bytes.
//
// A connection whose server is gone without a word is found by its heartbeat, within
// 35 s by default, as long as the body of the loop reads; see package heartbeat.
//
// # Which errors are final
//
// [Decide] says it, in a table, and [SessionOptions.Decide] may say otherwise.
//
// # Contexts
//
// In github.com/coder/websocket a context that ends during Read or Write closes the
// connection. Give them [Session.Context], which ends with the session, and no context
// of a single operation that is to be given up while the connection lives on.
//
// # Concurrency
//
// The loop is run by the goroutine that ranges over it. Read may be called by one
// goroutine at a time; all other methods of a [Session] by any.
//
// # Not here
//
// A queue of messages that were not sent, receipts, subscriptions and resuming need a
// protocol that both sides speak. Messages written shortly before a connection was lost
// may or may not have arrived.
package client
