package node

import (
	"fmt"
	"net/http"
	"net/http/pprof"
	"runtime"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"pier/internal/chain"
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
	if n.runtime != nil {
		n.metrics.NewGauge(`pier_runtime_images{runtime="containerd"}`, func() float64 { return float64(n.runtime.Images()) })
	}
}

// saved is how many bytes clients and peers got that did not cross the link to an upstream.
func (n *Node) saved() float64 {
	var served uint64
	for _, door := range []string{"node", "peer"} {
		for _, source := range []string{"containerd", "cache", "peer", "upstream"} {
			served += n.metrics.GetOrCreateCounter(fmt.Sprintf("pier_served_bytes_total{door=%q,source=%q}", door, source)).Get()
		}
	}
	received := n.metrics.GetOrCreateCounter("pier_upstream_received_bytes_total").Get()
	return max(0, float64(served)-float64(received))
}

// unready says why the node could not serve yet, or "".
func (n *Node) unready() string {
	if n.runtime != nil && !n.runtime.Ready() {
		return "containerd has not answered yet"
	}
	return ""
}

func (n *Node) runtimeName() string {
	if n.runtime == nil {
		return "none"
	}
	return "containerd"
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
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// info is what /api/v1/node answers.
func (n *Node) info() any {
	info := struct {
		Name      string       `json:"name"` // host:port of its gossip; empty without peers
		Host      string       `json:"host"`
		Zone      string       `json:"zone"`
		Gossip    uint16       `json:"gossip_port,omitempty"`
		Version   string       `json:"version"`
		Uptime    int64        `json:"uptime_seconds"`
		Ready     bool         `json:"ready"`
		AirGapped bool         `json:"air_gapped"`
		Runtime   *runtimeInfo `json:"runtime,omitempty"`
		Cache     *cacheInfo   `json:"cache,omitempty"`
		Blobs     int64        `json:"blobs"` // manifests and blobs held, by runtime and cache together
	}{
		Blobs: n.blobs(), Host: hostname(), Zone: n.cfg.Zone,
		Version: n.version, Uptime: int64(time.Since(n.started).Seconds()), Ready: n.unready() == "", AirGapped: n.cfg.AirGapped,
	}
	if n.peers.group != nil {
		self := n.peers.group.Self()
		info.Name, info.Gossip = self.Name, self.Gossip
	}
	if n.runtime != nil {
		info.Runtime = &runtimeInfo{Name: "containerd", Version: n.runtime.Version(), Images: n.runtime.Images()}
	}
	if n.cache != nil {
		bytes, blobs := n.cache.Size()
		info.Cache = &cacheInfo{Bytes: bytes, MaxBytes: n.cfg.CacheMaxBytes, Blobs: blobs}
	}
	return info
}

type runtimeInfo struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Images  int    `json:"images"`
}

type cacheInfo struct {
	Bytes    int64 `json:"bytes"`
	MaxBytes int64 `json:"max_bytes"` // 0: no limit
	Blobs    int64 `json:"blobs"`
}
