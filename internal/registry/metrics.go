package registry

import (
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// meter counts what one door serves. All labels have few values: nothing a client sends becomes one.
type meter struct {
	set      *metrics.Set
	door     string
	inFlight *metrics.Gauge
	seconds  [endpoints]*histogram
	bytes    map[string]*metrics.Counter // by source label; never changes
	hits     *metrics.Counter            // content served from what this node has
	misses   *metrics.Counter            // content that had to be fetched, from an upstream or a peer
	refused  *metrics.Counter            // requests for content beyond the slots

	mu       sync.RWMutex // guards requests
	requests map[series]*metrics.Counter
}

type series struct {
	endpoint endpoint
	method   string
	status   int
}

func newMeter(set *metrics.Set, door string) *meter {
	m := &meter{
		set:      set,
		door:     door,
		inFlight: set.GetOrCreateGauge(fmt.Sprintf("pier_requests_in_flight{door=%q}", door), nil),
		bytes:    make(map[string]*metrics.Counter),
		hits:     set.GetOrCreateCounter(fmt.Sprintf("pier_content_total{door=%q,result=\"hit\"}", door)),
		misses:   set.GetOrCreateCounter(fmt.Sprintf("pier_content_total{door=%q,result=\"miss\"}", door)),
		refused:  set.GetOrCreateCounter(fmt.Sprintf("pier_refused_total{door=%q}", door)),
		requests: make(map[series]*metrics.Counter),
	}
	for e := range endpoints {
		m.seconds[e] = newHistogram(set, "pier_request_seconds", fmt.Sprintf("door=%q,kind=%q", door, e))
	}
	for _, source := range []string{"containerd", "cache", "peer", "upstream"} {
		m.bytes[source] = set.GetOrCreateCounter(fmt.Sprintf("pier_served_bytes_total{door=%q,source=%q}", door, source))
	}
	return m
}

// observe counts one request that ended with status.
func (m *meter) observe(e endpoint, method string, status int, w *response, dur time.Duration) {
	m.seconds[e].observe(dur.Seconds())
	if w.source != "" && w.bytes > 0 {
		switch w.source {
		case "containerd", "cache":
			m.hits.Inc()
		default:
			m.misses.Inc()
		}
		c, ok := m.bytes[w.source]
		if !ok {
			c = m.bytes["upstream"] // a host's name is no label: there may be any number
		}
		c.AddInt64(w.bytes)
	}
	if method != http.MethodGet && method != http.MethodHead {
		method = "other"
	}
	m.counter(series{e, method, status}).Inc()
}

func (m *meter) counter(s series) *metrics.Counter {
	m.mu.RLock()
	c := m.requests[s]
	m.mu.RUnlock()
	if c != nil {
		return c
	}
	c = m.set.GetOrCreateCounter(fmt.Sprintf("pier_requests_total{door=%q,kind=%q,method=%q,code=\"%d\"}", m.door, s.endpoint, s.method, s.status))
	m.mu.Lock()
	m.requests[s] = c
	m.mu.Unlock()
	return c
}

// bounds of the buckets in seconds: from a warm manifest to a large layer over a thin link.
var bounds = [...]float64{0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60, 600}

// A histogram in Prometheus' form, which the metrics package does not have: its own buckets are VictoriaMetrics' alone.
type histogram struct {
	buckets [len(bounds) + 1]*metrics.Counter // cumulative; the last is +Inf
	sum     *metrics.FloatCounter
	count   *metrics.Counter
}

func newHistogram(set *metrics.Set, name, labels string) *histogram {
	h := &histogram{
		sum:   set.GetOrCreateFloatCounter(name + "_sum{" + labels + "}"),
		count: set.GetOrCreateCounter(name + "_count{" + labels + "}"),
	}
	for i := range h.buckets {
		le := "+Inf"
		if i < len(bounds) {
			le = strconv.FormatFloat(bounds[i], 'g', -1, 64)
		}
		h.buckets[i] = set.GetOrCreateCounter(fmt.Sprintf("%s_bucket{%s,le=%q}", name, labels, le))
	}
	return h
}

func (h *histogram) observe(v float64) {
	for i := len(h.buckets) - 1; i >= 0 && (i == len(bounds) || v <= bounds[i]); i-- {
		h.buckets[i].Inc()
	}
	h.sum.Add(v)
	h.count.Inc()
}
