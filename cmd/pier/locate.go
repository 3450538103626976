package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"pier/internal/node"
	"pier/internal/oci"
)

func locateCommand() *cobra.Command {
	var a asker
	cmd := &cobra.Command{
		Use:   "locate DIGEST|REFERENCE",
		Short: "List the nodes that hold an image, or one blob or manifest",
		Long: `List the nodes that hold the content of a digest, or the image of a reference with all that it
consists of. The exit status is 1 if no node holds it, or some part of it, or if the node that is asked does
not know what it consists of.

At its node door a node asks the registry what a tag names now, and fetches and keeps the manifest, as for
a pull. At its metrics door it only says what it and its peers know.`,
		Example: `  pier locate docker.io/library/alpine:3.20
  pier locate sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return usageError{errors.New("locate wants one digest or reference; see 'pier locate --help'")}
			}
			return checkDigest(args[0])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var info node.LocateInfo
			raw, err := a.get(cmd.Context(), "locate", args[0], &info)
			if errors.Is(err, errUnknown) {
				return nobodyHolds(args[0])
			}
			if err != nil {
				return err
			}
			if a.asJSON {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", raw)
			} else {
				err = printLocations(cmd.OutOrStdout(), info)
			}
			if err != nil {
				return err
			}
			return missingError(args[0], info)
		},
	}
	a.register(cmd)
	return cmd
}

// checkDigest reports what begins as a digest and is none. People shorten them, as other tools allow.
func checkDigest(arg string) error {
	for algorithm, digits := range map[string]int{"sha256": 64, "sha512": 128} {
		if _, err := oci.ParseDigest(arg); err != nil && strings.HasPrefix(arg, algorithm+":") {
			return usageError{fmt.Errorf("%.200q is no digest: write all of its %d hexadecimal digits, in lower case", arg, digits)}
		}
	}
	return nil
}

// missingError returns an error if there is content that nobody holds, or might be.
func missingError(asked string, info node.LocateInfo) error {
	missing, coming := 0, false
	for _, c := range info.Content {
		if len(c.Holders) == 0 {
			missing++
		}
		coming = coming || len(c.Receiving)+len(c.Fetching) > 0
	}
	switch missing {
	case len(info.Content):
		if coming {
			return fmt.Errorf("nobody holds %.300q yet: it is on its way", asked)
		}
		return nobodyHolds(asked)
	case 0:
		if info.Partial != "" {
			return fmt.Errorf("what else belongs to %.300q is not known here: ask a node that holds it, with --node URL, or pull it through this one", asked)
		}
		return nil
	}
	return fmt.Errorf("nobody holds %d of the %d parts of %.300q yet", missing, len(info.Content), asked)
}

func nobodyHolds(asked string) error {
	return fmt.Errorf("nobody holds %.300q; pull it through a node that reaches its registry", asked)
}

// A location is what one node has of the content asked for.
type location struct {
	node.PeerRef
	whole     int   // how many digests it holds
	bytes     int64 // of all digests together, also of those it does not hold to the end
	unsized   bool  // bytes is not known
	receiving bool
	fetching  bool
}

// state is what a node is said to do. Parts is how many there are, all of them or not.
func (l *location) state(parts int, all bool) string {
	switch {
	case l.whole == parts && all:
		return "complete"
	case l.fetching:
		return "fetching from upstream"
	case l.receiving:
		return "receiving"
	}
	return "part"
}

// locations turns the answer around: from who has some content to what a node has. Those that have most come first.
func locations(info node.LocateInfo) []*location {
	byName := make(map[string]*location)
	at := func(p node.PeerRef) *location {
		l := byName[p.Name]
		if l == nil {
			l = &location{PeerRef: p}
			byName[p.Name] = l
		}
		return l
	}
	for _, c := range info.Content {
		for _, p := range c.Holders {
			l := at(p)
			l.whole++
			l.bytes += max(c.Size, 0)
			l.unsized = l.unsized || c.Size < 0
		}
		for _, r := range c.Receiving {
			l := at(r.Peer)
			l.receiving = true
			l.bytes += r.Offset
		}
		for _, p := range c.Fetching {
			at(p).fetching = true
		}
	}
	var list []*location
	for _, l := range byName {
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b *location) int {
		return cmp.Or(cmp.Compare(b.whole, a.whole), cmp.Compare(b.bytes, a.bytes), compareRefs(a.PeerRef, b.PeerRef))
	})
	return list
}

func printLocations(w io.Writer, info node.LocateInfo) error {
	if _, err := fmt.Fprintln(w, headline(info)); err != nil {
		return err
	}
	for _, c := range info.Content {
		if len(c.Holders) == 0 && len(info.Content) > 1 {
			fmt.Fprintf(w, "nobody holds %s %s%s\n", c.Kind, c.Digest, sizeSuffix(c.Size))
		}
	}
	list, parts := locations(info), len(info.Content)
	if len(list) == 0 {
		return nil
	}
	t := table{{"NODE", "PEER DOOR", "ZONE", "PARTS", "SIZE", "STATE"}}
	for _, l := range list {
		size := sizeText(l.bytes)
		if l.unsized {
			size = "-"
		}
		t.add(nodeText(l.PeerRef), l.Door, l.Zone, fmt.Sprintf("%d/%d", l.whole, parts), size, l.state(parts, info.Partial == ""))
	}
	t.alignRight(3)
	t.alignRight(4)
	fmt.Fprintln(w)
	return t.write(w)
}

// headline says what was found: the full name, how many parts and bytes.
func headline(info node.LocateInfo) string {
	why := ""
	if info.Partial != "" {
		why = ": " + printable(info.Partial)
	}
	if len(info.Content) == 1 {
		kind := cmp.Or(printable(info.Content[0].Kind), "content")
		if why != "" {
			kind += " only"
		}
		return printable(info.Ref) + ": " + kind + sizeSuffix(info.Content[0].Size) + why
	}
	var bytes int64
	for _, c := range info.Content {
		if c.Size < 0 {
			bytes = -1
			break
		}
		bytes += c.Size
	}
	return fmt.Sprintf("%s: %d parts%s%s", printable(info.Ref), len(info.Content), sizeSuffix(bytes), why)
}

func sizeSuffix(n int64) string {
	if n < 0 {
		return ""
	}
	return ", " + sizeText(n)
}
