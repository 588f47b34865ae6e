"""``spanprof.labels``: labels that spans inherit from the context they are opened in.

Contexts are those of rule 4.3; what is recorded is a matter of ``record_labels``.
"""

# ruff: noqa: SIM117 (how blocks are nested is what is tested)

import asyncio
import contextvars
import gc
import inspect
import sys
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import pytest

import spanprof
from spanprof import _core, labels, span

from . import pprof_file
from .helpers import in_thread, in_threads


@pytest.fixture(autouse=True)
def no_session() -> Iterator[None]:
    yield
    spanprof.stop()
    assert _core.inherited_labels() == {}, "a test has left labels behind"


def start(*names: str, **fields: Any) -> spanprof.Session:
    return spanprof.start(record_labels=names or ("tenant", "user"), **fields)


def seen(profile: spanprof.Profile) -> dict[tuple[str, ...], dict[str, str]]:
    """Labels of each stack of names; every stack has only one set of them."""
    result: dict[tuple[str, ...], dict[str, str]] = {}
    for sample in profile.samples:
        path = tuple(callsite.name for callsite in reversed(sample.stack))
        assert path not in result
        result[path] = dict(sample.labels)
    return result


def open_span(name: str) -> None:
    with span(name):
        pass


# --- what is inherited --------------------------------------------------------------


def test_spans_inside_inherit_in_whatever_function() -> None:
    @span("decorated")
    def decorated() -> None: ...

    with start() as session:
        with labels(tenant="a"):
            open_span("function")
            decorated()
            with span("outer"), span("inner"):
                pass
            opened = span("opened").open()
        open_span("after")
        with opened:
            pass
        opened.close()
    assert seen(session.result) == {
        ("function",): {"tenant": "a"},
        ("decorated",): {"tenant": "a"},
        ("outer",): {"tenant": "a"},
        ("outer", "inner"): {"tenant": "a"},
        ("opened",): {"tenant": "a"},
        ("after",): {},
    }


def test_a_span_is_labelled_where_it_begins() -> None:
    """Not where the object was made; and each run anew."""
    reused = span("reused")
    with start() as session:
        with labels(tenant="a"):
            made_inside = span("made inside")
            with reused:
                pass
        with made_inside, reused:
            pass
    assert seen(session.result) == {
        ("reused",): {"tenant": "a"},
        ("made inside",): {},
        ("made inside", "reused"): {},
    }


def test_own_labels_win_and_inner_blocks_do() -> None:
    with start() as session:
        with labels(tenant="a", user="x"):
            with span("own", tenant="own", other=1):
                pass
            with labels(tenant="b"):
                open_span("merged")
            with labels():
                open_span("nothing new")
            open_span("again")
    assert seen(session.result) == {
        ("own",): {"tenant": "own", "user": "x"},
        ("merged",): {"tenant": "b", "user": "x"},
        ("nothing new",): {"tenant": "a", "user": "x"},
        ("again",): {"tenant": "a", "user": "x"},
    }


def test_only_recorded_names_make_nodes() -> None:
    with start("user") as session:
        for tenant in "abc":
            with labels(tenant=tenant):
                with span("n"), span("m", tenant=1):
                    pass
    assert seen(session.result) == {("n",): {}, ("n", "m"): {}}
    with spanprof.start() as session:
        with labels(tenant="a", user="x"):
            open_span("n")
    assert seen(session.result) == {("n",): {}}


def test_span_labels_are_its_own() -> None:
    with start(), labels(tenant="a"), span("n", user="x") as n:
        assert dict(n.labels) == {"user": "x"}


def test_children_on_other_threads_have_their_own_context() -> None:
    with start() as session, labels(tenant="a"), span("parent") as parent:

        def work() -> None:
            with labels(user="x"), parent.span("child"):
                pass

        in_thread(work)
    assert session.result is not None
    assert seen(session.result)["parent", "child"] == {"tenant": "a", "user": "x"}
    # The tenant is the parent's: labels of a stack are those of all its spans.
    (child,) = (s for s in session.result.samples if s.stack[0].name == "child")
    assert child.labels["user"] == "x"


def test_every_session_records_what_it_asks_for() -> None:
    with labels(tenant="a", user="x"):
        for names, expected in (
            (("tenant",), {"tenant": "a"}),
            (("user",), {"user": "x"}),
            (("other",), {}),
            (("tenant", "user"), {"tenant": "a", "user": "x"}),
        ):
            with start(*names) as session:
                open_span("n")
                open_span("n")
            assert seen(session.result) == {("n",): expected}


