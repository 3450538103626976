package zlib

// tooFar: a match of minMatch bytes farther away than this takes more than three literals. Fast levels do not care.
const tooFar = 4096

// encode makes tokens of the content, and blocks of the tokens whenever there are enough. It leaves less than minLookahead bytes, or, if
// nothing more comes for the block, nothing.
func (e *encoder) encode(all bool) {
	if e.fast {
		e.encodeFast(all)
	} else {
		e.encodeLazy(all)
	}
	if all {
		e.unhashed = min(e.pos, minMatch-1)
	}
}

// encodeFast takes every match it finds. The inside of long ones is not hashed.
func (e *encoder) encodeFast(all bool) {
	pos, end := e.pos, e.end
	h := e.firstTwo(pos)
	finishing := false
	for {
		if end-pos < minLookahead {
			if !all || pos == end {
				break
			}
			e.pos = pos
			e.finish(finishing)
			finishing = true
			pos, end = e.pos, e.end
		}
		cur := 0
		if end-pos >= minMatch {
			h = e.roll(h, e.window[pos+2])
			cur = e.insert(pos, h)
		}
		length, start, at := 0, 0, pos
		if e.reaches(pos, cur) {
			length, start = e.longest(pos, end, cur, minMatch-1)
		}
		if length < minMatch {
			e.literal(e.window[pos])
			pos++
		} else {
			e.match(pos-start, length)
			next := pos + length
			if length <= e.lazy && end-next >= minMatch {
				for pos++; pos < next; pos++ {
					h = e.roll(h, e.window[pos+2])
					e.insert(pos, h)
				}
			} else {
				pos = next
				h = e.firstTwo(pos)
			}
		}
		if e.n == e.stop && e.enough(at) {
			e.pos = pos
			e.block(false)
		}
	}
	e.pos = pos
}

// encodeLazy takes a match when the next byte has none that is longer, else it makes the byte a literal.
func (e *encoder) encodeLazy(all bool) {
	pos, end := e.pos, e.end
	length, start := e.length, e.start
	h := e.firstTwo(pos)
	finishing := false
	for {
		if end-pos < minLookahead {
			if !all || pos == end {
				break
			}
			e.pos, e.start = pos, start
			e.finish(finishing)
			finishing = true
			pos, end, start = e.pos, e.end, e.start
		}
		cur := 0
		if end-pos >= minMatch {
			h = e.roll(h, e.window[pos+2])
			cur = e.insert(pos, h)
		}
		before, beforeStart := length, start
		length = minMatch - 1
		if before < e.lazy && e.reaches(pos, cur) {
			length, start = e.longest(pos, end, cur, before)
			if length == minMatch && pos-start > tooFar {
				length = minMatch - 1
			}
		}
		next := pos + 1
		switch {
		case before >= minMatch && length <= before:
			e.match(pos-1-beforeStart, before)
			next = pos - 1 + before
			hashed := min(next, end-minMatch+1)
			for i := pos + 1; i < hashed; i++ {
				h = e.roll(h, e.window[i+2])
				e.insert(i, h)
			}
			e.pending, length = false, minMatch-1
			if e.n == e.stop && e.enough(pos) {
				e.pos = next
				e.block(false)
			}
		case e.pending:
			e.literal(e.window[pos-1])
			if e.n == e.stop && e.enough(pos) {
				e.pos = pos // which is pending
				e.block(false)
			}
		default:
			e.pending = true
		}
		pos = next
	}
	if all && e.pending {
		e.literal(e.window[pos-1])
		e.pending = false
	}
	e.pos, e.length, e.start = pos, length, start
}
