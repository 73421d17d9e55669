// Package client keeps a WebSocket connection of a Go program alive: it dials again
// whenever the connection is lost, as fast as is good for the server, and not at all
// when that would be of no use. It is for services, tools and bots; pages have
// client/browser, and the server's side is backplane/gateway.
//
// [Sessions] is for any WebSocket server, and promises a connection that comes back and
// an end after which nothing runs. [Client] is for a gateway, and promises each message
// once, or a [Reset], and each publish stored once, over all connections.
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
// # A gateway
//
// A [Client] talks to a gateway, see package backplane/gateway: it subscribes to topics and
// publishes to them, over connections that come and go without anybody noticing.
//
//	c, err := client.New("wss://example.com/ws", nil)
//	defer c.Close(ctx)
//
//	receipt, err := c.Publish(ctx, "room/7", client.Message{Data: data})
//
//	room, err := c.Subscribe("room/7", &client.SubscribeOptions{From: kept})
//	for event, err := range room.All(ctx) {
//		if err != nil {
//			return err // ctx is done, or the subscription is over
//		}
//		if event.Reset != nil {
//			// messages are missing here; it says why and how many
//			continue
//		}
//		handle(event.Data)
//		keep(room.Position()) // for From, when the program is started again
//	}
//
// A subscription returns every message once, in the order of the topic, whatever happens to
// connections and servers; or in the one place where that cannot be, a [Reset]. What came
// while the application was slow waits on the server, and costs no more memory here than
// its buffer. A message that is published is sent until the server has answered, for a
// minute by default, and is stored once; its [Receipt] says what is certain and what is not.
// There is no silent loss in the queue between: what gives way fails with an error.
//
// [Client.Close] takes no longer than its context allows, and when it returns nothing of the
// client runs and nothing is dialled. The exception is a callback of the application that does
// not return: Close may take a quarter of a second more, and the callback runs on. All that
// follows holds for the client's connection, too; [State] has a picture of what it goes through.
//
// Not promised: anything about events that a process had been given and not yet dealt with
// when it crashed (keep the position together with what was made of them), what was
// queued then, and an order across topics.
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
// URL, headers and token are asked for before every dial, see [Options.Prepare].
// Credentials are not sent anywhere else: redirects to another host, or from TLS to no
// TLS, are refused. Errors of this package, its logs and traces show no query, no user
// information and no token. What a server has said is on one line in them, and cut after
// 256 bytes.
//
// A connection whose server is gone without a word is found by its heartbeat, within
// 35 s by default, as long as the body of the loop reads; see package heartbeat.
//
// # Which errors are final
//
// [Decide] says it, in a table, and [Options.Decide] may say otherwise.
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
// A [Client] and a [Pending] are for all goroutines. A [Subscription] is read by one
// goroutine at a time.
//
// # Not here
//
// For other servers than a gateway there is no queue of messages that were not sent, there
// are no receipts, subscriptions or resuming: these need a protocol that both sides speak.
// Messages written shortly before a connection was lost may or may not have arrived.
//
// It does not build for browsers (GOOS=js), on purpose: there a WebSocket has no headers, so
// no Authorization, does not tell the status that a server has answered with, on which
// [Decide] rests, and can neither ping nor be cut off, on which the heartbeat and Close rest.
// Pages have client/browser, which works without these, and shares a connection between tabs.
package client
