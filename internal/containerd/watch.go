package containerd

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	openTimeout = 3 * time.Second // for Open to reach a containerd that is up

	minBackoff = 100 * time.Millisecond // between attempts to connect: doubled each time,
	maxBackoff = 5 * time.Second        // up to this

	// debounce is how long events gather before names are listed: a pull makes three at once.
	debounce = 50 * time.Millisecond

	// settle is when names are listed again after a connection was made. A subscription cannot be seen to stand
	// (see client.subscribe), so an image that came between it and the first listing may have gone unnoticed.
	settle = time.Second

	// relist is when names are listed although nothing was heard, in case an event was lost.
	relist = 5 * time.Minute
)

// first fills the store in for Open.
func (s *Store) first(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	c := newClient(s.cfg.Socket)
	defer c.close()
	if err := s.greet(ctx, c); err != nil {
		return err
	}
	_, err := s.refresh(ctx, c)
	return err
}

// Run follows containerd until ctx ends, and then returns nil. It connects anew whenever containerd went away; the
// content directory and the names known last are served meanwhile.
func (s *Store) Run(ctx context.Context) error {
	log := s.cfg.Log.With("socket", s.cfg.Socket)
	backoff, away := minBackoff, false
	for ctx.Err() == nil {
		connected, err := s.follow(ctx)
		if ctx.Err() != nil {
			break
		}
		if connected {
			backoff, away = minBackoff, false
		}
		if !away {
			log.WarnContext(ctx, "containerd is away; serving what it has on disk and the names known last", "err", err)
			away = true
		} else {
			log.DebugContext(ctx, "containerd is still away", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff/2 + rand.N(backoff/2)):
		}
		backoff = min(2*backoff, maxBackoff)
	}
	return nil //nolint:nilerr // what follow says when its context ends is no error
}

// follow connects and keeps the names up to date until ctx or the connection ends. It reports whether it got as far as
// having them.
func (s *Store) follow(ctx context.Context) (connected bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	c := newClient(s.cfg.Socket)
	changed, sent, ended := make(chan struct{}, 1), make(chan struct{}), make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.close()
	defer cancel()
	wg.Go(func() {
		ended <- c.subscribe(ctx, sync.OnceFunc(func() { close(sent) }), func() {
			select {
			case changed <- struct{}{}:
			default: // a listing is due already
			}
		})
	})
	select {
	case <-sent:
	case err := <-ended:
		return false, err
	}

	if err := s.greet(ctx, c); err != nil {
		return false, err
	}
	return s.keep(ctx, c, changed, ended)
}

// keep lists names now, whenever changed is sent to, and now and then, until the connection of c ends.
func (s *Store) keep(ctx context.Context, c *client, changed <-chan struct{}, ended <-chan error) (connected bool, err error) {
	due := time.NewTimer(settle)
	defer due.Stop()
	for {
		start := time.Now()
		different, err := s.refresh(ctx, c)
		if err != nil {
			return connected, err
		}
		if !connected {
			connected = true
			s.cfg.Log.InfoContext(ctx, "connected to containerd", "socket", s.cfg.Socket, "version", s.Version(), "images", s.Images())
		}
		if different && s.cfg.OnChange != nil {
			s.cfg.OnChange()
		}
		// Listing a large store costs containerd as much as us: it may take half of the time, not more.
		pause := max(debounce, time.Since(start))
		select {
		case err := <-ended:
			return true, err
		case <-due.C:
		case <-changed:
			select {
			case err := <-ended:
				return true, err
			case <-time.After(pause):
			}
			select {
			case <-changed: // gathered meanwhile
			default:
			}
		}
		due.Reset(relist)
	}
}

// greet asks containerd who it is and where it keeps content.
func (s *Store) greet(ctx context.Context, c *client) error {
	version, err := c.version(ctx)
	if err != nil {
		return err
	}
	root := s.root()
	if !s.fixed {
		stated, err := c.contentRoot(ctx)
		var no *statusError
		if err != nil && !errors.As(err, &no) {
			return err
		}
		if filepath.IsAbs(stated) {
			root = stated
		} else {
			s.cfg.Log.WarnContext(ctx, "containerd does not say where its content is; its root should be configured", "assumed", root, "stated", stated, "err", err)
		}
	}
	if _, err := os.Stat(root); err != nil {
		s.cfg.Log.WarnContext(ctx, "containerd's content directory cannot be read from here", "dir", root, "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if root != s.content {
		s.altered = time.Now()
	}
	s.version, s.content = version, root
	return nil
}

// refresh lists all names anew, and reports whether they differ from those known before.
func (s *Store) refresh(ctx context.Context, c *client) (different bool, err error) {
	n, err := c.list(ctx)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	different = s.names == nil || !s.names.equal(n)
	if different {
		s.altered = time.Now()
	}
	s.names = n
	return different, nil
}
