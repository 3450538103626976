package transfer

import (
	"os"

	"pier/internal/oci"
)

// Temporary returns the Spool that keeps nothing: unlinked files in dir, or where the system has its temporary ones, gone when
// their last reader closes them.
func Temporary(dir string) oci.Spool { return temporary{dir} }

type temporary struct{ dir string }

func (t temporary) Begin(oci.Reference) (oci.Partial, error) {
	f, err := os.CreateTemp(t.dir, "pier-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return unlinked{f}, nil
}

type unlinked struct{ f *os.File }

func (u unlinked) File() *os.File                             { return u.f }
func (u unlinked) Commit(oci.Reference, oci.Descriptor) error { return nil }
func (u unlinked) Suspend() error                             { return nil }
func (u unlinked) Discard() error                             { return nil }
