"""Threads: rules 3.5, 4.4, 5.2 and 3.8 with several at once. Also without a GIL."""

# ruff: noqa: SIM117 (how blocks are nested is what is tested)

import itertools
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import spanprof
from spanprof import Span, span

from .helpers import (
    SUSPENDS,
    ManualClock,
    by_path,
    calls,
    in_thread,
    in_threads,
    needs_suspension,
    run_python,
    series,
)


@pytest.fixture
def fast_switching() -> Iterator[None]:
    """Have threads take turns as often as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_rule_5_2_nothing_is_lost_while_others_read(fast_switching: None) -> None:
    rounds, workers = 300, 8

    def work(number: int) -> None:
        for _ in range(rounds):
            with span("outer"):
                with span(f"own {number}"):
                    pass
                with span("same"), span("deep"):
                    pass

    reading = threading.Event()

    def read() -> int:
        number = 0
        previous = 0
        while not reading.is_set() or number < 2:
            found = calls(session.snapshot())
            total = sum(found.values())
            assert total >= previous
            # A parent's call is there before its child's.
            assert found.get(("outer", "same"), 0) <= found.get(("outer",), 0)
            previous = total
            number += 1
        return number

    with spanprof.start(track_all=True) as session:
        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(read)
            in_threads(workers, work)
            reading.set()
            assert reader.result() >= 2
    expected = {("outer",): rounds * workers, ("outer", "same"): rounds * workers}
    expected["outer", "same", "deep"] = rounds * workers
    expected |= {("outer", f"own {n}"): rounds for n in range(workers)}
    assert calls(session.result) == expected


def test_rule_5_2_reports_lose_nothing_while_threads_run(fast_switching: None) -> None:
    class Sum(spanprof.Reporter):
        def __init__(self) -> None:
            self.total: spanprof.Profile | None = None

        def profile(self, profile: spanprof.Profile) -> None:
            self.total = profile if self.total is None else self.total + profile

    def work(number: int) -> None:
        for _ in range(500):
            with span("a"), span("b"):
                pass

    reporter = Sum()
    with spanprof.start(
        track_all=True, report_interval=0.001, reporters=[reporter]
    ) as session:
        in_threads(4, work)
    assert reporter.total is not None
    assert by_path(reporter.total) == by_path(session.result)
    assert calls(session.result) == {("a",): 2000, ("a", "b"): 2000}


def test_rule_5_2_thread_churn_keeps_few_states() -> None:
    def work(number: int) -> None:
        with span("short"), span(f"kind {number % 3}"):
            pass

    before = spanprof.stats()
    with spanprof.start(track_all=True) as session:
        running: list[threading.Thread] = []
        for number in range(2000):
            running.append(threading.Thread(target=work, args=(number,)))
            running[-1].start()
            if number % 4 == 3:
                while running:
                    running.pop().join(30)
        assert calls(session.snapshot())["short",] == 2000
    after = spanprof.stats()
    assert after.thread_states - before.thread_states < 50
    assert after.threads_attached - before.threads_attached == 2000
    assert calls(session.result) == {
        ("short",): 2000,
        ("short", "kind 0"): 667,
        ("short", "kind 1"): 667,
        ("short", "kind 2"): 666,
    }


def test_rule_5_2_a_thread_that_ends_inside_spans(clock: ManualClock) -> None:
    """What it used until then is kept, and nothing is charged after."""
    left: list[Span] = []

    def work() -> None:
        left.extend((span("a").__enter__(), span("b").__enter__()))
        clock(5)

    before = spanprof.stats().abandoned
    with spanprof.start(track_wall=True) as session:
        in_thread(work)
        wait_for(lambda: spanprof.stats().abandoned == before + 2)
        clock(100)
        # Its state goes to the next thread, which starts with no parent.
        in_thread(lambda: span("c").__enter__().__exit__(None, None, None))
        for each in reversed(left):
            each.__exit__(None, None, None)
            assert not each.is_recording
        clock(100)
    assert series(session.result, "busy") == {("a",): 0, ("a", "b"): 5, ("c",): 0}
    assert calls(session.result) == {("a",): 1, ("a", "b"): 1, ("c",): 1}


def wait_for(condition: object) -> None:
    for _ in range(1000):
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.005)
    raise AssertionError("it does not come")


def test_rule_3_1_one_object_on_many_threads(fast_switching: None) -> None:
    s = span("shared", label=1)
    rounds, workers = 400, 8

    def work(number: int) -> None:
        for _ in range(rounds):
            with s:
                assert s.is_recording
                with s:
                    assert s.labels["label"] == 1

    with spanprof.start(track_all=True, record_labels=["label"]) as session:
        in_threads(workers, work)
        assert not s.is_recording
    total = rounds * workers
    assert calls(session.result) == {("shared",): total, ("shared", "shared"): total}


def test_rule_3_2_one_opened_object_on_many_threads(fast_switching: None) -> None:
    s = span("opened").open()
    s.close()
    with spanprof.start(track_all=True) as session:
        s = span("opened").open()

        def work(number: int) -> None:
            for _ in range(200):
                with s, s.span("child"):
                    pass

        in_threads(6, work)
        s.close()
        with pytest.raises(RuntimeError):
            s.__enter__()
    found = calls(session.result)
    assert sum(n for path, n in found.items() if path[-1] == "child") == 1200
    assert 1 <= found["opened",] <= 1200


def test_rule_3_3_one_decorated_function_on_many_threads(fast_switching: None) -> None:
    @span("work")
    def work(depth: int) -> int:
        return depth and work(depth - 1)

    with spanprof.start(track_all=True) as session:
        in_threads(6, lambda number: [work(3) for _ in range(100)])
    assert set(calls(session.result).values()) == {600}
    assert len(calls(session.result)) == 4


def test_rule_4_4_children_of_one_span_on_many_threads(fast_switching: None) -> None:
    with spanprof.start(track_all=True) as session:
        with span("parent") as parent:

            def work(number: int) -> None:
                for _ in range(300):
                    with parent.span("child") as child, child.span("grandchild"):
                        pass

            in_threads(6, work)
    assert calls(session.result) == {
        ("parent",): 1,
        ("parent", "child"): 1800,
        ("parent", "child", "grandchild"): 1800,
    }


def test_rule_3_6_sessions_start_and_stop_while_threads_run(
    fast_switching: None,
) -> None:
    stop = threading.Event()
    shared = span("shared")

    def work(number: int) -> None:
        if number == 0:
            try:
                for _ in range(150):
                    with spanprof.start(track_all=True, record_labels=["n"]) as session:
                        session.snapshot()
                    for path in calls(session.result):
                        assert path[0] in ("a", "shared", "job", "b", "c"), path
            finally:
                stop.set()
        while not stop.is_set():
            with span("a"), span("b", n=number), shared:
                pass
            job = span("job").open()
            with job, job.span("c"):
                pass
            job.close()

    in_threads(5, work)
    assert spanprof.current_span() is None


# --- 3.8: exits on another thread -----------------------------------------------------


def leave(thing: Span) -> None:
    in_thread(thing.__exit__, None, None, None)


def test_rule_3_8_exit_on_another_thread_is_counted(clock: ManualClock) -> None:
    before = spanprof.stats().misnested
    with spanprof.start(track_wall=True) as session:
        a, b = span("a").__enter__(), span("b").__enter__()
        clock(1)
        leave(a)
        assert spanprof.stats().misnested == before + 1
        clock(20)
        with span("c"):  # here it is put right
            clock(300)
        b.__exit__(None, None, None)
        assert not a.is_recording
        assert spanprof.current_span() is None
        with span("d"):
            clock(4000)
    assert series(session.result, "busy") == {
        ("a",): 0,
        ("a", "b"): 21,
        ("a", "b", "c"): 300,
        ("d",): 4000,
    }


def test_rule_3_8_exit_on_another_thread_frees_the_object() -> None:
    with spanprof.start():
        a = span("a").__enter__()
        count = sys.getrefcount(a)
        leave(a)
        with span("b"):
            pass
        assert sys.getrefcount(a) < count
        assert not a.is_recording
        with a:
            assert a.is_recording


def test_rule_3_8_exit_on_both_threads(clock: ManualClock) -> None:
    """The other thread's wish is void once the span has left by itself."""
    with spanprof.start(track_wall=True) as session:
        a, b = span("a"), span("b")
        a.__enter__()
        leave(a)
        a.__exit__(None, None, None)
        clock(1)
        with a:
            b.__enter__()
            leave(b)
            clock(20)
            with span("c"):
                clock(300)
            assert spanprof.current_span() is a
            clock(4000)
        clock(50000)
    found = series(session.result, "busy")
    assert sum(found.values()) == 4320
    assert found["a",] == 4000


