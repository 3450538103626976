//go:build e2e

package e2e

import (
	"crypto/tls"
	"debug/elf"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pier/e2e/faultproxy"
)

func TestBinaryIsStaticAndSmall(t *testing.T) {
	info, err := os.Stat(pierBinary)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 14<<20 {
		t.Errorf("the binary has %d bytes, want at most 14 MiB", info.Size())
	}
	f, err := elf.Open(pierBinary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary is linked dynamically")
		}
	}
}

func TestVersionAndCompletion(t *testing.T) {
	if got := run(t, pierBinary, "version"); !strings.Contains(got, "pier") && !strings.Contains(got, "go1.") {
		t.Errorf("version: %q", got)
	}
	if got := run(t, pierBinary, "completion", "bash"); !strings.Contains(got, "complete") {
		t.Errorf("completion: %.200q", got)
	}
}

func TestAllFaultsOfTheSettingsAreReportedInOneRun(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "pier.yaml")
	writeFile(t, file, "lisen: 127.0.0.1:1\ncache-max-bytes: many\n")
	_, err := tryRun(t, []string{"PIER_PEER_LISTEN=nowhere"}, pierBinary, "serve", "--config", file, "--store", "podman",
		"--tag-ttl", "soon", "--upstreams", "/nonexistent/upstreams.yaml", "--tls-key", "/nonexistent/key.pem",
		"--log-format", "xml")
	if err == nil {
		t.Fatal("pier started")
	}
	for _, want := range []string{
		"lisen", "cache-max-bytes", "peer-listen", "--store", "--tag-ttl", "/nonexistent/upstreams.yaml", "tls-cert", "--log-format",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error says nothing of %s: %v", want, err)
		}
	}
}

func TestBadUpstreamsFileIsRefusedAtStart(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "upstreams.yaml")
	writeFile(t, file, "- name: registry.test\n  schema: http\n- name: 'no host'\n- name: b.test\n  tls: {cert: /nonexistent/c.pem}\n")
	_, err := tryRun(t, nil, pierBinary, "serve", "--store", "none", "--listen", freeAddr(t), "--peer-listen", "",
		"--metrics-listen", "", "--gossip-listen", "none", "--proxy-listen", "none", "--upstreams", file)
	if err == nil {
		t.Fatal("pier started")
	}
	for _, want := range []string{"schema", "no host"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error says nothing of %q: %v", want, err)
		}
	}
}

func TestSettingsComeFromFileAndEnvironment(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 1000)
	registry.put(t, "app", "v1", want)
	file, dir := filepath.Join(t.TempDir(), "pier.yaml"), filepath.Join(t.TempDir(), "cache")
	writeFile(t, file, fmt.Sprintf("default-registry: %s\nlog-format: text\n", registry.addr))
	p := startPier(t, pierConfig{
		upstreams: plainUpstream(registry.addr), args: []string{"--config", file},
		env: []string{"PIER_CACHE_DIR=" + dir, "PIER_LOG_FORMAT=json"},
	})
	newClient(p.node, "").mustPull(t, "app", "v1", want)
	awaitKept(t, dir, want)
	for line := range strings.Lines(p.log.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not a line of JSON: %s", line)
		}
	}
}

// A fresh machine: no containerd (whatever this machine has in /run), and nothing configured.
func TestWithoutARuntimeItIsSaidAndTheNodeKeepsACacheOfItsOwn(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 1000)
	registry.put(t, "app", "v1", want)
	p := startPier(t, pierConfig{
		store: "auto", upstreams: plainUpstream(registry.addr),
		wrap: []string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs none /run && exec "$0" "$@"`},
	})
	newClient(p.node, registry.addr).mustPull(t, "app", "v1", want)
	if log := p.log.String(); !strings.Contains(log, "no container runtime found") {
		t.Error("the log does not say that there is no runtime")
	}
	awaitKept(t, filepath.Join(p.dir, ".cache", "pier", "images"), want)
}

var sampleRE = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*(\{[^}]*\})? [-+0-9.eEInfNa]+$`)

func TestMetricsHealthAndReadiness(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 100<<10)
	registry.put(t, "app", "v1", want)
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", registry.addr), args: []string{"--cache-dir", t.TempDir()}})
	door := newClient(p.node, "registry.test")
	door.mustPull(t, "app", "v1", want)
	door.mustPull(t, "app", "v1", want)

	fetch := func(path string) answer { return fetch(t, p.metrics+path) }
	for _, path := range []string{"/healthz", "/readyz"} {
		fetch(path).wantStatus(t, path, http.StatusOK)
	}
	metrics := fetch("/metrics")
	metrics.wantStatus(t, "/metrics", http.StatusOK)
	names := 0
	for line := range strings.Lines(string(metrics.body)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if !sampleRE.MatchString(line) {
			t.Errorf("not a sample: %s", line)
		}
		if strings.HasPrefix(line, "pier_") {
			names++
		}
	}
	if names < 10 {
		t.Errorf("%d metrics of pier's own, want at least 10:\n%s", names, metrics.body)
	}
	fetch("/debug/pprof/").wantStatus(t, "profiles that nobody asked for", http.StatusNotFound)
}

