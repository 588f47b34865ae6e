"""What a reporter is."""

from __future__ import annotations

from .. import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._core import (
        SpanAllocations,
        SpanBatch,
        SpanCpuTime,
        SpanHeap,
        SpanMetadata,
        SpanWallTime,
    )
    from ..config import ProfileConfig
    from ..profiles import Profile


class Reporter:
    """Receives what a session measures. Subclass it; every method is optional.

    All methods are called on the session's reporter thread only, never two at a
    time, and may block: neither the program nor what it measures waits for them.
    What they do is not profiled. An exception is logged with its traceback
    (``logging.getLogger("spanprof")``, a few a minute), counted in
    ``stats().reporter_errors``, and harms nobody else; the reporter is called again
    all the same.

    A method that a subclass does not override costs nothing.

    Import modules before the session starts, not in these methods: a child that is
    forked in the middle of an import cannot ever import that module.
    """

    draining: bool = False
    """True during calls that a :func:`spanprof.flush` or the end of the session has
    caused, rather than the report interval. What a reporter has put off is due
    then: after the next :meth:`flush` nothing may be held back."""

    ending: bool = False
    """True during the last :meth:`profile` and :meth:`flush` of a session: nothing is
    called after them."""

    def init(self, config: ProfileConfig) -> None:
        """Called first, once in each session, and again in a child after a fork.

        A reporter that is used a second time starts anew here.
        """

    def profile(self, profile: Profile) -> None:
        """Called at each report with the values since the last one."""

    def flush(self) -> None:
        """Called after each report, and last of all at the end of the session.

        Nothing may be buffered for longer than until here, unless there is a limit
        on what may be written at a time (see :attr:`draining`).
        """

    def spans(self, batch: SpanBatch) -> None:
        """Called with spans that were destroyed, each once, in the order in which the
        threads ended them.

        ``batch`` is a read-only array. ``batch[i]`` and a loop over it give
        :class:`spanprof.ClosedSpan`; ``memoryview`` and numpy read it in place, and
        Arrow libraries copy it into columns, see the guide. It stays valid for as long
        as it is kept.

        Called before each report, and between reports as soon as some thousands wait.
        What a thread ends while ``max_pending_spans`` of its spans wait is dropped, and
        counted in ``stats().spans_dropped``: neither the program nor the profile waits
        for reporters.
        """

    # Below: single spans, one call each. The values are the span's own, without those
    # of the spans nested in it.

    def span_created(self, id: int, metadata: SpanMetadata) -> None:
        """Called once for each span, before all else about it; a parent comes before
        its children.

        Spans that are over are told of as they are for :meth:`spans`, those that go on
        at each report.
        """

    def span_destroyed(self, id: int) -> None:
        """Called last for each span: it is over, and so is, where memory in use is
        tracked, what it allocated.

        A span that still has memory in use waits for that to be freed. Of such only
        ``max_closed_heap_spans`` wait, the smallest are given up first.
        """

    def span_cpu(self, id: int, cpu: SpanCpuTime) -> None:
        """CPU time since the last call for that span."""

    def span_wall(self, id: int, wall: SpanWallTime) -> None:
        """Wall time since the last call for that span."""

    def span_allocations(self, id: int, allocations: SpanAllocations) -> None:
        """Allocations since the last call for that span."""

    def span_heap(self, id: int, heap: SpanHeap) -> None:
        """What the span allocated and nobody has freed, at this moment."""


def import_now(*modules: str) -> None:
    """Import what a reporter's methods are going to.

    Not on the reporter thread: a child that is forked while that thread imports a
    module has the module's lock held for ever, and waits for it at its first report.
    """
    for module in modules:
        try:
            __import__(module)
        except ImportError:
            pass  # who needs it will tell


METHODS = (
    "init",
    "profile",
    "spans",
    *_core.SPAN_METHODS,
    "flush",
)
"""Methods that are called."""

KINDS = {
    "span_cpu": "cpu",
    "span_wall": "wall",
    "span_allocations": "alloc",
    "span_heap": "heap",
}
"""What has to be tracked for a method to be called."""


def overrides(reporter: Reporter, method: str) -> bool:
    """Whether a reporter has a method of its own."""
    function = getattr(getattr(reporter, method), "__func__", None)
    return function is not getattr(Reporter, method)
