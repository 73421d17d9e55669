//go:build unix

package readme

import (
	"bytes"
	"context"
	"fmt"
	"go/doc/comment"
	"go/format"
	"go/parser"
	"go/token"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/internal/chromium"
	"github.com/holdfast-ws/holdfast/internal/redistest"
	"github.com/holdfast-ws/holdfast/internal/verify"
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

// command is a shell command in dir. It may download modules, as a newcomer's machine
// has to, but asks no checksum database: what it downloads is never run.
func command(dir, line string) *exec.Cmd {
	cmd := exec.Command("sh", "-e", "-c", line)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOSUMDB=off", "GOFLAGS=", "GOWORK=off")
	return cmd
}

// runBy says who runs each command of the README. A command that is not here has
// not been run by anybody.
var runBy = map[string]func(t *testing.T, line string){
	"make demo": demo,
	"make test": inCI,
	"go run ./examples/herd -clients 2000 -rate 200 -seed 7":           here,
	"go run ./examples/sse":                                            serves,
	"go test ./internal/torture -run Lossy -v":                         byGoTest,
	"go test ./backplane/redisplane -run RealRedis -v":                 byGoTest,
	"go run ./examples/zombies -plain":                                 tested,
	"go run ./examples/tabs":                                           serves,
	"go run ./examples/chat -check":                                    tested,
	"go test ./internal/torture -run Path -v":                          byGoTest,
	"go run ./examples/herd":                                           here,
	"go mod init example.com/hello":                                    byTheStranger,
	"go mod edit -require=github.com/holdfast-ws/holdfast@v0.0.0":      byTheStranger,
	"go mod edit -replace=github.com/holdfast-ws/holdfast=../holdfast": byTheStranger,
	"go mod tidy": byTheStranger,
	"go build .":  byTheStranger,
}

// inCI is for commands that .ci/run runs first, in a fresh clone.
func inCI(t *testing.T, line string) {
	line = strings.Replace(line, "make ", "make --no-print-directory ", 1)
	for script := range strings.Lines(read(t, ".ci/newcomer")) {
		if strings.HasPrefix(script, line) {
			return
		}
	}
	t.Errorf(".ci/newcomer does not run %q", line)
}

// byGoTest is for tests: go test ./... runs them.
func byGoTest(t *testing.T, line string) {
	words := strings.Fields(line)
	out, err := command(root, "go test "+words[2]+" -list "+words[4]).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "Test") {
		t.Errorf("%s: there is no such test: %v\n%s", line, err, out)
	}
}

