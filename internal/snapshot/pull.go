package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// PullOptions are what a pull may be told.
type PullOptions struct {
	Delete   bool // remove what is not of the snapshot
	Linked   bool // files share their bytes with the store's where both are on one file system
	DryRun   bool // only say what would be done
	Paranoid bool // read every file that is there, whatever is remembered
	Digests  string
}

// A Pulled says what a pull did.
type Pulled struct {
	ID      Digest `json:"id"`
	Files   int    `json:"files"`
	Bytes   int64  `json:"bytes"`
	Fetched int    `json:"fetched"` // objects
	Size    int64  `json:"fetchedBytes"`
	Copied  int    `json:"copied"`  // files made from others of the tree, or sharing the store's bytes
	Skipped int    `json:"skipped"` // files that were right
	Removed int    `json:"removed"` // what was not of the snapshot
	Saved   int64  `json:"savedBytes"`
	DryRun  bool   `json:"dryRun,omitempty"`
}

// A pull is one under way.
type pull struct {
	*Store
	Pulled
	opt     PullOptions
	m       Manifest
	name    string   // of the directory
	root    *os.Root // of it
	dir     *os.File // the same
	old     map[string]found
	others  []string           // paths that are not of the snapshot, each before what is in it
	cleared []string           // paths of those that were in the way of the snapshot's, and are gone
	needed  map[Digest][]Entry // what must be written
	sources map[Digest]string  // paths of files that are there, by what is in them
}

// Pull makes a directory what the snapshot says. If there are other files in it, it is left as it is unless they may be removed. Each file
// is written beside and renamed. What a pull that was cut has left is used.
func (s *Store) Pull(ctx context.Context, id Digest, dir string, opt PullOptions) (Pulled, error) {
	m, err := s.Manifest(ctx, id)
	if err != nil {
		return Pulled{ID: id}, err
	}
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return Pulled{ID: id}, err
	}
	sum := m.summary()
	p := &pull{Store: s, opt: opt, m: m, name: absolute, Pulled: Pulled{ID: id, Files: sum.Files, Bytes: sum.Bytes, DryRun: opt.DryRun}}
	if err := p.open(); err != nil {
		return p.Pulled, err
	}
	if p.root != nil {
		defer p.root.Close()
		defer p.dir.Close()
	}
	if err := p.survey(ctx); err != nil {
		return p.Pulled, err
	}
	if len(p.others) > 0 && !p.opt.Delete {
		return p.Pulled, fmt.Errorf("%s has other files than the snapshot (%s): nothing was changed; pull into another directory, or remove them by --delete",
			p.name, some(p.others))
	}
	p.Removed = len(p.others)
	if p.opt.DryRun {
		p.count()
		return p.Pulled, nil
	}
	err = p.write(ctx)
	if errors.Is(err, syscall.ENOSPC) {
		err = fmt.Errorf("%w: make room in %s, and run this again: it goes on where it was", err, p.name)
	}
	return p.Pulled, err
}

// some returns the first of many names.
func some(names []string) string {
	const most = 5
	text := strings.ReplaceAll(strings.Join(names[:min(most, len(names))], ", "), "\x00", "")
	if len(names) > most {
		text += fmt.Sprintf(" and %d more", len(names)-most)
	}
	return text
}

