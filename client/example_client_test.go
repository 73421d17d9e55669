package client_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/backplane/gateway"
	"github.com/holdfast-ws/holdfast/client"
)

// A client subscribes, publishes and reads what it has published. In its place another one
// goes on after that.
func ExampleNew() {
	memory := backplane.NewMemory(nil)
	hub := backplane.New(memory, nil)
	gw, err := gateway.New(hub, &gateway.Options{
		Authorize: func(_ context.Context, a gateway.Access) (gateway.Grant, error) {
			if a.Action == gateway.Connect && a.Token != "token-of-anna" {
				return gateway.Grant{}, gateway.ErrUnauthenticated
			}
			return gateway.Grant{User: "anna"}, nil
		},
	})
	if err != nil {
		panic(err)
	}
	server := httptest.NewServer(gw)
	url := "ws" + strings.TrimPrefix(server.URL, "http")
	ctx := context.Background()
	defer func() {
		gw.Shutdown(ctx)
		server.Close()
		hub.Close(ctx)
		memory.Close()
	}()

	options := &client.Options{
		Prepare: func(_ context.Context, d *client.Dial) error {
			d.Token = "token-of-anna" // with d.Refresh set: get a new one
			return nil
		},
	}
	c, err := client.New(url, options)
	if err != nil {
		panic(err)
	}
	room, err := c.Subscribe("room/7", nil)
	if err != nil {
		panic(err)
	}
	if err := room.Ready(ctx); err != nil { // from here on nothing is missed
		panic(err)
	}
	receipt, err := c.Publish(ctx, "room/7", client.Message{Data: []byte("hello")})
	if err != nil {
		panic(err)
	}
	fmt.Println("published:", receipt.Outcome)

	event, err := room.Next(ctx)
	if err != nil {
		panic(err)
	}
	fmt.Printf("received: %s\n", event.Data)
	kept := room.Position() // in a file, say, with what was made of the event
	if err := c.Close(ctx); err != nil {
		panic(err)
	}

	hub.Publish(ctx, "room/7", backplane.Message{Data: []byte("are you there?")})

	if c, err = client.New(url, options); err != nil { // another process
		panic(err)
	}
	defer c.Close(ctx)
	if room, err = c.Subscribe("room/7", &client.SubscribeOptions{From: kept}); err != nil {
		panic(err)
	}
	for event, err := range room.All(ctx) {
		if err != nil {
			panic(err)
		}
		if event.Reset != nil {
			fmt.Println("messages are missing:", event.Reset.Reason)
			continue
		}
		fmt.Printf("received: %s\n", event.Data)
		break
	}
	// Output:
	// published: committed
	// received: hello
	// received: are you there?
}
