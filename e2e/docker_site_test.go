//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sealed returns a configuration with TLS between the registry and pier, and between pier's proxy and what runs beside it.
func sealed(t *testing.T, cfg siteConfig) siteConfig {
	t.Helper()
	cfg.address, cfg.proxied = true, true
	cfg.registry.ca, cfg.docker.caFor = newAuthority(t), upstreamRegistry
	return cfg
}

// upstreamRegistry is where the registry of a site is.
const upstreamRegistry = "10.78.0.1:5000"

// scheme is how Docker, and containerd where it is proxied, ask the registry.
func (cfg siteConfig) scheme() string {
	if cfg.docker.caFor == "" {
		return "http"
	}
	return "https"
}

// openProxy has pier be a proxy. It returns the PEM file of its authority, if that has to sign for the registry.
func (n *siteNode) openProxy(t *testing.T, cfg siteConfig, p *pierConfig) (ca string) {
	t.Helper()
	p.proxy, p.data = true, t.TempDir()
	if cfg.scheme() == "http" {
		return ""
	}
	host, _, _ := strings.Cut(n.from, ":")
	run(t, pierBinary, "ca", "init", "--data-dir", p.data, "--host", host)
	return filepath.Join(p.data, "ca.crt")
}

// ownProxy is where a node's proxy listens.
const ownProxy = "http://127.0.0.1:3128"

// proxyFor returns the environment of a containerd that is proxied, and no more than that if it is not.
func (n *siteNode) proxyFor(t *testing.T, cfg siteConfig, p *pierConfig) []string {
	t.Helper()
	if !cfg.proxied {
		return nil
	}
	env := []string{"HTTP_PROXY=" + ownProxy, "HTTPS_PROXY=" + ownProxy}
	if ca := n.openProxy(t, cfg, p); ca != "" {
		env = append(env, "SSL_CERT_FILE="+ca)
	}
	return env
}

// startDocker starts the node's Docker, which asks nobody but the node's proxy, and tells pier of it.
func (n *siteNode) startDocker(t *testing.T, cfg siteConfig, version string, p *pierConfig) {
	t.Helper()
	c := cfg.docker
	c.at, c.proxy = n.place, ownProxy
	p.store, c.ca = "docker", n.openProxy(t, cfg, p)
	if len(cfg.trusted) > 0 {
		var bundle []byte
		for _, file := range append(cfg.trusted, c.ca) {
			pem, err := os.ReadFile(file)
			must(t, err)
			bundle = append(bundle, pem...)
		}
		c.ca = filepath.Join(t.TempDir(), "bundle.crt")
		must(t, os.WriteFile(c.ca, bundle, 0o644))
	}
	if c.ca == "" {
		c.daemon = map[string]any{"insecure-registries": []string{n.from}}
		if version == modern { // it falls back to plain HTTP only where something answers that is no TLS
			c.hosts = map[string]string{n.from: "server = \"http://" + n.from + "\"\n"}
		}
	}
	n.docker = startDocker(t, version, c)
	p.args = append(p.args, "--docker-socket", n.docker.socket)
}

// unproxied calls f while the Docker asks registries itself.
func (d *docker) unproxied(t *testing.T, f func()) {
	t.Helper()
	env := d.env
	d.env = slices.DeleteFunc(slices.Clone(env), func(kv string) bool { return strings.Contains(kv, "_PROXY=") })
	d.restart(t)
	f()
	d.env = env
	d.restart(t)
}
