// Package mutant shows that tests catch bugs: it plants one in a copy of a source
// file, runs some tests of the package with it, and expects them to fail.
package mutant

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/internal/verify"
)

// A Mutant is one planted bug.
type Mutant struct {
	Why      string // what is wrong with it, in a few words
	File     string // in the folder of the package under test
	Old, New string // Old occurs in File exactly once, and is replaced by New
}

// Run plants each of the mutants by itself in the package in the current folder
// and runs its tests that match the regular expression tests, with -short. They must pass
// without a bug and fail with any. It uses the go command's overlay and changes no
// file.
//
// Each mutant takes a second or more, so only make verify plants them. With a number
// n in the environment variable HOLDFAST_MUTANTS it plants one in n of them, others
// each day. Run always checks that all of them can still be planted.
func Run(t *testing.T, tests string, mutants ...Mutant) {
	share, turn := 1, 0
	if n, err := strconv.Atoi(os.Getenv("HOLDFAST_MUTANTS")); err == nil && n > 1 {
		share, turn = n, int(time.Now().Unix()/(24*60*60))%n
	}
	if !verify.On() {
		verify.Report(t, "SKIPPED: %d planted bugs; make verify runs this", len(mutants))
	} else {
		if share > 1 {
			verify.Report(t, "one in %d of %d planted bugs is tried today", share, len(mutants))
		}
		if out, err := try(t, tests, ""); err != nil {
			t.Fatalf("the tests %s fail without a planted bug: %v\n%s", tests, err, out)
		}
	}
	for i, m := range mutants {
		t.Run(strings.ReplaceAll(m.Why, " ", "_"), func(t *testing.T) {
			path, err := filepath.Abs(m.File)
			if err != nil {
				t.Fatal(err)
			}
			source, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(source, []byte(m.Old)); n != 1 {
				t.Fatalf("%s has %q %d times, want once: this mutant is out of date", m.File, m.Old, n)
			}
			if !verify.On() || i%share != turn {
				return
			}
			dir := t.TempDir()
			changed := filepath.Join(dir, "changed.go")
			if err := os.WriteFile(changed, bytes.Replace(source, []byte(m.Old), []byte(m.New), 1), 0o666); err != nil {
				t.Fatal(err)
			}
			overlay, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
			if err != nil {
				t.Fatal(err)
			}
			name := filepath.Join(dir, "overlay.json")
			if err := os.WriteFile(name, overlay, 0o666); err != nil {
				t.Fatal(err)
			}
			out, err := try(t, tests, name)
			switch {
			case err == nil:
				t.Errorf("no test fails with this bug: %q in place of %q in %s", m.New, m.Old, m.File)
			case !bytes.Contains(out, []byte("--- FAIL")) && !bytes.Contains(out, []byte("panic: ")) && !bytes.Contains(out, []byte("fatal error: ")):
				t.Errorf("the tests did not run with this bug, it may not compile: %v\n%s", err, out)
			}
		})
	}
}

// try runs the tests with an overlay, or without one if it is empty.
func try(t *testing.T, tests, overlay string) ([]byte, error) {
	args := []string{"test", "-short", "-count=1", "-timeout=12s", "-vet=off", "-run", tests}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.CommandContext(t.Context(), "go", append(args, ".")...)
	cmd.Env = append(os.Environ(), "HOLDFAST_VERIFY=", "HOLDFAST_REPORT=") // the short tests are enough
	return cmd.CombinedOutput()
}
