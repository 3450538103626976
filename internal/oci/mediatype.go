package oci

import (
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

// A ManifestInfo is what Pier needs to know of a manifest of any kind.
type ManifestInfo struct {
	MediaType    string
	ArtifactType string          // as the referrers API reports it
	Subject      *v1.Descriptor  // what an artifact refers to, or nil
	Manifests    []v1.Descriptor // children of an index
	Blobs        []v1.Descriptor // config and layers of an image, blobs of an artifact
	Annotations  map[string]string
}

// ParseManifest reads a manifest or an index. Where the optional mediaType field is absent, the kind is told by the fields
// that only that kind has. It returns an error for bytes that are no manifest.
func ParseManifest(b []byte) (ManifestInfo, error) {
	var m struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		ArtifactType  string            `json:"artifactType"`
		Config        *v1.Descriptor    `json:"config"`
		Layers        []v1.Descriptor   `json:"layers"`
		Blobs         []v1.Descriptor   `json:"blobs"`
		Manifests     []v1.Descriptor   `json:"manifests"`
		Subject       *v1.Descriptor    `json:"subject"`
		Annotations   map[string]string `json:"annotations"`
		FSLayers      []json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return ManifestInfo{}, fmt.Errorf("manifest: %w", err)
	}
	info := ManifestInfo{
		MediaType: m.MediaType, ArtifactType: m.ArtifactType, Subject: m.Subject,
		Manifests: m.Manifests, Annotations: m.Annotations,
	}
	if m.Config != nil {
		info.Blobs = append(info.Blobs, *m.Config)
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
