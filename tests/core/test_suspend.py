"""Spans that leave their thread's stack for a while, and come back."""

import random
import threading
import time
from collections.abc import Iterator

import pytest

from .binding import ENTERED, NONE, OPEN, SUSPENDED, Core, Record, Span
from .test_fork import Mine, in_child

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

KEY, OTHER_KEY = 0x1000, 0x2000


@pytest.fixture(params=["no feed", "feed"])
def fed(core: Core, request: pytest.FixtureRequest) -> Iterator[Core]:
    """The core with a session, with a feed of single spans and without."""
    core.feed_limit(100 if request.param == "feed" else 0)
    core.start()
    yield core
    core.feed_limit(0)


@pytest.fixture
def feed(core: Core) -> Iterator[Core]:
    core.feed_limit(100)
    core.start()
    yield core
    core.feed_limit(0)


def values(core: Core, path: str) -> tuple[int, int]:
    node = core.snapshot().by_name()[path]
    return node["wall_busy"], node["wall_idle"]


def told(core: Core) -> dict[str, Record]:
    return {record.frame[0]: record for record in core.take_spans()}


# --- suspending and resuming -------------------------------------------------


def test_rule_4_2_what_is_suspended_is_nobodys_parent(fed: Core) -> None:
    thread = fed.thread()
    with thread.span("below"):
        a = thread.begin("a")
        assert thread.suspend(a, KEY)
        assert (a.state, a.is_suspended) == (SUSPENDED, True)
        with thread.span("other"):
            fed.run(thread, 10)
        assert thread.resume(KEY)
        assert (a.state, a.is_suspended) == (ENTERED, False)
        with thread.span("inner"):
            fed.run(thread, 3)
        thread.exit(a)
    assert set(fed.snapshot().by_name()) == {
        "below",
        "below/other",
        "below/a",
        "below/a/inner",
    }
    assert values(fed, "below/a") == (0, 10)


def test_rule_5_2_idle_while_suspended_and_busy_while_not(fed: Core) -> None:
    one, two = fed.thread(), fed.thread()
    a = one.begin("a")
    fed.run(one, 1)
    b = one.begin("b")
    fed.run(one, 2)
    one.suspend(a, KEY)
    fed.advance(100)
    assert values(fed, "a") == (1, 100)
    assert values(fed, "a/b") == (2, 100)
    with two.span("around"):
        two.resume(KEY)
        fed.run(two, 4)
        two.exit(b)
        fed.run(two, 8)
        two.exit(a)
        fed.run(two, 16)
    assert values(fed, "a") == (9, 100)
    assert values(fed, "a/b") == (6, 100)
    assert values(fed, "around") == (16, 0)


def test_rule_5_1_a_record_has_all_of_it_once(feed: Core) -> None:
    one, two = feed.thread(), feed.thread()
    with one.span("outer") as outer:
        a = one.begin("a")
        start = feed.wall
        for thread in (one, two, one, two):
            if not thread.resume(KEY):
                assert thread is one
            feed.run(thread, 10)
            thread.allocate(1, 100)
            thread.suspend(a, KEY)
            assert "a" not in told(feed)
            feed.advance(7)
        two.resume(KEY)
        two.exit(a)
    (record,) = (r for r in feed.take_spans() if r.frame[0] == "a")
    assert (record.id, record.parent) == (a.id, outer.id)
    assert (record.start, record.end) == (start, feed.wall)
    assert (record.wall_busy, record.wall_idle, record.cpu) == (40, 28, 40)
    assert (record.alloc_objects, record.alloc_space) == (4, 400)


def test_rule_5_3_a_suspended_span_is_read_in_place(feed: Core) -> None:
    thread = feed.thread()
    a = thread.begin("a")
    feed.run(thread, 5)
    thread.suspend(a, KEY)
    for idle in (10, 20):
        feed.advance(10)
        (found,) = feed.open_spans()
        assert (found.id, found.wall_busy, found.wall_idle) == (a.id, 5, idle)
    thread.resume(KEY)
    feed.run(thread, 3)
    (found,) = feed.open_spans()
    assert (found.wall_busy, found.wall_idle) == (8, 20)
    thread.exit(a)
    assert feed.open_spans() == []


