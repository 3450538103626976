package cache

import (
	"errors"
	"io/fs"
	"sort"
	"time"

	"pier/internal/oci"
)

// An image is what goes or stays together: a manifest that has a name, or that nothing refers to, with all it refers to.
type image struct {
	root    oci.Digest
	used    time.Time // of the latest of its manifests
	content []oci.Digest
}

type file struct {
	size int64
	used time.Time
}

// slack is the part of the limit that an eviction frees beyond need, so that not every blob that comes causes one: each
// reads all manifests.
const slack = 100 // a hundredth

// evict deletes the least recently used images until the content fits. What a kept image needs stays.
func (k *Cache) evict() error {
	k.settle.Lock()
	defer k.settle.Unlock()
	images, needed, err := k.images()
	if err != nil {
		return err
	}
	before := k.bytes.Load()
	sort.Slice(images, func(i, j int) bool {
		a, b := &images[i], &images[j]
		return a.used.Before(b.used) || a.used.Equal(b.used) && a.root < b.root
	})
	gone := 0
	for _, img := range images {
		if k.bytes.Load() <= k.c.MaxBytes-k.c.MaxBytes/slack {
			break
		}
		gone++
		for _, d := range img.content {
			if needed[d]--; needed[d] > 0 {
				continue
			}
			if err := k.drop(d); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(k.dropMarks(), k.dropUses()); err != nil {
		return err
	}
	freed := before - k.bytes.Load()
	k.evicted.Add(int(freed))
	k.c.Log.Info("cache was full, least recently used images evicted", "images", gone, "bytes", freed, "left", k.bytes.Load())
	return nil
}

// images returns every image, and how many of them need each digest. Content that no image needs, such as a blob asked for
// alone, is an image of its own.
func (k *Cache) images() ([]image, map[oci.Digest]int, error) {
	files := make(map[oci.Digest]file)
	if err := k.each(func(d oci.Digest, info fs.FileInfo) { files[d] = file{info.Size(), k.used(d, info.ModTime())} }); err != nil {
		return nil, nil, err
	}
	var total int64
	for _, f := range files {
		total += f.size
	}
	k.bytes.Store(total) // whatever happened to the directory meanwhile, this is what is there
	k.blobs.Store(int64(len(files)))
	roots := make(map[oci.Digest]bool)
	k.mu.Lock()
	for _, e := range k.index {
		roots[e.Digest] = true
	}
	k.mu.Unlock()
	needed := make(map[oci.Digest]int, len(files))
	var images []image
	add := func(root oci.Digest) {
		img := k.image(root, files)
		for _, d := range img.content {
			needed[d]++
		}
		images = append(images, img)
	}
	for d := range roots {
		if _, ok := files[d]; ok {
			add(d)
		}
	}
	// A manifest without a name, as a crash may leave it, still holds its image together: so larger closures first.
	var orphans []image
	for d, f := range files {
		if needed[d] == 0 && f.size <= oci.MaxManifest {
			orphans = append(orphans, k.image(d, files))
		}
	}
	sort.Slice(orphans, func(i, j int) bool { return len(orphans[i].content) > len(orphans[j].content) })
	for _, img := range orphans {
		if needed[img.root] == 0 {
			add(img.root)
		}
	}
	for d := range files {
		if needed[d] == 0 {
			add(d)
		}
	}
	return images, needed, nil
}

// image follows a manifest to all that is here of what it refers to. Indexes may be nested, or even refer to each other.
func (k *Cache) image(root oci.Digest, files map[oci.Digest]file) image {
	img := image{root: root}
	seen := map[oci.Digest]bool{}
	queue := []oci.Digest{root}
	visit := func(d oci.Digest) {
		if _, ok := files[d]; ok && !seen[d] {
			seen[d] = true
			img.content = append(img.content, d)
		}
	}
	visit(root)
	for len(queue) > 0 {
		d := queue[0]
		queue = queue[1:]
		if used := files[d].used; used.After(img.used) {
			img.used = used
		}
		if files[d].size > oci.MaxManifest {
			continue
		}
		info, _, err := k.files.Manifest(k.c.Dir, d)
		if err != nil {
			continue // a blob, or damaged: what it referred to is judged on its own
		}
		for _, b := range info.Blobs {
			visit(b.Digest)
		}
		for _, m := range info.Manifests {
			if _, here := files[m.Digest]; here && !seen[m.Digest] {
				visit(m.Digest)
				queue = append(queue, m.Digest)
			}
		}
	}
	return img
}
