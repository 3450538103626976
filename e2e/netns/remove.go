package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	directory  = "/run/netns" // where ip netns keeps namespaces
	namePrefix = "pier-"      // of ours; process, its start, a number for the site and the place follow
)

// removeLeftovers removes the namespaces of processes that are gone, and ends what still runs in them.
func removeLeftovers(ctx context.Context) error {
	entries, err := os.ReadDir(directory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var left []string
	for _, e := range entries {
		var pid int
		var start, site int64
		if n, _ := fmt.Sscanf(e.Name(), namePrefix+"%d-%d-%d-", &pid, &start, &site); n != 3 {
			continue
		}
		// A process with the same number that started at another time is another process.
		if now, err := startTime(pid); errors.Is(err, fs.ErrNotExist) || err == nil && now != start {
			left = append(left, e.Name())
		}
	}
	return remove(ctx, left)
}

// startTime returns when a process started, in clock ticks since the machine did.
func startTime(pid int) (int64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, syscall.ESRCH) {
		err = fs.ErrNotExist // it ended while the file was read
	}
	if err != nil {
		return 0, err
	}
	// The program's name, in parentheses, may hold anything. Field 22 of proc(5) is the 20th after it.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat: %.200q", pid, stat)
	}
	return strconv.ParseInt(string(fields[19]), 10, 64)
}

// remove ends the processes in the named namespaces and deletes these. Those that do not exist, or that somebody else
// removes meanwhile, are fine.
func remove(ctx context.Context, names []string) error {
	names = slices.DeleteFunc(names, func(name string) bool {
		_, err := os.Lstat(filepath.Join(directory, name))
		return err != nil
	})
	if len(names) == 0 {
		return nil
	}
	if err := empty(ctx, names); err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		_, err := output(ctx, nil, "ip", "netns", "del", name)
		if _, gone := os.Lstat(filepath.Join(directory, name)); err != nil && gone == nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// empty kills what runs in the named namespaces, and waits until it is gone: for as long as a process is there, so is the
// namespace, with its addresses and connections.
func empty(ctx context.Context, names []string) error {
	for {
		left := inhabitants(names)
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by itself
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes %v do not end: %w", left, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// inhabitants returns the processes in the named namespaces. A zombie is in none.
func inhabitants(names []string) (pids []int) {
	spaces := make(map[[2]uint64]bool)
	inode := func(file string) [2]uint64 {
		var s syscall.Stat_t
		if syscall.Stat(file, &s) != nil {
			return [2]uint64{}
		}
		return [2]uint64{s.Dev, s.Ino}
	}
	for _, name := range names {
		spaces[inode(filepath.Join(directory, name))] = true
	}
	delete(spaces, [2]uint64{})
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	for _, dir := range processes {
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && pid != os.Getpid() && spaces[inode(dir+"/ns/net")] {
			pids = append(pids, pid)
		}
	}
	return pids
}

// output runs one of the machine's programs to its end. Its error says what the program said.
func output(ctx context.Context, stdin io.Reader, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}
