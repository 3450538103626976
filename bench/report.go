package main

import (
	"fmt"
	"io"
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

func (r *report) finish(started time.Time) {
	r.machine.took = time.Since(started).Round(time.Second)
	r.machine.loadAfter = loadAverage()
}
