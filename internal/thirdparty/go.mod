module github.com/holdfast-ws/holdfast/internal/thirdparty

go 1.25.0

require (
	github.com/avast/retry-go/v5 v5.1.1
	github.com/cenkalti/backoff/v7 v7.0.3
	github.com/hashicorp/go-retryablehttp v0.7.8
	github.com/holdfast-ws/holdfast v0.0.0
	github.com/jpillora/backoff v1.1.0
	github.com/sethvargo/go-retry v0.5.0
)

require github.com/hashicorp/go-cleanhttp v0.5.2 // indirect

replace github.com/holdfast-ws/holdfast => ../..
