// Package holdfast is the front page of a library of resilience primitives for
// WebSocket services. Opening a WebSocket is easy; keeping it alive in production
// is hard. This package itself is empty: import the ones below it.
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
//	          client (Go, browser)  ◀─ backoff
//
// This is the plan; what stands of it today, in the order in which a message
// walks through it:
//
//   - [github.com/holdfast-ws/holdfast/backplane]: a hub for each server, and what
//     the servers have in common: memory, or Redis with backplane/redisplane. A
//     subscriber on any of them gets every message once, in the order that all
//     share, or one Reset that is true.
//   - [github.com/holdfast-ws/holdfast/replay]: the newest messages of a topic,
//     numbered, and a cursor for each reader. A reader gets each message once, in
//     order, without a gap, across its absences; or it is told what it missed.
//   - [github.com/holdfast-ws/holdfast/backplane/gateway]: an http.Handler that serves
//     a hub to WebSocket clients. Nothing is allowed until the application says so.
//   - [github.com/holdfast-ws/holdfast/heartbeat]: finds and drops connections
//     whose peer is gone, within a stated time, and blames no peer for our own
//     pauses.
//   - [github.com/holdfast-ws/holdfast/client]: a connection that comes back. To a
//     gateway it resumes: each message once, or a Reset; each publish stored once.
//   - [github.com/holdfast-ws/holdfast/backoff]: how long to wait before dialling
//     again. Whatever the fields and however long the outage, no delay is
//     negative or above its cap, and clients do not fall into step.
//
// The rest, and the promise that the whole is to keep, are in the README.
package holdfast
