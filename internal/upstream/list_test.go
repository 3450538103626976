package upstream

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
)

func TestTags(t *testing.T) {
	s := newSite(t)
	want := []string{"V1"}
	for i := range 10 {
		tag := s.tag
		tag.Tag = fmt.Sprintf("v%02d", i)
		s.registry.Image(tag)
		want = append(want, tag.Tag)
	}
	mirror := newSite(t).as(s.Host()) // has only V1, under the upstream's name
	entry := s.entry()
	r := newRegistries(t, Config{Upstreams: []Upstream{entry}})
	got, err := r.Tags(t.Context(), s.Host(), "team/app")
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, error %v, want %v", got, err, want)
	}
	_, err = r.Tags(t.Context(), s.Host(), "team/other")
	wantErr(t, "unknown repository", err, oci.ErrNotFound)

	entry.Mirrors = []string{mirror.Host()}
	if err := r.Reload([]Upstream{entry, mirror.entry()}); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Tags(t.Context(), s.Host(), "team/app"); err != nil || !slices.Equal(got, want[:1]) {
		t.Errorf("mirror: got %v, error %v", got, err)
	}
}

func TestTagsHostile(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"no end": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", fmt.Sprintf(`<%s?last=%s>; rel="next"`, r.URL.Path, r.URL.Query().Get("last")+"x"))
			fmt.Fprint(w, `{"tags":["a"]}`)
		},
		"no list": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `<html>`) },
		"too large a page": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"tags":["`, strings.Repeat("a", maxList), `"]}`)
		},
		"too many elements": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"tags":[`, strings.Repeat(`"a",`, maxElements), `"a"]}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(handler)
			defer server.Close()
			r := newRegistries(t, Config{Upstreams: []Upstream{{Name: hostOf(server.URL), Scheme: "http"}}})
			_, err := r.Tags(t.Context(), hostOf(server.URL), "a")
			wantErr(t, name, err, oci.ErrUnavailable)
		})
	}
}

// Pages that are small enough each were many hundred megabytes together: one request could take all memory.
func TestTagsMemory(t *testing.T) {
	big, pages := strings.Repeat("x", 7<<20), 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		pages++
		w.Header().Set("Link", fmt.Sprintf(`<%s?n=%d>; rel="next"`, r.URL.Path, pages))
		fmt.Fprintf(w, `{"tags":["%d%s"]}`, pages, big)
	}))
	defer server.Close()
	r := newRegistries(t, Config{Upstreams: []Upstream{{Name: hostOf(server.URL), Scheme: "http"}}})
	_, err := r.Tags(t.Context(), hostOf(server.URL), "a")
	wantErr(t, "a list of 700 MB", err, oci.ErrUnavailable)
	if pages != maxList/len(big)+1 {
		t.Errorf("%d pages of 7 MiB were read", pages)
	}
}

// What is no tag is not listed, whatever its length.
func TestTagsInvalid(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"tags":["v1","","a/b","..","%s","V2"]}`, strings.Repeat("x", 129))
	}))
	defer server.Close()
	r := newRegistries(t, Config{Upstreams: []Upstream{{Name: hostOf(server.URL), Scheme: "http"}}})
	if got, err := r.Tags(t.Context(), hostOf(server.URL), "a"); err != nil || !slices.Equal(got, []string{"V2", "v1"}) {
		t.Errorf("got %.100q, error %v", got, err)
	}
}

// Three bytes of a list were 184 in memory: a page of referrers took half a gigabyte.
func TestReferrersMemory(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", v1.MediaTypeImageIndex)
		fmt.Fprint(w, `{"manifests":[`, strings.Repeat("{},", 4<<20), `{}]}`)
	}))
	defer server.Close()
	r := newRegistries(t, Config{Upstreams: []Upstream{{Name: hostOf(server.URL), Scheme: "http"}}})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := r.Referrers(t.Context(), oci.Reference{Registry: hostOf(server.URL), Repository: "a", Digest: digest.FromString("x")})
	runtime.ReadMemStats(&after)
	wantErr(t, "an index of four million", err, oci.ErrUnavailable)
	if mib := (after.TotalAlloc - before.TotalAlloc) >> 20; mib > 400 {
		t.Errorf("%d MiB were allocated for 12 MiB", mib)
	}
}

