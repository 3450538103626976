package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"pier/internal/chain"
	"pier/internal/config"
	"pier/internal/containerd"
	"pier/internal/docker"
	"pier/internal/oci"
	"pier/internal/transfer"
)

// stores are the runtimes of this node.
type stores struct {
	containerds []*containerd.Store // the system's, and one that Docker runs for itself; none: none is here
	docker      *docker.Store       // over Docker's classic store; nil if there is none
	dockerRoot  string              // its data root; "" if there is none
	socket      string              // Docker's
	silent      bool                // Docker is here, and could not be asked
	rebuilds    *transfer.Engine    // makes the layers of docker
}

// openStores finds the runtimes, and opens their stores. Without any, the node gets a cache of its own.
func (n *Node) openStores(ctx context.Context) error {
	if slices.Contains(n.cfg.Stores, config.StoreNone) {
		return nil
	}
	err := errors.Join(n.findContainerd(ctx), n.findDocker(ctx))
	if err == nil && n.stores.dockerRoot != "" {
		err = n.openDocker(ctx)
	}
	if err != nil {
		return err
	}
	if len(n.stores.containerds) == 0 && n.stores.docker == nil && !n.stores.silent && n.cfg.CacheDir == "" {
		n.cfg.CacheDir = OwnCacheDir()
		n.log.InfoContext(ctx, "no container runtime found: keeping images in a cache directory of its own", "dir", n.cfg.CacheDir)
	}
	return nil
}

func (n *Node) findContainerd(ctx context.Context) error {
	cfg := containerd.Config{Socket: n.cfg.ContainerdSocket, Root: n.cfg.ContainerdRoot, Log: n.log}
	asked := slices.Contains(n.cfg.Stores, config.StoreContainerd) || cfg.Socket != ""
	if !asked && (!slices.Contains(n.cfg.Stores, config.StoreAuto) || !n.detect(ctx)) {
		return nil
	}
	return n.addContainerd(ctx, cfg)
}

func (n *Node) addContainerd(ctx context.Context, cfg containerd.Config) error {
	store, err := containerd.Open(ctx, cfg)
	if err == nil {
		n.stores.containerds = append(n.stores.containerds, store)
	}
	return err
}

// detect reports whether there is a containerd that this process may use.
func (n *Node) detect(ctx context.Context) bool {
	found, ok := containerd.Detect()
	return ok && n.mayUse(ctx, "containerd", found.Socket)
}

// mayUse reports whether this process may use the socket of a runtime that was found.
func (n *Node) mayUse(ctx context.Context, runtime, socket string) bool {
	if err := unix.Access(socket, unix.R_OK|unix.W_OK); err != nil {
		n.log.WarnContext(ctx, "a runtime is here, but this user may not use its socket; run as root, or as a user who may", "runtime", runtime, "socket", socket, "err", err)
		return false
	}
	return true
}

// findDocker finds out where Docker keeps images: in a containerd, which becomes one of the runtimes, or in its classic store.
func (n *Node) findDocker(ctx context.Context) error {
	asked := n.asksForDocker()
	socket, found := docker.Detect()
	if n.cfg.DockerSocket != "" {
		socket, found = n.cfg.DockerSocket, true
	}
	if !asked && (!found || !slices.Contains(n.cfg.Stores, config.StoreAuto) || !n.mayUse(ctx, "Docker", socket)) {
		return nil
	}
	n.stores.socket = socket
	info, err := docker.Ask(ctx, socket)
	if n.cfg.DockerRoot != "" {
		info.Root = n.cfg.DockerRoot
	}
	switch {
	case err != nil && docker.IsClassic(info.Root): // it may be down, or come up later
		n.log.WarnContext(ctx, "Docker does not answer; serving from its data root all the same", "root", info.Root, "err", err)
	case err != nil && asked:
		return fmt.Errorf("%w: start Docker, give --docker-root, or leave docker out of --store", err)
	case err != nil:
		n.log.WarnContext(ctx, "Docker is here, but cannot be asked: its images are not served until pier is started again", "err", err)
		n.stores.silent = true
		return nil
	case info.Containerd:
		return n.addDockersContainerd(ctx, info)
	case info.Driver != "overlay2":
		return n.cannot(ctx, asked, fmt.Errorf("docker: images are kept by the storage driver %q, which is not read here: overlay2 and the containerd image store are", info.Driver))
	}
	n.stores.dockerRoot = cmp.Or(info.Root, docker.DefaultRoot)
	return nil
}

