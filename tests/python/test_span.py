"""The life of a span, on one thread: rules 3.1 to 3.5 and 3.8."""

# ruff: noqa: SIM117 (how blocks are nested is what is tested)

import contextlib
import copy
import functools
import gc
import inspect
import pickle
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import pytest

import spanprof
from spanprof import Span, span

from .helpers import SUSPENDS, ManualClock, calls, in_thread, in_threads, series


def run(coroutine: Any) -> Any:
    """Run a coroutine that never waits for anything."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


# --- 3.1: with -----------------------------------------------------------------------


def test_rule_3_1_with_creates_enters_exits_and_destroys(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        s = span("work")
        assert s.id == 0
        assert not s.is_recording
        clock(1)
        with s as entered:
            assert entered is s
            assert s.is_recording
            assert s.id != 0
            clock(20)
        assert not s.is_recording
        clock(300)
    assert calls(session.result) == {("work",): 1}
    assert series(session.result, "busy") == {("work",): 20}
    assert series(session.result, "idle") == {("work",): 0}


def test_rule_3_1_same_object_again_is_a_new_span(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        s = span("work")
        ids = set()
        for _ in range(10):
            with s:
                ids.add(s.id)
                clock(3)
    assert len(ids) == 10
    assert calls(session.result) == {("work",): 10}
    assert series(session.result, "busy") == {("work",): 30}


def test_rule_3_1_same_object_while_entered_is_another_span(clock: ManualClock) -> None:
    ids = []

    def recurse(depth: int) -> None:
        with s:
            ids.append(s.id)
            clock(1)
            if depth > 1:
                recurse(depth - 1)
            clock(10)
            assert s.id == ids[-depth], "the id is that of the innermost run"
            ids.append(ids[-depth])

    with spanprof.start(track_wall=True) as session:
        s = span("r")
        with s:
            outer = s.id
            with s:
                middle = s.id
                with s:
                    assert len({outer, middle, s.id}) == 3
                    clock(1)
                assert s.id == middle
                clock(10)
            assert s.id == outer
            assert s.is_recording
            clock(100)
        assert not s.is_recording
    r = "r"
    assert series(session.result, "busy") == {(r,): 100, (r, r): 10, (r, r, r): 1}


def test_rule_3_1_deep_recursion() -> None:
    with spanprof.start(track_wall=True) as session:
        s = span("r")
        depth = 2000
        with ExitStack() as stack:
            for _ in range(depth):
                stack.enter_context(s)
        assert spanprof.current_span() is None
    assert set(calls(session.result).values()) == {1}
    assert max(map(len, calls(session.result))) == depth


def test_rule_3_1_same_object_on_two_threads(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        s = span("s")

        def other() -> int:
            with s:
                clock(5)
                return s.id

        with s:
            mine = s.id
            assert in_thread(other) != mine
            assert s.id == mine
        assert not s.is_recording
    assert calls(session.result) == {("s",): 2}
    assert series(session.result, "busy") == {("s",): 10}


def test_rule_3_1_async_form(clock: ManualClock) -> None:
    async def main() -> None:
        async with span("outer") as outer:
            assert isinstance(outer, Span)
            assert outer.is_recording
            clock(1)
            async with span("inner"):
                clock(20)

    with spanprof.start(track_wall=True) as session:
        run(main())
    assert series(session.result, "busy") == {("outer",): 1, ("outer", "inner"): 20}


def test_rule_3_1_exit_stack(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        with ExitStack() as stack:
            a = stack.enter_context(span("a"))
            clock(1)
            stack.enter_context(span("b"))
            assert a.is_recording
            clock(20)
        assert not a.is_recording
    assert series(session.result, "busy") == {("a",): 1, ("a", "b"): 20}


def test_rule_3_1_async_exit_stack(clock: ManualClock) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            stack.enter_context(span("a"))
            await stack.enter_async_context(span("b"))
            clock(7)

    with spanprof.start(track_wall=True) as session:
        run(main())
    assert series(session.result, "busy") == {("a",): 0, ("a", "b"): 7}


def test_rule_3_1_looked_up_on_the_type() -> None:
    """As contextlib, nullcontext's callers and C code do it."""
    with spanprof.start() as session:
        s = span("s")
        kind = type(s)
        assert kind.__enter__(s) is s
        assert s.is_recording
        assert kind.__exit__(s, None, None, None) is None
        assert not s.is_recording
        assert isinstance(s, contextlib.AbstractContextManager)
        assert isinstance(s, contextlib.AbstractAsyncContextManager)
    assert calls(session.result) == {("s",): 1}


