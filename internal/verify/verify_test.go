package verify

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWhatIsLeftOutIsReported(t *testing.T) {
	report := filepath.Join(t.TempDir(), "report")
	t.Setenv("HOLDFAST_REPORT", report)
	for _, on := range []string{"", "1"} {
		t.Setenv("HOLDFAST_VERIFY", on)
		ran := false
		t.Run("long"+on, func(t *testing.T) {
			Only(t, "takes long")
			ran = true
			Report(t, "%d seeds", 3)
		})
		if ran != (on != "") {
			t.Errorf("with HOLDFAST_VERIFY=%q: it ran: %v", on, ran)
		}
	}
	got, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	want := `TestWhatIsLeftOutIsReported/long: SKIPPED: takes long; make verify runs this
TestWhatIsLeftOutIsReported/long1: 3 seeds
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("the report (-want +got):\n%s", diff)
	}
}
