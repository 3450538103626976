package config_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFaults holds the whole message of every fault: what is wrong, where, and what to do.
func TestFaults(t *testing.T) {
	pem, dir := write(t, "any.pem", ""), t.TempDir()
	for _, tc := range []struct {
		name    string
		args    []string
		environ []string
		file    string
		want    []string // lines; FILE is the file's path
	}{
		{
			name: "values, each with its place", args: []string{"--tag-ttl=5", "--store=auto,crio", "--store=disk", "--air-gapped=maybe"},
			environ: []string{"PIER_CACHE_MAX_BYTES=10 apples", "PIER_LOG_LEVEL=loud"}, file: "pull-timeout: 60\nlog-format: xml\n",
			want: []string{
				`--tag-ttl: "5" is no duration: write a number and a unit, for example 30s or 5m`,
				`--store: "crio": write auto, containerd, docker or none`,
				`--store: "disk": write auto, containerd, docker or none`,
				`--air-gapped: "maybe": write true or false`,
				`PIER_CACHE_MAX_BYTES: "10 apples" is no size: write a whole number of bytes, or one with a unit, for example 500MB or 10GiB`,
				`FILE:2: log-format: "xml": write text or json`,
				`PIER_LOG_LEVEL: "loud": write debug, info, warn or error`,
				`FILE:1: pull-timeout: 60 where a duration such as 30s should be`,
			},
		},
		{
			name: "types", file: "listen: 5001\ncache-dir: true\ncontainerd-root:\nstore: {a: b}\nair-gapped: [true]\nallow-upstream: [a, [b], 5]\ntls-key: [k]\ntls-cert: " + pem + "\ncache-max-bytes: 1.5",
			want: []string{
				`FILE:5: air-gapped: a list where true or false should be`,
				`FILE:6: allow-upstream: a list where text should be`,
				`FILE:6: allow-upstream: 5 where text should be`,
				`FILE:2: cache-dir: true where text should be`,
				`FILE:9: cache-max-bytes: 1.5 where a whole number of bytes, or text such as 10GiB should be`,
				`FILE:3: containerd-root: nothing where text should be`,
				`FILE:1: listen: 5001 where text should be`,
				`FILE:4: store: a mapping where text should be`,
				`FILE:7: tls-key: a list where text should be`,
			},
		},
		{
			name: "keys", file: "cache_dir: /c\nzebra: 1\nlisten: :1\nlisten: :2\nconfig: other.yaml\n? [a]\n: b\n",
			want: []string{
				`FILE:1: unknown key "cache_dir": did you mean cache-dir?`,
				`FILE:2: unknown key "zebra"`,
				`FILE:4: listen again, after line 3: remove one of them`,
				`FILE:5: a file cannot name another: put all settings into one`,
				`FILE:6: unknown key ""`,
			},
		},
		{
			name: "nothing follows from a key that was meant", file: "tls_cert: " + pem + "\ntls-key: " + pem,
			want: []string{`FILE:1: unknown key "tls_cert": did you mean tls-cert?`},
		},
		{
			name: "nothing follows from a file that cannot be read", file: "listen: [", args: []string{"--tls-key=" + pem, "--cache-max-bytes=1G", "--tag-ttl=-1s"},
			want: []string{
				`config: FILE: yaml: line 1: did not find expected node content`,
				`tag-ttl: -1s: write a duration, or 0s to have registries asked each time`,
			},
		},
		{
			name: "a list as a file", file: "- a\n",
			want: []string{`config: FILE:1: a list where settings should be: write lines like "listen: 127.0.0.1:5001"`},
		},
		{
			name: "two documents", file: "pprof: true\n---\npprof: false\n",
			want: []string{`config: FILE holds more than one YAML document: put all settings into the first`},
		},
		{
			name: "a file too large", file: strings.Repeat("#", 1<<20+1),
			want: []string{`config: FILE is larger than 1048576 bytes: it cannot be a file of settings`},
		},
		{
			name: "no such file, by variable", environ: []string{"PIER_CONFIG=/does/not/exist"},
			want: []string{`config: open /does/not/exist: no such file or directory`},
		},
		{
			name: "addresses", args: []string{"--listen=5001", "--peer-listen=:http", "--metrics-listen=10.0.0.256:9090"},
			want: []string{
				`listen: "5001" is no address: write host:port, for example 127.0.0.1:5001, or :5000 for every interface`,
				`peer-listen: ":http": port "http": write a number up to 65535, 0 for any free port`,
				`metrics-listen: "10.0.0.256:9090": host "10.0.0.256" is neither an IP address nor a name: correct it, or leave it out for every interface`,
			},
		},
		{
			name: "what a cache is told", args: []string{"--refresh=1s", "--preload-platform=amd64", "--accept-push"},
			want: []string{
				"preload-platform chooses nothing without preload: give that too",
				`preload-platform: "amd64" is no platform: write one such as linux/amd64 or linux/arm/v7`,
				"refresh: 1s: write a duration of a minute at least, or 0s for never",
				"accept-push: say who may push: give push-htpasswd, or tls-client-ca for whoever has a certificate",
			},
		},
		{
			name: "a socket without a path", args: []string{"--listen=unix:"},
			want: []string{"listen: unix: names no socket: write its path, for example unix:/run/pier.sock"},
		},
		{
			name: "more addresses", args: []string{"--listen=none", "--peer-listen=http://a:1", "--metrics-listen=:65536"},
			want: []string{
				`listen: a node needs its door: give an address, for example 127.0.0.1:5001`,
				`peer-listen: "http://a:1" is no address: write host:port, for example 127.0.0.1:5001, or :5000 for every interface`,
				`metrics-listen: ":65536": port "65536": write a number up to 65535, 0 for any free port`,
			},
		},
		{
			name: "doors on one address", args: []string{"--listen=127.0.0.1:80", "--peer-listen=0.0.0.0:80", "--metrics-listen=[::1]:80"},
			want: []string{`listen and peer-listen both listen on port 80 of the same address: change one of them`},
		},
		{
			name: "three doors on one address", args: []string{"--listen=[::1]:80", "--peer-listen=[::1]:80", "--metrics-listen=:80"},
			want: []string{
				`listen and peer-listen both listen on port 80 of the same address: change one of them`,
				`listen and metrics-listen both listen on port 80 of the same address: change one of them`,
				`peer-listen and metrics-listen both listen on port 80 of the same address: change one of them`,
			},
		},
		{
			name: "stores", args: []string{"--store=none", "--store=containerd"},
			want: []string{`store: none cannot be combined with others: remove it, or them`},
		},
		{
			name: "no store", file: "store: []", want: []string{`store: give at least one of auto, containerd, docker and none`},
		},
		{
			name: "containerd left out", args: []string{"--store=none,none", "--containerd-root=/r", "--containerd-socket=/s"},
			want: []string{
				`containerd-socket is given but store leaves containerd out: add containerd to store, or remove containerd-socket`,
				`containerd-root is given but store leaves containerd out: add containerd to store, or remove containerd-root`,
			},
		},
		{
			name: "docker left out", args: []string{"--store=containerd", "--docker-root=/r"},
			want: []string{"docker-root is given but store leaves docker out: add docker to store, or remove docker-root"},
		},
		{
			name: "the proxy", args: []string{"--proxy-allow=10.0.0.0/33", "--intercept=none,a.test", "--intercept=https://b.test", "--rebuild-cpu=0", "--data-dir="},
			want: []string{
				`--proxy-allow: "10.0.0.0/33" is no network: write one with its length, for example 10.0.0.0/8 or fd00::/8`,
				"rebuild-cpu: 0: write a number of at least 1",
				"data-dir: name a directory",
				"intercept: none cannot be combined with patterns: remove it, or them",
				`intercept: "https://b.test" is a URL: leave out its scheme`,
			},
		},
		{
			name: "no proxy", args: []string{"--proxy-listen=none", "--proxy-allow=10.0.0.0/8", "--intercept=a.test"},
			want: []string{
				"proxy-allow lets nobody in without a proxy: give proxy-listen too",
				"intercept does nothing without a proxy: give proxy-listen too",
			},
		},
		{
			name: "half of TLS", args: []string{"--tls-cert=" + pem},
			want: []string{`tls-cert is given without tls-key: give both or neither`},
		},
		{
			name: "the other half of TLS", args: []string{"--tls-key=" + pem},
			want: []string{`tls-key is given without tls-cert: give both or neither`},
		},
		{
			name: "client certificates without TLS", args: []string{"--tls-client-ca=" + pem},
			want: []string{`tls-client-ca is given without tls-cert: clients show certificates only where TLS is spoken, give tls-cert and tls-key too`},
		},
		{
			name: "files", args: []string{"--upstreams=" + dir, "--tls-cert=/does/not/exist", "--tls-key=" + pem},
			want: []string{
				`upstreams: ` + dir + ` is a directory: name a file in it`,
				`tls-cert: stat /does/not/exist: no such file or directory: correct the path, or let this user read it`,
			},
		},
		{
			name: "upstreams", args: []string{"--default-registry=registry", "--allow-upstream=https://a.test", "--tag-ttl=-1s", "--pull-timeout=-1s"},
			want: []string{
				`default-registry: "registry" is no registry: write host or host:port, for example docker.io or registry.example.com:5000`,
				`allow-upstream: "https://a.test" is a URL: leave out its scheme`,
				`pull-timeout: -1s: write a duration of more than nothing`,
				`tag-ttl: -1s: write a duration, or 0s to have registries asked each time`,
			},
		},
		{
			name: "a registry with a path", args: []string{"--default-registry=registry.test/library"},
			want: []string{`default-registry: "registry.test/library" is no registry: write host or host:port, for example docker.io or registry.example.com:5000`},
		},
		{
			name: "settings that do nothing", args: []string{"--cache-max-bytes=1", "--pprof", "--metrics-listen=none"},
			want: []string{
				`cache-max-bytes limits nothing without a cache: give cache-dir too`,
				`pprof is served on the metrics address: give metrics-listen too`,
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var file string
			if tc.file != "" {
				file = write(t, "faulty.yaml", tc.file)
				tc.args = append([]string{"--config=" + file}, tc.args...)
			}
			_, _, err := load(t, tc.args, tc.environ, "")
			if err == nil {
				t.Fatal("no error")
			}
			got, want := err.Error(), strings.Join(tc.want, "\n")
			if file != "" {
				got = strings.ReplaceAll(got, file, "FILE")
			}
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestErrorsKeepTheirCause(t *testing.T) {
	_, _, err := load(t, []string{"--config=/does/not/exist"}, nil, "")
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist in it", err)
	}
}

// FuzzFile feeds the file with anything: it never panics, and what it accepts is a valid configuration whatever happens to
// stand in it.
func FuzzFile(f *testing.F) {
	for _, seed := range []string{
		"", "---\n", "listen: :1\n", "store: [auto, containerd]\n", "a: &a [*a]\n", "<<: {listen: :1}\n", "? {a: b}\n: c\n",
		"cache-dir: /c\ncache-max-bytes: 10GiB\n", "tag-ttl: 1s # one\n", "air-gapped: yes\n", "pprof: !!bool true\n", "\xff\xfe", "--- |\n a\n...\n",
		"peers: [a, \"[::1]:2\"]\nmdns: false\n", "gossip-listen: none\nfetchers: 3\npeer-rate: 1M/s\n",
		"listen: !!binary OjE=\n", "store: &s none\nallow-upstream: [*s]\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, content string) {
		if len(content) > 4096 {
			return
		}
		path := filepath.Join(t.TempDir(), "f.yaml")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		c, warnings, err := load(t, []string{"--config=" + path}, nil, "")
		if len(warnings) > 0 {
			t.Errorf("warnings without an environment: %q", warnings)
		}
		if err != nil {
			return
		}
		if len(c.Listen) == 0 || len(c.Stores) == 0 || c.PullTimeout <= 0 || c.TagTTL < 0 || c.CacheMaxBytes < 0 || c.DefaultRegistry == "" ||
			c.Cluster == "" || c.PeerSlots < 1 || c.PeerRate < 0 || c.UpstreamRate < 0 || c.Fetchers < 1 || c.Fetchers > 8 {
			t.Errorf("accepted %q as %+v", content, c)
		}
	})
}
