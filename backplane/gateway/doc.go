// Package gateway serves a [backplane.Hub] to WebSocket clients, as an
// [http.Handler] to be mounted in any server. A client gets every message of a topic
// once, or a reset that says what is missing; it may see and do only what the
// application allows, and a slow one costs no more than a fast one. It is not a
// framework: login, rooms and presence are the application's.
//
//	gw, err := gateway.New(hub, &gateway.Options{
//		Authorize: func(ctx context.Context, a gateway.Access) (gateway.Grant, error) {
//			switch a.Action {
//			case gateway.Connect:
//				user, err := session(a.Request) // by cookie; or by a.Token, then for Renew, too
//				return gateway.Grant{User: user}, err
//			case gateway.Subscribe, gateway.Publish:
//				if mayUse(a.User, a.Topic) {
//					return gateway.Grant{}, nil
//				}
//			}
//			return gateway.Grant{}, gateway.ErrForbidden
//		},
//	})
//	mux.Handle("/ws", gw)
//	// ...
//	defer gw.Shutdown(ctx)
//
// Its clients are package client, the ES module in client/browser, and whatever
// speaks the protocol that client/PROTOCOL.md specifies.
//
// The nearest thing in the standard library is a handler for server-sent events. It
// goes one way, and what happens on a slow or lost connection is left to the handler.
//
// # Delivery
//
// A client gets of each topic what a [backplane.Subscription] gives, in that order:
// every message once, or a reset that says what is missing and why. It comes back to
// this server or another with the position of the last message that it has got, and
// goes on there. What it published and does not know the fate of it publishes again
// with the same id, which is harmless.
//
// # Security
//
// Nothing is allowed until Authorize says so. It is asked for each connection, each
// subscription, also one that is resumed, and each message that is published; for
// living subscriptions again from time to time; see [Options]. A position is no
// credential: what a resuming client may see is asked as for any other. A message is
// shown before it is published, so that it names no other author than its own.
//
// Pages of other origins are refused unless they are listed. All that a client sends
// is bounded in size, rate and time, and what is refused is answered with an error
// that names what was wrong. What a client does cannot disturb others, and none of
// its text is logged raw.
//
// # Slow consumers
//
// A client that reads slowly is a position in a log that all share: it has no queue
// here, costs no memory, and nobody waits for it. Once the network takes nothing more
// from it for the time of [Limits.Write], its connection is dropped; it may resume. One
// that is logged out, expired or drained has that time for all that is left.
// One that reads on, but has fallen behind what is kept, gets a reset; or if Options.Lag
// says so, the newest message of each key.
//
// # Cost
//
// Each message is encoded once, and the frame is shared by all who stand at the same
// place, which nearly always are all: a topic with several readers keeps its last frames
// for that, up to 1.6 MB where messages are long. An idle connection has one goroutine, which
// reads its socket, and no timer. A few goroutines write to all connections; more are
// added only while some of them are stuck in slow ones.
//
// # Concurrency
//
// All methods may be called from any goroutine.
//
// # Not here
//
// Other transports than WebSocket, and HTTP/2: WebSockets need a connection of their own.
package gateway
