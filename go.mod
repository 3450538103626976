module pier

go 1.26.0

require (
	github.com/VictoriaMetrics/metrics v1.35.1
	github.com/hashicorp/go-msgpack/v2 v2.1.5
	github.com/hashicorp/memberlist v0.7.0
	github.com/klauspost/compress v1.20.3 // its output is a format here: internal/gzexact
	github.com/klauspost/compress/zstd/era120 v1.20.0
	github.com/miekg/dns v1.1.73
	github.com/minio/minio-go/v7 v7.4.1 // pkg/signer, for tests and benchmarks
	github.com/opencontainers/go-digest v1.0.0
	github.com/opencontainers/image-spec v1.1.1
	github.com/rogpeppe/go-internal v1.16.0
	github.com/spf13/cobra v1.10.2
	github.com/spf13/pflag v1.0.10
	github.com/vbatts/tar-split v0.12.3
	github.com/zeebo/blake3 v0.2.4
	go.yaml.in/yaml/v3 v3.0.6
	golang.org/x/crypto v0.58.0
	golang.org/x/net v0.60.0
	golang.org/x/oauth2 v0.38.0
	golang.org/x/sync v0.24.0
	golang.org/x/sys v0.49.0
	golang.org/x/time v0.16.0
	google.golang.org/protobuf v1.36.12
	lukechampine.com/blake3 v1.4.1 // in tests: the second opinion
	oras.land/oras-go/v2 v2.6.4
	pier.invalid/klauspost117 v1.17.11
)

require (
	cloud.google.com/go/compute/metadata v0.3.0 // indirect
	github.com/google/btree v1.1.3 // indirect
	github.com/hashicorp/errwrap v1.1.0 // indirect
	github.com/hashicorp/go-immutable-radix v1.3.1 // indirect
	github.com/hashicorp/go-metrics v0.7.0 // indirect
	github.com/hashicorp/go-multierror v1.1.1 // indirect
	github.com/hashicorp/go-sockaddr v1.0.7 // indirect
	github.com/hashicorp/golang-lru v1.0.2 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/klauspost/cpuid/v2 v2.4.0 // indirect
	github.com/minio/md5-simd v1.1.2 // indirect
	github.com/sean-/seed v0.0.0-20170313163322-e2103e2c3529 // indirect
	github.com/valyala/fastrand v1.1.0 // indirect
	github.com/valyala/histogram v1.2.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	golang.org/x/tools v0.51.0 // indirect
)

// Other versions beside the first: the encoders of other years. The path of the second lets it have what is internal to zstd;
// what it shares with the first (huff0, fse) is that of the first. TestGolden says whether a new version of either may be taken.
replace pier.invalid/klauspost117 => github.com/klauspost/compress v1.17.11

replace github.com/klauspost/compress/zstd/era120 => github.com/klauspost/compress v1.20.0

// What memberlist uses of it, in 600 kB less.
replace github.com/hashicorp/go-msgpack/v2 => ./msgpack

// What memberlist and mdns use of it, in 500 kB less.
replace github.com/miekg/dns => ./dns

// What memberlist uses of it, in 100 kB less.
replace github.com/hashicorp/go-sockaddr => ./sockaddr
