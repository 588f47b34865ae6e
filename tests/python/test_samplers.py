"""Head sampling: rule 3.7, and the rules that it touches."""

# ruff: noqa: SIM117 (how blocks are nested is what is tested)

import asyncio
import contextvars
import copy
import gc
import logging
import math
import os
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import spanprof
from spanprof import AlwaysSampler, HeadSampler, ProbabilisticSampler, Span, span

from .helpers import (
    ManualClock,
    by_path,
    calls,
    in_thread,
    in_threads,
    needs_suspension,
    series,
)


class ByName(HeadSampler):
    """Records roots but for those named; remembers what it was asked."""

    def __init__(self, *out: str) -> None:
        self.out = out
        self.asked: list[Any] = []

    def should_sample(self, metadata: Any) -> bool:
        self.asked.append(metadata)
        return metadata.span_name not in self.out


@pytest.fixture(autouse=True)
def no_session() -> Iterator[None]:
    yield
    spanprof.stop()


# --- samplers ----------------------------------------------------------------------


def test_rule_3_7_always_and_never() -> None:
    for sampler, expected in (
        (None, {("a",): 1, ("a", "b"): 1}),
        (AlwaysSampler(), {("a",): 1, ("a", "b"): 1}),
        (ProbabilisticSampler(1), {("a",): 1, ("a", "b"): 1}),
        (ProbabilisticSampler(0), {}),
        (ByName(), {("a",): 1, ("a", "b"): 1}),
        (ByName("a"), {}),
    ):
        with spanprof.start(track_all=True, sampler=sampler) as session:
            with span("a"), span("b"):
                pass
        assert calls(session.result) == expected, sampler
        assert session.sampler is sampler


@pytest.mark.parametrize("ratio", [0.01, 0.25, 0.9])
def test_rule_3_7_a_ratio_of_the_stacks_is_recorded(ratio: float) -> None:
    count = 20_000
    before = spanprof.stats().spans_sampled_out
    with spanprof.start(sampler=ProbabilisticSampler(ratio, seed=3)) as session:
        for _ in range(count):
            with span("a"), span("b"):
                pass
    taken = calls(session.result)
    assert taken["a",] == taken["a", "b"]
    limit = 5 * math.sqrt(count * ratio * (1 - ratio))
    assert abs(taken["a",] - count * ratio) <= limit
    out = spanprof.stats().spans_sampled_out - before
    assert out == 2 * (count - taken["a",])


def taken_here(count: int = 300) -> list[bool]:
    """Which of so many roots are recorded."""
    result = []
    for _ in range(count):
        with span("root") as root:
            result.append(root.is_recording)
    return result


def test_rule_3_7_a_seed_repeats_what_is_recorded() -> None:
    def one_session(seed: int | None) -> list[list[bool]]:
        with spanprof.start(sampler=ProbabilisticSampler(0.5, seed)):
            return [taken_here(), in_thread(taken_here), in_thread(taken_here)]

    first = one_session(5)
    assert first[0] != first[1]
    assert first[1] != first[2]
    assert one_session(5) == first
    assert one_session(-6) != first
    assert one_session(None) != one_session(None)


def test_rule_3_7_threads_have_streams_of_their_own() -> None:
    with spanprof.start(sampler=ProbabilisticSampler(0.5, seed=1)):
        streams = in_threads(4, lambda _: taken_here())
    assert len({tuple(stream) for stream in streams}) == 4


def in_child(function: Callable[[], list[bool]]) -> list[bool]:
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # A thread of an earlier test may be about to end.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.write(writing, bytes(function()))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return [bool(each) for each in answer]


@pytest.mark.parametrize("seed", [None, 1])
def test_rule_6_6_children_have_streams_of_their_own(seed: int | None) -> None:
    with spanprof.start(sampler=ProbabilisticSampler(0.5, seed)):
        taken_here(10)
        streams = [in_child(taken_here), in_child(taken_here), taken_here()]
    assert [len(stream) for stream in streams] == [300] * 3
    assert len({tuple(stream) for stream in streams}) == 3

    def a_session_of_its_own() -> list[bool]:
        with spanprof.start(sampler=ProbabilisticSampler(0.5, seed)):
            return taken_here()

    streams = [in_child(a_session_of_its_own), a_session_of_its_own()]
    assert streams[0] != streams[1]


