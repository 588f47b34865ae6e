#!/usr/bin/env bash
# Installs a wheel where there is neither a compiler nor protobuf-c, and runs the
# demonstration there: check_wheel.sh ROOT WHEEL
# ROOT is a Debian root with python3-venv (see debian_root.sh). It stays as it is.

source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/roots.sh"

template=$1
wheel=$2

copy_root "$template"
mkdir "$copy/trial"
cp "$wheel" "$root/examples/index_stdlib.py" "$copy/trial"
in_root "$copy" bash -euc '
    cd /trial
    for program in cc gcc clang protoc-c; do
        if command -v $program; then
            echo "this root is not clean"
            exit 1
        fi
    done
    if ls /usr/lib/*/libprotobuf-c*; then
        echo "this root is not clean"
        exit 1
    fi
    python3 -m venv venv
    venv/bin/pip install --no-index --quiet *.whl
    venv/bin/spanprof run --all --label package --pprof profiles index_stdlib.py
    venv/bin/spanprof report profiles/*cpu*.pb.gz
'
