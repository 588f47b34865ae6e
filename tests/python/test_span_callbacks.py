"""The seed's callbacks: span_created, span_cpu, span_wall and so on.

What is told when is checked in tests/core/test_roster.py against a model; here, that it
reaches reporters as they were promised.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import spanprof
from spanprof import (
    Reporter,
    SpanAllocations,
    SpanCpuTime,
    SpanHeap,
    SpanMetadata,
    SpanWallTime,
    span,
)

from .helpers import (
    ManualClock,
    by_path,
    exact_with_the_gil,
    in_thread,
    in_threads,
    run_python,
)
from .listener import Listener, told

SPAN_CALLS = [
    "span_created",
    "span_cpu",
    "span_wall",
    "span_allocations",
    "span_heap",
    "span_destroyed",
]


# --- what is told, and in which order -------------------------------------------------


def test_rule_6_1_created_then_values_then_destroyed(clock: ManualClock) -> None:
    listener, session = told(record_labels=["user"])
    with session:
        with span("outer", user="a", other="b") as outer:
            clock(10, 4)
            with span("inner") as inner:
                clock(5, 5)
            ids = outer.id, inner.id
        spanprof.flush()
    assert not listener.faults
    (outer_id,), (inner_id,) = listener.ids("outer"), listener.ids("inner")
    assert (outer_id, inner_id) == ids
    assert list(listener.metadata) == [*ids], "a parent comes first"
    metadata = listener.metadata[inner_id]
    assert metadata.scope == (inner_id, outer_id)
    assert metadata.target == __name__
    assert Path(metadata.file).samefile(__file__)
    assert listener.metadata[outer_id].labels == {"user": "a"}
    assert metadata.labels == {}
    assert metadata.line == listener.metadata[outer_id].line + 2
    assert listener.of("outer")["busy"] == 10
    assert listener.of("outer")["user"] + listener.of("outer")["system"] == 4
    assert listener.of("inner")["busy"] == 5
    assert not listener.alive


def test_the_calls_of_one_span_in_order() -> None:
    listener, session = told()
    with session:
        with span("a"):
            pass  # and so allocates nothing
        spanprof.flush()
        during = list(listener.calls)
    assert during == ["init", *SPAN_CALLS, "flush"]
    assert listener.calls == [*during, "flush"], "6.2: last"


def test_rule_5_1_values_are_relative_to_the_last_call(clock: ManualClock) -> None:
    calls: list[tuple[int, int]] = []

    class Wall(Reporter):
        def span_wall(self, id: int, wall: SpanWallTime) -> None:
            calls.append((wall.elapsed_busy_nanos, wall.elapsed_idle_nanos))

    with spanprof.start(track_wall=True, reporters=[Wall()]):
        spanprof.flush()  # what start() asks for is over
        job = span("job").open()
        clock(7)
        spanprof.flush()
        with job:
            clock(3)
            spanprof.flush()
            clock(4)
            spanprof.flush()
        clock(1)
        job.close()
    assert calls == [(0, 7), (3, 0), (4, 0), (0, 1)]


def test_rule_5_3_a_long_span_is_told_of_at_every_report() -> None:
    heard = threading.Semaphore(0)
    busy: list[int] = []

    class Wall(Reporter):
        def span_wall(self, id: int, wall: SpanWallTime) -> None:
            busy.append(wall.elapsed_busy_nanos)
            heard.release()

    with (
        spanprof.start(track_wall=True, report_interval=0.02, reporters=[Wall()]),
        span("long"),
    ):
        for _ in range(4):
            assert heard.acquire(timeout=60)
    assert all(nanos >= 10_000_000 for nanos in busy[1:4])


def test_rule_5_2_what_is_told_adds_up_to_the_profile() -> None:
    """Random nesting on several threads, also of opened spans: to the last unit."""
    listener, session = told(report_interval=0.005, max_pending_spans=10**6)
    names = "abc"

    def work(number: int) -> None:
        chance = random.Random(number)
        opened = span(f"opened {number}").open()

        def nest(depth: int) -> None:
            with span(chance.choice(names)):
                bytearray(chance.randrange(2000))
                if depth < 5:
                    for _ in range(chance.randrange(4)):
                        nest(depth + 1)
                if chance.random() < 0.1:
                    with opened:
                        bytearray(10)

        for _ in range(60):
            nest(0)
        opened.close()

    with session:
        in_threads(4, work)
    assert not listener.faults
    assert not listener.alive
    profile = Counter(
        {
            (path, short): values[name]
            for path, values in by_path(session.result).items()
            for short, name in (
                ("busy", "wall_busy"),
                ("idle", "wall_idle"),
                ("objects", "alloc_objects"),
                ("bytes", "alloc_space"),
                ("user", "cpu_user"),
                ("system", "cpu_system"),
            )
        }
    )
    sums = listener.sums()
    for path in {path for path, _ in profile}:
        for name in ("objects", "bytes", "busy", "idle"):
            assert sums[path, name] == profile[path, name], (path, name)
        # How CPU time is split may be found out after a span is over.
        cpu = sums[path, "user"] + sums[path, "system"]
        assert cpu == profile[path, "user"] + profile[path, "system"]
    calls = sum(values["calls"] for values in by_path(session.result).values())
    assert len(listener.metadata) == calls


def test_rule_4_4_a_child_on_another_thread_has_its_parents_scope() -> None:
    listener, session = told()
    with session, span("parent") as parent:

        def work() -> None:
            with parent.span("child"):
                spanprof.flush()

        in_thread(work)
    assert not listener.faults
    (child,) = listener.ids("child")
    assert listener.metadata[child].scope == (child, parent_id(listener))


def parent_id(listener: Listener) -> int:
    (id,) = listener.ids("parent")
    return id


# --- memory in use --------------------------------------------------------------------


@exact_with_the_gil
def test_rule_5_6_a_span_is_destroyed_when_its_last_byte_is_freed() -> None:
    listener, session = told(heap_snapshot_interval=0)
    with session:
        with span("owner"):
            kept = [bytearray(100_000)]
        spanprof.flush()
        (id,) = listener.ids("owner")
        assert id in listener.alive
        assert listener.heap[id].in_use_bytes >= 100_000
        assert listener.heap[id].in_use_count >= 2
        in_thread(kept.clear)
        del kept
        spanprof.flush()
        assert id not in listener.alive
        assert listener.heap[id] == SpanHeap(0, 0)
    assert not listener.faults


def test_rule_5_6_the_smallest_are_folded() -> None:
    listener, session = told(max_closed_heap_spans=4, heap_snapshot_interval=0)
    kept = []
    folded = spanprof.stats().heap_spans_folded
    with session:
        for n in range(10):
            with span("owner"):
                kept.append(bytearray(1000 * (n + 1)))
        spanprof.flush()
        waiting = [id for id in listener.ids("owner") if id in listener.alive]
        assert len(waiting) == 4
        sizes = [listener.heap[id].in_use_bytes for id in waiting]
        assert min(sizes) > 6000, "the largest are kept"
        assert spanprof.stats().heap_spans_folded == folded + 6
    (values,) = by_path(session.result).values()
    assert values["inuse_space"] >= sum(map(len, kept)), "the node's stays exact"


def test_rule_6_2_at_the_end_each_span_has_its_last_heap() -> None:
    listener, session = told()
    kept = []
    with session:
        with span("ended"):
            kept.append(bytearray(100_000))
        running = span("running")
        running.__enter__()
        kept.append(bytearray(200_000))
        opened = span("opened").open()
    assert not listener.faults
    assert not listener.alive
    heap = {
        listener.metadata[id].span_name: value for id, value in listener.heap.items()
    }
    assert heap["ended"].in_use_bytes >= 100_000
    assert heap["running"].in_use_bytes >= 200_000
    assert "opened" in heap
    assert listener.calls[-1] == "flush"
    running.__exit__(None, None, None)
    opened.close()


def test_heap_is_told_at_its_own_interval() -> None:
    heard = threading.Semaphore(0)
    heaps = 0

    class Heap(Reporter):
        def span_wall(self, id: int, wall: SpanWallTime) -> None:
            heard.release()

        def span_heap(self, id: int, heap: SpanHeap) -> None:
            nonlocal heaps
            heaps += 1

    with spanprof.start(
        track_all=True,
        report_interval=0.01,
        heap_snapshot_interval=3600,
        reporters=[Heap()],
    ):
        with span("a"):
            kept = bytearray(1000)
            for _ in range(5):
                assert heard.acquire(timeout=60)
            before = heaps
            spanprof.flush()
        assert before <= 1
        assert heaps == before + 1, "a flush holds nothing back"
    del kept


# --- reporters ------------------------------------------------------------------------


def test_rule_6_4_only_what_is_overridden_and_tracked_is_called() -> None:
    calls = []

    class Some(Reporter):
        def span_cpu(self, id: int, cpu: SpanCpuTime) -> None:
            calls.append(type(cpu))

        def span_heap(self, id: int, heap: SpanHeap) -> None:
            calls.append(type(heap))

    with spanprof.start(track_cpu=True, reporters=[Some(), Reporter()]), span("a"):
        pass
    assert calls == [SpanCpuTime]


@pytest.mark.parametrize("method", SPAN_CALLS)
@pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt])
def test_rule_6_3_what_a_callback_raises_harms_nobody(
    method: str, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> None:
        raise error("from the reporter")

    bad = type("Bad", (Reporter,), {method: fail})()
    before = spanprof.stats().reporter_errors
    with caplog.at_level(logging.DEBUG, "spanprof"):
        listener, session = told(bad)
        with session:
            for _ in range(3):
                with span("a"):
                    pass
    assert not listener.faults
    assert Counter(listener.calls)["span_destroyed"] == 3
    assert spanprof.stats().reporter_errors == before + 3
    (first, *_) = [r for r in caplog.records if "failed" in r.getMessage()]
    assert f"Bad.{method}() failed" in first.getMessage()
    assert first.exc_info is not None
    assert first.exc_info[0] is error
    assert len(caplog.records) < 3 + 1


def test_rule_6_3_several_reporters_each_hear_everything() -> None:
    second = Listener()
    first, session = told(second)
    second.calls.remove("flush")
    with session:
        for _ in range(100):
            with span("a"), span("b"):
                pass
    assert first.metadata == second.metadata
    assert first.values == second.values
    assert first.calls == second.calls
    assert len(first.metadata) == 200
    assert first.threads == second.threads
    assert threading.get_ident() not in first.threads


def test_rule_6_7_what_a_callback_opens_is_not_recorded() -> None:
    class Opens(Listener):
        def span_created(self, id: int, metadata: SpanMetadata) -> None:
            super().span_created(id, metadata)
            with span("of the reporter") as mine:
                assert not mine.is_recording

    opens = Opens()
    with spanprof.start(track_all=True, reporters=[opens]) as session:
        for _ in range(3):
            with span("a"):
                pass
    assert not opens.faults
    assert {each.span_name for each in opens.metadata.values()} == {"a"}
    assert list(by_path(session.result)) == [("a",)]


def test_rule_6_5_a_callback_that_hangs_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    let_go = threading.Event()

    class Hangs(Reporter):
        def span_wall(self, id: int, wall: SpanWallTime) -> None:
            let_go.wait(60)

    session = spanprof.start(track_wall=True, stop_timeout=0.05, reporters=[Hangs()])
    with span("a"):
        pass
    with caplog.at_level(logging.WARNING, "spanprof"):
        assert not session.stop()
    let_go.set()
    assert session.stop(60)
    (record,) = caplog.records
    assert "Hangs.span_wall() has not returned" in record.getMessage()


def test_rule_5_8_what_is_dropped_is_counted_and_the_rest_is_in_order() -> None:
    let_go = threading.Event()
    inside = threading.Event()

    class Slow(Listener):
        def init(self, config: spanprof.ProfileConfig) -> None:
            super().init(config)
            inside.set()
            let_go.wait(60)

    slow = Slow()
    dropped = spanprof.stats().spans_dropped
    session = spanprof.start(track_all=True, max_pending_spans=50, reporters=[slow])
    assert inside.wait(60)
    for _ in range(100):
        with span("outer"), span("inner"):
            pass
    let_go.set()
    session.stop(60)
    assert not slow.faults
    assert not slow.alive
    dropped = spanprof.stats().spans_dropped - dropped
    assert len(slow.metadata) + dropped == 200
    assert dropped >= 100


def test_a_session_of_each_kind_begins_and_ends_with_init_and_flush() -> None:
    listener = Listener()
    for _ in range(3):
        with spanprof.start(track_wall=True, reporters=[listener]):
            for _ in range(10_000):  # more than make the feed due
                with span("a"):
                    pass
        assert listener.calls[0] == "init"
        assert listener.calls[-1] == "flush"
        assert listener.calls.count("init") == 1
        assert listener.calls.count("span_destroyed") == 10_000
        listener.calls.clear()
    assert not listener.faults


def test_rule_6_5_all_is_told_when_the_interpreter_exits(tmp_path: Path) -> None:
    program = """