def test_an_opened_span_is_open_while_it_is_suspended(fed: Core) -> None:
    thread = fed.thread()
    a = thread.open("a")
    fed.advance(1)
    thread.enter(a)
    fed.run(thread, 2)
    thread.suspend(a, KEY)
    assert a.state == OPEN
    fed.advance(4)
    assert values(fed, "a") == (2, 5)
    thread.resume(KEY)
    assert a.state == ENTERED
    thread.exit(a)
    fed.advance(8)
    thread.close(a)
    assert values(fed, "a") == (2, 13)


def test_rule_3_7_sampled_out_spans_are_suspended_like_others(fed: Core) -> None:
    fed.stop()
    fed.sample_by(lambda: False)
    fed.start()
    thread = fed.thread()
    out = thread.begin("out")
    assert out.is_sampled_out
    thread.suspend(out, KEY)
    fed.sample_by(lambda: True)
    with thread.span("a") as a:
        assert not a.is_sampled_out
        thread.resume(KEY)
        assert thread.begin("child").is_sampled_out


# --- spans that are not resumed, or not as a group ----------------------------


def test_a_key_that_is_used_again_abandons_what_it_had(fed: Core) -> None:
    thread = fed.thread()
    abandoned = fed.stat("abandoned")
    a = thread.begin("a")
    thread.suspend(a, KEY)
    fed.advance(10)
    b = thread.begin("b")
    thread.suspend(b, KEY)
    fed.advance(10)
    assert (a.state, b.state) == (NONE, SUSPENDED)
    assert fed.stat("abandoned") == abandoned + 1
    assert values(fed, "a") == (0, 10)
    assert thread.resume(KEY)
    thread.exit(b)
    assert values(fed, "b") == (0, 10)


def test_one_of_a_group_is_abandoned(feed: Core) -> None:
    thread = feed.thread()
    a, b, c = (thread.begin(name) for name in "abc")
    thread.suspend(a, KEY)
    feed.advance(10)
    thread.abandon(b)
    assert (b.state, a.state, c.state) == (NONE, SUSPENDED, SUSPENDED)
    assert told(feed)["b"].wall_idle == 10
    feed.advance(10)
    thread.resume(KEY)
    feed.run(thread, 5)
    thread.exit(c)
    thread.exit(a)
    records = told(feed)
    assert (records["c"].wall_busy, records["c"].wall_idle) == (5, 20)
    assert (records["a"].wall_busy, records["a"].wall_idle) == (0, 20)


@pytest.mark.parametrize("way", ["exit", "abandon"])
def test_rule_3_2_an_opened_span_that_leaves_its_group_idles_on(
    fed: Core, way: str
) -> None:
    """None of its idle time is lost."""
    thread = fed.thread()
    a = thread.open("a")
    thread.enter(a)
    thread.suspend(a, KEY)
    fed.advance(10)
    getattr(thread, way)(a)
    assert (a.state, a.is_suspended) == (OPEN, False)
    fed.advance(5)
    assert values(fed, "a") == (0, 15)
    thread.enter(a)
    fed.run(thread, 1)
    thread.exit(a)
    thread.close(a)
    assert values(fed, "a") == (1, 15)


def test_rule_3_2_a_close_takes_a_span_out_of_its_group(fed: Core) -> None:
    thread = fed.thread()
    a = thread.open("a")
    thread.enter(a)
    b = thread.begin("b")
    thread.suspend(a, KEY)
    fed.advance(10)
    thread.close(a)
    assert (a.state, a.is_suspended) == (NONE, False)
    a.free()
    assert values(fed, "a") == (0, 10)
    thread.resume(KEY)
    thread.exit(b)
    assert values(fed, "a/b") == (0, 10)


def test_rule_3_8_an_exit_of_a_suspended_span_takes_it_out(fed: Core) -> None:
    one, two = fed.thread(), fed.thread()
    misnested = fed.stat("misnested")
    a = one.begin("a")
    b = one.begin("b")
    one.suspend(a, KEY)
    fed.advance(10)
    assert two.exit(a)
    assert a.state == NONE
    assert fed.stat("misnested") == misnested + 1
    one.resume(KEY)
    fed.run(one, 1)
    one.exit(b)
    assert (values(fed, "a"), values(fed, "a/b")) == ((0, 10), (1, 10))


