package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
)

// Bounds of a list, whatever a registry says.
const (
	maxPages    = 100
	maxElements = 100_000
	maxPage     = 8 << 20 // bytes
	pageSize    = 1000    // tags asked for at once
)

// Tags implements [oci.Lister].
func (r *Registries) Tags(ctx context.Context, registry, repository string) ([]string, error) {
	ref := oci.Reference{Registry: registry, Repository: repository, Tag: "x"} // only the name matters
	return ask(ctx, r, ref, func(t target) ([]string, error) {
		var tags []string
		q := query{method: http.MethodGet, path: "tags/list", values: fmt.Sprint("n=", pageSize), accept: "application/json", what: "tags of " + repository}
		err := t.pages(ctx, q, func(_ http.Header, page []byte) (int, error) {
			var list struct {
				Tags []string `json:"tags"`
			}
			if err := json.Unmarshal(page, &list); err != nil {
				return 0, t.fault(q.what, "not a list of tags", oci.ErrUnavailable, err)
			}
			tags = append(tags, list.Tags...)
			return len(tags), nil
		})
		slices.Sort(tags)
		return slices.Compact(tags), err
	})
}

// Referrers implements [oci.Lister]. A registry without the referrers API is asked for the tag that stands in for it.
func (r *Registries) Referrers(ctx context.Context, ref oci.Reference) ([]v1.Descriptor, error) {
	if ref.Digest == "" {
		return nil, fmt.Errorf("referrers of %s without a digest: %w", ref, oci.ErrDigestInvalid)
	}
	ref.Kind, ref.Tag = oci.Manifest, ""
	list, err := ask(ctx, r, ref, func(t target) ([]v1.Descriptor, error) { return t.referrers(ctx, ref) })
	if errors.Is(err, oci.ErrNotFound) {
		return nil, nil // by the distribution specification, that is what the absence of the tag means
	}
	return list, err
}

// errNoIndex says that an answer to the referrers API is none.
var errNoIndex = errors.New("no index")

func (t target) referrers(ctx context.Context, ref oci.Reference) ([]v1.Descriptor, error) {
	q := query{method: http.MethodGet, path: "referrers/" + ref.Digest.String(), accept: v1.MediaTypeImageIndex, what: "referrers of " + ref.Repository + "@" + ref.Digest.String()}
	list, err := t.index(ctx, q)
	if errors.Is(err, oci.ErrNotFound) || errors.Is(err, errNoIndex) {
		q.path = "manifests/" + ref.Digest.Algorithm().String() + "-" + ref.Digest.Encoded()
		list, err = t.index(ctx, q)
	}
	return list, err
}

// index reads an index over all its pages.
func (t target) index(ctx context.Context, q query) ([]v1.Descriptor, error) {
	var list []v1.Descriptor
	err := t.pages(ctx, q, func(h http.Header, page []byte) (int, error) {
		var index v1.Index
		mediaType, _, _ := strings.Cut(h.Get("Content-Type"), ";")
		err := json.Unmarshal(page, &index)
		if err != nil || mediaType != v1.MediaTypeImageIndex && index.MediaType != v1.MediaTypeImageIndex {
			return 0, t.fault(q.what, errNoIndex.Error(), oci.ErrUnavailable, errNoIndex)
		}
		for _, d := range index.Manifests {
			if _, err := oci.ParseDigest(d.Digest.String()); err == nil {
				list = append(list, d)
			}
		}
		return len(list), nil
	})
	return list, err
}

// pages asks for all pages of a list and hands each to add, which returns how many elements there are so far.
func (t target) pages(ctx context.Context, q query, add func(http.Header, []byte) (int, error)) error {
	for range maxPages {
		resp, w, err := t.call(ctx, q) //nolint:bodyclose // b closes it
		if err != nil {
			return err
		}
		b := &body{target: t, what: q.what, rc: resp.Body, watch: w, left: -1, limit: maxPage + 1}
		page, err := io.ReadAll(b)
		_ = b.Close() // it has been read
		if err != nil {
			return err
		}
		if len(page) > maxPage {
			return t.fault(q.what, "page too large", oci.ErrUnavailable)
		}
		n, err := add(resp.Header, page)
		if err != nil {
			return err
		}
		next, ok := nextPage(resp.Header.Values("Link"), resp.Request.URL)
		if !ok {
			return nil
		}
		if n > maxElements {
			break
		}
		q.values = next
	}
	return t.fault(q.what, "a list without end", oci.ErrUnavailable)
}

// nextPage returns the query of the page that Link headers (RFC 8288) say follows the one at base. A link that leads to
// another host or another list is no page of this one.
func nextPage(links []string, base *url.URL) (string, bool) {
	for _, header := range links {
		for rest := header; ; {
			_, after, ok := strings.Cut(rest, "<")
			target, after, ok2 := strings.Cut(after, ">")
			if !ok || !ok2 {
				break
			}
			params, _, _ := strings.Cut(after, "<")
			rest = after
			if !isNext(params) {
				continue
			}
			u, err := base.Parse(target)
			if err != nil || u.Host != base.Host || u.Path != base.Path || u.RawQuery == "" {
				return "", false
			}
			values := u.Query()
			values.Del("ns") // it is put back where it belongs
			return values.Encode(), true
		}
	}
	return "", false
}

// isNext reports whether the parameters of a link have rel=next.
func isNext(params string) bool {
	for p := range strings.SplitSeq(params, ";") {
		k, v, _ := strings.Cut(p, "=")
		v = strings.TrimRight(strings.TrimSpace(v), ", ")
		if strings.EqualFold(strings.TrimSpace(k), "rel") && slices.Contains(strings.Fields(strings.ToLower(strings.Trim(v, `"`))), "next") {
			return true
		}
	}
	return false
}
