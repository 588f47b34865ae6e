#!/usr/bin/env bash
# Does all set-up, and indexes the interpreter's standard library under spanprof.

source "$(dirname "$0")/common.sh"

# shellcheck disable=SC2119
install_spanprof

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

mkdir -p profiles
touch build-"$tag"/before
show spanprof run --all --label package --pprof profiles examples/index_stdlib.py
mapfile -t files < <(find profiles -name '*.pb.gz' -newer build-"$tag"/before | sort)
show ls -l "${files[@]}"
show spanprof report --flat "${files[@]}"

if command -v go >/dev/null; then
    for file in "${files[@]}"; do
        case $file in
            *cpu*) show go tool pprof -top "$file" ;;
        esac
    done
else
    printf '\nGo is not installed here. Where it is: go tool pprof -top FILE\n'
fi
