// Package containerd is a Source over the image store of a running containerd, 1.6 to 2.x. Content is read straight from
// containerd's directory; names come from its API, which is spoken here over the standard library's HTTP/2, without
// gRPC's library and without generated code, for a fraction of their size. Nothing here writes into that directory
// or changes anything through the API. Bytes are not verified: see the chain package.
package containerd

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/chain"
	"pier/internal/oci"
)

// source is what Descriptor.Source says.
const source = "containerd"

// contentPlugin is the type of containerd's content store, and the name of its directory under containerd's root.
const contentPlugin = "io.containerd.content.v1"

const (
	contentDir  = contentPlugin + ".content"
	defaultRoot = "/var/lib/containerd"
)

// sockets are where containerd listens: by its own default, in k3s and RKE2, in k0s and in MicroK8s.
var sockets = []string{
	"/run/containerd/containerd.sock",
	"/var/run/containerd/containerd.sock",
	"/run/k3s/containerd/containerd.sock",
	"/run/k0s/containerd.sock",
	"/var/snap/microk8s/common/run/containerd.sock",
}

// Config says where containerd is. The zero value finds it.
type Config struct {
	Socket string // path of its API's unix socket; default: the first of the usual ones that exists

	// Root is containerd's root directory, or its content directory itself. Default: asked of containerd; until it
	// has answered for the first time, the one under /var/lib/containerd.
	Root string

	Log *slog.Logger // default: silent

	// OnChange is called from Run whenever names appeared, went, or name something else since Open returned or it was
	// last called. It must not block.
	OnChange func()
}

// Detect returns the configuration of a containerd whose socket is in one of the usual places.
func Detect() (Config, bool) {
	for _, path := range sockets {
		if fi, err := os.Stat(path); err == nil && fi.Mode().Type() == fs.ModeSocket {
			return Config{Socket: path}, true
		}
	}
	return Config{}, false
}

// A Store is an [oci.Source] and [oci.Lister] of what containerd holds.
type Store struct {
	cfg   Config
	fixed bool // the content directory was configured: containerd is not asked

	mu      sync.RWMutex // guards all below
	content string       // content directory
	version string       // of containerd; empty before it was first reached
	names   *names       // replaced as a whole; nil before the first listing
	altered time.Time    // when content or names were last replaced by others

	blobs chain.Blobs
}

var (
	_ oci.Source = (*Store)(nil)
	_ oci.Lister = (*Store)(nil)

	_ chain.Holder = (*Store)(nil)
)

// Open returns the store of the containerd that cfg describes, with its names if containerd answers within a few seconds.
// That it does not answer is no error: [Store.Run] connects when it comes up, and content is served meanwhile. The
// only errors are those of a configuration that can never work.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Socket == "" {
		cfg.Socket = sockets[0]
		if found, ok := Detect(); ok {
			cfg.Socket = found.Socket
		}
	}
	root := cfg.Root
	if root == "" {
		root = defaultRoot
	}
	if !filepath.IsAbs(cfg.Socket) || !filepath.IsAbs(root) {
		return nil, fmt.Errorf("containerd: socket %q and root %q must be absolute paths", cfg.Socket, root)
	}
	if fi, err := os.Stat(root); err == nil && !fi.IsDir() {
		return nil, fmt.Errorf("containerd: root %s is not a directory", root)
	}
	s := &Store{cfg: cfg, fixed: cfg.Root != "", content: contentRoot(root), blobs: chain.Blobs{Source: source}}
	if err := s.first(ctx); err != nil {
		cfg.Log.DebugContext(ctx, "containerd not reached yet", "socket", cfg.Socket, "err", err)
	}
	return s, nil
}

// contentRoot returns the content directory that root, which may be it already, stands for.
func contentRoot(root string) string {
	if filepath.Base(root) == contentDir {
		return root
	}
	if fi, err := os.Stat(filepath.Join(root, "blobs")); err == nil && fi.IsDir() {
		return root // under another name, as a mount in a container may be
	}
	return filepath.Join(root, contentDir)
}

// Ready reports whether containerd's names have been listed. It stays so while containerd is away.
func (s *Store) Ready() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.names != nil
}

// Images returns how many manifests containerd has names for, in all its namespaces.
func (s *Store) Images() int { return len(s.known().targets) }

// Socket returns the path of containerd's socket.
func (s *Store) Socket() string { return s.cfg.Socket }

// Version returns containerd's version as it states it, or "" before it was first reached.
func (s *Store) Version() string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.version
}

// known returns the names last listed; the result is never nil and never changes.
func (s *Store) known() *names {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.names == nil {
		return &names{}
	}
	return s.names
}

func (s *Store) root() string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.content
}

// Resolve implements [oci.Source]. It never asks containerd.
func (s *Store) Resolve(_ context.Context, ref oci.Reference) (oci.Descriptor, error) {
	if ref.Digest == "" {
		dgst, ok := s.known().tags[ref.Name()][ref.Tag]
		if !ok {
			return oci.Descriptor{}, fmt.Errorf("containerd: %s: %w", ref, oci.ErrNotFound)
		}
		ref.Digest = dgst
	}
	desc, _, err := s.blobs.Stat(s.root(), ref)
	return desc, err
}

// Open implements [oci.Source].
func (s *Store) Open(_ context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, _, err := s.blobs.Open(s.root(), ref, offset, length)
	return rc, desc, err
}

// Tags implements [oci.Lister].
func (s *Store) Tags(_ context.Context, registry, repository string) ([]string, error) {
	tags := s.known().tags[registry+"/"+repository]
	if len(tags) == 0 {
		return nil, fmt.Errorf("containerd: %s/%s: %w", registry, repository, oci.ErrNotFound)
	}
	list := make([]string, 0, len(tags))
	for tag := range tags {
		list = append(list, tag)
	}
	slices.Sort(list)
	return list, nil
}

// Referrers implements [oci.Lister]: containerd has no index of them.
func (s *Store) Referrers(context.Context, oci.Reference) ([]v1.Descriptor, error) {
	return nil, fmt.Errorf("containerd: referrers: %w", oci.ErrUnsupported)
}
