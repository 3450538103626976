package node

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// memoryGoal is what a node gets along with, in bytes of all that the language's runtime maps: while it takes no more, garbage
// is collected as it comes, and beyond that more often, for a few hundredths of a processor. With the program's own pages that
// keeps it below 25 MB while many pull at once.
const memoryGoal = 31 << 19 // 15.5 MiB

// besidesGoal is what it gets along with beside what is reserved, in bytes: for a short time, and no more than 64 MB are to be taken.
const besidesGoal = 12 << 20

// A memory sets how much memory is taken before garbage is collected more often: the goal, or twice what is in use, so that a node that
// has much to remember does not collect all the time. What is reserved, in large pieces for a short time, comes on top once, not
// twice. GOMEMLIMIT sets it otherwise.
type memory struct {
	mu       sync.Mutex // guards all below
	limit    int64      // in force; 0: none yet
	reserved int64
	besides  int64 // in use besides that, as far as is known
}

// reserveAtLeast is what is worth a reservation, in bytes.
const reserveAtLeast = 4 << 20

// reserve says that so many bytes more are in use from now on, or fewer: these are collected at once, for with as much garbage as was in
// use the next reservation would come on top of it.
func (m *memory) reserve(bytes int64) {
	if -reserveAtLeast < bytes && bytes < reserveAtLeast {
		return
	}
	if bytes < 0 {
		runtime.GC() // first, so that no look takes it for something else
	}
	m.mu.Lock()
	m.reserved += bytes
	m.mu.Unlock()
	m.look()
}

// look sets the limit by what is in use.
func (m *memory) look() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	if live[0].Value.Kind() != metrics.KindUint64 {
		return // this version of the runtime does not tell
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if limit := m.next(int64(live[0].Value.Uint64())); limit != m.limit {
		m.limit = limit
		debug.SetMemoryLimit(limit)
	}
}

// next returns the limit where so much was in use when garbage was last collected. The caller holds mu.
func (m *memory) next(live int64) int64 {
	if m.reserved > 0 { // what is reserved may not be taken yet
		m.besides = max(m.besides, live-m.reserved)
	} else {
		m.besides = live
	}
	return max(memoryGoal, m.reserved+max(besidesGoal, 2*m.besides))
}
