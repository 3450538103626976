package config_test

import (
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"pier/internal/config"
)

func TestOciregistryFaults(t *testing.T) {
	for name, text := range map[string]string{
		"a key that it does not have": "imagePath: /x\ncolour: red\n", "no mapping": "[1, 2]", "a wrong type": "port: many", "no YAML": "a: [", "too much": strings.Repeat("#", 1<<20) + "\nx: y",
	} {
		var o config.Ociregistry
		if err := o.Read(strings.NewReader(text)); err == nil {
			t.Errorf("%s: taken for %+v", name, o)
		}
	}
	var o config.Ociregistry
	if err := o.Read(strings.NewReader("registries:\n- name: x.amazonaws.com\n  auth: {provider: ecr}\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Pier("u.yaml"); err == nil || !strings.Contains(err.Error(), "credential helper") {
		t.Errorf("a provider of credentials: %v", err)
	}
}

// FuzzOciregistry reads anything: it never panics, and what it makes of it is YAML of one value each.
func FuzzOciregistry(f *testing.F) {
	f.Add("imagePath: /x\nport: 8080\nregistries:\n- name: a:5000\n  auth: {user: u, password: \"p: #\"}\n")
	f.Add("- name: a\n  tls: {insecureSkipVerify: true}\n")
	f.Add("pruneConfig: {enabled: true, duration: 30d}\nserverTlsConfig: {cert: a, key: b, clientAuth: verify}\nlogLevel: error\nhealth: 1\n")
	f.Fuzz(func(t *testing.T, text string) {
		var o config.Ociregistry
		if len(text) > 4096 || o.Read(strings.NewReader(text)) != nil {
			return
		}
		made, err := o.Pier("upstreams.yaml")
		if err != nil {
			return
		}
		for _, part := range [][]byte{made.Config, made.Upstreams} {
			var v any
			if err := yaml.Unmarshal(part, &v); err != nil {
				t.Errorf("%q became %q: %v", text, part, err)
			}
		}
	})
}
