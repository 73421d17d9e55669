package backplane

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/replay"
)

// A slowReader takes its time for each byte, and is not interested in who waits.
type slowReader struct {
	*Memory
	perMiB time.Duration
}

func (s slowReader) Read(ctx context.Context, topic string, after replay.Position, max replay.Budget) (Page, error) {
	page, err := s.Memory.Read(ctx, topic, after, max)
	bytes := 0
	for _, e := range page.Entries {
		bytes += len(e.Data)
	}
	select {
	case <-time.After(time.Duration(bytes) * s.perMiB >> 20):
		return page, err
	case <-ctx.Done():
		return Page{}, context.Cause(ctx)
	}
}

// A large history was asked for again and again, each time for ten seconds.
func TestALargeHistoryThatIsReadSlowlyIsReadInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := func(string) replay.Limits { return replay.Limits{Entries: 1000, Bytes: 64 << 20, Age: time.Hour} }
		bp := slowReader{memory(t, &MemoryOptions{Limits: limits}), 500 * time.Millisecond}
		h := hub(t, bp, &Options{Limits: limits})
		const n = 40
		for range n {
			if _, err := h.Publish(t.Context(), "t", Message{Data: make([]byte, DefaultMaxMessage)}); err != nil {
				t.Fatal(err)
			}
		}
		sub, err := h.Subscribe(t.Context(), "t", &SubscribeOptions{Last: -1})
		if err != nil {
			t.Fatal(err)
		}
		defer sub.Close()
		got := 0
		for got < n {
			var b Batch
			if err := sub.Next(t.Context(), &b, replay.Budget{}); err != nil || b.Reset != nil {
				t.Fatalf("%v, %+v", err, b.Reset)
			}
			got += len(b.Entries)
		}
		if s := h.Stats(); s.Errors != 1 { // 10 s are too short, 20 s are enough
			t.Errorf("%d errors in %d reads, want 1", s.Errors, s.Reads)
		}
	})
}
