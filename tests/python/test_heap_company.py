"""Live heap beside others: sessions, threads, children, and whoever hooks as well."""

from __future__ import annotations

import gc
import random
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import spanprof
from spanprof import Profile, span

from .helpers import (
    IS_FREE_THREADED,
    Values,
    by_path,
    in_child,
    in_threads,
    run_python,
)

ROOM = 4096


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
                # Not where two threads may do it at a time: bytearray itself does not
                # stand that on free-threaded 3.13.
                resize = not IS_FREE_THREADED and numbers.random() < 0.5
                if isinstance(what, bytearray) and resize:
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


def test_rule_6_6_a_child_begins_with_nothing() -> None:
    with spanprof.start(track_heap=True):
        with span("a"):
            parents = bytearray(1_000_000)

        def work() -> None:
            nonlocal parents
            assert inuse("a") == 0
            del parents
            assert inuse("a") == 0
            with span("a"):
                mine = bytearray(2_000_000)
            assert is_about(inuse("a"), 2_000_000)
            del mine
            assert 0 <= inuse("a") < ROOM

        in_child(work)
        assert is_about(inuse("a"), 1_000_000)
        del parents


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
    with spanprof.start(track_heap=True), span("a"):
        bytearray(1000)
    assert not caplog.records
