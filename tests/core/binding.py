"""The core as tests see it: simulated threads, spans, sessions and profiles.

A simulated thread is one that no OS thread owns; any number of them take turns in the
one thread that runs the test, on a clock that stands still unless it is told otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

METRICS = (
    "calls",
    "wall_busy",
    "wall_idle",
    "cpu_user",
    "cpu_system",
    "alloc_objects",
    "alloc_space",
    "inuse_objects",
    "inuse_space",
    "inuse_peak_space",
)
KINDS = ("calls", "wall", "cpu", "alloc", "heap")
NONE, OPEN, ENTERED, SUSPENDED = range(4)
SAMPLED, SAMPLED_OUT, UNDECIDED = range(3)
STARTED, START_RUNNING, START_NO_THREAD = range(3)
PPROF_OK, PPROF_NO_MEMORY, PPROF_MALFORMED, PPROF_FOREIGN = range(4)
OTHER = "(other)"
SECOND = 1_000_000_000

Labels = tuple[tuple[str, str], ...]
Frame = tuple[str, Labels]
Stack = tuple[Frame, ...]
Values = dict[str, int]


def text_of(raw: bytes) -> str:
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "backslashreplace")


def bytes_of(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def load(path: Path) -> Core:
    from cffi import FFI  # type: ignore[import-untyped]

    ffi = FFI()
    ffi.cdef((Path(__file__).parent / "core_cdef.h").read_text())
    core = Core(ffi, ffi.dlopen(str(path)))
    _loaded.append(core)
    return core


_loaded: list[Core] = []


def end_child(status: int) -> NoReturn:
    """End a forked child without what an interpreter does at its end. What the child
    has run of the core is covered as well."""
    for core in _loaded:
        core.lib.spt_note_coverage()
    os._exit(status)


class Profile:
    """A profile of the core's, freed with this object."""

    def __init__(self, core: Core, pointer: Any) -> None:
        assert pointer != core.ffi.NULL
        self.core = core
        self.pointer = core.ffi.gc(pointer, core.lib.sp_profile_free)

    def __add__(self, other: Profile) -> Profile:
        return self._merged(other, 1)

    def __sub__(self, other: Profile) -> Profile:
        return self._merged(other, -1)

    def _merged(self, other: Profile, sign: int) -> Profile:
        merge = self.core.lib.sp_profile_merge
        return Profile(self.core, merge(self.pointer, other.pointer, sign))

    @property
    def kinds(self) -> set[str]:
        return {kind for n, kind in enumerate(KINDS) if self.pointer.kinds >> n & 1}

    @property
    def duration(self) -> int:
        return int(self.pointer.duration)

    @property
    def heap_peak(self) -> int:
        return int(self.pointer.heap_peak)

    def ages(self) -> dict[Stack, list[int]]:
        """Bytes in use by class of age, of stacks that have any."""
        ages = self.pointer.ages
        return {
            stack: list(ages[n].space)
            for n, (stack, _) in enumerate(self.stacks())
            if any(ages[n].space)
        }

    @property
    def start_unix(self) -> int:
        return int(self.pointer.start_unix)

    def __len__(self) -> int:
        return int(self.pointer.count)

    def stacks(self) -> list[tuple[Stack, Values]]:
        """Every node in its order. Checks that parents come before children."""
        result: list[tuple[Stack, Values]] = []
        for n in range(self.pointer.count):
            node = self.pointer.nodes[n]
            assert -1 <= node.parent < n
            above = () if node.parent < 0 else result[node.parent][0]
            frame = (
                self.core.callsite_name(node.callsite),
                self.core.labels_of(node.labels),
            )
            values = dict(zip(METRICS, node.value, strict=True))
            result.append(((*above, frame), values))
        return result

    def nodes(self) -> dict[Stack, Values]:
        """Nodes that hold something, by stack. Checks that none is there twice."""
        stacks = self.stacks()
        assert len({stack for stack, _ in stacks}) == len(stacks)
        return {stack: values for stack, values in stacks if any(values.values())}

    def by_name(self) -> dict[str, Values]:
        """Nodes by their names from the root: "a/b"."""
        return {
            "/".join(name for name, _ in stack): values
            for stack, values in self.nodes().items()
        }

    def totals(self) -> Values:
        totals = dict.fromkeys(METRICS, 0)
        for _, values in self.stacks():
            for metric, value in values.items():
                totals[metric] += value
        return totals

    def split(self, most: int) -> tuple[Profile, Profile | None]:
        ffi = self.core.ffi
        first = ffi.new("struct sp_profile **")
        rest = ffi.new("struct sp_profile **")
        assert self.core.lib.sp_profile_split(self.pointer, most, first, rest) == 0
        return (
            Profile(self.core, first[0]),
            Profile(self.core, rest[0]) if rest[0] != ffi.NULL else None,
        )

    def encode(self, kind: str, program: bytes = b"/usr/bin/program") -> bytes:
        ffi, lib = self.core.ffi, self.core.lib
        data = ffi.new("unsigned char **")
        length = ffi.new("size_t *")
        number = KINDS.index(kind)
        status = lib.sp_pprof_encode(self.pointer, number, program, data, length)
        assert status == PPROF_OK
        try:
            return bytes(ffi.buffer(data[0], length[0]))
        finally:
            lib.spt_free(data[0])


