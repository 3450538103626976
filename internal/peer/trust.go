package peer

import (
	"maps"
	"sync"
	"time"

	"pier/internal/directory"
)

const (
	quarantineFor = 10 * time.Minute // until wrong content of a neighbour is asked for again
	troubleFor    = 5 * time.Second  // until a neighbour that could not be reached is asked first again; doubles up to
	maxTrouble    = time.Minute

	maxTrusted = 4096 // entries of each table; over it, any goes
)

// trust is what this node found out about its neighbours. All of it is forgotten in time.
type trust struct {
	*sync.Mutex // guards all below
	bad         map[directory.Key]map[directory.ID]doubt
	trouble     map[directory.ID]trouble
	supplied    map[directory.Key][]directory.ID
	best        int // bytes a second, see pace
	registry    int // bytes a second that a registry gave of late; 0: not known
	measured    time.Time
}

// A doubt is about one neighbour's copy.
type doubt struct {
	until  time.Time
	shared bool // another supplied a part of what was wrong, too
}

type trouble struct {
	until time.Time
	wait  time.Duration
}

func newTrust() trust {
	return trust{
		Mutex: new(sync.Mutex), bad: make(map[directory.Key]map[directory.ID]doubt), trouble: make(map[directory.ID]trouble),
		supplied: make(map[directory.Key][]directory.ID),
	}
}

// put keeps a table within its bound.
func put[K comparable, V any](m map[K]V, key K, value V) {
	if _, ok := m[key]; !ok && len(m) >= maxTrusted {
		for victim := range m {
			delete(m, victim)
			break
		}
	}
	m[key] = value
}

// quarantine notes that a neighbour's copy was wrong, or, if shared, one of several was.
func (t *trust) quarantine(id directory.ID, key directory.Key, shared bool) {
	t.Lock()
	defer t.Unlock()
	copies := t.bad[key]
	if copies == nil {
		copies = make(map[directory.ID]doubt)
		put(t.bad, key, copies)
	}
	put(copies, id, doubt{time.Now().Add(quarantineFor), shared})
}

// doubts returns what is held against the copies of key, or nil. The caller may keep it.
func (t *trust) doubts(key directory.Key) map[directory.ID]doubt {
	t.Lock()
	defer t.Unlock()
	maps.DeleteFunc(t.bad[key], func(_ directory.ID, d doubt) bool { return time.Now().After(d.until) })
	if len(t.bad[key]) == 0 {
		delete(t.bad, key)
	}
	return maps.Clone(t.bad[key])
}

// failed notes that a neighbour could not be reached, or hung.
func (t *trust) failed(id directory.ID) {
	t.Lock()
	defer t.Unlock()
	wait := min(max(2*t.trouble[id].wait, troubleFor), maxTrouble)
	put(t.trouble, id, trouble{time.Now().Add(wait), wait})
}

// late notes that a neighbour was asked first and others answered first: for a while they are asked first. That alone is
// no failure.
func (t *trust) late(id directory.ID) {
	t.Lock()
	defer t.Unlock()
	before := t.trouble[id]
	if time.Now().After(before.until) {
		before.wait = 0
	}
	put(t.trouble, id, trouble{time.Now().Add(troubleFor), before.wait})
}

// works notes that a neighbour delivered.
func (t *trust) works(id directory.ID) {
	t.Lock()
	defer t.Unlock()
	delete(t.trouble, id)
}

// again reports whether a neighbour failed more than once in a row.
func (t *trust) again(id directory.ID) bool {
	t.Lock()
	defer t.Unlock()
	return t.trouble[id].wait > troubleFor
}

func (t *trust) troubled(id directory.ID) bool {
	t.Lock()
	defer t.Unlock()
	return time.Now().Before(t.trouble[id].until)
}

// supplies notes that a neighbour supplied bytes of content.
func (t *trust) supplies(id directory.ID, key directory.Key) {
	t.Lock()
	defer t.Unlock()
	for _, known := range t.supplied[key] {
		if known == id {
			return
		}
	}
	put(t.supplied, key, append(t.supplied[key], id))
}

// suppliers returns who supplied bytes of content since forget.
func (t *trust) suppliers(key directory.Key) []directory.ID {
	t.Lock()
	defer t.Unlock()
	return t.supplied[key]
}

// pace takes how fast a neighbour was over a second, and returns how fast the best of late was, in bytes a second: an eighth of
// it is forgotten each time.
func (t *trust) pace(measured int) (best int) {
	t.Lock()
	defer t.Unlock()
	t.best = max(measured, t.best-t.best/8)
	return t.best
}

// registryFor is how long the pace of a registry is remembered.
const registryFor = 10 * time.Minute

// fetched takes how fast a registry was, in bytes a second.
func (t *trust) fetched(pace int) {
	t.Lock()
	defer t.Unlock()
	if time.Since(t.measured) > registryFor {
		t.registry = 0
	}
	t.registry, t.measured = max(pace, t.registry-t.registry/8), time.Now()
}

// registryPace returns how fast a registry was of late, in bytes a second; 0 if that is not known.
func (t *trust) registryPace() int {
	t.Lock()
	defer t.Unlock()
	if time.Since(t.measured) > registryFor {
		return 0
	}
	return t.registry
}

// forget forgets who supplied content: it is asked for from the start.
func (t *trust) forget(key directory.Key) {
	t.Lock()
	defer t.Unlock()
	delete(t.supplied, key)
}
