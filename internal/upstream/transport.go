package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	dialTimeout      = 10 * time.Second
	maxHeaderTimeout = 30 * time.Second
	maxRedirects     = 10
	receiveBuffer    = 2 << 20   // bytes: what 80 Mbit/s bring in 200 ms, or a Gbit/s in 16 ms
	maxHeaderBytes   = 128 << 10 // of an answer; signatures and policies take a few KiB, net/http's own limit is 10 MB
)

var (
	errRedirects = errors.New("too many redirects")
	errRealm     = errors.New("token realm without TLS, or none at all")
)

// client returns an HTTP client whose every connection obeys rules. A nil tlsConfig means the system's roots.
func (d *directory) client(rules rules, tlsConfig *tls.Config) *http.Client {
	return &http.Client{Transport: &transport{base: d.transport(rules, tlsConfig), rules: rules}, CheckRedirect: checkRedirect}
}

// transport returns one whose every connection obeys rules. A nil tlsConfig means the system's roots.
func (d *directory) transport(rules rules, tlsConfig *tls.Config) *http.Transport {
	if tlsConfig == nil {
		tlsConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	plain, guarded := d.dialer(), d.dialer()
	guarded.ControlContext = rules.control
	t := &http.Transport{
		Proxy: d.proxies.forRequest,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if d.proxies.has(addr) {
				return plain.DialContext(ctx, network, addr) // the operator's own choice
			}
			return guarded.DialContext(ctx, network, addr)
		},
		TLSClientConfig:        tlsConfig,
		TLSHandshakeTimeout:    dialTimeout,
		ResponseHeaderTimeout:  min(d.cfg.Timeout, maxHeaderTimeout),
		MaxResponseHeaderBytes: maxHeaderBytes,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // content is named by the digest of its bytes as they are
		MaxIdleConns:           128,
		MaxIdleConnsPerHost:    32,
		IdleConnTimeout:        90 * time.Second,
		HTTP2: &http.HTTP2Config{
			// A connection that carries many streams and died silently must not be given new ones.
			SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second,
			// So much may be on its way to this node at once, on all streams together. What arrives is taken off without delay: it
			// does not wait for clients.
			MaxReceiveBufferPerConnection: receiveBuffer, MaxReceiveBufferPerStream: receiveBuffer,
		},
	}
	if d.cfg.Name != "" {
		t.ProxyConnectHeader = http.Header{"Via": {via(d.cfg.Name)}} // by which this node knows its own requests again
	}
	return t
}

func (d *directory) dialer() *net.Dialer {
	return &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second, Resolver: d.cfg.resolver}
}

// via returns what a node of this name puts into a Via header (RFC 9110, section 7.6.3).
func via(name string) string { return "1.1 " + name }

// checkRedirect bounds redirects. That Authorization does not leave its origin is the token client's part; see
// [auth.Client].
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return errRedirects
	}
	req.Header.Del("Referer") // it may carry a signature
	return nil
}

// control is called with every resolved address before it is dialled, so that no name can lead past the rules by what
// it resolves to at that moment.
func (r rules) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("address %q: %w", address, err)
	}
	return r.permitAddr(addr.Addr())
}

// proxies remembers the addresses of HTTP proxies that the environment names, which are exempt from the rules. This node's
// own, which a machine's environment may name for all, is not used: its requests would come back to it.
type proxies struct {
	own  string                                // host:port where this node's own listens; "" is none
	from func(*http.Request) (*url.URL, error) // nil: the environment
	seen sync.Map
}

func (p *proxies) forRequest(req *http.Request) (*url.URL, error) {
	from := p.from
	if from == nil {
		from = http.ProxyFromEnvironment
	}
	u, err := from(req)
	if u == nil || isOwn(p.own, u) {
		return nil, err
	}
	p.remember(u)
	return u, err
}

// isOwn reports whether a proxy is the one that listens on own.
func isOwn(own string, u *url.URL) bool {
	host, port, err := net.SplitHostPort(own)
	if err != nil || u.Port() != port {
		return false
	}
	listens, _ := netip.ParseAddr(host)
	named := u.Hostname()
	addr, _ := netip.ParseAddr(named)
	everywhere := host == "" || listens.IsUnspecified()
	switch {
	case strings.EqualFold(named, host):
		return true
	case named == "localhost" || addr.IsLoopback():
		return everywhere || host == "localhost" || listens.IsLoopback()
	}
	return everywhere && addr.IsValid() && ofThisMachine(addr)
}

