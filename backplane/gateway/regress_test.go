package gateway

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/internal/wire"
)

// Who was refused and came back when it was told to was refused again, for ever: it had
// been told to wait until the bucket was not below empty, and then took from an empty one.
func TestWhoWaitsAsLongAsItIsToldToIsLetThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, Options{Limits: Limits{Publishes: 10, Frames: 20}})
		defer r.stop()
		p := r.connect("anna")
		defer p.ws.CloseNow()
		refused := 0
		for i := range 100 {
			p.send(fmt.Sprintf(`{"t":"publish","id":"%d","topic":"a","data":1}`, i))
			f, err := p.read()
			if err != nil {
				t.Fatal(err)
			}
			if f.Type == wire.Ack {
				if refused > 0 {
					return
				}
				continue
			}
			if f.Code != wire.TooFast || refused > 0 {
				t.Fatalf("after waiting %d times: %s", refused, f.Append(nil))
			}
			refused++
			time.Sleep(time.Duration(f.Retry) * time.Millisecond)
		}
		t.Error("never refused")
	})
}
