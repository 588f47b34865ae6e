"""What a span costs, against timing by hand in the same rounds.

The loop around each piece of work is measured and taken off.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from types import ModuleType

import harness

import spanprof

SLICE = 20_000
ROUNDS = 13
GENERATIONS = 5
"""How often all processes are made anew: where their memory happens to lie makes a
difference of some nanoseconds."""

BY_HAND = "by hand, perf_counter_ns() twice"
FLOOR = "SPANPROF_BENCH_FLOOR"


def by_hand(n: int) -> None:
    clock = perf_counter_ns
    total = 0
    for _ in range(n):
        start = clock()
        total += clock() - start


def lock(n: int) -> None:
    lock = threading.Lock()
    for _ in range(n):
        with lock:
            pass


def null_context(n: int) -> None:
    context = contextlib.nullcontext()
    for _ in range(n):
        with context:
            pass


def span(n: int) -> None:
    for _ in range(n):
        with spanprof.span("x"):
            pass


def two_callsites(n: int) -> None:
    for _ in range(n):
        with spanprof.span("x"):
            pass
        with spanprof.span("y"):
            pass


def nested(n: int) -> None:
    for _ in range(n):
        with (
            spanprof.span("a"),
            spanprof.span("b"),
            spanprof.span("c"),
            spanprof.span("d"),
        ):
            pass


def same_object(n: int) -> None:
    reused = spanprof.span("x")
    for _ in range(n):
        with reused:
            pass


def label(n: int) -> None:
    for _ in range(n):
        with spanprof.span("x", user="a"):
            pass


def inherited(n: int) -> None:
    with spanprof.labels(user="a"):
        span(n)


def inherited_other(n: int) -> None:
    with spanprof.labels(tenant="a"):
        span(n)


def bare_function() -> None:
    pass


@spanprof.span("decorated")
def decorated_function() -> None:
    pass


def call(n: int) -> None:
    function = bare_function
    for _ in range(n):
        function()


def decorated_call(n: int) -> None:
    function = decorated_function
    for _ in range(n):
        function()


SPANS = {
    "span": span,
    "two callsites": two_callsites,
    "nested": nested,
    "same object": same_object,
    "label": label,
    "inherited": inherited,
    "inherited, not recorded": inherited_other,
    "call": call,
    "decorated": decorated_call,
}


def build_floor(folder: Path) -> Path | None:
    """Compile ``floor.c``; None where there is no compiler or no header."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    include = sysconfig.get_path("include")
    module = folder / "floor.so"
    source = Path(__file__).with_name("floor.c")
    command = [
        compiler,
        "-O2",
        "-fPIC",
        "-shared",
        f"-I{include}",
        "-o",
        module,
        source,
    ]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"the floor is left out, as floor.c does not build: {error}")
        return None
    return module


def load_floor() -> ModuleType | None:
    path = os.environ.get(FLOOR)
    if not path:
        return None
    spec = importlib.util.spec_from_file_location("floor", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def floor_cases(module: ModuleType) -> harness.Cases:
    direct_manager, ordinary_manager = module.direct, module.ordinary

    def direct(n: int) -> None:
        for _ in range(n):
            with direct_manager("x"):
                pass

    def ordinary(n: int) -> None:
        for _ in range(n):
            with ordinary_manager("x"):
                pass

    return {"floor, self-returning": direct, "floor, ordinary": ordinary}


def work(mode: str) -> None:
    if mode == "no session":
        floor = load_floor()
        references = {
            "by hand": by_hand,
            "lock": lock,
            "nullcontext": null_context,
            **(floor_cases(floor) if floor else {}),
        }
        harness.serve({**references, **SPANS})
    elif mode == "session":
        with (
            spanprof.start(track_wall=True, track_cpu=True, track_allocations=True),
            spanprof.span("outer"),
        ):
            harness.serve({**SPANS, "by hand": by_hand})
    elif mode == "session, label recorded":
        with (
            spanprof.start(track_all=True, record_labels=("user",)),
            spanprof.span("outer"),
        ):
            harness.serve(SPANS)
    else:
        raise ValueError(mode)


def measure(floor: Path | None) -> harness.Rounds:
    """Time every case in processes of their own."""
    with contextlib.ExitStack() as stack:
        off, on, slow, labels = (
            stack.enter_context(worker)
            for worker in (
                harness.Worker("no session", **({FLOOR: str(floor)} if floor else {})),
                harness.Worker("session"),
                harness.Worker("session", SPANPROF_CLOCK="gettime"),
                harness.Worker("session, label recorded"),
            )
        )
        timed = {
            BY_HAND: (off, "by hand"),
            "by hand, while a session runs": (on, "by hand"),
            "with nullcontext()": (off, "nullcontext"),
            "with threading.Lock()": (off, "lock"),
            "bare call": (off, "call"),
            "no session: with span": (off, "span"),
            "no session: the same object again": (off, "same object"),
            "no session: decorated call": (off, "decorated"),
            "session: with span": (on, "span"),
            "session: two callsites in turn": (on, "two callsites"),
            "session: four deep, each": (on, "nested"),
            "session: the same object again": (on, "same object"),
            "session: label given": (on, "label"),
            "session: label recorded": (labels, "label"),
            "session: in labels(), recorded": (labels, "inherited"),
            "session: in labels(), others recorded": (
                labels,
                "inherited, not recorded",
            ),
            "session: in labels(), none recorded": (on, "inherited"),
            "session: bare call": (on, "call"),
            "session: decorated call": (on, "decorated"),
            "clock_gettime: with span": (slow, "span"),
        }
        if floor:
            timed["with C manager that does nothing"] = (off, "floor, ordinary")
            timed["the same, self-returning"] = (off, "floor, self-returning")
        return harness.take_turns(timed, SLICE, ROUNDS)


def main() -> None:
    harness.heading("span cost")
    results: harness.Rounds = {}
    with tempfile.TemporaryDirectory() as folder:
        floor = build_floor(Path(folder))
        for _ in range(GENERATIONS):
            for name, values in measure(floor).items():
                results.setdefault(name, []).extend(values)

    for name, spans in (
        ("session: two callsites in turn", 2),
        ("session: four deep, each", 4),
    ):
        results[name] = [value / spans for value in results[name]]
    print(f"{'':<38}{'median ns':>10}{'of by hand':>12}{'of lock':>10}")
    for name, values in results.items():
        to_hand = harness.ratio(results, name, BY_HAND)
        to_lock = harness.ratio(results, name, "with threading.Lock()")
        print(f"{name:<38}{median(values):>10.1f}{to_hand:>12.2f}{to_lock:>10.2f}")

    recent = sys.version_info >= (3, 14)
    results["decoration"] = [
        decorated - bare
        for decorated, bare in zip(
            results["session: decorated call"],
            results["session: bare call"],
            strict=True,
        )
    ]
    for name, label, limit in (
        ("span", "session: with span", 0.75 if recent else 0.50),
        ("span, no session", "no session: with span", 0.55 if recent else 0.35),
        ("decorated call over the bare call", "decoration", 0.50),
    ):
        measured = harness.ratio(results, label, BY_HAND)
        harness.report(
            name,
            f"at most {limit:.2f} of timing by hand",
            f"{measured:.2f} ({median(results[label]):.0f} ns)",
            measured <= limit,
        )


if __name__ == "__main__":
    mode = harness.worker_mode()
    if mode is None:
        main()
    else:
        work(mode)
