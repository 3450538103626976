package config_test

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"pier/internal/config"
)

// load runs one start of the command: arguments, environment, and the text of the file if not empty, which stands in the
// arguments as FILE.
func load(t *testing.T, args, environ []string, file string) (config.Config, []string, error) {
	t.Helper()
	if file != "" {
		args = append([]string{"--config", write(t, "pier.yaml", file)}, args...)
	}
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	l := config.Register(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatalf("parse %q: %v", args, err)
	}
	return l.Load(environ)
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func defaults() config.Config {
	return config.Config{
		Listen: []string{"127.0.0.1:5001"}, PeerListen: ":5000", MetricsListen: ":9090", ProxyListen: "127.0.0.1:3128", ProxyByDefault: true,
		Stores: []string{config.StoreAuto}, LayerKeep: 1 << 30, ScrubRate: 8e6, RebuildCPU: 1, DataDir: dataDir(), DefaultRegistry: "docker.io",
		PullTimeout: time.Minute, TagTTL: 30 * time.Second,
		MDNS: true, GossipListen: ":7946", Cluster: "pier", PeerSlots: 16, Fetchers: 1,
		LogLevel: slog.LevelInfo, LogFormat: config.FormatText,
	}
}

// dataDir is where state is kept by default, by who runs the tests.
func dataDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/pier"
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "pier")
	}
	return filepath.Join(os.Getenv("HOME"), ".local", "state", "pier")
}

