package peer

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

var errDown = fmt.Errorf("registry.test: no route: %w", oci.ErrUnavailable)

const registryName = "registry.test"

// An upstream is the registry of a site. It counts what it gives.
type upstream struct {
	*ocitest.Memory

	mu     sync.Mutex             // guards all below
	rate   int                    // bytes a second on each connection; 0: no limit
	stop   func(node string) bool // whose connections give nothing; nil: nobody's
	refuse func(node string) error
	given  map[oci.Digest]int // bytes
	by     map[string]int     // bytes, by node
	opens  map[string]int     // by node
	blamed []string
}

func newUpstream() *upstream {
	return &upstream{
		Memory: &ocitest.Memory{Name: registryName},
		given:  make(map[oci.Digest]int), by: make(map[string]int), opens: make(map[string]int),
	}
}

// set changes how the registry behaves.
func (u *upstream) set(change func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	change()
}

// has gives the registry content.
func (u *upstream) has(content []byte) oci.Reference {
	u.Add("application/octet-stream", content)
	return blobRef(content)
}

// gave returns how many bytes of content the registry gave.
func (u *upstream) gave(ref oci.Reference) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.given[ref.Digest]
}

// gaveTo returns how many bytes of all content the registry gave to a node.
func (u *upstream) gaveTo(n *node) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.by[n.name]
}

// fetchers returns who was given anything.
func (u *upstream) fetchers() (n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, bytes := range u.by {
		if bytes > 0 {
			n++
		}
	}
	return n
}

// A view is the registry as one node sees it.
type view struct {
	*upstream
	node string
}

func (v view) refused() error {
	v.mu.Lock()
	refuse := v.refuse
	v.mu.Unlock()
	if refuse == nil {
		return nil
	}
	return refuse(v.node) // it may take its time
}

// Resolve implements [oci.Source].
func (v view) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	if err := v.refused(); err != nil {
		return oci.Descriptor{}, err
	}
	return v.Memory.Resolve(ctx, ref)
}

// Open implements [oci.Source].
func (v view) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	if err := v.refused(); err != nil {
		return nil, oci.Descriptor{}, err
	}
	rc, desc, err := v.Memory.Open(ctx, ref, offset, length)
	if err != nil {
		return nil, desc, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.opens[v.node]++
	return &download{rc, v, ref.Digest, ctx}, desc, nil
}

// Blame implements [oci.Blamer].
func (v view) Blame(_ oci.Reference, origin string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.blamed = append(v.blamed, origin)
}

// A download is one connection to the registry.
type download struct {
	io.ReadCloser
	v      view
	digest oci.Digest
	ctx    context.Context
}

func (d *download) Read(p []byte) (int, error) {
	for {
		d.v.mu.Lock()
		rate, stopped := d.v.rate, d.v.stop != nil && d.v.stop(d.v.node)
		d.v.mu.Unlock()
		switch {
		case stopped:
			if err := wait(d.ctx, 10*time.Millisecond); err != nil {
				return 0, err
			}
			continue
		case rate > 0:
			p = p[:min(len(p), 16<<10)]
			if err := wait(d.ctx, time.Second*time.Duration(len(p))/time.Duration(rate)); err != nil {
				return 0, err
			}
		}
		n, err := d.ReadCloser.Read(p)
		d.v.mu.Lock()
		defer d.v.mu.Unlock()
		d.v.given[d.digest] += n
		d.v.by[d.v.node] += n
		return n, err
	}
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A shelf is where a node keeps what arrives.
type shelf struct {
	*ocitest.Memory
	dir  string
	kept func(refs ...oci.Reference)
}

// Begin implements [oci.Spool].
func (s *shelf) Begin(oci.Reference) (oci.Partial, error) {
	f, err := os.CreateTemp(s.dir, "")
	return &spooled{f, s}, err
}

type spooled struct {
	file  *os.File
	shelf *shelf
}

func (p *spooled) File() *os.File { return p.file }
func (p *spooled) Suspend() error { return p.Discard() }
func (p *spooled) Discard() error { return os.Remove(p.file.Name()) }

func (p *spooled) Commit(ref oci.Reference, desc oci.Descriptor) error {
	b, err := os.ReadFile(p.file.Name())
	if err != nil {
		return err
	}
	p.shelf.AddAs(ref.Digest, desc.MediaType, b)
	p.shelf.kept(ref)
	return p.Discard()
}
