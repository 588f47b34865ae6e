"""What a session keeps in memory: by node, and by finished span.

Each figure is taken in a process of its own, as the growth of its resident set.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import harness

import spanprof

SPANS = 10_000_000
DEPTH = 5
STEADY = 256 * 1024
"""Growth that is taken for none: a few pages the interpreter may touch."""


class Discard(spanprof.Reporter):
    """Takes every profile and keeps nothing."""

    def profile(self, profile: spanprof.Profile) -> None:
        pass


def node_bytes(reporters: list[spanprof.Reporter]) -> float:
    harness.grow_tree(DEPTH)
    with spanprof.start(
        track_wall=True,
        track_cpu=True,
        track_allocations=True,
        max_nodes=1_000_000,
        report_interval=0,
        reporters=reporters,
    ):
        harness.grow_tree(1)
        spanprof.flush()
        before = harness.resident_bytes()
        nodes = harness.grow_tree(DEPTH)
        spanprof.flush()
        return (harness.resident_bytes() - before) / nodes


def repeated(reporters: list[spanprof.Reporter]) -> int:
    def spans(n: int) -> None:
        for _ in range(n):
            with spanprof.span("x"):
                pass

    with spanprof.start(
        track_wall=True,
        track_cpu=True,
        track_allocations=True,
        report_interval=0.1,
        reporters=reporters,
    ):
        spans(100_000)
        spanprof.flush()
        before = harness.resident_bytes()
        spans(SPANS)
        return harness.resident_bytes() - before


FIGURES: dict[str, Callable[[], float]] = {
    "node": lambda: node_bytes([]),
    "node, reported": lambda: node_bytes([Discard()]),
    "spans": lambda: repeated([]),
    "spans, reporter": lambda: repeated([Discard()]),
}


def measure(figure: str) -> float:
    command = [sys.executable, sys.argv[0], "--worker", figure]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


def main() -> None:
    harness.heading("memory")
    for name, figure in (("a node", "node"), ("a node, reported", "node, reported")):
        size = measure(figure)
        harness.report(name, "at most 200 bytes", f"{size:.0f} bytes", size <= 200)
    for name, figure in (
        ("no reporter", "spans"),
        ("a reporter every 0.1 s", "spans, reporter"),
    ):
        growth = measure(figure)
        harness.report(
            f"{SPANS:,} spans of one callsite, {name}",
            "RSS stays where it was",
            f"{growth / 1024:+,.0f} KiB, {growth / SPANS:+.4f} bytes a span",
            growth <= STEADY,
        )


if __name__ == "__main__":
    mode = harness.worker_mode()
    if mode is None:
        main()
    else:
        print(FIGURES[mode]())
