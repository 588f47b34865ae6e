"""The roster: what reporters are told of single spans, in which order, how often.

Random programs play in the core and in the model; whatever is told is checked against
the rules at once, and added up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from . import model as reference
from .binding import Core, Roster, Update
from .test_model import FEED_LIMIT, STEPS, Program, Step

number = st.integers(0, 7)
steps = st.tuples(st.sampled_from((*STEPS, "tell", "tell")), number, number, number)
programs = st.lists(steps, max_size=40) | st.lists(steps, min_size=30, max_size=120)


@dataclass
class Listener:
    """A reporter that knows the rules of section 6, and adds up what it is told."""

    values: dict[int, Counter[str]] = field(default_factory=dict)
    frames: dict[int, object] = field(default_factory=dict)
    scopes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    heap: dict[int, tuple[int, int]] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)

    def hear(self, updates: list[Update]) -> None:
        for update in updates:
            if update.scope is not None:
                assert update.id not in self.scopes, "6.1: metadata arrives once"
                assert update.scope[0] == update.id
                for above in update.scope[1:]:
                    assert above in self.scopes, "6.1: parents before children"
                self.scopes[update.id] = update.scope
                self.frames[update.id] = update.frame
                self.values[update.id] = Counter()
            assert update.id in self.scopes, "6.1: created first"
            assert update.id not in self.gone, "6.1: nothing after destroyed"
            if update.values is not None:
                assert all(value >= 0 for value in update.values.values())
                self.values[update.id].update(update.values)
            if update.heap is not None:
                self.heap[update.id] = update.heap
            if update.destroyed:
                self.gone.add(update.id)


class ToldProgram(Program):
    """A program whose feed goes to a roster."""

    def start(self, a: int, b: int, c: int) -> None:
        if self.model.session is None:
            self.roster = Roster(self.core)
            self.listener = Listener()
            self.over: list[reference.Span] = []
        super().start(a, b, 0)  # there is a feed

    def stop(self, a: int, b: int, c: int) -> None:
        super().stop(a, b, c)
        if hasattr(self, "roster") and self.model.session is None:
            self.roster.free()
            del self.roster

    def feed(self, a: int, b: int, c: int) -> None:
        """At a stop all are told of to the end."""
        if self.model.session is None:
            return
        self.hear("last")
        assert self.listener.gone == set(self.listener.scopes)
        # Nothing may come after the last round.
        self.model.session.closed.clear()

    def tell(self, a: int, b: int, c: int) -> None:
        if self.model.session is not None:
            self.hear(("over", "report", "heap")[a % 3])

    def hear(self, kind: str) -> None:
        session = self.model.session
        assert session is not None
        self.over += session.closed
        session.closed.clear()
        listener = self.listener
        listener.hear(self.roster.round(kind))
        mine = [
            span
            for span in self.model.spans
            if span.session is session and not span.out
        ]
        assert set(listener.scopes) <= {span.id for span in self.over + mine}
        if kind != "over":
            assert set(listener.scopes) == {span.id for span in self.over + mine}
        assert {span.id for span in self.over} <= listener.gone
        for span in self.over if kind == "over" else self.over + mine:
            self.check_span(span)

    def check_span(self, span: reference.Span) -> None:
        name, value = span.path[-1]
        listener, own = self.listener, span.own
        assert listener.frames[span.id] == (name, (("key", value),) if value else ())
        scope = [span.id]
        above = span.parent
        while above is not None:
            scope.append(above.id)
            above = above.parent
        assert listener.scopes[span.id] == tuple(scope)
        values = listener.values[span.id]
        assert values["wall_busy"] == own.busy
        assert values["wall_idle"] == own.idle
        assert values["cpu_user"] + values["cpu_system"] == own.cpu
        assert values["alloc_objects"] == own.objects
        assert values["alloc_space"] == own.space


# Steps that take from the feed themselves are not for these programs.
told_programs = programs.map(lambda program: [s for s in program if s[0] != "feed"])


@settings(max_examples=5 * settings().max_examples)
@given(told_programs)
def test_rules_5_1_and_6_1_every_program_is_told_in_order_and_in_full(
    core: Core, program: list[Step]
) -> None:
    try:
        ToldProgram(core).run(program)
    finally:
        core.clean()
        core.use_injected_clock()


# --- single cases ------------------------------------------------------------------


@contextmanager
def told(core: Core, with_heap: bool = False) -> Iterator[Roster]:
    roster = Roster(core, with_heap)
    core.feed_limit(FEED_LIMIT)
    try:
        yield roster
    finally:
        core.feed_limit(0)
        roster.free()


def test_rule_5_3_a_span_that_runs_on_is_told_of_as_it_grows(core: Core) -> None:
    with told(core) as roster:
        core.start()
        thread = core.thread()
        span = thread.begin("a")
        core.run(thread, 10, 4)
        (first,) = roster.round("report")
        assert first.scope == (span.id,)
        assert first.frame == ("a", ())
        assert first.values is not None
        assert first.values["wall_busy"] == 10
        assert roster.round("report") == [], "nothing new"
        core.run(thread, 5)
        (second,) = roster.round("report")
        assert (second.scope, second.destroyed) == (None, False)
        assert second.values is not None
        assert second.values["wall_busy"] == 5
        core.run(thread, 7)
        thread.exit(span)
        (third,) = roster.round("over")
        assert third.destroyed
        assert third.values is not None
        assert third.values["wall_busy"] == 7


def test_rule_6_1_a_parent_that_is_open_is_told_of_with_its_first_child(
    core: Core,
) -> None:
    with told(core) as roster:
        core.start()
        thread = core.thread()
        outer = thread.begin("outer")
        middle = thread.begin("middle")
        inner = thread.begin("inner")
        thread.exit(inner)
        updates = roster.round("over")
        assert [update.id for update in updates] == [outer.id, middle.id, inner.id]
        assert updates[2].scope == (inner.id, middle.id, outer.id)
        assert updates[0].values is updates[1].values is None


def test_rule_5_8_a_span_whose_record_was_dropped_ends_all_the_same(
    core: Core,
) -> None:
    with told(core) as roster:
        core.feed_limit(1)
        core.start()
        thread = core.thread()
        span = thread.begin("told of")
        roster.round("report")
        fills = thread.begin("fills the ring")
        thread.exit(fills)
        thread.exit(span)
        updates = {update.id: update for update in roster.round("report")}
        assert set(updates) == {fills.id, span.id}
        assert updates[span.id].destroyed
        assert updates[span.id].values is None
        assert updates[fills.id].scope == (fills.id, span.id)


def test_a_parent_that_was_never_told_of_ends_the_scope(core: Core) -> None:
    with told(core) as roster:
        core.feed_limit(1)
        core.start()
        thread = core.thread()
        with thread.span("outer") as outer, thread.span("inner") as inner:
            pass
        (update,) = roster.round("report")
        assert (update.id, update.scope) == (inner.id, (inner.id,))
        assert outer.id != inner.id


@pytest.mark.parametrize("between", [100, 20_000])
def test_a_parent_is_remembered_for_a_while(core: Core, between: int) -> None:
    """A task that outlives the span in which it was started."""
    with told(core) as roster:
        core.feed_limit(100_000)
        core.start()
        thread = core.thread()
        with thread.span("parent") as parent:
            pass
        roster.round("over")
        for _ in range(between):
            with thread.span("other"):
                pass
        roster.round("over")
        late = thread.begin("late", parent)
        thread.exit(late)
        (update,) = roster.round("over")
        wanted = (late.id, parent.id) if between < 16_384 else (late.id,)
        assert update.scope == wanted


BASE = 1 << 33


def test_rule_5_6_a_span_is_over_when_its_last_block_is_freed(core: Core) -> None:
    with told(core, with_heap=True) as roster:
        core.start_heap(by_span=True)
        thread = core.thread()
        with thread.span("a") as span:
            thread.make(BASE, 10)
            thread.make(BASE + 16, 20)
        first, second = roster.round("heap")
        assert first.values is not None
        assert (first.heap, first.destroyed) == (None, False)
        assert (second.id, second.heap) == (span.id, (2, 30))
        core.free(BASE)
        assert roster.round("over") == roster.round("report") == []
        (third,) = roster.round("heap")
        assert (third.heap, third.destroyed) == ((1, 20), False)
        core.free(BASE + 16)
        (last,) = roster.round("report")
        assert (last.heap, last.destroyed) == ((0, 0), True)
        assert roster.round("last") == []


def test_rule_5_6_a_span_without_blocks_is_over_at_once(core: Core) -> None:
    with told(core, with_heap=True) as roster:
        core.start_heap(by_span=True)
        thread = core.thread()
        with thread.span("a"):
            pass
        (update,) = roster.round("over")
        assert (update.heap, update.destroyed) == ((0, 0), True)


def test_rule_5_6_a_folded_span_is_over(core: Core) -> None:
    with told(core, with_heap=True) as roster:
        core.start_heap(by_span=True, max_closed=1)
        thread = core.thread()
        with thread.span("small") as small:
            thread.make(BASE, 10)
        roster.round("heap")
        with thread.span("large") as large:
            thread.make(BASE + 16, 20)
        updates = roster.round("heap")
        assert [u.id for u in updates if u.destroyed] == [small.id]
        assert [u.heap for u in updates if u.id == large.id][-1] == (1, 20)


def test_rule_5_6_estimates_of_a_sampled_session_are_whole_numbers(core: Core) -> None:
    with told(core, with_heap=True) as roster:
        core.start_heap(by_span=True, sample_bytes=1)
        thread = core.thread()
        with thread.span("a") as span:
            thread.make(BASE, 5000)
            updates = roster.round("heap")
        assert [u.heap for u in updates if u.id == span.id][-1] == (1, 5000)


def test_rule_6_2_at_the_end_all_are_over_with_what_they_have_in_use(
    core: Core,
) -> None:
    with told(core, with_heap=True) as roster:
        core.start_heap(by_span=True)
        thread = core.thread()
        opened = thread.open("opened")
        with thread.span("ended") as ended:
            thread.make(BASE, 10)
        running = thread.begin("running")
        thread.make(BASE + 16, 20)
        listener = Listener()
        listener.hear(roster.round("last"))
        assert listener.gone == {opened.id, ended.id, running.id}
        assert listener.heap == {
            opened.id: (0, 0),
            ended.id: (1, 10),
            running.id: (1, 20),
        }
