package registry

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"pier/internal/oci"
)

// endpoint is what a path asks for.
type endpoint uint8

const (
	endpointOther endpoint = iota // not served
	endpointBase
	endpointManifest
	endpointBlob
	endpointTags
	endpointReferrers
	endpointDigests
	endpointNode
	endpointAPI // what Config.API answers, but for node
	endpointUpload
	endpointToken
	endpoints // how many there are
)

// String returns the endpoint's label in metrics.
func (e endpoint) String() string {
	return [...]string{"other", "base", "manifest", "blob", "tags", "referrers", "digests", "node", "api", "upload", "token"}[e]
}

// A route is a request understood: what it asks for, of which content.
type route struct {
	endpoint endpoint
	ref      oci.Reference // for manifest, blob, referrers and digests; for tags, without tag and digest
	name     string        // the repository as the client wrote it, perhaps with a registry in front; for node and api, the name in Config.API
	arg      string        // for node and api: what follows the name
	query    url.Values

	// mirror is set if the request named its upstream with ?ns=, as container runtimes do: such a client asks the
	// upstream itself where this node answers 404.
	mirror bool
}

// maxPath is more than the longest valid path takes: prefix, a name of 255 bytes, endpoint and a tag or sha512 digest.
const maxPath = 1024

// parseRoute returns the route of a request. The error is one that answerTo knows, and the route then says what is known.
func parseRoute(r *http.Request, defaultRegistry string) (route, error) {
	rt, target, err := parsePath(r)
	if err != nil || rt.endpoint == endpointBase || rt.endpoint >= endpointDigests {
		return rt, err
	}
	rt.setName(rt.query.Get("ns"), r.Header.Get("X-Registry"), defaultRegistry)
	err = rt.setTarget(target)
	return rt, err
}

// parseRouteOf is parseRoute for a request that was meant for one registry, and for nothing else.
func parseRouteOf(r *http.Request, registry string) (route, error) {
	rt, target, err := parsePath(r)
	switch {
	case err != nil || rt.endpoint == endpointBase:
		return rt, err
	case rt.endpoint >= endpointDigests: // tokens, too
		return route{}, errNoEndpoint
	}
	rt.ref.Registry, rt.ref.Repository = oci.Canonical(registry, rt.name)
	err = rt.setTarget(target)
	return rt, err
}

// parsePath returns what the path and the query of a request say.
func parsePath(r *http.Request) (rt route, target string, err error) {
	path := r.URL.Path
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return rt, "", errMethod
	}
	if len(path) > maxPath {
		return rt, "", fmt.Errorf("path of %d bytes: %w", len(path), oci.ErrNameInvalid)
	}
	if rest, ok := strings.CutPrefix(path, "/api/v1/"); ok {
		err := rt.parseAPI(rest)
		return rt, "", err
	}
	if hasEncodedSlash(r.URL.RawPath) {
		return rt, "", fmt.Errorf("encoded slash in path: %w", oci.ErrNameInvalid)
	}
	rest, ok := strings.CutPrefix(path, "/v2/")
	if (ok && rest == "") || path == "/v2" {
		rt.endpoint = endpointBase
		return rt, "", nil
	}
	if ok && rest == "token" {
		rt.endpoint = endpointToken
		return rt, "", nil
	}
	if !ok {
		return rt, "", errNoEndpoint
	}
	if target, ok = rt.split(rest); !ok {
		return rt, "", errNoEndpoint
	}
	if r.URL.RawQuery != "" {
		// A query that is half understood may have lost its ns, and the wrong registry would be asked.
		if rt.query, err = url.ParseQuery(r.URL.RawQuery); err != nil {
			return rt, "", fmt.Errorf("malformed query: %w", oci.ErrNameInvalid)
		}
	}
	return rt, target, nil
}

// hasEncodedSlash reports whether an undecoded path has a slash that is no separator. No name, tag or digest has one.
func hasEncodedSlash(raw string) bool {
	return strings.Contains(raw, "%2F") || strings.Contains(raw, "%2f")
}

func (rt *route) parseAPI(rest string) error {
	rt.name, rt.arg, _ = strings.Cut(rest, "/")
	switch rt.name {
	case "digests":
		rt.endpoint = endpointDigests
		rt.ref.Kind = oci.Blob
		var err error
		rt.ref.Digest, err = oci.ParseDigest(rt.arg)
		return err
	case "node":
		rt.endpoint = endpointNode
	default:
		rt.endpoint = endpointAPI // whatever the name: none becomes a label
	}
	return nil
}

// split takes the path behind /v2/ apart from the right, since a name may have segments such as "blobs" itself. It sets
// endpoint and name, and returns the tag or digest.
func (rt *route) split(rest string) (target string, ok bool) {
	head, target := cutLast(rest)
	name, verb := cutLast(head)
	switch verb {
	case "manifests":
		rt.endpoint = endpointManifest
	case "blobs":
		rt.endpoint = endpointBlob
	case "referrers":
		rt.endpoint = endpointReferrers
	case "tags":
		if target != "list" {
			return "", false
		}
		rt.endpoint = endpointTags
	default:
		return "", false
	}
	rt.name = name
	return target, true
}

// cutLast cuts s around its last slash. Without one, all of s is behind it.
func cutLast(s string) (before, after string) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return "", s
	}
	return s[:i], s[i+1:]
}

// setName sets registry and repository from the first of: the query, the header, the first segment, the default.
func (rt *route) setName(ns, header, defaultRegistry string) {
	registry, repository := defaultRegistry, rt.name
	switch {
	case ns != "":
		registry, rt.mirror = ns, true
	case header != "":
		registry = header
	default:
		if first, rest, ok := strings.Cut(rt.name, "/"); ok && oci.IsRegistry(first) {
			registry, repository = first, rest
		}
	}
	rt.ref.Registry, rt.ref.Repository = oci.Canonical(registry, repository)
}

// setTarget sets tag or digest, and validates the whole reference.
func (rt *route) setTarget(target string) error {
	switch rt.endpoint {
	case endpointTags:
		named := rt.ref
		named.Tag = "latest" // Validate wants a whole reference
		return named.Validate()
	case endpointManifest:
		if !strings.Contains(target, ":") {
			rt.ref.Tag = target
			return rt.ref.Validate()
		}
	case endpointBlob:
		rt.ref.Kind = oci.Blob
	}
	rt.ref.Digest = oci.Digest(target)
	if target == "" {
		return fmt.Errorf("no digest: %w", oci.ErrDigestInvalid)
	}
	return rt.ref.Validate()
}
