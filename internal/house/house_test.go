// Package house holds the rules of this source tree that no compiler knows, as tests that read the files: who may import
// whom, what every package says of itself, and what does not occur. It has no code of its own.
package house

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	root   = "../.."
	module = "pier"
)

// imports is the import table: for every package, those of ours that its code (tests aside) may import. A new package needs
// a row, and a new entry in a row a reason. "*" stands for all that are not in private.
var imports = map[string][]string{
	"internal/oci":         {},
	"internal/oci/ocitest": {"internal/oci"},

	"internal/chain":      {"internal/oci"},
	"internal/containerd": {"internal/oci", "internal/chain"},
	"internal/cache":      {"internal/oci", "internal/chain"},
	"internal/transfer":   {"internal/oci", "internal/chain"},
	"internal/upstream":   {"internal/oci", "internal/chain"},
	"internal/registry":   {"internal/oci", "internal/chain"},
	"internal/proxy":      {"internal/oci", "internal/chain"},

	"internal/gzexact":         {"internal/gzexact/zlib", "internal/gzexact/goflate"},
	"internal/gzexact/zlib":    {},
	"internal/gzexact/goflate": {},
	"internal/overlay2":        {"internal/oci"},
	"internal/docker":          {"internal/oci", "internal/chain", "internal/overlay2", "internal/gzexact"},
	"internal/authority":       {},
	"internal/setup":           {},
	"internal/bucket":          {"internal/oci"},
	"internal/snapshot":        {"internal/oci", "internal/chain", "internal/bucket"},
	"internal/load":            {"internal/oci"},

	"msgpack/codec": {},
	"dns":           {},
	"sockaddr":      {},

	"internal/clusterkey": {},
	"internal/mdns":       {},
	"internal/member":     {},
	"internal/directory":  {"internal/oci"},
	"internal/peer":       {"internal/oci", "internal/chain", "internal/directory"},

	"internal/config": {"internal/oci"},
	"internal/house":  {},
	"internal/node":   {"*"},
	"cmd/pier":        {"*", "internal/node"},

	"e2e":            {"*", "e2e/faultproxy", "e2e/netns"},
	"e2e/faultproxy": {"*"},
	"e2e/netns":      {},
	"bench":          {"*", "e2e/faultproxy", "e2e/netns"},
	"sim":            {"internal/directory", "internal/oci"},
}

// private are packages that only those import which name them in their row.
var private = []string{"internal/node", "internal/house", "internal/oci/ocitest", "cmd/pier", "e2e", "e2e/faultproxy", "e2e/netns", "bench", "sim"}

// constants are exported variables that nobody changes, and that the language has no constants for.
var constants = []string{"internal/oci.ManifestMediaTypes"}

// A file is one parsed file of ours.
type file struct {
	path string // from the root, with slashes
	pkg  string // directory of path
	test bool
	*ast.File
}

func (f file) at(fset *token.FileSet, n ast.Node) string {
	return fmt.Sprintf("%s:%d", f.path, fset.Position(n.Pos()).Line)
}

// parse returns every Go file, whatever its build constraints.
func parse(t *testing.T) (*token.FileSet, []file) {
	t.Helper()
	fset := token.NewFileSet()
	var files []file
	walk(t, ".go", func(name string, content []byte) {
		f, err := parser.ParseFile(fset, name, content, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file{name, path.Dir(name), strings.HasSuffix(name, "_test.go"), f})
	})
	if len(files) == 0 {
		t.Fatalf("no Go file under %s", root)
	}
	return fset, files
}

// walk calls visit with every file of the tree whose name ends in suffix, but for testdata and what is hidden or built.
func walk(t *testing.T, suffix string, visit func(name string, content []byte)) {
	t.Helper()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(p, suffix):
			return nil
		}
		content, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		visit(filepath.ToSlash(name), content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestImports(t *testing.T) {
	fset, files := parse(t)
	for _, f := range files {
		allowed, ok := imports[f.pkg]
		if !ok {
			t.Errorf("%s: package %s is not in the import table: give it a row", f.path, f.pkg)
			continue
		}
		if f.test {
			continue
		}
		for _, spec := range f.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			ours, ok := strings.CutPrefix(p, module+"/")
			public := slices.Contains(allowed, "*") && !slices.Contains(private, ours)
			if ok && !public && !slices.Contains(allowed, ours) {
				t.Errorf("%s: %s may not import %s", f.at(fset, spec), f.pkg, ours)
			}
		}
	}
}

func TestPackages(t *testing.T) {
	forbidden := []string{"util", "utils", "common", "types", "helper", "helpers", "misc", "shared", "base", "pkg"}
	_, files := parse(t)
	documented := make(map[string]bool)
	for _, f := range files {
		if strings.HasSuffix(f.Name.Name, "_test") {
			continue
		}
		documented[f.pkg] = documented[f.pkg] || f.Doc != nil
		for _, name := range []string{f.Name.Name, path.Base(f.pkg)} {
			if slices.Contains(forbidden, name) {
				t.Errorf("%s: %q is no noun that can be explained: name the package after what it is", f.path, name)
			}
		}
	}
	for pkg, ok := range documented {
		if !ok {
			t.Errorf("%s: no file has a package comment: say what it is for, and what it leaves to others", pkg)
		}
	}
}

