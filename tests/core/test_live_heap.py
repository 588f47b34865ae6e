"""Live heap: random programs in the core and in a model, and what they do not reach.

Blocks are numbers. The map never looks behind an address, so any program of
allocations, frees and failures can be played without memory.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from .binding import SECOND, Core, Profile, Span, Thread, Values

STEP = 16 << 10
"""How much a peak of several threads may be off for each, in bytes (heap.h)."""

LEAF = 64 << 20
BASE = 0x7F00_0000_0000
ADDRESSES = [
    *range(BASE, BASE + 12 * 16, 16),  # neighbours
    *range(BASE + LEAF - 32, BASE + LEAF + 32, 16),  # on both sides of a leaf's end
    *range(BASE + 0x10008, BASE + 0x10008 + 4 * 16, 16),  # of 8 bytes, as mimalloc's
    *range((1 << 48) + 16, (1 << 48) + 80, 16),  # where no entry can be
    16,
]
SIZES = [0, 1, 16, 100, 512, 5000, 16 << 10, 1 << 20, (1 << 24) - 2]
SIZES += [(1 << 24) - 1, 1 << 24, 5 << 30]
AGE_LIMITS = (0, 1, 10, 60, 600, 3600)

Path = tuple[str, ...]


@dataclass
class Block:
    path: Path
    size: int
    born: int  # second


@dataclass
class Node:
    """A path's values, from the rules: [5.5], [5.6]."""

    objects: int = 0
    space: int = 0
    live: int = 0
    peak: int = 0
    users: set[object] = field(default_factory=set)


@dataclass(eq=False)
class Runner:
    """A thread with its stack of spans."""

    real: Thread
    stack: list[tuple[str, Span, int]] = field(default_factory=list)
    """Name, span, session."""


