package wire

import (
	"testing"

	"github.com/holdfast-ws/holdfast/internal/mutant"
)

// The vectors alone find each of these bugs in the reader and the writer.
func TestBugsPlantedInTheCodeAreCaughtByTheVectors(t *testing.T) {
	mutant.Run(t, "^TestVectors$",
		mutant.Mutant{Why: "one level too many", File: "json.go",
			Old: "payloadDepth = 3", New: "payloadDepth = 2"},
		mutant.Mutant{Why: "escaped names are not understood", File: "json.go",
			Old: "			if escaped {\n				name =", New: "			if escaped && r.i < 0 {\n				name ="},
		mutant.Mutant{Why: "a control in a string", File: "json.go",
			Old: "for c := range 0x20 {", New: "for c := range 0x1f {"},
		mutant.Mutant{Why: "an escape that JSON does not have", File: "json.go",
			Old: `case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':`, New: `case '"', '\\', '/', 'b', 'f', 'n', 'r', 't', '\'':`},
		mutant.Mutant{Why: "NUL ends the text", File: "decode.go",
			Old: "(d.r.space() != 0 || d.r.i < len(b))", New: "d.r.space() != 0"},
		mutant.Mutant{Why: "numbers wrap around", File: "decode.go",
			Old: "if n > (max-uint64(c))/10 || uint64(c) > max {", New: "if n > max/10 {"},
		mutant.Mutant{Why: "a field of the former frame is kept", File: "decode.go",
			Old: "*f = Frame{From: f.From[:0], Late: f.Late[:0], Entries: f.Entries[:0]}",
			New: "*f = Frame{From: f.From[:0], Late: f.Late[:0], Entries: f.Entries[:0], Topic: f.Topic}"},
		mutant.Mutant{Why: "entries of two lists are added up", File: "decode.go",
			Old: "		f.Entries = f.Entries[:0]\n", New: ""},
		mutant.Mutant{Why: "null is a text", File: "decode.go",
			Old: "if kind != JSON && d.null() {", New: "if false {"},
		mutant.Mutant{Why: "members of the first type", File: "decode.go",
			Old: "		d.again = true\n", New: ""},
		mutant.Mutant{Why: "line ends in base64", File: "decode.go",
			Old: `err != nil || bytes.ContainsAny(text, "\r\n")`, New: `err != nil || bytes.ContainsAny(text, "\x00")`},
		mutant.Mutant{Why: "stray bits in base64", File: "decode.go",
			Old: "b64.StdEncoding.Strict()", New: "b64.StdEncoding"},
		mutant.Mutant{Why: "big numbers become negative", File: "wire.go",
			Old: "strconv.AppendUint(w.b, n, 10)", New: "strconv.AppendInt(w.b, int64(n), 10)"},
	)
}

// And these are found by the other tests.
func TestBugsPlantedAroundTheFramesAreCaught(t *testing.T) {
	mutant.Run(t, "^Test(Fit|Strings|Numbers|ABad|AFrame|AppendEntries)|^FuzzString$",
		mutant.Mutant{Why: "a bad byte swallows the next", File: "json.go",
			Old: "		i++\n		done = i\n", New: "		i++\n		if c >= utf8.RuneSelf && i < len(s) {\n			i++\n		}\n		done = i\n"},
		mutant.Mutant{Why: "JSON that is not UTF-8", File: "json.go",
			Old: "|| r.i < len(b) || !utf8.Valid(b)", New: "|| r.i < len(b) || !utf8.Valid(nil)"},
		mutant.Mutant{Why: "negative numbers are written", File: "wire.go",
			Old: "w.uint(name, uint64(max(n, 0)))", New: "w.uint(name, uint64(n))"},
		mutant.Mutant{Why: "a bad list is read on", File: "decode.go",
			Old: "if d.err != nil { // so that", New: "if n > max { // so that"},
		mutant.Mutant{Why: "old entries are kept alive", File: "decode.go",
			Old: "	clear(f.Entries)", New: "	clear(f.Entries[:0])"},
	)
}
