package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"pier/internal/node"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

const image = "registry.example.com:5000/team/app:V1"

// sharing is a site at which an image is being rolled out: a has it, b half of it, c starts, and d fetches the last layer,
// which nobody has yet.
func sharing() node.LocateInfo {
	a, b := peerRef("node-a.lan", "10.0.0.1", "rack-1"), peerRef("node-b.lan", "[fd00::2]", "rack-1")
	c, d := peerRef("node-c.lan", "10.0.0.3", "rack-2"), peerRef("node-d.lan", "10.0.0.4", "")
	part := func(kind oci.Kind, seed, size int64) node.LocatedContent {
		return node.LocatedContent{Digest: ocitest.Digest([]byte(fmt.Sprint(seed))), Kind: kind.String(), Size: size}
	}
	manifest, layer, last := part(oci.Manifest, 1, 1_234), part(oci.Blob, 2, 120_000_000), part(oci.Blob, 3, 31_457_280)
	manifest.Holders = []node.PeerRef{d, c, b, a}
	layer.Holders = []node.PeerRef{a, b}
	layer.Receiving = []node.Receiving{{Peer: c, Offset: 64 << 10}}
	last.Receiving = []node.Receiving{{Peer: d, Offset: 20_000_000}, {Peer: a, Offset: 19_000_000}}
	last.Fetching = []node.PeerRef{d}
	return node.LocateInfo{Ref: image, Content: []node.LocatedContent{manifest, layer, last}}
}

func locating(t *testing.T, info node.LocateInfo) (url string, asked *string) {
	asked = new(string)
	return startDoor(t, answers{"locate": func(_ context.Context, arg string) (any, error) {
		*asked = arg
		return info, nil
	}}), asked
}

func TestLocateImage(t *testing.T) {
	url, asked := locating(t, sharing())
	stdout, _, err := pier(t, "locate", image, "--node", url)
	if *asked != image {
		t.Errorf("the node was asked for %q, want %q", *asked, image)
	}
	if want := `nobody holds 1 of the 3 parts of "` + image + `" yet`; err == nil || err.Error() != want || exitStatus(err) != 1 {
		t.Errorf("got %v, want %s", err, want)
	}
	wantText(t, stdout, `
registry.example.com:5000/team/app:V1: 3 parts, 151.5 MB
nobody holds blob sha256:4e07408562bedb8b60ce05c1decfe3ad16b72230967de01f640b7e4729b49fce, 31.5 MB

NODE        PEER DOOR       ZONE    PARTS      SIZE  STATE
node-a.lan  10.0.0.1:5000   rack-1    2/3  139.0 MB  receiving
node-b.lan  [fd00::2]:5000  rack-1    2/3  120.0 MB  part
node-d.lan  10.0.0.4:5000   -         1/3   20.0 MB  fetching from upstream
node-c.lan  10.0.0.3:5000   rack-2    1/3   66.8 kB  receiving
`)

	stdout, _, err = pier(t, "locate", "--json", image, "--node", url)
	var got node.LocateInfo
	if exitStatus(err) != 1 || json.Unmarshal([]byte(stdout), &got) != nil || got.Ref != image || len(got.Content) != 3 || got.Content[2].Receiving[0].Peer.Host != "node-d.lan" {
		t.Errorf("--json: %v, %s", err, stdout)
	}
}

func TestLocateDigest(t *testing.T) {
	info := sharing()
	info.Content = info.Content[1:2]
	info.Ref = info.Content[0].Digest.String()
	url, _ := locating(t, info)
	stdout, stderr, err := pier(t, "locate", info.Ref, "--node", url)
	if err != nil || stderr != "" {
		t.Errorf("got %v, %s", err, stderr)
	}
	wantText(t, stdout, `
sha256:d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35: blob, 120.0 MB

NODE        PEER DOOR       ZONE    PARTS      SIZE  STATE
node-a.lan  10.0.0.1:5000   rack-1    1/1  120.0 MB  complete
node-b.lan  [fd00::2]:5000  rack-1    1/1  120.0 MB  complete
node-c.lan  10.0.0.3:5000   rack-2    0/1   65.5 kB  receiving
`)
}

