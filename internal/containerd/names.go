package containerd

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"pier/internal/oci"
)

// callTimeout bounds one call: listing a store of thousands of images from a busy disk takes seconds.
const callTimeout = 30 * time.Second

// names is what containerd calls its images, at one time. It does not change once it is in a Store.
type names struct {
	tags    map[string]map[string]oci.Digest // repository's name with its registry, then tag
	targets map[oci.Digest]struct{}          // all manifests that have a name, tag or not
}

func newNames() *names {
	return &names{tags: make(map[string]map[string]oci.Digest), targets: make(map[oci.Digest]struct{})}
}

// add adds an image unless the tag it names is known already. Names that pin a digest or are one have no tag.
func (n *names) add(img image) {
	dgst, err := oci.ParseDigest(img.target.String())
	if err != nil {
		return // nothing could be served under it
	}
	n.targets[dgst] = struct{}{}
	if _, err := oci.ParseDigest(img.name); err == nil || strings.Contains(img.name, "@") {
		return
	}
	ref, err := oci.ParseReference(img.name, oci.DockerHub)
	if err != nil {
		return // containerd takes any text for a name; no client of a registry can ask for this one
	}
	tags := n.tags[ref.Name()]
	if tags == nil {
		tags = make(map[string]oci.Digest)
		n.tags[ref.Name()] = tags
	}
	if _, ok := tags[ref.Tag]; !ok {
		tags[ref.Tag] = dgst
	}
}

func (n *names) equal(o *names) bool {
	return maps.Equal(n.targets, o.targets) && maps.EqualFunc(n.tags, o.tags, maps.Equal)
}

// rankNamespaces puts those namespaces first whose tags count where several know one: Kubernetes', then that of
// containerd's own tools, then the others by name.
func rankNamespaces(namespaces []string) {
	rank := func(ns string) int {
		switch ns {
		case "k8s.io":
			return 0
		case "default":
			return 1
		}
		return 2
	}
	slices.SortFunc(namespaces, func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a, b))
	})
}

// list asks for the names of all namespaces.
func (c *client) list(ctx context.Context) (*names, error) {
	namespaces, err := c.namespaces(ctx)
	if err != nil {
		return nil, err
	}
	rankNamespaces(namespaces)
	n := newNames()
	for _, ns := range namespaces {
		if err := c.images(ctx, ns, n.add); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (c *client) namespaces(ctx context.Context) ([]string, error) {
	var list []string
	err := c.unary(ctx, call{method: methodNamespaces}, func(m *message) error {
		return m.fields(func(num protowire.Number, v []byte) error {
			if num != fieldNamespaces {
				return nil
			}
			ns, err := stringField(v, fieldName)
			list = append(list, ns)
			return err
		})
	})
	return list, err
}

func (c *client) images(ctx context.Context, namespace string, add func(image)) error {
	return c.unary(ctx, call{method: methodImages, namespace: namespace}, func(m *message) error {
		return m.fields(func(num protowire.Number, v []byte) error {
			if num != fieldImages {
				return nil
			}
			img, err := decodeImage(v)
			if err == nil {
				add(img)
			}
			return err
		})
	})
}

func (c *client) version(ctx context.Context) (string, error) {
	var version string
	err := c.unary(ctx, call{method: methodVersion}, func(m *message) error {
		return m.fields(func(num protowire.Number, v []byte) error {
			if num == fieldVersion {
				version = string(v)
			}
			return nil
		})
	})
	return version, err
}

// contentRoot asks containerd for its content directory, and returns what it states: nothing if its content is not in one.
func (c *client) contentRoot(ctx context.Context) (string, error) {
	var root string
	request := encodeFilters("type==" + contentPlugin + ",id==content")
	err := c.unary(ctx, call{method: methodPlugins, request: request}, func(m *message) error {
		return m.fields(func(num protowire.Number, v []byte) error {
			if num != fieldPlugins {
				return nil
			}
			r, err := decodeExport(v, "root")
			root = cmp.Or(r, root)
			return err
		})
	})
	return root, err
}

// imageEvents are the events after which names are listed anew.
var imageEvents = encodeFilters(`topic=="/images/create"`, `topic=="/images/update"`, `topic=="/images/delete"`)

// subscribe calls event for every image event until ctx or the connection ends. containerd acknowledges a subscription
// with its first event only; sent is called when the request for it is on the wire.
func (c *client) subscribe(ctx context.Context, sent, event func()) error {
	cl := call{method: methodSubscribe, request: imageEvents, sent: sent}
	err := c.stream(ctx, cl, func(*message) error {
		event()
		return nil
	})
	if err == nil {
		err = fmt.Errorf("containerd: event stream ended: %w", oci.ErrUnavailable)
	}
	return err
}
