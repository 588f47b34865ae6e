"""Instructions that the hot paths execute, counted by valgrind's callgrind: not noisy,
and compared with figures that were kept.

    python benchmarks/instructions.py            # a table
    python benchmarks/instructions.py --check    # fails if the core rose over 3 %
    python benchmarks/instructions.py --keep     # keeps the figures, on purpose

The core's paths are those of instructions.c, each counted from its first instruction to
its last, on a clock that stands still and is read the quick way. What the interpreter
executes for a span is the difference between a program with many and one without, with
wall time alone: valgrind knows no restartable sequences, without which CPU time takes a
system call.

Figures depend on the compiler and the interpreter, and are kept for each of them in
instructions.json.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import harness

import spanprof

ROOT = Path(__file__).resolve().parents[1]
KEPT = Path(__file__).with_name("instructions.json")
MOST_RISE = 0.03
CORE_TIMES = 100_000
TIMES = 20_000

Figures = dict[str, float]
"""Instructions each, by what is done."""

Kept = dict[str, Figures]
"""By key: what figures depend on."""


# --- what is compared -----------------------------------------------------------


def changes(kept: Figures, found: Figures) -> Iterator[tuple[str, float]]:
    """What is not as it was kept, and by which part it rose; what is new or gone rose
    without bound."""
    for name in sorted(kept.keys() | found.keys()):
        if name not in kept or name not in found:
            yield name, float("inf")
        elif abs(rise := found[name] / kept[name] - 1) > MOST_RISE:
            yield name, rise


def verdict(kept: Kept, found: Kept) -> list[str]:
    """What ``--check`` has to say; a fall is to be kept as well, or a later rise would
    go unseen."""
    messages = []
    for key, figures in found.items():
        if key not in kept:
            messages.append(f"no figures are kept for {key}")
            continue
        for name, rise in changes(kept[key], figures):
            what = "rose" if rise > 0 else "fell"
            by = "is new or gone" if rise == float("inf") else f"{what} by {rise:+.1%}"
            messages.append(f"{key}: {name} {by}")
    return messages


def merged(kept: Kept, found: Kept) -> str:
    return json.dumps({**kept, **found}, indent=2, sort_keys=True) + "\n"


# --- counting ---------------------------------------------------------------------


@functools.cache
def fixed() -> list[str]:
    """In front of a command: addresses are the same each time."""
    if (
        shutil.which("setarch")
        and not subprocess.run(["setarch", "-R", "true"]).returncode
    ):
        return ["setarch", "-R"]
    return []


def collected(*command: str) -> int:
    options = ["--tool=callgrind", "--callgrind-out-file=/dev/null"]
    done = subprocess.run(
        [*fixed(), "valgrind", *options, *command],
        env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0"},
        check=False,
        capture_output=True,
        text=True,
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or found is None:
        raise RuntimeError(f"{command} failed:\n{done.stdout}{done.stderr[-2000:]}")
    return int(found[1])


def core_program() -> str:
    library = ROOT / "tests/core/library.py"
    build = ROOT / "build-instructions"
    command = [sys.executable, str(library), str(build), "csrc/spanprof_instructions"]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def core_figures(each: ThreadPoolExecutor) -> Figures:
    program = core_program()
    cases = subprocess.run(
        [program], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()

    def figure(case: str, half: str) -> float:
        count = collected(
            f"--toggle-collect=measured_{half}", program, case, str(CORE_TIMES)
        )
        return round(count / CORE_TIMES, 1)

    halves = {
        f"{case}, {'end' if half == 'second' else 'begin'}": each.submit(
            figure, case, half
        )
        for case in cases
        for half in ("first", "second")
    }
    return {name: future.result() for name, future in halves.items()}


def spans(n: int) -> None:
    for _ in range(n):
        with spanprof.span("x"):
            pass


def blocks(n: int) -> None:
    """Each of two blocks: the object, and its bytes."""
    for _ in range(n):
        bytearray(100)


def in_session(case: Callable[[int], None], **tracked: bool) -> Callable[[int], None]:
    def run(n: int) -> None:
        with spanprof.start(**tracked), spanprof.span("outer"):
            case(n)

    return run


CASES: dict[str, Callable[[int], None]] = {
    "with span, no session": spans,
    "with span": in_session(spans, track_wall=True),
    "bytearray, no session": blocks,
    "bytearray, exact heap": in_session(blocks, track_heap=True),
}


def interpreter_figures(each: ThreadPoolExecutor) -> Figures:
    def run(case: str, n: int) -> int:
        return collected(sys.executable, str(Path(__file__)), "--worker", f"{case}:{n}")

    counts = {
        case: (each.submit(run, case, TIMES), each.submit(run, case, 0))
        for case in CASES
    }
    return {
        case: round((many.result() - none.result()) / TIMES)
        for case, (many, none) in counts.items()
    }


# --- what figures depend on ---------------------------------------------------------


@functools.cache
def core_key() -> str:
    compiler = subprocess.run(
        [*os.environ.get("CC", "cc").split(), "--version"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.splitlines()[0]
    return f"core, {platform.machine()}, {compiler}"


def interpreter_key() -> str:
    """Its version, and how it was built, in short."""
    options = [sysconfig.get_config_var(name) or "" for name in ("CONFIG_ARGS", "OPT")]
    # Where it was installed changes nothing.
    built = re.sub(r"\S*/\S*", "", " ".join([*options, platform.python_compiler()]))
    short = hashlib.sha256(built.encode()).hexdigest()[:8]
    return f"CPython {platform.python_version()} ({short}), {core_key()[6:]}"


def found_now(core_alone: bool) -> Kept:
    with ThreadPoolExecutor(os.cpu_count()) as each:
        found = {core_key(): core_figures(each)}
        if not core_alone:
            found[interpreter_key()] = interpreter_figures(each)
        return found


def show(kept: Kept, found: Kept) -> None:
    for key, figures in found.items():
        print(f"\n{key}\n{'':<34}{'now':>8}{'kept':>8}")
        for name, figure in figures.items():
            before = kept.get(key, {}).get(name)
            ratio = f"{before:>8}{figure / before:>8.3f}" if before else ""
            print(f"{name:<34}{figure:>8}{ratio}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="fail if figures rose")
    parser.add_argument("--keep", action="store_true", help="keep these figures")
    options = parser.parse_args()
    harness.heading("instructions")
    if not shutil.which("valgrind"):
        print("left out: there is no valgrind")
        return int(options.check or options.keep)
    kept: Kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    # An interpreter's start differs from one time to the next: for the reader alone.
    found = found_now(core_alone=options.check)
    show(kept, found)
    if options.keep:
        with tempfile.NamedTemporaryFile("w", dir=KEPT.parent, delete=False) as file:
            file.write(merged(kept, found))
        Path(file.name).chmod(0o644)
        Path(file.name).replace(KEPT)
    messages = verdict(kept, found) if options.check else []
    for message in messages:
        print(message)
    if messages:
        print("if that is meant to be so: python benchmarks/instructions.py --keep")
    return int(bool(messages))


if __name__ == "__main__":
    mode = harness.worker_mode()
    if mode is None:
        sys.exit(main())
    case, times = mode.split(":")
    CASES[case](int(times))