def test_rule_3_1_many_alive_at_once() -> None:
    with spanprof.start() as session:
        spans = [span(f"n{number % 7}", number=number) for number in range(5000)]
        for each in spans:
            each.__enter__()
        assert all(each.is_recording for each in spans)
        assert len({each.id for each in spans}) == 5000
        for each in reversed(spans):
            each.__exit__(None, None, None)
        assert not any(each.is_recording for each in spans)
        assert [each.labels["number"] for each in spans] == list(range(5000))
    assert sum(calls(session.result).values()) == 5000


# --- 3.2: open and close -------------------------------------------------------------


def test_rule_3_2_open_counts_idle_and_with_enters_the_same_span(
    clock: ManualClock,
) -> None:
    with spanprof.start(track_wall=True) as session:
        s = span("job").open()
        assert isinstance(s, Span)
        number = s.id
        assert number != 0
        assert s.is_recording
        clock(1)
        with s:
            assert s.id == number
            clock(20)
        assert s.is_recording
        clock(300)
        with s:
            assert s.id == number
            clock(4000)
        clock(50000)
        s.close()
        assert not s.is_recording
        clock(600000)
    assert calls(session.result) == {("job",): 1}
    assert series(session.result, "idle") == {("job",): 50301}
    assert series(session.result, "busy") == {("job",): 4020}


def test_rule_3_2_open_span_is_entered_on_another_thread(clock: ManualClock) -> None:
    def work() -> int:
        with s:
            clock(20)
            return s.id

    with spanprof.start(track_wall=True) as session:
        with span("outer"):
            s = span("job").open()
        clock(1)
        assert in_thread(work) == s.id
        clock(300)
        s.close()
    assert series(session.result, "idle")["outer", "job"] == 301
    assert series(session.result, "busy")["outer", "job"] == 20
    assert calls(session.result) == {("outer",): 1, ("outer", "job"): 1}