def test_rule_3_8_exit_on_another_thread_ends_with_the_threads_last_exit(
    clock: ManualClock,
) -> None:
    """Also if that thread never opens a span again."""
    with spanprof.start(track_wall=True) as session:
        a, b = span("a").__enter__(), span("b").__enter__()
        leave(a)
        clock(1)
        b.__exit__(None, None, None)
        clock(20)
    assert series(session.result, "busy") == {("a",): 0, ("a", "b"): 1}


def test_rule_3_8_generator_finished_on_another_thread(clock: ManualClock) -> None:
    def steps() -> Iterator[None]:
        with span("g"):
            yield

    with spanprof.start(track_wall=True) as session:
        generator = steps()
        next(generator)
        clock(1)
        in_thread(generator.close)
        with span("next"):
            clock(20)
        clock(300)
    found = series(session.result, "busy")
    if SUSPENDS:
        assert found == {("g",): 0, ("next",): 20}
        assert series(session.result, "idle")["g",] == 1
    else:
        assert found["g",] == 1
        assert sum(found.values()) == 21


def test_rule_3_8_exits_race_across_threads(fast_switching: None) -> None:
    """Never a crash; every call is counted; in the end nothing runs."""
    before = spanprof.stats()
    spans: list[Span] = []
    with spanprof.start(track_all=True) as session:

        def work(number: int) -> None:
            for n in range(200):
                mine = span("s").__enter__()
                spans.append(mine)
                with span("in"):
                    pass
                if n % 2 and spans:
                    try:
                        spans.pop(0).__exit__(None, None, None)
                    except IndexError:
                        continue

        in_threads(5, work)
        for each in spans:
            each.__exit__(None, None, None)
    found = calls(session.result)
    assert sum(n for path, n in found.items() if path[-1] == "s") == 1000
    assert sum(n for path, n in found.items() if path[-1] == "in") == 1000
    assert spanprof.stats().misnested > before.misnested


