"""Rules 3.1, 3.3, 3.4, 3.6 and 3.8 for decorated functions whose body runs step by
step: coroutine, generator and asynchronous generator functions."""

import asyncio
import contextlib
import copy
import functools
import gc
import inspect
import pickle
import sys
import traceback
import types
import warnings
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterator,
)
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spanprof
from spanprof import span, steps

from .helpers import (
    SUSPENDS,
    ManualClock,
    calls,
    needs_suspension,
    run_python,
    series,
)


class Pause:
    """Awaited, it yields to whoever drives the coroutine."""

    def __await__(self) -> Generator[str, object, object]:
        return (yield "paused")


@span("coroutine")
async def coroutine(a: int = 1, *, b: "list[int] | None" = None) -> tuple[int, object]:
    """Doc."""
    return a, await Pause()


@span("generator")
def generator(n: int = 2) -> Generator[int, object, str]:
    """Doc."""
    yield from range(n)
    return "end"


@span("async generator")
async def async_generator(n: int = 2) -> AsyncGenerator[int, object]:
    """Doc."""
    for i in range(n):
        await Pause()
        yield i


@types.coroutine
def _iterable(value: int) -> Generator[str, object, object]:
    """Doc."""
    return value, (yield "paused")


iterable_coroutine = span("iterable coroutine")(_iterable)

KINDS = [coroutine, generator, async_generator, iterable_coroutine]


def finish(steps: Any) -> Any:
    """Drive a coroutine, or the awaitable of one step, by hand to its end."""
    iterator = steps.__await__() if not hasattr(steps, "send") else steps
    with contextlib.closing(iterator):
        while True:
            try:
                iterator.send(None)
            except StopIteration as end:
                return end.value


# --- they pass for the function ----------------


def test_rule_3_3_results_are_real_coroutines_and_generators() -> None:
    for session in (contextlib.nullcontext(), spanprof.start()):
        with session:
            made: list[Any] = [coroutine(), generator(), async_generator()]
            made.append(iterable_coroutine(1))
            kinds = [
                types.CoroutineType,
                types.GeneratorType,
                types.AsyncGeneratorType,
                types.GeneratorType,
            ]
            assert [type(each) for each in made] == kinds
            assert inspect.iscoroutine(made[0])
            assert inspect.isgenerator(made[1])
            assert inspect.isasyncgen(made[2])
            assert [inspect.isawaitable(each) for each in made] == [
                True,
                False,
                False,
                True,
            ]
            for each, function in zip(made, KINDS, strict=True):
                assert each.__name__ == function.__name__
                assert each.__qualname__ == function.__qualname__
            made[0].close()


def test_rule_3_3_inspect_sees_functions_of_the_same_kind() -> None:
    predicates = [
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
    ]
    answers = [[predicate(kind) for predicate in predicates] for kind in KINDS]
    assert answers == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
        [False, True, False],
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert asyncio.iscoroutinefunction(coroutine)
    assert all(inspect.isfunction(kind) for kind in KINDS)


@pytest.mark.parametrize("function", KINDS)
def test_rule_3_3_decorated_function_passes_for_the_function(
    function: Callable[..., object],
) -> None:
    wrapped = function.__wrapped__  # type: ignore[attr-defined]
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(function, name) == getattr(wrapped, name)
    assert inspect.signature(function) == inspect.signature(wrapped)
    assert inspect.unwrap(function) is wrapped
    assert function.__annotations__ == wrapped.__annotations__
    assert function.__annotations__


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are not lazy")
def test_rule_3_3_annotations_are_computed_when_they_are_asked_for(
    tmp_path: Path,
) -> None:
    code = (
        "from spanprof import span\n"
        "@span('x')\n"
        "async def function(a: Later) -> None: ...\n"
        "class Later: ...\n"
        "assert function.__annotations__['a'] is Later\n"
    )
    run_python(code, cwd=tmp_path)


def test_rule_3_3_decorated_function_is_pickled_by_name() -> None:
    for function in KINDS[:3]:
        assert pickle.loads(pickle.dumps(function)) is function
        assert copy.deepcopy(function) is function
    thing = pickle.loads(pickle.dumps(functools.partial(generator, 4)))
    assert list(thing()) == [0, 1, 2, 3]