func TestReferrers(t *testing.T) {
	s := newSite(t)
	subject := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: s.manifest.Digest, Size: 1}
	var list []v1.Descriptor
	for i := range 3 {
		m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, ArtifactType: fmt.Sprint("application/x-", i), Subject: &subject}
		m.SchemaVersion = 2
		d := s.registry.Manifest(oci.Reference{}, v1.MediaTypeImageManifest, m)
		list = append(list, v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, ArtifactType: m.ArtifactType})
	}
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	check := func(what string, ref oci.Reference, want int) {
		t.Helper()
		if got, err := r.Referrers(t.Context(), ref); err != nil || len(got) != want {
			t.Errorf("%s: got %d, error %v, want %d", what, len(got), err, want)
		}
	}
	check("API, two pages", s.manifest, 3)
	check("API, none", s.manifest.WithDigest(s.blob.Digest), 0)
	s.registry.noReferrers = true
	check("no API, no tag", s.manifest, 0)
	index := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: append(list[:2:2], v1.Descriptor{Digest: "nonsense"})}
	index.SchemaVersion = 2
	tag := s.tag
	tag.Tag = "sha256-" + s.manifest.Digest.Encoded()
	s.registry.Manifest(tag, v1.MediaTypeImageIndex, index)
	check("no API, but the tag, one entry malformed", s.manifest, 2)
	_, err := r.Referrers(t.Context(), s.tag)
	wantErr(t, "without a digest", err, oci.ErrDigestInvalid)
}

func TestNextPage(t *testing.T) {
	base, err := url.Parse("https://registry.test/v2/a/tags/list?n=3&ns=docker.io")
	if err != nil {
		t.Fatal(err)
	}
	for link, want := range map[string]string{
		`</v2/a/tags/list?last=x&n=3>; rel="next"`:                                                   "last=x&n=3",
		`<https://registry.test/v2/a/tags/list?last=x>; rel=next`:                                    "last=x",
		`<?last=x>;rel=next`:                                                                         "last=x",
		`</v2/a/tags/list?last=x&ns=evil>; rel="next"`:                                               "last=x",
		`</v2/a/tags/list?last=a>; rel="prev", </v2/a/tags/list?last=x>; title="t"; rel="last next"`: "last=x",
		`</v2/a/tags/list?last=x#https://169.254.169.254/>; rel="next"`:                              "last=x",
		`<https://evil.test/v2/a/tags/list?last=x>; rel="next"`:                                      "",
		`<//evil.test/v2/a/tags/list?last=x>; rel="next"`:                                            "",
		`</v2/b/tags/list?last=x>; rel="next"`:                                                       "",
		`</v2/a/tags/list>; rel="next"`:                                                              "",
		`</v2/a/tags/list?last=x>; rel="prev"`:                                                       "",
		`</v2/a/tags/list?last=x`:                                                                    "",
		`>; rel="next"`:                                                                              "",
		``:                                                                                           "",
	} {
		if got, ok := nextPage([]string{link}, base); got != want || ok != (want != "") {
			t.Errorf("%s: got %q, %v, want %q", link, got, ok, want)
		}
	}
}

func FuzzNextPage(f *testing.F) {
	f.Add(`</v2/a/tags/list?last=x&n=3>; rel="next"`)
	f.Add(`<a>; rel="prev", <b?c=d>; rel=next`)
	base, err := url.Parse("https://registry.test/v2/a/tags/list?n=3")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, link string) {
		if values, ok := nextPage([]string{link, link}, base); ok {
			if u, err := url.Parse("https://registry.test/v2/a/tags/list?" + values); err != nil || u.Host != base.Host || u.Path != base.Path || u.Fragment != "" {
				t.Errorf("%q leads to %q", link, values)
			}
		}
	})
}

func FuzzElements(f *testing.F) {
	for _, seed := range []string{"", "null", "[]", `["a","b"]`, `[{"digest":"sha256:00"}]`, "[null]", "{}", "[[[["} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		var tags struct {
			Tags elements[string] `json:"tags"`
		}
		var index struct {
			Manifests elements[v1.Descriptor] `json:"manifests"`
		}
		_ = json.Unmarshal(b, &tags)
		_ = json.Unmarshal(b, &index)
		_ = new(elements[string]).UnmarshalJSON(b)
	})
}
