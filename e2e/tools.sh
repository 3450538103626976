#!/bin/sh
# tools.sh GROUP... installs what checks, tests and benchmarks need besides Go, once, and changes nothing outside its
# own directory, ${PIER_TOOLS:-$HOME/.cache/pier/tools}, but for what 'apt-get update' and Go's caches do. Groups:
#
#   lint    golangci-lint
#   e2e     docker-registry, skopeo, containerd 1.x, containerd 2.x, crane, regctl, a registry with the referrers API,
#           avahi, Docker 20.10 and 29, buildah, umoci, pigz, versitygw and fake-gcs-server, which are servers of buckets,
#           and curl where the system has none
#   bench   nginx, pigz, skopeo, rclone, versitygw, and curl where the system has none
#
# Go programs come from the Go module proxy at the versions below. Debian packages are downloaded and unpacked, never
# installed: no service starts, and containerd 1.x and 2.x live side by side. Their versions are those of the machine's
# Debian release (12: containerd 1.6, docker-registry 2.8, skopeo 1.9, nginx 1.22, Docker 20.10, runc 1.1, buildah 1.28,
# umoci 0.4.7, pigz 2.6, rclone 1.60).
set -eu

crane=v0.22.1         # github.com/google/go-containerregistry
regctl=v0.11.7        # github.com/regclient/regclient
containerd=v2.4.2     # github.com/containerd/containerd/v2
moby=v2.0.0-beta.24   # github.com/moby/moby/v2: what Docker 29 and later are made of
versitygw=v1.8.0      # github.com/versity/versitygw: S3 in front of a directory
fake_gcs=v1.56.1      # github.com/fsouza/fake-gcs-server: Google Cloud Storage in a directory or in memory
golangci_lint=v2.15.0 # github.com/golangci/golangci-lint/v2

# Libraries of Debian programs that a machine may lack.
skopeo_libraries='libgpgme11 libassuan0 libgpg-error0 libdevmapper1.02.1'
docker_libraries='libdevmapper1.02.1'
curl_libraries='libcurl4 libbrotli1 libldap-2.5-0 libnghttp2-14 libpsl5 librtmp1 libsasl2-2 libssh2-1'
avahi_libraries='libavahi-core7 libavahi-client3 libavahi-common3 libdaemon0 libdbus-1-3 libexpat1 libapparmor1 libcap-ng0'

tools=${PIER_TOOLS:-$HOME/.cache/pier/tools}
mkdir -p "$tools/bin" "$tools/debian"
tools=$(cd "$tools" && pwd)

say() { echo "tools.sh: $*"; }
die() { echo "tools.sh: $*" >&2; exit 1; }

# have FILE MODULE VERSION: FILE is a Go program built from that version of MODULE.
have() {
	[ -x "$1" ] && go version -m "$1" | awk -v m="$2" -v v="$3" \
		'($1 == "mod" || $1 == "dep") && $2 == m && $3 == v { found = 1 } END { exit !found }'
}

