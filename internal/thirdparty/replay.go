package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/centrifugal/centrifuge"

	"github.com/holdfast-ws/holdfast/replay"
)

const (
	history = 1024 // messages that each of them keeps
	page    = 100  // messages read at a time
	topic   = "chat:general"
)

var payload = make([]byte, 128)

// logCost is targets P2 and P3: appending to an in-memory history, and reading a
// page of it. What the contestants do beside that differs: a centrifuge broker
// also handles options, expiry of idle topics and a callback per publication. So
// ours is put behind a map of topics.
func logCost(rounds int, each time.Duration) []table {
	var ring struct {
		mu   sync.Mutex
		data [][]byte
		n    int
	}
	ring.data = make([][]byte, history)
	buf := make([][]byte, page)

	alone := replay.New(replay.Limits{Entries: history})
	var topics struct {
		mu   sync.RWMutex
		logs map[string]*replay.Log
	}
	topics.logs = map[string]*replay.Log{topic: replay.New(replay.Limits{Entries: history})}
	log := func() *replay.Log {
		topics.mu.RLock()
		defer topics.mu.RUnlock()
		return topics.logs[topic]
	}
	var batch replay.Batch

	broker, closeBroker := memoryBroker()
	defer closeBroker()
	options := centrifuge.PublishOptions{HistorySize: history, HistoryTTL: 5 * time.Minute}
	var top centrifuge.StreamPosition

	appending := []contestant{
		{"floor: ring of slices under a mutex", func(n int) {
			for range n {
				ring.mu.Lock()
				ring.data[ring.n%history] = payload
				ring.n++
				ring.mu.Unlock()
			}
		}},
		{"holdfast replay.Log", func(n int) {
			for range n {
				if _, err := alone.Append("", payload); err != nil {
					panic(err)
				}
			}
		}},
		{"holdfast replay.Log, behind a map of topics", func(n int) {
			for range n {
				if _, err := log().Append("", payload); err != nil {
					panic(err)
				}
			}
		}},
		{"centrifuge MemoryBroker, with history", func(n int) {
			for range n {
				res, err := broker.Publish(topic, payload, options)
				if err != nil {
					panic(err)
				}
				top = res.StreamPosition
			}
		}},
	}
	reading := []contestant{
		{"floor: copy of 100 slices under a mutex", func(n int) {
			for range n {
				ring.mu.Lock()
				copy(buf, ring.data[300:400])
				ring.mu.Unlock()
			}
		}},
		{"holdfast replay.Log, into a batch used again", func(n int) {
			p := alone.Last(page)
			for range n {
				if err := alone.After(p, &batch, replay.Budget{Entries: page}); err != nil || len(batch.Entries) != page {
					panic(fmt.Sprint(len(batch.Entries), err))
				}
			}
		}},
		{"holdfast replay.Log, behind a map of topics", func(n int) {
			p := log().Last(page)
			for range n {
				if err := log().After(p, &batch, replay.Budget{Entries: page}); err != nil || len(batch.Entries) != page {
					panic(fmt.Sprint(len(batch.Entries), err))
				}
			}
		}},
		{"centrifuge MemoryBroker, History", func(n int) {
			since := centrifuge.StreamPosition{Offset: top.Offset - page, Epoch: top.Epoch}
			for range n {
				pubs, _, err := broker.History(topic, centrifuge.HistoryOptions{
					Filter: centrifuge.HistoryFilter{Since: &since, Limit: page},
				})
				if err != nil || len(pubs) != page {
					panic(fmt.Sprint(len(pubs), err))
				}
			}
		}},
	}
	for _, c := range appending {
		c.run(history) // so that there is a page to read
	}
	return []table{
		costTable("P2: appending 128 bytes to a history of 1024", appending, rounds, each),
		costTable("P3: reading 100 messages after a position", reading, rounds, each),
	}
}

// costTable compares contestants with the first of them and with the last.
func costTable(title string, contestants []contestant, rounds int, each time.Duration) table {
	t := table{title: title, header: []string{"", "ns", "x floor", "allocs", "faster than centrifuge " + version("github.com/centrifugal/centrifuge")}}
	costs := compare(contestants, rounds, each)
	for i, c := range costs {
		t.rows = append(t.rows, []string{
			contestants[i].name, fmt.Sprintf("%.0f", c.ns), fmt.Sprintf("%.1f", c.ns/costs[0].ns),
			fmt.Sprintf("%.2f", c.allocs), fmt.Sprintf("%.1fx", costs[len(costs)-1].ns/c.ns),
		})
	}
	return t
}

// memoryBroker returns a centrifuge broker whose publications go nowhere.
func memoryBroker() (*centrifuge.MemoryBroker, func()) {
	node, err := centrifuge.New(centrifuge.Config{})
	if err != nil {
		panic(err)
	}
	broker, err := centrifuge.NewMemoryBroker(node, centrifuge.MemoryBrokerConfig{})
	if err != nil {
		panic(err)
	}
	if err := broker.RegisterBrokerEventHandler(nowhere{}); err != nil {
		panic(err)
	}
	return broker, func() { broker.Close(context.Background()) }
}

type nowhere struct{}

func (nowhere) HandlePublication(string, *centrifuge.Publication, centrifuge.StreamPosition, bool, *centrifuge.Publication) error {
	return nil
}
func (nowhere) HandleJoin(string, *centrifuge.ClientInfo) error  { return nil }
func (nowhere) HandleLeave(string, *centrifuge.ClientInfo) error { return nil }
