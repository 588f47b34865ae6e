#!/usr/bin/env bash
# Runs a command on a fresh Debian: fresh_machine.sh SUITE PACKAGE... -- COMMAND
# There, these sources lie in /src, as git has them, and nothing but the packages is
# installed. COMMAND is one argument, for bash.

source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/roots.sh"

packages=()
suite=$1
shift
while [ "$1" != -- ]; do
    packages+=("$1")
    shift
done
shift

debian_root "$suite" ca-certificates git make "${packages[@]}"
copy_root "$template"
mkdir "$copy/src"
copy_sources "$copy/src"
in_root "$copy" bash -euc "cd /src && $1"
