//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"pier/e2e/faultproxy"
	"pier/e2e/netns"
)

// A registryConfig says how a registry is reached and by whom. The zero value is plain HTTP for anybody.
type registryConfig struct {
	ca          *authority   // TLS with a certificate of this authority
	clientCerts bool         // clients must show a certificate of the same authority
	basic       bool         // clients must give user and password
	token       *tokenServer // clients must bring a token
	tokens      bool         // of a token server that is upstream as well, on a site

	at *netns.Place // where clients reach it; nil means on loopback
}

// A registry is Debian's docker-registry with a directory of its own.
type registry struct {
	addr string // where clients reach it, as registryConfig says
	root string // its storage

	push      string // the same storage, over plain HTTP and for anybody
	processes []*process
}

// startRegistry starts an empty registry.
func startRegistry(t *testing.T, cfg registryConfig) *registry {
	t.Helper()
	r := &registry{root: t.TempDir(), push: freeAddr(t)}
	r.addr = r.push
	r.serve(t, r.push, registryConfig{})
	if cfg != (registryConfig{}) {
		if r.addr = freeAddr(t); cfg.at != nil {
			r.addr = cfg.at.HostPort(5000)
		}
		r.serve(t, r.addr, cfg)
	}
	return r
}

// serve starts one more process on the registry's storage. The configuration is written as JSON, which is YAML.
func (r *registry) serve(t *testing.T, addr string, cfg registryConfig) {
	t.Helper()
	type object = map[string]any
	listener, auth := object{"addr": addr, "secret": "e2e"}, object{}
	if cfg.ca != nil {
		pair := cfg.ca.issue(t, "registry.test")
		tls := object{"certificate": pair.cert, "key": pair.key}
		if cfg.clientCerts {
			tls["clientcas"] = []string{cfg.ca.file}
		}
		listener["tls"] = tls
	}
	if cfg.basic {
		sum, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "htpasswd")
		writeFile(t, file, user+":"+string(sum)+"\n")
		auth["htpasswd"] = object{"realm": "e2e", "path": file}
	}
	if cfg.token != nil {
		auth["token"] = object{
			"realm": cfg.token.realm, "service": tokenService, "issuer": tokenIssuer, "rootcertbundle": cfg.token.bundle,
		}
	}
	config, err := json.Marshal(object{
		"version": "0.1", "log": object{"level": "error", "accesslog": object{"disabled": true}},
		"storage": object{"filesystem": object{"rootdirectory": r.root}, "delete": object{"enabled": true}},
		"http":    listener, "auth": auth,
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "config.yml")
	writeFile(t, file, string(config))
	command, dial := exec.Command, new(net.Dialer).DialContext
	if cfg.at != nil {
		command, dial = cfg.at.Command, cfg.at.DialContext
	}
	p := startProcess(t, "docker-registry "+addr, command(tool("bin/docker-registry"), "serve", file))
	awaitDial(t, p, addr, dial)
	r.processes = append(r.processes, p)
}

// stop ends the registry: nothing listens on its address any more.
func (r *registry) stop(t *testing.T) {
	t.Helper()
	for _, p := range r.processes {
		p.terminate(t, 10*time.Second)
	}
}

// put pushes an image and tags it.
func (r *registry) put(t *testing.T, repository, tag string, i *image) {
	t.Helper()
	pushImage(t, "http://"+r.push, repository, tag, i)
}

// startFront starts a proxy before the plain registry at addr, which counts what passes and sends at most rate bytes
// per second on each connection; 0 means no limit.
func startFront(t *testing.T, addr string, rate int64) *faultproxy.Proxy {
	t.Helper()
	front := faultproxy.Start(t, &url.URL{Scheme: "http", Host: addr})
	front.LimitRate(0, rate)
	return front
}

// asked returns the requests so far of a method whose path contains part.
func asked(front *faultproxy.Proxy, method, part string) (list []faultproxy.Request) {
	for _, r := range front.Requests() {
		if r.Method == method && strings.Contains(r.Path, part) {
			list = append(list, r)
		}
	}
	return list
}

// startReferrersRegistry starts a registry that has the referrers API, and returns its address.
func startReferrersRegistry(t *testing.T) string {
	t.Helper()
	addr := freeAddr(t)
	p := startProcess(t, "referrers-registry", exec.Command(tool("bin/referrers-registry"), addr))
	awaitListener(t, p, addr)
	return addr
}

// pushImage pushes an image to the registry at base, by digest and, unless tag is empty, by tag.
func pushImage(t *testing.T, base, repository, tag string, i *image) {
	t.Helper()
	at := base + "/v2/" + repository
	for _, b := range i.blobs {
		location := mustDo(t, http.StatusAccepted, http.MethodPost, at+"/blobs/uploads/", "", nil).Get("Location")
		target, err := url.Parse(location)
		if err != nil {
			t.Fatal(err)
		}
		query := target.Query()
		query.Set("digest", b.Digest.String())
		target.RawQuery = query.Encode()
		if !target.IsAbs() {
			target.Scheme, target.Host, _ = strings.Cut(base, "://")
		}
		mustDo(t, http.StatusCreated, http.MethodPut, target.String(), "application/octet-stream", b.data)
	}
	for _, m := range i.manifests {
		mustDo(t, http.StatusCreated, http.MethodPut, fmt.Sprintf("%s/manifests/%s", at, m.Digest), m.MediaType, m.data)
	}
	if tag != "" {
		mustDo(t, http.StatusCreated, http.MethodPut, at+"/manifests/"+tag, i.root().MediaType, i.root().data)
	}
}

// mustDo sends a request that a registry must answer with the given status, and returns the response's header.
func mustDo(t *testing.T, status int, method, target, contentType string, body []byte) http.Header {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, target, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != status {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		t.Fatalf("%s %s: %s, want %d\n%s", method, target, resp.Status, status, text)
	}
	return resp.Header
}
