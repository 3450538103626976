package overlay2

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// benchmarkLayer is a layer of total bytes, in files of each.
func benchmarkLayer(b *testing.B, total, each int) (*data, *Store, Layer) {
	body := strings.Repeat("0123456789abcdef", each/16)
	members := make([]member, 0, total/each)
	for i := range total / each {
		members = append(members, file(fmt.Sprintf("usr/lib/package-%d/file-%d", i/16, i), body))
	}
	d := newData(b)
	d.layer("", pack(b, members...), members...)
	s, l := d.only()
	return d, s, l
}

// reportCPU reports the CPU time of an iteration: of this process (who is syscall.RUSAGE_SELF) or of those it starts.
func reportCPU(b *testing.B, who int) func() {
	used := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/1e6/float64(b.N), "cpu-ms/op") }
}

// BenchmarkTar reads 200 MB, beside 'tar c' of the same files.
func BenchmarkTar(b *testing.B) {
	for _, each := range []int{4 << 10, 64 << 10, 8 << 20} {
		d, s, l := benchmarkLayer(b, 200<<20, each)
		b.Run(fmt.Sprintf("files=%dK", each>>10), func(b *testing.B) {
			b.SetBytes(l.Size)
			b.ReportAllocs()
			defer reportCPU(b, syscall.RUSAGE_SELF)()
			for b.Loop() {
				r, err := s.Tar(b.Context(), l, 0)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, r); err != nil {
					b.Fatal(err)
				}
				r.Close()
			}
		})
		b.Run(fmt.Sprintf("files=%dK/tar", each>>10), func(b *testing.B) {
			b.SetBytes(l.Size)
			defer reportCPU(b, syscall.RUSAGE_CHILDREN)()
			for b.Loop() {
				cmd := exec.CommandContext(b.Context(), "tar", "c", "-C", d.path(l, ""), ".")
				cmd.Stdout = io.MultiWriter(io.Discard) // a pipe: tar reads no file if it sees /dev/null
				if err := cmd.Run(); err != nil {
					b.Skip(err)
				}
			}
		})
		b.Run(fmt.Sprintf("files=%dK/skip", each>>10), func(b *testing.B) {
			b.ReportAllocs()
			defer reportCPU(b, syscall.RUSAGE_SELF)()
			for b.Loop() {
				r, err := s.Tar(b.Context(), l, l.Size-1024)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, r); n != 1024 || err != nil {
					b.Fatal(n, err)
				}
				r.Close()
			}
		})
		d.must(os.RemoveAll(d.root))
	}
}
