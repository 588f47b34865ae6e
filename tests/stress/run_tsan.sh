#!/usr/bin/env bash
# The stress program under ThreadSanitizer: run_tsan.sh [SECONDS]. Its status is the
# program's: not zero if a check failed or a race was found.
#
#   PYTHON  the interpreter whose meson builds it (python)
#   CC      gcc or clang (gcc)

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python}
export CC=${CC:-gcc}

# gcc warns of fences, which its sanitizer does not follow. What our fences order is
# atomic throughout, so that nothing rests on them for it.
warnings=
if "$CC" -Werror -Wno-error=tsan -x c -E /dev/null >/dev/null 2>&1; then
    warnings=-Dc_args=-Wno-tsan
fi
program=$("$python" "$root/tests/core/library.py" "$root/build-stress-tsan" \
    csrc/spanprof_stress -Db_sanitize=thread -Db_lundef=false -Db_lto=false \
    -Dbuildtype=debugoptimized -Db_ndebug=false ${warnings:+"$warnings"})

# Some kernels give addresses more randomness than the sanitizer's layout allows for.
runner=()
if command -v setarch >/dev/null && setarch -R true 2>/dev/null; then
    runner=(setarch -R)
fi
export TSAN_OPTIONS="halt_on_error=0:second_deadlock_stack=1:${TSAN_OPTIONS-}"
exec "${runner[@]}" "$program" "${1:-10}"
