package peer

import (
	"context"
	"fmt"
	"io"
	"sync"

	"pier/internal/directory"
	"pier/internal/oci"
)

// askedForTags is how many neighbours are asked what a tag names.
const askedForTags = 3

// Names returns a Source of the tags that neighbours know. It is for when the registry cannot be asked.
func (s *Source) Names() oci.Source { return names{s} }

type names struct{ s *Source }

// Resolve returns what most of the neighbours say that a tag names; of as many that say different things, the nearest.
func (n names) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	none := fmt.Errorf("%s: no neighbour knows it: %w", ref, oci.ErrNotFound)
	if ref.Digest != "" {
		return oci.Descriptor{}, none
	}
	key := directory.KeyOf(ref)
	a, err := n.s.c.Directory.Lookup(ctx, directory.Want{Key: key, Scope: directory.ScopeOf(ref)})
	if err != nil {
		return oci.Descriptor{}, err
	}
	list := n.s.candidates(key, a.Sources, nil)
	list = list[:min(len(list), askedForTags)]
	answers := make([]oci.Descriptor, len(list))
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	var wg sync.WaitGroup
	for i, c := range list {
		wg.Go(func() {
			if desc, err := n.s.head(ctx, c, ref); err == nil {
				answers[i] = desc
			}
		})
	}
	wg.Wait()
	votes := make(map[oci.Digest]int)
	for _, desc := range answers {
		if desc.Digest != "" {
			votes[desc.Digest]++
		}
	}
	var best oci.Descriptor
	for _, desc := range answers {
		if votes[desc.Digest] > votes[best.Digest] {
			best = desc
		}
	}
	if best.Digest == "" {
		return best, none
	}
	return best, nil
}

func (n names) Open(_ context.Context, ref oci.Reference, _, _ int64) (io.ReadCloser, oci.Descriptor, error) {
	return nil, oci.Descriptor{}, fmt.Errorf("%s: names only: %w", ref, oci.ErrNotFound)
}
