package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	k120 "github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd/era120/zstd"
	k117 "pier.invalid/klauspost117/gzip"

	"pier/internal/gzexact"
)

// An encoder is one that makes layers, at one level.
type encoder struct {
	name string
	how  string // begin of the recipe of what it makes: format, encoder and level. What pigz makes on one processor is most often what it makes on more
	own  string // what of it runs here: a program's name and version
	args []string

	// header is set if what args make is not what the encoder makes, but the same content compressed by the same means: then
	// the recipe is how with this header.
	header string

	fast bool // so fast that to read and digest its content and what it makes takes more than a fifth of its time: a node's own is not bounded
}

const (
	goHeader = "1f8b08000000000000ff" // as Go's gzip writes it, and pgzip but for the time
	python   = "import sys, zlib\nz = zlib.compressobj(6, zlib.DEFLATED, 31)\nout = sys.stdout.buffer\n" +
		"while b := sys.stdin.buffer.read(65536): out.write(z.compress(b))\nout.write(z.flush())\n"
)

// encoders returns those that run here, and the names of those that do not.
func encoders(ctx context.Context) (all []encoder, missing []string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	own := func(codec, level string) []string { return []string{self, "compress", codec, level} }
	const k117Name, k120Name, zstdName = "klauspost/compress 1.17.11", "klauspost/compress 1.20.3", "klauspost/compress 1.20.0"
	all = []encoder{
		{name: "Go 1.9 to 1.26, level 6 (docker push)", how: "gzip go1 level=6", own: "compress/gzip of " + runtime.Version(), args: own("go", "6")},
		{name: "Go 1.9 to 1.26, level 1 (crane)", how: "gzip go1 level=1", own: "compress/gzip of " + runtime.Version(), args: own("go", "1")},
		{name: "Go 1.27, level 6", how: "gzip go2 level=6", own: k120Name, args: own("klauspost120", "6"), header: goHeader},
		{name: "pgzip, 1 MB, level 5 (buildah, skopeo)", how: "gzip pgzip117-1m level=5", own: k117Name, args: own("klauspost117", "5"), header: goHeader},
		{name: "pgzip, 256 KB, level 5 (umoci)", how: "gzip pgzip117-256k level=5", own: k117Name, args: own("klauspost117", "5"), header: goHeader},
		{name: "newer pgzip, 1 MB, level 5", how: "gzip pgzip120-1m level=5", own: k120Name, args: own("klauspost120", "5"), header: goHeader},
		{name: "newer pgzip, 256 KB, level 5", how: "gzip pgzip120-256k level=5", own: k120Name, args: own("klauspost120", "5"), header: goHeader},
		{name: "zstd, klauspost's default (BuildKit, buildah)", how: "zstd klauspost120 level=2", own: zstdName, args: own("zstd120", "2"), fast: true},
	}
	programs := []struct {
		encoder
		program, flag string
	}{
		{encoder{name: "zlib, level 6 (Python)", how: "gzip zlib level=6", args: []string{"-c", python}}, "python3", "--version"},
		{encoder{name: "pigz, level 6", how: "gzip pigz", args: []string{"-n", "-6", "-p1"}}, "pigz", "--version"},
		{encoder{name: "GNU gzip, level 6", how: "gzip gnu level=6", args: []string{"-n", "-6"}}, "gzip", "--version"},
	}
	for _, p := range programs {
		path, err := program(p.program)
		if err != nil {
			missing = append(missing, p.name)
			continue
		}
		e := p.encoder
		e.own = version(ctx, path, p.flag)
		if p.program == "python3" { // what is on the PATH may be a script that looks for it
			if out, err := exec.CommandContext(ctx, path, "-c", "import sys; print(sys.executable)").Output(); err == nil {
				path = strings.TrimSpace(string(out))
			}
		}
		e.args = append([]string{path}, e.args...)
		all = append(all, e)
	}
	return all, missing, nil
}

// recipe returns the recipe of what e makes: learned from what it made of content, where that is a layer.
func (e encoder) recipe(ctx context.Context, content, made string) (r gzexact.Recipe, err error) {
	if e.header != "" {
		return gzexact.ParseRecipe(e.how + " header=" + e.header)
	}
	f, err := os.Open(made)
	if err != nil {
		return r, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return r, err
	}
	open := func(gzexact.Recipe) (io.ReadCloser, error) { return os.Open(content) }
	if r, _, err = gzexact.Learn(ctx, f, info.Size(), open); err != nil {
		return r, fmt.Errorf("%s: %w", e.own, err)
	}
	if !strings.HasPrefix(r.String(), e.how) {
		return r, fmt.Errorf("%s makes what %q makes, and not %q: it is another version", e.own, r, e.how)
	}
	return r, nil
}

// An effort is how long it took to compress something, and how long processors were at it.
type effort struct{ wall, cpu time.Duration }

// compress has a program compress a file into another one. A Go program gets one processor.
func compress(ctx context.Context, in, out string, args ...string) (e effort, err error) {
	from, err := os.Open(in)
	if err != nil {
		return e, err
	}
	defer from.Close()
	to, err := os.Create(out)
	if err != nil {
		return e, err
	}
	defer to.Close()
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = from, to, &errs
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return e, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, errs.Bytes())
	}
	e = effort{time.Since(start), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
	return e, to.Close()
}

// runCompress compresses the standard input by an encoder that is a Go module: args are its name and a level.
func runCompress(_ context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: bench compress ENCODER LEVEL")
	}
	level, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	var z io.WriteCloser
	switch args[0] {
	case "go":
		z, err = gzip.NewWriterLevel(os.Stdout, level)
	case "klauspost117":
		z, err = k117.NewWriterLevel(os.Stdout, level)
	case "klauspost120":
		z, err = k120.NewWriterLevel(os.Stdout, level)
	case "zstd120":
		z, err = zstd.NewWriter(os.Stdout, zstd.WithEncoderLevel(zstd.EncoderLevel(level)))
	default:
		err = fmt.Errorf("there is no encoder %q", args[0])
	}
	if err != nil {
		return err
	}
	if _, err := io.Copy(z, os.Stdin); err != nil {
		return err
	}
	return z.Close()
}

// runEncode compresses the standard input by a recipe, which is the only argument.
func runEncode(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: bench encode RECIPE")
	}
	r, err := gzexact.ParseRecipe(args[0])
	if err != nil {
		return err
	}
	return r.Encode(ctx, os.Stdout, os.Stdin)
}
