package containerd

import (
	"encoding/binary"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"pier/internal/chain"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// fake is a containerd: its API on a unix socket, and its content directory.
type fake struct {
	socket  string
	content string
	version string

	mu     sync.Mutex                       // guards all below
	images map[string]map[string]oci.Digest // namespace, then name
	events map[chan struct{}]struct{}       // subscribers
	lists  int                              // calls of Images.List
	server *http.Server
	conns  sync.WaitGroup // open connections
}

func (f *fake) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		f.conns.Add(1)
	case http.StateClosed:
		f.conns.Done()
	}
}

// startFake returns a containerd that ends with the test.
func startFake(t *testing.T) *fake {
	t.Helper()
	f := newFake(t)
	f.start(t)
	return f
}

// newFake returns a containerd that is down.
func newFake(t *testing.T) *fake {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctd") // t.TempDir may be too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fake{
		socket: filepath.Join(dir, "s"), content: filepath.Join(dir, contentDir), version: "v2.0.0-fake",
		images: make(map[string]map[string]oci.Digest), events: make(map[chan struct{}]struct{}),
	}
	if err := os.MkdirAll(filepath.Join(f.content, "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fake) start(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: f, Protocols: new(http.Protocols), ConnState: f.count}
	server.Protocols.SetUnencryptedHTTP2(true)
	f.mu.Lock()
	f.server = server
	f.mu.Unlock()
	go func() { _ = server.Serve(l) }() // ends with stop
	t.Cleanup(func() { _ = server.Close() })
}

// stop breaks all connections; the socket vanishes.
func (f *fake) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = f.server.Close()
}

// blob stores content and returns its digest.
func (f *fake) blob(t *testing.T, b []byte) oci.Digest {
	t.Helper()
	dgst := ocitest.Digest(b)
	if err := os.WriteFile(chain.BlobPath(f.content, dgst), b, 0o644); err != nil {
		t.Fatal(err)
	}
	return dgst
}

// name gives an image a name, or takes it away if dgst is empty, and tells subscribers if loud.
func (f *fake) name(namespace, name string, dgst oci.Digest, loud bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.images[namespace] == nil {
		f.images[namespace] = make(map[string]oci.Digest)
	}
	f.images[namespace][name] = dgst
	if dgst == "" {
		delete(f.images[namespace], name)
	}
	for ch := range f.events {
		if loud {
			ch <- struct{}{}
		}
	}
}

func (f *fake) listed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lists
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("Content-Type", "application/grpc")
	if r.Header.Get("Te") != "trailers" || r.Header.Get("Content-Type") != "application/grpc" {
		w.Header().Set("Grpc-Status", "3")
		return
	}
	switch r.URL.Path {
	case methodVersion:
		writeMessage(w, appendString(nil, fieldVersion, f.version))
	case methodPlugins:
		entry := appendString(appendString(nil, fieldKey, "root"), fieldValue, f.content)
		writeMessage(w, appendBytes(nil, fieldPlugins, appendBytes(appendString(nil, 2, "content"), fieldExports, entry)))
	case methodNamespaces:
		var b []byte
		for _, ns := range slices.Sorted(maps.Keys(f.images)) {
			b = appendBytes(b, fieldNamespaces, appendString(nil, fieldName, ns))
		}
		writeMessage(w, b)
	case methodImages:
		f.lists++
		writeMessage(w, encodeImages(f.images[r.Header.Get("Containerd-Namespace")]))
	case methodSubscribe:
		f.subscribe(w, r)
	default:
		w.Header().Set("Grpc-Status", "12")
		return
	}
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
}

// subscribe sends events until the client leaves. Like the real one it sends no header before the first event.
func (f *fake) subscribe(w http.ResponseWriter, r *http.Request) {
	ch := make(chan struct{}, 1000)
	f.events[ch] = struct{}{}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock() // for the caller too
		delete(f.events, ch)
	}()
	for {
		select {
		case <-r.Context().Done():
			return
		case <-ch:
			writeMessage(w, appendString(nil, 3, "/images/create"))
			_ = http.NewResponseController(w).Flush() // a client that left shows in its context
		}
	}
}

func writeMessage(w http.ResponseWriter, b []byte) {
	prefix := make([]byte, framePrefix)
	binary.BigEndian.PutUint32(prefix[1:], uint32(len(b)))
	_, _ = w.Write(append(prefix, b...)) // a client that left needs nothing
}

// encodeImages encodes a ListImagesResponse with fields that are of no use to us among those that are.
func encodeImages(images map[string]oci.Digest) []byte {
	var b []byte
	for _, name := range slices.Sorted(maps.Keys(images)) {
		target := appendString(nil, 1, "application/vnd.oci.image.manifest.v1+json")
		target = appendString(target, fieldDigest, images[name].String())
		target = protowire.AppendVarint(protowire.AppendTag(target, 3, protowire.VarintType), 1234)
		img := appendString(nil, fieldName, name)
		img = appendBytes(img, 2, appendString(appendString(nil, fieldKey, "label"), fieldValue, "x"))
		img = appendBytes(img, fieldTarget, target)
		img = appendBytes(img, 7, protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1700000000))
		b = appendBytes(b, fieldImages, img)
	}
	return b
}
