package config

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
)

// faults collects what is wrong, so that it is reported together. The zero value is empty.
type faults struct {
	errs     []error
	doubtful map[string]bool // settings whose value is not what somebody meant it to be
}

// value adds that what place (a flag, a variable, a line) says for the setting name is wrong.
func (f *faults) value(name, place string, err error) {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		for _, err := range joined.Unwrap() {
			f.value(name, place, err)
		}
		return
	}
	f.errs = append(f.errs, fmt.Errorf("%s: %w", place, err))
	f.doubt(name)
}

// doubt notes that the value of a setting is unknown, so that nothing that would follow from it is reported.
func (f *faults) doubt(name string) {
	if f.doubtful == nil {
		f.doubtful = make(map[string]bool)
	}
	f.doubtful[name] = true
}

// add adds a fault that follows from the values of the settings about, unless one of them is in doubt.
func (f *faults) add(about []string, format string, args ...any) {
	if !slices.ContainsFunc(about, func(name string) bool { return f.doubtful[name] }) {
		f.errs = append(f.errs, fmt.Errorf(format, args...))
	}
}

// serviceRE matches the variables that Kubernetes sets in every container for Services whose names begin with "pier":
// PIER_SERVICE_HOST, PIER_PORT_5000_TCP_ADDR and their like, by "Discovering services" of its documentation.
var serviceRE = regexp.MustCompile(`_(SERVICE_(HOST|PORT(_.+)?)|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// nearest returns the word that somebody who wrote s probably meant: the one with the fewest letters to change, if these
// are at most a third; otherwise "".
func nearest(s string, words []string) string {
	const longest = 64 // bytes; longer ones are no typing errors
	if len(s) > longest {
		return ""
	}
	best, least := "", len(s)/3+1
	for _, w := range words {
		if d := distance(s, w); d < least {
			best, least = w, d
		}
	}
	return best
}

// distance returns how many bytes must be inserted, deleted or changed to turn a into b (Levenshtein's distance).
func distance(a, b string) int {
	row := make([]int, len(b)+1) // row[j]: distance of the part of a so far to b[:j]
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// didYouMean returns the end of a message that suggests word, if there is one.
func didYouMean(word string) string {
	if word == "" {
		return ""
	}
	return fmt.Sprintf(": did you mean %s?", word)
}
