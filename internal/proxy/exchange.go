package proxy

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// An exchange is a request that is being answered.
type exchange struct {
	p      *Proxy
	r      *http.Request
	w      *response
	origin origin
	start  time.Time

	ctx    context.Context // of r, and ends when the exchange is aborted
	cancel context.CancelCauseFunc
	idle   *time.Timer // aborts
	uncut  func() bool // undoes that the end of all aborts

	patience *time.Timer // stops when the answer comes, if the client gets another one where none comes; else nil
	failed   error       // why there is no answer; only with patience

	count    *metrics.Counter // by what answered
	received atomic.Int64     // bytes from the client
	sent     atomic.Int64     // bytes to it
	err      error            // for the log

	mu   sync.Mutex // guards over
	over bool
}

func (p *Proxy) begin(w http.ResponseWriter, r *http.Request, o origin) *exchange {
	e := &exchange{p: p, r: r, origin: o, start: time.Now(), count: p.meter.passed}
	e.w = &response{rw: w, ctl: http.NewResponseController(w), e: e}
	e.ctx, e.cancel = context.WithCancelCause(r.Context())
	_ = e.w.ctl.SetReadDeadline(time.Time{}) // idle takes the place of what the server set for the whole request
	e.idle = time.AfterFunc(p.idle, func() { e.abort(errIdle) })
	e.uncut = context.AfterFunc(p.cut, func() { e.abort(errClosing) })
	return e
}

// abort ends an exchange from outside: what waits for the network gives up.
func (e *exchange) abort(cause error) {
	e.cancel(cause)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		return // its response may be another one's by now
	}
	e.w.dead.Store(true)
	_ = e.w.ctl.SetReadDeadline(time.Unix(1, 0)) // every server of ours has deadlines
	_ = e.w.ctl.SetWriteDeadline(time.Now().Add(lastWords))
}

// lastWords is how long a client has for the answer that there will be no other.
const lastWords = time.Second

// moved notes bytes from the client and to it.
func (e *exchange) moved(received, sent int64) {
	e.received.Add(received)
	e.sent.Add(sent)
	e.idle.Reset(e.p.idle)
}

// answered bounds the wait for the rest of a body that got its answer already.
func (e *exchange) answered() {
	if e.r.Body != nil && e.r.Body != http.NoBody {
		_ = e.w.ctl.SetReadDeadline(time.Now().Add(e.p.rest))
	}
}

// drain reads what is left of a body, for a while, and reports whether the connection can go on. HTTP/1 servers do so
// too, but without an end if the transport waits for the client as the handler returns, since that costs the deadline; and
// what comes after a deadline they would take for the next request.
func (e *exchange) drain() bool {
	if e.r.ProtoMajor > 1 || e.r.Body == nil || e.r.Body == http.NoBody || e.w.status == http.StatusSwitchingProtocols {
		return true
	}
	e.answered()
	if e.w.status != 0 {
		_ = e.w.FlushError() // the client is not to wait for the answer
	}
	_, err := io.CopyN(io.Discard, e.r.Body, maxDrain)
	return err == nil || err == io.EOF
}

// maxDrain is what net/http reads at most before it gives a connection up.
const maxDrain = 256 << 10

// end counts an exchange, and has its line written in the log. What the registry handler answered has one already.
func (e *exchange) end() {
	drained := e.drain()
	e.mu.Lock()
	e.over = true
	e.mu.Unlock()
	e.idle.Stop()
	e.uncut()
	e.cancel(nil)
	e.count.Inc()
	received, sent := e.received.Load(), e.sent.Load()
	e.p.meter.fromClients.AddInt64(received)
	e.p.meter.toClient.AddInt64(sent)
	if e.count != e.p.meter.registry {
		e.note(received, sent)
	}
	if !drained {
		panic(http.ErrAbortHandler)
	}
}

// note writes the line in the log.
func (e *exchange) note(received, sent int64) {
	attrs := []slog.Attr{
		slog.String("kind", "passed"), slog.String("method", clip(e.r.Method)), slog.String("host", e.origin.address()),
		slog.String("path", clip(e.r.URL.Path)), slog.Int("status", e.w.status), slog.Int64("received", received),
		slog.Int64("sent", sent), slog.Duration("dur", time.Since(e.start)), slog.String("remote", e.r.RemoteAddr),
	}
	if e.err != nil {
		attrs = append(attrs, slog.Any("err", e.err))
	}
	e.p.log.LogAttrs(context.WithoutCancel(e.ctx), slog.LevelInfo, "proxied", attrs...)
}

// incoming is the body of a request.
type incoming struct {
	io.ReadCloser
	e *exchange
}

// Read implements io.Reader.
func (b incoming) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.e.moved(int64(n), 0)
	return n, err
}

// A response is a server's, watched. It is an io.ReaderFrom as that is, so that files still go to the kernel, and all
// else that a server's can do is reached through Unwrap.
type response struct {
	rw   http.ResponseWriter
	ctl  *http.ResponseController
	e    *exchange
	dead atomic.Bool // nothing is written any more

	hold    bool // 401 is held back
	holding bool
	status  int
}

// Unwrap is what [http.ResponseController] looks for.
func (w *response) Unwrap() http.ResponseWriter { return w.rw }

// Header implements [http.ResponseWriter].
func (w *response) Header() http.Header { return w.rw.Header() }

// WriteHeader implements [http.ResponseWriter].
func (w *response) WriteHeader(status int) {
	if w.holding {
		return
	}
	if w.hold && status == http.StatusUnauthorized {
		w.holding = true
		return
	}
	if status >= 200 || status == http.StatusSwitchingProtocols {
		w.status = status
	}
	w.rw.WriteHeader(status)
}

// release ends the holding back, and reports whether something was. What was held is gone.
func (w *response) release() bool {
	held := w.holding
	w.hold, w.holding = false, false
	if held {
		clear(w.Header())
	}
	return held
}

// Write implements io.Writer.
func (w *response) Write(b []byte) (int, error) {
	if w.holding {
		return len(b), nil
	}
	if w.dead.Load() {
		return 0, context.Cause(w.e.ctx)
	}
	n, err := w.rw.Write(b)
	w.e.moved(0, int64(n))
	return n, err
}

// ReadFrom implements io.ReaderFrom.
func (w *response) ReadFrom(src io.Reader) (int64, error) {
	from, ok := w.rw.(io.ReaderFrom)
	if !ok || w.holding {
		return io.Copy(struct{ io.Writer }{w}, src)
	}
	if w.dead.Load() {
		return 0, context.Cause(w.e.ctx)
	}
	n, err := from.ReadFrom(src)
	w.e.moved(0, n)
	return n, err
}

// FlushError is what [http.ResponseController] calls to flush.
func (w *response) FlushError() error {
	if w.holding {
		return nil
	}
	return w.ctl.Flush()
}
