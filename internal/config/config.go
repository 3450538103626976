// Package config turns flags, the environment and one YAML file into one [Config], and reports everything that is wrong
// with it at once. What the files it names contain (upstreams, certificates) is read by those who use them.
package config

import (
	"log/slog"
	"net/netip"
	"time"
)

// A Config is what `pier serve` was told. One made by [Loader.Load] is valid. Paths are relative to the working directory,
// wherever they were given.
type Config struct {
	Listen        []string // host:port, or unix: and a path, of the node door, which serves what this node can get; at least one
	PeerListen    string   // host:port of the peer door, which serves what this node has; "" for none
	MetricsListen string   // host:port of metrics and health; "" for none

	ProxyListen string // host:port of the forward proxy; "" for none
	// ProxyByDefault says that nobody asked for a proxy: if there is another one already, this node needs none.
	ProxyByDefault bool
	ProxyAllow     []netip.Prefix // clients of the proxy that are not on this machine
	Intercept      []string       // patterns of the registries whose TLS the proxy answers; none: those that are known as registries

	Stores           []string // runtime stores to serve from: StoreAuto, StoreContainerd, StoreDocker, or StoreNone alone
	ContainerdSocket string   // "" means containerd's own default
	ContainerdRoot   string   // containerd's root directory; "" means what containerd says, or its own default
	DockerSocket     string   // "" means Docker's own default
	DockerRoot       string   // Docker's data root as this process sees it; "" means what Docker says
	LayerKeep        int64    // bytes of layers that are kept because Docker's classic store has lost them and nothing can make them again
	RebuildCPU       int      // processors that make layers of Docker's classic store again; at least 1
	DataDir          string   // what the node itself has to remember: its certificate authority, how layers are made again
	CacheDir         string   // OCI image layout to keep content in; "" for none
	CacheMaxBytes    int64    // bytes kept in CacheDir before eviction; 0 means no limit

	ScrubRate int64 // bytes per second of CacheDir that are read to find what the disk lost; 0: it is not

	Preload          []string      // files of lists of images to load at the start
	PreloadPlatforms []string      // such as linux/amd64: of what Preload names, only that; none: all
	Refresh          time.Duration // how often the tags that clients ask for are asked for in the background; 0: never

	AcceptPush   bool   // clients of the node door may push, into the cache
	PushHtpasswd string // file of those who may, as htpasswd -B writes it; "": whoever has a certificate

	Upstreams       string        // file that says how to reach registries; "" for none
	DefaultRegistry string        // registry of requests that name none, in the form of oci.Canonical
	AllowUpstream   []string      // patterns of the registries that may be asked beside those in Upstreams; none: any with a public name
	PullTimeout     time.Duration // a pull that makes no progress for this long is given up
	TagTTL          time.Duration // how long a tag's digest is believed before its registry is asked again
	AirGapped       bool          // upstream registries are never asked

	Peers        []string // host or host:port of other nodes, whichever door of theirs
	PeersFile    string   // file that names other nodes, one a line; "" for none
	PeersDNS     string   // name whose records are other nodes; "" for none
	MDNS         bool     // other nodes are looked for on the link
	GossipListen string   // host:port, TCP and UDP, at which nodes talk about each other; "" for no peers at all
	// AdvertiseAddr is host or host:port at which others reach GossipListen; "" for what the node finds out.
	AdvertiseAddr  string
	Cluster        string // only nodes of the same name find each other
	ClusterKeyFile string // secret that all nodes share; "" for none, which trusts the network
	Zone           string // peers of the same zone are asked first; "" is the zone of all that name none
	PeerSlots      int    // how many requests for content the peer door serves at once, at least 1
	PeerRate       int64  // bytes per second that other nodes are sent, all together; 0 means no limit
	UpstreamRate   int64  // bytes per second that are fetched from upstreams, all together; 0 means no limit
	Fetchers       int    // connections with which one blob is fetched from an upstream, from 1 to 8

	TLSCert     string // certificate chain of the node door, PEM; "" serves it without TLS
	TLSKey      string // private key to TLSCert, PEM
	TLSClientCA string // authorities, PEM, one of which must have signed a client's certificate; "" asks for none

	LogLevel  slog.Level
	LogFormat string // FormatText or FormatJSON
	Pprof     bool   // profiles are served beside the metrics
}

// NodeVariable is the variable of the environment that says where `pier peers` and its like find the node they ask. It is no
// setting of the node.
const NodeVariable = "PIER_NODE"

// Names of runtime stores.
const (
	StoreAuto       = "auto" // whichever are found on this node
	StoreContainerd = "containerd"
	StoreDocker     = "docker"
	StoreNone       = "none"
)

// UnixPrefix begins an address that is the path of a Unix socket.
const UnixPrefix = "unix:"

// InterceptNone is the pattern of no registry.
const InterceptNone = "none"

// Forms of the log.
const (
	FormatText = "text"
	FormatJSON = "json"
)
