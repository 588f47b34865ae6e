"""Native spans, whose memory the core has: on the calling OS thread."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from .binding import NONE, Core
from .test_fork import Mine

KEY = 0x1000
PLACES = {name: 0x5000 + 16 * n for n, name in enumerate("abcdef")}


class Natives:
    def __init__(self, core: Core) -> None:
        self.core = core
        self.mine = Mine(core)

    def begin(self, name: str) -> Any:
        state = self.mine.state()
        if state == self.core.ffi.NULL:
            return self.core.ffi.NULL
        place = self.core.ffi.cast("void *", PLACES[name])
        return self.core.lib.sp_native_begin(state, place, self.core.key(name))

    def begin_under(self, name: str, parent: Any = None, **labels: str) -> Any:
        if parent is None:
            parent = self.core.ffi.NULL
        key = self.core.key(name, **labels)
        return self.core.lib.sp_native_begin_under(self.mine.state(), key, parent)

    def end(self, native: Any) -> None:
        self.core.lib.sp_native_end(self.core.lib.spt_thread_mine(), native)

    def state_of(self, native: Any) -> int:
        span = self.core.ffi.cast("struct sp_span *", native)
        return int(self.core.lib.spt_span_state(span))

    def calls(self) -> dict[str, int]:
        values = self.core.snapshot().by_name()
        return {name: value["calls"] for name, value in values.items()}


@pytest.fixture(params=["no feed", "feed"])
def natives(core: Core, request: pytest.FixtureRequest) -> Natives:
    core.feed_limit(100 if request.param == "feed" else 0)
    core.start()
    return Natives(core)


def test_rule_4_1_native_spans_nest_in_the_hosts(natives: Natives) -> None:
    core = natives.core
    outer = natives.mine.begin("outer")
    for _ in range(3):
        a = natives.begin("a")
        core.advance(5)
        b = natives.begin("b")
        core.advance(7)
        inner = natives.mine.begin("inner")
        core.advance(1)
        natives.mine.exit(inner)
        natives.end(b)
        natives.end(a)
    natives.mine.exit(outer)
    values = core.snapshot().by_name()
    busy = {name: value["wall_busy"] for name, value in values.items()}
    assert busy == {"outer": 0, "outer/a": 15, "outer/a/b": 21, "outer/a/b/inner": 3}


def test_a_span_that_has_ended_gives_its_memory_to_the_next(natives: Natives) -> None:
    a = natives.begin("a")
    natives.end(a)
    assert natives.begin("b") == a
    natives.end(a)
    natives.end(natives.core.ffi.NULL)  # nothing happens


def test_rule_4_4_a_parent_and_labels(natives: Natives) -> None:
    core = natives.core
    state = natives.mine.state()
    a = natives.begin("a")
    parent = core.ffi.new("struct sp_parent *", core.lib.sp_span_next_parent(state))
    natives.end(a)
    natives.end(natives.begin_under("b", parent, user="x"))
    natives.end(natives.begin_under("c"))
    assert (("a", {}), ("b", {"user": "x"})) in [
        tuple((name, dict(labels)) for name, labels in stack)
        for stack in core.snapshot().nodes()
    ]
    assert natives.calls() == {"a": 1, "a/b": 1, "c": 1}
    parent.generation += 1
    natives.end(natives.begin_under("d", parent))  # of another session: none
    assert natives.calls()["d"] == 1


def test_rule_3_8_another_thread_asks_for_the_end(natives: Natives) -> None:
    a, b = natives.begin("a"), natives.begin("b")
    thread = threading.Thread(target=natives.end, args=(a,))
    thread.start()
    thread.join()
    natives.core.advance(3)
    natives.end(b)  # sees to it
    c = natives.begin("c")
    assert c in (a, b)
    natives.end(c)
    assert natives.calls() == {"a": 1, "a/b": 1, "c": 1}


def test_a_thread_that_leaves_ends_them(natives: Natives) -> None:
    found = []

    def body() -> None:
        a = natives.begin("a")
        natives.core.lib.sp_thread_leave()
        found.append(natives.state_of(a))
        natives.end(natives.begin("b"))
        natives.end(a)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [NONE]
    assert natives.calls() == {"a": 1, "b": 1}
    natives.core.lib.sp_thread_leave()
    natives.core.lib.sp_thread_leave()  # there is nothing to leave


def test_rule_3_6_a_span_outlives_its_session(natives: Natives) -> None:
    core = natives.core
    a, b = natives.begin("a"), natives.begin("b")
    core.stop()
    natives.end(a)
    assert natives.begin("c") == core.ffi.NULL
    core.start()
    natives.end(b)
    c = natives.begin("c")
    natives.end(c)
    assert natives.calls() == {"c": 1}


def test_rule_4_2_they_are_suspended_with_the_others(natives: Natives) -> None:
    core = natives.core
    outer = natives.mine.begin("outer")
    a = natives.begin("a")
    core.advance(1)
    state, key = natives.mine.state(), core.ffi.cast("void *", KEY)
    assert core.lib.sp_span_suspend_all(state, key, False)
    core.advance(10)
    natives.end(natives.begin("b"))
    group = core.lib.sp_suspended_take(key, core.ffi.NULL)
    core.lib.sp_span_resume(state, group)
    core.advance(2)
    natives.end(a)
    natives.mine.exit(outer)
    values = core.snapshot().by_name()
    assert (values["outer/a"]["wall_busy"], values["outer/a"]["wall_idle"]) == (3, 10)
    assert "b" in values


def test_rule_4_2_one_that_nobody_resumes_is_abandoned(natives: Natives) -> None:
    """What would have resumed it is gone, and so the caller's own end of it comes late
    or never."""
    core = natives.core
    state, key = natives.mine.state(), core.ffi.cast("void *", KEY)
    a = natives.begin("a")
    assert core.lib.sp_span_suspend_all(state, key, False)
    b = natives.begin("b")
    assert core.lib.sp_span_suspend_all(state, key, False)
    assert natives.state_of(a) == NONE
    natives.end(a)
    natives.end(b)
    assert natives.calls() == {"a": 1, "b": 1}


def test_rule_3_7_they_are_sampled_as_others_are(core: Core) -> None:
    core.sample(0.0)
    core.start()
    natives = Natives(core)
    a, b = natives.begin("a"), natives.begin("b")
    assert natives.calls() == {}
    natives.end(b)
    natives.end(natives.begin_under("c"))
    natives.end(a)
    assert natives.calls() == {}
    assert core.sampled_out >= 3