class Heap(RuleBasedStateMachine):
    """A program of threads, spans and blocks, beside what the rules say of it."""

    core: Core

    def __init__(self) -> None:
        super().__init__()
        self.core.use_injected_clock()
        self.session = 0  # number of the running one; 0: none
        self.sessions = itertools.count(1)
        self.blocks: dict[int, Block] = {}
        self.foreign: set[int] = set()
        self.nodes: dict[Path, Node] = {}
        self.whole = Node()
        self.paths: dict[Path, int] = {}
        self.deltas: Counter[tuple[Path, str]] = Counter()
        self.seconds = 0
        self.began = 0
        self.refused = False
        self.runners = [Runner(self.core.thread()) for _ in range(3)]

    def teardown(self) -> None:
        self.core.lib.sp_shadow_refuse(False)
        self.core.clean()

    # --- the model ------------------------------------------------------------

    def node(self, path: Path) -> Node:
        return self.nodes.setdefault(path, Node())

    def path_of(self, runner: Runner) -> Path | None:
        """Whose blocks the thread makes; None: nobody's."""
        names = [name for name, _, session in runner.stack if session == self.session]
        return tuple(names) if names and self.session else None

    def added(self, address: int, path: Path, size: int, user: object) -> None:
        node = self.node(path)
        node.objects += 1
        node.space += size
        for each in (node, self.whole):
            each.users.add(user)
        self.blocks[address] = Block(path, size, self.seconds)
        for each in (node, self.whole):
            each.live += size
            each.peak = max(each.peak, each.live)

    def gone(self, address: int, user: object) -> None:
        block = self.blocks.pop(address, None)
        if block is None:
            self.foreign.discard(address)
            return
        for each in (self.node(block.path), self.whole):
            each.live -= block.size
            each.users.add(user)

    def free_address(self, number: int) -> int:
        taken = self.blocks.keys() | self.foreign
        free = [address for address in ADDRESSES if address not in taken]
        return free[number % len(free)] if free else 0

    def taken_address(self, number: int) -> int:
        taken = sorted(self.blocks.keys() | self.foreign)
        return taken[number % len(taken)] if taken else 0

    # --- the program ----------------------------------------------------------

    @initialize()
    def start_first(self) -> None:
        self.start()

    @precondition(lambda self: not self.session)
    @rule()
    def start(self) -> None:
        self.core.start_heap()
        self.session = next(self.sessions)
        self.nodes, self.whole = {}, Node()
        self.foreign |= self.blocks.keys()  # from before the session: nobody's
        self.blocks.clear()
        self.deltas.clear()
        self.paths.clear()
        self.began = self.core.wall

    @precondition(lambda self: self.session)
    @rule()
    def stop(self) -> None:
        final = self.core.stop()
        assert final is not None
        self.check(final)
        self.session = 0

    @rule(thread=st.integers(0, 2), name=st.sampled_from("ab"))
    def enter(self, thread: int, name: str) -> None:
        runner = self.runners[thread]
        if len(runner.stack) < 4:
            span = runner.real.begin(name)
            runner.stack.append((name, span, self.session))
            path = self.path_of(runner)
            if path is not None:
                self.node(path)
                self.paths[path] = span.path

    @rule(thread=st.integers(0, 2))
    def leave(self, thread: int) -> None:
        runner = self.runners[thread]
        if runner.stack:
            _, span, _ = runner.stack.pop()
            runner.real.exit(span)

    @rule(thread=st.integers(0, 2))
    def end_thread(self, thread: int) -> None:
        """Its state, accounts and all, goes to the next one."""
        runner = self.runners[thread]
        while runner.stack:
            runner.real.exit(runner.stack.pop()[1])
        runner.real.end()
        runner.real = self.core.thread()

    @rule(
        thread=st.integers(0, 2), number=st.integers(0, 40), size=st.sampled_from(SIZES)
    )
    def make(self, thread: int, number: int, size: int) -> None:
        address = self.free_address(number)
        if not address:
            return
        runner = self.runners[thread]
        path = self.path_of(runner)
        lost = self.core.stat("heap_untracked")
        runner.real.make(address, size)
        if path is None:
            self.foreign.add(address)
        elif self.core.stat("heap_untracked") > lost:
            assert self.refused
            node = self.node(path)
            node.objects += 1
            node.space += size
            node.users.add(runner.real.pointer)
            self.foreign.add(address)
        else:
            self.added(address, path, size, runner.real.pointer)

    @rule(thread=st.integers(-1, 2), number=st.integers(0, 40))
    def free(self, thread: int, number: int) -> None:
        """By any thread; -1 is one that the core has never seen."""
        address = self.taken_address(number)
        if not address:
            return
        real = self.runners[thread].real if thread >= 0 else None
        self.core.free(address, real)
        # A thread that has not joined this session counts as a stranger.
        self.gone(address, real.pointer if real else None)

    @rule(thread=st.integers(0, 2), number=st.integers(0, 40))
    def free_unknown(self, thread: int, number: int) -> None:
        address = self.free_address(number)
        if address:
            self.core.free(address, self.runners[thread].real)

    @rule(
        thread=st.integers(0, 2),
        number=st.integers(0, 40),
        to=st.integers(0, 40),
        how=st.sampled_from(["in place", "away", "fails"]),
        size=st.sampled_from(SIZES),
        from_null=st.booleans(),
    )
    def move(
        self, thread: int, number: int, to: int, how: str, size: int, from_null: bool
    ) -> None:
        """realloc: a block freed and one made, or nothing."""
        if self.refused:
            return
        old = 0 if from_null else self.taken_address(number)
        made = self.free_address(to) if how == "away" or not old else old
        if how == "fails":
            made = 0
        elif not made:
            return
        runner = self.runners[thread]
        path = self.path_of(runner)
        runner.real.move(old, made, size)
        if not made:
            return
        if old:
            self.gone(old, runner.real.pointer)
        if path is None:
            self.foreign.add(made)
        else:
            self.added(made, path, size, runner.real.pointer)

    @rule(refuse=st.booleans())
    def memory(self, refuse: bool) -> None:
        """The system gives the map nothing more, or does again."""
        self.refused = refuse
        self.core.lib.sp_shadow_refuse(refuse)

    @rule(seconds=st.sampled_from([1, 5, 60, 700, 4000]))
    def wait(self, seconds: int) -> None:
        self.core.advance(seconds * SECOND)
        self.core.lib.sp_heap_tick_slow(self.core.wall)
        self.seconds += seconds

    # --- the comparison -------------------------------------------------------

    def check(self, profile: Profile) -> None:
        found = {
            tuple(name for name, _ in stack): values
            for stack, values in profile.nodes().items()
        }
        for path, node in self.nodes.items():
            mine = [block for block in self.blocks.values() if block.path == path]
            values = found.get(path, dict.fromkeys(next(iter(found.values())), 0))
            assert values["alloc_objects"] == node.objects, path
            assert values["alloc_space"] == node.space, path
            assert values["inuse_objects"] == len(mine), path
            assert values["inuse_space"] == sum(block.size for block in mine), path
            self.check_peak(values["inuse_peak_space"], node)
        self.check_peak(profile.heap_peak, self.whole)
        self.check_ages(profile)

    def check_peak(self, peak: int, node: Node) -> None:
        if len(node.users) == 1 and None not in node.users:
            assert peak == node.peak
        else:
            assert abs(peak - node.peak) <= STEP * len(node.users)

    def check_ages(self, profile: Profile) -> None:
        expected: dict[Path, list[int]] = {}
        for block in self.blocks.values():
            age = self.seconds - block.born
            # At least so old, at a resolution of an eighth of a second.
            number = max(
                n for n, limit in enumerate(AGE_LIMITS) if limit < age or not n
            )
            expected.setdefault(block.path, [0] * 6)[number] += block.size
        found = {
            tuple(name for name, _ in stack): space
            for stack, space in profile.ages().items()
        }
        assert found == {path: sp for path, sp in expected.items() if any(sp)}

    @precondition(lambda self: self.session and self.nodes)
    @rule()
    def snapshot(self) -> None:
        self.check(self.core.snapshot())

    @precondition(lambda self: self.session and self.nodes)
    @rule()
    def delta(self) -> None:
        profile = self.core.delta()
        found: dict[Path, Values] = {
            tuple(name for name, _ in stack): values
            for stack, values in profile.nodes().items()
        }
        for path, values in found.items():
            for name in ("alloc_objects", "alloc_space"):
                self.deltas[path, name] += values[name]
        for path, node in self.nodes.items():
            mine = [block for block in self.blocks.values() if block.path == path]
            assert self.deltas[path, "alloc_objects"] == node.objects
            assert self.deltas[path, "alloc_space"] == node.space
            inuse = found[path]["inuse_objects"] if path in found else 0
            # Told every ten seconds at most, see ProfileConfig.heap_snapshot_interval.
            assert inuse == len(mine) or "heap" not in profile.kinds

    @invariant()
    def the_map_is_what_the_counters_say(self) -> None:
        for path, number in self.paths.items() if self.session else ():
            mine = [block for block in self.blocks.values() if block.path == path]
            sizes = sum(block.size for block in mine)
            assert self.core.in_map(number) == (len(mine), sizes), path


