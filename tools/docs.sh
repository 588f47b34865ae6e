#!/usr/bin/env bash
# Builds the site into site/; with --serve, shows it while it is written.

source "$(dirname "$0")/common.sh"

cd "$root"
tools/system_packages.sh python
use_python
make_venv "$root/.venv-docs" docs
if [ "${1-}" = --serve ]; then
    exec "$root/.venv-docs/bin/mkdocs" serve
fi
exec "$root/.venv-docs/bin/mkdocs" build --strict
