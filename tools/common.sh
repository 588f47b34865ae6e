# shellcheck shell=bash
# What the other scripts share. They source it; it runs nothing by itself.
#
#   PYTHON            the interpreter: a name or a path (python3)
#   SPANPROF_PYTHONS  paths of more interpreters, with colons between them
#   MESON_ARGS        more options for meson, such as -Dwerror=true
#
# Everything they make lies in .venv-<tag>/ and build-<tag>/, where the tag is the
# interpreter's version: 3.13, or 3.13t for the free-threaded build.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() {
    printf '== %s\n' "$*" >&2
}

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# Runs a command, and shows its output only if it fails.
quietly() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ "$status" -ne 0 ]; then
        tail -n 100 "$log" >&2
    fi
    rm -f "$log"
    return "$status"
}

# find_python NAME prints the path of an interpreter that runs. Names such as
# python3.12 are also looked for in SPANPROF_PYTHONS and among pyenv's: its
# python3.12 on PATH refuses to run unless that version was switched on.
find_python() {
    local candidate pythons
    IFS=: read -ra pythons <<<"${SPANPROF_PYTHONS-}"
    for candidate in "$1" "${pythons[@]}" \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/"$1"; do
        if [ "${candidate##*/}" = "${1##*/}" ] &&
            "$candidate" -c 'import sys; print(sys.executable)' 2>/dev/null; then
            return
        fi
    done
    return 1
}

# Sets python and tag, once tools/system_packages.sh is through.
use_python() {
    python=$(find_python "${PYTHON:-python3}") || fail "there is no ${PYTHON:-python3}"
    tag=$("$python" - <<'END'
import sys

if sys.implementation.name != "cpython":
    sys.exit(f"spanprof needs CPython, and {sys.executable} is not")
if sys.version_info < (3, 11):
    version = ".".join(map(str, sys.version_info[:3]))
    sys.exit(f"spanprof needs Python 3.11 or later: {sys.executable} is {version}")
print("%d.%d%s" % (*sys.version_info[:2], sys.abiflags))
END
    ) || fail "set PYTHON to another interpreter"
}

# requirements EXTRA... prints what pyproject.toml lists, one a line; "build" stands
# for what the build needs.
requirements() {
    "$python" - "$tag" "$@" <<'END'
import sys, tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
extras = project["project"]["optional-dependencies"]
tag, *names = sys.argv[1:]
for name in names:
    listed = project["build-system"]["requires"] if name == "build" else extras[name]
    for requirement in listed:
        # cffi does not support this one build. Its tests say that they were skipped.
        if not (tag == "3.13t" and requirement.startswith("cffi")):
            print(requirement)
END
}

# make_venv DIR EXTRA... makes a virtual environment of the interpreter with the
# extras' requirements. One that is there is kept if it was made by the same
# interpreter, and the requirements are the same.
make_venv() {
    local venv=$1 identity wanted list options=(--prefer-binary)
    shift
    identity="$venv $("$python" -c '
import os, sys
print(os.path.realpath(sys.executable), sys.version)
')"
    if [ "$(cat "$venv/made-by" 2>/dev/null)" != "$identity" ]; then
        say "virtual environment $(basename "$venv") of $python"
        rm -rf "$venv"
        quietly "$python" -m venv "$venv"
        quietly "$venv/bin/python" -m pip install --upgrade pip
        printf '%s\n' "$identity" >"$venv/made-by"
    fi
    list="$venv/requirements-$(IFS=-; echo "$*")"
    wanted=$(requirements "$@")
    if [ "$(cat "$list" 2>/dev/null)" != "$wanted" ]; then
        say "requirements: ${wanted//$'\n'/, }"
        # The newest releases of some cannot be compiled for it.
        if [ "$tag" = 3.13t ]; then
            options+=(--only-binary=:all:)
        fi
        printf '%s\n' "$wanted" >"$list.new"
        quietly "$venv/bin/python" -m pip install "${options[@]}" -r "$list.new"
        mv "$list.new" "$list"
    fi
}

# What an installed package depends on: every source by content, the interpreter,
# the compiler and its options. Contents, as times lie after a checkout or a copy.
fingerprint() {
    cat "$venv/made-by"
    printf '%s\n' "${CC-}" "${CFLAGS-}" "${LDFLAGS-}" "${MESON_ARGS-}"
    ${CC:-cc} --version
    pkg-config --modversion libprotobuf-c zlib
    find LICENSE README.md csrc meson.build meson_options.txt proto pyproject.toml \
        spanprof -type f -not -name '*.so' -not -path '*/__pycache__/*' \
        -exec sha256sum {} + | LC_ALL=C sort
}

# install_spanprof EXTRA... does all set-up: system packages, the environment venv
# with the extras, and in it spanprof as it is now.
install_spanprof() {
    cd "$root"
    "$root/tools/system_packages.sh" python compiler
    use_python
    venv=$root/.venv-$tag
    build=$root/build-$tag
    make_venv "$venv" build "$@"
    PATH=$venv/bin:$PATH

    local wanted options=(--no-deps --no-build-isolation --force-reinstall) argument
    wanted=$(fingerprint)
    if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
        say "build and install for $tag"
        rm -rf "$build" "$venv/installed"
        for argument in ${MESON_ARGS-}; do
            options+=("--config-settings=setup-args=$argument")
        done
        quietly python -m pip install "${options[@]}" \
            --config-settings=build-dir="$build" .
        printf '%s\n' "$wanted" >"$venv/installed"
    fi

    # The source tree has a package of the same name, and meson.build lists files.
    python -P - <<'END'
import pathlib, sys, spanprof

installed = pathlib.Path(spanprof.__file__).parent
if not installed.is_relative_to(sys.prefix):
    sys.exit(f"{installed} is not the installed package")
for file in pathlib.Path("spanprof").rglob("*.py"):
    if not (installed.parent / file).exists():
        sys.exit(f"spanprof/meson.build does not install {file}")
END
}
