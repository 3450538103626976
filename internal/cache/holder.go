package cache

import (
	"slices"
	"strings"
	"time"

	"pier/internal/chain"
	"pier/internal/oci"
)

// Holdings implements [chain.Holder].
func (k *Cache) Holdings() ([]oci.Digest, error) {
	list, err := k.files.List(k.c.Dir)
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.DeleteFunc(list, func(d oci.Digest) bool {
		_, hidden := k.hidden[d]
		return hidden
	}), err
}

// Names implements [chain.Holder].
func (k *Cache) Names() []oci.Reference {
	k.mu.Lock()
	list := make([]oci.Reference, 0, len(k.index))
	for name, e := range k.index {
		if ref, ok := TagOf(name); ok {
			list = append(list, ref.WithDigest(e.Digest))
		}
	}
	k.mu.Unlock()
	return chain.BoundNames(list)
}

// TagOf is the reverse of nameOf, for names with a tag. In a layout that others wrote too, a name may be any text.
func TagOf(name string) (oci.Reference, bool) {
	registry, rest, _ := strings.Cut(name, "/")
	repository, tag, _ := strings.Cut(rest, ":")
	ref := oci.Reference{Registry: registry, Repository: repository, Tag: tag}
	return ref, ref.Validate() == nil
}

// Changed implements [chain.Holder].
func (k *Cache) Changed() time.Time {
	latest := k.files.Changed(k.c.Dir)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.altered.After(latest) {
		return k.altered
	}
	return latest
}
