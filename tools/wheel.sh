#!/usr/bin/env bash
# Builds a wheel into dist/ that carries protobuf-c, and so needs no system packages.

source "$(dirname "$0")/common.sh"

cd "$root"
tools/system_packages.sh python compiler
use_python
make_venv "$root/.venv-$tag" build wheel
PATH=$root/.venv-$tag/bin:$PATH

build=$root/build-$tag-wheel
rm -rf "$build"
say "wheel for $tag"
quietly python -m pip wheel --no-deps --no-build-isolation --wheel-dir="$build/plain" \
    --config-settings=build-dir="$build/meson" .
auditwheel show "$build"/plain/*.whl
quietly auditwheel repair --wheel-dir="$build/repaired" "$build"/plain/*.whl
mkdir -p dist
cp -v "$build"/repaired/*.whl dist/
