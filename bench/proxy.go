package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"pier/internal/authority"
)

// forwarding is the suite of the forward proxy, and of the layers that a node beside Docker makes again.
type forwarding struct {
	*bench
	set proxySettings

	trusted *authorities
	secure  string  // where upstream serves with TLS
	image   image   // what one client pulls, or all do
	others  []image // one for each of many clients
}

// authorities are who signs for upstream, and who for the node: clients trust the one that they are to meet.
type authorities struct {
	upstreamDir, nodeDir string // of authority
	upstream, node       *x509.CertPool
}

// proxySettings say how much is measured of the forward proxy, and of layers that are made again.
type proxySettings struct {
	layer    int64 // bytes of the layer that is pulled
	cold     int   // repeats of each cold pull
	warm     int   // repeats of each warm measurement
	gets     int   // GETs of the layer in one warm measurement
	many     int   // repeats of pulls by many at once
	content  int64 // bytes of what layers contain that are made again
	rebuilds int   // repeats of making one
}

func proxySettingsOf(quick bool) proxySettings {
	if quick {
		return proxySettings{layer: 30 * mb, cold: 2, warm: 3, gets: 4, many: 1, content: 10 * mb, rebuilds: 1}
	}
	return proxySettings{layer: 300 * mb, cold: 5, warm: 7, gets: 4, many: 3, content: 100 * mb, rebuilds: 3}
}

func proxySuite() suite {
	return suite{
		name: "proxy", title: "The forward proxy, and layers made again", command: "make bench-proxy", takes: "fifteen minutes", timeout: 40 * time.Minute,
		parts: []string{"cold", "warm", "many", "rebuild"}, measure: measureProxy,
		reading: `- Everything is on the loopback interface, and shares the processors: upstream, node and clients are processes of their own.
  CPU time is that of the node alone, with what the kernel does on its behalf.
- The upstream is the one of the other parts: a small registry that sends so many bytes per second and no more, on one connection
  and on all together. It serves plain HTTP at one address and TLS at another, as Go does it; clients reach it at the same
  address directly and through the proxy.
- **Plain** requests have the whole address in them. With **TLS**, clients ask the proxy for a tunnel, and meet the node at its
  end, whose certificate authority they trust, and not that of upstream; the node speaks TLS with upstream in turn. So there is
  twice as much TLS as without the proxy.
- A pull is what a runtime does: the manifest by tag, then config and layer at once, all digests checked. Cold pulls start a new
  node without a cache. Warm GETs are of the layer alone, from the cache of a node, by a client that throws it away unchecked;
  beside them the same file comes from a bare net/http server, with TLS where the node has it, and from the node's own door.
- Many clients pull at once through a node that started two seconds before, and has no cache: all the same image, or each one of
  its own, all of the same size together.
- Layers made again contain Go's own sources and programs, and a tenth that is random, and are compressed by the named encoder.
  The node learned how when they passed through it, with a Docker data root that gets what Docker would have unpacked; then the
  upstream is gone. **Its own speed** is that of the program, or of the module that it is made of, on one processor. The encoder
  here compresses the same file by itself; **through a node** is what a client sees of a layer that one processor makes
  (` + "`--rebuild-cpu 1`" + `): all files of the layer are read, its content and the layer are digested, and it passes through a file.
  That takes zstd's default level, which is fast, more than a fifth of its time: the figure has no bound.
- Of pgzip, its own speed is that of the module's gzip, which compresses the same without cutting the content into blocks.
`,
	}
}

func measureProxy(ctx context.Context, b *bench) (err error) {
	f := &forwarding{bench: b, set: proxySettingsOf(b.quick)}
	if err := b.build(ctx); err != nil {
		return err
	}
	if f.trusted, err = b.makeAuthorities(ctx); err != nil {
		return err
	}
	sizes := [][]int64{{f.set.layer}}
	for i := range clients {
		sizes = append(sizes, []int64{f.set.layer/clients + int64(i)}) // no two are the same
	}
	images, err := b.makeImages(sizes...)
	if err != nil {
		return err
	}
	f.image, f.others = images[0], images[1:]
	if b.upstream, f.secure, err = f.startSecure(ctx, "upstream"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.upstream.stop()) }()
	return b.measure(ctx, []part{{"cold", f.cold}, {"warm", f.warm}, {"many", f.many}, {"rebuild", f.rebuild}})
}

