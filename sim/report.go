package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// A document is what is written of a run.
type document struct {
	seed    uint64
	date    time.Time
	took    time.Duration
	results []*result
}

func (d *document) tables() string { return d.steady() + "\n" + d.rollouts() }

// steady is the table of the steady state: a column for each size.
func (d *document) steady() string {
	var b strings.Builder
	row := func(what string, cell func(r *result) string) {
		fmt.Fprintf(&b, "| %s |", what)
		for _, r := range d.results {
			fmt.Fprintf(&b, " %s |", cell(r))
		}
		b.WriteString("\n")
	}
	row("Nodes", func(r *result) string { return fmt.Sprint(r.nodes) })
	fmt.Fprintf(&b, "|---|%s\n", strings.Repeat("---:|", len(d.results)))
	row("look-ups", func(r *result) string { return fmt.Sprint(len(r.lookups.took)) })
	row("took: mean", func(r *result) string { return ms(mean(r.lookups.took)) })
	row("took: median", func(r *result) string { return ms(quantile(r.lookups.took, 0.5)) })
	row("took: 99 in 100 at most", func(r *result) string { return ms(quantile(r.lookups.took, 0.99)) })
	row("took: the longest", func(r *result) string { return ms(quantile(r.lookups.took, 1)) })
	row("more than one round trip: a deadline was missed", func(r *result) string { return share(r.lookups.late, len(r.lookups.took)) })
	row("found, of what another node has", func(r *result) string { return share(r.lookups.found, r.lookups.there) })
	row("holders named that had crashed", func(r *result) string { return share(r.lookups.dead, r.lookups.sources) })
	row("messages per node and second", func(r *result) string { return fmt.Sprintf("%.1f", r.mean.messages) })
	row("bytes per node and second", func(r *result) string { return fmt.Sprintf("%.0f", r.mean.bytes) })
	row("the busiest node: messages per second", func(r *result) string { return fmt.Sprintf("%.1f", r.busiest.messages) })
	row("the busiest node: bytes per second", func(r *result) string { return fmt.Sprintf("%.0f", r.busiest.bytes) })
	row("memory of the directory per node", func(r *result) string { return kb(r.memory) })
	row("and of the list of members", func(r *result) string { return kb(r.list) })
	return b.String()
}

// rollouts is the table of the roll-outs.
func (d *document) rollouts() string {
	var b strings.Builder
	b.WriteString("| Nodes | Roll-out | WAN copies | fetches begun | half of the nodes | last node | bound | last to bound | readers of one source | messages of the busiest node | in its busiest second |\n")
	b.WriteString("|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n")
	for _, r := range d.results {
		for _, o := range r.rollouts {
			fmt.Fprintf(&b, "| %d | %s | %.3f | %d | %.2f s | %.2f s | %.2f s | %.2f | %d | %d | %d |\n", r.nodes, o.name, o.copies, o.fetches,
				o.half.Seconds(), o.last.Seconds(), o.bound.Seconds(), o.last.Seconds()/o.bound.Seconds(), o.readers, o.messages, o.peak)
		}
	}
	return b.String()
}

func mean(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	var sum time.Duration
	for _, d := range all {
		sum += d
	}
	return sum / time.Duration(len(all))
}

// quantile returns the value that a part of all is at most.
func quantile(all []time.Duration, part float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(int(part*float64(len(sorted))), len(sorted)-1)]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond)) }
func kb(n int64) string         { return fmt.Sprintf("%.0f kB", float64(n)/1e3) }

func share(part, all int) string {
	if all == 0 {
		return "none"
	}
	return fmt.Sprintf("%.3f %%", 100*float64(part)/float64(all))
}

func machine() string {
	processor := "unknown"
	info, err := os.ReadFile("/proc/cpuinfo")
	if err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				processor = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d processors (%s), %s %s", runtime.NumCPU(), processor, runtime.GOOS, runtime.Version())
}
