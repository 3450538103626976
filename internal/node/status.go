package node

import (
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"pier/internal/chain"
	"pier/internal/docker"
	"pier/internal/registry"
)

// measure registers what is known only of the node as a whole.
func (n *Node) measure() {
	n.metrics.NewGauge(fmt.Sprintf("pier_build_info{version=%q,go=%q}", n.version, runtime.Version()), func() float64 { return 1 })
	n.metrics.NewGauge("pier_start_time_seconds", func() float64 { return float64(n.started.Unix()) })
	n.metrics.NewGauge("pier_ready", func() float64 {
		if n.unready() == "" {
			return 1
		}
		return 0
	})
	n.metrics.NewGauge("pier_saved_bytes", n.saved)
	n.metrics.NewGauge(`pier_quarantines_total{copy="own"}`, func() float64 { return float64(chain.Damaged(n.local)) })
	for _, r := range n.runtimes() {
		n.metrics.NewGauge(fmt.Sprintf("pier_runtime_images{runtime=%q}", r.Name), func() float64 { return float64(n.images(r.Name)) })
	}
}

// saved is how many bytes clients and peers got that did not cross the link to an upstream.
func (n *Node) saved() float64 {
	var served uint64
	for _, door := range []string{"node", "peer", "proxy"} {
		for _, source := range []string{"containerd", "docker", "cache", "peer", "upstream"} {
			served += n.metrics.GetOrCreateCounter(fmt.Sprintf("pier_served_bytes_total{door=%q,source=%q}", door, source)).Get()
		}
	}
	received := n.metrics.GetOrCreateCounter("pier_upstream_received_bytes_total").Get()
	return max(0, float64(served)-float64(received))
}

// unready says why the node could not serve yet, or "".
func (n *Node) unready() string {
	for _, store := range n.stores.containerds {
		if !store.Ready() {
			return "containerd has not answered yet"
		}
	}
	if n.stores.docker != nil && !n.stores.docker.Ready() {
		return "what Docker has is being read"
	}
	return ""
}

// runtimes tells of the runtimes of this node, each name once.
func (n *Node) runtimes() (list []runtimeInfo) {
	if stores := n.stores.containerds; len(stores) > 0 {
		list = append(list, runtimeInfo{Name: "containerd", Version: stores[0].Version(), Images: n.images("containerd")})
	}
	if n.stores.docker != nil {
		layers := n.stores.docker.Layers()
		list = append(list, runtimeInfo{Name: "docker", Images: n.images("docker"), Layers: &layers})
	}
	return list
}

// images is how many images the runtimes of a name have.
func (n *Node) images(runtime string) (count int) {
	if runtime == "docker" {
		return n.stores.docker.Images()
	}
	for _, store := range n.stores.containerds {
		count += store.Images()
	}
	return count
}

func (n *Node) runtimeNames() string {
	var names []string
	for _, r := range n.runtimes() {
		names = append(names, r.Name)
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ",")
}

func (n *Node) metricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		n.metrics.WritePrometheus(w)
		metrics.WriteProcessMetrics(w)
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if why := n.unready(); why != "" {
			http.Error(w, why, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	api := registry.New(registry.Config{Source: chain.First(n.log), API: n.api("metrics"), Door: "metrics", Log: n.log})
	mux.Handle("GET /api/v1/", api)
	if n.cfg.Pprof {
		profiles(mux)
	}
	return mux
}

// info is what /api/v1/node answers.
func (n *Node) info() any {
	info := struct {
		Name      string        `json:"name"` // host:port of its gossip; empty without peers
		Host      string        `json:"host"`
		Zone      string        `json:"zone"`
		Gossip    uint16        `json:"gossip_port,omitempty"`
		Version   string        `json:"version"`
		Uptime    int64         `json:"uptime_seconds"`
		Ready     bool          `json:"ready"`
		AirGapped bool          `json:"air_gapped"`
		Runtimes  []runtimeInfo `json:"runtimes,omitempty"`
		Cache     *cacheInfo    `json:"cache,omitempty"`
		Blobs     int64         `json:"blobs"` // manifests and blobs held, by runtime and cache together
	}{
		Blobs: n.blobs(), Host: hostname(), Zone: n.cfg.Zone,
		Version: n.version, Uptime: int64(time.Since(n.started).Seconds()), Ready: n.unready() == "", AirGapped: n.cfg.AirGapped,
	}
	if n.peers.group != nil {
		self := n.peers.group.Self()
		info.Name, info.Gossip = self.Name, self.Gossip
	}
	if list := n.runtimes(); len(list) > 0 {
		info.Runtimes = list
	}
	if n.cache != nil {
		bytes, blobs := n.cache.Size()
		info.Cache = &cacheInfo{Bytes: bytes, MaxBytes: n.cfg.CacheMaxBytes, Blobs: blobs}
	}
	return info
}

type runtimeInfo struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	Images  int    `json:"images"`

	Layers *docker.Layers `json:"layers,omitempty"` // of Docker's classic store
}

type cacheInfo struct {
	Bytes    int64 `json:"bytes"`
	MaxBytes int64 `json:"max_bytes"` // 0: no limit
	Blobs    int64 `json:"blobs"`
}
