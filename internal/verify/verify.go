// Package verify holds back the tests that take too long for make test: planted bugs,
// long simulations, other browsers. make verify runs them.
package verify

import (
	"fmt"
	"os"
	"testing"
)

// On reports whether long tests run: whether the environment variable HOLDFAST_VERIFY
// is set.
func On() bool { return os.Getenv("HOLDFAST_VERIFY") != "" }

// Only skips t, and says why, unless long tests run.
func Only(t testing.TB, why string) {
	t.Helper()
	if !On() {
		Skip(t, why+"; make verify runs this")
	}
}

// Skip skips t, and reports why as [Report] does.
func Skip(t testing.TB, why string) {
	t.Helper()
	write(t, "SKIPPED: "+why)
	t.Skip("SKIPPED: " + why)
}

// Report logs a line. go test does not show what passing tests log. So Report also
// appends the line to the file that the environment variable HOLDFAST_REPORT names, if
// any, and make test shows that file at its end.
func Report(t testing.TB, format string, args ...any) {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	t.Log(line)
	write(t, line)
}

func write(t testing.TB, line string) {
	t.Helper()
	name := os.Getenv("HOLDFAST_REPORT")
	if name == "" {
		return
	}
	file, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		t.Error(err)
		return
	}
	defer file.Close()
	// One write, so that lines of other test binaries are not mixed with it.
	if _, err := file.WriteString(t.Name() + ": " + line + "\n"); err != nil {
		t.Error(err)
	}
}
