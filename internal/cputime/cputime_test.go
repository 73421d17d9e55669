package cputime

import "testing"

func TestUsedGrowsWithWork(t *testing.T) {
	before := Used()
	n := uint64(1)
	for Used() == before { // the system may count in steps of milliseconds
		for range 1 << 16 {
			n = n*6364136223846793005 + 1
		}
	}
	if after := Used(); after < before {
		t.Errorf("it went back from %v to %v", before, after)
	}
	if n == 0 {
		t.Error("an odd number cannot become 0")
	}
}
