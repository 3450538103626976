package node

import "testing"

func TestMemoryLimit(t *testing.T) {
	const mb = 1 << 20
	var m memory
	for _, step := range []struct{ reserved, live, want int64 }{
		{0, 5 * mb, memoryGoal},
		{0, 20 * mb, 40 * mb},       // much to remember
		{0, 6 * mb, memoryGoal},     // forgotten
		{43 * mb, 6 * mb, 55 * mb},  // not taken yet
		{43 * mb, 48 * mb, 55 * mb}, // taken
		{61 * mb, 48 * mb, 73 * mb}, // more is, not taken yet
		{61 * mb, 69 * mb, 77 * mb},
		{0, 2 * mb, memoryGoal},
		{18 * mb, 20 * mb, 30 * mb}, // little besides
	} {
		m.reserved = step.reserved
		if got := m.next(step.live); got != step.want {
			t.Errorf("%d reserved, %d live: limit %d, want %d", step.reserved, step.live, got, step.want)
		}
	}
}
