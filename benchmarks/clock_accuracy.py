"""Whether CPU time is right, in short bursts and in sum.

The judge is the thread's own CPU clock (``time.thread_time_ns()``), which costs
a system call at each reading. Quiet and with more busy processes than cores.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from dataclasses import dataclass

import harness

import spanprof

BURST = 300_000
BURSTS = 400
PIECES = 20_000
TOLERANCE = 0.02
SUM_TOLERANCE = 0.001


@dataclass(frozen=True)
class Bracket:
    """What the thread's clock says of a span, read inside it and around it.

    The truth lies in between: the span's own beginning and end are somewhere
    between the two readings on each side.
    """

    inside: int
    around: int

    def error(self, measured: int) -> float:
        """By how much ``measured`` misses the bracket, relative to it."""
        if measured < self.inside:
            return measured / self.inside - 1
        return max(measured / self.around - 1, 0)


def burn(nanoseconds: int) -> None:
    """Use that much CPU time."""
    end = time.thread_time_ns() + nanoseconds
    while time.thread_time_ns() < end:
        for _ in range(200):
            pass


def burst_errors() -> list[float]:
    """How far off a span is for each of many bursts."""
    brackets = []
    # One node per burst: the number of the burst is a recorded label.
    with spanprof.start(
        track_cpu=True, record_labels=("burst",), max_label_values=BURSTS
    ):
        for number in range(BURSTS):
            span = spanprof.span("burst", burst=number)
            before = time.thread_time_ns()
            with span:
                begin = time.thread_time_ns()
                burn(BURST)
                end = time.thread_time_ns()
            after = time.thread_time_ns()
            brackets.append(Bracket(end - begin, after - before))
            if number % 10 == 0:
                time.sleep(0.001)
        profile = spanprof.snapshot()
    measured = {
        int(sample.labels["burst"]): sample.values["cpu"] for sample in profile.samples
    }
    return [bracket.error(measured[n]) for n, bracket in enumerate(brackets)]


def pieces() -> None:
    """Many small spans, nested, with a little work in each and some sleep."""
    for number in range(PIECES):
        with spanprof.span("outer"):
            sum(range(200))
            with spanprof.span("inner"):
                sum(range(400))
            if number % 1000 == 0:
                time.sleep(0.001)


def sum_errors(threads: int) -> list[float]:
    """How far off the sum of all self CPU times is, for each of several threads."""
    brackets: dict[str, Bracket] = {}

    def thread(number: str) -> None:
        before = time.thread_time_ns()
        with spanprof.span("thread", number=number):
            begin = time.thread_time_ns()
            pieces()
            end = time.thread_time_ns()
        after = time.thread_time_ns()
        brackets[number] = Bracket(end - begin, after - before)

    with spanprof.start(
        track_cpu=True,
        track_wall=True,
        track_allocations=True,
        record_labels=("number",),
    ):
        started = [
            threading.Thread(target=thread, args=(str(number),))
            for number in range(threads)
        ]
        for one in started:
            one.start()
        for one in started:
            one.join()
        profile = spanprof.snapshot()
    sums: Counter[str] = Counter()
    for sample in profile.samples:
        sums[sample.labels["number"]] += sample.values["cpu"]
    return [bracket.error(sums[number]) for number, bracket in brackets.items()]


def judge(where: str, load: contextlib.AbstractContextManager[object]) -> None:
    with load:
        bursts = [abs(error) for error in burst_errors()]
        sums = [error for threads in (1, 1, 4) for error in sum_errors(threads)]
    within = sum(error <= TOLERANCE for error in bursts) / len(bursts)
    harness.report(
        f"300 us bursts, {where}",
        f"99 % of them within {TOLERANCE:.0%} of the thread clock",
        f"{within:.1%} of {BURSTS} are; the worst is off by {max(bursts):.2%}",
        within >= 0.99,
    )
    worst = max(sums, key=abs)
    harness.report(
        f"sum of self CPU, {where}",
        f"within {SUM_TOLERANCE:.1%} of the thread clock",
        f"off by {worst:+.4%} at worst, of {len(sums)} threads",
        abs(worst) <= SUM_TOLERANCE,
    )


def main() -> None:
    harness.heading("clock accuracy")
    with spanprof.start(track_cpu=True):
        stats = spanprof.stats()
        print(f"wall clock: {stats.wall_clock}, CPU clock: {stats.cpu_clock}")
    judge("quiet", contextlib.nullcontext())
    judge("more hogs than cores", harness.Hogs())


if __name__ == "__main__":
    main()
