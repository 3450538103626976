//go:build e2e

package e2e

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// startWeb serves a handler on localhost: over TLS with a certificate of ca, or plainly if that is nil. It returns host:port.
func startWeb(t *testing.T, ca *authority, h http.Handler) string {
	t.Helper()
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of clients that leave
	if ca == nil {
		server.Start()
	} else {
		pair := ca.issue(t, "localhost")
		certificate, err := tls.LoadX509KeyPair(pair.cert, pair.key)
		must(t, err)
		server.EnableHTTP2 = true
		server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
		server.StartTLS()
	}
	t.Cleanup(server.Close)
	_, port, _ := strings.Cut(server.Listener.Addr().String(), ":")
	return "localhost:" + port
}

// needProgram skips the test, loudly, where the machine has no such program.
func needProgram(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("SKIPPED, the machine has no %s: %v", program, err)
	}
}

// A web is a site that is no registry, and a proxy to reach it through.
type web struct {
	name  string
	url   string // of the site
	proxy string
	ca    string // PEM file that its clients trust; "" for plain HTTP
}

// eachWeb runs a test against a handler behind plain HTTP, behind a tunnel, and behind TLS that the proxy answers as if the site
// were a registry.
func eachWeb(t *testing.T, h http.Handler, test func(t *testing.T, w web)) {
	ca := newAuthority(t)
	plain, sealed := startWeb(t, nil, h), startWeb(t, ca, h)
	listed := fmt.Sprintf("%s- name: %s\n  tls: {ca: %s}\n", plainUpstream(plain), sealed, ca.file)
	blind := startPier(t, pierConfig{proxy: true, upstreams: listed, args: []string{"--intercept", "registry.test"}})
	open := startPier(t, pierConfig{proxy: true, upstreams: listed})
	for _, w := range []web{
		{"plain", "http://" + plain, open.proxy, ""},
		{"tunnelled", "https://" + sealed, blind.proxy, ca.file},
		{"intercepted", "https://" + sealed, open.proxy, filepath.Join(open.data, "ca.crt")},
	} {
		t.Run(w.name, func(t *testing.T) { test(t, w) })
	}
}

// echo answers with the body it gets while it gets it, in chunks, and GET /N with N bytes of a length that is known.
func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Seen", fmt.Sprintf("%s %d %q", r.Method, r.ContentLength, r.TransferEncoding))
	if r.Method == http.MethodGet {
		size, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(size))
		_, _ = w.Write(bytes.Repeat([]byte{'x'}, size)) // a client that leaves fails its test
		return
	}
	_ = http.NewResponseController(w).EnableFullDuplex()
	_, _ = io.Copy(w, r.Body)
}

func TestProxyPassesWhatCurlSendsAndGets(t *testing.T) {
	t.Parallel()
	needProgram(t, "curl")
	const size = 5<<20 + 7
	eachWeb(t, http.HandlerFunc(echo), func(t *testing.T, w web) {
		dir := t.TempDir()
		sent, got := filepath.Join(dir, "sent"), filepath.Join(dir, "got")
		content := make([]byte, size)
		_, _ = newRandom(t).Read(content)
		must(t, os.WriteFile(sent, content, 0o600))
		curl := func(want []byte, args ...string) string {
			t.Helper()
			args = append([]string{"--silent", "--show-error", "--fail", "--proxy", w.proxy, "--noproxy", "", "--output", got, "--dump-header", "-"}, args...)
			if w.ca != "" {
				args = append(args, "--cacert", w.ca)
			}
			header := run(t, "curl", args...)
			received, err := os.ReadFile(got)
			must(t, err)
			if !bytes.Equal(received, want) {
				t.Errorf("curl %q got %d bytes that are not the %d sent", args, len(received), len(want))
			}
			return header
		}
		curl(bytes.Repeat([]byte{'x'}, size), fmt.Sprint(w.url, "/", size))
		curl(bytes.Repeat([]byte{'x'}, size), "--proxytunnel", fmt.Sprint(w.url, "/", size)) // plain HTTP inside CONNECT, too
		for _, c := range []struct{ method, seen, how, version string }{
			{"POST", fmt.Sprint("POST ", size, " []"), "--data-binary", "--http1.1"},
			{"PUT", fmt.Sprint("PUT ", size, " []"), "--data-binary", "--http2"},
			{"PUT", `PUT -1 ["chunked"]`, "--upload-file", "--http1.1"},
		} {
			file := "@" + sent
			args := []string{c.version, "--request", c.method, c.how, file, w.url + "/"}
			if c.how == "--upload-file" {
				args[4] = sent
				args = append(args, "--header", "Transfer-Encoding: chunked")
			}
			if header := curl(content, args...); !strings.Contains(header, c.seen) && !strings.Contains(header, "PUT -1 []") {
				t.Errorf("%s %s: the site saw another request than was sent: %s", c.method, c.how, header)
			}
		}
	})
}

