"""Callbacks for single spans: how many a second, and what they take from the program.

A reporter in Python overrides all of them. What it does in them is next to nothing, so
that what is measured is ours.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import harness

import spanprof

SPANS = 150_000
ROUNDS = 7
TRACKED = {"track_wall": True, "track_cpu": True, "track_allocations": True}


def work(n: int) -> None:
    """Spans with some work between them, so that none has to be dropped."""
    span = spanprof.span
    for _ in range(n):
        with span("x"):
            pass
        sum(range(100))


class Batches(spanprof.Reporter):
    """The same feed, without a call for each span."""

    seconds = 0.0
    calls = 0

    def spans(self, batch: Any) -> None:
        pass


class Callbacks(spanprof.Reporter):
    def __init__(self) -> None:
        self.calls = 0
        self.seconds = 0.0  # of CPU time on the reporter thread

    def init(self, config: Any) -> None:
        self.began = time.thread_time()

    def span_created(self, id: int, metadata: Any) -> None:
        self.calls += 1

    def span_cpu(self, id: int, cpu: Any) -> None:
        self.calls += 1

    def span_wall(self, id: int, wall: Any) -> None:
        self.calls += 1

    def span_allocations(self, id: int, allocations: Any) -> None:
        self.calls += 1

    def span_destroyed(self, id: int) -> None:
        self.calls += 1

    def flush(self) -> None:
        self.seconds = time.thread_time() - self.began


def run(reporter: Any) -> float:
    """Wall time until all is done and told."""
    began = time.perf_counter()
    with spanprof.start(**TRACKED, reporters=[reporter], max_pending_spans=10**6):
        work(SPANS)
    return time.perf_counter() - began


def main() -> None:
    harness.heading("callbacks for single spans")
    rates, losses = [], []
    dropped = spanprof.stats().spans_dropped
    for _ in range(ROUNDS):
        callbacks = Callbacks()
        without = run(Batches())
        with_them = run(callbacks)
        rates.append(callbacks.calls / callbacks.seconds)
        losses.append((with_them - without) / callbacks.seconds)
    assert spanprof.stats().spans_dropped == dropped
    harness.report(
        "callback rate",
        "at least 1 million callbacks a second on the reporter thread",
        f"{median(rates) / 1e6:.2f} million",
        median(rates) >= 1e6,
    )
    harness.report(
        "callback loss",
        "the program loses no more than the time that the callbacks take",
        f"{median(losses):.2f} of it",
        median(losses) <= 1.0,
    )


if __name__ == "__main__":
    main()
