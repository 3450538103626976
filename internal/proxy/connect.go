package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pier/internal/oci"
)

// connect serves CONNECT. An error has not been answered yet.
func (p *Proxy) connect(w http.ResponseWriter, r *http.Request) error {
	o, err := parseAuthority(r.RequestURI, "https", 0)
	switch {
	case err != nil:
		return refusef(http.StatusBadRequest, "malformed CONNECT: it wants host:port")
	case r.ContentLength != 0 || len(r.TransferEncoding) > 0:
		return refusef(http.StatusBadRequest, "a CONNECT has no body")
	case !p.cfg.Ports(o.host, o.port):
		return refusef(http.StatusForbidden, "CONNECT to port %d is not allowed: 443 is, and the ports of hosts listed in --upstreams and --allow-upstream", o.port)
	}
	if err := p.enter(r.RemoteAddr); err != nil {
		return err
	}
	g := &guest{p: p, origin: o, remote: r.RemoteAddr, start: time.Now()}
	if g.cert = p.certificate(r.Context(), o); g.cert == nil && p.cfg.AirGapped && p.cfg.IsRegistry(o.scheme, o.name()) {
		err = errAirGapped
	} else if g.cert == nil {
		err = p.reach(r.Context(), g)
	}
	if err == nil {
		err = g.take(w)
	}
	switch {
	case err != nil:
		g.Close()
		p.leave(g.remote, g)
		if errors.Is(err, errGone) {
			return nil
		}
		return err
	case g.cert != nil || g.plain:
		p.intercept(g)
	default:
		p.tunnel(g)
	}
	return nil
}

// reach connects a guest with its target. That one which has no TLS anyway cannot be reached is what the guest is to find out.
func (p *Proxy) reach(ctx context.Context, g *guest) error {
	plain := p.cfg.Plain != nil && p.cfg.Plain(g.origin.name())
	if plain {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, plainTime)
		defer cancel()
	}
	target, err := p.dial(ctx, g.origin)
	if err == nil {
		g.setTarget(target)
		return nil
	}
	if g.plain = plain && !errors.Is(err, oci.ErrNotAllowed); g.plain {
		return nil
	}
	return err
}

// certificate returns what is shown for a host whose TLS ends here. It is nil if the host is to be tunnelled.
func (p *Proxy) certificate(ctx context.Context, o origin) *tls.Certificate {
	if p.cfg.Certificate == nil || !p.cfg.IsRegistry(o.scheme, o.name()) {
		return nil
	}
	cert, err := p.cfg.Certificate(o.host)
	if err != nil {
		if p.warned.add("certificate " + o.host) {
			p.log.WarnContext(ctx, "no certificate for a registry: its traffic is passed through unseen", "host", o.host, "err", err)
		}
		return nil
	}
	return cert
}

// dial connects a tunnel. The error is a refusal.
func (p *Proxy) dial(ctx context.Context, o origin) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	defer context.AfterFunc(p.cut, cancel)()
	conn, err := p.cfg.Dial(ctx, "tcp", o.address())
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("%w: %w", errSlow, err)
		}
		return nil, answerTo(o, err)
	}
	return conn, nil
}

// A guest is a client's connection that was taken over from the server: a tunnel, or one whose TLS ends here.
type guest struct {
	net.Conn        // nil before it was taken over
	p        *Proxy // which it has entered
	origin   origin
	remote   string
	start    time.Time
	cert     *tls.Certificate // what its TLS ends with here; nil: it is tunnelled
	ahead    []byte           // read already; reads give it first

	mu     sync.Mutex // guards target
	target net.Conn   // the other end of a tunnel; else nil

	draining   atomic.Bool  // it ends when nothing moves for a moment
	last       atomic.Int64 // when something moved last, in nanoseconds since start
	sent, rcvd atomic.Int64 // bytes to the client, and from it
	plain      bool         // there is no TLS at the other end, nor anything else
}

const established = "HTTP/1.1 200 Connection established\r\n\r\n"

// errGone is in an error that nobody is left to be told of.
var errGone = errors.New("the client is gone")

// take takes the connection over, and tells the client that it is connected. The error is a refusal or wraps errGone.
func (g *guest) take(w http.ResponseWriter) error {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return &refusal{status: http.StatusNotImplemented, text: "CONNECT needs HTTP/1.1", cause: err}
	}
	g.Conn = conn
	g.p.hold(g)
	ahead, err := buffered.Reader.Peek(buffered.Reader.Buffered())
	g.ahead = bytes.Clone(ahead)
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(headerTime))
	}
	if err == nil {
		_, err = conn.Write([]byte(established))
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return nil
}

// Read implements io.Reader.
func (g *guest) Read(b []byte) (int, error) {
	if len(g.ahead) > 0 {
		n := copy(b, g.ahead)
		g.ahead = g.ahead[n:]
		return n, nil
	}
	return g.Conn.Read(b)
}

// Close closes both ends. It may be called at any time, and again.
func (g *guest) Close() error {
	var errs []error
	for _, c := range g.ends() {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// ends returns the connections there are: to the client, and to the target.
func (g *guest) ends() []net.Conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.DeleteFunc([]net.Conn{g.Conn, g.target}, func(c net.Conn) bool { return c == nil })
}

func (g *guest) setTarget(c net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.target = c
}
