#!/usr/bin/env bash
# Installs a wheel where there is neither a compiler nor protobuf-c, and runs the
# demonstration there: check_wheel.sh WHEEL SUITE
# SUITE is the Debian release whose python3 the wheel was built for.

source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/roots.sh"

debian_root "$2" ca-certificates python3 python3-venv
copy_root "$template"
mkdir "$copy/trial"
cp "$1" "$root/examples/index_stdlib.py" "$copy/trial"
# shellcheck disable=SC2016
in_root "$copy" bash -euc '
    cd /trial
    for program in cc gcc clang protoc-c; do
        if command -v $program; then
            echo "this root is not clean"
            exit 1
        fi
    done
    if ls /usr/lib/*/libprotobuf-c* 2>/dev/null; then
        echo "this root is not clean"
        exit 1
    fi
    python3 -m venv venv
    venv/bin/pip install --no-index --quiet *.whl
    venv/bin/spanprof run --all --label package --pprof profiles index_stdlib.py
    venv/bin/spanprof report --flat profiles
'
