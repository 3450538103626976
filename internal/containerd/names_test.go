package containerd

import (
	"maps"
	"testing"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

func TestNames(t *testing.T) {
	f := startFake(t)
	a, b, c := ocitest.Digest([]byte("a")), ocitest.Digest([]byte("b")), ocitest.Digest([]byte("c"))
	for _, img := range []struct {
		namespace, name string
		target          oci.Digest
	}{
		{"aaa", "registry.test/team/App:v1", a}, // no name a registry could have
		{"aaa", "registry.test/app:v1", c},
		{"default", "registry.test/app:v1", b},
		{"k8s.io", "registry.test/app:v1", a},
		{"aaa", "registry.test/app:V1", c}, // another tag
		{"zzz", "registry.test/low:v1", a},
		{"moby", "registry.test/low:v1", b},
		{"default", "docker.io/library/alpine:3", a},
		{"k8s.io", "index.docker.io/busybox", b},
		{"k8s.io", a.String(), a},
		{"k8s.io", "registry.test/pinned@" + a.String(), a},
		{"k8s.io", "registry.test/pinned:v1@" + a.String(), a},
		{"k8s.io", "localhost:5000/x:y", c},
		{"k8s.io", "registry.test/broken:v1", "sha256:zz"},
		{"k8s.io", "", a},
		{"k8s.io", "with space", a},
	} {
		f.name(img.namespace, img.name, img.target, false)
	}
	s := open(t, Config{Socket: f.socket})
	want := map[string]map[string]oci.Digest{
		"registry.test/app":         {"v1": a, "V1": c},
		"registry.test/low":         {"v1": b},
		"docker.io/library/alpine":  {"3": a},
		"docker.io/library/busybox": {"latest": b},
		"localhost:5000/x":          {"y": c},
	}
	if got := s.known().tags; !maps.EqualFunc(got, want, maps.Equal) {
		t.Errorf("tags:\n got %v\nwant %v", got, want)
	}
	if s.Images() != 3 {
		t.Errorf("%d images, want 3", s.Images())
	}
}

// A listing larger than any buffer on its way, with names that differ only far inside.
func TestManyNames(t *testing.T) {
	f := startFake(t)
	dgst := ocitest.Digest(nil)
	f.images["k8s.io"] = make(map[string]oci.Digest)
	const n = 20_000
	for i := range n {
		f.images["k8s.io"]["registry.test/app:"+ocitest.Digest([]byte{byte(i), byte(i >> 8)}).Encoded()] = dgst
	}
	s := open(t, Config{Socket: f.socket})
	if got := len(s.known().tags["registry.test/app"]); got != n {
		t.Errorf("%d tags, want %d", got, n)
	}
}
