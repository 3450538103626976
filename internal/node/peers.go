package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"pier/internal/chain"
	"pier/internal/clusterkey"
	"pier/internal/directory"
	"pier/internal/mdns"
	"pier/internal/member"
	"pier/internal/oci"
	"pier/internal/peer"
)

// peers is what a node has to do with other nodes.
type peers struct {
	keys           atomic.Pointer[clusterkey.Keys] // nil: the network is trusted
	server, client *tls.Config                     // between nodes; nil without keys

	group     *member.Group // nil: alone, or not yet
	directory *directory.Directory
	source    *peer.Source

	asking singleflight.Group // all members, for /api/v1/peers

	mu     sync.RWMutex // guards all below
	byID   map[directory.ID]member.Member
	held   map[directory.Key]holding // announced
	told   PeersInfo                 // answered last,
	toldAt time.Time                 // then
}

// openPeers builds what this node asks other nodes with, and looks for in the end at registries. Without peers that is the
// registries alone.
func (n *Node) openPeers(registries oci.Source) (oci.Source, error) {
	if registries != nil {
		registries = chain.Limited(registries, limiter(n.cfg.UpstreamRate))
	}
	if err := n.openKeys(); err != nil {
		return nil, err
	}
	n.peers.byID = make(map[directory.ID]member.Member)
	n.peers.directory = directory.New(directory.Config{
		Self: directory.Member{ID: directory.IDOf(n.name), Zone: n.cfg.Zone}, // until it is known how others reach it
		Send: n.send, Doubted: n.doubted, Log: n.log, Metrics: n.metrics,
	})
	n.peers.source = peer.New(peer.Config{
		Upstream: registries, Directory: n.peers.directory, Find: n.find, Zone: n.cfg.Zone, TLS: n.peers.client,
		Doorless: n.cfg.PeerListen == "",
		Fetchers: n.cfg.Fetchers, Runtime: n.stores.has(), Knows: n.knows, Local: n.local, Log: n.log, Metrics: n.metrics,
	})
	return n.peers.source, nil
}

// limiter returns what limits to so many bytes a second, paid for a tenth of a second at a time; nil for no limit.
func limiter(bytes int64) *rate.Limiter {
	if bytes == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytes), int(min(max(bytes/10, 1<<10), 1<<20)))
}

// slots is how many requests the peer door serves at once: no more than can share its rate without each of them being so slow
// that it is given up, which would move the load to the registry.
func (n *Node) slots() int {
	const share = 256 << 10 // bytes a second
	if n.cfg.PeerRate == 0 {
		return n.cfg.PeerSlots
	}
	return min(n.cfg.PeerSlots, max(1, int(n.cfg.PeerRate/share)))
}

func (n *Node) openKeys() error {
	file := n.cfg.ClusterKeyFile
	if file == "" {
		return nil
	}
	read := func() error {
		keys, err := clusterkey.Read(file)
		if err != nil {
			return fmt.Errorf("--cluster-key-file: %w", err)
		}
		n.peers.keys.Store(&keys)
		if n.peers.group != nil {
			return n.peers.group.Reload()
		}
		return nil
	}
	if err := read(); err != nil {
		return err
	}
	n.watch("cluster key", func() []string { return []string{file} }, read)
	n.peers.server, n.peers.client = clusterkey.TLS(func() clusterkey.Keys { return *n.peers.keys.Load() })
	return nil
}

// knows reports whether this node itself fetches from a registry, rather than its runtime: where it keeps what it fetches, or was
// told how to reach the registry.
func (n *Node) knows(registry string) bool {
	return n.cache != nil || n.upstreams == nil || n.upstreams.Knows(context.Background(), registry)
}

// join makes this node a member of its site. The doors are open by now.
func (n *Node) join() error {
	if n.cfg.GossipListen == "" {
		return nil
	}
	c := member.Config{
		Listen: n.cfg.GossipListen, Advertise: n.cfg.AdvertiseAddr, Cluster: n.cfg.Cluster,
		Self:  member.Member{Peer: n.doorPort("peer"), TLS: n.peers.server != nil, Zone: n.cfg.Zone, Host: hostname(), Version: n.version},
		Peers: n.cfg.Peers, PeersFile: n.cfg.PeersFile, DNS: n.cfg.PeersDNS, TLS: n.peers.client,
		Message: n.peers.directory.Receive, Change: n.met,
		RTT: func(name string, rtt time.Duration) { n.peers.directory.RTT(directory.IDOf(name), rtt) },
		Log: n.log, Metrics: n.metrics,
	}
	if n.peers.server != nil {
		c.Keys = func() [][]byte { return n.peers.keys.Load().Gossip() }
	}
	if n.cfg.MDNS {
		c.Discover = n.discover
	}
	group, err := member.New(c)
	if err != nil {
		return err
	}
	n.peers.group = group
	n.met(nil)
	if n.cfg.PeersFile != "" {
		n.watch("peers file", func() []string { return []string{n.cfg.PeersFile} }, group.Reload)
	}
	return nil
}

// hostname is the name of this machine, for people, or "".
func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}

