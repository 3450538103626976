package node

import (
	"crypto/tls"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"pier/internal/authority"
	"pier/internal/chain"
	"pier/internal/config"
	"pier/internal/oci"
	"pier/internal/proxy"
	"pier/internal/registry"
	"pier/internal/setup"
	"pier/internal/upstream"
)

// forward is the forward proxy, and what it stands on; all nil if there is none.
type forward struct {
	proxy *proxy.Proxy
	gate  *upstream.Gate
}

// openProxy builds the forward proxy. Registry requests are answered as answers says.
func (n *Node) openProxy(answers registry.Config) error {
	if n.cfg.ProxyListen == "" {
		return nil
	}
	list, err := n.readUpstreams()
	if err != nil {
		return err
	}
	n.forward.gate, err = upstream.NewGate(upstream.GateConfig{Upstreams: list, Allow: n.cfg.AllowUpstream, Name: n.name, OwnProxy: n.cfg.ProxyListen})
	if err != nil {
		return err
	}
	known, err := n.interceptable()
	if err != nil {
		return err
	}
	answers.Door, answers.Source, answers.PassAuthorization, answers.ByHost, answers.API = "proxy", n.full, true, true, nil
	c := proxy.Config{
		Registry: n.counted(registry.New(answers)), IsRegistry: known.has,
		Dial: n.forward.gate.Dial, Transport: n.forward.gate, Ports: n.forward.gate.Ports,
		Plain: known.plain, Pushed: n.pushed, AirGapped: n.cfg.AirGapped, Allow: n.cfg.ProxyAllow, Name: n.name, Log: n.log, Metrics: n.metrics,
	}
	if !slices.Contains(n.cfg.Intercept, config.InterceptNone) {
		c.Certificate = n.certificates(list)
	}
	n.forward.proxy = proxy.New(c)
	return nil
}

// pushed takes that a manifest was pushed through the proxy: what its tag named counts no more.
func (n *Node) pushed(host, repository, reference string) {
	registry, repository := oci.Canonical(host, repository)
	ref := oci.Reference{Registry: registry, Repository: repository, Tag: reference}
	if f, ok := n.full.(chain.Forgetter); ok && ref.Validate() == nil {
		f.Forget(ref)
	}
}

// certificates returns what signs for the hosts whose TLS is answered. Without an authority their traffic passes unseen, which
// is no reason for a node not to start.
func (n *Node) certificates(listed []upstream.Upstream) func(host string) (*tls.Certificate, error) {
	var names []string // hosts without ports
	add := func(host string) {
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		names = append(names, strings.Trim(strings.ToLower(host), "[]"))
	}
	for _, pattern := range n.cfg.Intercept {
		add(pattern)
	}
	if len(names) == 0 {
		for _, name := range setup.WellKnown() {
			add(setup.Server(name))
		}
		for _, u := range listed {
			if u.Scheme != "http" { // nobody asks those over TLS
				add(setup.Server(u.Name))
			}
		}
	}
	a, err := authority.Open(authority.Config{Dir: filepath.Clean(n.cfg.DataDir), Names: names, Log: n.log})
	if err != nil {
		n.log.Warn("no certificate authority: TLS of registries passes through the proxy unseen", "err", err)
		return nil
	}
	return a.Certificate
}

// registries says which hosts are registries: those that patterns name, or else the well-known ones, those that are listed,
// those that gave this node content, and those that images of this node came from.
type registries struct {
	gate     *upstream.Gate
	patterns upstream.Patterns // none: none were given
	met      func(registry string) bool
	holder   chain.Holder

	mu     sync.Mutex // guards all below
	named  map[string]bool
	lookAt time.Time // when named is out of date
}

// namedFor is how long the names of images are taken to stay the same.
const namedFor = 10 * time.Second

func (n *Node) interceptable() (*registries, error) {
	r := &registries{gate: n.forward.gate, holder: n.whole, met: func(string) bool { return false }}
	if n.upstreams != nil {
		r.met = n.upstreams.Met
	}
	if len(n.cfg.Intercept) == 0 || slices.Contains(n.cfg.Intercept, config.InterceptNone) {
		return r, nil
	}
	var err error
	if r.patterns, err = upstream.ParsePatterns(n.cfg.Intercept); err != nil {
		return nil, fmt.Errorf("--intercept: %w", err)
	}
	return r, nil
}

// plain reports whether host[:port] is a registry that was listed as one without TLS.
func (r *registries) plain(host string) bool {
	name, _ := oci.Canonical(host, "")
	scheme, listed := r.gate.Listed(name)
	return listed && scheme == "http"
}

// has reports whether host[:port] is a registry that this node may ask in a client's place. What is known of one that nobody listed is
// known through TLS, and says nothing of what answers without.
func (r *registries) has(scheme, host string) bool {
	name, _ := oci.Canonical(host, "")
	speaks, listed := r.gate.Listed(name)
	switch {
	case scheme == "http":
		return listed
	case listed && speaks == "http":
		return false
	case len(r.patterns) > 0:
		return r.patterns.Match(name)
	case listed:
		return true
	}
	if slices.Contains(setup.WellKnown(), name) || r.met(name) {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.After(r.lookAt) {
		r.named, r.lookAt = make(map[string]bool), now.Add(namedFor)
		for _, ref := range r.holder.Names() {
			r.named[ref.Registry] = true
		}
	}
	return r.named[name]
}