// cannot is an error if the runtime was asked for, and else a warning.
func (n *Node) cannot(ctx context.Context, asked bool, err error) error {
	if asked {
		return err
	}
	n.log.WarnContext(ctx, "images of a runtime are not served", "err", err)
	return nil
}

// addDockersContainerd adds the containerd that keeps Docker's images, unless it is one of the runtimes already.
func (n *Node) addDockersContainerd(ctx context.Context, info docker.Info) error {
	cfg := containerd.Config{Socket: info.ContainerdSocket, Log: n.log}
	if cfg.Socket == "" {
		found, ok := containerd.Detect()
		if !ok {
			return fmt.Errorf("docker %s keeps its images in a containerd that is not in the usual place: give --containerd-socket", info.Version)
		}
		cfg.Socket = found.Socket
	}
	for _, s := range n.stores.containerds {
		if sameFile(s.Socket(), cfg.Socket) {
			return nil
		}
	}
	return n.addContainerd(ctx, cfg)
}

func sameFile(a, b string) bool {
	ia, aerr := os.Stat(a)
	ib, berr := os.Stat(b)
	return aerr == nil && berr == nil && os.SameFile(ia, ib)
}

// asksForDocker reports whether the configuration names Docker, rather than leaving it to be found.
func (n *Node) asksForDocker() bool {
	return slices.Contains(n.cfg.Stores, config.StoreDocker) || n.cfg.DockerSocket != "" || n.cfg.DockerRoot != ""
}

// openDocker opens Docker's classic store.
func (n *Node) openDocker(ctx context.Context) error {
	files := transfer.Temporary(oci.TempDir())
	store, err := docker.Open(docker.Config{
		Socket: n.stores.socket, Root: n.stores.dockerRoot, Dir: filepath.Join(n.cfg.DataDir, "docker"), Files: files,
		Keep: n.cfg.LayerKeep, CPU: n.cfg.RebuildCPU, Reserve: n.memory.reserve, Elsewhere: chain.First(n.log, n.containerds()...), Log: n.log, Metrics: n.metrics,
	})
	if err != nil {
		return n.cannot(ctx, n.asksForDocker(), err)
	}
	n.stores.docker = store
	n.stores.rebuilds = transfer.New(transfer.Config{
		Source: store.Rebuilt(), Spool: store.MadeSpool(), Linger: rebuiltLinger, Timeout: n.cfg.PullTimeout, Log: n.log,
	})
	return nil
}

// has reports whether there is a runtime that fetches by itself what its client is answered it is not here.
func (s *stores) has() bool { return len(s.containerds) > 0 }

// containerds are the Sources of what containerds have.
func (n *Node) containerds() (sources []oci.Source) {
	for _, store := range n.stores.containerds {
		sources = append(sources, store)
	}
	return sources
}

// held are the Sources of what runtimes have ready on disk, each proven the first time it is served.
func (n *Node) held() (sources []oci.Source) {
	for _, src := range n.containerds() {
		sources = append(sources, chain.Once(n.log, "containerd", src))
	}
	return sources
}

// receiving is the Source of what runtimes are writing.
func (n *Node) receiving() oci.Source {
	var sources []oci.Source
	for _, store := range n.stores.containerds {
		sources = append(sources, chain.Verified(store.Ingest()))
	}
	return chain.First(n.log, sources...)
}

func (s *stores) close(ctx context.Context) error {
	var errs []error
	if s.rebuilds != nil {
		errs = append(errs, s.rebuilds.Close(ctx))
	}
	if s.docker != nil {
		errs = append(errs, s.docker.Close())
	}
	return errors.Join(errs...)
}

// rebuiltLinger is how long a layer that was made again stays in its temporary file: who reads it in parts comes back in a moment.
const rebuiltLinger = 15 * time.Second

// making is a Source of the layers that Docker's classic store has lost, with what it holds: made once for all who ask at the same
// time, and a part straight where that costs no more than the part.
type making struct {
	*transfer.Engine
	chain.Holder
	store *docker.Store
}

// Open implements [oci.Source].
func (m making) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	if offset > 0 && m.store.Seeks(ref, offset) {
		return m.store.Rebuilt().Open(ctx, ref, offset, length)
	}
	return m.Engine.Open(ctx, ref, offset, length)
}
