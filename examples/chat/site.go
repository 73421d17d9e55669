package main

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"log"
	"net/http"

	"github.com/holdfast-ws/holdfast/client/browser"
)

// history is how many messages a page begins with.
const history = 50

//go:embed page
var files embed.FS

// policy of the page: everything comes from here, and nothing stands in the HTML.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
	"worker-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"

// site is what the front serves: the page, the way to the nodes, and the control API.
func (c *chat) site() http.Handler {
	page, err := fs.Sub(files, "page")
	if err != nil {
		panic(err) // it is embedded
	}
	mux := http.NewServeMux()
	static := http.FileServerFS(page)
	asset := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", policy)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Cache-Control", "no-cache")
		static.ServeHTTP(w, r)
	}
	mux.HandleFunc("GET /{$}", asset)
	mux.HandleFunc("GET /{file}", asset)
	mux.Handle("GET /holdfast/", http.StripPrefix("/holdfast/", browser.Handler(nil)))
	mux.HandleFunc("GET /config", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusOK, map[string]any{"module": browser.URL("/holdfast/"), "room": room, "history": history})
	})
	mux.Handle("GET /ws", c.front)
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) { answer(w, http.StatusOK, c.status()) })

	// Only pages of this origin may push the buttons, and programs.
	same := http.NewCrossOriginProtection()
	mux.Handle("POST /control/{what}", same.Handler(http.HandlerFunc(c.control)))
	return mux
}

// A status is the answer to GET /status.
type status struct {
	Nodes     []nodeStatus `json:"nodes"`
	Backplane string       `json:"backplane"` // memory or redis
	Held      []string     `json:"held"`      // whose network is lost
	Zombies   int          `json:"zombies"`   // connections that a node believes in, without a client
}

type nodeStatus struct {
	Name        string `json:"name"`
	Addr        string `json:"addr"`
	State       string `json:"state"` // up, draining or down
	Connections int    `json:"connections"`
}

func (c *chat) status() (s status) {
	s.Backplane = c.backplane
	s.Held, s.Zombies = c.front.status()
	for _, n := range c.nodes {
		state, connections := n.status()
		s.Nodes = append(s.Nodes, nodeStatus{n.name, n.addr, state, connections})
	}
	return s
}

// control does what a button says. What is down already is not killed again, which is no
// error: the status is 200 then, and else 202.
func (c *chat) control(w http.ResponseWriter, r *http.Request) {
	what := r.PathValue("what")
	done, did := true, ""
	switch what {
	case "lose":
		user := r.URL.Query().Get("user")
		if !valid(user) {
			http.Error(w, "whose network? /control/lose?user=NAME, 1 to 32 printable characters", http.StatusBadRequest)
			return
		}
		if !c.front.lose(user) {
			http.Error(w, fmt.Sprintf("nobody named %q is connected", user), http.StatusNotFound)
			return
		}
		did = fmt.Sprintf("%q has no network for %v", user, c.front.hold)
	case "kill", "drain":
		name := r.URL.Query().Get("node")
		n := c.node(name)
		if name == "" {
			http.Error(w, "which node? /control/"+what+"?node=node-1", http.StatusBadRequest)
			return
		}
		if n == nil {
			http.Error(w, fmt.Sprintf("there is no node %q", name), http.StatusNotFound)
			return
		}
		did = what + " " + name
		if what == "kill" {
			done = n.kill(c.timing.dead)
		} else {
			done = n.drain(c.timing.dead)
		}
	case "restart":
		// The backplane is what survives: the memory stands for the Redis that there
		// would be.
		did = "restart of all nodes"
		done = false
		for _, n := range c.nodes {
			done = n.kill(c.timing.restart) || done
		}
	default:
		http.Error(w, "there are lose, kill, drain and restart", http.StatusNotFound)
		return
	}
	status := http.StatusAccepted
	if !done {
		status, did = http.StatusOK, did+": down already"
	}
	log.Print(did)
	answer(w, status, map[string]bool{"ok": true})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}