@dataclass(frozen=True)
class Record:
    """One record of the feed of spans. Times are the injected clock's."""

    id: int
    parent: int
    start: int
    end: int
    wall_busy: int
    wall_idle: int
    cpu: int
    cpu_system: int
    alloc_objects: int
    alloc_space: int
    frame: Frame
    thread: int


@dataclass(frozen=True)
class OpenSpan:
    """A span that is not over, as the feed finds it."""

    id: int
    parent: int
    wall_busy: int
    wall_idle: int
    cpu: int
    cpu_system: int
    alloc_objects: int
    alloc_space: int
    frame: Frame


ROUNDS = ("over", "report", "heap", "last")


@dataclass(frozen=True)
class Update:
    """What a roster tells of a span at one time; None: nothing of that kind."""

    id: int
    scope: tuple[int, ...] | None  # with it, that it was created
    frame: Frame | None
    values: dict[str, int] | None  # since the last time
    heap: tuple[int, int] | None  # blocks, bytes
    destroyed: bool


class Roster:
    """What reporters know of single spans."""

    def __init__(self, core: Core, with_heap: bool = False) -> None:
        self.core = core
        self.pointer = core.lib.sp_roster_new(with_heap)
        assert self.pointer != core.ffi.NULL

    def free(self) -> None:
        self.core.lib.sp_roster_free(self.pointer)

    def round(self, kind: str) -> list[Update]:
        lib = self.core.lib
        count = lib.spt_roster_round(self.pointer, ROUNDS.index(kind))
        updates, scopes = lib.spt_roster_updates(), lib.spt_roster_scopes()
        return [self._update(updates[n], scopes) for n in range(count)]

    def _update(self, update: Any, scopes: Any) -> Update:
        core, start = self.core, update.scope_start
        created = update.what & 1
        return Update(
            id=update.id,
            scope=tuple(scopes[start : start + update.scope_count])
            if created
            else None,
            frame=(core.callsite_name(update.callsite), core.labels_of(update.labels))
            if created
            else None,
            values={
                "wall_busy": update.wall_busy,
                "wall_idle": update.wall_idle,
                "cpu_user": update.cpu_user,
                "cpu_system": update.cpu_system,
                "alloc_objects": update.alloc_objects,
                "alloc_space": update.alloc_space,
            }
            if update.what & 2
            else None,
            heap=(update.inuse_objects, update.inuse_space)
            if update.what & 4
            else None,
            destroyed=bool(update.what & 8),
        )


@dataclass(eq=False)
class Span:
    core: Core
    pointer: Any
    freed: bool = False

    @property
    def state(self) -> int:
        return int(self.core.lib.spt_span_state(self.pointer))

    @property
    def is_sampled_out(self) -> bool:
        return bool(self.core.lib.spt_span_is_sampled_out(self.pointer))

    @property
    def path(self) -> int:
        return int(self.core.lib.spt_span_path(self.pointer))

    @property
    def id(self) -> int:
        return int(self.core.lib.spt_span_id(self.pointer))

    @property
    def is_suspended(self) -> bool:
        return bool(self.core.lib.spt_span_is_suspended(self.pointer))

    def free(self) -> None:
        if not self.freed:
            self.freed = True
            self.core.lib.spt_span_free(self.pointer)


class Context:
    """What says whose child the next span is: a copy of the thread's."""

    def __init__(self, thread: Thread) -> None:
        self.core = thread.core
        self.pointer = self.core.lib.spt_context_copy(thread.pointer)


