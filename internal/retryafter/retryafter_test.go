package retryafter

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestParse(t *testing.T) {
	const (
		forever = math.MaxInt64
		most    = math.MaxInt64 / time.Second * time.Second
	)
	tests := []struct {
		reason, value string
		longest, want time.Duration
	}{
		{"seconds", "120", forever, 2 * time.Minute},
		{"leading zeros", "000120", forever, 2 * time.Minute},
		{"no header", "", forever, 0},
		{"zero", "0", forever, 0},
		{"negative", "-1", forever, 0},
		{"a sign", "+1", forever, 0},
		{"fractions are not allowed", "1.5", forever, 0},
		{"nor are spaces", " 1", forever, 0},
		{"nor exponents", "1e9", forever, 0},
		{"words", "soon", forever, 0},
		{"digits of another script", "١٢", forever, 0},
		{"a date", "Mon, 23 Nov 2026 12:01:00 GMT", forever, time.Minute},
		{"a date in the old form", "Monday, 23-Nov-26 12:01:00 GMT", forever, time.Minute},
		{"a date as C prints it", "Mon Nov 23 12:01:00 2026", forever, time.Minute},
		{"a date that has passed", "Mon, 23 Nov 2026 11:00:00 GMT", forever, 0},
		{"a date far away saturates", "Fri, 31 Dec 9999 23:59:59 GMT", forever, forever},
		{"a date far back saturates, too", "Mon, 01 Jan 0001 00:00:00 GMT", forever, 0},
		{"what overflows a naive product to -292 years", "9223372037", forever, most},
		{"what wraps to 0.29 s", "18446744074", forever, most},
		{"what does not fit an integer", strings.Repeat("9", 64), forever, most},
		{"longer than 64 bytes", strings.Repeat("9", 65), forever, 0},
		{"also if it means little", strings.Repeat("0", 64) + "1", forever, 0},
		{"ten years against an hour", "315360000", time.Hour, time.Hour},
		{"a date against an hour", "Fri, 31 Dec 9999 23:59:59 GMT", time.Hour, time.Hour},
		{"just the longest", "3600", time.Hour, time.Hour},
		{"less than the longest", "3599", time.Hour, time.Hour - time.Second},
		{"nothing is allowed", "5", 0, 0},
		{"less than nothing is", "Mon, 23 Nov 2026 12:01:00 GMT", -1, 0},
	}
	for _, tt := range tests {
		if got := Parse(tt.value, now, tt.longest); got != tt.want {
			t.Errorf("%s: Parse(%.70q, %v) = %v, want %v", tt.reason, tt.value, tt.longest, got, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "1", "9223372037", "18446744074", "Mon, 23 Nov 2026 12:01:00 GMT", "-1", "1e9", strings.Repeat("9", 65)} {
		f.Add(s, int64(time.Hour))
		f.Add(s, int64(math.MaxInt64))
		f.Add(s, int64(-1))
	}
	f.Fuzz(func(t *testing.T, value string, longest int64) {
		d := Parse(value, now, time.Duration(longest))
		if d < 0 || d > max(0, time.Duration(longest)) {
			t.Errorf("Parse(%q, %v) = %v", value, time.Duration(longest), d)
		}
		if len(value) > 64 && d != 0 {
			t.Errorf("%d bytes were believed", len(value))
		}
	})
}
