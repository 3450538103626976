package overlay2

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"pier/internal/oci"
)

func TestImages(t *testing.T) {
	d := newData(t)
	content := pack(t, file("a", "b"))
	chain := d.layer("", content, file("a", "b"))
	id := d.image(chain, chain)
	untagged := d.image(chain)
	manifest := oci.Digest(sha("a"))
	d.write("image/overlay2/repositories.json", fmt.Sprintf(`{"Repositories":{
		"alpine":{"alpine:3.20":%[1]q, "alpine@%[2]s":%[1]q},
		"registry.test:5000/team/app":{"registry.test:5000/team/app:V1":%[1]q},
		"UPPER/case":{"UPPER/case:v1":%[1]q},
		"gone":{"gone:v1":%[2]q}}}`, id, manifest))
	s := d.store()
	images, err := s.Images()
	if err != nil || len(images) != 2 {
		t.Fatalf("got images %v and error %v, want 2", images, err)
	}
	if images[0].ID == untagged {
		slices.Reverse(images)
	}
	var names []string
	for _, ref := range images[0].Names {
		names = append(names, ref.String())
	}
	want := []string{"docker.io/library/alpine:3.20", "docker.io/library/alpine@" + manifest.String(), "registry.test:5000/team/app:V1"}
	if images[0].ID != id || !slices.Equal(names, want) || !slices.Equal(images[0].DiffIDs, []oci.Digest{chain, chain}) {
		t.Errorf("got image %+v, want ID %s with names %s", images[0], id, want)
	}
	if p := images[0].Platform; p.OS != "linux" || p.Architecture != "arm64" || p.Variant != "v8" {
		t.Errorf("got platform %+v", p)
	}
	if images[1].ID != untagged || len(images[1].Names) != 0 {
		t.Errorf("got image %+v, want one without names", images[1])
	}
	layers, err := s.Layers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := images[0].ChainIDs(); len(got) != 2 || got[0] != layers[0].ChainID || got[1] == got[0] {
		t.Errorf("got chain IDs %v, want the first to be that of the layer %v", got, layers[0].ChainID)
	}
	config, err := s.Config(id)
	if err != nil || id.Algorithm().FromBytes(config) != id {
		t.Errorf("got configuration %q and error %v", config, err)
	}
}

func TestDamagedImageCostsThatImageOnly(t *testing.T) {
	d := newData(t)
	good := d.image(oci.Digest(sha("a")))
	bad := d.image(oci.Digest(sha("b")))
	name := filepath.Join(d.root, "image/overlay2/imagedb/content/sha256", bad.Encoded())
	d.must(os.WriteFile(name+"123456", []byte("{"), 0o600)) // what a crash left
	s := d.store()
	for content, class := range map[string]error{
		"{}":                                   oci.ErrDigestMismatch,
		strings.Repeat(" ", maxConfig+1) + "{": oci.ErrTooLarge,
	} {
		d.must(os.WriteFile(name, []byte(content), 0o600))
		images, err := s.Images()
		if len(images) != 1 || images[0].ID != good || !errors.Is(err, class) {
			t.Errorf("got images %v and error %v, want the good one and %v", images, err, class)
		}
		if _, err := s.Config(bad); !errors.Is(err, class) {
			t.Errorf("got error %v, want %v", err, class)
		}
	}
	for _, id := range []string{"", "sha256:../../repositories.json", "../x"} {
		if _, err := s.Config(oci.Digest(id)); !errors.Is(err, oci.ErrDigestInvalid) {
			t.Errorf("Config(%q): got error %v, want ErrDigestInvalid", id, err)
		}
	}
	if _, err := s.Config(oci.Digest(sha("c"))); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("got error %v, want ErrNotFound", err)
	}
	for _, config := range []string{"[]", `{"rootfs":{"diff_ids":["sha256:.."]}}`, `{"rootfs":{"diff_ids":[` + strings.Repeat(`"x",`, 500) + `"x"]}}`} {
		id := digest.FromString(config)
		d.write("image/overlay2/imagedb/content/sha256/"+id.Encoded(), config)
		if _, err := s.image(id); err == nil {
			t.Errorf("configuration %.40s was accepted", config)
		}
	}
	d.write("image/overlay2/repositories.json", "{")
	if _, err := s.Images(); err == nil {
		t.Error("repositories.json that is cut: got no error")
	}
}

func TestHints(t *testing.T) {
	d := newData(t)
	diff := oci.Digest(sha("d"))
	s := d.store()
	if hints, err := s.Hints(diff); err != nil || len(hints) != 0 {
		t.Errorf("got %v and error %v, want nothing", hints, err)
	}
	name := "image/overlay2/distribution/v2metadata-by-diffid/sha256/" + diff.Encoded()
	d.write(name, fmt.Sprintf(`[{"Digest":%[1]q,"SourceRepository":"docker.io/library/alpine","HMAC":""},
		{"Digest":"none","SourceRepository":"x","HMAC":""},{"Digest":%[2]q,"SourceRepository":"registry.test/app","HMAC":"00"},
		{"Digest":%[2]q,"SourceRepository":"registry.test/app","HMAC":""}]`, sha("1"), sha("2")))
	want := []Hint{{oci.Digest(sha("1")), "docker.io/library/alpine"}, {oci.Digest(sha("2")), "registry.test/app"}}
	if hints, err := s.Hints(diff); err != nil || !slices.Equal(hints, want) {
		t.Errorf("got %v and error %v, want %v", hints, err, want)
	}
	d.write(name, "{")
	if _, err := s.Hints(diff); err == nil {
		t.Error("a file that is cut: got no error")
	}
	if _, err := s.Hints("sha256:../.."); !errors.Is(err, oci.ErrDigestInvalid) {
		t.Errorf("got error %v, want ErrDigestInvalid", err)
	}
}
