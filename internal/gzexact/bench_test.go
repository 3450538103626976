package gzexact

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"
)

// BenchmarkEncode is the speed of making a stream again, in bytes of content. Beside the programs' own: docs/recompression.md.
func BenchmarkEncode(b *testing.B) {
	all := content(8 << 20)
	for _, c := range codecs() {
		for _, workers := range []int{1, 2} {
			if workers > 1 && c.block == 0 {
				continue
			}
			e := Encoder{Recipe: c.recipe(c.levels[0]), Workers: workers}
			b.Run(fmt.Sprintf("%s-level%d-workers%d", c.name, c.levels[0], workers), func(b *testing.B) {
				b.SetBytes(int64(len(all)))
				b.ReportAllocs()
				for b.Loop() {
					if err := e.Encode(context.Background(), io.Discard, bytes.NewReader(all)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkLearn is what it takes to find a common and a rare recipe, and that there is none.
func BenchmarkLearn(b *testing.B) {
	all := content(8 << 20)
	rare := encode(b, Encoder{Recipe: Recipe{codec: "klauspost117", level: 8, header: plainHeader}}, all)
	unknown := bytes.Clone(rare)
	clear(unknown[500_000:500_100])
	for name, stream := range map[string][]byte{
		"common":  encode(b, Encoder{Recipe: Candidates()[0]}, all),
		"rare":    rare,
		"unknown": unknown,
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(all)))
			for b.Loop() {
				if _, _, err := learn(stream, all); (err == nil) != (name != "unknown") {
					b.Fatal(err)
				}
			}
		})
	}
}
