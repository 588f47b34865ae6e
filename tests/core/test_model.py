"""Random programs, in the core and in the model: every value of every node agrees."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from . import model as reference
from .binding import Context, Core, Profile, Span, Thread, Values

# One step of a program: what, and numbers that choose among what there is. A step that
# makes no sense where it stands is left out.
Step = tuple[str, int, int, int]

COMMON = ("begin", "exit", "advance")
STEPS = (
    *(COMMON * 4),
    *(("begin_under", "open", "enter", "exit_any", "close", "snapshot", "delta") * 2),
    *(("thread", "end_thread", "start", "stop", "allocate", "feed", "chance") * 2),
    *(("suspend", "resume", "context") * 3),
    *("clear_context", "suspend_late", "resume_nowhere", "abandon"),
)
number = st.integers(0, 7)
steps = st.tuples(st.sampled_from(STEPS), number, number, number)
programs = st.lists(steps, max_size=40) | st.lists(steps, min_size=30, max_size=120)

FRAMES: list[reference.Frame] = [
    *((name, "") for name in "abcd"),
    *(("labelled", value) for value in "xy"),
]
MAX_NODES = [100_000, 100_000, 2, 5]
KEYS = 3  # of groups of suspended spans
FEED_LIMIT = 500  # no program here has more spans


@dataclass
class Pair:
    """A span of the core's, and the model's for it."""

    real: Span
    expected: reference.Span


@dataclass
class Program:
    """Plays the steps on both sides, and compares at every reading."""

    core: Core
    model: reference.Model = field(default_factory=reference.Model)
    threads: list[tuple[Thread, reference.Thread]] = field(default_factory=list)
    contexts: list[tuple[Context, reference.Context]] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    ended: list[Pair] = field(default_factory=list)  # destroyed, but not freed yet
    shown: dict[reference.Path, Values] = field(default_factory=dict)
    deltas: Counter[tuple[reference.Path, str]] = field(default_factory=Counter)
    earlier: Profile | None = None
    system: Counter[reference.Path] = field(default_factory=Counter)
    times: int = 0

    def __post_init__(self) -> None:
        self.start_counts = {
            name: self.core.stat(name)
            for name in ("misnested", "abandoned", "nodes_folded")
        }
        self.folded = 0
        self.fed = True
        self.sampled = True  # the sampler's next answers
        self.sampled_out = self.core.sampled_out
        self.model.now = self.core.wall
        self.thread(0, 0, 0)
        self.start(0, 0, 0)

    def run(self, steps: list[Step]) -> None:
        for name, *numbers in steps:
            getattr(self, name)(*numbers)
            self.tidy()
        if self.model.session is not None:
            self.snapshot(0, 0, 0)
            self.stop(0, 0, 0)
        self.check_counts()

    # --- steps ---------------------------------------------------------------

    def thread(self, a: int, b: int, c: int) -> None:
        if len(self.threads) < 4:
            self.threads.append((self.core.thread(), reference.Thread()))
            self.model.threads.append(self.threads[-1][1])

    def end_thread(self, a: int, b: int, c: int) -> None:
        if len(self.threads) > 1:
            real, expected = self.threads.pop(a % len(self.threads))
            self.model.end(expected)
            real.end()

    def start(self, a: int, b: int, c: int) -> None:
        if self.model.session is None:
            limit = MAX_NODES[a % len(MAX_NODES)]
            self.fed = c % 4 != 3
            self.core.feed_limit(FEED_LIMIT if self.fed else 0)
            sampling = b % 2 == 1
            self.core.sample_by((lambda: self.sampled) if sampling else None)
            self.core.start(max_nodes=limit)
            self.model.start(limit, sampling)
            self.shown.clear()
            self.system.clear()
            self.deltas.clear()
            self.earlier = None

    def stop(self, a: int, b: int, c: int) -> None:
        if self.model.session is None:
            return
        if a % 2:
            self.delta(0, 0, 0)
        self.feed(0, 0, 0)
        final = self.core.stop()
        assert final is not None
        self.check(final)
        self.folded += self.model.session.folded
        self.model.stop()

    def chance(self, a: int, b: int, c: int) -> None:
        """From now on roots are sampled out, or no longer."""
        self.sampled = a % 2 == 1

    def advance(self, a: int, b: int, c: int) -> None:
        """One thread runs, the others wait; the kernel has a part of the time. Some
        wall time passes in which nobody runs."""
        real, _ = self.threads[a % len(self.threads)]
        nanos = b * 10 + 3
        system = nanos * (c % 4) // 3
        cpu = [nanos if thread is real else 0 for thread, _ in self.threads]
        booked = [system if thread is real else 0 for thread, _ in self.threads]
        self.core.run(real, nanos, system)
        self.model.advance(nanos, cpu, booked)
        waited = c // 4
        nothing = [0] * len(cpu)
        self.core.advance(waited)
        self.model.advance(waited, nothing, nothing)

    def allocate(self, a: int, b: int, c: int) -> None:
        real, expected = self.turn(a)
        real.allocate(b, c * 10)
        self.model.allocate(expected, b, c * 10)

    def feed(self, a: int, b: int, c: int) -> None:
        """Each span that is over is told of once, with what was its own."""
        if self.model.session is None or not self.fed:
            return
        self.check_open()
        records = {record.id: record for record in self.core.take_spans()}
        closed = self.model.session.closed
        assert set(records) == {span.id for span in closed}
        for span in closed:
            record = records[span.id]
            name, value = span.path[-1]
            assert record.frame == (name, (("key", value),) if value else ())
            assert record.parent == (span.parent.id if span.parent else 0)
            assert (record.start, record.end) == (span.start, span.end)
            own = span.own
            assert (record.wall_busy, record.wall_idle) == (own.busy, own.idle)
            assert record.cpu == own.cpu
            assert record.cpu_system <= own.cpu
            assert (record.alloc_objects, record.alloc_space) == (
                own.objects,
                own.space,
            )
        system = Counter[reference.Path]()
        for span in closed:
            system[span.path] += records[span.id].cpu_system
        self.system.update(system)
        for path, told in self.system.items():
            assert told <= self.model.session.nodes[path].system
        closed.clear()

    def check_open(self) -> None:
        """Spans that are not over are read in place (5.3)."""
        spans = {span.id: span for span in self.core.open_spans()}
        expected = [
            span
            for span in self.model.spans
            if span.session is self.model.session and not span.out
        ]
        assert set(spans) == {span.id for span in expected}
        for span in expected:
            found, own = spans[span.id], span.own
            name, value = span.path[-1]
            assert found.frame == (name, (("key", value),) if value else ())
            assert found.parent == (span.parent.id if span.parent else 0)
            assert (found.wall_busy, found.wall_idle) == (own.busy, own.idle)
            assert found.cpu == own.cpu
            assert found.cpu_system <= own.cpu
            assert found.alloc_objects == own.objects
            assert found.alloc_space == own.space

    def begin(self, a: int, b: int, c: int, parent: Pair | None = None) -> None:
        self.create(a, b, parent, opened=False)

    def begin_under(self, a: int, b: int, c: int) -> None:
        self.create(a, b, self.any_span(c), opened=False)

    def open(self, a: int, b: int, c: int) -> None:
        self.create(a, b, self.any_span(c) if c % 2 else None, opened=True)

    def create(self, a: int, b: int, parent: Pair | None, opened: bool) -> None:
        real, expected = self.turn(a)
        name, value = frame = FRAMES[b % len(FRAMES)]
        above = parent.real if parent is not None else None
        act = real.open if opened else real.begin
        span = act(name, above, key=value) if value else act(name, above)
        if self.model.session is not None:
            play = self.model.open if opened else self.model.begin
            above_expected = parent.expected if parent is not None else None
            made = play(expected, frame, above_expected, self.sampled)
            self.pairs.append(Pair(span, made))
            assert span.is_sampled_out == made.out
            made.id = span.id

    def enter(self, a: int, b: int, c: int) -> None:
        real, expected = self.turn(a)
        idle = [
            pair
            for pair in self.pairs
            if pair.expected.idle and pair.expected.kept_under is None
        ]
        if idle:
            pair = idle[b % len(idle)]
            real.enter(pair.real)
            self.model.enter(expected, pair.expected)

    def exit(self, a: int, b: int, c: int) -> None:
        """In order: the innermost span of the thread."""
        real, expected = self.turn(a)
        if expected.stack:
            self.leave(real, expected, expected.stack[-1])

    def exit_any(self, a: int, b: int, c: int) -> None:
        """Out of order, or on another thread, or of an earlier session, or while it is
        suspended."""
        real, expected = self.turn(a)
        spans = [
            span
            for span in (pair.expected for pair in self.pairs)
            if span.kept_under is not None
            or span.adrift
            or (span.running_on is not None and not span.asked_to_exit)
        ]
        if spans:
            self.leave(real, expected, spans[b % len(spans)])

    def close(self, a: int, b: int, c: int) -> None:
        real, _ = self.turn(a)
        idle = [
            pair for pair in self.pairs if pair.expected.idle and pair.expected.opened
        ]
        if idle:
            pair = idle[b % len(idle)]
            real.close(pair.real)
            self.model.close(pair.expected)

    def context(self, a: int, b: int, c: int) -> None:
        """The thread goes on in its own context, in another one that nobody is in, or
        in a new one, which is a copy of that in which it is."""
        real, expected = self.threads[a % len(self.threads)]
        taken = [thread.other_context for _, thread in self.threads]
        free = [pair for pair in self.contexts if pair[1] not in taken]
        if b == 0:
            real.use_context(None)
            expected.other_context = None
            return
        if b >= 4 or not free:
            copy = reference.Context(expected.context.current)
            self.contexts.append((self.core.context(real), copy))
            free = self.contexts[-1:]
        context, model = free[c % len(free)]
        real.use_context(context)
        expected.other_context = model

    def clear_context(self, a: int, b: int, c: int) -> None:
        """The thread's next span is a root, if it is not in its own context."""
        _, expected = self.threads[a % len(self.threads)]
        for context, model in self.contexts:
            if self.model.session is not None and model is expected.other_context:
                self.core.lib.spt_context_clear(context.pointer)
                self.model.clear(model)

    def suspend(self, a: int, b: int, c: int) -> None:
        """The topmost spans, under a key that may be in use."""
        real, expected = self.turn(a)
        self.put_aside(real, expected, b, c)

    def suspend_late(self, a: int, b: int, c: int) -> None:
        """Others ask for exits while the thread is about to suspend the spans."""
        real, expected = self.threads[a % len(self.threads)]
        if all(span.session is self.model.session for span in expected.stack):
            self.put_aside(real, expected, b, c, settled=False)

    def put_aside(
        self,
        real: Thread,
        expected: reference.Thread,
        b: int,
        c: int,
        settled: bool = True,
    ) -> None:
        if self.model.session is None or not expected.stack:
            return
        count = 1 + b % len(expected.stack)
        bottom = self.pair_of(expected.stack[-count])
        assert real.suspend(bottom.real, 16 * (1 + c % KEYS), settled)
        self.model.suspend(expected, count, c % KEYS)

    def resume(self, a: int, b: int, c: int) -> None:
        real, expected = self.turn(a)
        key = c % KEYS
        found = real.resume(16 * (1 + key))
        assert found == (key in self.model.groups)
        if found:
            on = expected if self.model.session is not None else None
            self.model.resume(on, key)

    def resume_nowhere(self, a: int, b: int, c: int) -> None:
        """By a thread that records nothing."""
        key = c % KEYS
        found = self.core.resume_nowhere(16 * (1 + key))
        assert found == (key in self.model.groups)
        if found:
            self.model.resume(None, key)

    def abandon(self, a: int, b: int, c: int) -> None:
        """One of a group, whose host is about to free it."""
        real, _ = self.turn(a)
        kept = [pair for pair in self.pairs if pair.expected.kept_under is not None]
        if kept:
            pair = kept[b % len(kept)]
            real.abandon(pair.real)
            self.model.abandon(pair.expected)

    def snapshot(self, a: int, b: int, c: int) -> None:
        if self.model.session is None:
            return
        now = self.core.snapshot()
        nodes = self.check(now)
        if self.earlier is not None:
            # Profile(t0, t2) = Profile(t0, t1) + Profile(t1, t2)
            between = now - self.earlier
            assert all(v >= 0 for n in between.nodes().values() for v in n.values())
            assert (self.earlier + between).nodes() == now.nodes()
            assert between.duration == now.duration - self.earlier.duration
        for path, values in self.shown.items():
            assert all(nodes[path][metric] >= values[metric] for metric in values)
        self.shown = nodes
        self.earlier = now

    def delta(self, a: int, b: int, c: int) -> None:
        """All deltas so far are the cumulative profile."""
        if self.model.session is None:
            return
        for path, values in self.nodes_of(self.core.delta()).items():
            for metric, value in values.items():
                assert value >= 0
                self.deltas[path, metric] += value
        cumulative = Counter(
            {
                (path, metric): value
                for path, values in self.nodes_of(self.core.snapshot()).items()
                for metric, value in values.items()
            }
        )
        assert +self.deltas == +cumulative

    # --- both sides -----------------------------------------------------------

    def turn(self, a: int) -> tuple[Thread, reference.Thread]:
        real, expected = self.threads[a % len(self.threads)]
        assert real.recording() == (self.model.session is not None)
        self.model.turn(expected)
        return real, expected

    def leave(
        self, real: Thread, expected: reference.Thread, span: reference.Span
    ) -> None:
        assert real.exit(self.pair_of(span).real) == self.model.exit(expected, span)

    def pair_of(self, span: reference.Span) -> Pair:
        return next(pair for pair in self.pairs if pair.expected is span)

    def any_span(self, c: int) -> Pair | None:
        """Any span as a parent: idle, running anywhere, destroyed, of any session."""
        known = self.pairs + self.ended
        return known[c % len(known)] if known else None

    def tidy(self) -> None:
        """Free the memory of spans that are no more, all but the last few: those may
        still be asked for as parents."""
        for pair in list(self.pairs):
            if pair.expected.destroyed:
                assert pair.real.state == 0
                self.pairs.remove(pair)
                self.ended.append(pair)
            else:
                kept = pair.expected.kept_under is not None
                assert pair.real.is_suspended == kept
        while len(self.ended) > 2:
            self.ended.pop(0).real.free()

    def nodes_of(self, profile: Profile) -> dict[reference.Path, Values]:
        return {
            tuple((name, labels[0][1] if labels else "") for name, labels in stack): n
            for stack, n in profile.nodes().items()
        }

    def check(self, profile: Profile) -> dict[reference.Path, Values]:
        assert self.model.session is not None
        nodes = self.nodes_of(profile)
        assert set(nodes) == {p for p, n in self.model.session.nodes.items() if n.calls}
        for path, values in nodes.items():
            node = self.model.session.nodes[path]
            assert values["calls"] == node.calls
            assert values["wall_busy"] == node.busy, path
            assert values["wall_idle"] == node.idle, path
            assert values["cpu_user"] + values["cpu_system"] == node.cpu, path
            # What was taken for user time before the split was known stays that.
            assert 0 <= values["cpu_system"] <= node.system, path
        return nodes

    def check_counts(self) -> None:
        risen = {
            name: self.core.stat(name) - start
            for name, start in self.start_counts.items()
        }
        assert risen == {
            "misnested": self.model.misnested,
            "abandoned": self.model.abandoned,
            "nodes_folded": self.folded,
        }
        assert self.core.sampled_out - self.sampled_out == self.model.sampled_out


# Programs are small and quick, and what they find may take a rare order of steps.
@settings(max_examples=10 * settings().max_examples)
@given(programs)
def test_every_value_agrees_with_the_model(core: Core, program: list[Step]) -> None:
    try:
        Program(core).run(program)
    finally:
        core.clean()
        core.use_injected_clock()