def test_rule_5_5_and_5_6_random_programs(core: Core) -> None:
    Heap.core = core
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Heap, settings=settings(stateful_step_count=60, max_examples=150)
    )


# --- what the machine does not reach ----------------------------------------------


def only(profile: Profile) -> Values:
    (values,) = profile.nodes().values()
    return values


def test_rule_5_6_a_session_longer_than_its_clock(core: Core) -> None:
    """16 bits of eighths of a second: blocks stay, and so does their class of age."""
    core.start_heap()
    thread = core.thread()
    with thread.span("a"):
        thread.make(BASE, 100)
        thread.make(BASE + 8, 5)  # beside the map
        for _ in range(40):
            core.advance(3600 * SECOND)
            core.lib.sp_heap_tick_slow(core.wall)
            assert only(core.snapshot())["inuse_space"] == 105
        core.advance(30 * 24 * 3600 * SECOND)  # stopped for a month
        core.lib.sp_heap_tick_slow(core.wall)
        assert list(core.snapshot().ages().values()) == [[0, 0, 0, 0, 0, 105]]
        thread.make(BASE + 16, 1)
        assert list(core.snapshot().ages().values()) == [[1, 0, 0, 0, 0, 105]]
        core.free(BASE, thread)
        core.free(BASE + 8, thread)
        assert only(core.snapshot())["inuse_space"] == 1


def test_ages_after_a_leap_are_not_less_than_they_are(core: Core) -> None:
    core.start_heap()
    thread = core.thread()
    with thread.span("a"):
        for seconds in (700, 4000):
            core.advance(seconds * SECOND)
            core.lib.sp_heap_tick_slow(core.wall)
        thread.make(BASE, 1)
        core.advance(4000 * SECOND)
        core.lib.sp_heap_tick_slow(core.wall)
        assert list(core.snapshot().ages().values()) == [[0, 0, 0, 0, 0, 1]]


