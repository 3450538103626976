package member

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"time"
)

// A throttle lets one thing through in a while.
type throttle struct {
	every time.Duration

	mu   sync.Mutex // guards last
	last time.Time
}

func (t *throttle) ok() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if !t.last.IsZero() && now.Sub(t.last) < t.every {
		return false
	}
	t.last = now
	return true
}

// A journal takes memberlist's log, a line a Write. Its levels are not ours: what it calls an error is a stranger's packet,
// or a member that does not answer, and gossip exists to live with both.
type journal struct {
	log     *slog.Logger
	strange *throttle
}

// strangers are what memberlist's log says, and says nowhere else, of a neighbour that has another key, none, or another
// cluster's name. What has no label at all is no Pier, and no matter of the operator's.
var strangers = [...][]byte{
	[]byte(`with unacceptable label "pier `),
	[]byte("no installed keys could decrypt the message"),
	[]byte("encryption is configured but remote state is not encrypted"),
	[]byte("remote state is encrypted and encryption is not configured"),
}

// Write implements [io.Writer].
func (j *journal) Write(p []byte) (int, error) {
	line := bytes.TrimSpace(p)
	if j.log.Enabled(context.Background(), slog.LevelDebug) {
		j.log.Debug("gossip", "detail", string(line))
	}
	for _, s := range strangers {
		if bytes.Contains(line, s) && j.strange.ok() {
			j.log.Warn("somebody gossips with another key or cluster name; it is kept out", "detail", string(line))
		}
	}
	return len(p), nil
}
