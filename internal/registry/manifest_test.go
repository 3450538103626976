package registry

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

const (
	ociIndex    = v1.MediaTypeImageIndex
	ociImage    = v1.MediaTypeImageManifest
	dockerImage = oci.MediaTypeDockerManifest
	dockerList  = oci.MediaTypeDockerList
)

func TestManifest(t *testing.T) {
	c := newContent()
	url := serve(t, New(Config{Source: c})) + "/v2/app/manifests/"
	for _, target := range []string{"v1", string(c.image.Digest)} {
		for _, method := range []string{"GET", "HEAD"} {
			r := ask(t, method, url+target)
			if r.StatusCode != 200 || r.ContentLength != c.image.Size {
				t.Errorf("%s %s: %d, length %d", method, target, r.StatusCode, r.ContentLength)
			}
			for name, want := range map[string]string{
				"Content-Type": ociImage, "Docker-Content-Digest": string(c.image.Digest), "Etag": `"` + string(c.image.Digest) + `"`,
			} {
				if got := r.Header.Get(name); got != want {
					t.Errorf("%s %s: %s %q, want %q", method, target, name, got, want)
				}
			}
			if kept := r.Header.Get("Cache-Control") != ""; kept != strings.Contains(target, ":") {
				t.Errorf("%s %s: Cache-Control %q", method, target, r.Header.Get("Cache-Control"))
			}
			if method == "GET" && ocitest.Digest(r.body) != c.image.Digest {
				t.Errorf("%s %s: wrong body %q", method, target, r.body)
			}
		}
	}
	if r := ask(t, "GET", url+"V1"); r.StatusCode != 404 {
		t.Errorf("a tag that differs in case: %d, want 404", r.StatusCode)
	}
}

func TestSHA512(t *testing.T) {
	c := newContent()
	b := []byte(`{"schemaVersion":2,"config":{}}`)
	dgst := oci.Digest("sha512:" + strings.Repeat("0123456789abcdef", 8))
	c.AddAs(dgst, ociImage, b)
	url := serve(t, New(Config{Source: c}))
	for _, kind := range []string{"manifests", "blobs"} {
		if r := ask(t, "GET", url+"/v2/app/"+kind+"/"+string(dgst)); r.StatusCode != 200 || string(r.body) != string(b) {
			t.Errorf("%s: %d %q", kind, r.StatusCode, r.body)
		}
	}
}

func TestAccept(t *testing.T) {
	c := newContent()
	url := serve(t, New(Config{Source: c})) + "/v2/app/manifests/"
	for _, tc := range []struct {
		target string
		accept []string
		want   oci.Descriptor
	}{
		{"Multi", nil, c.index},
		{"Multi", []string{""}, c.index},
		{"Multi", []string{"*/*"}, c.index},
		{"Multi", []string{"*"}, c.index},
		{"Multi", []string{ociIndex}, c.index},
		{"Multi", []string{dockerImage, dockerList, ociImage, ociIndex}, c.index},
		{"Multi", []string{dockerImage + ", " + ociImage + ", " + dockerList}, c.index}, // any kind of index is one asked for
		{"Multi", []string{ociImage + ", */*"}, c.index},
		{"Multi", []string{ociImage + ", application/*;q=0.1"}, c.index},
		{"Multi", []string{"text/html"}, c.index},
		{"Multi", []string{ociImage}, c.here},
		{"Multi", []string{dockerImage}, c.here},
		{"Multi", []string{dockerImage, ociImage}, c.here},
		{"Multi", []string{", ," + dockerImage + ",," + ociImage + ";q=0.5,"}, c.here},
		{"Multi", []string{"Application/VND.OCI.image.manifest.v1+JSON"}, c.here},
		{"Multi", []string{ociImage + `;note="a,b\",c"`}, c.here},
		{"Multi", []string{ociImage + ", " + ociIndex + ";q=0, */*;q=0.0"}, c.here},
		{string(c.index.Digest), []string{ociImage}, c.index}, // a digest names those bytes, whoever asks
		{"v1", []string{ociIndex}, c.image},
		{"v1", []string{"application/json"}, c.image},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			var headers []string
			for _, a := range tc.accept {
				headers = append(headers, "Accept", a)
			}
			r := ask(t, method, url+tc.target, headers...)
			if got := r.Header.Get("Docker-Content-Digest"); r.StatusCode != 200 || got != string(tc.want.Digest) || r.ContentLength != tc.want.Size {
				t.Errorf("%s %s, Accept %q: %d, %s, length %d, want %s", method, tc.target, tc.accept, r.StatusCode, got, r.ContentLength, tc.want.Digest)
			}
			if got := r.Header.Get("Content-Type"); got != tc.want.MediaType {
				t.Errorf("%s %s, Accept %q: type %s", method, tc.target, tc.accept, got)
			}
			if method == "GET" && ocitest.Digest(r.body) != tc.want.Digest {
				t.Errorf("%s, Accept %q: body is not what the header says", tc.target, tc.accept)
			}
		}
	}
	if r := ask(t, "GET", url+"foreign", "Accept", ociImage); r.Header.Get("Content-Type") != ociIndex {
		t.Errorf("an index without an image for this platform: got %s, want it as it is", r.Header.Get("Content-Type"))
	}
}

