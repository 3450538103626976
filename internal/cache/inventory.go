package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"pier/internal/chain"
	"pier/internal/oci"
)

// An inventory is what is here at one time. It is made for a hundred thousand files: 64 bytes for each.
type inventory struct {
	items  []item // sorted by key
	images []image
	long   map[key]oci.Digest // those whose key is not all of them
}

// An item is content.
type item struct {
	key    key
	size   int64 // bytes
	kept   int64 // Unix time in nanoseconds, as used
	used   int64
	needed int32 // how many images need it
}

// A key is what tells one digest from all others: its algorithm, and the first 256 bits of its value.
type key [1 + sha256.Size]byte

func keyOf(alg digest.Algorithm, value string) (k key) {
	if alg == digest.SHA512 {
		k[0] = 1
	}
	_, _ = hex.Decode(k[1:], []byte(value[:2*sha256.Size])) // it was parsed
	return k
}

// digest returns the digest of an item.
func (v *inventory) digest(i int32) oci.Digest {
	k := &v.items[i].key
	if k[0] == 1 {
		return v.long[*k]
	}
	return digest.NewDigestFromBytes(digest.SHA256, k[1:])
}

// An image is what goes or stays together: a manifest that has a name, or that nothing refers to, with all it refers to.
type image struct {
	content []int32 // items; its root is the first
	used    int64   // of the latest of its manifests
}

// find returns which item a digest is.
func (v *inventory) find(d oci.Digest) (int32, bool) {
	if _, err := oci.ParseDigest(d.String()); err != nil {
		return 0, false
	}
	want := keyOf(d.Algorithm(), d.Encoded())
	i := sort.Search(len(v.items), func(i int) bool { return bytes.Compare(v.items[i].key[:], want[:]) >= 0 })
	return int32(i), i < len(v.items) && v.items[i].key == want
}

// inventory finds out what is here. Content that no image needs, such as a blob asked for alone, is an image of its own.
func (k *Cache) inventory() (*inventory, error) {
	_, blobs := k.Size()
	v := &inventory{items: make([]item, 0, blobs), long: make(map[key]oci.Digest)}
	if err := k.each(func(alg digest.Algorithm, name string, st *unix.Stat_t) {
		it := item{key: keyOf(alg, name), size: st.Size, kept: st.Mtim.Nano(), used: st.Mtim.Nano()}
		if alg == digest.SHA512 {
			v.long[it.key] = digest.NewDigestFromEncoded(alg, name)
		}
		v.items = append(v.items, it)
	}); err != nil {
		return nil, err
	}
	sort.Slice(v.items, func(i, j int) bool { return bytes.Compare(v.items[i].key[:], v.items[j].key[:]) < 0 })
	if err := k.uses(v, time.Now()); err != nil {
		return nil, err
	}
	for _, root := range k.roots() {
		if i, ok := v.find(root); ok {
			img, err := k.image(v, i)
			if err != nil {
				return nil, err
			}
			v.add(img)
		}
	}
	return v, k.orphans(v)
}

// roots returns the manifests that have a name.
func (k *Cache) roots() []oci.Digest {
	k.mu.Lock()
	defer k.mu.Unlock()
	seen := make(map[oci.Digest]bool, len(k.index))
	list := make([]oci.Digest, 0, len(k.index))
	for _, e := range k.index {
		if !seen[e.Digest] {
			seen[e.Digest] = true
			list = append(list, e.Digest)
		}
	}
	return list
}

func (v *inventory) add(img image) {
	for _, i := range img.content {
		v.items[i].needed++
	}
	v.images = append(v.images, img)
}

// orphans adds what has no name. A manifest without one, as a crash may leave it, still holds its image together: so larger ones first.
func (k *Cache) orphans(v *inventory) error {
	var orphans []image
	for i := range v.items {
		if v.items[i].needed == 0 && v.items[i].size <= oci.MaxManifest {
			img, err := k.image(v, int32(i))
			if err != nil {
				return err
			}
			if len(img.content) > 1 {
				orphans = append(orphans, img)
			}
		}
	}
	sort.Slice(orphans, func(i, j int) bool { return len(orphans[i].content) > len(orphans[j].content) })
	for _, img := range orphans {
		if v.items[img.content[0]].needed == 0 {
			v.add(img)
		}
	}
	for i := range v.items {
		if it := &v.items[i]; it.needed == 0 {
			v.add(image{[]int32{int32(i)}, it.used})
		}
	}
	return nil
}

// image follows a manifest to all that is here of what it refers to. Indexes may be nested, or even refer to each other.
func (k *Cache) image(v *inventory, root int32) (image, error) {
	img := image{content: []int32{root}}
	seen := map[int32]bool{root: true}
	visit := func(d oci.Digest) (i int32, isNew bool) {
		i, here := v.find(d)
		if !here || seen[i] {
			return i, false
		}
		seen[i] = true
		img.content = append(img.content, i)
		return i, true
	}
	for queue := []int32{root}; len(queue) > 0; queue = queue[1:] {
		it := &v.items[queue[0]]
		img.used = max(img.used, it.used)
		if it.size > oci.MaxManifest {
			continue
		}
		info, err := k.readManifest(v.digest(queue[0]), it.size)
		if exhausted(err) {
			return image{}, fmt.Errorf("cache: what belongs together cannot be found out: %w", err)
		}
		if err != nil {
			continue // a blob, or damaged: what it referred to is judged on its own
		}
		for _, b := range info.Blobs {
			visit(b.Digest)
		}
		for _, m := range info.Manifests {
			if i, isNew := visit(m.Digest); isNew {
				queue = append(queue, i)
			}
		}
	}
	return img, nil
}

// exhausted reports whether a fault is that of the process or the machine, and says nothing about a file.
func exhausted(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EAGAIN, unix.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// readManifest reads a manifest to find out what belongs together: once, and nothing of it is remembered.
func (k *Cache) readManifest(dgst oci.Digest, size int64) (oci.ManifestInfo, error) {
	f, err := os.OpenFile(k.blobPath(dgst), os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe that took its place would hang
	if err != nil {
		return oci.ManifestInfo{}, err
	}
	defer f.Close()
	return chain.ReadManifest(f, oci.Descriptor{Digest: dgst, Size: size})
}

// uses sets when content was last used. What is dated in the future, since a clock was wrong, is as old as its mark says; it gets one now if it
// has none, so that it ages.
func (k *Cache) uses(v *inventory, now time.Time) error {
	future := now.Add(touchAfter).UnixNano()
	err := chain.ReadDir(k.path("pier", "used"), func(e fs.DirEntry) {
		d, err := oci.ParseDigest(strings.Replace(e.Name(), "-", ":", 1))
		if err != nil {
			return
		}
		i, here := v.find(d)
		if !here {
			_ = os.Remove(k.path("pier", "used", e.Name())) // it is in nobody's way
			return
		}
		info, err := e.Info()
		if err != nil {
			return
		}
		switch at, it := info.ModTime().UnixNano(), &v.items[i]; {
		case at > future:
		case it.kept > future:
			it.kept, it.used = at, at
		default:
			it.used = max(it.used, at)
		}
	})
	for i := range v.items {
		if it := &v.items[i]; it.kept > future {
			it.kept, it.used = now.UnixNano(), now.UnixNano()
			k.mark(v.digest(int32(i)), now)
		}
	}
	return err
}
