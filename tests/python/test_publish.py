"""What profilers outside of the process are told: the span that each thread runs.

It is compared with what the program itself sees, at every step.
"""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from outside_reader import Library, process_contexts, relocations

import spanprof
from spanprof import _core, span

from .helpers import (
    in_child,
    in_thread,
    in_threads,
    needs_suspension,
    python_environment,
    run_python,
)

OUTSIDE = Library(_core.__file__)


@pytest.fixture
def session() -> Iterator[spanprof.Session]:
    with spanprof.start(publish_thread_context=True) as session:
        yield session


def running() -> int:
    """The span that this thread is told to run, which is the one that it runs."""
    current = spanprof.current_span()
    expected = 0 if current is None or not current.is_recording else current.id
    assert OUTSIDE.span_id() == expected
    return expected


# --- off by default -----------------------------------------------------------------


def test_nothing_is_published_by_default(tmp_path: Path) -> None:
    program = """
import ctypes, sys
import spanprof
library = ctypes.CDLL(spanprof._core.__file__)
with spanprof.start(track_all=True) as session:
    with spanprof.span("a"):
        print(ctypes.c_void_p.in_dll(library, "otel_thread_ctx_v1").value)
        print("OTEL_CTX" in open("/proc/self/maps").read())
        print(session.trace_id)
"""
    printed = run_python(program, cwd=tmp_path).stdout.split()
    assert printed == ["None", "False", "None"]


def test_a_variable_turns_it_on() -> None:
    config = spanprof.ProfileConfig.from_env({"SPANPROF_PUBLISH_THREAD_CONTEXT": "1"})
    with spanprof.start(config) as session, span("a"):
        assert session.trace_id is not None
        assert running() != 0


@pytest.mark.parametrize("value", [1, None, "on"])
def test_rule_3_8_a_value_that_is_no_bool(value: Any) -> None:
    with pytest.raises(TypeError, match="publish_thread_context"):
        spanprof.ProfileConfig(publish_thread_context=value)


# --- what is told -------------------------------------------------------------------


@pytest.mark.usefixtures("session")
def test_rule_4_1_the_current_span_at_every_step() -> None:
    @span("decorated")
    def decorated(depth: int) -> int:
        inside = running()
        if depth:
            assert decorated(depth - 1) != inside
        assert running() == inside
        return inside

    seen = {running()}
    for _ in range(2):
        with span("a", user="b"):
            outer = running()
            seen.add(outer)
            for _ in range(3):
                with span("b"):
                    seen.add(running())
                assert running() == outer
            seen.add(decorated(3))
            assert running() == outer
        assert running() == 0
    assert len(seen) == 1 + 2 * (1 + 3 + 1)


def test_the_record_names_the_session(session: spanprof.Session) -> None:
    with span("a") as a:
        record = OUTSIDE.read()
        assert record is not None
        assert record.trace_id.hex() == session.trace_id
        assert record.span_id == a.id
        assert record.attributes == b""
    assert OUTSIDE.read() is None


@pytest.mark.usefixtures("session")
def test_rule_3_4_an_exception_passes_through() -> None:
    @span("fails")
    def fails() -> None:
        assert running() != 0
        raise ZeroDivisionError

    with span("a"):
        outer = running()
        with pytest.raises(ZeroDivisionError):
            fails()
        assert running() == outer
    assert running() == 0


@pytest.mark.usefixtures("session")
def test_rule_3_2_opened_spans() -> None:
    opened = span("a").open()
    assert running() == 0
    for _ in range(2):
        with opened:
            assert running() == opened.id
        assert running() == 0

    def on_another() -> int:
        with opened:
            return running()

    assert in_thread(on_another) == opened.id
    opened.close()


@pytest.mark.usefixtures("session")
def test_rule_3_8_exits_out_of_order() -> None:
    a, b, c = span("a"), span("b"), span("c")
    for each in (a, b, c):
        each.__enter__()
    last = running()
    b.__exit__(None, None, None)
    assert running() == last
    c.__exit__(None, None, None)
    assert running() not in (0, last)
    a.__exit__(None, None, None)
    assert running() == 0


@pytest.mark.usefixtures("session")
def test_threads_have_one_each() -> None:
    def work(number: int) -> set[int]:
        ids = set()
        for _ in range(200):
            with span("a"):
                ids.add(running())
                with span("b"):
                    ids.add(running())
        assert running() == 0
        return ids

    with span("main"):
        before = running()
        results = in_threads(4, work)
        assert running() == before
    assert len(set.union(*results)) == 4 * 400


