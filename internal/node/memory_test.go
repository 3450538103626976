package node

import "testing"

func TestMemoryLimit(t *testing.T) {
	const mb = 1 << 20
	var m memory
	for _, step := range []struct{ reserved, live, want int64 }{
		{0, 5 * mb, memoryGoal},
		{0, 20 * mb, 40 * mb},       // much to remember
		{18 * mb, 20 * mb, 58 * mb}, // not taken yet
		{18 * mb, 38 * mb, 58 * mb}, // taken
		{0, 6 * mb, memoryGoal},     // forgotten
		{18 * mb, 6 * mb, 30 * mb},  // little besides
		{36 * mb, 24 * mb, 48 * mb}, // one is taken
		{36 * mb, 46 * mb, 56 * mb}, // both are, and more besides
		{0, 6 * mb, memoryGoal},
	} {
		m.reserved = step.reserved
		if got := m.next(step.live); got != step.want {
			t.Errorf("%d reserved, %d live: limit %d, want %d", step.reserved, step.live, got, step.want)
		}
	}
}
