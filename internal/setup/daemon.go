package setup

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// A Daemon is what is known of a machine's dockerd.
type Daemon struct {
	Running    bool
	Version    string // as it tells it
	Major      int    // of Version, worked out of the API's where a build has none
	Containerd bool   // images are in containerd's store

	HTTPProxy, HTTPSProxy, NoProxy string   // as it uses them now
	Mirrors                        []string // registry-mirrors that it uses now
	Insecure                       []string // insecure-registries that it accepts now: host[:port], or CIDR
}

const (
	askTimeout = 10 * time.Second // dockerd counts images and containers for /info
	maxAnswer  = 16 << 20         // bytes
)

// DefaultSocket is where dockerd listens if nobody says otherwise: DOCKER_HOST, if that is a socket, and Docker's default.
func DefaultSocket() string {
	if path, ok := strings.CutPrefix(os.Getenv("DOCKER_HOST"), "unix://"); ok {
		return path
	}
	return "/var/run/docker.sock"
}

// AskDaemon asks the dockerd that listens at a socket.
func AskDaemon(ctx context.Context, socket string) (Daemon, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}
	var version struct {
		Version    string
		APIVersion string `json:"ApiVersion"`
	}
	if err := ask(ctx, transport, "version", &version); err != nil {
		return Daemon{}, hint(fmt.Errorf("docker at %s: %w", socket, err))
	}
	var info struct {
		DriverStatus   [][2]string
		HTTPProxy      string `json:"HttpProxy"`
		HTTPSProxy     string `json:"HttpsProxy"`
		NoProxy        string
		RegistryConfig struct {
			Mirrors               []string
			InsecureRegistryCIDRs []string
			IndexConfigs          map[string]struct{ Secure bool }
		}
	}
	if err := ask(ctx, transport, "info", &info); err != nil {
		return Daemon{}, hint(fmt.Errorf("docker at %s: %w", socket, err))
	}
	d := Daemon{
		Running: true, Version: version.Version, Major: major(version.Version),
		HTTPProxy: info.HTTPProxy, HTTPSProxy: info.HTTPSProxy, NoProxy: info.NoProxy, Mirrors: info.RegistryConfig.Mirrors,
		Insecure: info.RegistryConfig.InsecureRegistryCIDRs,
	}
	for name, c := range info.RegistryConfig.IndexConfigs {
		if !c.Secure {
			d.Insecure = append(d.Insecure, name)
		}
	}
	if d.Major == 0 {
		d.Major = majorOfAPI(version.APIVersion)
	}
	for _, pair := range info.DriverStatus {
		if pair == [2]string{"driver-type", "io.containerd.snapshotter.v1"} { // moby's daemon/containerd/service.go
			d.Containerd = true
		}
	}
	return d, nil
}

func ask(ctx context.Context, transport http.RoundTripper, what string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/"+what, nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("asked for its %s it answered %s", what, resp.Status)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(v)
}

// AssumeDaemon returns what is known of a dockerd of that version that does not run, out of its configuration. A version of ""
// is not known.
func (m *Machine) AssumeDaemon(version string) (Daemon, error) {
	d := Daemon{Version: version, Major: major(version)}
	if d.Major == 0 && version != "" {
		return d, fmt.Errorf("%.80q is no version of Docker: write one like 28.2.2", version)
	}
	content, err := m.before(dockerJournal, daemonFile)
	if err != nil {
		return d, err
	}
	d.Containerd = d.Major >= 29 // on fresh installations
	var set struct {
		StorageDriver string          `json:"storage-driver"`
		Features      map[string]bool `json:"features"`
		Mirrors       []string        `json:"registry-mirrors"`
		Insecure      []string        `json:"insecure-registries"`
	}
	if json.Unmarshal(content, &set) == nil { // what cannot be read is told when it is to be changed
		switch set.StorageDriver {
		case "overlay2", "fuse-overlayfs", "btrfs", "zfs", "vfs":
			d.Containerd = false
		}
		if on, ok := set.Features["containerd-snapshotter"]; ok {
			d.Containerd = on
		}
		d.Mirrors, d.Insecure = set.Mirrors, set.Insecure
	}
	return d, nil
}

// major returns the number that a version begins with, 0 if there is none.
func major(version string) int {
	digits, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	n, err := strconv.Atoi(digits)
	if err != nil || n < 1 {
		return 0
	}
	return n
}

// majorOfAPI returns which of the versions that matter here speaks an API: 1.42 came with 23.0, 1.52 with 29.0 (the version
// history in Docker's API reference).
func majorOfAPI(api string) int {
	minor, err := strconv.Atoi(strings.TrimPrefix(api, "1."))
	switch {
	case err != nil:
		return 0
	case minor >= 52:
		return 29
	case minor >= 42:
		return 23
	}
	return 20
}
