#!/usr/bin/env bash
# Does all set-up and runs the tests: test.sh PYTEST_ARGUMENTS...
# With no file or folder among the arguments, all of them.

source "$(dirname "$0")/common.sh"

arguments=()
chosen=no
for argument in "$@"; do
    case $argument in
        tests | tests/*)
            argument=$root/$argument
            chosen=yes
            ;;
    esac
    arguments+=("$argument")
done
if [ "$chosen" = no ]; then
    arguments+=("$root/tests")
fi

exec "$root/tools/with_spanprof.sh" test -- \
    python -P -m pytest --config-file="$root/pyproject.toml" --rootdir="$root" \
    "${arguments[@]}"
