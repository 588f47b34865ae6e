"""Who is whose parent: rules 4.1, 4.3 and 4.4."""

# ruff: noqa: SIM117 (how blocks are nested is what is tested)

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

import spanprof
from spanprof import span

from .helpers import (
    THREADS_INHERIT,
    ManualClock,
    calls,
    in_thread,
    in_threads,
    series,
)


def test_rule_4_1_parent_is_the_innermost_entered_span(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        with span("a"):
            clock(1)
            with span("b"):
                clock(20)
                with span("c"):
                    clock(300)
            with span("c"):
                clock(4000)
        with span("c"):
            clock(50000)
    assert series(session.result, "busy") == {
        ("a",): 1,
        ("a", "b"): 20,
        ("a", "b", "c"): 300,
        ("a", "c"): 4000,
        ("c",): 50000,
    }


def test_rule_4_1_through_functions_and_context_managers() -> None:
    @contextmanager
    def managed() -> Iterator[None]:
        with span("managed"):
            yield

    @span("leaf")
    def leaf() -> None: ...

    with spanprof.start() as session, span("a"), managed():
        leaf()
    assert calls(session.result) == {
        ("a",): 1,
        ("a", "managed"): 1,
        ("a", "managed", "leaf"): 1,
    }


def test_rule_4_1_an_open_span_is_no_parent_until_entered() -> None:
    with spanprof.start() as session:
        job = span("job").open()
        with span("outside"):
            pass
        with job, span("inside"):
            pass
        job.close()
    assert calls(session.result) == {("job",): 1, ("outside",): 1, ("job", "inside"): 1}


def test_rule_4_1_opened_span_belongs_where_it_was_opened() -> None:
    with spanprof.start() as session:
        with span("creator"):
            job = span("job").open()
        with span("runner"), job, span("in"):
            pass
        job.close()
    assert calls(session.result) == {
        ("creator",): 1,
        ("creator", "job"): 1,
        ("runner",): 1,
        ("creator", "job", "in"): 1,
    }


def test_rule_4_1_after_a_wrong_exit_the_innermost_is_parent() -> None:
    with spanprof.start() as session:
        a, b = span("a"), span("b")
        a.__enter__()
        b.__enter__()
        a.__exit__(None, None, None)
        with span("c"):
            pass
        b.__exit__(None, None, None)
        with span("d"):
            pass
    assert set(calls(session.result)) == {("a",), ("a", "b"), ("a", "b", "c"), ("d",)}


def test_rule_4_1_current_span() -> None:
    assert spanprof.current_span() is None
    with span("unrecorded"):
        assert spanprof.current_span() is None
    with spanprof.start():
        assert spanprof.current_span() is None
        with span("a") as a:
            assert spanprof.current_span() is a
            with span("b") as b:
                assert spanprof.current_span() is b
                assert in_thread(spanprof.current_span) is None
            opened = span("o").open()
            assert spanprof.current_span() is a
            with opened:
                assert spanprof.current_span() is opened
            assert spanprof.current_span() is a
        assert spanprof.current_span() is None

        @span("decorated", label=1)
        def function() -> tuple[str, dict[str, object]]:
            current = spanprof.current_span()
            assert current is not None
            assert current.is_recording
            return current.name, dict(current.labels)

        assert function() == ("decorated", {"label": 1})
        with span("left behind"):
            spanprof.stop()
            assert spanprof.current_span() is None


def test_rule_4_4_a_thread_starts_without_parent() -> None:
    def work() -> None:
        with span("work"):
            pass

    with spanprof.start() as session, span("main"):
        in_thread(work)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: work(), range(10)))
    found = calls(session.result)
    if THREADS_INHERIT:
        assert found == {("main",): 1, ("work",): 1, ("main", "work"): 10}
    else:
        assert found == {("main",): 1, ("work",): 11}


@pytest.mark.skipif(not THREADS_INHERIT, reason="threads begin in an empty context")
def test_rule_4_3_a_thread_that_inherits_its_context_has_a_parent() -> None:
    def work() -> None:
        with span("work"):
            pass

    with spanprof.start() as session:
        with span("main"):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            later = threading.Thread(target=work)
            with span("inner"):
                later.start()
                later.join()
    assert calls(session.result) == {
        ("main",): 1,
        ("main", "work"): 1,
        ("main", "inner"): 1,
        ("main", "inner", "work"): 1,
    }


