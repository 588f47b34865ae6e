"""What the benchmarks share: interleaved rounds, medians, targets.

The machine may be busy with other things. So nothing is compared across runs:
what is compared is measured in short slices that take turns, and a ratio is the
median of the rounds' ratios, not the ratio of two medians.
"""

from __future__ import annotations

import functools
import gc
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

Case = Callable[[int], object]
"""Does its work the given number of times."""

Cases = Mapping[str, Case]
Rounds = dict[str, list[float]]
"""Nanoseconds per piece of work, by case, in the order of the rounds."""


def empty_loop(n: int) -> None:
    """The cost of the loop itself, taken off every case."""
    for _ in range(n):
        pass


class Worker:
    """A child process that times its cases when asked.

    Cases that change the process for the others (a session, allocation hooks,
    an environment variable) get a process of their own, and still take turns.
    """

    def __init__(self, mode: str, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, sys.argv[0], "--worker", mode],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def time(self, case: str, n: int) -> float:
        """Nanoseconds for one of ``n`` pieces of work, the loop taken off."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        print(case, n, file=stdin, flush=True)
        answer = stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that times {case!r} has died")
        return float(answer)


def worker_mode() -> str | None:
    """What this process is to be a worker for; None in the process in charge."""
    return sys.argv[2] if sys.argv[1:2] == ["--worker"] else None


def serve(cases: Cases, *, collect: bool = False) -> None:
    """Time the cases named on standard input, until it ends.

    ``collect`` leaves the garbage collector on, for cases that make many objects.
    """
    if not collect:
        gc.disable()
    clock = time.perf_counter_ns
    for line in sys.stdin:
        case, count = line.rsplit(maxsplit=1)
        work, n = cases[case], int(count)
        work(n // 10 + 1)
        start = clock()
        work(n)
        middle = clock()
        empty_loop(n)
        print((2 * middle - start - clock()) / n, flush=True)


def take_turns(timed: Mapping[str, tuple[Worker, str]], n: int, rounds: int) -> Rounds:
    """Time each ``label: (worker, case)`` once a round."""
    results: Rounds = {label: [] for label in timed}
    order = list(timed)
    for turn in range(rounds):
        # The first of a round does not stay the first.
        start = turn % len(order)
        for label in order[start:] + order[:start]:
            worker, case = timed[label]
            results[label].append(worker.time(case, n))
    return results


def ratio(results: Rounds, label: str, reference: str) -> float:
    """Median of the rounds' ratios."""
    pairs = zip(results[label], results[reference], strict=True)
    return median(value / base for value, base in pairs)


def report(name: str, what: str, measured: str, ok: bool) -> None:
    """Print one target; ``run_all.py`` collects these lines."""
    verdict = "ok" if ok else "MISSED"
    print(f"target {name}: {what} / measured {measured} / {verdict}", flush=True)


def heading(text: str) -> None:
    load = os.getloadavg()[0]
    where = f"Python {platform.python_version()}, {platform.machine()}, load {load:.1f}"
    print(f"{text} ({where})", flush=True)


def resident_bytes() -> int:
    """Resident set size of this process."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


class Hogs:
    """Processes that use all the CPU they can get, one more than there are cores."""

    def __enter__(self) -> Self:
        count = (os.cpu_count() or 1) + 1
        hog = [sys.executable, "-S", "-c", "while True: pass"]
        self._processes = [subprocess.Popen(hog) for _ in range(count)]
        time.sleep(0.2)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()


@functools.cache
def callsite_functions(count: int) -> tuple[Callable[[Callable[[], None]], None], ...]:
    """Functions that each open a span of their own around a call."""
    namespace: dict[str, Callable[[Callable[[], None]], None]] = {}
    source = "import spanprof\n" + "".join(
        f"def site{i}(body):\n    with spanprof.span('site{i}'):\n        body()\n"
        for i in range(count)
    )
    exec(compile(source, "<callsites>", "exec"), namespace)
    return tuple(namespace[f"site{i}"] for i in range(count))


def grow_tree(depth: int, width: int = 10) -> int:
    """Visit every path of ``width`` callsites ``depth`` levels deep.

    Return how many nodes that makes.
    """
    sites = callsite_functions(width)

    def grow(left: int) -> None:
        if left:
            for site in sites:
                site(functools.partial(grow, left - 1))

    grow(depth)
    return sum(width**level for level in range(1, depth + 1))
