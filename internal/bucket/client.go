package bucket

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"pier/internal/oci"
)

const (
	retryBase = 200 * time.Millisecond
	retryCap  = 20 * time.Second
	maxObeyed = 2 * time.Minute  // the longest Retry-After that a request waits for
	stalled   = time.Minute      // without a byte in either direction a connection is given up
	patience  = 15 * time.Minute // the same where a service works on a large object before it answers, and may say nothing meanwhile
	maxError  = 64 << 10         // bytes of an error's body that are read

	// partSize is that of the parts that objects are sent in. What one Put holds in memory is given back before another gets
	// more than the budget of all of them.
	partSize   = 8 << 20
	memory     = 24 << 20
	concurrent = 3 // parts of one object that are sent at once, if memory is there
)

// A client sends requests to one service, again where that helps.
type client struct {
	http    *http.Client
	retries int
	backoff time.Duration // of the first time again
	log     *slog.Logger
	buffers *semaphore.Weighted // bytes that uploads hold in memory, up to [memory]
}

func newClient(cfg Config) *client {
	dialer := &net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}
	return &client{
		http: &http.Client{
			Transport: &http.Transport{
				Proxy: http.ProxyFromEnvironment,
				DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
					c, err := dialer.DialContext(ctx, network, address)
					if err != nil {
						return nil, err
					}
					counted := &conn{Conn: c, limit: cfg.Limit}
					counted.stall.Store(int64(stalled))
					return counted, nil
				},
				TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
				TLSHandshakeTimeout: 15 * time.Second,
				MaxIdleConnsPerHost: 32,
				IdleConnTimeout:     30 * time.Second,
				DisableCompression:  true,
				WriteBufferSize:     64 << 10,
				ReadBufferSize:      64 << 10,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		retries: cfg.Retries,
		backoff: retryBase,
		log:     cfg.Log,
		buffers: semaphore.NewWeighted(memory),
	}
}

// conn is a connection that is given up when it stalls, and keeps to a rate.
type conn struct {
	net.Conn
	limit *rate.Limiter
	stall atomic.Int64 // nanoseconds after which it is given up
}

// keepAlive puts off the end of what is being read and written: either of them going on is enough.
func (c *conn) keepAlive() { _ = c.SetDeadline(time.Now().Add(time.Duration(c.stall.Load()))) }

// patient has the connection that a request gets be given up only so long after it was last heard of.
func patient(ctx context.Context, stall time.Duration) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		inner := got.Conn
		if secure, ok := inner.(*tls.Conn); ok {
			inner = secure.NetConn()
		}
		if c, ok := inner.(*conn); ok {
			c.stall.Store(int64(stall))
		}
	}})
}

func (c *conn) Read(p []byte) (int, error) {
	if c.limit != nil && len(p) > c.limit.Burst() {
		p = p[:c.limit.Burst()]
	}
	c.keepAlive()
	n, err := c.Conn.Read(p)
	if c.limit != nil && n > 0 {
		_ = c.limit.WaitN(context.Background(), n)
	}
	return n, err
}

func (c *conn) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		part := p[:min(len(p), 64<<10)] // so that a slow line is seen to go on
		if c.limit != nil {
			_ = c.limit.WaitN(context.Background(), len(part))
		}
		c.keepAlive()
		n, err := c.Conn.Write(part)
		written += n
		if err != nil {
			return written, err
		}
		p = p[n:]
	}
	return written, nil
}

// A statusError is an answer that is no success.
type statusError struct {
	status int
	code   string // the service's own, e.g. SlowDown
	text   string // for people
	class  error  // of package oci; nil: none
	region string // that the service says the bucket is in
	header http.Header
	again  bool // the same request may succeed, whatever the status says
}

func (e *statusError) Error() string {
	s := "status " + strconv.Itoa(e.status)
	if e.code != "" {
		s += " " + e.code
	}
	if e.text != "" {
		s += ": " + e.text
	}
	if hint := hints[e.class]; hint != "" {
		s += " (" + hint + ")"
	}
	return s
}

func (e *statusError) Unwrap() error { return e.class }

// hints say what to do about errors of a class.
var hints = map[error]string{
	oci.ErrUnauthorized: "check the credentials, and the clock",
	oci.ErrDenied:       "check the credentials and what they are allowed to do",
	oci.ErrRateLimited:  "try again later, with fewer --jobs",
	oci.ErrUnavailable:  "try again later",
}

const noSuchBucket = "the bucket does not exist: create it, or check its name"

// classOf returns the class of a status.
func classOf(status int) error {
	switch {
	case status == http.StatusNotFound:
		return oci.ErrNotFound
	case status == http.StatusUnauthorized:
		return oci.ErrUnauthorized
	case status == http.StatusForbidden:
		return oci.ErrDenied
	case status == http.StatusRequestedRangeNotSatisfiable:
		return oci.ErrRange
	case status == http.StatusTooManyRequests:
		return oci.ErrRateLimited
	case status == http.StatusPreconditionFailed:
		return ErrExists
	case status >= 500:
		return oci.ErrUnavailable
	}
	return nil
}

// A request is one that can be sent again.
type request struct {
	method string
	url    string
	header http.Header
	body   []byte
	ok     []int                     // statuses that are a success
	sign   func(*http.Request) error // adds what proves who sends it, at the time of sending; nil: nothing
	parse  func(status int, body []byte) *statusError

	// whole is up to how many bytes the body of a success is read at once, so that one that was cut is asked for again, and parse
	// may find that it is no success in truth; 0: the caller reads it.
	whole int64

	// sent counts what may still read body, which goes on after an answer that came early: once the answer's body is closed it is
	// waited for before the memory is used again; nil: it is not used again.
	sent *sync.WaitGroup

	slow bool // the service may take its time, see [patience]
}

