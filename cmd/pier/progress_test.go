package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pier/internal/snapshot"
)

func TestProgressInWords(t *testing.T) {
	meter := &snapshot.Meter{}
	meter.Begin("1/2 app", 1000)
	begun := time.Now()
	var p progress
	for _, step := range []struct {
		after     time.Duration
		add       int64
		bar       bool
		want      string
		andNoMore string
	}{
		{0, 0, false, "1/2 app     0%  0 B of 1.0 kB", "left"},
		{2 * time.Second, 500, false, "1/2 app    50%  500 B of 1.0 kB  250 B/s  2s left", "["},
		{2 * time.Second, 0, true, "[###############---------------]  50%", "\n"},
		{4 * time.Second, 700, true, "[##############################] 100%", "-"},
	} {
		meter.Add(step.add)
		if text := p.text(begun.Add(step.after), meter, step.bar); !strings.Contains(text, step.want) || strings.Contains(text, step.andNoMore) {
			t.Errorf("got %q, want %q and no %q", text, step.want, step.andNoMore)
		}
	}
}

// On a terminal a bar is drawn over itself, cut to the width, and gone in the end; elsewhere there is nothing of that.
func TestProgressOnATerminal(t *testing.T) {
	master, terminal := openTerminal(t, 40)
	meter := &snapshot.Meter{}
	meter.Begin("1/1 app", 1000)
	meter.Add(300)
	stop := showProgress(terminal, meter)
	var drawn string
	for end := time.Now().Add(10 * time.Second); !strings.Contains(drawn, "#"); {
		if time.Now().After(end) {
			t.Fatalf("drawn is %q", drawn)
		}
		b := make([]byte, 1000)
		n, err := master.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		drawn += string(b[:n])
	}
	line, _, _ := strings.Cut(strings.TrimPrefix(drawn, "\r"), "\x1b")
	if !strings.HasPrefix(line, "1/1 app   [#########-") || len(line) >= 40 {
		t.Errorf("drawn is %q", line)
	}
	stop()
	b := make([]byte, 1000)
	if n, err := master.Read(b); err != nil || !strings.HasSuffix(string(b[:n]), "\r\x1b[K") {
		t.Errorf("in the end there is %q, %v", b[:n], err)
	}

	var plain bytes.Buffer
	stop = showProgress(&plain, meter)
	time.Sleep(2 * redrawn)
	stop()
	if plain.Len() > 0 {
		t.Errorf("where there is no terminal, there is %q", plain.String())
	}
}

// openTerminal returns the two ends of a terminal of so many columns.
func openTerminal(t *testing.T, columns uint16) (master, terminal *os.File) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(err)
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	must(unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	must(err)
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	must(err)
	t.Cleanup(func() { terminal.Close() })
	must(unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 25, Col: columns}))
	return master, terminal
}
