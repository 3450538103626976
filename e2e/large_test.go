//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// largeSize is two GiB and a little: no power of two, and more than 31 bits hold.
const largeSize = 2<<30 + 12345

// putLarge places a blob of largeSize into the storage of a registry, in the repository large, without pushing it: the
// file is sparse, with a number in every MiB, and takes 8 MiB of disk.
func putLarge(t *testing.T, r *registry) digest.Digest {
	t.Helper()
	f, err := os.CreateTemp(r.root, "large")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(largeSize); err != nil {
		t.Fatal(err)
	}
	var number [8]byte
	for at := int64(0); at < largeSize; at += 1 << 20 {
		binary.BigEndian.PutUint64(number[:], uint64(at)+1)
		if _, err := f.WriteAt(number[:], at); err != nil {
			t.Fatal(err)
		}
	}
	dgst, err := digest.FromReader(f)
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(r.root, "docker/registry/v2")
	data := filepath.Join(base, "blobs/sha256", dgst.Encoded()[:2], dgst.Encoded(), "data")
	writeFile(t, filepath.Join(base, "repositories/large/_layers/sha256", dgst.Encoded(), "link"), dgst.String())
	if err := os.MkdirAll(filepath.Dir(data), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(f.Name(), data); err != nil {
		t.Fatal(err)
	}
	return dgst
}

// Without a cache nothing of a blob remains on disk, and memory does not grow with its size.
func TestBlobOfTwoGiBPassesThroughAndLeavesNothing(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	dgst := putLarge(t, registry)
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", registry.addr)})
	before := p.spooled(t)
	door := newClient(p.node, "registry.test")
	path := "large/blobs/" + dgst.String()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()

	begin := time.Now()
	resp, err := door.open(ctx, http.MethodGet, path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.ContentLength != largeSize {
		t.Fatalf("%s with %d bytes, want %d", resp.Status, resp.ContentLength, int64(largeSize))
	}
	sum := sha256.New()
	n, err := io.Copy(sum, resp.Body)
	if got := digest.NewDigest(digest.SHA256, sum); err != nil || n != largeSize || got != dgst {
		t.Errorf("got %d bytes of digest %s, want %d of %s, error %v", n, got, int64(largeSize), dgst, err)
	}
	t.Logf("%d MiB in %v, %d MiB of memory at most", n>>20, time.Since(begin).Round(time.Millisecond), p.peakMemory(t)>>20)

	const limit = 25 << 20 // of the whole product, whatever it transfers
	if peak := p.peakMemory(t); peak > limit {
		t.Errorf("pier had %d bytes of memory resident, want at most %d", peak, limit)
	}
	eventually(t, soon, func() error {
		if after := p.spooled(t); after > before {
			return fmt.Errorf("%d bytes of temporary files remain", after-before)
		}
		return nil
	})

	const at = 2047 << 20
	a := door.get(t, path, "Range", fmt.Sprintf("bytes=%d-%d", at, at+7))
	a.wantStatus(t, "a range near the end", http.StatusPartialContent)
	if len(a.body) != 8 || binary.BigEndian.Uint64(a.body) != at+1 {
		t.Errorf("a range near the end: % x", a.body)
	}
}
