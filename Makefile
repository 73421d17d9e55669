# Each target is one script or one command; see .github/CONTRIBUTING.md.

FUZZTIME ?= 30s
BENCH    ?= .

.PHONY: demo test verify test-engines bench bench-browser bench-peers fuzz lint

# What the project does, without a server to install: a chat on two servers, to be broken
# while one looks.
demo:
	go run ./examples/chat

# Installs what the tests need and the machine lacks, then runs them, but for those that
# take long.
test:
	.ci/test

# Those that take long: planted bugs, long simulations, comparisons with peers.
verify:
	.ci/verify

# What is tried in Chromium, in Firefox and WebKit, which are installed if they are missing.
test-engines:
	.ci/install firefox-esr WebKitWebDriver Xvfb
	go test ./client/browser -run OtherEngines -engines -timeout 20m -v

# Our own benchmarks, the main ones with their physical floor beside them.
bench:
	go test -run '^$$' -bench '$(BENCH)' -benchmem ./...

# Ten tabs of a real browser over one connection, beside ten with one each.
bench-browser:
	go test ./client/browser -run '^$$' -bench Tabs -benchtime 1x

# The same work done by other libraries, in one run. A module of its own.
bench-peers:
	cd internal/thirdparty && go run .

# Every fuzz target for FUZZTIME.
fuzz:
	.ci/fuzz $(FUZZTIME)

# Format, vet, staticcheck, go.mod, shell scripts, known vulnerabilities.
lint:
	.ci/lint
