"""Counted allocations and live heap: rules 5.5 to 5.7, peaks, leaks, sampling."""

# ruff: noqa: SIM117 (how blocks are nested is what is tested)

import ctypes
import gc
import math
import queue
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import spanprof
from spanprof import Profile, Reporter, span

from .helpers import (
    Values,
    by_path,
    exact_with_the_gil,
    in_thread,
    in_threads,
    run_python,
    series,
)

TINY = 20_000
"""More than what ctypes and the interpreter allocate besides a block of a test."""

ZERO = {"inuse_objects": 0, "inuse_space": 0}


@pytest.fixture(autouse=True)
def stopped() -> Iterator[None]:
    yield
    spanprof.stop()


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def taken(block: bytearray) -> int:
    """What a bytearray takes, see test_what_a_bytearray_takes."""
    return bytearray.__basicsize__ + block.__alloc__()


def values_of(profile: Profile, *path: str) -> Values:
    return by_path(profile)[path]


def stat(name: str) -> float:
    value = spanprof.stats()[name]
    assert isinstance(value, (int, float))
    return value


def now(*path: str) -> Values:
    return values_of(spanprof.snapshot(), *path)


def in_use(*path: str) -> tuple[int, int]:
    values = now(*path)
    return values["inuse_objects"], values["inuse_space"]


def domain(
    name: str,
) -> tuple[
    Callable[[int], int | None],
    Callable[[int | None, int], int | None],
    Callable[[int | None], None],
    Callable[[int, int], int | None],
]:
    """``malloc``, ``realloc``, ``free`` and ``calloc`` of PyMem_Raw, PyMem_, PyObject_.

    ctypes allocates, a little: sizes of blocks are to be large.
    """
    api = ctypes.PyDLL(None)
    malloc, realloc = api[f"{name}Malloc"], api[f"{name}Realloc"]
    free, calloc = api[f"{name}Free"], api[f"{name}Calloc"]
    for function in (malloc, realloc, calloc):
        function.restype = ctypes.c_void_p
    malloc.argtypes = [ctypes.c_size_t]
    realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    calloc.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    free.argtypes = [ctypes.c_void_p]
    free.restype = None
    return malloc, realloc, free, calloc


DOMAINS = pytest.mark.parametrize("name", ["PyMem_Raw", "PyMem_", "PyObject_"])


def test_what_a_bytearray_takes(no_gc: None) -> None:
    """The object and its bytes: the other tests' expectations rest on it."""
    bytearray(1000)
    for size in (1, 100, 511, 512, 513, 5000, 1_000_000):
        with spanprof.start(track_heap=True) as session:
            with span("a"):
                block = bytearray(size)
        found = values_of(session.result, "a")
        assert found == {
            "calls": 1,
            "alloc_objects": 2,
            "alloc_space": taken(block),
            "inuse_objects": 2,
            "inuse_space": taken(block),
            "inuse_peak_space": taken(block),
        }
        assert size < taken(block) < size + 100


# --- 5.5: what is an allocation, and whose --------------------------------------------


def test_rule_5_5_charged_to_the_innermost_span(no_gc: None) -> None:
    bytearray(10)
    with spanprof.start(track_heap=True):
        outside = bytearray(77_000_000)
        with span("a"):
            first = bytearray(10_000)
            with span("b"):
                second = bytearray(200_000)
                with span("a"):
                    third = bytearray(3_000_000)
            fourth = bytearray(40_000_000)
        found = series(spanprof.snapshot(), "inuse_space")
        assert found == {
            ("a",): taken(first) + taken(fourth),
            ("a", "b"): taken(second),
            ("a", "b", "a"): taken(third),
        }
        assert series(spanprof.snapshot(), "alloc_space") == found
        assert set(series(spanprof.snapshot(), "alloc_objects").values()) == {2, 4}
    del outside


def test_rule_5_5_charged_to_the_span_of_the_thread(no_gc: None) -> None:
    """Another thread's spans, and those that are open elsewhere, get nothing."""
    kept: list[bytearray] = []

    def elsewhere() -> None:
        kept.append(bytearray(7_000_000))
        with span("b"):
            kept.append(bytearray(500_000))

    with spanprof.start(track_heap=True):
        with span("a"):
            in_thread(elsewhere)
        found = series(spanprof.snapshot(), "inuse_space")
    assert found["a",] < 100_000  # the thread itself
    assert 500_000 < found["b",] < 500_000 + TINY


def test_rule_5_5_an_opened_span_is_charged_while_it_runs(no_gc: None) -> None:
    bytearray(10)
    with spanprof.start(track_heap=True):
        opened = span("o").open()
        first = bytearray(1_000_000)
        with opened:
            second = bytearray(20_000)
        third = bytearray(3_000_000)
        opened.close()
        assert in_use("o") == (2, taken(second))
    del first, third


