// Package oci holds the words every other package shares: what content is called ([Reference], [Descriptor]), what can
// supply it ([Source], [Store]) and the classes of what goes wrong. It does no I/O and imports nothing of ours.
package oci

import (
	"context"
	"errors"
	"io"
	"os"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Classes of errors. A Source returns errors that wrap one of them where it applies; an error that wraps none is a
// fault of the Source (a sick disk, a broken connection), never an answer about the content.
var (
	ErrNotFound       = errors.New("not found")                         // this Source does not have it, and that is all
	ErrNameInvalid    = errors.New("invalid name")                      // malformed registry or repository
	ErrTagInvalid     = errors.New("invalid tag")                       // malformed tag, or a tag where only a digest can be
	ErrDigestInvalid  = errors.New("invalid digest")                    // malformed or of an algorithm Pier does not speak
	ErrRange          = errors.New("range not satisfiable")             // offset past the end
	ErrUnauthorized   = errors.New("authentication required")           // upstream wants credentials, or other ones
	ErrDenied         = errors.New("denied")                            // upstream forbids it
	ErrNotAllowed     = errors.New("not allowed by this node")          // this node's rules forbid to ask upstream
	ErrRateLimited    = errors.New("too many requests")                 // upstream asks to come back later
	ErrUnsupported    = errors.New("unsupported")                       // not spoken by this Source
	ErrUnavailable    = errors.New("unavailable")                       // could not be asked: unreachable, timed out, 5xx
	ErrDigestMismatch = errors.New("content does not match its digest") // bytes are wrong; nothing of them may be kept
	ErrTooLarge       = errors.New("too large")                         // a manifest over MaxManifest
	ErrDamaged        = errors.New("a copy on this node is damaged")    // and not offered any more: whoever asks again gets another
)

// MaxManifest is the largest manifest Pier handles, in bytes: the size every registry should accept at least, by the
// distribution specification.
const MaxManifest = 4 << 20

// A Descriptor says what content is and how this node comes to have it.
type Descriptor struct {
	MediaType string // as upstream gave it; for blobs often application/octet-stream
	Digest    Digest
	Size      int64 // bytes

	// Missing is how many of Size bytes have not reached this node yet: 0 for content that is whole, more for
	// content in flight. It is meaningless for content elsewhere.
	Missing int64

	// Source names what supplied the content, for logs, metrics and blame: "containerd", "cache", "peer", or an upstream's host.
	Source string

	// Stale is set by Resolve on the last known digest of a tag whose registry could not be asked.
	Stale bool
}

// A Source answers the pull half of the distribution API: Resolve is HEAD, Open is GET. All methods may be called at once
// from many goroutines, and give up when ctx ends.
type Source interface {
	// Resolve returns media type, digest and size of what ref names. Only Resolve looks at tags, and only where ref
	// has no digest. It returns an error wrapping [ErrNotFound] if this Source does not have it.
	Resolve(ctx context.Context, ref Reference) (Descriptor, error)

	// Open returns length bytes from offset (length < 0: to the end; a length past the end is cut there) of the content
	// with ref.Digest, which must be set, and the descriptor of the whole. Bytes are unverified unless a Source says
	// otherwise. Content still arriving is served as it arrives: reads wait. It returns an error wrapping [ErrNotFound]
	// if this Source does not have it, or [ErrRange] if offset is past its end. The caller closes the reader.
	// Open ends by itself when nothing happens for long.
	//
	// A reader that implements io.WriterTo is cheaper to io.Copy than to Read: it hands files to the kernel.
	Open(ctx context.Context, ref Reference, offset, length int64) (io.ReadCloser, Descriptor, error)
}

// A Store is a Source that can be written.
type Store interface {
	Source

	// Put stores the content of r as desc.Digest. It verifies, and stores nothing on a mismatch ([ErrDigestMismatch]).
	Put(ctx context.Context, desc Descriptor, r io.Reader) error

	// Delete removes content. Deleting what is not there is no error.
	Delete(ctx context.Context, dgst Digest) error
}

// A Spool lends files to content on its way and keeps what was proven.
type Spool interface {
	// Begin returns the file for the content of ref.Digest, with the bytes that an interrupted transfer of it from the
	// same registry left in it. It is the caller's alone until it is settled.
	Begin(ref Reference) (Partial, error)
}

// A Partial is the file of one transfer. One of Commit, Suspend and Discard settles what becomes of it; none of them closes
// the file or disturbs those who read it. Whoever began it closes it at last.
type Partial interface {
	File() *os.File                              // open for reading and writing
	Commit(ref Reference, desc Descriptor) error // keep: the content is proven. On an error nothing is kept; ErrUnsupported: it is not fit to be kept
	Suspend() error                              // keep the bytes for the next Begin, if the Spool can
	Discard() error                              // keep nothing
}

// A Lister is a Source that can also say what there is. A Source without the means returns an error wrapping
// [ErrUnsupported]; one that knows nothing of the repository or subject, [ErrNotFound].
type Lister interface {
	// Tags returns the tags of a repository, sorted by byte value.
	Tags(ctx context.Context, registry, repository string) ([]string, error)

	// Referrers returns the descriptors of the manifests whose subject is ref.Digest, of every artifact type.
	Referrers(ctx context.Context, ref Reference) ([]v1.Descriptor, error)
}

// A Blamer is told when content that it supplied under origin ([Descriptor.Source]) did not match its digest, so that
// it asks somebody else next time, or drops its copy.
type Blamer interface {
	Blame(ref Reference, origin string)
}

// A Tagger records what a tag named when its registry was last asked.
type Tagger interface {
	Tag(ctx context.Context, ref Reference, desc Descriptor) error
}

type (
	authorizationKey struct{}
	viaKey           struct{}
	fallbackKey      struct{}
)

// WithAuthorization returns a context that carries a client's own Authorization header to the registry its request
// names, and to nobody else. An empty value changes nothing.
func WithAuthorization(ctx context.Context, header string) context.Context {
	return with(ctx, authorizationKey{}, header)
}

// Authorization returns the client's Authorization header, or "".
func Authorization(ctx context.Context) string { return value(ctx, authorizationKey{}) }

// WithVia returns a context that carries the Via header of a request, which names the nodes it came through, to the nodes
// it goes on to. An empty value changes nothing.
func WithVia(ctx context.Context, header string) context.Context { return with(ctx, viaKey{}, header) }

// Via returns the nodes that a request came through, or "".
func Via(ctx context.Context) string { return value(ctx, viaKey{}) }

// WithFallback returns a context that says that the client goes to the registry itself, with credentials of its own, when
// it is answered not found: a Source may then leave the fetching to it.
func WithFallback(ctx context.Context) context.Context {
	return context.WithValue(ctx, fallbackKey{}, true)
}

// HasFallback reports whether the client goes to the registry itself, see [WithFallback].
func HasFallback(ctx context.Context) bool { return ctx.Value(fallbackKey{}) != nil }

func with(ctx context.Context, key any, value string) context.Context {
	if value == "" {
		return ctx
	}
	return context.WithValue(ctx, key, value)
}

func value(ctx context.Context, key any) string {
	s, _ := ctx.Value(key).(string)
	return s
}
