package upstream

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/VictoriaMetrics/metrics"
)

// maxLabels bounds the hosts that have metrics of their own. All others are "other".
const maxLabels = 100

type instruments struct {
	set         *metrics.Set
	received    *metrics.Counter // bytes of bodies
	rateLimited *metrics.Counter // requests refused with 429, or not sent because of one

	mu    sync.Mutex
	hosts map[string]bool // guarded by mu
}

func newInstruments(set *metrics.Set) *instruments {
	if set == nil {
		set = metrics.NewSet()
	}
	return &instruments{
		set:         set,
		received:    set.GetOrCreateCounter("pier_upstream_received_bytes_total"),
		rateLimited: set.GetOrCreateCounter("pier_upstream_rate_limited_total"),
		hosts:       make(map[string]bool),
	}
}

// label returns the host label of a registry.
func (m *instruments) label(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.hosts[name] {
		if len(m.hosts) >= maxLabels {
			return "other"
		}
		m.hosts[name] = true
	}
	return name
}

// answered counts a request by its answer: a status, or "error".
func (m *instruments) answered(name, code string) {
	m.set.GetOrCreateCounter(fmt.Sprintf("pier_upstream_requests_total{host=%q,code=%q}", m.label(name), code)).Inc()
}

// failed counts an error by its reason. A miss is none, and neither is a caller that left.
func (m *instruments) failed(name, reason string) {
	if reason == "not_found" || reason == "canceled" {
		return
	}
	m.set.GetOrCreateCounter(fmt.Sprintf("pier_upstream_errors_total{host=%q,reason=%q}", m.label(name), reason)).Inc()
}

// remaining notes how many requests Docker Hub says are left: "76;w=21600" is 76 within six hours.
func (m *instruments) remaining(name, header string) {
	count, _, _ := strings.Cut(header, ";")
	if n, err := strconv.ParseUint(strings.TrimSpace(count), 10, 32); err == nil {
		m.set.GetOrCreateGauge(fmt.Sprintf("pier_upstream_ratelimit_remaining{host=%q}", m.label(name)), nil).Set(float64(n))
	}
}

// statusLabel returns a status as a label. Made-up ones share one.
func statusLabel(code int) string {
	if http.StatusText(code) == "" {
		return "other"
	}
	return strconv.Itoa(code)
}
