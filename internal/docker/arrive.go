package docker

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"pier/internal/chain"
	"pier/internal/oci"
)

const (
	// waitForDocker is how long content that arrived for Docker is held until Docker has it, since anything arrived last: it unpacks
	// one layer after the other, and a large one before takes long on a thin link or a slow disk. maxWait bounds it.
	waitForDocker = 15 * time.Minute
	maxWait       = 6 * time.Hour

	maxArrived = 256 // contents held at once; of more the oldest go

	// Of the file system that has the files, so much stays free: a tenth, but no more than that many bytes.
	freeShare = 10
	freeBytes = 4 << 30
)

// An arrival is content that passed through this node on its way to Docker, in a file that has no name.
type arrival struct {
	digest  oci.Digest
	size    int64
	file    *os.File
	at      time.Time
	settled bool // how it is made again is known, or it is kept, or lost
	faults  int  // how often it could not be learned from
}

// Spool returns what lends files of another Spool to content on its way to Docker, and learns from it.
func (s *Store) Spool(files oci.Spool) oci.Spool { return spool{files, s} }

type spool struct {
	files oci.Spool
	s     *Store
}

func (p spool) Begin(ref oci.Reference) (oci.Partial, error) {
	inner, err := p.files.Begin(ref)
	if err != nil {
		return nil, err
	}
	return partial{inner, p.s}, nil
}

type partial struct {
	oci.Partial
	s *Store
}

// Commit takes what was proven. It never fails a transfer: what cannot be learned from is served all the same.
func (p partial) Commit(ref oci.Reference, desc oci.Descriptor) error {
	if err := p.s.arrive(ref, desc, p.File()); err != nil {
		p.s.log.Warn("what passed through on its way to Docker is not remembered; other nodes will not get it from this one", "ref", ref.String(), "err", err)
	}
	return p.Partial.Commit(ref, desc)
}

func (s *Store) arrive(ref oci.Reference, desc oci.Descriptor, file *os.File) error {
	if ref.Kind == oci.Manifest {
		content, err := io.ReadAll(io.NewSectionReader(file, 0, min(desc.Size, oci.MaxManifest)))
		if err != nil {
			return err
		}
		if err := s.kept.putManifest(ref.Digest, content); err != nil {
			return err
		}
		s.look() // tags may have something to name
		return nil
	}
	own, err := reopen(file)
	if err != nil {
		return err
	}
	a := &arrival{digest: ref.Digest, size: desc.Size, file: own, at: time.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastArrived = a.at
	if s.arrived[a.digest] != nil || s.full(own) {
		own.Close()
		return nil
	}
	if len(s.arrived) >= maxArrived {
		s.letGo(s.oldest())
	}
	s.arrived[a.digest], s.altered = a, time.Now()
	notify(s.read) // Docker may have had what it contains before
	return nil
}

// reopen returns a descriptor of the same file with an offset of its own.
func reopen(f *os.File) (*os.File, error) {
	return os.Open("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
}

// reopenArrival returns a descriptor of an arrival's file, or nil if it was let go of.
func (s *Store) reopenArrival(a *arrival) (*os.File, error) {
	s.mu.Lock() // so that its descriptor is not closed, and another file's, before it is opened again
	defer s.mu.Unlock()
	if s.arrived[a.digest] != a {
		return nil, nil //nolint:nilnil // that is no fault
	}
	return reopen(a.file)
}

// forget lets go of what arrived and is in Docker by now, or will not come there any more, and where the disk is nearly full, of what
// came first.
func (s *Store) forget(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d, a := range s.arrived {
		_, learned := s.recipes.get(d) // then it was in Docker: if it is not any more, its image was removed
		if a.settled && (learned || s.has(d)) || now.Sub(s.lastArrived) > waitForDocker || now.Sub(a.at) > maxWait || s.elsewhere(d) {
			s.letGo(a)
		}
	}
	if first := s.oldest(); first != nil && s.full(first.file) {
		s.log.Warn("the disk is nearly full: content on its way to Docker is not held for other nodes", "digest", first.digest, "bytes", first.size)
		s.letGo(first)
	}
}

// elsewhere reports whether what arrived was for another runtime, which has it by now.
func (s *Store) elsewhere(d oci.Digest) bool {
	if s.c.Elsewhere == nil {
		return false
	}
	_, err := s.c.Elsewhere.Resolve(context.Background(), oci.Reference{Kind: oci.Blob, Digest: d})
	return err == nil
}

// oldest returns what arrived first, or nil. The caller holds mu.
func (s *Store) oldest() (first *arrival) {
	for _, a := range s.arrived {
		if first == nil || a.at.Before(first.at) {
			first = a
		}
	}
	return first
}

// letGo lets go of an arrival. The caller holds mu.
func (s *Store) letGo(a *arrival) {
	a.file.Close()
	delete(s.arrived, a.digest)
	s.altered = time.Now()
}

// nearlyFull reports whether the file system of a file has less free than it should.
func nearlyFull(f *os.File) bool {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return false // it does not say
	}
	free, all := st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
	return free < min(all/freeShare, freeBytes)
}

// has reports whether content that arrived is to be had without the file it arrived in. The caller holds mu.
func (s *Store) has(d oci.Digest) bool {
	if s.view.configs[d] || s.kept.has(d) {
		return true
	}
	r, ok := s.recipes.get(d)
	if !ok {
		return false
	}
	return s.makes(r)
}

// Arrived returns a Source of what passed through this node and is not in Docker yet. It was proven.
func (s *Store) Arrived() oci.Source { return arrived{s} }

type arrived struct{ s *Store }

func (r arrived) Resolve(_ context.Context, ref oci.Reference) (oci.Descriptor, error) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	a := r.s.arrived[ref.Digest]
	if a == nil || ref.Kind != oci.Blob {
		return oci.Descriptor{}, fmt.Errorf("docker: %s did not just arrive: %w", ref.Digest, oci.ErrNotFound)
	}
	return describe(a.digest, a.size), nil
}

func (r arrived) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	desc, err := r.Resolve(ctx, ref)
	if err != nil {
		return nil, desc, err
	}
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	a := r.s.arrived[ref.Digest]
	if a == nil {
		return nil, desc, fmt.Errorf("docker: %s: %w", ref.Digest, oci.ErrNotFound)
	}
	file, err := reopen(a.file)
	if err != nil {
		return nil, desc, fmt.Errorf("docker: %w", err)
	}
	rc, err := chain.File(file, a.size, offset, length)
	return rc, desc, err
}

// Holdings implements [chain.Holder].
func (r arrived) Holdings() ([]oci.Digest, error) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	list := make([]oci.Digest, 0, len(r.s.arrived))
	for d := range r.s.arrived {
		list = append(list, d)
	}
	return list, nil
}

// Names implements [chain.Holder].
func (arrived) Names() []oci.Reference { return nil }

// Changed implements [chain.Holder].
func (r arrived) Changed() time.Time {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	return r.s.altered
}

func describe(d oci.Digest, size int64) oci.Descriptor {
	return oci.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: size, Source: source}
}
