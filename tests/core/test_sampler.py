"""Head sampling in the core: streams of decisions, and rule 3.7 beside the model."""

from __future__ import annotations

import math
import os
import warnings

import pytest

from .binding import Core, Thread, end_child

ROOTS = 20_000


def decisions(core: Core, thread: Thread, count: int = ROOTS) -> list[bool]:
    """Which of so many roots are recorded."""
    result = []
    for _ in range(count):
        with thread.span("root") as span:
            result.append(not span.is_sampled_out)
    return result


def bounds(ratio: float, count: int = ROOTS) -> float:
    """How far a count may be from the expected one: five standard deviations."""
    return 5 * math.sqrt(count * ratio * (1 - ratio)) + 1e-9


@pytest.mark.parametrize("ratio", [0, 1e-12, 0.001, 0.1, 0.5, 0.9, 0.999, 1])
def test_rule_3_7_the_ratio_of_roots_is_recorded(core: Core, ratio: float) -> None:
    core.sample(ratio, seed=7)
    core.start()
    before = core.sampled_out
    taken = sum(decisions(core, core.thread()))
    assert abs(taken - ROOTS * ratio) <= bounds(ratio)
    assert core.sampled_out - before == ROOTS - taken


def test_rule_3_7_roots_are_taken_independently(core: Core) -> None:
    """What became of a root says nothing of the next ones."""
    core.sample(0.3, seed=1)
    core.start()
    taken = decisions(core, core.thread())
    for distance in (1, 2, 3, 7):
        pairs = list(zip(taken, taken[distance:], strict=False))
        both = sum(a and b for a, b in pairs)
        assert abs(both - len(pairs) * 0.09) <= 1.5 * bounds(0.09, len(pairs))


def test_rule_3_7_a_seed_repeats_the_decisions(core: Core) -> None:
    def one_session(seed: int | None) -> list[list[bool]]:
        core.sample(0.5, seed)
        core.start()
        threads = [core.thread(), core.thread()]
        result = [decisions(core, thread, 200) for thread in threads]
        for thread in threads:
            thread.end()
        core.stop()
        return result

    first = one_session(1)
    assert first[0] != first[1], "each thread has a stream of its own"
    assert one_session(1) == first
    assert one_session(2) != first
    assert one_session(None) != one_session(None)


def test_rule_3_7_a_root_that_is_skipped_is_one_of_the_ratio(core: Core) -> None:
    """Most are left out without asking for a decision."""
    core.sample(0.1, seed=3)
    core.start()
    thread = core.thread()
    skipped = taken = 0
    for _ in range(ROOTS):
        if core.lib.spt_span_skips(thread.ready()):
            skipped += 1
            continue
        with thread.span("root") as span:
            taken += not span.is_sampled_out
    assert abs(taken - ROOTS * 0.1) <= bounds(0.1)
    assert skipped > ROOTS / 2


