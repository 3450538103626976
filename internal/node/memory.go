package node

import (
	"os"
	"runtime/debug"
	"runtime/metrics"
)

// memoryGoal is what a node gets along with, in bytes of all that the language's runtime maps: while it takes no more, garbage
// is collected as it comes, and beyond that more often, for a few hundredths of a processor. With the program's own pages that
// keeps it below 25 MB while many pull at once.
const memoryGoal = 31 << 19 // 15.5 MiB

// limitMemory sets how much memory is taken before garbage is collected more often: the goal, or twice what is in use, so that a
// node that has much to remember does not collect all the time. GOMEMLIMIT sets it otherwise.
func (n *Node) limitMemory() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	if live[0].Value.Kind() != metrics.KindUint64 {
		return // this version of the runtime does not tell
	}
	if limit := max(memoryGoal, 2*int64(live[0].Value.Uint64())); limit != n.limit {
		n.limit = limit
		debug.SetMemoryLimit(limit)
	}
}
