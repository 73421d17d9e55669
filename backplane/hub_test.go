package backplane

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/internal/leak"
	"github.com/holdfast-ws/holdfast/replay"
)

func TestMain(m *testing.M) { leak.Main(m) }

// hub returns a Hub that is closed when the test ends.
func hub(t testing.TB, bp Backplane, opts *Options) *Hub {
	h := New(bp, opts)
	t.Cleanup(func() { h.Close(context.Background()) })
	return h
}

func memory(t testing.TB, opts *MemoryOptions) *Memory {
	m := NewMemory(opts)
	t.Cleanup(func() { m.Close() })
	return m
}

func publish(t testing.TB, h *Hub, topic, text string) Receipt {
	t.Helper()
	r, err := h.Publish(context.Background(), topic, Message{Data: []byte(text)})
	if err != nil {
		t.Fatalf("publish %q: %v", text, err)
	}
	return r
}

func subscribe(t testing.TB, h *Hub, topic string, opts *SubscribeOptions) *Subscription {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s, err := h.Subscribe(ctx, topic, opts)
	if err != nil {
		t.Fatalf("subscribe to %q: %v", topic, err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// next returns the next batch as text: "reset(trimmed 3) a b ~c", where ~c is
// ephemeral.
func next(t testing.TB, s *Subscription) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var b Batch
	if err := s.Next(ctx, &b, replay.Budget{}); err != nil {
		return "error: " + err.Error()
	}
	return text(&b)
}

func text(b *Batch) string {
	out := ""
	if r := b.Reset; r != nil {
		out += fmt.Sprintf(" reset(%s %d)", r.Reason, r.Missed)
		if r.Snapshot != nil {
			out += fmt.Sprintf(" snapshot(%s)", r.Snapshot)
		}
	}
	for _, e := range b.Entries {
		out += " " + string(e.Data)
	}
	for _, data := range b.Ephemeral {
		out += " ~" + string(data)
	}
	if out == "" {
		return ""
	}
	return out[1:]
}

func TestSmoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := memory(t, nil)
		a, b := hub(t, m, nil), hub(t, m, nil)
		s := subscribe(t, a, "x", nil)
		publish(t, b, "x", "one")
		fmt.Println(next(t, s))
		r := publish(t, b, "x", "two")
		publish(t, b, "x", "three")
		s2 := subscribe(t, b, "x", &SubscribeOptions{After: r.Pos})
		fmt.Println(next(t, s2), "|", next(t, s))
		b.PublishEphemeral(t.Context(), "x", []byte("eph"))
		fmt.Println(next(t, s2), "|", next(t, s))
		fmt.Println(a.Stats())
	})
}
