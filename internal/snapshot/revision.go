package snapshot

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"sort"
	"strings"
	"sync"
	"time"

	"pier/internal/bucket"
	"pier/internal/oci"
)

// A Revision says who brought which snapshot into a store. It is kept there.
type Revision struct {
	ID     Digest    `json:"id"`
	Time   time.Time `json:"time"`           // by the clock of who did it
	Action string    `json:"action"`         // push or sync
	Name   string    `json:"name,omitempty"` // given to it
	From   string    `json:"from"`           // absolute path, reference, or URL of a store
	User   string    `json:"user"`
	Host   string    `json:"host"`
	Files  int       `json:"files"`
	Bytes  int64     `json:"bytes"`

	key string
}

const (
	revisionsPrefix = ".pier/revisions/"
	maxRevision     = 64 << 10 // bytes
	maxName         = 200      // bytes of a name in a key: a file's name has at most 255
	timeFormat      = "20060102T150405.000000000Z"
)

// series returns what revisions of one thing share: its name, or where it came from.
func series(name, from string) string {
	s := url.PathEscape(cmp.Or(name, from))
	s = strings.ReplaceAll(s, ".", "%2E") // "." and ".." are no names of files
	if len(s) > maxName {
		s = s[:maxName-65] + "-" + string(digestOf([]byte(s)))
	}
	return revisionsPrefix + s + "/"
}

// record keeps a revision, unless the one before it of the same series is of the same snapshot. A sync brings many of one series, and
// of those that it brought before it keeps none.
func (s *Store) record(ctx context.Context, sum Summary, r Revision) error {
	if r.Action == "" {
		return nil
	}
	who := newOrigin()
	r.ID, r.Files, r.Bytes, r.User, r.Host, r.Time = sum.ID, sum.Files, sum.Bytes, who.User, who.Host, time.Now().UTC()
	prefix := series(r.Name, r.From)
	last := ""
	for o, err := range s.Bucket.List(ctx, prefix) {
		if err != nil {
			return err
		}
		last = o.Key
		if r.Action == "sync" && strings.Contains(last, string(r.ID)) {
			return nil
		}
	}
	if strings.Contains(last, string(r.ID)) {
		return nil
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	key := prefix + r.Time.Format(timeFormat) + "-" + string(r.ID) + "-" + rand.Text()[:8]
	return s.Bucket.Put(ctx, key, int64(len(text)), bytes.NewReader(text), false)
}

// Revisions returns the revisions in the store, the oldest first: of a name or of what came from a path, or all if both are empty.
func (s *Store) Revisions(ctx context.Context, name, from string) ([]Revision, error) {
	prefix := revisionsPrefix
	if name != "" || from != "" {
		prefix = series(name, from)
	}
	var keys []bucket.Object
	for o, err := range s.Bucket.List(ctx, prefix) {
		if err != nil {
			return nil, err
		}
		keys = append(keys, o)
	}
	var mu sync.Mutex // guards found
	var found []Revision
	err := each(ctx, max(s.Jobs, asked), keys, func(ctx context.Context, o bucket.Object) error {
		r, err := s.revision(ctx, o)
		if errors.Is(err, oci.ErrNotFound) {
			return nil // removed just now
		}
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		found = append(found, r)
		return nil
	})
	sort.Slice(found, func(i, j int) bool {
		a, b := &found[i], &found[j]
		return a.Time.Before(b.Time) || a.Time.Equal(b.Time) && a.key < b.key
	})
	return found, err
}

func (s *Store) revision(ctx context.Context, o bucket.Object) (r Revision, err error) {
	from, err := s.Bucket.Open(ctx, o.Key, 0, maxRevision)
	if err != nil {
		return r, err
	}
	defer from.Close()
	text, err := io.ReadAll(from)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("%s/%s: not a revision: %w: remove it", s.Bucket, o.Key, err)
	}
	if _, err := ParseDigest(string(r.ID)); err != nil {
		return r, fmt.Errorf("%s/%s: not a revision: %w: remove it", s.Bucket, o.Key, err)
	}
	r.key = o.Key
	return r, nil
}