def test_rule_3_7_only_spans_that_are_recorded() -> None:
    class Every(spanprof.HeadSampler):
        def should_sample(self, metadata: spanprof.SpanMetadata) -> bool:
            return metadata.span_name == "in"

    with spanprof.start(publish_thread_context=True, sampler=Every()):
        for name in ("in", "out", "in"):
            with span(name):
                assert (running() != 0) == (name == "in")
                with span("below"):
                    assert (running() != 0) == (name == "in")
            assert running() == 0
    with spanprof.start(
        publish_thread_context=True, sampler=spanprof.ProbabilisticSampler(0.5)
    ):
        for _ in range(200):
            with span("root"), span("below"):
                running()
            running()


@pytest.mark.usefixtures("session")
def test_signal_handlers_see_what_runs() -> None:
    """They run on the main thread's stack, between any two steps of it."""
    seen: list[int] = []
    before = signal.signal(signal.SIGPROF, lambda number, frame: seen.append(running()))
    signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
    try:
        while len(seen) < 20:
            with span("a"):
                for _ in range(10):
                    with span("b"):
                        pass
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# --- sessions -----------------------------------------------------------------------


def test_rule_3_6_a_session_that_stops_inside_a_span() -> None:
    entered, go_on = threading.Event(), threading.Event()
    addresses: list[int | None] = []

    def stays() -> None:
        with span("a"):
            addresses.append(OUTSIDE.address())
            assert running() != 0
            entered.set()
            go_on.wait(60)
            assert OUTSIDE.span_id() == 0
        assert OUTSIDE.span_id() == 0

    thread = threading.Thread(target=stays)
    session = spanprof.start(publish_thread_context=True)
    with span("main"):
        thread.start()
        entered.wait(60)
        assert running() != 0
        session.stop()
        assert OUTSIDE.span_id() == 0
        go_on.set()
    thread.join(60)
    assert addresses[0] is not None
    assert OUTSIDE.span_id() == 0
    assert process_contexts() == []


def test_sessions_have_traces_of_their_own() -> None:
    ids = set()
    for _ in range(3):
        with spanprof.start(publish_thread_context=True) as session:
            ids.add(session.trace_id)
            assert len(process_contexts()) == 1
    assert len(ids - {None}) == 3
    assert all(len(each) == 32 for each in ids if each is not None)


def test_rule_6_6_a_child_has_a_trace_of_its_own(session: spanprof.Session) -> None:
    mine = session.trace_id
    with span("a"):
        inside = running()

        def child() -> None:
            assert session.trace_id not in (None, mine)
            record = OUTSIDE.read()
            assert record is not None
            assert record.trace_id.hex() == session.trace_id
            assert running() == inside
            with span("b"):
                assert running() != inside
            assert len(process_contexts()) == 1

        in_child(child)
        assert running() == inside
    assert session.trace_id == mine


def test_rule_6_6_a_child_whose_session_stops() -> None:
    with spanprof.start(publish_thread_context=True, on_fork="stop"), span("a"):
        running()

        def child() -> None:
            assert not spanprof.is_running()
            assert OUTSIDE.span_id() == 0
            assert process_contexts() == []

        in_child(child)
        assert running() != 0


# --- coroutines and generators ------------------------------------------------------


@pytest.mark.usefixtures("session")
def test_a_coroutine_that_does_not_suspend() -> None:
    async def work() -> None:
        with span("a"):
            assert running() != 0
        await asyncio.sleep(0)
        assert running() == 0

    async def main() -> None:
        await asyncio.gather(*(work() for _ in range(3)))

    asyncio.run(main())


@needs_suspension
@pytest.mark.usefixtures("session")
def test_rule_4_2_tasks_take_their_spans_with_them() -> None:
    """What the thread is told to run follows every switch, there and back."""
    order: list[tuple[str, int]] = []

    async def work(name: str, steps: int) -> None:
        with span(name):
            mine = running()
            assert mine != 0
            for _ in range(steps):
                await asyncio.sleep(0)
                assert running() == mine
                order.append((name, mine))
                with span("inner"):
                    inner = running()
                    await asyncio.sleep(0)
                    assert running() == inner != mine
                assert running() == mine

    async def main() -> None:
        tasks = [asyncio.create_task(work(f"task{n}", 3 + n)) for n in range(3)]
        while not all(task.done() for task in tasks):
            assert running() == 0
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert running() == 0
    assert len({mine for _, mine in order}) == 3
    assert len({name for name, _ in order[:3]}) > 1, "they take turns"


