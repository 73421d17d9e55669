// Package redisplane is a backplane on Redis, standalone, with Sentinel, or a cluster: for
// a service of several servers. It keeps the promise of package backplane whatever Redis
// loses. It is not for keeping messages: all that it stores has a time to live, and is as
// safe as that Redis.
//
//	client := redis.NewClient(&redis.Options{Addr: "localhost:6379"})
//	defer client.Close()
//	plane, err := redisplane.New(client, nil)
//	if err != nil {
//		return err // an option is not allowed
//	}
//	defer plane.Close()
//	hub := backplane.New(plane, nil) // and from here on as with any other
//	defer hub.Close(ctx)
//
// The nearest thing is Publish and Subscribe of the client itself. That loses what is
// published while a connection is broken, without telling anybody, and has no past.
//
// # Delivery
//
// What package backplane promises holds on Redis, whose replication and Pub/Sub
// promise less: a connection that breaks, or carries nothing any more, is found and
// what was missed is read. When Redis loses data (a failover to a replica that had
// not got all, a restart without persistence, FLUSHALL, an old snapshot) those who had
// seen what is gone are told, and those who had not go on.
//
// How much Redis loses is for its configuration to decide: persistence, replicas, and
// maxmemory-policy, which has to be noeviction. All keys have a time to live, so that
// the volatile- policies evict them as the allkeys- ones do. Subscribers are told by a
// Reset when history is evicted that they still need. When the head of a topic is
// evicted, all its subscribers get a Reset, also those who had seen everything, because
// nobody can know that any more. But an ID
// that is evicted is forgotten in silence: its message, if it is sent again, is stored
// twice. With noeviction an append to a Redis that is full is NotStored, and a
// Subscribe to a topic that Redis does not know waits until there is room: the first
// Read begins the topic's epoch, which is a write.
//
// Redis may go back to an older state without breaking a connection (somebody restores
// a dump, say). The next message of a topic tells its nodes, and without one each node
// finds out when it next compares heads, at the latest after one Sweep of
// backplane.Options and a quarter, 6.25 s by default. Until then one node may still have
// what another knows to be lost. A client that moves between them in this time may
// be told of one loss more than once, and may get lost messages again.
//
// # The client
//
// Use a *redis.ClusterClient for a cluster, and a *redis.Client for anything else. The
// wrong kind is refused by [Plane.Ping], and said in each error and in the log.
//
// Redis (its option timeout) or a load balancer may close connections that are idle.
// Over TLS go-redis cannot see that a connection in its pool was closed. So a call
// whose connection breaks is made again, until it must have got a new connection or its
// time is up. The option ConnMaxIdleTime of the client, 30 minutes by default, avoids
// these tries: set it below the time after which idle connections are closed.
//
// Keys are in the database that the client's options name. Channels have no databases
// in Redis, so their names contain its number.
//
// # Cost
//
// A message is one script call, which numbers, stores, bounds, looks for its ID and
// announces. Those that are published at the same time share a call. A topic takes
// its messages in up to 64 keys, and a kilobyte or two; an ID about 200 bytes. A node
// has one connection for live messages (in a cluster one for each partition), and uses
// the client's pool for all else.
//
// # Failures
//
// A connection for live messages from which nothing comes any more is replaced within
// about twice Probe, 6 s by default. Appends are told apart as the contract says: refused
// by Redis, or never sent, is NotStored; no answer is Unknown. Either wraps
// [backplane.ErrUnavailable] if it is worth trying again.
//
// Each append ends within Timeout, also if Redis hangs. One that still waits for its turn
// by then is NotStored. One that is in a call is Unknown; but if that call has ended
// before, because there was no connection to send it on, it is NotStored.
//
// A message that Redis will never take is NotStored with a [*backplane.InputError] for
// Data. Redis refuses what is longer than its proto-max-bulk-len, and hangs up. The
// refusal may be lost with the connection, and then the Plane asks for the setting with
// CONFIG GET. If that is not allowed, the outcome is Unknown. Other messages do not share
// such a call.
//
// An ephemeral message may arrive twice, if the connection broke on which it was sent.
//
// # Concurrency
//
// A [Plane] is for all goroutines of a process.
//
// # Limits
//
// Redis 6.2 or newer, 7.0 for a cluster. The scripts use keys that they build from the
// one they are given, in the same slot: proxies that forbid this do not work.
// A Read of a large history is several calls, of a megabyte or a few segments each, so
// that Redis answers others in between. A segment has up to a 64th of the topic's limits.
// Messages are read from the master only. In a cluster, a topic whose slot is being
// moved cannot be published to until that is done, and who resumes then may be told
// that messages are trimmed which have not been moved yet.
package redisplane
