"""Rule 4.2: what is suspended takes its spans off the thread, and puts them back.

The clock is moved by hand. What a span has as *busy* is what passed while it ran, and
as *idle* what passed while it was suspended.
"""

# ruff: noqa: SIM117 (how blocks are nested is what is tested)

import asyncio
import contextvars
import gc
import sys
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from contextlib import (
    AsyncExitStack,
    ExitStack,
    aclosing,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from types import coroutine
from typing import Any

import pytest

import spanprof
from spanprof import span

from .helpers import ManualClock, by_path, in_thread, messages, needs_suspension

pytestmark = needs_suspension

Times = dict[tuple[str, ...], tuple[int, int]]
Main = Callable[[], Coroutine[Any, Any, None]]
Sleep = Callable[[], Awaitable[object]]


def times(profile: spanprof.Profile) -> Times:
    """(busy, idle) of each stack of names."""
    return {
        path: (values["wall_busy"], values["wall_idle"])
        for path, values in by_path(profile).items()
    }


def start() -> spanprof.Session:
    return spanprof.start(track_wall=True, track_cpu=True)


@pytest.fixture(autouse=True)
def nothing_is_misnested() -> Iterator[None]:
    before = spanprof.stats().misnested
    yield
    assert spanprof.stats().misnested == before


@coroutine
def wait() -> Generator[None, object, object]:
    """Wait for whoever drives the coroutine."""
    return (yield)


# --- by hand: send, throw, close ------------------------------------------------------


def test_rule_4_2_a_generator_that_yields(clock: ManualClock) -> None:
    def items() -> Iterator[int]:
        with span("generator"):
            for number in range(3):
                clock(1)
                yield number

    with start() as session, span("consumer"):
        for _ in items():
            clock(10)
            with span("inside"):
                clock(100)
    assert times(session.result) == {
        ("consumer",): (30, 0),
        ("consumer", "generator"): (3, 330),
        ("consumer", "inside"): (300, 0),
    }


def test_rule_4_2_current_span_is_never_a_suspended_one() -> None:
    def generator() -> Iterator[None]:
        with span("generator"):
            yield
            current = spanprof.current_span()
            assert current is not None
            assert current.name == "generator"

    with start():
        each = generator()
        next(each)
        assert spanprof.current_span() is None
        with span("consumer") as consumer:
            assert spanprof.current_span() is consumer
            assert next(each, "end") == "end"
            assert spanprof.current_span() is consumer


def test_rule_4_2_several_spans_come_back_in_their_order(clock: ManualClock) -> None:
    def generator() -> Iterator[None]:
        with span("a"):
            with span("b"), span("c"):
                clock(1)
                yield
                clock(2)
                with span("d"):
                    clock(4)
            clock(8)
            yield
        clock(16)

    with start() as session:
        for _ in generator():
            clock(100)
    assert times(session.result) == {
        ("a",): (8, 200),
        ("a", "b"): (0, 100),
        ("a", "b", "c"): (3, 100),
        ("a", "b", "c", "d"): (4, 0),
    }


def test_rule_4_2_the_path_stays_whoever_resumes(clock: ManualClock) -> None:
    def generator() -> Iterator[None]:
        with span("generator"):
            yield
            with span("inner"):
                clock(1)
                yield

    with start() as session:
        with span("first"):
            each = generator()
            next(each)
        with span("second"):
            next(each)
            clock(10)
        next(each, None)
    assert times(session.result) == {
        ("first",): (0, 0),
        ("first", "generator"): (0, 10),
        ("first", "generator", "inner"): (1, 10),
        ("second",): (10, 0),
    }


def test_rule_4_2_resumed_on_another_thread(clock: ManualClock) -> None:
    def generator() -> Iterator[None]:
        with span("generator"):
            clock(1)
            yield
            with span("inner"):
                clock(20)

    with start() as session:
        each = generator()
        next(each)
        with span("main"):
            in_thread(lambda: next(each, None))
    assert times(session.result) == {
        ("generator",): (1, 0),
        ("generator", "inner"): (20, 0),
        ("main",): (20, 0),
    }


def test_rule_4_2_resumed_in_another_context(clock: ManualClock) -> None:
    def generator() -> Iterator[None]:
        with span("generator"):
            yield
            with span("inner"):
                clock(1)
            yield

    def resume() -> None:
        next(each)
        with span("after"):
            clock(10)

    with start() as session:
        each = generator()
        next(each)
        with span("copied in"):
            context = contextvars.copy_context()
        context.run(resume)
        each.close()  # type: ignore[attr-defined]
    assert times(session.result) == {
        ("generator",): (0, 10),
        ("generator", "inner"): (1, 0),
        ("copied in",): (0, 0),
        ("copied in", "after"): (10, 0),
    }


def test_rule_4_2_yield_from(clock: ManualClock) -> None:
    """The outer generator is suspended and resumed with the inner one."""

    def inner() -> Iterator[None]:
        with span("inner"):
            clock(1)
            yield
            clock(2)

    def outer() -> Iterator[None]:
        with span("outer"):
            yield from inner()
            clock(4)

    with start() as session:
        for _ in outer():
            clock(10)
    assert times(session.result) == {
        ("outer",): (4, 10),
        ("outer", "inner"): (3, 10),
    }


def test_rule_4_2_throw_resumes_all_that_wait(clock: ManualClock) -> None:
    """throw() goes to the innermost; meanwhile the outer ones run as well."""

    async def inner() -> None:
        with suppress(KeyError), span("inner"):
            try:
                await wait()
            finally:
                clock(1)
                with span("cleanup"):
                    clock(2)
        clock(4)  # outer's
        await wait()

    async def outer() -> None:
        with span("outer"):
            await inner()

    with start() as session:
        task = outer()
        task.send(None)
        clock(10)
        task.throw(KeyError())
        clock(20)
        with suppress(StopIteration):
            task.send(None)
    assert times(session.result) == {
        ("outer",): (4, 30),
        ("outer", "inner"): (1, 10),
        ("outer", "inner", "cleanup"): (2, 0),
    }


def test_rule_4_2_close_goes_from_the_inside_out(clock: ManualClock) -> None:
    """The inner generator is closed first, and by itself: the outer one still waits."""

    def inner() -> Iterator[None]:
        with span("inner"):
            try:
                yield
            finally:
                clock(1)

    def outer() -> Iterator[None]:
        with span("outer"):
            try:
                yield from inner()
            finally:
                clock(20)

    with start() as session:
        each = outer()
        next(each)
        clock(300)
        each.close()  # type: ignore[attr-defined]
    assert times(session.result) == {
        ("outer",): (20, 301),
        ("outer", "inner"): (1, 300),
    }


def test_rule_4_2_dropped_by_a_loop_that_breaks(clock: ManualClock) -> None:
    def generator() -> Iterator[None]:
        with span("generator"):
            try:
                yield
            finally:
                clock(1)

    with start() as session, span("consumer"):
        for _ in generator():
            clock(20)
            break
    assert times(session.result) == {
        ("consumer",): (20, 0),
        ("consumer", "generator"): (1, 20),
    }


def test_rule_4_2_closed_by_the_collector(clock: ManualClock) -> None:
    """On whatever thread, and inside whatever span."""

    def generator() -> Iterator[None]:
        with span("generator"):
            try:
                yield
            finally:
                clock(1)

    def collect() -> None:
        with span("collecting"):
            gc.collect()

    with start() as session:
        cycle: list[Any] = [generator()]
        next(cycle[0])
        cycle.append(cycle)
        clock(20)
        del cycle
        in_thread(collect)
    assert times(session.result) == {
        ("generator",): (1, 20),
        ("collecting",): (0, 0),
    }


def test_rule_4_2_never_resumed(clock: ManualClock) -> None:
    """Idle up to the stop; what comes later is nobody's."""

    def generator() -> Iterator[None]:
        with span("generator"):
            yield
            clock(1000)

    with start() as session:
        each = generator()
        next(each)
        clock(20)
    next(each, None)
    assert times(session.result) == {("generator",): (0, 20)}


def test_rule_3_6_resumed_in_the_next_session(clock: ManualClock) -> None:
    def generator() -> Iterator[None]:
        with span("old"):
            yield
            with span("new"):
                clock(1)
            yield

    with start():
        each = generator()
        next(each)
    with start() as session:
        next(each)
        next(each, None)
    assert times(session.result) == {("new",): (1, 0)}


def test_rule_5_1_a_snapshot_has_what_is_suspended(clock: ManualClock) -> None:
    def generator() -> Iterator[None]:
        with span("generator"):
            clock(1)
            yield

    with start() as session:
        each = generator()
        next(each)
        clock(20)
        assert times(session.snapshot()) == {("generator",): (1, 20)}
        clock(300)
        assert times(session.snapshot()) == {("generator",): (1, 320)}
        next(each, None)
    assert times(session.result) == {("generator",): (1, 320)}


def test_rule_3_2_an_opened_span_is_suspended_like_others(clock: ManualClock) -> None:
    def generator(opened: spanprof.Span) -> Iterator[None]:
        with opened:
            clock(1)
            yield
            clock(2)

    with start() as session:
        job = span("job").open()
        clock(10)
        for _ in generator(job):
            clock(100)
        clock(1000)
        job.close()
        clock(10_000)
    assert times(session.result) == {("job",): (3, 1110)}


def test_rule_4_2_in_one_session_after_the_other(clock: ManualClock) -> None:
    """What is known of the code is told to each session."""

    def generator() -> Iterator[None]:
        with span("generator"):
            clock(1)
            yield

    for _ in range(3):
        with start() as session:
            for _ in generator():
                clock(20)
        assert times(session.result) == {("generator",): (1, 20)}
        for _ in generator():
            clock(300)


def test_rule_4_2_code_that_ran_before_the_session(clock: ManualClock) -> None:
    def generator() -> Iterator[None]:
        for _ in range(3):
            with span("generator"):
                clock(1)
                yield

    each = generator()
    next(each)
    with start() as session:
        clock(300)
        next(each)
        clock(20)
        next(each)
    assert times(session.result) == {("generator",): (2, 20)}


def test_rule_4_2_recursion(clock: ManualClock) -> None:
    """Many frames of the same code, each with spans of its own."""

    def walk(depth: int) -> Iterator[int]:
        with span("walk"):
            clock(1)
            yield depth
            if depth < 3:
                yield from walk(depth + 1)

    with start() as session:
        for _ in walk(0):
            clock(100)
    paths = [("walk",) * depth for depth in range(1, 5)]
    assert times(session.result) == {path: (1, 100 * (5 - len(path))) for path in paths}


def test_rule_4_2_in_a_comprehension(clock: ManualClock) -> None:
    def items() -> Iterator[int]:
        with span("items"):
            for number in range(3):
                clock(1)
                yield number

    def doubled(number: int) -> int:
        with span("double"):
            clock(20)
        return 2 * number

    with start() as session, span("consumer"):
        assert list(doubled(each) for each in items()) == [0, 2, 4]  # noqa: C400
    assert times(session.result) == {
        ("consumer",): (0, 0),
        ("consumer", "items"): (3, 60),
        ("consumer", "double"): (60, 0),
    }


def test_rule_5_2_cpu_time_of_the_others_is_not_its(clock: ManualClock) -> None:
    def generator() -> Iterator[None]:
        with span("generator"):
            clock(1, 1)
            yield

    with start() as session:
        for _ in generator():
            clock(20, 20)
            with span("consumer"):
                clock(300, 300)
    assert {p: v["cpu"] for p, v in by_path(session.result).items()} == {
        ("generator",): 1,
        ("consumer",): 300,
    }


def test_rule_4_2_a_plain_function_between(clock: ManualClock) -> None:
    """Its spans are not the generator's that it moves on, nor the other way round."""

    def generator() -> Iterator[None]:
        with span("generator"):
            clock(1)
            yield

    def function(each: Iterator[None]) -> None:
        with span("function"):
            next(each, None)
            clock(20)

    with start() as session:
        each = generator()
        function(each)
        clock(300)
        function(each)
    assert times(session.result) == {
        ("function",): (40, 0),
        ("function", "generator"): (1, 320),
    }


# --- generators that are context managers ---------------------------------------------


@contextmanager
def managed(name: str) -> Iterator[None]:
    with span(name):
        yield


@asynccontextmanager
async def async_managed(name: str, sleep: Sleep | None = None) -> AsyncIterator[None]:
    with span(name):
        if sleep is not None:
            await sleep()
        yield


def test_rule_4_2_a_context_manager_lends_its_spans(clock: ManualClock) -> None:
    with start() as session:
        with managed("block"):
            clock(1)
            with span("inside"):
                clock(20)
    assert times(session.result) == {("block",): (1, 0), ("block", "inside"): (20, 0)}


def test_rule_4_2_what_is_lent_is_suspended_with_the_block(clock: ManualClock) -> None:
    def generator() -> Iterator[None]:
        with managed("block"):
            clock(1)
            yield

    with start() as session:
        for _ in generator():
            clock(20)
    assert times(session.result) == {("block",): (1, 20)}


def test_rule_4_2_an_exit_stack_lends_as_well(clock: ManualClock) -> None:
    def generator() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(managed("managed"))
            stack.enter_context(span("span"))
            clock(1)
            yield

    with start() as session:
        for _ in generator():
            clock(20)
    assert times(session.result) == {
        ("managed",): (0, 20),
        ("managed", "span"): (1, 20),
    }


def test_rule_4_2_a_manager_within_a_manager(clock: ManualClock) -> None:
    @contextmanager
    def both() -> Iterator[None]:
        with managed("outer"), managed("inner"):
            yield

    def generator() -> Iterator[None]:
        with both():
            clock(1)
            yield

    with start() as session:
        for _ in generator():
            clock(20)
    assert times(session.result) == {("outer",): (0, 20), ("outer", "inner"): (1, 20)}


# --- on every loop --------------------------------------------------------------------


def run_asyncio(main: Main) -> None:
    asyncio.run(main())


def run_uvloop(main: Main) -> None:
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def run_trio(main: Main) -> None:
    trio = pytest.importorskip("trio", reason="trio is not installed")
    trio.run(main)


def run_anyio_on_asyncio(main: Main) -> None:
    anyio = pytest.importorskip("anyio", reason="anyio is not installed")
    anyio.run(main, backend="asyncio")


def run_anyio_on_trio(main: Main) -> None:
    anyio = pytest.importorskip("anyio", reason="anyio is not installed")
    pytest.importorskip("trio", reason="trio is not installed")
    anyio.run(main, backend="trio")


def run_by_hand(main: Main) -> None:
    task = main()
    with suppress(StopIteration):
        while True:
            task.send(None)


RUNS = [
    run_asyncio,
    run_uvloop,
    run_trio,
    run_anyio_on_asyncio,
    run_anyio_on_trio,
    run_by_hand,
]


@pytest.fixture(params=RUNS, ids=lambda run: run.__name__)
def run(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def sleep(run: Callable[[Main], None]) -> Sleep:
    """Waits for the loop, which lets others run."""
    if run is run_by_hand:
        return wait
    if run in (run_trio, run_anyio_on_trio):
        import trio

        return trio.lowlevel.checkpoint
    return lambda: asyncio.sleep(0)


def test_rule_4_2_async_with(
    clock: ManualClock, run: Callable[[Main], None], sleep: Sleep
) -> None:
    async def main() -> None:
        async with span("a"):
            clock(1)
            await sleep()
            async with span("b"):
                clock(20)

    with start() as session:
        run(main)
    assert times(session.result) == {("a",): (1, 0), ("a", "b"): (20, 0)}


def test_rule_4_2_awaits_inside_awaits(
    clock: ManualClock, run: Callable[[Main], None], sleep: Sleep
) -> None:
    async def inner() -> None:
        with span("inner"):
            clock(1)
            await sleep()
            clock(2)

    async def outer() -> None:
        with span("outer"):
            await inner()
            clock(4)
            await inner()

    with start() as session:
        run(outer)
    assert times(session.result) == {("outer",): (4, 0), ("outer", "inner"): (6, 0)}


def test_rule_4_2_what_runs_the_loop_has_the_time_between(
    clock: ManualClock, run: Callable[[Main], None], sleep: Sleep
) -> None:
    """Nothing of the loop's own runs inside the task's span."""

    async def main() -> None:
        with span("task"):
            assert seen() == "task"
            await sleep()
            assert seen() == "task"
        assert seen() == "app"

    def seen() -> str | None:
        current = spanprof.current_span()
        return current.name if current is not None else None

    with start() as session, span("app"):
        run(main)
        assert seen() == "app"
    assert set(times(session.result)) == {("app",), ("app", "task")}


def test_rule_4_2_an_async_generator(
    clock: ManualClock, run: Callable[[Main], None], sleep: Sleep
) -> None:
    async def items() -> AsyncIterator[int]:
        with span("generator"):
            for number in range(3):
                await sleep()
                clock(1)
                yield number

    async def main() -> None:
        with span("consumer"):
            async with aclosing(items()) as each:
                async for _ in each:
                    clock(20)
                    await sleep()

    with start() as session:
        run(main)
    assert times(session.result) == {
        ("consumer",): (60, 0),
        ("consumer", "generator"): (3, 60),
    }


def test_rule_4_2_an_async_generator_closed_early(
    clock: ManualClock, run: Callable[[Main], None], sleep: Sleep
) -> None:
    async def items() -> AsyncIterator[None]:
        with span("generator"):
            try:
                yield
            finally:
                clock(1)
                await sleep()
                clock(2)

    async def main() -> None:
        async with aclosing(items()) as each:
            async for _ in each:
                clock(20)
                break

    with start() as session:
        run(main)
    assert times(session.result) == {("generator",): (3, 20)}


def test_rule_4_2_an_async_context_manager(
    clock: ManualClock, run: Callable[[Main], None], sleep: Sleep
) -> None:
    """It waits in ``__aenter__``, and then lends its span to the block."""

    async def main() -> None:
        async with async_managed("block", sleep):
            clock(1)
            await sleep()
            with span("inside"):
                clock(20)

    with start() as session:
        run(main)
    assert times(session.result) == {("block",): (1, 0), ("block", "inside"): (20, 0)}


def test_rule_4_2_an_async_exit_stack(
    clock: ManualClock, run: Callable[[Main], None], sleep: Sleep
) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(async_managed("managed", sleep))
            stack.enter_context(span("span"))
            await stack.enter_async_context(span("async span"))
            await sleep()
            clock(1)

    with start() as session:
        run(main)
    assert times(session.result) == {
        ("managed",): (0, 0),
        ("managed", "span"): (0, 0),
        ("managed", "span", "async span"): (1, 0),
    }


def test_rule_3_4_an_exception_through_an_await(
    clock: ManualClock, run: Callable[[Main], None], sleep: Sleep
) -> None:
    async def inner() -> None:
        with span("inner"):
            await sleep()
            clock(1)
            raise KeyError

    async def main() -> None:
        with span("outer"):
            with pytest.raises(KeyError):
                await inner()
            clock(20)

    with start() as session:
        run(main)
    assert times(session.result) == {("outer",): (20, 0), ("outer", "inner"): (1, 0)}


# --- tasks beside each other ----------------------------------------------------------


@pytest.mark.parametrize("run", [run_asyncio, run_uvloop])
def test_rule_4_2_two_tasks_in_turns(
    clock: ManualClock, run: Callable[[Main], None]
) -> None:
    """Neither sees the other's spans; one's time is idle time of the other."""

    async def one(name: str, much: int) -> None:
        with span(name):
            for _ in range(3):
                clock(much)
                await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(one("a", 1), one("b", 100))

    with start() as session:
        run(main)
    assert times(session.result) == {("a",): (3, 300), ("b",): (300, 2)}


@pytest.mark.parametrize("run", [run_asyncio, run_uvloop])
def test_rule_4_2_a_cancelled_task(
    clock: ManualClock, run: Callable[[Main], None]
) -> None:
    async def cleaned_up() -> None:
        with span("inner"):
            try:
                await asyncio.sleep(3600)
            finally:
                clock(1)

    async def task() -> None:
        with span("outer"):
            try:
                await cleaned_up()
            finally:
                clock(20)

    async def main() -> None:
        cancelled = asyncio.create_task(task())
        await asyncio.sleep(0)
        clock(300)
        cancelled.cancel()
        with suppress(asyncio.CancelledError):
            await cancelled

    with start() as session:
        run(main)
    assert times(session.result) == {
        ("outer",): (20, 300),
        ("outer", "inner"): (1, 300),
    }


def test_rule_4_2_a_cancelled_trio_task(clock: ManualClock) -> None:
    trio = pytest.importorskip("trio", reason="trio is not installed")
    pytest.importorskip("trio.testing")

    async def task(scope: Any) -> None:
        with scope, span("task"):
            try:
                await trio.sleep_forever()
            finally:
                clock(1)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(task, scope)
            await trio.testing.wait_all_tasks_blocked()
            clock(20)
            scope.cancel()

    with start() as session:
        trio.run(main)
    assert times(session.result) == {("task",): (1, 20)}


@pytest.mark.skipif(
    sys.version_info < (3, 14), reason="a coroutine's spans are resumed too late"
)
def test_rule_4_2_cancelled_while_waiting_for_an_item(clock: ManualClock) -> None:
    async def items() -> AsyncIterator[None]:
        with span("generator"):
            try:
                await wait()
            finally:
                clock(1)
                with span("cleanup"):
                    clock(20)
        yield

    async def main() -> None:
        with span("consumer"):
            async for _ in items():
                pass

    with start() as session:
        task = main()
        task.send(None)
        clock(300)
        with suppress(KeyError):
            task.throw(KeyError())
    assert times(session.result) == {
        ("consumer",): (0, 300),
        ("consumer", "generator"): (1, 300),
        ("consumer", "generator", "cleanup"): (20, 0),
    }


def test_rule_4_2_timeouts(clock: ManualClock) -> None:
    async def main() -> None:
        with span("outer"):
            with suppress(TimeoutError):
                async with asyncio.timeout(0):
                    with span("inner"):
                        await asyncio.sleep(3600)
            clock(1)

    with start() as session:
        asyncio.run(main())
    assert times(session.result) == {("outer",): (1, 0), ("outer", "inner"): (0, 0)}


def test_rule_4_2_tasks_left_behind_by_a_loop(clock: ManualClock) -> None:
    """asyncio.run cancels them at its end."""

    async def forever() -> None:
        with span("forever"):
            try:
                await asyncio.sleep(3600)
            finally:
                clock(1)

    async def main() -> None:
        main.task = asyncio.create_task(forever())  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        clock(20)

    with start() as session:
        asyncio.run(main())
    assert times(session.result) == {("forever",): (1, 20)}


def test_without_a_free_number_of_sys_monitoring(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Counted and said; spans are as where suspensions cannot be seen."""

    def generator() -> Iterator[None]:
        with span("generator"):
            yield

    monitoring = sys.monitoring  # type: ignore[attr-defined, unused-ignore]
    taken = [number for number in (4, 3) if monitoring.get_tool(number) is None]
    for number in taken:
        monitoring.use_tool_id(number, "somebody else")
    before = spanprof.stats()
    try:
        with spanprof.start(track_wall=True) as session:
            steps = generator()
            next(steps)
            clock(1)
            steps.close()
    finally:
        for number in taken:
            monitoring.free_tool_id(number)
    assert by_path(session.result)["generator",]["wall_busy"] == 1
    assert spanprof.stats().suspensions_unseen == before.suspensions_unseen + 1
    assert spanprof.stats().misnested == before.misnested
    assert [each for each in messages(caplog) if "sys.monitoring" in each]
    with spanprof.start(track_wall=True) as session:
        steps = generator()
        next(steps)
        clock(1)
        steps.close()
    assert by_path(session.result)["generator",]["wall_idle"] == 1
    assert monitoring.get_tool(4) is None  # given back
