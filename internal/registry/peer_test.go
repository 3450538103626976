package registry

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// Over its slots a door answers at once, so that whoever asks finds another node; what moves no content needs no slot.
func TestSlots(t *testing.T) {
	const slots = 2
	set := metrics.NewSet()
	arrived := make(chan struct{})
	src := &fixed{
		desc: oci.Descriptor{Size: 100, Digest: ocitest.Absent, MediaType: "x/y", Missing: 1},
		body: func() io.Reader { return &late{arrived, strings.NewReader(strings.Repeat("x", 100))} },
	}
	h := newHandler(Config{Source: src, Door: "peer", Slots: slots, Metrics: set})
	url := serve(t, h)

	var under []*http.Response
	for range slots {
		resp, err := http.Get(url + blobPath) // returns when the header is there, since content is in flight
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		under = append(under, resp)
	}
	for _, path := range []string{blobPath, "/v2/app/manifests/" + string(ocitest.Absent)} {
		r := ask(t, "GET", url+path)
		if r.StatusCode != 503 || r.Header.Get("Retry-After") != "1" || r.code(t) != "UNAVAILABLE" {
			t.Errorf("GET %s: %d, %v, want 503 with Retry-After: 1", path, r.StatusCode, r.Header)
		}
		if r := ask(t, "HEAD", url+path); r.StatusCode != 200 {
			t.Errorf("HEAD %s: %d, want 200", path, r.StatusCode)
		}
	}
	if r := ask(t, "GET", url+"/api/v1/digests/"+string(ocitest.Absent)); r.StatusCode != 200 {
		t.Errorf("the API: %d, want 200", r.StatusCode)
	}
	if n := h.metrics.refused.Get(); n != 2 {
		t.Errorf("pier_refused_total is %d, want 2", n)
	}

	close(arrived)
	for _, resp := range under {
		if b, err := io.ReadAll(resp.Body); err != nil || len(b) != 100 {
			t.Errorf("under the slots: %d bytes, %v", len(b), err)
		}
	}
	for range slots { // each waits until its slot is free
		h.slots <- struct{}{}
	}
}

// late is content that can be read once it arrived.
type late struct {
	arrived <-chan struct{}
	content io.Reader
}

func (l *late) Read(p []byte) (int, error) {
	<-l.arrived
	return l.content.Read(p)
}

// A slot is free again whatever became of the request.
func TestSlotsAfterErrors(t *testing.T) {
	src := &fixed{err: oci.ErrNotFound}
	h := newHandler(Config{Source: src, Slots: 1})
	url := serve(t, h)
	for _, broken := range []io.Reader{nil, errReader{errSick}, io.MultiReader(strings.NewReader("x"), errReader{errSick})} {
		if broken != nil {
			src.err, src.body = nil, func() io.Reader { return broken }
			src.desc = oci.Descriptor{Size: 100}
		}
		if r := ask(t, "GET", url+blobPath); r.StatusCode == http.StatusServiceUnavailable {
			t.Fatal("the slot of the request before is still taken")
		}
	}
}

func TestMissing(t *testing.T) {
	body := func() io.Reader { return strings.NewReader(strings.Repeat("x", 100)) }
	src := &fixed{desc: oci.Descriptor{Size: 100, Missing: 70, MediaType: "x/y"}, body: body}
	url := serve(t, New(Config{Source: src}))
	for _, path := range []string{blobPath, "/v2/app/manifests/" + string(ocitest.Absent)} {
		for _, method := range []string{"GET", "HEAD"} {
			for missing, want := range map[int64]string{70: "70", 0: ""} {
				src.desc.Missing = missing
				if got := ask(t, method, url+path).Header.Get("Pier-Missing"); got != want {
					t.Errorf("%s %s with %d bytes missing: Pier-Missing %q, want %q", method, path, missing, got, want)
				}
			}
		}
	}
}