func TestMalformedAccept(t *testing.T) {
	c := newContent()
	url := serve(t, New(Config{Source: c}))
	for _, accept := range []string{"a b", "/", "x/", "/x", "a/b/c", "application/json;q", `x/y;a="`, ";", "é/x", strings.Repeat("a/b,", 65)} {
		for _, target := range []string{"v1", string(c.image.Digest)} {
			r := ask(t, "GET", url+"/v2/app/manifests/"+target, "Accept", accept)
			if r.StatusCode != 400 || r.code(t) != "UNSUPPORTED" {
				t.Errorf("Accept %.40q: %d %s", accept, r.StatusCode, r.body)
			}
		}
	}
	if r := ask(t, "GET", url+"/v2/app/manifests/v1", "Accept", strings.Repeat("a/b,,", 64)); r.StatusCode != 200 {
		t.Errorf("64 elements: %d", r.StatusCode)
	}
	if r := ask(t, "GET", url+"/v2/app/blobs/"+string(c.blob), "Accept", "a b"); r.StatusCode != 200 {
		t.Errorf("of a blob, where Accept means nothing: %d", r.StatusCode)
	}
}

func TestIfNoneMatch(t *testing.T) {
	c := newContent()
	url := serve(t, New(Config{Source: c})) + "/v2/app/"
	for _, tc := range []struct {
		path string
		dgst oci.Digest
	}{{"manifests/v1", c.image.Digest}, {"manifests/" + string(c.image.Digest), c.image.Digest}, {"blobs/" + string(c.blob), c.blob}} {
		tag := `"` + string(tc.dgst) + `"`
		for header, status := range map[string]int{
			tag: 304, "W/" + tag: 304, `"x", ` + tag: 304, `"x",W/` + tag + `,"y"`: 304, "*": 304,
			`"x"`: 200, string(tc.dgst): 200, "": 200, `"` + string(ocitest.Absent) + `"`: 200,
		} {
			for _, method := range []string{"GET", "HEAD"} {
				r := ask(t, method, url+tc.path, "If-None-Match", header)
				if r.StatusCode != status || r.Header.Get("Etag") != tag {
					t.Errorf("%s %s, If-None-Match %s: %d, Etag %s, want %d", method, tc.path, header, r.StatusCode, r.Header.Get("Etag"), status)
				}
				if status == 304 && len(r.body) > 0 {
					t.Errorf("%s %s: 304 with %d bytes", method, tc.path, len(r.body))
				}
			}
		}
	}
	if r := ask(t, "GET", url+"blobs/"+string(ocitest.Absent), "If-None-Match", "*"); r.StatusCode != 404 {
		t.Errorf("absent content: %d, want 404", r.StatusCode)
	}
}

// opens is a Source that notes in what order it is asked, and for what.
type opens struct {
	oci.Source
	stale bool
	calls []string
}

func (s *opens) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	s.calls = append(s.calls, "resolve "+strings.TrimPrefix(ref.String(), app.Name()))
	desc, err := s.Source.Resolve(ctx, ref)
	desc.Stale = s.stale
	return desc, err
}

func (s *opens) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	s.calls = append(s.calls, fmt.Sprintf("open %s %d %d", strings.TrimPrefix(ref.String(), app.Name()), offset, length))
	return s.Source.Open(ctx, ref, offset, length)
}