def test_rule_6_6_children_have_streams_of_their_own(core: Core) -> None:
    core.sample(0.5, seed=1)
    core.start()
    thread = core.thread()
    decisions(core, thread, 10)

    def in_child() -> bytes:
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            # A thread of an earlier test may be about to end.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            # Another thread than the one that forks is anew in the child.
            taken = decisions(core, core.thread(), 200)
            os.write(writing, bytes(taken))
            end_child(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read()
        assert os.waitpid(child, 0)[1] == 0
        return answer

    streams = {in_child(), in_child(), bytes(decisions(core, core.thread(), 200))}
    assert [len(stream) for stream in streams] == [200] * 3


def test_rule_3_7_time_and_blocks_of_the_unrecorded_are_nobodys(core: Core) -> None:
    answers = iter([False, True])
    core.sample_by(lambda: next(answers))
    core.start()
    thread, other = core.thread(), core.thread()
    with thread.span("out"):
        core.run(thread, 10)
        thread.allocate(1, 8)
        with thread.span("below"):
            core.run(thread, 20)
            thread.allocate(1, 8)
    out = other.begin("recorded")
    core.run(other, 5)
    other.exit(out)
    final = core.stop()
    assert final is not None
    assert set(final.by_name()) == {"recorded"}
    assert final.by_name()["recorded"]["wall_busy"] == 5


def test_rule_5_2_a_stranger_below_a_recorded_span_takes_its_own_time(
    core: Core,
) -> None:
    """Its parent is sampled out, elsewhere; yet it runs on top of a recorded one."""
    answers = iter([False, True])
    core.sample_by(lambda: next(answers))
    core.start()
    thread, other = core.thread(), core.thread()
    out = other.begin("out")
    with thread.span("recorded"):
        core.run(thread, 1)
        stranger = thread.begin("stranger", out)
        core.run(thread, 10)
        thread.allocate(1, 8)
        with thread.span("below") as below:
            core.run(thread, 100)
        thread.exit(stranger)
        core.run(thread, 1000)
        thread.allocate(1, 8)
    assert below.is_sampled_out
    values = core.snapshot().by_name()
    assert set(values) == {"recorded"}
    assert values["recorded"]["wall_busy"] == 1001
    assert values["recorded"]["alloc_space"] == 8


def test_rule_3_7_a_recorded_child_on_top_of_a_span_that_is_not(core: Core) -> None:
    answers = iter([True, False])
    core.sample_by(lambda: next(answers))
    core.feed_limit(10)
    core.start()
    thread, other = core.thread(), core.thread()
    parent = other.begin("parent")
    with thread.span("out"):
        child = thread.begin("child", parent)
        core.run(thread, 7)
        with thread.span("leaf") as leaf:
            core.run(thread, 8)
        thread.exit(child)
        core.run(thread, 9)
    assert not leaf.is_sampled_out
    values = core.snapshot().by_name()
    assert values["parent/child"]["wall_busy"] == 7
    assert values["parent/child/leaf"]["wall_busy"] == 8
    records = core.take_spans()
    assert {record.frame[0] for record in records} == {"leaf", "child"}
    assert {record.parent for record in records} == {parent.id, child.id}


def test_rule_3_8_unrecorded_spans_exited_in_any_order(core: Core) -> None:
    core.sample_by(lambda: False)
    core.start()
    thread, other = core.thread(), core.thread()
    a, b = thread.begin("a"), thread.begin("b")
    assert thread.exit(a)
    with thread.span("c") as c:
        assert c.is_sampled_out, "b is still entered"
    assert not other.exit(b), "thread takes it off at its next span"
    core.sample_by(lambda: True)
    with thread.span("d") as d:
        core.run(thread, 1)
    # The session still asks: it is the answer that has changed.
    assert not d.is_sampled_out
    assert set(core.snapshot().by_name()) == {"d"}
    assert core.released() == [b]


def test_rule_3_7_an_opened_span_decides_when_it_is_opened(core: Core) -> None:
    answers = iter([False, True])
    core.sample_by(lambda: next(answers))
    core.start()
    thread = core.thread()
    job = thread.open("job")
    core.advance(100)
    with thread.span("recorded"):
        core.run(thread, 1)
        thread.enter(job)
        core.run(thread, 10)
        with thread.span("below") as below:
            pass
        thread.exit(job)
        core.run(thread, 2)
    thread.close(job)
    assert below.is_sampled_out
    values = core.snapshot().by_name()
    assert set(values) == {"recorded"}
    assert (values["recorded"]["wall_busy"], values["recorded"]["wall_idle"]) == (3, 0)


def test_rule_4_4_a_parent_that_is_begun_again_after_the_decision(core: Core) -> None:
    """Another thread has the parent's object: by now it is one that is sampled out."""
    answers = iter([True, False])
    core.sample_by(lambda: next(answers))
    core.start()
    first, second = core.thread(), core.thread()
    parent = first.begin("parent")
    assert second.sampled(second.pointer, parent)
    first.exit(parent)
    first.begin("parent", span=parent)
    assert parent.is_sampled_out
    child, key = core.span(), core.key("child")
    core.lib.sp_span_begin_under(second.pointer, child.pointer, key, parent.pointer)
    assert second.exit(child)
    opened = core.span()
    core.lib.sp_span_open(second.pointer, opened.pointer, key, parent.pointer)
    second.close(opened)
    assert set(core.snapshot().by_name()) == {"parent", "child"}


def test_rule_3_6_a_session_without_a_sampler_records_all_again(core: Core) -> None:
    core.sample(0)
    core.start()
    thread = core.thread()
    out = thread.begin("out")
    core.stop()
    core.sample_by(None)
    core.start()
    with thread.span("a") as a:
        assert not a.is_sampled_out
        thread.exit(out)  # of a session that is over
    assert set(core.snapshot().by_name()) == {"a"}
