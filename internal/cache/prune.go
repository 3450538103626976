package cache

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"sort"
	"strings"
	"time"

	"pier/internal/oci"
)

// An Image is one that is kept: a manifest with all that it needs and that is here. Content that belongs to no image, such as a blob that
// was asked for alone, counts as one.
type Image struct {
	Names     []string   `json:"names"` // registry/repository:tag, or @digest where it was asked for by that; sorted
	Digest    oci.Digest `json:"digest"`
	MediaType string     `json:"mediaType,omitempty"` // of a manifest with a name
	Size      int64      `json:"size"`                // bytes of all that it needs
	Alone     int64      `json:"alone"`               // of those, bytes that nothing else needs
	Kept      time.Time  `json:"kept"`                // when its manifest came
	Used      time.Time  `json:"used"`                // when it was last asked for
	Source    string     `json:"source,omitempty"`    // what supplied it: a registry's host, "peer", [SourcePush] or [SourceArchive]
}

// Sources of images that nobody else may have: a client pushed them, or they were loaded from an archive.
const (
	SourcePush    = "push"
	SourceArchive = "archive"
)

// precious reports whether what came from a source stays until somebody names it.
func precious(source string) bool { return source == SourcePush || source == SourceArchive }

// Images returns what is here, by name; what has no name comes last, by digest. Patterns choose by names, see [Match]; none: all.
func (k *Cache) Images(_ context.Context, patterns []string) ([]Image, error) {
	if err := CheckPatterns(patterns); err != nil {
		return nil, err
	}
	k.settle.RLock()
	defer k.settle.RUnlock()
	v, err := k.inventory()
	if err != nil {
		return nil, err
	}
	list := []Image{}
	for _, img := range k.describe(v) {
		if img.Names = matching(patterns, img.Names); len(img.Names) > 0 || len(patterns) == 0 {
			list = append(list, img.Image)
		}
	}
	return list, nil
}

