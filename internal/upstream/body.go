package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"pier/internal/oci"
)

var errStalled = errors.New("no progress")

// A watch ends its context when it has run for timeout without a pause. It runs while somebody waits for the network, and
// pauses while nobody does: a slow client is no stalled upstream.
type watch struct {
	parent  context.Context // the caller's, to tell who ended it
	ctx     context.Context // of the request, which lives until its body is closed
	timeout time.Duration
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	started time.Time
}

// bodyTimeout returns how long a read of a body may bring nothing, where requests have timeout: less than that, so that
// whoever waits for the body can ask somebody else in time, but not less than a second, which a packet lost twice takes.
func bodyTimeout(timeout time.Duration) time.Duration {
	return min(timeout, max(timeout/4, time.Second))
}

// newWatch returns a watch that runs. The caller stops it.
func newWatch(parent context.Context, timeout time.Duration) *watch {
	w := &watch{parent: parent, timeout: timeout, started: time.Now()}
	w.ctx, w.cancel = context.WithCancelCause(parent)
	w.timer = time.AfterFunc(timeout, func() { w.cancel(errStalled) })
	return w
}

func (w *watch) resume() { w.timer.Reset(w.timeout) }
func (w *watch) pause()  { w.timer.Stop() }

func (w *watch) stop() {
	w.timer.Stop()
	w.cancel(context.Canceled)
}

// sleep waits for d and reports true; or false, at once where the time that is left is shorter, and when the watch ends.
func (w *watch) sleep(d time.Duration) bool {
	end := w.started.Add(w.timeout)
	if dl, ok := w.parent.Deadline(); ok && dl.Before(end) {
		end = dl
	}
	if time.Now().Add(d).After(end) {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-w.ctx.Done():
		return false
	}
}

// A body is the part of a response's body that was asked for.
type body struct {
	target target
	what   string
	rc     io.ReadCloser
	watch  *watch
	left   int64 // bytes to come; -1: not known, the end is where the registry says
	limit  int64 // bytes to come at most, if left is -1
	got    int64
	err    error // of the first read that failed, and of all after it
}

// Read implements io.Reader. An end before its time is io.ErrUnexpectedEOF and [oci.ErrUnavailable], never an end.
func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	most := b.left
	if most < 0 {
		most = b.limit
	}
	if most == 0 {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	b.watch.resume()
	n, err := b.rc.Read(p[:min(int64(len(p)), most)])
	b.watch.pause()
	b.got += int64(n)
	b.target.metrics.received.Add(n)
	if b.left >= 0 {
		b.left -= int64(n)
	} else {
		b.limit -= int64(n)
	}
	switch {
	case err == nil || b.left == 0: // what comes after the bytes asked for is no concern
		return n, nil
	case errors.Is(err, io.EOF) && b.left < 0:
		b.err = io.EOF
	default:
		b.err = b.broken(err)
		b.target.metrics.failed(b.target.name, reasonOf(b.err))
		b.target.avoid(b.err)
	}
	return n, b.err
}

func (b *body) broken(err error) error {
	what := fmt.Sprintf("%s after %d bytes", b.what, b.got)
	if b.watch.ctx.Err() != nil {
		return b.target.broken(b.watch, what, err)
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return b.target.fault(what, "cut: "+plain(err), oci.ErrUnavailable, io.ErrUnexpectedEOF)
}

// Close implements io.Closer. It ends the request.
func (b *body) Close() error {
	err := b.rc.Close()
	b.watch.stop()
	return err
}
