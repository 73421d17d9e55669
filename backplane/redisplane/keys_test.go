package redisplane

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/redistest"
	"github.com/holdfast-ws/holdfast/replay"
)

// slotOf is the hash slot of a key as the Redis Cluster specification has it: of what
// is between the first { and the } after it, unless that is empty. It shares no
// code with what is tested: it divides polynomials bit by bit, with 16 zeros after.
func slotOf(key string) int {
	if _, after, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(after, "}"); ok && tag != "" {
			key = tag
		}
	}
	rest := uint32(0)
	for _, b := range []byte(key + "\x00\x00") {
		for bit := 7; bit >= 0; bit-- {
			rest = rest<<1 | uint32(b>>bit&1)
			if rest&0x10000 != 0 {
				rest ^= 0x11021
			}
		}
	}
	return int(rest) % 16384
}

func TestSlotsAreThoseOfTheSpecification(t *testing.T) {
	if got := slot("123456789"); got != 0x31C3%16384 {
		t.Errorf("slot is %#x", got)
	}
	if got := slotOf("123456789"); got != 0x31C3%16384 {
		t.Errorf("the test's own slot is %#x", got)
	}
	for _, tag := range []string{"", "0", "a", "\xff\x00", "user1000", strings.Repeat("x", 300)} {
		if int(slot(tag)) != slotOf(tag) {
			t.Errorf("the slot of %q is %d, want %d", tag, slot(tag), slotOf(tag))
		}
	}
}

func TestRedisPutsTheKeysOfATopicIntoOneSlot(t *testing.T) {
	server := redistest.Start(t, "--cluster-enabled", "yes")
	for _, tag := range tags(8) {
		prefix := "app:{" + tag + "}"
		for _, key := range []string{
			headKey(prefix, "to{p}ic"), channelKey(prefix, 0, "to{p}ic"), probeKey(prefix, "node"),
			segmentKey(prefix, epochText(1), 7, "{}"), idKey(prefix, "}{", "{id}"),
		} {
			if got := must(t, server, "CLUSTER KEYSLOT "+key); got != strconv.Itoa(slotOf(key)) || got != strconv.Itoa(int(slot(tag))) {
				t.Errorf("%s is in slot %s, want %d and %d", key, got, slotOf(key), slot(tag))
			}
		}
	}
}

// Partitions of equal size on each node are what makes a cluster's load even.
func TestTagsAreSpreadEvenlyOverTheSlots(t *testing.T) {
	for _, n := range []int{1, 2, 3, 64, 100, 4096} {
		all := tags(n)
		if len(all) != n {
			t.Fatalf("tags(%d) returns %d", n, len(all))
		}
		for i, tag := range all {
			if tag == "" || strings.ContainsAny(tag, "{}") {
				t.Errorf("tags(%d)[%d] is %q", n, i, tag)
			}
			if got := slotOf(tag) * n / 16384; got != i {
				t.Errorf("tags(%d)[%d] is %q, which is in part %d", n, i, tag, got)
			}
		}
		// All processes of a service must have the same.
		if diff := cmp.Diff(all, tags(n)); diff != "" {
			t.Errorf("tags(%d) differs from call to call (-first +second):\n%s", n, diff)
		}
	}
}

// What topics are in has to be the same in every version: it is where their messages are.
func TestPartitionsOfTopicsStayWhatTheyAre(t *testing.T) {
	for topic, want := range map[string]int{"": 1, "a": 0, "chat:42": 35, "é": 6} {
		if got := partition(topic, 64); got != want {
			t.Errorf("partition(%q) is %d, want %d", topic, got, want)
		}
	}
	const n, topics = 64, 64_000
	var count [n]int
	for i := range topics {
		count[partition(fmt.Sprintf("room-%d", i), n)]++
	}
	for i, c := range count {
		if c < topics/n/2 || c > topics/n*2 {
			t.Errorf("partition %d has %d of %d topics", i, c, topics)
		}
	}
}

// A named thing, and what it is the name of.
type thing struct {
	kind, topic, id string
	epoch, first    uint64
}

func (x thing) name(prefix string) string {
	switch x.kind {
	case "head":
		return headKey(prefix, x.topic)
	case "channel":
		return channelKey(prefix, int(x.first), x.topic)
	case "probe":
		return probeKey(prefix, x.topic)
	case "segment":
		return segmentKey(prefix, epochText(x.epoch), x.first, x.topic)
	}
	return idKey(prefix, x.topic, x.id)
}

// all returns everything that can be named with these.
func all(topic, id string, epoch, first uint64) []thing {
	return []thing{
		{kind: "head", topic: topic}, {kind: "channel", topic: topic}, {kind: "probe", topic: topic},
		{kind: "segment", topic: topic, epoch: epoch, first: first}, {kind: "id", topic: topic, id: id},
	}
}

func FuzzKeys(f *testing.F) {
	f.Add("a.b", "c", uint64(1), uint64(1), "a", "b.c", uint64(1), uint64(1))
	f.Add("a", "bc", uint64(1), uint64(11), "ab", "c", uint64(0x11), uint64(1))
	f.Add("y", "", uint64(1), uint64(1), "meta.y", "", uint64(1), uint64(1))
	f.Add("1:a", "2:b", uint64(1), uint64(1), "a1", ":2b", uint64(1), uint64(12))
	f.Add("a:b", "c", uint64(1), uint64(2), "b", "a:c", uint64(1), uint64(2))
	f.Add("{x}", "}", uint64(0), uint64(0), "{y}", "{", uint64(0), uint64(0))
	f.Add("0000000000000000:t", "", uint64(0), uint64(0), "t", "", uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, topic1, id1 string, epoch1, first1 uint64, topic2, id2 string, epoch2, first2 uint64) {
		const prefix = "app:{17}"
		things := append(all(topic1, id1, epoch1, first1), all(topic2, id2, epoch2, first2)...)
		names := map[string]thing{}
		for _, x := range things {
			name := x.name(prefix)
			if other, ok := names[name]; ok && other != x {
				t.Errorf("%+v and %+v are both named %q", x, other, name)
			}
			names[name] = x
			if got := slotOf(name); got != int(slot("17")) {
				t.Errorf("%+v is in slot %d", x, got)
			}
		}
	})
}

