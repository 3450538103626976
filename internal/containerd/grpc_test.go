package containerd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// dialHandler returns a client of a server that answers every call with h.
func dialHandler(t *testing.T, h http.HandlerFunc) *client {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	c := newClient(socket)
	t.Cleanup(c.close)
	return c
}

func TestAnswers(t *testing.T) {
	version := appendString(nil, fieldVersion, "v9")
	const ct = "application/grpc"
	tests := map[string]struct {
		answer http.HandlerFunc
		want   error // nil: only that there is one
	}{
		"status alone": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ct)
			w.Header().Set("Grpc-Status", "5")
			w.Header().Set("Grpc-Message", "no%20such")
		}, oci.ErrNotFound},
		"status after a message": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ct)
			writeMessage(w, version)
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "14")
		}, oci.ErrUnavailable},
		"unknown method": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ct)
			w.Header().Set("Grpc-Status", "12")
		}, oci.ErrUnsupported},
		"no status": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ct)
			writeMessage(w, version)
		}, io.ErrUnexpectedEOF},
		"no message": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ct)
			w.Header().Set("Grpc-Status", "0")
		}, nil},
		"two messages": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ct)
			writeMessage(w, version)
			writeMessage(w, version)
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
		}, nil},
		"cut message": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ct)
			_, _ = w.Write([]byte{0, 0, 0, 0, 100, 0x0a})
		}, io.ErrUnexpectedEOF},
		"cut prefix": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ct)
			_, _ = w.Write([]byte{0, 0})
		}, io.ErrUnexpectedEOF},
		"huge message": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ct)
			_, _ = w.Write([]byte{0, 0xff, 0xff, 0xff, 0xff})
		}, oci.ErrTooLarge},
		"compressed message": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ct)
			_, _ = w.Write([]byte{1, 0, 0, 0, 0})
		}, nil},
		"not gRPC":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }, nil},
		"not found": {http.NotFound, nil},
		"aborted": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ct)
			writeMessage(w, version)
			panic(http.ErrAbortHandler)
		}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := dialHandler(t, tt.answer).version(t.Context())
			if err == nil || (tt.want != nil && !errors.Is(err, tt.want)) {
				t.Errorf("got error %v, want %v", err, tt.want)
			}
		})
	}
}

func TestStatusMessage(t *testing.T) {
	c := dialHandler(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", "7")
		w.Header().Set("Grpc-Message", "50%25 denied")
	})
	_, err := c.version(t.Context())
	var no *statusError
	if !errors.As(err, &no) || no.code != 7 || no.message != "50% denied" {
		t.Errorf("got error %#v", err)
	}
}

// A containerd that accepts and never answers must not hold anybody.
func TestNoAnswer(t *testing.T) {
	c := dialHandler(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.version(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got error %v, want DeadlineExceeded", err)
	}
}

func decodeImages(b []byte) ([]image, error) {
	var list []image
	m := &message{bufio.NewReaderSize(bytes.NewReader(b), 16), int64(len(b))}
	err := m.fields(func(num protowire.Number, v []byte) error {
		if num != fieldImages {
			return nil
		}
		img, err := decodeImage(v)
		list = append(list, img)
		return err
	})
	return list, err
}

// Decoding while a message arrives gives what decoding it whole gives, and survives anything.
func FuzzMessage(f *testing.F) {
	dgst := ocitest.Digest(nil)
	f.Add(encodeImages(map[string]oci.Digest{"registry.test/app:v1": dgst, "other": dgst}))
	f.Add(encodeFilters("a", "b"))
	f.Add([]byte{0x0a, 0x05, 0x01})
	f.Add([]byte{0x0b, 0x0c, 0x0d, 1, 2, 3, 4, 0x09, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Add(binary.AppendUvarint([]byte{0x0a}, 1<<63))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, gotErr := decodeImages(b)
		var want []image
		wantErr := eachField(b, func(num protowire.Number, v []byte) error {
			if num != fieldImages {
				return nil
			}
			img, err := decodeImage(v)
			want = append(want, img)
			return err
		})
		if gotErr == nil && (wantErr != nil || !slices.Equal(got, want)) {
			t.Errorf("streamed: %v, %v; whole: %v, %v", got, gotErr, want, wantErr)
		}
		_, _ = decodeExport(b, "root")
		n := newNames()
		for _, img := range got {
			n.add(img)
		}
	})
}
