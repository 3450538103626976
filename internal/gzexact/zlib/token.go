package zlib

// A token is a literal, its byte, or a match: its distance in the upper 16 bits, its length less minMatch in the lower 8.
type token uint32

func (t token) literal() bool { return t < 1<<16 }

// distance of a match, less 1.
func (t token) distance() uint32 { return uint32(t>>16) - 1 }

func (e *encoder) literal(b byte) {
	e.tokens[e.n] = token(b)
	e.n++
}

func (e *encoder) match(distance, length int) {
	e.tokens[e.n] = token(distance<<16 | (length - minMatch))
	e.n++
}

// A weighing is what is known of a block that is not yet done.
type weighing struct {
	stop         int // enough is asked when there are so many tokens
	weighed      int // tokens that the rest speaks of
	matches      int
	distanceBits int // by a guess: 5 for each, and the extra ones
}

func (e *encoder) startBlock() {
	e.n = 0
	e.weighing = weighing{stop: e.firstStop}
}

// enough is asked when there are stop tokens, the last one found at pos, and says whether the block ends. It always ends when blockTokens are
// there; GNU gzip ends it earlier when it has few matches and still is less than half its content (zlib knows the rule, and has it
// switched off).
func (e *encoder) enough(pos int) bool {
	if e.n == e.blockTokens {
		return true
	}
	w := &e.weighing
	for _, t := range e.tokens[w.weighed:e.n] {
		if !t.literal() {
			_, extra := distanceSymbol(t.distance())
			w.distanceBits += 5 + int(extra)
			w.matches++
		}
	}
	w.weighed = e.n
	if w.matches < e.n/2 && (8*e.n+w.distanceBits)/8 < (pos-e.blockStart)/2 {
		return true
	}
	w.stop = min(w.stop+e.firstStop, e.blockTokens)
	return false
}