def test_rule_3_8_an_exit_that_was_asked_for_before_it_was_suspended(
    fed: Core,
) -> None:
    one, two, three = fed.thread(), fed.thread(), fed.thread()
    a = one.begin("a")
    assert not two.exit(a)
    one.suspend(a, KEY, settled=False)
    fed.advance(10)
    assert fed.released() == []
    three.resume(KEY)
    fed.run(three, 5)
    three.recording()  # it sees to what others asked for
    assert (a.state, fed.released()) == (NONE, [a])
    assert values(fed, "a") == (5, 10)


# --- sessions and threads -------------------------------------------------------


def test_rule_3_6_a_session_that_ends_while_spans_are_suspended(fed: Core) -> None:
    thread = fed.thread()
    opened = thread.open("opened")
    thread.enter(opened)
    a = thread.begin("a")
    thread.suspend(opened, KEY)
    fed.advance(10)
    fed.stop()
    fed.start()
    thread.begin("b")
    fed.advance(10)
    thread.resume(KEY)
    assert (a.state, a.is_suspended) == (ENTERED, False)
    assert (opened.state, opened.is_suspended) == (OPEN, False)
    thread.exit(a)
    thread.exit(opened)
    thread.close(opened)
    assert (a.state, opened.state) == (NONE, NONE)
    fed.advance(10)
    assert fed.snapshot().totals()["wall_idle"] == 0
    assert values(fed, "b") == (20, 0)
    assert not set(told(fed)) & {"a", "opened"}


def test_two_sessions_under_one_key(fed: Core) -> None:
    thread = fed.thread()
    abandoned = fed.stat("abandoned")
    old = thread.begin("a")
    thread.suspend(old, KEY)
    fed.stop()
    fed.start()
    new = thread.begin("a")
    thread.suspend(new, KEY)
    assert (old.state, new.state) == (NONE, SUSPENDED)
    assert fed.stat("abandoned") == abandoned, "its session is over"
    fed.advance(10)
    thread.resume(KEY)
    thread.exit(new)
    assert values(fed, "a") == (0, 10)


def test_a_thread_that_ends_leaves_its_suspended_spans_to_others(fed: Core) -> None:
    one, two = fed.thread(), fed.thread()
    a = one.begin("a")
    one.suspend(a, KEY)
    one.end()
    fed.advance(10)
    two.resume(KEY)
    fed.run(two, 5)
    two.exit(a)
    assert values(fed, "a") == (5, 10)


@pytest.mark.parametrize("opened", [False, True])
def test_resumed_where_nothing_is_recorded(fed: Core, opened: bool) -> None:
    """As by the profiler's own thread: no longer suspended, on no stack."""
    thread = fed.thread()
    a = thread.open("a") if opened else thread.begin("a")
    if opened:
        thread.enter(a)
    thread.suspend(a, KEY)
    fed.advance(10)
    assert fed.resume_nowhere(KEY)
    assert values(fed, "a") == (0, 10)
    fed.advance(10)
    thread.exit(a)
    idle = 20 if opened else 10
    assert values(fed, "a") == (0, idle)
    if opened:
        thread.close(a)


def test_beyond_the_limit_of_nodes(fed: Core) -> None:
    fed.stop()
    fed.start(max_nodes=1)
    one, two = fed.thread(), fed.thread()
    a = one.begin("a")
    b = one.begin("b")
    c = one.begin("c")
    one.suspend(a, KEY)
    fed.advance(10)
    two.resume(KEY)
    for span in (c, b, a):
        fed.run(two, 1)
        two.exit(span)
    assert values(fed, "a") == (1, 10)
    assert values(fed, "a/(other)") == (2, 20)


def test_rule_4_2_a_group_that_was_entered_in_several_contexts(fed: Core) -> None:
    """None of it is the parent of what comes in the context that it leaves."""
    thread = fed.thread()
    with thread.span("outer"):
        a = thread.begin("a")
        thread.use_context(fed.context(thread))
        thread.begin("b")
        thread.use_context(None)
        thread.suspend(a, KEY)
        thread.exit(thread.begin("c"))
    assert "outer/c" in fed.snapshot().by_name()