func TestLoad(t *testing.T) {
	pem := write(t, "any.pem", "contents are read elsewhere")
	for _, tc := range []struct {
		name    string
		args    []string
		environ []string
		file    string
		want    func(*config.Config) // changes the defaults
	}{
		{name: "defaults", want: func(*config.Config) {}},
		{name: "empty file", file: "# nothing\n", want: func(*config.Config) {}},
		{name: "file of one null", file: "---\n", want: func(*config.Config) {}},
		{
			name: "every flag",
			args: []string{
				"--listen=[::1]:1", "--peer-listen=localhost:2", "--metrics-listen=0.0.0.0:3", "--store=containerd", "--store=auto",
				"--containerd-socket=/s", "--containerd-root=/r", "--cache-dir=/c", "--cache-max-bytes=1GiB", "--upstreams=" + pem,
				"--default-registry=Registry.test:5000", "--allow-upstream=*.lan", "--allow-upstream=10.0.0.0/8", "--pull-timeout=1m30s",
				"--tag-ttl=1ms", "--air-gapped", "--tls-cert=" + pem, "--tls-key=" + pem, "--tls-client-ca=" + pem,
				"--peers=10.0.0.2,node3.lan:7000", "--peers=[fd00::4]:5000", "--peers-file=" + pem, "--peers-dns=_gossip._tcp.pier.svc.", "--mdns",
				"--gossip-listen=10.0.0.1:4", "--advertise-addr=203.0.113.9:7947", "--cluster=site-2", "--cluster-key-file=" + pem, "--zone=rack/4",
				"--proxy-listen=[::1]:5", "--proxy-allow=10.0.0.1/8", "--proxy-allow=fd00::/8,192.0.2.1", "--intercept=a.test,*.b.test",
				"--docker-socket=/ds", "--docker-root=/dr", "--layer-keep=2GiB", "--rebuild-cpu=2", "--data-dir=/d",
				"--peer-slots=1", "--peer-rate=10MB/s", "--upstream-rate=512KiB", "--fetchers=8",
				"--scrub-rate=1MB/s", "--preload=" + pem, "--preload-platform=linux/amd64,linux/arm/v7", "--accept-push", "--push-htpasswd=" + pem,
				"--log-level=DEBUG", "--log-format=json", "--pprof",
			},
			want: everything(pem),
		},
		{
			name: "every variable",
			environ: []string{
				"PIER_LISTEN=[::1]:1", "PIER_PEER_LISTEN=localhost:2", "PIER_METRICS_LISTEN=0.0.0.0:3", "PIER_STORE=containerd,auto",
				"PIER_CONTAINERD_SOCKET=/s", "PIER_CONTAINERD_ROOT=/r", "PIER_CACHE_DIR=/c", "PIER_CACHE_MAX_BYTES=1073741824", "PIER_UPSTREAMS=" + pem,
				"PIER_DEFAULT_REGISTRY=registry.test:5000", "PIER_ALLOW_UPSTREAM=*.lan, 10.0.0.0/8,", "PIER_PULL_TIMEOUT=90s",
				"PIER_TAG_TTL=1ms", "PIER_AIR_GAPPED=1", "PIER_TLS_CERT=" + pem, "PIER_TLS_KEY=" + pem, "PIER_TLS_CLIENT_CA=" + pem,
				"PIER_PEERS=10.0.0.2, node3.lan:7000, [fd00::4]:5000", "PIER_PEERS_FILE=" + pem, "PIER_PEERS_DNS=_gossip._tcp.pier.svc.", "PIER_MDNS=1",
				"PIER_GOSSIP_LISTEN=10.0.0.1:4", "PIER_ADVERTISE_ADDR=203.0.113.9:7947", "PIER_CLUSTER=site-2", "PIER_CLUSTER_KEY_FILE=" + pem,
				"PIER_ZONE=rack/4", "PIER_PEER_SLOTS=1", "PIER_PEER_RATE=10000000", "PIER_UPSTREAM_RATE=512KiB/s", "PIER_FETCHERS=8",
				"PIER_PROXY_LISTEN=[::1]:5", "PIER_PROXY_ALLOW=10.0.0.1/8,fd00::/8, 192.0.2.1", "PIER_INTERCEPT=a.test,*.b.test",
				"PIER_DOCKER_SOCKET=/ds", "PIER_DOCKER_ROOT=/dr", "PIER_LAYER_KEEP=2147483648", "PIER_REBUILD_CPU=2", "PIER_DATA_DIR=/d",
				"PIER_SCRUB_RATE=1MB", "PIER_PRELOAD=" + pem, "PIER_PRELOAD_PLATFORM=linux/amd64, linux/arm/v7", "PIER_ACCEPT_PUSH=1", "PIER_PUSH_HTPASSWD=" + pem,
				"PIER_LOG_LEVEL=debug", "PIER_LOG_FORMAT=json", "PIER_PPROF=true",
			},
			want: everything(pem),
		},
		{
			name: "every key",
			file: `
listen: "[::1]:1"
peer-listen: localhost:2
metrics-listen: 0.0.0.0:3
store: [containerd, auto]
containerd-socket: /s
containerd-root: /r
proxy-listen: "[::1]:5"
proxy-allow: [10.0.0.1/8, "fd00::/8", 192.0.2.1]
intercept: [a.test, "*.b.test"]
docker-socket: /ds
docker-root: /dr
layer-keep: 2GiB
rebuild-cpu: 2
data-dir: /d
cache-dir: /c
cache-max-bytes: 1073741824
upstreams: &pem ` + pem + `
default-registry: registry.test:5000
allow-upstream:
  - "*.lan"
  - 10.0.0.0/8
pull-timeout: 90s
tag-ttl: 1ms
air-gapped: true
tls-cert: *pem
tls-key: *pem
tls-client-ca: *pem
peers: [10.0.0.2, "node3.lan:7000", "[fd00::4]:5000"]
peers-file: *pem
peers-dns: _gossip._tcp.pier.svc.
mdns: true
gossip-listen: 10.0.0.1:4
advertise-addr: 203.0.113.9:7947
cluster: site-2
cluster-key-file: *pem
zone: rack/4
peer-slots: 1
peer-rate: 10MB
upstream-rate: 524288
fetchers: 8
scrub-rate: 1000000
preload: [*pem]
preload-platform: [linux/amd64, linux/arm/v7]
accept-push: true
push-htpasswd: *pem
log-level: debug
log-format: json
pprof: "true"
`,
			want: everything(pem),
		},
		{
			name: "flag over variable over file", args: []string{"--tag-ttl=1s"},
			environ: []string{"PIER_TAG_TTL=2s", "PIER_PULL_TIMEOUT=2s", "PIER_STORE=containerd"},
			file:    "tag-ttl: 3s\npull-timeout: 3s\nstore: none\nlisten: :3000\n",
			want: func(c *config.Config) {
				c.TagTTL, c.PullTimeout, c.Listen, c.Stores = time.Second, 2*time.Second, []string{":3000"}, []string{"containerd"}
			},
		},
		{
			name: "an empty variable is not set", environ: []string{"PIER_LISTEN=", "PIER_CONFIG="}, file: "listen: :3000",
			want: func(c *config.Config) { c.Listen = []string{":3000"} },
		},
		{
			name: "doors closed by flag and variable", args: []string{"--peer-listen="}, environ: []string{"PIER_METRICS_LISTEN=none"},
			want: func(c *config.Config) { c.PeerListen, c.MetricsListen = "", "" },
		},
		{
			name: "doors closed by file", file: "peer-listen: \"\"\nmetrics-listen: none\n",
			want: func(c *config.Config) { c.PeerListen, c.MetricsListen = "", "" },
		},
		{
			name: "any free port twice", args: []string{"--listen=127.0.0.1:0", "--peer-listen=127.0.0.1:0"},
			want: func(c *config.Config) { c.Listen, c.PeerListen = []string{"127.0.0.1:0"}, "127.0.0.1:0" },
		},
		{
			name: "one port on two addresses", args: []string{"--listen=127.0.0.1:5000", "--peer-listen=10.0.0.1:5000", "--metrics-listen=[::1]:5000"},
			want: func(c *config.Config) {
				c.Listen, c.PeerListen, c.MetricsListen = []string{"127.0.0.1:5000"}, "10.0.0.1:5000", "[::1]:5000"
			},
		},
		{name: "refresh", args: []string{"--refresh=1h"}, want: func(c *config.Config) { c.Refresh = time.Hour }},
		{
			name: "several node doors", args: []string{"--listen=127.0.0.1:5001", "--listen=unix:/run/pier.sock,[::1]:5001"},
			want: func(c *config.Config) {
				c.Listen = []string{"127.0.0.1:5001", "unix:/run/pier.sock", "[::1]:5001"}
			},
		},
		{
			name: "air-gapped with allowed upstreams", args: []string{"--air-gapped", "--allow-upstream=a.test"},
			want: func(c *config.Config) { c.AirGapped, c.AllowUpstream = true, []string{"a.test"} },
		},
		{
			name: "an older name of Docker Hub", args: []string{"--default-registry=index.docker.io"},
			want: func(*config.Config) {},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, warnings, err := load(t, tc.args, tc.environ, tc.file)
			if err != nil {
				t.Fatal(err)
			}
			if len(warnings) > 0 {
				t.Errorf("warnings: %q", warnings)
			}
			want := defaults()
			tc.want(&want)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got\n%+v, want\n%+v", got, want)
			}
		})
	}
}

