"""What tracking memory takes in memory: on top of the heap's own growth.

Each way of tracking has a process of its own, in which the same objects are made inside
a span and kept. Beside the targets: tracemalloc's figures, and memray's if it is there.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from statistics import median

import harness
import heap_cost

ROUNDS = 3


def small_objects() -> object:
    """Records of tuples, strings, floats and dicts."""
    return [
        (i, str(i), i * 1.5, {"a": i, "b": None, "name": f"n{i}"})
        for i in range(200_000)
    ]


def arrays() -> object:
    """Buffers from 64 KiB to 4 MiB, every byte in use."""
    return [b"x" * (64 << 10 << i % 7) for i in range(140)]


WORK = {"small objects": small_objects, "arrays": arrays}

TARGETS = {
    ("exact", "small objects"): 60,
    ("exact", "arrays"): 1,
}


def grown(mode: str, case: str) -> int:
    """Bytes that the process has grown by, in a process of its own."""
    result = subprocess.run(
        [sys.executable, __file__, "--worker", mode, case],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        # pymalloc's arenas are what is measured: malloc would keep some of its own.
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    return int(result.stdout)


def worker(mode: str, case: str) -> None:
    with heap_cost.tracking(mode):
        before = harness.resident_bytes()
        kept = WORK[case]()
        after = harness.resident_bytes()
        del kept
    print(after - before)


def main() -> None:
    harness.heading("memory that tracking takes, on top of the heap's growth")
    modes = ["exact", "sampled", "counting", "tracemalloc"]
    if importlib.util.find_spec("memray"):
        modes.append("memray")
    measured: dict[tuple[str, str], float] = {}
    print(f"{'':14}{'heap':>12}" + "".join(f"{mode:>13}" for mode in modes))
    for case in WORK:
        plain = median(grown("untracked", case) for _ in range(ROUNDS))
        line = f"{case:14}{plain / 2**20:8.1f} MiB"
        for mode in modes:
            mine = median(grown(mode, case) for _ in range(ROUNDS))
            measured[mode, case] = 100 * (mine - plain) / plain
            line += f"{measured[mode, case]:11.1f} %"
        print(line, flush=True)
    for (mode, case), most in TARGETS.items():
        harness.report(
            f"heap memory, {case}",
            f"{mode} tracking: at most {most} % on top",
            f"{measured[mode, case]:.1f} %",
            measured[mode, case] <= most,
        )


if __name__ == "__main__":
    if harness.worker_mode() is None:
        main()
    else:
        worker(*sys.argv[2:4])