@pytest.mark.parametrize("keeps_context", [True, False])
def test_rule_4_2_a_whole_stack_leaves_with_its_context_or_without(
    fed: Core, keeps_context: bool
) -> None:
    """As greenlets switch: each has a context of its own, or they share one."""
    thread = fed.thread()
    context = fed.context(thread)
    if keeps_context:
        thread.use_context(context)
    spans = [thread.begin("a"), thread.begin("b")]
    fed.run(thread, 1)
    suspend_all = fed.lib.sp_span_suspend_all
    assert suspend_all(thread.ready(), fed.place(KEY), keeps_context)
    thread.use_context(None)
    with thread.span("other"):
        fed.run(thread, 10)
    if keeps_context:
        thread.use_context(context)
    assert thread.resume(KEY)
    with thread.span("c"):
        fed.run(thread, 100)
    for span in reversed(spans):
        thread.exit(span)
    with thread.span("after"):
        fed.run(thread, 1000)
    busy = {path: node["wall_busy"] for path, node in fed.snapshot().by_name().items()}
    assert busy == {"a": 0, "a/b": 1, "a/b/c": 100, "other": 10, "after": 1000}
    assert values(fed, "a") == (0, 10)


def test_rule_5_2_the_same_root_resumed_above_one_that_is_sampled_out(
    feed: Core,
) -> None:
    answers = [True, True, False]
    feed.stop()
    feed.sample_by(lambda: answers.pop(0))
    feed.start()
    thread = feed.thread()
    context = feed.context(thread)
    thread.use_context(context)
    upper = thread.begin("a")
    assert thread.suspend(upper, KEY)
    lower = thread.begin("a")
    feed.run(thread, 1)
    feed.lib.spt_context_clear(context.pointer)
    assert thread.begin("left out").is_sampled_out
    assert thread.resume(KEY)
    feed.run(thread, 100)
    assert {s.id: s.wall_busy for s in feed.open_spans()} == {
        lower.id: 1,
        upper.id: 100,
    }
    for span in (upper, lower):
        thread.exit(span)
    told = {record.id: record.wall_busy for record in feed.take_spans()}
    assert told == {lower.id: 1, upper.id: 100}


def test_rule_5_2_shared_cells_below_a_span_that_leaves_from_the_middle(
    feed: Core,
) -> None:
    """The same path twice on a stack, after what was between the two has gone."""
    thread = feed.thread()
    a = thread.begin("a")
    first = thread.begin("b")
    fresh = feed.context(thread)
    feed.lib.spt_context_clear(fresh.pointer)
    thread.use_context(fresh)
    between = thread.begin("a")
    second = thread.begin("b")
    feed.run(thread, 1)
    thread.exit(between)
    feed.run(thread, 10)
    thread.exit(second)
    thread.use_context(None)
    feed.run(thread, 100)
    thread.exit(first)
    thread.exit(a)
    records = {record.id: record for record in feed.take_spans()}
    assert records[second.id].wall_busy == 11
    assert records[first.id].wall_busy == 100


# --- fork --------------------------------------------------------------------------


def suspended_by_mine(core: Core, mine: Mine, name: str, key: int) -> Span:
    span = mine.begin(name)
    core.lib.sp_span_suspend(mine.state(), span.pointer, core.place(key))
    return span


def resume_mine(core: Core, mine: Mine, key: int) -> None:
    top = core.lib.sp_suspended_take(core.place(key), core.ffi.NULL)
    core.lib.sp_span_resume(mine.state(), top)


def test_rule_6_6_suspended_spans_go_on_from_zero_in_the_child(fed: Core) -> None:
    mine = Mine(fed)
    a = suspended_by_mine(fed, mine, "a", KEY)
    fed.advance(100)

    def child() -> None:
        fed.advance(10)
        assert fed.snapshot().by_name()["a"]["wall_idle"] == 10
        resume_mine(fed, mine, KEY)
        fed.advance(5)
        assert mine.exit(a)
        assert values(fed, "a") == (5, 10)
        for record in fed.take_spans():
            assert (record.wall_busy, record.wall_idle) == (5, 10)

    in_child(child)
    assert fed.snapshot().by_name()["a"]["wall_idle"] == 100
    resume_mine(fed, mine, KEY)
    assert mine.exit(a)