# --- threads of other kinds -----------------------------------------------------------


def test_rule_4_4_daemon_threads_at_exit(tmp_path: Path) -> None:
    code = """
import threading, time
import spanprof
from spanprof import span

def work():
    while True:
        with span("a"), span("b", x=1):
            sum(range(100))

class Nothing(spanprof.Reporter):
    def profile(self, profile): pass

spanprof.start(track_all=True, report_interval=0.001, record_labels=["x"],
               reporters=[Nothing()])
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
"""
    for _ in range(3):
        run_python(code, cwd=tmp_path)


def test_rule_4_4_threads_that_python_did_not_start() -> None:
    ctypes = pytest.importorskip("ctypes")
    found: list[int] = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    def run(argument: object) -> None:
        with span("foreign") as s:
            found.append(s.id)

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "pthread_create"):
        pytest.skip("no pthread_create")
    with spanprof.start() as session:
        for _ in range(5):
            thread = ctypes.c_ulong()
            assert libc.pthread_create(ctypes.byref(thread), None, run, None) == 0
            libc.pthread_join(thread, None)
    assert calls(session.result) == {("foreign",): 5}
    assert len(set(found)) == 5


def test_rule_3_5_stress_of_everything(fast_switching: None) -> None:
    """A bit of all at once: what can go wrong here, goes wrong without a GIL first."""
    counter = itertools.count()
    counted = [0] * 6

    def work(number: int) -> None:
        mine: list[Span] = []
        for n in range(150):
            with span(f"name {next(counter) % 20}", k=n % 7) as s:
                counted[number] += 1
                with s.span("child"):
                    counted[number] += 1
                mine.append(span("kept", k=n).open())
                counted[number] += 1
                if n % 10 == 9:
                    session.snapshot()
                    for each in mine:
                        each.close()
                    mine.clear()
                eval(compile(f"span('c{n % 5}').__enter__().close()", "x", "eval"))
                counted[number] += 1
                current = spanprof.current_span()
                while current is not None and current is not s:
                    current.__exit__(None, None, None)
                    current = spanprof.current_span()

    with spanprof.start(track_all=True, record_labels=["k"]) as session:
        in_threads(6, work)
    assert sum(calls(session.result).values()) == sum(counted)


ABANDONED = """
import sys
import spanprof
from spanprof import span

def steps(entered):
    entered.__enter__()
    yield

with spanprof.start(track_wall=True):
    for _ in range(100):
        kept = [span("left") for _ in range(10)]
        counts = [sys.getrefcount(each) for each in kept]
        for each in kept:
            next(steps(each))  # the generator is gone, and its span is not
            next(steps(span("in the same place")))
        for each in kept:
            each.__exit__(None, None, None)
        del each
        assert [sys.getrefcount(each) for each in kept] == counts
print("done")
"""


@needs_suspension
def test_rule_3_8_a_span_is_exited_after_its_generator_has_gone(tmp_path: Path) -> None:
    assert run_python(ABANDONED, cwd=tmp_path).stdout == "done\n"
