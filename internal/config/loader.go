package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"pier/internal/oci"
)

// A Loader fills a [Config] from the flags it registered, the environment and a file. Use it once.
type Loader struct {
	flags  *pflag.FlagSet // ours alone; the caller's set shares them
	config Config
	mdns   unset // of config.MDNS
	file   string
	faults faults
}

// Register adds the flags of `pier serve` to fs, which the caller parses before it calls [Loader.Load]. Values that make
// no sense are not errors of parsing: Load reports them, with everything else.
func Register(fs *pflag.FlagSet) *Loader {
	l := &Loader{flags: pflag.NewFlagSet("serve", pflag.ContinueOnError)}
	l.declare()
	l.flags.VisitAll(func(f *pflag.Flag) {
		f.Value = &patient{f.Value, func(err error) { l.faults.value(f.Name, "--"+f.Name, err) }}
	})
	fs.AddFlagSet(l.flags)
	return l
}

func (l *Loader) declare() {
	c, f := &l.config, l.flags
	address := func(p *string, name, value, usage string) {
		*p = value
		f.Var((*address)(p), name, usage)
	}
	path := func(p *string, name, usage string) { f.StringVar(p, name, "", usage) }

	f.StringVar(&l.file, "config", "", "read settings from this YAML `file`: keys are the names of flags")

	c.Listen = []string{"127.0.0.1:5001"}
	f.Var(&list{p: &c.Listen}, "listen", "node door, for this node's runtime: `address` to serve what this node can get, or unix:/path (repeatable)")
	address(&c.PeerListen, "peer-listen", ":5000", "peer door, for other nodes: `address` to serve what this node has; none to close it")
	address(&c.MetricsListen, "metrics-listen", ":9090", "`address` of /metrics, /healthz and /readyz; none to close it")

	address(&c.ProxyListen, "proxy-listen", "127.0.0.1:3128", "forward proxy, for HTTP_PROXY and HTTPS_PROXY: `address` to serve what this node can get, and pass on the rest; none to close it")
	f.Var((*prefixes)(&c.ProxyAllow), "proxy-allow", "let clients of this `network` use the proxy, for example 10.0.0.0/8, beside those of this machine (repeatable)")
	f.Var(&list{p: &c.Intercept}, "intercept", "answer TLS of registries of this `pattern` in the proxy, for example registry.example.com or *.example.com, and of no others; none for no TLS at all (repeatable; default the public registries, those that --upstreams lists, and those seen to be registries)")

	l.declareStores()
	path(&c.CacheDir, "cache-dir", "keep what was pulled in this `directory`, an OCI image layout")
	f.Var((*size)(&c.CacheMaxBytes), "cache-max-bytes", "evict the least recently used images above this `size`, for example 10GiB; 0 for no limit")

	c.ScrubRate = 8e6
	f.Var((*rate)(&c.ScrubRate), "scrub-rate", "read what the cache has at this `rate`, over and over, to find what the disk lost before somebody asks for it; 0 to leave that to those who ask")
	f.Var(&list{p: &c.Preload}, "preload", "load what this `list` names into the cache at the start, and serve meanwhile: an image or archive a line, see pier load (repeatable)")
	f.Var(&list{p: &c.PreloadPlatforms}, "preload-platform", "of what --preload names, only what is for this `os/architecture` (repeatable; default all)")
	f.DurationVar(&c.Refresh, "refresh", 0, "each time after this `duration`, ask in the background what the tags name that clients ask for, and fetch what is new; 0s for never")
	f.BoolVar(&c.AcceptPush, "accept-push", false, "keep what clients of the node door push, in the cache")
	path(&c.PushHtpasswd, "push-htpasswd", "`file` of those who may push, with their passwords, as htpasswd -B writes it")

	path(&c.Upstreams, "upstreams", "YAML `file` that says how to reach registries: credentials, TLS, mirrors")
	f.StringVar(&c.DefaultRegistry, "default-registry", oci.DockerHub, "`registry` of requests that name none")
	f.Var(&list{p: &c.AllowUpstream}, "allow-upstream", "allow only registries of this `pattern`, and those that --upstreams lists (repeatable; default any public name)")
	f.DurationVar(&c.PullTimeout, "pull-timeout", time.Minute, "give up a pull that makes no progress for this `duration`")
	f.DurationVar(&c.TagTTL, "tag-ttl", 30*time.Second, "believe a tag's digest for this `duration` before its registry is asked again; 0s to ask each time")
	f.BoolVar(&c.AirGapped, "air-gapped", false, "never ask an upstream registry")

	l.declarePeers()

	path(&c.TLSCert, "tls-cert", "PEM `file`: certificate chain of the node door")
	path(&c.TLSKey, "tls-key", "PEM `file`: private key of the node door")
	path(&c.TLSClientCA, "tls-client-ca", "PEM `file`: authorities that clients of the node door need a certificate of")

	f.Var((*level)(&c.LogLevel), "log-level", "least `level` that is logged: debug, info, warn or error")
	c.LogFormat = FormatText
	f.Var(&choice{&c.LogFormat, []string{FormatText, FormatJSON}}, "log-format", "`format` of the log: text or json")
	f.BoolVar(&c.Pprof, "pprof", false, "serve profiles under /debug/pprof/ of the metrics address")
}

