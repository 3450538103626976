package member

import "github.com/VictoriaMetrics/metrics"

type instruments struct {
	joins, losses *metrics.Counter // members that came and went, however they did

	// Packets and connections of gossip, and their bytes, as they cross the network but for its own headers.
	sent, sentBytes, received, receivedBytes *metrics.Counter

	dropped *metrics.Counter // messages that came faster than they were taken
}

func newInstruments(set *metrics.Set, members func() float64) *instruments {
	set.NewGauge("pier_members", members)
	return &instruments{
		joins:         set.NewCounter("pier_member_joins_total"),
		losses:        set.NewCounter("pier_member_losses_total"),
		sent:          set.NewCounter("pier_gossip_messages_sent_total"),
		sentBytes:     set.NewCounter("pier_gossip_sent_bytes_total"),
		received:      set.NewCounter("pier_gossip_messages_received_total"),
		receivedBytes: set.NewCounter("pier_gossip_received_bytes_total"),
		dropped:       set.NewCounter("pier_gossip_messages_dropped_total"),
	}
}