def test_rule_4_4_parent_span_gives_a_parent(clock: ManualClock) -> None:
    def work() -> None:
        with main.span("work"):
            clock(20)
            with span("inner"):
                clock(300)
        with span("alone"):
            clock(4000)

    with spanprof.start(track_wall=True) as session:
        with span("main") as main:
            clock(1)
            in_thread(work)
            clock(1)
    assert series(session.result, "busy") == {
        # Not subtracted: both ran at the same time (rule 5.2).
        ("main",): 4322,
        ("main", "work"): 20,
        ("main", "work", "inner"): 300,
        ("alone",): 4000,
    }


def test_rule_4_4_of_a_parent_that_has_ended(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        with span("a"), span("b") as b:
            pass
        with b.span("late"):
            clock(3)
        in_thread(lambda: b.span("later").__enter__().__exit__(None, None, None))
        job = b.span("job").open()
        clock(4)
        job.close()
    assert series(session.result, "wall") == {
        ("a",): 0,
        ("a", "b"): 0,
        ("a", "b", "late"): 3,
        ("a", "b", "later"): 0,
        ("a", "b", "job"): 4,
    }


def test_rule_4_4_an_explicit_parent_beats_the_running_span(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        with span("a") as a:
            pass
        with span("b"):
            clock(1)
            with a.span("c"):
                clock(20)
                with span("d"):
                    clock(300)
            clock(1)
            with span("e"):
                pass
    assert series(session.result, "busy") == {
        ("a",): 0,
        ("b",): 2,
        ("a", "c"): 20,
        ("a", "c", "d"): 300,
        ("b", "e"): 0,
    }


def test_rule_4_4_of_a_parent_from_another_session() -> None:
    """No parent beats a wrong one."""
    with spanprof.start(), span("old") as old:
        pass
    with spanprof.start() as session:
        with span("other"):
            pass
        with span("x"), old.span("child"):
            pass
    assert calls(session.result) == {("other",): 1, ("x",): 1, ("child",): 1}


def test_rule_4_4_of_a_parent_that_was_never_recorded() -> None:
    with span("before") as before:
        pass
    with spanprof.start() as session, before.span("child"):
        pass
    assert calls(session.result) == {("child",): 1}


def test_rule_4_4_of_an_open_parent() -> None:
    with spanprof.start() as session:
        request = span("request").open()
        in_threads(4, lambda n: request.span(f"step {n}").__enter__().close())
        with request.span("a") as a, a.span("b") as b, b.span("c"):
            pass
        request.close()
    found = calls(session.result)
    assert found["request",] == 1
    assert {path for path in found if path[0] == "request"} == set(found)
    assert found["request", "a", "b", "c"] == 1


def test_rule_4_4_parent_on_a_thread_that_knows_none_of_its_ancestors() -> None:
    def deep(depth: int) -> None:
        with span(f"level {depth}") as s:
            if depth < 50:
                deep(depth + 1)
            else:
                done.append(s)

    done: list[spanprof.Span] = []
    with spanprof.start() as session:
        deep(0)
        in_thread(lambda: done[0].span("leaf").__enter__().__exit__(None, None, None))
    names = tuple(f"level {n}" for n in range(51))
    assert calls(session.result)[(*names, "leaf")] == 1
    assert len(calls(session.result)) == 52


def test_rule_4_4_child_of_a_span_entered_twice(clock: ManualClock) -> None:
    """The parent is the run that the caller means, as for ``id``."""
    with spanprof.start(track_wall=True) as session:
        s = span("s")
        with s, s:
            child = s.span("child")
            with child:
                clock(1)
        with s:
            in_thread(lambda: s.span("x").__enter__().__exit__(None, None, None))
    assert series(session.result, "busy") == {
        ("s",): 0,
        ("s", "s"): 0,
        ("s", "s", "child"): 1,
        ("s", "x"): 0,
    }


def test_rule_4_4_a_parent_outlives_its_variable() -> None:
    with spanprof.start() as session:
        with span("p") as p:
            child = p.span("c")
        del p
        with child:
            pass
        event = threading.Event()
        event.set()
    assert calls(session.result) == {("p",): 1, ("p", "c"): 1}
