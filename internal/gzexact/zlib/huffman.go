package zlib

import "math/bits"

// A code is a Huffman code: how often its symbols occur, and what stands for them.
type code struct {
	freq [maxSymbols]uint32
	size [maxSymbols]uint8  // bits; 0 for a symbol that does not occur
	word [maxSymbols]uint16 // its first bit lowest
}

const (
	literals    = 286 // symbols for literals, the end of a block, and lengths
	distances   = 30
	codeSizes   = 19 // symbols that describe the sizes of the other two codes
	maxSymbols  = 288
	endOfBlock  = 256
	maxSize     = 15 // bits of a word; RFC 1951
	maxCodeSize = 7  // for codeSizes
)

// build makes the code of the first symbols from their frequencies, and returns how many of these symbols it describes: one more than
// the last that occurs. At least two symbols get a word, whether they occur or not: old decoders want that.
//
// Which of several best codes it is, and what it does about words that are too long, follows from the order of a binary heap, and is
// part of what makes the output exact. Trees of the same weight are ordered by depth.
func (c *code) build(symbols, limit int) int {
	var t tree
	c.size = [maxSymbols]uint8{}
	used := 0
	for s, f := range c.freq[:symbols] {
		if f > 0 {
			t.add(s, f)
			used = s + 1
		}
	}
	for t.n < 2 {
		s := 0
		if used < 3 {
			s = used
			used++
		}
		t.add(s, 1)
	}
	t.merge(symbols)
	var count [maxSize + 1]int
	t.measure(c, used, limit, &count)
	c.assign(used, &count)
	return used
}

// assign gives words to the used symbols in the order of RFC 1951, 3.2.2: count says how many have each size.
func (c *code) assign(used int, count *[maxSize + 1]int) {
	var next [maxSize + 2]uint16
	for size := 1; size <= maxSize; size++ {
		next[size+1] = (next[size] + uint16(count[size])) << 1
	}
	for s, size := range c.size[:used] {
		if size > 0 {
			c.word[s] = bits.Reverse16(next[size]) >> (16 - size)
			next[size]++
		}
	}
}

// A tree is a Huffman tree being made. Nodes below symbols are leaves, those from there on have two children.
type tree struct {
	heap   [2*literals + 1]uint16 // 1 to n: roots not yet merged, lightest first
	n      int
	key    [2 * literals]uint32 // of a node: its weight, and in the lower 8 bits its depth
	parent [2 * literals]uint16
	order  [2 * literals]uint16 // the nodes in order of removal from the heap
	nodes  int
}

func (t *tree) add(symbol int, freq uint32) {
	t.n++
	t.heap[t.n] = uint16(symbol)
	t.key[symbol] = freq << 8
}

// sift moves the node at i in the heap down to where it belongs.
func (t *tree) sift(i int) {
	node := t.heap[i]
	key := t.key[node]
	for child := 2 * i; child <= t.n; child = 2 * i {
		if child < t.n && t.key[t.heap[child+1]] <= t.key[t.heap[child]] {
			child++
		}
		if key <= t.key[t.heap[child]] {
			break
		}
		t.heap[i] = t.heap[child]
		i = child
	}
	t.heap[i] = node
}

func (t *tree) remove(node uint16) {
	t.order[t.nodes] = node
	t.nodes++
}

// merge makes one tree of all: the two lightest become the children of a new node, again and again.
func (t *tree) merge(symbols int) {
	for i := t.n / 2; i > 0; i-- {
		t.sift(i)
	}
	for node := uint16(symbols); ; node++ {
		a := t.heap[1]
		t.heap[1] = t.heap[t.n]
		t.n--
		t.sift(1)
		b := t.heap[1]
		t.remove(a)
		t.remove(b)
		t.key[node] = t.key[a]&^0xff + t.key[b]&^0xff + max(t.key[a]&0xff, t.key[b]&0xff) + 1
		t.parent[a], t.parent[b] = node, node
		t.heap[1] = node
		if t.n == 1 {
			t.remove(node)
			return
		}
		t.sift(1)
	}
}

// measure sets the sizes of c's words, and counts how many there are of each. Those over limit are cut, and for two of them each time
// the deepest leaf that is not at the limit becomes a node with two leaves; then sizes are dealt out anew in order of weight.
func (t *tree) measure(c *code, used, limit int, count *[maxSize + 1]int) {
	var depth [2 * literals]uint8
	over := 0
	for i := t.nodes - 2; i >= 0; i-- {
		node := t.order[i]
		d := int(depth[t.parent[node]]) + 1
		if d > limit {
			d = limit
			over++
		}
		depth[node] = uint8(d)
		if int(node) < used {
			c.size[node] = uint8(d)
			count[d]++
		}
	}
	if over == 0 {
		return
	}
	for ; over > 0; over -= 2 {
		d := limit - 1
		for count[d] == 0 {
			d--
		}
		count[d]--
		count[d+1] += 2
		count[limit]--
	}
	i := 0
	for d := limit; d > 0; d-- {
		for n := count[d]; n > 0; i++ {
			if node := t.order[i]; int(node) < used {
				c.size[node] = uint8(d)
				n--
			}
		}
	}
}