// declareStores declares what concerns the runtimes of this node.
func (l *Loader) declareStores() {
	c, f := &l.config, l.flags
	path := func(p *string, name, usage string) { f.StringVar(p, name, "", usage) }
	c.Stores = []string{StoreAuto}
	f.Var(&list{p: &c.Stores, allowed: []string{StoreAuto, StoreContainerd, StoreDocker, StoreNone}}, "store",
		"runtime `store` to serve from: auto, containerd, docker or none (repeatable)")
	path(&c.ContainerdSocket, "containerd-socket", "`path` of containerd's socket (default containerd's own)")
	path(&c.ContainerdRoot, "containerd-root", "`path` of containerd's root directory (default what containerd says)")
	path(&c.DockerSocket, "docker-socket", "`path` of Docker's socket (default Docker's own)")
	path(&c.DockerRoot, "docker-root", "`path` of Docker's data root (default what Docker says)")
	c.LayerKeep = 1 << 30
	f.Var((*size)(&c.LayerKeep), "layer-keep", "keep up to this `size` of layers that Docker's classic store has unpacked and nothing can pack again as they were, and above 1GiB also those that were packed again lately; 0 for none")
	f.IntVar(&c.RebuildCPU, "rebuild-cpu", 1, "use at most this `number` of processors to make layers of Docker's classic store again")
	f.StringVar(&c.DataDir, "data-dir", defaultDataDir(), "`directory` of what this node has to remember: its certificate authority, how layers are made again")
}

// defaultDataDir is where the system keeps the state of services, or, for who is not root, where a user's own is kept (the XDG
// base directory specification).
func defaultDataDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/pier"
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "pier")
	}
	if home, err := os.UserHomeDir(); err == nil {
		return filepath.Join(home, ".local", "state", "pier")
	}
	return "/var/lib/pier"
}

