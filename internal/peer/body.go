package peer

import (
	"context"
	"fmt"
	"io"

	"github.com/VictoriaMetrics/metrics"

	"pier/internal/directory"
)

// cancelling is a reader whose request ends with it.
type cancelling struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (c *cancelling) Close() error {
	c.cancel()
	return c.ReadCloser.Close()
}

// counted returns the body of a reply, whose bytes are put down to the neighbour that supplies them.
func (s *Source) counted(r *reply, key directory.Key) io.ReadCloser {
	return &counting{r.body, s, r.ID, key, false, s.received(r.Name)}
}

// maxReceived bounds the neighbours that have a metric of their own: names come and go with addresses. The rest share one.
const maxReceived = 1024

// received is the metric of the bytes of one neighbour.
func (s *Source) received(name string) *metrics.Counter {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.bytes[name]
	if c == nil {
		if len(s.bytes) >= maxReceived {
			name = "other"
		}
		c = s.meter.set.GetOrCreateCounter(fmt.Sprintf("pier_peer_received_bytes_total{peer=%q}", name))
		s.bytes[name] = c
	}
	return c
}

type counting struct {
	io.ReadCloser
	s     *Source
	from  directory.ID
	key   directory.Key
	given bool // a byte came: who gives none is not to blame
	bytes *metrics.Counter
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if n > 0 && !c.given {
		c.given = true
		c.s.trust.supplies(c.from, c.key)
		c.s.trust.works(c.from)
	}
	c.bytes.Add(n)
	return n, err
}
