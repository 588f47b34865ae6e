#!/usr/bin/env bash
# Runs the fuzzers, all at once: run.sh [SECONDS [FUZZER...]], for 60 s by default. Each
# begins with its corpus, tests/fuzz/corpus/FUZZER, and then tries what it makes of
# that. Its status is 1 if one found something, which is printed as base64.
#
#   PYTHON    the interpreter, with meson and ninja (python)
#   CC        a clang that has libFuzzer (clang)
#   FUZZ_NEW  a folder for the inputs that are new, FUZZ_NEW/FUZZER/...

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python}
export CC=${CC:-clang}

seconds=${1:-60}
shift $(($# > 0))
fuzzers=("$@")
if [ ${#fuzzers[@]} -eq 0 ]; then
    fuzzers=(heap pprof spans)
fi

# Interned names live until the process ends, on purpose: no search for leaks.
export ASAN_OPTIONS="detect_leaks=0:${ASAN_OPTIONS-}"
export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS-}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
declare -A processes
for name in "${fuzzers[@]}"; do
    program=$("$python" "$root/tests/core/library.py" "$root/build-fuzz" \
        "csrc/fuzz_$name" -Dfuzzers=true -Db_lto=false -Db_lundef=false \
        -Dbuildtype=debugoptimized -Db_ndebug=false \
        '-Dc_args=-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined' \
        '-Dc_link_args=-fsanitize=address,undefined')
    new=${FUZZ_NEW:-$work}/$name
    mkdir -p "$new"
    "$program" -max_total_time="$seconds" -max_len=1000 -len_control=20 \
        -print_final_stats=1 -artifact_prefix="$work/found-$name-" \
        "$new" "$here/corpus/$name" >"$work/$name.log" 2>&1 </dev/null &
    processes[$name]=$!
done

status=0
for name in "${fuzzers[@]}"; do
    log=$work/$name.log
    if wait "${processes[$name]}"; then
        edges=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1)
        runs=$(grep -o 'number_of_executed_units: *[0-9]*' "$log")
        added=$(grep -o 'new_units_added: *[0-9]*' "$log")
        printf '%-6s %s runs, %s edges, %s new inputs\n' \
            "$name" "${runs##* }" "${edges##* }" "${added##* }"
    else
        status=1
        printf '%s found something; as base64:\n' "$name"
        base64 -w 0 "$work/found-$name-"* || true
        printf '\n'
        grep -v -e REDUCE -e 'NEW ' "$log" | tail -n 60
    fi
done
exit "$status"
