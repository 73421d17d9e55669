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
// the volatile- policies evict them as the allkeys- ones do. History that is evicted is
// told, by a Reset to those who still need it, or to all who follow the topic. But an ID
// that is evicted is forgotten in silence: its message, if it is sent again, is stored
// twice. With noeviction an append to a Redis that is full is NotStored.
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
// [backplane.ErrUnavailable].
//
// # Concurrency
//
// A [Plane] is for all goroutines of a process.
//
// # Limits
//
// Redis 6.2 or newer, 7.0 for a cluster. The scripts use keys that they build from the
// one they are given, in the same slot: proxies that forbid this do not work.
// Messages are read from the master only. In a cluster, a topic whose slot is being
// moved cannot be published to until that is done, and who resumes then may be told
// that messages are trimmed which have not been moved yet.
package redisplane
