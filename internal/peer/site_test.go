package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"pier/internal/chain"
	"pier/internal/directory"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
	"pier/internal/registry"
	"pier/internal/transfer"
)

// A site is nodes that know each other, and one registry. Each node is real from its engine to its peer door; the registry and what
// carries the messages of the directory are in memory. In a bubble of synctest the doors are, too: time is exact there,
// and costs nothing.
type site struct {
	t    *testing.T
	real bool // doors on loopback, and the machine's own clock
	up   *upstream
	log  *slog.Logger

	pipes  pipes
	before int            // goroutines
	mail   sync.WaitGroup // messages on their way

	mu    sync.Mutex // guards all below
	nodes []*node
	lost  func(from, to *node) bool // messages that do not arrive; nil: none
}

// latency is how long a message of the directory takes.
const latency = time.Millisecond

// A node is one node of a site.
type node struct {
	*Source
	site    *site
	name    string
	id      directory.ID
	zone    string
	dir     *directory.Directory
	engine  *transfer.Engine
	store   *shelf
	door    *door
	doubted chan directory.Key
	dead    bool // guarded by site.mu
}

// An option changes the configuration of one node, before it is started.
type option func(n *node, c *Config)

// bubble runs a test on a site of n nodes that share one virtual clock. At its end no goroutine and no open connection may be
// left.
func bubble(t *testing.T, n int, test func(t *testing.T, s *site), options ...option) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &site{t: t}
		s.open(n, options)
		test(t, s)
		s.close()
	})
}

// onLoopback returns a site whose doors are on loopback, on the machine's own clock.
func onLoopback(t *testing.T, n int, options ...option) *site {
	t.Helper()
	s := &site{t: t, real: true, before: runtime.NumGoroutine()}
	s.open(n, options)
	t.Cleanup(s.close)
	return s
}

