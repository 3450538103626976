package main

import (
	"fmt"
	"slices"
	"time"
)

// A series is one figure, measured several times.
type series []float64

// collect takes one figure out of each round.
func collect[T any](rounds []T, figure func(T) float64) series {
	s := make(series, len(rounds))
	for i, r := range rounds {
		s[i] = figure(r)
	}
	return s
}

// median returns the middle one, or the mean of the two in the middle.
func (s series) median() float64 {
	sorted := slices.Sorted(slices.Values(s))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// A unit is a format for a figure.
type unit string

const (
	ratio        unit = "%.2f ×"
	milliseconds unit = "%.1f ms"
	microseconds unit = "%.1f µs"
	seconds      unit = "%.2f s"
	megabytes    unit = "%.1f MB"
	rate         unit = "%.0f MB/s"
	perSecond    unit = "%.0f/s"
	count        unit = "%.0f"
	percent      unit = "%.3f %%" // of a core
)

// text returns the median and, where there are several, the range.
func (s series) text(u unit) string {
	median := fmt.Sprintf(string(u), s.median())
	least, most := fmt.Sprintf(string(u), slices.Min(s)), fmt.Sprintf(string(u), slices.Max(s))
	if least == most {
		return median
	}
	return fmt.Sprintf("%s (%s to %s)", median, least, most)
}

// in returns d as a number of units.
func in(d, unit time.Duration) float64 { return float64(d) / float64(unit) }

// inTurn takes steps in order in even rounds and in reverse in odd ones, so that none always follows the same other one.
func inTurn(round int, steps ...func() error) error {
	steps = slices.Clone(steps)
	if round%2 == 1 {
		slices.Reverse(steps)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
