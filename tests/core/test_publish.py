"""What the core tells profilers outside of the process: OTEP 4947 and OTEP 4719."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from outside_reader import Library, process_contexts, record_at

from . import library
from .binding import Core, Span, Thread
from .test_fork import in_child

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture(scope="module")
def outside() -> Library:
    return Library(library.find())


@pytest.fixture
def core(core: Core) -> Core:
    """The core, whose sessions publish."""
    core.publish()
    return core


def running(core: Core, thread: Thread) -> int:
    """The id of the span that a simulated thread is told to run; 0: none."""
    address = core.lib.spt_thread_context(thread.pointer)
    record = record_at(int(core.ffi.cast("uintptr_t", address)))
    if record is None:
        return 0
    assert record.trace_id == core.trace_id
    assert record.flags == 3
    assert record.attributes == b""
    return record.span_id


class Mine:
    """Spans of the calling OS thread, as the binding runs them."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def state(self) -> Any:
        return self.core.lib.spt_thread_mine()

    def begin(self) -> Span:
        span = self.core.span()
        self.core.lib.sp_span_begin(self.state(), span.pointer, self.core.key("a"))
        return span

    def exit(self, span: Span) -> None:
        self.core.lib.sp_span_exit(self.state(), span.pointer)


def on_thread(body: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            body()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    # The system's thread ends a little later, and gives its state back then.
    task = Path(f"/proc/self/task/{thread.native_id}")
    for _ in range(100_000):
        if not task.exists():
            break
        time.sleep(0.0001)
    if errors:
        raise errors[0]


# --- one thread ---------------------------------------------------------------------


def test_rule_4_1_the_innermost_span_is_told(core: Core) -> None:
    core.start()
    thread = core.thread()
    assert running(core, thread) == 0
    with thread.span("a") as a:
        assert running(core, thread) == a.id
        for _ in range(3):
            with thread.span("b") as b:
                assert running(core, thread) == b.id
            assert running(core, thread) == a.id
    assert running(core, thread) == 0


def test_rule_3_2_an_opened_span_is_told_while_it_is_entered(core: Core) -> None:
    core.start()
    one, two = core.thread(), core.thread()
    span = one.open("a")
    assert running(core, one) == 0
    for thread in (one, two):
        thread.enter(span)
        assert running(core, thread) == span.id
        thread.exit(span)
        assert running(core, thread) == 0
    one.close(span)


def test_rule_4_3_below_a_span_of_another_thread(core: Core) -> None:
    core.start()
    one, two = core.thread(), core.thread()
    parent = one.begin("a")
    child = two.begin("b", parent=parent)
    assert running(core, one) == parent.id
    assert running(core, two) == child.id
    one.exit(parent)
    assert (running(core, one), running(core, two)) == (0, child.id)
    two.exit(child)


def test_rule_3_8_exits_out_of_order(core: Core) -> None:
    core.start()
    thread = core.thread()
    a, b, c = (thread.begin(name) for name in "abc")
    thread.exit(b)
    assert running(core, thread) == c.id
    thread.exit(c)
    assert running(core, thread) == a.id
    thread.exit(a)
    assert running(core, thread) == 0


def test_rule_3_8_an_exit_by_another_thread(core: Core) -> None:
    """The running thread takes the span off when it comes by next."""
    core.start()
    thread, other = core.thread(), core.thread()
    a, b = thread.begin("a"), thread.begin("b")
    assert not other.exit(b)
    thread.ready()
    assert running(core, thread) == a.id
    thread.exit(a)


def test_with_a_feed_as_well(core: Core) -> None:
    core.feed_limit(100)
    core.start()
    thread = core.thread()
    with thread.span("a") as a:
        with thread.span("b") as b:
            assert running(core, thread) == b.id
        assert running(core, thread) == a.id
    assert {record.id for record in core.take_spans()} == {a.id, b.id}
    assert running(core, thread) == 0
    core.stop()
    core.feed_limit(0)


def test_rule_3_7_a_span_that_is_sampled_out_is_not_told(core: Core) -> None:
    answers = iter([False, True])
    core.sample_by(lambda: next(answers))
    core.start()
    thread, other = core.thread(), core.thread()
    out = thread.begin("out")
    assert running(core, thread) == 0
    below = thread.begin("below")
    assert below.is_sampled_out
    assert running(core, thread) == 0
    recorded = other.begin("recorded")
    inside = thread.begin("inside", parent=recorded)
    assert running(core, thread) == inside.id
    foreign = thread.begin("foreign", parent=out)
    assert foreign.is_sampled_out
    assert running(core, thread) == 0
    thread.exit(foreign)
    assert running(core, thread) == inside.id
    thread.exit(inside)
    assert running(core, thread) == 0
    thread.exit(below)
    thread.exit(out)
    other.exit(recorded)


def test_rule_3_7_an_opened_span_that_is_sampled_out(core: Core) -> None:
    answers = iter([False, True])
    core.sample_by(lambda: next(answers))
    core.start()
    thread = core.thread()
    out = thread.open("out")
    recorded = thread.begin("recorded")
    thread.enter(out)
    assert running(core, thread) == 0
    thread.exit(out)
    assert running(core, thread) == recorded.id
    thread.exit(recorded)
    thread.close(out)


# --- sessions -----------------------------------------------------------------------


def test_off_by_default(core: Core, outside: Library) -> None:
    core.publish(False)
    core.start()
    assert core.trace_id is None
    mine = Mine(core)

    def body() -> None:
        span = mine.begin()
        assert outside.address() is None
        mine.exit(span)

    on_thread(body)
    thread = core.thread()
    with thread.span("a"):
        assert running(core, thread) == 0
    assert process_contexts() == []


def test_rule_3_6_nothing_is_valid_after_the_session(core: Core) -> None:
    """Neither of threads that are in a span, nor of those that leave one later."""
    core.start()
    first = core.trace_id
    leaves, stays = core.thread(), core.thread()
    span, staying = leaves.begin("a"), stays.begin("a")
    core.stop()
    assert core.trace_id is None
    assert (running(core, leaves), running(core, stays)) == (0, 0)
    leaves.exit(span)
    assert running(core, leaves) == 0
    core.start()
    assert core.trace_id not in (None, first)
    with leaves.span("b") as b:
        assert (running(core, leaves), running(core, stays)) == (b.id, 0)
    stays.exit(staying)
    assert running(core, stays) == 0
    core.stop()


def test_a_session_that_does_not_publish_after_one_that_does(core: Core) -> None:
    core.start()
    thread = core.thread()
    with thread.span("a"):
        pass
    core.stop()
    core.publish(False)
    core.start()
    with thread.span("a"):
        assert running(core, thread) == 0
    core.stop()


def test_process_context_is_there_for_the_session(core: Core) -> None:
    refused = core.stat("process_context_refused")
    for _ in range(2):
        assert process_contexts() == []
        core.start()
        assert process_contexts() == [
            {
                "threadlocal.schema_version": "tlsdesc_v1_dev",
                "threadlocal.attribute_key_map": [],
            }
        ]
        core.stop()
    assert process_contexts() == []
    assert core.stat("process_context_refused") == refused


@pytest.fixture
def foreign_context() -> Iterator[None]:
    """Somebody else in the process has a process context."""
    import mmap

    fd = os.memfd_create("OTEL_CTX")
    os.ftruncate(fd, 4096)
    mapping = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE)
    os.close(fd)
    yield
    mapping.close()


