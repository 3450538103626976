// Package proxy is a forward proxy that takes a registry's place: what clients pull from registries through it is
// answered by a handler of this node, inside plain HTTP and inside TLS that it ends itself, with a certificate that the
// client trusts. Everything else passes through it as it is. It knows HTTP and connections; where it may go, which hosts are
// registries, who signs certificates and where content comes from, it leaves to others.
//
// One request runs through ServeHTTP (proxy.go). One that is not CONNECT goes on to answer (answer.go), which either has
// the registry handler answer or passes it on (pass.go). CONNECT (connect.go) becomes a tunnel (tunnel.go), or its TLS ends
// here (intercept.go) and the requests in it go to answer.
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// A Config says what a proxy does with what it is asked. Registry, IsRegistry, Dial, Transport and Ports are needed.
type Config struct {
	// Registry answers GET and HEAD of manifests, blobs, tags and referrers. It takes the registry from the request's Host,
	// which is in lower case and has a port only if that is not the scheme's own; all else is the client's. Where it answers
	// 401, the request is passed on instead, so that the client sees the registry's own challenge.
	Registry http.Handler

	// IsRegistry reports whether a host, named as above, is a registry by a scheme: by "https", TLS to it is ended here, and
	// by either its /v2/ is answered. A registry that has only plain HTTP is none by "https": clients that may use it so must
	// see that TLS to it fails.
	IsRegistry func(scheme, host string) bool

	// Certificate returns the certificate for a host without port. On an error the host's TLS is tunnelled. Nil: all is.
	Certificate func(host string) (*tls.Certificate, error)

	// Dial connects tunnels. An error wraps oci.ErrNotAllowed if this node's rules forbid it.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// Transport sends what is passed on. It verifies certificates, keeps connections apart that clients authenticate, and its
	// errors are as those of Dial.
	Transport http.RoundTripper

	// Ports reports whether CONNECT may reach a port of a host.
	Ports func(host string, port uint16) bool

	// Plain reports whether a host is a registry that is known to have no TLS. Clients that are content with that try TLS first, and
	// must soon see that there is none. Nil: none is known.
	Plain func(host string) bool

	// Pushed is told of a manifest that was put or deleted through the proxy: what its tag named before counts no more. Nil: nobody is.
	Pushed func(host, repository, reference string)

	// AirGapped says that registries are not asked: what Registry does not have is not there, and what is not a pull is refused.
	AirGapped bool

	// Allow are the clients that may come beside those of this machine's loopback addresses.
	Allow []netip.Prefix

	// Name is what this node calls itself in Via. A request that came through it already is refused. Empty: none is known to
	// have.
	Name string

	Log     *slog.Logger // nil: nothing is logged
	Metrics *metrics.Set // nil: a set of its own
}

// Limits and times. Doors have the same for headers and idle connections.
const (
	maxOpen   = 4096        // requests, tunnels and intercepted connections at once
	maxOfOne  = maxOpen / 4 // those of one client that is not this machine
	maxHeader = 64 << 10

	headerTime = 10 * time.Second // for a header, and for a handshake and the byte before it
	dialTime   = 15 * time.Second
	plainTime  = 2 * time.Second // to a registry that has no TLS anyway
	readTime   = time.Minute     // for a request that is refused
	restTime   = 2 * time.Minute // an intercepted connection between requests

	idleTime = time.Hour // ends what has not moved a byte either way
)

var (
	errFull    = fmt.Errorf("%d requests and tunnels are open, which is as many as this proxy takes", maxOpen)
	errGreedy  = fmt.Errorf("%d requests and tunnels of your address are open, which is as many as this proxy takes from one", maxOfOne)
	errClosing = errors.New("the proxy is stopping")
	errIdle    = errors.New("nothing moved for too long")
	errSlow    = errors.New("no answer in time")
)

