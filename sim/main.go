// Command sim runs the directory of many nodes on a virtual clock and network, and writes docs/scale.md: what look-ups,
// messages and memory come to, and how a roll-out spreads. The directory is the real code; the network, how members learn of
// each other, and the transfers themselves are models, each in a file of its own (network.go, views.go, pull.go).
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("sim", flag.ContinueOnError)
	quick := flags.Bool("quick", false, "a minute or less, with few nodes: to see that it works")
	only := flags.Int("nodes", 0, "simulate so many `nodes` instead of 100, 1,000 and 10,000")
	seed := flags.Uint64("seed", 1, "`number` that all chance of the models comes from")
	out := flags.String("out", "", "write the results to this `file`, too")
	if err := flags.Parse(args); err != nil {
		return err
	}
	debug.SetGCPercent(200) // there is memory enough, and time is short
	debug.SetMemoryLimit(5 << 30)
	begun := time.Now()
	doc := document{seed: *seed, date: begun.UTC()}
	for _, s := range settingsOf(*quick, *only) {
		began := time.Now()
		r, err := simulate(s, *seed, func(what string) {
			fmt.Fprintf(os.Stderr, "%d nodes: %s after %s\n", s.nodes, what, time.Since(began).Round(time.Second))
		})
		if err != nil {
			return fmt.Errorf("%d nodes: %w", s.nodes, err)
		}
		doc.results = append(doc.results, r)
	}
	doc.took = time.Since(begun)
	fmt.Fprint(stdout, doc.tables())
	if *out == "" {
		return nil
	}
	return os.WriteFile(*out, []byte(doc.markdown()), 0o644)
}
