package main

import (
	"context"
	"errors"
	"os"
	"time"
)

// single is the suite of one node by itself.
type single struct {
	*bench
	set   settings
	nginx string
	image image // what is pulled
	small image // what is pulled through other caches by many
}

// settings say how much is measured of one node.
type settings struct {
	layer    int64         // bytes of the layer
	small    int64         // bytes of the layer that all clients pull through another cache, which may fetch it for each of them
	cold     int           // repeats of each cold pull
	warm     int           // repeats of each warm measurement
	other    int           // repeats of a cold pull through another cache
	gets     int           // GETs of the layer in one warm measurement
	tags     int           // images of a full cache
	blobs    int           // that each of them has
	requests int           // requests for a manifest in one measurement
	rest     time.Duration // after a pull, before memory counts as that of an idle node
}

func settingsOf(quick bool) settings {
	if quick {
		return settings{layer: 30 * mb, small: 6 * mb, cold: 2, warm: 3, other: 1, gets: 20, tags: 100, blobs: 20, requests: 8_000, rest: 2 * time.Second}
	}
	return settings{layer: 300 * mb, small: 60 * mb, cold: 5, warm: 11, other: 2, gets: 8, tags: 5_000, blobs: 20, requests: 40_000, rest: 5 * time.Second}
}

func singleSuite() suite {
	return suite{
		title: "One node", command: "make bench", takes: "seven minutes", timeout: 15 * time.Minute,
		parts: []string{"binary", "cold", "warm", "full", "caches"}, measure: measureSingle,
		reading: `- Everything is on the loopback interface, and shares the processors: upstream, server and clients are processes of their
  own. CPU time is that of the measured server alone, with what the kernel does on its behalf.
- The upstream is a small registry that sends so many bytes per second and no more, on one connection and on all together. A
  cold pull starts a new node with an empty cache directory, and gets a manifest by tag, the config and the layer.
- Clients discard what they receive in the kernel, without copying it. They check status and length, not content: tests do.
- nginx runs one worker with sendfile, without an access log, and else as it comes; the node logs each request to a file, as
  it does by default.
- Other caches are measured where they are installed, with fewer repeats. There the many clients pull a smaller layer, since
  it may be fetched once for each of them.
`,
	}
}

func measureSingle(ctx context.Context, b *bench) (err error) {
	s := &single{bench: b, set: settingsOf(b.quick)}
	if err := b.build(ctx); err != nil {
		return err
	}
	if s.nginx, err = b.tool(ctx, "nginx", "-v"); err != nil {
		return err
	}
	images, err := b.startUpstream(ctx, []int64{s.set.layer}, []int64{s.set.small})
	if err != nil {
		return err
	}
	s.image, s.small = images[0], images[1]
	defer func() { err = errors.Join(err, b.upstream.stop()) }()
	return b.measure(ctx, []part{{"binary", s.binary}, {"cold", s.cold}, {"warm", s.warm}, {"full", s.full}, {"caches", s.caches}})
}

// binary measures the size of the binary.
func (b *single) binary(context.Context) error {
	info, err := os.Stat(b.pier)
	if err != nil {
		return err
	}
	b.report.section("The binary")
	b.report.check("size, static and stripped", megabytes, atMost(14), series{float64(info.Size()) / mb})
	return nil
}
