package member

import (
	"fmt"
	"log"
	"net/netip"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
)

// The first byte of a message says what it is.
const (
	frameMessage = 'm'
	frameGoodbye = 'g' // followed by the instance of who leaves
)

// label is what every packet and connection of the cluster begins with. Its prefix keeps other users of memberlist apart.
func (g *Group) label() string { return "pier " + g.c.Cluster }

// start begins to gossip under the address to be reached at.
func (g *Group) start(socket *socket, advertise netip.AddrPort) error {
	p := g.c.pace
	d := &delegate{g: g, generation: g.generation.Add(1), name: advertise.String(), addr: advertise.Addr()}
	d.instance = g.instance()
	d.meta = encodeMeta(g.c.Self, d.instance)
	c := memberlist.DefaultLANConfig()
	c.Name = d.name
	c.Label = g.label()
	c.Transport = newTransport(socket, advertise, g.ring)
	c.AdvertiseAddr, c.AdvertisePort, c.BindPort = advertise.Addr().String(), int(advertise.Port()), int(advertise.Port())
	c.GossipInterval, c.PushPullInterval, c.GossipToTheDeadTime, c.TCPTimeout = p.gossip, p.sync, p.forget, p.exchange
	c.ProbeInterval, c.ProbeTimeout = p.probe, p.timeout
	// Suspected for 6 s at least, and up to 18 s while no other member confirms it (LAN: 4, 24 s, and two others): a crash is
	// seen within about ten seconds, while one member with a bad day cannot declare others dead quickly.
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = 3, 3
	c.AwarenessMaxMultiplier = 4     // LAN: 8. A machine in need probes each 8 s, no less: it would see no crash at all
	c.EnableCompression = false      // LAN: true. LZW costs more time than all the rest, on packets that fit anyway
	c.HandoffQueueDepth = 512        // LAN: 1024. Messages handled late are of no use
	c.UDPBufferSize = 1400           // as in a LAN: with MaxMessage, a long cluster name and a key, a packet stays below it
	c.QueueCheckInterval = time.Hour // LAN: 30 s. It only measures, for a sink that we do not have
	c.Keyring = g.ring
	c.Delegate, c.Events, c.Alive, c.Ping = d, d, d, d
	c.Logger = log.New(&journal{g.log, &g.strange}, "", 0)
	list, err := memberlist.Create(c)
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	g.list.Store(list)
	return nil
}

// instance tells this node under its present address from all that it, or others, ever were.
func (g *Group) instance() string {
	return fmt.Sprintf("%s%04x", g.process, uint16(g.generation.Load()))
}

// send sends a message of that kind to m.
func send(list *memberlist.Memberlist, m Member, kind byte, msg []byte) error {
	framed := append(append(make([]byte, 0, 1+len(msg)), kind), msg...)
	// Members of every version of Pier check packets (protocol version 5).
	to := memberlist.Node{Name: m.Name, Addr: m.Addr.AsSlice(), Port: m.Gossip, PMax: memberlist.ProtocolVersionMax}
	return list.SendBestEffort(&to, framed)
}

// leave tells everybody that this node goes, and ends the gossip. It takes at most 1 s.
func (g *Group) leave() {
	list := g.list.Load()
	if list == nil {
		return
	}
	instance := g.instance()
	g.generation.Add(1) // nothing it says is news any more
	// Memberlist lets the news spread, and does not tell who hears it that it was no crash.
	for _, m := range g.view.list(func(Member) bool { return false }) {
		_ = send(list, m, frameGoodbye, []byte(instance)) // who does not hear it takes it for a crash
	}
	if err := list.Leave(time.Second); err != nil {
		g.log.Debug("leave", "err", err)
	}
	g.list.Store(nil)
	_ = list.Shutdown() // of our own transport, which cannot fail
}

// A delegate is what one memberlist knows of its group. It is called with memberlist's locks held, and must not block.
type delegate struct {
	g          *Group
	generation uint64
	name       string
	addr       netip.Addr // of name
	instance   string     // of this node under this name: the process and the generation
	meta       []byte
}

// stale reports whether the memberlist of d is no more the group's.
func (d *delegate) stale() bool { return d.g.generation.Load() != d.generation }

// NodeMeta implements [memberlist.Delegate], as do the next four.
func (d *delegate) NodeMeta(int) []byte { return d.meta }

// NotifyMsg takes a message.
func (d *delegate) NotifyMsg(b []byte) {
	if len(b) == 0 || len(b) > 1+MaxMessage {
		return
	}
	switch msg := b[1:]; b[0] {
	case frameMessage:
		select {
		case d.g.inbox <- append([]byte(nil), msg...):
		default:
			d.g.meter.dropped.Inc()
		}
	case frameGoodbye:
		if !d.stale() {
			d.g.view.leave(string(msg))
		}
	}
}

// GetBroadcasts has nothing to say to everybody.
func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState has nothing to add.
func (d *delegate) LocalState(bool) []byte { return nil }

// MergeRemoteState expects nothing.
func (d *delegate) MergeRemoteState([]byte, bool) {}

// NotifyAlive implements [memberlist.AliveDelegate]: whom it refuses is no member, and is never sent anything.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	m, instance, err := decode(n)
	if err != nil {
		return err
	}
	if strings.HasPrefix(instance, d.g.process) && m.Name != d.name {
		return errHere // as it was under another address
	}
	if m.Addr.IsLoopback() && !d.addr.IsLoopback() || m.Addr.IsLinkLocalUnicast() && !d.addr.IsLinkLocalUnicast() {
		return errElsewhere
	}
	if d.g.view.full(m.Name) {
		return errFull
	}
	return nil
}

// NotifyJoin implements [memberlist.EventDelegate], as do the next two.
func (d *delegate) NotifyJoin(n *memberlist.Node) { d.NotifyUpdate(n) }

// NotifyUpdate takes what a member says of itself.
func (d *delegate) NotifyUpdate(n *memberlist.Node) {
	if n.Name == d.name || d.stale() {
		return
	}
	if m, instance, err := decode(n); err == nil {
		d.g.view.put(m, instance)
	}
}

// NotifyLeave takes the news of a member's death.
func (d *delegate) NotifyLeave(n *memberlist.Node) {
	if n.Name == d.name || d.stale() {
		return
	}
	if m, ok := d.g.view.lose(n.Name); ok {
		d.g.targets.remember(lost, m.gossipAddr())
		d.g.targets.hasten()
		signal(d.g.kick)
	}
}

// AckPayload implements [memberlist.PingDelegate], as does the next: a probe is answered with who answers.
func (d *delegate) AckPayload() []byte { return []byte(d.instance) }

// NotifyPingComplete takes the round trip of a probe. A node that was restarted before anybody noticed that it had been away
// answers as if nothing had been, but knows nobody: whoever probes it tells it of all.
func (d *delegate) NotifyPingComplete(n *memberlist.Node, rtt time.Duration, answered []byte) {
	if d.stale() {
		return
	}
	if d.g.c.RTT != nil {
		d.g.c.RTT(n.Name, rtt)
	}
	if m, ok := d.g.view.restarted(n.Name, string(answered)); ok {
		d.g.greet(m.gossipAddr())
	}
}
