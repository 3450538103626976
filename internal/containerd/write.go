package containerd

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"pier/internal/chain"
	"pier/internal/oci"
)

// The methods by which content gets into containerd, and the numbers of the fields of their messages.
const (
	methodWrite       = "/containerd.services.content.v1.Content/Write"
	methodInfo        = "/containerd.services.content.v1.Content/Info"
	methodDelete      = "/containerd.services.content.v1.Content/Delete"
	methodImageCreate = "/containerd.services.images.v1.Images/Create"
	methodImageUpdate = "/containerd.services.images.v1.Images/Update"
	methodLease       = "/containerd.services.leases.v1.Leases/Create"
	methodLeaseDelete = "/containerd.services.leases.v1.Leases/Delete"

	writeAction   protowire.Number = 1 // WriteContentRequest
	writeRef      protowire.Number = 2
	writeTotal    protowire.Number = 3
	writeExpected protowire.Number = 4
	writeOffset   protowire.Number = 5
	writeData     protowire.Number = 6
	writeLabels   protowire.Number = 7

	actionWrite  = 1
	actionCommit = 2

	contentDigest protowire.Number = 1 // InfoRequest, DeleteContentRequest

	leaseID     protowire.Number = 1 // CreateRequest, DeleteRequest
	leaseLabels protowire.Number = 3 // CreateRequest

	fieldMediaType protowire.Number = 1 // Descriptor
	fieldSize      protowire.Number = 3

	// Labels by which containerd's garbage collector knows what belongs to a manifest, and how long a lease lasts.
	labelContent = "containerd.io/gc.ref.content."
	labelExpire  = "containerd.io/gc.expire"

	leaseLife  = 24 * time.Hour
	writeStall = 2 * time.Minute // without anything read or sent a write is given up
	writeSize  = 1 << 20         // bytes of one message; containerd takes 16 MiB
)

// A Writer puts images into a namespace of one containerd, through its API. What it put stays once a name needs it; what has none after a day, or
// after Close, containerd removes. All methods may be called at once.
type Writer struct {
	client    *client
	namespace string
	lease     string
}

var _ chain.Target = (*Writer)(nil)

// NewWriter returns a Writer for the containerd behind a socket. The caller closes it.
func NewWriter(ctx context.Context, socket, namespace string) (*Writer, error) {
	w := &Writer{client: newClient(socket), namespace: namespace, lease: "pier-" + rand.Text()}
	request := appendString(nil, leaseID, w.lease)
	request = appendEntry(request, leaseLabels, labelExpire, time.Now().Add(leaseLife).UTC().Format(time.RFC3339))
	if err := w.call(ctx, methodLease, request); err != nil {
		w.client.close()
		return nil, err
	}
	return w, nil
}

// Close lets go of what has no name.
func (w *Writer) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	err := w.call(ctx, methodLeaseDelete, appendString(nil, leaseID, w.lease))
	w.client.close()
	if errors.Is(err, oci.ErrNotFound) {
		return nil
	}
	return err
}

func (w *Writer) call(ctx context.Context, method string, request []byte) error {
	cl := call{method: method, namespace: w.namespace, lease: w.lease, request: request}
	return w.client.unary(ctx, cl, func(*message) error { return nil })
}

// Resolve implements [oci.Source] for content, and says only whether it is there.
func (w *Writer) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	desc := oci.Descriptor{Digest: ref.Digest, Source: source}
	if ref.Digest == "" {
		return desc, fmt.Errorf("containerd: %s: %w", ref, oci.ErrNotFound)
	}
	return desc, w.call(ctx, methodInfo, appendString(nil, contentDigest, ref.Digest.String()))
}

// Open implements [oci.Source]: nothing is read from here.
func (w *Writer) Open(context.Context, oci.Reference, int64, int64) (io.ReadCloser, oci.Descriptor, error) {
	return nil, oci.Descriptor{}, oci.ErrUnsupported
}

// Delete implements [oci.Store].
func (w *Writer) Delete(ctx context.Context, dgst oci.Digest) error {
	err := w.call(ctx, methodDelete, appendString(nil, contentDigest, dgst.String()))
	if errors.Is(err, oci.ErrNotFound) {
		return nil
	}
	return err
}

