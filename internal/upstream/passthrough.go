package upstream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"pier/internal/oci"
)

// A GateConfig says where a [Gate] lets requests pass. The fields are those of [Config].
type GateConfig struct {
	Upstreams []Upstream
	Allow     []string
	Name      string
	OwnProxy  string

	resolver *net.Resolver
	proxy    func(*http.Request) (*url.URL, error) // nil: the environment's
	here     func(netip.Addr) bool                 // nil: whether this machine has an address
}

// A Gate is the way out for requests of others, which go on as they are: without credentials, client certificates and
// mirrors of this node, but by its rules and through its HTTP proxy, with the authorities that it knows.
//
// A request may go to what has a public name and public addresses, other than this machine's. A listed upstream, at its
// port, may have private ones, and so may a host that a pattern other than "*" allows, over TLS, and the token server that a
// listed upstream with a private address names.
type Gate struct {
	cfg     GateConfig
	current atomic.Pointer[ways]
}

// ways is one state of the configuration.
type ways struct {
	*directory
	named   map[string]*way // listed upstreams and mirrors, by host:port
	trusted *way
	public  *way

	realms  *deadlines // token servers of what is listed, by host:port
	private *deadlines // those of them that may have private addresses
	bound   *deadlines // hosts that authenticate connections, by host:port
}

// A way is how a kind of hosts is reached.
type way struct {
	rules     rules
	transport *http.Transport
	single    *http.Transport // each request has a connection of its own
	dialer    *net.Dialer
}

const (
	// expectTime is how long a body waits for a server that was asked whether it wants it.
	expectTime = 5 * time.Second

	// learntTime is how long is remembered what a challenge says: the next one says it again.
	learntTime = 24 * time.Hour
	maxLearnt  = 256

	passedHeaderBytes = 1 << 20 // of an answer, which is for somebody else to judge
)

// NewGate returns a gate. The error joins all faults of the configuration.
func NewGate(cfg GateConfig) (*Gate, error) {
	if cfg.here == nil {
		cfg.here = ofThisMachine
	}
	g := &Gate{cfg: cfg}
	return g, g.Reload(cfg.Upstreams)
}

// Reload replaces the upstreams, and forgets what challenges said. What is under way goes on. On an error, which joins all
// faults, everything stays as it was.
func (g *Gate) Reload(upstreams []Upstream) error {
	d, err := newDirectory(Config{
		Allow: g.cfg.Allow, Name: g.cfg.Name, OwnProxy: g.cfg.OwnProxy, Timeout: defaultTimeout, resolver: g.cfg.resolver,
	}, upstreams)
	if err != nil {
		return err
	}
	d.proxies.from = g.cfg.proxy
	w := &ways{directory: d, named: make(map[string]*way), realms: newDeadlines(maxLearnt), private: newDeadlines(maxLearnt), bound: newDeadlines(maxLearnt)}
	w.trusted, w.public = w.way(rules{listed: true}, nil), w.way(rules{not: g.cfg.here}, nil)
	settings := make(map[string]TLS)
	for _, u := range upstreams {
		name, _ := oci.Canonical(u.Name, "")
		settings[name] = u.TLS
	}
	for name, e := range d.listed {
		own := settings[name]
		own.Cert, own.Key = "", "" // they say that it is this node that asks
		c, err := own.config()
		if err != nil {
			return fmt.Errorf("upstream %s: %w", name, err)
		}
		to := w.way(rules{listed: true, own: literal(name)}, c)
		for _, host := range []string{e.name, e.host} {
			w.named[withPort(host, e.scheme)] = to
		}
	}
	if old := g.current.Swap(w); old != nil {
		old.closeIdle()
	}
	return nil
}

// Close closes connections that rest. The gate may be used on.
func (g *Gate) Close() { g.current.Load().closeIdle() }

func (w *ways) closeIdle() {
	for _, to := range w.named {
		to.transport.CloseIdleConnections()
	}
	w.trusted.transport.CloseIdleConnections()
	w.public.transport.CloseIdleConnections()
}

