"""What it costs to tell outside profilers of every span, and what it costs not to.

The same spans with and without ``publish_thread_context``; processes take turns.
"""

from __future__ import annotations

import contextlib

import harness
from span_cost import nested, span

import spanprof

SLICE = 20_000
ROUNDS = 13
GENERATIONS = 5
"""How often all processes are made anew: where their memory happens to lie makes a
difference of some nanoseconds."""

TRACKED = {"track_wall": True, "track_cpu": True, "track_allocations": True}
LIMIT = 1.15


def inside(n: int) -> None:
    with spanprof.span("outer"):
        span(n)


SPANS = {"a root": span, "inside another": inside, "four deep": nested}
MODES = ("off", "on")


def measure() -> harness.Rounds:
    with contextlib.ExitStack() as stack:
        workers = {mode: stack.enter_context(harness.Worker(mode)) for mode in MODES}
        timed = {
            f"{mode}: {case}": (worker, case)
            for mode, worker in workers.items()
            for case in SPANS
        }
        return harness.take_turns(timed, SLICE, ROUNDS)


def main() -> None:
    harness.heading("publication to outside profilers")
    results: harness.Rounds = {}
    for _ in range(GENERATIONS):
        for name, values in measure().items():
            results.setdefault(name, []).extend(values)
    print(f"{'':<20}{'off, ns':>10}{'on, ns':>10}{'on/off':>10}")
    for case in SPANS:
        off, on = (harness.median(results[f"{mode}: {case}"]) for mode in MODES)
        ratio = harness.ratio(results, f"on: {case}", f"off: {case}")
        print(f"{case:<20}{off:>10.1f}{on:>10.1f}{ratio:>10.2f}")
        harness.report(
            f"publication, {case}",
            f"on: at most {LIMIT:.2f} of off",
            f"{ratio:.2f} ({on - off:.1f} ns more)",
            ratio <= LIMIT,
        )


if __name__ == "__main__":
    mode = harness.worker_mode()
    if mode is None:
        main()
    else:
        with spanprof.start(**TRACKED, publish_thread_context=mode == "on"):
            harness.serve(SPANS)
