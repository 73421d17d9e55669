package gateway

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-ws/holdfast/heartbeat"
	"github.com/holdfast-ws/holdfast/internal/memnet"
	"github.com/holdfast-ws/holdfast/internal/wire"
)

// ended is how connections have ended.
type ended struct{ Closed, Left, Lost, Slow, Dead uint64 }

func (s Stats) ended() ended { return ended{s.Closed, s.Left, s.Lost, s.Slow, s.Dead} }

// A slow connection was traced as a closed network connection without a code, one whose write had
// failed counted nowhere, and others twice.
func TestTheFirstCauseOfAnEndCounts(t *testing.T) {
	var noise [10_000]byte // cannot be compressed
	rand.NewChaCha8([32]byte{}).Read(noise[:])
	message := fmt.Sprintf(`"%x"`, noise)
	stall := func(r *rig, s *socket) {
		s.link.Stall(memnet.Down, true)
		for range 10 {
			r.publish("x", message)
		}
	}
	for name, c := range map[string]struct {
		o    Options
		end  func(*rig, *socket)
		want ended
		code websocket.StatusCode
		text string
	}{
		"slow":             {Options{}, stall, ended{Slow: 1}, wire.CloseSlow, "slow: 4001 took nothing more for 10s (gateway.Limits.Write)"},
		"slow, compressed": {Options{Compress: true}, stall, ended{Slow: 1}, wire.CloseSlow, "slow: 4001 took nothing more"},
		"slow with a pong": {Options{Limits: Limits{Write: 2 * time.Second}}, func(_ *rig, s *socket) {
			s.link.Stall(memnet.Down, true)
			for range 200 {
				s.write(masked(final|9, noise[:125]))
			}
		}, ended{Slow: 1}, wire.CloseSlow, "slow: 4001 took nothing more for 2s"},
		"slow with a pong, for the library": {Options{}, func(_ *rig, s *socket) {
			s.link.Stall(memnet.Down, true)
			for range 200 {
				s.write(masked(final|9, noise[:125]))
			}
		}, ended{Slow: 1}, wire.CloseSlow, "slow: 4001 a ping could not be read and answered within 5s"},
		"slow, then dead": {Options{Heartbeat: heartbeat.Config{Interval: 20 * time.Second, Timeout: 5 * time.Second}}, func(r *rig, s *socket) {
			s.silent = true
			stall(r, s)
		}, ended{Slow: 1}, wire.CloseSlow, "slow"},
		"dead, then a write fails": {Options{Heartbeat: heartbeat.Config{Interval: 2 * time.Second, Timeout: time.Second}}, func(r *rig, s *socket) {
			s.link.Blackhole(memnet.Both)
			for range 8 {
				time.Sleep(time.Second)
				r.publish("x", "1")
			}
		}, ended{Dead: 1}, -1, "found dead: no answer"},
		"logged out, then slow": {Options{}, func(r *rig, s *socket) {
			stall(r, s)
			time.Sleep(time.Second)
			r.gw.Disconnect("anna")
		}, ended{Closed: 1}, wire.CloseUnauthorized, "closed by the server: 4401 logged out"},
		"slow, then logged out": {Options{}, func(r *rig, s *socket) {
			stall(r, s)
			time.Sleep(12600 * time.Millisecond)
			r.gw.Disconnect("anna")
		}, ended{Slow: 1}, wire.CloseSlow, "slow"},
		"reset while it is written to": {Options{}, func(r *rig, s *socket) {
			stall(r, s)
			s.link.Reset()
		}, ended{Lost: 1}, -1, "lost: "},
		"gone":             {Options{}, func(_ *rig, s *socket) { s.conn.Close() }, ended{Lost: 1}, -1, "lost: "},
		"left":             {Options{}, func(_ *rig, s *socket) { s.write(masked(final|opClose, []byte{3, 233, 'b', 'y', 'e'})) }, ended{Left: 1}, 1001, "closed by the client: "},
		"left in silence":  {Options{}, func(_ *rig, s *socket) { s.write(masked(final|opClose, []byte{3, 233})) }, ended{Left: 1}, 1001, "closed by the client: 1001"},
		"no frame":         {Options{}, func(_ *rig, s *socket) { s.send("x") }, ended{Closed: 1}, wire.CloseBadFrame, "closed by the server: 4400"},
		"a frame too long": {Options{}, func(_ *rig, s *socket) { s.send(strings.Repeat("x", 33<<10)) }, ended{Closed: 1}, wire.CloseTooBig, "closed by the server: 1009 the message is too long (32768, gateway.Limits.Message)"},
		"no WebSocket":     {Options{}, func(_ *rig, s *socket) { s.write(masked(final|0x70|opText, nil)) }, ended{Closed: 1}, websocket.StatusProtocolError, "closed by the server: 1002"},
		"drained": {Options{Drain: time.Second}, func(r *rig, s *socket) { r.gw.Shutdown(context.Background()) },
			ended{Closed: 1}, wire.CloseRestart, "closed by the server: 1012 drain"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := new(journal)
				told := make(chan error, 2)
				c.o.Trace = &Trace{Disconnected: func(_ Info, err error) { told <- err }}
				c.o.Logger = log.logger()
				c.o.Heartbeat.MaxPings = -1
				r := startWith(t, setup{Options: c.o, net: memnet.Settings{Buffer: 16 << 10}})
				var s *socket
				if c.o.Compress {
					s = r.welcome("anna", "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n")
					s.send(`{"t":"subscribe","topic":"x"}`)
					time.Sleep(time.Second)
				} else {
					s = r.welcome("anna")
					s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
				}
				log.reset()
				c.end(r, s)
				err := <-told
				time.Sleep(time.Minute)
				if got := err.Error(); !strings.HasPrefix(got, "gateway: "+c.text) || strings.HasSuffix(got, " ") || websocket.CloseStatus(err) != c.code {
					t.Errorf("traced: %v, %d; want %s, %d", err, websocket.CloseStatus(err), c.text, c.code)
				}
				if d := cmp.Diff(c.want, r.gw.Stats().ended()); d != "" {
					t.Errorf("counted (-want +got):\n%s", d)
				}
				var lines []string
				for line := range strings.Lines(log.String()) {
					if strings.Contains(line, "disconnected") || strings.Contains(line, "connection dropped") {
						lines = append(lines, line)
					}
				}
				if len(lines) != 1 || !strings.Contains(lines[0], "user=anna") || !strings.Contains(lines[0], "lasted=") || c.code > 0 && !strings.Contains(lines[0], fmt.Sprintf("code=%d", c.code)) {
					t.Errorf("in the log: %q", lines)
				}
				if len(told) > 0 {
					t.Errorf("traced again: %v", <-told)
				}
			})
		})
	}
}

