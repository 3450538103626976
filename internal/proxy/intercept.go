package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"reflect"
	"sync"
	"time"
)

type guestKey struct{}

// startInner starts the server of connections whose TLS ends here. Shutdown waits for it.
func (p *Proxy) startInner() {
	p.tls = &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		// Whatever name the client expects, it gets the certificate of the host that it wanted to be connected to.
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			l, _ := hello.Conn.(*lodger)
			return l.cert, nil
		},
	}
	p.inner = &http.Server{
		Handler:           http.HandlerFunc(p.serveInner),
		ReadHeaderTimeout: headerTime,
		ReadTimeout:       readTime,
		IdleTimeout:       restTime,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 100, SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			conn, _ := c.(*tls.Conn)
			l, _ := conn.NetConn().(*lodger)
			return context.WithValue(ctx, guestKey{}, l.guest)
		},
	}
	p.served.Go(func() { _ = p.inner.Serve(p.listener) }) // ends with Shutdown only
}

// A lodger is a guest that the inner server serves, and that leaves when that closes it.
type lodger struct {
	*guest
	once sync.Once
}

// Close implements io.Closer.
func (l *lodger) Close() error {
	err := l.guest.Close()
	l.once.Do(func() { l.p.leave(l.remote, l.guest) })
	return err
}

// recordHandshake is the first byte of every TLS connection (RFC 8446, section 5.1).
const recordHandshake = 0x16

// intercept ends a guest's TLS and hands it to the inner server. If it does not speak TLS, it is tunnelled after all.
func (p *Proxy) intercept(g *guest) {
	ctx, cancel := context.WithTimeout(context.Background(), headerTime)
	defer cancel()
	defer context.AfterFunc(p.cut, cancel)()
	if len(g.ahead) == 0 {
		first := make([]byte, 1)
		_ = g.SetReadDeadline(time.Now().Add(headerTime)) // fails only with the connection
		n, err := g.Conn.Read(first)
		if g.ahead = first[:n]; n == 0 {
			p.dismiss(ctx, g, err)
			return
		}
		_ = g.SetReadDeadline(time.Time{})
	}
	if g.ahead[0] != recordHandshake {
		p.blind(g)
		return
	}
	if g.plain { // by which clients in Go, Docker among them, know that this is no TLS
		_, err := g.Conn.Write([]byte("HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\npier: this registry has no TLS\n"))
		p.dismiss(ctx, g, err)
		return
	}
	p.meter.intercepted.Inc()
	l := &lodger{guest: g}
	conn := tls.Server(l, p.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		p.distrusted(ctx, g, err)
		conn.Close()
		return
	}
	p.listener.give(conn)
}

// dismiss ends a guest that did not even begin.
func (p *Proxy) dismiss(ctx context.Context, g *guest, err error) {
	p.log.DebugContext(ctx, "an intercepted connection came to nothing", "host", g.origin.address(), "remote", g.remote, "err", err)
	g.Close()
	p.leave(g.remote, g)
}

// blind tunnels a guest that was told that it is connected already.
func (p *Proxy) blind(g *guest) {
	ctx := context.Background() // dial has a limit of its own
	target, err := p.dial(ctx, g.origin)
	if err != nil {
		p.dismiss(ctx, g, err)
		return
	}
	g.setTarget(target)
	p.hold(g) // with its target, in case all is being cut off just now
	p.tunnel(g)
}

// Alerts by which clients refuse a certificate, from bad_certificate to unknown_ca (RFC 8446, section 6).
const (
	firstCertificateAlert = 42
	lastCertificateAlert  = 48
)

// distrusted logs a failed handshake. If it was the client that refused the certificate, somebody has to act.
func (p *Proxy) distrusted(ctx context.Context, g *guest, err error) {
	op, ok := errors.AsType[*net.OpError](err)
	if ok && op.Op == "remote error" {
		// The alert's type is not exported. It is a number.
		alert := reflect.ValueOf(op.Err)
		if alert.CanUint() && alert.Uint() >= firstCertificateAlert && alert.Uint() <= lastCertificateAlert && p.warned.add("trust "+g.origin.host) {
			p.log.WarnContext(ctx, "a client does not trust this node's certificate authority: run 'pier ca install' where it runs, and restart it",
				"host", g.origin.host, "remote", g.remote, "err", err)
			return
		}
	}
	p.log.DebugContext(ctx, "a TLS handshake failed", "host", g.origin.host, "remote", g.remote, "err", err)
}

// serveInner serves a request inside of TLS that ended here.
func (p *Proxy) serveInner(w http.ResponseWriter, r *http.Request) {
	if err := p.serveIntercepted(w, r); err != nil {
		p.refuse(w, r, err)
	}
}

func (p *Proxy) serveIntercepted(w http.ResponseWriter, r *http.Request) error {
	g, _ := r.Context().Value(guestKey{}).(*guest)
	o, err := parseAuthority(r.Host, "https", 443)
	switch {
	case r.Method == http.MethodConnect:
		return refusef(http.StatusMethodNotAllowed, "CONNECT inside CONNECT is not supported")
	case r.URL.Scheme != "" && r.URL.Scheme != "https", r.URL.User != nil, len(r.Header["Host"]) > 0:
		return refusef(http.StatusBadRequest, "the address of the request is not that of a host reached through TLS")
	case err != nil || o != g.origin:
		return refusef(http.StatusMisdirectedRequest, "this connection is to %s, and the request is for another host", g.origin.address())
	}
	if err := p.enter(r.RemoteAddr); err != nil {
		return err
	}
	defer p.leave(r.RemoteAddr, nil)
	p.answer(w, r, o, true)
	return nil
}

// handedOver is a listener for connections that come from within.
type handedOver struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newHandedOver() *handedOver {
	return &handedOver{conns: make(chan net.Conn), done: make(chan struct{})}
}

// give hands a connection to who accepts, or closes it.
func (l *handedOver) give(c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.done:
		c.Close()
	}
}

// Accept implements [net.Listener].
func (l *handedOver) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (l *handedOver) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements [net.Listener].
func (l *handedOver) Addr() net.Addr { return &net.TCPAddr{} }
