#!/usr/bin/env bash
# concurrency.py with the module under ThreadSanitizer: run_tsan_module.sh [SECONDS]. Its
# status is the program's: not zero if something is wrong or a race was found.
#
#   SPANPROF_TSAN_PYTHON  a free-threaded interpreter that was itself built with
#                         ThreadSanitizer (configure --disable-gil
#                         --with-thread-sanitizer); without one nothing is run
#   SPANPROF_TSAN_SUPPRESSIONS  its own known races: Tools/tsan/
#                         suppressions_free_threading.txt of its sources
#   CC                    the compiler that it was built with (clang)
#   PYTHON                the interpreter whose meson builds the module (python)

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
if [ -z "${SPANPROF_TSAN_PYTHON-}" ]; then
    echo 'not run: SPANPROF_TSAN_PYTHON names no interpreter built with ThreadSanitizer'
    exit 0
fi
python=$SPANPROF_TSAN_PYTHON
build=$root/build-tsan-module
package=$build/package/spanprof
mkdir -p "$build"

printf '[binaries]\npython = %s\npython3 = %s\n' "'$python'" "'$python'" >"$build/native.ini"
if [ ! -f "$build/meson/build.ninja" ]; then
    CC=${CC:-clang} "${PYTHON:-python}" -m mesonbuild.mesonmain setup \
        --native-file "$build/native.ini" "$build/meson" "$root" -Db_sanitize=thread \
        -Db_lundef=false -Db_lto=false -Dbuildtype=debugoptimized -Db_ndebug=false
fi
ninja -C "$build/meson"
rm -rf "$package"
mkdir -p "$package"
cp -r "$root"/spanprof/. "$package"
rm -f "$package"/*.so
cp "$build"/meson/csrc/_core*.so "$package"

suppressions=$build/suppressions
cat "$here/tsan_suppressions.txt" ${SPANPROF_TSAN_SUPPRESSIONS:+"$SPANPROF_TSAN_SUPPRESSIONS"} \
    >"$suppressions"

# Some kernels give addresses more randomness than the sanitizer's layout allows for.
runner=()
if command -v setarch >/dev/null && setarch -R true 2>/dev/null; then
    runner=(setarch -R)
fi
export TSAN_OPTIONS="halt_on_error=0:history_size=7:suppressions=$suppressions:${TSAN_OPTIONS-}"
export PYTHONPATH=$build/package PYTHONDONTWRITEBYTECODE=1
exec "${runner[@]}" "$python" -X faulthandler "$here/concurrency.py" "${1:-60}"