def test_rule_3_3_what_plain_functions_become_does_not_import_it(
    tmp_path: Path,
) -> None:
    code = (
        "import sys, spanprof\n"
        "spanprof.span('x')(lambda: 0)()\n"
        "assert 'spanprof.steps' not in sys.modules\n"
    )
    run_python(code, cwd=tmp_path)


class Methods:
    @span("method")
    async def method(self, a: int) -> tuple[object, ...]:
        return self, a

    @classmethod
    @span("class method below")
    async def class_below(cls, a: int) -> tuple[object, ...]:
        return cls, a

    @span("class method above")
    @classmethod
    async def class_above(cls, a: int) -> tuple[object, ...]:
        return cls, a

    @staticmethod
    @span("static method below")
    def static_below(a: int) -> Iterator[int]:
        yield a

    @span("static method above")
    @staticmethod
    def static_above(a: int) -> Iterator[int]:
        yield a

    @span("plain static method above")
    @staticmethod
    def plain_static(a: int) -> int:
        return a

    async def __call__(self) -> str:
        return "called"


def test_rule_3_3_methods_of_all_kinds() -> None:
    thing: Any = Methods()
    with spanprof.start() as session:
        assert finish(thing.method(1)) == (thing, 1)
        assert finish(Methods.method(thing, 2)) == (thing, 2)
        for owner in (thing, Methods):
            assert finish(owner.class_below(3)) == (Methods, 3)
            assert finish(owner.class_above(4)) == (Methods, 4)
            assert list(owner.static_below(5)) == [5]
            assert list(owner.static_above(6)) == [6]
            assert owner.plain_static(7) == 7
    assert calls(session.result) == {
        ("method",): 2,
        ("class method below",): 2,
        ("class method above",): 2,
        ("static method below",): 2,
        ("static method above",): 2,
        ("plain static method above",): 2,
    }


def test_rule_3_3_other_callables() -> None:
    async def plain(a: int, b: int = 0) -> int:
        return a + b

    bound = span("bound")(Methods().method)
    partial = span("partial")(functools.partial(plain, b=10))
    called: Any = span("object")(Methods())
    marked: Any = lambda a: plain(a)  # noqa: E731
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(marked)
    else:
        marked._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
    with spanprof.start() as session:
        assert finish(bound(1))[1] == 1
        assert finish(partial(1)) == 11
        assert finish(called()) == "called"
        marked = span("marked")(marked)
        assert finish(marked(5)) == 5
    for function in (bound, partial, called, marked):
        assert inspect.iscoroutinefunction(function)
    assert set(calls(session.result)) == {
        ("bound",),
        ("bound", "method"),
        ("partial",),
        ("object",),
        ("marked",),
    }
    assert partial.__name__ == "plain"
    files = {sample.stack[0].file for sample in session.result.samples}
    assert files == {__file__}


def test_rule_7_1_its_callsite_is_the_function() -> None:
    twice = span("outer")(generator)
    with spanprof.start() as session:
        list(generator())
        list(twice())
    own = generator.__wrapped__.__code__  # type: ignore[attr-defined]
    for sample in session.result.samples:
        for site in sample.stack:
            assert (site.file, site.line) == (own.co_filename, own.co_firstlineno)
            assert site.target == __name__
    assert calls(session.result) == {
        ("generator",): 1,
        ("outer",): 1,
        ("outer", "generator"): 1,
    }


# --- a span per call, from the first step to the last ----------------


def test_rule_3_3_a_span_for_each_call() -> None:
    ids = []

    def note() -> None:
        current = spanprof.current_span()
        assert current is not None
        assert current.is_recording
        ids.append(current.id)

    @span("c")
    async def c() -> None:
        note()

    @span("g")
    def g() -> Iterator[None]:
        note()
        yield
        note()

    @span("a")
    async def a() -> AsyncIterator[None]:
        note()
        yield
        note()

    async def both() -> None:
        async for _ in a():
            assert spanprof.current_span() is None or not SUSPENDS

    with spanprof.start() as session:
        for _ in range(3):
            finish(c())
            list(g())
            finish(both())
    assert len(ids) == 15
    assert len(set(ids)) == 9
    assert calls(session.result) == {("c",): 3, ("g",): 3, ("a",): 3}


