// Package replay keeps the newest messages of a topic, numbered, in memory, so
// that a reader who was away gets exactly what it missed, or is told that it
// cannot. It is for servers that push to readers who come and go: over WebSockets,
// Server-Sent Events, long polls.
//
// The nearest thing in the standard library is a buffered channel: for one reader
// that never goes away. Messages that must outlive the process belong elsewhere;
// let a Log follow that with [Log.Insert].
//
// A [Log] is one bounded ring for all readers of a topic. A [Cursor] is one of
// those readers: a position in the ring and little more. A [Position] is what a
// reader keeps while it is away, and hands in when it comes back.
//
//	log := replay.New(replay.Limits{})
//	log.Append("", []byte("hello"))
//
//	cursor := log.Cursor(position, nil) // from a reader that comes back
//	var batch replay.Batch
//	for {
//		if err := cursor.Next(ctx, &batch, replay.Budget{}); err != nil {
//			return err // a *GapError, or ctx has ended
//		}
//		for _, entry := range batch.Entries {
//			send(entry.Pos, entry.Data)
//		}
//	}
//
// # Guarantees
//
// A cursor sees entries in one order, the same for all, each exactly once,
// without a gap. Where that cannot be, because the next entry is no longer
// stored, or because the log is not the one that the position was taken from, it
// gets a [*GapError] that says which, and how many it missed where that can be
// known; and never otherwise. It is for the reader to say where it then goes on.
//
// What is past and what is live is read by the same call from the same ring, so
// that there is no moment of joining one to the other in which a message could be
// lost or seen twice.
//
// A position names an entry by identity. A log that was lost and numbers from 1
// again, or that went back to an older state and handed out some numbers a second
// time, is noticed by each reader that stands in what is gone, but for one in 2³²
// that meets an equal tag. Readers that stand in what both have in common go on.
//
// # Slow readers
//
// A slow reader costs the log nothing and holds up nobody: it has no queue. It
// loses its place
// when the log drops what it has not read; [Limits] decide when. A [Lag] sets a
// limit of the cursor's own, beyond which it is either stopped, so that it can be
// disconnected or moved to the head, or spared the entries that a newer one with
// the same key makes obsolete.
//
// # Many readers
//
// [Cursor.Next] waits in a goroutine of the reader's own. Where there are
// thousands of readers, waking their goroutines is most of the work of an append;
// a [Poller] serves them with a few goroutines instead.
//
// # Concurrency
//
// A Log and a Poller may be used by any number of goroutines. A Cursor belongs to
// one goroutine at a time. The data of entries is shared by all and copied by
// nobody: whoever appends gives it away, and nobody may change it.
//
// # Not here
//
// Durability, an order across topics, authorisation (a position is not a
// credential), and the network.
package replay
