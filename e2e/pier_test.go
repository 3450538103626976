//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pier/e2e/netns"
)

// A pierConfig says how pier serve is started. The zero value is a node without runtime store, cache and upstreams.
type pierConfig struct {
	upstreams string   // content of the upstreams file, if any
	args      []string // further flags
	env       []string // further environment variables
	store     string   // of --store; empty means none
	unready   bool     // not to wait until it is ready
	wrap      []string // program that pier is started through, with its arguments
	proxy     bool     // it is a forward proxy, too, on loopback; by default it is not
	data      string   // its data directory; "": one of its own

	// at is where it runs, with the default doors and peers; nil means on loopback, with doors of its own and alone.
	at *netns.Place
}

// A pier is a running pier serve. Its doors are base URLs.
type pier struct {
	*process
	node, peer, metrics string
	proxy               string // "": it is none
	upstreamsFile       string
	dir                 string       // its home and temporary directory
	data                string       // its data directory
	http                *http.Client // reaches its doors
	start               func(t *testing.T)
}

// startPier starts a node and waits until it is ready.
func startPier(t *testing.T, cfg pierConfig) *pier {
	t.Helper()
	p := &pier{dir: t.TempDir(), upstreamsFile: filepath.Join(t.TempDir(), "upstreams.yaml"), http: http.DefaultClient}
	if p.data = cfg.data; p.data == "" {
		p.data = filepath.Join(p.dir, "data")
	}
	if cfg.store == "" {
		cfg.store = "none"
	}
	args := []string{"serve", "--store", cfg.store}
	start := exec.Command
	if cfg.at == nil {
		doors := [3]string{freeAddr(t), freeAddr(t), freeAddr(t)}
		p.node, p.peer, p.metrics = "http://"+doors[0], "http://"+doors[1], "http://"+doors[2]
		args = append(args, "--listen", doors[0], "--peer-listen", doors[1], "--metrics-listen", doors[2], "--gossip-listen", "none")
	} else {
		p.node, p.peer, p.metrics = "http://127.0.0.1:5001", "http://"+cfg.at.HostPort(5000), "http://"+cfg.at.HostPort(9090)
		transport := cfg.at.Transport()
		t.Cleanup(transport.CloseIdleConnections)
		p.http, start = &http.Client{Transport: transport}, cfg.at.Command
	}
	if cfg.upstreams != "" {
		p.setUpstreams(t, cfg.upstreams)
		args = append(args, "--upstreams", p.upstreamsFile)
	}
	switch {
	case !cfg.proxy:
		args = append(args, "--proxy-listen", "none")
	case cfg.at == nil:
		addr := freeAddr(t)
		p.proxy = "http://" + addr
		args = append(args, "--proxy-listen", addr)
	default:
		p.proxy = "http://127.0.0.1:3128"
	}
	args = append(args, cfg.args...)
	p.start = func(t *testing.T) {
		t.Helper()
		line := slices.Concat(cfg.wrap, []string{pierBinary}, args)
		cmd := start(line[0], line[1:]...)
		// The last value of a variable counts; those of these tests mean nothing to pier.
		cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "PIER_") })
		cmd.Env = append(cmd.Env, "HOME="+p.dir, "TMPDIR="+p.dir, "XDG_CACHE_HOME=", "DOCKER_CONFIG="+p.dir, "PIER_DATA_DIR="+p.data, "PIER_LOG_LEVEL=debug")
		cmd.Env = append(cmd.Env, cfg.env...)
		p.process = startProcess(t, "pier", cmd)
		started := p.process
		t.Cleanup(func() { started.checkSane(t) })
		if !cfg.unready {
			p.awaitReady(t)
		}
	}
	p.start(t)
	return p
}

// checkSane fails the test if the process panicked, in a request or as a whole, or reported a data race, as a binary
// built for that does.
func (p *process) checkSane(t *testing.T) {
	log := p.log.String()
	for _, sign := range []string{"panic", "DATA RACE", "fatal error:"} {
		if strings.Contains(log, sign) {
			t.Errorf("the log of %s holds %q:\n%s", p.name, sign, p.log.tail(200))
		}
	}
}

// awaitReady waits until the node says that it can serve.
func (p *pier) awaitReady(t *testing.T) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		if p.ended() {
			t.Fatalf("pier ended before it was ready: %v", p.cmd.ProcessState)
		}
		resp, err := p.http.Get(p.metrics + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz: %s", resp.Status)
		}
		return nil
	})
}

// restart starts pier again, with the same flags, after it ended.
func (p *pier) restart(t *testing.T) {
	t.Helper()
	p.start(t)
}

// setUpstreams replaces the upstreams file at once, as an editor would.
func (p *pier) setUpstreams(t *testing.T, yaml string) {
	t.Helper()
	writeFile(t, p.upstreamsFile+".new", yaml)
	if err := os.Rename(p.upstreamsFile+".new", p.upstreamsFile); err != nil {
		t.Fatal(err)
	}
}

// nodeAddr is the node door without its scheme, as OCI clients write it before a repository.
func (p *pier) nodeAddr() string { return strings.TrimPrefix(p.node, "http://") }

func (p *pier) peerAddr() string { return strings.TrimPrefix(p.peer, "http://") }

// spooled returns the bytes on disk of pier's temporary files, deleted ones that it still holds open included.
func (p *pier) spooled(t *testing.T) (bytes int64) {
	t.Helper()
	count := func(file string, follow bool) {
		stat := syscall.Lstat
		if follow {
			stat = syscall.Stat
		}
		var s syscall.Stat_t
		if stat(file, &s) == nil && s.Mode&syscall.S_IFMT == syscall.S_IFREG {
			bytes += s.Blocks * 512
		}
	}
	_ = filepath.Walk(p.dir, func(file string, _ os.FileInfo, _ error) error { count(file, false); return nil })
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.pid()))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		// A file with a name in dir has been counted above.
		if target, err := os.Readlink(fd); err == nil && strings.HasSuffix(target, " (deleted)") {
			count(fd, true)
		}
	}
	return bytes
}

// peakMemory returns the most memory, in bytes, that pier has had resident.
func (p *pier) peakMemory(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	t.Fatal("/proc/PID/status has no VmHWM")
	return 0
}

// metric returns the value of one of pier's metrics, given with its labels. One that is not there is a failure.
func (p *pier) metric(t *testing.T, name string) (value float64) {
	t.Helper()
	for line := range strings.Lines(string(fetchBy(t, p.http, p.metrics+"/metrics").body)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(rest, &value); err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// plainUpstream is the entry of an upstream at addr that is reached over plain HTTP.
func plainUpstream(addr string) string {
	return fmt.Sprintf("- name: %s\n  scheme: http\n", addr)
}

// namedUpstream makes name stand for the plain HTTP registry at addr.
func namedUpstream(name, addr string) string {
	return fmt.Sprintf("- name: %s\n  mirrors: [%q]\n", name, addr) + plainUpstream(addr)
}