func TestMetricsCountWhatHappened(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 1<<20, 1000)
	registry.put(t, "app", "v1", want)
	front := startFront(t, registry.addr, 0)
	dir := t.TempDir()
	p := startPier(t, pierConfig{upstreams: plainUpstream(front.Host()), args: []string{"--cache-dir", dir}})
	door := newClient(p.node, front.Host())
	var size, blobs int64
	for _, b := range slices.Concat(want.blobs, want.manifests) {
		size += b.Size
		blobs++
	}
	for range 2 { // by tag, then all by digest
		door.mustPull(t, "app", "v1", want)
		awaitKept(t, dir, want)
	}
	manifest := want.root().Size
	for name, want := range map[string]int64{
		"pier_upstream_received_bytes_total":                      size,
		"pier_transfers_total":                                    blobs,
		"pier_transfers_in_flight":                                0,
		"pier_transfers_failed_total":                             0,
		"pier_cache_blobs":                                        blobs,
		"pier_cache_bytes":                                        size,
		`pier_requests_in_flight{door="node"}`:                    0,
		`pier_request_seconds_count{door="node",kind="blob"}`:     2 * int64(len(want.blobs)),
		`pier_request_seconds_count{door="node",kind="manifest"}`: 4,
		"pier_upstream_rate_limited_total":                        0,
		`pier_tag_lookups_total{result="asked"}`:                  1,
		`pier_tag_lookups_total{result="remembered"}`:             1,
		"pier_digest_mismatches_total":                            0,
		"pier_disk_faults_total":                                  0,
	} {
		eventually(t, soon, func() error { // a request is counted when its answer has been sent
			if got := p.metric(t, name); got != float64(want) {
				return fmt.Errorf("%s is %v, want %d", name, got, want)
			}
			return nil
		})
	}
	// What was asked for while it was being put into the cache counts for either.
	served := p.metric(t, `pier_served_bytes_total{door="node",source="upstream"}`) +
		p.metric(t, `pier_served_bytes_total{door="node",source="cache"}`)
	if want := float64(2*size + 2*manifest); served != want {
		t.Errorf("%v bytes were served, want %v", served, want)
	}
	if got := front.Sent(); got != size {
		t.Errorf("upstream sent %d bytes, want %d", got, size)
	}

	other := newImage(t, 1000)
	registry.put(t, "app", "v2", other)
	front.Set(faultproxy.Rule{Times: 1, Fault: faultproxy.TooManyRequests(1)})
	door.mustPull(t, "app", "v2", other)
	if got := p.metric(t, "pier_upstream_rate_limited_total"); got != 1 {
		t.Errorf("pier_upstream_rate_limited_total is %v after a 429, want 1", got)
	}
}

func TestAPIOfNodeAndDigests(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 100<<10)
	registry.put(t, "app", "v1", want)
	dir := t.TempDir()
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", registry.addr), args: []string{"--cache-dir", dir}})
	layer := want.layer(0)
	for _, door := range []string{p.node, p.peer} {
		fetch(t, door+"/api/v1/node").wantStatus(t, "node", http.StatusOK)
		fetch(t, door+"/api/v1/digests/"+layer.Digest.String()).wantStatus(t, "a digest before the pull", http.StatusNotFound)
		fetch(t, door+"/api/v1/digests/nonsense").wantStatus(t, "no digest", http.StatusBadRequest)
	}
	newClient(p.node, "registry.test").mustPull(t, "app", "v1", want)
	awaitKept(t, dir, want)
	for _, door := range []string{p.node, p.peer} {
		var got struct {
			Digest          string
			Size, Available int64
			Complete        bool
		}
		a := fetch(t, door+"/api/v1/digests/"+layer.Digest.String())
		a.decode(t, &got)
		if got.Digest != layer.Digest.String() || got.Size != layer.Size || !got.Complete || got.Available != layer.Size {
			t.Errorf("%s: %s", door, a.body)
		}
	}
}

