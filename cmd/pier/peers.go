package main

import (
	"cmp"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"pier/internal/node"
)

func peersCommand() *cobra.Command {
	var a asker
	cmd := &cobra.Command{
		Use:   "peers",
		Short: "List the nodes of the cluster",
		Long:  `List the nodes of the cluster as one running node sees them: itself first, then its peers.`,
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var info node.PeersInfo
			raw, err := a.get(cmd.Context(), "peers", "", &info)
			if err != nil {
				return err
			}
			stdout, stderr := cmd.OutOrStdout(), cmd.ErrOrStderr()
			if a.asJSON {
				_, err := fmt.Fprintf(stdout, "%s\n", raw)
				return err
			}
			if err := printPeers(stdout, info); err != nil {
				return err
			}
			for _, fault := range info.Faults {
				fmt.Fprintln(stderr, "pier: peers file:", printable(fault))
			}
			if len(info.Peers) == 0 {
				fmt.Fprintln(stderr, "pier:", alone(info.Ways))
			}
			return nil
		},
	}
	a.register(cmd)
	return cmd
}

// alone says what to do about a node without peers, which looks for some in these ways.
func alone(ways []string) string {
	if len(ways) == 0 {
		return "no peers: this node does not look for any; see --peers, --peers-file, --peers-dns and --mdns of 'pier serve'"
	}
	flags := make([]string, len(ways))
	for i, way := range ways {
		flags[i] = "--" + printable(way)
	}
	return "no peers yet: this node looks for them with " + strings.Join(flags, ", ") + "; its log says whom it found and could not join"
}

func printPeers(w io.Writer, info node.PeersInfo) error {
	sort.Slice(info.Peers, func(i, j int) bool { return compareRefs(info.Peers[i].PeerRef, info.Peers[j].PeerRef) < 0 })
	t := table{{"NODE", "PEER DOOR", "ZONE", "VERSION", "BLOBS", "ROUND TRIP", "STATE"}}
	self := info.Self
	self.State, self.RTT = "this node", 0
	for _, p := range append([]node.PeerInfo{self}, info.Peers...) {
		t.add(nodeText(p.PeerRef), p.Door, p.Zone, p.Version, countText(p.Blobs), roundTripText(p.RTT), p.State)
	}
	t.alignRight(4)
	t.alignRight(5)
	return t.write(w)
}

// compareRefs sorts nodes in the order of their names on the screen.
func compareRefs(a, b node.PeerRef) int {
	return cmp.Or(cmp.Compare(nodeText(a), nodeText(b)), cmp.Compare(a.Name, b.Name))
}

// nodeText is what people call a node.
func nodeText(p node.PeerRef) string { return cmp.Or(p.Host, p.Name) }

func countText(n int64) string {
	if n < 0 {
		return "-"
	}
	return strconv.FormatInt(n, 10)
}

func roundTripText(ms float64) string {
	switch {
	case ms <= 0:
		return "-"
	case ms < 0.1:
		return "<0.1 ms"
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}
