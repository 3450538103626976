package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"pier/internal/chain"
	"pier/internal/directory"
	"pier/internal/member"
	"pier/internal/oci"
	"pier/internal/peer"
)

// PeersInfo is what /api/v1/peers answers: the members of the cluster as this node sees them.
type PeersInfo struct {
	Self   PeerInfo   `json:"self"`
	Peers  []PeerInfo `json:"peers"`  // the others, by name
	Ways   []string   `json:"ways"`   // settings by which this node looks for others, such as "mdns"
	Faults []string   `json:"faults"` // what is wrong with the peers file, a line each; those lines are skipped
}

// PeerInfo is what this node knows of one member.
type PeerInfo struct {
	PeerRef
	Version string  `json:"version"` // of the program
	Blobs   int64   `json:"blobs"`   // manifests and blobs that it holds; -1 if not known
	RTT     float64 `json:"rtt_ms"`  // round trip, milliseconds; 0 if not measured
	State   string  `json:"state"`   // StateUp or StateUnreachable
}

// PeerRef says which member is meant, and where it is.
type PeerRef struct {
	Name string `json:"name"` // host:port of its gossip, unique in the cluster
	Host string `json:"host"` // what its machine is called
	Door string `json:"door"` // host:port of its peer door; "" if it has none
	Zone string `json:"zone"` // "" if it names none
}

// States of a member.
const (
	StateUp          = "up"
	StateUnreachable = "unreachable" // it does not answer, and may be thought dead soon
)

// LocateInfo is what /api/v1/locate/<digest or reference> answers: which members have the content, this node included.
type LocateInfo struct {
	Ref     string           `json:"ref"`     // what was asked for, in full
	Content []LocatedContent `json:"content"` // each digest once: the one asked for, then what it refers to
	Partial string           `json:"partial"` // why Content is not all of it, for people; "" if it is
}

// LocatedContent says who has the content of one digest.
type LocatedContent struct {
	Digest    oci.Digest  `json:"digest"`
	Kind      string      `json:"kind"`      // "manifest" or "blob", as [oci.Kind] is written; "" if not known
	Size      int64       `json:"size"`      // bytes; -1 if not known
	Holders   []PeerRef   `json:"holders"`   // have all of it
	Receiving []Receiving `json:"receiving"` // have some of it, and get more
	Fetching  []PeerRef   `json:"fetching"`  // get it from an upstream
}

// Receiving is how far one member is.
type Receiving struct {
	Peer   PeerRef `json:"peer"`
	Offset int64   `json:"offset"` // bytes from the start that are there
}

type apiFunc = func(ctx context.Context, arg string) (any, error)

// api is what a door answers under /api/v1/. Only clients of the node door may have this node ask a registry, for what a tag
// names.
func (n *Node) api(door string) map[string]apiFunc {
	api := map[string]apiFunc{"node": func(context.Context, string) (any, error) { return n.info(), nil }}
	if door != "peer" {
		api["peers"] = n.peersInfo
	}
	switch door {
	case "node":
		api["locate"] = func(ctx context.Context, arg string) (any, error) { return n.locate(ctx, n.full, arg) }
	case "metrics":
		near := chain.First(n.log, n.local, n.peers.source.Names())
		api["locate"] = func(ctx context.Context, arg string) (any, error) { return n.locate(ctx, near, arg) }
	}
	return api
}

const (
	askTimeout = time.Second // for all members to say what they hold
	maxAsking  = 32          // members asked at once
	maxLocated = 256         // digests that one answer is about
)

