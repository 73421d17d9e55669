// Package deptest keeps the module's import table: which packages each package
// may pull into a program, directly or through others. Somebody who imports only
// backoff must not compile a WebSocket library.
//
// The table is in deptest_test.go, and the test there checks it.
package deptest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strings"
)

// A Graph maps the import path of each package that is not part of the standard
// library to the import paths of what it imports.
type Graph map[string][]string

// Load returns the import graph of the packages that match the patterns, and of
// all they depend on, without their tests. It runs the go command in dir.
func Load(dir string, patterns ...string) (Graph, error) {
	cmd := exec.Command("go", append([]string{"list", "-deps", "-json=ImportPath,Imports,Standard"}, patterns...)...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			return nil, fmt.Errorf("go list: %w: %s", err, exit.Stderr)
		}
		return nil, err
	}
	g := Graph{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
			Standard   bool
		}
		if err := dec.Decode(&p); err == io.EOF {
			return g, nil
		} else if err != nil {
			return nil, err
		}
		if !p.Standard {
			g[p.ImportPath] = p.Imports
		}
	}
}

// A Table says for each package of a module, by its path within the module, what
// it may depend on beyond the standard library. An allowed path covers the
// packages below it; one that starts with "./" is within the module.
//
// A row whose path ends in "/..." is for all packages below it that have no row
// of their own.
type Table map[string][]string

// Check compares the packages of module in g with t and returns one error for
// each breach. It names the chain of imports that leads to what is not allowed,
// packages without a row, and rows that no package needs any more.
func (t Table) Check(module string, g Graph) (errs []error) {
	used := map[string]bool{}
	for _, path := range slices.Sorted(maps.Keys(g)) {
		name, ours := strings.CutPrefix(path, module+"/")
		if path == module {
			name, ours = ".", true
		}
		if !ours {
			continue
		}
		row, ok := t.row(name)
		if !ok {
			errs = append(errs, fmt.Errorf("%s has no row in the import table", name))
			continue
		}
		used[row] = true
		allowed := func(dep string) bool {
			return slices.ContainsFunc(t[row], func(a string) bool {
				if rest, ok := strings.CutPrefix(a, "./"); ok {
					a = module + "/" + rest
				}
				return dep == a || strings.HasPrefix(dep, a+"/")
			})
		}
		if chain := g.find(path, func(dep string) bool { return !allowed(dep) }); chain != nil {
			errs = append(errs, fmt.Errorf("%s must not depend on %s: %s", name, chain[len(chain)-1], strings.Join(chain, " -> ")))
		}
	}
	for _, row := range slices.Sorted(maps.Keys(t)) {
		if !used[row] {
			errs = append(errs, fmt.Errorf("the row %s is for no package: remove it", row))
		}
	}
	return errs
}

// row returns the key of the row for the package of that name: its own, or else
// the longest one ending in "/..." that covers it.
func (t Table) row(name string) (string, bool) {
	if _, ok := t[name]; ok {
		return name, true
	}
	for {
		i := strings.LastIndex(name, "/")
		if i < 0 {
			return "", false
		}
		name = name[:i]
		if _, ok := t[name+"/..."]; ok {
			return name + "/...", true
		}
	}
}

// find returns the shortest chain of imports from path to a package outside of
// the standard library for which bad holds, or nil.
func (g Graph) find(path string, bad func(string) bool) []string {
	from := map[string]string{path: ""}
	for queue := []string{path}; len(queue) > 0; queue = queue[1:] {
		for _, dep := range g[queue[0]] {
			if _, seen := from[dep]; seen {
				continue
			}
			from[dep] = queue[0]
			if _, ok := g[dep]; !ok {
				continue // standard library
			}
			if bad(dep) {
				var chain []string
				for p := dep; p != ""; p = from[p] {
					chain = append(chain, p)
				}
				slices.Reverse(chain)
				return chain
			}
			queue = append(queue, dep)
		}
	}
	return nil
}