// A Proxy is an [http.Handler] for a server that listens where clients expect a proxy. It must be reached without an
// [http.ServeMux], and with a ReadTimeout, which does not bound what is passed on; the server needs no WriteTimeout. Shutdown ends it.
type Proxy struct {
	cfg     Config
	log     *slog.Logger
	meter   *meter
	forward *httputil.ReverseProxy
	idle    time.Duration
	rest    time.Duration // for the end of a body that got its answer

	inner    *http.Server // of intercepted connections
	listener *handedOver
	tls      *tls.Config
	served   sync.WaitGroup // of inner

	cut  context.Context // ends when all is cut off
	stop context.CancelFunc

	away   *memory // registries that could not be asked a moment ago
	warned *memory // what was said in the log about a host, for once

	mu     sync.Mutex          // guards the rest
	open   int                 // what is under way, at most maxOpen
	of     map[netip.Addr]int  // of these by client, without this machine
	ended  chan struct{}       // closed when open gets to 0 while draining; nil before
	guests map[*guest]struct{} // connections that nobody but this proxy ends
}

// New returns a proxy.
func New(c Config) *Proxy {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = metrics.NewSet()
	}
	p := &Proxy{
		cfg: c, log: c.Log, meter: newMeter(c.Metrics), idle: idleTime, rest: headerTime,
		listener: newHandedOver(), away: newMemory(awayTime), warned: newMemory(warnTime),
		of: make(map[netip.Addr]int), guests: make(map[*guest]struct{}),
	}
	p.cut, p.stop = context.WithCancel(context.Background())
	p.forward = p.newForward()
	p.startInner()
	return p
}

// ServeHTTP implements [http.Handler].
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := p.serve(w, r); err != nil {
		p.refuse(w, r, err)
	}
}

// A refusal is an error with the answer that the client gets. Its text is for the client, in one line, and says what to do.
type refusal struct {
	status int
	text   string
	cause  error // for the log, in its place; may be nil
}

func (e *refusal) Error() string {
	if e.cause == nil {
		return e.text
	}
	return line(e.cause)
}

func (e *refusal) Unwrap() error { return e.cause }

func refusef(status int, format string, args ...any) error {
	return &refusal{status: status, text: fmt.Sprintf(format, args...)}
}

// errAirGapped refuses what only a registry could answer.
var errAirGapped = refusef(http.StatusForbidden, "this node asks no registry, by --air-gapped")

// refuse answers a request that came to nothing.
func (p *Proxy) refuse(w http.ResponseWriter, r *http.Request, err error) {
	e, ok := errors.AsType[*refusal](err)
	if !ok {
		e = &refusal{status: http.StatusServiceUnavailable, text: err.Error()}
	}
	p.meter.refused.Inc()
	p.log.InfoContext(r.Context(), "refused", "method", clip(r.Method), "host", clip(r.Host), "status", e.status, "remote", r.RemoteAddr, "err", err)
	e.write(w)
}

func (e *refusal) write(w http.ResponseWriter) {
	h := w.Header()
	if e.status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
	}
	h.Set("Connection", "close") // whoever errs once may have more in its buffer that is not meant so
	http.Error(w, "pier: "+e.text, e.status)
}

// serve serves one request of a client. An error has not been answered yet.
func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) error {
	if !p.admits(r.RemoteAddr) {
		return refusef(http.StatusForbidden, "this proxy is for its own machine; other clients need --proxy-allow")
	}
	if p.cfg.Name != "" && strings.Contains(strings.Join(r.Header.Values("Via"), ","), p.cfg.Name) {
		return refusef(http.StatusLoopDetected, "this request came through this node already; unset HTTP_PROXY and HTTPS_PROXY for pier itself, or name another proxy there")
	}
	if r.Method == http.MethodConnect {
		return p.connect(w, r)
	}
	o, err := absolute(r)
	if err != nil {
		return err
	}
	// As other proxies do: the ports of protocols that could mistake a request for their own are not for HTTP.
	if o.port != 80 && o.port < 1024 && !p.cfg.Ports(o.host, o.port) {
		return refusef(http.StatusForbidden, "port %d is not for HTTP", o.port)
	}
	if err := p.enter(r.RemoteAddr); err != nil {
		return err
	}
	defer p.leave(r.RemoteAddr, nil)
	p.answer(w, r, o, p.cfg.IsRegistry(o.scheme, o.name()))
	return nil
}

