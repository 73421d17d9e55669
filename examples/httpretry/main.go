// Httpretry fetches a URL and tries again while the server is away or busy,
// waiting as long as its Retry-After header asks, with package backoff. (The
// header is read by internal/retryafter, which is short: copy it.)
//
//	go run ./examples/httpretry https://example.com/
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/holdfast-ws/holdfast/backoff"
	"github.com/holdfast-ws/holdfast/internal/retryafter"
)

func main() {
	log.SetFlags(log.Ltime)
	if len(os.Args) != 2 {
		log.Fatal("usage: httpretry URL")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	resp, err := get(ctx, &http.Client{Timeout: 30 * time.Second}, os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	log.Print(resp.Status)
	if _, err := io.Copy(os.Stdout, resp.Body); err != nil {
		log.Fatal(err)
	}
}

const attempts = 8

// get is client.Get with up to 8 attempts. It returns the first response that
// is not a request to come back later, or the last failure.
func get(ctx context.Context, client *http.Client, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if s := req.URL.Scheme; s != "http" && s != "https" || req.URL.Host == "" {
		return nil, fmt.Errorf("%q is not an http or https URL", url) // trying again would not help
	}
	for n := 0; ; n++ {
		resp, err := client.Do(req)
		var hint time.Duration
		if err == nil {
			switch resp.StatusCode {
			case http.StatusTooManyRequests, http.StatusServiceUnavailable:
				hint = retryafter.Parse(resp.Header.Get("Retry-After"), time.Now(), backoff.MaxHint)
			case http.StatusBadGateway, http.StatusGatewayTimeout:
			default:
				return resp, nil
			}
			resp.Body.Close()
			err = fmt.Errorf("get %s: %s", url, resp.Status)
		}
		if n == attempts-1 {
			return nil, fmt.Errorf("after %d attempts: %w", attempts, err)
		}
		wait := backoff.Policy{}.After(n, hint)
		log.Printf("%v; next attempt in %v", err, wait.Round(time.Millisecond))
		if cause := backoff.Sleep(ctx, wait); cause != nil {
			return nil, fmt.Errorf("%w, last failure: %w", cause, err)
		}
	}
}
