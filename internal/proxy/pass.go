package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"

	"pier/internal/oci"
)

type exchangeKey struct{}

// exchangeOf returns the exchange that a request passed on belongs to.
func exchangeOf(r *http.Request) *exchange {
	e, _ := r.Context().Value(exchangeKey{}).(*exchange)
	return e
}

// newForward returns what passes requests on as they are but for what is between neighbours only (RFC 9110, section
// 7.6.1), and streams both ways.
func (p *Proxy) newForward() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport:      p.cfg.Transport,
		Rewrite:        rewrite,
		FlushInterval:  -1,
		BufferPool:     bodies{},
		ModifyResponse: heard,
		ErrorHandler:   failed,
		ErrorLog:       slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
}

// pass passes the request on.
func (e *exchange) pass(ctx context.Context) {
	e.count = e.p.meter.passed
	r := e.r.WithContext(context.WithValue(ctx, exchangeKey{}, e))
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = incoming{r.Body, e}
		// Else HTTP/1 would read the body to its end before it lets the answer begin. HTTP/2 needs nothing of the kind.
		_ = e.w.ctl.EnableFullDuplex()
	}
	e.p.forward.ServeHTTP(e.w, r)
}

// rewrite undoes what a reverse proxy would do beyond forwarding.
func rewrite(pr *httputil.ProxyRequest) {
	e := exchangeOf(pr.In)
	pr.Out.URL.Scheme, pr.Out.URL.RawQuery = e.origin.scheme, pr.In.URL.RawQuery
	if pr.Out.URL.Host == "" {
		pr.Out.URL.Host = e.origin.name()
	}
	pr.Out.Trailer = pr.In.Trailer // which is filled as the body comes to its end
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v, ok := pr.In.Header[name]; ok {
			pr.Out.Header[name] = v
		}
	}
}

// cannotAnswer is the status of a registry that is there, and does not answer what it was asked.
type cannotAnswer int

func (status cannotAnswer) Error() string { return fmt.Sprintf("status %d", int(status)) }

// heard looks at an answer before the client gets it.
func heard(resp *http.Response) error {
	e := exchangeOf(resp.Request)
	if e.patience != nil {
		if !e.patience.Stop() {
			return errSlow
		}
		if resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests {
			return cannotAnswer(resp.StatusCode)
		}
	}
	e.pushed(resp)
	if len(resp.Trailer) > 0 {
		resp.Header.Del("Content-Length") // HTTP/1 has trailers only where it has chunks
	}
	if both, ok := resp.Body.(io.ReadWriteCloser); ok && resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body = switched{both, e}
	} else {
		resp.Body = outgoing{resp.Body, e}
	}
	return nil
}

// pushed tells of a manifest that was put or deleted.
func (e *exchange) pushed(resp *http.Response) {
	if resp.StatusCode/100 != 2 || e.p.cfg.Pushed == nil || e.r.Method != http.MethodPut && e.r.Method != http.MethodDelete {
		return
	}
	rest, reference := cutLast(e.r.URL.Path)
	name, verb := cutLast(rest)
	if repository, ok := strings.CutPrefix(name, "/v2/"); ok && verb == "manifests" {
		e.p.cfg.Pushed(e.origin.name(), repository, reference)
	}
}

// outgoing is the body of an answer.
type outgoing struct {
	io.ReadCloser
	e *exchange
}

// Close implements io.Closer. A transport waits there for a body that it is still sending.
func (b outgoing) Close() error {
	b.e.answered()
	return b.ReadCloser.Close()
}

// failed answers where nobody else did.
func failed(w http.ResponseWriter, r *http.Request, err error) {
	e := exchangeOf(r)
	if cause := context.Cause(r.Context()); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause // it says more
	}
	e.err = err
	switch {
	case errors.Is(context.Cause(e.ctx), errIdle) && e.w.status == 0:
		e.w.dead.Store(false)
		answerTo(e.origin, err).write(w)
	case e.r.Context().Err() != nil || e.w.dead.Load():
		e.w.status = statusClientGone
		panic(http.ErrAbortHandler)
	case e.patience != nil && !errors.Is(err, oci.ErrNotAllowed):
		e.failed, e.err = err, nil
	default:
		answerTo(e.origin, err).write(w)
	}
}

// statusClientGone is what the log says of requests whose client left, in the way of other servers. It is never sent.
const statusClientGone = 499

// answerTo returns the answer to an error of Transport or Dial.
func answerTo(o origin, err error) *refusal {
	e := &refusal{status: http.StatusBadGateway, cause: err}
	var timeout net.Error
	switch {
	case errors.Is(err, oci.ErrNotAllowed):
		e.status = http.StatusForbidden
		e.text = fmt.Sprintf("this node's rules do not let the proxy go to %s: a host that is not public has to be listed in --upstreams or --allow-upstream", o.address())
	case isCertificate(err):
		e.text = fmt.Sprintf("this node does not trust the certificate of %s (%s): an authority of its own belongs in --upstreams", o.address(), line(err))
	case errors.Is(err, errSlow), errors.Is(err, errIdle), errors.As(err, &timeout) && timeout.Timeout():
		e.status, e.text = http.StatusGatewayTimeout, fmt.Sprintf("%s does not answer in time: is it up, and is there a way to it from this node?", o.address())
	default:
		e.text = fmt.Sprintf("%s cannot be reached (%s): is it up, and is there a way to it from this node?", o.address(), line(err))
	}
	return e
}

func isCertificate(err error) bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](err)
	return ok
}

// line returns an error in one line of bounded length.
func line(err error) string { return clip(strings.Join(strings.Fields(err.Error()), " ")) }

// switched is a connection that speaks another protocol now, which counts as it moves.
type switched struct {
	io.ReadWriteCloser
	e *exchange
}

// Read implements io.Reader.
func (s switched) Read(p []byte) (int, error) {
	n, err := s.ReadWriteCloser.Read(p)
	s.e.moved(0, int64(n))
	return n, err
}

// Write implements io.Writer.
func (s switched) Write(p []byte) (int, error) {
	n, err := s.ReadWriteCloser.Write(p)
	s.e.moved(int64(n), 0)
	return n, err
}

// CloseWrite hands a half-close on.
func (s switched) CloseWrite() error {
	if c, ok := s.ReadWriteCloser.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return s.Close()
}

// bodies lends buffers of the size that io.Copy makes.
type bodies struct{}

const bodyBuffer = 32 << 10

var buffers = sync.Pool{New: func() any { return new([bodyBuffer]byte) }}

// Get implements [httputil.BufferPool].
func (bodies) Get() []byte {
	b, _ := buffers.Get().(*[bodyBuffer]byte)
	return b[:]
}

// Put implements [httputil.BufferPool].
func (bodies) Put(b []byte) { buffers.Put((*[bodyBuffer]byte)(b)) }
