"""Whether CPU time is right, in short bursts and in sum.

The judge is the thread's own CPU clock (``time.thread_time_ns()``), which costs
a system call at each reading. Quiet and with more busy processes than cores.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from statistics import median

import harness
import spanprof

BURST = 300_000
BURSTS = 400
PIECES = 20_000
TOLERANCE = 0.02
SUM_TOLERANCE = 0.001


def burn(nanoseconds: int) -> int:
    """Use that much CPU time; return how much it was by the thread's clock."""
    start = time.thread_time_ns()
    while (used := time.thread_time_ns() - start) < nanoseconds:
        for _ in range(200):
            pass
    return used


def burst_errors() -> list[float]:
    """Relative error of what a span says about each of many bursts."""
    used = []
    # One node per burst: the number of the burst is a recorded label.
    with spanprof.start(
        track_cpu=True, record_labels=("burst",), max_label_values=BURSTS
    ):
        for number in range(BURSTS):
            with spanprof.span("burst", burst=number):
                used.append(burn(BURST))
            if number % 10 == 0:
                time.sleep(0.001)
        profile = spanprof.snapshot()
    measured = {
        int(sample.labels["burst"]): sample.values["cpu"] for sample in profile.samples
    }
    return [measured[number] / true - 1 for number, true in enumerate(used)]


def pieces() -> None:
    """Many small spans, nested, with a little work in each and some sleep."""
    for number in range(PIECES):
        with spanprof.span("outer"):
            sum(range(50))
            with spanprof.span("inner"):
                sum(range(100))
            if number % 1000 == 0:
                time.sleep(0.001)


def sum_error(threads: int) -> float:
    """Relative error of the sum of all spans' self CPU time, over all threads."""
    used = []

    def thread() -> None:
        start = time.thread_time_ns()
        with spanprof.span("thread"):
            pieces()
        used.append(time.thread_time_ns() - start)

    with spanprof.start(track_cpu=True, track_wall=True, track_allocations=True):
        started = [threading.Thread(target=thread) for _ in range(threads)]
        for one in started:
            one.start()
        for one in started:
            one.join()
        profile = spanprof.snapshot()
    measured = sum(sample.values["cpu"] for sample in profile.samples)
    return measured / sum(used) - 1


def judge(
    where: str, load: Callable[[], contextlib.AbstractContextManager[object]]
) -> None:
    with load():
        errors = [abs(error) for error in burst_errors()]
        sums = [sum_error(threads) for threads in (1, 1, 1, 4)]
    within = sum(error <= TOLERANCE for error in errors) / len(errors)
    harness.report(
        f"300 us bursts, {where}",
        f"within {TOLERANCE:.0%} of the thread clock",
        f"{within:.1%} of {BURSTS} are, median off by {median(errors):.2%}, "
        f"worst by {max(errors):.2%}",
        within >= 0.99,
    )
    worst = max(sums, key=abs)
    harness.report(
        f"sum of self CPU, {where}",
        f"within {SUM_TOLERANCE:.1%} of the thread clock",
        f"off by {worst:+.3%} at worst of {', '.join(f'{e:+.3%}' for e in sums)}",
        abs(worst) <= SUM_TOLERANCE,
    )


def main() -> None:
    harness.heading("clock accuracy")
    with spanprof.start(track_cpu=True):
        print(spanprof.stats())
    judge("quiet", contextlib.nullcontext)
    judge("more hogs than cores", harness.Hogs)


if __name__ == "__main__":
    main()