// demo is for make demo, which is a program that serves.
func demo(t *testing.T, line string) {
	inCI(t, line)
	if !strings.Contains(read(t, "Makefile"), "\ndemo:\n\tgo run ./examples/chat\n") {
		t.Errorf("%s does not run the chat", line)
	}
	serves(t, "go run ./examples/chat")
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
func serves(t *testing.T, line string) { printed(t, line) }

// printed returns what such a program has printed.
func printed(t *testing.T, line string) string {
	t.Helper()
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
	return log.String()
}

// The table of examples/README.md: each folder is in it, and each command prints what
// it says.
func TestTheExamplesPrintWhatIsSaid(t *testing.T) {
	verify.Only(t, "runs each example, which has tests of its own")
	text := read(t, "examples/README.md")
	folders, err := filepath.Glob(filepath.Join(root, "examples", "*", "main.go"))
	if err != nil || len(folders) == 0 {
		t.Fatal(err)
	}
	for _, main := range folders {
		if name := filepath.Base(filepath.Dir(main)); !strings.Contains(text, "\n| ["+name+"]("+name+") |") {
			t.Errorf("examples/README.md has no row for %s", name)
		}
	}
	busy := true
	retry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if busy {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		busy = false
	}))
	t.Cleanup(retry.Close)
	quoted := regexp.MustCompile("`([^`]+)`")
	rows := 0
	for row := range strings.Lines(text) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(row), "|"), " | ")
		if len(cells) != 4 || !strings.Contains(cells[2], "`go run") {
			continue
		}
		rows++
		line := quoted.FindStringSubmatch(cells[2])[1]
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			var out string
			switch line {
			case "go run ./examples/chat", "go run ./examples/sse", "go run ./examples/tabs", "go run ./examples/embed":
				out = regexp.MustCompile(`127\.0\.0\.1:\d+`).ReplaceAllString(printed(t, line), "localhost:8080")
			case "go run ./examples/twoservers":
				redistest.Start(t) // or skip, if there is none
				fallthrough
			default:
				b, err := command(root, strings.Replace(line, "URL", retry.URL, 1)).CombinedOutput()
				if out = string(b); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
			}
			for _, want := range quoted.FindAllStringSubmatch(cells[3], -1) {
				if !strings.Contains(out, want[1]) {
					t.Errorf("it does not print %q:\n%s", want[1], out)
				}
			}
		})
	}
	if rows < len(folders) {
		t.Errorf("%d rows of commands for %d folders", rows, len(folders))
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

// programs returns the README's Go programs: a server, a client of it, and a client of
// anything. What else there is of Go are snippets.
func programs(t *testing.T) (found []string) {
	t.Helper()
	for _, block := range blocks(read(t, "README.md"), "go") {
		if strings.HasPrefix(block, "package main\n") {
			found = append(found, block)
		}
	}
	if len(found) != 3 {
		t.Fatalf("README.md has %d Go programs; the tests know how to run three", len(found))
	}
	return found
}

// build builds a program with the README's own commands, and returns the folder in
// which it is, as hello.
func build(t *testing.T, program string) (dir string) {
	t.Helper()
	if formatted, err := format.Source([]byte(program)); err != nil || string(formatted) != program {
		t.Errorf("the program is not formatted with gofmt: %v", err)
	}
	dir = stranger(t)
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(program), 0o666); err != nil {
		t.Fatal(err)
	}
	var setUp string
	for _, block := range blocks(read(t, "README.md"), "sh") {
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

// run starts the hello in dir, and ends it with the test.
func run(t *testing.T, dir string, args ...string) (cmd *exec.Cmd, in io.Writer, out *buffer) {
	t.Helper()
	cmd = exec.Command(filepath.Join(dir, "hello"), args...)
	cmd.Dir = dir
	out = new(buffer)
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

// free returns an address at which nobody listens.
func free(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// The snippets, one after the other, are the life of a server.
func TestTheSnippetsAreGo(t *testing.T) {
	functions, body := "", ""
	for _, block := range blocks(read(t, "README.md"), "go") {
		switch {
		case strings.HasPrefix(block, "package main\n"):
		case strings.HasPrefix(block, "func "):
			functions += block
		case strings.Contains(block, "hub.Publish("):
			functions += "func publish(ctx context.Context, hub *backplane.Hub, name string, data []byte) (backplane.Receipt, error) {\n" +
				block + "return receipt, err\n}\n"
		default:
			body += block
			if strings.Contains(block, "backplane.New(") {
				body += "gw, err := gateway.New(hub, &gateway.Options{Authorize: authorize})\nif err != nil {\nreturn err\n}\n"
			}
		}
	}
	build(t, string(gofmt(t, `package main

import (
	"context"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/backplane/gateway"
	"github.com/holdfast-ws/holdfast/backplane/redisplane"
	"github.com/redis/go-redis/v9"
)

func main() { run(context.Background(), "standalone", "", nil) }

func userOf(*http.Request) string { return "" }

`+functions+"func run(ctx context.Context, kind, addr string, addrs []string) error {\n"+body+"return nil\n}\n")))
}

func gofmt(t *testing.T, text string) []byte {
	t.Helper()
	formatted, err := format.Source([]byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return formatted
}

// The server and the client, with a user who is away for a while.
func TestTheChatRunsOutsideOfTheModule(t *testing.T) {
	texts := programs(t)
	for i, most := range []int{25, 42} {
		if n := strings.Count(texts[i], "\n") - strings.Count(texts[i], "\n\n"); n > most {
			t.Errorf("program %d has %d lines, without empty ones; it is to be short", i, n)
		}
	}
	addr := free(t)
	deadline := time.Now().Add(time.Minute)
	prints := func(out *buffer, want string) {
		t.Helper()
		for out.String() != want {
			if time.Now().After(deadline) {
				t.Fatalf("the client prints %q, want %q", out.String(), want)
			}
			runtime.Gosched()
		}
	}
	run(t, build(t, texts[0]), addr)
	here := build(t, texts[1])
	there := t.TempDir()
	if err := os.Rename(filepath.Join(here, "hello"), filepath.Join(there, "hello")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(there, "hello"), filepath.Join(here, "hello")); err != nil {
		t.Fatal(err)
	}
	anna, in, out := run(t, here, addr)
	fmt.Fprintln(in, "one")
	prints(out, `{"text":"one"}`+"\n")
	for position := filepath.Join(here, "position"); ; runtime.Gosched() {
		if text, err := os.ReadFile(position); err == nil && len(text) > 0 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("no position is kept: %v", err)
		}
	}
	anna.Process.Kill()
	anna.Wait()
	_, in, out = run(t, there, addr)
	prints(out, `{"text":"one"}`+"\n") // one of the last ten
	fmt.Fprint(in, "two\nthree\n")
	prints(out, `{"text":"one"}`+"\n"+`{"text":"two"}`+"\n"+`{"text":"three"}`+"\n")
	_, _, out = run(t, here, addr)
	prints(out, `{"text":"two"}`+"\n"+`{"text":"three"}`+"\n")
}

// The page of ten lines, served by the server of 25.
func TestThePageRunsOutsideOfTheModule(t *testing.T) {
	pages := blocks(read(t, "README.md"), "html")
	if len(pages) != 1 || strings.Count(pages[0], "\n") > 11 {
		t.Fatalf("%d pages, or a long one", len(pages))
	}
	if strings.TrimSpace(pages[0]) != strings.TrimSpace(read(t, "examples/tabs/ten.html")) {
		t.Error("the page is not that of examples/tabs")
	}
	path := chromium.Find(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir, addr := build(t, programs(t)[0]), free(t)
	if err := os.Mkdir(filepath.Join(dir, "public"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "public", "index.html"), []byte(pages[0]), 0o666); err != nil {
		t.Fatal(err)
	}
	run(t, dir, addr)
	b, err := chromium.Start(path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	profile, err := b.Profile(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	var tabs []*chromium.Tab
	for range 3 {
		tab, err := profile.Open(ctx, "http://"+addr+"/", "")
		if err != nil {
			t.Fatal(err)
		}
		tabs = append(tabs, tab)
	}
	for i, tab := range tabs {
		if err := tab.Until(ctx, "box.onchange"); err != nil {
			t.Fatal(err, tab.Logs())
		}
		if err := tab.Eval(ctx, fmt.Sprintf("box.value = 'from %d'; box.onchange()", i), nil); err != nil {
			t.Fatal(err, tab.Logs())
		}
	}
	for _, tab := range tabs {
		if err := tab.Until(ctx, "[...list.children].map(l => l.textContent).sort().join() === 'from 0,from 1,from 2'"); err != nil {
			t.Fatal(err, tab.Logs())
		}
	}
}

// The program is given a server, and stopped the way its user would.
func TestTheProgramRunsOutsideOfTheModule(t *testing.T) {
	dir := build(t, programs(t)[2])
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
	for _, name := range []string{"README.md", "CHANGELOG.md", "examples/README.md", ".github/CONTRIBUTING.md"} {
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
