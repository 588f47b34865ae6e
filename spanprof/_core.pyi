"""Types of the C extension module.

Only ``spanprof`` itself imports this module: names here may change between
versions, the names re-exported by ``spanprof`` do not.

Times are in nanoseconds. A *metric* is one stored number per node
(``METRICS``); a *series* is what users and writers see: one metric, or the sum
of two (``SERIES``).
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Generic, ParamSpec, Self, TypeVar, final

from .spans import ClosedSpan

_P = ParamSpec("_P")
_R = TypeVar("_R")
_R_co = TypeVar("_R_co", covariant=True)
_Yields = TypeVar("_Yields")
_Takes = TypeVar("_Takes")

METRICS: Final[tuple[str, ...]]
"""Names of the stored metrics, in the order of ``ProfileData.nodes()`` values."""

SERIES: Final[tuple[tuple[str, str, str, tuple[str, ...]], ...]]
"""``(name, unit, kind, metrics summed)`` for every series, in pprof order."""

AGE_LIMITS: Final[tuple[int, ...]]
"""Lower limits of the classes of age, in seconds, ascending from 0."""

@final
class Span:
    def __init__(self, name: str, /, **labels: object) -> None: ...
    @property
    def id(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, object]: ...
    @property
    def is_recording(self) -> bool: ...
    def open(self) -> Self: ...
    def close(self) -> None: ...
    def span(self, name: str, /, **labels: object) -> Span: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
        /,
    ) -> None: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
        /,
    ) -> None: ...
    def __call__(self, function: Callable[_P, _R], /) -> SpanFunction[_P, _R]: ...

@final
class SpanFunction(Generic[_P, _R_co]):
    __wrapped__: Callable[_P, _R_co]
    __name__: str
    __qualname__: str
    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R_co: ...
    def __get__(self, instance: object, owner: type | None = None, /) -> Any: ...

@final
class CallSpans:
    """Makes the spans of a decorated function's calls."""

    @property
    def name(self) -> str: ...
    def of_function(self, function: Callable[..., object], /) -> None: ...
    def __call__(self, steps: object, /) -> Span:
        """To be entered at once. ``steps`` is the generator, coroutine or asynchronous
        generator of the call, before its first step: the span is suspended when that
        yields. With anything else it is when the frame does that enters it."""

def steps_of(
    generator: Generator[_Yields, _Takes, _R], /
) -> Generator[_Yields, _Takes, _R]:
    """For ``yield from``: the generator without its ``close()``."""

