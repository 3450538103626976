package cache

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	pier "pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// names returns the names of images, and the digests of those that have none.
func names(list []Image) (names []string) {
	for _, img := range list {
		if len(img.Names) == 0 {
			names = append(names, img.Digest.String())
		}
		names = append(names, img.Names...)
	}
	slices.Sort(names)
	return names
}

// stock fills a cache: a and b share a layer; a is unused for 3 days, b came 5 days ago and was used an hour ago, c came just now, d was pushed ten
// days ago.
func stock(t *testing.T, k *Cache) (a, b, c, d []pier.Digest) {
	t.Helper()
	shared := ocitest.Bytes(1, 10_000)
	a = keepImage(t, k, "docker.io/library/a:1", shared, ocitest.Bytes(2, 20_000))
	b = keepImage(t, k, "docker.io/team/b:1", shared, ocitest.Bytes(3, 30_000))
	c = keepImage(t, k, "registry.test:5000/deep/er/c:1", ocitest.Bytes(4, 40_000))
	d = keepImage(t, k, "site.test/d:1", ocitest.Bytes(5, 50_000))
	for img, by := range map[*[]pier.Digest]time.Duration{&a: 72 * time.Hour, &b: 120 * time.Hour, &d: 240 * time.Hour} {
		for _, digest := range *img {
			age(t, k, digest, by)
		}
	}
	k.touch(b[0], time.Now().Add(-120*time.Hour))
	ref, _ := pier.ParseReference("site.test/d:1", "")
	if err := k.Tag(t.Context(), ref, pier.Descriptor{Digest: d[0], Source: SourcePush}); err != nil {
		t.Fatal(err)
	}
	return a, b, c, d
}

func TestImages(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir, 0)
	a, b, _, d := stock(t, k)
	alone := keep(t, k, pier.Reference{Registry: "registry.test", Repository: "x", Kind: pier.Blob}, "", ocitest.Bytes(9, 100))
	shut(t, k) // it is all known after a restart
	k = open(t, dir, 0)
	defer shut(t, k)
	list, err := k.Images(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"docker.io/library/a:1", "docker.io/team/b:1", "registry.test:5000/deep/er/c:1", alone.Digest.String(), "site.test/d:1"}
	if got := names(list); !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
	size := func(digests []pier.Digest) (n int64) {
		for _, d := range digests {
			info, err := os.Stat(k.blobPath(d))
			if err != nil {
				t.Fatal(err)
			}
			n += info.Size()
		}
		return n
	}
	if list[0].Size != size(a) || list[0].Alone < 20_000 || list[0].Alone > size(a)-10_000 || list[0].Digest != a[0] {
		t.Errorf("got %+v", list[0])
	}
	if since := time.Since(list[1].Used); list[1].Digest != b[0] || since > time.Minute || time.Since(list[1].Kept) < 119*time.Hour {
		t.Errorf("got %+v", list[1])
	}
	if list[3].Source != SourcePush || list[3].Digest != d[0] {
		t.Errorf("got %+v", list[3])
	}
	for pattern, want := range map[string]int{
		"a": 1, "a:1": 1, "library/a": 1, "docker.io/library/a:1": 1, "team/b": 1, "b": 0, "*/b*": 1, "registry.test:5000/*": 1, "registry.test:5000/deep/er/c": 1,
		"*": 4, "docker.io/*": 2, "site.test/d:[12]": 1, "site.test/d:?": 1, "A": 0, "nothing": 0,
	} {
		list, err := k.Images(t.Context(), []string{pattern})
		if err != nil || len(list) != want {
			t.Errorf("%s: got %q, %v, want %d", pattern, names(list), err, want)
		}
	}
	if _, err := k.Images(t.Context(), []string{"[a"}); err == nil || !strings.Contains(err.Error(), "[a") {
		t.Errorf("a pattern without an end: %v", err)
	}
}

