// Command bench measures what a node costs and gains: a cold layer through a limited upstream against that upstream
// itself, many cold clients against one, the warm path against nginx and against a bare net/http handler, memory, and the
// size of the binary. Every figure has a bound; a bound that is missed is an error. Other pull-through caches are measured
// beside it where they are installed.
//
// All sides of a comparison take turns in the same run, on loopback only. The command runs itself for the upstream and for
// the bare handler (servers.go), so that each has CPU time and memory of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// timeout ends a run that hangs somewhere in spite of all other bounds. A full run takes under six minutes.
const timeout = 12 * time.Minute

const mb = 1_000_000

// settings say how much is measured.
type settings struct {
	layer    int64         // bytes of the layer
	small    int64         // bytes of the layer that all clients pull through a peer, which may fetch it for each of them
	cold     int           // repeats of each cold pull
	warm     int           // repeats of each warm measurement
	peer     int           // repeats of a cold pull through a peer
	gets     int           // GETs of the layer in one warm measurement
	requests int           // requests for a manifest in one measurement
	rest     time.Duration // after a pull, before memory counts as that of an idle node
}

func full() settings {
	return settings{layer: 300 * mb, small: 60 * mb, cold: 5, warm: 11, peer: 2, gets: 8, requests: 40_000, rest: 5 * time.Second}
}

func quick() settings {
	return settings{layer: 30 * mb, small: 6 * mb, cold: 2, warm: 3, peer: 1, gets: 20, requests: 8_000, rest: 2 * time.Second}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if len(args) > 0 {
		switch args[0] {
		case "upstream":
			return runUpstream(ctx, args[1:])
		case "bare":
			return runBare(ctx, args[1:])
		}
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	only := flags.String("only", "", "measure only `what`: cold, warm or peers; writes no file")
	short := flags.Bool("quick", false, "small sizes and few repeats: says that all works, not how well; writes no file")
	reportOnly := flags.Bool("report-only", false, "a missed bound is no error")
	file := flags.String("o", "docs/benchmarks.md", "write figures and machine to this `file`; empty for none")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	b := &bench{set: full(), only: *only, progress: stderr}
	if *short {
		b.set = quick()
	}
	if *short || *only != "" {
		*file = ""
	}
	if err := b.all(ctx); err != nil {
		return err
	}
	b.report.print(stdout)
	if *file != "" {
		if err := b.report.write(*file); err != nil {
			return err
		}
	}
	if n := b.report.missed(); n > 0 && !*reportOnly {
		return fmt.Errorf("%d bounds missed", n)
	}
	return nil
}

// A bench is one run.
type bench struct {
	set      settings
	only     string // one of the names in all; empty for all of them
	progress io.Writer

	dir      string // holds all files of the run, and goes with it
	pier     string // the binary
	image    image  // what is pulled
	small    image  // what is pulled through peers by many
	upstream *process
	report   report
}

// all measures everything.
func (b *bench) all(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp("", "pier-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	nginx, err := program("nginx")
	if err != nil {
		return fmt.Errorf("%w: run e2e/tools.sh bench", err)
	}
	if err := b.build(ctx); err != nil {
		return err
	}
	started := time.Now()
	b.report.machine = describeMachine(ctx, nginx)
	if err := b.startUpstream(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.upstream.stop()) }()
	for _, part := range []struct {
		name    string
		measure func(context.Context) error
	}{
		{"cold", b.cold},
		{"warm", func(ctx context.Context) error { return b.warm(ctx, nginx) }},
		{"peers", b.peers},
	} {
		if b.only != "" && b.only != part.name {
			continue
		}
		if err := part.measure(ctx); err != nil {
			return err
		}
	}
	b.report.finish(started)
	return nil
}

// build builds pier as `make build` does, and measures the binary.
func (b *bench) build(ctx context.Context) error {
	b.say("building pier")
	b.pier = filepath.Join(b.dir, "pier")
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w -X main.version=bench", "-o", b.pier, "pier/cmd/pier")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	info, err := os.Stat(b.pier)
	if err != nil {
		return err
	}
	b.report.section("The binary")
	b.report.check("size, static and stripped", megabytes, atMost(14), series{float64(info.Size()) / mb})
	return nil
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, "bench: "+format+"\n", args...)
}
