package deptest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const module = "github.com/holdfast-ws/holdfast"

// table is the module's import table. A new package needs a row, with a reason
// for everything in it. Examples may import all that is ours.
var table = Table{
	".":                       nil,
	"backoff":                 nil,
	"backplane":               {"./replay"},
	"backplane/backplanetest": {"./backplane", "./replay"},
	"backplane/gateway":       {"./backoff", "./backplane", "./heartbeat", "./replay", "./internal/wire", "github.com/coder/websocket"},
	"backplane/redisplane": {
		"./backoff", "./backplane", "./replay", "github.com/redis/go-redis/v9",
		"github.com/cespare/xxhash/v2", "go.uber.org/atomic", "golang.org/x/sys", // which go-redis needs
	},
	"client":              {"./backoff", "./heartbeat", "./replay", "./internal/retryafter", "./internal/wire", "github.com/coder/websocket"},
	"client/browser":      nil,
	"heartbeat":           nil,
	"replay":              nil,
	"internal/chromium":   {"./internal/verify"},
	"internal/cputime":    nil,
	"internal/deptest":    nil,
	"internal/faultproxy": nil,
	"internal/leak":       nil,
	"internal/memnet":     {"./backoff"}, // its tests run coder/websocket over it
	"internal/mutant":     {"./internal/verify"},
	"internal/readme":     nil,
	"internal/redistest":  {"./internal/verify"},
	"internal/retryafter": nil,
	"internal/torture": { // its Fabric is between gateways and clients
		"./backoff", "./backplane", "./backplane/gateway", "./client", "./heartbeat", "./replay", "./internal/memnet", "./internal/retryafter", "./internal/wire",
		"github.com/coder/websocket",
	},
	"internal/verify":    nil,
	"internal/webdriver": {"github.com/coder/websocket"}, // a protocol over WebSocket
	"internal/wire":      {"./replay"},
	"internal/wsrig":     {"./internal/cputime"},
	"examples/...": {
		"./backoff", "./backplane", "./client", "./heartbeat", "./replay", "./internal/retryafter", "./internal/wire",
		"github.com/coder/websocket",
	},
	"examples/chat": {
		"./backoff", "./backplane", "./client", "./heartbeat", "./replay", "./internal/retryafter", "./internal/wire",
		"github.com/coder/websocket", "github.com/redis/go-redis/v9",
		"github.com/cespare/xxhash/v2", "go.uber.org/atomic", "golang.org/x/sys",
	},
	"examples/twoservers": {
		"./backoff", "./backplane", "./replay", "./internal/redistest", "./internal/verify", "github.com/redis/go-redis/v9",
		"github.com/cespare/xxhash/v2", "go.uber.org/atomic", "golang.org/x/sys",
	},
}

// mayRequire are the only modules that may stand as direct requirements in the
// root go.mod, each with the version line it must stay on. A requirement is a
// floor for everybody who imports anything of ours, so it is as low as works.
var mayRequire = map[string]string{
	"github.com/coder/websocket":   "v1.8.",
	"github.com/redis/go-redis/v9": "v9.22.", // v9.23 would force Go 1.26 on every importer
	"github.com/google/go-cmp":     "v0.",
}

func TestPackagesImportOnlyWhatTheTableAllows(t *testing.T) {
	g, err := Load("../..", "./...")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range table.Check(module, g) {
		t.Error(err)
	}
}

