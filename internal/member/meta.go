package member

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/memberlist"
)

// Bytes of the texts in a meta. With all of them at their longest it has less than half of memberlist's 512 bytes.
const (
	maxZone     = 63
	maxHost     = 63 // a label of a name in the DNS
	maxVersion  = 32
	instanceLen = 16
)

// meta is what members tell of themselves. Members that run a later version may add to it.
type meta struct {
	Peer     uint16 `json:"p,omitempty"`
	TLS      bool   `json:"t,omitempty"`
	Zone     string `json:"z,omitempty"`
	Host     string `json:"h,omitempty"`
	Version  string `json:"v,omitempty"`
	Instance string `json:"i"` // another one in every run
}

// clipped returns m with texts that fit a meta.
func clipped(m Member) Member {
	m.Zone, m.Host, m.Version = clip(m.Zone, maxZone), clip(m.Host, maxHost), clip(m.Version, maxVersion)
	return m
}

// clip returns at most limit bytes of s, without what JSON would escape or a terminal obey.
func clip(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if !plain(r) {
			return -1
		}
		return r
	}, s)
	for len(s) > limit {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}

func plain(r rune) bool {
	return r != utf8.RuneError && unicode.IsPrint(r) && !strings.ContainsRune(`"\<>&`, r)
}

func encodeMeta(m Member, instance string) []byte {
	m = clipped(m)
	b, err := json.Marshal(meta{m.Peer, m.TLS, m.Zone, m.Host, m.Version, instance})
	if err != nil || len(b) > memberlist.MetaMaxSize {
		panic(fmt.Sprintf("meta of %d bytes: %v", len(b), err)) // the limits above rule it out
	}
	return b
}

// reserved reports whether ip is of 0.0.0.0/8, which to most systems is themselves, or of 240.0.0.0/4, broadcast included.
func reserved(ip [4]byte) bool { return ip[0] == 0 || ip[0] >= 240 }

// decode returns what a node says of itself, and its instance. Anything in it may be made up.
func decode(n *memberlist.Node) (Member, string, error) {
	addr, ok := netip.AddrFromSlice(n.Addr)
	addr = addr.Unmap()
	if !ok || addr.IsUnspecified() || addr.IsMulticast() || n.Port == 0 || addr.Is4() && reserved(addr.As4()) {
		return Member{}, "", errors.New("no address to reach it at")
	}
	m := Member{Addr: addr, Gossip: n.Port, Name: netip.AddrPortFrom(addr, n.Port).String()}
	if n.Name != m.Name {
		return Member{}, "", errors.New("its name is not its address")
	}
	if len(n.Meta) > memberlist.MetaMaxSize {
		return Member{}, "", fmt.Errorf("meta of %d bytes", len(n.Meta))
	}
	var md meta
	if err := json.Unmarshal(n.Meta, &md); err != nil {
		return Member{}, "", fmt.Errorf("meta: %w", err)
	}
	m.Peer, m.TLS, m.Zone, m.Host, m.Version = md.Peer, md.TLS, md.Zone, md.Host, md.Version
	if m != clipped(m) || len(md.Instance) != instanceLen {
		return Member{}, "", errors.New("meta with texts that no node has")
	}
	return m, md.Instance, nil
}
