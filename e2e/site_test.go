//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pier/e2e/netns"
)

// A siteConfig describes nodes on a LAN and a registry beyond a WAN. The nodes call the registry registry.test.
type siteConfig struct {
	stores   []string     // of nodes 1, 2, …: a version of containerd or Docker, "cache" for a cache directory, "none" for neither
	docker   dockerConfig // of nodes that have one, but for where it runs; it pulls through the node's proxy
	trusted  []string     // PEM files of authorities that Docker trusts beside pier's, if by its environment
	proxied  bool         // containerd does, too, and not by its hosts.toml; it trusts what docker.caFor is about by its environment
	wan, lan netns.Link
	registry registryConfig

	args     []string             // further flags of every node
	nodeArgs func(k int) []string // and of node k. Nil: all are told of nodes 1 and 2
	address  bool                 // the nodes call the registry by its address
	past     bool                 // the runtimes may ask the registry themselves, past pier
	unlisted bool                 // pier is told nothing of it
	unjoined bool                 // not to wait until all have found each other
}

// A site is a running siteConfig.
type site struct {
	*netns.Site
	registry *registry
	nodes    []*siteNode
}

// A siteNode is pier beside its store, on one node of a site.
type siteNode struct {
	*pier
	number  int
	from    string // what it calls the registry
	place   *netns.Place
	runtime *containerd // nil if it has none
	docker  *docker     // nil if it has none
	cache   string      // directory; "" if it has none
	hosts   string      // containerd's registry configuration
}

// siteWait is how long what happens between nodes may take on a machine that is busy with other tests.
const siteWait = 30 * time.Second

// layOut makes a site with its registry, whose nodes are all still to be started.
func layOut(t *testing.T, nodes int, wan, lan netns.Link, registry registryConfig) *site {
	t.Helper()
	network, err := netns.New(t.Context(), netns.Config{Nodes: nodes, WAN: wan, LAN: lan})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	registry.at = network.Upstream()
	if registry.tokens {
		registry.token = startTokenServer(t, registry.ca, registry.at)
	}
	return &site{Site: network, registry: startRegistry(t, registry)}
}

// startSite starts a site, and waits until its nodes have found each other.
func startSite(t *testing.T, cfg siteConfig) *site {
	t.Helper()
	s := layOut(t, len(cfg.stores), cfg.wan, cfg.lan, cfg.registry)
	for k := range cfg.stores {
		s.startNode(t, cfg, k+1)
	}
	if !cfg.unjoined {
		for _, n := range s.nodes {
			s.awaitPeers(t, n)
		}
	}
	return s
}

// startNode starts what runs on node k.
func (s *site) startNode(t *testing.T, cfg siteConfig, k int) {
	t.Helper()
	n := &siteNode{number: k, from: "registry.test", place: s.Node(k)}
	upstreams := namedUpstream(n.from, s.registry.addr)
	if cfg.address {
		n.from, upstreams = s.registry.addr, plainUpstream(s.registry.addr)
		if cfg.registry.ca != nil {
			upstreams = fmt.Sprintf("- name: %s\n  tls: {ca: %s}\n", n.from, cfg.registry.ca.file)
		}
	}
	p := pierConfig{at: n.place, args: slices.Clone(cfg.args)}
	switch store := cfg.stores[k-1]; store {
	case "none":
	case classic, modern:
		n.startDocker(t, cfg, store, &p)
	case "cache":
		n.cache = t.TempDir()
		p.args = append(p.args, "--cache-dir", n.cache)
	default:
		n.runtime = startContainerd(t, store, n.place, n.proxyFor(t, cfg, &p)...)
		p.store, p.args = "containerd", append(p.args, n.runtime.pierArgs()...)
	}
	if cfg.nodeArgs != nil {
		p.args = append(p.args, cfg.nodeArgs(k)...)
	} else {
		p.args = append(p.args, "--peers", "10.77.0.1", "--peers", "10.77.0.2")
	}
	if !cfg.unlisted {
		p.upstreams = upstreams
	}
	n.pier = startPier(t, p)
	switch {
	case cfg.proxied:
		n.hosts = hostsDir(t, n.from, cfg.scheme()+"://"+n.from)
	case cfg.past:
		n.hosts = hostsDir(t, n.from, "http://"+s.registry.addr, n.node)
	default: // nobody listens: what arrives came through pier
		n.hosts = hostsDir(t, n.from, "http://"+n.place.HostPort(1), n.node)
	}
	s.nodes = append(s.nodes, n)
}

