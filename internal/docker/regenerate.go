package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"pier/internal/oci"
	"pier/internal/overlay2"
)

// images puts together the manifests that Docker knows its images by and that nobody kept, where all layers are known. Indexes,
// which name what Docker never had, cannot be.
func (st *student) images(ctx context.Context) {
	images, _ := st.s.disk.Images() // whoever reads them next reports the error
	for _, img := range images {
		missing := st.missing(img)
		if len(missing) == 0 || ctx.Err() != nil {
			continue
		}
		made, known := st.manifest(img, missing)
		switch {
		case made:
			st.s.look()
		case known && !st.failed[img.ID]:
			st.failed[img.ID] = true
			st.s.log.InfoContext(ctx, "image is not offered under its digest: Docker does not keep its manifest, and none of the usual forms is it; pull it once more through this node, and it is",
				"image", img.ID, "digest", missing[0])
		}
	}
}

// missing returns the digests that Docker knows an image by and that are not here, unless one is.
func (st *student) missing(img overlay2.Image) (list []oci.Digest) {
	for _, name := range img.Names {
		if name.Digest == "" {
			continue
		}
		if _, ok := st.s.kept.manifest(name.Digest); ok {
			return nil
		}
		list = append(list, name.Digest)
	}
	return list
}

// manifest puts together the manifest of an image, and keeps it if it is one of those wanted. Known says that all layers are.
func (st *student) manifest(img overlay2.Image, wanted []oci.Digest) (made, known bool) {
	config, err := st.s.disk.Config(img.ID)
	if err != nil {
		return false, false
	}
	layers := make([]part, 0, len(img.DiffIDs))
	st.s.mu.Lock()
	for _, diffID := range img.DiffIDs {
		for _, d := range st.s.view.digests[diffID] {
			if r, ok := st.s.recipes.get(d); ok && r.diffID == diffID {
				layers = append(layers, part{d, r.size, r.how.Compression()})
				break
			}
		}
	}
	st.s.mu.Unlock()
	if len(layers) != len(img.DiffIDs) {
		return false, false
	}
	for _, b := range forms(part{img.ID, int64(len(config)), ""}, layers) {
		for _, want := range wanted {
			if digest.FromBytes(b) == want {
				err := st.s.kept.putManifest(want, b)
				if err != nil {
					st.s.log.Warn("manifest not kept", "digest", want, "err", err)
				}
				return err == nil, true
			}
		}
	}
	return false, true
}

// A part is what a manifest says of a configuration or a layer.
type part struct {
	digest      oci.Digest
	size        int64
	compression string // "gzip", "zstd", or "" for none
}

// forms returns the manifests that builders write for an image, in all the ways they do: with the media types of Docker or OCI;
// with size before digest (docker push, crane, containers/image for Docker's types) or after it (image-spec's order); with a media type
// of their own or without; on one line (crane, containers/image), with a line's end (umoci), or indented by two (BuildKit) or
// three (docker push) spaces.
func forms(config part, layers []part) (all [][]byte) {
	for _, docker := range []bool{true, false} {
		for _, sizeFirst := range []bool{true, false} {
			for _, typed := range []bool{true, false} {
				line := form(config, layers, docker, sizeFirst, typed)
				all = append(all, line, append(bytes.Clone(line), '\n'))
				for _, indent := range []string{"  ", "   "} {
					var b bytes.Buffer
					if json.Indent(&b, line, "", indent) == nil {
						all = append(all, b.Bytes())
					}
				}
			}
		}
	}
	return all
}

func form(config part, layers []part, docker, sizeFirst, typed bool) []byte {
	types := struct{ manifest, config, layer string }{
		"application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar",
	}
	separator := "+"
	if docker {
		types.manifest, types.config = "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.container.image.v1+json"
		types.layer, separator = "application/vnd.docker.image.rootfs.diff.tar", "."
	}
	descriptor := func(mediaType string, p part) string {
		if p.compression != "" {
			mediaType += separator + p.compression
		}
		if sizeFirst {
			return fmt.Sprintf(`{"mediaType":%q,"size":%d,"digest":%q}`, mediaType, p.size, p.digest)
		}
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, p.digest, p.size)
	}
	list := make([]string, len(layers))
	for i, l := range layers {
		list[i] = descriptor(types.layer, l)
	}
	own := ""
	if typed {
		own = fmt.Sprintf(`"mediaType":%q,`, types.manifest)
	}
	return fmt.Appendf(nil, `{"schemaVersion":2,%s"config":%s,"layers":[%s]}`, own, descriptor(types.config, config), strings.Join(list, ","))
}
