package upstream

import (
	"bytes"
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
	maxList     = 16 << 20 // bytes of all pages
	pageSize    = 1000     // tags asked for at once
)

// Tags implements [oci.Lister].
func (r *Registries) Tags(ctx context.Context, registry, repository string) ([]string, error) {
	ref := oci.Reference{Registry: registry, Repository: repository, Tag: "x"} // only the name matters
	return ask(ctx, r, ref, notEmpty, func(t target) ([]string, error) {
		var tags []string
		count := 0
		q := query{method: http.MethodGet, path: "tags/list", values: fmt.Sprint("n=", pageSize), accept: "application/json", what: "tags of " + repository}
		err := t.pages(ctx, q, func(_ http.Header, page []byte) (int, error) {
			var list struct {
				Tags elements[string] `json:"tags"`
			}
			if err := json.Unmarshal(page, &list); err != nil {
				return 0, t.fault(q.what, "not a list of tags", oci.ErrUnavailable, err)
			}
			for _, ref.Tag = range list.Tags {
				if ref.Validate() == nil { // what is no tag cannot be asked for, and may be of any length
					tags = append(tags, ref.Tag)
				}
			}
			count += len(list.Tags)
			return count, nil
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
	list, err := ask(ctx, r, ref, notEmpty, func(t target) ([]v1.Descriptor, error) { return t.referrers(ctx, ref) })
	if errors.Is(err, oci.ErrNotFound) {
		return nil, nil // by the distribution specification, that is what the absence of the tag means
	}
	return list, err
}

// notEmpty reports whether a mirror's list is an answer. One that only has what it was asked for before knows of no
// others, and says so with an empty list.
func notEmpty[T any](list []T) bool { return len(list) > 0 }

// errNoIndex says that an answer to the referrers API is none.
var errNoIndex = errors.New("no index")

func (t target) referrers(ctx context.Context, ref oci.Reference) ([]v1.Descriptor, error) {
	q := query{method: http.MethodGet, path: "referrers/" + ref.Digest.String(), accept: v1.MediaTypeImageIndex, what: "referrers of " + ref.Repository + "@" + ref.Digest.String()}
	list, err := t.index(ctx, q)
	if errors.Is(err, oci.ErrNotFound) || errors.Is(err, oci.ErrUnsupported) || errors.Is(err, errNoIndex) {
		q.path = "manifests/" + ref.Digest.Algorithm().String() + "-" + ref.Digest.Encoded()
		list, err = t.index(ctx, q)
	}
	return list, err
}

// index reads an index over all its pages.
func (t target) index(ctx context.Context, q query) ([]v1.Descriptor, error) {
	var list []v1.Descriptor
	count := 0
	err := t.pages(ctx, q, func(h http.Header, page []byte) (int, error) {
		var index struct {
			MediaType string                  `json:"mediaType"`
			Manifests elements[v1.Descriptor] `json:"manifests"`
		}
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
		count += len(index.Manifests)
		return count, nil
	})
	return list, err
}

// elements is a JSON list of at most [maxElements]: three bytes of text are an element of hundreds of bytes in memory.
type elements[T any] []T

var errTooMany = errors.New("too many elements")

// UnmarshalJSON implements json.Unmarshaler.
func (e *elements[T]) UnmarshalJSON(b []byte) error {
	*e = nil
	dec := json.NewDecoder(bytes.NewReader(b))
	switch t, err := dec.Token(); {
	case err != nil || t == nil: // null is no element
		return err
	case t != json.Delim('['):
		return fmt.Errorf("%v is no list", t)
	}
	for dec.More() {
		if len(*e) == maxElements {
			return errTooMany
		}
		var one T
		if err := dec.Decode(&one); err != nil {
			return err
		}
		*e = append(*e, one)
	}
	return nil
}

// pages asks for all pages of a list and hands each to add, which returns how many elements there are so far.
func (t target) pages(ctx context.Context, q query, add func(http.Header, []byte) (int, error)) error {
	left := int64(maxList)
	for range maxPages {
		resp, w, err := t.call(ctx, q) //nolint:bodyclose // b closes it
		if err != nil {
			return err
		}
		b := &body{target: t, what: q.what, rc: resp.Body, watch: w, left: -1, limit: left + 1}
		page, err := io.ReadAll(b)
		_ = b.Close() // it has been read
		if err != nil {
			return err
		}
		if left -= int64(len(page)); left < 0 {
			return t.fault(q.what, "a list too large", oci.ErrUnavailable)
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