def test_rule_6_6_a_sampler_goes_on_in_the_child() -> None:
    def both() -> list[bool]:
        with span("a") as a, span("b") as b:
            pass
        with span("b") as root:
            return [a.id != 0, b.id != 0, root.id != 0]

    with spanprof.start(sampler=ByName("b")):
        assert in_child(both) == [True, True, False]
        with span("b"):  # goes on in the child, sampled out as it is
            assert in_child(both) == [False, False, False]
        assert both() == [True, True, False]


# --- what follows the root ------------------------------------------------------------


def test_rule_3_7_time_and_memory_are_nobodys(clock: ManualClock) -> None:
    config = {"track_wall": True, "track_cpu": True, "track_allocations": True}
    with spanprof.start(sampler=ByName("out"), **config) as session:  # type: ignore
        with span("a"):
            clock(1)
        with span("out"):
            clock(10)
            keep = [bytes(1000) for _ in range(10)]
            with span("a"):
                clock(100)
                keep += [bytes(1000) for _ in range(10)]
            clock(1000)
        with span("a"):
            clock(2)
    assert series(session.result, "busy") == {("a",): 3}
    assert by_path(session.result)["a",]["alloc_space"] < 1000


def test_rule_3_7_descendants_of_every_kind() -> None:
    @span("decorated")
    def decorated() -> Span | None:
        return spanprof.current_span()

    async def asynchronous() -> Span:
        async with span("async") as inner:
            return inner

    reporter = Batches()
    with spanprof.start(sampler=ByName("out"), reporters=[reporter]) as session:
        with span("out", user="a") as out:
            with span("with") as child:
                assert spanprof.current_span() is child
                current = decorated()
                opened = span("opened").open()
            again = asyncio.run(asynchronous())
            with out:  # once more while it is entered: another span
                assert not out.is_recording
        with opened, span("below opened") as late:
            pass
        with out.span("given") as given, span("below given") as below:
            pass
        assert current is not None
        assert current.name == "decorated"
        unrecorded = [out, child, current, opened, again, late, given, below]

        def elsewhere() -> None:
            with out.span("elsewhere") as there, span("below") as below_there:
                unrecorded.extend([there, below_there])

        in_thread(elsewhere)
        for each in unrecorded:
            assert not each.is_recording
            assert each.id == 0
        opened.close()
        with span("recorded") as recorded:
            assert recorded.is_recording
    assert calls(session.result) == {("recorded",): 1}
    assert reporter.names == ["recorded"]


def test_rule_3_7_nothing_is_recorded_at_ratio_0() -> None:
    """The same where no sampler in Python is asked."""

    @span("decorated", user="a")
    def decorated() -> None:
        with span("inside", user="b"):
            pass

    async def asynchronous() -> None:
        async with span("async"), span("below"):
            await asyncio.sleep(0)

    before = spanprof.stats().spans_sampled_out
    with spanprof.start(
        track_all=True, record_labels=["user"], sampler=ProbabilisticSampler(0)
    ) as session:
        decorated()
        in_thread(decorated)
        asyncio.run(asynchronous())
        with span("opened").open() as opened, opened, span("label", user="x"):
            decorated()
        in_thread(lambda: opened.span("given").__enter__().__exit__(None, None, None))
        opened.close()
    assert calls(session.result) == {}
    assert spanprof.stats().spans_sampled_out == before + 2 + 2 + 2 + 3 + 2 + 1


class Batches(spanprof.Reporter):
    def __init__(self) -> None:
        self.names: list[str] = []

    def spans(self, batch: Any) -> None:
        self.names += [each.name for each in batch]


def test_rule_3_7_an_object_may_be_recorded_later() -> None:
    with spanprof.start(sampler=ByName("out")) as session:
        reused = span("reused")
        with span("out"), reused:
            assert (reused.id, reused.is_recording) == (0, False)
        with reused:
            first = reused.id
            assert first != 0
            assert reused.is_recording
        with span("out"), reused:
            assert (reused.id, reused.is_recording) == (0, False)
        with reused:
            assert reused.id not in (0, first)
    assert calls(session.result) == {("reused",): 2}


def test_rule_4_4_a_recorded_parent_wins_over_the_running_span(
    clock: ManualClock,
) -> None:
    with spanprof.start(track_wall=True, sampler=ByName("out")) as session:
        with span("parent") as parent:
            clock(1)
        with span("out"):
            clock(10)
            with parent.span("child"), span("leaf"):
                clock(100)
            clock(1000)
    assert series(session.result, "busy") == {
        ("parent",): 1,
        ("parent", "child"): 0,
        ("parent", "child", "leaf"): 100,
    }