@exact_with_the_gil
@DOMAINS
def test_rule_5_5_realloc_is_one_deallocation_and_one_allocation(name: str) -> None:
    malloc, realloc, free, _ = domain(name)
    free(malloc(10))
    with spanprof.start(track_heap=True):
        with span("a"):
            block = malloc(1_000_000)
        before = now("a")
        assert 1_000_000 <= before["inuse_space"] < 1_000_000 + TINY
        with span("b"):
            block = realloc(block, 30_000_000)
        after = now("a")
        # The address itself is an int of 32 bytes, made by ctypes.
        assert before["inuse_objects"] - after["inuse_objects"] in (1, 2)
        assert before["inuse_space"] - after["inuse_space"] in (1_000_000, 1_000_032)
        assert before["alloc_space"] == after["alloc_space"]
        found = now("b")
        assert 30_000_000 <= found["alloc_space"] < 30_000_000 + TINY
        assert 30_000_000 <= found["inuse_space"] < 30_000_000 + TINY
        with span("c"):
            block = realloc(block, 2_000_000)
        assert now("b")["inuse_space"] < TINY
        assert 2_000_000 <= now("c")["inuse_space"] < 2_000_000 + TINY
        free(block)
        assert now("c")["inuse_space"] < TINY


def test_rule_5_5_realloc_counts_once(no_gc: None) -> None:
    bytearray(10).extend(b"abc")
    with spanprof.start(track_heap=True):
        with span("a"):
            block = bytearray(1000)
        for size in (10_000, 100, 1_000_000, 30_000_000, 17, 700):
            more = bytes(max(size - len(block), 0))
            rest = slice(size, None)
            before = spanprof.snapshot()
            with span("b"):
                if more:
                    block += more
                else:
                    del block[rest]
            found = values_of(spanprof.snapshot() - before, "b")
            assert found["alloc_objects"] == 1, size
            assert found["alloc_space"] == block.__alloc__(), size
            # Of two profiles the later one tells what is in use.
            assert in_use("b") == (1, block.__alloc__()), size
        assert in_use("a") == (1, bytearray.__basicsize__)


@DOMAINS
def test_rule_5_5_realloc_of_nothing_is_an_allocation(name: str) -> None:
    _, realloc, free, _ = domain(name)
    with spanprof.start(track_heap=True):
        with span("a"):
            block = realloc(None, 5_000_000)
        before = now("a")
        assert 5_000_000 <= before["inuse_space"] < 5_000_000 + TINY
        free(block)
        assert before["inuse_space"] - now("a")["inuse_space"] == 5_000_000


@DOMAINS
def test_rule_5_5_calloc_is_as_large_as_its_product(name: str) -> None:
    _, _, free, calloc = domain(name)
    with spanprof.start(track_heap=True):
        with span("a"):
            block = calloc(1000, 5000)
        before = now("a")
        assert 5_000_000 <= before["alloc_space"] < 5_000_000 + TINY
        free(block)
        assert before["inuse_space"] - now("a")["inuse_space"] == 5_000_000


@DOMAINS
def test_rule_5_5_a_failed_call_is_neither(name: str) -> None:
    malloc, realloc, free, calloc = domain(name)
    huge = 2**62
    with spanprof.start(track_heap=True):
        with span("a"):
            block = malloc(1_000_000)
        before = now("a")
        with span("b"):
            assert malloc(huge) is None
            assert malloc(2**63 - 1) is None
            assert malloc(2**64 - 1) is None
            assert calloc(2**31, 2**31) is None
            assert calloc(2**33, 2**33) is None
            assert realloc(None, huge) is None
            assert realloc(block, huge) is None
        assert now("a") == before
        assert now("b")["alloc_space"] < TINY
        assert now("b")["inuse_space"] < TINY
        free(block)
        assert before["inuse_space"] - now("a")["inuse_space"] == 1_000_000


def test_rule_5_5_a_failed_constructor_leaves_nothing(no_gc: None) -> None:
    def attempt() -> None:
        try:
            bytearray(2**62)
        except MemoryError:
            return
        raise AssertionError("no MemoryError")

    attempt()
    with spanprof.start(track_heap=True):
        with span("a"):
            for _ in range(100):
                attempt()
        found = now("a")
    assert found["alloc_space"] < 100 * 2000
    assert found["inuse_space"] < 2000


def test_rule_5_5_memory_from_before_is_never_reported_freed(no_gc: None) -> None:
    old = [bytearray(1000) for _ in range(1000)]
    large = bytearray(50_000_000)
    with spanprof.start(track_heap=True):
        with span("a"):
            new = bytearray(3000)
            old.clear()
        with span("b"):
            del large
        assert in_use("a") == (2, taken(new))
        assert in_use("b") == (0, 0)
        assert all(v >= 0 for v in spanprof.snapshot().totals.values())
        assert now("a")["alloc_objects"] == 2
        assert now("a")["inuse_peak_space"] == taken(new)


