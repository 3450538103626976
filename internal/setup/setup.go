// Package setup changes the configuration of other programs of this machine, so that they use the node, and undoes it. Each
// change is atomic; what was there before is recorded first (journal.go), so that [Machine.Undo] restores it to the byte,
// and what somebody else changed meanwhile stays theirs. docker.go and trust.go say what is changed; the certificate
// authority itself is not made here.
package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A Machine is the file system that holds the configuration, and what runs commands there.
type Machine struct {
	Root    string // stands in front of every path, those of the journal too; "" for this machine as it is
	DataDir string // holds the journals, in setup/; absolute, without the root
	DryRun  bool   // nothing is written or run; steps say what would be
	Force   bool   // files and settings that somebody else made are replaced; their originals are kept for Undo

	// Run runs a command and returns an error that holds what it said. nil runs it on this machine, for two minutes at most.
	// With a Root no command is run.
	Run func(ctx context.Context, command []string) error
}

// A Change is one file as it shall be.
type Change struct {
	Path    string      // absolute, without the root; a symbolic link is followed
	Content []byte      // all of the file, if Keys is nil
	Keys    []Key       // what to set in a file of JSON, where all else stays as it is
	Mode    fs.FileMode // of a file that is not there yet; 0 means 0644
	ByHand  string      // what to do by hand where the whole file is somebody else's, and is left alone; "" makes that an error
	After   []string    // command to run once all changes are made, also if there was nothing to change; nil for none
	Undone  []string    // command to run once it is undone; nil: After
}

// A Step is one thing that was done, or would be.
type Step struct {
	Action Action `json:"action"`
	Done   bool   `json:"done"`             // false if it was not done: it only would be, or is left to the caller
	Path   string `json:"path,omitempty"`   // of the file, below the root
	Line   string `json:"line,omitempty"`   // the command, for Run
	Detail string `json:"detail,omitempty"` // for people
}

// An Action is what happens to a file, or that a command is run.
type Action string

// Actions.
const (
	Write   Action = "write"   // the file has what was wanted
	Keep    Action = "keep"    // it had it before
	Remove  Action = "remove"  // it is gone, because it was not there before Pier
	Restore Action = "restore" // it is as it was before Pier
	Leave   Action = "leave"   // it is not touched, though it was meant to be: somebody else's
	Run     Action = "run"     // a command
)

// Apply makes the changes of a plan, all of which are checked before the first is made. name is the journal's. With replace,
// what an earlier Apply under that name changed, and this one does not, is undone. Steps that were taken before an error are
// returned with it.
func (m *Machine) Apply(ctx context.Context, name string, changes []Change, replace bool) ([]Step, error) {
	j, err := m.open(name)
	if err != nil {
		return nil, err
	}
	defer j.close()
	var (
		drafts []draft
		errs   []error
		steps  []Step
		after  [][]string
	)
	for _, c := range changes {
		d, err := m.draft(j, c)
		drafts, errs = append(drafts, d), append(errs, err)
		after = addCommand(after, c.After)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, hint(err)
	}
	if replace {
		for _, r := range slices.Backward(slices.Clone(j.Files)) {
			if slices.ContainsFunc(changes, func(c Change) bool { return c.Path == r.Path }) {
				continue
			}
			step, err := m.undo(j, r)
			if err != nil {
				return steps, hint(err)
			}
			steps, after = addUndone(append(steps, step), after, r)
		}
	}
	for _, d := range drafts {
		step, err := m.carryOut(j, d)
		if err != nil {
			return steps, hint(err)
		}
		steps = append(steps, step)
	}
	ran, err := m.RunAll(ctx, after)
	return append(steps, ran...), err
}

// Undo restores what Apply under that name changed, the last first. A file that was changed by somebody else since is theirs:
// keys that Pier set are taken out of it, otherwise it is left alone.
func (m *Machine) Undo(ctx context.Context, name string) ([]Step, error) {
	if !m.exists(m.journal(name)) {
		return nil, nil
	}
	j, err := m.open(name)
	if err != nil {
		return nil, err
	}
	defer j.close()
	var (
		steps []Step
		after [][]string
	)
	for _, r := range slices.Backward(slices.Clone(j.Files)) {
		step, err := m.undo(j, r)
		if err != nil {
			return steps, hint(err)
		}
		steps, after = addUndone(append(steps, step), after, r)
	}
	ran, err := m.RunAll(ctx, after)
	return append(steps, ran...), err
}

// RunAll runs commands in turn until one fails. Below a root, and in a dry run, it only says what is to be run.
func (m *Machine) RunAll(ctx context.Context, commands [][]string) ([]Step, error) {
	var steps []Step
	for _, c := range commands {
		step := Step{Action: Run, Line: strings.Join(c, " ")}
		switch {
		case m.below():
			step.Detail = "in " + m.Root
		case !m.DryRun:
			if err := m.run(ctx, c); err != nil {
				return steps, fmt.Errorf("%s: %w", step.Line, err)
			}
			step.Done = true
		}
		steps = append(steps, step)
	}
	return steps, nil
}

const commandTimeout = 2 * time.Minute // dockerd stops its containers before it restarts

func (m *Machine) run(ctx context.Context, command []string) error {
	if m.Run != nil {
		return m.Run(ctx, command)
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...) //nolint:gosec // commands are constants of this package
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %.2000s", err, bytes.TrimSpace(out))
	}
	return nil
}

// below reports whether the machine is not the one that this process runs on.
func (m *Machine) below() bool { return m.Root != "" && filepath.Clean(m.Root) != "/" }

// exists reports whether a path is there below the root.
func (m *Machine) exists(path string) bool {
	full, err := m.resolve(path)
	if err != nil {
		return false
	}
	_, err = os.Stat(full)
	return err == nil
}

func addCommand(commands [][]string, c []string) [][]string {
	if c == nil || slices.ContainsFunc(commands, func(have []string) bool { return slices.Equal(have, c) }) {
		return commands
	}
	return append(commands, c)
}

// addUndone adds the command of what was undone. Whatever a journal says, only what this package would run by itself is.
func addUndone(steps []Step, commands [][]string, r record) ([]Step, [][]string) {
	for _, s := range trustStores() {
		if slices.Equal(r.Undone, s.command) || slices.Equal(r.Undone, s.undone) {
			return steps, addCommand(commands, r.Undone)
		}
	}
	if r.Undone != nil {
		steps = append(steps, Step{Action: Leave, Line: strings.Join(r.Undone, " "), Detail: "no command of pier's: run it by hand if it is right"})
	}
	return steps, commands
}

// hint adds what to do about an error that has an obvious remedy.
func hint(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w; run it as root", err)
	}
	return err
}