@pytest.mark.usefixtures("foreign_context")
def test_there_is_one_process_context_at_most(core: Core) -> None:
    refused = core.stat("process_context_refused")
    core.start()
    with open("/proc/self/maps") as maps:
        assert sum("OTEL_CTX" in line for line in maps) == 1
    assert core.stat("process_context_refused") == refused + 1
    core.stop()
    with open("/proc/self/maps") as maps:
        assert sum("OTEL_CTX" in line for line in maps) == 1


# --- OS threads ---------------------------------------------------------------------


def test_each_thread_has_its_own(core: Core, outside: Library) -> None:
    core.start()
    mine = Mine(core)
    outer = mine.begin()
    addresses = {outside.address()}

    def body() -> None:
        assert outside.address() is None
        span = mine.begin()
        assert outside.span_id() == span.id
        addresses.add(outside.address())
        mine.exit(span)
        assert outside.span_id() == 0

    on_thread(body)
    assert outside.span_id() == outer.id
    mine.exit(outer)
    assert outside.span_id() == 0
    assert len(addresses) == 2


def test_a_thread_that_ends_in_a_span_leaves_nothing(
    core: Core, outside: Library
) -> None:
    """Its record goes to the next thread, which starts with none that is valid."""
    core.start()
    mine = Mine(core)
    addresses = []

    def ends() -> None:
        mine.begin()
        assert outside.span_id() != 0
        addresses.append(outside.address())

    def follows() -> None:
        mine.state()
        addresses.append(outside.address())
        assert outside.span_id() == 0

    on_thread(ends)
    assert record_at(addresses[0]) is None
    on_thread(follows)
    assert addresses[0] == addresses[1]


def test_rule_6_6_the_child_goes_on_under_its_own_trace(
    core: Core, outside: Library
) -> None:
    core.start()
    mine = Mine(core)
    span = mine.begin()
    parents = core.trace_id

    def body() -> None:
        assert len(process_contexts()) == 1
        record = outside.read()
        assert record is not None
        assert record.span_id == span.id
        assert record.trace_id == core.trace_id != parents
        mine.exit(span)
        assert outside.span_id() == 0
        core.stop()
        assert process_contexts() == []

    in_child(body)
    record = outside.read()
    assert record is not None
    assert (record.span_id, record.trace_id) == (span.id, parents)
    assert len(process_contexts()) == 1
    mine.exit(span)


def test_what_is_told_is_right_wherever_the_thread_is_stopped(real_core: Core) -> None:
    """A timer's signals come at any instruction, as a profiler's samples do."""
    real_core.publish()
    real_core.start()
    samples = real_core.ffi.new("struct spt_samples *")

    def body() -> None:
        thread = real_core.lib.spt_thread_mine()
        key = real_core.key("a")
        real_core.lib.spt_sample_spans(thread, key, 5000, samples)

    on_thread(body)
    assert samples.wrong == 0
    assert 0 < samples.valid <= samples.taken
    assert samples.valid > samples.taken * 0.8


def test_rule_3_6_a_session_that_stops_while_threads_publish(core: Core) -> None:
    """A thread may be in the middle of writing its record."""
    lib, key = core.lib, core.key("a")

    def one_session() -> None:
        begun, states = threading.Event(), []

        def body() -> None:
            states.append(lib.spt_thread_mine())
            begun.set()
            lib.spt_spans_make(states[0], key, 20_000)

        core.start()
        thread = threading.Thread(target=body)
        thread.start()
        begun.wait(60)
        core.stop()
        context = lib.spt_thread_context(states[0])
        assert context.valid == 0
        thread.join(60)
        assert context.valid == 0

    for _ in range(100):
        one_session()
