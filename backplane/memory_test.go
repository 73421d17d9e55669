package backplane

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-ws/holdfast/replay"
)

func appendTo(t testing.TB, m *Memory, topic, id, text string) Receipt {
	t.Helper()
	r, err := m.Append(context.Background(), topic, Message{ID: id, Data: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestMemoryForgetsIdleTopicsButNoIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := memory(t, &MemoryOptions{Forget: time.Hour})
		first := appendTo(t, m, "t", "", "one")
		watched := appendTo(t, m, "watched", "", "one")
		w := m.Watch(sink{})
		if err := w.Add(t.Context(), "watched"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Minute) // the entries are too old since 45 minutes
		if p, err := m.Read(t.Context(), "t", first.Pos, replay.Budget{}); err != nil || p.Head != first.Pos {
			t.Errorf("a topic that is used again within the hour: %v, %v", p.Head, err)
		}
		time.Sleep(50 * time.Minute)
		if p, err := m.Read(t.Context(), "t", first.Pos, replay.Budget{}); err != nil || p.Head != first.Pos {
			t.Errorf("reading does not count as use: %v, %v", p.Head, err)
		}
		time.Sleep(80 * time.Minute)
		_, err := m.Read(t.Context(), "t", first.Pos, replay.Budget{})
		var gap *replay.GapError
		if !errors.As(err, &gap) || gap.Reason != replay.ReasonEpoch {
			t.Errorf("a position in a topic that was forgotten: %v", err)
		}
		if p, err := m.Read(t.Context(), "watched", watched.Pos, replay.Budget{}); err != nil || p.Head != watched.Pos {
			t.Errorf("a topic that is watched was forgotten: %v, %v", p.Head, err)
		}
		w.Remove("watched")
		time.Sleep(80 * time.Minute)
		if _, err := m.Read(t.Context(), "watched", watched.Pos, replay.Budget{}); !errors.As(err, &gap) {
			t.Errorf("a topic that is no longer watched is kept: %v", err)
		}
	})
}

func TestMemoryKeepsTopicsThatHaveEntriesAndForgetsNothingIfAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := func(string) replay.Limits { return replay.Limits{Age: -1} }
		m := memory(t, &MemoryOptions{Forget: time.Minute, Limits: old})
		first := appendTo(t, m, "t", "", "one")
		never := memory(t, &MemoryOptions{Forget: -1})
		other := appendTo(t, never, "t", "", "one")
		time.Sleep(24 * time.Hour)
		if p, err := m.Read(t.Context(), "t", replay.Position{}, replay.Budget{}); err != nil || len(p.Entries) != 1 || p.Head != first.Pos {
			t.Errorf("a topic with an entry was forgotten: %v, %v", p, err)
		}
		if p, err := never.Read(t.Context(), "t", other.Pos, replay.Budget{}); err != nil || p.Head != other.Pos {
			t.Errorf("a topic was forgotten: %v, %v", p, err)
		}
	})
}

func TestMemoryRemembersIDsForTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := memory(t, nil)
		one := appendTo(t, m, "t", "x", "one")
		time.Sleep(DefaultIDWindow - time.Nanosecond)
		if r := appendTo(t, m, "t", "x", "one"); r.Outcome != Duplicate || r.Pos != one.Pos || r.ID != "x" {
			t.Errorf("within the window: %+v", r)
		}
		time.Sleep(time.Nanosecond)
		if r := appendTo(t, m, "t", "x", "one"); r.Outcome != Committed {
			t.Errorf("after the window: %+v", r)
		}
		none := memory(t, &MemoryOptions{IDWindow: -1})
		for range 2 {
			if r := appendTo(t, none, "t", "x", "one"); r.Outcome != Committed {
				t.Errorf("without a window: %+v", r)
			}
		}
	})
}

func TestMemoryRemembersSoManyIDs(t *testing.T) {
	m := memory(t, nil)
	for i := range MaxIDs + 1 {
		appendTo(t, m, "t", fmt.Sprint(i), "")
	}
	if r := appendTo(t, m, "t", "1", ""); r.Outcome != Duplicate {
		t.Errorf("the oldest that is remembered: %+v", r)
	}
	if r := appendTo(t, m, "t", "0", ""); r.Outcome != Committed {
		t.Errorf("one more than is remembered: %+v", r)
	}
	if tp, _ := m.topic(t.Context(), "t"); len(tp.ids) > MaxIDs || len(tp.order) > MaxIDs {
		t.Errorf("%d IDs are in memory", len(tp.ids))
	} else {
		tp.mu.Unlock()
	}
}

func TestMemoryAsksForTheLimitsOfEachTopic(t *testing.T) {
	m := memory(t, &MemoryOptions{Limits: func(topic string) replay.Limits {
		if topic == "short" {
			return replay.Limits{Entries: 1}
		}
		return replay.Limits{}
	}})
	for _, text := range []string{"a", "b"} {
		appendTo(t, m, "short", "", text)
		appendTo(t, m, "long", "", text)
	}
	for topic, want := range map[string]int{"short": 1, "long": 2} {
		if p, err := m.Read(t.Context(), topic, replay.Position{}, replay.Budget{}); err != nil || len(p.Entries) != want {
			t.Errorf("%s keeps %d entries, want %d", topic, len(p.Entries), want)
		}
	}
}

func TestTheDocumentedDefaultsOfMemory(t *testing.T) {
	m := memory(t, nil)
	if m.opts.Forget != time.Hour || m.opts.IDWindow != 2*time.Minute {
		t.Errorf("%+v", m.opts)
	}
}

func TestMemoryUnderStress(t *testing.T) {
	m := memory(t, &MemoryOptions{Forget: 4 * time.Millisecond, Limits: func(string) replay.Limits {
		return replay.Limits{Age: time.Millisecond}
	}})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			w := m.Watch(sink{&Hub{}})
			for n := range 300 {
				topic := fmt.Sprint("t", (i+n)%3)
				switch n % 5 {
				case 0:
					if err := w.Add(t.Context(), topic); err != nil {
						t.Errorf("Add: %v", err)
					}
				case 1:
					w.Remove(topic)
				case 2:
					if _, err := m.Read(t.Context(), topic, replay.Position{}, replay.Budget{}); err != nil {
						t.Errorf("Read: %v", err)
					}
				default:
					appendTo(t, m, topic, fmt.Sprint(i, n), "x")
				}
			}
			w.Close()
		})
	}
	wg.Wait()
}

// An Append that had looked whether the Memory is closed just before it was made a topic
// that nobody could read, and said that the message was committed.
func TestMemoryStoresNothingAfterClose(t *testing.T) {
	var m *Memory
	m = NewMemory(&MemoryOptions{Limits: func(topic string) replay.Limits {
		if topic == "new" {
			m.Close() // between the look and the new topic
		}
		return replay.Limits{}
	}})
	appendTo(t, m, "old", "", "1")
	old := m.topics["old"]
	for _, topic := range []string{"new", "old", "other"} {
		if r, err := m.Append(t.Context(), topic, Message{}); err != ErrClosed || r.Outcome != NotStored {
			t.Errorf("%s: %+v, %v", topic, r, err)
		}
		if _, err := m.Read(t.Context(), topic, replay.Position{}, replay.Budget{}); err != ErrClosed {
			t.Errorf("%s: %v", topic, err)
		}
	}
	// One that has found its topic before Close looks at this when it gets the lock.
	if !old.gone || len(m.topics) > 0 {
		t.Errorf("a topic can still be appended to: gone is %v, %d topics", old.gone, len(m.topics))
	}
}
