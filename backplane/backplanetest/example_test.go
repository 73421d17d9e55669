package backplanetest_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/backplane/backplanetest"
	"github.com/holdfast-ws/holdfast/replay"
)

// A toy is a whole Backplane: a log for each topic, and a bell that rings for
// everybody who may care. A real one keeps its logs where all nodes reach them.
type toy struct {
	mu     sync.Mutex // guards all below
	closed bool
	logs   map[string]*replay.Log
	ids    map[[2]string]replay.Position
	sinks  map[*toyWatcher]bool
}

func (b *toy) log(ctx context.Context, topic string) (*replay.Log, error) {
	if b.closed {
		return nil, backplane.ErrClosed
	}
	if b.logs[topic] == nil {
		b.logs[topic] = replay.New(replay.Limits{Entries: 64, Bytes: -1})
	}
	return b.logs[topic], context.Cause(ctx)
}

func (b *toy) Append(ctx context.Context, topic string, m backplane.Message) (backplane.Receipt, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	log, err := b.log(ctx, topic)
	if err != nil {
		return backplane.Receipt{Outcome: backplane.NotStored}, err
	}
	id := [2]string{topic, m.ID}
	if pos, ok := b.ids[id]; ok && m.ID != "" {
		return backplane.Receipt{Outcome: backplane.Duplicate, Pos: pos}, nil
	}
	e, err := log.Append(m.Key, m.Data)
	if err != nil {
		return backplane.Receipt{Outcome: backplane.NotStored}, err
	}
	b.ids[id] = e.Pos // a real one forgets them after some minutes
	for w := range b.sinks {
		if w.topics[topic] {
			w.sink.Doorbell(topic) // does not block and does not call back
		}
	}
	return backplane.Receipt{Outcome: backplane.Committed, Pos: e.Pos}, nil
}

func (b *toy) Read(ctx context.Context, topic string, after replay.Position, max replay.Budget) (backplane.Page, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	log, err := b.log(ctx, topic)
	if err != nil {
		return backplane.Page{}, err
	}
	var batch replay.Batch
	if after.IsZero() {
		log.Tail(&batch, max)
	} else {
		err = log.After(after, &batch, max)
	}
	return backplane.Page{Entries: batch.Entries, Head: batch.Head}, err
}

func (b *toy) Watch(s backplane.Sink) backplane.Watcher {
	return &toyWatcher{toy: b, sink: s, topics: map[string]bool{}}
}

func (b *toy) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}

type toyWatcher struct {
	*toy
	sink   backplane.Sink
	topics map[string]bool
	gone   bool
}

func (w *toyWatcher) Add(ctx context.Context, topics ...string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.gone {
		return backplane.ErrClosed
	}
	for _, topic := range topics {
		w.topics[topic] = ctx.Err() == nil
	}
	w.sinks[w] = true
	return context.Cause(ctx)
}

func (w *toyWatcher) Remove(topics ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, topic := range topics {
		delete(w.topics, topic)
	}
}

func (w *toyWatcher) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gone = true
	delete(w.sinks, w)
	return nil
}

func newToy() *toy {
	return &toy{logs: map[string]*replay.Log{}, ids: map[[2]string]replay.Position{}, sinks: map[*toyWatcher]bool{}}
}

func TestAToyConforms(t *testing.T) {
	backplanetest.Run(t, func(t testing.TB) *backplanetest.Harness {
		store := newToy()
		return &backplanetest.Harness{Open: func() backplane.Backplane { return store }, Entries: 64}
	})
}

// A backplane of one's own needs four methods and a watcher, and is used like any
// other. That it keeps the contract is for Run to say.
func Example() {
	ctx := context.Background()
	hub := backplane.New(newToy(), nil)
	defer hub.Close(ctx)
	sub, err := hub.Subscribe(ctx, "news", nil)
	if err != nil {
		panic(err)
	}
	defer sub.Close()
	receipt, err := hub.Publish(ctx, "news", backplane.Message{Data: []byte("it works")})
	fmt.Println(receipt.Outcome, err)
	var batch backplane.Batch
	if err := sub.Next(ctx, &batch, replay.Budget{}); err != nil {
		panic(err)
	}
	fmt.Printf("%s\n", batch.Entries[0].Data)
	// Output:
	// committed <nil>
	// it works
}
