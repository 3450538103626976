package bucket

import (
	"context"
	"math/bits"
	"sync"

	"golang.org/x/sync/semaphore"
)

// A pool lends memory for what is sent, of the budget of all uploads, and keeps it for the next. What is lent is counted, and kept,
// in whole classes of sizes, so that it is used again.
type pool struct {
	budget *semaphore.Weighted // up to [memory] bytes

	mu   sync.Mutex
	free [][]byte // guarded by mu: each as long as its class
	kept int64    // guarded by mu: bytes that free has
	lent int64    // guarded by mu: bytes
}

// smallest is the class of all buffers that are smaller, in bytes.
const smallest = 16 << 10

// class returns how long a buffer is that n bytes fit in: the next power of two, or of a MiB beyond a part.
func class(n int) int {
	switch {
	case n <= smallest:
		return smallest
	case n > partSize:
		return (n + 1<<20 - 1) >> 20 << 20
	}
	return 1 << bits.Len(uint(n-1))
}

// weight returns what a buffer counts. One that is larger than the budget is lent when nothing else is.
func weight(n int) int64 { return min(int64(class(n)), memory) }

// get returns n bytes, once there is room. Who waits for it must not have any: nobody could give it back.
func (p *pool) get(ctx context.Context, n int) ([]byte, error) {
	if err := p.budget.Acquire(ctx, weight(n)); err != nil {
		return nil, context.Cause(ctx)
	}
	size := class(n)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lent += int64(size)
	for i := len(p.free) - 1; i >= 0; i-- {
		if b := p.free[i]; len(b) == size {
			p.free = append(p.free[:i], p.free[i+1:]...)
			p.kept -= int64(size)
			return b[:n], nil
		}
	}
	for len(p.free) > 0 && p.kept+p.lent > memory {
		p.kept -= int64(len(p.free[0]))
		p.free = append(p.free[:0], p.free[1:]...)
	}
	return make([]byte, size)[:n], nil
}

// put takes back what get returned.
func (p *pool) put(b []byte) {
	n := len(b)
	b = b[:class(n)]
	p.mu.Lock()
	p.lent -= int64(len(b))
	if size := int64(len(b)); size+p.kept+p.lent <= max(memory, size) {
		p.free = append(p.free, b)
		p.kept += int64(len(b))
	}
	p.mu.Unlock()
	p.budget.Release(weight(n))
}
