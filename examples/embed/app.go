package main

import (
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"html/template"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"
)

// This file is the server as it was before: it knows nothing of WebSockets.

// A note is what users write.
type note struct {
	ID   int       `json:"id"`
	User string    `json:"user"`
	Text string    `json:"text"`
	At   time.Time `json:"at"`
}

type app struct {
	mux   *http.ServeMux
	added func(note)        // called for each new note; may be nil
	left  func(user string) // called after a logout; may be nil

	mu       sync.Mutex // guards all below
	notes    []note
	sessions map[string]string // users by cookie
}

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(pageText))

func newApp() *app {
	a := &app{mux: http.NewServeMux(), sessions: map[string]string{}}
	a.mux.HandleFunc("GET /{$}", a.index)
	a.mux.HandleFunc("POST /login", a.login)
	a.mux.HandleFunc("POST /logout", a.logout)
	a.mux.HandleFunc("POST /notes", a.add)
	return a
}

// user returns who has sent a request, or "".
func (a *app) user(r *http.Request) string {
	c, err := r.Cookie("session")
	if err != nil {
		return ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sessions[c.Value]
}

func (a *app) login(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimSpace(r.FormValue("name"))
	if name == "" || len(name) > 32 {
		http.Error(w, "a name of 1 to 32 bytes, please", http.StatusBadRequest)
		return
	}
	session := rand.Text()
	a.mu.Lock()
	a.sessions[session] = name
	a.mu.Unlock()
	http.SetCookie(w, &http.Cookie{Name: "session", Value: session, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// logout ends all sessions of a user.
func (a *app) logout(w http.ResponseWriter, r *http.Request) {
	user := a.user(r)
	a.mu.Lock()
	maps.DeleteFunc(a.sessions, func(_, of string) bool { return of == user })
	a.mu.Unlock()
	if user != "" && a.left != nil {
		a.left(user)
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (a *app) add(w http.ResponseWriter, r *http.Request) {
	n := note{User: a.user(r), Text: r.FormValue("text"), At: time.Now().UTC().Truncate(time.Second)}
	if n.User == "" {
		http.Error(w, "log in first", http.StatusUnauthorized)
		return
	}
	if n.Text == "" || len(n.Text) > 1000 {
		http.Error(w, "a text of 1 to 1000 bytes, please", http.StatusBadRequest)
		return
	}
	a.mu.Lock()
	n.ID = len(a.notes) + 1
	a.notes = append(a.notes, n)
	a.mu.Unlock()
	if a.added != nil {
		a.added(n)
	}
	w.WriteHeader(http.StatusNoContent)
}

func (a *app) index(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	notes, err := json.Marshal(append([]note{}, a.notes...))
	a.mu.Unlock()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	page.Execute(w, map[string]any{"User": a.user(r), "Notes": template.JS(notes)})
}