@needs_suspension
@pytest.mark.usefixtures("session")
def test_rule_4_2_nobody_runs_while_all_tasks_wait() -> None:
    """The loop's own callbacks run outside of any task's span."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        seen: list[int] = []
        with span("waits"):
            mine = running()
            future = loop.create_future()
            loop.call_soon(lambda: (seen.append(running()), future.set_result(None)))
            await future
            assert running() == mine
        assert seen == [0]

    asyncio.run(main())


@needs_suspension
@pytest.mark.usefixtures("session")
def test_rule_4_2_generators_take_their_spans_with_them() -> None:
    def steps() -> Iterator[int]:
        with span("generator"):
            for _ in range(3):
                yield running()

    with span("outer"):
        outer = running()
        one, two = steps(), steps()
        seen = []
        for pair in zip(one, two, strict=True):
            seen.append(pair)
            assert running() == outer
    assert len({each[0] for each in seen}) == len({each[1] for each in seen}) == 1
    assert seen[0][0] != seen[0][1]
    assert running() == 0


@needs_suspension
@pytest.mark.usefixtures("session")
def test_rule_3_3_decorated_functions_of_every_kind() -> None:
    def step(check: Callable[[], int]) -> int:
        mine = check()
        assert mine != 0
        return mine

    @span("coroutine")
    async def coroutine() -> int:
        before = step(running)
        await asyncio.sleep(0)
        assert step(running) == before
        return before

    @span("generator")
    def generator() -> Iterator[int]:
        yield step(running)
        yield step(running)

    @span("async generator")
    async def agenerator() -> AsyncIterator[int]:
        yield step(running)
        await asyncio.sleep(0)
        yield step(running)

    async def main() -> None:
        ids = await asyncio.gather(coroutine(), coroutine())
        assert len(set(ids)) == 2
        assert running() == 0
        async for _ in agenerator():
            assert running() == 0

    asyncio.run(main())
    for _ in generator():
        assert running() == 0


@needs_suspension
@pytest.mark.usefixtures("session")
def test_rule_4_2_a_task_that_goes_on_on_another_thread() -> None:
    """A coroutine is stepped by hand, each time by another thread."""

    async def work() -> None:
        with span("moves"):
            mine = running()
            for _ in range(4):
                await asyncio.sleep(0)
                assert running() == mine

    steps = work()
    done = False

    def advance() -> bool:
        try:
            steps.send(None)
        except StopIteration:
            return True
        finally:
            assert running() == 0
        return False

    while not done:
        done = in_thread(advance)


# --- from outside -------------------------------------------------------------------


# Descriptors; module and offset; offset from the thread pointer.
SUPPORTED = {
    "x86_64": ({36}, {16, 17}, {18}),
    "aarch64": ({1031}, {1028, 1029}, {1030}),
}


@pytest.mark.skipif(platform.machine() not in SUPPORTED, reason="another processor")
def test_the_library_exports_it_in_a_way_that_readers_support() -> None:
    """A relocation has to name the symbol: readers go by that."""
    assert relocations(_core.__file__) in SUPPORTED[platform.machine()]


def test_another_process_can_read_it(tmp_path: Path) -> None:
    """As profilers do it: by the address in the process, without its help."""
    program = """
import ctypes, sys
import spanprof
library = ctypes.CDLL(spanprof._core.__file__)
with spanprof.start(publish_thread_context=True) as session:
    with spanprof.span("a") as a:
        slot = ctypes.c_void_p.in_dll(library, "otel_thread_ctx_v1").value
        print(slot, a.id, session.trace_id, flush=True)
        sys.stdin.readline()
"""
    script = tmp_path / "program.py"
    script.write_text(program)
    with subprocess.Popen(
        [sys.executable, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=python_environment(),
    ) as process:
        assert process.stdout is not None
        address, span_id, trace_id = process.stdout.readline().split()
        try:
            memory = os.open(f"/proc/{process.pid}/mem", os.O_RDONLY)
        except PermissionError:
            process.communicate("")
            pytest.skip("the system does not let processes read each other")
        record = os.pread(memory, 28, int(address))
        os.close(memory)
        process.communicate("")
    assert record[:16].hex() == trace_id
    assert int.from_bytes(record[16:24], "big") == int(span_id)
    assert record[24] == 1
