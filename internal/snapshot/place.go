package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"pier/internal/oci"
)

// resumable is the size from which on a file is gone on with that was not finished, in bytes.
const resumable = 1 << 20

// write does what survey found to be done: first everything is there, then what is not of the snapshot goes.
func (p *pull) write(ctx context.Context) error {
	if err := p.makeRoom(); err != nil {
		return err
	}
	var objects []object
	size := int64(0)
	for _, o := range p.m.objects() {
		if len(p.needed[o.digest]) > 0 {
			objects = append(objects, o)
			size += o.size * int64(len(p.needed[o.digest]))
		}
	}
	p.Meter.Begin("fetching", size)
	var mu sync.Mutex // guards what is counted
	err := each(ctx, p.Jobs, objects, func(ctx context.Context, o object) error {
		fetched, copied, err := p.place(ctx, o)
		mu.Lock()
		defer mu.Unlock()
		p.Copied += copied
		if fetched {
			p.Fetched++
			p.Size += o.size
		}
		return err
	})
	p.Saved = p.Bytes - p.Size
	if err != nil {
		return err
	}
	if err := p.tidy(); err != nil {
		return err
	}
	if err := unix.Syncfs(int(p.dir.Fd())); err != nil {
		return p.fault("./", err)
	}
	return nil
}

// makeRoom makes the directories, so that they can be written to, and removes what is in the way of them or of files.
func (p *pull) makeRoom() error {
	for _, e := range p.m {
		bare := strings.TrimSuffix(e.Path, "/")
		inTheWay := []string{bare + "\x00", bare + "/"} // and where a directory is to be, a file
		if e.Dir() {
			inTheWay[1] = bare
		}
		for _, key := range inTheWay {
			if _, ok := p.old[key]; ok && bare != "." && key != e.Path {
				if err := p.remove(bare); err != nil {
					return err
				}
				p.cleared = append(p.cleared, bare)
			}
		}
		if !e.Dir() {
			continue
		}
		if err := p.root.Mkdir(bare, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return p.fault(e.Path, err)
		}
		if e.Perm&0o700 == 0o700 && p.old[e.Path].Perm&0o700 == 0o700 {
			continue
		}
		if err := p.root.Chmod(bare, 0o700); err != nil {
			return p.fault(e.Path, err)
		}
	}
	return nil
}

func (p *pull) remove(name string) error {
	if err := p.root.RemoveAll(name); err != nil {
		return p.fault(name, err)
	}
	return nil
}

// place writes the files whose content o is. The first is fetched, if no file here has that; the others are made from it.
func (p *pull) place(ctx context.Context, o object) (fetched bool, copied int, err error) {
	for i, e := range p.needed[o.digest] {
		from := p.sources[o.digest] // or what was there: another may just be renamed to it
		if i > 0 {
			from = p.needed[o.digest][0].Path
		}
		part := partName + string(o.digest)
		done := false
		if from != "" {
			done = p.duplicate(ctx, o, from, part) == nil
		}
		if !done && p.opt.Linked {
			done, err = p.link(ctx, o, part, e.Perm)
		}
		if done {
			copied++
		} else if err == nil {
			fetched = true
			err = p.fetch(ctx, o, part)
		}
		if err == nil {
			err = p.settle(part, e)
		}
		if err != nil {
			return fetched, copied, err
		}
	}
	return fetched, copied, nil
}

// settle gives a file that is whole its permissions and its name.
func (p *pull) settle(part string, e Entry) error {
	info, err := p.root.Lstat(part)
	if err == nil && permissions(info) != e.Perm {
		err = p.root.Chmod(part, modeOf(e.Perm))
	}
	if err == nil {
		err = p.root.Rename(part, e.Path)
	}
	if err != nil {
		return p.fault(e.Path, err)
	}
	return nil
}

// modeOf returns the mode that Go has for permissions.
func modeOf(perm uint32) fs.FileMode {
	mode := fs.FileMode(perm & 0o777)
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if perm&bit != 0 {
			mode |= flag
		}
	}
	return mode
}

// fetch writes an object of the store to the file part, from where that ends.
func (p *pull) fetch(ctx context.Context, o object, part string) error {
	f, err := p.root.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return p.fault(part, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return p.fault(part, err)
	}
	begun := info.Size()
	if begun > o.size || o.size < resumable {
		begun = 0
	}
	err = p.fill(ctx, f, o, begun)
	if begun > 0 && errors.Is(err, oci.ErrDigestMismatch) { // the beginning may have been wrong
		err = p.fill(ctx, f, o, 0)
	}
	if errors.Is(err, oci.ErrDigestMismatch) || err != nil && o.size < resumable {
		_ = p.root.Remove(part)
	}
	if errors.Is(err, oci.ErrDigestMismatch) || errors.Is(err, oci.ErrNotFound) {
		err = p.lost(fmt.Errorf("%s: object %s of %s: %w", p.needed[o.digest][0].Path, o.digest, p.Bucket, err))
	}
	return err
}