// node returns node k, counted from 1.
func (s *site) node(k int) *siteNode { return s.nodes[k-1] }

// name is what members call the node.
func (n *siteNode) name() string { return n.place.HostPort(7946) }

// client asks the node door for the registry's content, from the node itself.
func (n *siteNode) client() *client {
	c := newClient(n.node, n.from)
	c.http = n.http
	return c
}

// named is what the node calls app by a tag or a digest.
func (n *siteNode) named(reference string) string {
	if strings.Contains(reference, ":") {
		return n.from + "/app@" + reference
	}
	return n.from + "/app:" + reference
}

// tryPull pulls app by a tag or a digest the way the node does: by its runtime if it has one, else by a client that compares
// all there is with want.
func (n *siteNode) tryPull(t *testing.T, reference string, want *image, options ...string) error {
	if n.docker != nil {
		_, err := n.docker.try(t, "pull", "--quiet", n.named(reference))
		return err
	}
	if n.runtime == nil {
		return n.client().pull(t.Context(), "app", reference, want)
	}
	line := n.runtime.line(append(pullArgs(n.hosts, n.named(reference)), options...)...)
	_, err := tryRun(t, nil, line[0], line[1:]...)
	return err
}

func (n *siteNode) pull(t *testing.T, reference string, want *image, options ...string) {
	t.Helper()
	if err := n.tryPull(t, reference, want, options...); err != nil {
		t.Fatalf("node %d: pull of %s: %v", n.number, reference, err)
	}
}

// A pulling is a pull that runs on its own.
type pulling struct {
	node *siteNode
	done chan struct{} // closed when it ended
	err  error         // of the pull; to be read after done
}

func (n *siteNode) beginPull(t *testing.T, tag string, want *image, options ...string) *pulling {
	p := &pulling{node: n, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = n.tryPull(t, tag, want, options...)
	}()
	t.Cleanup(func() { <-p.done }) // its time is bounded, and the test's context has ended
	return p
}

// wait waits for the pull's end, and returns its error.
func (p *pulling) wait() error {
	<-p.done
	return p.err
}

