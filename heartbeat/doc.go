// Package heartbeat finds connections whose peer is gone, and drops them: a
// client that lost its network, a server behind a dead link, a process that is
// frozen. TCP does not tell, for minutes or for ever, and meanwhile they cost
// memory. They are found within a stated time, each once and with the reason, and
// no peer is blamed for our own pauses.
//
// It is for servers and clients, with any WebSocket library. Pages in browsers, which
// see no pings, need a message of your own: see Browsers. It acknowledges nothing: a
// verdict says that the peer was not there, not that a message did not reach it.
//
// One [Monitor] watches any number of connections with one goroutine. For each
// connection there is a [Peer]:
//
//	peer, err := monitor.NewPeer(nil)
//	if err != nil {
//		return err
//	}
//	conn, err := websocket.Accept(peer.WrapWriter(w), r, nil)
//	if err != nil {
//		return err
//	}
//	if err := peer.Watch(conn); err != nil {
//		return err
//	}
//	defer peer.Stop()
//	// read from conn; it is closed when the peer is found dead
//
// The nearest thing in the standard library is a read deadline, which blames the
// peer for every silence, also for our own.
//
// # Guarantees
//
// A peer that shows no life is dropped within Interval + Timeout and a tick of 50
// ms, exactly once, and the reason is told. One that is excused, because our own
// side is in the way, gets up to three times the Timeout more.
//
// Life is any byte that comes in after a probe went out, not only the right
// answer to it. Time for which this process stood still does not count against
// anybody: after a pause, a garbage collection, a debugger or a virtual machine's
// migration, healthy peers are left alone. So they are while our own handler does
// not read, or our own large write is in the way, up to a bound; what that bound
// ends is reported as what it is ([ReaderStuck], [WriteBlocked]). For the last two
// the monitor has to see the connection's bytes: see [Peer.WrapWriter] and
// [Peer.WrapConn]. Without them a connection is judged by its pings and by
// [Peer.Touch] alone.
//
// Probes are spread over the interval by construction, however many peers connect
// at once. A peer with traffic both ways is not pinged at all. When the machine
// was suspended all peers are probed within seven seconds after it wakes.
//
// # Cost
//
// An idle connection costs a few hundred bytes and no goroutine and no timer; a
// ping that waits for its answer has a goroutine for so long. (With peers that
// answer, but not with what the ping said, and without a wrapper, some seconds
// longer.) Nothing runs while nothing is watched. A wrapped connection has small buffers and so takes much
// less memory than with the usual 4 KiB each way.
//
// # Browsers
//
// Pages in browsers can neither send pings nor see them, and browsers answer pings
// also for pages that are frozen. There, let the heartbeat be a message of your
// own protocol, with [Funcs], and call Touch when the page answers.
//
// # Concurrency
//
// All methods may be called from any goroutine. Pings, CloseNow and the callbacks
// run on goroutines of their own; [Monitor.Close] waits for them.
//
// # Limits
//
// It finds out about paused processes, not about machines so busy that readers
// run seconds late: let Timeout be much longer than that.
package heartbeat