func TestChangedUpstreamsFileTakesEffectWithoutDroppingADownload(t *testing.T) {
	t.Parallel()
	for _, hangup := range []bool{true, false} {
		t.Run(fmt.Sprintf("SIGHUP %v", hangup), func(t *testing.T) {
			t.Parallel()
			first, second := startRegistry(t, registryConfig{}), startRegistry(t, registryConfig{})
			large, small := newImage(t, 12<<20), newImage(t, 1000)
			first.put(t, "large", "v1", large)
			second.put(t, "small", "v1", small)
			front := startFront(t, first.addr, 4<<20) // 3 s
			before := namedUpstream("first.test", front.Host())
			p := startPier(t, pierConfig{upstreams: before})
			newClient(p.node, second.addr).get(t, "small/manifests/v1").wantStatus(t, "a registry not listed yet", http.StatusForbidden)

			whole, begun := download(t, newClient(p.node, "first.test"), "large", large.layer(0))
			<-begun
			// first.test is not listed any more, and must not be dropped while it is in use.
			p.setUpstreams(t, plainUpstream(second.addr))
			if hangup {
				p.signal(t, syscall.SIGHUP)
			}
			eventually(t, soon, func() error { return newClient(p.node, second.addr).pull(t.Context(), "small", "v1", small) })
			if err := <-whole; err != nil {
				t.Errorf("the download that was running: %v", err)
			}

			// A file with a fault changes nothing.
			p.setUpstreams(t, "- nonsense: true\n")
			p.signal(t, syscall.SIGHUP)
			third := newImage(t, 1000)
			second.put(t, "third", "v1", third)
			newClient(p.node, second.addr).mustPull(t, "third", "v1", third)
		})
	}
}

func TestNodeDoorSpeaksTLSAndTakesNewCertificates(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 1<<20)
	registry.put(t, "app", "v1", want)
	ca, stranger := newAuthority(t), newAuthority(t)
	pair, clientPair := ca.issue(t, "node.test"), ca.issue(t, "client.test")
	p := startPier(t, pierConfig{
		upstreams: namedUpstream("registry.test", registry.addr),
		args:      []string{"--tls-cert", pair.cert, "--tls-key", pair.key, "--tls-client-ca", ca.file},
	})
	door := newTLSClient(t, p, ca, clientPair)
	door.mustPull(t, "app", "v1", want)
	if _, err := newTLSClient(t, p, ca, stranger.issue(t, "stranger.test")).do(t.Context(), http.MethodGet, "app/manifests/v1"); err == nil {
		t.Error("a client with a certificate of another authority was served")
	}

	serial := func() string {
		conn, err := tls.Dial("tcp", p.nodeAddr(), door.http.Transport.(*http.Transport).TLSClientConfig)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	old := serial()
	ca.renew(t, "node.test", pair)
	p.signal(t, syscall.SIGHUP)
	eventually(t, soon, func() error {
		if serial() == old {
			return fmt.Errorf("the old certificate is still shown")
		}
		return nil
	})
	door.mustPull(t, "app", "v1", want)
}

// newTLSClient returns a client of the node door that trusts ca and shows a certificate.
func newTLSClient(t *testing.T, p *pier, ca *authority, pair keyPair) *client {
	t.Helper()
	certificate, err := tls.LoadX509KeyPair(pair.cert, pair.key)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(strings.Replace(p.node, "http:", "https:", 1), "registry.test")
	c.http.Transport.(*http.Transport).TLSClientConfig = &tls.Config{
		RootCAs: ca.pool(),
		// Shown whoever the server says it trusts.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil },
	}
	return c
}

func TestSystemdIsToldWhenTheNodeIsReady(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "pier-e2e-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	startPier(t, pierConfig{env: []string{"NOTIFY_SOCKET=" + socket}})
	if err := conn.SetReadDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	message := make([]byte, 1024)
	n, err := conn.Read(message)
	if err != nil || !strings.Contains(string(message[:n]), "READY=1") {
		t.Errorf("message %q, error %v", message[:n], err)
	}
}

func TestAddressInUseIsSaidAtOnce(t *testing.T) {
	t.Parallel()
	p := startPier(t, pierConfig{})
	_, err := tryRun(t, nil, pierBinary, "serve", "--store", "none", "--listen", p.nodeAddr(), "--peer-listen", "", "--metrics-listen", "",
		"--gossip-listen", "none", "--proxy-listen", "none")
	if err == nil || !strings.Contains(err.Error(), p.nodeAddr()) {
		t.Errorf("error %v, want one that names %s", err, p.nodeAddr())
	}
}
