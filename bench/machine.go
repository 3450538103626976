package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A machine is where and when a run was made.
type machine struct {
	date       time.Time
	processor  string
	memory     string
	kernel     string
	software   []string // beside the kernel and Go
	loadBefore string
	loadAfter  string
	took       time.Duration
}

func describeMachine() machine {
	m := machine{
		date:       time.Now().UTC(),
		processor:  field("/proc/cpuinfo", "model name"),
		memory:     field("/proc/meminfo", "MemTotal"),
		loadBefore: loadAverage(),
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.kernel = unix.ByteSliceToString(name.Release[:])
	}
	return m
}

// lines describe the machine.
func (m machine) lines() []string {
	return []string{
		fmt.Sprintf("Date: %s; the measurements took %s", m.date.Format("2006-01-02 15:04 MST"), m.took),
		fmt.Sprintf("Machine: %d processors (%s), %s of memory", runtime.NumCPU(), m.processor, m.memory),
		"Software: " + strings.Join(append([]string{"Linux " + m.kernel, runtime.Version()}, m.software...), ", "),
		fmt.Sprintf("Load average (1, 5, 15 minutes) before: %s; after: %s", m.loadBefore, m.loadAfter),
	}
}

// field returns the value of the first line "name : value" of a file of /proc.
func field(file, name string) string {
	content, err := os.ReadFile(file)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(content)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func loadAverage() string {
	content, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	fields := strings.Fields(string(content))
	return strings.Join(fields[:min(3, len(fields))], " ")
}

// version returns the first line that a program says of itself, up to a parenthesis.
func version(ctx context.Context, path, flag string) string {
	out, err := exec.CommandContext(ctx, path, flag).CombinedOutput()
	if err != nil {
		return filepath.Base(path)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	line, _, _ = strings.Cut(line, " (")
	return strings.ReplaceAll(line, path, filepath.Base(path))
}

// idleTime returns how long the machine's processors have been idle, on average of all.
func idleTime() (time.Duration, error) {
	content, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, err
	}
	var up, idle float64
	if _, err := fmt.Sscan(string(content), &up, &idle); err != nil {
		return 0, fmt.Errorf("/proc/uptime: %w", err)
	}
	return time.Duration(idle / float64(runtime.NumCPU()) * float64(time.Second)), nil
}
