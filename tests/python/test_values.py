"""What is measured: rules 5.1 to 5.4, and allocations as far as they go."""

# ruff: noqa: SIM117 (how blocks are nested is what is tested)

import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import spanprof
from spanprof import Profile, Reporter, span

from .helpers import (
    ManualClock,
    Values,
    burn_cpu,
    by_path,
    calls,
    in_thread,
    in_threads,
    run_python,
    series,
)


class Collect(Reporter):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.profiles: list[Profile] = []

    def profile(self, profile: Profile) -> None:
        self.profiles.append(profile)


# --- exact, by the manual clock ------------------------------------------------------


def test_rule_5_1_reports_are_relative_to_the_last(clock: ManualClock) -> None:
    collect = Collect()
    with spanprof.start(
        track_wall=True, track_cpu=True, report_interval=0, reporters=[collect]
    ) as session:
        for step in range(1, 4):
            with span("a"):
                clock(100 * step, 10 * step)
                with span("b"):
                    clock(step, step)
            session.flush()
        session.flush()
    assert [series(p, "busy") for p in collect.profiles] == [
        {("a",): 100, ("a", "b"): 1},
        {("a",): 200, ("a", "b"): 2},
        {("a",): 300, ("a", "b"): 3},
        {},
        {},
    ]
    assert [series(p, "cpu") for p in collect.profiles[:3]] == [
        {("a",): 10, ("a", "b"): 1},
        {("a",): 20, ("a", "b"): 2},
        {("a",): 30, ("a", "b"): 3},
    ]
    total = sum(collect.profiles[1:], collect.profiles[0])
    assert by_path(total) == by_path(session.result)


def test_rule_5_1_self_values_at_every_depth(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True, track_cpu=True) as session:
        with span("a"):
            clock(1, 5)
            for _ in range(3):
                with span("b"):
                    clock(10, 50)
                    with span("c"):
                        clock(100, 500)
                        with span("d"):
                            clock(1000, 5000)
                    clock(10, 50)
            clock(1, 5)
    a, b, c, d = ("a",), ("a", "b"), ("a", "b", "c"), ("a", "b", "c", "d")
    assert series(session.result, "busy") == {a: 2, b: 60, c: 300, d: 3000}
    assert series(session.result, "cpu") == {a: 10, b: 300, c: 1500, d: 15000}


def test_rule_5_2_only_the_same_thread_is_subtracted(clock: ManualClock) -> None:
    def work() -> None:
        with span("t"):
            clock(20, 2)

    with spanprof.start(track_wall=True, track_cpu=True) as session:
        with span("a"):
            clock(1, 1)
            in_thread(work)
            with span("b"):
                clock(300, 3)
                in_thread(work)
    assert series(session.result, "busy") == {("a",): 21, ("a", "b"): 320, ("t",): 40}
    assert series(session.result, "cpu") == {("a",): 3, ("a", "b"): 5, ("t",): 4}


