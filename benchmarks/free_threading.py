"""Two threads that open spans on two cores, against one alone.

Needs a free-threaded interpreter, and two cores that are free at least now and then:
the rounds are short and take turns, and the best of them are compared. A round of two
threads is over when both are. What the machine and the interpreter make of two threads
that share nothing is shown as well; the target is for spans.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator
from statistics import median

import harness

import spanprof
from spanprof import span

SLICE = 10_000
ROUNDS = 150
LIMIT = 1.15

Work = Callable[[int], None]


def nothing_shared(n: int) -> None:
    for i in range(n):
        [i, i + 1, (i, i)]


def spans(n: int) -> None:
    for _ in range(n):
        with span("span"):
            pass


def nested(n: int) -> None:
    for _ in range(n):
        with span("outer"), span("inner"):
            pass


@span("decorated")
def decorated() -> None:
    pass


def decorated_calls(n: int) -> None:
    for _ in range(n):
        decorated()


def unwatched() -> Generator[None, None, None]:
    while True:
        yield


def watched() -> Generator[None, None, None]:
    with span("generator"):
        while True:
            yield


def generator_steps(n: int) -> None:
    steps = watched()
    for _ in range(n):
        next(steps)


def steps_without_span(n: int) -> None:
    steps = unwatched()
    for _ in range(n):
        next(steps)


SHARED_NOTHING = {"lists": nothing_shared, "generator step": steps_without_span}
WORK: dict[str, Work] = {
    **SHARED_NOTHING,
    "span": spans,
    "two deep": nested,
    "decorated": decorated_calls,
    "generator step in a span": generator_steps,
}


class Pair:
    """Two threads that begin a piece of work at the same moment."""

    def __init__(self) -> None:
        self.work: Work | None = None
        self.count = 0  # threads in the round
        self.turn = 0
        self.times: list[list[int]] = [[0, 0], [0, 0]]
        self.done = [0, 0]
        for number in range(2):
            threading.Thread(target=self.serve, args=(number,), daemon=True).start()

    def serve(self, number: int) -> None:
        turn = 0
        while True:
            while self.turn == turn:  # busy: a wake-up takes longer than a slice
                time.sleep(0) if number >= self.count else None
            turn = self.turn
            work = self.work
            if work is None:
                return
            if number < self.count:
                began = time.perf_counter_ns()
                work(SLICE)
                self.times[number] = [began, time.perf_counter_ns()]
            self.done[number] = turn

    def measure(self, work: Work, count: int) -> float:
        """Nanoseconds for each turn of the loop, until the last thread is through."""
        self.work, self.count = work, count
        self.turn += 1
        while self.done != [self.turn, self.turn]:
            time.sleep(0.0005)
        times = self.times[:count]
        return (max(t[1] for t in times) - min(t[0] for t in times)) / SLICE

    def end(self) -> None:
        self.work = None
        self.turn += 1


def compare(name: str, pair: Pair, session: str) -> None:
    work = WORK[name]
    for count in (1, 2):
        pair.measure(work, count)
    one: list[float] = []
    two: list[float] = []
    for _ in range(ROUNDS):
        one.append(pair.measure(work, 1))
        two.append(pair.measure(work, 2))
    ratio = min(two) / min(one)
    typical = median(b / a for a, b in zip(one, two, strict=True))
    label = f"{name}, {session}"
    print(
        f"{label:40} one {min(one):6.1f} ns, two {min(two):6.1f} ns, "
        f"best {ratio:.2f}, median {typical:.2f}",
        flush=True,
    )
    if name not in SHARED_NOTHING:
        measured = f"{ratio:.2f} (limit {LIMIT})"
        harness.report(f"two threads: {label}", "of one", measured, ratio <= LIMIT)


def main() -> None:
    harness.heading("two threads, two cores")
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        print("not run: this interpreter has a GIL")
        return
    pair = Pair()
    for name in WORK:
        compare(name, pair, "no session")
    with spanprof.start(track_wall=True, track_cpu=True):
        for name in WORK:
            compare(name, pair, "wall, CPU")
    with spanprof.start(track_all=True):
        compare("span", pair, "all")
    pair.end()


if __name__ == "__main__":
    main()