func everything(pem string) func(*config.Config) {
	return func(c *config.Config) {
		*c = config.Config{
			Listen: []string{"[::1]:1"}, PeerListen: "localhost:2", MetricsListen: "0.0.0.0:3", Stores: []string{"containerd", "auto"},
			ContainerdSocket: "/s", ContainerdRoot: "/r", CacheDir: "/c", CacheMaxBytes: 1 << 30, Upstreams: pem,
			DefaultRegistry: "registry.test:5000", AllowUpstream: []string{"*.lan", "10.0.0.0/8"}, PullTimeout: 90 * time.Second,
			Peers: []string{"10.0.0.2", "node3.lan:7000", "[fd00::4]:5000"}, PeersFile: pem, PeersDNS: "_gossip._tcp.pier.svc.", MDNS: true,
			GossipListen: "10.0.0.1:4", AdvertiseAddr: "203.0.113.9:7947", Cluster: "site-2", ClusterKeyFile: pem, Zone: "rack/4",
			ProxyListen: "[::1]:5", Intercept: []string{"a.test", "*.b.test"}, ProxyAllow: []netip.Prefix{
				netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("192.0.2.1/32"),
			},
			DockerSocket: "/ds", DockerRoot: "/dr", LayerKeep: 2 << 30, RebuildCPU: 2, DataDir: "/d",
			PeerSlots: 1, PeerRate: 10e6, UpstreamRate: 512 << 10, Fetchers: 8,
			ScrubRate: 1e6, Preload: []string{pem}, PreloadPlatforms: []string{"linux/amd64", "linux/arm/v7"}, AcceptPush: true, PushHtpasswd: pem,
			TagTTL: time.Millisecond, AirGapped: true, TLSCert: pem, TLSKey: pem, TLSClientCA: pem,
			LogLevel: slog.LevelDebug, LogFormat: config.FormatJSON, Pprof: true,
		}
	}
}