@final
class ProfileData:
    """Values of every node, self-contained and immutable."""

    @property
    def start_ns(self) -> int:
        """Unix time at which the values begin."""
    @property
    def duration_ns(self) -> int: ...
    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds that were measured, of ``calls wall cpu alloc heap``."""
    @property
    def heap_peak(self) -> int:
        """Most bytes that all nodes together had in use at any time."""
    def __len__(self) -> int: ...
    def ages(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]] | None:
        """``(bytes, growing)`` by class of age, for each node; None if none were taken.

        ``growing`` is at how many reports in a row the bytes of that age and older
        were more than at the one before.
        """
    def nodes(
        self,
    ) -> list[tuple[int, int, tuple[tuple[str, str], ...], tuple[int, ...]]]:
        """``(parent, callsite, labels, values)`` for each node.

        ``parent`` is an index into the same list, always lower than the
        node's own, or -1 at a root. ``callsite`` goes into :func:`callsite`.
        ``labels`` are the node's own recorded labels, not its ancestors'.
        ``values`` are self values in the order of ``METRICS``.
        """
    def merge(self, other: ProfileData, sign: int, /) -> ProfileData:
        """Return ``self + sign * other`` (sign 1 or -1), node by node."""
    def split(self, max_samples: int, /) -> tuple[ProfileData, ProfileData | None]:
        """Return the ``max_samples`` heaviest nodes, and the rest if any."""
    def to_pprof(self, kind: str, /) -> bytes:
        """Return a gzip-compressed pprof profile of one kind. Releases the GIL."""
    @staticmethod
    def from_pprof(data: bytes, /) -> ProfileData:
        """Read a profile that ``to_pprof`` wrote; ValueError if it is none."""

def profile_of_spans(
    like: ProfileData,
    rows: list[tuple[int, int, int, tuple[tuple[str, str], ...], tuple[int, ...]]],
    /,
) -> ProfileData:
    """A profile of the time and kinds of ``like`` in which each node is a span.

    A row is ``(span's id, parent, callsite, labels, values)``, as a node of
    :meth:`ProfileData.nodes`.
    """

def callsite(index: int, /) -> tuple[str, str, str, int]:
    """``(name, target, file, line)`` of a callsite."""

_C_API: object
"""The capsule of spanprof.h."""

def current_span() -> Span | None: ...

@final
class SpanBatch:
    """Spans that are over: an array of records, by the buffer protocol; or a table of
    columns, by the Arrow PyCapsule interface."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> ClosedSpan: ...
    def __iter__(self) -> Iterator[ClosedSpan]: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __arrow_c_schema__(self) -> object: ...
    def __arrow_c_array__(
        self, requested_schema: object | None = None
    ) -> tuple[object, object]:
        """Copies the records; MemoryError if there is no room. TypeError if
        ``requested_schema`` is no schema; what it asks for is not heeded."""

@final
class SpanMetadata:
    """What a span is."""

    def __new__(
        cls,
        scope: Iterable[int],
        callsite: int,
        target: str,
        span_name: str,
        file: str,
        line: int,
        labels: Mapping[str, str] = ...,
    ) -> Self: ...
    @property
    def scope(self) -> tuple[int, ...]:
        """Ids of the span and of its ancestors: itself first, the root last. It ends
        early at a span that was dropped."""
    @property
    def callsite(self) -> int:
        """A number for its place in the source, the same as long as the process
        lives."""
    @property
    def target(self) -> str:
        """The ``__name__`` of the module that opened it."""
    @property
    def span_name(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def line(self) -> int: ...
    @property
    def labels(self) -> Mapping[str, str]:
        """Its recorded labels, in a mapping that cannot be changed."""

@final
class SpanCpuTime:
    def __new__(cls, elapsed_user_nanos: int, elapsed_system_nanos: int) -> Self: ...
    @property
    def elapsed_user_nanos(self) -> int: ...
    @property
    def elapsed_system_nanos(self) -> int: ...

@final
class SpanWallTime:
    def __new__(cls, elapsed_busy_nanos: int, elapsed_idle_nanos: int) -> Self: ...
    @property
    def elapsed_busy_nanos(self) -> int: ...
    @property
    def elapsed_idle_nanos(self) -> int: ...

@final
class SpanAllocations:
    def __new__(cls, allocation_count: int, allocated_bytes: int) -> Self: ...
    @property
    def allocation_count(self) -> int: ...
    @property
    def allocated_bytes(self) -> int: ...

@final
class SpanHeap:
    def __new__(cls, in_use_bytes: int, in_use_count: int) -> Self: ...
    @property
    def in_use_bytes(self) -> int: ...
    @property
    def in_use_count(self) -> int: ...

SPAN_METHODS: Final[tuple[str, ...]]
"""Names of a reporter's methods for single spans, in the order of
``SpanUpdates.deliver``."""

@final
class SpanUpdates:
    """News of single spans; valid while the core tells of them."""

    def deliver(
        self,
        methods: tuple[Callable[..., object] | None, ...],
        on_error: Callable[[str, BaseException], object],
        /,
    ) -> None:
        """Call one reporter's methods. What one of them raises goes to ``on_error``,
        with the method's name."""
    @property
    def calling(self) -> str | None:
        """Which method is being called; None between calls."""

def set_span_maker(maker: Callable[[tuple[int, ...]], object], /) -> None:
    """What makes the objects of ``batch[i]`` of a record's numbers."""

def label_set(number: int, /) -> tuple[tuple[str, str], ...]: ...
def session_start(
    *,
    track_wall: bool,
    track_cpu: bool,
    track_allocations: bool,
    track_heap: bool,
    heap_sample_bytes: int,
    record_labels: tuple[str, ...],
    max_nodes: int,
    max_label_values: int,
    report_interval: float,
    heap_snapshot_interval: float,
    on_report: Callable[[ProfileData | None, bool], None] | None,
    on_updates: Callable[[SpanUpdates], None] | None,
    on_spans: Callable[[SpanBatch], None] | None,
    max_pending_spans: int,
    max_closed_heap_spans: int,
    heap_by_span: bool,
    want_profile: bool,
    goes_on: bool,
    sampler: tuple[float, int | None] | Callable[[int, int, Any], bool] | None,
    publish_thread_context: bool,
) -> None:
    """Start the process's one session; RuntimeError if one runs.

    ``on_report(profile, last)`` is called on the reporter thread, every
    ``report_interval`` seconds (0: only on flush and stop), at each flush, and
    once more with ``last=True`` at stop. ``profile`` holds the values since the
    last call, or is None if ``want_profile`` is false. No thread is started
    without ``on_report``. ``on_spans(batch)`` is called there as well, before each
    report, and whenever many wait. ``sampler`` is a ratio with a seed, or is called
    with id, callsite and labels (a dict or None) of each root.
    """

def uncharged(function: Callable[[], _R], /) -> _R:
    """Call it; what it allocates is charged to nobody."""

def session_stop(timeout: float | None, /) -> tuple[ProfileData, bool] | None:
    """Stop. Returns the session's final cumulative profile, and whether the
    reporter thread ended within ``timeout`` seconds (None: no limit).
    None if no session runs."""

def session_flush(timeout: float | None, /) -> bool:
    """Have everything reported now; False if that took over ``timeout``."""

def session_snapshot() -> ProfileData | None: ...
def session_is_running() -> bool: ...
def session_trace_id() -> bytes | None: ...
def stats() -> dict[str, int | str | bool]: ...
def numpy_enable(api: object, /) -> bool:
    """Interpose on the handlers of array data. ``api`` is numpy's capsule
    ``_ARRAY_API``. False if that numpy has no handlers (yet), or outside the main
    interpreter."""

def hooks_lost() -> bool:
    """Whether somebody has taken our allocation hooks out since they were put in."""

def labels_enter(block: object, labels: dict[str, object], /) -> None:
    """Spans that are opened in the current context inherit these."""

def labels_exit(block: object, /) -> None:
    """End what the block's innermost ``labels_enter`` began, if it was in this context
    or one that this is a copy of."""

def inherited_labels() -> dict[str, object]:
    """Those of the current context."""

def set_manual_clock(wall_ns: int | None, cpu_ns: int | None, /) -> None:
    """Tests only: replace both clocks by the given readings, for every thread
    (``None, None``: back to the real ones). Refused while a session runs
    unless the manual clock is on already."""
