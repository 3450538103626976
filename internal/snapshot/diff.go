package snapshot

// A Change is what differs between two trees at one path.
type Change struct {
	Kind string `json:"kind"` // added, removed, content, or mode: only the permissions differ
	Path string `json:"path"`
	Old  int64  `json:"oldSize"` // bytes; of a directory, of all in it
	New  int64  `json:"newSize"`
}

// Diff returns what must change for one tree to become another, by path. A directory whose files changed did not change itself.
func Diff(from, to Manifest) []Change {
	changes := []Change{}
	for len(from) > 0 || len(to) > 0 {
		switch {
		case len(to) == 0 || len(from) > 0 && from[0].Path < to[0].Path:
			changes = append(changes, Change{"removed", from[0].Path, from[0].Size, 0})
			from = from[1:]
		case len(from) == 0 || to[0].Path < from[0].Path:
			changes = append(changes, Change{"added", to[0].Path, 0, to[0].Size})
			to = to[1:]
		default:
			a, b := from[0], to[0]
			switch {
			case a.Digest != b.Digest && !a.Dir():
				changes = append(changes, Change{"content", a.Path, a.Size, b.Size})
			case a.Perm != b.Perm:
				changes = append(changes, Change{"mode", a.Path, a.Size, b.Size})
			}
			from, to = from[1:], to[1:]
		}
	}
	return changes
}
