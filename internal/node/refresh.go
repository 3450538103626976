package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pier/internal/cache"
	"pier/internal/chain"
	"pier/internal/load"
	"pier/internal/oci"
)

const (
	// refreshWanted is how long a tag is refreshed after a client last asked for it.
	refreshWanted = 7 * 24 * time.Hour

	preloadAgain = time.Minute // before what could not be preloaded is tried again
)

// refresh asks what the tags name that clients ask for, again and again, and fetches what is new before any tag names it: a pull waits for neither.
func (n *Node) refresh(ctx context.Context) error {
	tick := time.NewTicker(n.cfg.Refresh)
	defer tick.Stop()
	for {
		if err := n.refreshAll(ctx); err != nil && ctx.Err() == nil {
			n.log.WarnContext(ctx, "tags not refreshed", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (n *Node) refreshAll(ctx context.Context) error {
	tags, ok := n.full.(chain.Refresher)
	if !ok {
		return errors.New("nobody remembers tags")
	}
	images, err := n.cache.Images(ctx, nil)
	if err != nil {
		return err
	}
	asked, changed, failed := 0, 0, 0
	for _, img := range images {
		for _, name := range img.Names {
			ref, ok := cache.TagOf(name)
			wanted := n.wanted(tags, ref, img)
			if !ok || time.Since(wanted) >= refreshWanted {
				continue
			}
			asked++
			isNew, err := n.refreshOne(ctx, tags, ref, img.Digest, wanted)
			switch {
			case ended(ctx):
				return nil
			case err != nil:
				failed++
				n.log.WarnContext(ctx, "tag not refreshed, it stays what it was", "ref", name, "err", err)
			case isNew:
				changed++
			}
		}
	}
	n.log.InfoContext(ctx, "tags refreshed", "asked", asked, "changed", changed, "failed", failed)
	return nil
}

// wanted returns when clients last asked for a tag, zero if that is not known. What they did before this process, the use of the image tells.
func (n *Node) wanted(tags chain.Refresher, ref oci.Reference, img cache.Image) time.Time {
	if img.Source == cache.SourcePush || img.Source == cache.SourceArchive {
		return time.Time{} // no registry has it
	}
	at := tags.Wanted(ref)
	if at.IsZero() && img.Used.Before(n.started) {
		at = img.Used
	}
	return at
}

// refreshOne refreshes a tag that names an image, and reports whether it names another by now. Of that, the platforms come that are here of
// the one before.
func (n *Node) refreshOne(ctx context.Context, tags chain.Refresher, ref oci.Reference, old oci.Digest, wanted time.Time) (bool, error) {
	desc, err := ask(ctx, tags, ref)
	if err != nil {
		return false, err
	}
	if desc.Digest != old {
		if err := n.fetchLike(ctx, ref.WithDigest(desc.Digest), old); err != nil {
			return false, err
		}
		now, err := ask(ctx, tags, ref)
		if err != nil {
			return false, err
		}
		if now.Digest != desc.Digest {
			return false, errors.New("it moves on while what it named is fetched")
		}
	}
	tags.Settle(ctx, ref, desc, wanted, n.cfg.Refresh+n.cfg.Refresh/2)
	return desc.Digest != old, nil
}

// ask asks what a tag names, of whoever knows it by now.
func ask(ctx context.Context, tags chain.Refresher, ref oci.Reference) (oci.Descriptor, error) {
	desc, err := tags.Ask(ctx, ref)
	if err == nil && desc.Stale {
		err = fmt.Errorf("the answer is that of a mirror which cannot reach its registry: %w", oci.ErrUnavailable)
	}
	return desc, err
}

// fetchLike fetches the platforms of an image that are here of another.
func (n *Node) fetchLike(ctx context.Context, ref oci.Reference, old oci.Digest) error {
	platforms, all := n.cache.Platforms(old)
	switch {
	case all:
		platforms = nil
	case len(platforms) == 0:
		return nil // the index alone was asked for
	}
	_, err := chain.Fetch(ctx, n.full, n.whole, ref, chain.CopyOptions{ImageOptions: chain.ImageOptions{Platforms: platforms}, Jobs: loadJobs})
	return err
}

// preload loads what the lists name, while the node serves. What a registry in trouble keeps from being loaded is tried again.
func (n *Node) preload(ctx context.Context) error {
	var items []load.Item
	for _, file := range n.cfg.Preload {
		list, err := load.ReadList(file, n.cfg.DefaultRegistry)
		if err != nil {
			n.log.ErrorContext(ctx, "list to preload not read", "err", err)
		}
		items = append(items, list...)
	}
	for round, total := 0, len(items); ; round++ {
		var again []load.Item
		failed := 0
		for _, item := range items {
			err := n.preloadOne(ctx, item)
			switch {
			case ended(ctx):
				return nil
			case errors.Is(err, oci.ErrUnavailable), errors.Is(err, oci.ErrRateLimited):
				again = append(again, item)
				n.log.WarnContext(ctx, "image not preloaded yet", "image", item.Text, "from", item.From, "err", err)
			case err != nil:
				failed++
				n.log.ErrorContext(ctx, "image not preloaded", "image", item.Text, "from", item.From, "err", err)
			}
		}
		n.log.InfoContext(ctx, "preloaded", "images", len(items)-len(again)-failed, "failed", failed, "tried_again", len(again), "of", total)
		if items = again; len(items) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(preloadAgain<<min(round, 5), time.Hour)):
		}
	}
}

func (n *Node) preloadOne(ctx context.Context, item load.Item) error {
	options := chain.ImageOptions{Platforms: n.cfg.PreloadPlatforms}
	switch {
	case item.Err != nil:
		return item.Err
	case item.File == "":
		_, err := n.load(ctx, item.Ref, chain.CopyOptions{ImageOptions: options})
		return err
	}
	archive, err := load.Open(ctx, item.File, oci.Reference{})
	if err != nil {
		return err
	}
	defer archive.Close()
	options.Sparse = true
	for _, ref := range archive.Names() {
		if _, err := chain.Copy(ctx, n.cache, chain.Verified(archive), ref, chain.CopyOptions{ImageOptions: options}); err != nil {
			return fmt.Errorf("%s: %w", ref, err)
		}
	}
	return nil
}

func ended(ctx context.Context) bool { return ctx.Err() != nil }