def test_rule_4_1_an_open_recorded_span_is_entered_below_one_that_is_not(
    clock: ManualClock,
) -> None:
    with spanprof.start(track_wall=True, sampler=ByName("out")) as session:
        job = span("job").open()
        with span("out"):
            with job, span("in job"):
                clock(5)
                with job:  # a span beside it, below "in job"
                    clock(7)
            with span("in out"), job:
                clock(11)
                with span("in job"):
                    clock(13)
        job.close()
    assert series(session.result, "busy") == {
        ("job",): 11,
        ("job", "in job"): 5 + 13,
        ("job", "in job", "job"): 7,
    }


def test_rule_3_8_exits_out_of_order(clock: ManualClock) -> None:
    before = spanprof.stats().misnested
    with spanprof.start(track_wall=True, sampler=ByName("out")) as session:
        out, below = span("out"), span("below")
        out.__enter__()
        below.__enter__()
        out.__exit__(None, None, None)
        clock(1)
        with span("under below") as under:
            assert not under.is_recording
        below.__exit__(None, None, None)
        with span("a") as a:
            clock(10)
            assert a.is_recording
        elsewhere = span("out")
        elsewhere.__enter__()
        in_thread(elsewhere.__exit__, None, None, None)
        with span("b") as b:
            clock(100)
            assert b.is_recording
    assert series(session.result, "busy") == {("a",): 10, ("b",): 100}
    assert spanprof.stats().misnested == before + 2


def test_rule_3_6_sessions_that_come_and_go_inside() -> None:
    spanprof.start(sampler=ByName("out"))
    with span("out"):
        with span("a"):
            spanprof.stop()
            with span("b") as b:
                assert not b.is_recording
            second = spanprof.start(sampler=ByName("other"))
            with span("c") as c:
                assert c.is_recording, "a root of the second session"
            spanprof.stop()
            third = spanprof.start()
        with span("d") as d:
            assert d.is_recording
    with span("e"):
        pass
    spanprof.stop()
    assert calls(second.result) == {("c",): 1}
    assert calls(third.result) == {("d",): 1, ("e",): 1}


def test_rule_3_7_objects_are_released() -> None:
    class Watched:
        alive = 0

        def __init__(self) -> None:
            Watched.alive += 1

        def __del__(self) -> None:
            Watched.alive -= 1

    with spanprof.start(sampler=ProbabilisticSampler(0)):
        for _ in range(100):
            with span("a", value=Watched()) as a, a.span("b", value=Watched()):
                span("c", value=Watched()).open()
            out = span("d", value=Watched())
            out.__enter__()
            in_thread(out.__exit__, None, None, None)
        with span("the last one is taken off here"):
            pass
        del a, out
        gc.collect()
        assert Watched.alive == 0


@needs_suspension
def test_rule_3_7_a_suspended_span_is_off_its_thread() -> None:
    """As a recorded one is: what runs meanwhile is not below it, what comes is."""

    def generator() -> Iterator[bool]:
        with span("out"):
            yield True
            with span("inside") as inside:
                yield inside.is_recording

    with spanprof.start(sampler=ByName("out")) as session:
        suspended = generator()
        next(suspended)
        with span("meanwhile") as meanwhile:
            assert meanwhile.is_recording
        assert not next(suspended)
        suspended.close()
        with span("after") as after:
            assert after.is_recording
    assert calls(session.result) == {("meanwhile",): 1, ("after",): 1}


def test_rule_3_7_tasks_that_the_span_waits_for() -> None:
    """They run on top of it. What it hands to other threads, it hands a parent."""
    unrecorded: list[Span] = []

    async def task(name: str) -> None:
        await asyncio.sleep(0)
        with span(name) as child:
            unrecorded.append(child)

    def work(parent: Span) -> None:
        with parent.span("in thread") as child, span("below") as below:
            unrecorded.extend([child, below])

    async def main() -> None:
        with span("out") as out:
            await asyncio.gather(task("a"), task("b"))
            await asyncio.create_task(task("c"))
            await asyncio.to_thread(work, out)
            contextvars.copy_context().run(work, out)
        with span("after") as after:
            assert after.is_recording

    with spanprof.start(sampler=ByName("out")) as session:
        asyncio.run(main())
    assert len(unrecorded) == 7
    assert not any(each.is_recording or each.id for each in unrecorded)
    assert calls(session.result) == {("after",): 1}


# --- a sampler in Python --------------------------------------------------------------


