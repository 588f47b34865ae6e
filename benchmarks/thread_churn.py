"""10,000 threads one after the other, each with some spans: what they leave behind."""

from __future__ import annotations

import threading

import harness

import spanprof

THREADS = 10_000
FIRST = 1_000
"""After so many, what there is to be made is made."""

SPANS = 10
LIMIT = 1 << 20  # bytes


def work() -> None:
    for _ in range(SPANS):
        with spanprof.span("outer"), spanprof.span("inner"):
            pass


def run_threads(count: int) -> None:
    for _ in range(count):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()


def main() -> None:
    harness.heading("thread churn")
    with spanprof.start(track_all=True) as session:
        run_threads(FIRST)
        before = harness.resident_bytes()
        run_threads(THREADS - FIRST)
        grown = harness.resident_bytes() - before
    calls = sum(sample.values["calls"] for sample in session.result.samples)
    harness.report(
        f"memory after {THREADS:,} threads",
        f"at most {LIMIT >> 10} KiB more than after {FIRST:,}",
        f"{grown >> 10} KiB",
        grown <= LIMIT,
    )
    harness.report(
        "spans of threads that have ended",
        f"all {2 * SPANS * THREADS:,} in the profile",
        f"{calls:,}",
        calls == 2 * SPANS * THREADS,
    )


if __name__ == "__main__":
    main()
