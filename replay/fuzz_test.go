package replay

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A script is a source of random numbers whose high bits, which decide, are
// given by bytes.
type script struct {
	bytes []byte
	low   *rand.PCG
}

func (s *script) Uint64() uint64 {
	if len(s.bytes) == 0 {
		return s.low.Uint64()
	}
	b := s.bytes[0]
	s.bytes = s.bytes[1:]
	return uint64(b)<<56 | s.low.Uint64()>>8
}

// FuzzLog lets bytes choose the operations of the model test, while three cursors
// read what there is concurrently and see numbers that follow each other or a
// gap.
func FuzzLog(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x00\x10\x20\x30\x40\x50\x60\x70\x80\x90\xa0\xb0\xc0\xd0\xe0\xf0"))
	rnd := rand.NewPCG(1, 2)
	for range 4 {
		bytes := make([]byte, 600)
		for i := range bytes {
			bytes[i] = byte(rnd.Uint64())
		}
		f.Add(bytes)
	}
	f.Fuzz(func(t *testing.T, bytes []byte) {
		if len(bytes) > 2000 {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			s := &script{bytes, rand.NewPCG(3, 4)}
			d := newDuel(rand.New(s), map[string]int{})
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for i := range 3 {
				c := d.log.Cursor(d.log.Last(0), nil)
				wg.Go(func() { readOn(ctx, t, c, Budget{Entries: 1 << i}) })
			}
			for len(s.bytes) > 0 && !t.Failed() {
				d.model.elapse(time.Now())
				if err := d.step(); err != nil {
					t.Error(err)
				}
				if err := d.check(); err != nil {
					t.Error(err)
				}
			}
			synctest.Wait()
			cancel()
			wg.Wait()
		})
	})
}

// readOn reads with c until ctx ends, and checks that it is never told nonsense.
func readOn(ctx context.Context, t *testing.T, c *Cursor, budget Budget) {
	var b Batch
	for ctx.Err() == nil {
		pos := c.Position()
		err := c.Next(ctx, &b, budget)
		var gap *GapError
		if errors.As(err, &gap) {
			if gap.Want != pos || c.Position() != pos {
				t.Errorf("the cursor stands at %+v and %+v, the gap is at %+v", pos, c.Position(), gap.Want)
			}
			if gap.Reason == ReasonTrimmed && gap.Oldest.Seq != pos.Seq+gap.Missed {
				t.Errorf("trimmed: %+v", *gap)
			}
			c.Seek(gap.Oldest)
			continue
		}
		for _, e := range b.Entries {
			if e.Pos.Epoch != pos.Epoch || e.Pos.Seq != pos.Seq+1 || e.Prev != pos.Tag {
				t.Errorf("%+v follows %+v", e, pos)
			}
			pos = e.Pos
		}
		if c.Position() != pos || b.To != pos {
			t.Errorf("after %+v the cursor stands at %+v, the batch ends at %+v", pos, c.Position(), b.To)
		}
	}
}
