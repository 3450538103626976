package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Whatever happens at a small site comes out as it should, and the document says so.
func TestQuick(t *testing.T) {
	file := filepath.Join(t.TempDir(), "scale.md")
	var out strings.Builder
	if err := run([]string{"-quick", "-out", file}, &out); err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"simulation", "make sim", "| WAN copies |", "| 30 | at once |"} {
		if !strings.Contains(string(doc), want) {
			t.Errorf("the document lacks %q", want)
		}
	}
}

func TestSite(t *testing.T) {
	s := settingsOf(true, 60)[0]
	r, err := simulate(s, 1, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	l := r.lookups
	if l.there == 0 || float64(l.found) < 0.99*float64(l.there) {
		t.Errorf("%d of %d were found", l.found, l.there)
	}
	if m := quantile(l.took, 0.5); m == 0 || m > 2*mostLatency {
		t.Errorf("a look-up takes %s, want at most a round trip of %s", m, 2*mostLatency)
	}
	if r.mean.bytes == 0 || r.busiest.bytes < r.mean.bytes {
		t.Errorf("bytes: mean %.0f, busiest %.0f", r.mean.bytes, r.busiest.bytes)
	}
	for _, o := range r.rollouts {
		if o.copies < 1 || o.copies > 1.1 {
			t.Errorf("%s: %.3f WAN copies, want 1 to 1.1", o.name, o.copies)
		}
		// With a WAN as fast as the LAN the tree, and a lost message, have their price.
		if most := map[bool]float64{false: 1.4, true: 4.5}[o.wan > o.lan]; o.last.Seconds() > most*o.bound.Seconds() {
			t.Errorf("%s: the last node has it after %s, want at most %.1f times %s", o.name, o.last, most, o.bound)
		}
	}
}

func TestClock(t *testing.T) {
	var c clock
	r := rand.New(rand.NewPCG(1, 1))
	var times []time.Duration
	var stops []func()
	for range 1000 {
		stops = append(stops, c.after(time.Duration(r.IntN(100)), func() { times = append(times, c.now) }))
	}
	for _, stop := range stops[:300] {
		stop()
	}
	c.run(50)
	for _, stop := range stops[:300] {
		stop() // also of what is another's slot by now
	}
	c.after(10, func() { times = append(times, c.now) })
	c.run(1000)
	if len(times) != 701 {
		t.Errorf("%d of 701 happened", len(times))
	}
	for i := 1; i < len(times); i++ {
		if times[i] < times[i-1] {
			t.Fatalf("at %d after %d", times[i], times[i-1])
		}
	}
	if c.now != 1000 || len(c.events) != 0 {
		t.Errorf("it is %d, with %d events left", c.now, len(c.events))
	}
}

func TestContent(t *testing.T) {
	c := newContent(rand.New(rand.NewPCG(1, 1)), 100)
	numbers := c.draw()
	if len(numbers) != digests {
		t.Fatalf("%d digests, want %d", len(numbers), digests)
	}
	for i := 1; i < len(numbers); i++ {
		if numbers[i] <= numbers[i-1] {
			t.Errorf("%d comes after %d", numbers[i], numbers[i-1])
		}
	}
	if again := c.key(1); c.key(1) == c.key(2) || c.key(1) != again || c.key(-1) == c.key(1) {
		t.Error("keys: want one for each number")
	}
}
