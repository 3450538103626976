package upstream

import (
	"errors"
	"fmt"
	"net/http"
	"sync"

	"oras.land/oras-go/v2/registry/remote/auth"

	"pier/internal/oci"
)

// A directory is one state of the configuration: every registry that may be asked, and how it is reached.
type directory struct {
	cfg     Config
	allow   []pattern
	listed  map[string]*endpoint // upstreams and mirrors, by name
	proxies *proxies

	trusted *http.Client // to registries that a pattern names
	public  *http.Client // to all others

	mu     sync.Mutex
	others map[string]*endpoint // guarded by mu; registries not listed, by name
}

// maxOthers bounds the registries not listed whose tokens are kept.
const maxOthers = 256

// An endpoint is one registry and how it is reached.
type endpoint struct {
	name    string // by which it is known
	host    string // to which it is dialled, with port if any
	scheme  string
	mirrors []string // names of other endpoints, all listed

	repositories []string // patterns of those that may be asked for; none: all

	auth   Auth
	client *http.Client
	tokens *tokens // of the node's own credentials
}

// dialHost returns where a registry is reached: Docker Hub's API has a host of its own.
func dialHost(name string) string {
	if name == oci.DockerHub {
		return "registry-1.docker.io"
	}
	return name
}

func newDirectory(cfg Config, upstreams []Upstream) (*directory, error) {
	d := &directory{cfg: cfg, listed: make(map[string]*endpoint), others: make(map[string]*endpoint), proxies: &proxies{own: cfg.OwnProxy}}
	var faults []error
	for _, s := range cfg.Allow {
		p, err := parsePattern(s)
		faults = append(faults, err)
		d.allow = append(d.allow, p)
	}
	faults = append(faults, validate(upstreams)...)
	for i, u := range upstreams {
		e, err := d.listedEndpoint(u)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", entry(i, u.Name), err))
			continue
		}
		d.listed[e.name] = e
	}
	for _, e := range d.listed {
		for _, m := range e.mirrors {
			if d.listed[m] == nil {
				mirror, err := d.listedEndpoint(Upstream{Name: m})
				faults = append(faults, err)
				d.listed[m] = mirror
			}
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	d.trusted = d.client(rules{listed: true, tls: true}, nil)
	d.public = d.client(rules{}, nil)
	return d, nil
}

func (d *directory) listedEndpoint(u Upstream) (*endpoint, error) {
	name, _ := oci.Canonical(u.Name, "")
	tlsConfig, tlsErr := u.TLS.config()
	_, passwordErr := u.Auth.credential()
	if err := errors.Join(tlsErr, passwordErr); err != nil {
		return nil, err
	}
	e := &endpoint{
		name: name, host: dialHost(name), scheme: u.Scheme, auth: u.Auth,
		client: d.client(rules{listed: true, own: literal(name)}, tlsConfig), tokens: newTokens(d.cfg.Timeout),
		repositories: u.Repositories,
	}
	if e.scheme == "" {
		e.scheme = "https"
	}
	for _, m := range u.Mirrors {
		m, _ = oci.Canonical(m, "")
		e.mirrors = append(e.mirrors, m)
	}
	return e, nil
}

// endpoint returns the registry of this name. It returns an error wrapping [oci.ErrNotAllowed] if it may not be asked.
func (d *directory) endpoint(name string) (*endpoint, error) {
	name, _ = oci.Canonical(name, "")
	if e := d.listed[name]; e != nil {
		return e, nil
	}
	client, err := d.admit(name)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.others[name]
	if e == nil {
		if len(d.others) >= maxOthers {
			for old := range d.others {
				delete(d.others, old) // any: it only costs a new token
				break
			}
		}
		e = &endpoint{name: name, host: dialHost(name), scheme: "https", client: client, tokens: newTokens(d.cfg.Timeout)}
		d.others[name] = e
	}
	return e, nil
}

// admit decides whether a registry that is not listed may be asked, and how.
func (d *directory) admit(name string) (*http.Client, error) {
	open := len(d.allow) == 0
	for _, p := range d.allow {
		switch {
		case p.any:
			open = true
		case p.match(name):
			return d.trusted, nil
		}
	}
	if !open {
		return nil, fmt.Errorf("registry %s is not among those allowed: %w", name, oci.ErrNotAllowed)
	}
	if !publicName(name) {
		return nil, fmt.Errorf("registry %s is not a public name, and not listed: %w", name, oci.ErrNotAllowed)
	}
	return d.public, nil
}

func (d *directory) closeIdle() {
	for _, e := range d.listed {
		e.client.CloseIdleConnections()
	}
	d.trusted.CloseIdleConnections()
	d.public.CloseIdleConnections()
}

// credential returns what the operator configured, or nothing.
func (a Auth) credential() (auth.Credential, error) {
	password, err := a.password()
	if err != nil || a.User == "" {
		return auth.EmptyCredential, err
	}
	return auth.Credential{Username: a.User, Password: password}, nil
}
