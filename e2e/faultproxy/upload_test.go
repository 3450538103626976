package faultproxy

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"time"
)

// Bodies of requests are counted, flipped, cut and slowed down on their way.
func TestUploads(t *testing.T) {
	var got atomic.Pointer[[]byte] // that the other side last had of a whole body
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if b, err := io.ReadAll(r.Body); err == nil {
			got.Store(&b)
		}
	}))
	defer server.Close()
	target, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	p := Start(t, target)
	send := func() error {
		got.Store(new([]byte))
		resp, err := http.Post(p.URL, "application/octet-stream", bytes.NewReader(content))
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}

	if err := send(); err != nil || !bytes.Equal(*got.Load(), content) || p.Received() != int64(len(content)) {
		t.Errorf("%v: the other side got %d bytes, and %d were counted", err, len(*got.Load()), p.Received())
	}
	p.Set(Rule{Skip: 1, Times: 1, Fault: FlipUpload(40_000)})
	for i, flipped := range []bool{false, true, false} {
		want := bytes.Clone(content)
		if flipped {
			want[40_000] = ^want[40_000]
		}
		if err := send(); err != nil || !bytes.Equal(*got.Load(), want) {
			t.Errorf("request %d: %v: want a flipped byte: %t", i, err, flipped)
		}
	}
	p.Set(Rule{Fault: CutUpload(10_000)})
	if err := send(); err == nil || len(*got.Load()) > 0 {
		t.Errorf("a body that was cut: got error %v, and the other side %d bytes", err, len(*got.Load()))
	}
	p.Set(Rule{Fault: SlowUpload(320 << 10)})
	start := time.Now()
	if err := send(); err != nil || time.Since(start) < 120*time.Millisecond {
		t.Errorf("64 KiB at 320 KiB/s took %v, error %v", time.Since(start), err)
	}
	p.Set(Rule{Fault: Answer(http.StatusServiceUnavailable, "text/plain", "busy")})
	if resp, b, err := get(t, p, "/", ""); err != nil || resp.StatusCode != http.StatusServiceUnavailable || string(b) != "busy" {
		t.Errorf("got %v, %q, error %v", resp, b, err)
	}
}
