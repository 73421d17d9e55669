package gateway

import (
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/internal/memnet"
	"github.com/holdfast-ws/holdfast/internal/wire"
)

func TestAnIdleGatewayWritesNothingAndHasNoTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Recheck: -1}})
		s := r.welcome("")
		s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
		for range 3 {
			r.publish("x", "1")
			s.expect(wire.Entries)
			time.Sleep(10 * look)
			if r.gw.pool.armed.Load() {
				t.Error("it is looked for who is stuck, and nobody writes")
			}
		}
		if n := r.gw.Stats().Workers; n != r.gw.pool.base {
			t.Errorf("%d workers", n)
		}
	})
}

// One that is stuck has somebody else do its work, and ends when it comes back.
func TestAWorkerThatIsStuckIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{net: memnet.Settings{Buffer: 1 << 10}})
		base := r.gw.pool.base
		var slow []*socket
		for i := range 4 * base {
			s := r.welcome("")
			s.ask(`{"t":"subscribe","topic":"`+strconv.Itoa(i)+`"}`, wire.Subscribed)
			s.link.Stall(memnet.Down, true)
			slow = append(slow, s)
		}
		long := `"` + strings.Repeat("x", 4000) + `"`
		for round := range 3 {
			for i := range slow {
				r.publish(strconv.Itoa(i), long)
			}
			time.Sleep(time.Second)
			if n := r.gw.Stats().Workers; n != len(slow)+base {
				t.Errorf("round %d: %d workers for %d that are stuck, and %d more", round, n, len(slow), base)
			}
			for _, s := range slow {
				s.link.Stall(memnet.Down, false)
				s.expect(wire.Entries)
			}
			time.Sleep(time.Second)
			if n := r.gw.Stats().Workers; n != base {
				t.Errorf("round %d: %d workers for nobody", round, n)
			}
			for _, s := range slow {
				s.alive()
				s.link.Stall(memnet.Down, true)
			}
		}
		if st := r.gw.Stats(); st.Slow != 0 || st.Dead != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// What a worker has in hand when it gets stuck others do, also if it was woken for
// something that is not in the log.
func TestNothingIsForgottenInTheHandOfAWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{net: memnet.Settings{Buffer: 1 << 10}, Options: Options{Limits: Limits{PerUser: -1}}})
		var all []*socket
		for i := range 100 {
			s := r.welcome("")
			s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
			if i%5 == 0 {
				s.link.Stall(memnet.Down, true)
			}
			all = append(all, s)
		}
		long := []byte(`"` + strings.Repeat("x", 4000) + `"`)
		r.hub.PublishEphemeral(t.Context(), "x", long)
		for i, s := range all {
			if i%5 != 0 {
				if f := s.expect(wire.Ephemeral); len(f.Data) != len(long) {
					t.Errorf("%.50s", f.Append(nil))
				}
			}
		}
		r.publish("x", "1")
		for i, s := range all {
			if i%5 != 0 {
				s.expect(wire.Entries)
			}
		}
		for i, s := range all {
			if i%5 == 0 {
				s.link.Stall(memnet.Down, false)
				s.expect(wire.Ephemeral)
				s.expect(wire.Entries)
			}
		}
	})
}
