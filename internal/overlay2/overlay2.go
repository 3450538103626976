// Package overlay2 reads Docker's classic image store, with its overlay2 storage driver, straight from Docker's data root:
// which layers and images there are, and every layer as exactly the tar that it was made of. Docker keeps no tars: it keeps a
// layer's files, and in a record of its own (tar-split) all other bytes of the tar: headers, padding, the order. Put together
// they are the tar again, byte for byte; its digest, the diff ID, is the proof.
//
// The layout below the data root, which has not changed since Docker 1.10:
//
//	image/overlay2/repositories.json                   names of images
//	image/overlay2/imagedb/content/sha256/ID           configurations of images
//	image/overlay2/layerdb/sha256/CHAIN/diff           diff ID
//	                                    cache-id       name of the directory below overlay2/
//	                                    parent         chain ID of the layer below; absent in the lowest
//	                                    tar-split.json.gz
//	image/overlay2/distribution/v2metadata-by-diffid   digests that layers were pulled or pushed under
//	overlay2/CACHE-ID/diff/                            files of a layer; whiteouts are character devices 0/0
//
// Nothing here writes, speaks to Docker or compresses: what the layers were called when they were compressed, and how to
// compress them again, is left to others.
package overlay2

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"pier/internal/oci"
)

const defaultRoot = "/var/lib/docker"

// Config says where Docker keeps its images. The zero value is where it does by default.
type Config struct {
	Root string // Docker's data root, an absolute path; default: /var/lib/docker
}

// A Store reads the images of one data root. Its methods may be called at once from many goroutines.
type Store struct {
	images string // image/overlay2
	files  string // overlay2

	mu       sync.Mutex                 // guards all below
	measured map[oci.Digest]measurement // by chain ID; of the layers that were there when last listed
	stamps   [3]stamp                   // of what changes whenever an image or a layer comes or goes
	changed  time.Time                  // when stamps were last seen to differ
	unsure   bool                       // a change just before stamps were taken may have left no trace in them
}

// Open returns the store below cfg.Root, which need not be there yet: see [Store.Ready]. It returns an error that says what
// to do about it if the store is there and cannot be read.
func Open(cfg Config) (*Store, error) {
	root := cfg.Root
	if root == "" {
		root = defaultRoot
	}
	if !filepath.IsAbs(root) {
		return nil, fmt.Errorf("docker: data root %q must be an absolute path", root)
	}
	s := &Store{images: filepath.Join(root, "image", "overlay2"), files: filepath.Join(root, "overlay2"),
		measured: make(map[oci.Digest]measurement)}
	for _, dir := range []string{root, s.images, s.layers(), s.configs()} {
		d, err := os.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		// That of the root may be entered by others, and not listed.
		if err != nil && (dir != root || !errors.Is(err, fs.ErrPermission)) {
			return nil, fmt.Errorf("docker: %w", advise(err))
		}
		d.Close()
	}
	return s, nil
}

// advise adds to an error what to do about it, where something can be done.
func advise(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: Docker lets only root read its data root: run as root, or with CAP_DAC_READ_SEARCH", err)
	}
	return err
}

// Ready reports whether there is a classic overlay2 store. Docker creates it when it first starts; with the containerd image
// store, or another storage driver, there is none.
func (s *Store) Ready() bool {
	info, err := os.Stat(filepath.Dir(s.layers())) // the directory itself comes with the first image
	return err == nil && info.IsDir()
}

func (s *Store) layers() string  { return filepath.Join(s.images, "layerdb", "sha256") }
func (s *Store) configs() string { return filepath.Join(s.images, "imagedb", "content", "sha256") }
func (s *Store) names() string   { return filepath.Join(s.images, "repositories.json") }

// stamp tells one state of a file or directory from another. It is zero for what is not there.
type stamp struct {
	ino         uint64
	size, mtime int64 // mtime in ns since 1970
}

func stampOf(name string) stamp {
	info, err := os.Stat(name)
	if err != nil {
		return stamp{}
	}
	st := stamp{size: info.Size(), mtime: info.ModTime().UnixNano()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		st.ino = sys.Ino
	}
	return st
}

// tick is longer than the step of any clock that a filesystem under Docker takes its times from (a jiffy, at most 10 ms).
const tick = 50 * time.Millisecond

// Changed returns a time that differs from the one returned before if Layers or Images may have changed since. It costs
// three stats: Docker replaces repositories.json, and adds to or removes from the two directories.
func (s *Store) Changed() time.Time {
	now := time.Now()
	stamps := [3]stamp{stampOf(s.names()), stampOf(s.layers()), stampOf(s.configs())}
	s.mu.Lock()
	defer s.mu.Unlock()
	if stamps != s.stamps || s.unsure {
		s.stamps, s.changed, s.unsure = stamps, now, false
		for _, st := range stamps {
			age := now.Sub(time.Unix(0, st.mtime))
			s.unsure = s.unsure || -tick < age && age < tick
		}
	}
	return s.changed
}
