"""What a span costs that is sampled out, against one without any session.

Both are measured in the same rounds; the loop is taken off. A stack counts as one, so
that what is compared is what the program pays for each root.
"""

from __future__ import annotations

import contextlib
from statistics import median

import harness
from span_cost import call, decorated_call, label, nested, span

import spanprof

SLICE = 20_000
ROUNDS = 13
GENERATIONS = 5
"""How often all processes are made anew: where their memory happens to lie makes a
difference of some nanoseconds."""

LIMIT = 1.10


def two_deep(n: int) -> None:
    for _ in range(n):
        with spanprof.span("a"), spanprof.span("b"):
            pass


def three_deep(n: int) -> None:
    for _ in range(n):
        with spanprof.span("a"), spanprof.span("b"), spanprof.span("c"):
            pass


def five_deep(n: int) -> None:
    for _ in range(n):
        with (
            spanprof.span("a"),
            spanprof.span("b"),
            spanprof.span("c"),
            spanprof.span("d"),
            spanprof.span("e"),
        ):
            pass


def inside(n: int) -> None:
    with spanprof.span("root"):
        span(n)


STACKS = {
    "a root": span,
    "two deep": two_deep,
    "three deep": three_deep,
    "four deep": nested,
    "five deep": five_deep,
    "below a root": inside,
}
SPANS = {**STACKS, "label": label, "call": call, "decorated": decorated_call}
MODES = ("no session", "ratio 0", "ratio 0.1", "should_sample")


class Never(spanprof.HeadSampler):
    def should_sample(self, metadata: object) -> bool:
        return False


def work(mode: str) -> None:
    samplers = {
        "ratio 0": spanprof.ProbabilisticSampler(0),
        "ratio 0.1": spanprof.ProbabilisticSampler(0.1, seed=1),
        "should_sample": Never(),
    }
    if mode == "no session":
        harness.serve(SPANS)
        return
    with spanprof.start(track_all=True, sampler=samplers[mode]):
        harness.serve(SPANS)


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
    harness.heading("sampler cost")
    results: harness.Rounds = {}
    for _ in range(GENERATIONS):
        for name, values in measure().items():
            results.setdefault(name, []).extend(values)
    print(f"{'':<36}{'median ns':>10}{'of no session':>15}")
    for name, values in results.items():
        base = f"no session: {name.partition(': ')[2]}"
        ratio = harness.ratio(results, name, base)
        print(f"{name:<36}{median(values):>10.1f}{ratio:>15.2f}")
    for case in STACKS:
        out, base = f"ratio 0: {case}", f"no session: {case}"
        measured = harness.ratio(results, out, base)
        harness.report(
            f"sampled out, {case}",
            f"at most {LIMIT:.2f} of no session",
            f"{measured:.2f} ({median(results[out]):.0f} ns)",
            measured <= LIMIT,
        )


if __name__ == "__main__":
    mode = harness.worker_mode()
    if mode is None:
        main()
    else:
        work(mode)