@needs_suspension
def test_rule_3_3_a_generator_is_busy_while_a_step_runs(clock: ManualClock) -> None:
    @span("g")
    def g() -> Generator[int, int, None]:
        clock(1)
        received = yield 1
        clock(received)
        with span("inner"):
            clock(4)
            yield 2
            clock(8)
        clock(16)

    with spanprof.start(track_wall=True) as session, span("main"):
        steps = g()
        clock(100)  # the call is no step
        assert next(steps) == 1
        clock(1000)
        assert steps.send(2) == 2
        clock(10_000)
        assert list(steps) == []
        clock(100_000)
    assert series(session.result, "busy") == {
        ("main",): 111_100,
        ("main", "g"): 1 + 2 + 16,
        ("main", "g", "inner"): 12,
    }
    assert series(session.result, "idle") == {
        ("main",): 0,
        ("main", "g"): 11_000,
        ("main", "g", "inner"): 10_000,
    }


@needs_suspension
def test_rule_3_3_a_coroutine_is_busy_while_a_step_runs(clock: ManualClock) -> None:
    @span("c")
    async def c(name: str, time: int) -> str:
        clock(time)
        for _ in range(2):
            await asyncio.sleep(0)
            clock(time)
        return name

    async def main() -> list[str]:
        return await asyncio.gather(c("a", 1), c("b", 10), c("c", 100))

    with spanprof.start(track_wall=True) as session:
        assert asyncio.run(main()) == ["a", "b", "c"]
    assert calls(session.result) == {("c",): 3}
    assert series(session.result, "busy") == {("c",): 333}
    # Each waits twice while the two others take a step.
    assert series(session.result, "idle") == {("c",): 2 * (110 + 101 + 11)}


@needs_suspension
def test_rule_3_3_an_async_generator_is_busy_while_a_step_runs(
    clock: ManualClock,
) -> None:
    @span("a")
    async def a() -> AsyncGenerator[int, int]:
        clock(1)
        await asyncio.sleep(0)
        clock(2)
        received = yield 1
        clock(received)
        yield 2
        clock(8)

    async def other() -> None:
        clock(100)

    async def main() -> None:
        task = asyncio.create_task(other())
        steps = a()
        clock(1000)
        assert await anext(steps) == 1
        clock(10_000)
        assert await steps.asend(4) == 2
        clock(100_000)
        assert [_ async for _ in steps] == []
        await task

    with spanprof.start(track_wall=True) as session:
        asyncio.run(main())
    assert series(session.result, "busy") == {("a",): 1 + 2 + 4 + 8}
    assert series(session.result, "idle") == {("a",): 110_100}


@needs_suspension
def test_rule_3_3_what_runs_at_a_close_is_a_step(clock: ManualClock) -> None:
    @span("g")
    def g() -> Iterator[None]:
        try:
            yield
        finally:
            with span("cleanup"):
                clock(1)

    @span("c")
    async def c() -> None:
        try:
            await Pause()
        finally:
            clock(10)

    before = spanprof.stats()
    with spanprof.start(track_wall=True) as session:
        for _ in g():
            clock(1000)
            break  # the collector closes it
        waiting = c()
        waiting.send(None)
        clock(1000)
        waiting.close()
    assert series(session.result, "busy") == {
        ("g",): 0,
        ("g", "cleanup"): 1,
        ("c",): 10,
    }
    assert series(session.result, "idle") == {
        ("g",): 1000,
        ("g", "cleanup"): 0,
        ("c",): 1000,
    }
    after = spanprof.stats()
    assert (after.abandoned, after.misnested) == (before.abandoned, before.misnested)


@needs_suspension
def test_rule_3_3_spans_of_tasks_that_are_cancelled(clock: ManualClock) -> None:
    @span("c")
    async def c() -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            clock(1)
            await asyncio.sleep(0)
            clock(2)
        return "late"

    @span("never")
    async def never() -> None:
        raise AssertionError

    async def main() -> None:
        task = asyncio.create_task(c())
        unstarted = asyncio.create_task(never())
        unstarted.cancel()
        await asyncio.sleep(0)
        clock(100)
        task.cancel()
        assert await task == "late"

    with spanprof.start(track_wall=True) as session:
        asyncio.run(main())
    assert calls(session.result) == {("c",): 1}
    assert series(session.result, "busy") == {("c",): 3}