def test_rule_6_6_a_childs_thread_resumes_what_another_had_suspended(
    fed: Core,
) -> None:
    """Its state is that of the parent's thread, emptied."""
    thread = fed.thread()
    thread.exit(thread.begin("x"))
    a = thread.begin("a")
    thread.suspend(a, KEY)

    def child() -> None:
        states = [fed.thread() for _ in range(len(fed._threads) + 8)]
        same = [t for t in states if t.pointer == thread.pointer]
        assert same, "a state is used anew"
        same[0].resume(KEY)
        fed.run(same[0], 7)
        same[0].exit(a)
        assert values(fed, "a") == (7, 0)

    in_child(child)


def test_rule_6_6_a_fork_leaves_the_hosts_word_of_an_entered_span(feed: Core) -> None:
    mine = Mine(feed)
    a = suspended_by_mine(feed, mine, "a", KEY)
    resume_mine(feed, mine, KEY)
    feed.lib.spt_span_set_thrown_into(a.pointer, feed.place(OTHER_KEY))

    def child() -> None:
        assert feed.lib.spt_span_thrown_into(a.pointer) == feed.place(OTHER_KEY)

    in_child(child)
    assert mine.exit(a)


# --- the table ------------------------------------------------------------


class Table:
    """The table, beside a dict: groups of one to three spans."""

    def __init__(self, core: Core) -> None:
        self.core, self.lib = core, core.lib
        self.expected: dict[int, list[Span]] = {}
        self.rest: list[Span] = []
        self.kept = core.ffi.new("bool *")
        self.count = int(core.lib.sp_suspended_count())

    def group(self, count: int) -> list[Span]:
        spans = [
            self.rest.pop() if self.rest else self.core.span() for _ in range(count)
        ]
        null = self.core.ffi.NULL
        for span, below in zip(spans, [*spans[1:], None], strict=True):
            self.lib.spt_span_link(span.pointer, below.pointer if below else null)
        return spans

    def put(self, key: int, count: int = 1) -> None:
        group = self.group(count)
        null = self.core.ffi.NULL
        before = self.lib.sp_suspended_put(
            self.core.place(key), group[0].pointer, null, self.kept
        )
        assert self.kept[0]
        self.check_group(before, self.expected.get(key, []))
        self.rest += self.expected.get(key, [])
        self.expected[key] = group

    def take(self, key: int) -> None:
        top = self.lib.sp_suspended_take(self.core.place(key), self.core.ffi.NULL)
        group = self.expected.pop(key, [])
        self.check_group(top, group)
        self.rest += group

    def remove(self, key: int, number: int) -> None:
        group = self.expected.get(key, [])
        span = group.pop(number % len(group)) if group else self.group(1)[0]
        place = self.core.place(key)
        found = self.lib.sp_suspended_remove(place, span.pointer)
        assert found == (key in self.expected)
        assert not self.lib.sp_suspended_remove(place, span.pointer)
        self.rest.append(span)
        if not group:
            self.expected.pop(key, None)

    def check_group(self, top: object, group: list[Span]) -> None:
        for span in group:
            assert top == span.pointer
            top = self.lib.spt_span_below(top)
        assert top == self.core.ffi.NULL

    def check(self) -> None:
        assert self.lib.sp_suspended_count() == self.count + len(self.expected)
        spans = sum(len(group) for group in self.expected.values())
        assert self.lib.spt_suspended_visit() == spans
        for key in self.expected:
            assert self.lib.sp_suspended_has(self.core.place(key))


def alike(core: Core, part: int, low_bits: int) -> Iterator[int]:
    """Keys of one part of the table that begin their search at one place."""
    key, mask = 0, (1 << (6 + low_bits)) - 1
    while True:
        key = core.lib.spt_suspended_key_after(key, mask, part)
        yield key


@pytest.fixture
def table(core: Core) -> Iterator[Table]:
    table = Table(core)
    yield table
    for key in list(table.expected):
        table.take(key)
    table.check()


def test_the_table_against_a_dict(table: Table) -> None:
    chance = random.Random(7)
    for wanted in (3000, 10, 2000, 0):
        grows = len(table.expected) < wanted
        while len(table.expected) != wanted:
            keys = list(table.expected)
            chance.shuffle(keys)
            for key in keys[:200] if grows else keys[: len(keys) - wanted]:
                act = chance.randrange(2 if grows else 4)
                if act == 0:
                    table.put(key, chance.randrange(1, 4))
                elif act == 1 or table.expected[key][1:] == []:
                    table.take(key)
                else:
                    table.remove(key, chance.randrange(3))
            while grows and len(table.expected) < wanted and chance.randrange(500):
                table.put(16 * chance.randrange(1, 1 << 43), chance.randrange(1, 4))
        table.check()


