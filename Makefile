# The same targets for people and CI. `make help` lists them.

TOOLS    := $(or $(PIER_TOOLS),$(HOME)/.cache/pier/tools)
VERSION  ?= $(or $(shell git describe --tags --always --dirty 2>/dev/null),unknown)
FUZZTIME ?= 30s
BIN      ?= bin/pier

# What never does anything a thousand times a second is not inlined: 1.4 MB. Not so what others inline, such as encoding/binary.
COLD := cloud.google.com/... github.com/VictoriaMetrics/... github.com/hashicorp/... github.com/miekg/... github.com/spf13/... \
	github.com/valyala/... github.com/vbatts/... go.yaml.in/... golang.org/x/crypto/... golang.org/x/oauth2/... google.golang.org/... oras.land/... \
	compress/flate compress/gzip crypto/ecdh crypto/ecdsa crypto/hpke crypto/internal/fips140/drbg crypto/internal/fips140/ecdh \
	crypto/internal/fips140/ecdsa crypto/internal/fips140/ed25519 crypto/internal/fips140/edwards25519/... crypto/internal/fips140/mlkem \
	crypto/internal/fips140/nistec/... crypto/internal/fips140/rsa crypto/internal/fips140/tls12 crypto/internal/fips140/tls13 crypto/rsa \
	crypto/tls crypto/x509/... encoding/asn1 encoding/base64 encoding/hex encoding/json encoding/pem encoding/xml fmt html log/... math/big mime/... \
	net net/url os/... path/... reflect regexp/... runtime/pprof text/... vendor/golang.org/x/... \
	pier/cmd/... pier/internal/authority pier/internal/bucket pier/internal/clusterkey pier/internal/config \
	pier/internal/containerd pier/internal/directory pier/internal/docker pier/internal/mdns pier/internal/member pier/internal/node \
	pier/internal/overlay2 pier/internal/peer pier/internal/proxy pier/internal/setup pier/internal/snapshot pier/internal/upstream

.PHONY: help build run check format vet lint unit test race e2e soak bench bench-peers bench-proxy bench-snapshot bench-rollout sim fuzz clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z].*:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/pier, static and stripped
	CGO_ENABLED=0 go build -buildvcs=false -trimpath $(COLD:%=-gcflags=%=-l) -ldflags '-s -w -funcalign=16 -X main.version=$(VERSION)' -o $(BIN) ./cmd/pier

run: build ## build and start a node with nothing but defaults
	bin/pier serve

check: format vet lint unit ## format, vet, lint and unit tests

format:
	@bad=$$(gofmt -l .); [ -z "$$bad" ] || { echo "gofmt these:" $$bad >&2; exit 1; }

vet:
	go vet ./...
	go vet -tags e2e ./...

lint:
	e2e/tools.sh lint
	$(TOOLS)/bin/golangci-lint run

unit:
	go test ./...

test: check race e2e ## everything: check, the race detector, and tests with real registries and runtimes

race:
	@if command -v "$$(go env CC)" >/dev/null; then \
		echo go test -race ./internal/...; go test -race ./internal/...; \
	else \
		echo "NOT RUN: the race detector needs a C compiler; install gcc and run make race" >&2; \
	fi

e2e:
	e2e/tools.sh e2e
	go test -tags e2e -count=1 -parallel 4 -timeout 40m ./e2e/... ./internal/...

soak: ## load a node for 30 minutes (PIER_SOAK) with faults of all kinds, and compare every byte (root)
	e2e/tools.sh e2e
	go test -tags 'e2e soak' -count=1 -timeout 24h -run TestSoak -v ./e2e

bench: ## measure one node against a bare server, nginx and other caches
	e2e/tools.sh bench
	go run ./bench

bench-peers: ## measure transfers between nodes, and what nodes that share cost
	e2e/tools.sh bench
	go run ./bench peers

bench-proxy: ## measure the forward proxy, and layers made again against the encoders that made them
	e2e/tools.sh bench
	go run ./bench proxy

bench-snapshot: ## measure snapshots, against cp, skopeo and rclone
	e2e/tools.sh bench
	go run ./bench snapshot

bench-rollout: ## measure a roll-out to ten nodes behind a narrow link (root)
	go run ./bench rollout

sim: ## simulate 100, 1,000 and 10,000 nodes and write docs/scale.md (ten minutes)
	go run ./sim -out docs/scale.md

fuzz: ## run every fuzz target for FUZZTIME (default 30s)
	@grep -rHoE '^func Fuzz[A-Za-z0-9_]+' --include='*_test.go' . | while IFS=: read -r file target; do \
		echo "$$file: $${target#func }"; \
		go test -run '^$$' -fuzz "^$${target#func }\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "$${file%/*}" || exit 1; \
	done

clean: ## remove what was built here (tools stay in their cache)
	rm -rf bin