// The library reports a message that was cut off between its header and its payload, or just
// between two reads or frames, as complete; the gateway took it for a bad one, and closed with
// 4400, which is final.
func TestAMessageThatIsCutOffIsAnEnd(t *testing.T) {
	message := []byte(`{"t":"publish","id":"1","topic":"x","text":"` + strings.Repeat("x", 2000) + `"}`)
	fragments := append(masked(opText, message[:1000]), masked(0, message[1000:1500])...)
	fragments = append(fragments, masked(final, message[1500:])...)
	for name, b := range map[string][]byte{"a frame": masked(final|opText, message), "fragments": fragments} {
		for _, hello := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				cuts := []int{1, 2, 3, 4, 7, 8, 9, 8 + 512, 8 + 511, 1007, 1008, 1009, 1014, 1015, 1016, 1516, 8 + 1536, len(b) - 1}
				r := startWith(t, setup{})
				for _, n := range cuts {
					var s *socket
					if hello {
						s = r.welcome("")
					} else {
						s = r.socket()
					}
					s.write(b[:n])
					s.conn.Close()
				}
				time.Sleep(time.Second)
				if st := r.gw.Stats(); st.BadFrames != 0 || st.ended() != (ended{Lost: uint64(len(cuts))}) {
					t.Errorf("%s: %+v", name, st)
				}
			})
		}
	}
}

// Whoever sends a message and leaves is heard.
func TestAMessageJustBeforeTheEndCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		s := r.welcome("")
		s.write(masked(final|opText, []byte(`{"t":"subscribe","topic":""}`)))
		s.conn.Close()
		time.Sleep(time.Second)
		if st := r.gw.Stats(); st.FramesIn != 2 || st.BadFrames != 1 {
			t.Errorf("%+v", st)
		}
	})
}

