//go:build e2e

package e2e

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"
)

// passwords writes a file of who may push: ada, by the password engine.
func passwords(t *testing.T) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte("engine"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(name, append([]byte("# who may push\nada:"), hash...), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// startPushed starts a node that takes what is pushed, as the registry of a site that no other answers for.
func startPushed(t *testing.T, more ...string) *pier {
	t.Helper()
	return startPier(t, pierConfig{args: slices.Concat([]string{
		"--cache-dir", t.TempDir(), "--accept-push", "--push-htpasswd", passwords(t), "--default-registry", "site.test", "--air-gapped",
	}, more)})
}

// Images that clients push are pulled by all clients, without credentials, also by those that ask first who they are.
func TestClientsPush(t *testing.T) {
	t.Parallel()
	p := startPushed(t)
	single, index := newImage(t, 2<<20, 1000), newIndex(t, 100<<10, amd64, arm64)
	source := startRegistry(t, registryConfig{})
	source.put(t, "app", "v1", single)
	source.put(t, "app", "multi", index)
	home := t.TempDir()
	do := func(t *testing.T, program string, args ...string) string {
		t.Helper()
		out, err := tryRun(t, []string{"HOME=" + home, "DOCKER_CONFIG=" + home, "REGCTL_CONFIG=" + home + "/regctl.json"}, tool("bin/"+program), args...)
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", program, args, err, out)
		}
		return out
	}
	pulled := func(t *testing.T, repository, tag string, want *image) {
		t.Helper()
		newClient(p.node, "").mustPull(t, repository, tag, want)
		dir := t.TempDir()
		do(t, "skopeo", "--insecure-policy", "copy", "--all", "--src-no-creds", "--src-tls-verify=false", "docker://"+p.nodeAddr()+"/"+repository+":"+tag, "oci:"+dir+":x")
		checkLayout(t, dir, want)
	}
	t.Run("skopeo", func(t *testing.T) {
		do(t, "skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false", "--dest-creds", "ada:engine",
			"docker://"+source.addr+"/app:multi", "docker://"+p.nodeAddr()+"/team/skopeo:v1")
		pulled(t, "team/skopeo", "v1", index)
		out, err := tryRun(t, nil, tool("bin/skopeo"), "--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--dest-creds", "ada:wrong",
			"docker://"+source.addr+"/app:v1", "docker://"+p.nodeAddr()+"/team/skopeo:v2")
		if err == nil {
			t.Errorf("pushed with a wrong password: %s", out)
		}
	})
	t.Run("crane", func(t *testing.T) {
		do(t, "crane", "auth", "login", "--username", "ada", "--password", "engine", p.nodeAddr())
		do(t, "crane", "copy", "--insecure", source.addr+"/app:v1", p.nodeAddr()+"/team/crane:v1")
		pulled(t, "team/crane", "v1", single)
		do(t, "crane", "tag", "--insecure", p.nodeAddr()+"/team/crane:v1", "stable")
		pulled(t, "team/crane", "stable", single)
		if got := strings.Fields(do(t, "crane", "ls", "--insecure", p.nodeAddr()+"/team/crane")); !slices.Equal(got, []string{"stable", "v1"}) {
			t.Errorf("tags: %q", got)
		}
	})
	t.Run("regctl", func(t *testing.T) {
		do(t, "regctl", "registry", "set", "--tls", "disabled", "--skip-check", p.nodeAddr())
		do(t, "regctl", "registry", "set", "--tls", "disabled", "--skip-check", source.addr)
		do(t, "regctl", "registry", "login", "--user", "ada", "--pass", "engine", "--skip-check", p.nodeAddr())
		do(t, "regctl", "image", "copy", source.addr+"/app:multi", p.nodeAddr()+"/team/regctl:v1")
		pulled(t, "team/regctl", "v1", index)
		// In pieces, and something that refers to it.
		do(t, "regctl", "registry", "set", "--blob-chunk", "100000", "--blob-max", "1", "--skip-check", p.nodeAddr())
		do(t, "regctl", "image", "copy", source.addr+"/app:v1", p.nodeAddr()+"/team/pieces:v1")
		pulled(t, "team/pieces", "v1", single)
		name := filepath.Join(t.TempDir(), "sbom.json")
		if err := os.WriteFile(name, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		do(t, "regctl", "artifact", "put", "--artifact-type", "application/x-sbom", "--subject", p.nodeAddr()+"/team/regctl:v1", "--file", name)
		if got := do(t, "regctl", "artifact", "list", p.nodeAddr()+"/team/regctl:v1"); !strings.Contains(got, "application/x-sbom") {
			t.Errorf("referrers: %s", got)
		}
	})
}

// What was pushed is there after a kill, and where nobody asked for pushes there are none.
func TestPushedImagesStay(t *testing.T) {
	t.Parallel()
	p := startPushed(t)
	want := newImage(t, 1<<20)
	push := func(method, path string, body []byte, user string, header ...string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, p.node+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if user != "" {
			req.SetBasicAuth(user, "engine")
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	if resp := push(http.MethodPost, "/v2/app/blobs/uploads/", nil, ""); resp.StatusCode != http.StatusUnauthorized || !strings.HasPrefix(resp.Header.Get("Www-Authenticate"), `Bearer realm="`+p.node+`/v2/token"`) {
		t.Errorf("without credentials: %s, %q", resp.Status, resp.Header)
	}
	// Half of a layer, then the node is killed: the rest comes after it.
	layer := want.layer(0)
	resp := push(http.MethodPost, "/v2/app/blobs/uploads/", nil, "ada")
	at := resp.Header.Get("Location")
	half := len(layer.data) / 2
	if resp = push(http.MethodPatch, at, layer.data[:half], "ada", "Content-Range", "0-"+strconv.Itoa(half-1)); resp.StatusCode != http.StatusAccepted {
		t.Fatalf("a piece: %s", resp.Status)
	}
	p.kill()
	p.start(t)
	if resp = push(http.MethodGet, at, nil, "ada"); resp.StatusCode != http.StatusNoContent || resp.Header.Get("Range") != "0-"+strconv.Itoa(half-1) {
		t.Fatalf("after a kill: %s, Range %q", resp.Status, resp.Header.Get("Range"))
	}
	if resp = push(http.MethodPatch, at, layer.data[7:], "ada", "Content-Range", "7-"+strconv.Itoa(len(layer.data)-1)); resp.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("a piece that is elsewhere: %s", resp.Status)
	}
	if resp = push(http.MethodPut, at+"?digest="+layer.Digest.String(), layer.data[half:], "ada"); resp.StatusCode != http.StatusCreated {
		t.Fatalf("the last piece: %s", resp.Status)
	}
	root := want.root()
	if resp = push(http.MethodPut, "/v2/app/manifests/v1", root.data, "ada", "Content-Type", root.MediaType); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a manifest before its configuration: %s", resp.Status)
	}
	config := want.blobs[0]
	if resp = push(http.MethodPost, "/v2/app/blobs/uploads/?digest="+config.Digest.String(), layer.data, "ada"); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("other content: %s", resp.Status)
	}
	if resp = push(http.MethodPost, "/v2/app/blobs/uploads/?digest="+config.Digest.String(), config.data, "ada"); resp.StatusCode != http.StatusCreated {
		t.Fatalf("in one piece: %s", resp.Status)
	}
	if resp = push(http.MethodPut, "/v2/app/manifests/v1", root.data, "ada", "Content-Type", root.MediaType); resp.StatusCode != http.StatusCreated {
		t.Fatalf("the manifest: %s", resp.Status)
	}
	p.kill()
	p.start(t)
	newClient(p.node, "").mustPull(t, "app", "v1", want)

	closed := startPier(t, pierConfig{args: []string{"--cache-dir", t.TempDir()}})
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		req, err := http.NewRequestWithContext(t.Context(), method, closed.node+"/v2/app/blobs/uploads/", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s where nobody asked for pushes: %s", method, resp.Status)
		}
	}
}