@needs_suspension
def test_rule_4_2_a_context_manager_of_a_decorated_generator_lasts_as_its_block(
    clock: ManualClock,
) -> None:
    @contextlib.contextmanager
    @span("outer")
    @span("inner")
    def manager() -> Iterator[str]:
        clock(1)
        yield "x"
        clock(2)

    @contextlib.asynccontextmanager
    @span("async")
    async def async_manager() -> AsyncIterator[str]:
        await asyncio.sleep(0)
        clock(4)
        yield "y"
        clock(8)

    async def main() -> None:
        with manager() as x:
            clock(10)
            await asyncio.sleep(0)
            with span("block"):
                clock(100)
        async with async_manager() as y:
            clock(1000)
        assert (x, y) == ("x", "y")

    async def other() -> None:
        await asyncio.sleep(0)
        with span("other"):
            clock(1_000_000)

    async def all_of_them() -> None:
        await asyncio.gather(main(), other())

    with spanprof.start(track_wall=True) as session:
        asyncio.run(all_of_them())
    assert series(session.result, "busy") == {
        ("outer",): 0,
        ("outer", "inner"): 13,
        ("outer", "inner", "block"): 100,
        ("async",): 1012,
        ("other",): 1_000_000,
    }


def test_rule_3_1_recursion_of_a_decorated_generator() -> None:
    @span("walk")
    def walk(depth: int) -> Iterator[int]:
        yield depth
        if depth:
            yield from walk(depth - 1)

    @span("count")
    async def count(depth: int) -> int:
        return 1 + await count(depth - 1) if depth else 0

    with spanprof.start() as session:
        assert list(walk(2)) == [2, 1, 0]
        assert finish(count(2)) == 2
    w, c = "walk", "count"
    assert calls(session.result) == {
        (w,): 1,
        (w, w): 1,
        (w, w, w): 1,
        (c,): 1,
        (c, c): 1,
        (c, c, c): 1,
    }


def test_rule_3_3_labels_and_parent() -> None:
    with spanprof.start(record_labels=["user"]) as session:
        with span("parent") as parent:
            child = parent.span("child", user="a")(_iterable)
        finish(child(1))
    labels = {
        sample.stack[0].name: dict(sample.labels) for sample in session.result.samples
    }
    assert labels["child"] == {"user": "a"}
    assert ("parent", "child") in calls(session.result)


def test_rule_3_7_calls_are_sampled() -> None:
    class Sampler(spanprof.HeadSampler):
        def should_sample(self, metadata: spanprof.SpanMetadata) -> bool:
            asked.append((metadata.span_name, metadata.line))
            return len(asked) % 2 == 0

    asked: list[tuple[str, int]] = []

    @span("g")
    def g() -> Iterator[None]:
        with span("inside"):
            yield

    with spanprof.start(sampler=Sampler()) as session:
        for _ in range(4):
            list(g())
    line = g.__wrapped__.__code__.co_firstlineno  # type: ignore[attr-defined]
    assert asked == [("g", line)] * 4
    assert calls(session.result) == {("g",): 2, ("g", "inside"): 2}


@needs_suspension
def test_rule_4_2_an_opened_span_that_only_a_coroutine_enters(
    clock: ManualClock,
) -> None:
    async def enters(opened: spanprof.Span) -> None:
        with opened:
            clock(1)
            await asyncio.sleep(0)
            clock(2)

    async def main() -> None:
        opened = span("opened").open()
        task = asyncio.create_task(enters(opened))
        await asyncio.sleep(0)
        clock(1000)
        await task
        opened.close()

    with spanprof.start(track_wall=True) as session:
        asyncio.run(main())
    assert series(session.result, "busy") == {("opened",): 3}
    assert series(session.result, "idle") == {("opened",): 1000}


@needs_suspension
def test_rule_3_7_a_span_that_is_sampled_out_is_suspended_too() -> None:
    """Else what other tasks do meanwhile would be taken for its descendants'."""

    namespace: dict[str, Any] = {"span": span, "sleep": asyncio.sleep}
    for i in range(40):
        exec(
            f"async def task_{i}():\n    with span('{i}'):\n        await sleep(0)\n",
            namespace,
        )

    async def main() -> None:
        await asyncio.gather(*(namespace[f"task_{i}"]() for i in range(40)))

    seen = []
    for seed in range(5):
        sampler = spanprof.ProbabilisticSampler(0.5, seed=seed)
        with spanprof.start(sampler=sampler) as session:
            asyncio.run(main())
        seen.append(sum(calls(session.result).values()))
    assert all(5 < each < 35 for each in seen), seen


# --- without a session, and with one that comes or goes ----------------


def test_rule_3_6_without_a_session() -> None:
    assert list(generator(3)) == [0, 1, 2]
    assert finish(coroutine(4)) == (4, None)
    assert spanprof.current_span() is None


