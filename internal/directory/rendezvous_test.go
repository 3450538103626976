package directory

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pier/internal/oci"
)

func directoryOf(n int) *Directory {
	d := New(Config{Send: func(ID, []byte) {}, Self: Member{ID: IDOf("node-0")}})
	var members []Member
	for i := range n {
		members = append(members, Member{ID: IDOf(fmt.Sprintf("node-%d", i))})
	}
	d.SetMembers(members[0], members)
	return d
}

// Every member coordinates its share of the keys, in every place: no more uneven than chance has it.
func TestSpreadIsEven(t *testing.T) {
	const members, all = 100, 20000
	d := directoryOf(members)
	defer d.Close()
	var counts [coordinators]map[ID]int
	for i := range counts {
		counts[i] = make(map[ID]int)
	}
	for i := range all {
		r := d.rank(testKey(i))
		for place, id := range r.members() {
			counts[place][id]++
		}
		if r.n != coordinators || r.ids[0] == r.ids[1] || r.ids[1] == r.ids[2] || r.ids[0] == r.ids[2] {
			t.Fatalf("key %d has coordinators %x", i, r.ids)
		}
	}
	for place, count := range counts {
		const expected = float64(all) / members
		chi := 0.0
		for _, m := range d.members {
			off := float64(count[m.ID]) - expected
			chi += off * off / expected
		}
		// Chi square of 99 degrees of freedom: mean 99, deviation sqrt(198). Five deviations are chance once in a million.
		if most := 99 + 5*math.Sqrt(198); chi > most {
			t.Errorf("place %d: chi square is %.0f, want at most %.0f", place, chi, most)
		}
	}
}

// Digests of which only the ends differ, and names that do, spread as well.
func TestSpreadOfSimilarKeys(t *testing.T) {
	d := directoryOf(10)
	defer d.Close()
	count := make(map[ID]int)
	for i := range 10000 {
		var k Key
		k[0], k[7] = byte(i), byte(i>>8)
		r := d.rank(k)
		count[r.ids[0]]++
	}
	for id, n := range count {
		if n < 700 || n > 1300 {
			t.Errorf("%x is first for %d keys of 10000", id, n)
		}
	}
}

func TestJoinMovesItsShare(t *testing.T) {
	const members, all = 50, 5000
	before, after := directoryOf(members), directoryOf(members+1)
	defer before.Close()
	defer after.Close()
	joined := IDOf(fmt.Sprintf("node-%d", members))
	moved := 0
	for i := range all {
		b, a := before.rank(testKey(i)), after.rank(testKey(i))
		if a.contains(joined) {
			moved++
		}
		rest := slices.DeleteFunc(slices.Clone(a.members()), func(id ID) bool { return id == joined })
		if !slices.Equal(rest, b.members()[:len(rest)]) {
			t.Errorf("key %d: %x became %x", i, b.ids, a.ids)
		}
	}
	if want := all * coordinators / (members + 1); moved < want*8/10 || moved > want*12/10 {
		t.Errorf("%d keys moved to who joined, want about %d", moved, want)
	}
}

func TestFewMembers(t *testing.T) {
	for n := 1; n <= 3; n++ {
		d := directoryOf(n)
		r := d.rank(testKey(1))
		if len(r.members()) != n {
			t.Errorf("%d members: %d coordinators", n, len(r.members()))
		}
		d.Close()
	}
}

func TestKeysAndScopes(t *testing.T) {
	const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	blob := oci.Reference{Registry: "a.test", Repository: "x", Kind: oci.Blob, Digest: digest}
	elsewhere, manifest := blob, blob
	elsewhere.Registry = "b.test"
	manifest.Kind = oci.Manifest
	if KeyOf(blob) != KeyOf(elsewhere) || ScopeOf(blob) == ScopeOf(elsewhere) {
		t.Error("content of two registries: want one key and two scopes")
	}
	if ScopeOf(blob) == ScopeOf(manifest) {
		t.Error("a blob and a manifest have one scope")
	}
	if k := KeyOf(blob); fmt.Sprintf("%x", k[:]) != digest[7:7+32] {
		t.Errorf("key of %s is %x", digest, k)
	}
	tag, other := blob, blob
	tag.Digest, tag.Tag = "", "v1"
	other.Digest, other.Tag = "", "v2"
	if KeyOf(tag) == KeyOf(other) || KeyOf(tag) == KeyOf(blob) {
		t.Error("two names have one key")
	}
	if KeyOf(oci.Reference{Digest: "odd:zz"}) == (Key{}) {
		t.Error("an odd digest has no key")
	}
}
