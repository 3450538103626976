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

	path string   // for people
	data *os.Root // the data directory; nil if there is none
	dir  *os.Root // the one in it that holds journals; nil if there is none
	lock *os.File // dir, locked; nil in a dry run, which writes nothing
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

// setupDir is the directory of the journals, in the data directory. The data directory may be another user's, for whom a node
// runs, but what is in a journal is carried out with the rights of whoever undoes it.
const setupDir = "setup"

// journal returns the path of the journal of that name, without the root.
func (m *Machine) journal(name string) string {
	return filepath.Join(m.DataDir, setupDir, name+".json")
}

// open reads the journal of that name, and holds it against other processes until it is closed.
func (m *Machine) open(name string) (*journal, error) {
	data, err := m.resolve(m.DataDir)
	if err != nil {
		return nil, hint(err)
	}
	j := &journal{Version: 1, path: filepath.Join(data, setupDir, name+".json")}
	if err := j.enter(data, !m.DryRun); err != nil {
		j.close()
		return nil, hint(err)
	}
	st, err := j.read()
	if err == nil && !st.Absent {
		err = json.Unmarshal(st.Content, j)
	}
	switch {
	case err != nil:
		err = fmt.Errorf("the journal %s, which undoing needs, cannot be read: %w", j.path, err)
	case j.Version != 1:
		err = fmt.Errorf("the journal %s is of a newer pier: use that one", j.path)
	default:
		return j, nil
	}
	j.close()
	return nil, hint(err)
}

// enter opens the directory of the journal. To write, it makes it if need be, and locks it.
func (j *journal) enter(data string, write bool) error {
	if write {
		if err := os.MkdirAll(data, 0o700); err != nil {
			return err
		}
	}
	var err error
	if j.data, err = os.OpenRoot(data); err != nil {
		return unlessAbsent(err, write)
	}
	if write {
		if err := j.data.Mkdir(setupDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) { // originals may hold secrets
			return err
		}
	}
	info, err := j.data.Lstat(setupDir)
	if err != nil {
		return unlessAbsent(err, write)
	}
	if err := trustworthy(filepath.Dir(j.path), info); err != nil {
		return err
	}
	if j.dir, err = j.data.OpenRoot(setupDir); err != nil {
		return err
	}
	if opened, err := j.dir.Stat("."); err != nil || !os.SameFile(info, opened) {
		return errors.Join(fmt.Errorf("%s was replaced just now", filepath.Dir(j.path)), err)
	}
	if !write {
		return nil
	}
	d, err := j.dir.Open(".")
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		d.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return errors.New("another pier is changing this machine's configuration: wait for it")
		}
		return fmt.Errorf("%s: %w", filepath.Dir(j.path), err)
	}
	j.lock = d
	return nil
}

// unlessAbsent returns err. In a dry run, what is not there is none.
func unlessAbsent(err error, write bool) error {
	if !write && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// trustworthy returns an error if somebody else than root and the user that this process runs as may have written a file or
// a directory.
func trustworthy(path string, info fs.FileInfo) error {
	var why string
	switch sys, ok := info.Sys().(*syscall.Stat_t); {
	case info.Mode()&fs.ModeSymlink != 0:
		why = "is a symbolic link"
	case !ok, sys.Uid != 0 && int(sys.Uid) != os.Geteuid():
		why = "belongs to another user"
	case info.Mode().Perm()&0o022 != 0:
		why = "can be written by others"
	default:
		return nil
	}
	return fmt.Errorf("%s %s, and what is in it would be carried out: if it is right, make it root's alone (chown root, chmod go-w) and run this again; else remove it, and undo by hand what it was for", path, why)
}

// read returns the file of the journal as it is.
func (j *journal) read() (state, error) {
	if j.dir == nil {
		return state{Absent: true}, nil
	}
	name := filepath.Base(j.path)
	info, err := j.dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return state{Absent: true}, nil
	}
	if err != nil {
		return state{}, err
	}
	if err := trustworthy(j.path, info); err != nil {
		return state{}, err
	}
	f, err := j.dir.Open(name)
	if err != nil {
		return state{}, err
	}
	defer f.Close()
	return stateOf(f, maxJournal)
}

// close lets others at the journal. A directory without journals goes.
func (j *journal) close() {
	if j.lock != nil {
		_ = j.data.Remove(setupDir) // unless it is not empty
		j.lock.Close()
	}
	for _, r := range []*os.Root{j.dir, j.data} {
		if r != nil {
			r.Close()
		}
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
	if j.lock == nil {
		return nil
	}
	name := filepath.Base(j.path)
	if len(j.Files) == 0 {
		if err := j.dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return j.lock.Sync()
	}
	b, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	temp := ".new-" + name // of nobody else, by the lock
	f, err := j.dir.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = j.dir.Rename(temp, name)
	}
	if err != nil {
		return errors.Join(err, j.dir.Remove(temp))
	}
	return j.lock.Sync()
}