@pytest.mark.parametrize("stops", [False, True])
def test_rule_3_6_a_session_that_comes_or_goes_between_steps(stops: bool) -> None:
    """The spans are not recorded, later ones are."""
    before = spanprof.stats()
    if stops:
        spanprof.start()
    made = coroutine(), generator(), async_generator()
    one = made[2].asend(None)
    assert made[0].send(None) == "paused"
    assert next(made[1]) == 0
    assert one.send(None) == "paused"  # type: ignore[attr-defined]
    spanprof.stop()
    with spanprof.start() as session:
        with pytest.raises(StopIteration) as end:
            made[0].send(7)
        assert end.value.value == (1, 7)
        assert list(made[1]) == [1]
        with pytest.raises(StopIteration):
            one.send(None)  # type: ignore[attr-defined]
        finish(made[2].aclose())
        list(generator())
    assert calls(session.result) == {("generator",): 1}
    assert spanprof.stats().misnested == before.misnested
    assert spanprof.stats().abandoned == before.abandoned


# --- what is passed on ----------------

ERRORS: list[type[BaseException]] = [
    ValueError,
    KeyboardInterrupt,
    GeneratorExit,
    StopIteration,
    StopAsyncIteration,
    asyncio.CancelledError,
]


class Step(NamedTuple):
    """What a body does around one `yield`."""

    pauses: int
    catches: tuple[type[BaseException], ...]
    then: str


class Deed(NamedTuple):
    """What is done to a generator from outside."""

    what: str
    value: int
    error: type[BaseException]
    as_class: bool
    at_pause: type[BaseException] | None


STEPS = st.lists(
    st.builds(
        Step,
        pauses=st.integers(0, 2),
        catches=st.lists(st.sampled_from(ERRORS), max_size=3).map(tuple),
        then=st.sampled_from(["go on", "return", "raise", "raise again", "yield"]),
    ),
    max_size=4,
)
DEEDS = st.lists(
    st.builds(
        Deed,
        what=st.sampled_from(["next", "send", "throw", "close"]),
        value=st.integers(0, 9),
        error=st.sampled_from(ERRORS),
        as_class=st.booleans(),
        # Who throws GeneratorExit at a pause closes the awaitable of the step, which
        # for an asynchronous generator is not to close that.
        at_pause=st.none()
        | st.sampled_from([each for each in ERRORS if each is not GeneratorExit]),
    ),
    max_size=8,
)
Log = list[object]


def told(error: BaseException | None) -> object:
    """What is to be seen of an exception, but for the frames that it came through."""
    if error is None:
        return None
    value = error.value if isinstance(error, StopIteration) else error.args
    return type(error), repr(value), told(error.__cause__), told(error.__context__)


def frames_inside(error: BaseException) -> list[str]:
    """Who has seen it before it came into the body."""
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def body(program: list[Step], log: Log) -> Generator[object, object, object]:
    try:
        for number, step in enumerate(program):
            try:
                log.append((yield number))
            except step.catches as error:
                log.append((told(error), frames_inside(error)))
                if step.then == "return":
                    return f"returned {number}"
                if step.then == "raise":
                    raise KeyError(number) from None
                if step.then == "raise again":
                    raise
                if step.then == "yield":
                    log.append((yield "caught"))
            if step.then == "raise":
                raise LookupError(number)
        return "end"
    finally:
        log.append("finally")


async def async_body(program: list[Step], log: Log) -> AsyncGenerator[object, object]:
    try:
        for number, step in enumerate(program):
            try:
                for _ in range(step.pauses):
                    log.append(await Pause())
                log.append((yield number))
            except step.catches as error:
                log.append((told(error), frames_inside(error)))
                if step.then == "return":
                    return
                if step.then == "raise":
                    raise KeyError(number) from None
                if step.then == "raise again":
                    raise
                if step.then == "yield":
                    await Pause()
                    log.append((yield "caught"))
            if step.then == "raise":
                raise LookupError(number)
    finally:
        log.append("finally")


def thrown(deed: Deed) -> Any:
    return deed.error if deed.as_class else deed.error(deed.value)


def do(generator: Any, deed: Deed) -> object:
    if deed.what == "next":
        return next(generator)
    if deed.what == "send":
        return generator.send(deed.value)
    if deed.what == "throw":
        return generator.throw(thrown(deed))
    return generator.close()