// Tag implements [oci.Tagger]. A name that is there names the new manifest from now on.
func (w *Writer) Tag(ctx context.Context, ref oci.Reference, desc oci.Descriptor) error {
	target := appendString(nil, fieldMediaType, desc.MediaType)
	target = appendString(target, fieldDigest, desc.Digest.String())
	target = appendVarint(target, fieldSize, desc.Size)
	img := appendString(nil, fieldName, ref.String())
	img = appendBytes(img, fieldTarget, target)
	request := appendBytes(nil, fieldImages, img)
	err := w.call(ctx, methodImageCreate, request)
	if isStatus(err, codeAlreadyExists) {
		err = w.call(ctx, methodImageUpdate, request)
	}
	return err
}

// Put implements [oci.Store]. containerd proves the content.
func (w *Writer) Put(ctx context.Context, desc oci.Descriptor, r io.Reader) error {
	var labels []byte
	if oci.IsManifest(desc.MediaType) {
		text, err := io.ReadAll(io.LimitReader(r, oci.MaxManifest+1))
		if err != nil {
			return err
		}
		info, err := oci.ParseManifest(text)
		if err != nil {
			return fmt.Errorf("containerd: %s: %w", desc.Digest, err)
		}
		for i, child := range append(info.Blobs, info.Manifests...) {
			labels = appendEntry(labels, writeLabels, labelContent+strconv.Itoa(i), child.Digest.String())
		}
		r = bytes.NewReader(text)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := time.AfterFunc(writeStall, cancel)
	defer watch.Stop()
	body, pipe := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := w.write(pipe, desc, labels, &noticed{r, watch})
		pipe.CloseWithError(err)
		sent <- err
	}()
	err := w.client.stream(ctx, call{method: methodWrite, namespace: w.namespace, lease: w.lease, body: body}, func(*message) error { return nil })
	body.CloseWithError(io.ErrClosedPipe) // if containerd ended it, nobody reads the rest
	unsent := <-sent
	switch {
	case isStatus(err, codeAlreadyExists):
		return nil
	case unsent != nil && !errors.Is(unsent, io.ErrClosedPipe):
		return unsent // why the content ended
	}
	return err
}

// noticed puts off a timer as it is read.
type noticed struct {
	io.Reader
	timer *time.Timer
}

func (n *noticed) Read(p []byte) (int, error) {
	n.timer.Reset(writeStall)
	return n.Reader.Read(p)
}

// write sends the messages that are some content.
func (w *Writer) write(to io.Writer, desc oci.Descriptor, labels []byte, r io.Reader) error {
	ref := "pier-" + rand.Text() // its own: containerd may hold that of a write that was cut for a moment more
	out := bufio.NewWriterSize(to, 64<<10)
	buf := make([]byte, min(writeSize, desc.Size+1))
	for offset := int64(0); ; {
		n, err := io.ReadFull(r, buf)
		end := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !end {
			return err
		}
		m := appendVarint(nil, writeAction, actionWrite)
		if end {
			m = append(appendVarint(nil, writeAction, actionCommit), labels...)
		}
		m = appendString(m, writeRef, ref)
		m = appendVarint(m, writeTotal, desc.Size)
		m = appendString(m, writeExpected, desc.Digest.String())
		m = appendVarint(m, writeOffset, offset)
		m = appendBytes(m, writeData, buf[:n])
		var frame [framePrefix]byte
		binary.BigEndian.PutUint32(frame[1:], uint32(len(m)))
		_, _ = out.Write(frame[:]) // the error stays
		if _, err := out.Write(m); err != nil {
			return err
		}
		if offset += int64(n); end {
			return out.Flush()
		}
	}
}

func isStatus(err error, code int) bool {
	var status *statusError
	return errors.As(err, &status) && status.code == code
}

func appendString(b []byte, num protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), s)
}

func appendBytes(b []byte, num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

func appendVarint(b []byte, num protowire.Number, n int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), uint64(n))
}

// appendEntry appends an entry of a map of strings.
func appendEntry(b []byte, num protowire.Number, key, value string) []byte {
	return appendBytes(b, num, appendString(appendString(nil, fieldKey, key), fieldValue, value))
}
