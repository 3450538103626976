package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/opencontainers/go-digest"

	"pier/e2e/faultproxy"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

func TestConformance(t *testing.T) {
	ca := newAuthority(t)
	ocitest.TestSource(t, func(t *testing.T, content *ocitest.Memory, ref oci.Reference) oci.Source {
		// The suite's registry has no port, and a test cannot have port 443.
		host := ca.serveTLS(t, "registry.test", &registry{Memory: content, name: ref.Registry}, nil)
		return newRegistries(t, Config{
			Upstreams: []Upstream{{Name: host, TLS: TLS{CA: ca.file}}},
			resolver:  localNames(t),
		}).standIn(ref.Registry, host)
	})
}

// standIn has one registry be dialled as another.
func (r *Registries) standIn(name, host string) *Registries {
	d := r.current.Load()
	e := *d.listed[host]
	e.name = name
	d.listed[name] = &e
	return r
}

func hostOf(url string) string {
	_, host, _ := strings.Cut(url, "://")
	return host
}

// Registries that leave things out, or say them wrong, are understood all the same.
func TestResolvePoorAnswers(t *testing.T) {
	for name, rules := range map[string][]faultproxy.Rule{
		"no digest header":   {{Fault: faultproxy.NoDigest()}},
		"no length":          {{Fault: faultproxy.NoLength()}},
		"HEAD not supported": {{Method: http.MethodHead, Fault: faultproxy.Status(http.StatusMethodNotAllowed)}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.Set(rules...)
			r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
			for _, ref := range []oci.Reference{s.tag, s.manifest} {
				desc, err := r.Resolve(t.Context(), ref)
				if err != nil || desc.Digest != s.manifest.Digest || desc.Size <= 0 || desc.MediaType != "application/vnd.oci.image.manifest.v1+json" {
					t.Errorf("Resolve(%s) = %+v, error %v", ref, desc, err)
				}
			}
			if desc, err := r.Resolve(t.Context(), s.blob); err != nil || desc.Size != int64(len(s.layer)) {
				t.Errorf("Resolve(%s) = %+v, error %v", s.blob, desc, err)
			}
			if b, desc, err := read(t.Context(), r, s.manifest, 5, 10); err != nil || len(b) != 10 || desc.Size <= 10 {
				t.Errorf("part of a manifest: got %d bytes of %+v, error %v", len(b), desc, err)
			}
		})
	}
}

// A digest that a registry made up must never reach the tag's callers.
func TestResolveMalformedDigest(t *testing.T) {
	s := newSite(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.registry.ServeHTTP(headerWriter{w, "Docker-Content-Digest", "sha256:../../etc"}, r)
	}))
	defer server.Close()
	r := newRegistries(t, Config{Upstreams: []Upstream{{Name: hostOf(server.URL), Scheme: "http"}}})
	ref := s.tag
	ref.Registry = hostOf(server.URL)
	if desc, err := r.Resolve(t.Context(), ref); err != nil || desc.Digest != s.manifest.Digest {
		t.Errorf("got %+v, error %v, want digest %s", desc, err, s.manifest.Digest)
	}
}

// headerWriter overwrites one header.
type headerWriter struct {
	http.ResponseWriter
	name, value string
}

func (w headerWriter) WriteHeader(status int) {
	w.Header().Set(w.name, w.value)
	w.ResponseWriter.WriteHeader(status)
}

func (w headerWriter) Write(p []byte) (int, error) {
	w.Header().Set(w.name, w.value)
	return w.ResponseWriter.Write(p)
}

// A manifest resolved by its digest with a GET is checked, for its headers were not enough to go by.
func TestResolveOtherBytes(t *testing.T) {
	s := newSite(t)
	s.Set(faultproxy.Rule{Method: "HEAD", Fault: faultproxy.Status(405)}, faultproxy.Rule{Method: "GET", Fault: faultproxy.Flip(3)})
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	_, err := r.Resolve(t.Context(), s.manifest)
	wantErr(t, "flipped manifest", err, oci.ErrDigestMismatch)
}

