// Package backplane lets users who are connected to different servers talk to each
// other, and catches each of them up on exactly what it missed. It is for services
// with topics and live subscribers: chats, feeds, dashboards. A subscriber gets every
// message of its topic once, in one order, or one [Reset] that says what is missing.
// It is not for work queues and not a durable store: history is bounded.
//
//	hub := backplane.New(backplane.NewMemory(nil), nil) // one for each process
//	defer hub.Close(ctx)
//
//	receipt, err := hub.Publish(ctx, "room/7", backplane.Message{Data: data})
//
//	sub, err := hub.Subscribe(ctx, "room/7", &backplane.SubscribeOptions{After: position})
//	defer sub.Close()
//	for batch, err := range sub.All(ctx) {
//		if err != nil {
//			return err // ctx is done, or the Hub was closed
//		}
//		if batch.Reset != nil {
//			// messages are missing before this batch; it says why and how many
//		}
//		for _, message := range batch.Entries {
//			send(message.Pos, message.Data)
//		}
//		remember(batch.To) // for After, when this subscriber comes back, to any server
//	}
//
// A [Hub] is what a service uses. It stands on a [Backplane], which is what the
// servers have in common: [Memory] for a service that is one process, and Redis
// with package backplane/redisplane. Both have the same API and the same positions,
// so that one can begin with the first and go over to the second.
//
// The nearest thing in the standard library is a channel for each subscriber. It
// has no past, and a slow reader of one holds up the others or loses messages.
//
// # Delivery
//
// Per topic, a subscriber gets every message once, in one order that all
// subscribers share, across disconnects, changes of the server, and whatever the
// backplane's live connection loses, repeats or reorders. Where that cannot be kept,
// because history was trimmed or the backplane has lost data, it gets one [Reset]
// that says so. Never a silent gap, never a duplicate, never a false alarm.
//
// As an axiom: between two Resets, the messages that a subscriber gets are
// contiguous in the topic's order, by identity and not only by number. Informally:
// if you have seen message 5, the next thing you see is message 6 of the same
// history, or a Reset.
//
// How long messages are kept decides how often a Reset happens, and nothing else.
//
// When the backplane loses what says how far a topic has got (Redis has evicted its head,
// a [Memory] has ended), everybody gets a Reset, also subscribers who had seen every
// message: nobody can know any more that they had.
//
// Not promised: anything about messages that a process had received and not yet
// dealt with when it crashed, more durability than the backplane has, and an order
// across topics.
//
// # How it works
//
// Live is a hint, Read is the truth. What the backplane tells as it happens goes
// into a [replay.Log] if it follows what is there. Anything else (a message that
// does not follow, a connection that was interrupted, heads that differ when they
// are compared every few seconds) leads to one Read for the topic, on this server,
// however many subscribers it has; and they do not notice. So a backplane may be
// simple, and even lossy, as long as its Read tells the truth.
//
// # Publishing
//
// A [Receipt] says what became of a message: committed, duplicate, queued, not
// stored, or unknown. A message has an ID, so that publishing it again does no
// harm. While the backplane is away, Publish fails at once, or an [Outbox] keeps
// messages in order.
//
// # Concurrency
//
// A Hub is for all goroutines of a process. A [Subscription] is read by one
// goroutine at a time. For thousands of subscriptions there is [Arm], with which a
// few goroutines serve them all.
//
// # Slow consumers
//
// A subscriber is a position in a log that all share: a slow one costs nothing, and
// nobody waits for it. When it has fallen so far behind that what it needs is no
// longer kept, or beyond its own [replay.Lag], it gets a Reset or the newest message
// of each key only.
//
// # Not here
//
// Work queues (each message to one of several consumers), durable storage,
// presence, and authorisation: a position is not a credential, see
// [SubscribeOptions.Floor].
package backplane