// Who asks for what is on its way was told to pull it.
func TestLocateOnItsWay(t *testing.T) {
	info := sharing()
	info.Content = info.Content[2:]
	url, _ := locating(t, info)
	_, _, err := pier(t, "locate", image, "--node", url)
	if want := `nobody holds "` + image + `" yet: it is on its way`; err == nil || err.Error() != want || exitStatus(err) != 1 {
		t.Errorf("got %v, want %s", err, want)
	}
}

// A node that lacks the manifest knows who has that, and nothing of the layers: "complete" would be a guess.
func TestLocateManifestOnly(t *testing.T) {
	info := sharing()
	info.Content = info.Content[:1]
	info.Partial = "this node cannot read the manifest, so what it refers to is not known"
	url, _ := locating(t, info)
	stdout, _, err := pier(t, "locate", image, "--node", url)
	if want := `what else belongs to "` + image + `" is not known here: ask a node that holds it, with --node URL, or pull it through this one`; err == nil || err.Error() != want || exitStatus(err) != 1 {
		t.Errorf("got %v, want %s", err, want)
	}
	wantText(t, stdout, `
registry.example.com:5000/team/app:V1: manifest only, 1.2 kB: this node cannot read the manifest, so what it refers to is not known

NODE        PEER DOOR       ZONE    PARTS    SIZE  STATE
node-a.lan  10.0.0.1:5000   rack-1    1/1  1.2 kB  part
node-b.lan  [fd00::2]:5000  rack-1    1/1  1.2 kB  part
node-c.lan  10.0.0.3:5000   rack-2    1/1  1.2 kB  part
node-d.lan  10.0.0.4:5000   -         1/1  1.2 kB  part
`)
}

func TestNobodyHolds(t *testing.T) {
	const want = `nobody holds "alpine"; pull it through a node that reaches its registry`
	unknown := startDoor(t, answers{"locate": func(context.Context, string) (any, error) { return nil, oci.ErrNotFound }})
	known, _ := locating(t, node.LocateInfo{Ref: "docker.io/library/alpine:latest", Content: []node.LocatedContent{{Kind: "manifest", Size: -1}}})
	empty, _ := locating(t, node.LocateInfo{Ref: "docker.io/library/alpine:latest"})
	for _, url := range []string{unknown, known, empty} {
		_, _, err := pier(t, "locate", "alpine", "--node", url)
		if err == nil || err.Error() != want || exitStatus(err) != 1 {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestLocateArguments(t *testing.T) {
	for _, args := range [][]string{{"locate"}, {"locate", "a", "b"}, {"locate", ""}} {
		if _, _, err := pier(t, args...); exitStatus(err) != 2 || !strings.Contains(err.Error(), "see 'pier locate --help'") {
			t.Errorf("%q: got %v, want a usage error", args, err)
		}
	}
	for arg, want := range map[string]string{
		"sha256:12":                           `"sha256:12" is no digest: write all of its 64 hexadecimal digits, in lower case`,
		"sha256:" + strings.Repeat("A", 64):   "write all of its 64 hexadecimal digits, in lower case",
		"sha512:" + strings.Repeat("a", 64):   "write all of its 128 hexadecimal digits, in lower case",
		"sha256:":                             "write all of its 64 hexadecimal digits, in lower case",
		"sha256:" + strings.Repeat("a", 64-1): "write all of its 64 hexadecimal digits, in lower case",
	} {
		if _, _, err := pier(t, "locate", arg); exitStatus(err) != 2 || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%q: got %v, want …%s", arg, err, want)
		}
	}
	fault := startDoor(t, answers{"locate": func(context.Context, string) (any, error) { return nil, oci.ErrUnavailable }})
	if _, _, err := pier(t, "locate", "alpine", "--node", fault); err == nil ||
		!strings.HasSuffix(err.Error(), "; its log says why; its metrics door tells what the nodes know, and asks no registry") {
		t.Errorf("a registry that cannot be asked: got %v", err)
	}
	invalid := startDoor(t, answers{"locate": func(context.Context, string) (any, error) { return nil, oci.ErrNameInvalid }})
	_, _, err := pier(t, "locate", "UPPER/case", "--node", invalid)
	if err == nil || !strings.HasSuffix(err.Error(), "400 Bad Request: invalid repository or registry name") {
		t.Errorf("an invalid name: got %v", err)
	}
}
