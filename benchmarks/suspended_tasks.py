"""100,000 tasks that wait inside a span at once: what each takes, and what it costs to
resume one of them.

The memory is what the process has more than with the same tasks without the span; and
than with the same tasks that hold a span object which they do not enter, which leaves
what is spanprof's own.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Generator
from statistics import median
from typing import Any

import harness

import spanprof

TASKS = 100_000
COUNTS = (1, 1_000, 10_000, TASKS)
LIMIT = 250  # bytes
RESUMES = 20_000
ROUNDS = 15
INDEPENDENT = 1.15

Wait = Callable[[asyncio.Future[None]], Coroutine[Any, Any, None]]


async def plain(future: asyncio.Future[None]) -> None:
    await future


async def holding(future: asyncio.Future[None]) -> None:
    span = spanprof.span("waiting")
    await future
    del span


async def waiting(future: asyncio.Future[None]) -> None:
    with spanprof.span("waiting"):
        await future


KINDS: dict[str, Wait] = {"plain": plain, "holding": holding, "waiting": waiting}


async def bytes_each(wait: Wait) -> float:
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(TASKS)]
    async with asyncio.TaskGroup() as group:
        gc.collect()
        before = harness.resident_bytes()
        for future in futures:
            group.create_task(wait(future))
        await asyncio.sleep(0)
        gc.collect()
        after = harness.resident_bytes()
        for future in futures:
            future.set_result(None)
    return (after - before) / TASKS


def memory_of(kind: str) -> float:
    command = [sys.executable, sys.argv[0], "--worker", kind]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


class Pause:
    def __await__(self) -> Generator[None, None, None]:
        yield


async def in_a_span() -> None:
    with spanprof.span("waiting"):
        while True:
            await Pause()


def resume_times() -> dict[int, float]:
    """Nanoseconds to resume one coroutine, with that many suspended in all."""
    with spanprof.start(track_wall=True, track_cpu=True):
        first = in_a_span()
        first.send(None)
        coroutines = [first]
        times: dict[int, float] = {}
        for count in COUNTS:
            while len(coroutines) < count:
                coroutines.append(in_a_span())
                coroutines[-1].send(None)
            times[count] = median(time_of(first.send) for _ in range(ROUNDS))
        for coroutine in coroutines:
            coroutine.close()
    return times


def time_of(send: Callable[[None], object]) -> float:
    begun = time.perf_counter_ns()
    for _ in range(RESUMES):
        send(None)
    return (time.perf_counter_ns() - begun) / RESUMES


def main() -> None:
    harness.heading("suspended tasks")
    measured = {kind: median(memory_of(kind) for _ in range(3)) for kind in KINDS}
    for kind, size in measured.items():
        print(f"{kind:<10}{size:>8.0f} bytes a task")
    own = measured["waiting"] - measured["holding"]
    whole = measured["waiting"] - measured["plain"]
    harness.report(
        "a task suspended in a span",
        f"at most {LIMIT} bytes beside its own objects",
        f"{own:.0f} ({whole:.0f} with the span object)",
        own <= LIMIT,
    )
    times = resume_times()
    for count, nanos in times.items():
        print(f"resume and suspend, {count:>7,} suspended{nanos:>8.1f} ns")
    ratio = times[TASKS] / times[1]
    harness.report(
        "cost of a resume",
        f"with {TASKS:,} suspended at most {INDEPENDENT} of that with one",
        f"{ratio:.2f}",
        ratio <= INDEPENDENT,
    )


if __name__ == "__main__":
    mode = harness.worker_mode()
    if mode is None:
        main()
    else:
        with spanprof.start(track_wall=True, track_cpu=True):
            print(asyncio.run(bytes_each(KINDS[mode])))
