package readme

import (
	"bytes"
	"fmt"
	"go/doc/comment"
	"go/format"
	"go/parser"
	"go/token"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const root = "../.."

// blocks returns the fenced code blocks of a Markdown text in one language.
func blocks(text, language string) (found []string) {
	for {
		_, rest, ok := strings.Cut(text, "\n```"+language+"\n")
		if !ok {
			return found
		}
		block, after, ok := strings.Cut(rest, "\n```\n")
		if !ok {
			return append(found, rest)
		}
		found = append(found, block+"\n")
		text = "\n" + after
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// stranger makes a folder of somebody else's beside a checkout named holdfast.
func stranger(t *testing.T) (dir string) {
	t.Helper()
	checkout, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	top := t.TempDir()
	if err := os.Symlink(checkout, filepath.Join(top, "holdfast")); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(top, "hello")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// command is a shell command in dir that downloads nothing.
func command(dir, line string) *exec.Cmd {
	cmd := exec.Command("sh", "-e", "-c", line)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOPROXY=off", "GOSUMDB=off", "GOFLAGS=", "GOWORK=off")
	return cmd
}

// runBy says who runs each command of the README. A command that is not here has
// not been run by anybody.
var runBy = map[string]func(t *testing.T, line string){
	"make demo": inCI,
	"make test": inCI,
	"go run ./examples/herd -clients 2000 -rate 50 -seed 7":            here,
	"go run ./examples/sse":                                            serves,
	"go test ./internal/torture -run Lossy -v":                         byGoTest,
	"go test ./backplane/redisplane -run RealRedis -v":                 byGoTest,
	"go run ./examples/twoservers":                                     tested,
	"go run ./examples/zombies -plain":                                 tested,
	"go run ./examples/anyserver":                                      tested,
	"go run ./examples/embed":                                          serves,
	"go test ./internal/torture -run Path -v":                          byGoTest,
	"go run ./examples/herd":                                           inDemo,
	"go mod init example.com/hello":                                    byTheStranger,
	"go mod edit -require=github.com/holdfast-ws/holdfast@v0.0.0":      byTheStranger,
	"go mod edit -replace=github.com/holdfast-ws/holdfast=../holdfast": byTheStranger,
	"go mod tidy": byTheStranger,
	"go build .":  byTheStranger,
}

// inCI is for commands that .ci/run runs.
func inCI(t *testing.T, line string) {
	line = strings.Replace(line, "make ", "make --no-print-directory ", 1)
	if !slices.Contains(strings.Split(read(t, ".ci/run"), "\n"), line) {
		t.Errorf(".ci/run does not run %q", line)
	}
}

// byGoTest is for tests: go test ./... runs them.
func byGoTest(t *testing.T, line string) {
	words := strings.Fields(line)
	out, err := command(root, "go test "+words[2]+" -list "+words[4]).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "Test") {
		t.Errorf("%s: there is no such test: %v\n%s", line, err, out)
	}
}

// inDemo is for commands that are what make demo does.
func inDemo(t *testing.T, line string) {
	if !strings.Contains(read(t, "Makefile"), "\ndemo:\n\t"+line+"\n") {
		t.Errorf("make demo does not run %q", line)
	}
}

// here is for commands that end by themselves, with success.
func here(t *testing.T, line string) {
	if out, err := command(root, line).CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", line, err, out)
	}
}

// tested is for programs that take long, and that a test in their folder runs.
func tested(t *testing.T, line string) {
	folder := strings.Fields(line)[2]
	if tests, err := filepath.Glob(filepath.Join(root, folder, "*_test.go")); err != nil || len(tests) == 0 {
		t.Errorf("%s has no test: %v", folder, err)
	}
}

// serves is for programs that serve HTTP until they are interrupted, at an
// address that they print.
func serves(t *testing.T, line string) {
	folder, ok := strings.CutPrefix(line, "go run ")
	if !ok {
		t.Fatalf("%q is not go run", line)
	}
	binary := filepath.Join(t.TempDir(), "program")
	if out, err := command(root, "go build -o "+binary+" "+folder).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	deadline := time.Now().Add(time.Minute)
	var log buffer
	cmd := exec.Command(binary, "-addr", "127.0.0.1:0")
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	var url string
	for url == "" {
		if time.Now().After(deadline) {
			t.Fatalf("%s prints no address: %s", line, log.String())
		}
		url = regexp.MustCompile(`http://\S+/`).FindString(log.String())
		runtime.Gosched()
	}
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("%s serves %s at %s", line, resp.Status, url)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s ends with %v on an interrupt: %s", line, err, log.String())
	}
}

// byTheStranger is for those that TestTheProgramRunsOutsideOfTheModule runs.
func byTheStranger(*testing.T, string) {}

func TestEveryCommandInTheReadmeIsRun(t *testing.T) {
	seen := map[string]bool{}
	for _, block := range blocks(read(t, "README.md"), "sh") {
		for line := range strings.Lines(block) {
			line = strings.TrimSuffix(line, "\n")
			run, ok := runBy[line]
			if !ok {
				t.Errorf("nobody runs %q", line)
				continue
			}
			seen[line] = true
			run(t, line)
		}
	}
	for line := range runBy {
		if !seen[line] {
			t.Errorf("%q is no longer in README.md: remove it from runBy", line)
		}
	}
}

// build builds one of the README's two programs with the README's own commands, and
// returns the folder in which it is, as hello.
func build(t *testing.T, i int) (dir string) {
	t.Helper()
	text := read(t, "README.md")
	programs := blocks(text, "go")
	if len(programs) != 2 {
		t.Fatalf("README.md has %d Go programs; the tests know how to run two", len(programs))
	}
	if formatted, err := format.Source([]byte(programs[i])); err != nil || string(formatted) != programs[i] {
		t.Errorf("the program is not formatted with gofmt: %v", err)
	}
	dir = stranger(t)
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(programs[i]), 0o666); err != nil {
		t.Fatal(err)
	}
	var setUp string
	for _, block := range blocks(text, "sh") {
		if strings.HasPrefix(block, "go mod init") {
			setUp = block
		}
	}
	if out, err := command(dir, setUp).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", setUp, err, out)
	}
	if out, err := command(dir, "go vet .").CombinedOutput(); err != nil {
		t.Errorf("go vet: %v\n%s", err, out)
	}
	return dir
}

