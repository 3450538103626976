package cache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/chain"
	"pier/internal/oci"
)

// What a client pushes comes in pieces, into a file beside those of transfers. It is gone on with after a restart, and swept with the others.

const (
	uploadPrefix = "upload-"
	maxUploads   = 1000 // at once
)

// StartUpload begins an upload, and returns its ID. Where what is never evicted takes all that the cache may, the error wraps [syscall.ENOSPC].
func (k *Cache) StartUpload() (id string, err error) {
	if most := k.c.MaxBytes; most > 0 && k.bytes.Load() > most && k.stays.Load() > most+most/slack {
		return "", fmt.Errorf("cache: images that were pushed or came from archives take all of the %d bytes that it may: remove some with pier prune, or allow more: %w", most, syscall.ENOSPC)
	}
	uploads, err := filepath.Glob(k.path("pier", "partial", uploadPrefix+"*"))
	if err != nil {
		return "", err
	}
	if len(uploads) >= maxUploads {
		return "", fmt.Errorf("cache: %d uploads wait to be gone on with: %w", len(uploads), oci.ErrUnavailable)
	}
	id = rand.Text()
	f, err := os.OpenFile(k.path("pier", "partial", uploadPrefix+id), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	return id, f.Close()
}

// uploadName returns the name of the file of an upload.
func uploadName(id string) (string, error) {
	for _, c := range []byte(id) { // it becomes part of a path
		if (c < 'A' || c > 'Z') && (c < '2' || c > '7') {
			return "", missingUpload(id)
		}
	}
	return uploadPrefix + id, nil
}

func missingUpload(id string) error {
	return fmt.Errorf("cache: upload %.40q: %w", id, oci.ErrNotFound)
}

// openUpload opens the file of an upload, which is the caller's alone until it is settled. An ID that is none is [oci.ErrNotFound], one that
// somebody is at [oci.ErrUnavailable].
func (k *Cache) openUpload(id string) (*partial, error) {
	name, err := uploadName(id)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	_, taken := k.active[name]
	if !taken {
		k.active[name] = struct{}{}
	}
	k.mu.Unlock()
	if taken {
		return nil, fmt.Errorf("cache: upload %s is in use: %w", id, oci.ErrUnavailable)
	}
	f, err := os.OpenFile(k.path("pier", "partial", name), os.O_RDWR, 0)
	if err != nil {
		k.settled(name)
		if errors.Is(err, fs.ErrNotExist) {
			err = missingUpload(id)
		}
		return nil, err
	}
	return &partial{k, f, name}, nil
}

// Uploaded returns how many bytes of an upload are here.
func (k *Cache) Uploaded(id string) (int64, error) {
	name, err := uploadName(id)
	if err != nil {
		return 0, err
	}
	info, err := os.Stat(k.path("pier", "partial", name))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, missingUpload(id)
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// AppendUpload appends what r has, and returns how many bytes are here then, also with an error: they stay, unless the disk is full: others
// need the room. If offset is not where it was left, and not negative, the error wraps [oci.ErrRange].
func (k *Cache) AppendUpload(id string, offset int64, r io.Reader) (size int64, err error) {
	p, err := k.openUpload(id)
	if err != nil {
		return 0, err
	}
	defer p.f.Close()
	defer func() {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			err = errors.Join(err, p.Discard())
			return
		}
		p.wait()
	}()
	if size, err = p.f.Seek(0, io.SeekEnd); err != nil {
		return 0, err
	}
	if offset >= 0 && offset != size {
		return size, fmt.Errorf("cache: upload at %d, not %d: %w", size, offset, oci.ErrRange)
	}
	if most := k.c.MaxBytes; most > 0 {
		r = io.LimitReader(r, most-size+1)
	}
	n, err := io.Copy(p.f, r)
	if most := k.c.MaxBytes; most > 0 && size+n > most {
		err = fmt.Errorf("cache: an upload of more than the %d bytes that the cache may have: %w", most, syscall.ENOSPC)
	}
	return size + n, err
}

// FinishUpload keeps an upload as the content of a digest. Whatever comes of that, the upload is over: with [oci.ErrDigestMismatch] if
// it is other content.
func (k *Cache) FinishUpload(id string, dgst oci.Digest) error {
	p, err := k.openUpload(id)
	if err != nil {
		return err
	}
	defer p.f.Close()
	h := dgst.Algorithm().Hash()
	n, err := io.Copy(h, p.f)
	if err == nil && !chain.Matches(h, dgst) {
		err = fmt.Errorf("cache: upload of %s: %w", dgst, oci.ErrDigestMismatch)
	}
	if err != nil {
		return errors.Join(err, p.Discard())
	}
	k.Expect(dgst)
	return p.Commit(oci.Reference{Kind: oci.Blob, Digest: dgst}, oci.Descriptor{Digest: dgst, Size: n})
}

// expectedFor is how long content stays for a manifest that is still to come.
const expectedFor = time.Hour

// Expect has content stay, if it is here or comes, for a manifest that is to come: images are pushed and loaded blobs first.
func (k *Cache) Expect(dgst oci.Digest) {
	k.settle.RLock() // whoever removes it just now is done first
	defer k.settle.RUnlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	remember(k.expected, dgst, time.Now())
}

// isExpected reports whether a manifest is to come that needs the content.
func (k *Cache) isExpected(dgst oci.Digest) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, ok := k.expected[dgst]
	return ok && time.Since(at) < expectedFor
}

// CancelUpload forgets an upload.
func (k *Cache) CancelUpload(id string) error {
	p, err := k.openUpload(id)
	if err != nil {
		return err
	}
	defer p.f.Close()
	return p.Discard()
}

// Pushed is the part of the cache that clients pushed: what its tags name, this node alone knows.
func (k *Cache) Pushed() oci.Source { return pushed{k} }

type pushed struct{ *Cache }

// Resolve implements [oci.Source].
func (p pushed) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	if e, ok := p.named(ref); !ok || e.Source != SourcePush {
		return oci.Descriptor{}, fmt.Errorf("cache: %s was not pushed: %w", ref, oci.ErrNotFound)
	}
	return p.Cache.Resolve(ctx, ref)
}

// Tags implements [oci.Lister].
func (p pushed) Tags(ctx context.Context, registry, repository string) ([]string, error) {
	tags, err := p.Cache.Tags(ctx, registry, repository)
	var list []string
	for _, tag := range tags {
		if e, ok := p.named(oci.Reference{Registry: registry, Repository: repository, Tag: tag}); ok && e.Source == SourcePush {
			list = append(list, tag)
		}
	}
	return list, err
}

// Referrers implements [oci.Lister].
func (p pushed) Referrers(ctx context.Context, ref oci.Reference) ([]v1.Descriptor, error) {
	all, err := p.Cache.Referrers(ctx, ref)
	if len(all) == 0 {
		return nil, err
	}
	pushed := make(map[oci.Digest]bool)
	p.mu.Lock()
	for name, e := range p.index {
		if rest, ok := strings.CutPrefix(name, ref.Name()); ok && e.Source == SourcePush && !strings.Contains(rest, "/") {
			pushed[e.Digest] = true // by a tag, or by its digest
		}
	}
	p.mu.Unlock()
	return slices.DeleteFunc(all, func(d v1.Descriptor) bool { return !pushed[d.Digest] }), err
}