def do_async(generator: Any, deed: Deed, log: Log) -> object:
    step = {
        "next": lambda: anext(generator),
        "send": lambda: generator.asend(deed.value),
        "throw": lambda: generator.athrow(thrown(deed)),
        "close": lambda: generator.aclose(),
    }[deed.what]()
    at_pause = deed.at_pause
    try:
        for _ in range(20):
            if at_pause is None or log[-1:] != ["paused"]:
                log.append(step.send(None))
            else:
                log.append("thrown at a pause")
                log.append(step.throw(at_pause("at a pause")))
                at_pause = None
    except StopIteration as end:
        return end.value
    return "endless"  # on 3.12, after an exception that was thrown in at a pause


def story(generator: Any, deeds: list[Deed], log: Log) -> Log:
    """All that is to be seen while this is done to it."""
    do_it = do_async if inspect.isasyncgen(generator) else lambda g, d, _: do(g, d)
    for deed in deeds:
        try:
            log.append(("result", do_it(generator, deed, log)))
        except BaseException as error:
            log.append(("raised", told(error)))
    return log


def both_stories(
    function: Callable[..., Any], program: list[Step], deeds: list[Deed]
) -> tuple[Log, Log]:
    logs: tuple[Log, Log] = [], []
    unraisable: list[object] = []
    hook, sys.unraisablehook = (
        sys.unraisablehook,
        lambda u: unraisable.append(u.err_msg),
    )
    try:
        for each, log in zip((function, span("s")(function)), logs, strict=True):
            unraisable.clear()
            generator = each(program, log)
            end = len(story(generator, deeds, log))
            del generator
            if unraisable:
                # It has refused to be closed. Within the decorated one there is another
                # to be dropped, which gets a chance of its own.
                log[end:] = ["unraisable"]
    finally:
        sys.unraisablehook = hook
    return logs


@settings(deadline=None)
@given(program=STEPS, deeds=DEEDS, records=st.booleans())
def test_rule_3_4_a_decorated_generator_does_what_the_function_does(
    program: list[Step], deeds: list[Deed], records: bool
) -> None:
    before = spanprof.stats()
    with spanprof.start() if records else contextlib.nullcontext():
        plain, decorated = both_stories(body, program, deeds)
    assert decorated == plain
    assert spanprof.stats().misnested == before.misnested


@settings(deadline=None)
@given(program=STEPS, deeds=DEEDS, records=st.booleans())
def test_rule_3_4_a_decorated_async_generator_does_what_the_function_does(
    program: list[Step], deeds: list[Deed], records: bool
) -> None:
    before = spanprof.stats()
    with spanprof.start() if records else contextlib.nullcontext():
        plain, decorated = both_stories(async_body, program, deeds)
    assert decorated == plain
    assert spanprof.stats().misnested == before.misnested


def reraise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_rule_3_4_exceptions_are_the_same_object(
    error: BaseException, records: bool
) -> None:
    @span("c")
    async def c() -> None:
        reraise(error)

    @span("g")
    def g() -> Iterator[int]:
        yield 1
        reraise(error)

    @span("a")
    async def a() -> AsyncIterator[int]:
        yield 1
        reraise(error)

    async def items() -> list[int]:
        return [item async for item in a()]

    with spanprof.start() if records else contextlib.nullcontext():
        for run in (lambda: finish(c()), lambda: list(g()), lambda: finish(items())):
            error.__traceback__ = None
            with pytest.raises(type(error)) as info:
                run()
            assert info.value is error
            assert error.__context__ is error.__cause__ is None
            files = [frame.filename for frame in traceback.extract_tb(info.tb)]
            assert sum(file == steps.__file__ for file in files) == 1
            assert spanprof.current_span() is None
            del info


def test_rule_3_4_what_contextlib_is_told() -> None:
    """It tells the exceptions of the block by their identity."""

    @contextlib.contextmanager
    @span("m")
    def manager(catches: type[BaseException]) -> Iterator[None]:
        with contextlib.suppress(catches):
            yield

    with spanprof.start():
        for error in (StopIteration(1), ValueError(2), GeneratorExit(3)):
            with manager(type(error)):
                raise error
            with pytest.raises(type(error)) as info, manager(KeyError):
                raise error
            assert info.value is error


