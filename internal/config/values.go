package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// patient is a flag's value that keeps parsing from ending at the first fault: Set reports what is wrong and goes on.
type patient struct {
	pflag.Value
	report func(error)
}

func (p *patient) Set(text string) error {
	if err := p.set(text); err != nil {
		p.report(err)
	}
	return nil
}

// set sets the value. Its error says what can be written instead, also where that of the value itself does not.
func (p *patient) set(text string) error {
	err := p.Value.Set(text)
	if err == nil {
		return nil
	}
	switch p.Type() {
	case "bool":
		return fmt.Errorf("%q: write true or false", text)
	case "int":
		return fmt.Errorf("%q: write a whole number", text)
	case "duration":
		return fmt.Errorf("%q is no duration: write a number and a unit, for example 30s or 5m", text)
	}
	return err
}

// address is a listen address. The word "none" stands for the empty one, which an environment variable cannot be.
type address string

func (a *address) String() string { return string(*a) }
func (a *address) Type() string   { return "address" }

func (a *address) Set(text string) error {
	if text == "none" {
		text = ""
	}
	*a = address(text)
	return nil
}

// unset is a bool whose default is decided when all settings are known.
type unset struct{ value, given bool }

func (u *unset) Type() string { return "bool" }

func (u *unset) String() string {
	if !u.given {
		return "on when no other way is set"
	}
	return strconv.FormatBool(u.value)
}

func (u *unset) Set(text string) error {
	value, err := strconv.ParseBool(text)
	if err == nil {
		u.value, u.given = value, true
	}
	return err
}

// list is several words, given one by one or with commas between. The first Set replaces the default.
type list struct {
	p       *[]string
	allowed []string // empty: anything
	given   bool
}

func (l *list) String() string { return strings.Join(*l.p, ",") }
func (l *list) Type() string   { return "strings" }

func (l *list) Set(text string) error {
	if !l.given {
		*l.p, l.given = nil, true
	}
	var errs []error
	for word := range strings.SplitSeq(text, ",") {
		word = strings.TrimSpace(word)
		switch {
		case word == "":
		case len(l.allowed) > 0 && !slices.Contains(l.allowed, word):
			errs = append(errs, noneOf(word, l.allowed))
		default:
			*l.p = append(*l.p, word)
		}
	}
	return errors.Join(errs...)
}

// prefixes are networks, given one by one or with commas between.
type prefixes []netip.Prefix

func (p *prefixes) Type() string { return "networks" }

func (p *prefixes) String() string {
	words := make([]string, len(*p))
	for i, prefix := range *p {
		words[i] = prefix.String()
	}
	return strings.Join(words, ",")
}

func (p *prefixes) Set(text string) error {
	var errs []error
	for word := range strings.SplitSeq(text, ",") {
		word = strings.TrimSpace(word)
		prefix, err := netip.ParsePrefix(word)
		if addr, aerr := netip.ParseAddr(word); aerr == nil {
			prefix, err = addr.Prefix(addr.BitLen())
		}
		switch {
		case word == "":
		case err != nil:
			errs = append(errs, fmt.Errorf("%q is no network: write one with its length, for example 10.0.0.0/8 or fd00::/8", word))
		default:
			*p = append(*p, prefix.Masked())
		}
	}
	return errors.Join(errs...)
}

// choice is one of a few words.
type choice struct {
	p       *string
	allowed []string
}

func (c *choice) String() string { return *c.p }
func (c *choice) Type() string   { return "choice" }

func (c *choice) Set(text string) error {
	if !slices.Contains(c.allowed, text) {
		return noneOf(text, c.allowed)
	}
	*c.p = text
	return nil
}

func noneOf(word string, allowed []string) error {
	last := len(allowed) - 1
	return fmt.Errorf("%q: write %s or %s", word, strings.Join(allowed[:last], ", "), allowed[last])
}

// level is the least level that is logged.
type level slog.Level

func (l *level) String() string { return strings.ToLower(slog.Level(*l).String()) }
func (l *level) Type() string   { return "level" }

func (l *level) Set(text string) error {
	levels := []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}
	var names []string
	for _, known := range levels {
		name := strings.ToLower(known.String())
		if strings.EqualFold(text, name) {
			*l = level(known)
			return nil
		}
		names = append(names, name)
	}
	return noneOf(text, names)
}

// size is a number of bytes.
type size int64

// units are the factors of sizes, largest first: decimal ones by the SI, binary ones by IEC 80000-13.
var units = []struct {
	name   string
	factor int64
}{
	{"Ti", 1 << 40}, {"T", 1e12}, {"Gi", 1 << 30}, {"G", 1e9}, {"Mi", 1 << 20}, {"M", 1e6}, {"Ki", 1 << 10}, {"K", 1e3}, {"k", 1e3},
}

func (s *size) Type() string { return "size" }

func (s *size) String() string {
	for _, u := range units {
		if *s > 0 && int64(*s)%u.factor == 0 {
			return fmt.Sprintf("%d%s", int64(*s)/u.factor, u.name)
		}
	}
	return strconv.FormatInt(int64(*s), 10)
}

func (s *size) Set(text string) error {
	digits, factor := strings.TrimSuffix(text, "B"), int64(1)
	for _, u := range units {
		if number, ok := strings.CutSuffix(digits, u.name); ok {
			digits, factor = number, u.factor
			break
		}
	}
	n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 63)
	switch {
	case errors.Is(err, strconv.ErrRange) || err == nil && n > math.MaxInt64/uint64(factor):
		return fmt.Errorf("%q is more than can be counted: write a smaller size", text)
	case err != nil:
		return fmt.Errorf("%q is no size: write a whole number of bytes, or one with a unit, for example 500MB or 10GiB", text)
	}
	*s = size(n) * size(factor)
	return nil
}

// rate is a number of bytes per second.
type rate int64

func (r *rate) Type() string   { return "rate" }
func (r *rate) String() string { return (*size)(r).String() }

func (r *rate) Set(text string) error {
	if err := (*size)(r).Set(strings.TrimSuffix(text, "/s")); err != nil {
		return fmt.Errorf("%q is no rate: write a whole number of bytes per second, or one with a unit, for example 500kB/s or 10MB/s", text)
	}
	return nil
}

// ParseRate returns the number of bytes per second that a text such as 500kB/s or 10MiB says.
func ParseRate(text string) (int64, error) {
	var r rate
	err := r.Set(text)
	return int64(r), err
}

// ParseSize returns the number of bytes that a text such as 500MB or 10GiB says.
func ParseSize(text string) (int64, error) {
	var s size
	err := s.Set(text)
	return int64(s), err
}