def test_a_sampler_is_told_of_inherited_labels() -> None:
    told: list[dict[str, object]] = []

    class Told(spanprof.HeadSampler):
        def should_sample(self, metadata: Any) -> bool:
            told.append(dict(metadata.labels))
            return bool(metadata.labels.get("tenant") == "a")

    with start("tenant", sampler=Told()) as session:
        open_span("n")
        with labels(tenant="a", user="x"):
            open_span("n")
            with span("own", user="y"):
                pass
    assert told == [{}, {"tenant": "a", "user": "x"}, {"tenant": "a", "user": "y"}]
    assert seen(session.result) == {("n",): {"tenant": "a"}, ("own",): {"tenant": "a"}}


def test_rule_7_1_pprof_carries_them() -> None:
    with start(track_wall=True) as session:
        with labels(tenant="a"), span("outer"):
            with labels(tenant="ü", user=3), span("inner"):
                pass
    file = pprof_file.read(session.result.to_pprof("wall"))
    assert {sample.labels for sample in file.samples} == {
        (("tenant", "a"),),
        (("tenant", "ü"), ("user", "3")),
    }


def test_single_spans_carry_them() -> None:
    class Batches(spanprof.Reporter):
        def __init__(self) -> None:
            self.seen: dict[str, dict[str, str]] = {}

        def spans(self, batch: Any) -> None:
            self.seen |= {each.name: dict(each.labels) for each in batch}

    reporter = Batches()
    with start(reporters=[reporter]), labels(tenant="a"), span("outer"):
        with labels(user="x"):
            open_span("inner")
    assert reporter.seen == {
        "outer": {"tenant": "a"},
        "inner": {"tenant": "a", "user": "x"},
    }


def test_max_label_values_holds() -> None:
    before = spanprof.stats().labels_folded
    for _ in range(2):  # counted afresh in each session
        with start(max_label_values=3) as session:
            for number in range(10):
                with labels(tenant=number):
                    open_span("n")
        values = {sample.labels["tenant"] for sample in session.result.samples}
        assert values == {"0", "1", "2", "(other)"}
    assert spanprof.stats().labels_folded > before


def test_an_old_block_counts_in_a_new_session() -> None:
    """Its text is known from the session before; the limit is the new session's."""
    with labels(tenant="old"):
        for most, expected in ((10, {"old"}), (1, {"(other)", "new"})):
            with start(max_label_values=most) as session:
                if most == 1:
                    with labels(tenant="new"):
                        open_span("n")
                open_span("n")
            found = {sample.labels["tenant"] for sample in session.result.samples}
            assert found == expected


# --- values -------------------------------------------------------------------------


def test_any_value_and_any_name_is_accepted() -> None:
    class Odd:
        def __str__(self) -> str:
            raise ValueError

    with start("self", "labels", "odd") as session:
        with labels(self=1, labels=None, odd=Odd(), **{"": 2.5}):
            open_span("n")
    assert seen(session.result) == {
        ("n",): {"self": "1", "labels": "None", "odd": "<Odd>"}
    }


def test_rule_3_8_bad_use() -> None:
    for use in (lambda: labels("a"), lambda: labels(**{1: 2})):  # type: ignore
        with pytest.raises(TypeError):
            use()
        with pytest.raises(TypeError):
            span("n", **{1: 2})  # type: ignore[arg-type] # the same
    for bad in (3, int):
        with pytest.raises(TypeError, match="decorate"):
            labels(a=1)(bad)  # type: ignore[arg-type]


def test_text_is_taken_once_in_a_session_and_only_if_recorded() -> None:
    class Counted:
        times = 0

        def __str__(self) -> str:
            Counted.times += 1
            return "text"

    with labels(tenant=Counted()):
        for expected, names in enumerate(("tenant", "user", "tenant")):
            with start(names):
                for _ in range(5):
                    open_span("n")
            assert Counted.times == (expected + 2) // 2


def test_text_that_does_anything() -> None:
    """str() may enter blocks and spans, and stop the session."""

    class Stopping:
        def __str__(self) -> str:
            with labels(user="inside"), span("inside"):
                pass
            spanprof.stop()
            return "text"

    start()
    with labels(tenant=Stopping()):
        with span("n") as n:
            assert not n.is_recording
        assert not spanprof.is_running()


# --- blocks -------------------------------------------------------------------------


def test_rule_3_4_exceptions_pass_and_labels_end() -> None:
    error = ValueError("this one")
    with start() as session:
        with pytest.raises(ValueError, match="this one") as caught:
            with labels(tenant="a"), span("n"):
                raise error
        assert caught.value is error
        open_span("after")
    assert seen(session.result) == {("n",): {"tenant": "a"}, ("after",): {}}