// declarePeers declares what concerns other nodes.
func (l *Loader) declarePeers() {
	c, f := &l.config, l.flags
	f.Var(&list{p: &c.Peers}, "peers", "find other nodes through this one: its `host[:port]`, with the port of any of its doors (repeatable)")
	f.StringVar(&c.PeersFile, "peers-file", "", "find other nodes through those that this `file` lists, one a line; it may change")
	f.StringVar(&c.PeersDNS, "peers-dns", "", "find other nodes through the A, AAAA or SRV records of this `name`")
	f.VarPF(&l.mdns, "mdns", "", "find other nodes on the link through mDNS").NoOptDefVal = "true"
	c.GossipListen = ":7946" // memberlist's own default
	f.Var((*address)(&c.GossipListen), "gossip-listen", "`address`, TCP and UDP, at which nodes talk about each other; none to have no peers")
	f.StringVar(&c.AdvertiseAddr, "advertise-addr", "", "`host[:port]` at which other nodes reach the gossip of this one (default what the routes say)")
	f.StringVar(&c.Cluster, "cluster", "pier", "`name` that keeps the nodes of one network apart: only those of the same name are peers")
	f.StringVar(&c.ClusterKeyFile, "cluster-key-file", "", "`file` of the secret that all peers share: it encrypts what they say and keeps strangers out")
	f.StringVar(&c.Zone, "zone", "", "`label` of where this node stands: peers of the same zone are asked first")
	f.IntVar(&c.PeerSlots, "peer-slots", 16, "serve at most this `number` of requests of other nodes for content at once")
	f.Var((*rate)(&c.PeerRate), "peer-rate", "send other nodes at most this much a second, for example 50MB/s; 0 for no limit")
	f.Var((*rate)(&c.UpstreamRate), "upstream-rate", "fetch at most this much a second from upstream registries; 0 for no limit")
	f.IntVar(&c.Fetchers, "fetchers", 1, "fetch one blob from upstream with this `number` of connections, for registries that slow each down")
}

// Load returns the configuration: for every setting the flag if given, else the variable PIER_… of environ (in the form of
// [os.Environ]) if not empty, else the file's key, else the default. Warnings are for the log. The error joins all
// faults, each on a line of its own.
func (l *Loader) Load(environ []string) (c Config, warnings []string, err error) {
	env, warnings := l.environment(environ)
	if f := l.flags.Lookup("config"); !f.Changed {
		l.file = env[f.Name]
	}
	keys, whole := l.readFile()
	l.config.ProxyByDefault = !l.flags.Lookup("proxy-listen").Changed && env["proxy-listen"] == "" && keys["proxy-listen"] == nil
	l.flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed {
			return
		}
		value := f.Value.(*patient)
		if text, ok := env[f.Name]; ok {
			if err := value.set(text); err != nil {
				l.faults.value(f.Name, variable(f.Name), err)
			}
		} else if node, ok := keys[f.Name]; ok {
			if err := setNode(value, node); err != nil {
				l.faults.value(f.Name, fmt.Sprintf("%s:%d: %s", l.file, node.Line, f.Name), err)
			}
		} else if !whole {
			l.faults.doubt(f.Name)
		}
	})
	if l.config.MDNS = l.mdns.value; !l.mdns.given {
		l.config.MDNS = l.config.defaultMDNS()
	}
	l.config.validate(&l.faults)
	l.config.DefaultRegistry, _ = oci.Canonical(l.config.DefaultRegistry, "")
	return l.config, warnings, errors.Join(l.faults.errs...)
}

// readFile returns the file's nodes by key, and whether it could be read to its end.
func (l *Loader) readFile() (keys map[string]*yaml.Node, whole bool) {
	if l.file == "" {
		return nil, true
	}
	f, err := os.Open(l.file)
	if err == nil {
		defer f.Close()
		keys, err = l.parse(f)
	}
	if err != nil {
		l.faults.add(nil, "config: %w", err)
	}
	return keys, err == nil
}

// variable returns the name in the environment of the flag name.
func variable(name string) string {
	return "PIER_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// environment returns the values of environ by flag, and a warning for each variable that looks like ours but is not.
func (l *Loader) environment(environ []string) (env map[string]string, warnings []string) {
	names := make(map[string]string)
	var variables []string
	l.flags.VisitAll(func(f *pflag.Flag) {
		names[variable(f.Name)] = f.Name
		variables = append(variables, variable(f.Name))
	})
	env = make(map[string]string)
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		switch name, ok := names[k]; {
		case ok && v != "":
			env[name] = v
		case !ok && k != NodeVariable && strings.HasPrefix(k, "PIER_") && !serviceRE.MatchString(k):
			warnings = append(warnings, fmt.Sprintf("environment variable %s means nothing to pier%s", k, didYouMean(nearest(k, variables))))
		}
	}
	return env, warnings
}
