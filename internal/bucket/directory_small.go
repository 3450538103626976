package bucket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// small is up to which size an object of a directory is read as a whole before it is written, in bytes. Trees have them by the ten
// thousand, and a system call more for each shows.
const small = 64 << 10

// smalls keeps buffers of that size.
var smalls = sync.Pool{New: func() any { return new([small]byte) }}

// putSmall is Put for a small object.
func (d *directory) putSmall(ctx context.Context, key string, r *sized, replace bool) error {
	buf := smalls.Get().(*[small]byte)
	defer smalls.Put(buf)
	content := buf[:r.left]
	if err := r.fill(content); err != nil {
		return err
	}
	if err := d.take(ctx, len(content)); err != nil {
		return err
	}
	// A directory that was made just now has no object.
	target := d.Path(key)
	made, err := makeDirectory(filepath.Dir(target))
	if err != nil {
		return err
	}
	if !made && !replace {
		if _, err := os.Lstat(target); err == nil {
			return ErrExists
		}
	}
	name := d.temporary()
	err = writeNew(name, content)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err = makeDirectory(filepath.Dir(name)); err == nil {
			err = writeNew(name, content)
		}
	}
	if err == nil {
		err = d.commit(name, key, replace)
	}
	if err != nil {
		_ = os.Remove(name)
		if made {
			_ = unix.Rmdir(filepath.Dir(target))
		}
	}
	return err
}

// writeNew is os.WriteFile for a name that is new, without the calls that prepare a file for deadlines.
func writeNew(name string, content []byte) error {
	fd, err := again(func() (int, error) {
		return unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o666)
	})
	if err != nil {
		return err
	}
	for len(content) > 0 && err == nil {
		var n int
		n, err = again(func() (int, error) { return unix.Write(fd, content) })
		content = content[max(n, 0):]
	}
	if closed := unix.Close(fd); err == nil && !errors.Is(closed, syscall.EINTR) { // Linux closes it then, too
		err = closed
	}
	return err
}

// again makes a system call until no signal cuts it.
func again(call func() (int, error)) (n int, err error) {
	for {
		if n, err = call(); !errors.Is(err, syscall.EINTR) {
			return n, err
		}
	}
}

// makeDirectory is os.MkdirAll that tries the last one first, as of three levels the others may be there, and reports whether that is new.
func makeDirectory(name string) (made bool, err error) {
	err = unix.Mkdir(name, 0o777)
	if errors.Is(err, fs.ErrNotExist) && filepath.Dir(name) != name {
		if _, err = makeDirectory(filepath.Dir(name)); err == nil {
			err = unix.Mkdir(name, 0o777)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return false, nil // if it is a file, what is done next says so
	}
	return err == nil, err
}

// temporary returns the name of a file on its way that is this process's alone.
func (d *directory) temporary() string {
	return fmt.Sprintf("%s/%s-%d", d.Path(partials), d.unique, d.temp.Add(1))
}