def test_the_same_block_again_and_inside_itself() -> None:
    block = labels(tenant="a")
    with start() as session:
        with block, block:
            open_span("twice")
        open_span("out")
        with block:
            with labels(tenant="b"):
                with block:
                    open_span("again")
                open_span("between")
            open_span("once")
    assert seen(session.result) == {
        ("twice",): {"tenant": "a"},
        ("out",): {},
        ("again",): {"tenant": "a"},
        ("between",): {"tenant": "b"},
        ("once",): {"tenant": "a"},
    }
    assert dict(block.labels) == {"tenant": "a"}
    assert repr(block) == "spanprof.labels(tenant='a')"
    with block as entered:
        assert entered is block


def test_rule_3_8_exits_out_of_order() -> None:
    a, b, c = labels(tenant="a"), labels(user="b"), labels(tenant="c", other=1)
    for first, second, third, after_first, after_second in (
        (
            a,
            b,
            c,
            {"tenant": "c", "user": "b", "other": 1},
            {"tenant": "c", "other": 1},
        ),
        (b, a, c, {"tenant": "c", "other": 1}, {"tenant": "c", "other": 1}),
        (a, c, b, {"tenant": "c", "user": "b", "other": 1}, {"user": "b"}),
        (b, c, a, {"tenant": "c", "other": 1}, {"tenant": "a"}),
        (c, a, b, {"tenant": "a", "user": "b"}, {"user": "b"}),
    ):
        for block in (a, b, c):
            block.__enter__()
        first.__exit__(None, None, None)
        assert _core.inherited_labels() == after_first
        second.__exit__(None, None, None)
        assert _core.inherited_labels() == after_second
        third.__exit__(None, None, None)
        assert _core.inherited_labels() == {}
        third.__exit__(None, None, None)  # once too often: nothing


def test_decorated_functions() -> None:
    @labels(tenant="a")
    def function(name: str, *, user: str = "") -> str:
        """Its docstring."""
        with span(name, user=user):
            return name

    class Class:
        @labels(tenant="b")
        def method(self) -> None:
            open_span("method")

    @labels(tenant="c")
    async def asynchronous() -> int:
        open_span("before")
        await asyncio.sleep(0)
        open_span("behind")
        return 3

    assert function.__name__ == "function"
    assert function.__doc__ == "Its docstring."
    assert inspect.iscoroutinefunction(asynchronous)
    with start() as session:
        assert function("function", user="x") == "function"
        Class().method()
        assert asyncio.run(asynchronous()) == 3
        open_span("after")
    assert seen(session.result) == {
        ("function",): {"tenant": "a", "user": "x"},
        ("method",): {"tenant": "b"},
        ("before",): {"tenant": "c"},
        ("behind",): {"tenant": "c"},
        ("after",): {},
    }

    def generator() -> Iterator[int]:
        yield 1

    async def asynchronous_generator() -> AsyncIterator[int]:
        yield 1

    for function_ in (generator, asynchronous_generator):
        with pytest.raises(TypeError, match="cannot decorate a generator"):
            labels(tenant="a")(function_)


# --- contexts: rule 4.3 -------------------------------------------------------------


def test_rule_4_3_tasks_inherit() -> None:
    go_on = contextvars.ContextVar[asyncio.Event]("go_on")

    async def task(name: str) -> None:
        await go_on.get().wait()
        open_span(name)

    async def main() -> None:
        go_on.set(asyncio.Event())
        with labels(tenant="a"):
            outliving = asyncio.create_task(task("outliving"))
            with labels(user="x"):
                gathered = asyncio.gather(task("gathered"), task("gathered too"))
            await asyncio.to_thread(open_span, "to_thread")
        outside = asyncio.create_task(task("outside"))
        with labels(tenant="b"):
            open_span("meanwhile")
            go_on.get().set()
            await asyncio.gather(outliving, gathered, outside)
            async with asyncio.TaskGroup() as group:
                group.create_task(task("in group"))
        open_span("after")

    with start() as session:
        asyncio.run(main())
        open_span("outside the loop")
    assert seen(session.result) == {
        ("outliving",): {"tenant": "a"},
        ("gathered",): {"tenant": "a", "user": "x"},
        ("gathered too",): {"tenant": "a", "user": "x"},
        ("to_thread",): {"tenant": "a"},
        ("outside",): {},
        ("meanwhile",): {"tenant": "b"},
        ("in group",): {"tenant": "b"},
        ("after",): {},
        ("outside the loop",): {},
    }


