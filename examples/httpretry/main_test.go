package main

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard)
	m.Run()
}

// answer is one response of a scripted server; status 0 is a broken connection.
type answer struct {
	status     int
	retryAfter string
}

// script is a transport that answers from a list and records when it was asked.
type script struct {
	answers []answer
	start   time.Time
	asked   []time.Duration
}

func (s *script) RoundTrip(req *http.Request) (*http.Response, error) {
	s.asked = append(s.asked, time.Since(s.start))
	a := s.answers[min(len(s.asked), len(s.answers))-1]
	if a.status == 0 {
		return nil, errors.New("connection refused")
	}
	rec := httptest.NewRecorder()
	if a.retryAfter != "" {
		rec.Header().Set("Retry-After", a.retryAfter)
	}
	rec.WriteHeader(a.status)
	resp := rec.Result()
	resp.Request = req
	return resp, nil
}

func TestGetComesBackWhenTheServerAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		s := &script{start: start, answers: []answer{
			{status: 0},
			{status: 503, retryAfter: "10"},
			{status: 429, retryAfter: start.Add(2 * time.Minute).UTC().Format(http.TimeFormat)},
			{status: 502},
			{status: 200},
		}}
		resp, err := get(t.Context(), &http.Client{Transport: s}, "http://example.test/")
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		if len(s.asked) != 5 {
			t.Fatalf("asked at %v, want 5 attempts", s.asked)
		}
		waits := [5]time.Duration{}
		for i := 1; i < 5; i++ {
			waits[i] = s.asked[i] - s.asked[i-1]
		}
		if waits[1] > 500*time.Millisecond {
			t.Errorf("waited %v after a refused connection, want up to 500ms", waits[1])
		}
		if waits[2] < 10*time.Second || waits[2] > 20*time.Second {
			t.Errorf("waited %v after Retry-After: 10", waits[2])
		}
		if s.asked[3] < 2*time.Minute || waits[3] > 2*time.Minute+30*time.Second {
			t.Errorf("asked %v after the start, told to come two minutes after it", s.asked[3])
		}
		if waits[4] > 4*time.Second {
			t.Errorf("waited %v after a 502, want up to 4s", waits[4])
		}
	})
}

func TestGetGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{start: time.Now(), answers: []answer{{status: 503}}}
		_, err := get(t.Context(), &http.Client{Transport: s}, "http://example.test/")
		if err == nil || !strings.Contains(err.Error(), "503") || len(s.asked) != attempts {
			t.Errorf("%d attempts, error %v, want %d and the last status", len(s.asked), err, attempts)
		}
	})
}

func TestGetDoesNotRetryWhatIsFinal(t *testing.T) {
	s := &script{start: time.Now(), answers: []answer{{status: 404}}}
	resp, err := get(t.Context(), &http.Client{Transport: s}, "http://example.test/")
	if err != nil || resp.StatusCode != 404 || len(s.asked) != 1 {
		t.Error(resp, err, s.asked)
	}
	for _, url := range []string{":", "example.test", "ftp://example.test/", "http:///path", ""} {
		if _, err := get(t.Context(), &http.Client{Transport: s}, url); err == nil || len(s.asked) != 1 {
			t.Errorf("get %q: %v, %d attempts", url, err, len(s.asked)-1)
		}
	}
}

func TestGetEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s := &script{start: time.Now(), answers: []answer{{status: 503, retryAfter: "3600"}}}
		_, err := get(ctx, &http.Client{Transport: s}, "http://example.test/")
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(s.start) != time.Minute {
			t.Errorf("error %v after %v, want the deadline's after 1m", err, time.Since(s.start))
		}
	})
}

func TestGetFromARealServerThatIsBusyAtFirst(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked == 1 {
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "hello")
	}))
	defer server.Close()
	resp, err := get(t.Context(), server.Client(), server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); string(body) != "hello" || err != nil {
		t.Errorf("%q, %v", body, err)
	}
}
