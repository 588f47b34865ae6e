#!/usr/bin/env bash
# Builds a Pyroscope server for tests/e2e, once, and prints its path. It is kept outside
# of the repository. Needs Go and network, and some minutes the first time.

source "$(dirname "$0")/common.sh"

readonly VERSION=1.12.0 API=1.2.0 MODULE=github.com/grafana/pyroscope
cache=${XDG_CACHE_HOME:-$HOME/.cache}/spanprof
binary=$cache/pyroscope-$VERSION

if [ ! -x "$binary" ]; then
    command -v go >/dev/null || fail 'there is no go here'
    say "build of Pyroscope $VERSION, some minutes"
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/build-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    quietly go mod download "$MODULE@v$VERSION" || fail 'its sources are not to be had'
    source=$(go env GOMODCACHE)/$MODULE@v$VERSION
    # A module that cannot be installed by name, as it replaces others. So a module of
    # ours needs it, and replaces the same, but for the one that lies beside it.
    sed -e 's#^module .*#module build#' -e '\#pyroscope/api => ./api#d' \
        "$source/go.mod" >go.mod
    cat "$source/go.sum" >go.sum
    go mod edit -require="$MODULE@v$VERSION" -require="$MODULE/api@v$API"
    cat >tools.go <<END
//go:build tools

package tools

import _ "$MODULE/cmd/pyroscope"
END
    quietly go build -mod=mod -o pyroscope "$MODULE/cmd/pyroscope" ||
        fail 'it cannot be built'
    mv pyroscope "$binary"
fi
printf '%s\n' "$binary"