// ofThisMachine reports whether an interface of this machine has an address.
func ofThisMachine(addr netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(addrs, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.Equal(addr.AsSlice())
	})
}

func (p *proxies) remember(u *url.URL) {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	}
	p.seen.Store(net.JoinHostPort(u.Hostname(), port), true)
}

func (p *proxies) has(addr string) bool {
	_, ok := p.seen.Load(addr)
	return ok
}

// transport checks every request, redirects and token requests included, against the rules, and lets token requests go
// where the rules allow.
//
// The token client refuses realms that resolve to private addresses, unless their host is the registry's own. That is
// not its decision here: a listed registry may have its token server on another private host, and for one that is not
// listed the rules are stricter. So a challenge is rewritten to name a realm on the registry's own host, with the true
// realm in the fragment, which is never sent, and the token request is turned back.
type transport struct {
	base  *http.Transport
	rules rules
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	sent := req
	// Only the token client's own first request carries a realm: pages and redirects come from the registry.
	if req.URL.Fragment != "" && req.Response == nil {
		realm, err := url.Parse(req.URL.Fragment)
		if err != nil || !realmFits(realm, req.URL) { // a registry may have written a fragment of its own
			return nil, errors.Join(errRealm, closeBody(req))
		}
		query := realm.Query()
		for k, v := range req.URL.Query() {
			query[k] = v
		}
		realm.RawQuery = query.Encode()
		sent = req.Clone(req.Context())
		sent.URL, sent.Host = realm, ""
	}
	if err := t.rules.permit(sent.URL); err != nil {
		return nil, errors.Join(err, closeBody(req))
	}
	resp, err := t.base.RoundTrip(sent)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusUnauthorized {
		disguiseRealm(resp.Header, req.URL)
	}
	if loc := resp.Header.Get("Location"); sent != req && loc != "" {
		if u, err := sent.URL.Parse(loc); err == nil {
			resp.Header.Set("Location", u.String()) // relative to where the request went in truth
		}
	}
	return resp, nil
}

// CloseIdleConnections is what http.Client.CloseIdleConnections calls.
func (t *transport) CloseIdleConnections() { t.base.CloseIdleConnections() }

func closeBody(req *http.Request) error {
	if req.Body == nil {
		return nil
	}
	return req.Body.Close()
}

var realmParam = regexp.MustCompile(`(?i)\brealm=(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))`)

// disguiseRealm rewrites the realm of a bearer challenge as [transport] says. A realm it does not like stays, for the
// token client to refuse: passwords for a registry behind TLS go nowhere without TLS.
func disguiseRealm(h http.Header, registry *url.URL) {
	challenge := h.Get("Www-Authenticate")
	scheme, _, _ := strings.Cut(challenge, " ")
	m := realmParam.FindStringSubmatchIndex(challenge)
	if m == nil || !strings.EqualFold(scheme, "bearer") {
		return
	}
	raw := realmParam.FindStringSubmatch(challenge)
	text := raw[2]
	if text == "" {
		text = raw[1]
		if s, err := strconv.Unquote(`"` + text + `"`); err == nil {
			text = s
		}
	}
	realm, err := url.Parse(text)
	if err != nil || !realmFits(realm, registry) {
		return
	}
	realm.Fragment, realm.RawFragment = "", ""
	disguised := url.URL{Scheme: registry.Scheme, Host: registry.Host, Path: "/", Fragment: realm.String()}
	h.Set("Www-Authenticate", challenge[:m[0]]+`realm="`+disguised.String()+`"`+challenge[m[1]:])
}

// realmFits reports whether a registry's realm may be asked for tokens: without TLS only if the registry has none either.
func realmFits(realm, registry *url.URL) bool {
	return realm.Host != "" && (realm.Scheme == "https" || realm.Scheme == "http" && registry.Scheme == "http")
}
