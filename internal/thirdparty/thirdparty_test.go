package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// What the README says of us, and what the table is for. Other libraries may
// change; then this test asks for the README to be read again.
func TestClientsInStep(t *testing.T) {
	for _, s := range schedules {
		share := inStep(s, 40)
		switch s.module {
		case "", "github.com/holdfast-ws/holdfast", "github.com/cenkalti/backoff/v7", "github.com/sethvargo/go-retry":
			if share >= 0.001 {
				t.Errorf("%s: %.2f %% of the clients in step at attempt 40, want < 0.1 %%", s.name, 100*share)
			}
		default:
			if share < 0.9 {
				t.Errorf("%s: only %.2f %% of the clients in step at attempt 40", s.name, 100*share)
			}
		}
	}
}

func TestTablesAreWhole(t *testing.T) {
	tables := []table{backoffCost(1, time.Microsecond), backoffSpread()}
	tables = append(tables, logCost(1, time.Microsecond)...)
	for _, table := range tables {
		var text, markdown bytes.Buffer
		table.text(&text)
		table.markdown(&markdown)
		for _, row := range table.rows {
			if len(row) != len(table.header) {
				t.Errorf("row %q does not fit the header %q", row, table.header)
			}
			if !strings.Contains(text.String(), row[0]) || !strings.Contains(markdown.String(), "| "+row[0]+" |") {
				t.Errorf("row %q is not printed", row)
			}
		}
		if len(table.rows) == 0 {
			t.Errorf("%s: no rows", table.title)
		}
	}
}
