"""Instructions per span, counted by valgrind. Not noisy, but slow: half a minute.

Valgrind knows no restartable sequences: the CPU clock falls back to its system
call here, which counts as a few instructions. What is shown is the difference
between many spans and none.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import harness

import spanprof

SPANS = 20_000


def loop(n: int) -> None:
    for _ in range(n):
        pass


def span(n: int) -> None:
    for _ in range(n):
        with spanprof.span("x"):
            pass


def tracked_span(n: int) -> None:
    with (
        spanprof.start(track_wall=True, track_cpu=True, track_allocations=True),
        spanprof.span("outer"),
    ):
        span(n)


CASES = {"loop": loop, "span": span, "tracked span": tracked_span}


def count(case: str, n: int) -> int:
    """Instructions that a whole interpreter executes to run a case."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    command += [sys.executable, sys.argv[0], "--worker", f"{case}:{n}"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", result.stderr)
    assert found is not None, result.stderr
    return int(found[1])


def main() -> None:
    harness.heading("instructions")
    if not shutil.which("valgrind"):
        print("left out: there is no valgrind")
        return
    empty = count("loop", SPANS) - count("loop", 0)
    for name in ("span", "tracked span"):
        instructions = count(name, SPANS) - count(name, 0) - empty
        print(f"{name:<16}{instructions / SPANS:>8.0f} instructions")


if __name__ == "__main__":
    mode = harness.worker_mode()
    if mode is None:
        main()
    else:
        case, n = mode.split(":")
        CASES[case](int(n))
