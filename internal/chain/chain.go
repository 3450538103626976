// Package chain combines Sources into one: [First] asks them in turn, [Fresh] decides who is asked for tags, [Once]
// verifies content the first time it is served, [Resume] goes on elsewhere when a reader breaks. It also holds what Sources
// that keep files share: [Blobs], [File] and [Verify].
package chain