class Thread:
    """One simulated thread. Its calls do what the host does: they first ask for the
    thread's state, and without one (no session) leave the span alone."""

    def __init__(self, core: Core, key: int) -> None:
        self.core = core
        self.key = key
        self.cpu = self.system = 0
        self.alive = True
        self.pointer = core.lib.spt_thread_new(key)
        assert self.pointer != core.ffi.NULL

    def ready(self) -> Any:
        """The state to pass to the core; NULL while no session runs."""
        assert self.alive
        return self.core.lib.spt_thread_ready(self.pointer)

    def recording(self) -> bool:
        return bool(self.ready() != self.core.ffi.NULL)

    def use(self, cpu: int = 0, system: int = 0) -> None:
        """Use CPU time, ``system`` of it in the kernel. Wall time stands still."""
        self.cpu += cpu
        self.system += system
        self.core.lib.spt_clock_set(self.key, self.cpu, self.system)

    def begin(
        self,
        name: str,
        parent: Span | None = None,
        span: Span | None = None,
        **labels: str,
    ) -> Span:
        span = span or self.core.span()
        state = self.ready()
        if state == self.core.ffi.NULL:
            return span
        key = self.core.key(name, **labels)
        if not self.sampled(state, parent):
            self.core.lib.sp_span_begin_sampled_out(state, span.pointer)
        elif parent is None:
            self.core.lib.sp_span_begin(state, span.pointer, key)
        else:
            self.core.lib.sp_span_begin_under(state, span.pointer, key, parent.pointer)
        return span

    def sampled(self, state: Any, parent: Span | None) -> bool:
        """The decision for a new span; the core's, or else ``core.answer``'s."""
        above = self.core.ffi.NULL if parent is None else parent.pointer
        decision = self.core.lib.sp_span_decide(state, above)
        return decision == SAMPLED or (decision == UNDECIDED and self.core.answer())

    def open(self, name: str, parent: Span | None = None, **labels: str) -> Span:
        span = self.core.span()
        state = self.ready()
        if state == self.core.ffi.NULL:
            return span
        if not self.sampled(state, parent):
            self.core.lib.sp_span_open_sampled_out(state, span.pointer)
        else:
            above = self.core.ffi.NULL if parent is None else parent.pointer
            key = self.core.key(name, **labels)
            self.core.lib.sp_span_open(state, span.pointer, key, above)
        return span

    def enter(self, span: Span) -> None:
        state = self.ready()
        if state != self.core.ffi.NULL:
            self.core.lib.sp_span_enter(state, span.pointer)

    def exit(self, span: Span) -> bool:
        return bool(self.core.lib.sp_span_exit(self.ready(), span.pointer))

    def close(self, span: Span) -> None:
        self.core.lib.sp_span_close(self.ready(), span.pointer)

    def make(self, address: int, size: int) -> None:
        """Allocate a block for the running span."""
        self.core.lib.spt_block_make(self.pointer, address, size)

    def move(self, old: int, made: int, size: int) -> None:
        """realloc, of 0 (no block) or to 0 (it fails)."""
        self.core.lib.spt_block_move(self.pointer, old, made, size)

    def allocate(self, count: int, size: int) -> None:
        self.core.lib.spt_thread_allocate(self.pointer, count, size)

    @contextmanager
    def span(self, name: str, **labels: str) -> Iterator[Span]:
        span = self.begin(name, None, None, **labels)
        try:
            yield span
        finally:
            self.exit(span)

    def use_context(self, context: Context | None) -> None:
        """The context is the thread's from now on; None: its own is."""
        pointer = self.core.ffi.NULL if context is None else context.pointer
        self.core.lib.spt_thread_use_context(self.pointer, pointer)

    def suspend(self, bottom: Span, key: int, settled: bool = True) -> bool:
        """Take the spans from the innermost down to ``bottom`` off the stack. Not
        ``settled``: before the thread sees to what other threads asked for."""
        state = self.ready() if settled else self.pointer
        place = self.core.place(key)
        return bool(self.core.lib.sp_span_suspend(state, bottom.pointer, place))

    def resume(self, key: int) -> bool:
        """Put what is kept under the key back on the stack. False: there is nothing."""
        state = self.ready()
        top = self.core.lib.sp_suspended_take(self.core.place(key), self.core.ffi.NULL)
        if top == self.core.ffi.NULL:
            return False
        self.core.lib.sp_span_resume(state, top)
        return True

    def abandon(self, span: Span) -> None:
        self.core.lib.sp_span_abandon(self.ready(), span.pointer)

    def end(self) -> None:
        self.alive = False
        self.use_context(None)
        self.core.lib.sp_thread_end_detached(self.pointer)