// fill makes the content of f that of o; the first bytes of it are there.
func (p *pull) fill(ctx context.Context, f *os.File, o object, begun int64) error {
	if err := f.Truncate(begun); err != nil {
		return err
	}
	if _, err := f.Seek(begun, io.SeekStart); err != nil {
		return err
	}
	rest, err := p.read(ctx, o, begun)
	if err != nil {
		return err
	}
	defer rest.Close()
	proven := o.prove(io.MultiReader(io.NewSectionReader(f, 0, begun), rest))
	return withBuffer(o.size, func(buf []byte) error {
		for read := int64(0); ; {
			n, err := proven.Read(buf)
			if n > 0 && read >= begun { // a read gives bytes of one or the other
				if _, err := f.Write(buf[:n]); err != nil {
					return err
				}
			}
			read += int64(n)
			p.Meter.Add(int64(n))
			switch {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return err
			case ctx.Err() != nil:
				return context.Cause(ctx)
			}
		}
	})
}

// duplicate makes the file part from another of the directory, whose bytes it shares where the file system can do that.
func (p *pull) duplicate(ctx context.Context, o object, from, part string) error {
	source, err := p.root.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer source.Close()
	f, err := p.root.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return p.clone(ctx, f, source, o)
}

// clone makes the content of f that of a file, and proves it.
func (p *pull) clone(ctx context.Context, f, from *os.File, o object) error {
	if unix.IoctlFileClone(int(f.Fd()), int(from.Fd())) == nil {
		return o.prove(p.Meter.reader(&stoppable{ctx, f})).discard()
	}
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return copyProven(f, o.prove(p.Meter.reader(&stoppable{ctx, from})))
}

// A stoppable reader ends with its context.
type stoppable struct {
	ctx context.Context //nolint:containedctx // of whoever reads
	r   io.Reader
}

func (s *stoppable) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(p)
}

// link makes the file part share the bytes of the store's, if the store is of files, and on this file system: as a clone, which is a file
// of its own; or as another name of that file, if it has the same permissions. It reports whether it could.
func (p *pull) link(ctx context.Context, o object, part string, perm uint32) (bool, error) {
	local, ok := p.Bucket.(interface{ Path(key string) string })
	if !ok {
		return false, nil
	}
	name := local.Path(o.key())
	from, err := os.Open(name)
	if err != nil {
		return false, nil // fetch says why
	}
	defer from.Close()
	_ = p.root.Remove(part)
	f, err := p.root.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return false, p.fault(part, err)
	}
	defer f.Close()
	cloned := unix.IoctlFileClone(int(f.Fd()), int(from.Fd())) == nil
	if cloned {
		return true, o.prove(p.Meter.reader(&stoppable{ctx, f})).discard()
	}
	info, err := from.Stat()
	if err != nil || permissions(info) != perm {
		return false, nil // it is fetched then
	}
	_ = p.root.Remove(part)
	if unix.Linkat(unix.AT_FDCWD, name, int(p.dir.Fd()), part, 0) != nil {
		return false, nil // another file system
	}
	return true, o.prove(p.Meter.reader(&stoppable{ctx, from})).discard()
}

// tidy removes what is not of the snapshot, and gives all that is its permissions.
func (p *pull) tidy() error {
	for _, name := range p.others {
		name = strings.TrimRight(name, "/\x00")
		if slices.ContainsFunc(p.cleared, func(c string) bool { return name == c || strings.HasPrefix(name, c+"/") }) {
			continue // it went, and something else has its name
		}
		if err := p.remove(name); err != nil {
			return err
		}
	}
	entries, err := p.dir.ReadDir(-1)
	if err != nil {
		return p.fault("./", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), partName) {
			if err := p.remove(e.Name()); err != nil {
				return err
			}
		}
	}
	for _, e := range slices.Backward(p.m) { // a directory after what is in it
		if old := p.old[e.Path]; !e.Dir() && (old.Digest != e.Digest || old.Perm == e.Perm) {
			continue // it was written, or is right
		}
		if err := p.root.Chmod(path.Clean(e.Path), modeOf(e.Perm)); err != nil {
			return p.fault(e.Path, err)
		}
	}
	return nil
}