// absolute returns where a request that is not CONNECT is to go.
func absolute(r *http.Request) (origin, error) {
	switch u := r.URL; {
	case u.Host == "" || u.Scheme == "":
		return origin{}, refusef(http.StatusBadRequest, "this is a forward proxy: set it as HTTP_PROXY and HTTPS_PROXY; it has no pages of its own")
	case u.Scheme == "https":
		return origin{}, refusef(http.StatusBadRequest, "https through this proxy needs CONNECT")
	case u.Scheme != "http":
		return origin{}, refusef(http.StatusBadRequest, "only http and https go through this proxy")
	case u.User != nil:
		return origin{}, refusef(http.StatusBadRequest, "user and password do not belong in a request's address; send them as Authorization")
	}
	o, err := parseAuthority(r.URL.Host, "http", 80)
	if err != nil {
		return origin{}, refusef(http.StatusBadRequest, "malformed host in the address of the request")
	}
	return o, nil
}

// admits reports whether a client may use the proxy.
func (p *Proxy) admits(remote string) bool {
	ip := client(remote)
	return ip.IsLoopback() || ip.IsValid() && slices.ContainsFunc(p.cfg.Allow, func(n netip.Prefix) bool { return n.Contains(ip) })
}

// client returns a client's address, or none.
func client(remote string) netip.Addr {
	addr, _ := netip.ParseAddrPort(remote)
	return addr.Addr().Unmap().WithZone("")
}

// network returns what stands for a client where they are counted: its address or, since a host has a whole network of
// those in IPv6, that (RFC 4291, section 2.5.4). It is none for this machine.
func network(remote string) netip.Addr {
	ip := client(remote)
	if ip.IsLoopback() {
		return netip.Addr{}
	}
	if ip.Is6() {
		return netip.PrefixFrom(ip, 64).Masked().Addr()
	}
	return ip
}

// enter counts something of a client that begins, and leave must follow. The error is errFull, errGreedy or errClosing.
func (p *Proxy) enter(remote string) error {
	from := network(remote)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.ended != nil:
		return errClosing
	case p.open >= maxOpen:
		return errFull
	case from.IsValid() && p.of[from] >= maxOfOne:
		return errGreedy
	}
	p.open++
	if from.IsValid() {
		p.of[from]++
	}
	p.meter.open.Set(float64(p.open))
	return nil
}

// hold notes that nobody but this proxy ends the connection of what has entered. It may be closed from here on.
func (p *Proxy) hold(g *guest) {
	p.mu.Lock()
	p.guests[g] = struct{}{}
	ending := p.ended != nil
	p.mu.Unlock()
	if p.cut.Err() != nil {
		g.Close()
	} else if ending {
		g.drain()
	}
}

// leave ends what enter began. If it was on hold too, that is over with it.
func (p *Proxy) leave(remote string, g *guest) {
	from := network(remote)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.guests, g)
	p.open--
	if p.of[from]--; p.of[from] <= 0 {
		delete(p.of, from)
	}
	p.meter.open.Set(float64(p.open))
	if p.open == 0 && p.ended != nil {
		close(p.ended)
	}
}

// held returns all connections on hold.
func (p *Proxy) held() []*guest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.guests))
}

// Shutdown takes no more requests and waits for those under way. Tunnels end as soon as nothing moves in them for a
// second, and what is left when ctx ends is cut off. When it returns, nothing of the proxy runs any more. The server in
// front of it is another matter: it is shut down at the same time.
func (p *Proxy) Shutdown(ctx context.Context) {
	p.mu.Lock()
	if p.ended == nil {
		p.ended = make(chan struct{})
		if p.open == 0 {
			close(p.ended)
		}
	}
	p.mu.Unlock()
	for _, g := range p.held() {
		g.drain()
	}
	if p.inner.Shutdown(ctx) == nil {
		select {
		case <-p.ended:
		case <-ctx.Done():
		}
	}
	p.stop()
	for _, g := range p.held() {
		g.Close()
	}
	_ = p.inner.Close() // of connections that are to be cut
	p.served.Wait()
	<-p.ended
}