class Core:
    max_label_values = 1000
    answer: Callable[[], bool] = staticmethod(lambda: True)
    """The host's decision for a root, in a session that asks it."""

    def __init__(self, ffi: Any, lib: Any) -> None:
        self.ffi = ffi
        self.lib = lib
        self.wall = 0
        self._threads: list[Thread] = []
        self._spans: list[Span] = []
        self._contexts: list[Context] = []
        lib.spt_take_released()

    # --- sessions ------------------------------------------------------------

    def start(
        self,
        wall: bool = True,
        cpu: bool = True,
        allocations: bool = True,
        max_nodes: int = 100_000,
        max_label_values: int = 1000,
    ) -> int:
        self.max_label_values = max_label_values
        return int(
            self.lib.spt_start(wall, cpu, allocations, max_nodes, max_label_values)
        )

    def feed_limit(self, limit: int) -> None:
        """Sessions from now on have a feed, so many spans waiting at most; 0: none."""
        self.lib.spt_feed_limit(limit)

    def sample(self, ratio: float, seed: int | None = None) -> None:
        """Sessions from now on record roots by chance."""
        self.lib.spt_sampler(1, ratio, seed is not None, seed or 0)

    def sample_by(self, answer: Callable[[], bool] | None) -> None:
        """Sessions from now on record roots for which that is true; None: all."""
        self.lib.spt_sampler(0 if answer is None else 2, 0, False, 0)
        self.answer = answer or (lambda: True)

    def publish(self, wanted: bool = True) -> None:
        """Sessions from now on tell outside readers what runs, or do not."""
        self.lib.spt_publish(wanted)

    @property
    def trace_id(self) -> bytes | None:
        """The id of the running session's trace; None if it does not publish."""
        drawn = self.ffi.new("unsigned char[16]")
        published = self.lib.sp_publish_trace_id(drawn)
        return bytes(self.ffi.buffer(drawn)) if published else None

    @property
    def sampled_out(self) -> int:
        """Spans that were sampled out, since the process began."""
        return int(self.lib.sp_threads_sampled_out())

    def take_spans(self) -> list[Record]:
        """Spans that are over, of all threads, up to as many as a batch holds."""
        batch = self.lib.sp_feed_take()
        if batch == self.ffi.NULL:
            return []
        lib = self.lib
        offset = lib.sp_session_started_unix - lib.sp_session_started_wall
        try:
            return [self._record(batch.records[n], offset) for n in range(batch.count)]
        finally:
            lib.sp_feed_batch_free(batch)

    def open_spans(self) -> list[OpenSpan]:
        """Spans that are not over, of all threads."""
        spans = self.ffi.new("struct sp_open_spans *")
        self.lib.sp_feed_read_open(spans)
        assert spans.complete
        found = [
            OpenSpan(
                id=span.id,
                parent=span.parent,
                wall_busy=span.used.busy,
                wall_idle=span.idle,
                cpu=span.used.cpu,
                cpu_system=span.system,
                alloc_objects=span.used.objects,
                alloc_space=span.used.space,
                frame=(self.callsite_name(span.callsite), self.labels_of(span.labels)),
            )
            for span in spans.items[0 : spans.count]
        ]
        self.lib.sp_open_spans_free(spans)
        return found

    def _record(self, record: Any, offset: int) -> Record:
        assert record.generation == self.lib.spt_generation()
        return Record(
            id=record.id,
            parent=record.parent,
            start=record.start - offset,
            end=record.end - offset,
            wall_busy=record.wall_busy,
            wall_idle=record.wall_idle,
            cpu=record.cpu_user + record.cpu_system,
            cpu_system=record.cpu_system,
            alloc_objects=record.alloc_objects,
            alloc_space=record.alloc_space,
            frame=(self.callsite_name(record.callsite), self.labels_of(record.labels)),
            thread=record.thread,
        )

    def start_heap(
        self,
        max_nodes: int = 100_000,
        sample_bytes: int = 0,
        by_span: bool = False,
        max_closed: int = 1000,
    ) -> None:
        status = self.lib.spt_start_heap(max_nodes, sample_bytes, by_span, max_closed)
        assert status == STARTED

    def start_memory(
        self,
        allocations: bool = True,
        heap: bool = True,
        max_nodes: int = 100_000,
        sample_bytes: int = 0,
        by_span: bool = False,
        max_closed: int = 1000,
        interval: int = 0,
    ) -> None:
        """A session of any kind, with all times; ``interval`` is of the heap."""
        start = self.lib.spt_start_memory
        settings = (max_nodes, sample_bytes, by_span, max_closed, interval)
        assert start(allocations, heap, *settings) == STARTED

    def free(self, address: int, thread: Thread | None = None) -> None:
        """A thread, or one that the core does not know, frees a block."""
        state = self.ffi.NULL if thread is None else thread.pointer
        self.lib.spt_block_free(state, address)

    def in_map(self, path: int) -> tuple[int, int]:
        """Blocks and bytes of a path that are in the shadow map."""
        walk = self.ffi.new("struct spt_walk *")
        self.lib.spt_heap_walk(path, walk)
        return int(walk.objects), int(walk.space)

    def live(self) -> dict[Stack, tuple[int, int]]:
        """Blocks and bytes that are in the shadow map; in fixed point if sampled."""
        count = self.lib.sp_paths_count()
        live = self.ffi.new("struct spt_live[]", count)
        self.lib.spt_heap_live(live, count)
        return {
            self.stack_of(path): (int(live[path].objects), int(live[path].space))
            for path in range(count)
            if live[path].objects
        }

    def stack_of(self, path: int) -> Stack:
        stack: Stack = ()
        while path != 0:
            key = self.lib.sp_path_key(path)
            frame = self.callsite_name(key & 0xFFFFFFFF), self.labels_of(key >> 32)
            stack = (frame, *stack)
            path = self.lib.sp_path_parent(path)
        return stack

    def owners(self) -> dict[int, tuple[int, int, bool]]:
        """Spans with a record: blocks, bytes, whether they are destroyed; by id."""
        owners = self.ffi.new("struct spt_owners *")
        self.lib.spt_heap_spans(owners)
        views = [owners.view[n] for n in range(owners.count)]
        assert len({view.id for view in views}) == len(views)
        return {view.id: (view.objects, view.space, view.closed) for view in views}

    def stop(self) -> Profile | None:
        final = self.ffi.new("struct sp_profile **")
        self.lib.sp_stop(-1, final)
        return Profile(self, final[0]) if final[0] != self.ffi.NULL else None

    def snapshot(self) -> Profile:
        return Profile(self, self.lib.sp_snapshot())

    def delta(self) -> Profile:
        return Profile(self, self.lib.sp_collect_delta(self.ffi.NULL))

    @property
    def running(self) -> bool:
        return bool(self.lib.spt_generation() != 0)

    def stat(self, name: str) -> int:
        return int(self.lib.spt_stat(name.encode()))

    # --- time, threads, spans ------------------------------------------------

    def use_injected_clock(self) -> None:
        self.wall = 1_000_000
        self.lib.spt_clock_set_wall(self.wall)
        self.lib.spt_clock_use(True)

    def advance(self, wall: int) -> None:
        """Let wall time pass."""
        self.wall += wall
        self.lib.spt_clock_set_wall(self.wall)

    def run(self, thread: Thread, nanos: int, system: int = 0) -> None:
        """Let wall time pass, all of it used by that thread."""
        thread.use(nanos, system)
        self.advance(nanos)

    def thread(self) -> Thread:
        used = {thread.key for thread in self._threads if thread.alive}
        key = next(key for key in range(1, 64) if key not in used)
        self.lib.spt_clock_set(key, 0, 0)
        thread = Thread(self, key)
        self._threads.append(thread)
        return thread

    def span(self) -> Span:
        span = Span(self, self.lib.spt_span_new())
        self._spans.append(span)
        return span

    def context(self, thread: Thread) -> Context:
        """A copy of the thread's, as what is started there gets one."""
        self._contexts.append(Context(thread))
        return self._contexts[-1]

    def place(self, key: int) -> Any:
        """A key of suspended spans."""
        return self.ffi.cast("void *", key)

    def resume_nowhere(self, key: int) -> bool:
        """Resume on a thread that records nothing: the profiler's own."""
        top = self.lib.sp_suspended_take(self.place(key), self.ffi.NULL)
        if top == self.ffi.NULL:
            return False
        self.lib.sp_span_resume(self.ffi.NULL, top)
        return True

    def released(self) -> list[Span]:
        """The spans that the core has let go of since the last call."""
        result = []
        while (pointer := self.lib.spt_take_released()) != self.ffi.NULL:
            result += [s for s in self._spans if not s.freed and s.pointer == pointer]
        return result

    def clean(self) -> None:
        """Leave nothing behind: no session, thread, span or injected clock."""
        self.stop()
        for thread in self._threads:
            if thread.alive:
                thread.end()
        for span in self._spans:
            if not span.freed and span.is_suspended:
                self.lib.sp_span_abandon(self.ffi.NULL, span.pointer)
            if not span.freed and span.state == ENTERED:
                self.lib.sp_span_exit(self.ffi.NULL, span.pointer)
            if not span.freed and span.state == OPEN:
                self.lib.sp_span_close(self.ffi.NULL, span.pointer)
        self.released()
        for span in self._spans:
            span.free()
        for context in self._contexts:
            self.lib.spt_context_free(context.pointer)
        self._contexts.clear()
        self._threads.clear()
        self._spans.clear()
        self.lib.spt_clock_use(False)
        self.sample_by(None)
        self.publish(False)

    # --- names ---------------------------------------------------------------

    def text(self, raw: bytes) -> tuple[Any, Any]:
        """A ``struct sp_text``, and what must stay alive for it."""
        buffer = self.ffi.from_buffer(raw)
        text = self.ffi.new("struct sp_text *", {"bytes": buffer, "length": len(raw)})
        return text[0], (buffer, text)

    def intern(
        self,
        name: bytes,
        target: bytes = b"",
        file: bytes = b"",
        line: int = 0,
        offset: int = 0,
    ) -> int:
        parts = [self.text(part) for part in (name, target, file)]
        texts = [part[0] for part in parts]
        return int(self.lib.sp_callsite_intern(*texts, line, offset))

    def intern_labels(
        self, labels: Mapping[bytes, bytes], most: int | None = None
    ) -> int:
        count = len(labels)
        kept = [self.ffi.from_buffer(raw) for pair in labels.items() for raw in pair]
        keys = self.ffi.new("struct sp_text[]", max(count, 1))
        values = self.ffi.new("struct sp_text[]", max(count, 1))
        for n in range(count):
            keys[n].bytes, keys[n].length = kept[2 * n], len(kept[2 * n])
            values[n].bytes, values[n].length = kept[2 * n + 1], len(kept[2 * n + 1])
        if most is None:
            most = self.max_label_values
        return int(self.lib.sp_labels_intern(keys, values, count, most))

    def key(self, name: str, **labels: str) -> int:
        callsite = self.intern(bytes_of(name))
        if not labels:
            return callsite
        raw = {bytes_of(key): bytes_of(value) for key, value in labels.items()}
        return self.intern_labels(raw) << 32 | callsite

    def string(self, string: Any) -> bytes:
        return bytes(self.ffi.buffer(string.bytes, string.length))

    def callsite_name(self, callsite: int) -> str:
        return text_of(self.string(self.lib.sp_callsite_get(callsite).name))

    def labels_of(self, labels: int) -> Labels:
        found = self.lib.sp_labels_get(labels)
        items = [found.items[n] for n in range(found.count)]
        return tuple(
            (text_of(self.string(item.key)), text_of(self.string(item.value)))
            for item in items
        )

    # --- profiles ------------------------------------------------------------

    def profile(
        self,
        nodes: Mapping[tuple[str, ...], Mapping[str, int]],
        start: int = 0,
        duration: int = 0,
    ) -> Profile:
        """A profile made by hand; ancestors are added. Names may hold labels:
        ``name?key=value&key=value``."""
        stacks: dict[tuple[str, ...], Mapping[str, int]] = {}
        for stack, values in nodes.items():
            for depth in range(1, len(stack)):
                stacks.setdefault(stack[:depth], {})
            stacks[stack] = values
        order = sorted(stacks, key=len)
        places = {stack: n for n, stack in enumerate(order)}
        profile = Profile(self, self.lib.sp_profile_new(len(order)))
        profile.pointer.start_unix = start
        profile.pointer.duration = duration
        profile.pointer.kinds = 15
        for n, stack in enumerate(order):
            node = profile.pointer.nodes[n]
            node.parent = places.get(stack[:-1], -1)
            name, _, query = stack[-1].partition("?")
            labels = dict(part.split("=") for part in query.split("&") if part)
            key = self.key(name, **labels)
            node.callsite, node.labels = key & 0xFFFFFFFF, key >> 32
            for metric, value in stacks[stack].items():
                node.value[METRICS.index(metric)] = value
        return profile

    def decode(self, data: bytes) -> tuple[int, Profile | None]:
        result = self.ffi.new("struct sp_profile **")
        status = self.lib.sp_pprof_decode(self.ffi.from_buffer(data), len(data), result)
        if result[0] == self.ffi.NULL:
            return status, None
        return status, Profile(self, result[0])
