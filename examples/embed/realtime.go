package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"net/http"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/backplane/gateway"
	"github.com/holdfast-ws/holdfast/client/browser"
)

// This file is what was added: every new note is published, who is logged in may
// subscribe, and who logs out is disconnected. For several servers, put redisplane.New in
// place of NewMemory, and tell all of them of a logout.

type realtime struct {
	memory *backplane.Memory
	hub    *backplane.Hub
	gw     *gateway.Gateway
}

// authorize lets in who is logged in, and lets them read. Notes come by POST, where they are checked.
// It asks for the user once: a logout can come between two questions.
func authorize(user func(*http.Request) string) func(context.Context, gateway.Access) (gateway.Grant, error) {
	return func(_ context.Context, q gateway.Access) (gateway.Grant, error) {
		switch {
		case q.Action == gateway.Connect:
			if name := user(q.Request); name != "" {
				return gateway.Grant{User: name}, nil
			}
			return gateway.Grant{}, gateway.ErrUnauthenticated
		case q.Action == gateway.Subscribe && q.Topic == "notes":
			return gateway.Grant{}, nil
		}
		return gateway.Grant{}, gateway.ErrForbidden
	}
}

func newRealtime(a *app) (*realtime, error) {
	memory := backplane.NewMemory(nil)
	hub := backplane.New(memory, nil)
	gw, err := gateway.New(hub, &gateway.Options{
		Authorize: authorize(a.user),
	})
	if err != nil {
		return nil, err
	}
	a.left = func(user string) { gw.Disconnect(user) } // when the session is no more, or the client comes back with it
	a.mux.Handle("GET /ws", gw)
	a.mux.Handle("GET /holdfast/", http.StripPrefix("/holdfast/", browser.Handler(nil)))
	a.added = func(n note) {
		data, _ := json.Marshal(n) // a note can always be marshalled
		if _, err := hub.Publish(context.Background(), "notes", backplane.Message{Data: data}); err != nil {
			log.Print(err)
		}
	}
	return &realtime{memory, hub, gw}, nil
}

func (rt *realtime) shutdown(ctx context.Context) error {
	return errors.Join(rt.gw.Shutdown(ctx), rt.hub.Close(ctx), rt.memory.Close())
}