// Runtimes push what they have, and others pull it without credentials.
func TestRuntimesPush(t *testing.T) {
	t.Parallel()
	made := makeImage(t, "crane")
	source := startRegistry(t, registryConfig{})
	source.put(t, "app", "v1", made.image)
	for _, version := range []string{classic, modern} {
		t.Run(version, func(t *testing.T) {
			p := startPushed(t)
			d := startDocker(t, version, dockerConfig{})
			defer d.stop(t)
			from, name := source.addr+"/app:v1", p.nodeAddr()+"/team/app:v1"
			d.pull(t, from)
			d.do(t, "tag", from, name)
			if out, err := d.try(t, "push", name); err == nil {
				t.Errorf("pushed without credentials: %s", out)
			}
			d.do(t, "login", "--username", "ada", "--password", "engine", p.nodeAddr())
			d.push(t, name)
			d.do(t, "logout", p.nodeAddr())
			d.do(t, "rmi", from, name)
			d.pull(t, name)
			if got := d.run(t, name); got != made.says {
				t.Errorf("docker run printed %q, want %q", got, made.says)
			}
		})
	}
	t.Run("containerd", func(t *testing.T) {
		eachContainerd(t, func(t *testing.T, c *containerd) {
			p := startPushed(t)
			name := p.nodeAddr() + "/team/app:v1"
			c.do(t, "images", "pull", "--plain-http", source.addr+"/app:v1")
			c.do(t, "images", "tag", source.addr+"/app:v1", name)
			c.do(t, "images", "push", "--plain-http", "--user", "ada:engine", name)
			newClient(p.node, "").mustPull(t, "team/app", "v1", made.image)
		})
	})
}