// Platforms returns the platforms that are here of an index, such as linux/arm64/v8, and whether that is all there is to it; of an image that is no
// index it is. That is no use of it.
func (k *Cache) Platforms(dgst oci.Digest) (list []string, all bool) {
	info, _, err := k.files.Manifest(k.c.Dir, dgst)
	if err != nil {
		return nil, false
	}
	all = true
	for _, m := range info.Manifests {
		if _, err := os.Stat(k.blobPath(m.Digest)); err != nil {
			all = false
		} else if p := m.Platform; p != nil {
			list = append(list, strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/"))
		}
	}
	return list, all
}

// A described image is one of an inventory in words.
type described struct {
	Image
	*image
	precious map[string]bool // of its names, those that go only if they are said
	keeps    bool            // some of its names
}

// describe returns the images of an inventory, in the order of Images.
func (k *Cache) describe(v *inventory) []described {
	names := make(map[oci.Digest][]string)
	k.mu.Lock()
	for name, e := range k.index {
		names[e.Digest] = append(names[e.Digest], name)
	}
	list := make([]described, len(v.images))
	for n := range v.images {
		img := &v.images[n]
		root := &v.items[img.content[0]]
		d := Image{Names: []string{}, Digest: v.digest(img.content[0]), Kept: time.Unix(0, root.kept), Used: time.Unix(0, img.used)}
		var only map[string]bool
		if known := names[d.Digest]; known != nil {
			sort.Strings(known)
			d.Names, d.MediaType, d.Source = known, k.index[known[0]].MediaType, k.index[known[0]].Source
			for _, name := range known {
				if precious(k.index[name].Source) {
					if only == nil {
						only = make(map[string]bool)
					}
					only[name], d.Source = true, k.index[name].Source
				}
			}
		}
		for _, i := range img.content {
			d.Size += v.items[i].size
			if v.items[i].needed == 1 {
				d.Alone += v.items[i].size
			}
		}
		list[n] = described{d, img, only, false}
	}
	k.mu.Unlock()
	sort.Slice(list, func(i, j int) bool {
		a, b := &list[i], &list[j]
		if len(a.Names) == 0 || len(b.Names) == 0 {
			return len(a.Names) > 0 || len(b.Names) == 0 && a.Digest < b.Digest
		}
		return a.Names[0] < b.Names[0]
	})
	return list
}

// Prune says what goes: an image goes if all that is said lets it go. One that was pushed, or came from an archive,
// goes only by a pattern that is its name.
type Prune struct {
	Patterns  []string      `json:"patterns,omitempty"`  // names that go, see [Match]; an image that has others stays. None: any
	OlderThan time.Duration `json:"olderThan,omitempty"` // only what came longer ago
	UnusedFor time.Duration `json:"unusedFor,omitempty"` // only what was last used longer ago
	KeepLast  int           `json:"keepLast,omitempty"`  // of each repository, the tags that came last stay, so many; what has no tag stays, too
	MaxBytes  int64         `json:"maxBytes,omitempty"`  // the least recently used go until so many bytes are left; 0: all go that may
	DryRun    bool          `json:"dryRun,omitempty"`    // only say what would go
}

// Pruned says what went.
type Pruned struct {
	Images []Image `json:"images"`         // Names are those that went
	Bytes  int64   `json:"bytes"`          // freed
	Left   int64   `json:"left"`           // bytes that are still here
	Stay   int     `json:"stay,omitempty"` // images that would have gone, but were pushed or came from an archive, and were not named
	DryRun bool    `json:"dryRun,omitempty"`
}

// Prune removes images. What another image needs stays, and what a client is pushing. It waits for content that is being kept, and what comes meanwhile waits for it; who is
// reading content that goes reads it to its end.
func (k *Cache) Prune(_ context.Context, p Prune) (Pruned, error) {
	if err := CheckPatterns(p.Patterns); err != nil {
		return Pruned{}, err
	}
	k.settle.Lock()
	defer k.settle.Unlock()
	v, err := k.inventory()
	if err != nil {
		return Pruned{}, err
	}
	if !p.DryRun && len(p.Patterns) == 0 && p.KeepLast == 0 && p.MaxBytes == 0 { // what is not whole, too
		if err := k.sweepPartials(max(p.OlderThan, p.UnusedFor)); err != nil {
			return Pruned{}, err
		}
	}
	total := int64(0)
	for i := range v.items {
		total += v.items[i].size
	}
	k.bytes.Store(total) // whatever happened to the directory meanwhile, this is what is there
	k.blobs.Store(int64(len(v.items)))
	list, stay := p.choose(k.describe(v), time.Now())
	done, err := k.remove(v, list, p.MaxBytes, p.DryRun)
	done.Stay = stay
	return done, err
}

// choose returns what may go, with the names that go, the least recently used first, and how many images stay that are nowhere else.
func (p *Prune) choose(images []described, now time.Time) (list []described, stay int) {
	stays := p.lasting(images)
	for _, img := range images {
		names := slices.DeleteFunc(matching(p.Patterns, img.Names), func(name string) bool { return stays[name] })
		all := len(names)
		names = slices.DeleteFunc(names, func(name string) bool { return img.precious[name] && !p.says(name) })
		switch {
		case len(names) == 0 && all > 0:
			stay++
		case len(names) == 0 && (len(img.Names) > 0 || len(p.Patterns) > 0 || p.KeepLast > 0):
		case p.OlderThan > 0 && now.Sub(img.Kept) < p.OlderThan, p.UnusedFor > 0 && now.Sub(img.Used) < p.UnusedFor:
		case p.MaxBytes > 0 && len(names) < len(img.Names): // nothing would be freed
		default:
			img.Image.Names, img.keeps = names, len(names) < len(img.Names)
			list = append(list, img)
		}
	}
	sort.Slice(list, func(i, j int) bool {
		a, b := &list[i], &list[j]
		return a.Used.Before(b.Used) || a.Used.Equal(b.Used) && a.Digest < b.Digest
	})
	return list, stay
}

// says reports whether one of the patterns is a name, in full or as people write it.
func (p *Prune) says(name string) bool {
	return slices.ContainsFunc(p.Patterns, func(pattern string) bool {
		return pattern == name || oci.DockerHub+"/"+pattern == name || oci.DockerHub+"/library/"+pattern == name
	})
}

// lasting returns the names that stay because they are the last of their repository.
func (p *Prune) lasting(images []described) map[string]bool {
	if p.KeepLast <= 0 {
		return nil
	}
	type tagged struct {
		name string
		kept time.Time
	}
	stays := make(map[string]bool)
	repositories := make(map[string][]tagged)
	for _, img := range images {
		for _, name := range img.Names {
			ref, ok := TagOf(name)
			if !ok {
				stays[name] = true
				continue
			}
			repositories[ref.Name()] = append(repositories[ref.Name()], tagged{name, img.Kept})
		}
	}
	for _, tags := range repositories {
		sort.Slice(tags, func(i, j int) bool { return tags[i].kept.After(tags[j].kept) })
		for _, t := range tags[:min(p.KeepLast, len(tags))] {
			stays[t.name] = true
		}
	}
	return stays
}

// remove removes images in their order, until so many bytes are left; 0: all of them.
func (k *Cache) remove(v *inventory, list []described, most int64, dryRun bool) (Pruned, error) {
	p := Pruned{Images: []Image{}, Left: k.bytes.Load(), DryRun: dryRun}
	for _, img := range list {
		if most > 0 && p.Left <= most {
			break
		}
		p.Images = append(p.Images, img.Image)
		if !dryRun {
			k.unname(img.Names)
		}
		if img.keeps {
			continue
		}
		for _, i := range img.content {
			it := &v.items[i]
			if it.needed--; it.needed > 0 || k.isExpected(v.digest(i)) {
				continue
			}
			if !dryRun {
				if err := k.drop(v.digest(i)); err != nil {
					k.c.Log.Error("content not removed", "err", err) // the rest can be
					continue
				}
			}
			p.Bytes += it.size
			p.Left -= it.size
		}
	}
	if dryRun {
		return p, nil
	}
	k.stays.Store(0)
	return p, k.dropMarks()
}

// slack is the part of the limit that an eviction frees beyond need, so that not every blob that comes causes one: each
// reads all manifests.
const slack = 100 // a hundredth

// evict deletes the least recently used images until the content fits. What nobody else may have stays.
func (k *Cache) evict() error {
	p, err := k.Prune(context.Background(), Prune{MaxBytes: k.c.MaxBytes - k.c.MaxBytes/slack})
	if err != nil {
		return err
	}
	k.evicted.Add(int(p.Bytes))
	k.stays.Store(p.Left + k.c.MaxBytes/slack)
	k.c.Log.Info("cache was full, least recently used images evicted", "images", len(p.Images), "bytes", p.Bytes, "left", p.Left)
	if p.Left > k.c.MaxBytes {
		k.c.Log.Warn("what was pushed or came from archives takes more than the cache may: remove some with pier prune, or allow more", "left", p.Left, "max", k.c.MaxBytes)
	}
	return nil
}

// CheckPatterns returns an error that names a pattern that [Match] cannot read.
func CheckPatterns(patterns []string) error {
	for _, p := range patterns {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("pattern %q: %w: * is any text, ? one character, [a-z] one of several", p, err)
		}
	}
	return nil
}

