// Package faultproxy is an HTTP reverse proxy for tests that misbehaves on request: it hangs, cuts, flips bytes, lies
// about lengths, refuses, and slows down, by rules that are set and cleared while it runs. It counts and records what
// passes, so that a test can say what reached the other side. It knows the paths of the distribution API and nothing
// else of it; what stands in front of other services picks requests by a function.
package faultproxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

// A Config says what a Proxy stands in front of. Exactly one of Target and Handler is set.
type Config struct {
	Target    *url.URL          // where requests go; path and query are those of the request
	Handler   http.Handler      // answers in place of a target, without a network
	Transport http.RoundTripper // how Target is reached; nil: plain, without compression
	Rules     []Rule            // in force from the start
}

// A Proxy is the handler, and after [Proxy.Start] also the server. All methods may be called at once from many
// goroutines.
type Proxy struct {
	URL    string           // of the server, without a trailing slash; empty if not started
	Server *httptest.Server // nil if not started

	next      http.Handler
	closed    chan struct{} // ends every hang
	closeOnce sync.Once
	sent      atomic.Int64
	received  atomic.Int64

	mu       sync.Mutex // guards all below
	rules    []*rule
	counts   map[countKey]int
	sentKind map[Kind]int64
	requests []Request
	shared   *rate.Limiter            // of all responses; nil: no limit
	perConn  int64                    // bytes per second of each connection; 0: no limit
	conns    map[string]*rate.Limiter // by the client's address
}

type rule struct {
	Rule
	used int // requests that it matched
}

type countKey struct {
	method string
	kind   Kind
}

// maxRequests is how many requests a Proxy remembers in full. Counts go on.
const maxRequests = 100_000

// New returns a Proxy that is only a handler. The caller closes it.
func New(cfg Config) *Proxy {
	p := &Proxy{next: cfg.Handler, closed: make(chan struct{}), counts: make(map[countKey]int), sentKind: make(map[Kind]int64)}
	if cfg.Target != nil {
		p.next = reverse(cfg.Target, cfg.Transport)
	}
	p.Set(cfg.Rules...)
	return p
}

func reverse(target *url.URL, transport http.RoundTripper) http.Handler {
	if transport == nil {
		transport = &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64, IdleConnTimeout: 5 * time.Second}
	}
	return &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1, // bytes pass as they come
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host
			if _, ok := r.In.Header["User-Agent"]; !ok {
				r.Out.Header.Set("User-Agent", "") // absent stays absent
			}
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
}

// Start serves target from a port of the loopback interface until the test ends.
func Start(t testing.TB, target *url.URL) *Proxy {
	t.Helper()
	return New(Config{Target: target}).Start(t)
}

// StartTLS is [Start] with TLS and HTTP/2; p.Server.Client() trusts it.
func StartTLS(t testing.TB, target *url.URL) *Proxy {
	t.Helper()
	return New(Config{Target: target}).StartTLS(t)
}

// Start serves p from a port of the loopback interface until the test ends, and returns p.
func (p *Proxy) Start(t testing.TB) *Proxy {
	return p.start(t, (*httptest.Server).Start)
}

// StartTLS is [Proxy.Start] with TLS and HTTP/2.
func (p *Proxy) StartTLS(t testing.TB) *Proxy {
	return p.start(t, func(s *httptest.Server) {
		s.EnableHTTP2 = true
		s.StartTLS()
	})
}

func (p *Proxy) start(t testing.TB, start func(*httptest.Server)) *Proxy {
	t.Helper()
	p.Server = httptest.NewUnstartedServer(p)
	start(p.Server)
	p.URL = p.Server.URL
	t.Cleanup(p.Close)
	return p
}

// Host returns host:port of the server.
func (p *Proxy) Host() string {
	_, host, _ := strings.Cut(p.URL, "://")
	return host
}

// Close ends every hang, then the server if there is one. It may be called again.
func (p *Proxy) Close() {
	p.closeOnce.Do(func() {
		close(p.closed)
		if p.Server != nil {
			p.Server.CloseClientConnections()
			p.Server.Close()
		}
	})
}

// Set replaces all rules. Responses under way go on with the old ones.
func (p *Proxy) Set(rules ...Rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = nil
	for _, r := range rules {
		p.rules = append(p.rules, &rule{Rule: r})
	}
}

// Add adds a rule to those in force.
func (p *Proxy) Add(r Rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = append(p.rules, &rule{Rule: r})
}

// Clear removes all rules. Rate limits stay.
func (p *Proxy) Clear() { p.Set() }

