package directory

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash/fnv"
	"math/bits"
	"strings"
	"time"

	"pier/internal/oci"
)

// An ID stands for a member in messages and records: 64 bits of its name's digest. Among 10,000 members two have the same
// with a probability of 3 in 10^12; they would be taken for one.
type ID uint64

// IDOf returns the ID of the member with a name.
func IDOf(name string) ID {
	sum := sha256.Sum256([]byte(name))
	return ID(binary.BigEndian.Uint64(sum[:]))
}

func compareIDs(a, b ID) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// A Key stands for content, or for a tag: 128 bits of a digest. Whoever makes two contents with one key, at the cost of 2^64
// digests, gains that an asker is sent to a node that does not have what it wants.
type Key [16]byte

// KeyOf returns the key of what ref names: content if it has a digest, else a tag.
func KeyOf(ref oci.Reference) Key {
	var key Key
	if ref.Digest == "" {
		sum := sha256.Sum256([]byte(ref.Name() + ":" + ref.Tag))
		copy(key[:], sum[:])
		return key
	}
	_, value, _ := strings.Cut(ref.Digest.String(), ":")
	if len(value) >= 2*len(key) {
		if _, err := hex.Decode(key[:], []byte(value[:2*len(key)])); err == nil {
			return key
		}
	}
	sum := sha256.Sum256([]byte(ref.Digest)) // not of the form that package oci lets through
	copy(key[:], sum[:])
	return key
}

// A Scope tells transfers of the same content from different registries apart: what one registry supplies, or holds up,
// is no matter to those who ask another. It is also different for manifests and blobs.
type Scope uint64

// ScopeOf returns the scope of a transfer of ref.
func ScopeOf(ref oci.Reference) Scope {
	h := fnv.New64a()
	_, _ = h.Write([]byte(ref.Registry)) // never fails
	_, _ = h.Write([]byte{0, byte(ref.Kind)})
	return Scope(h.Sum64())
}

// coordinators is how many members keep the record of a key. Two are lost together too often when many fail at once: with
// a third of the members gone, 1 key in 9 has lost two, 1 in 27 three.
const coordinators = 3

// score is the weight of a member for a key: both halves of the 128-bit product of the two, folded into one (the mixing step of
// wyhash; Wang Yi, public domain). That is enough, since IDs and keys are parts of digests already, and half the time of a
// hash that mixes whatever it is given: a look-up among 10,000 members takes as many. Those with the highest scores are the
// key's coordinators (rendezvous hashing, Thaler and Ravishankar 1998): who joins or leaves moves only the keys that it
// coordinates.
func score(id ID, key Key) uint64 {
	summand, factor := key.halves()
	return mix(id, summand, factor)
}

func mix(id ID, summand, factor uint64) uint64 {
	high, low := bits.Mul64(uint64(id)^summand, factor)
	return high ^ low
}

// halves returns two numbers for [mix]; the second is not 0 where a part of the key is.
func (k Key) halves() (summand, factor uint64) {
	return binary.LittleEndian.Uint64(k[:8]), binary.LittleEndian.Uint64(k[8:]) ^ 0x9e3779b97f4a7c15
}

// A ranking holds the coordinators of one key, best first.
type ranking struct {
	n      int
	ids    [coordinators]ID
	scores [coordinators]uint64
}

// add ranks a member.
func (r *ranking) add(id ID, s uint64) {
	i := r.n
	for i > 0 && (s > r.scores[i-1] || s == r.scores[i-1] && id > r.ids[i-1]) {
		i--
	}
	if i == coordinators {
		return
	}
	r.n = min(r.n+1, coordinators)
	copy(r.ids[i+1:r.n], r.ids[i:])
	copy(r.scores[i+1:r.n], r.scores[i:])
	r.ids[i], r.scores[i] = id, s
}

func (r *ranking) members() []ID { return r.ids[:r.n] }

func (r *ranking) contains(id ID) bool {
	for _, c := range r.members() {
		if c == id {
			return true
		}
	}
	return false
}

// rank returns the coordinators of key among all members.
func (d *Directory) rank(key Key) ranking {
	var r ranking
	summand, factor := key.halves()
	for i := range d.members {
		id := d.members[i].ID
		if s := mix(id, summand, factor); s >= r.scores[coordinators-1] { // 0 as long as it is free
			r.add(id, s)
		}
	}
	return r
}

// rtt estimates a round trip and how much it varies, as TCP does (RFC 6298, section 2).
type rtt struct {
	known          bool
	smooth, varies time.Duration
}

func (r *rtt) add(measured time.Duration) {
	if !r.known {
		r.known, r.smooth, r.varies = true, measured, measured/2
		return
	}
	off := r.smooth - measured
	if off < 0 {
		off = -off
	}
	r.varies += (off - r.varies) / 4
	r.smooth += (measured - r.smooth) / 8
}

// Bounds of how long an answer is waited for. On a LAN it is the least; a busy machine, or one behind a tunnel, has more.
const (
	minDeadline   = 20 * time.Millisecond
	firstDeadline = 100 * time.Millisecond // as long as nobody was measured
	maxDeadline   = 250 * time.Millisecond
)

// deadline is how long an answer of p is waited for: if it was never measured, as long as it usually takes others.
func (p *peer) deadline(usual rtt) time.Duration {
	switch {
	case p.rtt.known:
		return p.rtt.limit(maxDeadline)
	case usual.known:
		return usual.limit(firstDeadline)
	}
	return firstDeadline
}

func (r rtt) limit(most time.Duration) time.Duration {
	return min(max(r.smooth+4*r.varies, minDeadline), most)
}