def test_should_sample_is_told_of_roots_only() -> None:
    sampler = ByName("b")
    spanprof.start(sampler=sampler, record_labels=("user",))
    with span("a", user="x", item=3) as a:
        with span("below"):
            pass
        first = a.id
    with span("b"):
        pass
    session = spanprof.stop()
    with span("without a session"):
        pass
    assert session
    asked, other = sampler.asked
    assert asked.scope == (first,)
    assert (asked.span_name, asked.target) == ("a", __name__)
    assert asked.file == __file__
    assert (
        asked.line
        == test_should_sample_is_told_of_roots_only.__code__.co_firstlineno + 3
    )
    assert dict(asked.labels) == {"user": "x", "item": "3"}
    with pytest.raises(TypeError):
        asked.labels["user"] = "y"
    with pytest.raises(AttributeError):
        asked.scope = ()
    assert (other.span_name, dict(other.labels)) == ("b", {})
    assert other.callsite != asked.callsite


def test_should_sample_is_called_where_the_span_is_opened() -> None:
    class Threads(HeadSampler):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def should_sample(self, metadata: Any) -> bool:
            self.seen.append(threading.get_ident())
            return True

    sampler = Threads()
    with spanprof.start(sampler=sampler), span("a"):
        ident = in_thread(lambda: [threading.get_ident(), taken_here(1)][0])
        span("not a root").open().close()
    assert sampler.seen == [threading.get_ident(), ident]


def test_should_sample_may_open_spans() -> None:
    class Busy(HeadSampler):
        asked = 0
        left: Any = None

        def should_sample(self, metadata: Any) -> bool:
            self.asked += 1
            with span("inside") as inside, span("inside again"):
                assert not inside.is_recording
                assert spanprof.current_span() is None
            Busy.left = span("left entered")
            Busy.left.__enter__()
            return metadata.span_name == "a"

    sampler = Busy()
    with spanprof.start(sampler=sampler) as session:
        for name in "ab":
            with span(name), span("below"):
                pass
            Busy.left.__exit__(None, None, None)
    assert sampler.asked == 2
    assert calls(session.result) == {("a",): 1, ("a", "below"): 1}


def test_should_sample_fails(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(HeadSampler):
        def should_sample(self, metadata: Any) -> bool:
            raise ValueError("no idea")

    before = spanprof.stats().sampler_errors
    with caplog.at_level(logging.ERROR, "spanprof"):
        with spanprof.start(sampler=Failing()) as session:
            for _ in range(20):
                with span("a"):
                    pass
    assert calls(session.result) == {("a",): 20}
    assert spanprof.stats().sampler_errors == before + 20
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 6
    assert "Failing.should_sample() failed" in messages[0]
    assert caplog.records[0].exc_info
    assert "15 more" in messages[-1]


def test_should_sample_is_interrupted() -> None:
    class Interrupted(HeadSampler):
        def should_sample(self, metadata: Any) -> bool:
            raise KeyboardInterrupt

    @span("decorated")
    def decorated() -> None:
        raise AssertionError("it is not run")

    with spanprof.start(sampler=Interrupted()) as session:
        for use in (span("a").__enter__, span("b").open, decorated):
            with pytest.raises(KeyboardInterrupt):
                use()
        assert spanprof.current_span() is None
    assert calls(session.result) == {}


def test_should_sample_stops_and_starts_sessions() -> None:
    class Restarting(HeadSampler):
        def should_sample(self, metadata: Any) -> bool:
            spanprof.stop()
            if metadata.span_name == "restart":
                spanprof.start()
            return True

    for name, running in (("stop", False), ("restart", True)):
        for use in (
            lambda name: span(name).__enter__(),
            lambda name: span(name).open(),
        ):
            spanprof.start(sampler=Restarting())
            used = use(name)
            assert not used.is_recording
            assert spanprof.is_running() == running
            with span("after") as after:
                assert after.is_recording == running
            spanprof.stop()


def test_should_sample_leaves_it_to_chance() -> None:
    class Important(HeadSampler):
        def __init__(self) -> None:
            self.rest = ProbabilisticSampler(0.5, seed=1)

        def should_sample(self, metadata: Any) -> bool:
            return metadata.span_name == "vip" or self.rest.should_sample(metadata)

    def names() -> list[bool]:
        return taken_here()

    def one_session() -> list[list[bool]]:
        with spanprof.start(sampler=Important()):
            with span("vip") as vip:
                assert vip.is_recording
            return [names(), in_thread(names), in_child(names)]

    first, second = one_session(), one_session()
    assert first[:2] == second[:2]
    assert len({tuple(stream) for stream in first}) == 3
    assert 90 < sum(first[0]) < 210


def test_many_threads_ask_at_a_time() -> None:
    sampler = ByName("b")

    def work(number: int) -> int:
        taken = 0
        for n in range(300):
            with span("ab"[n % 2]) as root, span("below"):
                taken += root.is_recording
        return taken

    with spanprof.start(sampler=sampler) as session:
        assert in_threads(4, work) == [150] * 4
    assert calls(session.result) == {("a",): 600, ("a", "below"): 600}
    assert len(sampler.asked) == 1200


def test_rule_3_6_sessions_come_and_go_beside_threads() -> None:
    """With and without samplers: what is recorded is what was begun, and whole."""
    done = threading.Event()

    @span("decorated")
    def decorated() -> None:
        with span("inner"):
            pass

    def work(number: int) -> int:
        opened = span("opened").open()
        while not done.is_set():
            with span("root"), spanprof.labels(user=number):
                decorated()
            with opened, span("in opened"):
                pass
            with opened.span("child"):
                pass
        opened.close()
        return number

    def sessions() -> None:
        samplers = [
            None,
            ByName("root"),
            ProbabilisticSampler(0.5),
            ProbabilisticSampler(0),
            ByName("in opened", "child"),
        ]
        for sampler in samplers * 4:
            with spanprof.start(sampler=sampler, record_labels=["user"]) as session:
                while spanprof.snapshot().duration < 2_000_000:
                    pass
            paths = set(calls(session.result))
            if isinstance(sampler, ProbabilisticSampler) and sampler.ratio == 0:
                assert not paths
            if isinstance(sampler, ByName):
                assert not {path[0] for path in paths} & set(sampler.out)

    def either(number: int) -> int:
        if number:
            return work(number)
        try:
            sessions()
        finally:
            done.set()
        return 0

    assert in_threads(4, either) == [0, 1, 2, 3]


# --- bad use, and what samplers are -------------------------------------------------


@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan, math.inf, -1])
def test_rule_3_8_a_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio must be from 0 to 1"):
        ProbabilisticSampler(ratio)


