#!/usr/bin/env bash
# Runs a command where spanprof is installed: with_spanprof.sh EXTRA... -- COMMAND...
# Extras are those of pyproject.toml. The working directory becomes the build
# directory, as the one of the sources has a package of the same name.

source "$(dirname "$0")/common.sh"

extras=()
while [ "$1" != -- ]; do
    extras+=("$1")
    shift
done
shift

install_spanprof "${extras[@]}"
export PYTHON=$venv/bin/python
cd "$build"
exec "$@"
