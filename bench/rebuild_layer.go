package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
)

// A contentTar is what layers contain: a file, and the digest of it, which Docker calls a diff ID.
type contentTar struct {
	file   string
	diffID digest.Digest
	size   int64
}

// makeContent writes a tar of about so many bytes: half of it Go's sources, most of the rest Go's programs, and a tenth of it
// random. With one version of Go it is the same each time.
func (b *bench) makeContent(ctx context.Context, size int64) (c contentTar, err error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return c, fmt.Errorf("go env GOROOT: %w", err)
	}
	root := strings.TrimSpace(string(out))
	c.file = filepath.Join(b.dir, "content.tar")
	f, err := os.Create(c.file)
	if err != nil {
		return c, err
	}
	defer f.Close()
	h := digest.SHA256.Digester()
	w := tar.NewWriter(io.MultiWriter(f, h.Hash()))
	err = addTree(w, root, "src", size/2)
	for _, dir := range []string{"bin", "pkg/tool"} {
		err = errors.Join(err, addTree(w, root, dir, size/5))
	}
	err = errors.Join(err, addFile(w, "random", size/10, rand.NewChaCha8([32]byte{})), w.Close())
	if err != nil {
		return c, fmt.Errorf("a layer of what is in %s: %w", root, err)
	}
	info, err := f.Stat()
	if err != nil {
		return c, err
	}
	c.diffID, c.size = h.Digest(), info.Size()
	return c, f.Close()
}

// addTree adds the regular files below a directory of root, in the order of their names, until they have so many bytes.
func addTree(w *tar.Writer, root, dir string, left int64) error {
	return filepath.WalkDir(filepath.Join(root, filepath.FromSlash(dir)), func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if left <= 0 {
			return fs.SkipAll
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		size := min(info.Size(), left)
		left -= size
		return addFile(w, filepath.ToSlash(strings.TrimPrefix(p, root+string(filepath.Separator))), size, f)
	})
}

func addFile(w *tar.Writer, name string, size int64, content io.Reader) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(1e9, 0)}); err != nil {
		return err
	}
	_, err := io.CopyN(w, content, size)
	return err
}

// A dockerRoot is a Docker data root, written as Docker writes it.
type dockerRoot string

// path is a file in the part that is about images.
func (d dockerRoot) path(elem ...string) string {
	return filepath.Join(append([]string{string(d), "image", "overlay2"}, elem...)...)
}

// create makes the root of a Docker without images.
func (d dockerRoot) create() error {
	for _, dir := range []string{"layerdb/sha256", "imagedb/content/sha256", "distribution/v2metadata-by-diffid/sha256"} {
		if err := os.MkdirAll(d.path(dir), 0o700); err != nil {
			return err
		}
	}
	return errors.Join(os.MkdirAll(filepath.Join(string(d), "overlay2", "l"), 0o700),
		os.WriteFile(d.path("repositories.json"), []byte(`{"Repositories":{}}`), 0o600))
}

// unpack does what Docker does with a layer that it pulled under each of these digests.
func (d dockerRoot) unpack(c contentTar, pulled []digest.Digest) error {
	const directory = "content" // names the files of the layer
	if err := extract(c.file, filepath.Join(string(d), "overlay2", directory, "diff")); err != nil {
		return err
	}
	type hint struct{ Digest, SourceRepository string }
	var hints []hint
	for _, p := range pulled {
		hints = append(hints, hint{p.String(), "registry.test/team/app"})
	}
	text, err := json.Marshal(hints)
	if err != nil {
		return err
	}
	ready := d.path("ready")
	if err := os.Mkdir(ready, 0o700); err != nil {
		return err
	}
	return errors.Join(
		record(c.file, filepath.Join(ready, "tar-split.json.gz")),
		os.WriteFile(filepath.Join(ready, "cache-id"), []byte(directory), 0o600),
		os.WriteFile(filepath.Join(ready, "size"), fmt.Append(nil, c.size), 0o600),
		os.WriteFile(filepath.Join(ready, "diff"), []byte(c.diffID), 0o600),
		os.WriteFile(d.path("distribution/v2metadata-by-diffid/sha256", c.diffID.Encoded()), text, 0o600),
		os.Rename(ready, d.path("layerdb/sha256", c.diffID.Encoded())),
	)
}

// extract unpacks a tar of regular files.
func extract(file, dir string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !filepath.IsLocal(h.Name) {
			return fmt.Errorf("%q leads out of the tar", h.Name)
		}
		name := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := writeFile(name, r); err != nil {
			return err
		}
	}
}

// writeFile writes all that r gives into a new file.
func writeFile(name string, r io.Reader) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// record writes what Docker keeps of a tar beside its files, by the module that Docker has that from.
func record(file, name string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(name)
	if err != nil {
		return err
	}
	defer out.Close()
	z := gzip.NewWriter(out)
	r, done, err := asm.NewInputTarStreamWithDone(in, storage.NewJSONPacker(z), nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return errors.Join(err, <-done, z.Close(), out.Close())
}