func TestManifestTooLarge(t *testing.T) {
	s := newSite(t)
	big := s.registry.Add("application/vnd.oci.image.manifest.v1+json", bytes.Repeat([]byte(" "), oci.MaxManifest+1))
	ref := s.manifest.WithDigest(big.Digest)
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	for name, rules := range map[string][]faultproxy.Rule{"said": nil, "not said": {{Fault: faultproxy.NoLength()}}} {
		s.Set(rules...)
		_, err := r.Resolve(t.Context(), ref)
		wantErr(t, name+": Resolve", err, oci.ErrTooLarge)
		_, _, err = r.Open(t.Context(), ref, 0, -1)
		wantErr(t, name+": Open", err, oci.ErrTooLarge)
	}
}

func TestRangeIgnored(t *testing.T) {
	s := newSite(t)
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	for _, extra := range [][]faultproxy.Rule{nil, {{Method: "GET", Fault: faultproxy.NoLength()}}, {{Fault: faultproxy.NoLength()}, {Method: "HEAD", Fault: faultproxy.Status(405)}}} {
		s.Set(append(extra, faultproxy.Rule{Fault: faultproxy.IgnoreRange()})...)
		for _, length := range []int64{-1, 100} {
			b, desc, err := read(t.Context(), r, s.blob, 1000, length)
			want := s.layer[1000:]
			if length >= 0 {
				want = want[:length]
			}
			if err != nil || !bytes.Equal(b, want) {
				t.Errorf("got %d bytes, error %v, want %d", len(b), err, len(want))
			}
			if noSize := len(extra) == 2; desc.Size != int64(len(s.layer)) && (desc.Size != -1 || !noSize) {
				t.Errorf("got size %d", desc.Size)
			}
		}
		_, _, err := r.Open(t.Context(), s.blob, int64(len(s.layer))+1, -1)
		wantErr(t, "past the end", err, oci.ErrRange)
	}
}

// A part that is not the one asked for would be put in the wrong place.
func TestWrongRange(t *testing.T) {
	s := newSite(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("Range", "bytes=5-")
		s.registry.ServeHTTP(w, r)
	}))
	defer server.Close()
	r := newRegistries(t, Config{Upstreams: []Upstream{{Name: hostOf(server.URL), Scheme: "http"}}})
	ref := s.blob
	ref.Registry = hostOf(server.URL)
	for _, offset := range []int64{0, 4, 6} {
		_, _, err := r.Open(t.Context(), ref, offset, -1)
		wantErr(t, "another range", err, oci.ErrUnavailable)
	}
}

func TestBodyBreaks(t *testing.T) {
	for name, c := range map[string]struct {
		fault faultproxy.Fault
		class error
	}{
		"cut":                      {faultproxy.CutAfter(1000), io.ErrUnexpectedEOF},
		"shorter than said":        {faultproxy.Length(10), io.ErrUnexpectedEOF},
		"hang":                     {faultproxy.HangAfter(1000), errStalled},
		"cut at the very begin":    {faultproxy.CutAfter(0), io.ErrUnexpectedEOF},
		"stalled at the beginning": {faultproxy.HangAfter(0), errStalled},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.Set(faultproxy.Rule{Fault: c.fault})
			r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}, Timeout: 200 * time.Millisecond})
			_, _, err := read(t.Context(), r, s.blob, 0, -1)
			wantErr(t, name, err, c.class)
			wantErr(t, name, err, oci.ErrUnavailable)
			s.Clear()
			if b, _, err := read(t.Context(), r, s.blob, 0, -1); err != nil || !bytes.Equal(b, s.layer) {
				t.Errorf("afterwards: got %d bytes, error %v", len(b), err)
			}
		})
	}
}

// Over HTTP/2 a cut is a reset of the stream, which is no clean end either.
func TestBodyBreaksHTTP2(t *testing.T) {
	s := newSite(t)
	ca := newAuthority(t)
	name := ca.serveTLS(t, "registry.test", s.Proxy, nil)
	s.as(name)
	r := newRegistries(t, Config{Upstreams: []Upstream{{Name: name, TLS: TLS{CA: ca.file}}}, resolver: localNames(t), Timeout: time.Second})
	if b, _, err := read(t.Context(), r, s.blob, 0, -1); err != nil || !bytes.Equal(b, s.layer) {
		t.Fatalf("got %d bytes, error %v", len(b), err)
	}
	s.Set(faultproxy.Rule{Fault: faultproxy.CutAfter(1000)})
	_, _, err := read(t.Context(), r, s.blob, 0, -1)
	wantErr(t, "cut", err, io.ErrUnexpectedEOF)
	wantErr(t, "cut", err, oci.ErrUnavailable)
}

