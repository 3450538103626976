package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"
)

// A table is rows of cells, the first of them the headings.
type table [][]string

func (t *table) add(cells ...string) { *t = append(*t, cells) }

// alignRight moves a column of numbers to the right. Without it, cells stand left.
func (t table) alignRight(column int) {
	width := 0
	for _, row := range t {
		width = max(width, utf8.RuneCountInString(row[column]))
	}
	for _, row := range t {
		row[column] = fmt.Sprintf("%*s", width, row[column])
	}
}

// write writes the table, two spaces between columns. An empty cell is written as a dash.
func (t table) write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range t {
		for i, cell := range row {
			end := "\t"
			if i == len(row)-1 {
				end = "\n"
			}
			fmt.Fprint(tw, cmp.Or(printable(cell), "-"), end)
		}
	}
	return tw.Flush()
}

// printable returns s without what would disturb a terminal or a table: names come from other machines.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// sizeText is n bytes in the largest decimal unit that it fills.
func sizeText(n int64) string {
	const unit = 1000
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/unit, 0
	for ; v >= unit-0.05 && i < 4; i++ { // 999.95 would be written as 1000.0
		v /= unit
	}
	return fmt.Sprintf("%.1f %cB", v, "kMGTP"[i])
}