func TestGoModRequiresOnlyWhatItMay(t *testing.T) {
	out, err := exec.Command("go", "mod", "edit", "-json", "../../go.mod").Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct {
		Module    struct{ Path string }
		Go        string
		Toolchain string
		Require   []struct {
			Path, Version string
			Indirect      bool
		}
		Replace, Exclude, Tool []any
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	if mod.Module.Path != module || mod.Go != "1.25.0" || mod.Toolchain != "" {
		t.Errorf("go.mod says module %s, go %s, toolchain %q; want %s, 1.25.0 and none", mod.Module.Path, mod.Go, mod.Toolchain, module)
	}
	if len(mod.Replace)+len(mod.Exclude)+len(mod.Tool) > 0 {
		t.Error("go.mod has a replace, exclude or tool directive; all three reach importers or hide something from them")
	}
	for _, r := range mod.Require {
		if r.Indirect {
			continue
		}
		if line, ok := mayRequire[r.Path]; !ok || !strings.HasPrefix(r.Version, line) {
			t.Errorf("go.mod requires %s %s; allowed are %v", r.Path, r.Version, mayRequire)
		}
	}
}

// Somebody who takes only one of the packages that stand alone gets only that.
func TestAModuleThatImportsOnePackageStaysLean(t *testing.T) {
	for pkg, expression := range map[string]string{
		"backoff":   "backoff.Policy{Fixed: 1}.Delay(3)",
		"heartbeat": "heartbeat.DefaultMaxPings",
		"replay":    "replay.New(replay.Limits{}).Last(0).Seq",
	} {
		t.Run(pkg, func(t *testing.T) { testLean(t, pkg, expression) })
	}
}

func testLean(t *testing.T, pkg, expression string) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module example.test/stranger\n\ngo 1.25.0\n\nrequire "+module+" v0.0.0\n\nreplace "+module+" => "+strconv.Quote(root)+"\n")
	write("main.go", `package main

import "`+module+"/"+pkg+`"

func main() { println(`+expression+`) }
`)
	run := func(args ...string) string {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		// It may have to download test dependencies that nothing else here needs.
		cmd.Env = append(os.Environ(), "GOSUMDB=off", "GOFLAGS=-mod=mod", "GOWORK=off")
		var errs bytes.Buffer
		cmd.Stderr = &errs // also of downloads
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, &errs)
		}
		return string(out)
	}
	run("mod", "tidy")
	run("run", ".")
	deps := strings.Fields(run("list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "."))
	if diff := cmp.Diff([]string{module + "/" + pkg, "example.test/stranger"}, deps); diff != "" {
		t.Errorf("the program is built from (-want +got):\n%s", diff)
	}
	sum, err := os.ReadFile(filepath.Join(dir, "go.sum"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if lines := strings.Count(string(sum), "\n"); lines > 4 {
		t.Errorf("go.sum has %d lines, want at most 4:\n%s", lines, sum)
	}
}

func TestCheckNamesWhatIsWrong(t *testing.T) {
	g := Graph{
		"m":         {"fmt"},
		"m/a":       {"m/b", "fmt"},
		"m/b":       {"m/c", "os"},
		"m/c":       {"x.org/y/z"},
		"m/ex/one":  {"m/a"},
		"m/ex/two":  {"x.org/yy"},
		"x.org/y/z": {"x.org/w"},
		"x.org/w":   nil,
		"x.org/yy":  nil,
	}
	all := Table{
		".": nil, "a": {"./b", "./c", "x.org"}, "b": {"./c", "x.org/y", "x.org/w"}, "c": {"x.org"},
		"ex/...": {"./a", "./b", "./c", "x.org"},
	}
	tests := []struct {
		reason string
		change func(Table)
		want   []string
	}{
		{"all is well", func(Table) {}, nil},
		{"the chain is named", func(t Table) { t["a"] = []string{"./b", "./c"} },
			[]string{"a must not depend on x.org/y/z: m/a -> m/b -> m/c -> x.org/y/z"}},
		{"also when a row allows the package in between only", func(t Table) { t["a"] = []string{"./b", "./c", "x.org/y"} },
			[]string{"a must not depend on x.org/w: m/a -> m/b -> m/c -> x.org/y/z -> x.org/w"}},
		{"a path covers what is below it, not what begins alike", func(t Table) { t["ex/..."] = []string{"./a", "./b", "./c", "x.org/y", "x.org/w"} },
			[]string{"ex/two must not depend on x.org/yy: m/ex/two -> x.org/yy"}},
		{"a package without a row", func(t Table) { delete(t, "c") },
			[]string{"c has no row in the import table"}},
		{"a row without a package", func(t Table) { t["gone"] = nil },
			[]string{"the row gone is for no package: remove it"}},
		{"a row of its own comes before the common one", func(t Table) { t["ex/two"] = nil },
			[]string{"ex/two must not depend on x.org/yy: m/ex/two -> x.org/yy"}},
		{"the root package", func(t Table) { delete(t, ".") },
			[]string{". has no row in the import table"}},
	}
	for _, tt := range tests {
		table := Table{}
		for k, v := range all {
			table[k] = v
		}
		tt.change(table)
		var got []string
		for _, err := range table.Check("m", g) {
			got = append(got, err.Error())
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.reason, diff)
		}
	}
}

func TestLoadFailsOnPatternsWithoutPackages(t *testing.T) {
	if _, err := Load(".", "./nowhere"); err == nil {
		t.Error("no error")
	} else if want := "nowhere"; !strings.Contains(fmt.Sprint(err), want) {
		t.Errorf("error %v does not name %s", err, want)
	}
}