func (w *ways) way(r rules, c *tls.Config) *way {
	to := &way{rules: r, transport: w.transport(r, c), single: w.transport(r, c.Clone()), dialer: w.dialer()}
	for _, t := range []*http.Transport{to.transport, to.single} {
		t.ResponseHeaderTimeout = 0 // whoever asks knows how long to wait
		t.ExpectContinueTimeout = expectTime
		t.MaxResponseHeaderBytes = passedHeaderBytes
	}
	to.single.DisableKeepAlives, to.single.ForceAttemptHTTP2, to.single.Protocols = true, false, new(http.Protocols)
	to.single.Protocols.SetHTTP1(true)
	to.dialer.ControlContext = r.control
	return to
}

// withPort returns host:port of a registry's name.
func withPort(name, scheme string) string {
	if host, port := splitPort(name); port != "" {
		return host + ":" + port
	}
	if scheme == "http" {
		return name + ":80"
	}
	return name + ":443"
}

// to returns the way to host:port, which is spoken to in scheme, or in what nobody knows if that is empty.
func (w *ways) to(addr, scheme string) *way {
	if to := w.named[addr]; to != nil {
		return to
	}
	if w.private.has(addr) || scheme != "http" && w.matches(addr) {
		return w.trusted
	}
	return w.public
}

// matches reports whether a pattern other than "*" allows host:port.
func (d *directory) matches(addr string) bool {
	for _, p := range d.allow {
		if !p.any && p.match(addr) {
			return true
		}
	}
	return false
}

// permit checks a host before it is resolved. It is all there is where an HTTP proxy resolves.
func (w *way) permit(addr string) error {
	if a := literal(addr); a.IsValid() {
		return w.rules.permitAddr(a)
	}
	if !w.rules.listed && !publicName(addr) {
		return fmt.Errorf("%.200s is not a public name, and not listed: %w", addr, oci.ErrNotAllowed)
	}
	return nil
}

// Listed reports whether the operator listed host[:port], and by which scheme it is reached.
func (g *Gate) Listed(name string) (scheme string, ok bool) {
	name, _ = oci.Canonical(name, "")
	e := g.current.Load().listed[name]
	if e == nil {
		return "", false
	}
	return e.scheme, true
}

// Ports reports whether tunnels may lead to a port of a host: the one of HTTPS, and those of hosts that are listed or that
// a pattern other than "*" allows, and of token servers, see learn.
func (g *Gate) Ports(host string, port uint16) bool {
	if port == 443 {
		return true
	}
	addr := net.JoinHostPort(strings.ToLower(host), strconv.Itoa(int(port)))
	w := g.current.Load()
	return w.named[addr] != nil || w.realms.has(addr) || w.matches(addr)
}

// RoundTrip implements [http.RoundTripper]. An error wraps [oci.ErrNotAllowed] if the rules forbid it.
func (g *Gate) RoundTrip(req *http.Request) (*http.Response, error) {
	w := g.current.Load()
	addr := withPort(strings.ToLower(req.URL.Host), req.URL.Scheme)
	to := w.to(addr, req.URL.Scheme)
	if err := to.permit(addr); err != nil {
		return nil, errors.Join(err, closeBody(req))
	}
	through, _ := w.proxies.forRequest(req)
	if through != nil && req.URL.Scheme == "http" && g.cfg.Name != "" {
		req = req.Clone(req.Context()) // CONNECT has it anyway
		req.Header.Add("Via", via(g.cfg.Name))
	}
	transport := to.transport
	if bindsConnection(req.Header.Values("Authorization")...) || w.bound.has(addr) {
		transport = to.single
	}
	reached := to.rules.own
	if w.named[addr] != nil && through == nil { // nobody can tell where an HTTP proxy goes
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
			if ap, err := netip.ParseAddrPort(i.Conn.RemoteAddr().String()); err == nil {
				reached = ap.Addr()
			}
		}}))
	}
	resp, err := transport.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		challenges := resp.Header.Values("Www-Authenticate")
		if bindsConnection(challenges...) {
			w.bound.set(addr, time.Now().Add(learntTime))
		}
		if w.named[addr] != nil {
			w.learn(challenges, req.URL, reached.IsValid() && !public(embedded(reached)))
		}
	}
	return resp, err
}

