#!/usr/bin/env bash
# Compiles everything with gcc and with clang. Warnings are errors.

source "$(dirname "$0")/common.sh"

cd "$root"
tools/system_packages.sh python compiler clang
use_python
make_venv "$root/.venv-$tag" build
PATH=$root/.venv-$tag/bin:$PATH

for compiler in gcc clang; do
    say "$tag, $compiler"
    directory=$root/build-$tag-$compiler
    rm -rf "$directory"
    fuzzers=$([ $compiler = clang ] && echo true || echo false)
    CC=$compiler quietly meson setup "$directory" -Dwerror=true -Dcore_tests=true \
        -Dfuzzers="$fuzzers"
    quietly meson compile -C "$directory"
    quietly meson compile -C "$directory" spanprof_stress spanprof_instructions
done
