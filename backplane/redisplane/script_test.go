package redisplane

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/holdfast-ws/holdfast/internal/redistest"
	"github.com/holdfast-ws/holdfast/replay"
)

// setBegun says of a segment, counted from 0, that it was begun at a time.
func setBegun(t testing.TB, c *redis.Client, topic string, segment int, at time.Time) {
	t.Helper()
	text := binary.BigEndian.AppendUint64(nil, uint64(at.UnixMilli()))
	offset := int64(headSize + segment*recordSize + 20)
	if err := c.SetRange(bounded(t), headKey(DefaultPrefix+"{0}", topic), offset, string(text)).Err(); err != nil {
		t.Fatal(err)
	}
}

// An entry may be the last that its segment gets, a sixteenth of the age after the first.
func TestASegmentLivesLongerThanTheLastOfItsEntries(t *testing.T) {
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), keep(replay.Limits{Age: time.Hour}))
	put(t, p, "t", "", "x")
	for _, key := range keysOf(t, client, "s") {
		least := time.Hour * 17 / 16
		if ttl := client.PTTL(bounded(t), key).Val(); ttl < least || ttl > least+time.Second {
			t.Errorf("%q lives for %v", key, ttl)
		}
	}
}

// The entries of a segment are from before the next was begun. So it is too old when that
// was begun too long ago, and not when it was begun itself too long ago.
func TestASegmentIsDroppedWhenTheNextOneIsTooOld(t *testing.T) {
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), keep(replay.Limits{Entries: 32, Bytes: plenty, Age: time.Hour})) // two entries a segment
	for range 5 {
		put(t, p, "t", "", "x")
	}
	now := time.Now()
	setBegun(t, client, "t", 0, now.Add(-3*time.Hour))
	put(t, p, "t", "", "x")
	if n := len(readAll(t, p, "t")); n != 6 {
		t.Errorf("a segment whose last entry may be new was dropped: there are %d entries", n)
	}
	setBegun(t, client, "t", 1, now.Add(-2*time.Hour))
	put(t, p, "t", "", "x")
	if n := len(readAll(t, p, "t")); n != 5 {
		t.Errorf("a segment whose last entry is too old was not dropped: there are %d entries", n)
	}
}

// Redis counts a segment's time to live down however its clock is set. One that seems to
// begin in the future would be written to until it has expired.
func TestAClockThatGoesBackBeginsASegment(t *testing.T) {
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), keep(replay.Limits{Entries: 1024, Bytes: plenty, Age: time.Hour}))
	put(t, p, "t", "", "x")
	put(t, p, "t", "", "x")
	if n := len(keysOf(t, client, "s")); n != 1 {
		t.Fatalf("there are %d segments", n)
	}
	setBegun(t, client, "t", 0, time.Now().Add(time.Hour))
	put(t, p, "t", "", "x")
	if n := len(keysOf(t, client, "s")); n != 2 {
		t.Errorf("there are %d segments", n)
	}
	if n := len(readAll(t, p, "t")); n != 3 {
		t.Errorf("there are %d entries", n)
	}
}

// A segment may have another length than the head says: a script was aborted after it had
// written to it, or somebody has put an older one in its place.
func TestASegmentIsWhatTheHeadSays(t *testing.T) {
	server := redistest.Start(t)
	ctx := context.Background()
	p, client := connect(t, server.Addr(), keep(replay.Limits{Entries: 32, Bytes: plenty})) // two entries a segment
	var at []replay.Position
	for _, text := range []string{"a", "b", "c", "d", "e"} {
		at = append(at, put(t, p, "t", "", text))
	}
	segment := func(first uint64) string {
		return segmentKey(DefaultPrefix+"{0}", epochText(at[0].Epoch), first, "t")
	}
	// An entry that nobody has been told of.
	stored := client.Get(ctx, segment(5)).Val()
	entry := binary.BigEndian.AppendUint64(nil, 6)
	entry = append(entry, stored[8:]...)
	client.Append(ctx, segment(5), string(entry))
	if got, gap := read(t, p, "t", at[2]); got != "d e" || gap != nil {
		t.Errorf("with bytes too many there is %q, %v", got, gap)
	}
	if got, _ := read(t, p, "t", replay.Position{}); got != "a b c d e" {
		t.Errorf("with bytes too many the newest are %q", got)
	}
	if next := put(t, p, "t", "", "f"); next.Seq != 6 {
		t.Errorf("the next is %v", next)
	}
	if got, gap := read(t, p, "t", at[2]); got != "d e f" || gap != nil {
		t.Errorf("after the next there is %q, %v", got, gap)
	}
	// One entry less: nothing says which.
	half := client.Get(ctx, segment(3)).Val()
	client.Set(ctx, segment(3), half[:len(half)/2], redis.KeepTTL)
	if got, _ := read(t, p, "t", replay.Position{}); got != "e f" {
		t.Errorf("with bytes too few the newest are %q", got)
	}
	if got, gap := read(t, p, "t", at[1]); gap == nil || gap.Reason != replay.ReasonTrimmed || gap.Oldest != at[3] {
		t.Errorf("with bytes too few there is %q, %v", got, gap)
	}
}

// What a Read returns fits together, or it is an error: somebody has changed a segment.
func TestEntriesThatDoNotFollowEachOtherAreNotReturned(t *testing.T) {
	server := redistest.Start(t)
	ctx := context.Background()
	for _, test := range []struct {
		what   string
		offset int64 // in the second entry
	}{{"the number", 7}, {"the tag of the one before", 12}} {
		must(t, server, "FLUSHALL")
		p, client := connect(t, server.Addr(), quick(1024))
		first := put(t, p, "t", "", "a")
		put(t, p, "t", "", "b")
		key := keysOf(t, client, "s")[0]
		second := client.StrLen(ctx, key).Val() / 2
		old := client.GetRange(ctx, key, second+test.offset, second+test.offset).Val()
		client.SetRange(ctx, key, second+test.offset, string([]byte{old[0] + 1}))
		for _, after := range []replay.Position{{}, {Epoch: first.Epoch}} {
			page, err := p.Read(bounded(t), "t", after, replay.Budget{})
			if err == nil {
				t.Errorf("%s is another, and after %v it returns %q", test.what, after, texts(page.Entries))
			}
		}
	}
}
