package snapshot

import (
	"io"
	"sync"
)

// A Meter counts what work is done, for somebody to show. Its methods may be called at once from many goroutines, and on nil.
type Meter struct {
	mu    sync.Mutex // guards all below
	stage string
	done  int64
	total int64
}

// Begin starts a stage of work of so many bytes; 0: nobody knows.
func (m *Meter) Begin(stage string, total int64) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stage, m.done, m.total = stage, 0, total
}

// Add counts bytes that are done.
func (m *Meter) Add(n int64) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += n
}

// Read returns the stage, and the bytes of it that are done and those there are; none: nobody knows.
func (m *Meter) Read() (stage string, done, total int64) {
	if m == nil {
		return "", 0, 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stage, m.done, m.total
}

// reader returns r, counted as it is read.
func (m *Meter) reader(r io.Reader) io.Reader {
	if m == nil {
		return r
	}
	return &metered{r, m}
}

type metered struct {
	r io.Reader
	m *Meter
}

func (r *metered) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.m.Add(int64(n))
	return n, err
}