// matching returns the names that match one of the patterns; all, without any.
func matching(patterns, names []string) []string {
	if len(patterns) == 0 {
		return names
	}
	var list []string
	for _, name := range names {
		if slices.ContainsFunc(patterns, func(p string) bool { return Match(p, name) }) {
			list = append(list, name)
		}
	}
	return list
}

// Match reports whether a pattern is a name of an image: docker.io/library/alpine:3.20, or without the tag, with the parts that are docker.io's
// left out as one may on a command line, or with * for any text, ? for one character and [a-z] for one of several.
func Match(pattern, name string) bool {
	repository, _ := splitName(name)
	for _, short := range []string{"", oci.DockerHub + "/", oci.DockerHub + "/library/"} {
		rest, ok := strings.CutPrefix(name, short)
		if !ok {
			continue
		}
		bare, _ := strings.CutPrefix(repository, short)
		if glob(pattern, rest) || glob(pattern, bare) {
			return true
		}
	}
	return false
}

// splitName cuts a name of an image before its tag or digest.
func splitName(name string) (repository, rest string) {
	repository, rest, digested := strings.Cut(name, "@")
	if digested {
		return repository, rest
	}
	i := strings.LastIndexByte(name, ':')
	if i < strings.LastIndexByte(name, '/') { // a port
		return name, ""
	}
	return name[:i], name[i+1:]
}

// glob is path.Match in which * crosses slashes: names of repositories are as deep as their owners like.
func glob(pattern, text string) bool {
	ok, _ := path.Match(strings.ReplaceAll(pattern, "/", "\x00"), strings.ReplaceAll(text, "/", "\x00"))
	return ok
}
