package redisplane

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/redistest"
)

// inCluster returns two planes on a cluster, and a subscriber of the second for each
// of some topics, which are spread over all masters.
func inCluster(t *testing.T, nodes []*redistest.Server) (p *Plane, topics []string, subs map[string]*subscriber) {
	t.Helper()
	var planes [2]*Plane
	for i := range planes {
		client := redis.NewClusterClient(clusterOptions(nodes))
		opts := quick(entries)
		opts.Partitions = 12
		plane, err := New(client, opts)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { plane.Close(); client.Close() })
		planes[i] = plane
	}
	subs = map[string]*subscriber{}
	for i := range 12 {
		topic := fmt.Sprint("topic ", i)
		topics = append(topics, topic)
		subs[topic] = subscribe(t, planes[1], topic, nil)
	}
	return planes[0], topics, subs
}

// say publishes a text in each topic, until that is known to be stored.
func say(t *testing.T, p *Plane, topics []string, text string) {
	t.Helper()
	for _, topic := range topics {
		until(t, text+" is stored in "+topic, func() bool {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			_, err := p.Append(ctx, topic, backplane.Message{ID: text, Data: []byte(text)})
			return err == nil
		})
	}
}

func TestAClusterThatFailsOverIsFollowed(t *testing.T) {
	nodes := redistest.Cluster(t, 3, 1)
	p, topics, subs := inCluster(t, nodes)
	say(t, p, topics, "one")
	say(t, p, topics, "two")
	for i := range 3 { // else something may really be lost
		replicated(t, nodes[i], nodes[3+i])
	}
	nodes[0].Kill()
	redistest.Says(t, 20*time.Second, "INFO replication", "role:master", nodes[3])
	say(t, p, topics, "three")
	// And one that is asked for, while messages are published.
	done := make(chan struct{})
	go func() {
		defer close(done)
		if answer, err := nodes[4].Do("CLUSTER FAILOVER"); err != nil {
			t.Errorf("%s, %v", answer, err)
		}
	}()
	say(t, p, topics, "four")
	<-done
	redistest.Says(t, 20*time.Second, "INFO replication", "role:master", nodes[4])
	say(t, p, topics, "five")
	for _, topic := range topics {
		subs[topic].expect("one", "two", "three", "four", "five")
	}
}

// A slot is moved to another master, key by key, while topics in it are in use. In
// between they cannot be published to, and nothing is published elsewhere instead.
func TestASlotThatIsMovedIsFollowed(t *testing.T) {
	nodes := redistest.Cluster(t, 2, 0)
	p, topics, subs := inCluster(t, nodes)
	say(t, p, topics, "one")
	topic := topics[0]
	slot := slotOf(headKey(p.part(topic).prefix, topic))
	from, to := nodes[0], nodes[1]
	if slot >= 8192 {
		from, to = to, from
	}
	must(t, to, fmt.Sprintf("CLUSTER SETSLOT %d IMPORTING %s", slot, must(t, from, "CLUSTER MYID")))
	must(t, from, fmt.Sprintf("CLUSTER SETSLOT %d MIGRATING %s", slot, must(t, to, "CLUSTER MYID")))
	moved := false
	for {
		keys := must(t, from, fmt.Sprintf("CLUSTER GETKEYSINSLOT %d 1", slot))
		if keys == "" {
			break
		}
		for _, key := range strings.Split(keys, "\n") {
			must(t, from, fmt.Sprintf("MIGRATE 127.0.0.1 %d %q 0 5000", to.Port(), key))
		}
		if !moved { // the slot is in two halves now
			moved = true
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			r, err := p.Append(ctx, topic, backplane.Message{ID: "one", Data: []byte("one")})
			cancel()
			if err == nil && r.Outcome != backplane.Duplicate {
				t.Errorf("a message that is stored was stored again: %+v", r)
			}
		}
	}
	for _, s := range []*redistest.Server{to, from} {
		must(t, s, fmt.Sprintf("CLUSTER SETSLOT %d NODE %s", slot, must(t, to, "CLUSTER MYID")))
	}
	say(t, p, topics, "two")
	say(t, p, topics, "three")
	for _, topic := range topics {
		subs[topic].expect("one", "two", "three")
	}
}
