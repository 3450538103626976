package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// maxFile is the largest file that is read, in bytes: many times what all settings together need.
const maxFile = 1 << 20

// parse reads one YAML mapping from the names of flags to scalars or lists of scalars. It adds the faults of single keys
// to l.faults; its error means that nothing could be read.
func (l *Loader) parse(r io.Reader) (map[string]*yaml.Node, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes: it cannot be a file of settings", l.file, maxFile)
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil //nolint:nilnil // an empty file is a file without keys
	case err != nil:
		return nil, fmt.Errorf("%s: %w", l.file, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s holds more than one YAML document: put all settings into the first", l.file)
	}
	root := doc.Content[0]
	if root.ShortTag() == "!!null" {
		return nil, nil //nolint:nilnil // as above
	}
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s:%d: %s where settings should be: write lines like \"listen: 127.0.0.1:5001\"",
			l.file, root.Line, describe(root))
	}
	return l.keys(root), nil
}

// keys returns the values of a mapping by key, without those whose key is a fault.
func (l *Loader) keys(mapping *yaml.Node) map[string]*yaml.Node {
	var names []string
	l.flags.VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" {
			names = append(names, f.Name)
		}
	})
	keys := make(map[string]*yaml.Node)
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key, value := deref(mapping.Content[i]), deref(mapping.Content[i+1])
		name := key.Value
		switch first := keys[name]; {
		case name == "config":
			l.faults.add(nil, "%s:%d: a file cannot name another: put all settings into one", l.file, key.Line)
		case !slices.Contains(names, name):
			meant := nearest(name, names)
			l.faults.add(nil, "%s:%d: unknown key %.80q%s", l.file, key.Line, name, didYouMean(meant))
			l.faults.doubt(meant)
		case first != nil:
			l.faults.add(nil, "%s:%d: %s again, after line %d: remove one of them", l.file, key.Line, name, first.Line)
		default:
			keys[name] = value
		}
	}
	return keys
}

// setNode sets a flag's value to what the file says.
func setNode(value *patient, node *yaml.Node) error {
	_, many := value.Value.(*list)
	_, networks := value.Value.(*prefixes)
	many = many || networks
	if node.Kind != yaml.SequenceNode || !many {
		return setScalar(value, node)
	}
	if len(node.Content) == 0 {
		return value.set("")
	}
	var errs []error
	for _, item := range node.Content {
		errs = append(errs, setScalar(value, deref(item)))
	}
	return errors.Join(errs...)
}

func setScalar(value *patient, node *yaml.Node) error {
	wanted, tags := "text", []string{"!!str"}
	switch value.Type() {
	case "bool":
		wanted, tags = "true or false", []string{"!!bool", "!!str"}
	case "int":
		wanted, tags = "a whole number", []string{"!!int", "!!str"}
	case "rate":
		wanted, tags = "a whole number of bytes per second, or text such as 10MB/s", []string{"!!int", "!!str"}
	case "size":
		wanted, tags = "a whole number of bytes, or text such as 10GiB", []string{"!!int", "!!str"}
	case "duration":
		wanted = "a duration such as 30s"
	}
	if node.Kind != yaml.ScalarNode || !slices.Contains(tags, node.ShortTag()) {
		return fmt.Errorf("%s where %s should be", describe(node), wanted)
	}
	return value.set(node.Value)
}

// describe says what a node is, in words.
func describe(node *yaml.Node) string {
	switch {
	case node.Kind == yaml.SequenceNode:
		return "a list"
	case node.Kind == yaml.MappingNode:
		return "a mapping"
	case node.ShortTag() == "!!null":
		return "nothing"
	}
	return fmt.Sprintf("%.80s", node.Value)
}

// deref returns the node that an alias stands for.
func deref(node *yaml.Node) *yaml.Node {
	if node.Kind == yaml.AliasNode {
		return node.Alias
	}
	return node
}
