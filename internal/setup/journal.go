package setup

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// A journal holds what files were before they were changed. It is written before the file is, and forgets a file after that
// was restored, so that a crash in between costs nothing: undoing what was not yet done, or is undone already, does nothing.
type journal struct {
	Version int      `json:"version"` // 1
	Files   []record `json:"files"`   // in the order in which they were changed first

	path string   // "" in a dry run, which writes none
	lock *os.File // the directory, locked; nil if there is none
}

// A record is what is known of one file.
type record struct {
	Path     string   `json:"path"` // below the root
	Original state    `json:"original"`
	Wrote    []string `json:"wrote"`            // digests of the content that is ours: the last, and the one before it if that was there
	Made     []string `json:"made,omitempty"`   // directories made for it, below the root, the outermost first
	Keys     []Key    `json:"keys,omitempty"`   // what was set, if not the whole file is ours
	Undone   []string `json:"undone,omitempty"` // command to run after that is undone
}

// ours reports whether content is as Pier wrote it.
func (r *record) ours(st state) bool {
	return !st.Absent && slices.Contains(r.Wrote, digest(st.Content))
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// journal returns the path of the journal of that name, without the root.
func (m *Machine) journal(name string) string { return filepath.Join(m.DataDir, "setup", name+".json") }

// open reads the journal of that name, and holds it against other processes until it is closed.
func (m *Machine) open(name string) (*journal, error) {
	path, err := m.resolve(m.journal(name))
	if err != nil {
		return nil, hint(err)
	}
	j := &journal{Version: 1}
	if !m.DryRun {
		j.path = path
		if err := j.acquire(); err != nil {
			return nil, hint(err)
		}
	}
	st, err := read(path, maxJournal)
	if err == nil && !st.Absent {
		err = json.Unmarshal(st.Content, j)
	}
	switch {
	case err != nil:
		err = fmt.Errorf("the journal %s, which undoing needs, cannot be read: %w", path, err)
	case j.Version != 1:
		err = fmt.Errorf("the journal %s is of a newer pier: use that one", path)
	default:
		return j, nil
	}
	j.close()
	return nil, hint(err)
}

// acquire locks the directory of the journal, which it makes if need be.
func (j *journal) acquire() error {
	dir := filepath.Dir(j.path)
	if err := os.MkdirAll(dir, 0o700); err != nil { // originals may hold secrets
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		d.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return errors.New("another pier is changing this machine's configuration: wait for it")
		}
		return fmt.Errorf("%s: %w", dir, err)
	}
	j.lock = d
	return nil
}

// close lets others at the journal. A directory without journals goes.
func (j *journal) close() {
	if j.lock != nil {
		os.Remove(filepath.Dir(j.path))
		j.lock.Close()
	}
}

// record returns what is known of a path.
func (j *journal) record(path string) (record, bool) {
	i := slices.IndexFunc(j.Files, func(r record) bool { return r.Path == path })
	if i < 0 {
		return record{}, false
	}
	return j.Files[i], true
}

// put keeps a record in the place of the one of the same path.
func (j *journal) put(r record) error {
	if i := slices.IndexFunc(j.Files, func(have record) bool { return have.Path == r.Path }); i >= 0 {
		j.Files[i] = r
	} else {
		j.Files = append(j.Files, r)
	}
	return j.save()
}

// drop forgets a path.
func (j *journal) drop(path string) error {
	j.Files = slices.DeleteFunc(j.Files, func(r record) bool { return r.Path == path })
	return j.save()
}

func (j *journal) save() error {
	if j.path == "" {
		return nil
	}
	if len(j.Files) == 0 {
		if err := os.Remove(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return syncDir(filepath.Dir(j.path))
	}
	b, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	return replace(j.path, state{Content: append(b, '\n'), Mode: 0o600, UID: -1, GID: -1})
}