// A sending is the body of a request. Once it is closed nobody reads the memory.
type sending struct {
	mu   sync.Mutex
	from *bytes.Reader // guarded by mu; nil: it is closed
	sent *sync.WaitGroup
}

func (s *sending) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.from == nil {
		return 0, net.ErrClosed
	}
	return s.from.Read(p)
}

func (s *sending) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.from != nil {
		s.from = nil
		s.sent.Done()
	}
	return nil
}

// attach gives the request a body that is counted.
func (r request) attach(req *http.Request) {
	if r.sent == nil || len(r.body) == 0 {
		return
	}
	req.GetBody = func() (io.ReadCloser, error) {
		r.sent.Add(1)
		return &sending{from: bytes.NewReader(r.body), sent: r.sent}, nil
	}
	req.Body, _ = req.GetBody()
}

// do sends a request until it succeeds, and returns the answer, whose body the caller closes. Other answers are an error that wraps a
// [statusError].
func (c *client) do(ctx context.Context, r request) (*http.Response, error) {
	for attempt := 0; ; attempt++ {
		resp, err := c.once(ctx, r)
		if err == nil {
			return resp, nil
		}
		wait := rand.N(min(c.backoff<<min(attempt, 16), retryCap)) + 1
		again, after := temporary(err)
		if after > maxObeyed {
			again = false
		}
		if !again || attempt >= c.retries || ctx.Err() != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return nil, err
		}
		c.log.DebugContext(ctx, "sent again", "method", r.method, "error", err, "wait", max(wait, after))
		if err := sleep(ctx, max(wait, after)); err != nil {
			return nil, err
		}
	}
}

func (c *client) once(ctx context.Context, r request) (*http.Response, error) {
	stall := stalled
	if r.slow {
		stall = patience
	}
	req, err := http.NewRequestWithContext(patient(ctx, stall), r.method, r.url, bytes.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	for name, values := range r.header {
		req.Header[name] = values
	}
	if r.sign != nil {
		if err := r.sign(req); err != nil {
			return nil, err
		}
	}
	r.attach(req)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, unreachable(err)
	}
	for _, status := range r.ok {
		if resp.StatusCode == status {
			return r.success(resp)
		}
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxError)) // without it there is still the status
	var failed *statusError
	if r.parse != nil {
		failed = r.parse(resp.StatusCode, body)
	}
	if failed == nil {
		failed = &statusError{status: resp.StatusCode, class: classOf(resp.StatusCode)}
	}
	failed.header = resp.Header
	return nil, &afterError{failed, retryAfter(resp.Header.Get("Retry-After"))}
}

// success returns an answer whose status is one, with its body read if that is asked for.
func (r request) success(resp *http.Response) (*http.Response, error) {
	if r.whole == 0 {
		return resp, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, r.whole+1))
	if err != nil {
		return nil, unreachable(err)
	}
	if int64(len(body)) > r.whole {
		return nil, fmt.Errorf("an answer of more than %d bytes", r.whole)
	}
	if r.parse != nil {
		if failed := r.parse(resp.StatusCode, body); failed != nil {
			failed.header = resp.Header
			return nil, &afterError{failed, 0}
		}
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// unreachable returns an error of class ErrUnavailable for one of the network.
func unreachable(err error) error {
	var wrapped interface{ Unwrap() error }
	if errors.As(err, &wrapped) { // without the URL, which may have a signature
		if inner := wrapped.Unwrap(); inner != nil {
			err = inner
		}
	}
	return fmt.Errorf("%w: %w: see that it can be reached, and run this again", oci.ErrUnavailable, err)
}

// An afterError is a statusError with the time that the service asks for before another attempt.
type afterError struct {
	*statusError
	after time.Duration
}

func (e *afterError) Unwrap() error { return e.statusError }

// temporary reports whether the same request may succeed, and after how long at least.
func temporary(err error) (again bool, after time.Duration) {
	var failed *afterError
	if !errors.As(err, &failed) {
		return errors.Is(err, oci.ErrUnavailable), 0
	}
	if failed.again {
		return true, failed.after
	}
	switch failed.status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true, failed.after
	}
	return false, 0
}

func retryAfter(s string) time.Duration {
	if n, err := strconv.Atoi(s); err == nil && n >= 0 && n < 1<<20 {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(time.Until(t), 0)
	}
	return 0
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// resumed reads an object, and goes on where it was when the answer is cut.
type resumed struct {
	ctx    context.Context //nolint:containedctx // of the Open that it is the result of
	client *client
	open   func(ctx context.Context, offset, length int64) (io.ReadCloser, error) // the same version each time
	from   io.ReadCloser
	offset int64 // of the next byte
	left   int64 // bytes to be read
	failed int   // attempts since there was a byte
}

func (r *resumed) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	for {
		n, err := r.from.Read(p[:min(int64(len(p)), r.left)])
		r.offset += int64(n)
		r.left -= int64(n)
		if n > 0 {
			r.failed = 0
			return n, nil
		}
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) {
			err = unreachable(io.ErrUnexpectedEOF)
		}
		if r.ctx.Err() != nil {
			return 0, context.Cause(r.ctx)
		}
		if r.failed++; r.failed > r.client.retries {
			return 0, err
		}
		if err := sleep(r.ctx, rand.N(r.client.backoff<<min(r.failed, 6))+1); err != nil {
			return 0, err
		}
		again, err := r.open(r.ctx, r.offset, r.left)
		if err != nil {
			return 0, err
		}
		_ = r.from.Close()
		r.from = again
	}
}

func (r *resumed) Close() error { return r.from.Close() }