def test_rule_3_2_close_while_entered_waits_for_the_exit(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        s = span("job").open()
        with s:
            s.close()
            clock(5)
            assert s.is_recording
            clock(5)
        assert not s.is_recording
        clock(100)
        with pytest.raises(RuntimeError, match="closed"):
            s.__enter__()
    assert series(session.result, "busy") == {("job",): 10}
    assert series(session.result, "idle") == {("job",): 0}


def test_rule_3_2_close_twice_does_nothing(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        s = span("job").open()
        clock(2)
        s.close()
        s.close()
        clock(2)
    assert series(session.result, "idle") == {("job",): 2}


def test_rule_3_2_death_of_the_object_destroys_the_span(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        s = span("job").open()
        clock(2)
        del s
        gc.collect()
        clock(30)
        s = span("entered").open()
        with s:
            clock(400)
        clock(5000)
        del s
        gc.collect()
        clock(60000)
    assert series(session.result, "idle") == {("job",): 2, ("entered",): 5000}
    assert series(session.result, "busy") == {("job",): 0, ("entered",): 400}


def test_rule_3_2_death_in_a_cycle(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        ring: list[Any] = []
        s = span("job", ring=ring).open()
        ring.append(s)
        clock(2)
        del s, ring
        gc.collect()
        clock(30)
    assert series(session.result, "idle") == {("job",): 2}


def test_rule_3_2_an_entered_span_outlives_its_last_reference(
    clock: ManualClock,
) -> None:
    with spanprof.start(track_wall=True) as session:
        span("lost").__enter__()
        gc.collect()
        clock(5)
        current = spanprof.current_span()
        assert current is not None
        assert current.name == "lost"
        current.__exit__(None, None, None)
        clock(5)
    assert series(session.result, "busy") == {("lost",): 5}


def test_rule_3_2_open_without_entering(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        with span("parent"):
            s = span("job").open()
            clock(3)
            s.close()
    assert series(session.result, "idle") == {("parent",): 0, ("parent", "job"): 3}
    assert series(session.result, "busy") == {("parent",): 3, ("parent", "job"): 0}


def test_rule_3_2_open_span_entered_while_entered_makes_another(
    clock: ManualClock,
) -> None:
    with spanprof.start(track_wall=True) as session:
        s = span("job").open()
        with s:
            first = s.id
            clock(1)
            with s:
                assert s.id != first
                clock(20)
            assert s.id == first
            assert s.is_recording
        clock(300)
        s.close()
    assert calls(session.result) == {("job",): 1, ("job", "job"): 1}
    assert series(session.result, "busy") == {("job",): 1, ("job", "job"): 20}
    assert series(session.result, "idle") == {("job",): 300, ("job", "job"): 0}


# --- 3.3: decorator, as far as plain functions go ------------------------------------


def test_rule_3_3_decorator_makes_a_span_per_call(clock: ManualClock) -> None:
    ids = []

    @span("work")
    def work(depth: int) -> int:
        current = spanprof.current_span()
        assert current is not None
        ids.append(current.id)
        clock(10**depth)
        return depth and work(depth - 1)

    with spanprof.start(track_wall=True) as session:
        assert work(2) == 0
        assert work(0) == 0
    assert len(set(ids)) == 4
    w = "work"
    assert series(session.result, "busy") == {(w,): 101, (w, w): 10, (w, w, w): 1}
    assert calls(session.result) == {(w,): 2, (w, w): 1, (w, w, w): 1}


class Methods:
    @span("method")
    def method(self, a: int, *, b: int = 0) -> tuple[object, ...]:
        """Doc."""
        return self, a, b

    @classmethod
    @span("class_method")
    def class_method(cls, a: int) -> tuple[object, ...]:
        return cls, a

    @staticmethod
    @span("static_method")
    def static_method(a: int) -> tuple[object, ...]:
        return (a,)

    @property
    @span("property")
    def prop(self) -> object:
        return self

    @span("cached")
    @functools.cache  # noqa: B019
    def cached(self) -> object:
        return self


class Heirs(Methods):
    @span("override")
    def method(self, a: int, *, b: int = 0) -> tuple[object, ...]:
        return super().method(a, b=b)


def test_rule_3_3_methods_of_all_kinds() -> None:
    with spanprof.start() as session:
        thing = Methods()
        assert thing.method(1, b=2) == (thing, 1, 2)
        assert Methods.method(thing, 1) == (thing, 1, 0)
        assert thing.class_method(1) == Methods.class_method(1) == (Methods, 1)
        assert thing.static_method(1) == Methods.static_method(1) == (1,)
        assert thing.prop is thing
        assert thing.cached() is thing
        bound = thing.method
        assert bound.__self__ is thing
        assert bound(3) == (thing, 3, 0)
        heir = Heirs()
        assert heir.method(4) == (heir, 4, 0)
    assert calls(session.result) == {
        ("method",): 3,
        ("class_method",): 2,
        ("static_method",): 2,
        ("property",): 1,
        ("cached",): 1,
        ("override",): 1,
        ("override", "method"): 1,
    }


def plain(a: int, /, b: str = "x", *rest: float, c: int, **more: object) -> int:
    """What it does."""
    return a + c


plain.attribute = 7  # type: ignore[attr-defined]
decorated = span("plain")(plain)


@span("by name")
def by_name(x: int) -> int:
    return 2 * x


def test_rule_3_3_decorated_function_passes_for_the_function() -> None:
    assert decorated(1, c=2) == 3
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(decorated, name) == getattr(plain, name)
    assert decorated.__wrapped__ is plain
    assert decorated.attribute == 7  # type: ignore[attr-defined]
    assert inspect.signature(decorated) == inspect.signature(plain)
    assert inspect.unwrap(decorated) is plain
    assert decorated.__annotations__ == plain.__annotations__
    assert callable(decorated)
    assert "plain" in repr(decorated)
    decorated.other = 1  # type: ignore[attr-defined]
    del decorated.other  # type: ignore[attr-defined]
    assert weakref.ref(decorated)() is decorated


def test_rule_3_3_decorated_function_is_pickled_by_name() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(by_name, protocol)) is by_name
    assert copy.copy(by_name) is by_name
    assert copy.deepcopy(by_name) is by_name
    thing = pickle.loads(pickle.dumps(functools.partial(by_name, 4)))
    assert thing() == 8


def test_rule_3_3_other_callables() -> None:
    with spanprof.start() as session:
        assert span("len")(len)([1, 2]) == 2
        assert span("partial")(functools.partial(int, base=2))("11") == 3
        assert span("lambda")(lambda: 5)() == 5
        assert span("outer")(span("inner")(lambda: 6))() == 6
        method = span("bound")([3, 1, 2].index)
        assert method(2) == 2
    assert calls(session.result) == {
        ("len",): 1,
        ("partial",): 1,
        ("lambda",): 1,
        ("outer",): 1,
        ("outer", "inner"): 1,
        ("bound",): 1,
    }


def test_rule_3_3_parent_of_a_decorator(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        with span("p") as p:
            child = p.span("c")(lambda: clock(5))
        child()
    assert series(session.result, "busy") == {("p",): 0, ("p", "c"): 5}


def test_rule_3_3_decorated_function_is_freed() -> None:
    def make() -> Callable[[], None]:
        def function() -> None: ...

        wrapped = span("s")(function)
        wrapped.itself = wrapped  # type: ignore[attr-defined]
        return wrapped

    references = [weakref.ref(make()) for _ in range(3)]
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


# --- 3.4: exceptions -----------------------------------------------------------------

EXCEPTIONS = [
    ValueError("x"),
    KeyboardInterrupt(),
    SystemExit(3),
    GeneratorExit(),
    StopIteration(4),
    StopAsyncIteration(5),
    MemoryError(),
    RecursionError(),
    BaseExceptionGroup("g", [KeyboardInterrupt(), ValueError()]),
]


def through_with(error: BaseException) -> None:
    with span("s"):
        raise error


def through_decorator(error: BaseException) -> None:
    @span("s")
    def function() -> None:
        raise error

    function()


def through_exit_stack(error: BaseException) -> None:
    with ExitStack() as stack:
        stack.enter_context(span("s"))
        raise error


def through_open(error: BaseException) -> None:
    with span("s").open():
        raise error


def through_two(error: BaseException) -> None:
    s = span("s")
    with s, s:
        raise error


def through_async(error: BaseException) -> None:
    # Not `async def`: a coroutine makes RuntimeErrors of StopIteration.
    s = span("s")
    run_awaitable(s.__aenter__())
    try:
        raise error
    except BaseException as caught:
        suppressed = run_awaitable(
            s.__aexit__(type(caught), caught, caught.__traceback__)
        )
        assert not suppressed
        raise


def run_awaitable(awaitable: Any) -> Any:
    try:
        next(awaitable.__await__())
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


FORMS = [
    through_with,
    through_decorator,
    through_exit_stack,
    through_open,
    through_two,
    through_async,
]


@pytest.mark.parametrize("error", EXCEPTIONS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("with_session", [True, False])
def test_rule_3_4_exception_passes_unchanged(
    form: Callable[[BaseException], None], error: BaseException, with_session: bool
) -> None:
    if with_session:
        spanprof.start()
    arguments, cause, context = error.args, error.__cause__, error.__context__
    try:
        form(error)
    except BaseException as caught:
        assert caught is error  # noqa: PT017
    else:
        raise AssertionError("it was swallowed")
    assert (error.args, error.__cause__, error.__context__) == (
        arguments,
        cause,
        context,
    )
    names = []
    traceback = error.__traceback__
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert form.__name__ in names
    error.__traceback__ = None
    assert spanprof.current_span() is None
    if with_session:
        values = calls(spanprof.snapshot())
        assert ("s",) in values
        spanprof.stop()


def test_rule_3_4_exception_being_handled_stays() -> None:
    with spanprof.start():
        try:
            raise ValueError("first")
        except ValueError as first:
            with span("a"):
                pass
            by_name(3)
            with pytest.raises(KeyError) as info, span("b"):
                raise KeyError("second")  # noqa: B904
            assert info.value.__context__ is first  # noqa: PT017


def test_rule_3_4_time_up_to_the_exception_counts(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        with contextlib.suppress(ValueError), span("a"), span("b"):
            clock(5)
            raise ValueError
        clock(100)
    assert series(session.result, "busy") == {("a",): 0, ("a", "b"): 5}


# --- 3.5: ids ------------------------------------------------------------------------


def test_rule_3_5_ids_are_unique_over_threads_and_sessions() -> None:
    def make(_: int) -> list[int]:
        found = []
        s = span("same")
        for _ in range(2000):
            with span("x") as x, s:
                found += [x.id, s.id]
        opened = [span("o").open() for _ in range(100)]
        found += [each.id for each in opened]
        return found

    ids: list[int] = []
    for _ in range(3):
        with spanprof.start():
            for found in in_threads(4, make):
                ids += found
    assert len(ids) == len(set(ids)) == 3 * 4 * 4100
    assert all(0 < each < 2**64 for each in ids)


def test_rule_3_5_ids_go_on_when_a_thread_takes_over() -> None:
    with spanprof.start():

        def one() -> int:
            with span("x") as x:
                return x.id

        ids = [in_thread(one) for _ in range(200)]
    assert len(set(ids)) == 200


# --- 3.8: bad use --------------------------------------------------------------------


def opened(name: str) -> Span:
    return span(name).open()


def closed(name: str) -> Span:
    s = span(name).open()
    s.close()
    return s


def entered(name: str) -> Span:
    return span(name).__enter__()


BAD_USE: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: span(5), TypeError, "span name must be str, not int"),  # type: ignore
    (lambda: span(b"x"), TypeError, "span name must be str, not bytes"),  # type: ignore
    (lambda: span(None), TypeError, "span name must be str, not NoneType"),  # type: ignore
    (lambda: span(""), ValueError, "span name must not be empty"),
    (
        lambda: span(),  # type: ignore[call-arg]
        TypeError,
        "span() takes one positional argument, the name (0 given)",
    ),
    (
        lambda: span("a", "b"),  # type: ignore[call-arg]
        TypeError,
        "span() takes one positional argument, the name (2 given)",
    ),
    (lambda: opened("a").open(), RuntimeError, "span 'a' is already open"),
    (lambda: entered("a").open(), RuntimeError, "span 'a' is already entered"),
    (lambda: closed("a").open(), RuntimeError, "span 'a' is closed"),
    (lambda: closed("a").__enter__(), RuntimeError, "span 'a' is closed"),
    (lambda: closed("a").__aenter__(), RuntimeError, "span 'a' is closed"),
    (
        lambda: span("a").span("b"),
        RuntimeError,
        "span 'a' is not open: it cannot have children yet",
    ),
    (lambda: opened("a").span(""), ValueError, "span name must not be empty"),
    (
        lambda: opened("a").span(3),  # type: ignore[arg-type]
        TypeError,
        "span name must be str, not int",
    ),
    (
        lambda: span("a")(5),  # type: ignore[arg-type]
        TypeError,
        "a span is called with the one function that it decorates",
    ),
    (
        lambda: span("a")(len, key=len),  # type: ignore[call-arg]
        TypeError,
        "a span is called with the one function that it decorates",
    ),
    (
        lambda: span("a")(int),
        TypeError,
        "a span cannot decorate a class; decorate its methods",
    ),
]


@pytest.mark.parametrize("with_session", [True, False])
@pytest.mark.parametrize("number", range(len(BAD_USE)))
def test_rule_3_8_plain_errors(number: int, with_session: bool) -> None:
    action, kind, text = BAD_USE[number]
    if with_session:
        spanprof.start()
    with pytest.raises(kind) as info:
        action()
    assert str(info.value) == text
    assert type(info.value) is kind
    while (current := spanprof.current_span()) is not None:
        current.__exit__(None, None, None)
    spanprof.stop()


def test_rule_3_8_bad_construction() -> None:
    with pytest.raises(TypeError):
        Span.__new__(Span)
    with pytest.raises(TypeError, match="span name must be str"):
        Span.__new__(Span, 5)
    with pytest.raises(TypeError):
        type("Heir", (Span,), {})
    s = Span.__new__(Span, "n", label=1)
    assert (s.name, dict(s.labels)) == ("n", {"label": 1})
    with pytest.raises(TypeError):
        Span.nothing = 1  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        s.name = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        s.labels["label"] = 2  # type: ignore[index]
    with pytest.raises(TypeError):
        Span.__enter__(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pickle.dumps(s)


def test_rule_3_8_errors_leave_the_span_usable(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        s = span("a").open()
        clock(1)
        with pytest.raises(RuntimeError):
            s.open()
        clock(1)
        with s:
            clock(10)
            with pytest.raises(RuntimeError):
                s.open()
            clock(10)
        s.close()
    assert series(session.result, "busy") == {("a",): 20}
    assert series(session.result, "idle") == {("a",): 2}


# --- 3.8: exits out of order ---------------------------------------------------------


def misnested() -> int:
    return int(spanprof.stats().misnested)


def test_rule_3_8_exit_in_wrong_order_loses_no_time(clock: ManualClock) -> None:
    before = misnested()
    with spanprof.start(track_wall=True) as session:
        a, b, c = span("a"), span("b"), span("c")
        a.__enter__()
        clock(1)
        b.__enter__()
        clock(10)
        c.__enter__()
        clock(100)
        a.__exit__(None, None, None)
        clock(1000)
        assert spanprof.current_span() is c
        c.__exit__(None, None, None)
        assert spanprof.current_span() is b
        clock(10000)
        with span("d"):
            clock(5)
        b.__exit__(None, None, None)
        assert spanprof.current_span() is None
        clock(7)
    assert misnested() - before == 1
    assert series(session.result, "busy") == {
        ("a",): 1,
        ("a", "b"): 10010,
        ("a", "b", "c"): 1100,
        ("a", "b", "d"): 5,
    }


def test_rule_4_2_generators_left_in_any_order(clock: ManualClock) -> None:
    def steps(name: str) -> Iterator[None]:
        with span(name):
            yield

    before = misnested()
    with spanprof.start(track_wall=True) as session:
        first, second = steps("first"), steps("second")
        next(first)
        clock(1)
        next(second)
        clock(20)
        first.close()
        clock(300)
        second.close()
        clock(4000)
    assert misnested() == before
    if SUSPENDS:
        assert series(session.result, "busy") == {("first",): 0, ("second",): 0}
        assert series(session.result, "idle") == {("first",): 21, ("second",): 320}
    else:
        assert series(session.result, "busy") == {
            ("first",): 1,
            ("first", "second"): 320,
        }


def test_rule_3_8_exit_without_enter_is_counted(clock: ManualClock) -> None:
    before = misnested()
    with spanprof.start(track_wall=True) as session:
        span("never").__exit__(None, None, None)
        with span("a"):
            span("never").__exit__(None, None, None)
            clock(3)
        s = span("b")
        with s:
            clock(4)
        s.__exit__(None, None, None)
    assert misnested() - before == 3
    assert series(session.result, "busy") == {("a",): 3, ("b",): 4}


def test_rule_3_8_same_object_in_wrong_order(clock: ManualClock) -> None:
    """Of one object's runs the innermost ends first, whoever asks."""
    with spanprof.start(track_wall=True) as session:
        s, other = span("s"), span("o")
        s.__enter__()
        clock(1)
        other.__enter__()
        clock(10)
        s.__enter__()
        clock(100)
        s.__exit__(None, None, None)
        clock(1000)
        s.__exit__(None, None, None)  # out of order
        clock(10000)
        other.__exit__(None, None, None)
        clock(7)
    assert series(session.result, "busy") == {
        ("s",): 1,
        ("s", "o"): 11010,
        ("s", "o", "s"): 100,
    }


def test_rule_3_8_exit_of_an_opened_span_out_of_order(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        o = span("o").open()
        o.__enter__()
        clock(1)
        with span("in"):
            clock(20)
            o.__exit__(None, None, None)
            clock(300)
        clock(4000)
        o.close()
    assert series(session.result, "busy") == {("o",): 1, ("o", "in"): 320}
    assert series(session.result, "idle") == {("o",): 4300, ("o", "in"): 0}


# --- names and labels ----------------------------------------------------------------

ODD_NAMES = [
    "plain",
    "ünïcödé",
    "日本語",
    "🐍🎉",
    "a\0b",
    "\0",
    "\ud800",
    "x\udfffy",
    "\n\t\r\x1b[31m",
    "a" * 100_000,
    'a::b;c{d="e"}',
    " ",
    "\u202e\u200f",
    "\U0010ffff",
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda n: ascii(n[:12]))
def test_rule_3_8_any_name_is_kept(name: str) -> None:
    with spanprof.start() as session:
        with span(name) as s:
            assert s.name == name
            repr(s)
        span(name)(len)("")
    assert calls(session.result) == {(name,): 2}
    str(session.result)


def test_rule_3_1_a_str_subclass_is_its_text() -> None:
    class Liar(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "lie"

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("never compare")

        def __hash__(self) -> int:
            raise RuntimeError("never hash")

    with spanprof.start() as session:
        with span(Liar("truth")) as s:
            assert type(s.name) is str
    assert calls(session.result) == {("truth",): 1}
    with pytest.raises(ValueError, match="empty"):
        span(Liar(""))


def test_rule_3_1_labels_are_kept_as_given() -> None:
    value = object()
    s = span("n", a=1, b=value, **{"not an identifier": None, "": 0})
    assert dict(s.labels) == {"a": 1, "b": value, "not an identifier": None, "": 0}
    assert s.labels["b"] is value
    assert dict(span("n").labels) == {}
    assert dict(span("n", name="x", self=1, labels=2).labels) == {
        "name": "x",
        "self": 1,
        "labels": 2,
    }
    assert "'n'" in repr(s)
    assert "'a': 1" in repr(s)


def test_rule_3_1_repr_tells_the_state() -> None:
    s = span("n")
    assert repr(s) == "<spanprof.Span 'n' new>"
    with s:
        assert repr(s) == "<spanprof.Span 'n' entered>"
    s.open()
    assert repr(s) == "<spanprof.Span 'n' open>"
    s.close()
    assert repr(s) == "<spanprof.Span 'n' closed>"


def open_and_go_on(label: object) -> None:
    with spanprof.span("work", label=label):
        pass
    for _ in range(100):  # the interrupt comes at the next chance
        pass


def test_rule_3_4_an_interrupt_in_a_label_is_not_lost() -> None:
    class Label:
        def __str__(self) -> str:
            raise KeyboardInterrupt

    # A job in the background is started with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with spanprof.start(record_labels=["label"]), pytest.raises(KeyboardInterrupt):
            open_and_go_on(Label())
    finally:
        signal.signal(signal.SIGINT, before)


def test_rule_3_1_a_label_that_enters_its_own_span() -> None:
    """str() of a label runs in the middle of an enter."""
    entered = []

    class Label:
        def __str__(self) -> str:
            if not entered:
                entered.append(True)
                span_of_label.__enter__()
            return "label"

    span_of_label = spanprof.span("work", label=Label())
    with spanprof.start(track_all=True, record_labels=["label"]) as session:
        with span_of_label:
            pass
        span_of_label.__exit__(None, None, None)
        assert spanprof.current_span() is None
        with spanprof.span("after"):
            pass
    assert calls(session.result) == {("work",): 1, ("work", "work"): 1, ("after",): 1}


def test_rule_3_6_a_label_that_starts_another_session() -> None:
    names = [f"name{number}" for number in range(20)]

    class Label:
        def __str__(self) -> str:
            spanprof.stop()
            spanprof.start(record_labels=["other"])
            return "label"

    spanprof.start(record_labels=names)
    with spanprof.span("work", **{name: Label() for name in names}):
        pass
    spanprof.stop()
