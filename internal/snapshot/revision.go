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
	Again  time.Time `json:"again,omitzero"` // when it was brought last, if there was nothing new; to the hour
	Action string    `json:"action"`         // push or sync
	Name   string    `json:"name,omitempty"` // given to it
	From   string    `json:"from"`           // absolute path, reference, or URL of a store
	Of     string    `json:"of,omitempty"`   // what it is one of, if neither Name nor From says so: in a store before, see [Revision.Series]
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

// Series returns what the revisions of one thing share: its name; or where it came from, which for a path is on one machine.
func (r Revision) Series() string {
	if r.Name == "" && r.Of == "" && strings.HasPrefix(r.From, "/") {
		return r.Host + ":" + r.From
	}
	return cmp.Or(r.Name, r.Of, r.From)
}

// prefix returns what the keys of a series begin with.
func (r Revision) prefix() string {
	s := strings.ReplaceAll(url.PathEscape(r.Series()), ".", "%2E") // "." and ".." are no names of files
	if len(s) > maxName {
		s = s[:maxName-65] + "-" + string(digestOf([]byte(s)))
	}
	return revisionsPrefix + s + "/"
}

// latest returns when the snapshot was brought last.
func (r Revision) latest() time.Time {
	if r.Again.After(r.Time) {
		return r.Again
	}
	return r.Time
}

// noted is how old a revision is for it to be noted that the same was brought again: what is pushed each night must not pass for old.
const noted = time.Hour

// record keeps a revision. If the one before it of the same series is of the same snapshot, or, as a sync brings many of one series, any before
// it, that one is renewed.
func (s *Store) record(ctx context.Context, sum Summary, r Revision) error {
	if r.Action == "" {
		return nil
	}
	who := newOrigin()
	r.ID, r.Files, r.Bytes, r.User, r.Host, r.Time = sum.ID, sum.Files, sum.Bytes, who.User, who.Host, time.Now().UTC()
	var last bucket.Object
	for o, err := range s.Bucket.List(ctx, r.prefix()) {
		if err != nil {
			return err
		}
		if last = o; r.Action == "sync" && strings.Contains(o.Key, string(r.ID)) {
			break
		}
	}
	key := r.prefix() + r.Time.Format(timeFormat) + "-" + string(r.ID) + "-" + rand.Text()[:8]
	again := strings.Contains(last.Key, string(r.ID))
	if again {
		if time.Since(last.Modified) < noted {
			return nil
		}
		before, err := s.revision(ctx, last)
		if err != nil {
			return err
		}
		before.Again = r.Time
		key, r = last.Key, before
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return s.Bucket.Put(ctx, key, int64(len(text)), bytes.NewReader(text), again)
}

// Revisions returns the revisions in the store, the oldest first: of a name, or of what came from a path of any machine without a name, or all
// if both are empty.
func (s *Store) Revisions(ctx context.Context, name, from string) ([]Revision, error) {
	prefix := revisionsPrefix
	if name != "" {
		prefix = Revision{Name: name}.prefix()
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
		if err != nil || from != "" && (r.From != from || r.Name != "") {
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
