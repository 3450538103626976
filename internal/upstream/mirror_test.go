package upstream

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/e2e/faultproxy"
	"pier/internal/oci"
)

// mirrored returns a site with one mirror, and Registries that know both.
func mirrored(t *testing.T, timeout time.Duration) (mirror, origin *site, r *Registries) {
	t.Helper()
	mirror, origin = newSite(t), newSite(t)
	entry := origin.entry()
	entry.Mirrors = []string{mirror.Host()}
	return mirror, origin, newRegistries(t, Config{Upstreams: []Upstream{entry, mirror.entry()}, Timeout: timeout})
}

func (r *Registries) avoids(s *site) bool { return r.blamed.until(s.Host()).After(time.Now()) }

// A mirror that accepts and never answers used up the caller's time, every time, and the registry was never asked.
func TestMirrorHangs(t *testing.T) {
	mirror, origin, r := mirrored(t, time.Minute)
	mirror.Set(faultproxy.Rule{Fault: faultproxy.Hang()})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if desc, err := r.Resolve(ctx, origin.tag); err != nil || desc.Source != origin.Host() {
		t.Errorf("got %+v, error %v, want it from the registry", desc, err)
	}
	if !r.avoids(mirror) {
		t.Error("it will be asked again at once")
	}
	if _, err := r.Resolve(ctx, origin.tag); err != nil || mirror.Count("", "") != 1 {
		t.Errorf("error %v; the mirror was asked %d times", err, mirror.Count("", ""))
	}
}

// Also where nobody's time is short.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		soon, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		for _, c := range []struct {
			ctx     context.Context
			ns      string
			timeout time.Duration
			want    time.Duration
		}{
			{t.Context(), "", time.Minute, time.Minute}, {soon, "", time.Minute, time.Minute}, {t.Context(), "x", time.Minute, mirrorTimeout},
			{t.Context(), "x", time.Second, time.Second}, {soon, "x", time.Minute, 2500 * time.Millisecond},
		} {
			target := target{Registries: &Registries{cfg: Config{Timeout: c.timeout}}, ns: c.ns}
			if got := target.patience(c.ctx); got != c.want {
				t.Errorf("time-out %v, mirror of %q: got %v, want %v", c.timeout, c.ns, got, c.want)
			}
		}
	})
	for timeout, want := range map[time.Duration]time.Duration{
		time.Minute: 15 * time.Second, 2 * time.Second: time.Second, time.Second: time.Second, time.Millisecond: time.Millisecond,
	} {
		if got := bodyTimeout(timeout); got != want {
			t.Errorf("body, time-out %v: got %v, want %v", timeout, got, want)
		}
	}
}

// A mirror whose time the caller's deadline ended is at fault; one whose caller left is not.
func TestMirrorCallerGone(t *testing.T) {
	for cause, want := range map[error]bool{context.DeadlineExceeded: true, context.Canceled: false} {
		synctest.Test(t, func(t *testing.T) {
			r := &Registries{log: slog.New(slog.DiscardHandler), blamed: newDeadlines(8)}
			d := &directory{listed: map[string]*endpoint{"mirror.test": {name: "mirror.test"}}}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			q := inquiry[int]{Registries: r, directory: d, authority: &endpoint{name: "registry.test"}, f: func(tg target) (int, error) {
				if errors.Is(cause, context.Canceled) {
					cancel()
				}
				<-ctx.Done()
				w := newWatch(ctx, time.Minute)
				defer w.stop()
				return 0, tg.broken(w, "tag", ctx.Err())
			}}
			_, settled, err := q.mirror(ctx, "mirror.test")
			if wantErr(t, "mirror", err, cause); !settled || r.blamed.until("mirror.test").After(time.Now()) != want {
				t.Errorf("%v: settled %v, avoided until %v, want avoided %v", cause, settled, r.blamed.until("mirror.test"), want)
			}
		})
	}
}

// A mirror that stalled in a body was given up by others before this package noticed, and so asked again and again.
func TestMirrorStalls(t *testing.T) {
	mirror, origin, r := mirrored(t, 4*time.Second)
	mirror.Set(faultproxy.Rule{Method: http.MethodGet, Fault: faultproxy.HangAfter(1000)})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // well under the time-out
	defer cancel()
	b, _, err := read(ctx, r, origin.blob, 0, -1)
	wantErr(t, "Read", err, errStalled)
	wantErr(t, "Read", err, oci.ErrUnavailable)
	rest, desc, err := read(t.Context(), r, origin.blob, int64(len(b)), -1)
	if err != nil || desc.Source != origin.Host() || !bytes.Equal(append(b, rest...), origin.layer) {
		t.Errorf("got %d bytes and %d from %q, error %v", len(b), len(rest), desc.Source, err)
	}
}

const oldAnswer = `112 - "offline", 110 cache.test "Response is Stale"`

