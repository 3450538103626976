package containerd

import (
	"strings"
	"time"

	"pier/internal/chain"
	"pier/internal/oci"
)

// Holdings implements [chain.Holder]: of all of containerd's namespaces, whether it has names for it or not.
func (s *Store) Holdings() ([]oci.Digest, error) { return s.blobs.List(s.root()) }

// Names implements [chain.Holder].
func (s *Store) Names() []oci.Reference {
	var list []oci.Reference
	for name, tags := range s.known().tags {
		registry, repository, _ := strings.Cut(name, "/")
		for tag, dgst := range tags {
			list = append(list, oci.Reference{Registry: registry, Repository: repository, Tag: tag, Digest: dgst})
		}
	}
	return chain.BoundNames(list)
}

// Changed implements [chain.Holder].
func (s *Store) Changed() time.Time {
	s.mu.RLock()
	root, altered := s.content, s.altered
	s.mu.RUnlock()
	if latest := s.blobs.Changed(root); latest.After(altered) {
		return latest
	}
	return altered
}
