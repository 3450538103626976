package overlay2

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"pier/internal/oci"
)

// files opens the files of one layer. Names in an image are a stranger's, and so are its symbolic links: whatever they say,
// no file is opened that is not in the layer's directory, and none that is no regular file.
type files struct {
	root *os.Root

	// lowers returns the directories of the layers below, from the top. It is only asked for where a name leads through a
	// link that is not in this layer.
	lowers func() []string

	parent *os.Root // directory of the last file: others of it follow. nil if that is root
	name   string   // of parent
}

func (f *files) close() {
	f.root.Close()
	if f.parent != nil {
		f.parent.Close()
	}
}

// open returns the file that an entry of that name was extracted to, which must be of that size. It returns an error wrapping
// [fs.ErrNotExist] if it is not there, and one wrapping [oci.ErrDigestMismatch] if it is something else.
func (f *files) open(name string, size int64) (*os.File, error) {
	// Docker, too, takes ".." for what it says, before links are followed, and leading slashes away.
	dir, base := path.Split(path.Clean("/" + name)[1:])
	parent, err := f.directory(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return nil, err
	}
	if base == "" {
		return nil, fmt.Errorf("%q is no file: %w", name, oci.ErrDigestMismatch)
	}
	// To open a device may do something, and to open a FIFO waits: look first, and should it become one now, do not wait.
	info, err := parent.Lstat(base)
	if err != nil {
		return nil, err
	}
	if err := regular(info, name, size); err != nil {
		return nil, err
	}
	file, err := parent.OpenFile(base, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err = file.Stat()
	if err == nil {
		err = regular(info, name, size)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func regular(info fs.FileInfo, name string, size int64) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%q is no regular file any more, but %s: %w", name, info.Mode().Type(), oci.ErrDigestMismatch)
	}
	if info.Size() != size {
		return fmt.Errorf("%q has %d bytes, not %d: %w", name, info.Size(), size, oci.ErrDigestMismatch)
	}
	return nil
}

// directory returns a directory of the layer. It stays open until the next call.
func (f *files) directory(name string) (*os.Root, error) {
	if name == "" {
		return f.root, nil
	}
	if f.parent != nil && f.name == name {
		return f.parent, nil
	}
	// This follows links, but none that begins with a slash or leads out of the layer.
	dir, err := f.root.OpenRoot(name)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		var real string
		if real, err = f.resolve(name); err == nil {
			dir, err = f.root.OpenRoot(real)
		}
	}
	if err != nil {
		return nil, err
	}
	if f.parent != nil {
		f.parent.Close()
	}
	f.parent, f.name = dir, name
	return dir, nil
}

const (
	// maxLinks is how many symbolic links a name may lead through, as in Linux (path_resolution(7)).
	maxLinks = 40

	// maxSteps is how many directories are looked into for one name: each look takes as many as the place is deep, and forty links
	// of four kilobytes, which the kernel follows in no time, would take a minute.
	maxSteps = 4096
)

// resolve returns name, a path in the layer's image, free of links. As for a process in a container, "/" is the root of
// the image, and ".." there is the root again. Where the kernel does not let Docker write into a layer's directory directly
// ("Native Overlay Diff: false"), Docker extracts layers into the mounted image: then a link that a name leads through
// may be one of a layer below. What hides parts of those (opaque directories) needs no look: where it does, the name
// leads through real directories of this layer, and resolve is not called.
func (f *files) resolve(name string) (string, error) {
	var real string
	links, steps := 0, 0
	for rest := name; rest != ""; {
		var next string
		next, rest, _ = strings.Cut(rest, "/")
		if next == ".." {
			real, _ = path.Split(real)
			real = strings.TrimSuffix(real, "/")
			continue
		}
		if next == "" || next == "." {
			continue
		}
		next = path.Join(real, next)
		if steps += 1 + strings.Count(next, "/"); steps > maxSteps {
			return "", fmt.Errorf("%q leads through too many directories: %w", name, oci.ErrUnsupported)
		}
		target, err := f.link(next)
		if err != nil {
			return "", err
		}
		if target == "" {
			real = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%q: %w", name, syscall.ELOOP)
		}
		if path.IsAbs(target) {
			real = ""
		}
		rest = target + "/" + rest
	}
	if real == "" {
		real = "."
	}
	return real, nil
}

// link returns what a symbolic link points to, in the topmost layer that has the name, or "" if it is something else. That may be
// a whiteout: then there is no such directory in the end.
func (f *files) link(name string) (string, error) {
	target, err := readLink(f.root, name)
	if err == nil {
		return target, nil
	}
	for _, dir := range f.lowers() {
		layer, err := os.OpenRoot(dir)
		if err != nil {
			return "", err
		}
		target, err := readLink(layer, name)
		layer.Close()
		if err == nil {
			return target, nil
		}
	}
	return "", err
}

func readLink(layer *os.Root, name string) (string, error) {
	info, err := layer.Lstat(name)
	if err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return "", err
	}
	return layer.Readlink(name)
}
