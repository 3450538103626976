package snapshot

import (
	"fmt"
	"regexp"
	"strings"
)

// What %system% and %common% stand for, as in snapdir.
const (
	systemDirectories = "/vscode/|/dev/|/proc/|/sys/|/tmp/|/var/run/|/run/|/mnt/|/media/|/lost+found/|" +
		"/var/snap/lxd/common/ns/shmounts/|/var/snap/lxd/common/ns/mntns/|/var/lib/lxcfs/"
	commonNames = ".cache|.git|.DS_Store|.vscode-server|.dbus|.gvfs|.local/share/gvfs-metadata|.local/share/Trash|.Trash|node_modules|Trash-1000"
)

// Exclude returns the pattern that [Scanner.Exclude] takes for an extended regular expression, as POSIX has them and grep -E takes them, in
// which %system% and %common% stand for directories that are rarely wanted: those of the system, and of tools. With %system%, and only then,
// symbolic links are not followed. home is the home directory of whoever asks.
func Exclude(pattern, home string) (exclude *regexp.Regexp, noFollow bool, err error) {
	if pattern == "" {
		return nil, false, nil
	}
	noFollow = strings.Contains(pattern, "%system%")
	system := strings.ReplaceAll(systemDirectories, "+", `\+`) // the plus of lost+found is one
	if home != "" {
		system += "|" + regexp.QuoteMeta(strings.TrimSuffix(home, "/")) + "/.cache/"
	}
	common := strings.ReplaceAll(commonNames, ".", `\.`)
	expanded := strings.NewReplacer("%system%", "(^("+system+"))", "%common%", "(/("+common+")($|/))").Replace(pattern)
	exclude, err = regexp.CompilePOSIX(expanded)
	if err != nil {
		return nil, false, fmt.Errorf("exclude %.200q: not an extended regular expression: %w", pattern, err)
	}
	return exclude, noFollow, nil
}
