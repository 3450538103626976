package bucket

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"pier/internal/oci"
)

// A directory is a bucket of files: the key is the path. What is on its way is below .pier/partial, and renamed when it is whole.
type directory struct {
	root   string
	limit  *rate.Limiter
	unique string       // begins the names of files on their way that nobody goes on with
	temp   atomic.Int64 // numbers them
}

const (
	partials = ".pier/partial"

	// large is the size from which on a file that was not finished is gone on with, in bytes. Smaller ones begin anew.
	large = partSize

	// emptied is how often a directory may vanish under a Put, because a Delete found it empty.
	emptied = 10
)

func openDirectory(cfg Config, u *url.URL) (Bucket, error) {
	switch {
	case u.Host != "":
		return nil, fmt.Errorf("store %.200q: want file:///directory, with three slashes and the whole path", cfg.URL)
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("store %.200q: write ? as %%3F and # as %%23", cfg.URL)
	case u.Path == "":
		return nil, fmt.Errorf("store %.200q: there is no directory in it: want file:///directory", cfg.URL)
	}
	return &directory{root: filepath.Clean(u.Path), limit: cfg.Limit, unique: rand.Text()}, nil
}

func (d *directory) String() string { return (&url.URL{Scheme: "file", Path: d.root}).String() }

func (d *directory) fault(key string, err error) error {
	var inner *fs.PathError
	if errors.As(err, &inner) { // the path is in the key
		err = inner.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		err = oci.ErrNotFound
	case errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w: %w: run this as a user who may do that", oci.ErrDenied, err)
	case errors.Is(err, syscall.ENOSPC):
		err = fmt.Errorf("%w: make room there, and run this again: it goes on where it was", err)
	}
	return fmt.Errorf("%s/%s: %w", d, key, err)
}

// Path returns the file that an object is.
func (d *directory) Path(key string) string { return d.root + "/" + key }

// Stat implements [Bucket].
func (d *directory) Stat(_ context.Context, key string) (Object, error) {
	info, err := os.Stat(d.Path(key))
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return Object{}, d.fault(key, err)
	}
	return describe(key, info), nil
}

func describe(key string, info fs.FileInfo) Object {
	return Object{Key: key, Size: info.Size(), Modified: info.ModTime()}
}

// Open implements [Bucket].
func (d *directory) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	f, err := os.Open(d.Path(key))
	if err != nil {
		return nil, d.fault(key, err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = oci.ErrNotFound
	case offset > info.Size():
		err = oci.ErrRange
	}
	if err != nil {
		f.Close()
		return nil, d.fault(key, err)
	}
	if offset == 0 && length < 0 {
		return &file{File: f, d: d, key: key, ctx: ctx, r: f}, nil
	}
	if length < 0 || length > info.Size()-offset {
		length = info.Size() - offset
	}
	return &file{File: f, d: d, key: key, ctx: ctx, r: io.NewSectionReader(f, offset, length)}, nil
}

// file reads an object.
type file struct {
	*os.File
	d   *directory
	key string
	ctx context.Context //nolint:containedctx // of the Open that it is the result of
	r   io.Reader
}

// WriteTo would pass by Read.
func (f *file) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, struct{ io.Reader }{f}) }

func (f *file) Read(p []byte) (int, error) {
	if f.d.limit != nil {
		p = p[:min(len(p), f.d.limit.Burst())]
	}
	n, err := f.r.Read(p)
	if limited := f.d.take(f.ctx, n); limited != nil {
		return n, limited
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = f.d.fault(f.key, err)
	}
	return n, err
}

// take waits until n bytes may pass, and sees that ctx goes on.
func (d *directory) take(ctx context.Context, n int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for d.limit != nil && n > 0 {
		part := min(n, d.limit.Burst())
		if err := d.limit.WaitN(ctx, part); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// Put implements [Bucket].
func (d *directory) Put(ctx context.Context, key string, size int64, r io.Reader, replace bool) error {
	if size <= small {
		if err := d.putSmall(ctx, key, &sized{r, size}, replace); err != nil {
			return d.fault(key, err)
		}
		return nil
	}
	if !replace && size >= large { // else the rename says so
		if _, err := os.Lstat(d.Path(key)); err == nil {
			return d.fault(key, ErrExists)
		}
	}
	f, err := d.partial(key, size)
	if err != nil {
		return d.fault(key, err)
	}
	defer f.Close()
	err = d.write(ctx, f, size, &sized{r, size})
	if err == nil {
		err = d.commit(f.Name(), key, replace)
	}
	if err != nil {
		if size < large || wrong(err) || errors.Is(err, ErrExists) {
			_ = os.Remove(f.Name())
		}
		return d.fault(key, err)
	}
	return nil
}

// partial returns a file for an object on its way, and this process's alone. For a large one it may have a beginning.
func (d *directory) partial(key string, size int64) (*os.File, error) {
	if size >= large {
		sum := sha256.Sum256([]byte(key))
		name := filepath.Join(d.Path(partials), hex.EncodeToString(sum[:]))
		f, err := create(name, 0)
		if err != nil {
			return nil, err
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && isAt(f, name) {
			return f, nil
		}
		f.Close() // somebody else is sending it, or just did
	}
	return create(d.temporary(), os.O_EXCL)
}

// create opens a file that need not be there, nor its directory.
func create(name string, flags int) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|flags, 0o666)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(name), 0o777); err == nil {
			f, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE|flags, 0o666)
		}
	}
	return f, err
}

