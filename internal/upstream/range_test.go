package upstream

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pier/e2e/faultproxy"
	"pier/internal/oci"
)

// A registry, or a CDN before it, that refuses a range that there is: the answer was empty content and no error, and a download
// that broke off could never be resumed.
func TestRangeRefused(t *testing.T) {
	s := newSite(t)
	size := int64(len(s.layer))
	noHead := faultproxy.Rule{Method: http.MethodHead, Fault: faultproxy.Status(403)}
	noSize := faultproxy.Rule{Fault: faultproxy.NoLength()}
	for name, rules := range map[string][]faultproxy.Rule{
		"size said":               {{Fault: faultproxy.RefuseRange(size)}},
		"size not said":           {{Fault: faultproxy.RefuseRange(-1)}},
		"wrong size said":         {{Fault: faultproxy.RefuseRange(1000)}},
		"no HEAD":                 {{Fault: faultproxy.RefuseRange(-1)}, noHead},
		"no HEAD, no size":        {{Fault: faultproxy.RefuseRange(-1)}, noHead, noSize},
		"no HEAD, no size but it": {{Fault: faultproxy.RefuseRange(size)}, noHead, noSize},
	} {
		t.Run(name, func(t *testing.T) {
			s.Set(rules...)
			r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
			for _, c := range []struct{ offset, length, want int64 }{
				{1000, -1, size - 1000}, {1000, 50, 50}, {0, 50, 50}, {size - 1, -1, 1}, {size - 1, 10, 1}, {size, -1, 0}, {size, 10, 0},
			} {
				b, _, err := read(t.Context(), r, s.blob, c.offset, c.length)
				if err != nil || !bytes.Equal(b, s.layer[c.offset:c.offset+c.want]) {
					t.Errorf("%d bytes from %d: got %d, error %v, want %d", c.length, c.offset, len(b), err, c.want)
				}
			}
			_, _, err := r.Open(t.Context(), s.blob, size+1, -1)
			wantErr(t, "past the end", err, oci.ErrRange)
		})
	}
}

// 416 without a range, or to a HEAD, says nothing about an offset.
func TestRangeRefusedUnasked(t *testing.T) {
	s := newSite(t)
	s.Set(faultproxy.Rule{Fault: faultproxy.Status(416)})
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	for _, offset := range []int64{0, 5} {
		_, _, err := r.Open(t.Context(), s.blob, offset, -1)
		wantErr(t, fmt.Sprint("Open at ", offset), err, oci.ErrUnavailable)
	}
	_, err := r.Resolve(t.Context(), s.tag)
	wantErr(t, "Resolve", err, oci.ErrUnavailable)
}

// Where ranges are ignored, all before the offset has to come first. However long that takes, it is no stall while it comes.
func TestSkipTakesLong(t *testing.T) {
	for name, refuse := range map[string]faultproxy.Fault{"ignored": faultproxy.IgnoreRange(), "refused": faultproxy.RefuseRange(-1)} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			get := func(f faultproxy.Fault) faultproxy.Rule { return faultproxy.Rule{Method: http.MethodGet, Fault: f} }
			s.Set(get(refuse), get(faultproxy.Drip(8_000, 40*time.Millisecond)))
			const timeout = 300 * time.Millisecond
			r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}, Timeout: timeout})
			start := time.Now()
			b, _, err := read(t.Context(), r, s.blob, 199_000, -1)
			if err != nil || !bytes.Equal(b, s.layer[199_000:]) || time.Since(start) < 2*timeout {
				t.Errorf("got %d bytes after %v, error %v", len(b), time.Since(start), err)
			}
			s.Set(get(refuse), get(faultproxy.HangAfter(1000)))
			_, _, err = r.Open(t.Context(), s.blob, 199_000, -1)
			wantErr(t, "stalled before the offset", err, errStalled)
			wantErr(t, "stalled before the offset", err, oci.ErrUnavailable)
		})
	}
}

// net/http takes headers of 10 MB, and memory many times that.
func TestHeadersBounded(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X", strings.Repeat("x", 9<<20))
	}))
	defer server.Close()
	r := newRegistries(t, Config{Upstreams: []Upstream{{Name: hostOf(server.URL), Scheme: "http"}}})
	_, err := r.Resolve(t.Context(), oci.Reference{Registry: hostOf(server.URL), Repository: "a", Tag: "x"})
	wantErr(t, "a header of 9 MiB", err, oci.ErrUnavailable)
}
