package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pier/internal/config"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
	"pier/internal/registry"
)

// A site is a registry, and nodes of this process that may ask it.
type site struct {
	t         *testing.T
	content   ocitest.Memory // of the registry
	asked     atomic.Int64   // requests that the registry was sent
	gone      atomic.Bool    // it answers none
	host      string         // the registry's
	upstreams string         // file that lists it

	mu     sync.Mutex                   // guards slowed
	slowed map[oci.Digest]chan struct{} // blobs that the registry gives slowly until the channel is closed
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, slowed: make(map[oci.Digest]chan struct{})}
	handler := registry.New(registry.Config{Source: throttled{&s.content, s}})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		if s.gone.Load() {
			panic(http.ErrAbortHandler)
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	s.host = strings.TrimPrefix(srv.URL, "http://")
	s.upstreams = filepath.Join(t.TempDir(), "upstreams.yaml")
	s.write(s.upstreams, "- name: "+s.host+"\n  scheme: http\n")
	return s
}

func (s *site) write(path, text string) {
	s.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// image has the registry hold an image, and returns its name there and the digest of the manifest.
func (s *site) image(repository string, layers ...[]byte) (name string, manifest oci.Digest) {
	desc := s.content.Image(oci.Reference{Registry: "docker.io", Repository: repository, Tag: "v1"}, layers...)
	return s.host + "/" + repository + ":v1", desc.Digest
}

// slow has the registry give a blob slowly, until release is called.
func (s *site) slow(dgst oci.Digest) (release func()) {
	gate := make(chan struct{})
	release = sync.OnceFunc(func() { close(gate) })
	s.t.Cleanup(release)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slowed[dgst] = gate
	return release
}

// throttled is what the registry has, as fast as the site lets it.
type throttled struct {
	*ocitest.Memory
	site *site
}

func (s throttled) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, err := s.Memory.Open(ctx, ref, offset, length)
	s.site.mu.Lock()
	gate := s.site.slowed[ref.Digest]
	s.site.mu.Unlock()
	if err != nil || gate == nil {
		return rc, desc, err
	}
	return &slow{rc, gate}, desc, nil
}

type slow struct {
	io.ReadCloser
	gate chan struct{}
}

// Read gives about 400 kB a second.
func (r *slow) Read(p []byte) (int, error) {
	select {
	case <-r.gate:
		return r.ReadCloser.Read(p)
	case <-time.After(20 * time.Millisecond):
		return r.ReadCloser.Read(p[:min(len(p), 8<<10)])
	}
}

// A running node and what it logged.
type running struct {
	*Node
	t    *testing.T
	stop func()
	log  *journal
}

// node starts a node with all doors, which nobody told of others, but for what change says.
func (s *site) node(change func(*config.Config)) *running {
	s.t.Helper()
	cfg := config.Config{
		PeerListen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", GossipListen: "127.0.0.1:0",
		Cluster: "test", Upstreams: s.upstreams,
	}
	change(&cfg)
	log := &journal{to: s.t.Output()}
	n, stop := startNode(s.t, cfg, slog.New(slog.NewTextHandler(log, nil)))
	return &running{n, s.t, stop, log}
}

// A journal is a log that can be searched.
type journal struct {
	to io.Writer

	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	j.text.Write(p)
	j.mu.Unlock()
	return j.to.Write(p)
}

func (j *journal) has(s string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return bytes.Contains(j.text.Bytes(), []byte(s))
}

// door returns a door's address.
func (r *running) door(name string) string {
	return fmt.Sprintf("127.0.0.1:%d", r.doorPort(name))
}

var client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// errStatus is that a door answered other than 200.
type errStatus int

func (e errStatus) Error() string { return fmt.Sprintf("status %d", int(e)) }

// fetch gets a path of a door.
func (r *running) fetch(door, path string) ([]byte, error) {
	resp, err := client.Get("http://" + r.door(door) + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errStatus(resp.StatusCode)
	}
	return b, err
}

// pull gets content of the registry from the node door, as a client with a mirror does.
func (r *running) pull(host, repository, what string) ([]byte, error) {
	return r.fetch("node", "/v2/"+repository+"/"+what+"?ns="+url.QueryEscape(host))
}

func (r *running) members() (info PeersInfo) {
	r.t.Helper()
	b, err := r.fetch("metrics", "/api/v1/peers")
	if err = errors.Join(err, json.Unmarshal(b, &info)); err != nil {
		r.t.Fatal(err)
	}
	return info
}

// peer returns what this node says of another.
func (r *running) peer(other *running) (PeerInfo, bool) {
	r.t.Helper()
	for _, p := range r.members().Peers {
		if p.Name == other.Node.peers.group.Self().Name {
			return p, true
		}
	}
	return PeerInfo{}, false
}

// sees waits until this node lists these others, and none beside.
func (r *running) sees(others ...*running) {
	r.t.Helper()
	eventually(r.t, "the members seen", func() string {
		info := r.members()
		for _, other := range others {
			if _, ok := r.peer(other); !ok {
				return fmt.Sprintf("%+v", info)
			}
		}
		if len(info.Peers) != len(others) {
			return fmt.Sprintf("%+v", info)
		}
		return ""
	})
}

func (r *running) locate(door, what string) (LocateInfo, error) {
	var info LocateInfo
	b, err := r.fetch(door, "/api/v1/locate/"+what)
	if err == nil {
		err = json.Unmarshal(b, &info)
	}
	return info, err
}

// eventually waits until wrong returns "": some seconds, in which nodes tell each other.
func eventually(t *testing.T, what string, wrong func() string) {
	t.Helper()
	var last string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if last = wrong(); last == "" {
			return
		}
	}
	t.Fatalf("%s: in the end: %s", what, last)
}