// Only a container runtime, which comes with ?ns=, goes to the registry itself; and behind the peer door there is none.
func TestFallback(t *testing.T) {
	for _, tc := range []struct {
		path string
		pass bool
		want bool
	}{
		{blobPath + "?ns=registry.test", true, true},
		{"/v2/app/manifests/v1?ns=registry.test", true, true},
		{blobPath + "?ns=registry.test", false, false},
		{blobPath, true, false},
		{blobPath + "?ns=", true, false},
		{"/v2/registry.test/app/manifests/v1", true, false},
	} {
		src := &fallback{}
		New(Config{Source: src, PassAuthorization: tc.pass}).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", tc.path, nil))
		if src.has != tc.want {
			t.Errorf("%s, PassAuthorization %t: HasFallback %t, want %t", tc.path, tc.pass, src.has, tc.want)
		}
	}
}

// fallback is a Source that notes whether who asks has a way of its own, and has nothing.
type fallback struct{ has bool }

func (s *fallback) Resolve(ctx context.Context, _ oci.Reference) (oci.Descriptor, error) {
	s.has = oci.HasFallback(ctx)
	return oci.Descriptor{}, oci.ErrNotFound
}

func (s *fallback) Open(ctx context.Context, ref oci.Reference, _, _ int64) (io.ReadCloser, oci.Descriptor, error) {
	_, err := s.Resolve(ctx, ref)
	return nil, oci.Descriptor{}, err
}

// Content from a peer did not come from an upstream, but had to be fetched all the same.
func TestContentFromPeerIsCounted(t *testing.T) {
	set := metrics.NewSet()
	c := newContent()
	c.Name = "peer"
	url := serve(t, New(Config{Source: c, Door: "node", Metrics: set}))
	ask(t, "GET", url+"/v2/app/blobs/"+string(c.blob))
	// A request is counted once the client has its answer.
	var out bytes.Buffer
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end) && !strings.Contains(out.String(), `kind="blob",method="GET",code="200"} 1`); time.Sleep(time.Millisecond) {
		out.Reset()
		set.WritePrometheus(&out)
	}
	for _, want := range []string{
		`pier_served_bytes_total{door="node",source="peer"} 300000`,
		`pier_served_bytes_total{door="node",source="upstream"} 0`,
		`pier_content_total{door="node",result="hit"} 0`,
		`pier_content_total{door="node",result="miss"} 1`,
		`pier_refused_total{door="node"} 0`,
	} {
		if !strings.Contains(out.String(), want+"\n") {
			t.Errorf("metrics have no line %s:\n%s", want, out.String())
		}
	}
}

// A blob comes in many parts: a line for each would be most of the log. What went wrong stays in it.
func TestPartsAreLoggedAtDebug(t *testing.T) {
	c := newContent()
	blob := "/v2/app/blobs/" + string(c.blob)
	for _, tc := range []struct {
		src      oci.Source
		path     string
		rng      string
		loggedAt slog.Level
	}{
		{c, blob, "", slog.LevelInfo},
		{c, blob, "bytes=0-", slog.LevelInfo},
		{c, blob, "bytes=0-99", slog.LevelDebug},
		{c, blob, "bytes=100-199", slog.LevelDebug},
		{c, blob, "bytes=100-", slog.LevelDebug},
		{c, blob, "bytes=-100", slog.LevelDebug},
		{c, blob, "bytes=0-1,3-4", slog.LevelInfo}, // ignored: all of it is sent
		{c, blobPath, "bytes=100-199", slog.LevelDebug},
		{c, "/v2/app/manifests/v1", "bytes=100-199", slog.LevelInfo},
		{&fixed{err: errSick}, blob, "bytes=100-199", slog.LevelInfo},
	} {
		var out bytes.Buffer
		h := New(Config{Source: tc.src, Log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		r := httptest.NewRequest("GET", tc.path, nil)
		r.Header.Set("Range", tc.rng)
		h.ServeHTTP(httptest.NewRecorder(), r)
		if !strings.Contains(out.String(), "level="+tc.loggedAt.String()) || strings.Count(out.String(), "\n") != 1 {
			t.Errorf("%s %s: logged %q, want one line at %s", tc.path, tc.rng, out.String(), tc.loggedAt)
		}
	}
}
