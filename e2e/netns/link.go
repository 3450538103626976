package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// A Rate is in bits per second. 0 means as fast as the machine can.
type Rate int64

// Common units of a Rate.
const (
	Kbit Rate = 1000
	Mbit      = 1000 * Kbit
	Gbit      = 1000 * Mbit
)

// BytesPerSecond returns the rate in bytes per second.
func (r Rate) BytesPerSecond() int64 { return int64(r) / 8 }

// A Link says how fast a link is in either direction, headers included.
type Link struct{ Up, Down Rate }

// A Count is what has passed a link in one direction.
type Count struct {
	Bytes   int64 // as the link carries them, with the headers of Ethernet, IP and TCP
	Packets int64
}

// Sub returns what has passed since an earlier count.
func (c Count) Sub(earlier Count) Count {
	return Count{c.Bytes - earlier.Bytes, c.Packets - earlier.Packets}
}

// headers are the bytes of a TCP segment over IPv4 that are not payload: 14 of Ethernet, 20 of IP, 20 of TCP and 12 of its
// timestamps. At an MTU of 1500 they are 4.6 % on top of what is carried.
const headers = 14 + 20 + 20 + 12

// Payload returns about how many bytes TCP carried. It is what can be compared with the size of a file.
func (c Count) Payload() int64 { return max(0, c.Bytes-headers*c.Packets) }

// A port is the sending end of a link: one direction of it.
type port struct {
	at     *Place
	device string
}

// prepare gives the port its queues: a token bucket that shapes and counts, before it a queue, and beside the queue a hole
// that loses what filters send there. The classes limit nothing.
func (p port) prepare(ctx context.Context) error {
	rate, queue := bucket(0)
	return p.at.tc(ctx,
		fmt.Sprintf("qdisc add dev %s root handle 1: %s", p.device, rate),
		fmt.Sprintf("qdisc add dev %s parent 1:1 handle 10: htb default 1", p.device),
		fmt.Sprintf("class add dev %s parent 10: classid 10:1 htb rate 100gbit quantum 60000", p.device),
		fmt.Sprintf("class add dev %s parent 10: classid 10:2 htb rate 100gbit quantum 60000", p.device),
		fmt.Sprintf("qdisc add dev %s parent 10:1 handle 11: %s", p.device, queue),
		fmt.Sprintf("qdisc add dev %s parent 10:2 handle 12: blackhole", p.device))
}

// shape sets the port's rate. Its count goes on.
func (p port) shape(ctx context.Context, r Rate) error {
	rate, queue := bucket(r)
	return p.at.tc(ctx,
		fmt.Sprintf("qdisc change dev %s root handle 1: %s", p.device, rate),
		fmt.Sprintf("qdisc change dev %s parent 10:1 handle 11: %s", p.device, queue))
}

// bucket returns the queueing disciplines for a rate: 10 ms worth of bytes at once, and no less than the 64 KiB that veth
// takes for one packet; 50 ms in the queue, as in a good router.
func bucket(r Rate) (rate, queue string) {
	if r == 0 {
		r = 100 * Gbit
	}
	burst := max(72<<10, r.BytesPerSecond()/100)
	return fmt.Sprintf("tbf rate %dbit burst %d latency 50ms", r, burst), fmt.Sprintf("bfifo limit %d", burst+r.BytesPerSecond()/20)
}

// lose makes the port lose what the u32 matches select, and nothing else. They are given in full each time; none mends it.
func (p port) lose(ctx context.Context, matches ...string) error {
	lines := []string{fmt.Sprintf("filter del dev %s parent 10:", p.device)} // all of them, or none
	for _, m := range matches {
		lines = append(lines, fmt.Sprintf("filter add dev %s parent 10: protocol all prio 1 u32 match %s flowid 10:2", p.device, m))
	}
	return p.at.tc(ctx, lines...)
}

// count returns what has passed the port, without what it lost on purpose.
func (p port) count(ctx context.Context) (Count, error) {
	out, err := output(ctx, nil, "tc", "-n", p.at.name, "-s", "-j", "qdisc", "show", "dev", p.device)
	if err != nil {
		return Count{}, err
	}
	var disciplines []struct {
		Root           bool
		Bytes, Packets int64
	}
	if err := json.Unmarshal(out, &disciplines); err != nil {
		return Count{}, fmt.Errorf("tc qdisc show: %w: %.200s", err, out)
	}
	for _, d := range disciplines {
		if d.Root {
			return Count{d.Bytes, d.Packets}, nil
		}
	}
	return Count{}, fmt.Errorf("tc qdisc show: %s has no root: %.200s", p.device, out)
}

// ShapeWAN sets the rates of the WAN.
func (s *Site) ShapeWAN(ctx context.Context, l Link) error {
	return errors.Join(s.up.shape(ctx, l.Up), s.down.shape(ctx, l.Down))
}

// CutWAN makes the WAN lose everything, in both directions. Nobody is told: connections hang, and new ones are not refused.
func (s *Site) CutWAN(ctx context.Context) error {
	return errors.Join(s.up.lose(ctx, "u32 0 0"), s.down.lose(ctx, "u32 0 0"))
}

// MendWAN undoes CutWAN.
func (s *Site) MendWAN(ctx context.Context) error {
	return errors.Join(s.up.lose(ctx), s.down.lose(ctx))
}

// WAN returns what has crossed the WAN so far: from the site, and to it.
func (s *Site) WAN(ctx context.Context) (up, down Count, err error) {
	up, err1 := s.up.count(ctx)
	down, err2 := s.down.count(ctx)
	return up, down, errors.Join(err1, err2)
}

// lanPorts are the two ends of node k's link: its own, for what it sends, and the switch's, for what it gets.
func (s *Site) lanPorts(k int) [2]port {
	return [2]port{{s.Node(k), "eth0"}, {s.sw, fmt.Sprintf("v%d", k)}}
}

// ShapeLAN sets the rates of the link of node k.
func (s *Site) ShapeLAN(ctx context.Context, k int, l Link) error {
	ports := s.lanPorts(k)
	return errors.Join(ports[0].shape(ctx, l.Up), ports[1].shape(ctx, l.Down))
}

// LAN returns what has passed the link of node k so far: from the node, and to it.
func (s *Site) LAN(ctx context.Context, k int) (up, down Count, err error) {
	ports := s.lanPorts(k)
	up, err1 := ports[0].count(ctx)
	down, err2 := ports[1].count(ctx)
	return up, down, errors.Join(err1, err2)
}

// Partition severs every node of one group from every node of the other, in both directions, multicast included. Frames
// between them vanish; nothing is refused. Partitions add up until Heal. Upstream stays reachable from both.
func (s *Site) Partition(ctx context.Context, one, other []int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range one {
		for _, b := range other {
			if a != b {
				s.severed[[2]int{min(a, b), max(a, b)}] = true
			}
		}
	}
	return s.sever(ctx)
}

// Heal undoes every Partition.
func (s *Site) Heal(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.severed)
	return s.sever(ctx)
}

// sever makes the switch lose, on its way to each node, what comes from those it is severed from. The caller holds mu.
func (s *Site) sever(ctx context.Context) error {
	from := make(map[int][]string)
	for pair := range s.severed {
		from[pair[0]] = append(from[pair[0]], "ether src "+mac(pair[1]))
		from[pair[1]] = append(from[pair[1]], "ether src "+mac(pair[0]))
	}
	var errs []error
	for k := range s.nodes {
		slices.Sort(from[k+1])
		errs = append(errs, s.lanPorts(k + 1)[1].lose(ctx, from[k+1]...))
	}
	return errors.Join(errs...)
}
