// Package snapshot keeps directory trees by content. A tree is described by a [Manifest], a text with a line for each file and directory;
// the BLAKE3 of that text is the ID of the snapshot. Manifests, IDs and the keys that content is stored under are those of snapdir
// (github.com/bermi/snapdir): what one has stored, the other finds.
package snapshot
