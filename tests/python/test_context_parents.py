"""Rule 4.3: what is started inside a span has that span as parent, even if it is over.

The ways to start something are asyncio's, uvloop's, trio's and anyio's, threads', and
`contextvars` by hand.
"""

import asyncio
import contextvars
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import spanprof
from spanprof import span

from .helpers import ManualClock, calls, in_thread, needs_suspension, series

Main = Callable[[], Coroutine[Any, Any, None]]
Run = Callable[[Main], None]

VARIABLE = contextvars.ContextVar[int]("variable")


def child() -> None:
    with span("child"):
        pass


async def async_child() -> None:
    with span("child"):
        await asyncio.sleep(0)


def run_asyncio(main: Main) -> None:
    asyncio.run(main())


def run_uvloop(main: Main) -> None:
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.fixture(params=[run_asyncio, run_uvloop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param  # type: ignore[no-any-return]


def profiled(run: Run, main: Main) -> dict[tuple[str, ...], int]:
    with spanprof.start() as session:
        run(main)
    return calls(session.result)


CHILD_OF_PARENT = {("parent",): 1, ("parent", "child"): 1}


# --- tasks ----------------------------------------------------------------------------


def test_rule_4_3_create_task(run: Run) -> None:
    async def main() -> None:
        with span("parent"):
            task = asyncio.create_task(async_child())
        await task

    assert profiled(run, main) == CHILD_OF_PARENT


def test_rule_4_3_ensure_future(run: Run) -> None:
    async def main() -> None:
        with span("parent"):
            task = asyncio.ensure_future(async_child())
            await asyncio.sleep(0)
        await task

    assert profiled(run, main) == CHILD_OF_PARENT


def test_rule_4_3_task_group(run: Run) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            with span("parent"):
                group.create_task(async_child())
            with span("other"):
                group.create_task(async_child())

    assert profiled(run, main) == {
        **CHILD_OF_PARENT,
        ("other",): 1,
        ("other", "child"): 1,
    }


def test_rule_4_3_gather(run: Run) -> None:
    async def main() -> None:
        with span("parent"):
            await asyncio.gather(async_child(), async_child())

    assert profiled(run, main) == {("parent",): 1, ("parent", "child"): 2}


def test_rule_4_3_wait_for(run: Run) -> None:
    async def main() -> None:
        with span("parent"):
            await asyncio.wait_for(async_child(), 60)

    assert profiled(run, main) == CHILD_OF_PARENT


def test_rule_4_3_a_task_of_a_task(run: Run) -> None:
    """The middle one opens no span: its parent is the context's as well."""

    async def middle() -> None:
        await asyncio.create_task(async_child())

    async def main() -> None:
        with span("parent"):
            task = asyncio.create_task(middle())
        await task

    assert profiled(run, main) == CHILD_OF_PARENT


def test_rule_4_3_a_task_outside_of_spans_has_no_parent(run: Run) -> None:
    async def main() -> None:
        task = asyncio.create_task(async_child())
        with span("later"):
            await task

    assert profiled(run, main) == {("later",): 1, ("child",): 1}


def test_rule_4_3_many_in_turns(run: Run) -> None:
    async def work(number: int) -> None:
        with span(f"outer {number}"):
            for _ in range(3):
                await asyncio.sleep(0)
                with span(f"inner {number}"):
                    await asyncio.sleep(0)

    async def main() -> None:
        with span("parent"):
            await asyncio.gather(*map(work, range(10)))

    expected = {("parent",): 1}
    for number in range(10):
        expected["parent", f"outer {number}"] = 1
        expected["parent", f"outer {number}", f"inner {number}"] = 3
    assert profiled(run, main) == expected


def test_rule_4_3_after_the_starter_has_left(run: Run) -> None:
    """The child's own span does not make it forget where it was started."""

    async def task(go_on: asyncio.Event) -> None:
        with span("first"):
            await go_on.wait()
        with span("second"):
            pass

    async def main() -> None:
        go_on = asyncio.Event()
        with span("parent"):
            started = asyncio.create_task(task(go_on))
            await asyncio.sleep(0)
        go_on.set()
        await started

    assert profiled(run, main) == {
        ("parent",): 1,
        ("parent", "first"): 1,
        ("parent", "second"): 1,
    }


def test_rule_4_3_a_task_that_sets_variables(run: Run) -> None:
    """Its context then shares no variables with its parent's any more."""

    async def task() -> None:
        VARIABLE.set(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with span("child"):
            pass

    async def main() -> None:
        with span("parent"):
            started = asyncio.create_task(task())
            await asyncio.sleep(0)
        await started

    assert profiled(run, main) == CHILD_OF_PARENT


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio has them from 3.12 on")
def test_rule_4_3_eager_tasks() -> None:
    """They begin inside the parent, on its stack, and go on without it."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        with span("parent"):
            task = asyncio.create_task(async_child())
            with span("meanwhile"):
                pass
        await task

    assert profiled(run_asyncio, main) == {
        **CHILD_OF_PARENT,
        ("parent", "meanwhile"): 1,
    }


# --- callbacks ------------------------------------------------------------------------


def test_rule_4_3_call_soon(run: Run) -> None:
    async def main() -> None:
        with span("parent"):
            asyncio.get_running_loop().call_soon(child)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    assert profiled(run, main) == CHILD_OF_PARENT


def test_rule_4_3_call_later(run: Run) -> None:
    async def main() -> None:
        done = asyncio.Event()

        def callback() -> None:
            child()
            done.set()

        with span("parent"):
            asyncio.get_running_loop().call_later(0.001, callback)
        await done.wait()

    assert profiled(run, main) == CHILD_OF_PARENT


def test_rule_4_3_add_done_callback(run: Run) -> None:
    """It is where it was added, and not where the result was set."""

    async def main() -> None:
        future = asyncio.get_running_loop().create_future()
        with span("parent"):
            future.add_done_callback(lambda _: child())
        with span("other"):
            future.set_result(None)
        await asyncio.sleep(0)

    assert profiled(run, main) == {**CHILD_OF_PARENT, ("other",): 1}


def test_rule_4_3_call_soon_threadsafe(run: Run) -> None:
    async def main() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def callback() -> None:
            child()
            done.set()

        def other_thread() -> None:
            with span("parent"):
                loop.call_soon_threadsafe(callback)

        in_thread(other_thread)
        await done.wait()

    assert profiled(run, main) == CHILD_OF_PARENT


def test_rule_4_1_a_callback_without_context_is_below_what_runs_the_loop() -> None:
    """Nothing was current where it was made: the innermost span of the thread is."""
    loop = asyncio.new_event_loop()
    loop.call_soon(child)
    loop.call_soon(loop.stop)
    with spanprof.start() as session, span("app"):
        loop.run_forever()
    loop.close()
    assert calls(session.result) == {("app",): 1, ("app", "child"): 1}


# --- threads --------------------------------------------------------------------------


def test_rule_4_3_to_thread(run: Run) -> None:
    async def main() -> None:
        with span("parent"):
            await asyncio.to_thread(child)

    assert profiled(run, main) == CHILD_OF_PARENT


def test_rule_4_3_to_thread_of_a_task(run: Run) -> None:
    async def task() -> None:
        await asyncio.to_thread(child)

    async def main() -> None:
        with span("parent"):
            started = asyncio.create_task(task())
        await started

    assert profiled(run, main) == CHILD_OF_PARENT


def test_rule_4_3_run_in_executor_with_a_copied_context(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with span("parent"):
            context = contextvars.copy_context()
            await loop.run_in_executor(None, context.run, child)

    assert profiled(run, main) == CHILD_OF_PARENT


def test_rule_4_4_run_in_executor_alone_has_no_parent(run: Run) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            # Where threads inherit contexts, they do when they are started.
            pool.submit(lambda: None).result()
            with span("parent"):
                await asyncio.get_running_loop().run_in_executor(pool, child)

    assert profiled(run, main) == {("parent",): 1, ("child",): 1}


def test_rule_4_3_a_thread_with_a_copied_context() -> None:
    with spanprof.start() as session:
        with span("parent"):
            context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(child,))
        thread.start()
        thread.join()
    assert calls(session.result) == CHILD_OF_PARENT


def test_rule_5_2_a_child_on_another_thread_is_not_subtracted(
    clock: ManualClock,
) -> None:
    def work() -> None:
        with span("child"):
            clock(20)

    with spanprof.start(track_wall=True) as session, span("parent"):
        clock(1)
        in_thread(contextvars.copy_context().run, work)
    assert series(session.result, "busy") == {("parent",): 21, ("parent", "child"): 20}


# --- contexts by hand -----------------------------------------------------------------


def test_rule_4_3_copy_context_run() -> None:
    with spanprof.start() as session:
        with span("parent"):
            context = contextvars.copy_context()
        context.run(child)
    assert calls(session.result) == CHILD_OF_PARENT


def test_rule_4_3_a_copied_context_beats_the_running_span() -> None:
    with spanprof.start() as session:
        with span("parent"):
            context = contextvars.copy_context()
        with span("other"):
            context.run(child)
    assert calls(session.result) == {**CHILD_OF_PARENT, ("other",): 1}


def test_rule_4_3_each_copy_remembers_where_it_was_made() -> None:
    contexts = []
    with spanprof.start() as session:
        for name in "abc":
            with span(name):
                contexts.append(contextvars.copy_context())
        for context in reversed(contexts):
            context.run(child)
            context.run(child)
    expected = {(name,): 1 for name in "abc"}
    assert calls(session.result) == {
        **expected,
        **{(name, "child"): 2 for name in "abc"},
    }


def test_rule_4_3_a_copy_of_a_copy() -> None:
    with spanprof.start() as session:
        with span("parent"):
            context = contextvars.copy_context()
        context.run(contextvars.copy_context).run(child)
        context.copy().run(child)
    assert calls(session.result) == {("parent",): 1, ("parent", "child"): 2}


def test_rule_4_3_a_variable_set_in_the_copy_or_in_the_original() -> None:
    with spanprof.start() as session:
        with span("parent"):
            one, two = contextvars.copy_context(), contextvars.copy_context()
            one.run(VARIABLE.set, 1)
            VARIABLE.set(2)
            three = contextvars.copy_context()
        for context in (one, two, three):
            context.run(child)
    assert calls(session.result) == {("parent",): 1, ("parent", "child"): 3}


def test_rule_4_1_an_empty_context_is_below_the_running_span() -> None:
    with spanprof.start() as session, span("parent"):
        contextvars.Context().run(child)
    assert calls(session.result) == CHILD_OF_PARENT


def test_rule_4_1_spans_inside_the_context_come_first() -> None:
    def work() -> None:
        with span("own"):
            child()

    with spanprof.start() as session:
        with span("parent"):
            context = contextvars.copy_context()
        context.run(work)
    assert calls(session.result) == {
        ("parent",): 1,
        ("parent", "own"): 1,
        ("parent", "own", "child"): 1,
    }


def test_rule_4_3_a_context_of_another_session() -> None:
    """No parent beats a wrong one."""
    with spanprof.start(), span("old"):
        context = contextvars.copy_context()
    with spanprof.start() as session:
        context.run(child)
        with span("new"):
            context.run(child)
    assert calls(session.result) == {("child",): 1, ("new",): 1, ("new", "child"): 1}


@needs_suspension
def test_rule_4_3_a_suspended_span_stays_a_parent(clock: ManualClock) -> None:
    """The task runs while the span that started it waits for it: both at once idle and
    parent."""

    async def task() -> None:
        with span("child"):
            clock(20)

    async def main() -> None:
        with span("parent"):
            clock(1)
            await asyncio.create_task(task())

    with spanprof.start(track_wall=True) as session:
        asyncio.run(main())
    assert series(session.result, "busy") == {("parent",): 1, ("parent", "child"): 20}
    assert series(session.result, "idle") == {("parent",): 20, ("parent", "child"): 0}


# --- trio and anyio -------------------------------------------------------------------


def test_rule_4_3_trio() -> None:
    trio = pytest.importorskip("trio", reason="trio is not installed")

    async def started() -> None:
        await trio.lowlevel.checkpoint()
        child()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            with span("parent"):
                nursery.start_soon(started)
                await trio.to_thread.run_sync(child)
            await trio.lowlevel.checkpoint()

    with spanprof.start() as session:
        trio.run(main)
    assert calls(session.result) == {("parent",): 1, ("parent", "child"): 2}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_rule_4_3_anyio(backend: str) -> None:
    anyio = pytest.importorskip("anyio", reason="anyio is not installed")
    pytest.importorskip(backend, reason=f"{backend} is not installed")

    async def started() -> None:
        await anyio.lowlevel.checkpoint()
        child()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            with span("parent"):
                group.start_soon(started)
                await anyio.to_thread.run_sync(child)

    with spanprof.start() as session:
        anyio.run(main, backend=backend)
    assert calls(session.result) == {("parent",): 1, ("parent", "child"): 2}


def test_rule_4_3_start_of_a_nursery() -> None:
    """``await nursery.start(...)`` waits for what it starts, which then goes on."""
    trio = pytest.importorskip("trio", reason="trio is not installed")

    async def service(*, task_status: Any) -> None:
        task_status.started()
        await trio.lowlevel.checkpoint()
        child()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            with span("parent"):
                await nursery.start(service)

    with spanprof.start() as session:
        trio.run(main)
    assert calls(session.result) == CHILD_OF_PARENT
