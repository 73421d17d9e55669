package replay_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-ws/holdfast/replay"
)

// A reader goes away, and comes back with the text of its position.
func Example_resume() {
	log := replay.New(replay.Limits{})
	log.Append("", []byte("one"))
	log.Append("", []byte("two"))

	var batch replay.Batch
	reader := log.Cursor(log.Last(2), nil)
	if err := reader.Read(&batch, replay.Budget{}); err != nil {
		panic(err)
	}
	remembered := batch.To.String() // the reader keeps it, as text

	log.Append("", []byte("three")) // while it is away
	log.Append("", []byte("four"))

	position, err := replay.ParsePosition(remembered)
	if err != nil {
		panic(err)
	}
	reader = log.Cursor(position, nil)
	if err := reader.Read(&batch, replay.Budget{}); err != nil {
		panic(err)
	}
	for _, entry := range batch.Entries {
		fmt.Printf("%s\n", entry.Data)
	}
	// Output:
	// three
	// four
}

// A reader comes back too late: the log keeps three entries, and it missed five.
func ExampleGapError() {
	log := replay.New(replay.Limits{Entries: 3})
	position := log.Last(0)
	for i := range 5 {
		log.Append("", fmt.Append(nil, "message ", i+1))
	}

	cursor := log.Cursor(position, nil)
	var batch replay.Batch
	err := cursor.Read(&batch, replay.Budget{})
	var gap *replay.GapError
	if errors.As(err, &gap) {
		fmt.Println("reset:", gap.Reason, gap.Missed)
		cursor.Seek(gap.Oldest) // show what is left
		err = cursor.Read(&batch, replay.Budget{})
	}
	for _, entry := range batch.Entries {
		fmt.Printf("%s\n", entry.Data)
	}
	fmt.Println(err)
	// Output:
	// reset: trimmed 2
	// message 3
	// message 4
	// message 5
	// <nil>
}

// Following a log live, from its head on: Next waits for what comes.
func ExampleCursor_Next() {
	log := replay.New(replay.Limits{})
	log.Append("", []byte("before"))
	cursor := log.Cursor(log.Last(0), nil)

	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		for _, word := range []string{"tick", "tock", "bye"} {
			log.Append("", []byte(word))
		}
	}()
	var batch replay.Batch
	for {
		err := cursor.Next(ctx, &batch, replay.Budget{})
		for _, entry := range batch.Entries {
			fmt.Printf("%s\n", entry.Data)
			if string(entry.Data) == "bye" {
				cancel(errors.New("heard bye"))
			}
		}
		if err != nil {
			fmt.Println(err)
			return
		}
	}
	// Output:
	// tick
	// tock
	// bye
	// heard bye
}

// One goroutine serves a thousand readers.
func ExamplePoller() {
	log := replay.New(replay.Limits{})
	poller := replay.NewPoller()
	for i := range 1000 {
		cursor := log.Cursor(log.Last(0), nil)
		cursor.Value = i // what belongs to it, for example a connection
		poller.Arm(cursor)
	}
	log.Append("", []byte("hello"))

	served := 0
	ready := make([]*replay.Cursor, 64)
	var batch replay.Batch
	for served < 1000 {
		n, err := poller.Wait(context.Background(), ready)
		if err != nil {
			panic(err)
		}
		for _, cursor := range ready[:n] {
			if err := cursor.Read(&batch, replay.Budget{}); err != nil {
				panic(err)
			}
			served += len(batch.Entries)
		}
		poller.Arm(ready[:n]...)
	}
	fmt.Println(served)
	// Output: 1000
}

// A reader of prices that falls behind gets the newest price of each share.
func ExampleLag() {
	log := replay.New(replay.Limits{})
	cursor := log.Cursor(log.Last(0), &replay.Lag{Entries: 2, Conflate: true})
	for _, price := range []string{"A 10", "B 20", "A 11", "A 12", "B 19"} {
		log.Append(price[:1], []byte(price))
	}
	var batch replay.Batch
	if err := cursor.Read(&batch, replay.Budget{}); err != nil {
		panic(err)
	}
	for _, entry := range batch.Entries {
		fmt.Printf("%s\n", entry.Data)
	}
	fmt.Println(batch.Conflated, "left out")
	// Output:
	// A 12
	// B 19
	// 3 left out
}
