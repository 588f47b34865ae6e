"""Memory by span, as a program sees it: what is charged, to whom, and until when."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import random
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spanprof
from spanprof import Profile, span

from .helpers import (
    IS_FREE_THREADED,
    Values,
    by_path,
    in_thread,
    in_threads,
    run_python,
)

MIB = 1 << 20
ROOM = 4096
"""Bytes for the objects around a buffer."""


def now(name: str) -> Values:
    """Values of all spans of that name, up to now."""
    return values_of(spanprof.snapshot(), name)


def values_of(profile: Profile, name: str) -> Values:
    total: Values = {}
    for path, values in by_path(profile).items():
        if path[-1] == name:
            for key, value in values.items():
                total[key] = total.get(key, 0) + value
    return total or dict.fromkeys(("inuse_objects", "inuse_space", "alloc_objects"), 0)


def inuse(name: str) -> int:
    return now(name)["inuse_space"]


def is_about(value: int, size: int) -> bool:
    return size <= value < size + ROOM


# --- 5.5: what is an allocation, and whose --------------------------------------------


def test_rule_5_5_the_innermost_span_is_charged() -> None:
    with spanprof.start(track_heap=True):
        with span("outer"):
            first = bytearray(1_000_000)
            with span("inner"):
                second = bytearray(2_000_000)
            third = bytearray(4_000_000)
        fourth = bytearray(8_000_000)
        assert is_about(inuse("outer"), 5_000_000)
        assert is_about(inuse("inner"), 2_000_000)
        del first, second, third, fourth


def test_rule_5_5_of_the_thread_that_allocates() -> None:
    def work(number: int) -> bytearray:
        with span(f"thread{number}"):
            barrier.wait()
            return bytearray(1_000_000 * (number + 1))

    barrier = threading.Barrier(3)
    with spanprof.start(track_heap=True), span("main"):
        kept = in_threads(3, work)
        for number in range(3):
            assert is_about(inuse(f"thread{number}"), 1_000_000 * (number + 1))
        assert inuse("main") < 100_000
        kept.clear()


def test_rule_5_5_realloc_is_a_free_and_an_allocation() -> None:
    with spanprof.start(track_heap=True):
        with span("make"):
            buffer = bytearray(1_000_000)
        before = now("make")["alloc_space"]
        with span("grow"):
            buffer.extend(bytes(1_000_000))
        assert inuse("make") < ROOM
        assert is_about(inuse("grow"), 2_000_000) or inuse("grow") < 3_000_000
        assert now("make")["alloc_space"] == before, "what was allocated stays so"
        with span("shrink"):
            del buffer[1000:]
        assert inuse("grow") < ROOM
        assert inuse("shrink") < ROOM
        del buffer


def test_rule_5_5_a_failed_call_is_neither() -> None:
    with spanprof.start(track_heap=True):
        with span("a"):
            buffer = bytearray(1_000_000)
        before = now("a")
        with span("b"):
            for _ in range(3):
                with pytest.raises(MemoryError):
                    bytearray(1 << 62)
            with pytest.raises(MemoryError):
                buffer *= 1 << 42
        assert now("b")["alloc_space"] < 100_000
        assert now("a")["inuse_space"] == before["inuse_space"], "still there, and ours"
        del buffer
        assert inuse("a") < ROOM


def test_rule_5_5_memory_from_before_is_nobodys() -> None:
    kept = [bytearray(100_000) for _ in range(20)]
    with spanprof.start(track_heap=True):
        with span("a"):
            del kept[:10]
            kept[0].extend(bytes(100_000))
        values = now("a")
        assert (
            is_about(values["inuse_space"], 200_000) or values["inuse_space"] < 300_000
        )
        kept.clear()
        assert -1 < inuse("a") < ROOM


@pytest.mark.skipif(IS_FREE_THREADED, reason="free lists are each thread's own there")
def test_rule_5_5_a_free_list_is_no_allocation() -> None:
    def floats() -> None:
        value = 0.25
        for _ in itertools.repeat(None, 1000):
            value += 0.5

    floats()
    with spanprof.start(track_heap=True) as session, span("a"):
        floats()
    assert values_of(session.result, "a")["alloc_objects"] < 20


# --- 5.6: until it is freed -----------------------------------------------------------


def test_rule_5_6_by_whatever_thread_also_after_the_span() -> None:
    with spanprof.start(track_heap=True):
        kept: list[bytearray] = []
        for _ in range(4):
            with span("a"):
                kept.append(bytearray(1_000_000))
        assert is_about(inuse("a"), 4_000_000)
        kept.pop()
        assert is_about(inuse("a"), 3_000_000)
        in_thread(kept.pop)  # a thread without spans

        def in_span() -> None:
            with span("b"):
                kept.pop()

        in_thread(in_span)
        assert is_about(inuse("a"), 1_000_000)
        assert inuse("b") < ROOM
        in_thread(kept.pop)
        assert 0 <= inuse("a") < ROOM


def test_rule_5_6_blocks_that_outlive_their_session() -> None:
    kept: list[Any] = []
    for number in range(1000):
        with spanprof.start(track_heap=True) as session, span("a"):
            kept.append(bytearray(10_000))
            if len(kept) > 5:
                del kept[random.randrange(len(kept))]
        values = values_of(session.result, "a")
        assert is_about(values["inuse_space"], 10_000) or values["inuse_space"] < ROOM
        assert values["inuse_space"] >= 0, number
    kept.clear()
    assert spanprof.stats().heap_map_resident_bytes == 0


def test_rule_5_6_a_million_blocks_alive_at_the_stop() -> None:
    with spanprof.start(track_heap=True) as session, span("a"):
        kept: Any = [(number,) for number in range(1_000_000)]
    values = values_of(session.result, "a")
    assert values["inuse_objects"] > 1_000_000
    with spanprof.start(track_heap=True):
        with span("b"):
            del kept
        assert inuse("b") == 0


def test_rule_5_6_reports_tell_what_is_in_use_at_their_end() -> None:
    class Keep(spanprof.Reporter):
        def __init__(self) -> None:
            self.profiles: list[Profile] = []

        def profile(self, profile: Profile) -> None:
            self.profiles.append(profile)

    keep = Keep()
    kept = []
    with spanprof.start(
        track_heap=True, report_interval=0, heap_snapshot_interval=0, reporters=[keep]
    ) as session:
        for _ in range(3):
            with span("a"):
                kept.append(bytearray(1_000_000))
            spanprof.flush()
        kept.pop()
        spanprof.flush()
    levels = [values_of(profile, "a")["inuse_space"] for profile in keep.profiles]
    for level, size in zip(levels, (1, 2, 3, 2, 2), strict=True):
        assert is_about(level, size * 1_000_000)
    whole = sum(keep.profiles[1:], keep.profiles[0])
    for name in ("alloc_space", "alloc_objects", "inuse_space", "inuse_objects"):
        assert values_of(whole, "a")[name] == values_of(session.result, "a")[name]
    peak = values_of(whole, "a")["inuse_peak_space"]
    assert peak == values_of(session.result, "a")["inuse_peak_space"]
    grown = keep.profiles[2] - keep.profiles[0]
    assert is_about(values_of(grown, "a")["inuse_space"] + 200, 2_000_000)


def test_rule_5_6_heap_snapshots_have_an_interval_of_their_own() -> None:
    kinds = []

    class Keep(spanprof.Reporter):
        def profile(self, profile: Profile) -> None:
            kinds.append("heap" in profile.kinds)

    with spanprof.start(track_heap=True, report_interval=0, reporters=[Keep()]):
        for _ in range(3):
            with span("a"):
                bytearray(1000)
            spanprof.flush()
    assert kinds == [True, False, False, True], "the first, and the last"


def test_peaks() -> None:
    with spanprof.start(track_heap=True) as session:
        with span("high"):
            held = bytearray(1_000_000)
            buffer = bytearray(10_000_000)
            del buffer
        with span("low"):
            other = bytearray(3_000_000)
    profile = session.result
    assert is_about(values_of(profile, "high")["inuse_peak_space"], 11_000_000)
    assert is_about(values_of(profile, "low")["inuse_peak_space"], 3_000_000)
    assert is_about(profile.heap_peak, 11_000_000), "and not the sum of peaks"
    assert is_about(values_of(profile, "high")["inuse_space"], 1_000_000)
    del held, other


sizes = st.integers(0, 200_000)
program = st.lists(
    st.tuples(
        st.sampled_from(["make", "make", "make", "free", "resize", "gc"]),
        st.integers(0, 2),  # thread
        st.lists(st.sampled_from("abc"), min_size=1, max_size=3),  # stack of spans
        sizes,
    ),
    max_size=60,
)


@given(program)
@settings(max_examples=40)
def test_rule_5_6_random_programs(
    steps: list[tuple[str, int, list[str], int]],
) -> None:
    """Buffers of any size, made, resized and freed by three threads in any spans."""
    owned: list[tuple[bytearray, tuple[str, ...], tuple[str, ...]]] = []

    def step(what: str, names: list[str], size: int) -> None:
        with spanprof.span(names[0]):
            if names[1:]:
                step(what, names[1:], size)
            elif what == "make":
                results.append(bytearray(size))
            elif what == "resize":
                results[0][:] = bytes(size)

    with spanprof.start(track_heap=True):
        for what, thread, names, size in steps:
            results: list[bytearray] = []
            path = tuple(names)
            if what == "make":
                _run(thread, step, what, names, size)
                owned.append((results.pop(), path, path))
            elif what == "gc":
                gc.collect()
            elif owned and what == "free":
                buffer, *_ = owned.pop(size % len(owned))
                results.append(buffer)
                del buffer
                _run(thread, results.clear)
            elif owned:
                number = size % len(owned)
                buffer, header_path, _ = owned[number]
                before = buffer.__alloc__()
                results.append(buffer)
                _run(thread, step, what, names, size)
                moved = buffer.__alloc__() != before
                owned[number] = (
                    buffer,
                    header_path,
                    path if moved else owned[number][2],
                )
                results.clear()
                del buffer
        found = {
            path: values["inuse_space"]
            for path, values in by_path(spanprof.snapshot()).items()
        }
        for path in found:
            expected = 0
            for buffer, header_path, buffer_path in owned:
                if header_path == path:
                    expected += sys.getsizeof(bytearray())
                if buffer_path == path:
                    expected += buffer.__alloc__()
            # Lists and the like that the steps themselves make and drop.
            assert 0 <= found[path] - expected <= 20_000, path
        owned.clear()


_pools: dict[int, Any] = {}


def _run(thread: int, function: Any, *arguments: Any) -> None:
    if thread == 0:
        function(*arguments)
        return
    if thread not in _pools:
        from concurrent.futures import ThreadPoolExecutor

        _pools[thread] = ThreadPoolExecutor(1)
    _pools[thread].submit(function, *arguments).result()


# --- 5.7: the profiler's own ----------------------------------------------------------


def test_rule_5_7_the_profilers_memory_is_nobodys() -> None:
    def spans() -> None:
        for number in range(2000):
            with span("inner", user=number):
                pass

    with spanprof.start(track_heap=True, record_labels=["user"]) as session:
        with span("outer"):
            spans()
        for _ in range(3):
            session.snapshot()
    values = values_of(session.result, "outer")
    # The numbers themselves, and the dictionaries of the keyword arguments.
    assert values["inuse_space"] < ROOM
    assert values_of(session.result, "inner")["alloc_objects"] == 0


# --- hazards --------------------------------------------------------------------------


def test_hazard_2_a_large_object_passes_two_domains_and_is_one_block() -> None:
    with spanprof.start(track_heap=True) as session:
        with span("a"):
            first = bytes(100_000)
        with span("b"):
            second = [None] * 50_000
    for name, size in (("a", sys.getsizeof(first)), ("b", sys.getsizeof(second))):
        values = values_of(session.result, name)
        # The list itself may come from a free list.
        assert size - 100 <= values["alloc_space"] < size + 500
        assert 1 <= values["inuse_objects"] <= 3
    del first, second


@pytest.mark.parametrize("switch", [1e-6, 0.005])
def test_hazard_3_threads_reuse_each_others_addresses(switch: float) -> None:
    """Everything freed: nothing is in use, whoever got which address next."""
    before = sys.getswitchinterval()
    exchange: list[Any] = [None] * 64
    end = time.monotonic() + 1.5

    def work(number: int) -> None:
        numbers = random.Random(number)
        while time.monotonic() < end:
            with span(f"s{number % 3}"):
                place = numbers.randrange(64)
                size = numbers.choice([10, 40, 100, 600, 5000, 70_000])
                what = exchange[place]
                if isinstance(what, bytearray) and numbers.random() < 0.5:
                    try:
                        what.extend(bytes(size))
                    except BufferError:
                        pass
                exchange[place] = None if numbers.random() < 0.3 else bytearray(size)

    sys.setswitchinterval(switch)
    try:
        with spanprof.start(track_heap=True):
            in_threads(8, work)
            exchange.clear()
            gc.collect()
            for name in ("s0", "s1", "s2"):
                values = now(name)
                assert values["alloc_objects"] > 100
                assert 0 <= values["inuse_space"] < 50_000, name
    finally:
        sys.setswitchinterval(before)


def test_hazard_4_sessions_come_and_go_while_others_allocate() -> None:
    over = threading.Event()
    kept: list[bytearray] = []

    def work(number: int) -> None:
        if number == 0:
            for _ in range(200):
                with spanprof.start(track_heap=True) as session:
                    with span("mine"):
                        buffer = bytearray(100_000)
                    assert is_about(inuse("mine"), 100_000)
                for values in by_path(session.result).values():
                    assert values["inuse_space"] >= 0
                    assert values["inuse_objects"] >= 0
                del buffer
            over.set()
        while not over.is_set():
            with span("other"):
                kept.append(bytearray(500))
                if len(kept) > 1000:
                    del kept[:500]

    try:
        in_threads(3, work)
    finally:
        over.set()
        spanprof.stop()


@pytest.mark.parametrize("heap", [True, False])
def test_hazard_4_others_take_our_hooks_out(
    heap: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """tracemalloc.stop() puts back what tracemalloc.start() found."""
    lost = spanprof.stats().alloc_hooks_lost
    config = spanprof.ProfileConfig(track_allocations=True, track_heap=heap)
    with spanprof.start(config):  # ours are in
        pass
    tracemalloc.start()
    with spanprof.start(config) as session:
        with span("a"):
            bytearray(1000)
        tracemalloc.stop()  # takes nothing of ours: it came later
        with span("a"):
            bytearray(1000)
    assert values_of(session.result, "a")["alloc_space"] >= 2000
    assert spanprof.stats().alloc_hooks_lost == lost
    assert not caplog.records


LOST = """
import logging, tracemalloc
import spanprof
from spanprof import span