// What a mirror only remembers was taken for what the registry says.
func TestMirrorStale(t *testing.T) {
	for name, rules := range map[string][]faultproxy.Rule{"HEAD": nil, "GET": {{Method: http.MethodHead, Fault: faultproxy.Status(405)}}} {
		t.Run(name, func(t *testing.T) {
			mirror, origin, r := mirrored(t, 0)
			mirror.Set(append(rules, faultproxy.Rule{Fault: faultproxy.Header("Warning", oldAnswer)})...)
			old := mirror.registry.Image(oci.Reference{Registry: mirror.Host(), Repository: "team/app", Tag: "V1"}, []byte("old"))
			check := func(what string, want oci.Digest, from *site, stale bool) {
				t.Helper()
				desc, err := r.Resolve(t.Context(), origin.tag)
				if err != nil || desc.Digest != want || desc.Source != from.Host() || desc.Stale != stale {
					t.Errorf("%s: got %+v, error %v, want %s from %s", what, desc, err, want, from.Host())
				}
			}
			check("both there", origin.manifest.Digest, origin, false)
			for _, fault := range []faultproxy.Fault{faultproxy.Status(503), faultproxy.TooManyRequests(0), faultproxy.Drop()} {
				origin.Set(faultproxy.Rule{Fault: fault})
				check("no registry", old.Digest, mirror, true)
			}
			if r.avoids(mirror) {
				t.Error("the mirror is avoided for its honesty")
			}
			origin.Set(faultproxy.Rule{Fault: faultproxy.Hang()})
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if desc, err := r.Resolve(ctx, origin.tag); err != nil || desc.Digest != old.Digest || !desc.Stale {
				t.Errorf("registry hangs: got %+v, error %v", desc, err)
			}
			for status, want := range map[int]error{404: oci.ErrNotFound, 401: oci.ErrUnauthorized, 403: oci.ErrDenied} {
				origin.Set(faultproxy.Rule{Fault: faultproxy.Status(status)})
				_, err := r.Resolve(t.Context(), origin.tag)
				wantErr(t, "the registry answers", err, want)
			}
			origin.Set(faultproxy.Rule{Fault: faultproxy.Status(503)})
			if desc, err := r.Resolve(t.Context(), mirror.manifest.WithDigest(old.Digest)); err != nil || desc.Stale {
				t.Errorf("a digest: got %+v, error %v", desc, err)
			}
		})
	}
}

// A registry may be a cache, too.
func TestRegistryStale(t *testing.T) {
	s := newSite(t)
	s.Set(faultproxy.Rule{Fault: faultproxy.Header("Warning", oldAnswer)})
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	if desc, err := r.Resolve(t.Context(), s.tag); err != nil || !desc.Stale || desc.Digest != s.manifest.Digest {
		t.Errorf("got %+v, error %v", desc, err)
	}
}

func TestStale(t *testing.T) {
	for warning, want := range map[string]bool{
		"110 - \"Response is Stale\"": true, "199 a \"x\",110 b \"y\"": true, oldAnswer: true, "": false, "1100 x": false, "113 - \"110\"": false, "112 110": false,
	} {
		if got := stale(http.Header{"Warning": {warning}}); got != want {
			t.Errorf("%q: got %v", warning, got)
		}
	}
}

// That a mirror knows no referrers, or not the repository, was the last word.
func TestMirrorLists(t *testing.T) {
	mirror, origin, r := mirrored(t, 0)
	subject := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: origin.manifest.Digest, Size: 1}
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, ArtifactType: "application/x", Subject: &subject}
	m.SchemaVersion = 2
	origin.registry.Manifest(oci.Reference{}, v1.MediaTypeImageManifest, m)
	if list, err := r.Referrers(t.Context(), origin.manifest); err != nil || len(list) != 1 {
		t.Errorf("got %d referrers, error %v, want the registry's", len(list), err)
	}
	if mirror.Count("", faultproxy.Referrers) != 1 {
		t.Error("the mirror was not asked")
	}
	mirror.Set(faultproxy.Rule{Path: faultproxy.Of(faultproxy.Tags), Fault: faultproxy.Status(404)})
	if tags, err := r.Tags(t.Context(), origin.Host(), "team/app"); err != nil || !slices.Equal(tags, []string{"V1"}) {
		t.Errorf("got tags %q, error %v, want the registry's", tags, err)
	}
	origin.Set(faultproxy.Rule{Fault: faultproxy.Status(503)})
	if list, err := r.Referrers(t.Context(), origin.manifest); err != nil || len(list) != 0 {
		t.Errorf("no registry: got %d referrers, error %v, want none and none", len(list), err)
	}
	_, err := r.Tags(t.Context(), origin.Host(), "team/app")
	wantErr(t, "no registry, and the mirror knows no tags", err, oci.ErrUnavailable)
}

// A mirror refuses ranges that there are; what it has is had from it all the same.
func TestMirrorRangeRefused(t *testing.T) {
	mirror, origin, r := mirrored(t, 0)
	mirror.Set(faultproxy.Rule{Fault: faultproxy.RefuseRange(-1)})
	if b, desc, err := read(t.Context(), r, origin.blob, 1000, -1); err != nil || !bytes.Equal(b, origin.layer[1000:]) || desc.Source != mirror.Host() {
		t.Errorf("got %d bytes from %q, error %v", len(b), desc.Source, err)
	}
}
