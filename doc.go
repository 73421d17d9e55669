// Package holdfast is the front page of a library of resilience primitives for
// WebSocket services in Go, on one server or many. Opening a WebSocket is easy;
// keeping it alive in production is hard. This package itself is empty: import
// the ones below it, one of them or all.
//
// The promise, for each topic: every message once, in one order, across
// disconnects, server changes and broker failovers; and where that cannot be
// kept, the subscriber is told exactly that, with the reason. Never a silent
// gap, never a duplicate, never a false alarm.
//
// Not for request and response, work queues, presence, large files, transports
// other than WebSocket, or history that has to last: it is bounded.
//
//	publisher ─▶ hub ─▶ backplane (memory | Redis: one order, bounded history)
//	              ▲         │ live hints, and reads
//	              │         ▼
//	          replay log  (one ring per topic and node: replay and live are the same read)
//	              │ one cursor per subscriber
//	              ▼
//	          gateway (http.Handler)  ◀─ heartbeat
//	              │ WebSocket
//	              ▼
//	          client (Go, or one for all tabs of a browser)  ◀─ backoff
//
// In the order in which a message walks through them:
//
//   - [github.com/holdfast-ws/holdfast/backplane]: a hub for each server, and what
//     the servers have in common: memory, or Redis with backplane/redisplane. It
//     keeps the promise for subscribers on any of them. For a store of your own,
//     backplane/backplanetest checks that it can.
//   - [github.com/holdfast-ws/holdfast/replay]: the newest messages of a topic,
//     numbered, and a cursor for each reader. A reader gets each message once, in
//     order, without a gap, across its absences; or it is told what it missed.
//   - [github.com/holdfast-ws/holdfast/backplane/gateway]: an http.Handler that
//     serves a hub to WebSocket clients. Nothing is allowed until the application
//     says so.
//   - [github.com/holdfast-ws/holdfast/heartbeat]: finds and drops connections
//     whose peer is gone, within a stated time, and blames no peer for our own
//     pauses.
//   - [github.com/holdfast-ws/holdfast/client]: a connection that comes back. To a
//     gateway it resumes: each message once, or a Reset; each publish stored once.
//   - [github.com/holdfast-ws/holdfast/client/browser]: the same for pages: an ES
//     module, one WebSocket for all tabs of a user, and the handler that serves it.
//   - [github.com/holdfast-ws/holdfast/backoff]: how long to wait before dialling
//     again. Whatever the fields and however long the outage, no delay is negative
//     or above its cap, and clients do not fall into step.
//
// The README has a server and a client to begin with, what to look after in
// production, and the limits. Each folder of examples is a program that shows one
// of these at work.
package holdfast
