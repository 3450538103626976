package cache

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/chain"
	pier "pier/internal/oci"
	"pier/internal/oci/ocitest"
)

func mustParse(t *testing.T, name string) pier.Reference {
	t.Helper()
	ref, err := pier.ParseReference(name, "")
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// pushImage keeps an image as a client's push does.
func pushImage(t *testing.T, k *Cache, name string, seed uint64) []pier.Digest {
	t.Helper()
	all := keepImage(t, k, name, ocitest.Bytes(seed, 1000))
	if err := k.Tag(t.Context(), mustParse(t, name), pier.Descriptor{Digest: all[0], Source: SourcePush}); err != nil {
		t.Fatal(err)
	}
	return all
}

func wantAll(t *testing.T, k *Cache, all []pier.Digest, what string) {
	t.Helper()
	for _, d := range all {
		if !has(k, d) {
			t.Errorf("%s: %s is gone", what, d)
		}
	}
}

// A process that may open no more files learns nothing of those that it cannot open, and removes none of them.
func TestNoDescriptorsLeftCostNothing(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	all := pushImage(t, k, "site.test/app:1", 1)
	src := chain.Once(k.c.Log, "cache", k)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 3
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		src.(pier.Blamer).Blame(pier.Reference{Kind: pier.Blob, Digest: d}, "cache")
	}
	_, pruneErr := k.Prune(t.Context(), Prune{})
	_, manifestErr := k.image(&inventory{items: []item{{key: keyOf(all[0].Algorithm(), all[0].Encoded()), size: 100}}}, 0)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if pruneErr == nil || !errors.Is(manifestErr, syscall.EMFILE) {
		t.Errorf("a prune ended with %v, reading a manifest with %v", pruneErr, manifestErr)
	}
	wantAll(t, k, all, "after faults that are not those of the files")
}

// What was found wrong is dropped, and not what took its place meanwhile.
func TestBlameSparesWhatCameMeanwhile(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	d := keep(t, k, pier.Reference{Registry: "registry.test", Repository: "app", Kind: pier.Blob}, "", ocitest.Bytes(1, 1000)).Digest
	bad := k.path("bad")
	if err := errors.Join(os.Rename(k.blobPath(d), bad), os.WriteFile(k.blobPath(d), []byte("other"), 0o600)); err != nil {
		t.Fatal(err)
	}
	wrong, err := k.wrong(d)
	if wrong == nil || err != nil {
		t.Fatalf("it is wrong, got %v, %v", wrong, err)
	}
	if err := k.place(bad, d, 1000); err != nil {
		t.Fatal(err)
	}
	if err := k.dropFile(d, wrong); err != nil || !has(k, d) {
		t.Errorf("the right content went in the place of the wrong: %v", err)
	}
}

func TestAScrubIsNoUse(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	for _, d := range keepImage(t, k, "registry.test/app:1", ocitest.Bytes(1, 1000)) {
		age(t, k, d, 60*24*time.Hour)
	}
	src := chain.Once(k.c.Log, "cache", k)
	read := make(chan int, 100)
	ran := make(chan error, 1)
	go func() {
		ran <- chain.Scrubber{Source: src, Rate: 1 << 40, Pause: time.Hour, Log: k.c.Log, Read: func(n int) { read <- n }}.Run(t.Context())
	}()
	for range 3 {
		<-read
	}
	p, err := k.Prune(t.Context(), Prune{UnusedFor: 30 * 24 * time.Hour, DryRun: true})
	if err != nil || len(p.Images) != 1 {
		t.Errorf("unused for 60 days, but scrubbed: pruned are %q, %v", names(p.Images), err)
	}
}

