package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// sharing is the suite of nodes that share.
type sharing struct {
	*bench
	set   sharingSettings
	nginx string
	curl  string
	key   string // file of a cluster key

	image image // what is transferred
	other image // what a node receives while it serves the first
}

// sharingSettings say how much is measured of nodes that share.
type sharingSettings struct {
	layer   int64         // bytes of either image's layer
	rounds  int           // repeats of a transfer
	serving int           // repeats of serving and receiving at once
	members int           // nodes that idle together
	rest    time.Duration // before they are watched
	watch   time.Duration // for so long
}

func sharingSettingsOf(quick bool) sharingSettings {
	if quick {
		return sharingSettings{layer: 30 * mb, rounds: 2, serving: 1, members: 4, rest: 3 * time.Second, watch: 3 * time.Second}
	}
	return sharingSettings{layer: 300 * mb, rounds: 7, serving: 3, members: 10, rest: 20 * time.Second, watch: 30 * time.Second}
}

func peersSuite() suite {
	return suite{
		name: "peers", title: "Nodes that share", command: "make bench-peers", takes: "five minutes", timeout: 12 * time.Minute,
		parts: []string{"transfer", "serving", "idle"}, measure: measureSharing,
		reading: `- Everything is on the loopback interface, and shares the processors; nodes are at addresses of their own, and know each other
  by gossip. CPU time is that of the named process alone, with what the kernel does on its behalf.
- A **transfer** is from node A, which has the blob in its cache, to node B, which is new each time. B receives, digests and
  spools to disk whatever it passes on, so what it does alone is compared with a curl that writes to a file; a curl that
  throws away what it gets neither digests nor writes.
- B receiving by itself: a client asks for the last byte of the blob. It gets it once the whole has arrived and is proven.
- Readers of a node that serves and receives at once discard what they get, in the kernel where there is no TLS, and ask
  again without a pause: as fast as it goes, for as long as the node receives.
- Idle nodes are all members of one cluster on one machine. A core is one second of CPU time per second.
`,
	}
}

func measureSharing(ctx context.Context, b *bench) (err error) {
	s := &sharing{bench: b, set: sharingSettingsOf(b.quick)}
	if err := b.build(ctx); err != nil {
		return err
	}
	if s.nginx, err = b.tool(ctx, "nginx", "-v"); err != nil {
		return err
	}
	if s.curl, err = b.tool(ctx, "curl", "--version"); err != nil {
		return err
	}
	key, err := exec.CommandContext(ctx, b.pier, "key", "new").Output()
	if err != nil {
		return fmt.Errorf("pier key new: %w", err)
	}
	s.key = filepath.Join(b.dir, "cluster.key")
	if err := os.WriteFile(s.key, key, 0o600); err != nil {
		return err
	}
	images, err := b.startUpstream(ctx, []int64{s.set.layer}, []int64{s.set.layer + 1})
	if err != nil {
		return err
	}
	s.image, s.other = images[0], images[1]
	defer func() { err = errors.Join(err, b.upstream.stop()) }()
	return b.measure(ctx, []part{{"transfer", s.transfer}, {"serving", s.serving}, {"idle", s.idle}})
}

// A wire is how nodes talk to each other.
type wire struct {
	name string
	key  string // file of the cluster key; empty: plain
}

func (s *sharing) wires() []wire { return []wire{{"plain", ""}, {"with a cluster key", s.key}} }

// holder starts a node that has an image in its cache, and has proven it.
func (s *sharing) holder(ctx context.Context, w wire, join *node, i image) (*node, error) {
	n, err := s.startNode(ctx, nodeConfig{cached: true, shares: true, key: w.key, join: join})
	if err != nil {
		return nil, err
	}
	for range 2 {
		if _, err := pullImage(ctx, n.server, i); err != nil {
			return nil, errors.Join(err, n.stop())
		}
	}
	return n, nil
}