import spanprof

class Tell(spanprof.Reporter):
    def span_created(self, id, metadata):
        print("created", metadata.span_name)
    def span_destroyed(self, id):
        print("destroyed")
    def span_heap(self, id, heap):
        print("heap", heap.in_use_bytes >= 1_000_000)

spanprof.start(track_all=True, reporters=[Tell()])
opened = spanprof.span("opened").open()
with opened:
    kept = bytearray(1_000_000)
spanprof.span("running").__enter__()
"""
    done = run_python(program, cwd=tmp_path)
    lines = Counter(done.stdout.splitlines())
    assert lines["created opened"] == lines["created running"] == 1
    assert lines["destroyed"] == 2
    assert lines["heap True"] == 1
    assert done.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_rule_6_6_open_spans_go_on_in_a_child(tmp_path: Path) -> None:
    """Each process is told of all that is its own, and of nothing else."""
    program = """
import json, os, spanprof, time

class Tell(spanprof.Reporter):
    def init(self, config):
        self.calls = ["init"]
        self.names = {}
        self.busy = {}
    def span_created(self, id, metadata):
        self.names[id] = metadata.span_name
        self.calls.append(["created", *(self.names[each] for each in metadata.scope)])
    def span_wall(self, id, wall):
        name = self.names[id]
        self.busy[name] = self.busy.get(name, 0) + wall.elapsed_busy_nanos
    def span_destroyed(self, id):
        self.calls.append(["destroyed", self.names[id]])

