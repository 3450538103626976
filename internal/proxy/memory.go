package proxy

import (
	"sync"
	"time"
)

// memory remembers hosts for a while, and at most maxRemembered of them.
type memory struct {
	keep time.Duration

	mu    sync.Mutex           // guards until
	until map[string]time.Time // when a host is forgotten
}

const maxRemembered = 256

func newMemory(keep time.Duration) *memory {
	return &memory{keep: keep, until: make(map[string]time.Time)}
}

// has reports whether a host is remembered.
func (m *memory) has(host string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Now().Before(m.until[host])
}

// add remembers a host from now on, and reports whether it was not remembered already.
func (m *memory) add(host string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	known := now.Before(m.until[host])
	if len(m.until) >= maxRemembered {
		for h := range m.until {
			delete(m.until, h) // any: it only costs a request, or a line in the log
			break
		}
	}
	m.until[host] = now.Add(m.keep)
	return !known
}

func (m *memory) forget(host string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.until, host)
}