// #23: pairs that were one name in other backplanes.
func TestWhatIsNamedAlikeElsewhereIsKeptApart(t *testing.T) {
	server := redistest.Start(t)
	p, _ := connect(t, server.Addr(), quick(entries))
	for i, m := range [][2]string{{"a.b", "c"}, {"a", "b.c"}, {"a", "bc"}, {"ab", "c"}, {"a:b", "c"}, {"a", ":bc"}, {"meta.y", "x"}, {"y", "meta.x"}} {
		r, err := p.Append(bounded(t), m[0], backplane.Message{ID: m[1], Data: []byte{byte(i)}})
		if err != nil || r.Outcome != backplane.Committed {
			t.Errorf("ID %q in %q: %v, %v", m[1], m[0], r, err)
		}
	}
	for topic, want := range map[string]string{"a.b": "\x00", "a": "\x01\x02\x05", "ab": "\x03", "a:b": "\x04", "meta.y": "\x06", "y": "\x07"} {
		got := ""
		for _, e := range readAll(t, p, topic) {
			got += string(e.Data)
		}
		if got != want {
			t.Errorf("topic %q has %q, want %q", topic, got, want)
		}
	}
}

// readAll returns all that is stored of a topic.
func readAll(t testing.TB, p *Plane, topic string) []replay.Entry {
	t.Helper()
	page, err := p.Read(bounded(t), topic, replay.Position{}, replay.Budget{Entries: -1, Bytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	return page.Entries
}

// sorted compares names whatever their order.
var sorted = cmpopts.SortSlices(func(a, b string) bool { return a < b })

// The scripts build names too, and the documentation of this package has them.
func TestTheScriptsBuildTheSameNames(t *testing.T) {
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), quick(16)) // one entry a segment
	ctx := context.Background()
	prefix := DefaultPrefix + "{0}"
	for _, topic := range []string{"a", "a.b", "a:b{c}", "%s%d", "é\x00\n", strings.Repeat("t", backplane.MaxTopic)} {
		if err := client.FlushAll(ctx).Err(); err != nil {
			t.Fatal(err)
		}
		want := []string{headKey(prefix, topic)}
		for i := range 3 {
			id := fmt.Sprintf("id:%d", i)
			r, err := p.Append(bounded(t), topic, backplane.Message{ID: id})
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, segmentKey(prefix, epochText(r.Pos.Epoch), r.Pos.Seq, topic), idKey(prefix, topic, id))
		}
		if n := len(readAll(t, p, topic)); n != 3 {
			t.Errorf("topic %q has %d entries", topic, n)
		}
		got, err := client.Keys(ctx, "*").Result()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, sorted); diff != "" {
			t.Errorf("topic %q has the keys (-want +got):\n%s", topic, diff)
		}
	}
	// The channel.
	s := newSpy()
	w := p.Watch(s)
	defer w.Close()
	if err := w.Add(bounded(t), "a:b{c}"); err != nil {
		t.Fatal(err)
	}
	got, err := client.PubSubChannels(ctx, "*").Result()
	want := []string{channelKey(prefix, 0, "a:b{c}"), probeKey(prefix, p.node)}
	if diff := cmp.Diff(want, got, sorted); err != nil || diff != "" {
		t.Errorf("%v, the channels are (-want +got):\n%s", err, diff)
	}
	if _, err := p.Append(bounded(t), "a:b{c}", backplane.Message{Data: []byte("hello")}); err != nil {
		t.Fatal(err)
	}
	until(t, "the entry is announced", func() bool { return s.has("a:b{c}", "hello") })
}

// Numbers of 15 digits and more are written with an exponent by Lua, unless it is
// told otherwise.
func TestLargeNumbersMakeTheSameNames(t *testing.T) {
	server := redistest.Start(t)
	p, client := connect(t, server.Addr(), quick(16))
	ctx := context.Background()
	const seq = 1<<53 - 3
	head := epochText(1<<63+1) + "\x00\x1f\xff\xff\xff\xff\xff\xfd" + "tag1" + "\x00\x00\x00\x00\x00\x00\x00\x00"
	if err := client.Set(ctx, headKey(DefaultPrefix+"{0}", "t"), head, 0).Err(); err != nil {
		t.Fatal(err)
	}
	r, err := p.Append(bounded(t), "t", backplane.Message{Data: []byte("x")})
	if err != nil || r.Pos.Seq != seq+1 || r.Pos.Epoch != 1<<63+1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if n := client.Exists(ctx, segmentKey(DefaultPrefix+"{0}", epochText(1<<63+1), seq+1, "t")).Val(); n != 1 {
		t.Errorf("there is no such segment: %q", client.Keys(ctx, "*").Val())
	}
	if all := readAll(t, p, "t"); len(all) != 1 || all[0].Pos != r.Pos {
		t.Errorf("%+v", all)
	}
}

// segmentKey is what the scripts build.
func segmentKey(prefix, epoch string, first uint64, topic string) string {
	return prefix + "s" + epoch + strconv.FormatUint(first, 10) + ":" + topic
}
