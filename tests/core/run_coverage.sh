#!/usr/bin/env bash
# Which lines of the core its tests run: run_coverage.sh [PYTEST_ARGUMENT...]. Prints
# the untested ones and a table. Its status is 1 if a test fails, or if fewer than
# 95 % of all lines were run.
#
#   PYTHON  the interpreter, with the packages that the tests need (python)
#   CC      the compiler, a gcc with its gcov (gcc)

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python}
export CC=${CC:-gcc}

# Nothing is inlined or moved, so that lines are counted as they are written. Threads
# count at once; assertions would be branches that nobody can take.
build=$root/build-core-coverage
library=$("$python" "$here/library.py" "$build" csrc/libspanprof_core_tests.so \
    -Db_coverage=true -Db_lto=false -Dbuildtype=debug -Db_ndebug=true \
    '-Dc_args=-fprofile-update=atomic -DSPT_COVERAGE')

# Counts add up over runs.
find "$build" -name '*.gcda' -delete

status=0
SPANPROF_CORE_LIBRARY="$library" \
    "$python" -P -m pytest --config-file="$root/pyproject.toml" --rootdir="$root" \
    -p no:cacheprovider "$@" "$here" || status=1
"$python" -P "$here/coverage_report.py" "$build" 95 || status=1
exit "$status"
