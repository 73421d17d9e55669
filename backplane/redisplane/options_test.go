package redisplane

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/internal/redistest"
	"github.com/holdfast-ws/holdfast/replay"
)

// patience is how long a test waits for what must happen. It bounds nothing.
const patience = 20 * time.Second

// until waits for something to become true.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain for this: %s", what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// bounded returns a context that ends a test that hangs.
func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// nowhere is a client of an address where nobody listens.
func nowhere(t testing.TB) *redis.Client {
	c := redis.NewClient(options("127.0.0.1:1"))
	t.Cleanup(func() { c.Close() })
	return c
}

// nowhereCluster is the same for a cluster.
func nowhereCluster(t testing.TB, o redis.ClusterOptions) *redis.ClusterClient {
	o.Addrs = []string{"127.0.0.1:1"}
	c := redis.NewClusterClient(&o)
	t.Cleanup(func() { c.Close() })
	return c
}

// field returns which field an InputError names, or says what else the error is.
func field(err error) string {
	var input *backplane.InputError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &input) && input.Reason != "":
		return input.Field
	}
	return "not an InputError: " + err.Error()
}

func TestTheDefaultsAreThoseOfTheDocumentation(t *testing.T) {
	for _, opts := range []*Options{nil, {}} {
		p, err := New(nowhere(t), opts)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		o := p.opts
		if o.Prefix != "holdfast:" || o.Identity != 24*time.Hour || o.IDWindow != 2*time.Minute || o.Partitions != 1 ||
			o.MaxAnnouncement != 16<<10 || o.Probe != 3*time.Second || o.Timeout != 5*time.Second {
			t.Errorf("the defaults are %+v", o)
		}
		entries, bytes, age, err := p.limits("t")
		if entries != replay.DefaultEntries || bytes != replay.DefaultBytes || age != replay.DefaultAge || err != nil {
			t.Errorf("the limits are %d, %d, %v, %v", entries, bytes, age, err)
		}
		if p.parts[0].prefix != "holdfast:{0}" || p.publish != "PUBLISH" {
			t.Errorf("the prefix is %q, and the command %s", p.parts[0].prefix, p.publish)
		}
	}
	p, err := New(nowhereCluster(t, redis.ClusterOptions{}), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if len(p.parts) != 64 || p.publish != "SPUBLISH" {
		t.Errorf("in a cluster there are %d partitions, and the command is %s", len(p.parts), p.publish)
	}
}

func TestOptionsOutOfBoundsAreRefusedByName(t *testing.T) {
	for _, test := range []struct {
		opts  Options
		field string // empty: allowed
	}{
		{Options{Prefix: "a{b"}, "Prefix"},
		{Options{Prefix: "}"}, "Prefix"},
		{Options{Prefix: "a:b.c*[é] "}, ""},
		{Options{Identity: 10*time.Minute - 1}, "Identity"},
		{Options{Identity: -1}, "Identity"},
		{Options{Identity: 10 * time.Minute}, ""},
		{Options{IDWindow: time.Second - 1}, "IDWindow"},
		{Options{IDWindow: -1}, "IDWindow"},
		{Options{IDWindow: time.Second}, ""},
		{Options{Partitions: -1}, "Partitions"},
		{Options{Partitions: 4097}, "Partitions"},
		{Options{Partitions: 1}, ""},
		{Options{Partitions: 4096}, ""},
		{Options{MaxAnnouncement: -1}, "MaxAnnouncement"},
		{Options{MaxAnnouncement: 1}, ""},
		{Options{Probe: 10*time.Millisecond - 1}, "Probe"},
		{Options{Probe: -1}, "Probe"},
		{Options{Probe: 10 * time.Millisecond}, ""},
		{Options{Timeout: 10*time.Millisecond - 1}, "Timeout"},
		{Options{Timeout: -1}, "Timeout"},
		{Options{Timeout: 10 * time.Millisecond}, ""},
	} {
		for _, client := range []redis.UniversalClient{nowhere(t), nowhereCluster(t, redis.ClusterOptions{})} {
			p, err := New(client, &test.opts)
			want := test.field
			if _, alone := client.(*redis.Client); alone && want == "Partitions" {
				want = "" // always 1
			}
			if got := field(err); got != want {
				t.Errorf("New(%T, %+v) refuses %q, want %q", client, test.opts, got, want)
			}
			if _, alone := client.(*redis.Client); alone && err == nil && len(p.parts) != 1 {
				t.Errorf("without a cluster there are %d partitions", len(p.parts))
			}
			if err == nil {
				p.Close()
			}
		}
	}
}

func TestClientsThatCannotBeUsedAreRefused(t *testing.T) {
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1"}})
	defer ring.Close()
	for name, client := range map[string]redis.UniversalClient{
		"nil":                 nil,
		"a nil Client":        (*redis.Client)(nil),
		"a nil ClusterClient": (*redis.ClusterClient)(nil),
		"a Ring":              ring, // it spreads the keys of one topic
		"ReadOnly":            nowhereCluster(t, redis.ClusterOptions{ReadOnly: true}),
		"RouteByLatency":      nowhereCluster(t, redis.ClusterOptions{RouteByLatency: true}),
		"RouteRandomly":       nowhereCluster(t, redis.ClusterOptions{RouteRandomly: true}),
	} {
		if _, err := New(client, nil); field(err) != "client" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Entries live for Age and a sixteenth and a second, and what tells how far the
// numbers have got must live longer.
func TestLimitsThatAreNotAllowedFailTheAppend(t *testing.T) {
	const identity = 10 * time.Minute
	longest := (identity - time.Second) / 17 * 16
	for _, test := range []struct {
		age   time.Duration
		field string
	}{
		{-1, "Limits"},
		{time.Millisecond - 1, "Limits"},
		{time.Millisecond, ""},
		{longest, ""},
		{longest + time.Second, "Limits"},
		{identity, "Limits"},
		{math.MaxInt64 / 17 * 16, "Limits"},
		{math.MaxInt64 - time.Second, "Limits"}, // a sum with it overflows
		{math.MaxInt64, "Limits"},
	} {
		p, err := New(nowhere(t), &Options{Identity: identity, Limits: func(topic string) replay.Limits {
			if topic != "t" {
				t.Errorf("Limits is asked for %q", topic)
			}
			return replay.Limits{Age: test.age}
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if _, _, _, err := p.limits("t"); field(err) != test.field {
			t.Errorf("an Age of %v: %v, want %q", test.age, err, test.field)
		}
		if test.field != "" {
			r, err := p.Append(context.Background(), "t", backplane.Message{})
			if r.Outcome != backplane.NotStored || field(err) != test.field {
				t.Errorf("an append with an Age of %v: %v, %v", test.age, r.Outcome, err)
			}
		}
	}
}

func TestNoLimitIsNotAllowed(t *testing.T) {
	for limits, want := range map[replay.Limits]string{
		{Entries: -1}:             "Limits",
		{Bytes: -1}:               "Limits",
		{Bytes: noLimit + 1}:      "Limits", // Lua has 53 bits, and multiplies
		{Bytes: noLimit}:          "",
		{Entries: 1, Bytes: 1}:    "",
		{Bytes: math.MaxInt64}:    "Limits",
		{Entries: math.MinInt}:    "Limits",
		{Age: replay.DefaultAge}:  "",
		{Age: -replay.DefaultAge}: "Limits",
		{Age: 25 * time.Hour}:     "Limits", // longer than Identity
	} {
		p, err := New(nowhere(t), keep(limits))
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if _, _, _, err := p.limits("t"); field(err) != want {
			t.Errorf("%+v: %v, want %q", limits, err, want)
		}
	}
}

// Some calls of the client notice neither context nor deadline.
func TestAClientWithoutTimeoutsIsRefused(t *testing.T) {
	for _, o := range []redis.Options{{ReadTimeout: -1}, {WriteTimeout: -1}, {ReadTimeout: -2}} {
		o.Addr = "127.0.0.1:1"
		for _, honours := range []bool{false, true} {
			want := "client"
			if o.ContextTimeoutEnabled = honours; honours {
				want = ""
			}
			alone := redis.NewClient(&o)
			defer alone.Close()
			for _, c := range []redis.UniversalClient{alone, nowhereCluster(t, redis.ClusterOptions{
				ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout, ContextTimeoutEnabled: honours,
			})} {
				p, err := New(c, nil)
				if field(err) != want {
					t.Errorf("%T with %v, %v, %t: %v", c, o.ReadTimeout, o.WriteTimeout, honours, err)
				}
				if err == nil {
					p.Close()
				}
			}
		}
	}
}

func TestAVersionThatIsTooOldIsToldApart(t *testing.T) {
	for _, test := range []struct {
		info           string
		alone, cluster bool // new enough
	}{
		{"# Server\r\nredis_version:6.0.16\r\nredis_git_sha1:0\r\n", false, false},
		{"redis_version:2.8.24\r\n", false, false},
		{"redis_version:6.2.0\r\n", true, false},
		{"redis_version:6.10.0\r\n", true, false}, // numbers, not text
		{"redis_version:7.0.0\r\n", true, true},
		{"redis_version:7.0.15", true, true},
		{"redis_version:8.2\r\n", true, true},
		{"redis_version:10.0.1\r\n", true, true},
		{"redis_version:7\r\n", false, false},
		{"redis_version:\r\n", false, false},
		{"redis_version:seven.two\r\n", false, false},
		{"redis_version:7.x.1\r\n", false, false},
		{"# Server\r\n", false, false},
		{"", false, false},
	} {
		for _, cluster := range []bool{false, true} {
			p := &Plane{cluster: cluster}
			want := test.alone && !cluster || test.cluster && cluster
			err := p.checkVersion(test.info)
			if (err == nil) != want {
				t.Errorf("%q, cluster %t: %v", test.info, cluster, err)
			}
			// Nobody is to wait for it to become newer.
			if errors.Is(err, backplane.ErrUnavailable) {
				t.Errorf("%q, cluster %t: %v", test.info, cluster, err)
			}
		}
	}
}

func TestPingTellsWhetherRedisIsThere(t *testing.T) {
	server := redistest.Start(t)
	p, _ := connect(t, server.Addr(), quick(entries))
	ctx := bounded(t)
	if err := p.Ping(ctx); err != nil {
		t.Errorf("Redis is there: %v", err)
	}
	done, cancel := context.WithCancelCause(ctx)
	cancel(errors.New("enough"))
	if err := p.Ping(done); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("with a context that is done: %v", err)
	}
	server.Kill()
	if err := p.Ping(ctx); !errors.Is(err, backplane.ErrUnavailable) {
		t.Errorf("Redis is gone: %v", err)
	}
	server.Restart(t)
	if err := p.Ping(ctx); err != nil {
		t.Errorf("Redis is back: %v", err)
	}
	server.Pause()
	defer server.Resume()
	short, cancel2 := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel2()
	if err := p.Ping(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Redis does not answer: %v", err)
	}
	server.Resume()
	p.Close()
	if err := p.Ping(ctx); !errors.Is(err, backplane.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
