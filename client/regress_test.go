package client_test

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// Where a server could not go on after a position when it answered, it may be able to when
// it comes to read: the history was set back for a moment, and then it was not. What
// follows where the client stands follows; and without a place to follow, nothing does.
func TestEntriesThatFollowNeedNoReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake(t, func(p *peer) {
			p.welcome()
			p.send(subscribed(p.expect(wire.Subscribe), replay.Position{}), entries("a", 4, 5))
			nowhere := entries("b", 1, 1)
			nowhere.Prev = replay.Position{}
			p.send(subscribed(p.expect(wire.Subscribe), replay.Position{}), nowhere)
			p.send(subscribed(p.expect(wire.Subscribe), at(1)), entries("b", 2, 2))
			p.drain()
		})
		c := g.client()
		gets(t, subscribe(t, c, "a", &client.SubscribeOptions{From: at(3)}), "4 5")
		if st := c.Stats(); st.Repairs != 0 {
			t.Errorf("%+v", st)
		}
		gets(t, subscribe(t, c, "b", nil), "2")
		if st := c.Stats(); st.Repairs != 1 {
			t.Errorf("%+v", st)
		}
	})
}

// The memory of a message that had been written was used for the frames after it. When it
// was sent again after the connection was lost it was no frame any more, and the server
// ended the client for good; or it was another one, and the message lost.
func TestAMessageThatIsSentAgainIsWhatItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := strings.Repeat("x", 300)
		g := newFake(t, func(p *peer) {
			p.welcome()
			f := p.expect(wire.Publish)
			if string(f.Data) != data || f.Topic != "a" {
				t.Errorf("connection %d: the client sent %s", p.n, f.Append(nil))
			}
			if p.n == 1 {
				p.send(wire.Frame{Type: wire.Beat})
				p.expect(wire.Beat)
				return
			}
			p.send(ack(f.ID, 1))
			p.next()
		})
		c := g.client()
		if got := outcome(send(t, c, "a", data)); got != client.Committed.String() {
			t.Error(got)
		}
	})
}
