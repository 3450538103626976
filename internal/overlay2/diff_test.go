package overlay2

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pier/internal/oci"
)

// A parent that is a symbolic link is followed as in a container whose root is the layer.
func TestParentsThatAreLinks(t *testing.T) {
	for name, members := range map[string][]member{
		"relative":           {dir("usr/lib"), symlink("lib", "usr/lib"), file("lib/f", "content").at("usr/lib/f")},
		"absolute":           {dir("usr/lib"), symlink("lib", "/usr/lib"), file("lib/f", "content").at("usr/lib/f")},
		"above the root":     {dir("usr/lib"), symlink("a/lib", "../../../../usr/lib"), file("a/lib/f", "content").at("usr/lib/f")},
		"to the root":        {symlink("here", "/"), file("here/f", "content").at("f")},
		"through a link":     {dir("c"), symlink("b", "/c/."), symlink("a", "./b"), file("a/d/f", "content").at("c/d/f"), file("a/d/g", "").at("c/d/g")},
		"slashes":            {dir("x/y"), symlink("l", "//x//y//"), file("l//f", "content").at("x/y/f")},
		"absolute, deep":     {dir("x/y"), symlink("d/l", "/x/../x"), file("d/l/y/f", "content").at("x/y/f"), file("d/l/y/g", "z").at("x/y/g"), file("h", "h")},
		"target only below":  {symlink("lib", "usr/lib64"), file("lib/f", "content").at("usr/lib64/f")}, // made by the overlay, in this layer
		"absolute, only it":  {symlink("lib", "/usr/lib64"), file("lib/f", "content").at("usr/lib64/f")},
		"name with dots too": {dir("x"), symlink("l", "/x"), file("l/../x/f", "content").at("x/f")},
	} {
		t.Run(name, func(t *testing.T) {
			d := newData(t)
			content := pack(t, members...)
			d.layer("", content, members...)
			d.wantTar(content)
		})
	}
}

// Where Docker extracts into the mounted image, a link of a layer below leads to another place in this one.
func TestParentIsALinkOfALayerBelow(t *testing.T) {
	d := newData(t)
	lower := []member{symlink("lib", "/usr/lib"), dir("usr/lib"), symlink("gone", "usr"), symlink("hidden", "/nowhere")}
	middle := []member{symlink("usr/lib/plugins", "../share/plugins"), dir("usr/share/plugins"), file(".wh.gone", ""), symlink("hidden", "/usr")}
	upper := []member{
		file("lib/f", "content").at("usr/lib/f"),
		file("lib/plugins/g", "of a plugin").at("usr/share/plugins/g"),
		file("gone/h", "in a new directory"),
		file("hidden/i", "by the upper link").at("usr/i"),
	}
	chain := d.layer("", pack(t, lower...), lower...)
	chain = d.layer(chain, pack(t, middle...), middle...)
	content := pack(t, upper...)
	chain = d.layer(chain, content, upper...)
	s := d.store()
	layers, err := s.Layers(t.Context())
	if err != nil || len(layers) != 3 {
		t.Fatalf("got %d layers and error %v, want 3", len(layers), err)
	}
	for _, l := range layers {
		if l.ChainID == chain {
			d.wantTarOf(s, l, content)
		}
	}
}

// The files to be read exist on the host, with the right content: whoever reads them rebuilds the tar.
func TestFilesOfTheHostStayOut(t *testing.T) {
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "secret"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 40)
	for name, members := range map[string][]member{
		"absolute link":    {symlink("evil", host), file("evil/secret", "content").at("-")},
		"relative link":    {symlink("evil", up+host), file("evil/secret", "content").at("-")},
		"deep link":        {symlink("d/evil", up), file("d/evil"+host+"/secret", "content").at("-")},
		"link to the file": {symlink("evil", host+"/secret"), file("evil2", "content").at("-")},
		"dots":             {file(up+host+"/secret", "content").at("-")},
		"dots in between":  {dir("d"), file("d/"+up+host+"/secret", "content").at("-")},
		"absolute name":    {file(host+"/secret", "content").at("-")},
		"links in a circle": {
			symlink("a", "b"), symlink("b", "/a"), file("a/secret", "content").at("-"),
		},
		"magic link": {symlink("evil", "/proc/self/root"+host), file("evil/secret", "content").at("-")},
	} {
		t.Run(name, func(t *testing.T) {
			d := newData(t)
			d.layer("", pack(t, members...), members...)
			got, err := d.read()
			if len(got) > 0 || err == nil || name != "links in a circle" && !errors.Is(err, oci.ErrNotFound) {
				t.Errorf("got %d bytes and error %v, want ErrNotFound", len(got), err)
			}
		})
	}
}

// A file that is none any more is not opened: a FIFO would hang, a device do something.
func TestOnlyRegularFilesAreOpened(t *testing.T) {
	for name, replace := range map[string]func(path string) error{
		"fifo":      func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"device":    func(p string) error { return syscall.Mknod(p, syscall.S_IFCHR, 1<<8|5) }, // /dev/zero
		"whiteout":  func(p string) error { return syscall.Mknod(p, syscall.S_IFCHR, 0) },
		"link":      func(p string) error { return os.Symlink("other", p) },
		"directory": func(p string) error { return os.Mkdir(p, 0o755) },
	} {
		t.Run(name, func(t *testing.T) {
			d := newData(t)
			members := []member{file("file", "content"), file("other", "content")}
			d.layer("", pack(t, members...), members...)
			_, l := d.only()
			d.must(os.Remove(d.path(l, "file")))
			if err := replace(d.path(l, "file")); errors.Is(err, os.ErrPermission) {
				t.Skipf("NOT TESTED without root: %v", err)
			} else if err != nil {
				t.Fatal(err)
			}
			if got, err := d.read(); len(got) > 0 || !errors.Is(err, oci.ErrDigestMismatch) {
				t.Errorf("got %d bytes and error %v, want ErrDigestMismatch", len(got), err)
			}
		})
	}
}