def test_hazard_4_blocks_of_an_earlier_session_are_nobodys(core: Core) -> None:
    for number in range(1000):
        core.start_heap()
        thread = core.thread()
        with thread.span("a"):
            thread.make(BASE + 16 * (number % 7), 10)
            values = only(core.snapshot())
            assert (values["inuse_objects"], values["alloc_objects"]) == (1, 1)
            core.free(BASE + 16 * ((number - 1) % 7), thread)  # the last session's
            assert only(core.snapshot())["inuse_objects"] == 1
        thread.end()
        core.stop()
    assert core.lib.sp_shadow_resident() == 0


def test_hazard_5_threads_without_a_state_count_frees(core: Core) -> None:
    core.start_heap()
    thread = core.thread()
    with thread.span("a"):
        for n in range(100):
            thread.make(BASE + 16 * n, 1000)
    for n in range(60):
        core.free(BASE + 16 * n)
    values = only(core.snapshot())
    assert (values["inuse_objects"], values["inuse_space"]) == (40, 40_000)
    assert values["inuse_peak_space"] in range(100_000 - 2 * STEP, 100_001)


def test_faults_no_address_space_for_the_map(core: Core) -> None:
    """The blocks are counted, and not followed."""
    core.start_heap()  # so that there is a table of large blocks, as after other tests
    first = core.thread()
    with first.span("a"):
        first.make(BASE, 1 << 30)
    core.stop()
    before = core.stat("heap_untracked")
    refused = core.stat("heap_map_refused")
    core.lib.sp_shadow_refuse(True)
    core.start_heap()
    thread = core.thread()
    with thread.span("a"):
        thread.make(BASE + 512 * LEAF, 100)
        thread.make(BASE + 513 * LEAF, 1 << 30)
    core.lib.sp_shadow_refuse(False)
    values = only(core.snapshot())
    assert (values["alloc_objects"], values["inuse_objects"]) == (2, 0)
    assert core.stat("heap_untracked") - before == 2
    assert core.stat("heap_map_refused") - refused >= 2, "and why"
    core.free(BASE + 512 * LEAF, thread)
    assert only(core.snapshot())["inuse_space"] == 0


def test_peaks_are_exact_for_one_thread(core: Core) -> None:
    core.start_heap()
    thread = core.thread()
    with thread.span("a"):
        for size in (3, 5, 1):
            thread.make(BASE, size)
            thread.make(BASE + 16, 2)
            core.free(BASE, thread)
            core.free(BASE + 16, thread)
    with thread.span("b"):
        thread.make(BASE, 4)
    profile = core.snapshot()
    peaks = {name: v["inuse_peak_space"] for name, v in profile.by_name().items()}
    assert peaks == {"a": 7, "b": 4}
    assert profile.heap_peak == 7, "not at the same time"


# --- profiles ----------------------------------------------------------------------


def heap_profile(core: Core, start: int, end: int, level: int, peak: int) -> Profile:
    values = {"calls": 1, "inuse_space": level, "inuse_peak_space": peak}
    profile = core.profile({("a",): values}, start, end - start)
    profile.pointer.kinds = 31
    profile.pointer.level_start, profile.pointer.level_end = start, end
    profile.pointer.heap_peak = peak
    return profile


def levels(profile: Profile) -> tuple[int, int, int]:
    values = only(profile)
    return values["calls"], values["inuse_space"], values["inuse_peak_space"]


def test_sums_take_the_later_level_and_the_higher_peak(core: Core) -> None:
    early = heap_profile(core, 0, 10, 50, 90)
    late = heap_profile(core, 10, 20, 30, 70)
    for both in (early + late, late + early):
        assert levels(both) == (2, 30, 90)
        assert both.heap_peak == 90
    last = heap_profile(core, 20, 30, 35, 95)
    assert levels(early + late + last) == levels(early + (late + last)) == (3, 35, 95)
    between = core.profile({("a",): {"calls": 5}}, 20, 10)
    assert levels(early + late + between) == (7, 30, 90), "it does not tell of the heap"
    beside = heap_profile(core, 5, 15, 1, 2)  # another process
    assert levels(early + beside) == (2, 51, 92)
    assert levels(late - early) == (0, -20, -20)


# --- sampling ----------------------------------------------------------------------

MEAN = 512 << 10


