package registry

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sort"
	"strconv"

	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
)

// tags answers tags/list, a page at a time if the client asks for pages.
func (h *handler) tags(ctx context.Context, w *response, rt route) error {
	limit := -1
	if s := rt.query.Get("n"); s != "" {
		n, err := strconv.ParseUint(s, 10, 31)
		if err != nil {
			return fmt.Errorf("n=%.20q: %w", s, errPage)
		}
		limit = int(n)
	}
	if h.lister == nil {
		return fmt.Errorf("tags of %s: %w", rt.ref.Name(), oci.ErrNotFound)
	}
	tags, err := h.lister.Tags(ctx, rt.ref.Registry, rt.ref.Repository)
	if errors.Is(err, oci.ErrUnsupported) {
		return fmt.Errorf("%w: %w", oci.ErrNotFound, err)
	}
	if err != nil {
		return err
	}
	if last := rt.query.Get("last"); last != "" {
		tags = tags[sort.Search(len(tags), func(i int) bool { return tags[i] > last }):]
	}
	if limit >= 0 && limit < len(tags) {
		tags = tags[:limit]
		if limit > 0 {
			w.rw.Header().Set("Link", nextPage(rt, limit, tags[limit-1]))
		}
	}
	if tags == nil {
		tags = []string{} // [] in JSON, not null
	}
	return w.sendJSON("application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{rt.name, tags})
}

// nextPage returns the Link to what follows last, in the words in which the client asked.
func nextPage(rt route, n int, last string) string {
	q := url.Values{"n": {strconv.Itoa(n)}, "last": {last}}
	if rt.mirror {
		q.Set("ns", rt.query.Get("ns"))
	}
	u := url.URL{Path: "/v2/" + rt.name + "/tags/list", RawQuery: q.Encode()}
	return "<" + u.String() + `>; rel="next"`
}

// referrers answers with an index of what refers to a digest. Nothing known is an empty one, never an error, by the
// distribution specification.
func (h *handler) referrers(ctx context.Context, w *response, rt route) error {
	var list []v1.Descriptor
	if h.lister != nil {
		var err error
		list, err = h.lister.Referrers(ctx, rt.ref)
		if err != nil && !errors.Is(err, oci.ErrNotFound) && !errors.Is(err, oci.ErrUnsupported) {
			return err
		}
	}
	artifactType := rt.query.Get("artifactType")
	manifests := []v1.Descriptor{} // [] in JSON, not null
	for _, d := range list {
		if artifactType == "" || d.ArtifactType == artifactType {
			manifests = append(manifests, d)
		}
	}
	if artifactType != "" {
		w.rw.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return w.sendJSON(v1.MediaTypeImageIndex, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: manifests,
	})
}
