package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

const preface = `# Benchmarks

Each part is measured and written by the command it names, which fails when a bound is missed. Do not edit: run it.

- A figure is the median of its repeats, with the least and the greatest in parentheses. Bounds hold for the median, or for
  each repeat where the table says so.
- All sides of a comparison take turns, in changing order, in one run on one machine, and a ratio is taken between those of
  the same turn. Ratios carry over to other machines; absolute figures do not.
- Memory is what Linux counts as resident (VmRSS, VmHWM), the pages of the binary included. 1 MB is 1,000,000 bytes.
`

// heading begins a part of the document.
const heading = "## "

// write replaces the part of s in a document for people, and leaves those of the other suites as they are.
func (r *report) write(file string, s suite, all []suite) error {
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile(file, []byte(splice(string(old), s.title, r.markdown(s), all)), 0o644)
}

// markdown is the part of a suite.
func (r *report) markdown(s suite) string {
	var b strings.Builder
	fmt.Fprintf(&b, heading+"%s\n\n`%s`, which takes about %s.\n\n", s.title, s.command, s.takes)
	for _, line := range r.machine.lines() {
		fmt.Fprintf(&b, "- %s\n", line)
	}
	for _, row := range r.rows {
		if row.measured == "" {
			fmt.Fprintf(&b, "\n### %s\n\n| What | Measured | Bound | |\n|---|---|---|---|\n", row.what)
			continue
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", row.what, row.measured, row.bound, row.verdict())
	}
	fmt.Fprintf(&b, "\n### How to read this\n\n%s", s.reading)
	return b.String()
}

// splice returns a document in which the part with that title is new. The parts are in the order of the suites; what no suite
// has written goes.
func splice(doc, title, text string, all []suite) string {
	parts := make(map[string]string)
	name := ""
	for line := range strings.Lines(doc) {
		if after, ok := strings.CutPrefix(line, heading); ok {
			name = strings.TrimSpace(after)
		}
		parts[name] += line
	}
	parts[title] = text
	var b strings.Builder
	b.WriteString(preface)
	for _, s := range all {
		if part, ok := parts[s.title]; ok {
			b.WriteString("\n" + strings.TrimSpace(part) + "\n")
		}
	}
	return b.String()
}
