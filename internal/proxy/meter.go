package proxy

import (
	"fmt"

	"github.com/VictoriaMetrics/metrics"
)

// meter counts what a proxy does. No label has a value that a client chose.
type meter struct {
	registry, passed      *metrics.Counter // requests
	tunnel, intercepted   *metrics.Counter // CONNECT
	refused               *metrics.Counter // of both
	fromClients, toClient *metrics.Counter // bytes of bodies and tunnels
	open                  *metrics.Gauge
}

func newMeter(set *metrics.Set) *meter {
	requests := func(kind string) *metrics.Counter {
		return set.GetOrCreateCounter(fmt.Sprintf("pier_proxy_requests_total{kind=%q}", kind))
	}
	bytes := func(direction string) *metrics.Counter {
		return set.GetOrCreateCounter(fmt.Sprintf("pier_proxy_bytes_total{direction=%q}", direction))
	}
	return &meter{
		registry: requests("registry"), passed: requests("passed"), tunnel: requests("tunnel"),
		intercepted: requests("intercepted"), refused: requests("refused"),
		fromClients: bytes("from_clients"), toClient: bytes("to_clients"),
		open: set.GetOrCreateGauge("pier_proxy_open", nil),
	}
}

// maxClip bounds what a client sent where it is repeated, in bytes.
const maxClip = 256

func clip(s string) string {
	if len(s) > maxClip {
		return s[:maxClip]
	}
	return s
}