// learn remembers the token servers that a listed registry names, on its own host, or at the port of HTTPS or its own: a challenge must
// not open the way to all that listens somewhere. Only one that is private itself knows of others that are.
func (w *ways) learn(challenges []string, registry *url.URL, private bool) {
	_, own := splitPort(withPort(registry.Host, registry.Scheme))
	for _, challenge := range challenges {
		m := realmParam.FindStringSubmatch(challenge)
		if m == nil {
			continue
		}
		realm, err := url.Parse(m[1] + m[2])
		if err != nil || !realmFits(realm, registry) || !validName(realm.Host) {
			continue
		}
		addr := withPort(strings.ToLower(realm.Host), realm.Scheme)
		if _, port := splitPort(addr); port != "443" && port != own && !strings.EqualFold(realm.Hostname(), registry.Hostname()) {
			continue
		}
		until := time.Now().Add(learntTime)
		w.realms.set(addr, until)
		if private {
			w.private.set(addr, until)
		}
	}
}

// bindsConnection reports whether there is one among credentials, or challenges, that counts for all that follows on the
// same connection (NTLM, and Negotiate by RFC 4559, section 6): another client must not come to use that.
func bindsConnection(values ...string) bool {
	for _, v := range values {
		for one := range strings.SplitSeq(v, ",") {
			scheme, _, _ := strings.Cut(strings.TrimSpace(one), " ")
			if strings.EqualFold(scheme, "ntlm") || strings.EqualFold(scheme, "negotiate") {
				return true
			}
		}
	}
	return false
}

// Dial connects a tunnel to host:port. An error wraps [oci.ErrNotAllowed] if the rules forbid it.
func (g *Gate) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	addr = strings.ToLower(addr)
	w := g.current.Load()
	to := w.to(addr, "")
	if err := to.permit(addr); err != nil {
		return nil, err
	}
	u, err := w.proxies.forRequest(&http.Request{URL: &url.URL{Scheme: "https", Host: addr}})
	if err != nil {
		return nil, fmt.Errorf("HTTP proxy of this node's environment: %w", err)
	}
	if u == nil {
		return to.dialer.DialContext(ctx, network, addr)
	}
	conn, err := w.dialThrough(ctx, u, addr)
	if err != nil {
		return nil, fmt.Errorf("through the HTTP proxy %s: %w", u.Redacted(), err)
	}
	return conn, nil
}

// dialThrough connects to host:port through an HTTP proxy. The caller's ctx bounds it.
func (w *ways) dialThrough(ctx context.Context, u *url.URL, addr string) (net.Conn, error) {
	if u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("no tunnels through %.20s: %w", u.Scheme, oci.ErrUnsupported)
	}
	conn, err := w.dialer().DialContext(ctx, "tcp", withPort(u.Host, u.Scheme)) // the operator's own choice
	if err != nil {
		return nil, err
	}
	if u.Scheme == "https" {
		secure := tls.Client(conn, &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12})
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		conn = secure
	}
	interrupt := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	if err := w.requestTunnel(conn, u, addr); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if !interrupt() {
		return nil, errors.Join(ctx.Err(), conn.Close())
	}
	return conn, nil
}

// requestTunnel asks the HTTP proxy u at the other end of conn for a tunnel, and reads its answer and no byte more.
func (w *ways) requestTunnel(conn net.Conn, u *url.URL, addr string) error {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: addr}, Host: addr, Header: make(http.Header)}
	if w.cfg.Name != "" {
		req.Header.Set("Via", via(w.cfg.Name))
	}
	if u.User != nil {
		password, _ := u.User.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password)))
	}
	if err := req.Write(conn); err != nil {
		return err
	}
	var header []byte
	for one := make([]byte, 1); !bytes.HasSuffix(header, []byte("\r\n\r\n")); {
		if len(header) >= maxHeaderBytes {
			return fmt.Errorf("header of more than %d bytes: %w", maxHeaderBytes, oci.ErrUnavailable)
		}
		if _, err := io.ReadFull(conn, one); err != nil {
			return err
		}
		header = append(header, one[0])
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(header)), req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("status %d: %w", resp.StatusCode, oci.ErrUnavailable)
	}
	return nil
}