// Process-wide state and exits hide what a function needs and does.
func TestNoGlobals(t *testing.T) {
	fset, files := parse(t)
	for _, f := range files {
		if f.test {
			continue
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil && d.Name.Name == "init" {
					t.Errorf("%s: init: call a function where it is needed", f.at(fset, d))
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if v, ok := spec.(*ast.ValueSpec); ok && d.Tok == token.VAR {
						checkVariable(t, f, v, f.at(fset, v))
					}
				}
			}
		}
	}
}

// checkVariable complains of package variables made to be changed: exported ones that are not errors, locks and counters.
// Pools of buffers hold nothing that anybody could miss.
func checkVariable(t *testing.T, f file, v *ast.ValueSpec, at string) {
	t.Helper()
	for _, name := range v.Names {
		known := strings.HasPrefix(name.Name, "Err") || slices.Contains(constants, f.pkg+"."+name.Name)
		if name.IsExported() && !known {
			t.Errorf("%s: %s can be changed by everybody: make it a constant, a function or a field", at, name.Name)
		}
	}
	state := func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && (x.Name == "sync" || x.Name == "atomic") && s.Sel.Name != "Pool" {
				t.Errorf("%s: %s.%s is state of the whole process: make it a field", at, x.Name, s.Sel.Name)
			}
		}
		return true
	}
	if v.Type != nil {
		ast.Inspect(v.Type, state)
	}
	for _, value := range v.Values {
		if _, ok := value.(*ast.FuncLit); !ok {
			ast.Inspect(value, state)
		}
	}
}

// Package variables never change after their declaration.
func TestNoAssignedGlobals(t *testing.T) {
	fset, files := parse(t)
	for _, f := range files {
		if f.test {
			continue
		}
		for _, bad := range assignedGlobals(fset, f, files) {
			t.Errorf("%s: %s is a package variable: pass it, or make it a field", f.at(fset, bad), bad.Name)
		}
	}
}

// The process ends in one place. (TestMain ends that of a test.)
func TestExit(t *testing.T) {
	fset, files := parse(t)
	for _, f := range files {
		if f.test {
			continue
		}
		exits := 0
		ast.Inspect(f.File, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			switch name := callee(call); {
			case strings.HasPrefix(name, "log.Fatal") || strings.HasPrefix(name, "log.Panic"):
				t.Errorf("%s: %s ends the process: return an error", f.at(fset, n), name)
			case name == "os.Exit":
				exits++
				if f.Name.Name != "main" || path.Base(f.path) != "main.go" || exits > 1 {
					t.Errorf("%s: os.Exit stands once, in main.go of a command: return an error", f.at(fset, n))
				}
			}
			return true
		})
	}
}

// A test that does not run proves nothing, and must say why.
func TestSkips(t *testing.T) {
	fset, files := parse(t)
	for _, f := range files {
		ast.Inspect(f.File, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok && f.test {
				name := callee(call)
				if strings.HasSuffix(name, ".SkipNow") || strings.HasSuffix(name, ".Skip") && len(call.Args) == 0 {
					t.Errorf("%s: %s without a reason", f.at(fset, n), name)
				}
			}
			return true
		})
	}
}

// callee returns "x.f" of a call of x.f, otherwise "".
func callee(call *ast.CallExpr) string {
	if s, ok := call.Fun.(*ast.SelectorExpr); ok {
		if x, ok := s.X.(*ast.Ident); ok {
			return x.Name + "." + s.Sel.Name
		}
	}
	return ""
}

func TestWords(t *testing.T) {
	unfinished := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b`)
	for _, suffix := range []string{".go", ".md", ".sh", ".yml", ".yaml", "Makefile"} {
		walk(t, suffix, func(name string, content []byte) {
			for i, line := range strings.Split(string(content), "\n") {
				if word := unfinished.FindString(line); word != "" {
					t.Errorf("%s:%d: %s: finish it, or say in plain words what is not done", name, i+1, word)
				}
			}
		})
	}

	// Words that say nothing, and those of this field that are easily confused (STYLE.md).
	vague := regexp.MustCompile(`(?:^m|M)anager(?:s|$|[A-Z])|(?:^b|B)ackend(?:s|$|[A-Z])|(?:^p|P)rovider(?:s|$|[A-Z])|(?:^h|H)elper(?:s|$|[A-Z])|(?:^u|U)til(?:s|$|[A-Z])|[iI]mageID`)
	fset, files := parse(t)
	for _, f := range files {
		ast.Inspect(f.File, func(n ast.Node) bool {
			var name *ast.Ident
			switch n := n.(type) {
			case *ast.FuncDecl:
				name = n.Name
			case *ast.TypeSpec:
				name = n.Name
			default:
				return true
			}
			if vague.MatchString(strings.ReplaceAll(name.Name, "redentialHelper", "")) { // Docker's own term
				t.Errorf("%s: %s: name it after what it does", f.at(fset, n), name.Name)
			}
			return true
		})
	}
}

// ARCHITECTURE.md is read in one sitting.
func TestArchitectureIsShort(t *testing.T) {
	const limit = 1000 // words
	walk(t, "ARCHITECTURE.md", func(name string, content []byte) {
		if n := len(strings.Fields(string(content))); n > limit {
			t.Errorf("%s has %d words, %d too many", name, n, n-limit)
		}
	})
}
