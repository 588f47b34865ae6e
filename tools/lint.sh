#!/usr/bin/env bash
# Checks format, lints and types; with --format, formats first.

source "$(dirname "$0")/common.sh"

cd "$root"
tools/system_packages.sh python
use_python
make_venv "$root/.venv-lint" lint
PATH=$root/.venv-lint/bin:$PATH

mapfile -t c_files < <(find benchmarks csrc examples tests -name '*.[ch]')

if [ "${1-}" = --format ]; then
    ruff check --fix-only --quiet .
    ruff format .
    clang-format -i "${c_files[@]}"
    exit
fi

status=0
ruff check . || status=1
ruff format --check . || status=1
clang-format --dry-run -Werror "${c_files[@]}" || status=1
mypy --strict --package spanprof || status=1
exit "$status"
