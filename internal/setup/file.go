package setup

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// The largest files that are read, in bytes.
const (
	maxFile    = 1 << 20  // many times what any configuration needs
	maxJournal = 64 << 20 // holds the originals of some
)

// A state is a file as it is, or was.
type state struct {
	Absent  bool        `json:"absent,omitempty"`
	Content []byte      `json:"content,omitempty"`
	Mode    fs.FileMode `json:"mode,omitempty"` // permissions
	UID     int         `json:"uid,omitempty"`
	GID     int         `json:"gid,omitempty"`
}

// resolve returns where path is below the root, symbolic links followed as they would be by a process that has the root for
// its own. The last element need not exist.
func (m *Machine) resolve(path string) (string, error) {
	root, err := filepath.Abs(cmp.Or(m.Root, "/"))
	if err != nil {
		return "", err
	}
	rest, at := filepath.Clean("/"+path), "/"
	for links := 0; rest != "" && rest != "/"; {
		first, more, _ := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
		rest = more
		next := filepath.Join(at, first) // never above "/"
		target, err := os.Readlink(filepath.Join(root, next))
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EINVAL): // nothing there, or no link
			at = next
		case err != nil:
			return "", err
		case links == 40: // the kernel's own limit
			return "", fmt.Errorf("%s: %w", filepath.Join(root, path), syscall.ELOOP)
		default:
			links++
			if filepath.IsAbs(target) {
				at = "/"
			}
			rest = target + "/" + rest
		}
	}
	return filepath.Join(root, at), nil
}

// read returns the file at full, of at most maxFile bytes, as it is now.
func read(full string) (state, error) {
	f, err := os.Open(full)
	if errors.Is(err, fs.ErrNotExist) {
		return state{Absent: true}, nil
	}
	if err != nil {
		return state{}, err
	}
	defer f.Close()
	return stateOf(f, maxFile)
}

// stateOf returns an open file, of at most limit bytes, as it is.
func stateOf(f *os.File, limit int64) (state, error) {
	info, err := f.Stat()
	if err != nil {
		return state{}, err
	}
	if !info.Mode().IsRegular() {
		return state{}, fmt.Errorf("%s is no file", f.Name())
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return state{}, err
	}
	if int64(len(b)) > limit {
		return state{}, fmt.Errorf("%s is larger than %d bytes: it cannot be a configuration", f.Name(), limit)
	}
	st := state{Content: b, Mode: info.Mode().Perm(), UID: -1, GID: -1}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		st.UID, st.GID = int(sys.Uid), int(sys.Gid)
	}
	return st, nil
}

// replace makes the file at full be st, with a rename: a crash leaves the old or the new. An owner of -1 is whoever runs this.
func replace(full string, st state) (err error) {
	f, err := os.CreateTemp(filepath.Dir(full), ".pier-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(st.Content); err != nil {
		return err
	}
	if st.UID >= 0 && (st.UID != os.Getuid() || st.GID != os.Getgid()) {
		if err := f.Chown(st.UID, st.GID); err != nil {
			return err
		}
	}
	if err := f.Chmod(st.Mode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), full); err != nil {
		return err
	}
	return syncDir(filepath.Dir(full))
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// missing returns the directories that have to be made for dir to be there, the outermost first.
func missing(dir string) []string {
	var dirs []string
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			return dirs
		}
		dirs = append([]string{dir}, dirs...)
	}
}