// Archives that skopeo and Docker write are loaded into a cache, with a node on it and without, and served by digest and name as they are.
func TestArchivesAreLoaded(t *testing.T) {
	t.Parallel()
	source := startRegistry(t, registryConfig{})
	single, index := newImage(t, 2<<20, 1000), newIndex(t, 100<<10, amd64, arm64)
	source.put(t, "app", "v1", single)
	source.put(t, "app", "multi", index)
	dir := t.TempDir()
	skopeo := func(args ...string) {
		run(t, tool("bin/skopeo"), append([]string{"--insecure-policy", "copy", "--src-tls-verify=false"}, args...)...)
	}
	skopeo("docker://"+source.addr+"/app:v1", "docker-archive:"+dir+"/docker.tar:registry.test/team/app:v1")
	skopeo("--all", "--preserve-digests", "docker://"+source.addr+"/app:multi", "oci-archive:"+dir+"/oci.tar:multi")
	run(t, "gzip", "--keep", dir+"/docker.tar")
	d := startDocker(t, modern, dockerConfig{})
	defer d.stop(t)
	d.pull(t, source.addr+"/app:v1")
	d.do(t, "tag", source.addr+"/app:v1", "registry.test/team/saved:v1")
	d.do(t, "save", "--output", dir+"/saved.tar", "registry.test/team/saved:v1")

	for name, running := range map[string]bool{"while a node runs": true, "while none does": false} {
		t.Run(name, func(t *testing.T) {
			cache := t.TempDir()
			node := func() *pier { return startPier(t, pierConfig{args: []string{"--cache-dir", cache, "--air-gapped"}}) }
			var p *pier
			if running {
				p = node()
			}
			load := func(args ...string) string {
				return run(t, pierBinary, append([]string{"load", "--cache-dir", cache}, args...)...)
			}
			if out := load(dir+"/docker.tar", dir+"/docker.tar.gz", dir+"/saved.tar"); !strings.Contains(out, "registry.test/team/app:v1") || !strings.Contains(out, "registry.test/team/saved:v1") {
				t.Errorf("loaded: %s", out)
			}
			load("--as", "registry.test/team/multi:v1", "oci-archive:"+dir+"/oci.tar")
			if !running {
				p = node()
			}
			newClient(p.node, "registry.test").mustPull(t, "team/multi", "v1", index)
			got := fetchImage(t, p.node, "registry.test/team/app", "v1") // compares digests
			if len(got.blobs) != len(single.blobs) {
				t.Errorf("%d blobs, want %d", len(got.blobs), len(single.blobs))
			}
			fetchImage(t, p.node, "registry.test/team/saved", "v1")
			list := run(t, pierBinary, "list", "--cache-dir", cache)
			if strings.Count(list, "  archive") != 3 || strings.Contains(list, "@") {
				t.Errorf("listed:\n%s", list)
			}
		})
	}
}

// Where clients show certificates, whoever has one may push, without a password.
func TestClientsWithACertificatePush(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	pair := ca.issue(t, "node.test")
	p := startPier(t, pierConfig{args: []string{
		"--cache-dir", t.TempDir(), "--accept-push", "--default-registry", "site.test", "--air-gapped", "--tls-cert", pair.cert, "--tls-key", pair.key, "--tls-client-ca", ca.file,
	}})
	door := newTLSClient(t, p, ca, ca.issue(t, "client.test"))
	want := newImage(t, 100<<10)
	send := func(method, path, contentType string, body []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, door.door+path, bytes.NewReader(body))
		must(t, err)
		req.Header.Set("Content-Type", contentType)
		resp, err := door.http.Do(req)
		must(t, err)
		resp.Body.Close()
		if resp.StatusCode != http.StatusCreated {
			t.Fatalf("%s %s: %s", method, path, resp.Status)
		}
	}
	for _, b := range want.blobs {
		send(http.MethodPost, "/v2/app/blobs/uploads/?digest="+b.Digest.String(), "application/octet-stream", b.data)
	}
	send(http.MethodPut, "/v2/app/manifests/v1", want.root().MediaType, want.root().data)
	door.registry = ""
	door.mustPull(t, "app", "v1", want)
}
