package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pier/internal/snapshot"
)

const (
	redrawn  = 200 * time.Millisecond // how often a bar is
	reported = 5 * time.Second        // how often a line is printed where there is no terminal
	barWidth = 30
)

// showProgress shows on w how far the work is that meter counts, until the function it returns is called: a bar on a terminal, a line every
// few seconds elsewhere.
func showProgress(w io.Writer, meter *snapshot.Meter) (stop func()) {
	width, terminal := terminalWidth(w)
	every := reported
	if terminal {
		every = redrawn
	}
	done := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		p := progress{}
		drawn := false
		for {
			select {
			case <-done:
				if drawn {
					fmt.Fprint(w, "\r\x1b[K")
				}
				return
			case now := <-ticker.C:
				text := p.text(now, meter, terminal)
				switch {
				case text == "":
				case terminal:
					fmt.Fprint(w, "\r", cut(text, width-1), "\x1b[K")
					drawn = true
				default:
					fmt.Fprintln(w, text)
				}
			}
		}
	})
	return sync.OnceFunc(func() {
		close(done)
		group.Wait()
	})
}

// terminalWidth returns the columns of the terminal that w is, if it is one.
func terminalWidth(w io.Writer) (int, bool) {
	f, ok := w.(*os.File)
	if !ok {
		return 0, false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, false
	}
	if size.Col == 0 {
		return 80, true
	}
	return int(size.Col), true
}

func cut(s string, width int) string {
	if r := []rune(s); len(r) > width {
		return string(r[:max(width, 0)])
	}
	return s
}

// progress is what is remembered from one look at a meter to the next.
type progress struct {
	stage string
	begun time.Time
	first int64 // bytes that were done when the stage was first seen
}

// text says how far the work is.
func (p *progress) text(now time.Time, meter *snapshot.Meter, bar bool) string {
	stage, done, total := meter.Read()
	if stage != p.stage {
		*p = progress{stage, now, done}
	}
	if total == 0 && done > 0 {
		return fmt.Sprintf("%-9s %s", stage, sizeText(done))
	}
	if total == 0 {
		return stage
	}
	share := min(float64(done)/float64(total), 1)
	text := fmt.Sprintf("%-9s ", stage)
	if bar {
		full := int(share * barWidth)
		text += "[" + strings.Repeat("#", full) + strings.Repeat("-", barWidth-full) + "] "
	}
	text += fmt.Sprintf("%3.0f%%  %s of %s", 100*share, sizeText(done), sizeText(total))
	if spent := now.Sub(p.begun).Seconds(); spent >= 1 && done > p.first {
		speed := float64(done-p.first) / spent
		left := time.Duration(float64(max(total-done, 0)) / speed * float64(time.Second))
		text += fmt.Sprintf("  %s/s  %s left", sizeText(int64(speed)), left.Round(time.Second))
	}
	return text
}