def test_rule_5_2_idle_is_not_subtracted(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        with span("a"):
            o = span("o").open()
            clock(10)
            with o:
                clock(200)
            clock(3000)
            o.close()
    assert series(session.result, "busy") == {("a",): 3010, ("a", "o"): 200}
    assert series(session.result, "idle") == {("a",): 0, ("a", "o"): 3010}


def test_rule_5_3_a_running_span_is_in_every_report(clock: ManualClock) -> None:
    collect = Collect()
    busy: list[dict[tuple[str, ...], int]] = []
    with spanprof.start(
        track_wall=True, track_cpu=True, report_interval=0, reporters=[collect]
    ) as session:
        o = span("open").open()
        with span("a"):
            clock(1)
            session.flush()
            clock(20, 7)
            session.flush()
            with span("b"):
                clock(300)
                session.flush()
                clock(4000)
            session.flush()
            busy.append(series(spanprof.snapshot(), "busy"))
        o.close()
    deltas = [by_path(p) for p in collect.profiles]
    assert [d.get(("a",), {}).get("wall_busy") for d in deltas] == [
        1,
        20,
        None,
        None,
        None,
    ]
    assert [d.get(("a",), {}).get("cpu") for d in deltas] == [0, 7, None, None, None]
    assert [d.get(("a", "b"), {}).get("wall_busy") for d in deltas] == [
        None,
        None,
        300,
        4000,
        None,
    ]
    assert [d.get(("open",), {}).get("wall_idle") for d in deltas] == [
        1,
        20,
        300,
        4000,
        None,
    ]
    assert busy == [{("open",): 0, ("a",): 21, ("a", "b"): 4300}]


def test_rule_5_3_by_the_interval() -> None:
    arrived = threading.Semaphore(0)

    class Count(Reporter):
        total = 0

        def profile(self, profile: Profile) -> None:
            if value := series(profile, "busy").get(("long",)):
                self.total += value
                arrived.release()

    count = Count()
    with spanprof.start(
        track_wall=True, report_interval=0.01, reporters=[count]
    ) as session:
        with span("long"):
            for _ in range(3):
                assert arrived.acquire(timeout=30), "not reported while it runs"
    assert count.total == series(session.result, "busy")[("long",)]
    assert calls(session.result) == {("long",): 1}


def test_rule_5_3_on_another_thread(clock: ManualClock) -> None:
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with span("w"):
            entered.set()
            leave.wait(30)

    with spanprof.start(track_wall=True, track_cpu=True) as session:
        thread = threading.Thread(target=work)
        thread.start()
        entered.wait(30)
        clock(5, 4)
        first = session.snapshot()
        clock(10)
        second = session.snapshot()
        leave.set()
        thread.join()
        clock(100)
    assert series(first, "busy") == {("w",): 5}
    assert series(first, "cpu") == {("w",): 4}
    assert series(second, "busy") == {("w",): 15}
    assert series(session.result, "busy") == {("w",): 15}
    difference = by_path(second - first)
    assert difference[("w",)]["wall_busy"] == 10
    assert difference[("w",)]["calls"] == 0


@pytest.mark.parametrize("wall", [False, True])
@pytest.mark.parametrize("cpu", [False, True])
@pytest.mark.parametrize("alloc", [False, True])
def test_rule_5_1_only_what_is_tracked(
    clock: ManualClock, wall: bool, cpu: bool, alloc: bool
) -> None:
    with spanprof.start(
        track_wall=wall, track_cpu=cpu, track_allocations=alloc
    ) as session:
        with span("a"):
            clock(5, 4)
            kept = bytearray(1000)
    del kept
    expected: Values = {"calls": 1}
    if wall:
        expected |= {"wall": 5, "wall_busy": 5, "wall_idle": 0}
    if cpu:
        expected |= {"cpu": 4, "cpu_user": 4, "cpu_system": 0}
    values = by_path(session.result)[("a",)]
    if alloc:
        assert values.pop("alloc_objects") >= 1
        assert values.pop("alloc_space") >= 1000
    assert values == expected
    assert session.result.duration == 5
    kinds = ("calls", *("wall",) * wall, *("cpu",) * cpu, *("alloc",) * alloc)
    assert session.result.kinds == kinds


def test_rule_5_2_huge_values(clock: ManualClock) -> None:
    year = 365 * 86400 * 10**9
    with spanprof.start(track_wall=True, track_cpu=True) as session:
        with span("a"):
            clock(100 * year, 50 * year)
    assert series(session.result, "busy") == {("a",): 100 * year}
    assert series(session.result, "cpu") == {("a",): 50 * year}


# --- real clocks ----------------------------------------------------------------------

SLACK = 50_000
"""ns; what two clocks may differ by, and a boundary may take."""


def total(profile: Profile, name: str) -> int:
    return sum(series(profile, name).values())


def nest(depth: int, rounds: int) -> None:
    for _ in range(rounds):
        with span(f"d{depth}"):
            sum(range(50))
            if depth:
                nest(depth - 1, rounds)
            sum(range(50))


def sums_and_clocks(work: Callable[[], object]) -> tuple[tuple[int, ...], ...]:
    """(least, measured, most) of the wall and the CPU time within a root span."""
    with spanprof.profile(track_wall=True, track_cpu=True) as p:
        with span("warm up"):
            pass
        first = spanprof.snapshot()
        outer = span("outer")
        wall, cpu = time.perf_counter_ns, time.thread_time_ns
        wall_0, cpu_0 = wall(), cpu()
        outer.__enter__()
        cpu_1, wall_1 = cpu(), wall()
        work()
        wall_2, cpu_2 = wall(), cpu()
        outer.__exit__(None, None, None)
        cpu_3, wall_3 = cpu(), wall()
    mine = p.result - first
    return (
        (wall_2 - wall_1, total(mine, "busy"), wall_3 - wall_0),
        (cpu_2 - cpu_1, total(mine, "cpu"), cpu_3 - cpu_0),
    )


def check_sums(bounds: tuple[tuple[int, ...], ...]) -> None:
    for least, measured, most in bounds:
        tolerance = SLACK + least // 1000
        assert least - tolerance <= measured <= most + tolerance


def test_rule_5_2_sum_of_self_values_is_the_threads_own_clocks() -> None:
    check_sums(sums_and_clocks(lambda: nest(4, 8)))


def test_rule_5_2_sums_with_sleeps_and_competition() -> None:
    def work() -> None:
        for _ in range(20):
            nest(2, 5)
            with span("sleep"):
                time.sleep(0.001)

    stop = threading.Event()

    def compete() -> None:
        while not stop.is_set():
            sum(range(100))

    rival = threading.Thread(target=compete)
    rival.start()
    try:
        check_sums(sums_and_clocks(work))
    finally:
        stop.set()
        rival.join()


def test_rule_5_2_sums_on_every_thread() -> None:
    """Each thread's spans have a name of their own."""
    measured: dict[int, tuple[int, int]] = {}

    def work(number: int) -> None:
        before = time.thread_time_ns()
        with span(f"thread {number}"):
            inside = time.thread_time_ns()
            for _ in range(200):
                with span("in"):
                    sum(range(200))
            least = time.thread_time_ns() - inside
        measured[number] = least, time.thread_time_ns() - before

    with spanprof.start(track_cpu=True) as session:
        in_threads(6, work)
    of_thread = dict.fromkeys(range(6), 0)
    for path, cpu in series(session.result, "cpu").items():
        of_thread[int(path[0].split()[1])] += cpu
    for number, (least, most) in measured.items():
        tolerance = SLACK + least // 1000
        assert least - tolerance <= of_thread[number] <= most + tolerance


def test_rule_5_4_a_short_burst_shows() -> None:
    """Each one as long as the thread's clock says, none rounded to a tick."""
    errors = []
    for _ in range(30):
        with spanprof.profile(track_cpu=True) as p:
            with span("warm up"):
                pass
            with span("burst"):
                used = burn_cpu(50_000)
        measured = series(p.result, "cpu")[("burst",)]
        assert measured >= used - 2_000
        errors.append(measured - used)
    # Reading the clocks, and on a busy machine cold caches, cost a little.
    assert min(errors) < 20_000


def test_rule_5_4_sleep_is_not_cpu() -> None:
    used = []
    for _ in range(5):
        with spanprof.profile(track_wall=True, track_cpu=True) as p, span("sleep"):
            time.sleep(0.02)
        values = by_path(p.result)[("sleep",)]
        assert values["wall_busy"] >= 20_000_000
        used.append(values["cpu"])
    assert min(used) < 2_000_000


def test_rule_5_4_waiting_for_another_thread_is_not_cpu() -> None:
    def work() -> None:
        with span("work"):
            burn_cpu(20_000_000)

    with spanprof.start(track_wall=True, track_cpu=True) as session, span("wait"):
        in_thread(work)
    values = by_path(session.result)
    assert values[("work",)]["cpu"] >= 19_900_000
    assert values[("wait",)]["wall_busy"] >= 19_900_000
    assert values[("wait",)]["cpu"] < 15_000_000


def test_rule_5_4_user_and_system_are_the_total() -> None:
    def work() -> None:
        # A thread of its own: the kernel estimates the split over a thread's whole
        # life and lets neither part fall, so an old thread's may not move for long.
        with span("user"):
            burn_cpu(30_000_000)
        with span("system"):
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_stime
            give_up = time.monotonic() + 20
            kernel = 0.0
            while kernel < 0.04 and time.monotonic() < give_up:
                for _ in range(20):
                    os.stat("/")
                    os.urandom(4096)
                time.thread_time_ns()  # brings the kernel's figures up to date
                usage = resource.getrusage(resource.RUSAGE_THREAD)
                kernel = usage.ru_stime - before
        in_kernel.append(kernel)

    in_kernel: list[float] = []
    with spanprof.start(track_cpu=True) as session:
        in_thread(work)
    for values in by_path(session.result).values():
        assert values["cpu_user"] + values["cpu_system"] == values["cpu"]
        assert min(values.values()) >= 0
    system = by_path(session.result)[("system",)]["cpu_system"] / 1e9
    assert in_kernel[0] >= 0.04
    assert 0.5 * in_kernel[0] < system < 1.5 * in_kernel[0]


def test_rule_5_1_values_never_fall() -> None:
    stop = threading.Event()

    def read() -> None:
        previous: dict[tuple[str, ...], Values] = {}
        for _ in range(100):
            now = by_path(session.snapshot())
            for path, values in previous.items():
                for name, value in values.items():
                    if name not in ("inuse_objects", "inuse_space"):
                        assert now[path][name] >= value, name
            previous = now

    def work(number: int) -> None:
        if number == 0:
            try:
                read()
            finally:
                stop.set()
        while not stop.is_set():
            nest(2, 3)

    with spanprof.start(track_all=True) as session:
        try:
            in_threads(3, work)
        finally:
            stop.set()


def test_rule_5_4_tiny_spans() -> None:
    """Their sum is right, though each is far shorter than a clock call."""
    with spanprof.start(track_wall=True, track_cpu=True) as session:
        began = time.perf_counter_ns()
        for _ in range(20_000):
            with span("tiny"):
                pass
        took = time.perf_counter_ns() - began
    values = by_path(session.result)[("tiny",)]
    assert values["calls"] == 20_000
    assert 0 < values["wall_busy"] < took
    assert 0 <= values["cpu"] <= values["wall_busy"] + SLACK


# --- allocations: a sanity check ------------------------------------------------------


def allocations(work: Callable[[], object]) -> tuple[int, int]:
    """(objects, bytes), without those of the first call."""
    with spanprof.start(track_allocations=True) as session:
        for name in ("first", "second"):
            with span(name):
                kept = work()
            del kept
    values = by_path(session.result)[("second",)]
    return values["alloc_objects"], values["alloc_space"]


def test_rule_5_5_counts_are_about_right() -> None:
    objects, space = allocations(lambda: [bytearray(1000) for _ in range(100)])
    assert 200 <= objects <= 230
    assert 100_000 <= space <= 130_000
    objects, space = allocations(lambda: b"x" * 1_000_000)
    assert 1 <= objects <= 5
    assert 1_000_000 <= space <= 1_010_000
    objects, space = allocations(lambda: None)
    assert objects <= 3


def test_rule_5_5_a_nested_domain_counts_once() -> None:
    # More than 512 bytes: the object allocator passes it on to the raw one.
    objects, _ = allocations(lambda: bytes(600))
    assert objects <= 3


def test_rule_5_5_charged_to_the_innermost_span() -> None:
    with spanprof.start(track_allocations=True) as session:
        with span("a"):
            one = bytearray(10_000)
            with span("b"):
                two = bytearray(200_000)
            three = bytearray(10_000)
        four = bytearray(10**6)
    del one, two, three, four
    found = series(session.result, "alloc_space")
    assert 20_000 <= found["a",] < 25_000
    assert 200_000 <= found["a", "b"] < 205_000


def test_rule_5_7_spans_themselves_are_charged_to_nobody(no_gc: None) -> None:
    def opens() -> None:
        with span("with"):
            pass
        with span("again") as again, again, again:
            pass
        job = span("job").open()
        with job:
            pass
        job.close()
        with again.span("child"):
            pass
        decorated()

    @span("decorated", label="x")
    def decorated() -> None: ...

    with spanprof.start(track_allocations=True, record_labels=["label"]) as session:
        with span("warm up"):
            for _ in range(3):
                opens()
        first = session.snapshot()
        with span("outer"):
            for _ in range(100):
                opens()
        last = session.snapshot()
    found = series(last - first, "alloc_objects")
    # What remains are the arguments of the program's own calls, if any.
    assert sum(found.values()) <= 20, found


def test_rule_5_7_async_form_is_charged_to_nobody() -> None:
    async def plain() -> None:
        for _ in range(50):
            pass

    async def spans() -> None:
        for _ in range(50):
            async with s:
                pass

    s = span("s")
    with spanprof.start(track_allocations=True) as session:
        for _ in range(2):
            before = session.snapshot()
            with span("plain"):
                run_through(plain())
            with span("spans"):
                run_through(spans())
            found = series(session.snapshot() - before, "alloc_objects")
    # The interpreter makes two bound methods for each `async with`.
    assert found["spans",] <= found.get(("plain",), 0) + 110, found
    assert found.get(("spans", "s"), 0) <= 10, found


def run_through(coroutine: object) -> None:
    try:
        coroutine.send(None)  # type: ignore[attr-defined]
    except StopIteration:
        return
    raise AssertionError("it waits")


def test_rule_5_7_reporters_are_charged_to_nobody() -> None:
    class Wasteful(Reporter):
        def profile(self, profile: Profile) -> None:
            with span("inside the reporter"):
                self.waste = [bytearray(10_000) for _ in range(100)]

    with spanprof.start(
        track_all=True, report_interval=0, reporters=[Wasteful()]
    ) as session:
        with span("a"):
            session.flush()
    found = by_path(session.result)
    assert set(found) == {("a",)}
    assert found["a",]["alloc_space"] < 100_000


def test_rule_5_4_with_the_portable_clocks(tmp_path: Path) -> None:
    """Where restartable sequences are off, the system's clock takes over."""
    if not sys.platform.startswith("linux"):
        pytest.skip("restartable sequences are Linux's")
    code = """
import os, subprocess, sys
if len(sys.argv) == 1:
    os.environ["GLIBC_TUNABLES"] = "glibc.pthread.rseq=0"
    sys.exit(subprocess.call([sys.executable, __file__, "again"]))
import time, spanprof
with spanprof.start(track_all=True) as session:
    with spanprof.span("warm up"): pass
    with spanprof.span("burst"):
        began = time.thread_time_ns()
        while time.thread_time_ns() - began < 300_000: pass
    with spanprof.span("sleep"):
        time.sleep(0.02)
values = {s.stack[0].name: s.values for s in session.result.samples}
print(spanprof.stats().cpu_clock, values["burst"]["cpu"], values["sleep"]["cpu"])
"""
    done = run_python(code, cwd=tmp_path)
    *kind, burst, sleep = done.stdout.split()
    assert " ".join(kind) in ("clock_gettime", "rseq")
    assert int(burst) >= 299_000
    assert int(sleep) < 15_000_000
