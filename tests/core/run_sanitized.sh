#!/usr/bin/env bash
# The core's tests under AddressSanitizer and UndefinedBehaviorSanitizer:
# run_sanitized.sh [PYTEST_ARGUMENT...]. Its status is pytest's.
#
#   PYTHON  the interpreter, with the packages that the tests need (python)

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python}
export CC=${CC:-gcc}

# Leaks are not looked for: interned names live until the process ends, on purpose.
# A report goes straight to stderr, which pytest must not hold back. The interpreter
# was built without the sanitizers, whose libraries must come first.
build=$root/build-core-sanitized
library=$("$python" "$here/library.py" "$build" csrc/libspanprof_core_tests.so \
    -Db_sanitize=address,undefined -Db_lundef=false -Db_lto=false \
    -Dbuildtype=debugoptimized -Db_ndebug=false)

exec env \
    LD_PRELOAD="$("$CC" -print-file-name=libasan.so):$("$CC" -print-file-name=libubsan.so)" \
    ASAN_OPTIONS="detect_leaks=0:allow_user_segv_handler=0:${ASAN_OPTIONS-}" \
    UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1:${UBSAN_OPTIONS-}" \
    SPANPROF_CORE_LIBRARY="$library" \
    "$python" -P -m pytest --config-file="$root/pyproject.toml" --rootdir="$root" \
    -p no:cacheprovider --capture=sys "$@" "$here"