// However many names there are, those of what nobody else has stay, and when they are all, that is said.
func TestNamesOfPushedImagesStay(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	pushed := pushImage(t, k, "site.test/app:1", 1)
	other := keepImage(t, k, "registry.test/x:1", ocitest.Bytes(2, 1000))
	k.mu.Lock()
	for n := range maxNames - 2 {
		k.index[fmt.Sprintf("registry.test/x:t%d", n)] = entry{Digest: other[0]}
	}
	k.mu.Unlock()
	for n := range 100 {
		ref := mustParse(t, "registry.test/x:1")
		ref.Tag = fmt.Sprintf("u%d", n)
		if err := k.Tag(t.Context(), ref, pier.Descriptor{Digest: other[0]}); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := k.named(mustParse(t, "site.test/app:1")); !ok || len(k.index) > maxNames {
		t.Errorf("named: %v, of %d names", ok, len(k.index))
	}
	k.mu.Lock()
	for name, e := range k.index {
		e.Source = SourcePush
		k.index[name] = e
	}
	k.mu.Unlock()
	if err := k.Tag(t.Context(), mustParse(t, "site.test/app:2"), pier.Descriptor{Digest: pushed[0], Source: SourcePush}); err == nil {
		t.Error("a name took the place of one that stays")
	}
}

// Either of the two files that have the names says what was in the other; nothing is evicted where both are lost.
func TestADamagedIndexCostsNothing(t *testing.T) {
	for _, text := range []string{"{", "", "null", "{}", "flipped"} {
		for _, file := range []string{"index.json", "pier/names.json", "both"} {
			t.Run(fmt.Sprintf("%s %q", file, text), func(t *testing.T) {
				dir := t.TempDir()
				k := open(t, dir, 0)
				all := pushImage(t, k, "site.test/app:1", 1)
				shut(t, k)
				for _, name := range []string{"index.json", "pier/names.json"} {
					if file != name && file != "both" {
						continue
					}
					damaged := []byte(text)
					if text == "flipped" {
						b, err := os.ReadFile(filepath.Join(dir, name))
						if err != nil {
							t.Fatal(err)
						}
						damaged = bytes.Replace(b, []byte("site.test/app:1"), []byte("sitd.test/app:1"), 1)
					}
					if err := os.WriteFile(filepath.Join(dir, name), damaged, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				k = open(t, dir, 500)
				time.Sleep(20 * time.Millisecond) // for an eviction
				wantAll(t, k, all, "after the start")
				if _, ok := k.named(mustParse(t, "site.test/app:1")); !ok && file != "both" {
					t.Error("its name is gone")
				}
				shut(t, k)
				k = open(t, dir, 0)
				defer shut(t, k)
				if _, ok := k.named(mustParse(t, "site.test/app:1")); !ok && file != "both" {
					t.Error("its name is gone after another start")
				}
			})
		}
	}
}

// What another tool adds to index.json while nobody runs is there.
func TestNamesThatOthersAdd(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir, 0)
	keepImage(t, k, "registry.test/a:1", ocitest.Bytes(1, 100))
	other := keepImage(t, k, "registry.test/b:1", ocitest.Bytes(2, 100))
	shut(t, k)
	text, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	k = open(t, dir, 0)
	k.unname([]string{"registry.test/b:1"})
	shut(t, k)
	if err := os.WriteFile(filepath.Join(dir, "index.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	k = open(t, dir, 0)
	defer shut(t, k)
	if e, ok := k.named(mustParse(t, "registry.test/b:1")); !ok || e.Digest != other[0] {
		t.Errorf("got %v, %v", e, ok)
	}
}

// A tag that a client pushed is not moved by a registry's answer that was long on its way.
func TestAPushWinsOverALateAnswer(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	late := keepImage(t, k, "site.test/late:1", ocitest.Bytes(2, 1000))
	pushed := pushImage(t, k, "site.test/app:1", 1)
	if err := k.Tag(t.Context(), mustParse(t, "site.test/app:1"), pier.Descriptor{Digest: late[0], Source: "site.test"}); err != nil {
		t.Fatal(err)
	}
	if e, _ := k.named(mustParse(t, "site.test/app:1")); e.Digest != pushed[0] {
		t.Errorf("it names %s", e.Digest)
	}
}

// A runtime asks for a tag, and then for the digest: that is one name, and who removes it removes the image.
func TestATagAndItsDigestAreOneName(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	var roots []pier.Digest
	for n, order := range []string{"the tag first", "the digest first"} {
		var mem ocitest.Memory
		ref := mustParse(t, fmt.Sprintf("registry.test/app:%d", n))
		m := mem.Image(ref, ocitest.Bytes(uint64(n), 1000))
		b, _, err := ocitest.ReadAll(t.Context(), &mem, ref.WithDigest(m.Digest))
		if err != nil {
			t.Fatal(err)
		}
		tag := func() {
			if err := k.Tag(t.Context(), ref, m); err != nil {
				t.Fatal(err)
			}
		}
		if order == "the tag first" {
			tag()
		}
		untagged := ref
		untagged.Tag = ""
		keep(t, k, untagged, m.MediaType, b)
		tag()
		roots = append(roots, m.Digest)
	}
	list, err := k.Images(t.Context(), nil)
	if err != nil || !slices.Equal(names(list), []string{"registry.test/app:0", "registry.test/app:1"}) {
		t.Errorf("named are %q, %v", names(list), err)
	}
	if _, err := k.Prune(t.Context(), Prune{Patterns: []string{"registry.test/app"}}); err != nil {
		t.Fatal(err)
	}
	for _, d := range roots {
		if has(k, d) {
			t.Errorf("%s stays", d)
		}
	}
}

// A manifest that comes after a restart belongs to the index that names it.
func TestAChildIsOneAfterARestartToo(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir, 0)
	var mem ocitest.Memory
	ref := mustParse(t, "registry.test/app:1")
	child := mem.Image(mustParse(t, "registry.test/app:child"), ocitest.Bytes(1, 1000))
	b, _, err := ocitest.ReadAll(t.Context(), &mem, ref.WithDigest(child.Digest))
	if err != nil {
		t.Fatal(err)
	}
	index, err := json.Marshal(v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{{
		MediaType: child.MediaType, Digest: child.Digest, Size: child.Size, Platform: &v1.Platform{OS: "linux", Architecture: "amd64"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	root := keep(t, k, ref, v1.MediaTypeImageIndex, index)
	if list, all := k.Platforms(root.Digest); all || len(list) > 0 {
		t.Errorf("of an index alone there are %q, all %v", list, all)
	}
	shut(t, k)
	k = open(t, dir, 0)
	defer shut(t, k)
	ref.Tag = ""
	keep(t, k, ref, child.MediaType, b)
	if _, all := k.Platforms(root.Digest); !all {
		t.Error("not all platforms are here")
	}
	if _, err := k.Prune(t.Context(), Prune{Patterns: []string{"registry.test/app:1"}}); err != nil || has(k, child.Digest) {
		t.Errorf("the child of an index that went stays, %v", err)
	}
}

// What is dated in the future ages all the same, and a use of it counts.
func TestContentOfTheFuture(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	future := keepImage(t, k, "registry.test/future:1", ocitest.Bytes(1, 1000))
	for _, d := range future {
		age(t, k, d, -20*365*24*time.Hour)
	}
	prune := func(p Prune) int {
		t.Helper()
		p.DryRun = true
		done, err := k.Prune(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		return len(done.Images)
	}
	if n := prune(Prune{OlderThan: time.Minute}); n > 0 {
		t.Error("what was never seen before is old")
	}
	then := time.Now().Add(-time.Hour)
	for _, d := range future {
		if err := os.Chtimes(k.usedPath(d), then, then); err != nil {
			t.Fatalf("it has no mark: %v", err)
		}
	}
	if prune(Prune{OlderThan: time.Minute}) != 1 || prune(Prune{UnusedFor: time.Minute}) != 1 {
		t.Error("it does not age")
	}
	if _, err := k.Resolve(t.Context(), mustParse(t, "registry.test/future:1")); err != nil {
		t.Fatal(err)
	}
	if prune(Prune{UnusedFor: time.Minute}) != 0 {
		t.Error("its use does not count")
	}
}

// An upload that failed for want of room takes none, and one that was written to a moment ago waits for the next piece.
func TestUploadsAndRoom(t *testing.T) {
	k := open(t, t.TempDir(), 1_000_000)
	defer shut(t, k)
	var ids []string
	for n := range uint64(2) {
		id, err := k.StartUpload()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.AppendUpload(id, 0, bytes.NewReader(ocitest.Bytes(n, 90_000))); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if err := k.sweepPartials(partialLife); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Uploaded(ids[0]); err != nil {
		t.Errorf("an upload that was written to just now: %v", err)
	}
	if _, err := k.AppendUpload(ids[0], -1, full{}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v, want that there is no room", err)
	}
	if _, err := k.Uploaded(ids[0]); !errors.Is(err, pier.ErrNotFound) {
		t.Errorf("what there was no room for stays: %v", err)
	}
	k.stays.Store(2_000_000)
	k.bytes.Store(2_000_000)
	if _, err := k.StartUpload(); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "pier prune") {
		t.Errorf("a cache that is full of what stays takes more: %v", err)
	}
	k.bytes.Store(0)
	if _, err := k.Prune(t.Context(), Prune{}); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(k.path("pier", "partial", "*")); err != nil || len(left) > 0 {
		t.Errorf("after all was pruned there are %q, %v", left, err)
	}
}

type full struct{}

func (full) Read([]byte) (int, error) { return 0, syscall.ENOSPC }

// Blobs of a push stay until their manifest has come, whatever is removed meanwhile; after it they are part of the image.
func TestPrunesSpareWhatIsBeingPushed(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	b := ocitest.Bytes(1, 1000)
	id, err := k.StartUpload()
	if err == nil {
		_, err = k.AppendUpload(id, 0, bytes.NewReader(b))
	}
	if err == nil {
		err = k.FinishUpload(id, ocitest.Digest(b))
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Prune(t.Context(), Prune{}); err != nil || !has(k, ocitest.Digest(b)) {
		t.Fatalf("it went before its manifest came: %v", err)
	}
	pushImage(t, k, "site.test/app:1", 1) // it has that blob
	if _, err := k.Prune(t.Context(), Prune{Patterns: []string{"site.test/app:1"}}); err != nil || has(k, ocitest.Digest(b)) {
		t.Errorf("it stays after its image went: %v", err)
	}
}

func TestStrayFilesAreInNobodysWay(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	if err := os.WriteFile(k.path("pier", "referrers", "stray"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Prune(t.Context(), Prune{}); err != nil {
		t.Error(err)
	}
}
