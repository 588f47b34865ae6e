"""What the feed of single spans costs the program, and how many it takes."""

from __future__ import annotations

import sys
import time
from typing import Any

import harness

import spanprof

N = 50_000
ROUNDS = 15
TRACKED = {"track_wall": True, "track_cpu": True, "track_allocations": True}


def by_hand(n: int) -> None:
    clock = time.perf_counter_ns
    total = 0
    for _ in range(n):
        began = clock()
        total += clock() - began


def with_span(n: int) -> None:
    span = spanprof.span
    for _ in range(n):
        with span("x"):
            pass


class Count(spanprof.Reporter):
    def __init__(self) -> None:
        self.spans_seen = 0

    def spans(self, batch: Any) -> None:
        self.spans_seen += len(batch)


CASES: dict[str, harness.Case] = {"by hand": by_hand, "span": with_span}


def main() -> None:
    harness.heading("the feed of single spans")
    with (
        harness.Worker("plain") as plain,
        harness.Worker("profile") as profile,
        harness.Worker("feed") as feed,
    ):
        timed = {
            "by hand": (plain, "by hand"),
            "profile alone": (profile, "span"),
            "profile and feed": (feed, "span"),
        }
        results = harness.take_turns(timed, N, ROUNDS)
    for label in timed:
        nanos = harness.median(results[label])
        ratio = harness.ratio(results, label, "by hand")
        print(f"{label:20} {nanos:8.1f} ns  {ratio:6.2f}")
    measured = harness.ratio(results, "profile and feed", "by hand")
    harness.report(
        "feed cost",
        "a span with the feed on: at most 0.75 of timing by hand",
        f"{measured:.2f}",
        measured <= 0.75,
    )
    # How many come through, and how many do not, in a loop that does nothing else.
    count = Count()
    dropped = spanprof.stats().spans_dropped
    began = time.perf_counter()
    with spanprof.start(**TRACKED, reporters=[count]):
        with_span(2_000_000)
    took = time.perf_counter() - began
    lost = spanprof.stats().spans_dropped - dropped
    print(
        f"{2_000_000 / took / 1e6:.1f} million spans a second by one thread: "
        f"{count.spans_seen} told, {lost} dropped"
    )


if __name__ == "__main__":
    mode = harness.worker_mode()
    if mode is None:
        main()
    elif mode == "plain":
        harness.serve(CASES)
    else:
        reporters = [Count()] if mode == "feed" else []
        with spanprof.start(**TRACKED, reporters=reporters):
            harness.serve(CASES)
            sys.stdout.flush()