// A client that reads slowly is no stalled upstream.
func TestSlowReader(t *testing.T) {
	s := newSite(t)
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}, Timeout: 100 * time.Millisecond})
	rc, _, err := r.Open(t.Context(), s.blob, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	time.Sleep(250 * time.Millisecond) // real time: the connection is real
	if b, err := io.ReadAll(rc); err != nil || !bytes.Equal(b, s.layer) {
		t.Errorf("got %d bytes, error %v", len(b), err)
	}
}

// A body that goes on, however slowly, is not ended.
func TestDrip(t *testing.T) {
	s := newSite(t)
	s.Set(faultproxy.Rule{Fault: faultproxy.Drip(20_000, 30*time.Millisecond)})
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}, Timeout: 200 * time.Millisecond})
	if b, _, err := read(t.Context(), r, s.blob, 0, -1); err != nil || !bytes.Equal(b, s.layer) {
		t.Errorf("got %d bytes, error %v", len(b), err)
	}
}

func TestCallerLeaves(t *testing.T) {
	s := newSite(t)
	s.Set(faultproxy.Rule{Method: "HEAD", Fault: faultproxy.Hang()}, faultproxy.Rule{Method: "GET", Fault: faultproxy.HangAfter(10)})
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	ctx, cancel := context.WithCancel(t.Context())
	timer := time.AfterFunc(50*time.Millisecond, cancel)
	defer timer.Stop()
	_, err := r.Resolve(ctx, s.tag)
	wantErr(t, "Resolve", err, context.Canceled)
	if errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("a caller that left is no fault of the registry: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = r.Resolve(ctx, s.tag)
	wantErr(t, "Resolve in time", err, oci.ErrUnavailable)
	wantErr(t, "Resolve in time", err, context.DeadlineExceeded)

	ctx, cancel = context.WithCancel(t.Context())
	rc, _, err := r.Open(ctx, s.blob, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	cancel()
	_, err = io.ReadAll(rc)
	wantErr(t, "Read", err, context.Canceled)
}

func TestMirrors(t *testing.T) {
	first, second, origin := newSite(t), newSite(t), newSite(t)
	secondEntry := second.entry()
	secondEntry.Auth = Auth{User: "alice", Password: "s3cret"}
	second.registry.user, second.registry.secret = "alice", "s3cret"
	entry := origin.entry()
	entry.Mirrors = []string{first.Host(), second.Host()}
	start := func(t *testing.T) *Registries {
		for _, s := range []*site{first, second, origin} {
			s.Clear()
			s.Reset()
			s.as(s.registry.name)
		}
		return newRegistries(t, Config{Upstreams: []Upstream{entry, first.entry(), secondEntry}})
	}
	pull := func(t *testing.T, r *Registries, from *site) {
		t.Helper()
		b, desc, err := read(t.Context(), r, origin.blob, 0, -1)
		if err != nil || !bytes.Equal(b, origin.layer) || desc.Source != from.Host() {
			t.Errorf("got %d bytes from %q, error %v, want them from %s", len(b), desc.Source, err, from.Host())
		}
	}
	t.Run("order", func(t *testing.T) {
		r := start(t)
		pull(t, r, first)
		if second.Count("", "") != 0 || origin.Count("", "") != 0 {
			t.Error("later ones were asked although the first answered")
		}
		if ns := first.Requests()[0].Query.Get("ns"); ns != origin.Host() {
			t.Errorf("got ns=%q, want %q", ns, origin.Host())
		}
	})
	t.Run("miss and fault", func(t *testing.T) {
		r := start(t)
		first.Set(faultproxy.Rule{Fault: faultproxy.Status(404)})
		pull(t, r, second) // with the credentials of its own entry
		second.Set(faultproxy.Rule{Fault: faultproxy.Status(500)})
		pull(t, r, origin)
		if ns := origin.Requests()[0].Query.Get("ns"); ns != "" {
			t.Errorf("the upstream itself was sent ns=%q", ns)
		}
	})
	t.Run("a faulty one is left out for a while", func(t *testing.T) {
		r := start(t)
		first.Set(faultproxy.Rule{Fault: faultproxy.Drop()})
		pull(t, r, second)
		pull(t, r, second)
		if n := first.Count("", ""); n > 2 { // net/http itself sends again once where a connection was idle
			t.Errorf("it was asked %d times", n)
		}
	})
	t.Run("the upstream's error counts", func(t *testing.T) {
		r := start(t)
		first.Set(faultproxy.Rule{Fault: faultproxy.Status(500)})
		second.Set(faultproxy.Rule{Fault: faultproxy.Status(404)})
		origin.Set(faultproxy.Rule{Fault: faultproxy.Status(403)})
		_, err := r.Resolve(t.Context(), origin.blob)
		wantErr(t, "Resolve", err, oci.ErrDenied)
	})
	t.Run("blame", func(t *testing.T) {
		r := start(t)
		r.Blame(origin.blob, first.Host())
		r.Blame(origin.blob, origin.Host()) // there is nobody after it
		pull(t, r, second)
		r.Blame(origin.blob, second.Host())
		pull(t, r, origin)
		if desc, err := r.Resolve(t.Context(), origin.manifest); err != nil || desc.Source != first.Host() {
			t.Errorf("other content: got it from %q, error %v, want %s", desc.Source, err, first.Host())
		}
	})
	t.Run("left out is better than nobody", func(t *testing.T) {
		r := start(t)
		r.Blame(origin.blob, first.Host())
		second.Set(faultproxy.Rule{Fault: faultproxy.Drop()})
		origin.Set(faultproxy.Rule{Fault: faultproxy.Status(503)})
		pull(t, r, first)
		origin.Set(faultproxy.Rule{Fault: faultproxy.Status(404)})
		if _, err := r.Resolve(t.Context(), origin.blob); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("the upstream says that there is none: got error %v, want ErrNotFound", err)
		}
	})
	t.Run("only the upstream decides where the end is", func(t *testing.T) {
		r := start(t)
		short := newSite(t)
		short.registry.AddAs(origin.blob.Digest, "", origin.layer[:100])
		entry := entry
		entry.Mirrors = []string{short.Host()}
		if err := r.Reload([]Upstream{entry, short.entry()}); err != nil {
			t.Fatal(err)
		}
		b, desc, err := read(t.Context(), r, origin.blob, 1000, -1)
		if err != nil || !bytes.Equal(b, origin.layer[1000:]) || desc.Source != origin.Host() {
			t.Errorf("got %d bytes from %q, error %v, want the rest from the upstream", len(b), desc.Source, err)
		}
		_, _, err = r.Open(t.Context(), origin.blob, int64(len(origin.layer))+1, -1)
		wantErr(t, "past the end", err, oci.ErrRange)
	})
	t.Run("a client's credentials are not for them", func(t *testing.T) {
		r := start(t)
		first.Set(faultproxy.Rule{Fault: faultproxy.Status(404)})
		ctx := oci.WithAuthorization(t.Context(), "Bearer client")
		second.Set(faultproxy.Rule{Fault: faultproxy.Status(404)})
		if _, _, err := read(ctx, r, origin.blob, 0, -1); err != nil {
			t.Fatal(err)
		}
		for _, req := range append(first.Requests(), second.Requests()...) {
			if strings.Contains(req.Header.Get("Authorization"), "client") {
				t.Errorf("a mirror was sent %q", req.Header.Get("Authorization"))
			}
		}
		if got := origin.Requests()[0].Header.Get("Authorization"); got != "Bearer client" {
			t.Errorf("the upstream was sent %q", got)
		}
	})
}

func TestReload(t *testing.T) {
	old, young := newSite(t), newSite(t)
	r := newRegistries(t, Config{Upstreams: []Upstream{old.entry()}, Allow: []string{"registry.test"}})
	rc, _, err := r.Open(t.Context(), old.blob, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if err := r.Reload([]Upstream{young.entry()}); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(rc); err != nil || !bytes.Equal(b, old.layer) {
		t.Errorf("a request under way: got %d bytes, error %v", len(b), err)
	}
	_, err = r.Resolve(t.Context(), old.tag)
	wantErr(t, "an upstream that is gone", err, oci.ErrNotAllowed)
	if _, err := r.Resolve(t.Context(), young.tag); err != nil {
		t.Errorf("an upstream that is new: %v", err)
	}
	if err := r.Reload([]Upstream{{Name: "x", TLS: TLS{CA: "/nonexistent"}}}); err == nil {
		t.Error("a faulty configuration was taken")
	}
	if _, err := r.Resolve(t.Context(), young.tag); err != nil {
		t.Errorf("after a faulty configuration: %v", err)
	}
}

func TestConcurrentReload(t *testing.T) {
	s := newSite(t)
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				if _, err := r.Resolve(t.Context(), s.tag); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 20 {
		if err := r.Reload([]Upstream{s.entry()}); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
}

func TestMetrics(t *testing.T) {
	s := newSite(t)
	set := metrics.NewSet()
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}, Metrics: set})
	if _, _, err := read(t.Context(), r, s.blob, 0, -1); err != nil {
		t.Fatal(err)
	}
	s.Set(faultproxy.Rule{Fault: faultproxy.Status(403, "RateLimit-Remaining", "76;w=21600")})
	_, err := r.Resolve(t.Context(), s.tag)
	wantErr(t, "Resolve", err, oci.ErrDenied)
	for i := range 2 * maxLabels {
		r.metrics.answered("host"+string(rune('a'+i%26))+strings.Repeat("x", i), "200")
	}
	var out bytes.Buffer
	set.WritePrometheus(&out)
	for _, want := range []string{
		`pier_upstream_requests_total{host="` + s.Host() + `",code="200"} 1`,
		`pier_upstream_requests_total{host="` + s.Host() + `",code="403"} 1`,
		`pier_upstream_errors_total{host="` + s.Host() + `",reason="denied"} 1`,
		`pier_upstream_received_bytes_total 200000`,
		`pier_upstream_ratelimit_remaining{host="` + s.Host() + `"} 76`,
		`pier_upstream_requests_total{host="other",code="200"}`,
	} {
		if !strings.Contains(out.String(), want+"\n") && !strings.Contains(out.String(), want+" ") {
			t.Errorf("metrics lack %s", want)
		}
	}
	if n := strings.Count(out.String(), "requests_total"); n > maxLabels+2 {
		t.Errorf("%d series of requests", n)
	}
}

