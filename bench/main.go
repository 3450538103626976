// Command bench measures what Pier costs and gains. It has five suites, each one command:
//
//   - `bench`: one node. A cold layer through a limited upstream against that upstream itself, many cold clients against one, the
//     warm path against nginx and against a bare net/http handler, memory, and the size of the binary. Other pull-through
//     caches are measured beside it where they are installed.
//   - `bench peers`: nodes that share. A blob from node to node against nginx and curl, with a cluster key and without, memory
//     of a node that serves many, and what ten nodes cost at rest.
//   - `bench rollout`: ten nodes behind one narrow link, in network namespaces, that all want the same image.
//   - `bench proxy`: the forward proxy. Pulls through it, plain and with TLS that ends at the node, against pulls without it,
//     memory, and layers of Docker's classic store that are made again against the encoders that made them.
//   - `bench snapshot`: snapshots. A layout of large blobs and a tree of small files to a store and back, against cp, skopeo and rclone, and
//     memory while a huge file moves.
//
// Figures have bounds; a bound that is missed is an error. All sides of a comparison take turns in the same run, on loopback
// or in namespaces of its own. The command runs itself for its servers (servers.go), so that each has CPU time and memory of
// its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
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

const mb = 1_000_000

// A suite is what one command measures, and its part of the document.
type suite struct {
	name    string                              // the argument that chooses it
	title   string                              // of its part of the document
	command string                              // as people run it
	takes   string                              // about how long
	reading string                              // how to read its tables: a list in Markdown
	timeout time.Duration                       // ends a run that hangs somewhere in spite of all other bounds
	parts   []string                            // what can be measured alone
	measure func(context.Context, *bench) error // all that b.wants
}

// suites are in the order of the document. The first is what runs without an argument.
func suites() []suite {
	return []suite{singleSuite(), peersSuite(), rolloutSuite(), proxySuite(), snapshotSuite()}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	all := suites()
	s := all[0]
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		if serve, ok := servers()[args[0]]; ok {
			return serve(ctx, args[1:])
		}
		i := slices.IndexFunc(all, func(s suite) bool { return s.name == args[0] })
		if i < 0 {
			return fmt.Errorf("there is no suite %q", args[0])
		}
		s, args = all[i], args[1:]
	}
	flags := flag.NewFlagSet(strings.TrimSpace("bench "+s.name), flag.ContinueOnError)
	flags.SetOutput(stderr)
	only := flags.String("only", "", "measure only `what`: "+strings.Join(s.parts, ", ")+"; writes no file")
	quick := flags.Bool("quick", false, "small sizes and few repeats: says that all works, not how well; writes no file")
	reportOnly := flags.Bool("report-only", false, "a missed bound is no error")
	file := flags.String("o", "docs/benchmarks.md", "write figures and machine to their part of this `file`; empty for none")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *only != "" && !slices.Contains(s.parts, *only) {
		return fmt.Errorf("there is no part %q, but %s", *only, strings.Join(s.parts, ", "))
	}
	if *quick || *only != "" {
		*file = ""
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	b := &bench{quick: *quick, only: *only, progress: stderr}
	if err := b.run(ctx, s); err != nil {
		return err
	}
	b.report.print(stdout)
	if *file != "" {
		if err := b.report.write(*file, s, all); err != nil {
			return err
		}
	}
	if n := b.report.missed(); n > 0 && !*reportOnly {
		return fmt.Errorf("%d bounds missed", n)
	}
	return nil
}
