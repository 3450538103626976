package config_test

import (
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"pier/internal/config"
)

func TestOciregistryFaults(t *testing.T) {
	for name, text := range map[string]string{
		"nothing that it has": "color: red\ncolour: red\n", "no mapping": "[1, 2]", "a wrong type": "port: many", "no YAML": "a: [", "too much": strings.Repeat("#", 1<<20) + "\nx: y",
	} {
		var o config.Ociregistry
		if err := o.Read(strings.NewReader(text)); err == nil {
			t.Errorf("%s: taken for %+v", name, o)
		}
	}
	var o config.Ociregistry
	if err := o.Read(strings.NewReader("serverTlsConfig: {cert: c, key: k, clientAuth: verify}\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Pier("u.yaml"); err == nil || !strings.Contains(err.Error(), "give the ca") {
		t.Errorf("clients whose authority is not said: %v", err)
	}
}

// What means nothing here is said in remarks, and keeps nothing else from being taken.
func TestOciregistryRemarks(t *testing.T) {
	var o config.Ociregistry
	if err := o.Read(strings.NewReader("imagePath: /x\ncolour: red\ndefaultNs: quay.io\nregistries:\n- name: x.amazonaws.com\n  auth: {provider: ecr}\n" +
		"pruneConfig: {enabled: true, type: pattern, expr: '.*test.*', count: 5, dryrun: true}\n")); err != nil {
		t.Fatal(err)
	}
	made, err := o.Pier("u.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# Not known here, and left out: line 2: field colour", "default-registry: quay.io", "credential helper", "It was: .*test.*", "# pruneConfig.count 5"} {
		if !strings.Contains(string(made.Config), want) {
			t.Errorf("there is no %q in\n%s", want, made.Config)
		}
	}
	if !strings.Contains(string(made.Upstreams), "x.amazonaws.com") || strings.Contains(string(made.Config), "--unused-for") {
		t.Errorf("made of it:\n%s%s", made.Config, made.Upstreams)
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