// doorPort returns the port that a door listens on, or 0.
func (n *Node) doorPort(name string) uint16 {
	for _, d := range n.doors {
		if d.name == name {
			if addr, ok := d.listener.Addr().(*net.TCPAddr); ok {
				return uint16(addr.Port)
			}
		}
	}
	return 0
}

func (n *Node) discover(ctx context.Context, self member.Member, found func(netip.AddrPort)) error {
	return mdns.Run(ctx, mdns.Config{
		Instance: strings.TrimSpace(self.Name + " " + self.Host), Port: self.Gossip, Cluster: n.cfg.Cluster, Log: n.log, Found: found,
	})
}

// met takes the members of the site.
func (n *Node) met(others []member.Member) {
	byID := make(map[directory.ID]member.Member, len(others))
	list := make([]directory.Member, 0, len(others))
	for _, m := range others {
		id := directory.IDOf(m.Name)
		byID[id] = m
		list = append(list, directory.Member{ID: id, Zone: m.Zone})
	}
	n.peers.mu.Lock()
	n.peers.byID = byID
	n.peers.mu.Unlock()
	self := n.name
	if name := n.peers.group.Self().Name; name != "" {
		self = name
	}
	n.peers.directory.SetMembers(directory.Member{ID: directory.IDOf(self), Zone: n.cfg.Zone}, list)
}

func (n *Node) member(id directory.ID) (member.Member, bool) {
	n.peers.mu.RLock()
	defer n.peers.mu.RUnlock()
	m, ok := n.peers.byID[id]
	return m, ok
}

// send is how the directory reaches members.
func (n *Node) send(to directory.ID, msg []byte) {
	if m, ok := n.member(to); ok {
		_ = n.peers.group.Send(m.Name, msg) // what does not arrive is asked or told again
	}
}

// find is how the Source over peers reaches them.
func (n *Node) find(id directory.ID) (peer.Peer, bool) {
	m, ok := n.member(id)
	return peer.Peer{Name: m.Name, Door: m.Door(), TLS: m.TLS, Zone: m.Zone}, ok
}

const (
	announceEvery = time.Second     // that holdings are looked at: a few calls of stat
	listEvery     = 5 * time.Minute // that they are listed though nothing seems to have changed
)

// announce tells the directory what this node holds, until ctx ends.
func (n *Node) announce(ctx context.Context) error {
	if n.doorPort("peer") == 0 {
		return nil // nobody could ask for it
	}
	tick := time.NewTicker(announceEvery)
	defer tick.Stop()
	var seen, listed time.Time
	for {
		if changed := n.holdingsChanged(); !changed.Equal(seen) || time.Since(listed) > listEvery {
			seen, listed = changed, time.Now()
			n.hold(ctx)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (n *Node) holdingsChanged() time.Time {
	changed := n.whole.Changed()
	if n.made != nil && n.made.Changed().After(changed) {
		return n.made.Changed()
	}
	return changed
}

// A holding is what this node has announced of a key.
type holding struct {
	ref  oci.Reference
	late bool // it has to be made first
}

// hold announces what is held by now, and was not before, and the reverse.
func (n *Node) hold(ctx context.Context) {
	held := make(map[directory.Key]holding)
	add := func(holder chain.Holder, late bool) {
		digests, err := holder.Holdings()
		if err != nil {
			n.log.WarnContext(ctx, "what this node holds cannot be listed in full; others are not told of the rest", "err", err)
		}
		for _, d := range digests {
			ref := oci.Reference{Kind: oci.Blob, Digest: d}
			held[directory.KeyOf(ref)] = holding{ref, late}
		}
	}
	if n.made != nil {
		add(n.made, true)
	}
	add(n.whole, false) // whatever of that is ready, too
	for _, ref := range n.whole.Names() {
		ref.Digest = ""
		held[directory.KeyOf(ref)] = holding{ref: ref}
	}
	n.peers.mu.Lock()
	before := n.peers.held
	n.peers.held = held
	n.peers.mu.Unlock()
	var have, late, lost []directory.Key
	for key, h := range held {
		if old, ok := before[key]; ok && old.late == h.late {
			continue
		}
		if h.late {
			late = append(late, key)
		} else {
			have = append(have, key)
		}
	}
	for key := range before {
		if _, ok := held[key]; !ok {
			lost = append(lost, key)
		}
	}
	n.peers.directory.Hold(have, lost)
	n.peers.directory.HoldLate(late)
}

// blobs is how many digests this node holds.
func (n *Node) blobs() (count int64) {
	n.peers.mu.RLock()
	defer n.peers.mu.RUnlock()
	for _, h := range n.peers.held {
		if h.ref.Digest != "" {
			count++
		}
	}
	return count
}

// doubted takes the word of another node that it got wrong content from this one.
func (n *Node) doubted(key directory.Key) {
	n.peers.mu.RLock()
	h, ok := n.peers.held[key]
	n.peers.mu.RUnlock()
	if d, can := n.local.(chain.Doubter); ok && can && h.ref.Digest != "" {
		d.Doubt(h.ref)
	}
}
