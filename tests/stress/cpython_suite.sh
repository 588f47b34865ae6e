#!/usr/bin/env bash
# CPython's own tests under `spanprof run --all`, each module inside a span: they must
# pass as they do without.
#
#   cpython_suite.sh [--ci | --all | MODULE...]
#
# --ci (the default) takes what allocates, collects, starts threads and forks, in a few
# minutes; --all takes every module there is, which is hours. A module that fails only
# with us is tried once more both ways: some are flaky by themselves.
#
#   PYTHON   the interpreter, with spanprof and its own `test` package (python)
#   SECONDS_PER_MODULE   most time for one run of a module (600)

set -euo pipefail

python=${PYTHON:-python}
limit=${SECONDS_PER_MODULE:-600}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

readonly CI_MODULES=(test_capi test_gc test_threading test_asyncio test_dict test_list
    test_unicode test_str test_json test_pickle test_decimal test_ssl test_multiprocessing_fork
    test_concurrent_futures test_fork1 test_tracemalloc)

# Left out both ways, for what any program does that runs another one:
# test_walk_above_recursion_limit allows for so many frames from the bottom of the stack,
# and whoever runs the tests has some there. test_shutdown_deadlock_pickle hangs on 3.13.0
# if a thread is a little late (fixed in 3.13.1: an error in feeding a process pool waited
# for a lock that its shutdown held).
readonly NOT_WITH_US=(test_walk_above_recursion_limit test_shutdown_deadlock_pickle)

# Nothing is tracked outside a span, so the whole run is in one.
cat >"$scratch/driver.py" <<'EOF'
import runpy
import sys

import spanprof

sys.argv = ["test", *sys.argv[1:]]
with spanprof.span("cpython"):
    runpy.run_module("test", run_name="__main__", alter_sys=True)
EOF

# run_tests HOW LOG MODULE: the tests of one module, plainly or profiled.
run_tests() {
    local -a command=("$python" -m test) ignored=()
    if [ "$1" = profiled ]; then
        command=("$python" -m spanprof run --all --no-table "$scratch/driver.py")
    fi
    for name in "${NOT_WITH_US[@]}"; do
        ignored+=(--ignore "$name")
    done
    # One process, so that it is ours that runs the tests and not a child.
    (
        cd "$scratch"
        timeout --kill-after=20 "$limit" "${command[@]}" --timeout "$limit" \
            "${ignored[@]}" "$3"
    ) >"$scratch/$2" 2>&1 </dev/null
}

# What became of a module: "ok", "fails both ways" or "DIFFERS".
verdict_of() {
    if run_tests profiled profiled.log "$1"; then
        echo ok
    elif run_tests plain plain.log "$1"; then
        echo DIFFERS
    else
        echo 'fails both ways'
    fi
}

# A name is as the test runner takes it: of a module in `test`, or with the package's
# name before it.
exists() {
    "$python" - "$1" <<'EOF'
import importlib.util
import sys

try:
    found = importlib.util.find_spec("test." + sys.argv[1].removeprefix("test."))
except ModuleNotFoundError:
    found = None
sys.exit(found is None)
EOF
}

case ${1:---ci} in
--ci) modules=("${CI_MODULES[@]}") ;;
--all) mapfile -t modules < <("$python" -m test --list-tests) ;;
*) modules=("$@") ;;
esac

(cd "$scratch" &&
    "$python" -c 'import sys, spanprof; print("CPython", sys.version.split()[0])')
differing=()
ran=0
for module in "${modules[@]}"; do
    if ! exists "$module"; then
        echo "not there       $module"
        continue
    fi
    ran=$((ran + 1))
    began=$SECONDS
    verdict=$(verdict_of "$module")
    if [ "$verdict" = DIFFERS ]; then
        cp "$scratch/profiled.log" "$scratch/first.log"
        verdict=$(verdict_of "$module")
        if [ "$verdict" = DIFFERS ]; then
            differing+=("$module")
            tail -n 60 "$scratch/profiled.log"
        fi
    fi
    printf '%-15s %s: %d s\n' "$verdict" "$module" "$((SECONDS - began))"
done
echo "$ran modules in $SECONDS s, ${#differing[@]} differ"
[ "${#differing[@]}" -eq 0 ] && [ "$ran" -gt 0 ]