// open opens the directory, which for a dry run need not be there, and keeps other pulls out of it.
func (p *pull) open() (err error) {
	if p.opt.DryRun {
		if _, err := os.Stat(p.name); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	} else if err := os.MkdirAll(p.name, 0o777); err != nil {
		return err
	}
	if p.root, err = os.OpenRoot(p.name); err != nil {
		return err
	}
	if p.dir, err = os.Open(p.name); err != nil {
		p.root.Close()
		return err
	}
	if err := unix.Flock(int(p.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		p.root.Close()
		p.dir.Close()
		return fmt.Errorf("%s: another pull is at work there (%w)", p.name, err)
	}
	return nil
}

// partName is how files begin that are on their way, in the directory itself. The digest follows.
const partName = ".pier-part-"

// survey finds out what is there and what is to be done.
func (p *pull) survey(ctx context.Context) error {
	p.Meter.Begin("reading names", 0)
	p.old = make(map[string]found)
	if p.root != nil {
		if err := p.look(ctx, "./"); err != nil {
			return err
		}
	}
	wanted := make(map[string]Entry, len(p.m))
	sizes := make(map[int64]bool)
	for _, e := range p.m {
		if strings.HasPrefix(e.Path, "./"+partName) {
			return fmt.Errorf("snapshot %s has a file %s: files with such names are on their way, and it cannot be pulled", p.ID, e.Path)
		}
		wanted[e.Path] = e
		if !e.Dir() {
			sizes[e.Size] = true
		}
	}
	for _, path := range slices.Sorted(maps.Keys(p.old)) {
		if _, ok := wanted[path]; !ok && path != "./" {
			p.others = append(p.others, path)
		}
	}
	if err := p.digestOld(ctx, sizes); err != nil {
		return err
	}
	p.needed = make(map[Digest][]Entry)
	for _, e := range p.m {
		if e.Dir() {
			continue
		}
		if p.old[e.Path].Digest == e.Digest {
			p.Skipped++
			continue
		}
		p.needed[e.Digest] = append(p.needed[e.Digest], e)
	}
	return nil
}

// look notes what is below a directory, without following links. What is neither file nor directory is noted with a zero byte after its
// name, which no path of a manifest has.
func (p *pull) look(ctx context.Context, dir string) error {
	f, err := p.root.Open(dir)
	if err != nil {
		return p.fault(dir, err)
	}
	at := time.Now()
	entries, err := f.Readdir(-1) // lstat of each
	f.Close()
	if err != nil {
		return p.fault(dir, err)
	}
	for _, info := range entries {
		path := dir + info.Name()
		switch {
		case info.IsDir():
			p.old[path+"/"] = found{Entry{Path: path + "/", Perm: permissions(info)}, stateOf(statOf(info), at)}
			if err := p.look(ctx, path+"/"); err != nil {
				return err
			}
		case dir == "./" && strings.HasPrefix(info.Name(), partName):
		case info.Mode().IsRegular():
			p.old[path] = found{Entry{Path: path, Perm: permissions(info), Size: info.Size()}, stateOf(statOf(info), at)}
		default:
			p.old[path+"\x00"] = found{}
		}
	}
	return context.Cause(ctx)
}

// digestOld finds out what is in the files that are there, but for those of a size that no file of the snapshot has.
func (p *pull) digestOld(ctx context.Context, sizes map[int64]bool) error {
	w := &walk{Scanner: Scanner{Jobs: p.Jobs, Paranoid: p.opt.Paranoid, Meter: p.Meter}, ctx: ctx, root: strings.TrimSuffix(p.name, "/")}
	for _, path := range slices.Sorted(maps.Keys(p.old)) {
		if f := p.old[path]; f.regular && sizes[f.Size] {
			w.found = append(w.found, f)
		}
	}
	if err := w.read(openDigests(p.opt.Digests, p.name)); err != nil {
		return err
	}
	p.sources = make(map[Digest]string)
	for _, f := range w.found {
		p.old[f.Path] = f
		p.sources[f.Digest] = f.Path
	}
	return nil
}

// count says what would be done.
func (p *pull) count() {
	for d, entries := range p.needed {
		if p.sources[d] == "" {
			p.Fetched++
			p.Size += entries[0].Size
			entries = entries[1:]
		}
		p.Copied += len(entries)
	}
	p.Saved = p.Bytes - p.Size
}

// fault returns an error about a path of the directory.
func (p *pull) fault(path string, err error) error {
	var inner *fs.PathError
	if errors.As(err, &inner) {
		err = inner.Err
	}
	return fmt.Errorf("%s: %w", filepath.Join(p.name, path), err)
}
