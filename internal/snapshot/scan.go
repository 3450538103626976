package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrChanged is the error for a tree that changes while it is read.
var ErrChanged = errors.New("it changed while it was read: try again when nobody writes there")

// A Scanner makes manifests of directories. The zero Scanner takes everything, one file at a time, and remembers nothing.
type Scanner struct {
	Exclude  *regexp.Regexp // paths that are left out, with all below them: it is matched against the absolute path; nil: none
	NoFollow bool           // symbolic links are left out
	Jobs     int            // files that are read at once; 0: 1
	Digests  string         // a directory where digests are remembered from one Scan to the next; empty: none are
	Paranoid bool           // read every file, whatever is remembered
	Meter    *Meter         // told of the bytes; nil: nobody is

	take func(context.Context, object, []byte) error // is given small contents as they are read; nil: nobody is
}

// Scan returns the manifest of the directory at root. Symbolic links stand for what they lead to, with their own permissions. It returns
// an error that names the path for a link that leads nowhere or back to where it is, for what is neither file nor directory, for a
// name that a manifest cannot have, and one wrapping [ErrChanged] for a file that changes.
func (s Scanner) Scan(ctx context.Context, root string) (Manifest, error) {
	absolute, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	w, err := s.walk(ctx, absolute)
	if err != nil {
		return nil, err
	}
	return w.manifest(), nil
}

func (s Scanner) walk(ctx context.Context, root string) (*walk, error) {
	w := &walk{Scanner: s, ctx: ctx, root: strings.TrimSuffix(root, "/")}
	s.Meter.Begin("reading names", 0)
	if err := w.directory("./", nil); err != nil {
		return nil, err
	}
	sort.Slice(w.found, func(i, j int) bool { return w.found[i].Path < w.found[j].Path })
	known := openDigests(s.Digests, root)
	if err := w.read(known); err != nil {
		return nil, err
	}
	_ = known.save(w.found) // if that cannot be, they are read again
	return w, nil
}

// manifest returns what was found.
func (w *walk) manifest() Manifest {
	m := make(Manifest, len(w.found))
	for i, f := range w.found {
		m[i] = f.Entry
	}
	m.complete()
	return m
}

// A found is an entry of a tree on disk.
type found struct {
	Entry
	state
}

// A state is what a file's content cannot change without.
type state struct {
	device, inode uint64
	size          int64 // bytes
	modified      int64 // Unix time in nanoseconds, as ctime
	changed       int64
	read          int64 // when the state was seen, on the clock that files are dated with
	regular       bool
}

// stateOf returns the state of a file that was seen at a time.
func stateOf(st *syscall.Stat_t, at time.Time) state {
	return state{
		device: st.Dev, inode: st.Ino, size: st.Size,
		modified: st.Mtim.Nano(), changed: st.Ctim.Nano(), read: at.UnixNano(),
		regular: st.Mode&syscall.S_IFMT == syscall.S_IFREG,
	}
}

func statOf(info fs.FileInfo) *syscall.Stat_t { return info.Sys().(*syscall.Stat_t) }

// same reports whether two states are of one content.
func (s state) same(t state) bool {
	return s.device == t.device && s.inode == t.inode && s.size == t.size && s.modified == t.modified && s.changed == t.changed
}

// A walk is a Scan under way.
type walk struct {
	Scanner
	ctx   context.Context //nolint:containedctx // of the one Scan
	root  string
	found []found // without digests
}

// An inode is a directory, whatever its names.
type inode struct{ device, number uint64 }

// directory notes the directory at path, and all below it. above are the directories that it is in.
func (w *walk) directory(path string, above []inode) error {
	name := w.root + "/" // the root may be a link; it stands for what it leads to
	if path != "./" {
		name = w.root + strings.TrimSuffix(path[1:], "/")
	}
	info, err := os.Lstat(name)
	if err != nil {
		return err
	}
	perm := permissions(info)
	if info.Mode()&fs.ModeSymlink != 0 {
		if info, err = os.Stat(name); err != nil {
			return err
		}
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no directory", name)
	}
	at := stateOf(statOf(info), time.Time{})
	here := inode{at.device, at.inode}
	if slices.Contains(above, here) {
		return fmt.Errorf("%s is a link to a directory that it is in: remove it, or exclude it", name)
	}
	w.found = append(w.found, found{Entry: Entry{Path: path, Perm: perm}})
	children, err := os.ReadDir(name)
	if err != nil {
		return err
	}
	above = append(slices.Clip(above), here)
	for _, c := range children {
		if err := w.child(path, c.Name(), above); err != nil {
			return err
		}
	}
	return context.Cause(w.ctx)
}

func (w *walk) child(in, name string, above []inode) error {
	path := in + name
	full := w.root + path[1:]
	if w.Exclude != nil && w.Exclude.MatchString(full) {
		return nil
	}
	if strings.ContainsRune(name, '\n') {
		return fmt.Errorf("%q: a name with a line's end cannot be in a manifest: rename it, or exclude it", full)
	}
	if in == "./" && strings.HasPrefix(name, partName) {
		return fmt.Errorf("%s was left by a pull that was cut: run that again, or remove this", full)
	}
	at := time.Now()
	info, err := os.Lstat(full)
	if err != nil {
		return err
	}
	perm := permissions(info)
	if info.Mode()&fs.ModeSymlink != 0 {
		if w.NoFollow {
			return nil
		}
		if info, err = os.Stat(full); err != nil {
			return dangling(full, err)
		}
	}
	switch {
	case info.IsDir():
		return w.directory(path+"/", above)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is neither a file nor a directory (%s): exclude it", full, info.Mode().Type())
	}
	w.found = append(w.found, found{Entry{Path: path, Perm: perm, Size: info.Size()}, stateOf(statOf(info), at)})
	return nil
}

