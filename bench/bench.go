package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// A bench is one run of a suite.
type bench struct {
	quick    bool   // small sizes and few repeats
	only     string // the name of a part; empty for all of them
	progress io.Writer

	dir      string // holds all files of the run, and goes with it
	pier     string // the binary; see build
	upstream *process
	hosts    int // loopback addresses given to nodes
	report   report
}

// run measures a suite.
func (b *bench) run(ctx context.Context, s suite) (err error) {
	if b.dir, err = os.MkdirTemp("", "pier-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	started := time.Now()
	b.report.machine = describeMachine()
	if err := s.measure(ctx, b); err != nil {
		return err
	}
	b.report.finish(started)
	return nil
}

// A part of a suite can be measured alone.
type part struct {
	name    string
	measure func(context.Context) error
}

// measure measures the parts that are wanted.
func (b *bench) measure(ctx context.Context, parts []part) error {
	for _, p := range parts {
		if b.only != "" && b.only != p.name {
			continue
		}
		if err := p.measure(ctx); err != nil {
			return err
		}
	}
	return nil
}

// build builds pier as `make build` does.
func (b *bench) build(ctx context.Context) error {
	b.say("building pier")
	b.pier = filepath.Join(b.dir, "pier")
	cmd := exec.CommandContext(ctx, "make", "build", "BIN="+b.pier, "VERSION=bench")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make build: %w\n%s", err, out)
	}
	return nil
}

// tool finds a program that a comparison needs, and has the report name its version.
func (b *bench) tool(ctx context.Context, name, flag string) (string, error) {
	path, err := program(name)
	if err != nil {
		return "", fmt.Errorf("%w: run e2e/tools.sh bench", err)
	}
	b.report.machine.software = append(b.report.machine.software, version(ctx, path, flag))
	return path, nil
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, "bench: "+format+"\n", args...)
}

// sleep waits, at most until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// await polls until something is so, at most for startFor. An error is given up on only when the time is over: a server that
// starts refuses connections for a while.
func await(ctx context.Context, what string, is func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, startFor)
	defer cancel()
	for {
		ok, err := is(ctx)
		if ok {
			return nil
		}
		if serr := sleep(ctx, 20*time.Millisecond); serr != nil {
			return fmt.Errorf("waiting until %s: %w", what, errors.Join(serr, err))
		}
	}
}