// The chat, with a user who is away for a while.
func TestTheChatRunsOutsideOfTheModule(t *testing.T) {
	dir := build(t, 0)
	program := blocks(read(t, "README.md"), "go")[0]
	if n := strings.Count(program, "\n") - strings.Count(program, "\n\n"); n >= 60 {
		t.Errorf("the chat has %d lines, without empty ones; it is to be short", n)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	deadline := time.Now().Add(time.Minute)
	start := func(args ...string) (*exec.Cmd, io.Writer, *buffer) {
		cmd := exec.Command(filepath.Join(dir, "hello"), args...)
		cmd.Dir = dir
		out := new(buffer)
		cmd.Stdout, cmd.Stderr = out, os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		return cmd, in, out
	}
	prints := func(out *buffer, want string) {
		t.Helper()
		for out.String() != want {
			if time.Now().After(deadline) {
				t.Fatalf("the chat prints %q, want %q", out.String(), want)
			}
			runtime.Gosched()
		}
	}
	start(addr)
	anna, in, out := start(addr, "anna")
	fmt.Fprintln(in, "one")
	prints(out, "anna: one\n")
	for position := filepath.Join(dir, "anna.position"); ; runtime.Gosched() {
		if text, err := os.ReadFile(position); err == nil && len(text) > 0 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("no position is kept: %v", err)
		}
	}
	anna.Process.Kill()
	anna.Wait()
	_, in, out = start(addr, "bert")
	prints(out, "anna: one\n") // one of the last ten
	fmt.Fprint(in, "two\nthree\n")
	prints(out, "anna: one\nbert: two\nbert: three\n")
	_, _, out = start(addr, "anna")
	prints(out, "bert: two\nbert: three\n")
}

// The program is given a server, and stopped the way its user would.
func TestTheProgramRunsOutsideOfTheModule(t *testing.T) {
	dir := build(t, 1)
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	deadline := time.Now().Add(time.Minute)
	var out, log buffer
	cmd := exec.Command(filepath.Join(dir, "hello"), server.Addr().String())
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill() // does nothing if it has ended
	server.(*net.TCPListener).SetDeadline(deadline)
	conn, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(conn, "hello")
	conn.Close()
	// It now waits to dial again, for up to 5 s. That is not waited for.
	for !strings.Contains(log.String(), "next dial in") {
		if time.Now().After(deadline) {
			t.Fatalf("the program does not notice the loss of its connection\n%s", log.String())
		}
		runtime.Gosched()
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the program ends with %v on an interrupt\n%s", err, log.String())
	}
	if got, want := out.String(), "hello\n"; got != want {
		t.Errorf("the program prints %q, want %q", got, want)
	}
}

// A buffer may be read while a process writes to it.
type buffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// Snippets in doc comments are not compiled by anybody else. Here they are
// parsed at least.
func TestSnippetsInDocCommentsAreGo(t *testing.T) {
	out, err := command(root, "go list -f '{{.Dir}}' ./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	snippets := 0
	for _, dir := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			for _, group := range file.Comments {
				var parser comment.Parser
				for _, block := range parser.Parse(group.Text()).Content {
					code, ok := block.(*comment.Code)
					if !ok || !strings.Contains(code.Text, "{\n") {
						continue // a diagram or a command
					}
					snippets++
					if err := parses(code.Text); err != nil {
						t.Errorf("%s: a snippet is not Go: %v\n%s", name, err, code.Text)
					}
				}
			}
		}
	}
	if snippets == 0 {
		t.Error("no snippets found: this test looks for the wrong thing")
	}
}

// parses reports whether code is a file's declarations or a function's body.
func parses(code string) error {
	if _, err := parser.ParseFile(token.NewFileSet(), "", "package p\n"+code, 0); err == nil {
		return nil
	}
	_, err := parser.ParseFile(token.NewFileSet(), "", "package p\nfunc _() error {\n"+code+"\n}", 0)
	return err
}

func TestLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)[^)]*\)`)
	for _, name := range []string{"README.md", "CHANGELOG.md", ".github/CONTRIBUTING.md"} {
		links := link.FindAllStringSubmatch(read(t, name), -1)
		for _, m := range links {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", name, m[1], err)
			}
		}
	}
}

// The file map in CONTRIBUTING is worth something only while it is whole.
func TestTheFileMapNamesEveryFolder(t *testing.T) {
	text := read(t, ".github/CONTRIBUTING.md")
	out, err := command(root, "go list -f '{{.Dir}}' ./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	top, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		rel, err := filepath.Rel(top, dir)
		if err != nil {
			t.Fatal(err)
		}
		if rel != "." && !strings.Contains(text, "`"+rel+"`") {
			t.Errorf("CONTRIBUTING.md does not name `%s`", rel)
		}
	}
}
