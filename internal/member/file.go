package member

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/hashicorp/memberlist"
)

// maxFile bounds the peers file: 4 MiB of addresses are more than a cluster has members.
const maxFile = 4 << 20

// Reload reads the peers file and the keys again. Lines that were added are joined, the nodes of those that were removed are
// left out of Members until they are listed again; a line that is none is logged once, kept in [Group.Faults], and skipped. Keys take
// effect at once. What cannot be read stays as it was, and is the error.
func (g *Group) Reload() error {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	err := errors.Join(g.readFile(), g.readKeys())
	signal(g.kick)
	g.notify() // somebody may be left out, or no more
	return err
}

// Faults returns what is wrong in the peers file, as file:line and a reason.
func (g *Group) Faults() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.faults)
}

func (g *Group) readFile() error {
	if g.c.PeersFile == "" {
		return nil
	}
	info, err := os.Stat(g.c.PeersFile)
	if err != nil {
		return fmt.Errorf("peers file: %w", err)
	}
	if info.Size() > maxFile {
		return fmt.Errorf("peers file %s: %d bytes are too many, at most %d", g.c.PeersFile, info.Size(), maxFile)
	}
	content, err := os.ReadFile(g.c.PeersFile)
	if err != nil {
		return fmt.Errorf("peers file: %w", err)
	}
	places, faults := parseFile(g.c.PeersFile, string(content))
	g.targets.list(filed, places)
	g.mu.Lock()
	old := g.faults
	g.faults = faults
	g.mu.Unlock()
	for _, fault := range faults {
		if !slices.Contains(old, fault) {
			g.log.Warn("line of the peers file skipped", "fault", fault)
		}
	}
	return nil
}

// parseFile returns the places in a peers file, and what is wrong with the other lines.
func parseFile(name, content string) (places []place, faults []string) {
	n := 0
	for line := range strings.Lines(content) {
		n++
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		p, err := parsePlace(line)
		if err != nil {
			faults = append(faults, fmt.Sprintf("%s:%d: %v", name, n, err))
			continue
		}
		places = append(places, p)
	}
	return places, faults
}

// readKeys puts the present keys on the ring.
func (g *Group) readKeys() error {
	if g.c.Keys == nil {
		return nil
	}
	keys := g.c.Keys()
	if len(keys) == 0 {
		if len(g.ring.GetKeys()) > 0 {
			return errors.New("the cluster key cannot be given up while running: restart without it")
		}
		return nil
	}
	for _, key := range keys {
		if err := memberlist.ValidateKey(key); err != nil {
			return fmt.Errorf("cluster key: %w", err)
		}
	}
	return install(g.ring, keys)
}

// install makes keys those of the ring, in their order. It never takes a key out of the middle: memberlist would move the others
// under the eyes of those who read them. Instead keys are brought to the front, the last first, which pushes those to be
// dropped to the end. What is sent in that instant may have any of the keys.
func install(ring *memberlist.Keyring, keys [][]byte) error {
	for _, key := range keys {
		if err := ring.AddKey(slices.Clone(key)); err != nil {
			return err
		}
	}
	wanted := 0
	for i, key := range slices.Backward(keys) {
		if slices.ContainsFunc(keys[:i], func(k []byte) bool { return slices.Equal(k, key) }) {
			continue // listed twice
		}
		wanted++
		if err := ring.UseKey(key); err != nil {
			return err
		}
	}
	for now := ring.GetKeys(); len(now) > wanted; now = ring.GetKeys() {
		if err := ring.RemoveKey(now[len(now)-1]); err != nil {
			return err
		}
	}
	return nil
}
