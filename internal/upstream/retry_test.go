package upstream

import (
	"context"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"pier/e2e/faultproxy"
	"pier/internal/oci"
)

func TestRetry(t *testing.T) {
	for _, c := range []struct {
		name   string
		fault  faultproxy.Fault
		faults int // how many requests meet it
		tag    bool
		want   error
		asked  int
	}{
		{"503 thrice", faultproxy.Status(503), 3, false, nil, 4},
		{"503 without end", faultproxy.Status(503), 0, false, oci.ErrUnavailable, 4},
		{"429 without Retry-After", faultproxy.Status(429), 0, false, oci.ErrRateLimited, 4},
		{"408", faultproxy.Status(408), 1, false, nil, 2},
		{"501 is final", faultproxy.Status(501), 0, false, oci.ErrUnavailable, 1},
		{"404 is final", faultproxy.Status(404), 0, false, oci.ErrNotFound, 1},
		{"400 is final", faultproxy.Status(400), 0, false, oci.ErrUnsupported, 1},
		{"401 is final", faultproxy.Unauthorized(`Basic realm="x"`), 0, false, oci.ErrUnauthorized, 1},
		{"tag, 503 thrice", faultproxy.Status(503), 3, true, nil, 4},
		{"tag, 503 without end", faultproxy.Status(503), 0, true, oci.ErrUnavailable, 4},
		{"short Retry-After", faultproxy.TooManyRequests(0), 2, false, nil, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			s.Set(faultproxy.Rule{Times: c.faults, Fault: c.fault})
			r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
			var err error
			if c.tag {
				_, err = r.Resolve(t.Context(), s.tag)
			} else {
				_, _, err = read(t.Context(), r, s.blob, 0, -1)
			}
			wantErr(t, c.name, err, c.want)
			if n := s.Count("", ""); n != c.asked {
				t.Errorf("asked %d times, want %d", n, c.asked)
			}
		})
	}
}

func TestRetryConnection(t *testing.T) {
	s := newSite(t)
	s.Set(faultproxy.Rule{Times: 2, Fault: faultproxy.Drop()})
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	if _, _, err := read(t.Context(), r, s.blob, 0, -1); err != nil {
		t.Errorf("after two dropped connections: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody is there now
	gone := s.blob
	gone.Registry = l.Addr().String()
	if err := r.Reload([]Upstream{{Name: gone.Registry, Scheme: "http"}}); err != nil {
		t.Fatal(err)
	}
	_, err = r.Resolve(t.Context(), gone)
	wantErr(t, "nobody there", err, oci.ErrUnavailable)
}

func TestHangBeforeHeaders(t *testing.T) {
	s := newSite(t)
	s.Set(faultproxy.Rule{Fault: faultproxy.Hang()})
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}, Timeout: 200 * time.Millisecond})
	start := time.Now()
	_, _, err := read(t.Context(), r, s.blob, 0, -1)
	wantErr(t, "hang", err, oci.ErrUnavailable)
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("took %v: all attempts share one time-out", d)
	}
}

// A registry that asks to come back in a minute is not asked again, by nobody, for what it refused.
func TestRetryAfterLong(t *testing.T) {
	s := newSite(t)
	s.Set(faultproxy.Rule{Path: faultproxy.Of(faultproxy.Manifest), Times: 1, Fault: faultproxy.TooManyRequests(60)})
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	for range 3 {
		_, err := r.Resolve(t.Context(), s.tag)
		wantErr(t, "Resolve", err, oci.ErrRateLimited)
	}
	if n := s.Count("", ""); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
	// Registries count manifests and blobs apart: a pull that has its manifest goes on.
	if _, _, err := read(t.Context(), r, s.blob, 0, -1); err != nil {
		t.Errorf("blob: %v", err)
	}
	// A client with credentials of its own has limits of its own.
	if _, err := r.Resolve(oci.WithAuthorization(t.Context(), "Bearer x"), s.tag); err != nil {
		t.Errorf("another account: %v", err)
	}
}

func TestRetryAfterObeyed(t *testing.T) {
	s := newSite(t)
	s.Set(faultproxy.Rule{Times: 1, Fault: faultproxy.TooManyRequests(1)})
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	start := time.Now()
	if _, err := r.Resolve(t.Context(), s.tag); err != nil || time.Since(start) < time.Second {
		t.Errorf("after %v: error %v", time.Since(start), err)
	}
	// Where the caller has less time than that, it hears the truth at once.
	s.Set(faultproxy.Rule{Fault: faultproxy.TooManyRequests(5)})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := r.Resolve(ctx, s.tag)
	wantErr(t, "too little time", err, oci.ErrRateLimited)
	if ctx.Err() != nil {
		t.Error("it was waited for in vain")
	}
}

func TestWaitEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := newWatch(ctx, time.Minute)
		defer w.stop()
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		if w.sleep(10*time.Second) || time.Since(start) != time.Second {
			t.Errorf("slept for %v", time.Since(start))
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeadlines(3)
		for i, name := range []string{"a", "b", "c", "d", "e"} {
			d.set(name, time.Now().Add(time.Duration(i)*time.Minute))
			if d.until(name).IsZero() {
				t.Errorf("%s was not kept", name)
			}
		}
		if len(d.byName) > 3 {
			t.Errorf("%d kept, want at most 3", len(d.byName))
		}
	})
}

func TestBackoff(t *testing.T) {
	for attempt, want := range []time.Duration{200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1600 * time.Millisecond, 3200 * time.Millisecond, retryCap} {
		if got := backoff(retryBase, attempt); got != want {
			t.Errorf("attempt %d: got %v, want %v", attempt, got, want)
		}
	}
}

func TestRetryAfterHeader(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"0": 0, "7": 7 * time.Second, "9223372036854775807": 24 * time.Hour,
		now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
		now.Add(-time.Hour).Format(http.TimeFormat):       0,
	} {
		if got, ok := retryAfter(s, now); !ok || got != want {
			t.Errorf("%q: got %v, %v, want %v", s, got, ok, want)
		}
	}
	if got, ok := retryAfter(" 7 ", now); !ok || got != 7*time.Second {
		t.Errorf("with spaces: got %v, %v", got, ok)
	}
	for _, s := range []string{"", "soon", "-1", "1.5"} {
		if got, ok := retryAfter(s, now); ok {
			t.Errorf("%q was taken as %v", s, got)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("7")
	f.Add("Fri, 02 Jan 2026 03:04:05 GMT")
	f.Fuzz(func(t *testing.T, s string) {
		if d, _ := retryAfter(s, time.Unix(1767323045, 0)); d < 0 || d > 24*time.Hour {
			t.Errorf("%q: got %v", s, d)
		}
	})
}
