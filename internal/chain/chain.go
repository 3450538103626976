// Package chain combines Sources into one: [First] asks them in turn, [Fresh] decides who is asked for tags, [Once]
// verifies content the first time it is served, [Proved] before the first byte of it is, [Resume] goes on elsewhere when a
// reader breaks, [Limited] holds readers to a rate. It also holds what Sources that keep files share: [Blobs], [File] and
// [Verify]. What of it goes over which door is not decided here.
package chain
