package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// A report is all that a run found out.
type report struct {
	machine machine
	rows    []row
}

// A row is a line of the table. One without a figure heads a section.
type row struct {
	what, measured, bound string
	ok                    bool
}

func (r row) verdict() string {
	switch {
	case r.bound == "":
		return ""
	case r.ok:
		return "ok"
	}
	return "MISSED"
}

// A bound is what a figure must keep.
type bound struct {
	text string
	kept func(series) bool
}

// atMost and atLeast bound the median.
func atMost(limit float64) bound {
	return bound{fmt.Sprintf("≤ %g", limit), func(s series) bool { return s.median() <= limit }}
}

func atLeast(limit float64) bound {
	return bound{fmt.Sprintf("≥ %g", limit), func(s series) bool { return s.median() >= limit }}
}

// never bounds all repeats from above.
func never(limit float64) bound {
	return bound{fmt.Sprintf("≤ %g each time", limit), func(s series) bool { return slices.Max(s) <= limit }}
}

// exactly wants all repeats to be that.
func exactly(want float64) bound {
	return bound{fmt.Sprintf("%g each time", want), func(s series) bool { return slices.Min(s) == want && slices.Max(s) == want }}
}

func (r *report) section(format string, args ...any) {
	r.rows = append(r.rows, row{what: fmt.Sprintf(format, args...)})
}

// check adds a figure that has a bound.
func (r *report) check(what string, u unit, b bound, s series) {
	r.rows = append(r.rows, row{what, s.text(u), b.text, b.kept(s)})
}

// note adds a figure that has none.
func (r *report) note(what, measured string) {
	r.rows = append(r.rows, row{what: what, measured: measured})
}

func (r *report) missed() (n int) {
	for _, row := range r.rows {
		if row.verdict() == "MISSED" {
			n++
		}
	}
	return n
}

// print writes the table for people at a terminal.
func (r *report) print(w io.Writer) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range r.rows {
		if row.measured == "" {
			_ = table.Flush() // what it writes to, nobody checks either
			fmt.Fprintf(w, "\n%s\n", row.what)
			continue
		}
		fmt.Fprintf(table, "  %s\t%s\t%s\t%s\n", row.what, row.measured, row.bound, row.verdict())
	}
	_ = table.Flush()
	fmt.Fprintf(w, "\n%s\n", strings.Join(r.machine.lines(), "\n"))
}

const preface = `# Benchmarks

Measured and written by ` + "`make bench`" + `, which takes about six minutes, and fails when a bound is missed. Do not edit: run it.

`

const howToRead = `
## How to read this

- A figure is the median of its repeats, with the least and the greatest in parentheses. Bounds hold for the median, or for
  each repeat where the table says so.
- All sides of a comparison take turns, in changing order, in one run on one machine, and a ratio is taken between those of
  the same turn. Ratios carry over to other machines; absolute figures do not.
- Everything is on the loopback interface, and shares the processors: upstream, server and clients are processes of their
  own. CPU time is that of the measured server alone, with what the kernel does on its behalf.
- The upstream is a small registry that sends so many bytes per second and no more, on one connection and on all together. A
  cold pull starts a new node with an empty cache directory, and gets a manifest by tag, the config and the layer.
- Clients discard what they receive in the kernel, without copying it. They check status and length, not content: tests do.
- nginx runs one worker with sendfile, without an access log, and else as it comes; the node logs each request to a file, as
  it does by default.
- Memory is what Linux counts as resident (VmRSS, VmHWM), the pages of the binary included. 1 MB is 1,000,000 bytes.
- Other caches are measured where they are installed, with fewer repeats. There the many clients pull a smaller layer, since
  it may be fetched once for each of them.
`

// write writes the table for people who read documentation.
func (r *report) write(file string) error {
	var b bytes.Buffer
	b.WriteString(preface)
	for _, line := range r.machine.lines() {
		fmt.Fprintf(&b, "- %s\n", line)
	}
	for _, row := range r.rows {
		if row.measured == "" {
			fmt.Fprintf(&b, "\n## %s\n\n| What | Measured | Bound | |\n|---|---|---|---|\n", row.what)
			continue
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", row.what, row.measured, row.bound, row.verdict())
	}
	b.WriteString(howToRead)
	return os.WriteFile(file, b.Bytes(), 0o644)
}

func (r *report) finish(started time.Time) {
	r.machine.took = time.Since(started).Round(time.Second)
	r.machine.loadAfter = loadAverage()
}
