"""The feed of single spans: what each one used, told once, or counted as dropped.

That random programs agree with the model is in test_model.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .binding import Core, Record, Thread

PLENTY = 1000


@pytest.fixture
def feed(core: Core) -> Iterator[Core]:
    core.feed_limit(PLENTY)
    yield core
    core.feed_limit(0)


def by_name(records: list[Record]) -> dict[str, Record]:
    found = {record.frame[0]: record for record in records}
    assert len(found) == len(records)
    return found


def run(core: Core, thread: Thread, nanos: int, blocks: int = 0) -> None:
    core.run(thread, nanos)
    thread.allocate(blocks, 100 * blocks)


def test_a_span_and_its_parent(feed: Core) -> None:
    feed.start()
    thread = feed.thread()
    with thread.span("a") as a:
        run(feed, thread, 10, 1)
        with thread.span("b", key="x"):
            run(feed, thread, 5, 2)
            feed.advance(3)
        run(feed, thread, 10, 4)
    told = by_name(feed.take_spans())
    assert told["a"] == Record(
        id=a.id,
        parent=0,
        start=told["b"].start - 10,
        end=told["b"].end + 10,
        wall_busy=20,
        wall_idle=0,
        cpu=20,
        cpu_system=0,
        alloc_objects=5,
        alloc_space=500,
        frame=("a", ()),
        thread=told["b"].thread,
    )
    assert told["b"].parent == a.id
    assert told["b"].frame == ("b", (("key", "x"),))
    assert (told["b"].wall_busy, told["b"].cpu, told["b"].alloc_objects) == (8, 5, 2)
    assert feed.take_spans() == [], "each is told once"


def test_no_feed_no_records(core: Core) -> None:
    core.start()
    thread = core.thread()
    with thread.span("a"):
        pass
    assert core.take_spans() == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_rule_5_8_what_does_not_fit_is_dropped_and_counted(
    core: Core, limit: int
) -> None:
    """The newest: what waits is there already. The profile has all of them."""
    core.feed_limit(limit)
    try:
        core.start()
        thread = core.thread()
        dropped = core.stat("spans_dropped")
        for _ in range(2):
            ids = []
            for _ in range(limit + 5):
                with thread.span("a") as span:
                    ids.append(span.id)
            assert [record.id for record in core.take_spans()] == ids[:limit]
            dropped += 5
            assert core.stat("spans_dropped") == dropped
        assert core.snapshot().totals()["calls"] == 2 * (limit + 5)
    finally:
        core.feed_limit(0)


def test_the_ring_goes_round(core: Core) -> None:
    core.feed_limit(5)
    try:
        core.start()
        thread = core.thread()
        for count in (3, 5, 1, 4, 0, 5, 2):
            ids = []
            for _ in range(count):
                with thread.span("a") as span:
                    ids.append(span.id)
            assert [record.id for record in core.take_spans()] == ids
    finally:
        core.feed_limit(0)


def test_rule_5_8_each_thread_has_room_of_its_own(core: Core) -> None:
    core.feed_limit(4)
    try:
        core.start()
        threads = [core.thread() for _ in range(3)]
        for thread in threads:
            for _ in range(4):
                with thread.span("a"):
                    pass
        threads.pop().end()  # what it left waits all the same
        assert len(core.take_spans()) == 12
    finally:
        core.feed_limit(0)


def test_an_end_of_the_session_forgets_what_waits(feed: Core) -> None:
    feed.start()
    thread = feed.thread()
    with thread.span("a"):
        pass
    feed.stop()
    assert feed.take_spans() == []
    feed.start()
    with thread.span("b"):
        pass
    assert set(by_name(feed.take_spans())) == {"b"}


def test_rule_3_2_an_opened_span_adds_up(feed: Core) -> None:
    feed.start()
    one, two = feed.thread(), feed.thread()
    with one.span("outer") as outer:
        span = one.open("job")
    feed.advance(100)
    for thread, nanos in ((one, 5), (two, 7)):
        with thread.span("around"):
            thread.enter(span)
            run(feed, thread, nanos, 1)
            thread.exit(span)
        feed.advance(10)
    told = by_name([r for r in feed.take_spans() if r.frame[0] != "around"])
    assert set(told) == {"outer"}, "it is not over yet"
    two.close(span)
    (job,) = feed.take_spans()
    assert (job.id, job.parent) == (span.id, outer.id)
    assert (job.wall_busy, job.wall_idle, job.cpu) == (12, 120, 12)
    assert (job.alloc_objects, job.end - job.start) == (2, 132)


def test_rule_5_2_the_same_path_on_top_of_itself(feed: Core) -> None:
    """The cell counts for both; each is told its own, also out of order."""
    for order in ((0, 1), (1, 0)):
        feed.start()
        thread = feed.thread()
        with thread.span("a") as a:
            below = thread.begin("b")
            run(feed, thread, 1, 1)
            above = thread.begin("b", a)  # its path is that of `below`
            run(feed, thread, 10, 2)
            spans = [below, above]
            thread.exit(spans[order[0]])
            run(feed, thread, 100, 4)
            thread.exit(spans[order[1]])
            run(feed, thread, 1000, 8)
        told = {record.id: record for record in feed.take_spans()}
        values = [
            (told[s.id].wall_busy, told[s.id].cpu, told[s.id].alloc_objects)
            for s in spans
        ]
        if order == (0, 1):
            assert values == [(1, 1, 1), (110, 110, 6)]
        else:
            assert values == [(101, 101, 5), (10, 10, 2)]
        assert told[a.id].wall_busy == 1000
        assert told[above.id].parent == a.id
        feed.stop()


def test_rule_5_2_the_same_root_above_one_that_is_sampled_out(feed: Core) -> None:
    """The sampled-out one has no path: above it may begin any, as in any context."""
    answers = [True, False, True]
    feed.sample_by(lambda: answers.pop(0))
    feed.start()
    thread = feed.thread()
    context = feed.context(thread)
    lower = thread.begin("a")
    run(feed, thread, 1, 1)
    thread.use_context(context)
    feed.lib.spt_context_clear(context.pointer)
    assert thread.begin("left out").is_sampled_out
    run(feed, thread, 10, 2)
    feed.lib.spt_context_clear(context.pointer)
    upper = thread.begin("a")
    run(feed, thread, 100, 4)
    for span in (upper, lower):
        thread.exit(span)
    told = {record.id: record for record in feed.take_spans()}
    assert [
        (told[s.id].wall_busy, told[s.id].cpu, told[s.id].alloc_objects)
        for s in (lower, upper)
    ] == [(1, 1, 1), (100, 100, 4)]


def test_rule_3_8_out_of_order_is_told_at_once(feed: Core) -> None:
    feed.start()
    thread = feed.thread()
    a, b, c = (thread.begin(name) for name in "abc")
    run(feed, thread, 5)
    thread.exit(b)
    (told,) = feed.take_spans()
    assert (told.id, told.wall_busy, told.end - told.start) == (b.id, 0, 5)
    thread.exit(c)
    thread.exit(a)
    assert [record.id for record in feed.take_spans()] == [c.id, a.id]


def test_abandoned_spans_are_told(feed: Core) -> None:
    feed.start()
    thread = feed.thread()
    ids = [thread.begin(name).id for name in "abc"]
    run(feed, thread, 5)
    thread.end()
    told = feed.take_spans()
    assert [record.id for record in told] == ids[::-1]
    assert [record.wall_busy for record in told] == [5, 0, 0]


def test_deeper_than_any_program(feed: Core) -> None:
    feed.feed_limit(10_000)
    feed.start()
    thread = feed.thread()
    spans = [thread.begin("a") for _ in range(5000)]
    for span in reversed(spans):
        thread.exit(span)
    told = feed.take_spans()
    assert [record.id for record in told] == [span.id for span in reversed(spans)]
    assert [record.parent for record in told[:-1]] == [r.id for r in told[1:]]


def test_a_batch_has_a_limit(core: Core) -> None:
    most = 65_536
    core.feed_limit(40_000)
    try:
        core.start()
        threads = [core.thread(), core.thread()]
        for thread in threads:
            core.lib.spt_spans_make(thread.pointer, core.key("a"), 40_000)
        first, second = core.take_spans(), core.take_spans()
        assert (len(first), len(second)) == (most, 80_000 - most)
        assert len({record.id for record in first + second}) == 80_000
    finally:
        core.feed_limit(0)


def test_what_ended_threads_leave_waits_and_their_successors_go_on(core: Core) -> None:
    """The pages of a large ring are given back when all of it was taken."""
    core.feed_limit(10_000)
    try:
        core.start()
        for name in ("a", "b", "c"):
            thread = core.thread()
            key = core.key(name)
            core.lib.spt_spans_make(thread.ready(), key, 5000)
            thread.end()
            assert [it.frame[0] for it in core.take_spans()] == [name] * 5000
            assert core.take_spans() == []
            thread = core.thread()
            core.lib.spt_spans_make(thread.ready(), key, 10_000)
            told = core.take_spans()
            assert [it.frame[0] for it in told] == [name] * 10_000
            assert [it.id for it in told] == sorted({it.id for it in told})
    finally:
        core.feed_limit(0)


def test_rule_5_4_a_long_span_has_its_system_time(feed: Core) -> None:
    """It is asked for when the span ends, not left to the next span of its node."""
    feed.start()
    thread = feed.thread()
    with thread.span("a"):
        feed.run(thread, 1_000_000, 400_000)
    (told,) = feed.take_spans()
    assert (told.cpu, told.cpu_system) == (1_000_000, 400_000)


def test_estimates_of_a_sampled_session_are_whole_numbers(feed: Core) -> None:
    feed.start_memory(sample_bytes=1)
    thread = feed.thread()
    with thread.span("a"):
        thread.make(0x7F00_0000_0000, 5000)
        (there,) = feed.open_spans()
        assert (there.alloc_objects, there.alloc_space) == (1, 5000)
    (told,) = feed.take_spans()
    assert (told.alloc_objects, told.alloc_space) == (1, 5000)
    feed.stop()
    feed.start()  # one that counts
    with thread.span("a"):
        thread.allocate(1, 10)
    (told,) = feed.take_spans()
    assert (told.alloc_objects, told.alloc_space) == (1, 10)
