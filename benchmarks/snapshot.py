"""A snapshot of 100,000 nodes while four threads open spans.

Threads that share the GIL, or two cores, wait for one another all the time. So
their longest span and their throughput are compared with turns in which the
main thread does something else for as long, also without the GIL: it hashes.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import harness

import spanprof

DEPTH = 5
THREADS = 4
TURN = 0.5
ROUNDS = 7


@dataclass
class Busy:
    """A thread that opens nested spans all the time."""

    stop: threading.Event
    spans: int = 0
    longest: int = 0
    """Longest time that ``DEPTH`` nested spans took since it was last set to 0."""

    def run(self) -> None:
        clock = time.perf_counter_ns
        sites = harness.callsite_functions(10)
        depth = 0

        def descend() -> None:
            nonlocal depth
            if depth < DEPTH - 1:
                depth += 1
                sites[depth](descend)
                depth -= 1

        while not self.stop.is_set():
            for site in sites:
                start = clock()
                site(descend)
                self.longest = max(self.longest, clock() - start)
            self.spans += DEPTH * len(sites)


@dataclass
class Turn:
    durations: list[float]
    """Milliseconds that each call took."""
    rate: float
    """Spans a second, of all threads."""
    longest: float
    """Milliseconds of the longest span."""


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def take_turn(threads: list[Busy], work: Callable[[], object]) -> Turn:
    """Do ``work`` again and again beside the threads."""
    for thread in threads:
        thread.longest = 0
    spans = -sum(thread.spans for thread in threads)
    start = time.perf_counter()
    durations = []
    while (elapsed := time.perf_counter() - start) < TURN:
        durations.append(milliseconds(work))
        time.sleep(0.005)
    spans += sum(thread.spans for thread in threads)
    longest = max(thread.longest for thread in threads) / 1e6
    return Turn(durations, spans / elapsed, longest)


def hashing(duration: float) -> Callable[[], object]:
    """Return something that takes about ``duration`` ms and not the GIL."""
    megabyte = bytes(1 << 20)
    one = median(milliseconds(lambda: hashlib.sha256(megabyte)) for _ in range(20))
    content = bytes(int(len(megabyte) * duration / one) + 1)
    return lambda: hashlib.sha256(content)


def main() -> None:
    harness.heading("snapshot")
    with spanprof.start(
        track_wall=True, track_cpu=True, track_allocations=True, max_nodes=1_000_000
    ):
        nodes = harness.grow_tree(DEPTH)
        alone = median(milliseconds(spanprof.snapshot) for _ in range(9))
        something_else = hashing(alone)

        stop = threading.Event()
        busy = [Busy(stop) for _ in range(THREADS)]
        threads = [threading.Thread(target=one.run) for one in busy]
        for thread in threads:
            thread.start()
        others, snapshots = [], []
        for _ in range(ROUNDS):
            others.append(take_turn(busy, something_else))
            snapshots.append(take_turn(busy, spanprof.snapshot))
        stop.set()
        for thread in threads:
            thread.join()

    taken = [duration for turn in snapshots for duration in turn.durations]
    compared = [duration for turn in others for duration in turn.durations]
    print(
        f"{nodes:,} nodes: {alone:.1f} ms alone; beside {THREADS} threads "
        f"{median(taken):.1f} ms (hashing as long: {median(compared):.1f} ms)"
    )
    harness.report(
        "snapshot",
        f"under 50 ms beside {THREADS} threads",
        f"median {median(taken):.1f} ms, worst {max(taken):.1f} ms of {len(taken)}",
        median(taken) < 50,
    )
    longest = median(turn.longest for turn in snapshots)
    reference = median(turn.longest for turn in others)
    throughput = median(
        turn.rate / other.rate for turn, other in zip(snapshots, others, strict=True)
    )
    harness.report(
        "threads during snapshots",
        "no slower than while the main thread hashes",
        f"longest span {longest:.1f} against {reference:.1f} ms, "
        f"throughput {throughput:.2f} times",
        longest <= 1.5 * reference and throughput >= 0.9,
    )


if __name__ == "__main__":
    main()