// LimitRate limits bodies to so many bytes per second: shared by all connections together, and of each connection by
// itself. Zero is no limit.
func (p *Proxy) LimitRate(shared, perConnection int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shared, p.perConn, p.conns = limiter(shared), perConnection, make(map[string]*rate.Limiter)
}

// limiter hands out at most 50 ms worth of bytes at once, so that a rate is one also over short times.
func limiter(bytesPerSecond int64) *rate.Limiter {
	if bytesPerSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytesPerSecond), int(min(max(bytesPerSecond/20, 1), 256<<10)))
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f, limits := p.admit(r)
	ctx := r.Context()
	if f.latency > 0 {
		p.pause(ctx, f.latency)
	}
	if f.hang {
		p.hang(ctx)
	}
	if f.drop {
		panic(http.ErrAbortHandler)
	}
	if f.refuseRange && r.Header.Get("Range") != "" {
		f.status = http.StatusRequestedRangeNotSatisfiable
	}
	if f.uselessTokens {
		refuse(w, r)
		return
	}
	if f.status != 0 {
		for k, v := range f.header {
			w.Header()[k] = v
		}
		w.WriteHeader(f.status)
		_, _ = w.Write(f.body) // the client may be gone
		return
	}
	if f.ignoreRange {
		r = r.Clone(ctx)
		r.Header.Del("Range")
	}
	fw := &writer{ResponseWriter: w, proxy: p, ctx: ctx, faults: f, limits: limits, kind: KindOf(r.URL.Path), head: r.Method == http.MethodHead, keep: -1}
	if r.Body != nil && r.Body != http.NoBody {
		fw.upload = p.upload(ctx, r.Body, f)
		r = r.WithContext(ctx)
		r.Body = fw.upload
	}
	p.next.ServeHTTP(fw, r)
}

// refuse is the answer of [UselessTokens].
func refuse(w http.ResponseWriter, r *http.Request) {
	const tokens = "/token"
	if r.URL.Path == tokens {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"token":"useless"}`) // the client may be gone
		return
	}
	w.Header().Set("Www-Authenticate", fmt.Sprintf("Bearer realm=\"http://%s%s\",service=\"e2e\"", r.Host, tokens))
	w.WriteHeader(http.StatusUnauthorized)
}

// admit counts and records r, and returns all that is to be done to it.
func (p *Proxy) admit(r *http.Request) (faults, []*rate.Limiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	kind := KindOf(r.URL.Path)
	p.counts[countKey{r.Method, kind}]++
	if len(p.requests) < maxRequests {
		p.requests = append(p.requests, Request{r.Method, r.URL.Path, r.URL.Query(), r.Header.Clone(), kind})
	}
	f := faults{cut: -1, hangAt: -1}
	for _, rule := range p.rules {
		if !rule.matches(r) {
			continue
		}
		if rule.used++; rule.used > rule.Skip && (rule.Times == 0 || rule.used <= rule.Skip+rule.Times) {
			rule.Fault(&f)
		}
	}
	var limits []*rate.Limiter
	if p.shared != nil {
		limits = append(limits, p.shared)
	}
	if p.perConn > 0 {
		if p.conns[r.RemoteAddr] == nil {
			p.conns[r.RemoteAddr] = limiter(p.perConn)
		}
		limits = append(limits, p.conns[r.RemoteAddr])
	}
	return f, limits
}

// hang waits until the client leaves or the proxy closes, and aborts the response.
func (p *Proxy) hang(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-p.closed:
	}
	panic(http.ErrAbortHandler)
}

// pause waits for d, and aborts the response if the client leaves or the proxy closes before.
func (p *Proxy) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return
	case <-ctx.Done():
	case <-p.closed:
	}
	panic(http.ErrAbortHandler)
}

// Count returns how many requests of a method there were for a kind of content. An empty method or kind means any.
func (p *Proxy) Count(method string, kind Kind) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for k, c := range p.counts {
		if (method == "" || k.method == method) && (kind == "" || k.kind == kind) {
			n += c
		}
	}
	return n
}

// Sent returns how many bytes of bodies left for clients.
func (p *Proxy) Sent() int64 { return p.sent.Load() }

// Received returns how many bytes of bodies came from clients.
func (p *Proxy) Received() int64 { return p.received.Load() }

// SentOf returns how many bytes of bodies of a kind left for clients.
func (p *Proxy) SentOf(kind Kind) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sentKind[kind]
}

// Requests returns the requests so far, oldest first. Beyond 100,000 they are only counted.
func (p *Proxy) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.requests)
}

// Reset forgets counts, bytes and requests. Rules and limits stay.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.counts)
	clear(p.sentKind)
	p.requests = nil
	p.sent.Store(0)
	p.received.Store(0)
}