// Throttling was invisible: neither side said which limit it was.
func TestALimitIsNamedOnBothSides(t *testing.T) {
	publish := func(id int) string { return fmt.Sprintf(`{"t":"publish","id":"%d","topic":"x","data":1}`, id) }
	for option, c := range map[string]struct {
		limits Limits
		do     func(r *rig, s *socket) // until it is refused, and some more
		text   string
		ends   bool
	}{
		"Frames": {Limits{Frames: 10}, func(_ *rig, s *socket) {
			for range 60 {
				s.send(`{"t":"subscribe","topic":""}`)
			}
		}, "too many frames (10 a second, gateway.Limits.Frames)", false},
		"Frames, far too many": {Limits{Frames: 10}, func(_ *rig, s *socket) {
			for range 100 {
				s.conn.Write(masked(final|opText, []byte(`{"t":"pong"}`)))
			}
		}, "far too many frames (10 a second, gateway.Limits.Frames)", true},
		"Publishes": {Limits{Publishes: 2}, func(_ *rig, s *socket) {
			for i := range 12 {
				s.send(publish(i))
			}
		}, "too many messages (2 a second, gateway.Limits.Publishes)", false},
		"Pending": {Limits{Pending: 3}, func(r *rig, s *socket) {
			r.bp.(*gate).appends.close()
			for i := range 6 {
				s.send(publish(i))
			}
			time.Sleep(time.Second)
			r.bp.(*gate).appends.open()
		}, "too many messages wait to be stored (3, gateway.Limits.Pending)", false},
		"Topics": {Limits{Topics: 2}, func(_ *rig, s *socket) {
			for i := range 5 {
				s.send(fmt.Sprintf(`{"t":"subscribe","topic":"t%d"}`, i))
			}
		}, "is one too many on this connection (2, gateway.Limits.Topics)", false},
		"Message": {Limits{Message: 512}, func(_ *rig, s *socket) { s.send(strings.Repeat("x", 513)) },
			"the message is too long (512, gateway.Limits.Message)", true},
		"Incoming": {Limits{Incoming: 3 * time.Second}, func(_ *rig, s *socket) { s.write(masked(final|opText, []byte("xx"))[:7]) },
			"the message did not end in time (3s, gateway.Limits.Incoming)", true},
		"PerUser": {Limits{PerUser: 1}, func(r *rig, s *socket) {
			*s = *r.socket()
			s.send(`{"t":"hello","v":1,"token":"anna"}`)
		}, "too many connections of this user (1, gateway.Limits.PerUser)", true},
	} {
		t.Run(option, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := new(journal)
				r := startWith(t, setup{bp: newGate(), Options: Options{Limits: c.limits, Logger: log.logger()}})
				s := r.welcome("anna")
				log.reset()
				c.do(r, s)
				var said []string
				end := make(chan *closed, 1)
				go func() {
					for {
						f, err := s.next()
						if err != nil {
							end <- err.(*closed)
							return
						}
						if f.Message != "" {
							said = append(said, f.Message)
						}
					}
				}()
				if c.ends {
					said = []string{(<-end).reason}
				} else {
					time.Sleep(20 * time.Second)
					s.conn.Close()
					<-end
				}
				if len(said) == 0 || said[len(said)-1] != c.text {
					t.Errorf("the client was told %q, want %q", said, c.text)
				}
				time.Sleep(5 * time.Second)
				name, _, _ := strings.Cut(option, ",")
				text := log.String()
				if n := strings.Count(text, "a limit holds up a client"); n != 1 || !strings.Contains(text, "option=gateway.Limits."+name) || !strings.Contains(text, "user=anna") {
					t.Errorf("%d lines of it in the log: %s", n, text)
				}
			})
		})
	}
	t.Run("Connections", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			log := new(journal)
			r := startWith(t, setup{Options: Options{Limits: Limits{Connections: 1}, Logger: log.logger()}})
			r.welcome("")
			if _, resp, text := r.handshake(); resp.StatusCode != 503 || !strings.Contains(text, "1, gateway.Limits.Connections") {
				t.Errorf("%d %s", resp.StatusCode, text)
			}
			if got := log.String(); !strings.Contains(got, "option=gateway.Limits.Connections") || !strings.Contains(got, "limit=1") {
				t.Errorf("in the log: %s", got)
			}
		})
	})
}