def test_rule_5_5_memory_from_before_that_is_resized(no_gc: None) -> None:
    """Only the new block counts."""
    old = bytearray(1000)
    more = bytes(500_000)
    with spanprof.start(track_heap=True):
        with span("a"):
            old += more
        found = now("a")
        assert (found["alloc_objects"], found["alloc_space"]) == (1, old.__alloc__())
        assert in_use("a") == (1, old.__alloc__())
        old.clear()
        assert in_use("a") == (0, 0)


def test_rule_5_5_memory_of_an_earlier_session(no_gc: None) -> None:
    with spanprof.start(track_heap=True) as first:
        with span("a"):
            kept = [bytearray(1000) for _ in range(1000)]
            kept.append(bytearray(40_000_000))
    expected = sum(map(taken, kept))
    ended = values_of(first.result, "a")
    assert expected <= ended["inuse_space"] < expected + TINY
    with spanprof.start(track_heap=True) as second:
        with span("a"):
            kept.clear()
            new = bytearray(70_000)
        assert in_use("a") == (2, taken(new))
    assert values_of(second.result, "a")["inuse_space"] == taken(new)
    assert values_of(first.result, "a") == ended


def test_rule_5_5_allocations_alone_have_no_live_heap() -> None:
    with spanprof.start(track_allocations=True) as session:
        with span("a"):
            block = bytearray(1_000_000)
    assert session.result.kinds == ("calls", "alloc")
    assert set(values_of(session.result, "a")) == {
        "calls",
        "alloc_objects",
        "alloc_space",
    }
    assert values_of(session.result, "a")["alloc_space"] == taken(block)
    assert session.result.heap_peak == 0


def test_rule_5_5_reuse_from_a_free_list_is_no_allocation(no_gc: None) -> None:
    count = 50
    kept: list[object] = [None] * count
    numbers = list(range(count))
    half = 0.5

    def floats() -> None:
        for n in numbers:
            kept[n] = n * half

    def strings() -> None:
        for n in numbers:
            kept[n] = bytes(n + 2)

    floats()
    kept[:] = [None] * count  # to the free list
    with spanprof.start(track_heap=True):
        with span("floats"):
            floats()
        assert now("floats")["alloc_objects"] < 10
        assert now("floats")["inuse_objects"] < 10
        kept[:] = [None] * count
        with span("strings"):
            strings()
        assert count <= now("strings")["alloc_objects"] < count + 10


def test_rule_5_5_objects_above_512_bytes_count_once(no_gc: None) -> None:
    """The object allocator passes them on to the raw one."""
    bytes(3)
    overhead = bytes.__basicsize__
    for size in (400, 512 - overhead, 513 - overhead, 1000, 5000, 20_000_000):
        before = spanprof.start(track_heap=True)
        with span("a"):
            block = bytes(size)
        assert now("a")["alloc_objects"] == 1, size
        assert now("a")["alloc_space"] == size + overhead, size
        assert in_use("a") == (1, size + overhead), size
        del block
        assert in_use("a") == (0, 0), size
        before.stop()


# --- 5.6: live heap -------------------------------------------------------------------


def test_rule_5_6_in_use_until_freed_wherever(no_gc: None) -> None:
    bytearray(10)
    kept: list[bytearray | None] = [None] * 3
    bytearray(10)
    with spanprof.start(track_heap=True):
        with span("a"):
            for n in (0, 1, 2):
                kept[n] = bytearray(5000)
        size = taken(bytearray(5000))
        base = now("a")["inuse_space"] - 3 * size
        assert 0 <= base < 200
        with span("b"):
            kept[0] = None
        assert now("a")["inuse_space"] == base + 2 * size
        kept[1] = None
        assert now("a")["inuse_space"] == base + size
        with span("a"):
            with span("a"):
                kept[2] = None
        assert now("a")["inuse_space"] == base
        assert now("a")["alloc_space"] >= 3 * size
        assert in_use("b") == (0, 0)
        assert in_use("a", "a") == (0, 0)


def test_rule_5_6_after_the_span_is_destroyed(no_gc: None) -> None:
    kept: list[bytearray] = []
    with spanprof.start(track_heap=True):
        for _ in range(100):
            with span("a"):
                kept.append(bytearray(1000))
        gc.collect()
        lists = now("a")["inuse_space"] - sum(map(taken, kept))
        assert 0 <= lists < 2000  # the list's array
        del kept[75:]
        assert now("a")["inuse_space"] == sum(map(taken, kept)) + lists
        kept.clear()
        assert in_use("a") == (0, 0)