// Each call may be a round trip to an upstream: none may be wasted.
func TestSourceIsAskedOnce(t *testing.T) {
	c := newContent()
	image, index, here, blob := "@"+string(c.image.Digest), "@"+string(c.index.Digest), "@"+string(c.here.Digest), "@"+string(c.blob)
	for _, tc := range []struct {
		method, path, header, value string
		want                        []string
	}{
		{"GET", "manifests/v1", "", "", []string{"resolve :v1", "open :v1" + image + " 0 -1"}},
		{"HEAD", "manifests/v1", "", "", []string{"resolve :v1"}},
		{"GET", "manifests/" + image[1:], "", "", []string{"open " + image + " 0 -1"}},
		{"HEAD", "manifests/" + image[1:], "", "", []string{"resolve " + image}},
		{"GET", "manifests/v1", "If-None-Match", "*", []string{"resolve :v1"}},
		{"GET", "manifests/Multi", "Accept", ociImage, []string{"resolve :Multi", "open :Multi" + index + " 0 -1", "open " + here + " 0 -1"}},
		{"HEAD", "manifests/Multi", "Accept", ociImage, []string{"resolve :Multi", "open :Multi" + index + " 0 -1"}},
		{"GET", "blobs/" + blob[1:], "", "", []string{"open " + blob + " 0 -1"}},
		{"HEAD", "blobs/" + blob[1:], "", "", []string{"resolve " + blob}},
		{"GET", "blobs/" + blob[1:], "Range", "bytes=5-", []string{"open " + blob + " 5 -1"}},
		{"GET", "blobs/" + blob[1:], "Range", "bytes=5-999999999", []string{"open " + blob + " 5 999999995"}},
		{"GET", "blobs/" + blob[1:], "Range", "bytes=-5", []string{"resolve " + blob, "open " + blob + " 299995 5"}},
	} {
		src := &opens{Source: c}
		url := serve(t, New(Config{Source: src}))
		var headers []string
		if tc.header != "" {
			headers = []string{tc.header, tc.value}
		}
		ask(t, tc.method, url+"/v2/app/"+tc.path, headers...)
		if got := strings.Join(src.calls, ", "); got != strings.Join(tc.want, ", ") {
			t.Errorf("%s %s, %s %s: got calls %s, want %s", tc.method, tc.path, tc.header, tc.value, got, tc.want)
		}
	}
}

func TestStale(t *testing.T) {
	url := serve(t, New(Config{Source: &opens{Source: newContent(), stale: true}}))
	for _, method := range []string{"GET", "HEAD"} {
		r := ask(t, method, url+"/v2/app/manifests/v1")
		if got, want := r.Header.Get("Warning"), `110 pier "Response is Stale"`; r.StatusCode != 200 || got != want {
			t.Errorf("%s: %d, Warning %q, want %q", method, r.StatusCode, got, want)
		}
	}
}

func TestManifestLimits(t *testing.T) {
	c := newContent()
	full := []byte(`{"config":{"digest":"x"},"x":"` + strings.Repeat("x", oci.MaxManifest-32) + `"}`)
	if len(full) != oci.MaxManifest {
		t.Fatalf("made a manifest of %d bytes", len(full))
	}
	fits := c.Add(ociImage, full)
	large := c.Add(ociImage, append(full, '\n'))
	for _, src := range []oci.Source{c, unsized{c}} {
		url := serve(t, New(Config{Source: src})) + "/v2/app/manifests/"
		if r := ask(t, "GET", url+string(fits.Digest)); r.StatusCode != 200 || len(r.body) != oci.MaxManifest || r.Header.Get("Content-Type") != ociImage {
			t.Errorf("%T: 4 MiB: %d, %d bytes of %s", src, r.StatusCode, len(r.body), r.Header.Get("Content-Type"))
		}
		r := ask(t, "GET", url+string(large.Digest))
		if r.StatusCode != 502 || r.code(t) != "MANIFEST_INVALID" {
			t.Errorf("%T: 4 MiB and a byte: %d", src, r.StatusCode)
		}
	}
	if r := ask(t, "HEAD", serve(t, New(Config{Source: c}))+"/v2/app/manifests/"+string(large.Digest)); r.StatusCode != 502 {
		t.Errorf("HEAD of 4 MiB and a byte: %d", r.StatusCode)
	}
}