def counted(session):
    return session.result.totals["alloc_space"]

logging.basicConfig(format="%(name)s: %(message)s")
tracemalloc.start()
session = spanprof.start(track_heap=True)
with span("a"):
    kept = bytearray(1000)
tracemalloc.stop()
with span("a"):
    lost = bytearray(1_000_000)
session.stop()
assert 1000 <= counted(session) < 10_000, counted(session)
del kept, lost
assert spanprof.stats().alloc_hooks_lost == 1
for number in range(3):
    session = spanprof.start(track_heap=True)
    with span("a"):
        kept = bytearray(1_000_000)
    session.stop()
    assert 1_000_000 <= counted(session) < 1_010_000
assert spanprof.stats().alloc_hooks_lost == 2, "it is told of, and mended"
"""


def test_hazard_4_lost_hooks_are_told_of_and_put_back(tmp_path: Path) -> None:
    errors = run_python(LOST, cwd=tmp_path).stderr
    assert errors.count("spanprof: the hooks on Python's memory allocators") == 2


def test_hazard_6_threads_end_with_live_blocks() -> None:
    kept: list[bytearray] = []

    def work() -> None:
        with span("a"):
            kept.append(bytearray(10_000))

    with spanprof.start(track_heap=True):
        for _ in range(100):
            in_thread(work)
        assert 1_000_000 <= inuse("a") < 1_000_000 + 100 * ROOM
        kept.clear()
        assert 0 <= inuse("a") < 100 * ROOM


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_rule_6_6_a_child_begins_with_nothing() -> None:
    with spanprof.start(track_heap=True):
        with span("a"):
            parents = bytearray(1_000_000)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                assert inuse("a") == 0
                del parents
                assert inuse("a") == 0
                with span("a"):
                    mine = bytearray(2_000_000)
                assert is_about(inuse("a"), 2_000_000)
                del mine
                assert 0 <= inuse("a") < ROOM
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert is_about(inuse("a"), 1_000_000)
        del parents


# --- leaks ----------------------------------------------------------------------------


def test_leaks_are_told_from_caches() -> None:
    leak: list[bytearray] = []
    cache: dict[int, bytearray] = {}
    with spanprof.start(track_heap=True, record_labels=["user"]) as session:
        for number in range(6):
            with span("leak", user="u"):
                leak.append(bytearray(10_000))
            with span("cache"):
                for place in range(3):
                    cache[place] = bytearray(10_000)
            time.sleep(0.1)  # looks take at most a part of the time
            found = session.snapshot().leaks(0)
            if number >= 2:
                assert {each.stack[0].name for each in found} == {"leak"}
        (it,) = found
        assert it.labels == {"user": "u"}
        assert it.space >= 60_000
        assert "::leak  user=u: " in str(it)
        assert session.snapshot().leaks(3600) == []
    assert (session.result - session.result).leaks(0) == []


def test_leaks_of_old_bytes_only() -> None:
    kept: list[bytearray] = []
    grown = 0
    with spanprof.start(track_heap=True) as session:
        end = time.monotonic() + 20
        while time.monotonic() < end and grown < 3:
            with span("leak"):
                kept.append(bytearray(1000))
            with span("young"):
                young = [bytearray(1000) for _ in range(len(kept))]
            time.sleep(0.3)
            leaks = session.snapshot().leaks(1, reports=1)
            assert {leak.stack[0].name for leak in leaks} <= {"leak"}
            grown = max([grown, *(leak.reports for leak in leaks)])
            del young
    assert grown >= 3


def test_leaks_bad_arguments() -> None:
    with spanprof.start(track_heap=True) as session:
        pass
    for arguments, error in (
        (("60",), TypeError),
        ((True,), TypeError),
        ((-1,), ValueError),
        ((3601,), ValueError),
        ((float("nan"),), ValueError),
    ):
        with pytest.raises(error, match="min_age must be"):
            session.result.leaks(*arguments)  # type: ignore[arg-type]
    for reports, error in ((1.5, TypeError), (True, TypeError), (0, ValueError)):
        with pytest.raises(error, match="reports must be"):
            session.result.leaks(1, reports=reports)  # type: ignore[arg-type]
    with spanprof.start(track_wall=True) as session, span("a"):
        pass
    assert session.result.leaks(0) == []
    assert session.result.heap_peak == 0


# --- sampling -------------------------------------------------------------------------


def test_sampling_estimates_and_forgets() -> None:
    with spanprof.start(track_heap=True, heap_sample_bytes=2000):
        with span("a"):
            kept: Any = [bytearray(300) for _ in range(30_000)]
        values = now("a")
        expected = 30_000 * (sys.getsizeof(kept[0]))
        assert values["inuse_space"] == pytest.approx(expected, rel=0.1)
        assert values["inuse_objects"] == pytest.approx(60_000, rel=0.15)
        del kept
        assert now("a")["inuse_space"] < 500_000
        assert now("a")["inuse_objects"] >= 0


def test_a_block_is_measured_as_the_running_session_does() -> None:
    with spanprof.start(track_heap=True, heap_sample_bytes=1000):
        with (
            pytest.raises(RuntimeError, match="session has heap_sample_bytes=1000"),
            spanprof.profile(track_heap=True),
        ):
            pass
        with spanprof.profile(track_heap=True, heap_sample_bytes=1000) as block:
            pass
    assert block.result.heap_peak == 0


def test_logging_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.DEBUG, "spanprof"),
        spanprof.start(track_heap=True),
        span("a"),
    ):
        bytearray(1000)
    assert not caplog.records
