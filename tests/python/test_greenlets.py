"""Rules 4.1, 4.2 and 5.2 under greenlet and gevent: each greenlet has a stack of spans
of its own, which is suspended while another one runs."""

import contextvars
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import spanprof
from spanprof import span

from .helpers import (
    ManualClock,
    calls,
    in_thread,
    needs_suspension,
    run_python,
    series,
)

greenlet: Any = pytest.importorskip("greenlet")


@pytest.fixture
def clock() -> Iterator[ManualClock]:
    with ManualClock() as clock:
        yield clock


def test_rule_4_2_a_greenlet_sees_its_own_spans_only(clock: ManualClock) -> None:
    def worker(name: str) -> None:
        with span(name):
            clock(1)
            main.switch()
            clock(10)
            with span("inner"):
                main.switch()
                clock(100)

    main = greenlet.getcurrent()
    with spanprof.start(track_wall=True) as session, span("app"):
        a, b = greenlet.greenlet(worker), greenlet.greenlet(worker)
        for each, argument in ((a, ("a",)), (b, ("b",)), (a, ()), (b, ())):
            each.switch(*argument)
            current = spanprof.current_span()
            assert current is not None
            assert current.name == "app"
            clock(1000)
        a.switch()
        b.switch()
        assert a.dead
        assert b.dead
    assert series(session.result, "busy") == {
        ("app",): 4000,
        ("a",): 11,
        ("b",): 11,
        ("a", "inner"): 100,
        ("b", "inner"): 100,
    }
    idle = series(session.result, "idle")
    assert idle["app",] == 2 * 111
    # From its beginning to its end, without what it and the span in it ran.
    assert idle["a",] == 4122 - 111
    assert idle["b",] == 4222 - 1001 - 111


@needs_suspension
def test_rule_4_2_greenlets_are_told_apart_from_coroutines_in_them(
    clock: ManualClock,
) -> None:
    """A generator's spans go with it, from greenlet to greenlet."""

    def steps() -> Iterator[None]:
        with span("steps"):
            yield
            clock(1)
            yield

    shared = steps()

    def other() -> None:
        with span("other"):
            next(shared)

    with spanprof.start(track_wall=True) as session, span("app"):
        next(shared)
        clock(10)
        greenlet.greenlet(other).switch()
        clock(100)
        shared.close()
    assert series(session.result, "busy") == {
        ("app",): 110,
        ("app", "steps"): 1,
        ("other",): 0,
    }
    assert series(session.result, "idle")["app", "steps"] == 110


def test_rule_4_3_a_greenlet_with_a_copied_context() -> None:
    def worker() -> None:
        with span("worker"):
            pass

    with spanprof.start() as session, span("app"):
        child = greenlet.greenlet(worker)
        child.gr_context = contextvars.copy_context()
        child.switch()
    assert calls(session.result) == {("app",): 1, ("app", "worker"): 1}


def test_rule_3_4_an_exception_that_is_thrown_into_a_greenlet(
    clock: ManualClock,
) -> None:
    def worker() -> None:
        try:
            with span("worker"):
                main.switch()
        except KeyError:
            with span("after"):
                clock(1)

    main = greenlet.getcurrent()
    with spanprof.start(track_wall=True) as session, span("app"):
        child = greenlet.greenlet(worker)
        child.switch()
        clock(10)
        child.throw(KeyError)
        assert child.dead
    assert series(session.result, "busy") == {
        ("app",): 10,
        ("worker",): 0,
        ("after",): 1,
    }
    assert series(session.result, "idle")["worker",] == 10


def test_a_greenlet_that_is_dropped(clock: ManualClock) -> None:
    def worker() -> None:
        with span("worker"):
            main.switch()

    main = greenlet.getcurrent()
    before = spanprof.stats().misnested
    with spanprof.start(track_wall=True) as session, span("app"):
        child = greenlet.greenlet(worker)
        child.switch()
        clock(1)
        del child
        gc.collect()
        clock(10)
        current = spanprof.current_span()
        assert current is not None
        assert current.name == "app"
    assert series(session.result, "busy") == {("app",): 11, ("worker",): 0}
    assert series(session.result, "idle")["worker",] == 1
    assert spanprof.stats().misnested == before


def test_spans_that_a_dead_greenlet_left_entered(clock: ManualClock) -> None:
    entered = []

    def worker() -> None:
        entered.append(span("left").__enter__())

    before = spanprof.stats().abandoned
    with spanprof.start(track_wall=True) as session, span("app"):
        greenlet.greenlet(worker).switch()
        clock(1)
        greenlet.greenlet(worker).switch()
    assert series(session.result, "busy") == {("app",): 1, ("left",): 0}
    assert spanprof.stats().abandoned == before + 2


def test_other_tracers_are_called_as_well() -> None:
    seen = []

    def run() -> None:
        greenlet.settrace(lambda event, pair: seen.append(event))
        with spanprof.start(), span("app"):
            greenlet.greenlet(lambda: None).switch()
        assert seen == ["switch", "switch"]
        greenlet.greenlet(lambda: None).switch()  # ours goes with the session
        assert seen == ["switch"] * 4
        assert "spanprof" not in repr(greenlet.gettrace())

    in_thread(run)


LATE = """
import spanprof
from spanprof import span

with spanprof.start() as session, span("app"):
    import greenlet

    def worker():
        with span("worker"):
            main.switch()

    main = greenlet.getcurrent()
    child = greenlet.greenlet(worker)
    child.switch()
    assert spanprof.current_span().name == "app", spanprof.current_span()
    child.switch()
names = [[each.name for each in sample.stack] for sample in session.result.samples]
assert sorted(names) == [["app"], ["worker"]], names
"""


def test_greenlet_that_is_imported_in_the_middle(tmp_path: Path) -> None:
    run_python(LATE, cwd=tmp_path)


GEVENT = """
from gevent import monkey

monkey.patch_all()
import threading
import time

import gevent

import spanprof
from spanprof import span


def work():
    with span("work"):
        time.sleep(0.01)
        with span("inner"):
            time.sleep(0.01)


with spanprof.start(track_wall=True) as session:
    with span("app"):
        gevent.joinall([gevent.spawn(work) for _ in range(10)])
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
found = {
    tuple(each.name for each in reversed(sample.stack)): sample.values
    for sample in session.result.samples
}
assert set(found) == {("app",), ("work",), ("work", "inner")}, found
assert found["work",]["calls"] == found["work", "inner"]["calls"] == 11
assert found["work", "inner"]["wall_idle"] > 11 * 9_000_000
assert spanprof.stats().misnested == spanprof.stats().abandoned == 0
"""


def test_gevent_and_its_monkey_patched_threads(tmp_path: Path) -> None:
    pytest.importorskip("gevent")
    run_python(GEVENT, cwd=tmp_path)