@pytest.mark.parametrize("ratio", ["0.5", None, True, [], 1j])
def test_rule_3_8_a_ratio_that_is_no_number(ratio: Any) -> None:
    with pytest.raises(TypeError, match="ratio must be a number"):
        ProbabilisticSampler(ratio)


@pytest.mark.parametrize("seed", ["1", 1.5, False])
def test_rule_3_8_a_seed_that_is_no_int(seed: Any) -> None:
    with pytest.raises(TypeError, match="seed must be an int"):
        ProbabilisticSampler(0.5, seed)


def test_rule_3_8_a_sampler_that_is_none() -> None:
    class Empty(HeadSampler):
        pass

    for bad in (0.5, "x", lambda metadata: True, ByName, HeadSampler(), Empty()):
        for use in (spanprof.start, spanprof.profile):
            with pytest.raises(TypeError, match=r"sampler|should_sample"):
                use(sampler=bad)  # type: ignore[arg-type]
    assert not spanprof.is_running()


def test_a_block_with_a_sampler() -> None:
    with spanprof.profile(sampler=ByName("out")) as p:
        with span("out"):
            pass
        with span("a"):
            pass
    assert calls(p.result) == {("a",): 1}
    with spanprof.start(sampler=ProbabilisticSampler(0.5, 1)):
        with spanprof.profile(sampler=ProbabilisticSampler(0.5, 1)):
            pass
        with spanprof.profile():
            pass
        with pytest.raises(
            RuntimeError, match=r"has the sampler Probabilistic.*seed=1"
        ):
            spanprof.profile(sampler=ProbabilisticSampler(0.5)).__enter__()


def test_samplers_are_values() -> None:
    assert AlwaysSampler() == AlwaysSampler()
    one = ProbabilisticSampler(1, seed=2)
    assert (one.ratio, one.seed) == (1.0, 2)
    assert repr(one) == "ProbabilisticSampler(1.0, seed=2)"
    assert repr(ProbabilisticSampler(0.5)) == "ProbabilisticSampler(0.5)"
    for same in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert same == one
        assert hash(same) == hash(one)
    assert one != ProbabilisticSampler(1)
    assert one != AlwaysSampler()


def test_a_subclass_of_a_sampler_in_c_is_asked() -> None:
    class Counting(ProbabilisticSampler):
        asked = 0

        def should_sample(self, metadata: Any) -> bool:
            self.asked += 1
            return super().should_sample(metadata)

    sampler = Counting(0)
    with spanprof.start(sampler=sampler):
        assert taken_here(5) == [False] * 5
    assert sampler.asked == 5
