"""What tracking allocations and live heap costs a program that allocates.

Each way of tracking has a process of its own, where the same work is done inside a
span; they take turns. Beside the targets: what tracemalloc and memray take, if memray
is there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import pickle
import sys
import tempfile
from collections.abc import Iterator
from math import prod
from pathlib import Path

import harness

import spanprof

GENERATIONS = 15
ROUNDS = 5
SAMPLE_BYTES = 512 * 1024

RECORDS = [
    {
        "id": i,
        "name": f"n{i}",
        "v": [i * 1.5, i + 0.25, None],
        "t": {"a": i, "b": str(i)},
    }
    for i in range(3000)
]
TEXT = json.dumps(RECORDS)
PICKLE = pickle.dumps(RECORDS)


def json_loads(n: int) -> None:
    for _ in range(n):
        json.loads(TEXT)


def pickle_loads(n: int) -> None:
    for _ in range(n):
        pickle.loads(PICKLE)


def build_bytes(n: int) -> None:
    for _ in range(n):
        _ = [bytes(40 + (i & 63)) for i in range(20_000)]


def build_tuples(n: int) -> None:
    for _ in range(n):
        _ = [(i, [i]) for i in range(20_000)]


def build_dicts(n: int) -> None:
    for _ in range(n):
        _ = {i: str(i) for i in range(20_000)}


WORK: dict[str, harness.Case] = {
    "json.loads": json_loads,
    "pickle.loads": pickle_loads,
    "bytes": build_bytes,
    "tuples": build_tuples,
    "dicts": build_dicts,
}

TARGETS = {
    "exact": ("exact live heap in a span", 1.15),
    "counting": ("counting only", 1.08),
    "sampled": ("sampled at 512 KiB", 1.03),
    "installed": ("heap tracked, no span on the thread", 1.02),
}


@contextlib.contextmanager
def tracking(mode: str) -> Iterator[None]:
    # The first session of a process imports modules (dataclasses), whose objects the
    # garbage collector goes through from then on, tracked or not.
    with spanprof.start():
        pass
    with contextlib.ExitStack() as stack:
        if mode == "tracemalloc":
            import tracemalloc

            tracemalloc.start(1)
        elif mode == "memray":
            import memray

            folder = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(
                memray.Tracker(Path(folder) / "out", trace_python_allocators=True)
            )
        elif mode != "untracked":
            stack.enter_context(
                spanprof.start(
                    track_allocations=True,
                    track_heap=mode != "counting",
                    heap_sample_bytes=SAMPLE_BYTES if mode == "sampled" else 0,
                )
            )
            if mode != "installed":
                stack.enter_context(spanprof.span("work"))
        yield


def main() -> None:
    harness.heading("tracking memory, against the same process untracked")
    modes = ["untracked", *TARGETS, "tracemalloc"]
    if importlib.util.find_spec("memray"):
        modes.append("memray")
    # Where a process has its memory and its code is chance, and worth some percent: so
    # several processes of each way, one after the other.
    rounds: dict[str, harness.Rounds] = {
        case: {mode: [] for mode in modes} for case in WORK
    }
    for _ in range(GENERATIONS):
        with contextlib.ExitStack() as stack:
            workers = {
                mode: stack.enter_context(harness.Worker(mode, PYTHONHASHSEED="0"))
                for mode in modes
            }
            for case, results in rounds.items():
                timed = {mode: (worker, case) for mode, worker in workers.items()}
                for mode, times in harness.take_turns(timed, 4, ROUNDS).items():
                    results[mode] += times
    print(f"{'':14}" + "".join(f"{mode:>13}" for mode in modes))
    ratios: dict[str, list[float]] = {mode: [] for mode in modes}
    for case, results in rounds.items():
        line = f"{case:14}"
        for mode in modes:
            ratios[mode].append(harness.ratio(results, mode, "untracked"))
            line += f"{ratios[mode][-1]:13.3f}"
        print(line, flush=True)
    means = {mode: prod(each) ** (1 / len(each)) for mode, each in ratios.items()}
    print(f"{'geometric mean':14}" + "".join(f"{means[m]:13.3f}" for m in modes))
    for mode, (what, most) in TARGETS.items():
        harness.report(
            f"heap cost, {mode}",
            f"{what}: at most {most:.2f} times untracked",
            f"{means[mode]:.3f}",
            means[mode] <= most,
        )


if __name__ == "__main__":
    wanted = harness.worker_mode()
    if wanted is None:
        main()
    else:
        with tracking(wanted):
            harness.serve(WORK, collect=True)
            sys.stdout.flush()
