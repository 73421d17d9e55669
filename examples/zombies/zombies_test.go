package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/holdfast-ws/holdfast/internal/leak"
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
	for _, plain := range []string{"-plain=true", "-plain=false"} {
		var out bytes.Buffer
		args := []string{"-conns", "90", "-interval", "2s", "-timeout", "1500ms", "-pause", "4s", plain}
		if plain == "-plain=false" {
			args[len(args)-2] = "0"
		}
		if err := run(t.Context(), args, &out, os.Stderr); err != nil {
			t.Errorf("%v\n%s", err, &out)
		}
		for _, want := range []string{"90 connections", "10 clients turn silent", "10 clients turn dark", "10 clients turn greedy", "watched 60 of 90", "no answer", "write blocked"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("the output does not say %q:\n%s", want, &out)
			}
		}
		if told := strings.Contains(out.String(), "has lost nobody"); told != (plain == "-plain=true") {
			t.Errorf("the output on the pause:\n%s", &out)
		}
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
