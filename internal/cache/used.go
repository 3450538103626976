package cache

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"pier/internal/oci"
)

// When content was last used, if that is later than when it came, is the modification time of an empty file for it in
// pier/used.

// touchAfter is how old a use may be before another renews it: fine enough to tell images apart, coarse enough to cost
// nothing.
const touchAfter = time.Minute

func (k *Cache) usedPath(dgst oci.Digest) string {
	return k.path("pier", "used", dgst.Algorithm().String()+"-"+dgst.Encoded())
}

// touch notes that content is used that was kept at a time.
func (k *Cache) touch(dgst oci.Digest, kept time.Time) {
	now := time.Now()
	if now.Sub(kept).Abs() > touchAfter && k.touchDue(dgst, now) { // it may be dated in the future
		k.mark(dgst, now)
	}
}

func (k *Cache) mark(dgst oci.Digest, now time.Time) {
	path := k.usedPath(dgst)
	if err := os.Chtimes(path, now, now); !errors.Is(err, fs.ErrNotExist) {
		return // a read-only directory still serves
	}
	if f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
		f.Close()
	}
}

func (k *Cache) touchDue(dgst oci.Digest, now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if at, ok := k.touched[dgst]; ok && now.Sub(at) <= touchAfter {
		return false
	}
	remember(k.touched, dgst, now)
	return true
}
