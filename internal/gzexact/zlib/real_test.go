//go:build e2e

package zlib

import (
	"bytes"
	"fmt"
	"io"
	"syscall"
	"testing"
	"time"
)

// Contents that nobody chose are compressed as the original does it.
func TestOriginals(t *testing.T) {
	o := findOriginals(t)
	t.Log(o.versions(t))
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			if o.path(k) == "" {
				t.Skipf("NOT TESTED against the real %s: it is not there (e2e/tools.sh)", k.name)
			}
			seed := int(time.Now().UnixNano() & 0xffffff)
			for i := range 40 {
				s := newSource(seed + i)
				n := s.below(1 + s.below(300_000))
				if i%3 == 0 { // the end of the input at the end of a window or a block is a case of its own
					n = (1+s.below(8))*windowSize + s.below(2*minLookahead) - minLookahead
				}
				if k.few {
					n = min(n, fewBytes)
				}
				content := structured(n, seed+i)
				switch i % 4 {
				case 1:
					content = skewed(n, seed+i)
				case 3:
					content = archive(n, seed+i)
				}
				for level := range levelLimits {
					c := k.config
					c.Level = level + 1
					got, want := encode(t, c, content), o.compress(t, k, c.Level, content)
					if !bytes.Equal(got, want) {
						t.Errorf("seed %d, %d bytes, level %d: %s", seed+i, n, c.Level, difference(got, want))
					}
					decode(t, got, content)
				}
			}
		})
	}
}

// difference tells where two streams part.
func difference(got, want []byte) string {
	a, err := dump(got)
	if err != nil {
		return "got: " + err.Error()
	}
	b, err := dump(want)
	if err != nil {
		return "want: " + err.Error()
	}
	at := 0 // in the content
	for i := range min(len(a), len(b)) {
		from := at
		for j := range min(len(a[i].tokens), len(b[i].tokens)) {
			x, y := a[i].tokens[j], b[i].tokens[j]
			if x != y {
				return fmt.Sprintf("block %d, token %d, offset %d of the content: got %06x, want %06x", i, j, at, uint32(x), uint32(y))
			}
			if at++; !x.literal() {
				at += int(uint8(x)) + minMatch - 1
			}
		}
		if a[i].String() != b[i].String() || !bytes.Equal(a[i].sizes, b[i].sizes) {
			return fmt.Sprintf("block %d, of the content from %d:\ngot  %v\nwant %v", i, from, a[i], b[i])
		}
		at = from + a[i].bytes
	}
	return fmt.Sprintf("got %d blocks, want %d", len(a), len(b))
}

// Processor time beside the original's, both in this run; a program's start counts for it.
func TestSpeed(t *testing.T) {
	o := findOriginals(t)
	contents := []golden{{"archive", archive(8_000_000, 3)}, {"text", text(8_000_000, 4)}}
	for _, k := range kinds() {
		if o.path(k) == "" || k.few {
			continue
		}
		for _, in := range contents {
			for _, level := range []int{1, 3, 4, 6, 9} {
				c := k.config
				c.Level = level
				z, err := NewWriter(io.Discard, c)
				if err != nil {
					t.Fatal(err)
				}
				ours, theirs := time.Hour, time.Hour
				for range 3 {
					start := processorTime(t, syscall.RUSAGE_SELF)
					compress(t, z, in.content)
					ours = min(ours, processorTime(t, syscall.RUSAGE_SELF)-start)
					theirs = min(theirs, o.time(t, k, level, in.content))
				}
				mb := func(d time.Duration) float64 { return float64(len(in.content)) / 1e6 / d.Seconds() }
				t.Logf("%-8s %-8s level %d: %6.1f MB/s, the original %6.1f: %.2f times its speed",
					k.name, in.name, level, mb(ours), mb(theirs), mb(ours)/mb(theirs))
			}
		}
	}
}

// time returns the processor time of the original.
func (o *originals) time(t *testing.T, k kind, level int, content []byte) time.Duration {
	t.Helper()
	if k.argv == nil {
		_, d := o.zlib(t, level, defaultMemLevel, content)
		return d
	}
	start := processorTime(t, syscall.RUSAGE_CHILDREN)
	o.compress(t, k, level, content)
	return processorTime(t, syscall.RUSAGE_CHILDREN) - start
}

func processorTime(t *testing.T, who int) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