func TestPrune(t *testing.T) {
	const a, b, c, d = "docker.io/library/a:1", "docker.io/team/b:1", "registry.test:5000/deep/er/c:1", "site.test/d:1"
	for name, tc := range map[string]struct {
		prune Prune
		want  []string
	}{
		"all":                         {Prune{}, []string{a, b, c}},
		"old":                         {Prune{OlderThan: 48 * time.Hour}, []string{a, b}},
		"unused":                      {Prune{UnusedFor: 48 * time.Hour}, []string{a}},
		"old and unused":              {Prune{OlderThan: 100 * time.Hour, UnusedFor: 48 * time.Hour}, nil},
		"by pattern":                  {Prune{Patterns: []string{"docker.io/*"}}, []string{a, b}},
		"by pattern and age":          {Prune{Patterns: []string{"docker.io/*"}, UnusedFor: 48 * time.Hour}, []string{a}},
		"the last stays":              {Prune{KeepLast: 1}, nil},
		"until it fits":               {Prune{MaxBytes: 140_000}, []string{a}},
		"until it fits, in part":      {Prune{MaxBytes: 1, UnusedFor: 48 * time.Hour}, []string{a}},
		"it fits":                     {Prune{MaxBytes: 1 << 30}, nil},
		"pushed, by pattern":          {Prune{Patterns: []string{"site.test/*"}}, nil},
		"pushed, by name":             {Prune{Patterns: []string{d}}, []string{d}},
		"what is not there":           {Prune{Patterns: []string{"nothing"}}, nil},
		"a dry run removes nothing":   {Prune{DryRun: true}, []string{a, b, c}},
		"a dry run with an age, also": {Prune{DryRun: true, OlderThan: 48 * time.Hour}, []string{a, b}},
	} {
		t.Run(name, func(t *testing.T) {
			k := open(t, t.TempDir(), 0)
			defer shut(t, k)
			stock(t, k)
			before, _ := k.Size()
			all, err := k.Images(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := k.Prune(t.Context(), tc.prune)
			if err != nil || !slices.Equal(names(got.Images), tc.want) {
				t.Fatalf("got %q, %v, want %q", names(got.Images), err, tc.want)
			}
			after, _ := k.Size()
			if tc.prune.DryRun {
				after = before - got.Bytes
			}
			if got.Left != after || got.Bytes != before-after {
				t.Errorf("freed %d and left %d, of %d there are %d", got.Bytes, got.Left, before, after)
			}
			left, err := k.Images(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			want := slices.DeleteFunc(names(all), func(name string) bool { return !tc.prune.DryRun && slices.Contains(tc.want, name) })
			if !slices.Equal(names(left), want) {
				t.Errorf("left are %q, want %q", names(left), want)
			}
			for _, img := range left {
				for _, b := range blobsOf(t, k, img.Digest) {
					if !has(k, b) {
						t.Errorf("%s of %q is gone", b, img.Names)
					}
				}
			}
		})
	}
}

func blobsOf(t *testing.T, k *Cache, root pier.Digest) (list []pier.Digest) {
	t.Helper()
	info, _, err := k.files.Manifest(k.c.Dir, root)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range info.Blobs {
		list = append(list, b.Digest)
	}
	return list
}

// Of several tags of a repository the last stay, by when they came; an image that has another name stays with all it needs.
func TestPruneKeepsTheLast(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	var digests []pier.Digest
	for i, tag := range []string{"1", "2", "3", "4"} {
		img := keepImage(t, k, "registry.test/app:"+tag, ocitest.Bytes(uint64(i), 1000))
		age(t, k, img[0], time.Duration(10-i)*time.Hour)
		digests = append(digests, img[0])
	}
	also, _ := pier.ParseReference("registry.test/app:stable", "")
	if err := k.Tag(t.Context(), also, pier.Descriptor{Digest: digests[0]}); err != nil {
		t.Fatal(err)
	}
	got, err := k.Prune(t.Context(), Prune{Patterns: []string{"registry.test/app:[0-9]"}, KeepLast: 2})
	if want := []string{"registry.test/app:1", "registry.test/app:2"}; err != nil || !slices.Equal(names(got.Images), want) {
		t.Fatalf("got %q, %v, want %q", names(got.Images), err, want)
	}
	for i, want := range []bool{true, false, true, true} { // the first is stable, too
		if has(k, digests[i]) != want {
			t.Errorf("image %d: it is there: %t", i+1, !want)
		}
	}
	list, err := k.Images(t.Context(), []string{"registry.test/app:stable"})
	if err != nil || len(list) != 1 || !slices.Equal(list[0].Names, []string{"registry.test/app:stable"}) {
		t.Errorf("got %+v, %v", list, err)
	}
}

// What was pushed is nowhere else: it stays when the cache is full.
func TestEvictionSparesWhatWasPushed(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	_, _, _, d := stock(t, k)
	k.c.MaxBytes = 1
	if err := k.evict(); err != nil {
		t.Fatal(err)
	}
	list, err := k.Images(t.Context(), nil)
	if want := []string{"site.test/d:1"}; err != nil || !slices.Equal(names(list), want) {
		t.Errorf("left are %q, %v, want %q", names(list), err, want)
	}
	for _, digest := range d {
		if !has(k, digest) {
			t.Errorf("%s of it is gone", digest)
		}
	}
}
