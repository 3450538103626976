package setup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A draft is a change that was checked and is not made yet.
type draft struct {
	record
	full string // path of the file itself, links followed
	now  state
	want state
	keys string // says how many keys the file has before and after; "" if the whole file is ours
	left string // why it is not to be made, and what to do by hand; "" if it is
}

// A foreignError is a file that somebody else wrote, where a whole file of Pier's should be.
type foreignError struct{ text string }

func (e *foreignError) Error() string { return e.text }

// draft works out what a change comes to, and touches nothing.
func (m *Machine) draft(j *journal, c Change) (draft, error) {
	full, err := m.resolve(c.Path)
	if err != nil {
		return draft{}, err
	}
	now, err := read(full)
	if err != nil {
		return draft{}, err
	}
	d := draft{full: full, now: now, want: now}
	base, err := m.base(j, c, now, full)
	if foreign := new(foreignError); errors.As(err, &foreign) && c.ByHand != "" {
		d.left = "somebody else's; " + c.ByHand
		return d, nil
	}
	if err != nil {
		return d, err
	}
	if now.Absent {
		d.want = state{Mode: c.Mode, UID: -1, GID: -1}
		if c.Mode == 0 {
			d.want.Mode = 0o644
		}
	}
	d.record = record{Path: c.Path, Original: base, Keys: c.Keys, Undone: c.Undone}
	if c.Undone == nil {
		d.Undone = c.After
	}
	if old, ok := j.record(c.Path); ok {
		d.Made = old.Made
		if old.ours(now) {
			d.Wrote = []string{digest(now.Content)}
		}
	}
	if c.Keys == nil {
		d.want.Content = c.Content
	} else {
		content, err := setKeys(base.Content, c.Keys)
		if err != nil {
			return d, &mergeError{full, err, c.Keys}
		}
		d.want.Content = content
		d.keys = fmt.Sprintf("keys: %d, now %d", size(base.Content), size(content))
	}
	if w := digest(d.want.Content); !slices.Contains(d.Wrote, w) {
		d.Wrote = append(d.Wrote, w)
	}
	return d, nil
}

// before returns what a JSON file would hold if Pier had not been here.
func (m *Machine) before(name, path string) ([]byte, error) {
	look := *m
	look.DryRun = true
	j, err := look.open(name)
	if err != nil {
		return nil, err
	}
	full, err := m.resolve(path)
	if err != nil {
		return nil, err
	}
	now, err := read(full)
	if err != nil {
		return nil, hint(err)
	}
	base, err := m.base(j, Change{Path: path, Keys: []Key{}}, now, full)
	return base.Content, err
}

// base returns what the file would be if Pier had not been here.
func (m *Machine) base(j *journal, c Change, now state, full string) (state, error) {
	old, known := j.record(c.Path)
	switch {
	case known && (old.ours(now) || same(now, old.Original)):
		return old.Original, nil
	case c.Keys != nil:
		if !known {
			return now, nil
		}
		content, _, err := unsetKeys(now.Content, old.Original, old.Keys)
		if err != nil {
			return now, &mergeError{full, err, c.Keys}
		}
		now.Content = content
		return now, nil
	case now.Absent, bytes.Equal(now.Content, c.Content), m.Force:
		return now, nil
	case known:
		return now, &foreignError{full + " was changed since pier wrote it: remove it, or replace it with --force"}
	}
	return now, &foreignError{full + " is there already, and not pier's: replace it with --force, which keeps the original"}
}

// A mergeError is a file of JSON that is left alone, because it is not understood.
type mergeError struct {
	file string
	err  error
	keys []Key // that were to be set
}

func (e *mergeError) Unwrap() error { return e.err }

// Error says what is to be added by hand.
func (e *mergeError) Error() string {
	at := ": "
	if errors.As(e.err, new(*positionError)) {
		at = ":"
	}
	byHand, err := setKeys(nil, e.keys)
	if err != nil {
		return fmt.Sprintf("%s%s%v; it is left alone", e.file, at, e.err)
	}
	return fmt.Sprintf("%s%s%v; it is left alone: mend it, or add by hand\n%s", e.file, at, e.err, bytes.TrimSpace(byHand))
}

