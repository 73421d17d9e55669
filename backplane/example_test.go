package backplane_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/replay"
)

// Everything within one process, with nothing to install.
func Example() {
	ctx := context.Background()
	plane := backplane.NewMemory(nil)
	defer plane.Close()
	hub := backplane.New(plane, nil)
	defer hub.Close(ctx)

	sub, err := hub.Subscribe(ctx, "room/7", nil) // from now on
	if err != nil {
		log.Fatal(err)
	}
	defer sub.Close()

	for _, text := range []string{"hello", "is anybody there?"} {
		if _, err := hub.Publish(ctx, "room/7", backplane.Message{Data: []byte(text)}); err != nil {
			log.Fatal(err)
		}
	}

	n := 0
	for batch, err := range sub.All(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		for _, message := range batch.Entries {
			fmt.Printf("%d %s\n", message.Pos.Seq, message.Data)
			n++
		}
		if n == 2 {
			break
		}
	}
	// Output:
	// 1 hello
	// 2 is anybody there?
}

// A subscriber that was away goes on where it was, on any server: the position is a
// short text that it keeps.
func ExampleHub_Subscribe_resume() {
	ctx := context.Background()
	plane := backplane.NewMemory(nil)
	defer plane.Close()
	one, other := backplane.New(plane, nil), backplane.New(plane, nil)
	defer one.Close(ctx)
	defer other.Close(ctx)

	sub, err := one.Subscribe(ctx, "news", nil)
	if err != nil {
		log.Fatal(err)
	}
	one.Publish(ctx, "news", backplane.Message{Data: []byte("seen")})
	var batch backplane.Batch
	if err := sub.Next(ctx, &batch, replay.Budget{}); err != nil {
		log.Fatal(err)
	}
	token := batch.To.String() // goes to the client, and comes back with it
	sub.Close()

	one.Publish(ctx, "news", backplane.Message{Data: []byte("missed")})

	position, err := replay.ParsePosition(token)
	if err != nil {
		log.Fatal(err) // a *replay.PositionError: tell the client that it is malformed
	}
	sub, err = other.Subscribe(ctx, "news", &backplane.SubscribeOptions{After: position})
	if err != nil {
		log.Fatal(err)
	}
	defer sub.Close()
	if err := sub.Next(ctx, &batch, replay.Budget{}); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, reset: %t\n", batch.Entries[0].Data, batch.Reset != nil)
	// Output:
	// missed, reset: false
}

// Who was away for too long is told so, and gets a snapshot of the state, which the
// next messages follow.
func ExampleReset() {
	ctx := context.Background()
	limits := func(string) replay.Limits { return replay.Limits{Entries: 2} }
	plane := backplane.NewMemory(&backplane.MemoryOptions{Limits: limits})
	defer plane.Close()
	price := "5"
	hub := backplane.New(plane, &backplane.Options{
		Limits: limits,
		Snapshot: func(ctx context.Context, topic string, head replay.Position) ([]byte, replay.Position, error) {
			return []byte(price), head, nil // from the database, in a real service
		},
	})
	defer hub.Close(ctx)

	first, err := hub.Publish(ctx, "price", backplane.Message{Data: []byte("1")})
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range []string{"2", "3", "4", "5"} {
		hub.Publish(ctx, "price", backplane.Message{Data: []byte(p)})
	}
	sub, err := hub.Subscribe(ctx, "price", &backplane.SubscribeOptions{After: first.Pos})
	if err != nil {
		log.Fatal(err)
	}
	defer sub.Close()
	var batch backplane.Batch
	if err := sub.Next(ctx, &batch, replay.Budget{}); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %d missed, now it is %s\n", batch.Reset.Reason, batch.Reset.Missed, batch.Reset.Snapshot)
	hub.Publish(ctx, "price", backplane.Message{Data: []byte("6")})
	if err := sub.Next(ctx, &batch, replay.Budget{}); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", batch.Entries[0].Data)
	// Output:
	// trimmed: 2 missed, now it is 5
	// 6
}

// A publisher who does not know whether a message was stored publishes it again,
// with the same ID.
func ExampleHub_Publish() {
	ctx := context.Background()
	plane := backplane.NewMemory(nil)
	hub := backplane.New(plane, nil)
	defer hub.Close(ctx)
	message := backplane.Message{Data: []byte("pay 5 to Ann")}
	receipt, err := hub.Publish(ctx, "orders", message)
	fmt.Println(receipt.Outcome, err)

	message.ID = receipt.ID // as if the answer had been lost
	again, err := hub.Publish(ctx, "orders", message)
	fmt.Println(again.Outcome, err, again.Pos == receipt.Pos)

	plane.Close()
	again, err = hub.Publish(ctx, "orders", backplane.Message{Data: []byte("too late")})
	fmt.Println(again.Outcome, errors.Is(err, backplane.ErrClosed))
	// Output:
	// committed <nil>
	// duplicate <nil> true
	// not stored true
}
