// Package readme holds the tests that keep the prose of the repository true:
// every program in README.md compiles and runs outside of this module, every
// command there is run by somebody, and every link to a file leads somewhere.
// Figures are checked where they are made, for example in examples/herd.
package readme
