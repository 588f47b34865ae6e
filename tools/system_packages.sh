#!/usr/bin/env bash
# Installs the system packages that are missing: system_packages.sh WHAT...
#
#   python    the interpreter PYTHON with venv and headers
#   compiler  a C compiler, pkg-config, protobuf-c, zlib
#   clang     clang, with its sanitizers and libFuzzer
#   valgrind  valgrind
#   roots     debootstrap
#
# What is there already stays as it is, wherever it comes from; with nothing
# missing, apt is not called.

source "$(dirname "$0")/common.sh"

missing=()

has() {
    command -v "$1" >/dev/null
}

need_python() {
    local name=${PYTHON:-python3} path version
    if ! path=$(find_python "$name"); then
        case $name in
            python3.[0-9] | python3.10) fail "spanprof needs Python 3.11 or later" ;;
            python3 | python3.1[0-9]) missing+=("$name" "$name-dev" "$name-venv") ;;
            *) fail "there is no $name" ;;
        esac
        return
    fi
    version=$("$path" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    if ! "$path" -c 'import ensurepip, venv' 2>/dev/null; then
        missing+=("$version-venv")
    fi
    if ! "$path" -c '
import os, sys, sysconfig
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not os.path.exists(header))
'; then
        missing+=("$version-dev")
    fi
}

need_compiler() {
    local compiler=${CC:-cc}
    has "${compiler%% *}" || missing+=(gcc)
    # gcc only recommends the C library's headers.
    [ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
    if has pkg-config; then
        pkg-config --exists libprotobuf-c || missing+=(libprotobuf-c-dev)
        pkg-config --exists zlib || missing+=(zlib1g-dev)
    else
        missing+=(pkg-config libprotobuf-c-dev zlib1g-dev)
    fi
    has protoc-c || missing+=(protobuf-c-compiler)
}

# Debian has libFuzzer in a package of its own, which clang only recommends.
has_libfuzzer() {
    echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' |
        clang -fsanitize=fuzzer -x c -o /dev/null - 2>/dev/null
}

need_clang() {
    if ! has clang; then
        missing+=(clang llvm libclang-rt-dev)
    elif ! has_libfuzzer; then
        missing+=("libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev")
    fi
}

for what in "$@"; do
    case $what in
        python) need_python ;;
        compiler) need_compiler ;;
        clang) need_clang ;;
        valgrind) has valgrind || missing+=(valgrind) ;;
        roots) has debootstrap || missing+=(debootstrap) ;;
        *) fail "what is $what?" ;;
    esac
done

if [ ${#missing[@]} -eq 0 ]; then
    exit
fi
if ! has apt-get; then
    fail "please install what Debian calls: ${missing[*]}"
fi
if [ "$(id -u)" -eq 0 ]; then
    apt=(env DEBIAN_FRONTEND=noninteractive apt-get)
elif has sudo; then
    apt=(sudo env DEBIAN_FRONTEND=noninteractive apt-get)
else
    fail "as root, please: apt-get install ${missing[*]}"
fi
say "apt-get install ${missing[*]}"
quietly "${apt[@]}" update
quietly "${apt[@]}" install -y --no-install-recommends "${missing[@]}"