func (s *site) open(n int, options []option) {
	s.log = slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		s.log = slog.New(slog.NewTextHandler(s.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	s.up = newUpstream()
	s.pipes.listeners = make(map[string]*pipeListener)
	for i := range n {
		s.start(fmt.Sprintf("node-%d", i), options)
	}
	s.meet()
}

// start adds a node that nobody knows yet.
func (s *site) start(name string, options []option) *node {
	n := &node{site: s, name: name, id: directory.IDOf(name), doubted: make(chan directory.Key, 16)}
	n.door = &door{t: s.t}
	c := Config{Upstream: view{s.up, name}, Find: s.find, Log: s.log.With("node", name), Metrics: metrics.NewSet()}
	for _, o := range options {
		o(n, &c)
	}
	n.dir = directory.New(directory.Config{
		Self: directory.Member{ID: n.id, Zone: n.zone}, Send: func(to directory.ID, msg []byte) { s.send(n, to, msg) },
		Doubted: func(key directory.Key) { n.doubted <- key }, Log: c.Log,
	})
	c.Directory, c.Zone = n.dir, n.zone
	n.store = &shelf{Memory: &ocitest.Memory{Name: "cache"}, dir: s.t.TempDir(), kept: n.announce}
	if c.Runtime && c.Local == nil {
		c.Local = n.store
	}
	n.Source = New(c)
	if !s.real {
		n.client.Transport.(*pooled).DialContext = s.pipes.dial
	}
	n.engine = transfer.New(transfer.Config{Source: n.Source, Store: n.store, Timeout: 20 * time.Second, Log: c.Log})
	local := chain.First(c.Log, n.store, n.engine.InFlight())
	if c.Local != nil {
		local = chain.First(c.Log, n.store, c.Local, n.engine.InFlight())
	}
	n.door.content = registry.New(registry.Config{Source: local, Door: "peer", Log: slog.New(slog.DiscardHandler)})
	n.door.open(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes = append(s.nodes, n)
	return n
}

// pooled is what a Source's client reaches doors through.
type pooled = httpTransport

// meet tells all nodes that live of each other.
func (s *site) meet() {
	var members []directory.Member
	for _, n := range s.living() {
		members = append(members, directory.Member{ID: n.id, Zone: n.zone})
	}
	for _, n := range s.living() {
		n.dir.SetMembers(directory.Member{ID: n.id, Zone: n.zone}, members)
	}
}

func (s *site) living() (list []*node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		if !n.dead {
			list = append(list, n)
		}
	}
	return list
}

func (s *site) node(id directory.ID) *node {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

// find is how Sources find doors. Nobody is told of the dead.
func (s *site) find(id directory.ID) (Peer, bool) {
	n := s.node(id)
	if n == nil {
		return Peer{}, false
	}
	return Peer{Name: n.name, Door: n.door.addr, TLS: n.door.tls != nil, Zone: n.zone}, true
}

// send carries a message of the directory.
func (s *site) send(from *node, to directory.ID, msg []byte) {
	target := s.node(to)
	s.mu.Lock()
	defer s.mu.Unlock()
	if target == nil || from.dead || s.lost != nil && s.lost(from, target) {
		return
	}
	s.mail.Go(func() {
		time.Sleep(latency)
		s.mu.Lock()
		dead := target.dead
		s.mu.Unlock()
		if !dead {
			target.dir.Receive(msg)
		}
	})
}

// losing has messages of the directory lost from now on.
func (s *site) losing(lost func(from, to *node) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = lost
}

// announce tells the directory that a node holds content.
func (n *node) announce(refs ...oci.Reference) {
	keys := make([]directory.Key, len(refs))
	for i, ref := range refs {
		keys[i] = directory.KeyOf(ref)
	}
	n.dir.Hold(keys, nil)
}

// settle lets announcements arrive.
func (s *site) settle() { time.Sleep(300 * time.Millisecond) }

// kill ends a node as a power failure does. Nobody is told.
func (s *site) kill(n *node) {
	s.mu.Lock()
	gone := n.dead
	n.dead = true
	s.mu.Unlock()
	if gone {
		return
	}
	n.door.close()
	n.end()
}

// end ends what a node does.
func (n *node) end() {
	t := n.site.t
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := n.engine.Close(ctx); err != nil {
		t.Errorf("%s: %v", n.name, err)
	}
	n.Source.Close()
	n.dir.Close()
	if left := len(n.parts); left > 0 {
		t.Errorf("%s: %d parts are still in memory after everybody who read them has ended", n.name, left)
	}
}

// close ends all nodes, and makes sure that nothing goes on.
func (s *site) close() {
	s.t.Helper()
	living := s.living()
	for _, n := range living {
		n.end()
	}
	s.mail.Wait()
	for _, n := range living {
		if !soon(func() bool { return n.door.active() == 0 }) {
			s.t.Errorf("%s: requests are still under way after everybody who asked has ended", n.name)
		}
		n.door.close()
	}
	if !s.real {
		time.Sleep(2 * time.Second) // for what was being looked up; what remains is a deadlock of the bubble
		return
	}
	if !soon(func() bool { return runtime.NumGoroutine() <= s.before }) {
		buf := make([]byte, 1<<20)
		s.t.Errorf("%d goroutines were there before, %d after:\n%s", s.before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
	}
}

// soon waits until a condition holds, at most a few seconds.
func soon(condition func() bool) bool {
	for range 1000 {
		if condition() {
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return condition()
}

// until waits until a condition holds.
func (s *site) until(what string, condition func() bool) {
	s.t.Helper()
	for range 20_000 {
		if condition() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.t.Fatalf("it did not come to be that %s", what)
}

// blobRef returns the reference of content.
func blobRef(content []byte) oci.Reference {
	return oci.Reference{Registry: registryName, Repository: "team/app", Kind: oci.Blob, Digest: ocitest.Digest(content)}
}

// has gives a node content, and tells the site.
func (n *node) has(content []byte) oci.Reference {
	ref := blobRef(content)
	n.store.AddAs(ref.Digest, "application/octet-stream", content)
	n.announce(ref)
	return ref
}

// lies gives a node wrong content for a reference, and tells the site.
func (n *node) lies(ref oci.Reference, content []byte) {
	n.store.AddAs(ref.Digest, "application/octet-stream", content)
	n.announce(ref)
}

// pull reads all of ref at a node, as a client does.
func (n *node) pull(ref oci.Reference) ([]byte, error) {
	b, _, err := ocitest.ReadAll(n.site.t.Context(), n.engine, ref)
	return b, err
}

// gets pulls content and reports what is wrong with it.
func (n *node) gets(content []byte) {
	t := n.site.t
	t.Helper()
	begun := time.Now()
	b, err := n.pull(blobRef(content))
	switch {
	case err != nil:
		t.Errorf("%s: after %s and %d bytes: %v", n.name, time.Since(begun), len(b), err)
	case !bytes.Equal(b, content):
		t.Errorf("%s: wrong content ended cleanly", n.name)
	}
}

// within pulls content and makes sure that it takes no longer than it may.
func (n *node) within(most time.Duration, content []byte) {
	n.site.t.Helper()
	begun := time.Now()
	n.gets(content)
	if took := time.Since(begun); took > most {
		n.site.t.Errorf("%s: the pull took %s, want at most %s", n.name, took, most)
	}
}

// received returns how many bytes a node read from another.
func (n *node) received(from *node) int {
	return int(n.c.Metrics.GetOrCreateCounter(fmt.Sprintf("pier_peer_received_bytes_total{peer=%q}", from.name)).Get())
}

// left returns how often a node left a neighbour for a reason.
func (n *node) left(reason string) int { return int(n.meter.left[reason].Get()) }

// zones puts nodes in zones, in the order in which they start; those beyond the last are in none.
func zones(names ...string) option {
	next := 0
	return func(n *node, _ *Config) {
		if next < len(names) {
			n.zone = names[next]
		}
		next++
	}
}

func airGapped(_ *node, c *Config) { c.Upstream = nil }

// wantClass reports an error that is not of a class.
func wantClass(t *testing.T, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("got error %v, want %v", err, class)
	}
}
