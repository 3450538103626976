package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// response writes the answer to one request. The header goes out with the first byte, so that a Source whose first read
// fails still gets a proper error answer. It sees to it that a client gets as many bytes as the header promised, never
// more, and that bytes flow: each piece has its own write deadline.
//
// It implements io.ReaderFrom for the sake of files: these go to the kernel (sendfile) in pieces.
type response struct {
	rw    http.ResponseWriter
	from  io.ReaderFrom // rw, if it is one: the connection is one that may take files
	ctl   *http.ResponseController
	stall time.Duration // how long one piece may take
	head  bool          // the request is a HEAD: no body
	http2 bool

	status  int // sent, or to be sent
	started bool
	left    int64     // bytes promised and not written yet; -1 if none were promised
	bytes   int64     // of the body, written
	armed   time.Time // when the write deadline was last set
	err     error     // the first failure to write: the client is gone or too slow

	source string // what supplied the content, for log and metrics; empty if none did
}

const (
	// pieceSize is how much is written under one deadline: with a minute each, a client needs 18 kB/s to stay.
	pieceSize = 1 << 20
	// bufferSize holds nearly every manifest, which then leaves with its header in one write.
	bufferSize = 64 << 10
)

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// errTooLong ends content of which there is more than its descriptor says.
var errTooLong = errors.New("content is longer than its descriptor says")

func newResponse(rw http.ResponseWriter, r *http.Request, stall time.Duration) *response {
	w := &response{
		rw: rw, ctl: http.NewResponseController(rw), stall: stall,
		head: r.Method == http.MethodHead, http2: r.ProtoMajor == 2,
		status: http.StatusOK, left: -1,
	}
	w.from, _ = rw.(io.ReaderFrom)
	return w
}

// begin says what will be sent: status, and the length of the body in bytes, negative if that is not known.
func (w *response) begin(status int, length int64) {
	w.status, w.left = status, max(length, -1)
}

// start sends the header.
func (w *response) start() {
	if w.started {
		return
	}
	w.started = true
	w.arm()
	if w.left >= 0 {
		w.rw.Header().Set("Content-Length", strconv.FormatInt(w.left, 10))
	}
	if w.head {
		w.left = 0
	}
	w.rw.WriteHeader(w.status)
}

// finish completes the answer. Less content than promised is an error.
func (w *response) finish() error {
	if !w.started && (w.left <= 0 || w.head) {
		w.start()
	}
	if w.left > 0 {
		return fmt.Errorf("content is %d bytes shorter than its descriptor says: %w", w.left, io.ErrUnexpectedEOF)
	}
	w.arm()
	if w.http2 {
		return w.err // the deadline ends with the stream
	}
	// The connection's next request, perhaps not for this handler, must not inherit the deadline.
	w.flush()
	_ = w.ctl.SetWriteDeadline(time.Time{})
	return w.err
}

// arm gives what is written next its time. A deadline set a moment ago is good enough.
func (w *response) arm() {
	now := time.Now()
	if !w.http2 && now.Sub(w.armed) < w.stall/8 {
		return
	}
	w.armed = now
	_ = w.ctl.SetWriteDeadline(now.Add(w.stall)) // unsupported by this connection: the server's own time-outs remain
}

// disarm is for HTTP/2, which resets a stream when its deadline comes even if nobody is writing: that would punish the
// client for a slow Source.
func (w *response) disarm() {
	if w.http2 {
		_ = w.ctl.SetWriteDeadline(time.Time{})
	}
}

func (w *response) flush() {
	if err := w.ctl.Flush(); err != nil && w.err == nil && !errors.Is(err, http.ErrNotSupported) {
		w.err = err
	}
}

func (w *response) count(n int64) {
	w.bytes += n
	if w.left >= 0 {
		w.left -= n
	}
}

// Write implements io.Writer.
func (w *response) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		piece := p[:min(len(p), pieceSize)]
		if w.left >= 0 && int64(len(piece)) > w.left {
			return total, errTooLong
		}
		w.start()
		w.arm()
		n, err := w.rw.Write(piece)
		w.count(int64(n))
		total += n
		if err != nil {
			w.err = err
			return total, err
		}
		p = p[n:]
	}
	if total > 0 && w.left != 0 { // the next bytes may take their time
		w.flush()
		w.disarm()
	}
	return total, w.err
}

// ReadFrom implements io.ReaderFrom. An *io.LimitedReader over an *os.File is left with what was not read of it.
func (w *response) ReadFrom(src io.Reader) (int64, error) {
	file := fileOf(src)
	if w.from == nil || w.http2 {
		file = nil
	}
	var total int64
	if file == nil || !w.started {
		n, err := w.copyBuffered(src, file != nil)
		total = n
		if file == nil || err != nil {
			return total, err
		}
	}
	n, err := w.sendFile(file)
	return total + n, err
}

// fileOf returns src as the part of a file that it is, or nil.
func fileOf(src io.Reader) *io.LimitedReader {
	switch s := src.(type) {
	case *os.File:
		return &io.LimitedReader{R: s, N: math.MaxInt64}
	case *io.LimitedReader:
		if _, ok := s.R.(*os.File); ok {
			return s
		}
	}
	return nil
}

// copyBuffered copies src to its end, or only what one read gives.
func (w *response) copyBuffered(src io.Reader, once bool) (total int64, err error) {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			written, err := w.Write(buf[:n])
			total += int64(written)
			if err != nil {
				return total, err
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil || once {
			return total, err
		}
	}
}

// sendFile has the connection take file piece by piece. The header is out.
func (w *response) sendFile(file *io.LimitedReader) (total int64, err error) {
	piece := &io.LimitedReader{R: file.R}
	for file.N > 0 {
		want := min(file.N, pieceSize)
		if w.left == 0 {
			return total, errTooLong
		}
		if w.left > 0 {
			want = min(want, w.left)
		}
		piece.N = want
		w.arm()
		n, err := w.from.ReadFrom(piece)
		w.count(n)
		total += n
		file.N -= n
		if err != nil {
			if isConnection(err) {
				w.err = err
			}
			return total, err
		}
		if n < want {
			break // the end of the file
		}
	}
	return total, nil
}

// isConnection tells a failure to write to a connection from a failure to read the file that goes there.
func isConnection(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ETIMEDOUT)
}

// copy sends content. While some of it is still on its way to this node, the header does not wait for it.
func (w *response) copy(content io.Reader, inFlight bool) error {
	if inFlight {
		w.start()
		w.flush()
		w.disarm()
	}
	if _, err := io.Copy(w, content); err != nil {
		return fmt.Errorf("after %d bytes of content: %w", w.bytes, err)
	}
	return nil
}

// sendBytes sends a whole answer.
func (w *response) sendBytes(status int, contentType string, b []byte) error {
	w.rw.Header().Set("Content-Type", contentType)
	w.begin(status, int64(len(b)))
	if w.head {
		return nil
	}
	_, err := w.Write(b)
	return err
}

// sendJSON sends v, with status 200.
func (w *response) sendJSON(contentType string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return w.sendBytes(http.StatusOK, contentType, b)
}