func TestInvalid(t *testing.T) {
	r := newRegistries(t, Config{})
	_, err := r.Resolve(t.Context(), oci.Reference{Registry: "a b", Repository: "x", Tag: "y"})
	wantErr(t, "registry", err, oci.ErrNameInvalid)
	_, _, err = r.Open(t.Context(), oci.Reference{Registry: "docker.io", Repository: "x", Tag: "y"}, 0, -1)
	wantErr(t, "no digest", err, oci.ErrDigestInvalid)
	_, _, err = r.Open(t.Context(), oci.Reference{Registry: "docker.io", Repository: "x", Digest: digest.FromString("x")}, -1, -1)
	wantErr(t, "negative offset", err, oci.ErrRange)
}

func TestParseContentRange(t *testing.T) {
	for s, want := range map[string]contentRange{
		"bytes 5-9/10": {5, 9, 10}, "bytes 0-0/*": {0, 0, -1}, "Bytes 0-9223372036854775806/9223372036854775807": {0, math.MaxInt64 - 1, math.MaxInt64},
	} {
		if got, ok := parseContentRange(s); !ok || got != want {
			t.Errorf("%q: got %+v, %v", s, got, ok)
		}
	}
	for _, s := range []string{"", "bytes", "bytes */10", "bytes 9-5/10", "bytes 5-9/9", "bytes -5-9/10", "items 0-1/2", "bytes 0-1/-2", "bytes 5-9", "bytes +5-9/10"} {
		if got, ok := parseContentRange(s); ok {
			t.Errorf("%q was taken as %+v", s, got)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	f.Add("bytes 5-9/10")
	f.Add("bytes 0-0/*")
	f.Fuzz(func(t *testing.T, s string) {
		r, ok := parseContentRange(s)
		if ok && (r.start < 0 || r.end < r.start || r.size != -1 && r.size <= r.end) {
			t.Errorf("%q was taken as %+v", s, r)
		}
	})
}
