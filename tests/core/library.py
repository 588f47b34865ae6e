"""Finds or builds the shared library of the core that the tests load.

As a program it builds one with given meson options and prints its path:
``python library.py BUILD_DIRECTORY TARGET [MESON_OPTION...]``.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "csrc/libspanprof_core_tests.so"
VARIABLE = "SPANPROF_CORE_LIBRARY"


class BuildError(Exception):
    pass


def _path() -> str:
    """PATH, with the programs of the running interpreter's environment first."""
    return os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])


def _run(*command: str) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, "PATH": _path()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stdout[-8000:]}")


def build(directory: Path, target: str, options: Sequence[str] = ()) -> Path:
    """Build ``target``; what is up to date is left alone. Safe in parallel."""
    meson = [sys.executable, "-m", "mesonbuild.mesonmain"]
    made_by = directory / "made-by"
    wanted = "\n".join(
        [sys.prefix, sys.version, str(ROOT), *options]
        + [f"{name}={os.environ.get(name, '')}" for name in ("CC", "CFLAGS", "LDFLAGS")]
    )
    directory.parent.mkdir(parents=True, exist_ok=True)
    with open(directory.with_name(directory.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made_by.exists() or made_by.read_text() != wanted:
            shutil.rmtree(directory, ignore_errors=True)
            _run(
                *meson,
                "setup",
                str(directory),
                str(ROOT),
                "-Dcore_tests=true",
                *options,
            )
            made_by.write_text(wanted)
        # Ninja itself: "meson compile" does not see targets that are new.
        ninja = shutil.which("ninja", path=_path()) or "ninja-build"
        _run(ninja, "-C", str(directory), target)
    return directory / target


def find() -> Path:
    """The library that the environment names, else our own build of it."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    tag = sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag
    return build(ROOT / f"build-core-{tag}", LIBRARY)


if __name__ == "__main__":
    try:
        print(build(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
    except BuildError as error:
        sys.exit(str(error))