@pytest.mark.parametrize("where", ["thread", "span", "main"])
def test_rule_5_6_freed_by_another_thread(where: str, no_gc: None) -> None:
    kept: list[bytearray | None] = [None] * 100

    def make() -> None:
        with span("a"):
            for n in range(len(kept)):
                kept[n] = bytearray(1000)

    def drop() -> None:
        for n in range(len(kept)):
            kept[n] = None

    def drop_in_span() -> None:
        with span("b"):
            drop()

    with spanprof.start(track_heap=True):
        in_thread(make)
        made = now("a")
        expected = sum(taken(block) for block in kept if block is not None)
        assert expected <= made["inuse_space"] < expected + 2000
        if where == "thread":
            in_thread(drop)  # has no state of ours
        elif where == "span":
            in_thread(drop_in_span)
        else:
            drop()
        left = now("a")
        assert made["inuse_space"] - left["inuse_space"] == expected
        assert made["inuse_objects"] - left["inuse_objects"] == 200
        assert left["alloc_space"] == made["alloc_space"]


def test_rule_5_6_exact_across_threads_of_one_node(no_gc: None) -> None:
    """Four threads in the same span hand every second block to the next."""
    count, threads = 2000, 4
    queues: list[queue.SimpleQueue[bytearray]] = [
        queue.SimpleQueue() for _ in range(threads)
    ]
    kept: list[list[bytearray | None]] = [[None] * count for _ in range(threads)]

    def work(number: int) -> None:
        mine, theirs = kept[number], queues[(number + 1) % threads]
        for n in range(count):
            with span("a"):
                block = bytearray(100 + n)
            if n % 2:
                theirs.put(block)
            else:
                mine[n] = block
            del block
        for _ in range(count // 2):
            queues[number].get()

    with spanprof.start(track_heap=True):
        in_threads(threads, work)
        blocks = [block for mine in kept for block in mine if block is not None]
        assert len(blocks) == threads * count // 2
        found = now("a")
        assert found["inuse_space"] == pytest.approx(sum(map(taken, blocks)), abs=1000)
        assert found["inuse_objects"] == pytest.approx(2 * len(blocks), abs=10)
        blocks.clear()
        for mine in kept:
            mine[:] = [None]
        assert now("a")["inuse_space"] < 1000


def test_rule_5_6_gc_frees_elsewhere(no_gc: None) -> None:
    class Node:
        block: bytearray
        other: "Node"
        __slots__ = ("block", "other")

    def cycles() -> None:
        for _ in range(1000):
            one, two = Node(), Node()
            one.other, two.other = two, one
            one.block = bytearray(1000)

    cycles()
    gc.collect()
    with spanprof.start(track_heap=True):
        with span("a"):
            cycles()
        assert now("a")["inuse_space"] > 1_000_000
        assert now("a")["inuse_objects"] >= 4000
        with span("b"):
            gc.collect()
        assert now("a")["inuse_objects"] < 10
        assert now("a")["inuse_space"] < 1000
        assert now("b")["inuse_space"] < TINY


def test_rule_5_6_gc_in_the_middle_of_spans() -> None:
    threshold = gc.get_threshold()
    gc.set_threshold(5, 2, 2)
    try:
        with spanprof.start(track_heap=True):
            for _ in range(300):
                with span("a"):
                    ring: list[object] = [bytearray(1000)]
                    ring.append(ring)
                    with span("b"):
                        other: list[object] = [ring, bytearray(100)]
                        other.append(other)
            del ring, other
            gc.collect()
            assert now("a")["alloc_space"] > 300_000
            assert now("a")["inuse_space"] < 2000
            assert now("a", "b")["inuse_space"] < 2000
    finally:
        gc.set_threshold(*threshold)


def test_rule_5_6_a_million_blocks_alive_at_the_stop(no_gc: None) -> None:
    session = spanprof.start(track_heap=True)
    with span("a"):
        kept = [n.to_bytes(9, "big") for n in range(1_000_000)]
    session.stop()
    found = values_of(session.result, "a")
    assert 1_000_000 <= found["inuse_objects"] < 1_000_200
    array = sys.getsizeof(kept) - list.__basicsize__
    assert found["inuse_space"] == pytest.approx(
        1_000_000 * sys.getsizeof(kept[0]) + array, abs=TINY
    )
    del kept[500_000:]
    with spanprof.start(track_heap=True):
        with span("a"):
            kept.clear()
            block = bytearray(999)
        assert in_use("a") == (2, taken(block))
    assert stat("heap_map_resident_bytes") < 20_000_000


def test_rule_5_6_a_thousand_sessions(no_gc: None) -> None:
    """Each knows its own block alone; the map does not grow."""
    kept: list[bytearray | None] = [None] * 1000
    for n in range(1000):
        session = spanprof.start(track_heap=True)
        size = n + 1  # an int may be a block itself
        with span("a"):
            kept[n] = block = bytearray(size)
        size = taken(block)
        del block
        with span("b"):
            kept[n // 2] = None
            if n % 3 == 0:
                kept[n] = None
        session.stop()
        found = values_of(session.result, "a")
        assert found["inuse_space"] == (size if kept[n] is not None else 0), n
        assert found["alloc_space"] == size, n
        if n == 100:
            mapped = stat("heap_map_mapped_bytes")
    assert stat("heap_map_mapped_bytes") < mapped + 500_000_000


def test_rule_5_5_a_session_that_counts_after_one_that_samples(no_gc: None) -> None:
    """Settings end with their session: every block is counted."""
    with spanprof.start(track_heap=True, heap_sample_bytes=1 << 30), span("a"):
        kept = [bytes(50) for _ in range(100)]
    with spanprof.start(track_allocations=True) as session, span("a"):
        kept = [bytes(50 + n) for n in range(100)]
    assert series(session.result, "alloc_objects")["a",] >= 100
    del kept


# --- 5.7: the profiler's own memory ---------------------------------------------------


def test_rule_5_7_spans_are_charged_to_nobody(no_gc: None) -> None:
    labels = [str(n) for n in range(1000)]
    with spanprof.start(track_heap=True, record_labels=["label"]):
        with span("a"):
            for label in labels:
                with span("b", label=label):
                    pass
        found = now("a")
        assert found["alloc_objects"] < 10
        assert found["inuse_space"] < 1000
        assert now("a", "b")["alloc_objects"] < 10


def test_rule_5_7_reports_are_charged_to_nobody() -> None:
    class Keep(Reporter):
        def profile(self, profile: Profile) -> None:
            self.kept = [bytearray(100_000) for _ in range(10)]

    with spanprof.start(
        track_heap=True, reporters=[Keep()], report_interval=0.01
    ) as session:
        with span("a"):
            for _ in range(10):
                session.flush()
            time.sleep(0.05)
        found = now("a")
    assert found["inuse_space"] < 100_000
    assert session.result.totals["inuse_space"] < 100_000


# --- peaks ----------------------------------------------------------------------------


@exact_with_the_gil
def test_peak_is_exact_on_one_thread(no_gc: None) -> None:
    bytearray(10)
    with spanprof.start(track_heap=True):
        with span("a"):
            held = bytearray(1_000_000)
            dropped = bytearray(10_000_000)
            top = taken(held) + taken(dropped)
            del dropped
            small = bytearray(5_000)
        found = now("a")
        assert found["inuse_peak_space"] == pytest.approx(top, abs=100)
        assert found["inuse_peak_space"] >= top
        assert 0 <= found["inuse_space"] - taken(held) - taken(small) < 100
        assert top <= spanprof.snapshot().heap_peak < top + 100
        del held, small
        assert top <= now("a")["inuse_peak_space"] < top + 100
        assert now("a")["inuse_space"] < 100


def test_peak_is_found_without_a_free(no_gc: None) -> None:
    bytearray(10)
    with spanprof.start(track_heap=True):
        with span("a"):
            one = bytearray(1_000_000)
            assert now("a")["inuse_peak_space"] >= taken(one)
            two = bytearray(2_000_000)
        found = now("a")["inuse_peak_space"] - taken(one) - taken(two)
        assert 0 <= found < 2 * TINY


def test_peak_of_all_is_not_the_sum_of_peaks(no_gc: None) -> None:
    with spanprof.start(track_heap=True) as session:
        for name in ("a", "b", "c"):
            with span(name):
                block = bytearray(10_000_000)
                del block
        with span("d"):
            held = bytearray(1_000_000)
    peaks = series(session.result, "inuse_peak_space")
    for name in ("a", "b", "c"):
        assert 10_000_000 <= peaks[name,] < 10_000_000 + TINY
    assert sum(peaks.values()) > 31_000_000
    assert 10_000_000 <= session.result.heap_peak < 10_000_000 + TINY
    assert 1_000_000 < session.result.totals["inuse_space"] < 1_000_000 + TINY
    del held


def test_peak_of_all_spans_together(no_gc: None) -> None:
    kept: list[bytearray] = []
    with spanprof.start(track_heap=True) as session:
        for size in (10_000_000, 15_000_000):
            with span("a"):
                kept.append(bytearray(size))
            if size == 10_000_000:
                with span("b"):
                    kept.append(bytearray(20_000_000))
            kept.clear()
    assert 30_000_000 <= session.result.heap_peak < 30_000_000 + TINY
    peak = values_of(session.result, "a")["inuse_peak_space"]
    assert 15_000_000 < peak < 15_000_000 + TINY


def test_peak_of_another_threads_free(no_gc: None) -> None:
    """Thread by thread the peak is late by 16 KiB at most."""
    kept: list[bytearray] = []

    def make() -> None:
        with span("a"):
            for _ in range(100):
                kept.append(bytearray(100_000))

    with spanprof.start(track_heap=True):
        for _ in range(3):
            in_thread(make)
            kept.clear()
        found = now("a")
    assert 9_900_000 < found["inuse_peak_space"] < 10_100_000
    assert found["alloc_space"] > 30_000_000


def test_peak_of_a_session_is_its_own() -> None:
    with spanprof.start(track_heap=True) as session:
        with span("a"):
            bytearray(50_000_000)
    assert session.result.heap_peak > 50_000_000
    with spanprof.start(track_heap=True) as session:
        with span("a"):
            bytearray(1_000_000)
    assert 1_000_000 < session.result.heap_peak < 1_000_000 + TINY


# --- sampling -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [40, 400, 4000])
def test_sampled_values_are_without_bias(size: int, no_gc: None) -> None:
    """With 10,000 samples or more the standard deviation is below 1.2 %."""
    count = 8_000_000 // size + 8000
    half = count // 2
    kept: list[bytes | None] = [None] * count
    numbers = list(range(count))
    bytes(size)
    with spanprof.start(track_heap=True, heap_sample_bytes=256) as session:
        with span("a"):
            for n in numbers:
                kept[n] = bytes(size)
        whole = now("a")
        expected = count * sys.getsizeof(kept[0])
        assert whole["inuse_space"] == pytest.approx(expected, rel=0.07)
        assert whole["inuse_objects"] == pytest.approx(count, rel=0.07)
        assert whole["alloc_objects"] == pytest.approx(count, rel=0.07)
        del kept[half:]
        assert now("a")["inuse_objects"] == pytest.approx(half, rel=0.07)
        kept.clear()
        assert in_use("a") == (0, 0)
        assert now("a")["alloc_space"] == whole["alloc_space"]
    assert session.result.heap_peak == pytest.approx(whole["inuse_space"], rel=0.1)


@exact_with_the_gil
def test_sampled_blocks_freed_by_others_leave_nothing(no_gc: None) -> None:
    made: list[list[bytearray]] = [[] for _ in range(4)]

    def make(number: int) -> None:
        with span("a"):
            made[number] += [bytearray(n % 3000) for n in range(5000)]

    def resize(number: int) -> None:
        with span("b"):
            for block in made[(number + 1) % 4]:
                block.extend(b"x" * 500)

    def drop(number: int) -> None:
        made[(number + 2) % 4].clear()

    with spanprof.start(track_heap=True, heap_sample_bytes=2000):
        in_threads(4, make)
        assert now("a")["inuse_space"] == pytest.approx(4 * 5000 * 1556, rel=0.2)
        in_threads(4, resize)
        assert now("b")["inuse_space"] > 4 * 5000 * 1000
        in_threads(4, drop)
        # What threads themselves left is less than a sample, mostly.
        assert now("a")["inuse_space"] < TINY
        assert now("b")["inuse_space"] < TINY


# --- leaks ----------------------------------------------------------------------------


PAUSE = 0.05
"""Ages are looked at for a fiftieth of the time at most."""


def names(profile: Profile, min_age: float, reports: int = 2) -> list[str]:
    return [leak.stack[0].name for leak in profile.leaks(min_age, reports=reports)]


def test_leaks_tell_a_leak_from_a_cache(no_gc: None) -> None:
    leak: list[bytearray] = []
    cache: dict[int, bytearray] = {}
    with spanprof.start(track_heap=True):
        for n in range(6):
            with span("leak", user=n):
                leak.append(bytearray(10_000))
            with span("cache"):
                cache[0] = bytearray(90_000)
            time.sleep(PAUSE)
            profile = spanprof.snapshot()
        assert names(profile, 0) == ["leak"]
        assert names(profile, 0, reports=5) == ["leak"]
        assert names(profile, 0, reports=100) == []
        (found,) = profile.leaks(0)
        assert 60_000 < found.space < 60_000 + TINY
        assert 5 <= found.reports <= 6
        assert [callsite.name for callsite in found.stack] == ["leak"]
        assert str(found).endswith(f", grown {found.reports} times in a row")
        # Once it does not grow it is none.
        time.sleep(PAUSE)
        assert names(spanprof.snapshot(), 0) == []
        # But what a profile says stays.
        assert names(profile, 0) == ["leak"]
        assert (profile - profile).leaks(0) == []
        assert names(profile, 3600) == []


def test_leaks_of_one_second(no_gc: None) -> None:
    """The leak's blocks get old, the buffer's do not, the cache stays."""
    leak: list[bytearray] = []
    found: list[list[str]] = []
    with spanprof.start(track_heap=True):
        with span("cache"):
            cache = bytearray(1_000_000)
        for n in range(9):
            with span("leak"):
                leak.append(bytearray(10_000))
            with span("buffer"):
                buffer = bytearray(100_000 + 1000 * n)
            time.sleep(0.35)
            found.append(names(spanprof.snapshot(), 1.0))
        assert names(spanprof.snapshot(), 10) == []
    seen = {name for each in found for name in each}
    assert found[0] == []
    assert "leak" in seen
    assert "buffer" not in seen
    assert "cache" not in seen
    del cache, buffer


def test_leaks_of_reports(no_gc: None) -> None:
    kept: list[bytearray] = []
    found: list[list[str]] = []

    class Look(Reporter):
        def profile(self, profile: Profile) -> None:
            found.append(names(profile, 0))

    with spanprof.start(
        track_heap=True,
        reporters=[Look()],
        report_interval=0,
        heap_snapshot_interval=0.001,
    ) as session:
        for _ in range(4):
            with span("leak"):
                kept.append(bytearray(10_000))
            time.sleep(PAUSE)
            session.flush()
            spanprof.snapshot()  # is no look where there are reporters
            spanprof.snapshot()
    assert ["leak"] in found
    assert found[0] == []


def test_leaks_largest_first(no_gc: None) -> None:
    kept: list[bytearray] = []
    with spanprof.start(track_heap=True):
        for _ in range(4):
            for n in (2, 3, 1):
                with span(f"leak{n}"):
                    kept.append(bytearray(10_000 * n))
            time.sleep(PAUSE)
            profile = spanprof.snapshot()
    assert names(profile, 0) == ["leak3", "leak2", "leak1"]


def test_leaks_need_live_heap() -> None:
    with spanprof.start(track_allocations=True) as session:
        with span("a"):
            pass
    assert session.result.leaks(0) == []


def test_leaks_refuse_bad_arguments() -> None:
    with spanprof.start(track_heap=True) as session:
        pass
    leaks: Callable[..., object] = session.result.leaks
    for age in ("1", None, True, [1]):
        with pytest.raises(TypeError, match="min_age must be a number of seconds, not"):
            leaks(age)
    for age in (-1, -0.001, 3601, math.inf, math.nan):
        with pytest.raises(ValueError, match="min_age must be between 0 and 3600: "):
            leaks(age)
    for wrong in (1.5, "2", None, True):
        with pytest.raises(TypeError, match="reports must be an int, not"):
            leaks(0, reports=wrong)
    for reports in (0, -1, 256):
        with pytest.raises(ValueError, match="reports must be between 1 and 255: "):
            leaks(0, reports=reports)
    with pytest.raises(TypeError):
        leaks(0, 2)
    assert leaks(3600, reports=255) == []


# --- profiles -------------------------------------------------------------------------


def test_a_difference_has_what_came_to_be_in_use(no_gc: None) -> None:
    bytearray(10)
    kept: list[bytearray | None] = [None] * 2
    sizes = (1_000_000, 200_000)
    profiles = []
    with spanprof.start(track_heap=True):
        for n, size in enumerate(sizes):
            with span("a"):
                kept[n] = bytearray(size)
            if n:
                kept[0] = None
            profiles.append(spanprof.snapshot())
        block = kept[1]
    assert block is not None
    first, second = profiles
    difference = values_of(second - first, "a")
    assert difference["alloc_space"] == taken(block)
    assert values_of(second, "a")["inuse_space"] == taken(block)
    assert difference["inuse_space"] == -800_000
    assert len(first - first) == 0
    total = values_of(first + (second - first), "a")
    assert total["inuse_space"] == taken(block)
    assert total["alloc_space"] == values_of(second, "a")["alloc_space"]


def test_of_two_reports_the_later_tells_what_is_in_use(no_gc: None) -> None:
    profiles: list[Profile] = []

    class Collect(Reporter):
        def profile(self, profile: Profile) -> None:
            profiles.append(profile)

    kept: list[bytearray | None] = [None] * 3
    bytearray(10)
    with spanprof.start(
        track_heap=True,
        reporters=[Collect()],
        report_interval=0,
        heap_snapshot_interval=0,
    ) as session:
        for n in range(3):
            with span("a"):
                kept[n] = bytearray(100_000)
            if n == 2:
                kept[0] = kept[1] = None
            session.flush()
    ours = [p for p in profiles if ("a",) in by_path(p)]
    size = taken(bytearray(100_000))
    levels = [values_of(p, "a")["inuse_space"] for p in ours[:3]]
    assert levels == pytest.approx([size, 2 * size, size], abs=200)
    for total in (sum(ours[1:], ours[0]), sum(ours[-2::-1], ours[-1])):
        found = values_of(total, "a")
        assert found["inuse_space"] == pytest.approx(size, abs=200)
        assert found["inuse_peak_space"] == pytest.approx(3 * size, abs=200)
        assert found["alloc_space"] == pytest.approx(3 * size, abs=500)
        assert found == values_of(session.result, "a")


def test_a_file_has_the_live_heap(tmp_path: Path, no_gc: None) -> None:
    with spanprof.start(track_heap=True, record_labels=["user"]) as session:
        with span("a", user="x"):
            one = bytearray(1_000_000)
            with span("b"):
                two = bytearray(200_000)
                bytearray(3_000_000)
    path = tmp_path / "some.heap.pb.gz"
    session.result.write(path, "heap")
    read = Profile.read(path)
    assert read.kinds == ("heap",)
    assert read.heap_peak == 0
    kept = ("inuse_objects", "inuse_space", "inuse_peak_space")
    expected = {
        path_: {name: value for name, value in values.items() if name in kept}
        for path_, values in by_path(session.result).items()
    }
    assert by_path(read) == expected
    assert expected["a", "b"]["inuse_peak_space"] > 3_200_000
    assert 1_200_000 < sum(v["inuse_space"] for v in expected.values()) < 1_210_000
    assert read.leaks(0) == []
    del one, two


def test_run_heap_shows_the_heap(tmp_path: Path) -> None:
    program = tmp_path / "allocates.py"
    program.write_text(
        "import spanprof\n"
        "with spanprof.span('load'):\n"
        "    kept = bytearray(5 * 2**20)\n"
        "    bytearray(2**20)\n"
    )
    code = "import sys\nfrom spanprof.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    done = run_python(code, "run", "--heap", str(program), cwd=tmp_path)
    text = done.stdout + done.stderr
    for column in ("heap total", "heap self", "heap objects", "heap peak"):
        assert column in text
    (row,) = [line for line in text.splitlines() if line.startswith("load")]
    assert "5.00 MiB" in row
    assert "6.00 MiB" in row
    done = run_python(code, "run", str(program), cwd=tmp_path)
    assert "heap total" not in done.stdout + done.stderr


# --- random programs ------------------------------------------------------------------

SLOTS = 6
PATHS = st.lists(st.sampled_from("abc"), max_size=4).map(tuple)
SIZES = st.one_of(
    st.integers(0, 4000), st.sampled_from([70_000, 1_000_000, 17_000_000])
)
STEPS = st.tuples(
    PATHS,
    st.sampled_from(["make", "make", "grow", "cut", "drop"]),
    st.integers(0, SLOTS - 1),
    SIZES,
)
PROGRAMS = st.lists(STEPS, max_size=15)


class Blocks:
    """Bytearrays, and which span each of their two blocks belongs to."""

    def __init__(self) -> None:
        self.slots: list[bytearray | None] = [None] * SLOTS
        self.owners: list[list[tuple[str, ...]]] = [[(), ()] for _ in range(SLOTS)]

    def run(self, program: list[tuple[tuple[str, ...], str, int, int]]) -> None:
        for path, what, slot, size in program:
            block = self.slots[slot]
            if block is None and what != "make":
                continue
            before = 0 if block is None else block.__alloc__()
            more = bytes(size)
            del block
            self.step(path, 0, what, slot, size, more)
            block = self.slots[slot]
            if what == "make":
                self.owners[slot] = [path, path]
            elif block is not None and block.__alloc__() != before:
                self.owners[slot][1] = path

    def step(
        self,
        path: tuple[str, ...],
        depth: int,
        what: str,
        slot: int,
        size: int,
        more: bytes,
    ) -> None:
        if depth < len(path):
            with span(path[depth]):
                self.step(path, depth + 1, what, slot, size, more)
        elif what == "make":
            self.slots[slot] = bytearray(size)
        elif what == "drop":
            self.slots[slot] = None
        else:
            block = self.slots[slot]
            assert block is not None
            if what == "grow":
                block += more
            else:
                del block[size:]

    def add_to(self, result: dict[tuple[str, ...], list[int]]) -> None:
        for block, (object_owner, bytes_owner) in zip(
            self.slots, self.owners, strict=True
        ):
            if block is None:
                continue
            sizes = (bytearray.__basicsize__, block.__alloc__())
            for owner, size in zip((object_owner, bytes_owner), sizes, strict=True):
                if owner and size:
                    known = result.setdefault(owner, [0, 0])
                    known[0] += 1
                    known[1] += size


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rounds=st.integers(1, 3).flatmap(
        lambda threads: st.lists(
            st.lists(PROGRAMS, min_size=threads, max_size=threads),
            min_size=1,
            max_size=3,
        )
    )
)
def test_rule_5_6_random_programs(
    rounds: list[list[list[tuple[tuple[str, ...], str, int, int]]]],
) -> None:
    """Threads work at a time, each on the blocks that another one left."""
    threads = len(rounds[0])
    blocks = [Blocks() for _ in range(threads)]
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        warm = Blocks()
        warm.run([(("a",), what, 0, 1000) for what in ("make", "grow", "cut", "drop")])
        many = [(n,) for n in range(100)]  # there are tuples on the free list
        del many
        with spanprof.start(track_heap=True):
            for number, programs in enumerate(rounds):

                def work(
                    thread: int, number: int = number, programs: object = programs
                ) -> None:
                    assert isinstance(programs, list)
                    blocks[(thread + number) % threads].run(programs[thread])

                in_threads(threads, work)
                expected: dict[tuple[str, ...], list[int]] = {}
                for each in blocks:
                    each.add_to(expected)
                assert found_in_use() == expected
            for each in blocks:
                each.slots.clear()
            assert found_in_use() == {}
    finally:
        if was_enabled:
            gc.enable()
        spanprof.stop()


def found_in_use() -> dict[tuple[str, ...], list[int]]:
    return {
        path: [values["inuse_objects"], values["inuse_space"]]
        for path, values in by_path(spanprof.snapshot()).items()
        if values["inuse_objects"] or values["inuse_space"]
    }