// A Service named "pier" makes Kubernetes set PIER_PORT and more in every container of its namespace: no reason not to
// start, nor to warn.
func TestForeignVariables(t *testing.T) {
	_, warnings, err := load(t, nil, []string{
		"PIER_PORT=tcp://10.96.0.7:5000", "PIER_PORT_5000_TCP=tcp://10.96.0.7:5000", "PIER_PORT_5000_TCP_ADDR=10.96.0.7",
		"PIER_PORT_5000_TCP_PORT=5000", "PIER_PORT_5000_TCP_PROTO=tcp", "PIER_SERVICE_HOST=10.96.0.7", "PIER_SERVICE_PORT=5000",
		"PIER_SERVICE_PORT_PEER=5000", "PIER_PEERS_SERVICE_HOST=10.96.0.8", "PIERS=5", "PIER_NODE=http://node:5001", "HOME=/root", "malformed",
		"PIER_CACHEDIR=/c", "PIER_SOMETHING_ELSE=1",
	}, "")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"environment variable PIER_CACHEDIR means nothing to pier: did you mean PIER_CACHE_DIR?",
		"environment variable PIER_SOMETHING_ELSE means nothing to pier",
	}
	if !reflect.DeepEqual(warnings, want) {
		t.Errorf("warnings %q, want %q", warnings, want)
	}
}

func TestSize(t *testing.T) {
	for _, tc := range []struct {
		text string
		want int64 // -1: an error
	}{
		{"0", 0}, {"1048576", 1 << 20}, {"512B", 512}, {"10k", 10e3}, {"10K", 10e3}, {"10KB", 10e3}, {"10Ki", 10 << 10},
		{"500MB", 500e6}, {"500 MB", 500e6}, {"64MiB", 64 << 20}, {"10G", 10e9}, {"10GiB", 10 << 30}, {"2TiB", 2 << 40}, {"2T", 2e12},
		{"9223372036854775807", 1<<63 - 1},
		{"9223372036854775808", -1}, {"9300000000G", -1}, {"99999999999999999999", -1},
		{"", -1}, {"G", -1}, {"B", -1}, {"-1", -1}, {"+1", -1}, {"1.5G", -1}, {"10GBB", -1}, {"10gib", -1}, {"1e9", -1}, {"0x10", -1},
	} {
		got, _, err := load(t, []string{"--cache-dir=/c", "--cache-max-bytes=" + tc.text}, nil, "")
		if tc.want < 0 {
			if err == nil {
				t.Errorf("%q: got %d, want an error", tc.text, got.CacheMaxBytes)
			}
			continue
		}
		if err != nil || got.CacheMaxBytes != tc.want {
			t.Errorf("%q: got %d, %v, want %d", tc.text, got.CacheMaxBytes, err, tc.want)
		}
	}
}

// The list of flags is the manual of the command: every default stands in it as people would write it.
func TestUsage(t *testing.T) {
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	config.Register(flags)
	usage := flags.FlagUsages()
	for _, want := range []string{
		"(default 127.0.0.1:5001)", "(default :5000)", "(default :9090)", "(default auto)", `(default "docker.io")`,
		"(default 1m0s)", "(default 30s)", "(default info)", "(default text)", "--cache-max-bytes size",
		"(default :7946)", "(default on when no other way is set)", `(default "pier")`, "(default 16)", "--peer-rate rate", "--mdns  ",
	} {
		if !strings.Contains(usage, want) {
			t.Errorf("usage lacks %q:\n%s", want, usage)
		}
	}
}
