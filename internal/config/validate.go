package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"pier/internal/oci"
)

// validate adds to f what is wrong with values as such, and with values beside others.
func (c *Config) validate(f *faults) {
	c.validateDoors(f)
	c.validateStores(f)
	c.validateProxy(f)
	c.validateUpstreams(f)
	c.validatePeers(f)
	c.validateTLS(f)
	if c.CacheMaxBytes > 0 && c.CacheDir == "" {
		f.add([]string{"cache-max-bytes", "cache-dir"}, "cache-max-bytes limits nothing without a cache: give cache-dir too")
	}
	for _, name := range c.Preload {
		readable(f, "preload", name)
	}
	if len(c.PreloadPlatforms) > 0 && len(c.Preload) == 0 {
		f.add([]string{"preload-platform", "preload"}, "preload-platform chooses nothing without preload: give that too")
	}
	if err := CheckPlatforms(c.PreloadPlatforms); err != nil {
		f.add([]string{"preload-platform"}, "preload-platform: %v", err)
	}
	if c.Refresh != 0 && c.Refresh < time.Minute {
		f.add([]string{"refresh"}, "refresh: %s: write a duration of a minute at least, or 0s for never", c.Refresh)
	}
	if c.Refresh > 0 && c.AirGapped {
		f.add([]string{"refresh", "air-gapped"}, "refresh asks registries, and air-gapped forbids that: remove one of them")
	}
	if c.AcceptPush && c.PushHtpasswd == "" && c.TLSClientCA == "" {
		f.add([]string{"accept-push", "push-htpasswd", "tls-client-ca"}, "accept-push: say who may push: give push-htpasswd, or tls-client-ca for whoever has a certificate")
	}
	if c.PushHtpasswd != "" && !c.AcceptPush {
		f.add([]string{"push-htpasswd", "accept-push"}, "push-htpasswd lets nobody push without accept-push: give that too")
	}
	if c.Pprof && c.MetricsListen == "" {
		f.add([]string{"pprof", "metrics-listen"}, "pprof is served on the metrics address: give metrics-listen too")
	}
}

// A door is one of the addresses that a node listens on.
type door struct {
	name string // of the flag
	host string
	port uint16
}

func (c *Config) validateDoors(f *faults) {
	if len(c.Listen) == 0 || slices.Equal(c.Listen, []string{"none"}) {
		c.Listen = nil
		f.add([]string{"listen"}, "listen: a node needs its door: give an address, for example 127.0.0.1:5001")
	}
	type named struct{ name, address string }
	list := []named{{"peer-listen", c.PeerListen}, {"proxy-listen", c.ProxyListen}, {"metrics-listen", c.MetricsListen}, {"gossip-listen", c.GossipListen}}
	for i := range c.Listen {
		path, unix := strings.CutPrefix(c.Listen[i], UnixPrefix)
		switch {
		case unix && path == "":
			f.add([]string{"listen"}, "listen: %s names no socket: write its path, for example unix:/run/pier.sock", UnixPrefix)
		case !unix:
			list = slices.Insert(list, i, named{"listen", c.Listen[i]})
		}
	}
	var doors []door
	for _, d := range list {
		if d.address == "" {
			continue
		}
		host, port, err := parseAddress(d.address)
		if err != nil {
			f.add([]string{d.name}, "%s: %w", d.name, err)
			continue
		}
		this := door{d.name, host, port}
		for _, other := range doors {
			if this.conflicts(other) {
				f.add([]string{this.name, other.name}, "%s and %s both listen on port %d of the same address: change one of them",
					other.name, this.name, port)
			}
		}
		doors = append(doors, this)
	}
}

// parseAddress splits host:port. The host may be empty, an IP address or a name.
func parseAddress(s string) (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, fmt.Errorf("%q is no address: write host:port, for example 127.0.0.1:5001, or :5000 for every interface", s)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%q: port %q: write a number up to 65535, 0 for any free port", s, text)
	}
	_, err = netip.ParseAddr(host)
	looksIP := strings.Trim(host, "0123456789.") == "" || strings.Contains(host, ":")
	if host != "" && err != nil && (looksIP || strings.ContainsAny(host, " /@*")) {
		return "", 0, fmt.Errorf("%q: host %q is neither an IP address nor a name: correct it, or leave it out for every interface", s, host)
	}
	return host, uint16(n), nil
}

// conflicts reports whether only one of two doors can listen.
func (d door) conflicts(other door) bool {
	return d.port != 0 && d.port == other.port && (d.covers(other) || other.covers(d))
}

// covers reports whether d's host takes in that of other. Without a host, and on "::", Go listens on every address of
// both families, on 0.0.0.0 on those of IPv4.
func (d door) covers(other door) bool {
	switch d.host {
	case other.host, "", "::":
		return true
	case "0.0.0.0":
		return !strings.Contains(other.host, ":")
	}
	return false
}