def burn():
    sum(range(1_000_000))

tell = Tell()
session = spanprof.start(track_wall=True, reporters=[tell])
outer = spanprof.span("outer")
outer.__enter__()
opened = spanprof.span("opened").open()
with spanprof.span("before"):
    burn()
burn()
spanprof.flush()
began = time.perf_counter_ns()
child = os.fork()
with spanprof.span("after"):
    pass
with opened:
    pass
opened.close()
outer.__exit__(None, None, None)
with open(f"{'parent' if child else 'child'}.json", "w") as file:
    session.stop()
    json.dump([tell.calls, tell.busy, time.perf_counter_ns() - began], file)
if child:
    assert os.waitpid(child, 0)[1] == 0
else:
    os._exit(0)
"""
    run_python(program, cwd=tmp_path)
    parent, child = (
        json.loads((tmp_path / f"{name}.json").read_text())
        for name in ("parent", "child")
    )
    for calls, _, _ in (parent, child):
        assert calls[0] == "init"
        assert calls.count("init") == 1
        created = [call[1] for call in calls if call[0] == "created"]
        assert len(set(created)) == len(created)
        assert {call[1] for call in calls if call[0] == "destroyed"} == set(created)
        assert ["created", "after", "outer"] in calls
        assert ["created", "opened", "outer"] in calls
    assert ["created", "before", "outer"] in parent[0]
    assert ["created", "before", "outer"] not in child[0]
    assert set(child[1]) == {"outer", "opened", "after"}
    assert child[1]["outer"] < child[2], "from zero"


@exact_with_the_gil
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_rule_5_7_what_a_child_begins_with_is_charged_to_nobody(tmp_path: Path) -> None:
    program = """