// carryOut makes a change.
func (m *Machine) carryOut(j *journal, d draft) (Step, error) {
	step := Step{Action: Keep, Done: !m.DryRun, Path: d.full}
	if d.left != "" {
		step.Action, step.Detail = Leave, d.left
		return step, nil
	}
	if !d.now.Absent && bytes.Equal(d.now.Content, d.want.Content) {
		return step, nil
	}
	step.Action = Write
	switch {
	case d.Original.Absent:
		step.Detail = "new"
	case d.keys != "":
		step.Detail = d.keys + "; the original is kept"
	default:
		step.Detail = "the original is kept"
	}
	if m.DryRun {
		return step, nil
	}
	dirs := missing(filepath.Dir(d.full))
	for _, dir := range dirs {
		if below := m.relative(dir); !slices.Contains(d.Made, below) {
			d.Made = append(d.Made, below)
		}
	}
	if err := j.put(d.record); err != nil {
		return step, err
	}
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return step, err
		}
	}
	return step, replace(d.full, d.want)
}

// undo makes one file what it was.
func (m *Machine) undo(j *journal, r record) (Step, error) {
	full, err := m.resolve(r.Path)
	if err != nil {
		return Step{}, err
	}
	now, err := read(full)
	if err != nil {
		return Step{}, err
	}
	step := Step{Action: Restore, Done: !m.DryRun, Path: full}
	want := r.Original
	switch {
	case same(now, r.Original):
		step.Action, step.Detail = Keep, "it is as it was"
		want = now
	case now.Absent:
		step.Action, step.Detail = Leave, "somebody removed it"
		want = now
	case r.ours(now):
	case r.Keys == nil:
		step.Action, step.Detail = Leave, "it was changed since pier wrote it; remove it by hand if nobody needs it"
		want = now
	default:
		want = now
		var left []string
		want.Content, left, err = unsetKeys(now.Content, r.Original, r.Keys)
		if err != nil {
			step.Action, step.Detail = Leave, fmt.Sprintf("it was changed since pier wrote it, and cannot be read: %v", err)
			want = now
			break
		}
		step.Detail = "pier's keys only: it was changed since"
		if left != nil {
			step.Detail += "; " + strings.Join(left, ", ") + " left as found"
		}
		want.Absent = r.Original.Absent && size(want.Content) == 0
	}
	if want.Absent && !now.Absent {
		step.Action, step.Detail = Remove, ""
	}
	if step.Action == Remove && m.named(j, full) {
		return Step{Action: Leave, Path: full, Detail: hostsFile + " beside it names it: take that out, and run this again"}, nil
	}
	if m.DryRun {
		return step, nil
	}
	return step, m.settle(j, r, full, now, want)
}

// named reports whether a hosts.toml that somebody else wrote names a file beside it: without that file it is an error.
func (m *Machine) named(j *journal, full string) bool {
	beside := filepath.Join(filepath.Dir(full), hostsFile)
	st, err := read(beside)
	if err != nil || beside == full || !bytes.Contains(st.Content, []byte(filepath.Base(full))) {
		return false
	}
	r, ok := j.record(m.relative(beside))
	return !ok || !r.ours(st)
}

// settle makes the file at full, which is now so, what is wanted, and forgets it.
func (m *Machine) settle(j *journal, r record, full string, now, want state) error {
	switch {
	case same(now, want):
	case want.Absent:
		if err := os.Remove(full); err != nil {
			return err
		}
	default:
		if err := replace(full, want); err != nil {
			return err
		}
	}
	if want.Absent {
		for _, dir := range slices.Backward(r.Made) {
			if full, err := m.resolve(dir); err == nil {
				os.Remove(full) // one that others use too is not empty
			}
		}
	}
	return j.drop(r.Path)
}

// same reports whether two states are the same but for times.
func same(a, b state) bool {
	if a.Absent || b.Absent {
		return a.Absent == b.Absent
	}
	return bytes.Equal(a.Content, b.Content) && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID
}

// relative returns a path without the root.
func (m *Machine) relative(full string) string {
	root, err := m.resolve("/")
	if err != nil || root == "/" {
		return full
	}
	return strings.TrimPrefix(full, root)
}
