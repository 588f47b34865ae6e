"""What a child finds after fork(): its own session, from zero, and no lock held."""

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from .binding import (
    NONE,
    START_RUNNING,
    STARTED,
    Core,
    Profile,
    Span,
    end_child,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_child(body: Callable[[], None]) -> None:
    """Run the body in a forked child; its assertions are ours."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            body()
            status = 0
        except BaseException as error:
            os.write(writer, repr(error).encode()[:4000])
        finally:
            end_child(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    assert status == 0, said


class Mine:
    """The calling OS thread, which goes on in the child."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def state(self) -> Any:
        return self.core.lib.spt_thread_mine()

    def begin(self, name: str) -> Span:
        span = self.core.span()
        key = self.core.key(name)
        self.core.lib.sp_span_begin(self.state(), span.pointer, key)
        return span

    def open(self, name: str) -> Span:
        span = self.core.span()
        key, nothing = self.core.key(name), self.core.ffi.NULL
        self.core.lib.sp_span_open(self.state(), span.pointer, key, nothing)
        return span

    def exit(self, span: Span) -> bool:
        return bool(self.core.lib.sp_span_exit(self.state(), span.pointer))


def test_rule_6_6_open_spans_go_on_from_zero_in_the_child(core: Core) -> None:
    core.start()
    mine = Mine(core)
    outer, inner = mine.begin("a"), mine.begin("b")
    core.advance(100)

    def child() -> None:
        core.advance(10)
        assert mine.exit(inner)
        core.advance(1)
        nodes = core.snapshot().by_name()
        assert nodes["a/b"]["wall_busy"] == 10
        assert nodes["a"]["wall_busy"] == 1
        assert nodes["a"]["calls"] == 0
        assert mine.exit(outer)
        assert core.stop() is not None

    in_child(child)
    assert mine.exit(inner)
    assert mine.exit(outer)
    assert core.snapshot().by_name()["a/b"]["wall_busy"] == 100


def test_rule_6_6_idle_time_is_not_reported_twice(core: Core) -> None:
    core.start()
    mine = Mine(core)
    opened = mine.open("a")
    core.advance(100)

    def child() -> None:
        core.advance(10)
        assert core.snapshot().by_name()["a"]["wall_idle"] == 10
        core.lib.sp_span_close(mine.state(), opened.pointer)
        assert core.snapshot().by_name()["a"]["wall_idle"] == 10

    in_child(child)
    assert core.snapshot().by_name()["a"]["wall_idle"] == 100
    core.lib.sp_span_close(mine.state(), opened.pointer)
    assert opened.state == NONE


def test_rule_6_6_what_other_threads_did_is_the_parents(core: Core) -> None:
    core.start()
    mine = Mine(core)
    mine.exit(mine.begin("mine"))
    other = core.thread()
    with other.span("theirs"):
        core.run(other, 10)
    running = other.begin("running")

    def child() -> None:
        core.advance(10)
        mine.exit(mine.begin("later"))
        assert set(core.snapshot().by_name()) == {"later"}
        assert core.delta().by_name().keys() == {"later"}

    in_child(child)
    other.exit(running)
    assert core.snapshot().by_name()["theirs"]["wall_busy"] == 10


def test_rule_6_6_the_child_has_no_reporter_thread_and_waits_for_none(
    core: Core,
) -> None:
    host = core.lib.spt_host_new(0, 0)
    assert core.lib.spt_host_start(host, 0, True) == 0

    def child() -> None:
        assert core.lib.sp_flush(-1)
        final = core.ffi.new("struct sp_profile **")
        assert core.lib.sp_stop(-1, final)
        core.start()
        mine = Mine(core)
        mine.exit(mine.begin("a"))
        assert core.snapshot().by_name()["a"]["calls"] == 1

    in_child(child)
    assert core.lib.sp_flush(-1)
    core.stop()
    assert core.lib.spt_host_seen(host, b"ended") == 1


def test_rule_6_6_the_session_goes_on_with_a_reporter_of_the_childs(core: Core) -> None:
    lib = core.lib
    parents, childs = lib.spt_host_new(0, 0), lib.spt_host_new(0, 0)
    assert lib.spt_host_go_on(childs) == START_RUNNING, "none runs"
    assert lib.spt_host_start(parents, 0, True) == STARTED
    mine = Mine(core)
    span = mine.begin("a")
    core.advance(100)

    def child() -> None:
        assert lib.spt_host_go_on(childs) == STARTED
        assert lib.spt_host_go_on(parents) == START_RUNNING
        core.advance(10)
        mine.exit(span)
        assert lib.sp_flush(-1)
        told = Profile(core, lib.spt_host_sum(childs)).by_name()
        assert told["a"]["wall_busy"] == 10
        core.stop()
        assert lib.spt_host_seen(childs, b"ended") == 1
        assert lib.spt_host_seen(parents, b"reports") == 0

    in_child(child)
    mine.exit(span)
    core.stop()
    told = Profile(core, lib.spt_host_sum(parents)).by_name()
    assert told["a"]["wall_busy"] == 100


def test_rule_6_6_a_fork_while_others_are_inside_never_deadlocks(core: Core) -> None:
    core.start()
    over = threading.Event()

    def churn(number: int) -> None:
        mine = Mine(core)
        count = 0
        while not over.is_set():
            count += 1
            span = core.lib.spt_span_new()
            key = core.intern(f"churn {number} {count % 500}".encode())
            state = core.lib.spt_thread_mine()
            core.lib.sp_span_open(state, span, key, core.ffi.NULL)
            core.lib.sp_span_close(state, span)
            core.lib.spt_span_free(span)
            if count % 50 == 0:
                core.snapshot()
        assert mine.state() != core.ffi.NULL

    threads = [threading.Thread(target=churn, args=[n]) for n in range(3)]
    for thread in threads:
        thread.start()

    def child() -> None:
        mine = Mine(core)
        mine.exit(mine.begin("child"))
        mine.open("opened")
        core.intern_labels({b"child": b"new"})
        assert "child" in core.snapshot().by_name()
        core.stop()

    try:
        for _ in range(30):
            in_child(child)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_child_has_ids_of_its_own_session(core: Core) -> None:
    # Ids are unique within a process (rule 3.5); the child continues its thread's.
    core.start()
    mine = Mine(core)
    first = mine.begin("a")
    mine.exit(first)

    def child() -> None:
        second = mine.begin("a")
        assert second.id not in (0, first.id)

    in_child(child)
