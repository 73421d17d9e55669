package backplanetest

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/leak"
	"github.com/holdfast-ws/holdfast/internal/torture"
	"github.com/holdfast-ws/holdfast/internal/verify"
	"github.com/holdfast-ws/holdfast/replay"
)

func TestMain(m *testing.M) { leak.Main(m) }

func TestMemoryConforms(t *testing.T) {
	Run(t, func(t testing.TB) *Harness {
		limits := replay.Limits{Entries: 64, Bytes: -1}
		m := backplane.NewMemory(&backplane.MemoryOptions{Limits: func(string) replay.Limits { return limits }})
		t.Cleanup(func() { m.Close() })
		return &Harness{Open: func() backplane.Backplane { return m }, Entries: 64}
	})
}

// storeHarness is a naive broker that can be hurt in every way.
func storeHarness(bug torture.Bug) func(testing.TB) *Harness {
	return func(t testing.TB) *Harness {
		s := torture.NewStore(64, bug)
		var nodes []*torture.Node
		set := func(link torture.Link) func() {
			for _, n := range nodes {
				n.Set(link)
			}
			return func() {
				for _, n := range nodes {
					n.Set(torture.Link{})
				}
			}
		}
		return &Harness{
			Open: func() backplane.Backplane {
				n := s.Open(torture.Link{})
				nodes = append(nodes, n)
				return n
			},
			Entries: 64,
			Restart: s.Restart, Flush: s.Flush, Save: s.Save, Evict: s.Evict, EvictEntries: s.Expire, Expire: s.Expire, Cut: s.Cut,
			HalfOpen: func() func() { return set(torture.Link{Hang: true}) },
			Refuse:   func() func() { return set(torture.Link{Down: true}) },
		}
	}
}

func TestANaiveBrokerConforms(t *testing.T) { Run(t, storeHarness("")) }

// A recorder is a test that may fail.
type recorder struct {
	testing.TB
	mu       sync.Mutex // guards all below
	failed   bool
	skipped  bool
	messages []string
	cleanups []func()
	over     bool
}

func (r *recorder) note(failed bool, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		r.TB.Errorf("said after the rule was over: %s", text) // a testing.T panics
	}
	r.failed = r.failed || failed
	r.messages = append(r.messages, text)
}

func (r *recorder) Helper()                         {}
func (r *recorder) Failed() bool                    { r.mu.Lock(); defer r.mu.Unlock(); return r.failed }
func (r *recorder) Logf(format string, args ...any) { r.note(false, fmt.Sprintf(format, args...)) }
func (r *recorder) Errorf(format string, args ...any) {
	r.note(true, fmt.Sprintf(format, args...))
}
func (r *recorder) Fatalf(format string, args ...any) {
	r.note(true, fmt.Sprintf(format, args...))
	runtime.Goexit()
}
func (r *recorder) Skipf(format string, args ...any) {
	r.mu.Lock()
	r.skipped = true
	r.mu.Unlock()
	runtime.Goexit()
}
func (r *recorder) Cleanup(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cleanups = append(r.cleanups, f)
}

// record runs one rule and returns how it ended.
func record(t *testing.T, r rule, start func(testing.TB) *Harness) *recorder {
	rec := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			for _, f := range slices.Backward(rec.cleanups) {
				f()
			}
		}()
		r.run(rec, start)
	}()
	<-done
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.over = true
	return rec
}

// shorten gives rules less time, where waiting is how they fail.
func shorten(t *testing.T, d time.Duration) {
	if os.Getenv("BACKPLANETEST_DEADLINE") != "" {
		return
	}
	old := deadline
	deadline = d
	t.Cleanup(func() { deadline = old })
}

