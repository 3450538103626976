package chain

import (
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// stamp tells one state of a file from another: whoever replaces a file changes its inode, whoever writes to it the times.
// What happens within one tick of the filesystem's clock, a few milliseconds, may share a stamp. It is zero for content that
// is in no file.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64 // ns since 1970
}

// unknown is the stamp of no content: what is remembered under it is proven again.
var unknown = stamp{size: -1}

func stampOf(info fs.FileInfo) stamp {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return unknown
	}
	return stamp{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano()} //nolint:unconvert // not everywhere 64 bits
}

// stampOfReader returns the stamp of the file behind a reader as [File] makes it, at the cost of a system call.
func stampOfReader(r io.Reader) stamp {
	var f *os.File
	switch r := r.(type) {
	case *section:
		f = r.file
	case *os.File:
		f = r
	default:
		return stamp{}
	}
	info, err := f.Stat()
	if err != nil {
		return unknown
	}
	return stampOf(info)
}

// margin is how much younger than the process content must be: the coarsest time that a filesystem keeps is 2 s.
const margin = 2 * time.Second

// era is the time in which this process has been there to see content come.
type era struct {
	start  time.Time // of this process
	newest time.Time // when content last came before that
}

// saw reports whether the file came in this era, now up long, proven by whoever wrote it. Runtimes and Pier's cache write content
// to a file elsewhere, compare its digest, and rename it to where content is. A rename changes ctime alone; containerd moreover sets
// mtime to the time of the commit, and makes the file read-only after it. So mtime tells when the content was written, and
// differs from ctime. A file that is written in place has both from the same tick: it proves nothing, whoever wrote it.
// A rename or link of an old file changes ctime, and leaves mtime old; one restored with its times has an old mtime too. Only
// who copies old content into the store under a name of his own, and then renames it, vouches for it.
//
// The wall clock may jump, and where no battery keeps it, begin before what it said last. So the file must be younger than
// the process by up, which is the monotonic clock's, too, and younger than the youngest content that was there.
func (e era) saw(s stamp, now time.Time, up time.Duration) bool {
	first := time.Unix(0, min(s.mtime, s.ctime))
	if s.mtime == 0 || s.mtime == s.ctime || !first.After(e.start.Add(margin)) || !first.After(e.newest.Add(margin)) {
		return false
	}
	age := now.Sub(first)
	return age >= 0 && age+margin < up
}