import os, spanprof

spanprof.start(track_all=True, reporters=[spanprof.Reporter()])
with spanprof.span("outer"):
    child = os.fork()
    if not child:
        (outer,) = spanprof.snapshot().samples
        # Python has hooks of its own, and a warning about threads.
        print(outer.values["alloc_space"] < 6000, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
    assert run_python(program, cwd=tmp_path).stdout == "True\n"


# --- the values -----------------------------------------------------------------------

VALUES = [
    SpanCpuTime(1, 2),
    SpanWallTime(1, 2),
    SpanAllocations(1, 2),
    SpanHeap(1, 2),
    SpanMetadata((2, 1), 3, "module", "name", "file.py", 4, {"key": "value"}),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_immutable_and_compared_by_value(value: Any) -> None:
    same = copy.deepcopy(value)
    assert same is not value
    assert same == value == pickle.loads(pickle.dumps(value))
    assert hash(same) == hash(value)
    assert value == eval(repr(value), vars(spanprof))
    assert value not in [other for other in VALUES if other is not value]
    assert value != (1, 2)
    with pytest.raises(AttributeError):
        value.anything = 1
    for name in (each for each in dir(value) if not each.startswith("_")):
        with pytest.raises((AttributeError, TypeError)):
            setattr(value, name, 5)
    with pytest.raises(TypeError):
        type(value).anything = 1
    with pytest.raises(TypeError):
        type("Sub", (type(value),), {})


@pytest.mark.parametrize("kind", [SpanCpuTime, SpanWallTime, SpanAllocations, SpanHeap])
def test_rule_3_8_bad_numbers_are_refused(kind: Any) -> None:
    assert kind(0, 2**64 - 1) != kind(2**64 - 1, 0)
    for bad in (-1, 2**64):
        with pytest.raises(ValueError, match=str(bad)):
            kind(bad, 0)
    for worse in ("1", 1.5, None):
        with pytest.raises(TypeError):
            kind(0, worse)
    with pytest.raises(TypeError):
        kind(1)


def test_fields_have_the_seeds_names() -> None:
    assert SpanCpuTime(elapsed_user_nanos=1, elapsed_system_nanos=2) == VALUES[0]
    assert SpanWallTime(elapsed_busy_nanos=1, elapsed_idle_nanos=2) == VALUES[1]
    assert SpanAllocations(allocation_count=1, allocated_bytes=2) == VALUES[2]
    assert SpanHeap(in_use_bytes=1, in_use_count=2) == VALUES[3]
    assert (VALUES[3].in_use_bytes, VALUES[3].in_use_count) == (1, 2)


def test_metadata_keeps_what_it_was_given() -> None:
    labels = {"a": "b"}
    metadata = SpanMetadata([2, 1], 3, "t", "n", "f", 4, labels)
    labels["c"] = "d"
    assert metadata.labels == {"a": "b"}
    with pytest.raises(TypeError):
        metadata.labels["x"] = "y"  # type: ignore[index]
    assert metadata.scope == (2, 1)
    assert SpanMetadata((), 0, "", "", "", 0).labels == {}
    for bad in (("1",), [None]):
        with pytest.raises(TypeError):
            SpanMetadata(bad, 3, "t", "n", "f", 4)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        SpanMetadata((), 3, "t", "n", "f", 4, {"a": 1})  # type: ignore[dict-item]


def test_a_callsite_has_one_number() -> None:
    listener, session = told()
    with session:
        for name in ("a", "b", "a"):
            with span(name):
                pass
        with span("a"):
            pass
    numbers = [each.callsite for each in listener.metadata.values()]
    assert numbers[0] == numbers[2]
    assert len(set(numbers)) == 3
