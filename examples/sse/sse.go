package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/holdfast-ws/holdfast/replay"
)

//go:embed page.html
var page string

const (
	first   = 10               // events that a client without a position gets
	maxBody = 64 << 10         // bytes of one event
	quiet   = 15 * time.Second // a stream that is quiet for so long gets a comment
	patient = 10 * time.Second // how long one write may take
)

// publish appends the body of a request as one event.
type publish struct{ events *replay.Log }

func (p publish) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLong := (*http.MaxBytesError)(nil); errors.As(err, &tooLong) {
		http.Error(w, fmt.Sprintf("an event has at most %d bytes", maxBody), http.StatusRequestEntityTooLarge)
		return
	} else if err != nil {
		return // the client has gone
	}
	event, err := p.events.Append("", body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, event.Pos)
}

// stream sends events as they come, from where the client says that it stands.
type stream struct{ events *replay.Log }

func (s stream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would hold events back

	// A browser sends the last id by itself when it reconnects. Without one this
	// is a new client. One that cannot be read is no reason to pretend that
	// nothing was missed, nor to turn a browser away: it would not try again.
	cursor := s.events.Cursor(s.events.Last(first), nil)
	var buf bytes.Buffer
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		pos, err := replay.ParsePosition(id)
		if err != nil {
			reset(&buf, "malformed position", 0, cursor.Position())
		} else {
			cursor.Seek(pos)
		}
	}
	// An id without data is remembered by the client, and is no event: so that one
	// that is cut before its first event has a position too.
	fmt.Fprintf(&buf, "id: %s\n\n", cursor.Position())

	var batch replay.Batch
	for {
		out.SetWriteDeadline(time.Now().Add(patient))
		if _, err := w.Write(buf.Bytes()); err != nil {
			return
		}
		if err := out.Flush(); err != nil {
			return
		}
		out.SetWriteDeadline(time.Time{}) // with HTTP/2 it would end a quiet stream
		buf.Reset()

		wait, cancel := context.WithTimeout(r.Context(), quiet)
		err := cursor.Next(wait, &batch, replay.Budget{})
		cancel()
		var gap *replay.GapError
		switch {
		case errors.As(err, &gap):
			cursor.Seek(gap.Oldest)
			reset(&buf, string(gap.Reason), gap.Missed, gap.Oldest)
		case r.Context().Err() != nil:
			return // the client has gone, or the server goes
		case err != nil:
			buf.WriteString(": still here\n\n")
		}
		for _, e := range batch.Entries {
			event(&buf, "", e.Pos, e.Data)
		}
	}
}

// reset tells the client that there is a gap before pos, where it goes on.
func reset(buf *bytes.Buffer, reason string, missed uint64, pos replay.Position) {
	data, err := json.Marshal(map[string]any{"reason": reason, "missed": missed})
	if err != nil {
		panic(err) // a string and a number
	}
	event(buf, "reset", pos, data)
}

// event writes one event. Its id is what the client sends when it comes back.
func event(buf *bytes.Buffer, name string, pos replay.Position, data []byte) {
	if name != "" {
		fmt.Fprintf(buf, "event: %s\n", name)
	}
	fmt.Fprintf(buf, "id: %s\n", pos)
	// Line ends in the data would end the event, or forge another.
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	data = bytes.ReplaceAll(data, []byte("\r"), []byte("\n"))
	for line := range bytes.SplitSeq(data, []byte("\n")) {
		fmt.Fprintf(buf, "data: %s\n", line)
	}
	buf.WriteString("\n")
}
