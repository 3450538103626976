package faultproxy

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

// writer does to a response what the faults say.
type writer struct {
	http.ResponseWriter
	proxy  *Proxy
	ctx    context.Context // of the request, which is over when the writer is
	faults faults
	limits []*rate.Limiter
	kind   Kind
	head   bool
	upload *upload // the request's body; nil: it has none

	wrote bool  // headers are on their way
	start int64 // offset of the body in the whole content
	pos   int64 // bytes of the body sent
	keep  int64 // bytes of the body that a smaller Content-Length leaves room for; -1: all
}

// WriteHeader implements http.ResponseWriter.
func (w *writer) WriteHeader(status int) {
	if w.wrote || status < 200 {
		w.ResponseWriter.WriteHeader(status)
		return
	}
	if w.upload != nil && w.upload.cut.Load() {
		panic(http.ErrAbortHandler)
	}
	w.wrote = true
	h := w.Header()
	for name, values := range w.faults.set {
		h[name] = values
	}
	if w.faults.noDigest {
		h.Del("Docker-Content-Digest")
	}
	if w.faults.noLength {
		h.Del("Content-Length")
	}
	if n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil && w.faults.lengthDelta != 0 {
		n = max(n+w.faults.lengthDelta, 0)
		h.Set("Content-Length", strconv.FormatInt(n, 10))
		if w.faults.lengthDelta < 0 {
			w.keep = n
		}
	}
	if status == http.StatusPartialContent {
		// "bytes 5-9/10": the body starts at 5
		from, _, _ := strings.Cut(strings.TrimPrefix(h.Get("Content-Range"), "bytes "), "-")
		w.start, _ = strconv.ParseInt(from, 10, 64)
	}
	w.ResponseWriter.WriteHeader(status)
	if w.head {
		return
	}
	if w.faults.noLength {
		w.Flush() // before net/http can count a short body
	}
	w.halt()
}

// Write implements http.ResponseWriter.
func (w *writer) Write(p []byte) (int, error) {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	total := 0
	for len(p) > 0 {
		if w.keep == w.pos {
			return total + len(p), nil // the next handler does not know of the lie
		}
		n, err := w.write(p[:w.step(len(p))])
		total += n
		if err != nil {
			return total, err
		}
		p = p[n:]
		w.halt()
	}
	return total, nil
}

// step returns how many of n bytes may be sent before something is to be done.
func (w *writer) step(n int) int {
	for _, at := range []int64{w.faults.cut, w.faults.hangAt, w.keep} {
		if at > w.pos {
			n = int(min(int64(n), at-w.pos))
		}
	}
	if w.faults.dripBytes > 0 {
		w.proxy.pause(w.ctx, w.faults.dripEvery)
		n = min(n, w.faults.dripBytes)
	}
	for _, l := range w.limits {
		n = min(n, l.Burst())
	}
	for _, l := range w.limits {
		w.take(l, n)
	}
	return n
}

// take waits until l gives n bytes.
func (w *writer) take(l *rate.Limiter, n int) {
	if d := l.ReserveN(time.Now(), n).Delay(); d > 0 {
		w.proxy.pause(w.ctx, d)
	}
}

func (w *writer) write(p []byte) (int, error) {
	whole := w.start + w.pos
	for _, at := range w.faults.flips {
		if i := at - whole; i >= 0 && i < int64(len(p)) {
			p = append([]byte(nil), p...) // the caller's bytes stay as they are
			p[i] = ^p[i]
		}
	}
	w.count(len(p)) // before, so that whoever has read the bytes finds them counted
	n, err := w.ResponseWriter.Write(p)
	w.count(n - len(p))
	w.pos += int64(n)
	if w.faults.dripBytes > 0 {
		w.Flush()
	}
	return n, err
}

// count adds to the bytes sent.
func (w *writer) count(n int) {
	if n == 0 {
		return
	}
	w.proxy.sent.Add(int64(n))
	w.proxy.mu.Lock()
	defer w.proxy.mu.Unlock()
	w.proxy.sentKind[w.kind] += int64(n)
}

// halt cuts or hangs if the body is that far.
func (w *writer) halt() {
	switch w.pos {
	case w.faults.cut:
		w.Flush()
		panic(http.ErrAbortHandler)
	case w.faults.hangAt:
		w.Flush()
		w.proxy.hang(w.ctx)
	}
}

// Flush implements http.Flusher.
func (w *writer) Flush() {
	_ = http.NewResponseController(w.ResponseWriter).Flush() // a writer that cannot flush has nothing held back
}
