// Package e2e tests the pier binary from outside, with the real programs it works with: containerd, Docker, registries, and
// the clients people use. Its tests need the build tag e2e, root (containerd, tmpfs, network namespaces), iproute2, and what
// tools.sh installs:
//
//	e2e/tools.sh e2e
//	go test -tags e2e -parallel 4 -timeout 40m ./e2e/...
//
// Every program is started on loopback, or in network namespaces of the test's own (package netns), with directories of its
// own, and ends with the test that started it.
package e2e
