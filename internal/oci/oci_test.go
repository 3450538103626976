package oci

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

const (
	sum256 = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	sum512 = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e"
)

func TestParseDigest(t *testing.T) {
	for s, ok := range map[string]bool{
		sum256: true, sum512: true, "": false, "sha256:": false, "sha256:abc": false, sum256 + "0": false, strings.ToUpper(sum256): false,
		"sha256:" + strings.Repeat("g", 64): false, "sha384:" + strings.Repeat("0", 96): false, "md5:" + strings.Repeat("0", 32): false,
		"sha256:../../../../etc/passwd": false, "\n" + sum256: false,
	} {
		if d, err := ParseDigest(s); (err == nil) != ok || (ok && d.String() != s) || (!ok && !errors.Is(err, ErrDigestInvalid)) {
			t.Errorf("ParseDigest(%q) = %q, %v, want ok %v", s, d, err, ok)
		}
	}
}

func TestParseReference(t *testing.T) {
	for s, want := range map[string]string{
		"alpine":                           "docker.io/library/alpine:latest",
		"alpine:3.20":                      "docker.io/library/alpine:3.20",
		"team/app":                         "docker.io/team/app:latest",
		"index.docker.io/alpine":           "docker.io/library/alpine:latest",
		"registry.test/a/b/c/d/e:V1.0":     "registry.test/a/b/c/d/e:V1.0",
		"registry.test:5000/app@" + sum256: "registry.test:5000/app@" + sum256,
		"registry.test/app:v1@" + sum512:   "registry.test/app:v1@" + sum512,
		"localhost/app":                    "localhost/app:latest",
		"[2001:db8::1]:5000/app:v1":        "[2001:db8::1]:5000/app:v1",
		"REGISTRY.test/app":                "registry.test/app:latest",
		"":                                 "",
		"UPPER/case":                       "",
		"registry.test/app:":               "",
		"registry.test/app:-x":             "",
		"registry.test/app@sha256:abc":     "",
		"registry.test//app":               "",
		"registry.test/../app":             "",
		"registry.test/app:" + strings.Repeat("x", 129): "",
		"registry.test/" + strings.Repeat("x", 256):     "",
		"reg istry.test/app":                            "",
	} {
		ref, err := ParseReference(s, DockerHub)
		if want == "" {
			if err == nil {
				t.Errorf("ParseReference(%q) = %s, want an error", s, ref)
			}
			continue
		}
		if err != nil || ref.String() != want {
			t.Errorf("ParseReference(%q) = %s, %v, want %s", s, ref, err, want)
		}
	}
}

// The scanners do what the specifications' own expressions say.
func FuzzScanners(f *testing.F) {
	tag := regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	repository := regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	registry := regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*\.?|\[[a-fA-F0-9:.]+\])(?::[0-9]{1,5})?$`)
	for _, s := range []string{
		"a/b", "a__b", "a___b", "a--b/c", "a.-b", "a..b", "a_.b", "/a", "a/", "a//b", "-a", "a-", "a/_b", "a-/b", "A", "a_b__c---d.e/f0",
		"Registry.test:5000", "a.b.:1", "a..b", "[::1]:5000", "[::1]", "[]", "[::g]", "[1", "a:", "a:123456", "a-.b", "-a.b", "a:b", "a]", ":1", ".", "",
		sum256, sum512, "v1", "_", ".a", "a.", "a\n", strings.Repeat("x", 128), strings.Repeat("x", 129), "sha256:" + strings.Repeat("A", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d := digest.Digest(s)
		want := d.Validate() == nil && (d.Algorithm() == digest.SHA256 || d.Algorithm() == digest.SHA512)
		if _, err := ParseDigest(s); (err == nil) != want {
			t.Errorf("ParseDigest(%q): error %v, want valid %v", s, err, want)
		}
		if got, want := validTag(s), tag.MatchString(s); got != want {
			t.Errorf("tag %q: valid %v, want %v", s, got, want)
		}
		if got, want := validRepository(s), repository.MatchString(s); got != want {
			t.Errorf("repository %q: valid %v, want %v", s, got, want)
		}
		if got, want := validRegistry(s), registry.MatchString(s); got != want {
			t.Errorf("registry %q: valid %v, want %v", s, got, want)
		}
	})
}

func FuzzParseReference(f *testing.F) {
	f.Add("registry.test:5000/a/b:v1@" + sum256)
	f.Add("[::1]:5000/app")
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s, DockerHub)
		if err != nil {
			return
		}
		again, err := ParseReference(ref.String(), "other.test")
		if err != nil || again != ref {
			t.Errorf("%q is %+v, which reads back as %+v, %v", s, ref, again, err)
		}
	})
}

func TestParseManifest(t *testing.T) {
	const d = `{"digest":"` + sum256 + `","mediaType":"application/vnd.oci.image.config.v1+json","size":1}`
	for _, c := range []struct{ in, mediaType string }{
		{`{"schemaVersion":2,"config":` + d + `,"layers":[]}`, "application/vnd.oci.image.manifest.v1+json"},
		{`{"schemaVersion":2,"manifests":[]}`, "application/vnd.oci.image.index.v1+json"},
		{`{"mediaType":"` + MediaTypeDockerList + `","manifests":[]}`, MediaTypeDockerList},
		{`{"schemaVersion":1,"fsLayers":[]}`, mediaTypeSchema1},
		{`{"architecture":"amd64","config":{"Cmd":["/x"]},"rootfs":{}}`, ""}, // an image's configuration is none
		{`{}`, ""}, {`[]`, ""}, {``, ""}, {"\x1f\x8b", ""}, {`{"manifests":3}`, ""},
	} {
		info, err := ParseManifest([]byte(c.in))
		if info.MediaType != c.mediaType || (err == nil) != (c.mediaType != "") {
			t.Errorf("ParseManifest(%s) = %q, %v, want %q", c.in, info.MediaType, err, c.mediaType)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"` + sum256 + `"}],"subject":{}}`))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = ParseManifest(b) })
}

func TestAuthorization(t *testing.T) {
	if got := Authorization(t.Context()); got != "" {
		t.Errorf("without: got %q", got)
	}
	ctx := WithAuthorization(context.Background(), "Bearer x")
	if got := Authorization(ctx); got != "Bearer x" {
		t.Errorf("got %q", got)
	}
}

// A few bytes of a hostile manifest must not become many in memory.
func TestParseManifestIsBounded(t *testing.T) {
	for what, in := range map[string]string{
		"references":  `{"manifests":[{}` + strings.Repeat(",{}", MaxManifest/3-100) + `]}`,
		"media type":  `{"mediaType":"` + strings.Repeat("x", MaxManifest-100) + `","layers":[]}`,
		"child":       `{"manifests":[{"digest":"` + strings.Repeat("x", MaxManifest-100) + `"}]}`,
		"annotations": `{"manifests":[],"annotations":{` + strings.TrimSuffix(strings.Join(manyKeys(), ","), ",") + `}}`,
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := ParseManifest([]byte(in))
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: got error %v, want ErrTooLarge", what, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 40<<20 {
			t.Errorf("%s: %d MiB allocated for a manifest of %d", what, n>>20, len(in)>>20)
		}
	}
}

func manyKeys() []string {
	var keys []string
	for i := range 100_000 {
		keys = append(keys, fmt.Sprintf(`"%d":""`, i))
	}
	return keys
}
