package config

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxFetchers is the largest number of connections that one blob is fetched with: registries count more as abuse.
const maxFetchers = 8

// maxLabel is the longest name of a cluster or zone, in bytes: it travels in every packet of the gossip.
const maxLabel = 63

// validatePeers adds what is wrong with how this node finds others, and shares with them.
func (c *Config) validatePeers(f *faults) {
	for _, peer := range c.Peers {
		if err := checkNode(peer); err != nil {
			f.add([]string{"peers"}, "peers: %w", err)
		}
	}
	if c.AdvertiseAddr != "" {
		if err := checkNode(c.AdvertiseAddr); err != nil {
			f.add([]string{"advertise-addr"}, "advertise-addr: %w", err)
		}
	}
	if c.PeersDNS != "" && !isName(c.PeersDNS) {
		f.add([]string{"peers-dns"}, "peers-dns: %.80q is no name: write one that DNS knows, without a port, for example pier.kube-system.svc.cluster.local", c.PeersDNS)
	}
	readable(f, "peers-file", c.PeersFile)
	if isKey(c.ClusterKeyFile) { // a secret, which must not be repeated
		f.add([]string{"cluster-key-file"}, "cluster-key-file: that is a key itself: write the path of a file that holds it")
	} else {
		readable(f, "cluster-key-file", c.ClusterKeyFile)
	}
	if c.Cluster == "" || !isLabel(c.Cluster) {
		f.add([]string{"cluster"}, "cluster: %.80q: write a name of 1 to %d bytes without spaces, quotes, backslashes, <, > and &", c.Cluster, maxLabel)
	}
	if !isLabel(c.Zone) {
		f.add([]string{"zone"}, "zone: %.80q: write a name of at most %d bytes without spaces, quotes, backslashes, <, > and &", c.Zone, maxLabel)
	}
	if c.PeerSlots < 1 {
		f.add([]string{"peer-slots"}, "peer-slots: %d: write a number of at least 1; to serve no other node, set peer-listen to none", c.PeerSlots)
	}
	if c.Fetchers < 1 || c.Fetchers > maxFetchers {
		f.add([]string{"fetchers"}, "fetchers: %d: write a number from 1 to %d", c.Fetchers, maxFetchers)
	}
	c.validateAlone(f)
}

// validateAlone adds a fault if this node is to have no peers, and yet told where to find some.
func (c *Config) validateAlone(f *faults) {
	if c.GossipListen != "" {
		return
	}
	var given []string
	for _, way := range c.ways() {
		if way.given {
			given = append(given, way.name)
		}
	}
	if c.MDNS {
		given = append(given, "mdns")
	}
	if len(given) > 0 {
		f.add(append([]string{"gossip-listen"}, given...), "gossip-listen is none, so this node has no peers, but %s would find some: remove one or the other", strings.Join(given, ", "))
	}
}

// A way is a setting by which a node finds others.
type way struct {
	name  string
	given bool
}

// ways returns all but mDNS, which stands in for them.
func (c *Config) ways() []way {
	return []way{{"peers", len(c.Peers) > 0}, {"peers-file", c.PeersFile != ""}, {"peers-dns", c.PeersDNS != ""}}
}

// defaultMDNS says whether mDNS is on where nobody said so: if a node that wants peers has no other way to find them.
func (c *Config) defaultMDNS() bool {
	for _, way := range c.ways() {
		if way.given {
			return false
		}
	}
	return c.GossipListen != ""
}

// checkNode reports what is wrong with host or host:port as the place of one node.
func checkNode(s string) error {
	if strings.Contains(s, "://") {
		return fmt.Errorf("%.80q is a URL: leave out its scheme", s)
	}
	host := s
	if h, text, err := net.SplitHostPort(s); err == nil {
		if port, err := strconv.ParseUint(text, 10, 16); err != nil || port == 0 {
			return fmt.Errorf("%.80q: port %.20q: write a number from 1 to 65535, or leave it out with its colon", s, text)
		}
		host = h
	} else if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		host = s[1 : len(s)-1]
	}
	addr, err := netip.ParseAddr(host)
	switch bracketed := strings.HasPrefix(s, "["); {
	case err == nil && addr.IsUnspecified():
		return fmt.Errorf("%.80q: %s is every address of a machine: write one of them", s, host)
	case err == nil && (addr.Is6() || !bracketed), isName(host) && !bracketed:
		return nil
	}
	return fmt.Errorf("%.80q is no node: write host or host:port, for example 10.0.0.2, node2.lan:5000 or [fd00::2]:5000", s)
}

// nameRE matches names of hosts and services (RFC 1123 and, for the underscores, RFC 2782).
var nameRE = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?$`)

// isName reports whether s is a name that DNS could know. What looks like an IPv4 address is none.
func isName(s string) bool {
	const longest = 254 // bytes, with the last dot: RFC 1035, section 2.3.4
	return len(s) <= longest && nameRE.MatchString(s) && strings.Trim(s, "0123456789.") != ""
}

// isKey reports whether s looks like the content of a cluster key's file.
func isKey(s string) bool {
	return len(s) >= 64 && strings.Trim(s, "0123456789abcdefABCDEF") == ""
}

// isLabel reports whether s may name a cluster or a zone. Nothing may, too. What members tell of each other has no room
// for more, and none for what JSON would escape.
func isLabel(s string) bool {
	unfit := func(r rune) bool { return !unicode.IsPrint(r) || r == ' ' || strings.ContainsRune(`"\<>&`, r) }
	return len(s) <= maxLabel && utf8.ValidString(s) && !strings.ContainsFunc(s, unfit)
}