// pullAll pulls on several nodes at once. All must succeed.
func pullAll(t *testing.T, tag string, want *image, nodes ...*siteNode) {
	t.Helper()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			if err := n.tryPull(t, tag, want); err != nil {
				t.Errorf("node %d: pull of %s: %v", n.number, tag, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// A peersAnswer is what a node says of its peers, and of itself.
type peersAnswer struct {
	Self   peerAnswer
	Peers  []peerAnswer
	Faults []string
}

type peerAnswer struct {
	Name, Host, Door, Zone, Version, State string
	Blobs                                  int64
	RTT                                    float64 `json:"rtt_ms"`
}

// A locateAnswer is what a node says of who has some content.
type locateAnswer struct {
	Content []struct {
		Digest  string
		Holders []peerAnswer
	}
}

// peers asks the node who its peers are. The names are of those that it thinks can be reached.
func (n *siteNode) peers(t *testing.T) (a peersAnswer, names []string) {
	t.Helper()
	fetchBy(t, n.http, n.node+"/api/v1/peers").decode(t, &a)
	for _, p := range a.Peers {
		if p.State == "up" {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	return a, names
}

// awaitPeers waits until the node has exactly these peers; none given means all other nodes that were started.
func (s *site) awaitPeers(t *testing.T, n *siteNode, want ...*siteNode) {
	t.Helper()
	s.awaitPeersWithin(t, siteWait, n, want...)
}

func (s *site) awaitPeersWithin(t *testing.T, within time.Duration, n *siteNode, want ...*siteNode) {
	t.Helper()
	if len(want) == 0 {
		want = slices.DeleteFunc(slices.Clone(s.nodes), func(other *siteNode) bool { return other == n })
	}
	var wanted []string
	for _, other := range want {
		wanted = append(wanted, other.name())
	}
	slices.Sort(wanted)
	eventually(t, within, func() error {
		if _, got := n.peers(t); !slices.Equal(got, wanted) {
			return fmt.Errorf("node %d has the peers %q, want %q", n.number, got, wanted)
		}
		return nil
	})
}

// holders asks node n who has a blob or manifest.
func (n *siteNode) holders(t *testing.T, b blob) (names []string) {
	t.Helper()
	a := fetchBy(t, n.http, n.node+"/api/v1/locate/"+b.Digest.String())
	if a.status == http.StatusNotFound {
		return nil
	}
	var located locateAnswer
	a.decode(t, &located)
	for _, content := range located.Content {
		if content.Digest != b.Digest.String() {
			continue
		}
		for _, holder := range content.Holders {
			names = append(names, holder.Name)
		}
	}
	return names
}

// awaitHolder waits until node n knows that all blobs and manifests of an image are at another node.
func (n *siteNode) awaitHolder(t *testing.T, holder *siteNode, want *image) {
	t.Helper()
	n.awaitHolderAt(t, holder.name(), want)
}

// awaitHolderAt is awaitHolder for the peer of that name.
func (n *siteNode) awaitHolderAt(t *testing.T, name string, want *image) {
	t.Helper()
	n.awaitHolderWithin(t, siteWait, name, want)
}

func (n *siteNode) awaitHolderWithin(t *testing.T, within time.Duration, name string, want *image) {
	t.Helper()
	for _, b := range slices.Concat(want.manifests, want.blobs) {
		eventually(t, within, func() error {
			if got := n.holders(t, b); !slices.Contains(got, name) {
				return fmt.Errorf("node %d thinks that %s (%d bytes) is at %q, want %s among them", n.number, b.Digest, b.Size, got, name)
			}
			return nil
		})
	}
}

// cutWAN, partition, heal and shapeLAN are those of netns, which fail the test.
func (s *site) cutWAN(t *testing.T) {
	t.Helper()
	must(t, s.CutWAN(t.Context()))
}

func (s *site) partition(t *testing.T, one, other []int) {
	t.Helper()
	must(t, s.Partition(t.Context(), one, other))
}

func (s *site) heal(t *testing.T) {
	t.Helper()
	must(t, s.Heal(t.Context()))
}

func (s *site) shapeLAN(t *testing.T, k int, l netns.Link) {
	t.Helper()
	must(t, s.ShapeLAN(t.Context(), k, l))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fetched returns how many bytes of payload have come through the WAN.
func (s *site) fetched(t *testing.T) int64 {
	t.Helper()
	_, down, err := s.WAN(t.Context())
	must(t, err)
	return down.Payload()
}

// awaitFetched waits until that many bytes have come through the WAN since there had been from. The pulls that fetch them
// must not have ended by then.
func (s *site) awaitFetched(t *testing.T, from, bytes int64, pulls ...*pulling) {
	t.Helper()
	eventually(t, siteWait, func() error {
		for _, p := range pulls {
			select {
			case <-p.done:
				t.Fatalf("the pull on node %d has ended already: %v", p.node.number, p.err)
			default:
			}
		}
		if got := s.fetched(t) - from; got < bytes {
			return fmt.Errorf("%d bytes have come through the WAN, want %d", got, bytes)
		}
		return nil
	})
}

// wantFetched fails the test if more than at most copies of an image have come through the WAN since there had been from.
func (s *site) wantFetched(t *testing.T, from int64, want *image, atMost float64) {
	t.Helper()
	got, size := s.fetched(t)-from, want.size()
	t.Logf("%d bytes came through the WAN: %.3f of an image of %d", got, float64(got)/float64(size), size)
	if float64(got) > atMost*float64(size) {
		t.Errorf("%.3f copies of the image came through the WAN, want at most %v", float64(got)/float64(size), atMost)
	}
}

// size is how many bytes all blobs and manifests have together.
func (i *image) size() (n int64) {
	for _, b := range slices.Concat(i.blobs, i.manifests) {
		n += b.Size
	}
	return n
}

// sum adds up a metric of the node over all its labels. One that is not there counts for 0.
func (n *siteNode) sum(t *testing.T, name string) (sum float64) {
	t.Helper()
	for line := range strings.Lines(string(fetchBy(t, n.http, n.metrics+"/metrics").body)) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		var value float64
		if _, err := fmt.Sscan(rest[strings.LastIndexByte(rest, ' ')+1:], &value); err != nil {
			t.Fatal(err)
		}
		sum += value
	}
	return sum
}
