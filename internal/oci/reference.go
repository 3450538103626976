package oci

import (
	_ "crypto/sha256" // the algorithms that go-digest finds registered
	_ "crypto/sha512"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Digest names content by algorithm and value, for example "sha256:9f86d0…". A Digest made by [ParseDigest] is valid.
type Digest = digest.Digest

// ParseDigest returns s as a Digest. It accepts the two algorithms the image specification registers and every
// registry serves, sha256 and sha512, and otherwise returns an error wrapping [ErrDigestInvalid].
func ParseDigest(s string) (Digest, error) {
	alg, value, _ := strings.Cut(s, ":")
	if d := Digest(s); (alg == "sha256" && len(value) == 64 || alg == "sha512" && len(value) == 128) && isHex(value) {
		return d, nil
	}
	return "", fmt.Errorf("digest %.80q: %w", s, ErrDigestInvalid)
}

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Kind says which half of a repository a [Reference] points into.
type Kind uint8

// The two kinds of content a registry serves.
const (
	Manifest Kind = iota
	Blob
)

func (k Kind) String() string {
	if k == Blob {
		return "blob"
	}
	return "manifest"
}

// A Reference names content in a registry. With a Digest it names exactly those bytes, whatever the other fields say;
// without one, Tag names a manifest that may change. Tags keep their case.
type Reference struct {
	Registry   string // host[:port], for example "docker.io" or "[::1]:5000"
	Repository string // for example "library/alpine"
	Kind       Kind
	Tag        string // only for manifests; empty if the reference has only a digest
	Digest     Digest // empty if the reference has only a tag
}

// Name returns the reference without tag and digest, for example "docker.io/library/alpine".
func (r Reference) Name() string {
	return r.Registry + "/" + r.Repository
}

// String returns the reference as people write it: name[:tag][@digest].
func (r Reference) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest.String()
	}
	return s
}

// WithDigest returns r pinned to d.
func (r Reference) WithDigest(d Digest) Reference {
	r.Digest = d
	return r
}

// The grammar is that of the distribution specification, and of its host[:port] in practice: a name, an IPv4 address or an IPv6 address in
// brackets. It is scanned for each request, for which regular expressions take ten times as long.

// validRepository reports whether s is words between slashes, with one dot, one or two underscores, or any number of dashes within them.
func validRepository(s string) bool {
	word, separators := false, 0 // the byte before belongs to a word; or so many separators are before
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9' || 'a' <= c && c <= 'z':
			word, separators = true, 0
		case c == '/' && word:
			word = false
		case c != '.' && c != '_' && c != '-', !word && separators == 0:
			return false
		case separators > 0 && (c != s[i-1] || c == '.' || c == '_' && separators == 2):
			return false
		default:
			word = false
			separators++
		}
	}
	return word
}

func validRegistry(s string) bool {
	host, port := s, ""
	if i := strings.IndexByte(s, ':'); i >= 0 {
		host, port = s[:i], s[i:]
	}
	if rest, ok := strings.CutPrefix(s, "["); ok {
		host, port, ok = strings.Cut(rest, "]")
		if !ok || host == "" || strings.Trim(host, "0123456789abcdefABCDEF:.") != "" {
			return false
		}
	} else if !validHost(host) {
		return false
	}
	return port == "" || port[0] == ':' && len(port) >= 2 && len(port) <= 6 && strings.Trim(port[1:], "0123456789") == ""
}

// validHost reports whether s is labels with a dot between, and perhaps one at the end, that neither begin nor end with a dash.
func validHost(s string) bool {
	s = strings.TrimSuffix(s, ".")
	before := byte('.')
	for i := range len(s) {
		c := s[i]
		alphanumeric := '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !alphanumeric && (c != '-' && c != '.' || before == '.' || c == '.' && before == '-') {
			return false
		}
		before = c
	}
	return before != '.' && before != '-'
}

// maxTag is the longest tag, in bytes.
const maxTag = 128

func validTag(s string) bool {
	for i, c := range []byte(s) {
		word := c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !word && (i == 0 || c != '.' && c != '-') {
			return false
		}
	}
	return s != "" && len(s) <= maxTag
}

// maxName is the longest registry and repository together, in bytes: the distribution specification says many
// clients limit the name to 255 characters.
const maxName = 255

// Validate returns an error wrapping [ErrNameInvalid], [ErrTagInvalid] or [ErrDigestInvalid] if a field is malformed,
// or if the reference names nothing.
func (r Reference) Validate() error {
	if !validRegistry(r.Registry) {
		return fmt.Errorf("registry %.80q: %w", r.Registry, ErrNameInvalid)
	}
	if len(r.Registry)+len(r.Repository) > maxName || !validRepository(r.Repository) {
		return fmt.Errorf("repository %.80q: %w", r.Repository, ErrNameInvalid)
	}
	if r.Tag != "" && (r.Kind != Manifest || !validTag(r.Tag)) {
		return fmt.Errorf("tag %.80q: %w", r.Tag, ErrTagInvalid)
	}
	if r.Digest != "" {
		_, err := ParseDigest(r.Digest.String())
		return err
	}
	if r.Tag == "" {
		return fmt.Errorf("reference to %s has neither tag nor digest: %w", r.Name(), ErrTagInvalid)
	}
	return nil
}

// IsRegistry reports whether the first segment of a path names a registry: it has a dot or a colon, or is "localhost".
func IsRegistry(segment string) bool {
	return segment == "localhost" || strings.ContainsAny(segment, ".:")
}

// DockerHub is the registry that names without a registry have always meant, and whose official images live under
// "library/".
const DockerHub = "docker.io"

// Canonical returns registry and repository under the names by which content is known everywhere in Pier: Docker
// Hub's older host names become [DockerHub], its single-segment repositories gain "library/", host names are lower case.
func Canonical(registry, repository string) (string, string) {
	registry = strings.ToLower(registry)
	switch registry {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		registry = DockerHub
	}
	if registry == DockerHub && repository != "" && !strings.Contains(repository, "/") {
		repository = "library/" + repository
	}
	return registry, repository
}

// ParseReference reads a manifest reference as people write it: [registry/]repository[:tag][@digest]. A first segment
// that does not name a registry (see [IsRegistry]) belongs to the repository, and defaultRegistry is used. With
// neither tag nor digest the tag is "latest".
func ParseReference(s, defaultRegistry string) (Reference, error) {
	ref := Reference{Registry: defaultRegistry}
	name, dgst, pinned := strings.Cut(s, "@")
	if pinned {
		d, err := ParseDigest(dgst)
		if err != nil {
			return Reference{}, fmt.Errorf("reference %.200q: %w", s, err)
		}
		ref.Digest = d
	}
	if first, rest, ok := strings.Cut(name, "/"); ok && IsRegistry(first) {
		ref.Registry, name = first, rest
	}
	if i := strings.LastIndexByte(name, ':'); i >= 0 {
		ref.Tag, name = name[i+1:], name[:i]
		if ref.Tag == "" {
			return Reference{}, fmt.Errorf("reference %.200q: empty tag: %w", s, ErrTagInvalid)
		}
	}
	if ref.Tag == "" && !pinned {
		ref.Tag = "latest"
	}
	ref.Registry, ref.Repository = Canonical(ref.Registry, name)
	if err := ref.Validate(); err != nil {
		return Reference{}, fmt.Errorf("reference %.200q: %w", s, err)
	}
	return ref, nil
}
