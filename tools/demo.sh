#!/usr/bin/env bash
# Does all set-up, and indexes the interpreter's standard library under spanprof.

source "$(dirname "$0")/common.sh"

install_spanprof

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

rm -f profiles/*.pb.gz
show spanprof run --all --label package --pprof profiles examples/index_stdlib.py
show ls -l profiles
show spanprof report profiles/*.pb.gz

if command -v go >/dev/null; then
    for file in profiles/*cpu*.pb.gz; do
        show go tool pprof -top "$file"
    done
else
    printf '\nTo open the files in pprof, install Go: go tool pprof -top FILE\n'
fi
