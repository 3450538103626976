// Package containerd is a Source over the image store of a running containerd, 1.6 to 2.x. Content is read straight from
// containerd's directory; names come from its API, which is spoken here over the standard library's HTTP/2, without
// gRPC's library and without generated code, for a fraction of their size. Nothing here writes into that directory
// or changes anything through the API. Bytes are not verified: see the chain package.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

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

	types mediaTypes
}

var (
	_ oci.Source = (*Store)(nil)
	_ oci.Lister = (*Store)(nil)
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
	s := &Store{cfg: cfg, fixed: cfg.Root != "", content: contentRoot(root)}
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

// blobPath returns where content is once it is complete.
func blobPath(root string, dgst oci.Digest) string {
	return filepath.Join(root, "blobs", dgst.Algorithm().String(), dgst.Encoded())
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
	f, desc, err := s.open(ref)
	if err != nil {
		return oci.Descriptor{}, err
	}
	return desc, f.Close()
}

// Open implements [oci.Source].
func (s *Store) Open(_ context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	f, desc, err := s.open(ref)
	if err != nil {
		return nil, oci.Descriptor{}, err
	}
	rc, err := chain.File(f, desc.Size, offset, length)
	if err != nil {
		return nil, oci.Descriptor{}, fmt.Errorf("containerd: %s: %w", ref.Digest, err)
	}
	return rc, desc, nil
}

// open opens the content of ref.Digest and describes it. A file that is not there is [oci.ErrNotFound]; one that is and
// cannot be read is a fault.
func (s *Store) open(ref oci.Reference) (*os.File, oci.Descriptor, error) {
	dgst, err := oci.ParseDigest(ref.Digest.String()) // it becomes part of a path
	if err != nil {
		return nil, oci.Descriptor{}, err
	}
	f, err := os.Open(blobPath(s.root(), dgst))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, oci.Descriptor{}, fmt.Errorf("containerd: %s: %w", dgst, oci.ErrNotFound)
	}
	if err != nil {
		return nil, oci.Descriptor{}, fmt.Errorf("containerd: %w", err)
	}
	desc, err := s.describe(f, ref.Kind, dgst)
	if err != nil {
		f.Close()
		return nil, oci.Descriptor{}, err
	}
	return f, desc, nil
}

func (s *Store) describe(f *os.File, kind oci.Kind, dgst oci.Digest) (oci.Descriptor, error) {
	fi, err := f.Stat()
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("containerd: %w", err)
	}
	if !fi.Mode().IsRegular() {
		return oci.Descriptor{}, fmt.Errorf("containerd: %s is no regular file", f.Name())
	}
	desc := oci.Descriptor{MediaType: "application/octet-stream", Digest: dgst, Size: fi.Size(), Source: source}
	if kind == oci.Manifest {
		desc.MediaType, err = s.types.of(f, desc)
	}
	return desc, err
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

// maxMediaTypes is how many manifests' media types are remembered: about 1 MB.
const maxMediaTypes = 4096

// mediaTypes remembers what manifests say of themselves, so that a manifest asked for again costs an open and a stat.
type mediaTypes struct {
	mu    sync.Mutex // guards known
	known map[oci.Digest]string
}

// of returns the media type of the manifest in f. It returns an error wrapping [oci.ErrNotFound] for what is no manifest.
func (m *mediaTypes) of(f *os.File, desc oci.Descriptor) (string, error) {
	m.mu.Lock()
	mediaType, ok := m.known[desc.Digest]
	m.mu.Unlock()
	if ok {
		return mediaType, nil
	}
	if desc.Size > oci.MaxManifest {
		return "", fmt.Errorf("containerd: %s: %d bytes are no manifest: %w", desc.Digest, desc.Size, oci.ErrNotFound)
	}
	b := make([]byte, desc.Size)
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, desc.Size), b); err != nil {
		return "", fmt.Errorf("containerd: %s: %w", desc.Digest, err)
	}
	info, err := oci.ParseManifest(b)
	if err != nil {
		return "", fmt.Errorf("containerd: %s: %w: %s", desc.Digest, oci.ErrNotFound, err.Error()) // one class only
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil {
		m.known = make(map[oci.Digest]string)
	}
	if len(m.known) >= maxMediaTypes {
		for victim := range m.known { // any: it costs one more read when it is asked for again
			delete(m.known, victim)
			break
		}
	}
	m.known[desc.Digest] = info.MediaType
	return info.MediaType, nil
}
