package main

import (
	"fmt"
	"strings"
	"time"
)

// markdown is the document for people.
func (d *document) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Scale

**A simulation**, not a measurement of nodes: made and written by `+"`make sim`"+`. Do not edit: run it.

- Date: %s; the simulation took %s
- Machine: %s
- Seed of the models: %d. Directories have chance of their own, so that another run differs a little.

## Look-ups, messages and memory

%s
## Roll-outs

Every node wants the same blob of 256 MiB, which nobody has.

%s
`, d.date.Format("2006-01-02 15:04 MST"), d.took.Round(time.Second), machine(), d.seed, d.steady(), d.rollouts())
	b.WriteString(reading)
	return b.String()
}

const reading = `## How to read this

**Real** is package ` + "`directory`" + `, every byte of its messages included: one Directory for each node, on a virtual clock. Who
coordinates what, announcements, look-ups, leases, the tree of receivers and reports of progress are its code.

**Models** are:

- the network: a message takes 0.2 ms to 1 ms, one in 1,000 is lost, and each counts for 28 bytes more than it has (IP and UDP);
  none waits for another;
- membership: 1 % of the nodes crash each minute, and as many join. Each node hears of a join by itself within 1 s; a crash is
  found out 5 s to 11 s after it happened, and each node hears of that within 1 s more. Until then views differ;
- content: 500 digests on each node, drawn from 50 for each node there is by Zipf's law (s = 1.1, v = 10). Each node looks for
  one, drawn likewise, every 5 s on average, as a pull does that ends after a second; a tenth of the look-ups are for what nobody has;
- transfers: as package ` + "`peer`" + ` has them, with its constants, but from one source at a time; a door that is asked for what is about to
  arrive waits 500 ms for it; and a source that is there but gives nothing is left after 2 s if others have more. Links are
  shared evenly; bytes move every 20 ms, and so from node to node. The registry's first byte takes 150 ms. The WAN has
  200 Mbit/s in all, a node 1 Gbit/s each way, but where the table says otherwise.

**Not modelled** are the messages of the gossip itself, with their share of encryption and headers; processor time; disks; the time to
digest; zones (all nodes are in one); clients; several transfers at once; TCP.

- A look-up has missed a deadline when it took longer than 20 ms; all others took one round trip to the coordinators.
- What another node has is not found where all who held it crashed, or just joined, or where its record was lost or moves.
- The steady state is measured for ten minutes of virtual time with 100 nodes, less with more, and 30 s with 10,000.
- Messages and bytes are those sent and those received, by nodes that were there from beginning to end, look-ups included.
- Memory is what the heap grew by, divided by the nodes: with timers and messages under way. The list of members is shared
  between nodes here, and not in it; in a process of its own each has one, of 24 bytes a member.
- A WAN copy is the size of the blob in bytes from the registry. Fetches begun are nodes that turned to the registry, one after
  another where a fetcher crashed.
- The bound is the greatest of: the blob over the WAN; over one node's link; over all links up, once for each node; and, where the
  nodes begin over a time, that time and the blob over one link: the last of a few nodes begins a little before the end, and may
  so be a little faster. Where nodes crash the bound allows nothing for it.
- Where the WAN is as fast as the LAN a node's uplink is the limit, and it has two readers: the tree takes twice the bound.
`
