package bucket

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A session is what must be remembered of a resumable upload so that another process can go on with it: its URL, and of what was sent the CRC-32C
// up to each multiple of gcsUnit, where the service may have stopped. It is in a file that nobody else can read, as whoever has the URL can
// write; or nowhere, if there is no place for it, or another process is at it.
type session struct {
	file *os.File // locked; nil: nothing is remembered
	head sessionHead
	url  string
	sums []uint32
}

// A sessionHead is the first line of the file.
type sessionHead struct {
	Bucket string
	Key    string
	Size   int64
	URL    string
}

const (
	sessionPrefix = "gcs-"
	maxSession    = 64 << 20 // bytes of the file: of 4 TiB, 5 is the most that an object has
)

// openSession returns what is remembered of an upload.
func openSession(dir, bucket, key string, size int64) *session {
	s := &session{head: sessionHead{Bucket: bucket, Key: key, Size: size}}
	if dir == "" || os.MkdirAll(dir, 0o700) != nil {
		return s
	}
	sum := sha256.Sum256([]byte(bucket + "\n" + key))
	name := filepath.Join(dir, sessionPrefix+hex.EncodeToString(sum[:16]))
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return s
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil || !isAt(f, name) {
		f.Close()
		return s
	}
	s.file = f
	s.load()
	return s
}

// load reads the file. What is not of this upload, or not whole, counts for nothing.
func (s *session) load() {
	r := bufio.NewReader(io.LimitReader(s.file, maxSession))
	line, err := r.ReadBytes('\n')
	var head sessionHead
	if err != nil || json.Unmarshal(line, &head) != nil {
		return
	}
	want := s.head
	want.URL = head.URL
	rest, err := io.ReadAll(r)
	if head != want || err != nil {
		return
	}
	s.head, s.url = head, head.URL
	for ; len(rest) >= 4; rest = rest[4:] {
		s.sums = append(s.sums, binary.LittleEndian.Uint32(rest))
	}
}

// begin remembers a new upload.
func (s *session) begin(url string) {
	s.url, s.sums = url, nil
	if s.file == nil {
		return
	}
	s.head.URL = url
	line, err := json.Marshal(s.head)
	if err == nil {
		err = s.file.Truncate(0)
	}
	if err == nil {
		_, err = s.file.WriteAt(append(line, '\n'), 0)
	}
	if err == nil {
		_, err = s.file.Seek(0, io.SeekEnd)
	}
	if err != nil {
		s.forget()
	}
}

// add remembers the sum up to the next multiple of gcsUnit.
func (s *session) add(sum uint32) {
	if s.file == nil {
		return
	}
	if _, err := s.file.Write(binary.LittleEndian.AppendUint32(nil, sum)); err != nil {
		s.forget()
	}
}

// has reports whether it is remembered what is up to there.
func (s *session) has(kept int64) bool {
	return kept%gcsUnit == 0 && kept < s.head.Size && kept/gcsUnit <= int64(len(s.sums))
}

// cut goes on from what the service has, if that has this sum.
func (s *session) cut(kept int64, sum uint32) bool {
	if !s.has(kept) || s.sums[kept/gcsUnit-1] != sum {
		return false
	}
	if s.file == nil {
		return true
	}
	line, err := json.Marshal(s.head)
	if err != nil {
		return false
	}
	end := int64(len(line)) + 1 + 4*(kept/gcsUnit)
	if s.file.Truncate(end) != nil {
		return false
	}
	_, err = s.file.Seek(end, io.SeekStart)
	return err == nil
}

// forget removes the file.
func (s *session) forget() {
	if s.file != nil {
		_ = os.Remove(s.file.Name()) // if it stays it counts for nothing, as the upload is over
		s.file.Close()
		s.file = nil
	}
}

func (s *session) close() {
	if s.file != nil {
		s.file.Close()
	}
}

// Clean implements [Bucket]: uploads that are left end by themselves after a week, and what is remembered of them here is removed.
func (b *gcs) Clean(_ context.Context, before time.Time) (n int, err error) {
	entries, err := os.ReadDir(b.stateDir)
	if b.stateDir == "" || errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !strings.HasPrefix(e.Name(), sessionPrefix) || !info.ModTime().Before(before) {
			continue
		}
		name := filepath.Join(b.stateDir, e.Name())
		text, err := os.ReadFile(name)
		line, _, _ := bytes.Cut(text, []byte("\n"))
		var head sessionHead
		if err != nil || json.Unmarshal(line, &head) == nil && head.Bucket != b.String() {
			continue // of another bucket
		}
		if os.Remove(name) == nil {
			n++
		}
	}
	return n, err
}
