// Package config turns flags, the environment and one YAML file into one [Config], and reports everything that is wrong
// with it at once. What the files it names contain (upstreams, certificates) is read by those who use them.
package config

import (
	"log/slog"
	"time"
)

// A Config is what `pier serve` was told. One made by [Loader.Load] is valid. Paths are relative to the working directory,
// wherever they were given.
type Config struct {
	Listen        string // host:port of the node door, which serves what this node can get
	PeerListen    string // host:port of the peer door, which serves what this node has; "" for none
	MetricsListen string // host:port of metrics and health; "" for none

	Stores           []string // runtime stores to serve from: StoreAuto, StoreContainerd, or StoreNone alone
	ContainerdSocket string   // "" means containerd's own default
	ContainerdRoot   string   // containerd's root directory; "" means what containerd says, or its own default
	CacheDir         string   // OCI image layout to keep content in; "" for none
	CacheMaxBytes    int64    // bytes kept in CacheDir before eviction; 0 means no limit

	Upstreams       string        // file that says how to reach registries; "" for none
	DefaultRegistry string        // registry of requests that name none, in the form of oci.Canonical
	AllowUpstream   []string      // patterns of the registries that may be asked beside those in Upstreams; none: any with a public name
	PullTimeout     time.Duration // a pull that makes no progress for this long is given up
	TagTTL          time.Duration // how long a tag's digest is believed before its registry is asked again
	AirGapped       bool          // upstream registries are never asked

	TLSCert     string // certificate chain of the node door, PEM; "" serves it without TLS
	TLSKey      string // private key to TLSCert, PEM
	TLSClientCA string // authorities, PEM, one of which must have signed a client's certificate; "" asks for none

	LogLevel  slog.Level
	LogFormat string // FormatText or FormatJSON
	Pprof     bool   // profiles are served beside the metrics
}

// Names of runtime stores.
const (
	StoreAuto       = "auto" // whichever are found on this node
	StoreContainerd = "containerd"
	StoreNone       = "none"
)

// Forms of the log.
const (
	FormatText = "text"
	FormatJSON = "json"
)
