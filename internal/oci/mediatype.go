package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of manifests that the OCI image specification does not name itself.
const (
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	MediaTypeArtifact       = "application/vnd.oci.artifact.manifest.v1+json"
	mediaTypeSchema1        = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// ManifestMediaTypes are the manifests Pier asks registries for, most general first.
var ManifestMediaTypes = []string{
	v1.MediaTypeImageIndex, MediaTypeDockerList, v1.MediaTypeImageManifest, MediaTypeDockerManifest, MediaTypeArtifact,
}

// IsIndex reports whether mediaType is that of a list of manifests.
func IsIndex(mediaType string) bool {
	return mediaType == v1.MediaTypeImageIndex || mediaType == MediaTypeDockerList
}

// IsManifest reports whether mediaType is that of a manifest or a list of manifests.
func IsManifest(mediaType string) bool {
	return slices.Contains(ManifestMediaTypes, mediaType) || mediaType == mediaTypeSchema1
}

// A ManifestInfo is what Pier needs to know of a manifest of any kind. Of descriptors it holds media type, digest, size and
// platform.
type ManifestInfo struct {
	MediaType    string
	ArtifactType string          // as the referrers API reports it
	Subject      *v1.Descriptor  // what an artifact refers to, or nil
	Manifests    []v1.Descriptor // children of an index
	Blobs        []v1.Descriptor // config and layers of an image, blobs of an artifact
	Annotations  map[string]string
}

// A manifest comes from strangers, and a few bytes of it may become many in memory: what is parsed is bounded.
const (
	maxReferences  = 4096 // of one list; images have up to 127 layers, indexes tens of manifests
	maxAnnotations = 256
	maxString      = 255 // bytes of a media type, RFC 6838 allows 127 on each side of the slash
)

var errTooMany = fmt.Errorf("manifest of more parts than any honest one has: %w", ErrTooLarge)

// ParseManifest reads a manifest or an index. Where the optional mediaType field is absent, the kind is told by the fields
// that only that kind has. It returns an error for bytes that are no manifest, and one wrapping [ErrTooLarge] for one
// that would not fit into memory decently.
func ParseManifest(b []byte) (ManifestInfo, error) {
	var m struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		ArtifactType  string          `json:"artifactType"`
		Config        *descriptor     `json:"config"`
		Layers        descriptors     `json:"layers"`
		Blobs         descriptors     `json:"blobs"`
		Manifests     descriptors     `json:"manifests"`
		Subject       *descriptor     `json:"subject"`
		Annotations   annotations     `json:"annotations"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return ManifestInfo{}, fmt.Errorf("manifest: %w", err)
	}
	if len(m.MediaType) > maxString || len(m.ArtifactType) > maxString {
		return ManifestInfo{}, errTooMany
	}
	info := ManifestInfo{
		MediaType: m.MediaType, ArtifactType: m.ArtifactType, Annotations: m.Annotations, Manifests: m.Manifests,
	}
	if m.Subject != nil {
		subject := m.Subject.expand()
		info.Subject = &subject
	}
	if m.Config != nil {
		info.Blobs = append(info.Blobs, m.Config.expand())
		if info.ArtifactType == "" {
			info.ArtifactType = m.Config.MediaType // by the distribution specification, "Listing Referrers"
		}
	}
	info.Blobs = append(append(info.Blobs, m.Layers...), m.Blobs...)
	if info.MediaType != "" {
		return info, nil
	}
	switch {
	case m.Manifests != nil:
		info.MediaType = v1.MediaTypeImageIndex
	case m.Config != nil && m.Config.Digest != "": // an image's configuration has a "config" too, of another kind
		info.MediaType = v1.MediaTypeImageManifest
	case m.SchemaVersion == 1 && m.FSLayers != nil:
		info.MediaType = mediaTypeSchema1
	default:
		return ManifestInfo{}, fmt.Errorf("manifest: neither an index nor an image: %w", ErrUnsupported)
	}
	return info, nil
}

// descriptor is the part of a [v1.Descriptor] that is parsed.
type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    Digest `json:"digest"`
	Size      int64  `json:"size"`
	Platform  *struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		Variant      string `json:"variant"`
	} `json:"platform"`
}

func (d *descriptor) expand() v1.Descriptor {
	full := v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	if p := d.Platform; p != nil {
		full.Platform = &v1.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
	}
	return full
}

type descriptors []v1.Descriptor

// UnmarshalJSON implements json.Unmarshaler.
func (d *descriptors) UnmarshalJSON(b []byte) error {
	*d = nil
	return each(b, '[', func(dec *json.Decoder) error {
		if len(*d) == maxReferences {
			return errTooMany
		}
		var one descriptor
		if err := dec.Decode(&one); err != nil {
			return err
		}
		if len(one.MediaType) > maxString || len(one.Digest) > maxString {
			return errTooMany
		}
		*d = append(*d, one.expand())
		return nil
	}, func() { *d = descriptors{} })
}

type annotations map[string]string

// UnmarshalJSON implements json.Unmarshaler.
func (a *annotations) UnmarshalJSON(b []byte) error {
	*a = nil
	return each(b, '{', func(dec *json.Decoder) error {
		if len(*a) == maxAnnotations {
			return errTooMany
		}
		key, err := dec.Token()
		if err != nil {
			return err
		}
		var value string
		if err := dec.Decode(&value); err != nil {
			return err
		}
		(*a)[key.(string)] = value // a key of an object is a string
		return nil
	}, func() { *a = annotations{} })
}

// each calls one for every element of the list or object b, after begin. For null it calls neither.
func each(b []byte, delim json.Delim, one func(*json.Decoder) error, begin func()) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	t, err := dec.Token()
	if err != nil || t == nil {
		return err
	}
	if t != delim {
		return fmt.Errorf("%v where %v should be: %w", t, delim, ErrUnsupported)
	}
	begin()
	for dec.More() {
		if err := one(dec); err != nil {
			return err
		}
	}
	return nil
}
