package main

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-ws/holdfast/internal/leak"
	"github.com/holdfast-ws/holdfast/internal/redistest"
)

func TestMain(m *testing.M) {
	if os.Getenv("TWOSERVERS_SERVE") != "" { // the servers are processes of this program
		if err := serve(os.Args[slices.Index(os.Args, "-redis")+1]); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		return
	}
	leak.Main(m)
}

// lines of the package comment, which says what the program prints.
func documented(t *testing.T) (lines []string) {
	source, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(source), "// It ends with\n//\n")
	text, _, end := strings.Cut(after, "package main")
	if !ok || !end {
		t.Fatal("main.go does not say what is printed")
	}
	for _, l := range strings.Split(strings.TrimSpace(text), "\n") {
		lines = append(lines, strings.TrimPrefix(l, "//\t"))
	}
	return lines
}

func TestTwoUsersOnTwoServersLoseNothing(t *testing.T) {
	redistest.Start(t) // to be skipped, or to fail, where there is none
	defer http.DefaultClient.CloseIdleConnections()
	var out bytes.Buffer
	if err := run(context.Background(), &out, nil, "", false); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	printed := strings.Split(out.String(), "\n")
	for _, want := range documented(t) {
		if !slices.Contains(printed, want) {
			t.Errorf("the documentation says %q, which is not printed:\n%s", want, out.String())
		}
	}
}

func TestARedisThatIsThereAlreadyIsNotHurt(t *testing.T) {
	server := redistest.Start(t)
	defer http.DefaultClient.CloseIdleConnections()
	before, err := server.Do("INFO server")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(context.Background(), &out, nil, "redis://"+server.Addr(), false); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	id := func(info string) string {
		_, after, _ := strings.Cut(info, "run_id:")
		return after[:40]
	}
	if after, err := server.Do("INFO server"); err != nil || id(after) != id(before) {
		t.Errorf("it is another process now: %v", err)
	}
	if text := out.String(); !strings.Contains(text, "ann saw 8 of 8 messages, 0 of them twice, resets: 0") {
		t.Error(text)
	}
}

func TestThePromptDoesWhatItSays(t *testing.T) {
	redistest.Start(t)
	defer http.DefaultClient.CloseIdleConnections()
	var out bytes.Buffer
	in := strings.NewReader("what?\nann hello\nkill\nstart\nbob are you there?\npause\nresume\nserver 1\nann yes\nflush\nann again\nquit\n")
	if err := run(context.Background(), &out, in, "", true); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if text := out.String(); strings.Count(text, "kill, start") != 2 {
		t.Errorf("the help was not shown twice:\n%s", text)
	}
}