// peersInfo tells of the members of the cluster. Each is asked how much it holds.
func (n *Node) peersInfo(ctx context.Context, _ string) (any, error) {
	// Whoever reaches a door may ask, and each time all members would be asked: so once for all who ask within a second.
	ch := n.peers.asking.DoChan("", func() (any, error) {
		n.peers.mu.RLock()
		last, at := n.peers.told, n.peers.toldAt
		n.peers.mu.RUnlock()
		if time.Since(at) < askTimeout {
			return last, nil
		}
		info, err := n.askAll()
		n.peers.mu.Lock()
		n.peers.told, n.peers.toldAt = info, time.Now()
		n.peers.mu.Unlock()
		return info, err
	})
	select {
	case answer := <-ch:
		return answer.Val, answer.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (n *Node) askAll() (PeersInfo, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	info := PeersInfo{Self: n.self(), Peers: []PeerInfo{}, Ways: n.ways(), Faults: []string{}}
	if n.peers.group == nil {
		return info, nil
	}
	info.Faults = append(info.Faults, n.peers.group.Faults()...)
	members := n.peers.group.Members()
	info.Peers = make([]PeerInfo, len(members))
	return info, each(len(members), func(i int) error {
		info.Peers[i] = n.ask(ctx, members[i])
		return nil
	})
}

// ways returns by which settings this node looks for others.
func (n *Node) ways() []string {
	list := []string{}
	for _, way := range []struct {
		name  string
		taken bool
	}{{"peers", len(n.cfg.Peers) > 0}, {"peers-file", n.cfg.PeersFile != ""}, {"peers-dns", n.cfg.PeersDNS != ""}, {"mdns", n.cfg.MDNS}} {
		if way.taken {
			list = append(list, way.name)
		}
	}
	return list
}

func (n *Node) self() PeerInfo {
	self := PeerInfo{PeerRef: PeerRef{Host: hostname(), Zone: n.cfg.Zone}, Version: n.version, Blobs: n.blobs(), State: StateUp}
	if n.peers.group != nil {
		m := n.peers.group.Self()
		self.Name, self.Door = m.Name, m.Door()
	}
	return self
}

func refOf(m member.Member) PeerRef {
	return PeerRef{Name: m.Name, Host: m.Host, Door: m.Door(), Zone: m.Zone}
}

// ask asks a member how much it holds.
func (n *Node) ask(ctx context.Context, m member.Member) PeerInfo {
	info := PeerInfo{PeerRef: refOf(m), Version: m.Version, Blobs: -1, State: StateUp}
	if rtt, ok := n.peers.directory.RoundTrip(directory.IDOf(m.Name)); ok {
		info.RTT = float64(rtt) / float64(time.Millisecond)
	}
	if m.Peer == 0 || ctx.Err() != nil { // its turn did not come
		return info
	}
	blobs, err := n.peers.source.Blobs(ctx, peer.Peer{Name: m.Name, Door: m.Door(), TLS: m.TLS, Zone: m.Zone})
	if err != nil {
		n.log.DebugContext(ctx, "peer does not say what it holds", "peer", m.Name, "err", err)
		info.State = StateUnreachable
		return info
	}
	info.Blobs = blobs
	return info
}

// locate tells who has content: what arg, a digest or a reference, names, and what that refers to. Of a reference, tag and
// manifest are had as for a pull; of a digest, only what is here is read.
func (n *Node) locate(ctx context.Context, from oci.Source, arg string) (any, error) {
	ref, err := n.named(arg)
	if err != nil {
		return nil, err
	}
	info := LocateInfo{Ref: arg}
	if ref.Repository != "" {
		info.Ref = ref.String()
	}
	if ref.Digest == "" {
		desc, err := from.Resolve(ctx, ref)
		if err != nil {
			return nil, err
		}
		ref.Digest = desc.Digest
	}
	var all []part
	all, info.Partial = n.collect(ctx, from, ref)
	info.Content = make([]LocatedContent, len(all))
	err = each(len(all), func(i int) (err error) {
		info.Content[i], err = n.located(ctx, all[i])
		return err
	})
	return info, err
}

// named returns what arg names. What begins as a digest is one, or wrong: no image is meant by it.
func (n *Node) named(arg string) (oci.Reference, error) {
	if algorithm, _, _ := strings.Cut(arg, ":"); algorithm == "sha256" || algorithm == "sha512" {
		dgst, err := oci.ParseDigest(arg)
		return oci.Reference{Kind: oci.Blob, Digest: dgst}, err
	}
	return oci.ParseReference(arg, n.cfg.DefaultRegistry)
}

// collect returns ref and what it refers to, as far as that is known here, and why that is not all.
func (n *Node) collect(ctx context.Context, from oci.Source, ref oci.Reference) (all []part, partial string) {
	all = []part{{ref, ref.Kind.String(), -1}}
	seen := map[oci.Digest]bool{ref.Digest: true}
	for i := 0; i < len(all); i++ {
		bare := i == 0 && ref.Kind == oci.Blob // a digest alone may be that of anything
		if all[i].Kind != oci.Manifest && !bare {
			continue
		}
		size, parts, err := n.parts(ctx, from, all[i].Reference)
		all[i].size = max(all[i].size, size)
		switch {
		case err == nil:
			all[i].kind = oci.Manifest.String()
		case errors.Is(err, errNoneHere):
			all[i].kind = oci.Manifest.String()
			partial = "this node has none of the manifests that the index lists"
		case bare:
			if _, err := n.local.Resolve(ctx, ref); err != nil {
				all[i].kind = ""
			}
		default:
			partial = "this node cannot read the manifest, so what it refers to is not known"
		}
		for _, p := range parts {
			switch {
			case seen[p.Digest]:
			case len(all) == maxLocated:
				return all, fmt.Sprintf("there are more than %d parts", maxLocated)
			default:
				seen[p.Digest] = true
				all = append(all, p)
			}
		}
	}
	return all, partial
}

// each calls do for 0 to n-1, some at once, and returns an error of one of them.
func each(n int, do func(int) error) error {
	var g errgroup.Group
	g.SetLimit(maxAsking)
	for i := range n {
		g.Go(func() error { return do(i) })
	}
	return g.Wait()
}

// A part is one content of what is located, and its size in bytes; -1 if that is not known.
type part struct {
	oci.Reference
	kind string // as in LocatedContent
	size int64
}

// located tells who has the content of one digest.
func (n *Node) located(ctx context.Context, p part) (LocatedContent, error) {
	ref := p.Reference
	c := LocatedContent{Digest: ref.Digest, Kind: p.kind, Size: p.size, Holders: []PeerRef{}, Receiving: []Receiving{}, Fetching: []PeerRef{}}
	if desc, err := n.local.Resolve(ctx, ref); err == nil {
		c.Size = desc.Size
		if desc.Missing == 0 {
			c.Holders = append(c.Holders, n.self().PeerRef)
		} else {
			c.Receiving = append(c.Receiving, Receiving{n.self().PeerRef, desc.Size - desc.Missing})
		}
	} else if desc, err := n.engine.InFlight().Resolve(ctx, ref); err == nil {
		c.Size = desc.Size
		c.Receiving = append(c.Receiving, Receiving{n.self().PeerRef, desc.Size - desc.Missing})
	}
	a, err := n.peers.directory.Lookup(ctx, directory.Want{Key: directory.KeyOf(ref), All: true})
	if err != nil {
		return c, err
	}
	for _, s := range a.Sources {
		switch m, ok := n.member(s.ID); {
		case !ok:
		case s.Whole():
			c.Holders = append(c.Holders, refOf(m))
		default:
			c.Receiving = append(c.Receiving, Receiving{refOf(m), s.Offset})
		}
	}
	if m, ok := n.member(a.Fetcher); ok {
		c.Fetching = append(c.Fetching, refOf(m))
	}
	return c, nil
}

var errNoneHere = errors.New("none of the manifests that the index lists is here")

// parts returns the size of a manifest and what it refers to: its blobs, and of an index the manifests that are here, since
// nobody holds those of all platforms. It returns [errNoneHere] if that is none of them, and another error for what is no manifest,
// or cannot be read.
func (n *Node) parts(ctx context.Context, from oci.Source, ref oci.Reference) (size int64, list []part, err error) {
	if ref.Kind != oci.Manifest {
		ref.Kind, from = oci.Manifest, n.local
	}
	rc, desc, err := from.Open(ctx, ref, 0, -1)
	if err != nil {
		return -1, nil, err
	}
	defer rc.Close()
	if !slices.Contains(oci.ManifestMediaTypes, desc.MediaType) || desc.Size > oci.MaxManifest {
		return desc.Size, nil, oci.ErrUnsupported
	}
	body, err := io.ReadAll(io.LimitReader(rc, oci.MaxManifest))
	if err != nil {
		return desc.Size, nil, err
	}
	info, err := oci.ParseManifest(body)
	if err != nil {
		return desc.Size, nil, err
	}
	for _, m := range info.Manifests {
		ref.Digest = m.Digest
		if _, err := n.local.Resolve(ctx, ref); err == nil {
			list = append(list, part{ref, ref.Kind.String(), m.Size})
		}
	}
	if len(info.Manifests) > 0 && len(list) == 0 {
		return desc.Size, nil, errNoneHere
	}
	ref.Kind = oci.Blob
	for _, b := range info.Blobs {
		ref.Digest = b.Digest
		list = append(list, part{ref, ref.Kind.String(), b.Size})
	}
	return desc.Size, list, nil
}
