package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/holdfast-ws/holdfast/internal/leak"
	"github.com/holdfast-ws/holdfast/internal/verify"
)

// The program starts itself again for the clients; a test is that program.
func TestMain(m *testing.M) {
	if os.Getenv("ZOMBIES_CLIENTS") != "" {
		if err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	leak.Main(m)
}

// The program checks itself: it returns an error if a zombie is not found, or if
// a healthy client is lost.
func TestZombiesAreFoundAndAPauseKillsNobody(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags []string
		says  string // of the pause
	}{
		{"with a pause", []string{"-plain=true", "-pause", "4s"}, "has lost nobody"},
		{"as a picture, without a pause", []string{"-plain=false", "-pause", "0"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.says == "" {
				verify.Only(t, "takes a quarter of a minute")
			}
			var out bytes.Buffer
			args := append([]string{"-conns", "90", "-interval", "2s", "-timeout", "1500ms"}, tt.flags...)
			if err := run(t.Context(), args, &out, os.Stderr); err != nil {
				t.Errorf("%v\n%s", err, &out)
			}
			for _, want := range []string{"90 connections", "10 clients turn silent", "10 clients turn dark", "10 clients turn greedy", "watched 60 of 90", "no answer", "write blocked", tt.says} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("the output does not say %q:\n%s", want, &out)
				}
			}
			if told := strings.Contains(out.String(), "stands still"); told != (tt.says != "") {
				t.Errorf("the output on the pause:\n%s", &out)
			}
		})
	}
}

func TestBadFlagsAreNamed(t *testing.T) {
	for args, want := range map[string]string{
		"-conns 2":      "-conns 2",
		"-conns 9999":   "-conns 9999",
		"-pause -1s":    "-pause -1s",
		"-interval 1ms": "Interval",
		"-timeout 4s":   "Timeout",
		"now":           `"now"`,
		"-conns x":      "-conns",
	} {
		var out, errs bytes.Buffer
		if err := run(t.Context(), strings.Fields(args), &out, &errs); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("zombies %s: error %v, want one that names %s", args, err, want)
		}
	}
}
