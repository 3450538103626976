package snapshot

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"

	"pier/internal/oci"
)

// A Level says how much of the objects [Store.Verify] looks at.
type Level string

// Levels of verification.
const (
	LevelList Level = "list" // that each is there
	LevelSize Level = "size" // and has its size
	LevelFull Level = "full" // and its content, which is read
)

// A FaultKind says what is wrong with an object.
type FaultKind string

// What may be wrong with an object.
const (
	FaultMissing    FaultKind = "missing"
	FaultSize       FaultKind = "size"       // it has another
	FaultContent    FaultKind = "content"    // it is not what its digest says
	FaultUnreadable FaultKind = "unreadable" // it is there, and cannot be read
)

// A Fault is an object that is not as it must be.
type Fault struct {
	Digest Digest    `json:"digest"`
	Key    string    `json:"key"`
	Size   int64     `json:"size"` // that it must have
	Fault  FaultKind `json:"fault"`
	Detail string    `json:"detail"`
	Paths  []string  `json:"paths"` // files of the snapshot that have it as their content
}

// A Verdict says what is wrong with a snapshot.
type Verdict struct {
	ID      Digest  `json:"id"`
	Level   Level   `json:"level"`
	Files   int     `json:"files"`
	Objects int     `json:"objects"`
	Bytes   int64   `json:"bytes"`  // of the objects
	Faults  []Fault `json:"faults"` // by digest
	Needed  int64   `json:"needed"` // bytes that would repair it
}

// Err returns an error wrapping [oci.ErrDigestMismatch] if something is wrong.
func (v Verdict) Err() error {
	if len(v.Faults) == 0 {
		return nil
	}
	return fmt.Errorf("snapshot %s: %d of %d objects are missing or damaged: %w", v.ID, len(v.Faults), v.Objects, oci.ErrDigestMismatch)
}

// Verify looks whether a snapshot is all there. What is wrong is in the Verdict; an error means that it could not be found out.
func (s *Store) Verify(ctx context.Context, id Digest, level Level) (Verdict, error) {
	m, err := s.Manifest(ctx, id)
	if err != nil {
		return Verdict{ID: id, Level: level}, err
	}
	objects := m.objects()
	v := Verdict{ID: id, Level: level, Files: m.summary().Files, Objects: len(objects), Bytes: bytesOf(objects), Faults: []Fault{}}
	sizes, err := s.sizes(ctx, objects)
	if err != nil {
		return v, err
	}
	for _, o := range objects {
		switch size, ok := sizes[o.digest]; {
		case !ok:
			v.Faults = append(v.Faults, o.fault(FaultMissing, "it is not there"))
		case size != o.size && level != LevelList:
			v.Faults = append(v.Faults, o.fault(FaultSize, fmt.Sprintf("it has %d bytes, want %d", size, o.size)))
		}
	}
	if level == LevelFull {
		faults, err := s.prove(ctx, objects, sizes)
		if err != nil {
			return v, err
		}
		v.Faults = append(v.Faults, faults...)
	}
	sort.Slice(v.Faults, func(i, j int) bool { return v.Faults[i].Digest < v.Faults[j].Digest })
	index := make(map[Digest]int)
	for i, f := range v.Faults {
		index[f.Digest] = i
		v.Needed += f.Size
	}
	for _, e := range m {
		if i, ok := index[e.Digest]; ok && !e.Dir() {
			v.Faults[i].Paths = append(v.Faults[i].Paths, e.Path)
		}
	}
	return v, nil
}

func (o object) fault(kind FaultKind, detail string) Fault {
	return Fault{Digest: o.digest, Key: o.key(), Size: o.size, Fault: kind, Detail: detail}
}

// prove reads those of the objects that are there with the right size, and returns which are not what they must be.
func (s *Store) prove(ctx context.Context, objects []object, sizes map[Digest]int64) (faults []Fault, err error) {
	var there []object
	for _, o := range objects {
		if size, ok := sizes[o.digest]; ok && size == o.size {
			there = append(there, o)
		}
	}
	s.Meter.Begin("verifying", bytesOf(there))
	var mu sync.Mutex // guards faults
	err = each(ctx, s.Jobs, there, func(ctx context.Context, o object) error {
		kind, err := s.proveOne(ctx, o)
		if kind != "" {
			mu.Lock()
			defer mu.Unlock()
			faults = append(faults, o.fault(kind, err.Error()))
			return nil
		}
		return err
	})
	return faults, err
}

// proveOne reads an object. If it is at fault the error says how; one without a kind says that the store is.
func (s *Store) proveOne(ctx context.Context, o object) (FaultKind, error) {
	r, err := s.read(ctx, o, 0)
	if err == nil {
		err = o.prove(s.Meter.reader(r)).discard()
		r.Close()
	}
	switch {
	case err == nil, ctx.Err() != nil:
		return "", err
	case errors.Is(err, oci.ErrDigestMismatch):
		return FaultContent, err
	case errors.Is(err, oci.ErrNotFound):
		return FaultMissing, err
	case errors.Is(err, oci.ErrUnavailable), errors.Is(err, oci.ErrRateLimited), errors.Is(err, oci.ErrUnauthorized):
		return "", err
	}
	return FaultUnreadable, err
}
