// Package chain combines Sources into one: [First] asks them in turn, [Fresh] decides who is asked for tags, [Once]
// verifies content the first time it is served, [Resume] goes on elsewhere when a reader breaks. It leaves content
// itself to the Sources.
package chain