func TestProxyPassesGit(t *testing.T) {
	t.Parallel()
	needProgram(t, "git")
	backend := filepath.Join(run(t, "git", "--exec-path"), "git-http-backend")
	if _, err := os.Stat(backend); err != nil {
		t.Skipf("SKIPPED, git has no server here: %v", err)
	}
	root := t.TempDir()
	// Debian's git hangs in uploads over HTTP/2 whenever it has filled the window of who takes them, whoever that is.
	git := func(t *testing.T, w web, args ...string) string {
		t.Helper()
		args = append([]string{"HOME=" + root, "GIT_CONFIG_NOSYSTEM=1", "GIT_SSL_CAINFO=" + w.ca, "git", "-c", "http.proxy=" + w.proxy, "-c", "http.version=HTTP/1.1", "-c", "user.name=e2e", "-c", "user.email=e2e@pier.test", "-c", "safe.directory=*"}, args...)
		return run(t, "env", args...)
	}
	work := filepath.Join(root, "work")
	git(t, web{}, "init", "--quiet", work)
	content := make([]byte, 3<<20)
	_, _ = newRandom(t).Read(content)
	must(t, os.WriteFile(filepath.Join(work, "random"), content, 0o600))
	git(t, web{}, "-C", work, "add", "random")
	git(t, web{}, "-C", work, "commit", "--quiet", "--message", "first")
	git(t, web{}, "clone", "--quiet", "--bare", work, filepath.Join(root, "served.git"))
	git(t, web{}, "-C", filepath.Join(root, "served.git"), "config", "http.receivepack", "true")
	head := git(t, web{}, "-C", work, "rev-parse", "HEAD")
	backed := &cgi.Handler{Path: backend, Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + root, "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body) // CGI has no chunks
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		backed.ServeHTTP(w, r)
	})
	eachWeb(t, h, func(t *testing.T, w web) {
		clone := filepath.Join(t.TempDir(), "clone")
		git(t, w, "clone", "--quiet", w.url+"/served.git", clone)
		if got := git(t, w, "-C", clone, "rev-parse", "HEAD"); got != head {
			t.Errorf("the clone is at %s, want %s", got, head)
		}
		git(t, w, "-C", clone, "fsck", "--full", "--strict")

		must(t, os.WriteFile(filepath.Join(clone, w.name), content[:2<<20], 0o600)) // more than git sends at once: in chunks
		git(t, w, "-C", clone, "add", w.name)
		git(t, w, "-C", clone, "commit", "--quiet", "--message", w.name)
		git(t, w, "-C", clone, "push", "--quiet", "origin", "HEAD:refs/heads/"+w.name)
		if got, want := git(t, w, "-C", filepath.Join(root, "served.git"), "rev-parse", w.name), git(t, w, "-C", clone, "rev-parse", "HEAD"); got != want {
			t.Errorf("what was pushed is at %s, want %s", got, want)
		}
	})
}

func TestProxyPassesApt(t *testing.T) {
	t.Parallel()
	needProgram(t, "apt-get")
	needProgram(t, "dpkg-deb")
	served, dir := t.TempDir(), t.TempDir()
	tree := filepath.Join(dir, "tree")
	writeFile(t, filepath.Join(tree, "DEBIAN/control"), "Package: pier-e2e\nVersion: 1.0\nArchitecture: all\nMaintainer: e2e <e2e@pier.test>\nDescription: test\n")
	content := make([]byte, 2<<20)
	_, _ = newRandom(t).Read(content)
	must(t, os.WriteFile(filepath.Join(tree, "random"), content, 0o600))
	must(t, os.Chmod(filepath.Join(tree, "DEBIAN"), 0o755))
	deb := filepath.Join(served, "pier-e2e_1.0_all.deb")
	run(t, "dpkg-deb", "--build", "--root-owner-group", tree, deb)
	sum, _, _ := strings.Cut(run(t, "sha256sum", deb), " ")
	info, err := os.Stat(deb)
	must(t, err)
	writeFile(t, filepath.Join(served, "Packages"), fmt.Sprintf("%s\nFilename: ./%s\nSize: %d\nSHA256: %s\n",
		run(t, "dpkg-deb", "--field", deb), filepath.Base(deb), info.Size(), sum))

	addr := startWeb(t, nil, http.FileServer(http.Dir(served)))
	p := startPier(t, pierConfig{proxy: true, upstreams: plainUpstream(addr)})
	for _, name := range []string{"state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d", "down"} {
		must(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
	}
	writeFile(t, filepath.Join(dir, "etc/sources.list"), "deb [trusted=yes] http://"+addr+"/ ./\n")
	writeFile(t, filepath.Join(dir, "state/status"), "")
	apt := func(args ...string) {
		t.Helper()
		options := []string{
			"apt-get", "-qq", "-o", "Dir::State=" + filepath.Join(dir, "state"), "-o", "Dir::State::status=" + filepath.Join(dir, "state/status"),
			"-o", "Dir::Cache=" + filepath.Join(dir, "cache"), "-o", "Dir::Etc=" + filepath.Join(dir, "etc"), "-o", "APT::Sandbox::User=root",
			"-o", "Acquire::http::Proxy=" + p.proxy,
		}
		// Where it downloads to is where it runs.
		run(t, "env", append([]string{"--chdir=" + filepath.Join(dir, "down")}, append(options, args...)...)...)
	}
	apt("update")
	apt("download", "pier-e2e")
	got, _, _ := strings.Cut(run(t, "sha256sum", filepath.Join(dir, "down", filepath.Base(deb))), " ")
	if got != sum {
		t.Errorf("apt has a package of digest %s, want %s", got, sum)
	}
}