// isAt reports whether name is still that of f.
func isAt(f *os.File, name string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(name)
	return err == nil && os.SameFile(a, b)
}

// write makes the content of f that of r, and writes only from where they differ.
func (d *directory) write(ctx context.Context, f *os.File, size int64, r *sized) error {
	most := int64(256 << 10)
	if d.limit != nil {
		most = min(most, int64(d.limit.Burst()))
	}
	buf := make([]byte, min(most, size+1))
	compare, old := size >= large, []byte(nil)
	for offset := int64(0); ; {
		n, err := io.ReadFull(r, buf)
		if compare {
			if old == nil {
				old = make([]byte, len(buf))
			}
			m, _ := f.ReadAt(old[:n], offset)
			if compare = m == n && bytes.Equal(old[:n], buf[:n]); !compare {
				if err := f.Truncate(offset); err != nil {
					return err
				}
			}
		}
		if !compare {
			if err := d.take(ctx, n); err != nil {
				return err
			}
			if _, err := f.WriteAt(buf[:n], offset); err != nil {
				return err
			}
		} else if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		offset += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if compare {
		return f.Truncate(size)
	}
	return nil
}

// commit renames a file to what it is of.
func (d *directory) commit(name, key string, replace bool) error {
	target := d.Path(key)
	flags := uint(unix.RENAME_NOREPLACE)
	if replace {
		flags = 0
	}
	for range emptied {
		err := unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, target, flags)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, syscall.EINVAL) && !replace: // a file system without that
			if err = os.Link(name, target); err == nil {
				return os.Remove(name)
			}
		}
		switch {
		case errors.Is(err, fs.ErrExist):
			return ErrExists
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		if _, err := makeDirectory(filepath.Dir(target)); err != nil {
			return err
		}
	}
	return errors.New("its directory vanishes again and again")
}

// Copy implements [Bucket].
func (d *directory) Copy(ctx context.Context, from Bucket, object Object, key string) error {
	if from != Bucket(d) {
		return d.fault(key, oci.ErrUnsupported)
	}
	// Objects are never written to, so one may have two names.
	temporary := d.temporary()
	_, err := makeDirectory(d.Path(partials))
	if err == nil {
		err = os.Link(d.Path(object.Key), temporary)
	}
	if err == nil {
		err = d.commit(temporary, key, true)
		_ = os.Remove(temporary) // a rename of one file to another name of it leaves both
		if err != nil {
			return d.fault(key, err)
		}
		return nil
	}
	r, err := d.Open(ctx, object.Key, 0, -1) // a file system without links, or there is no such object
	if err != nil {
		return err
	}
	defer r.Close()
	return d.Put(ctx, key, object.Size, r, true)
}

// List implements [Bucket].
func (d *directory) List(ctx context.Context, prefix string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		if _, err := os.Stat(d.root); err != nil {
			yield(Object{}, fmt.Errorf("%s: there is no such directory, or it cannot be read: %w", d, d.fault("", err)))
			return
		}
		d.list(ctx, prefix[:strings.LastIndexByte(prefix, '/')+1], prefix, yield)
	}
}

// list yields the objects below a directory, whose key is empty or ends in a slash, and reports whether more are wanted.
func (d *directory) list(ctx context.Context, dir, prefix string, yield func(Object, error) bool) bool {
	if ctx.Err() != nil {
		return yield(Object{}, context.Cause(ctx)) && false
	}
	entries, err := os.ReadDir(d.Path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		return yield(Object{}, d.fault(dir, err)) && false
	}
	keys := make([]string, len(entries))
	for i, e := range entries {
		if keys[i] = dir + e.Name(); e.IsDir() {
			keys[i] += "/"
		}
	}
	slices.Sort(keys) // "a/" stands after "a-b", as its objects do
	for _, key := range keys {
		switch {
		case strings.HasSuffix(key, "/") && (strings.HasPrefix(key, prefix) || strings.HasPrefix(prefix, key)):
			if !d.list(ctx, key, prefix, yield) {
				return false
			}
		case strings.HasSuffix(key, "/") || !strings.HasPrefix(key, prefix):
		default:
			info, err := os.Lstat(d.Path(key))
			if err != nil || !info.Mode().IsRegular() {
				continue // removed just now, or nothing of ours
			}
			if !yield(describe(key, info), nil) {
				return false
			}
		}
	}
	return true
}

// Page implements [Bucket].
func (d *directory) Page() int { return 0 }

// Delete implements [Bucket]. Directories that it leaves empty go, too.
func (d *directory) Delete(_ context.Context, key string) error {
	if err := os.Remove(d.Path(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d.fault(key, err)
	}
	for dir := filepath.Dir(d.Path(key)); len(dir) > len(d.root) && unix.Rmdir(dir) == nil; {
		dir = filepath.Dir(dir)
	}
	return nil
}

// Sync implements [Bucket].
func (d *directory) Sync(context.Context) error {
	f, err := os.Open(d.root)
	if err != nil {
		return d.fault("", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return d.fault("", err)
	}
	return nil
}

// Clean implements [Bucket].
func (d *directory) Clean(ctx context.Context, before time.Time) (n int, err error) {
	for o, err := range d.List(ctx, partials+"/") {
		if err != nil {
			return n, err
		}
		if !o.Modified.Before(before) {
			continue
		}
		if err := os.Remove(d.Path(o.Key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return n, d.fault(o.Key, err)
		}
		n++
	}
	return n, nil
}