// Each rule that a broker may break is caught by the case that is named for it.
func TestEachBrokenRuleIsCaughtByName(t *testing.T) {
	shorten(t, 3*time.Second)
	tests := []struct {
		bug  torture.Bug
		rule string
	}{
		{torture.NumberTwice, "Order"},
		{torture.Sparse, "Order"},
		{torture.BrokenLinks, "Order"},
		{torture.NoDedup, "IDs"},
		{torture.NoDedup, "ConcurrentIDs"},
		{torture.IDsAcrossTopics, "IDs"},
		{torture.IDsOutliveEpoch, "FlushIDs"},
		{torture.NoBound, "Bounds"},
		{torture.SilentGap, "Bounds"},
		{torture.SilentGap, "ResumeTrimmed"},
		{torture.FalseGap, "Bounds"},
		{torture.OffByOne, "Boundaries"},
		{torture.IgnoreEpoch, "Boundaries"},
		{torture.IgnoreEpoch, "Flush"},
		{torture.IgnoreTag, "Boundaries"},
		{torture.IgnoreTag, "RollbackResume"},
		{torture.IgnorePrev, "Boundaries"},
		{torture.AheadIsFine, "Boundaries"},
		{torture.AheadIsFine, "RollbackQuiet"},
		{torture.SameEpoch, "EmptyTopic"},
		{torture.NoEpochOnRead, "EmptyTopic"},
		{torture.IgnoreBudget, "Budget"},
		{torture.TailFromStart, "Budget"},
		{torture.SharedNames, "Topics"},
		{torture.FalseHints, "WatchConfirmed"},
		{torture.EarlyConfirm, "WatchConfirmed"},
		{torture.DeafAfterAdd, "WatchConfirmed"},
		{torture.NoInterrupted, "Interrupted"},
		{torture.EarlyInterrupt, "Interrupted"},
		{torture.CallsAfterClose, "WatchClose"},
		{torture.OpenAfterClose, "Close"},
		{torture.DeafToContext, "Context"},
		{torture.HeadsWrong, "Heads"},
		{torture.LateEntry, "ReadNeverGoesBack"},
		{torture.EvictInvents, "Evict"},
		{torture.RestartForgets, "Restart"},
	}
	every := 1
	if !verify.On() {
		every = 4
	}
	verify.Report(t, "one in %d of %d broken brokers is tried", every, len(tests))
	for n := 0; n < len(tests); n += every {
		tt := tests[n]
		t.Run(strings.ReplaceAll(string(tt.bug), " ", "_")+"/"+tt.rule, func(t *testing.T) {
			i := slices.IndexFunc(rules, func(r rule) bool { return r.name == tt.rule })
			if rec := record(t, rules[i], storeHarness(tt.bug)); !rec.Failed() {
				t.Errorf("%s passes although %s", tt.rule, tt.bug)
			} else if !strings.Contains(strings.Join(rec.messages, "\n"), rules[i].why) {
				t.Errorf("the failure does not explain the rule: %q", rec.messages)
			}
		})
	}
}

// A rule that fails waits for what it has started: a goroutine that reports an error
// later would do so to a test that has ended, for which testing panics.
func TestARuleThatFailsLeavesNothingRunning(t *testing.T) {
	i := slices.IndexFunc(rules, func(r rule) bool { return r.name == "ReadNeverGoesBack" })
	for range 50 {
		if !record(t, rules[i], storeHarness(torture.LateEntry)).failed {
			t.Fatal("the rule passes")
		}
	}
}

// What a harness cannot do is skipped by name, and not passed over.
func TestUnsupportedFaultsAreSkipped(t *testing.T) {
	n := 0
	for _, r := range faultRules {
		if r.needs == nil {
			continue
		}
		n++
		rec := record(t, r, func(t testing.TB) *Harness {
			h := storeHarness("")(t)
			return &Harness{Open: h.Open, Entries: h.Entries}
		})
		if !rec.skipped || rec.failed {
			t.Errorf("%s: skipped %t, failed %t", r.name, rec.skipped, rec.failed)
		}
	}
	if n < 10 {
		t.Errorf("only %d rules need a fault", n)
	}
}

func TestABadHarnessIsRefused(t *testing.T) {
	for _, h := range []*Harness{{}, {Entries: 64}, {Open: func() backplane.Backplane { return nil }, Entries: 8}} {
		if rec := record(t, rules[0], func(testing.TB) *Harness { return h }); !rec.failed {
			t.Errorf("%+v is taken", h)
		}
	}
}
