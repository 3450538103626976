package directory

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const latency = time.Millisecond // one way, of the test's network

// A network carries the messages of nodes that know each other, on the clock of the bubble it is made in.
type network struct {
	t *testing.T

	mu    sync.Mutex // guards all below
	nodes []*node    // as they came
	dead  map[ID]bool
	lose  func(from, to ID, k kind) bool // nil: nothing is lost
	sent  map[kind]int
}

// A node is a Directory on the network.
type node struct {
	*Directory
	Member
	net *network
}

// newNetwork returns a network of n nodes, node i of zones[i%len(zones)].
func newNetwork(t *testing.T, n int, zones ...string) *network {
	t.Helper()
	net := &network{t: t, dead: make(map[ID]bool), sent: make(map[kind]int)}
	t.Cleanup(func() {
		for _, n := range net.nodes {
			n.Close()
		}
	})
	for i := range n {
		zone := ""
		if len(zones) > 0 {
			zone = zones[i%len(zones)]
		}
		net.start(fmt.Sprintf("node-%d", i), zone)
	}
	net.meet()
	return net
}

// start adds a node that knows nobody yet.
func (net *network) start(name, zone string) *node {
	n := &node{Member: Member{ID: IDOf(name), Zone: zone}, net: net}
	n.Directory = New(Config{Self: n.Member, Send: func(to ID, msg []byte) { net.send(n.ID, to, msg) }})
	net.mu.Lock()
	defer net.mu.Unlock()
	net.nodes = append(net.nodes, n)
	return n
}

// members returns all that live.
func (net *network) members() (all []Member) {
	net.mu.Lock()
	defer net.mu.Unlock()
	for _, n := range net.nodes {
		if !net.dead[n.ID] {
			all = append(all, n.Member)
		}
	}
	return all
}

// meet tells all that live of each other.
func (net *network) meet() {
	members := net.members()
	for _, m := range members {
		n := net.node(m.ID)
		n.SetMembers(n.Member, members)
	}
}

func (net *network) node(id ID) *node {
	net.mu.Lock()
	defer net.mu.Unlock()
	for _, n := range net.nodes {
		if n.ID == id {
			return n
		}
	}
	return nil
}

// kill has a node neither send nor receive from now on. Nobody is told.
func (net *network) kill(ids ...ID) {
	net.mu.Lock()
	defer net.mu.Unlock()
	for _, id := range ids {
		net.dead[id] = true
	}
}

func (net *network) losing(lose func(from, to ID, k kind) bool) {
	net.mu.Lock()
	defer net.mu.Unlock()
	net.lose = lose
}

// count returns how many messages of a kind were sent since it was asked last.
func (net *network) count(k kind) int {
	net.mu.Lock()
	defer net.mu.Unlock()
	n := net.sent[k]
	net.sent[k] = 0
	return n
}

func (net *network) send(from, to ID, msg []byte) {
	if len(msg) > MaxMessage {
		net.t.Errorf("message of %d bytes, want at most %d", len(msg), MaxMessage)
	}
	net.mu.Lock()
	defer net.mu.Unlock()
	k := kind(msg[0])
	net.sent[k]++
	if net.dead[from] || net.lose != nil && net.lose(from, to, k) {
		return
	}
	time.AfterFunc(latency, func() {
		if n := net.node(to); n != nil && !net.isDead(to) {
			n.Receive(msg)
		}
	})
}

func (net *network) isDead(id ID) bool {
	net.mu.Lock()
	defer net.mu.Unlock()
	return net.dead[id]
}

// losses loses one message in n, the same ones each time.
func losses(n int) func(ID, ID, kind) bool {
	r := rand.New(rand.NewPCG(1, 2))
	return func(ID, ID, kind) bool { return r.IntN(n) == 0 }
}

// key returns a key of its own for every i.
func testKey(i int) (k Key) {
	r := rand.New(rand.NewPCG(uint64(i), 3))
	binary.LittleEndian.PutUint64(k[:8], r.Uint64())
	binary.LittleEndian.PutUint64(k[8:], r.Uint64())
	return k
}

// coordinators returns those of a key among all that live, first one first.
func (net *network) coordinators(k Key) (nodes []*node) {
	var r ranking
	for _, m := range net.members() {
		r.add(m.ID, score(m.ID, k))
	}
	for _, id := range r.members() {
		nodes = append(nodes, net.node(id))
	}
	return nodes
}

// others returns the nodes that are not coordinators of k.
func (net *network) others(k Key) (nodes []*node) {
	for _, m := range net.members() {
		if n := net.node(m.ID); !n.Directory.coordinates(k) {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

func (d *Directory) coordinates(k Key) bool {
	d.lock()
	defer d.unlock()
	r := d.rank(k)
	return r.contains(d.self.ID)
}

// holders returns those that a node has a record of.
func (n *node) holders(k Key) (ids []ID) {
	n.lock()
	defer n.unlock()
	if r := n.records[k]; r != nil {
		for _, h := range r.holders {
			ids = append(ids, h.id)
		}
	}
	return ids
}

// lookup asks, and returns how long that took.
func (n *node) lookup(w Want) (Answer, time.Duration) {
	n.net.t.Helper()
	begun := time.Now()
	a, err := n.Lookup(n.net.t.Context(), w)
	if err != nil {
		n.net.t.Fatal(err)
	}
	return a, time.Since(begun)
}

// receive asks as who is about to receive content does.
func (n *node) receive(k Key, offset int64, failed ...ID) Answer {
	n.net.t.Helper()
	a, _ := n.lookup(Want{Key: k, Offset: offset, Join: true, Fetch: true, Failed: failed})
	return a
}

// settle lets all that is under way, but for what is periodic, come to its end.
func settle() {
	time.Sleep(2 * time.Second)
	synctest.Wait()
}