// loopback is the host of all servers.
const loopback = "127.0.0.1"

func (b *bench) makeAuthorities(ctx context.Context) (*authorities, error) {
	a := &authorities{upstreamDir: filepath.Join(b.dir, "authority"), nodeDir: filepath.Join(b.dir, "data")}
	if _, err := authority.Create(authority.Config{Dir: a.upstreamDir, Names: []string{loopback}}, false); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, b.pier, "ca", "init", "--data-dir", a.nodeDir, "--host", loopback).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("pier ca init: %w\n%s", err, out)
	}
	for dir, pool := range map[string]**x509.CertPool{a.upstreamDir: &a.upstream, a.nodeDir: &a.node} {
		text, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
		if err != nil {
			return nil, err
		}
		*pool = x509.NewCertPool()
		if !(*pool).AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("no certificate in %s", dir)
		}
	}
	return a, nil
}

// startSecure starts one of this command's servers of images, with TLS at the second address.
func (f *forwarding) startSecure(ctx context.Context, name string) (p *process, secure string, err error) {
	if secure, err = freeAddr(); err != nil {
		return nil, "", err
	}
	p, err = f.startSelf(ctx, name, f.root(), secure, f.trusted.upstreamDir)
	return p, secure, err
}

// A protocol is how clients speak.
type protocol struct {
	name  string
	tls   bool
	http2 bool
}

func protocols() []protocol {
	return []protocol{{name: "plain"}, {name: "TLS, HTTP/1.1", tls: true}, {name: "TLS, HTTP/2", tls: true, http2: true}}
}

// client returns a client that goes straight, or through the proxy of a node. Each has connections of its own.
func (f *forwarding) client(by protocol, through *proxyNode) *http.Client {
	t := &http.Transport{
		DisableCompression: true, ForceAttemptHTTP2: by.http2, MaxIdleConnsPerHost: 2,
		TLSClientConfig: &tls.Config{RootCAs: f.trusted.upstream, MinVersion: tls.VersionTLS12},
	}
	if through != nil {
		t.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: through.addr})
		t.TLSClientConfig.RootCAs = f.trusted.node
	}
	return &http.Client{Transport: t}
}

// server returns the upstream that speaks it.
func (p protocol) server(plain, secure string) server {
	if p.tls {
		return server{addr: secure, tls: &tls.Config{MinVersion: tls.VersionTLS12}} // the client has its own
	}
	return server{addr: plain}
}

// A proxyNode is a running pier whose forward proxy is at addr.
type proxyNode struct {
	*process
	doors
	cache string
}

// startProxy starts a node without peers, and with an empty cache directory if it has one.
func (f *forwarding) startProxy(ctx context.Context, cached bool) (n *proxyNode, err error) {
	n = &proxyNode{}
	if n.doors, err = f.freeDoors(false); err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(f.dir, "proxy-upstreams.yaml")
	ca := filepath.Join(f.trusted.upstreamDir, "ca.crt")
	list := fmt.Sprintf("- name: %s\n  scheme: http\n- name: %s\n  tls:\n    ca: %s\n", f.upstream.addr, f.secure, ca)
	if err := os.WriteFile(file, []byte(list), 0o644); err != nil {
		return nil, err
	}
	args := append(n.args(), "--proxy-listen", addr, "--store", "none", "--upstreams", file, "--data-dir", f.trusted.nodeDir)
	if cached {
		if n.cache, err = os.MkdirTemp(f.dir, "cache-"); err != nil {
			return nil, err
		}
		args = append(args, "--cache-dir", n.cache)
	}
	if n.process, err = f.start(ctx, "pier", addr, nil, f.pier, args...); err != nil {
		return nil, errors.Join(err, os.RemoveAll(n.cache))
	}
	return n, nil
}

// stop ends the node and removes what it kept.
func (n *proxyNode) stop() error {
	return errors.Join(n.process.stop(), os.RemoveAll(n.cache)) // no name, nothing removed
}

// metric returns the value of one of a node's metrics, by its name with labels as they are shown; 0 if it is not there.
func metric(ctx context.Context, d doors, name string) (value float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, startFor)
	defer cancel()
	text, err := get(ctx, http.DefaultClient, server{addr: d.metrics}, "/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if after, ok := strings.CutPrefix(line, name+" "); ok {
			_, err := fmt.Sscan(after, &value)
			return value, err
		}
	}
	return 0, nil
}