@pytest.mark.parametrize("size", [16, 200, 4096, 65_536, 1 << 20, 8 << 20])
def test_sampling_is_without_bias(core: Core, size: int) -> None:
    """Estimates are those of exact tracking, over many samples: within 1 %."""
    core.lib.sp_heap_seed(size + 7)
    core.start_heap(sample_bytes=MEAN)
    thread = core.thread()
    probability = -math.expm1(-size / MEAN)
    # The standard error of a sum of n blocks is sqrt((1 - p) / (p n)); a fourth of 1 %.
    count = max(int((1 - probability) / probability / 0.0025**2), 1000)
    scale = 1
    if count > 300_000:
        # The same bytes in larger pieces would be other blocks: a shorter mean instead.
        scale = count // 300_000 + 1
        core.stop()
        core.start_heap(sample_bytes=max(MEAN // scale, 1))
        count //= scale
    with thread.span("a"):
        core.lib.spt_block_make_many(thread.pointer, BASE, 16, count, size)
        values = only(core.snapshot())
    for prefix in ("alloc", "inuse"):
        assert values[f"{prefix}_objects"] == pytest.approx(count, rel=0.01)
        assert values[f"{prefix}_space"] == pytest.approx(count * size, rel=0.01)
    for n in range(count):
        core.free(BASE + 16 * n, thread)
    values = only(core.snapshot())
    assert (values["inuse_objects"], values["inuse_space"]) == (0, 0)
    assert core.in_map(1) == (0, 0)


def test_sampling_weighs_a_block_by_its_chance(core: Core) -> None:
    core.lib.sp_heap_seed(5)
    core.start_heap(sample_bytes=1000)
    thread = core.thread()
    with thread.span("a"):
        number = 0
        while core.in_map(1)[0] == 0:
            number += 1
            thread.make(BASE + 16 * number, 100)
        values = only(core.snapshot())
    weight = 1 / -math.expm1(-0.1)
    assert values["alloc_objects"] == round(weight)
    assert values["alloc_space"] == round(100 * weight)
    # The nothing that is left of it, to the last bit.
    core.free(BASE + 16 * number, thread)
    assert only(core.snapshot())["inuse_space"] == 0


def test_frees_ask_one_byte_whether_a_block_may_be_ours(core: Core) -> None:
    """Exact: a page that held a block may hold others. No session: nothing is ours."""
    may_be_ours = core.lib.spt_block_may_be_ours
    core.start_heap()
    thread = core.thread()
    with thread.span("a"):
        assert not may_be_ours(BASE)
        thread.make(BASE, 100)
    assert may_be_ours(BASE)
    assert may_be_ours(BASE + 8000)
    assert not may_be_ours(BASE + 8192)
    core.free(BASE, thread)
    assert may_be_ours(BASE)
    core.stop()
    assert not may_be_ours(BASE)


@pytest.mark.parametrize("offset", [0, 8], ids=["plain", "beside"])
def test_sampling_frees_near_samples_alone_look_closer(core: Core, offset: int) -> None:
    may_be_ours = core.lib.spt_block_may_be_ours
    core.start_heap(sample_bytes=1)  # each is one
    thread = core.thread()
    far = BASE + (64 << 13 << 10)  # another page, of the same byte
    with thread.span("a"):
        for address in (BASE + offset, BASE + 64 + offset, far + offset):
            thread.make(address, 5000)
        assert core.in_map(1) == (3, 15_000)
        for address in (BASE + offset, far + offset, BASE + 64 + offset):
            assert may_be_ours(BASE)
            core.free(address, thread)
    assert not may_be_ours(BASE)
    assert core.in_map(1) == (0, 0)


def test_sampling_more_in_one_page_than_are_counted(core: Core) -> None:
    may_be_ours = core.lib.spt_block_may_be_ours
    core.start_heap(sample_bytes=1)
    thread = core.thread()
    addresses = [BASE + 16 * n for n in range(400)]
    with thread.span("a"):
        for address in addresses:
            thread.make(address, 5000)
        for address in addresses:
            assert may_be_ours(address)
            core.free(address, thread)
    assert core.in_map(1) == (0, 0)


def test_sampling_threads_differ_and_seeds_repeat(core: Core) -> None:
    def sampled(seed: int, threads: int) -> list[tuple[int, int]]:
        core.lib.sp_heap_seed(seed)
        core.start_heap(sample_bytes=1000)
        result = []
        for number in range(threads):
            thread = core.thread()
            with thread.span(f"s{number}") as span:
                for n in range(400):
                    thread.make(BASE + 16 * n + number * LEAF, 20)
                result.append(core.in_map(span.path))
            thread.end()
        core.stop()
        return result

    first = sampled(3, 1)
    assert first == sampled(3, 1)
    assert len({*sampled(3, 8)}) > 2
    assert len({sampled(seed, 1)[0] for seed in range(1, 9)}) > 2


# --- spans as owners -----------------------------------------------------------------


def test_rule_5_6_a_span_owns_its_blocks_until_the_last_is_freed(core: Core) -> None:
    core.start_heap(by_span=True)
    thread = core.thread()
    first = thread.begin("a")
    thread.make(BASE, 10)
    second = thread.begin("b")
    thread.make(BASE + 16, 20)
    thread.make(BASE + 8, 1 << 25)
    thread.exit(second)
    assert core.owners() == {
        first.id: (1, 10, False),
        second.id: (2, 20 + (1 << 25), True),
    }
    core.free(BASE + 8)  # by a stranger
    core.free(BASE, thread)
    assert core.owners() == {first.id: (0, 0, False), second.id: (1, 20, True)}
    thread.exit(first)
    core.free(BASE + 16, thread)
    assert core.owners() == {}
    assert core.snapshot().totals()["inuse_objects"] == 0


def test_rule_5_6_the_same_object_owns_for_each_of_its_spans(core: Core) -> None:
    core.start_heap(by_span=True)
    thread = core.thread()
    span = thread.begin("a")
    ids = [span.id]
    thread.make(BASE, 1)
    thread.exit(span)
    thread.begin("a", span=span)
    ids.append(span.id)
    thread.make(BASE + 16, 2)
    thread.exit(span)
    assert core.owners() == {ids[0]: (1, 1, True), ids[1]: (1, 2, True)}


def test_rule_5_6_an_opened_span_owns_until_it_is_closed(core: Core) -> None:
    core.start_heap(by_span=True)
    thread = core.thread()
    span = thread.open("a")
    for n in range(2):
        thread.enter(span)
        thread.make(BASE + 16 * n, 5)
        thread.exit(span)
        assert core.owners() == {span.id: (n + 1, 5 * n + 5, False)}
    thread.close(span)
    assert core.owners() == {span.id: (2, 10, True)}


@given(
    sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=80, unique=True),
    most=st.integers(0, 20),
)
def test_rule_5_6_the_smallest_are_folded_into_their_node(
    core: Core, sizes: list[int], most: int
) -> None:
    core.stop()
    core.start_heap(by_span=True, max_closed=most)
    folded = core.stat("heap_spans_folded")
    thread = core.thread()
    for n, size in enumerate(sizes):
        with thread.span("a"):
            thread.make(BASE + 16 * n, size)
        kept = sorted(space for _, space, _ in core.owners().values())
        assert len(kept) <= most
    values = only(core.snapshot())
    assert values["inuse_space"] == sum(sizes), "the node's is exact in any case"
    assert core.stat("heap_spans_folded") - folded == len(sizes) - len(kept)
    if len(sizes) <= most:
        assert kept == sorted(sizes)
    for n in range(len(sizes)):
        core.free(BASE + 16 * n, thread if n % 2 else None)
        assert all(space > 0 for _, space, _ in core.owners().values())
    assert core.owners() == {}
    assert only(core.snapshot())["inuse_space"] == 0
    thread.end()


def test_rule_5_6_folding_takes_the_smallest(core: Core) -> None:
    core.start_heap(by_span=True, max_closed=8)
    thread = core.thread()
    for n, size in enumerate([50, 40, 30, 20, 10, 60, 70, 80, 90]):
        with thread.span("a"):
            thread.make(BASE + 16 * n, size)
    spaces = sorted(space for _, space, _ in core.owners().values())
    assert spaces == [30, 40, 50, 60, 70, 80, 90], "an eighth at a time"


def test_owners_of_an_earlier_session_are_forgotten(core: Core) -> None:
    core.start_heap(by_span=True)
    thread = core.thread()
    span = thread.begin("a")
    thread.make(BASE, 1)
    core.stop()
    core.start_heap(by_span=True)
    assert core.owners() == {}
    thread.make(BASE + 16, 1)  # inside a span of the session that is over
    thread.exit(span)
    core.free(BASE, thread)
    assert core.owners() == {}