# program DIR MODULE VERSION PACKAGE... builds programs of one module into DIR, with $variables set in them; the package
# "." is that in its root. Their dependencies never touch go.mod.
program() {
	dir=$1 module=$2 version=$3
	shift 3
	for package; do
		path=$module/$package
		[ "$package" != . ] || path=$module
		name=${path##*/}
		have "$dir/$name" "$module" "$version" && continue
		say "$name $version ($module)"
		(cd / && CGO_ENABLED=0 GOFLAGS='' GOBIN="$dir" go install -ldflags "-s -w ${variables:-}" "$path@$version") ||
			die "$path@$version did not build: is the Go module proxy reachable?"
	done
}

# download PACKAGE as a file into its directory.
download() {
	(cd "$tools/debian/$1" && apt-get download -q -o APT::Sandbox::User=root "$1" >/dev/null)
}

# debian PACKAGE... unpacks Debian packages into $tools/debian/PACKAGE.
debian() {
	for package; do
		[ -e "$tools/debian/$package/.unpacked" ] && continue
		if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
			die "no apt-get here: unpack what Debian calls $package into $tools/debian/$package by hand," \
				"and create the file .unpacked there"
		fi
		rm -rf "$tools/debian/$package"
		mkdir -p "$tools/debian/$package"
		download "$package" 2>/dev/null || {
			# No package lists, as on a fresh machine, or old ones.
			[ "$(id -u)" = 0 ] || die "apt cannot download $package: run 'apt-get update' as root, then this again"
			say "apt-get update"
			apt-get update -q >/dev/null && download "$package" || die "apt cannot download $package"
		}
		(
			cd "$tools/debian/$package"
			set -- *.deb
			say "$package $(dpkg-deb -f "$1" Version) (Debian)"
			dpkg-deb -x "$1" .
			rm "$1"
			touch .unpacked
		) || die "Debian package $package could not be unpacked"
	done
}

# runs PROGRAM [LIBRARIES]: every shared library that PROGRAM needs is there.
runs() {
	missing=$(LD_LIBRARY_PATH="${2:-}" ldd "$1" | awk '/not found/ { print $1 }')
	[ -z "$missing" ] || die "$1 needs shared libraries that are not here:" $missing
}

# link DIR NAME TARGET puts a Debian program where the tests look.
link() {
	runs "$3"
	mkdir -p "$1"
	ln -sf "$3" "$1/$2"
}

# wrap DIR PROGRAM FILE PACKAGE... is link for a Debian program that needs the libraries of unpacked packages.
wrap() {
	dir=$1 program=$2 file=$3 libraries=
	shift 3
	mkdir -p "$dir"
	for package; do
		for found in "$tools/debian/$package"/usr/lib/*-linux-gnu "$tools/debian/$package"/lib/*-linux-gnu; do
			[ ! -d "$found" ] || libraries=$libraries${libraries:+:}$found
		done
	done
	runs "$file" "$libraries"
	cat >"$dir/$program.new" <<-EOF
		#!/bin/sh
		LD_LIBRARY_PATH='$libraries' exec '$file' "\$@"
	EOF
	chmod +x "$dir/$program.new"
	mv "$dir/$program.new" "$dir/$program"
}

lint() {
	program "$tools/bin" github.com/golangci/golangci-lint/v2 $golangci_lint cmd/golangci-lint
}

e2e() {
	# Most of the time goes into compiling, of that most into dockerd, and some into linking, on one core: two at once.
	docker29_programs &
	docker29=$!
	program "$tools/containerd2" github.com/containerd/containerd/v2 $containerd \
		cmd/containerd cmd/ctr cmd/containerd-shim-runc-v2
	program "$tools/bin" github.com/google/go-containerregistry $crane cmd/crane
	program "$tools/bin" github.com/regclient/regclient $regctl cmd/regctl
	program "$tools/bin" github.com/versity/versitygw $versitygw cmd/versitygw
	program "$tools/bin" github.com/fsouza/fake-gcs-server $fake_gcs .
	referrers_registry

	debian containerd docker-registry skopeo $skopeo_libraries
	link "$tools/containerd1" containerd "$tools/debian/containerd/usr/bin/containerd"
	link "$tools/containerd1" ctr "$tools/debian/containerd/usr/bin/ctr"
	link "$tools/bin" docker-registry "$tools/debian/docker-registry/usr/bin/docker-registry"
	wrap "$tools/bin" skopeo "$tools/debian/skopeo/usr/bin/skopeo" $skopeo_libraries

	for program in ip tc nsenter unshare; do
		command -v $program >/dev/null || die "no $program here: install iproute2 and util-linux"
	done
	debian avahi-daemon avahi-utils dbus-daemon $avahi_libraries
	wrap "$tools/bin" avahi-daemon "$tools/debian/avahi-daemon/usr/sbin/avahi-daemon" $avahi_libraries
	wrap "$tools/bin" avahi-browse "$tools/debian/avahi-utils/usr/bin/avahi-browse" $avahi_libraries
	wrap "$tools/bin" avahi-publish "$tools/debian/avahi-utils/usr/bin/avahi-publish" $avahi_libraries
	wrap "$tools/bin" dbus-daemon "$tools/debian/dbus-daemon/usr/bin/dbus-daemon" $avahi_libraries

	docker
	debian buildah umoci pigz
	wrap "$tools/bin" buildah "$tools/debian/buildah/usr/bin/buildah" $skopeo_libraries
	link "$tools/bin" umoci "$tools/debian/umoci/usr/bin/umoci"
	link "$tools/bin" pigz "$tools/debian/pigz/usr/bin/pigz"
	curl_program
	wait $docker29 || exit 1
}

# docker29_programs builds the daemon of Docker 29, which else would call itself library-import.
docker29_programs() {
	variables="-X github.com/moby/moby/v2/dockerversion.Version=29.0.0-${moby#*-}"
	program "$tools/docker29" github.com/moby/moby/v2 $moby cmd/dockerd
}

# docker makes one directory for each version, to be alone in PATH before the system's: each with its own daemon,
# containerd and shim. Both have the client and the runc of Debian, which the tests tell Docker 29 to ask for no time
# namespaces: runc 1.1 has none.
docker() {
	debian docker.io runc $docker_libraries
	wrap "$tools/docker20" dockerd "$tools/debian/docker.io/usr/sbin/dockerd" $docker_libraries
	for program in containerd containerd-shim-runc-v2; do
		link "$tools/docker20" $program "$tools/debian/containerd/usr/bin/$program"
		mkdir -p "$tools/docker29"
		ln -sf "$tools/containerd2/$program" "$tools/docker29/$program"
	done
	for version in docker20 docker29; do
		link "$tools/$version" docker "$tools/debian/docker.io/usr/bin/docker"
		link "$tools/$version" runc "$tools/debian/runc/usr/sbin/runc"
	done
}

# referrers_registry builds a registry that has the referrers API, which Debian's does not: crane's own, with that
# switched on.
referrers_registry() {
	have "$tools/bin/referrers-registry" github.com/google/go-containerregistry $crane && return
	say "referrers-registry $crane (github.com/google/go-containerregistry/pkg/registry)"
	dir=$(mktemp -d)
	cat >"$dir/main.go" <<-'EOF'
		// Command referrers-registry ADDRESS serves an in-memory registry with the referrers API.
		package main

		import (
			"log"
			"net/http"
			"os"

			"github.com/google/go-containerregistry/pkg/registry"
		)

		func main() {
			log.Fatal(http.ListenAndServe(os.Args[1], registry.New(registry.WithReferrersSupport(true))))
		}
	EOF
	(
		cd "$dir"
		export CGO_ENABLED=0 GOFLAGS=''
		go mod init referrers-registry 2>/dev/null
		go get "github.com/google/go-containerregistry@$crane" 2>/dev/null
		go mod tidy 2>/dev/null
		go build -o "$tools/bin/referrers-registry" .
	) || die "referrers-registry did not build: is the Go module proxy reachable?"
	rm -r "$dir"
}

curl_program() {
	command -v curl >/dev/null && return
	debian curl $curl_libraries
	wrap "$tools/bin" curl "$tools/debian/curl/usr/bin/curl" $curl_libraries
}

bench() {
	debian nginx
	link "$tools/bin" nginx "$tools/debian/nginx/usr/sbin/nginx"
	debian pigz
	link "$tools/bin" pigz "$tools/debian/pigz/usr/bin/pigz"
	program "$tools/bin" github.com/versity/versitygw $versitygw cmd/versitygw
	debian rclone skopeo $skopeo_libraries
	link "$tools/bin" rclone "$tools/debian/rclone/usr/bin/rclone"
	wrap "$tools/bin" skopeo "$tools/debian/skopeo/usr/bin/skopeo" $skopeo_libraries
	curl_program
}

[ $# -gt 0 ] || die "usage: tools.sh lint|e2e|bench..."
command -v go >/dev/null || die "no Go here: install it from https://go.dev/dl/"
# Two runs at once would build everything twice.
if command -v flock >/dev/null; then
	exec 9>"$tools/.lock"
	flock 9
fi
for group; do
	case $group in
	lint | e2e | bench) $group ;;
	*) die "unknown group $group: lint, e2e or bench" ;;
	esac
done
say "everything for '$*' is in $tools"