def test_rule_4_3_a_task_of_its_own_does_not_see_others() -> None:
    async def worker(tenant: str) -> None:
        with labels(tenant=tenant):
            for _ in range(3):
                await asyncio.sleep(0)
                open_span(tenant)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for tenant in "abc":
                group.create_task(worker(tenant))
        open_span("after")

    with start() as session:
        asyncio.run(main())
    assert seen(session.result) == {
        **{(tenant,): {"tenant": tenant} for tenant in "abc"},
        ("after",): {},
    }


def test_rule_4_3_a_copied_context_inherits() -> None:
    with start() as session:
        with labels(tenant="a"):
            copied = contextvars.copy_context()
        copied.run(open_span, "copied")
        contextvars.Context().run(open_span, "empty")
        with labels(tenant="b"):
            copied.run(open_span, "copied again")
            in_thread(copied.run, open_span, "on a thread")
    assert seen(session.result) == {
        ("copied",): {"tenant": "a"},
        ("empty",): {},
        ("copied again",): {"tenant": "a"},
        ("on a thread",): {"tenant": "a"},
    }


@pytest.mark.skipif(
    getattr(sys.flags, "thread_inherit_context", False),
    reason="here threads inherit the context of whoever starts them",
)
def test_rule_4_4_a_bare_thread_starts_without() -> None:
    def work(number: int) -> None:
        open_span("bare")
        with labels(tenant=f"thread {number}"):
            open_span(f"labelled {number}")

    with start() as session:
        with labels(tenant="a"):
            in_threads(3, work)
            open_span("here")
    assert seen(session.result) == {
        ("bare",): {},
        ("here",): {"tenant": "a"},
        **{(f"labelled {n}",): {"tenant": f"thread {n}"} for n in range(3)},
    }


def test_a_generator_shares_its_callers_context() -> None:
    """As every context variable: until the generator goes on, its caller has them."""

    @contextmanager
    def tenant(name: str) -> Iterator[None]:
        with labels(tenant=name):
            yield

    def generator() -> Iterator[None]:
        with labels(user="x"):
            open_span("in generator")
            yield

    with start() as session:
        with tenant("a"), ExitStack() as stack:
            stack.enter_context(tenant("b"))
            open_span("managed")
        suspended = generator()
        next(suspended)
        open_span("caller")
        next(suspended, None)
        open_span("after")
    assert seen(session.result) == {
        ("managed",): {"tenant": "b"},
        ("in generator",): {"user": "x"},
        ("caller",): {"user": "x"},
        ("after",): {},
    }


def test_an_exit_in_another_context_changes_nothing_there() -> None:
    def generator() -> Iterator[None]:
        with labels(tenant="generator"):
            yield

    with start() as session:
        suspended = generator()
        context = contextvars.copy_context()
        context.run(next, suspended)
        with labels(tenant="caller"):
            suspended.close()
            open_span("caller")
        open_span("after")
        context.run(open_span, "where it was entered")
    assert seen(session.result) == {
        ("caller",): {"tenant": "caller"},
        ("after",): {},
        ("where it was entered",): {"tenant": "generator"},
    }


def test_an_asynchronous_generator_that_the_loop_closes() -> None:
    @asynccontextmanager
    async def tenant() -> AsyncIterator[None]:
        with labels(tenant="a"):
            yield

    async def forgotten() -> AsyncIterator[int]:
        with labels(tenant="forgotten"):
            yield 1

    async def main() -> None:
        async with tenant():
            open_span("managed")

        async def first_item() -> None:
            async for _ in forgotten():
                break

        await asyncio.create_task(first_item())
        gc.collect()
        await asyncio.sleep(0)
        open_span("after")

    with start() as session:
        asyncio.run(main())
    assert seen(session.result) == {("managed",): {"tenant": "a"}, ("after",): {}}


# --- what is left behind ------------------------------------------------------------


def test_nothing_is_left_behind() -> None:
    class Value:
        pass

    value = Value()
    gone = weakref.ref(value)
    with start(), labels(tenant=value):
        context = contextvars.copy_context()
        with labels(user=value):
            open_span("n")
    del value
    gc.collect()
    assert gone() is not None, "the copied context has it"
    del context
    gc.collect()
    assert gone() is None


def test_rule_5_7_blocks_of_memory_are_nobodys() -> None:
    blocks = [labels(tenant="a") for _ in range(100)]
    with start(track_allocations=True) as session, span("n"):
        for block in blocks:
            block.__enter__()
        alive = sys.getallocatedblocks()
        for block in blocks:
            block.__exit__(None, None, None)
        freed = alive - sys.getallocatedblocks()
    assert freed > 100, "there was something to charge"
    (sample,) = session.result.samples
    assert sample.values["alloc_objects"] < 50
