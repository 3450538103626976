// Package bucket keeps objects under keys, in a directory, in S3 or what speaks like it, and in Google Cloud Storage. It knows nothing
// of what the objects are. An object is there whole or not at all, whoever is killed; what was sent of a large one before a cut is not
// sent again. Memory does not grow with the size of an object.
package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/url"
	"path"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"pier/internal/oci"
)

// ErrExists is the error of a [Bucket.Put] that must not replace what is there.
var ErrExists = errors.New("it exists already")

// An Object is what a bucket knows of one.
type Object struct {
	Key      string
	Size     int64     // bytes
	Modified time.Time // by the clock of the bucket
	Version  string    // changes with the content: an ETag or a generation; empty if the bucket has no such thing
}

// A Bucket keeps objects. All methods may be called at once from many goroutines, and give up when ctx ends. Errors name the object and
// the bucket, and wrap a class of package oci where one applies: ErrNotFound, ErrUnauthorized, ErrDenied, ErrRateLimited,
// ErrUnavailable for a bucket that cannot be asked. What may pass by itself was tried again before.
type Bucket interface {
	// String returns the URL of the bucket, for people. There are no secrets in it.
	String() string

	// Stat returns what is known of an object. The error of one that is not there wraps [oci.ErrNotFound].
	Stat(ctx context.Context, key string) (Object, error)

	// Open returns length bytes of an object from offset; a negative length means all to its end, and one past the end is cut there.
	// The error wraps [oci.ErrRange] if offset is past the end. The caller closes the reader.
	Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)

	// Put stores size bytes, which r must end after. If r fails or has another size nothing is stored under key, and the error wraps
	// that of r; but for [oci.ErrDigestMismatch] what was sent of a large object is kept for the next Put of it, which reads r from
	// its beginning, too. If there is such an object it is replaced, or left alone with an error that wraps [ErrExists], whichever
	// is asked for; r may not have been read then.
	Put(ctx context.Context, key string, size int64, r io.Reader, replace bool) error

	// Copy stores the object of another bucket, as it is in its Version, under key, without its bytes passing here. What is there is
	// replaced. The error wraps [oci.ErrUnsupported] if the two buckets are not of one service, or it will not do that.
	Copy(ctx context.Context, from Bucket, object Object, key string) error

	// List returns the objects whose keys begin with prefix, in the order of bytes. After an error it ends.
	List(ctx context.Context, prefix string) iter.Seq2[Object, error]

	// Page returns how many objects one request of List brings; 0 if a List is never cheaper than as many Stats.
	Page() int

	// Delete removes an object. That it is not there is no error.
	Delete(ctx context.Context, key string) error

	// Sync returns when what was Put before survives a power cut.
	Sync(ctx context.Context) error

	// Clean removes what Puts left that ended before the time given, and returns of how many.
	Clean(ctx context.Context, before time.Time) (int, error)
}

// A Config says which bucket, and how to deal with it. Only URL must be set.
type Config struct {
	// URL is file:///directory, s3://bucket/prefix or gs://bucket/prefix. The query of the latter two may have endpoint=URL, and
	// that of s3 region=NAME, profile=NAME (of the shared credentials) and path-style=BOOL, by default true with an endpoint.
	URL string

	Retries  int           // how often a request that failed is sent again if that may help
	Limit    *rate.Limiter // of bytes a second, in both directions; its burst is at least 64 KiB; nil: none
	StateDir string        // a directory for what must be remembered of uploads that were cut; empty: they begin anew
	Log      *slog.Logger  // nil: none
}

// Open returns the bucket that cfg describes. It asks nobody whether there is one.
func Open(cfg Config) (Bucket, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("store %.200q: %w", cfg.URL, err)
	}
	switch {
	case u.User != nil:
		return nil, fmt.Errorf("store %.200s: credentials do not belong in a URL: set the variables of the environment that the service's own tools read", u.Redacted())
	case u.Scheme == "file":
		return openDirectory(cfg, u)
	case u.Scheme != "s3" && u.Scheme != "gs":
		return nil, fmt.Errorf("store %.200q: want file:///directory, s3://bucket/prefix or gs://bucket/prefix", cfg.URL)
	case u.Host == "":
		return nil, fmt.Errorf("store %.200q: there is no bucket in it: want %s://bucket/prefix", cfg.URL, u.Scheme)
	}
	p := place{scheme: u.Scheme, name: u.Host, prefix: prefixOf(u.Path)}
	if u.Scheme == "s3" {
		return openS3(cfg, p, u.Query())
	}
	return openGCS(cfg, p, u.Query())
}

// A place is where in an object store the keys are.
type place struct {
	scheme string
	name   string // of the bucket
	prefix string // of all keys; empty, or it ends in a slash
}

func (p place) String() string {
	return strings.TrimSuffix(p.scheme+"://"+p.name+"/"+p.prefix, "/")
}

// fault returns an error about an object, or about all of the bucket where key is empty.
func (p place) fault(key string, err error) error {
	return fmt.Errorf("%s%s: %w", p, strings.TrimSuffix("/"+key, "/"), err)
}

// prefixOf returns the prefix of keys below the path of a URL.
func prefixOf(p string) string {
	if p = strings.Trim(path.Clean("/"+p), "/"); p == "" {
		return ""
	}
	return p + "/"
}

// onlyKeys returns an error if a query has other keys than those.
func onlyKeys(query url.Values, keys ...string) error {
	for key, values := range query {
		known := false
		for _, k := range keys {
			known = known || k == key
		}
		if !known {
			return fmt.Errorf("%q is no option of such a store: want %s", key, strings.Join(keys, ", "))
		}
		if len(values) != 1 {
			return fmt.Errorf("the option %q is there %d times", key, len(values))
		}
	}
	return nil
}

// sized is a reader that must end after the bytes that were announced.
type sized struct {
	r    io.Reader
	left int64
}

var (
	errLonger  = errors.New("there is more of it than was said")
	errShorter = errors.New("there is less of it than was said")
)

func (s *sized) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.left -= int64(n)
	switch {
	case s.left < 0:
		return 0, errLonger
	case err == io.EOF && s.left > 0:
		return n, errShorter
	}
	return n, err
}

// fill reads p from r, as io.ReadFull does, and once all of p is read and that should be the end, sees that it is.
func (s *sized) fill(p []byte) error {
	if _, err := io.ReadFull(s, p); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			err = errShorter
		}
		return err
	}
	if s.left > 0 {
		return nil
	}
	var more [1]byte
	for {
		n, err := s.Read(more[:])
		if n == 0 && errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// wrong reports whether what was sent of an object must not be used again.
func wrong(err error) bool {
	return errors.Is(err, oci.ErrDigestMismatch) || errors.Is(err, errLonger) || errors.Is(err, errShorter)
}