def test_rule_3_4_no_cycles() -> None:
    """All that a call made is freed at once, without the collector."""

    class Thing:
        pass

    @span("g")
    def g(thing: Thing) -> Iterator[Thing]:
        with contextlib.suppress(GeneratorExit):
            yield Thing()
        raise ValueError(thing)

    @span("a")
    async def a(thing: Thing) -> AsyncIterator[Thing]:
        with contextlib.suppress(KeyError):
            yield Thing()
        raise ValueError(thing)

    @span("c")
    async def c(thing: Thing) -> None:
        raise ValueError(thing)

    def use() -> Iterator[Callable[[Thing], object]]:
        yield lambda thing: list(g(thing))
        yield lambda thing: finish(c(thing))

        def generator(thing: Thing) -> None:
            made: Any = g(thing)
            reference = weakref.ref(next(made))
            assert reference() is None
            made.throw(GeneratorExit)

        yield generator

        async def asynchronous(thing: Thing) -> None:
            made: Any = a(thing)
            reference = weakref.ref(await anext(made))
            assert reference() is None
            await made.athrow(KeyError())

        yield lambda thing: finish(asynchronous(thing))

    gc.collect()
    gc.disable()
    try:
        for records in (False, True):
            with spanprof.start() if records else contextlib.nullcontext():
                for each in use():
                    thing = Thing()
                    with contextlib.suppress(ValueError):
                        each(thing)
                    reference = weakref.ref(thing)
                    del thing
                    assert reference() is None
    finally:
        gc.enable()


def test_rule_3_3_a_decorated_function_is_freed() -> None:
    def make() -> Callable[[], object]:
        @span("s", label=1)
        async def function() -> None: ...

        function.itself = function  # type: ignore[attr-defined]
        return function

    references = [weakref.ref(make()) for _ in range(3)]
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


def test_rule_3_8_errors_in_arguments_come_with_the_first_step() -> None:
    wrong: Any = coroutine
    made = wrong(1, 2, 3)
    with pytest.raises(TypeError, match="positional argument"):
        finish(made)


def test_rule_3_8_what_cannot_be_decorated() -> None:
    with pytest.raises(TypeError, match="cannot decorate a class"):
        span("s")(Methods)
    with pytest.raises(TypeError):
        span("s")(staticmethod(Methods))


# --- event loops ----------------


@span("left")
async def left_open(log: list[str]) -> AsyncGenerator[int, None]:
    try:
        yield 1
        yield 2
    finally:
        await asyncio.sleep(0)
        log.append("closed")


def test_rule_3_3_asyncio_closes_what_is_left_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = []

    async def main() -> None:
        made = left_open(log)
        kept.append(made)
        assert await anext(made) == 1

    log: list[str] = []
    with spanprof.start() as session:
        asyncio.run(main())
    assert log == ["closed"]
    assert calls(session.result) == {("left",): 1}
    assert [r for r in caplog.records if r.name == "asyncio"] == []


def test_rule_3_3_asyncio_closes_what_nobody_refers_to(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async for _ in left_open(log):
            break
        gc.collect()
        for _ in range(10):
            await asyncio.sleep(0)
        assert log == ["closed"]

    log: list[str] = []
    with spanprof.start() as session:
        asyncio.run(main())
    assert log == ["closed"]
    assert calls(session.result) == {("left",): 1}
    assert [r for r in caplog.records if r.name == "asyncio"] == []


def test_rule_3_3_the_loop_is_told_of_one_generator() -> None:
    seen = []
    before = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=seen.append)
    try:
        made = async_generator(1)
        finish(made.asend(None))
    finally:
        sys.set_asyncgen_hooks(*before)
    assert seen == [made]


def test_rule_3_3_trio() -> None:
    trio = pytest.importorskip("trio")

    @span("items")
    async def items() -> AsyncGenerator[int, None]:
        try:
            for i in range(3):
                await trio.sleep(0)
                yield i
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0)
                log.append("closed")

    @span("waits")
    async def waits() -> None:
        try:
            await trio.sleep_forever()
        finally:
            log.append("cancelled")

    async def main() -> None:
        async with contextlib.aclosing(items()) as made:
            async for _ in made:
                break
        assert [i async for i in items()] == [0, 1, 2]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    log: list[str] = []
    misnested = spanprof.stats().misnested
    with spanprof.start() as session:
        trio.run(main)
    assert log == ["closed", "closed", "cancelled"]
    assert calls(session.result) == {("items",): 2, ("waits",): 1}
    assert spanprof.stats().misnested == misnested