// dangling returns the error for a link that does not lead to anything.
func dangling(full string, err error) error {
	switch {
	case errors.Is(err, syscall.ELOOP):
		return fmt.Errorf("%s is a link that leads back to itself: remove it, or exclude it", full)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s is a link that leads nowhere: remove it, or exclude it", full)
	}
	return err
}

// permissions returns those of a file itself, if it is a link those of the link, as stat -c %a prints them.
func permissions(info fs.FileInfo) uint32 {
	return statOf(info).Mode & maxPerm
}

// read sets the digests of the files that were found: those that are known, and of the others each content once.
func (w *walk) read(known *digests) error {
	var unread []int
	total := int64(0)
	first := make(map[inode]int)
	for i := range w.found {
		f := &w.found[i]
		if f.Dir() {
			continue
		}
		if d, ok := known.of(f.state); ok && !w.Paranoid {
			f.Digest = d
			continue
		}
		at := inode{f.device, f.inode}
		if _, ok := first[at]; !ok { // else another name of it
			first[at] = i
			unread = append(unread, i)
			total += f.Size
		}
	}
	w.Meter.Begin("reading files", total)
	err := each(w.ctx, w.Jobs, unread, func(ctx context.Context, i int) error { return w.digest(ctx, &w.found[i]) })
	if err != nil {
		return err
	}
	for i := range w.found {
		if f := &w.found[i]; f.Digest == "" && !f.Dir() {
			f.Digest = w.found[first[inode{f.device, f.inode}]].Digest
		}
	}
	return nil
}

// digest sets the digest of a file.
func (w *walk) digest(ctx context.Context, f *found) error {
	r, err := openUnchanged(ctx, w.root, *f)
	if err != nil {
		return err
	}
	defer r.Close()
	if f.Size <= atOnce {
		return w.digestSmall(ctx, f, r)
	}
	h := newHasher()
	defer hashers.Put(h)
	err = withBuffer(f.Size, func(buf []byte) error {
		_, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{w.Meter.reader(r)}, buf)
		return err
	})
	f.Digest = sumOf(h)
	return err
}

// atOnce is up to how many bytes of a file are read in one piece.
const atOnce = 64 << 10

// digestSmall sets the digest of a file that fits into memory.
func (w *walk) digestSmall(ctx context.Context, f *found, r io.Reader) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	content := (*buf)[:f.Size+1]
	n, err := io.ReadFull(r, content) // the end comes before it is full, or the file changed
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		if err == nil {
			err = fmt.Errorf("%s%s: %w", w.root, f.Path[1:], ErrChanged)
		}
		return err
	}
	w.Meter.Add(int64(n))
	content = content[:n]
	if f.Digest = digestOf(content); w.take == nil {
		return nil
	}
	return w.take(ctx, object{f.Digest, f.Size}, content)
}

// An unchanged reads a file, and ends with [ErrChanged] if it is not what it was. It is not an os.File: what prepares one for deadlines takes as
// long as reading a small file.
type unchanged struct {
	fd   int
	name string
	ctx  context.Context //nolint:containedctx // of whoever reads
	was  state
}

// openUnchanged opens a file of the tree at root.
func openUnchanged(ctx context.Context, root string, f found) (io.ReadCloser, error) {
	u := &unchanged{name: root + f.Path[1:], ctx: ctx, was: f.state}
	err := u.retry("open", func() (err error) {
		u.fd, err = unix.Open(u.name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0) // a pipe that took its place would hang
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := u.check(); err != nil {
		u.Close()
		return nil, err
	}
	return u, nil
}

// retry makes a system call until no signal cuts it.
func (u *unchanged) retry(name string, call func() error) error {
	for {
		switch err := call(); {
		case err == nil:
			return nil
		case !errors.Is(err, syscall.EINTR):
			return &fs.PathError{Op: name, Path: u.name, Err: err}
		}
	}
}

func (u *unchanged) check() error {
	var st syscall.Stat_t
	if err := u.retry("stat", func() error { return syscall.Fstat(u.fd, &st) }); err != nil {
		return err
	}
	if now := stateOf(&st, time.Time{}); !now.regular || !now.same(u.was) {
		return fmt.Errorf("%s: %w", u.name, ErrChanged)
	}
	return nil
}

func (u *unchanged) Read(p []byte) (n int, err error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	err = u.retry("read", func() (err error) { n, err = unix.Read(u.fd, p); return err })
	switch {
	case err != nil:
		return 0, err
	case n == 0 && len(p) > 0:
		if err := u.check(); err != nil {
			return 0, err
		}
		return 0, io.EOF
	}
	return n, nil
}

func (u *unchanged) Close() error { return unix.Close(u.fd) }