func (c *Config) validateStores(f *faults) {
	if len(c.Stores) == 0 {
		f.add([]string{"store"}, "store: give at least one of auto, containerd, docker and none")
	}
	if slices.Contains(c.Stores, StoreNone) && len(slices.Compact(slices.Sorted(slices.Values(c.Stores)))) > 1 {
		f.add([]string{"store"}, "store: none cannot be combined with others: remove it, or them")
	}
	if c.RebuildCPU < 1 {
		f.add([]string{"rebuild-cpu"}, "rebuild-cpu: %d: write a number of at least 1", c.RebuildCPU)
	}
	for _, s := range []struct{ store, name, path string }{
		{StoreContainerd, "containerd-socket", c.ContainerdSocket}, {StoreContainerd, "containerd-root", c.ContainerdRoot},
		{StoreDocker, "docker-socket", c.DockerSocket}, {StoreDocker, "docker-root", c.DockerRoot},
	} {
		if s.path != "" && !slices.Contains(c.Stores, StoreAuto) && !slices.Contains(c.Stores, s.store) {
			f.add([]string{"store", s.name}, "%s is given but store leaves %s out: add %[2]s to store, or remove %[1]s", s.name, s.store)
		}
	}
}

func (c *Config) validateProxy(f *faults) {
	if c.DataDir == "" {
		f.add([]string{"data-dir"}, "data-dir: name a directory")
	}
	if len(c.ProxyAllow) > 0 && c.ProxyListen == "" {
		f.add([]string{"proxy-allow", "proxy-listen"}, "proxy-allow lets nobody in without a proxy: give proxy-listen too")
	}
	if len(c.Intercept) > 0 && c.ProxyListen == "" {
		f.add([]string{"intercept", "proxy-listen"}, "intercept does nothing without a proxy: give proxy-listen too")
	}
	if slices.Contains(c.Intercept, InterceptNone) && len(c.Intercept) > 1 {
		f.add([]string{"intercept"}, "intercept: none cannot be combined with patterns: remove it, or them")
	}
	for _, pattern := range c.Intercept {
		if strings.Contains(pattern, "://") {
			f.add([]string{"intercept"}, "intercept: %.80q is a URL: leave out its scheme", pattern)
		}
	}
}

func (c *Config) validateUpstreams(f *faults) {
	readable(f, "upstreams", c.Upstreams)

	// Whatever the registry, its name is well-formed if a reference in it is.
	ref := oci.Reference{Registry: c.DefaultRegistry, Repository: "name", Tag: "tag"}
	if !oci.IsRegistry(c.DefaultRegistry) || ref.Validate() != nil {
		f.add([]string{"default-registry"}, "default-registry: %.80q is no registry: write host or host:port, for example docker.io or registry.example.com:5000",
			c.DefaultRegistry)
	}
	for _, pattern := range c.AllowUpstream {
		if strings.Contains(pattern, "://") {
			f.add([]string{"allow-upstream"}, "allow-upstream: %.80q is a URL: leave out its scheme", pattern)
		}
	}
	if c.PullTimeout <= 0 {
		f.add([]string{"pull-timeout"}, "pull-timeout: %s: write a duration of more than nothing", c.PullTimeout)
	}
	if c.TagTTL < 0 {
		f.add([]string{"tag-ttl"}, "tag-ttl: %s: write a duration, or 0s to have registries asked each time", c.TagTTL)
	}
}

func (c *Config) validateTLS(f *faults) {
	both := []string{"tls-cert", "tls-key"}
	switch {
	case c.TLSCert != "" && c.TLSKey == "":
		f.add(both, "tls-cert is given without tls-key: give both or neither")
	case c.TLSCert == "" && c.TLSKey != "":
		f.add(both, "tls-key is given without tls-cert: give both or neither")
	case c.TLSCert == "" && c.TLSClientCA != "":
		f.add(append(both, "tls-client-ca"), "tls-client-ca is given without tls-cert: clients show certificates only where TLS is spoken, give tls-cert and tls-key too")
	}
	readable(f, "tls-cert", c.TLSCert)
	readable(f, "tls-key", c.TLSKey)
	readable(f, "tls-client-ca", c.TLSClientCA)
}

// readable adds a fault if the file that the setting name gives cannot be read.
func readable(f *faults, name, path string) {
	if path == "" {
		return
	}
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		f.add([]string{name}, "%s: %s is a directory: name a file in it", name, path)
		return
	}
	if err == nil && info.Mode().IsRegular() { // opening a pipe would wait, and spoil it for its reader
		var file *os.File
		if file, err = os.Open(path); err == nil {
			err = file.Close()
		}
	}
	if err != nil {
		f.add([]string{name}, "%s: %w: correct the path, or let this user read it", name, err)
	}
}

// CheckPlatforms returns an error that names what is no platform of a list.
func CheckPlatforms(list []string) error {
	for _, p := range list {
		parts := strings.Split(p, "/")
		if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
			return fmt.Errorf("%.80q is no platform: write one such as linux/amd64 or linux/arm/v7", p)
		}
	}
	return nil
}
