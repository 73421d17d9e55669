package client_test

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/holdfast-ws/holdfast/client"
	"github.com/holdfast-ws/holdfast/internal/wire"
)

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
