package snapshot

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"pier/internal/oci"
)

// Push brings the directory at root into the store.
func (s *Store) Push(ctx context.Context, scanner Scanner, root string, opt Options) (Summary, error) {
	absolute, err := filepath.Abs(root)
	if err != nil {
		return Summary{}, err
	}
	e := &early{store: s, ctx: ctx, sizes: make(map[Digest]int64)}
	defer e.end()
	if s.Bucket.Page() == 0 && !opt.DryRun && !opt.Repair {
		scanner.take = e.take
	}
	w, err := scanner.walk(ctx, absolute)
	if err != nil {
		return Summary{}, err
	}
	files := make(files, len(w.found))
	for _, f := range w.found {
		if _, ok := files[f.Digest]; !ok && !f.Dir() {
			files[f.Digest] = file{absolute, f}
		}
	}
	sum, err := s.send(ctx, w.manifest(), files, opt, e)
	e.count(&sum)
	return sum, err
}

// files gives the content of files.
type files map[Digest]file

// A file is one of a tree.
type file struct {
	root string
	found
}

func (f files) give(ctx context.Context, to *Store, o object, replace bool) error {
	from := f[o.digest]
	r, err := openUnchanged(ctx, from.root, from.found)
	if err != nil {
		return err
	}
	defer r.Close()
	err = to.put(ctx, o, r, replace)
	if errors.Is(err, oci.ErrDigestMismatch) { // with all its times as they were
		return fmt.Errorf("%s%s: %w: run this with --paranoid (%w)", from.root, from.Path[1:], ErrChanged, err)
	}
	return err
}
