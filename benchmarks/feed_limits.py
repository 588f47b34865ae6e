"""What the feed of single spans holds, drains and leaves behind at its limits.

    python feed_limits.py [SECONDS]

SECONDS is how long two threads make spans against a reporter that is stuck.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from statistics import median
from typing import Any

import harness

import spanprof

TRACKED = {"track_wall": True, "track_cpu": True, "track_allocations": True}
MIB = 1 << 20


class Nothing(spanprof.Reporter):
    def spans(self, batch: Any) -> None:
        pass


class Told(spanprof.Reporter):
    """Has to be told of every span."""

    def span_wall(self, id: int, wall: Any) -> None:
        pass


def stop_when_idle() -> None:
    took = []
    for _ in range(50):
        session = spanprof.start(track_all=True, reporters=[Nothing(), Told()])
        time.sleep(0.01)
        began = time.perf_counter()
        session.stop()
        took.append(time.perf_counter() - began)
    slowest = max(took) * 1e3
    harness.report(
        "idle stop",
        "a stop when idle: under 20 ms",
        f"{median(took) * 1e3:.2f} ms, at most {slowest:.2f}",
        slowest < 20,
    )


class Stuck(spanprof.Reporter):
    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.seen = 0
        self.took = 0.0

    def spans(self, batch: Any) -> None:
        self.let_go.wait()
        self.seen += len(batch)

    def flush(self) -> None:
        self.took = time.thread_time()


def stuck_reporter(seconds: float) -> None:
    pending = spanprof.ProfileConfig().max_pending_spans
    stuck = Stuck()
    made = [0, 0]
    over = threading.Event()

    def produce(number: int) -> None:
        span, count = spanprof.span, 0
        while not over.is_set():
            for _ in range(1000):
                with span("x"):
                    pass
            count += 1000
        made[number] = count

    dropped = spanprof.stats().spans_dropped
    before = harness.resident_bytes()
    session = spanprof.start(**TRACKED, reporters=[stuck])
    threads = [threading.Thread(target=produce, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 2)
    halfway = harness.resident_bytes()
    time.sleep(seconds / 2)
    grown = harness.resident_bytes() - before
    later = harness.resident_bytes() - halfway
    over.set()
    for thread in threads:
        thread.join()
    stuck.let_go.set()
    session.stop(timeout=60)
    dropped = spanprof.stats().spans_dropped - dropped
    # Two rings, and a batch on its way.
    limit = 2 * pending * 96 + 65536 * 96 + 8 * MIB
    harness.report(
        "stuck reporter",
        f"two producers for {seconds:.0f} s: memory bounded by max_pending_spans",
        f"{grown / MIB:.1f} MiB of {limit / MIB:.1f}, {later / MIB:.1f} in the second "
        "half",
        grown <= limit,
    )
    harness.report(
        "exact drops",
        "every span is told of or counted as dropped",
        f"{sum(made)} made, {stuck.seen} told, {dropped} dropped",
        sum(made) == stuck.seen + dropped,
    )


def drain() -> None:
    """What waits is taken by a core of its own: per second of that core's time."""
    n = 190_000
    rates = []
    span = spanprof.span
    for _ in range(7):
        stuck = Stuck()
        with spanprof.start(**TRACKED, reporters=[stuck]):
            spanprof.flush()
            before = stuck.took
            for _ in range(n):
                with span("x"):
                    pass
            stuck.let_go.set()
            spanprof.flush()
            rates.append(stuck.seen / (stuck.took - before))
            assert stuck.seen == n
    harness.report(
        "drain rate",
        "5 million spans a second can be drained on one core",
        f"{median(rates) / 1e6:.1f} million",
        median(rates) >= 5e6,
    )


def open_spans() -> None:
    """What an open span takes beside its Python object, told of by callbacks."""
    n = 200_000
    gc.collect()
    sizes: dict[bool, float] = {}
    for watched in (False, True):
        reporters = [Told()] if watched else []
        spans = [spanprof.span("x") for _ in range(n)]
        with spanprof.start(**TRACKED, reporters=reporters):
            before = harness.resident_bytes()
            for span in spans:
                span.open()
            spanprof.flush()
            sizes[watched] = (harness.resident_bytes() - before) / n
            for span in spans:
                span.close()
        del spans, span
        gc.collect()
    harness.report(
        "open span",
        "an open span holds at most 160 bytes beside its Python object",
        f"{sizes[True]:.0f} bytes ({sizes[False]:.0f} without reporters)",
        sizes[True] <= 160,
    )


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10
    harness.heading("the limits of the feed of single spans")
    open_spans()
    stop_when_idle()
    drain()
    stuck_reporter(seconds)


if __name__ == "__main__":
    main()