@pytest.mark.parametrize("low_bits", [0, 4, 8])
def test_the_table_with_keys_that_look_alike(
    core: Core, table: Table, low_bits: int
) -> None:
    """All in one part, searched for from one place; removed in any order."""
    chance = random.Random(low_bits)
    like = alike(core, 63, low_bits)
    keys = [next(like) for _ in range(60)]
    for _ in range(10):
        for key in chance.sample(keys, len(keys)):
            table.put(key)
        table.check()
        order = chance.sample(keys, len(keys))
        for n, key in enumerate(order):
            table.take(key)
            if n % 7 == 0:
                table.check()
            for other in order[n + 1 : n + 6]:
                assert core.lib.sp_suspended_has(core.place(other))


def test_the_table_gives_memory_back_and_grows_again(core: Core, table: Table) -> None:
    like = alike(core, 5, 0)
    keys = [next(like) for _ in range(2000)]
    for _ in range(2):
        for key in keys:
            table.put(key)
        table.check()
        for key in reversed(keys):
            table.take(key)
        table.check()


def test_a_thread_waits_for_what_another_does_to_the_table(
    core: Core, table: Table
) -> None:
    table.put(KEY)
    answers: list[bool] = []
    tries = threading.Event()

    def ask() -> None:
        tries.set()
        answers.append(core.lib.sp_suspended_has(core.place(KEY)))

    asker = threading.Thread(target=ask)
    core.lib.sp_suspended_lock()
    try:
        asker.start()
        assert tries.wait(10)
        # It has no sleep in it: it is waiting once it has used so much time.
        clock = time.pthread_getcpuclockid(asker.ident or 0)
        start = time.clock_gettime(clock)
        while time.clock_gettime(clock) < start + 0.002:
            assert asker.is_alive()
        assert answers == []
    finally:
        core.lib.sp_suspended_unlock()
    asker.join(10)
    assert answers == [True]


def test_a_span_that_another_thread_abandons_is_left_out(
    core: Core, table: Table
) -> None:
    for number in range(3):
        table.put(KEY, 3)
        group = table.expected.pop(KEY)
        span = group.pop(number)
        top = core.lib.spt_suspended_take_but(core.place(KEY), span.pointer)
        table.check_group(top, group)
        assert not core.lib.sp_suspended_has(core.place(KEY))
        assert not core.lib.sp_suspended_remove(core.place(KEY), span.pointer)


@pytest.fixture
def refused(core: Core) -> Iterator[Core]:
    """The core, whose table may get no more memory."""
    core.lib.sp_suspended_refuse(True)
    yield core
    core.lib.sp_suspended_refuse(False)


def test_without_memory_a_key_still_changes_hands(
    core: Core, table: Table, refused: Core
) -> None:
    """A group that was left there would be resumed by another frame."""
    core.lib.sp_suspended_refuse(False)
    like = alike(core, 9, 0)
    first = next(like)
    table.put(first)
    core.lib.sp_suspended_refuse(True)
    span = table.group(1)[0]
    put = core.lib.sp_suspended_put
    for key in like:
        put(core.place(key), span.pointer, core.ffi.NULL, table.kept)
        if not table.kept[0]:
            break
        table.expected[key] = [span]
        span = table.group(1)[0]
    table.check()
    table.put(first, 2)
    table.check()


def test_out_of_memory_a_group_is_abandoned(core: Core, refused: Core) -> None:
    core.start()
    thread = core.thread()
    lost, abandoned = core.stat("out_of_memory"), core.stat("abandoned")
    spans: list[Span] = []
    for key in alike(core, 11, 0):
        spans.append(thread.begin("a"))
        if not thread.suspend(spans[-1], key):
            break
    span = spans[-1]
    assert (span.state, span.is_suspended) == (NONE, False)
    assert core.stat("out_of_memory") == lost + 1
    assert core.stat("abandoned") == abandoned + 1
    assert not thread.resume(next(alike(core, 12, 0)))
